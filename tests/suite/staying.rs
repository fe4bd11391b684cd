//! The loop stays on a stack: tasks that are not preempted follow one another on it, and all other
//! tasks are polled at home.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future as _, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::task::{Context, Poll};

use hal_shim::interrupt;
use trapline::preempt::PreemptGuard;
use trapline::stackful::current_stack;
use trapline::time::sleep;
use trapline::{
    Config, LocalSpawner, Runtime, TaskBuilder, block_on, current, spawn, stackful, yield_now,
};

use crate::support::*;

/// Returns a runtime in which no slice ends.
fn unhurried(stacks: usize) -> &'static Runtime {
    configured(Config { slice: LONG, max_stacks: stacks, ..Config::new() })
}

/// Returns the start address of the stack that the caller is on; 0: the caller is at home.
fn stack_start() -> usize {
    current_stack().map_or(0, |stack| stack.start)
}

pub fn tasks_that_wake_each_other_share_a_stack() {
    const TURNS: usize = 100;
    let runtime = unhurried(100);
    run_on(runtime, async {
        let steps = Arc::new([Event::new(), Event::new()]);
        let tasks = [0, 1].map(|me: usize| {
            let steps = steps.clone();
            spawn(stackful(async move {
                let mut stacks = Vec::new();
                for _ in 0..TURNS {
                    steps[me].wait().await;
                    steps[me].clear();
                    stacks.push(stack_start());
                    steps[1 - me].set();
                }
                stacks
            }))
        });
        turns(2).await;
        steps[0].set();
        for task in tasks {
            let stacks = task.await.unwrap();
            assert_eq!(stacks.len(), TURNS);
            assert!(stacks[0] != 0 && stacks.iter().all(|stack| *stack == stacks[0]));
        }
    });
    let stats = runtime.stats();
    assert_eq!(stats.stacks, 1);
    // The alarm of a runtime that this core has left may still fire, and cost one slice.
    assert!(stats.preemptions <= 1, "{stats:?}");
}

pub fn what_a_stackful_task_wakes_comes_in_the_usual_order() {
    let trace = Trace::new();
    run_on(unhurried(100), async {
        let go = Event::new();
        let wakes = go.clone();
        let plain = Event::new();
        let sets = plain.clone();
        let traces = trace.clone();
        let waits = spawn(async move {
            plain.wait().await;
            traces.note("plain");
        });
        let traces = trace.clone();
        let first = spawn(stackful(async move {
            wakes.wait().await;
            traces.note("first wakes the plain one");
            sets.set();
            yield_now().await;
            traces.note("first, after its yield");
        }));
        let traces = trace.clone();
        let second = spawn(stackful(async move {
            traces.note("second begins");
            yield_now().await;
            traces.note("second, after its yield");
        }));
        go.set();
        for task in [first, second, waits] {
            task.await.unwrap();
        }
    });
    assert_eq!(
        trace.events(),
        [
            "first wakes the plain one", // it was queued first, and its event is set
            "plain",                     // plain tasks are polled before stackful ones
            "second begins",             // it was spawned before the first one yielded
            "first, after its yield",    // it yielded before the second one did
            "second, after its yield",   // it yielded after the first one did
        ]
    );
}

