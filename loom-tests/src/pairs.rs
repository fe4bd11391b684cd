//! Each operation on a task from outside, against each other one and against all that the task's
//! core does with the task.
//!
//! The task is polled, waits, is polled again, and is then completed or shut down. It is plain or
//! stackful, it waits in `block_on`, or it waits for a stack. Meanwhile other cores, or interrupts
//! of its own core, operate on it, and a time slice can end between any two steps. In every
//! interleaving no wake is lost, and the future, the output and the task are dropped and freed
//! once.

use std::future::poll_fn;
use std::sync::{Arc as StdArc, Mutex};
use std::task::{Context, Poll, Waker};

use loom::sync::Arc;
use trapline::platform::InInterrupt::{No, Unknown};
use trapline::{Config, JoinHandle, Runtime, block_on, stackful};

use crate::harness::{
    Counter, Drops, FireOnDrop, Payload, Signal, Threads, bounded, deeper, interrupted, keep,
    poll_once,
};
use crate::memory::free_abandoned;
use crate::platform::{Arrival, interrupt, on_interrupt, on_timer, sure_interrupts_come};

/// An operation on the task by code that has its waker or its join handle.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Wake,
    WakeByRef,
    Clone,
    Drop,
    Abort,
    /// Polls the join handle once and drops it.
    Join,
    DropJoin,
    /// Spawns another task.
    Spawn,
}
use Act::*;

/// The kind of the task.
#[derive(Clone, Copy, Debug, PartialEq)]
enum TaskKind {
    Plain,
    Stackful,
    /// The task's first poll waits in `block_on` for another task of its core.
    Suspended,
    /// The task's second poll waits for the only stack, which another task holds for a while.
    WaitingForStack,
}

/// How the core of the task ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// The core waits for the task, and parks if there is nothing to do.
    Completion,
    /// The core shuts its runtime down right after the first poll.
    Shutdown,
}

/// The context of the operations.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// Each operation runs on a core of its own.
    Cores,
    /// Each operation runs in an interrupt of its own.
    Interrupts,
}

/// The state of one run: the runtime, the task's handle, and the counters.
struct Scenario {
    runtime: &'static Runtime,
    handle: Mutex<Option<Arc<JoinHandle<Payload>>>>,
    /// Wakers that are dropped at the end of the run.
    kept: Mutex<Vec<Waker>>,
    threads: Threads,
    future: Drops,
    output: Drops,
    spawned: Drops,
}

impl Act {
    /// Returns whether the operation makes the core poll the task again or drop its future.
    fn wakes(self) -> bool {
        matches!(self, Wake | WakeByRef | Abort)
    }

    /// Returns whether the operation needs the join handle.
    fn needs_handle(self) -> bool {
        matches!(self, Abort | Join | DropJoin)
    }

    /// Returns a closure that does the operation. The handle is taken from the scenario now.
    fn prepare(self, scenario: &StdArc<Scenario>, waker: Waker) -> Box<dyn FnOnce()> {
        match self {
            Wake => Box::new(move || waker.wake()),
            WakeByRef => {
                let scenario = scenario.clone();
                Box::new(move || {
                    waker.wake_by_ref();
                    scenario.kept.lock().unwrap().push(waker);
                })
            }
            Clone => Box::new(move || drop(waker.clone())),
            Drop => Box::new(move || drop(waker)),
            Abort => {
                let handle = scenario.handle.lock().unwrap().clone().unwrap();
                Box::new(move || handle.abort())
            }
            Join => {
                let handle = scenario.handle.lock().unwrap().take().unwrap();
                Box::new(move || {
                    let Ok(mut handle) = Arc::try_unwrap(handle) else {
                        unreachable!("another operation has a clone of the handle")
                    };
                    let counter = StdArc::new(Counter::default());
                    let _ready_or_not = poll_once(&mut handle, &Waker::from(counter.clone()));
                    drop(handle);
                })
            }
            DropJoin => {
                let handle = scenario.handle.lock().unwrap().take();
                Box::new(move || drop(handle))
            }
            Spawn => {
                let (runtime, payload) = (scenario.runtime, scenario.spawned.payload());
                Box::new(move || drop(runtime.spawn(async move { drop(payload) })))
            }
        }
    }
}

impl Scenario {
    fn new(kind: TaskKind) -> StdArc<Self> {
        let stacks = if kind == TaskKind::WaitingForStack { 1 } else { usize::MAX };
        StdArc::new(Self {
            runtime: keep(Runtime::with_config(Config { max_stacks: stacks, ..Config::new() })),
            handle: Mutex::default(),
            kept: Mutex::default(),
            threads: Threads::default(),
            future: Drops::default(),
            output: Drops::default(),
            spawned: Drops::default(),
        })
    }

    /// Starts the operations. Called in the task's first poll.
    fn begin(self: &StdArc<Self>, acts: &'static [Act], by: By, context: &Context<'_>) {
        for act in acts {
            let act = act.prepare(self, context.waker().clone());
            match by {
                By::Cores => self.threads.start(act),
                By::Interrupts => interrupt(Arrival::Sure, move || {
                    act();
                    on_interrupt();
                }),
            }
        }
        if by == By::Cores {
            // Drops this reference to the handle, so the last operation that has one drops the
            // handle.
            self.handle.lock().unwrap().take();
        }
        if !acts.iter().any(|act| act.wakes()) {
            context.waker().wake_by_ref();
        }
    }
}

/// Runs a task of this kind while `acts` are done to it; with `preempted`, a time slice ends during
/// the run.
fn run(kind: TaskKind, acts: &'static [Act], by: By, end: End, preempted: bool) {
    let scenario = Scenario::new(kind);
    let runtime = scenario.runtime;
    let [begun, helped, released, ended] = std::array::from_fn(|_| Signal::default());
    let future = {
        let (scenario, begun, helped) = (scenario.clone(), begun.clone(), helped.clone());
        let released = released.clone();
        let parts = (scenario.future.payload(), FireOnDrop(ended.clone()));
        let mut polls = 0;
        poll_fn(move |context| {
            let _parts_of_the_future = &parts;
            polls += 1;
            if polls > 1 {
                return Poll::Ready(scenario.output.payload());
            }
            scenario.begin(acts, by, context);
            begun.fire();
            helped.fire();
            if kind == TaskKind::Suspended {
                block_on(released.wait(1));
            }
            Poll::Pending
        })
    };
    let handle = match kind {
        TaskKind::Plain => runtime.spawn(future),
        _ => runtime.spawn(stackful(future)),
    };
    if acts.iter().any(|act| act.needs_handle()) {
        *scenario.handle.lock().unwrap() = Some(Arc::new(handle));
    } else {
        drop(handle);
    }
    let mut tasks = 1;
    if matches!(kind, TaskKind::Suspended | TaskKind::WaitingForStack) {
        tasks += 1;
        let (released, ended) = (released.clone(), ended.clone());
        drop(runtime.spawn(async move {
            helped.wait(1).await;
            released.fire();
            ended.fire();
        }));
    }
    if kind == TaskKind::WaitingForStack {
        tasks += 1;
        let (released, ended) = (released.clone(), ended.clone());
        drop(runtime.spawn(stackful(async move {
            block_on(released.wait(1));
            ended.fire();
        })));
    }
    if preempted {
        interrupt(Arrival::Unknown, on_timer);
    }
    runtime
        .run_until(if end == End::Completion { ended.wait(tasks) } else { begun.wait(1) })
        .unwrap();
    let report = runtime.shutdown().unwrap();
    scenario.threads.join();
    sure_interrupts_come();
    scenario.kept.lock().unwrap().clear();
    drop(scenario.handle.lock().unwrap().take());
    // Frees what the other cores have handed to the runtime since.
    runtime.shutdown().unwrap();
    scenario.spawned.assert_all_dropped();
    if report.stacks_with_frames == 0 {
        scenario.future.assert_all_dropped();
        scenario.output.assert_all_dropped();
    } else {
        free_abandoned();
    }
}

const ENDS: [End; 2] = [End::Completion, End::Shutdown];
const KINDS: [TaskKind; 4] =
    [TaskKind::Plain, TaskKind::Stackful, TaskKind::Suspended, TaskKind::WaitingForStack];
const STACKFUL: [TaskKind; 3] =
    [TaskKind::Stackful, TaskKind::Suspended, TaskKind::WaitingForStack];

/// Two other cores operate on a task of a third core.
fn by_cores(bound: usize, acts: &'static [Act; 2]) {
    for end in ENDS {
        bounded(bound, Unknown, move || run(TaskKind::Plain, acts, By::Cores, end, false));
    }
}

/// Another core operates on the task, while the task's own core preempts it or gives it a stack.
fn by_core(bound: usize, act: &'static [Act; 1]) {
    for (kind, end) in STACKFUL.into_iter().flat_map(|kind| ENDS.map(|end| (kind, end))) {
        interrupted::<1>(Some(bound), No, move || run(kind, act, By::Cores, end, true));
    }
}

/// An interrupt of the task's own core operates on it.
fn by_interrupt(act: &'static [Act; 1]) {
    for (kind, end) in KINDS.into_iter().flat_map(|kind| ENDS.map(|end| (kind, end))) {
        for in_interrupt in [No, Unknown] {
            interrupted::<1>(None, in_interrupt, move || {
                run(kind, act, By::Interrupts, end, false)
            });
        }
    }
}