pub fn a_pool_of_one_serves_all() {
    let runtime = unhurried(1);
    let polls = Count::new();
    run_on(runtime, async {
        let tasks: Vec<_> = (0..20)
            .map(|me: usize| {
                let polls = polls.clone();
                spawn(stackful(async move {
                    for round in 0..10 {
                        polls.add();
                        match (me + round) % 3 {
                            0 => yield_now().await,
                            1 => sleep(ms(1)).await,
                            _ => spawn(async {}).await.unwrap(),
                        }
                    }
                }))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    let stats = runtime.stats();
    assert_eq!((polls.get(), stats.stacks, stats.waiting), (200, 1, 0));
}

pub fn held_and_free_tasks_alternate() {
    let runtime = unhurried(2);
    let trace = Trace::new();
    run_on(runtime, async {
        let held = Event::new();
        let goes_on = held.clone();
        let traces = trace.clone();
        let holds = spawn(stackful(async move {
            for _ in 0..3 {
                block_on(held.wait());
                held.clear();
                traces.note("held");
            }
        }));
        let traces = trace.clone();
        let free = spawn(stackful(async move {
            for _ in 0..3 {
                goes_on.set();
                traces.note("free");
                yield_now().await;
            }
        }));
        holds.await.unwrap();
        free.await.unwrap();
    });
    assert_eq!(
        trace.events(),
        [
            "free", // it wakes the task that holds a stack, and yields
            "held", // it is resumed on its stack, and blocks again
            "free", // its yield is over
            "held", // it was woken again
            "free", // its yield is over
            "held", // it was woken for the last time
        ]
    );
    assert_eq!(runtime.stats().stacks, 2);
}

/// A waker that is not Trapline's. It notes whether it was called on a stack.
struct Foreign {
    was_woken: AtomicBool,
    was_on_stack: AtomicBool,
    task: Event,
}

impl alloc::task::Wake for Foreign {
    fn wake(self: Arc<Self>) {
        self.was_on_stack.store(current_stack().is_some(), SeqCst);
        self.was_woken.store(true, SeqCst);
        self.task.set();
    }
}

impl Foreign {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            was_woken: AtomicBool::new(false),
            was_on_stack: AtomicBool::new(true),
            task: Event::constant(),
        })
    }

    fn was_woken_at_home(&self) {
        assert!(self.was_woken.load(SeqCst) && !self.was_on_stack.load(SeqCst));
    }
}

pub fn user_code_of_the_loop_runs_at_home() {
    run_on(unhurried(100), async {
        // The waker of a join handle.
        let foreign = Foreign::new();
        let mut task = spawn(stackful(async { yield_now().await }));
        let waker = foreign.clone().into();
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        // A second stackful task, so that the loop is on a stack when the first one ends, and would
        // stay there.
        let other = spawn(stackful(async { turns(20).await }));
        foreign.task.wait().await;
        foreign.was_woken_at_home();
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_ready());
        other.await.unwrap();

        // The waker of a timer.
        let foreign = Foreign::new();
        let waker = foreign.clone().into();
        let mut sleeper = core::pin::pin!(sleep(ms(2)));
        assert!(sleeper.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        let sees = foreign.clone();
        let yields = spawn(stackful(async move {
            while !sees.was_woken.load(SeqCst) {
                yield_now().await;
            }
        }));
        yields.await.unwrap();
        foreign.was_woken_at_home();
    });
}

pub fn plain_tasks_are_polled_at_home() {
    run_on(unhurried(100), async {
        let done = Count::new();
        let ended = done.clone();
        let stackful_ones: Vec<_> =
            (0..3).map(|_| spawn(stackful(async { turns(50).await }))).collect();
        let plain = spawn(async move {
            for _ in 0..50 {
                assert!(current_stack().is_none());
                assert!(!current().unwrap().is_stackful());
                assert!(LocalSpawner::current().is_some());
                sleep(core::time::Duration::from_micros(50)).await;
            }
            ended.add();
        });
        for task in stackful_ones {
            task.await.unwrap();
        }
        plain.await.unwrap();
        assert_eq!(done.get(), 1);
    });
}

/// The task itself wakes another task, which does not preempt it. Then an interrupt wakes the same
/// task and finds it woken already.
pub fn an_interrupt_for_what_the_task_has_woken_preempts_it() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    let runtime = unhurried(100);
    run_on(runtime, async {
        for under_guard in [false, true] {
            let (waits, count) = (Count::new(), Count::new());
            let (begins, counts) = (waits.clone(), count.clone());
            let urgent = spawn(async move {
                begins.add();
                SOFT.wait().await;
                counts.add();
            });
            turns(2).await;
            assert_eq!(waits.get(), 1);
            spawn(stackful(async move {
                if under_guard {
                    let _guard = PreemptGuard::new();
                    SOFT.set();
                } else {
                    SOFT.set();
                }
                assert_eq!(count.get(), 0, "a task's own wake has preempted it");
                interrupt::raise();
                count.spin_until(1);
            }))
            .await
            .unwrap();
            urgent.await.unwrap();
            SOFT.clear();
        }
    });
    assert_eq!(runtime.stats().preemptions, 2);
}

/// A task that wakes itself yields, under a guard as well as without: the other tasks have their
/// turns.
pub fn a_wake_of_ones_own_is_a_yield() {
    static BESIDE: AtomicUsize = AtomicUsize::new(0);
    BESIDE.store(0, SeqCst);
    run_on(unhurried(100), async {
        for under_guard in [false, true] {
            let other = spawn(stackful(async {
                for _ in 0..5 {
                    BESIDE.fetch_add(1, SeqCst);
                    yield_now().await;
                }
            }));
            let mut polls = 0;
            spawn(stackful(poll_fn(move |context| {
                let _guard = under_guard.then(PreemptGuard::new);
                assert!(BESIDE.swap(0, SeqCst) <= 1, "the other one had two turns in a row");
                polls += 1;
                context.waker().wake_by_ref();
                if polls == 5 { Poll::Ready(()) } else { Poll::Pending }
            })))
            .await
            .unwrap();
            other.await.unwrap();
        }
    });
}

/// Aborts a task that is queued for the loop on a stack: its future is dropped on the stack and is
/// not polled again.
pub fn what_is_aborted_in_the_queue_is_dropped_on_a_stack() {
    let runtime = unhurried(100);
    let (polls, drops) = (Count::new(), Count::new());
    run_on(runtime, async {
        struct OnStack(Count);
        impl Drop for OnStack {
            fn drop(&mut self) {
                assert!(current_stack().is_some());
                self.0.add();
            }
        }
        let on_drop = OnStack(drops.clone());
        let counts = polls.clone();
        let victim = TaskBuilder::new()
            .name("victim")
            .spawn(stackful(async move {
                let _on_drop = on_drop;
                loop {
                    counts.add();
                    yield_now().await;
                }
            }))
            .unwrap();
        let sees = polls.clone();
        let aborts = spawn(stackful(async move {
            while sees.get() < 3 {
                yield_now().await;
            }
            // The victim has yielded, so it is queued behind this task.
            victim.abort();
            let before = sees.get();
            let ended = victim.await;
            assert!(ended.is_err());
            assert_eq!(sees.get(), before);
        }));
        aborts.await.unwrap();
    });
    assert_eq!(drops.get(), 1);
    assert_eq!(runtime.stats().stacks, 1);
}

/// Home enters the stack for one aborted task after another, to drop its future there: the stack
/// does not grow by that.
pub fn aborts_in_a_row_need_one_stack_and_no_more_of_it() {
    const TASKS: usize = 2000;
    let runtime = unhurried(1);
    let drops = Count::new();
    run_on(runtime, async {
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let on_drop = drops.on_drop();
                spawn(stackful(async move {
                    let _on_drop = on_drop;
                    core::future::pending::<()>().await
                }))
            })
            .collect();
        // Waits until all tasks are BLOCKED.
        spawn(stackful(turns(3))).await.unwrap();
        for task in &tasks {
            task.abort();
        }
        for task in tasks {
            assert!(task.await.is_err());
        }
    });
    assert_eq!(drops.get(), TASKS);
    assert_eq!(runtime.stats().stacks, 1);
}