/// An interrupt of the task's own core operates on it. The alarm comes before or after that
/// interrupt, or never.
fn by_interrupt_and_preempted(act: &'static [Act; 1]) {
    let all = STACKFUL.into_iter().flat_map(|kind| ENDS.map(|end| (kind, end)));
    // All of them take an hour.
    for (kind, end) in all.take(if deeper() == 0 { 1 } else { usize::MAX }) {
        interrupted::<2>(None, No, move || run(kind, act, By::Interrupts, end, true));
    }
}

macro_rules! pairs {
    ($($name:ident: $how:ident($($parameter:expr),*);)*) => { $(
        #[test]
        fn $name() {
            $how($($parameter),*);
        }
    )* };
}

pairs! {
    wake_and_wake: by_cores(2, &[Wake, Wake]);
    wake_and_wake_by_ref: by_cores(2, &[Wake, WakeByRef]);
    wake_and_clone: by_cores(2, &[Wake, Clone]);
    wake_and_drop: by_cores(2, &[Wake, Drop]);
    wake_and_abort: by_cores(2, &[Wake, Abort]);
    wake_and_join: by_cores(1, &[Wake, Join]);
    wake_and_drop_join: by_cores(2, &[Wake, DropJoin]);
    wake_and_spawn: by_cores(1, &[Wake, Spawn]);
    wake_by_ref_and_wake_by_ref: by_cores(2, &[WakeByRef, WakeByRef]);
    wake_by_ref_and_clone: by_cores(2, &[WakeByRef, Clone]);
    wake_by_ref_and_drop: by_cores(2, &[WakeByRef, Drop]);
    wake_by_ref_and_abort: by_cores(2, &[WakeByRef, Abort]);
    wake_by_ref_and_join: by_cores(1, &[WakeByRef, Join]);
    wake_by_ref_and_drop_join: by_cores(2, &[WakeByRef, DropJoin]);
    wake_by_ref_and_spawn: by_cores(1, &[WakeByRef, Spawn]);
    clone_and_clone: by_cores(2, &[Clone, Clone]);
    clone_and_drop: by_cores(2, &[Clone, Drop]);
    clone_and_abort: by_cores(2, &[Clone, Abort]);
    clone_and_join: by_cores(1, &[Clone, Join]);
    clone_and_drop_join: by_cores(2, &[Clone, DropJoin]);
    clone_and_spawn: by_cores(2, &[Clone, Spawn]);
    drop_and_drop: by_cores(2, &[Drop, Drop]);
    drop_and_abort: by_cores(2, &[Drop, Abort]);
    drop_and_join: by_cores(1, &[Drop, Join]);
    drop_and_drop_join: by_cores(2, &[Drop, DropJoin]);
    drop_and_spawn: by_cores(2, &[Drop, Spawn]);
    abort_and_abort: by_cores(2, &[Abort, Abort]);
    abort_and_spawn: by_cores(1, &[Abort, Spawn]);
    join_and_spawn: by_cores(1, &[Join, Spawn]);
    drop_join_and_spawn: by_cores(2, &[DropJoin, Spawn]);
    spawn_and_spawn: by_cores(2, &[Spawn, Spawn]);

    wake_against_stack: by_core(1, &[Wake]);
    wake_by_ref_against_stack: by_core(1, &[WakeByRef]);
    clone_against_stack: by_core(1, &[Clone]);
    drop_against_stack: by_core(1, &[Drop]);
    abort_against_stack: by_core(1, &[Abort]);
    join_against_stack: by_core(1, &[Join]);
    drop_join_against_stack: by_core(1, &[DropJoin]);
    spawn_against_stack: by_core(1, &[Spawn]);

    wake_in_interrupt: by_interrupt(&[Wake]);
    wake_by_ref_in_interrupt: by_interrupt(&[WakeByRef]);
    clone_in_interrupt: by_interrupt(&[Clone]);
    drop_in_interrupt: by_interrupt(&[Drop]);
    abort_in_interrupt: by_interrupt(&[Abort]);
    spawn_in_interrupt: by_interrupt(&[Spawn]);

    wake_in_interrupt_and_preempted: by_interrupt_and_preempted(&[Wake]);
    wake_by_ref_in_interrupt_and_preempted: by_interrupt_and_preempted(&[WakeByRef]);
    clone_in_interrupt_and_preempted: by_interrupt_and_preempted(&[Clone]);
    drop_in_interrupt_and_preempted: by_interrupt_and_preempted(&[Drop]);
    abort_in_interrupt_and_preempted: by_interrupt_and_preempted(&[Abort]);
    spawn_in_interrupt_and_preempted: by_interrupt_and_preempted(&[Spawn]);
}
