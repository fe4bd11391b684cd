//! The runtime of a core: its loop, and how tasks get into it and out of it.
//!
//! # One turn of the loop
//!
//! 1. If the alarm fired: wake the timers that are due.
//! 2. One relaxed look at the inbox: move what was pushed there to the end of the FIFO.
//! 3. Poll the first plain task of the FIFO.
//! 4. If there is none: give a stack to the first stackful task that is READY.
//! 5. If there is none: let the first preempted task go on.
//! 6. If there is none: park the core.
//!
//! So a task that was woken never waits for those that compute. Those do not wait for ever either:
//! after [`PATIENCE`](crate::ready::PATIENCE) polls of others, 4 or 5 comes before 3.

use core::cell::Cell;
use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::mem::ManuallyDrop;
use core::pin::pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64};
use core::task::{Context, Poll};

use crossbeam_utils::CachePadded;

use crate::config::{Config, ConfigError};
use crate::platform::{PanicPayload, bound};
use crate::preempt::Gate;
use crate::ready::{self, Fifo, Inbox};
use crate::stackful::{HeldStack, Outcome, Stack, Stackful, Stacks, Stall};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::const_fn;
use crate::task::join::{JoinError, JoinHandle, panic_message, take_waker};
use crate::task::state::{Pending, Start, State, Wake};
use crate::task::{self, Header, Link, TaskId};
use crate::time::{Alarm, Timers, nanoseconds};

/// What runs the tasks of one core.
///
/// There is one for each core, in a static array or the kernel's per-core area. A core enters its own
/// with [`enter`](Self::enter) or [`run_until`](Self::run_until); any core may spawn on it.
///
/// ```ignore
/// static RUNTIMES: [Runtime; CORES] = [const { Runtime::new() }; CORES];
/// ```
pub struct Runtime {
    /// What other cores write to, on a cache line of its own.
    inbox: CachePadded<Inbox>,
    /// The core that entered first, plus one. It is the owning core until the shutdown.
    owner: AtomicUsize,
    /// A task was aborted in a queue, so look among those that wait for a stack.
    aborted_in_queue: AtomicBool,
    config: Config,
    gate: Gate,
    alarm: Alarm,
    timers: Timers,
    counters: Counters,
    /// The future that `run_until` waits for, as a task.
    root: Header,
    own: Own,
}

/// What only the owning core touches, with its gate shut.
struct Own {
    ready: Fifo,
    stacks: Stacks,
    /// All tasks that have been polled and are not done.
    tasks: Cell<Link>,
    /// The task whose code has the core. Interrupts look at it.
    current: AtomicPtr<Header>,
    /// The last that had the core was on a stack.
    after_stack: Cell<bool>,
    closed: Cell<bool>,
    root: Cell<Root>,
}

/// What `run_until` has the loop poll.
#[derive(Clone, Copy)]
enum Root {
    /// Nobody is in `run_until`, or its future is done.
    None,
    /// A closure in the frame of `run_until`, which says whether its future is done. The lifetime is
    /// that frame's.
    Polls(NonNull<dyn FnMut(&mut Context<'_>) -> bool>),
}

// SAFETY: `own`, `root`'s plain fields and the cells in them are touched only by the owning core in
// task context with its gate shut; all else is atomic or behind a lock. A stackful task on its own
// stack reads `current` and `running` of its core alone, and its preemption is over before they
// change.
unsafe impl Sync for Runtime {}
// SAFETY: a runtime moves only before its first use, since all use is through `&'static`.
unsafe impl Send for Runtime {}

/// What a runtime has counted, in [`Runtime::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Polls of tasks, each stretch on a stack counting as one.
    pub polls: u64,
    /// How often a stackful task was preempted.
    pub preemptions: u64,
    /// How often the core parked.
    pub parks: u64,
    /// How often a task got the core after it was aborted, since a stack holds frames of it: it runs on
    /// to the end of its poll.
    pub aborted_in_poll: u64,
    /// How many stacks there are.
    pub stacks: u64,
}

#[derive(Debug)]
pub(crate) struct Counters {
    polls: AtomicU64,
    pub(crate) preemptions: AtomicU64,
    parks: AtomicU64,
    aborted_in_poll: AtomicU64,
}

/// Counts one. Owning core, so a load and a store do.
pub(crate) fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Runtime {
    const_fn! {
        /// A runtime with the default [`Config`].
        pub fn new() -> Self {
            Self::with_config(Config::new())
        }
    }

    const_fn! {
        /// A runtime with what was chosen in `config`, which is checked when it is entered.
        pub fn with_config(config: Config) -> Self {
            Self {
                inbox: CachePadded::new(Inbox::new()),
                owner: AtomicUsize::new(0),
                aborted_in_queue: AtomicBool::new(false),
                config,
                gate: Gate::new(),
                alarm: Alarm::new(),
                timers: Timers::new(),
                counters: Counters {
                    polls: AtomicU64::new(0),
                    preemptions: AtomicU64::new(0),
                    parks: AtomicU64::new(0),
                    aborted_in_poll: AtomicU64::new(0),
                },
                root: Header::new(State::immortal(), &task::ROOT, None),
                own: Own {
                    ready: Fifo::new(),
                    stacks: Stacks::new(),
                    tasks: Cell::new(None),
                    current: AtomicPtr::new(core::ptr::null_mut()),
                    after_stack: Cell::new(false),
                    closed: Cell::new(false),
                    root: Cell::new(Root::None),
                },
            }
        }
    }

    /// The runtime that the calling core is inside of. Any context.
    pub fn current() -> Option<&'static Self> {
        bound::slot().runtime()
    }

    /// Spawns a task on this runtime. Any core, task context or with the allocator usable.
    ///
    /// After a [`shutdown`](Self::shutdown) the future is dropped by the caller, and the handle says
    /// [`JoinError::Aborted`].
    ///
    /// # Panics
    ///
    /// As every allocation of the program's does when memory is out; [`try_spawn`](Self::try_spawn) gives the
    /// future back.
    pub fn spawn<F>(&'static self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.try_spawn(future) {
            Ok(handle) => handle,
            Err(error) => error.into_handle(),
        }
    }

    /// Spawns a task on this runtime. Any core, task context or with the allocator usable.
    ///
    /// # Errors
    ///
    /// Memory is out, or the runtime has been shut down. The future comes back.
    pub fn try_spawn<F>(&'static self, future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_with(future, HeldStack::PLAIN)
    }

    /// Spawns a task that is known to be stackful before its first poll.
    pub(crate) fn try_spawn_stackful<F>(
        &'static self,
        future: Stackful<F>,
    ) -> Result<JoinHandle<F::Output>, SpawnError<Stackful<F>>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_with(future, HeldStack::NONE)
    }

    fn spawn_with<F>(
        &'static self,
        future: F,
        stack: HeldStack,
    ) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = match task::allocate(self, future) {
            Ok(task) => task,
            Err(future) => {
                return Err(SpawnError { future, reason: SpawnErrorReason::OutOfMemory });
            }
        };
        // SAFETY: nobody else has seen the task.
        unsafe { task.as_ref() }.stack.set(stack);
        // SAFETY: a new task of this runtime, READY, with the runtime's reference.
        match unsafe { ready::push_new(self, task) } {
            // SAFETY: the other reference is the join handle's.
            Ok(()) => Ok(unsafe { JoinHandle::new(task) }),
            Err(ready::Closed) => {
                // SAFETY: nobody has seen it.
                let future = unsafe { task::deallocate(task) };
                Err(SpawnError { future, reason: SpawnErrorReason::ShutDown })
            }
        }
    }

    /// Runs the core's tasks for ever.
    ///
    /// # Errors
    ///
    /// See [`EnterError`]; [`Panicked`](EnterError::Panicked) if a panic was caught that no task can
    /// be blamed for (a waker of the kernel's own panicked in the loop).
    pub fn enter(&'static self) -> Result<Infallible, EnterError> {
        let _entered = self.claim()?;
        loop {
            if let Err(payload) = self.run(&mut || false) {
                return Err(EnterError::Panicked(payload));
            }
        }
    }

    /// Runs the core's tasks until `future` is done, which is polled among them as a plain task. It
    /// may borrow from the caller and need not be `Send`. What else was spawned stays where it
    /// is until the core enters again.
    ///
    /// # Errors
    ///
    /// See [`EnterError`]; [`Panicked`](EnterError::Panicked) if `future` panicked.
    pub fn run_until<F: Future>(&'static self, future: F) -> Result<F::Output, EnterError> {
        let _entered = self.claim()?;
        let mut future = pin!(future);
        let mut output = None;
        let mut poll = |context: &mut Context<'_>| match future.as_mut().poll(context) {
            Poll::Ready(value) => {
                output = Some(value);
                true
            }
            Poll::Pending => false,
        };
        {
            let poll: NonNull<dyn FnMut(&mut Context<'_>) -> bool + '_> = NonNull::from(&mut poll);
            // SAFETY: only the lifetime changes. `Reset` takes the pointer back before the frame
            // that it points into is left, in whichever way.
            let poll: NonNull<dyn FnMut(&mut Context<'_>) -> bool> =
                unsafe { core::mem::transmute(poll) };
            self.own.root.set(Root::Polls(poll));
        }
        struct Reset(&'static Runtime);
        impl Drop for Reset {
            fn drop(&mut self) {
                self.0.own.root.set(Root::None);
            }
        }
        let reset = Reset(self);
        if self.root.state.wake() == Wake::Push {
            // SAFETY: the loop's own, and BLOCKED until now. It lives in the runtime.
            unsafe { self.own.ready.push_back(NonNull::from(&self.root)) };
        }
        let ran = self.run(&mut || matches!(self.own.root.get(), Root::None));
        drop(reset);
        match (ran, output) {
            (Err(payload), _) => Err(EnterError::Panicked(payload)),
            (Ok(()), Some(output)) => Ok(output),
            (Ok(()), None) => unreachable!("run_until left its loop before its future was done"),
        }
    }

    /// What the runtime has counted. Any context; on another core the figures may be of slightly
    /// different moments.
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            polls: get(&self.counters.polls),
            preemptions: get(&self.counters.preemptions),
            parks: get(&self.counters.parks),
            aborted_in_poll: get(&self.counters.aborted_in_poll),
            stacks: self.own.stacks.pool.total() as u64,
        }
    }

    /// Drops every task's future and refuses new ones, for good.
    ///
    /// Join handles say [`JoinError::Aborted`]. A task of which a stack holds frames (preempted, or
    /// inside of [`block_on`](crate::block_on)) cannot be dropped: frames may hold or point at
    /// anything. It is left as it is, its handle says [`JoinError::Abandoned`], and its stack is
    /// leaked and reported.
    ///
    /// Tasks' memory goes with their last wakers. What is handed back after the shutdown is freed by
    /// calling this again, which does nothing else then.
    ///
    /// On the owning core, in task context, outside of [`enter`](Self::enter).
    ///
    /// # Errors
    ///
    /// Called inside of a runtime, or on another core than the owning one.
    pub fn shutdown(&'static self) -> Result<Shutdown, EnterError> {
        let _entered = self.claim_for_shutdown()?;
        self.own.closed.set(true);
        let mut report = Shutdown { dropped: 0, stacks_with_frames: 0 };
        loop {
            self.inbox.close(&self.own.ready);
            let queued = (self.own.ready.pop())
                .or_else(|| self.own.stacks.ready.pop())
                .or_else(|| self.own.stacks.waiting.pop());
            if let Some(task) = queued {
                report.dropped += usize::from(self.shut_down_queued(task));
            } else if let Some(task) = self.first_without_frames() {
                // SAFETY: a task in the list is alive, and this one in no queue of ours.
                let shut = unsafe { task.as_ref() }.state.shut_down();
                self.fail(task, JoinError::Aborted, !shut.push_is_coming);
                report.dropped += 1;
            } else {
                break;
            }
        }
        // What is left in the list has frames on stacks.
        while let Some(task) = self.own.tasks.get() {
            // SAFETY: as above. Its reference is never released: frames may point into it.
            let header = unsafe { task.as_ref() };
            self.unlink(task);
            if header.state.abandon().wake_joiner {
                // SAFETY: rule 7: `abandon` set DONE and said so.
                let waker = unsafe { take_waker(header) };
                self.guarded(|| waker.wake());
            }
        }
        while self.own.stacks.preempted.pop().is_some() {}
        report.stacks_with_frames = self.own.stacks.pool.free_idle();
        Ok(report)
    }

    /// A task from the queue of a runtime that shuts down. Returns whether a future was dropped.
    fn shut_down_queued(&'static self, task: NonNull<Header>) -> bool {
        // SAFETY: a task in the queue is alive.
        let header = unsafe { task.as_ref() };
        match header.state.start() {
            // The runtime's own, whose future has gone with the frame of `run_until`.
            Start::Run { .. } if task == NonNull::from(&self.root) => {
                let _ = header.state.pending();
                false
            }
            Start::Run { .. } if header.stack.get().get().is_some() => false,
            Start::Run { .. } => {
                self.fail(task, JoinError::Aborted, true);
                true
            }
            other => {
                self.bury(task, other);
                false
            }
        }
    }

    fn first_without_frames(&self) -> Link {
        let mut rest = self.own.tasks.get();
        while let Some(task) = rest {
            // SAFETY: tasks in the list are alive, and their links ours (rule 4).
            let header = unsafe { task.as_ref() };
            if header.stack.get().get().is_none() {
                return Some(task);
            }
            rest = header.siblings.next.get();
        }
        None
    }

    // ---- entering -----------------------------------------------------------------------------

    fn claim(&'static self) -> Result<Entered, EnterError> {
        self.config.check().map_err(EnterError::Config)?;
        let entered = self.claim_for_shutdown()?;
        if self.own.closed.get() {
            return Err(EnterError::ShutDown);
        }
        Ok(entered)
    }

    fn claim_for_shutdown(&'static self) -> Result<Entered, EnterError> {
        let slot = bound::slot();
        if slot.runtime().is_some() {
            return Err(EnterError::Nested);
        }
        let Some(core) = bound::core().checked_add(1) else { return Err(EnterError::NoCore) };
        // Acquire and release: a runtime that was built up on one core may be entered on another.
        match self.owner.compare_exchange(0, core, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the first time, and nobody has a waker of the root task before it is polled.
            Ok(_) => unsafe { self.root.set_runtime(self) },
            Err(owner) if owner == core => {}
            Err(owner) => return Err(EnterError::OtherCore { owner: owner - 1 }),
        }
        self.gate.set_depth(1);
        // Whatever the alarm did while nobody was inside: look at the timers.
        self.alarm.set_due();
        slot.set_runtime(Some(self));
        Ok(Entered)
    }

    // ---- the loop -----------------------------------------------------------------------------

    /// Turns the loop until `done`; a caught panic that is no task's comes back.
    fn run(&'static self, done: &mut dyn FnMut() -> bool) -> Result<(), PanicPayload> {
        loop {
            let caught = bound::catch_unwind(&mut || {
                while !done() {
                    self.turn();
                }
            });
            let Err(payload) = caught else { return Ok(()) };
            let task = self.current_task();
            self.set_current(None);
            match task {
                Some(task) if task == NonNull::from(&self.root) => {
                    if self.root.state.pending() == Pending::Ready {
                        // SAFETY: as in `run_until`.
                        unsafe { self.own.ready.push_back(task) };
                    }
                    return Err(payload);
                }
                Some(task) => self.panicked(task, payload),
                None => return Err(payload),
            }
        }
    }

    fn turn(&'static self) {
        // In this order: what is owed after this comes with a reason that is seen below, or it makes
        // the next stackful task leave at once.
        self.gate.settle();
        if self.alarm.is_due() {
            self.alarm.clear_due();
            self.alarm.forget();
            self.timers.fire(bound::now());
        }
        if !self.inbox.is_empty() {
            self.inbox.take(&self.own.ready, false);
        }
        // Who has waited for too many polls goes first, but not twice running: a stack was perhaps
        // left for somebody in the FIFO.
        let patient = !self.own.after_stack.replace(false);
        let [ready, waiting, preempted] =
            self.own.stacks.queues().map(|queue| patient && queue.is_impatient());
        let ran = (preempted && self.resume_preempted())
            || ((ready || waiting) && self.run_stackful())
            || self.run_plain()
            || self.run_stackful()
            || self.resume_preempted();
        if !ran {
            self.park();
        }
    }

    /// Polls the first plain task of the FIFO. On the way to it, stackful ones move to their own queue.
    fn run_plain(&'static self) -> bool {
        while let Some(task) = self.own.ready.pop() {
            // SAFETY: a task in the FIFO is alive: it is READY and not DONE, or it is ours to bury.
            if unsafe { task.as_ref() }.stack.get() == HeldStack::PLAIN {
                self.alarm.set_by(self.timers.next());
                self.start(task, None);
                return true;
            }
            // SAFETY: still READY (or ours to bury), and in no queue now.
            unsafe { self.own.stacks.ready.push_back(task) };
        }
        false
    }

    /// Gives a stack, or its own, to the first stackful task that is READY and can have one.
    fn run_stackful(&'static self) -> bool {
        let stacks = &self.own.stacks;
        if !stacks.waiting.is_empty() {
            if self.aborted_in_queue.swap(false, Ordering::Acquire) {
                self.stop_waiting();
            }
            // Before those that are queued, from among which they were taken.
            if let Some(stack) = self.take_stack() {
                match stacks.waiting.pop() {
                    Some(task) => {
                        self.start(task, Some(stack));
                        return true;
                    }
                    // SAFETY: taken above, and not entered.
                    None => unsafe { stacks.pool.give(stack) },
                }
            } else {
                stacks.waiting.wait_again();
            }
        }
        while let Some(task) = stacks.ready.pop() {
            // SAFETY: as in `run_plain`.
            let header = unsafe { task.as_ref() };
            let held = header.stack.get().get();
            let needs_none = held.is_some() || header.state.is_done() || header.state.is_aborted();
            let stack = if needs_none { held } else { self.take_stack() };
            if needs_none || stack.is_some() {
                self.start(task, stack);
                return true;
            }
            // SAFETY: still READY, and in no queue now.
            unsafe { stacks.waiting.push_back(task) };
        }
        false
    }

    /// Gives the core, and perhaps `stack`, to a task that was in a queue.
    fn start(&'static self, task: NonNull<Header>, stack: Option<NonNull<Stack>>) {
        // SAFETY: as in `run_queued`.
        let header = unsafe { task.as_ref() };
        let holds_frames = header.stack.get().get().is_some();
        let outcome = match (header.state.start(), stack) {
            (Start::Run { aborted: true }, _) if !holds_frames => {
                if let Some(stack) = stack {
                    // SAFETY: taken above, and not entered.
                    unsafe { self.own.stacks.pool.give(stack) };
                }
                return self.fail(task, JoinError::Aborted, true);
            }
            (Start::Run { .. }, Some(stack)) => self.enter_stack(task, stack),
            (Start::Run { .. }, None) => Outcome::Polled(self.poll(task)),
            (other, _) => return self.bury(task, other),
        };
        self.settle(task, outcome);
    }

    /// Lets the preempted task go on that is first in turn.
    fn resume_preempted(&'static self) -> bool {
        let Some(task) = self.own.stacks.preempted.pop() else { return false };
        // SAFETY: preempted tasks are RUNNING, hence alive.
        let Some(stack) = unsafe { task.as_ref() }.stack.get().get() else {
            unreachable!("a preempted task has a stack")
        };
        let outcome = self.enter_stack(task, stack);
        self.settle(task, outcome);
        true
    }

    fn enter_stack(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> Outcome {
        while !self.inbox.announce_stackful() {
            // It came after this turn's look, perhaps in a hurry: the task leaves at once.
            self.inbox.take(&self.own.ready, false);
            self.gate.owe();
        }
        self.count_poll();
        self.own.after_stack.set(true);
        // SAFETY: RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_aborted() {
            count(&self.counters.aborted_in_poll);
        }
        self.run_on_stack(task, stack)
    }

    /// Polls a plain task.
    fn poll(&'static self, task: NonNull<Header>) -> Poll<()> {
        self.count_poll();
        self.set_current(Some(task));
        let poll = if task == NonNull::from(&self.root) {
            self.poll_root()
        } else {
            // SAFETY: `start` made it RUNNING, this is the owning core, and it is not DONE.
            unsafe { Header::poll(task) }
        };
        self.check_guards(1, task, poll);
        self.set_current(None);
        poll
    }

    fn count_poll(&self) {
        count(&self.counters.polls);
        for queue in self.own.stacks.queues() {
            queue.wait_one_poll();
        }
    }

    /// Polls what `run_until` waits for. The root task itself is never ready.
    fn poll_root(&'static self) -> Poll<()> {
        if let Root::Polls(mut poll) = self.own.root.get() {
            // SAFETY: the root task is never freed, so a waker of it needs no reference.
            let waker =
                ManuallyDrop::new(unsafe { task::waker::from_header(NonNull::from(&self.root)) });
            // SAFETY: `run_until` is in its loop, further up on this stack, so its closure lives, and
            // nobody else calls it.
            if unsafe { poll.as_mut() }(&mut Context::from_waker(&waker)) {
                self.own.root.set(Root::None);
            }
        }
        Poll::Pending
    }

    /// Acts on what became of a task.
    fn settle(&'static self, task: NonNull<Header>, outcome: Outcome) {
        // SAFETY: the task is RUNNING, hence alive.
        let state = unsafe { &task.as_ref().state };
        match outcome {
            Outcome::Polled(Poll::Ready(())) => self.complete(task, true),
            Outcome::Panicked(payload) => self.panicked(task, payload),
            Outcome::Preempted { first } => {
                self.link(task);
                let preempted = &self.own.stacks.preempted;
                // SAFETY: RUNNING tasks are in no queue, and this one is until it goes on.
                unsafe {
                    if first { preempted.push_front(task) } else { preempted.push_back(task) }
                }
            }
            Outcome::Polled(Poll::Pending) | Outcome::Suspended => {
                self.link(task);
                match state.pending() {
                    Pending::Blocked => {}
                    // If it was aborted as well, `run_queued` acts on it.
                    Pending::Ready => {
                        // SAFETY: READY, and whoever set it while it was RUNNING did not push it.
                        unsafe { self.own.ready.push_back(task) };
                    }
                }
            }
        }
    }

    /// A task whose poll panicked.
    fn panicked(&'static self, task: NonNull<Header>, payload: PanicPayload) {
        // SAFETY: RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            self.discard(payload);
            self.complete(task, true);
        } else {
            self.fail(task, JoinError::Panicked(payload), true);
        }
        // Guards that the task had leaked are void.
        self.gate.set_depth(1);
    }

    /// Drops a task's future and finishes the task with `error`. It is RUNNING and no stack holds
    /// frames of it.
    fn fail(&'static self, task: NonNull<Header>, error: JoinError, release: bool) {
        self.set_current(Some(task));
        let mut error = Some(error);
        self.guarded(|| {
            if let Some(error) = error.take() {
                // SAFETY: RUNNING, on its core, and no frame is in the middle of a poll.
                unsafe { Header::fail(task, error) }
            }
        });
        self.set_current(None);
        self.complete(task, release);
    }

    /// Finishes a task whose output is stored, and with `release` drops the runtime's reference.
    fn complete(&'static self, task: NonNull<Header>, release: bool) {
        self.unlink(task);
        // SAFETY: RUNNING, hence alive, until the reference is released below.
        let header = unsafe { task.as_ref() };
        let completed = header.state.complete();
        if completed.wake_joiner {
            // SAFETY: rule 7: `complete` set DONE and said so.
            let waker = unsafe { take_waker(header) };
            self.guarded(|| waker.wake());
        }
        if completed.drop_output {
            // SAFETY: rule 6: there was no join handle when DONE was set.
            self.guarded(|| unsafe { Header::drop_output(task) });
        }
        if release {
            self.release(task);
        }
    }

    /// A task from a queue that is not to be polled any more.
    fn bury(&'static self, task: NonNull<Header>, start: Start) {
        match start {
            // SAFETY: no references are left, and future and output went before the last.
            Start::Free => unsafe { Header::free(task) },
            Start::Finished => self.release(task),
            Start::Abandoned | Start::Run { .. } => {}
        }
    }

    /// Drops the runtime's reference, in its own loop, where it may free.
    fn release(&'static self, task: NonNull<Header>) {
        // SAFETY: the runtime has the reference that it drops; it was the last, so the task is ours.
        unsafe {
            if task.as_ref().state.release() {
                Header::free(task);
            }
        }
    }

    /// Runs code of a user's that belongs to no poll; its panic ends here.
    fn guarded(&self, code: impl FnOnce()) {
        let mut code = Some(code);
        let caught = bound::catch_unwind(&mut || {
            if let Some(code) = code.take() {
                code();
            }
        });
        if let Err(payload) = caught {
            self.discard(payload);
        }
    }

    /// Drops what a panic carried when there is nobody to hand it to.
    fn discard(&self, payload: PanicPayload) {
        let mut payload = Some(payload);
        if let Err(again) = bound::catch_unwind(&mut || drop(payload.take())) {
            // A payload whose drop panics: enough.
            core::mem::forget(again);
        }
    }

    /// Moves the aborted among those that wait for a stack to the FIFO: they need none.
    fn stop_waiting(&'static self) {
        let waiting = Fifo::new();
        while let Some(task) = self.own.stacks.waiting.pop() {
            // SAFETY: READY, hence alive, and in no queue now.
            unsafe {
                let aborted = task.as_ref().state.is_aborted();
                if aborted {
                    self.own.stacks.ready.push_back(task);
                } else {
                    waiting.push_back(task);
                }
            }
        }
        while let Some(task) = waiting.pop() {
            // SAFETY: as above.
            unsafe { self.own.stacks.waiting.push_back(task) };
        }
    }

    fn take_stack(&'static self) -> Option<NonNull<Stack>> {
        let size = self.config.rounded_stack_size()?;
        self.own.stacks.pool.take(self, size, self.config.stacks)
    }

    fn park(&'static self) {
        if !self.own.stacks.waiting.is_empty()
            && let Some(on_stall) = self.config.on_stall
        {
            on_stall(&Stall { runtime: self });
        }
        self.alarm.set_by(self.timers.next());
        let interrupts = bound::mask_interrupts();
        // From here on neither an interrupt nor another core can slip in: the alarm's interrupt is
        // masked, and a push either made the announcement fail or finds it and wakes us.
        if !self.alarm.is_due() && self.own.ready.is_empty() && self.inbox.announce_park() {
            count(&self.counters.parks);
            bound::park();
            self.inbox.take(&self.own.ready, false);
        }
        // SAFETY: what `mask_interrupts` has just returned.
        unsafe { bound::restore_interrupts(interrupts) };
    }

    // ---- the list of all tasks ----------------------------------------------------------------

    fn link(&self, task: NonNull<Header>) {
        // SAFETY: alive, and its links are the loop's (rule 4).
        let siblings = unsafe { &task.as_ref().siblings };
        let first = self.own.tasks.get();
        if siblings.previous.get().is_some() || first == Some(task) {
            return;
        }
        if task == NonNull::from(&self.root) {
            return;
        }
        siblings.next.set(first);
        if let Some(first) = first {
            // SAFETY: tasks in the list are alive, and their links the loop's.
            unsafe { first.as_ref() }.siblings.previous.set(Some(task));
        }
        self.own.tasks.set(Some(task));
    }

    fn unlink(&self, task: NonNull<Header>) {
        // SAFETY: as `link`.
        let siblings = unsafe { &task.as_ref().siblings };
        let (previous, next) = (siblings.previous.take(), siblings.next.take());
        match previous {
            // SAFETY: tasks in the list are alive, and their links the loop's.
            Some(previous) => unsafe { previous.as_ref() }.siblings.next.set(next),
            None if self.own.tasks.get() == Some(task) => self.own.tasks.set(next),
            // It was never linked.
            None => return,
        }
        if let Some(next) = next {
            // SAFETY: as above.
            unsafe { next.as_ref() }.siblings.previous.set(previous);
        }
    }

    // ---- what the other modules need ----------------------------------------------------------

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The loop's FIFO. For whom [`ready`] allows it.
    pub(crate) fn ready(&self) -> &Fifo {
        &self.own.ready
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) fn stacks(&self) -> &Stacks {
        &self.own.stacks
    }

    /// The slice in nanoseconds.
    pub(crate) fn slice(&self) -> u64 {
        nanoseconds(self.config.slice)
    }

    pub(crate) fn current_task(&self) -> Link {
        NonNull::new(self.own.current.load(Ordering::Relaxed))
    }

    pub(crate) fn set_current(&self, task: Link) {
        let task = task.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        self.own.current.store(task, Ordering::Relaxed);
    }

    /// Whether a stack has the core.
    pub(crate) fn is_on_stack(&self) -> bool {
        self.own.stacks.running().is_some()
    }

    /// Makes the loop look for the aborted among those that wait for a stack. Any context, with
    /// preemption off.
    pub(crate) fn aborted_in_queue(&self) {
        // Release, and the wake after it: a loop that has parked or is about to comes round once more.
        self.aborted_in_queue.store(true, Ordering::Release);
        if self.root.state.wake() == Wake::Push {
            // SAFETY: the state word said so.
            unsafe { ready::push(self, NonNull::from(&self.root)) };
        }
    }

    /// Gets the owning core's attention.
    pub(crate) fn wake_core(&self) {
        // Relaxed: the tag that the caller acquired was announced by the owner.
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != 0 {
            bound::wake(owner - 1);
        }
    }

    /// Whether there is somebody to leave a stack for: a push that came meanwhile, or a debt.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.inbox.is_empty() || self.gate.owes()
    }

    /// Panics if the poll that has just returned left a guard.
    pub(crate) fn check_guards(&self, expected: usize, task: NonNull<Header>, poll: Poll<()>) {
        if self.gate.depth() != expected {
            if poll.is_ready() {
                // SAFETY: RUNNING, hence alive.
                unsafe { task.as_ref() }.state.set_stored();
            }
            panic!(
                "{} held or forgot a PreemptGuard when its poll returned: drop it before the await",
                TaskId::of(task)
            );
        }
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("config", &self.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// The core is inside of its runtime until this drops.
struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        bound::slot().set_runtime(None);
    }
}

/// Spawns a task on this core's runtime. See [`Runtime::spawn`].
///
/// # Panics
///
/// On a core that is not inside of a runtime; use [`Runtime::spawn`] there.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match try_spawn(future) {
        Ok(handle) => handle,
        Err(error) => error.into_handle(),
    }
}

/// Spawns a task on this core's runtime. See [`Runtime::try_spawn`].
///
/// # Errors
///
/// As [`Runtime::try_spawn`], and on a core that is not inside of a runtime. The future comes back.
pub fn try_spawn<F>(future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match Runtime::current() {
        Some(runtime) => runtime.try_spawn(future),
        None => Err(SpawnError { future, reason: SpawnErrorReason::NoRuntime }),
    }
}

/// A task was not spawned. The future is in it.
pub struct SpawnError<F> {
    /// What should have been spawned.
    pub future: F,
    /// Why it was not.
    pub reason: SpawnErrorReason,
}

/// Why a task was not spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnErrorReason {
    /// The allocator had no memory for it.
    OutOfMemory,
    /// The runtime has been shut down.
    ShutDown,
    /// The calling core is not inside of a runtime.
    NoRuntime,
}

impl<F: Future> SpawnError<F> {
    fn into_handle(self) -> JoinHandle<F::Output> {
        match self.reason {
            SpawnErrorReason::OutOfMemory => {
                alloc::alloc::handle_alloc_error(core::alloc::Layout::new::<F>())
            }
            SpawnErrorReason::ShutDown => JoinHandle::aborted(),
            SpawnErrorReason::NoRuntime => {
                panic!("trapline::spawn was called outside of a runtime: use Runtime::spawn there")
            }
        }
    }
}

impl<F> fmt::Debug for SpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<F> fmt::Display for SpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            SpawnErrorReason::OutOfMemory => "there is no memory for the task",
            SpawnErrorReason::ShutDown => "the runtime has been shut down",
            SpawnErrorReason::NoRuntime => "this core is not inside of a runtime",
        })
    }
}

impl<F> core::error::Error for SpawnError<F> {}

/// Why a runtime was not entered, or was left.
#[derive(Debug)]
#[non_exhaustive]
pub enum EnterError {
    /// The calling core is inside of a runtime already.
    Nested,
    /// Another core entered this runtime first. It is that core's until the end, since its stacks'
    /// frames are.
    OtherCore {
        /// The number of that core.
        owner: usize,
    },
    /// The platform says that the caller is no core: its number is `usize::MAX`.
    NoCore,
    /// The runtime has been shut down.
    ShutDown,
    /// What was chosen for the runtime cannot be.
    Config(ConfigError),
    /// The future that was waited for panicked. Comes only from platforms that can catch a panic.
    Panicked(PanicPayload),
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested => f.write_str("this core is inside of a runtime already"),
            Self::OtherCore { owner } => write!(f, "the runtime belongs to core {owner}"),
            Self::NoCore => f.write_str("the caller is not a core of the platform"),
            Self::ShutDown => f.write_str("the runtime has been shut down"),
            Self::Config(error) => error.fmt(f),
            Self::Panicked(payload) => write!(f, "panicked: {}", panic_message(payload)),
        }
    }
}

impl core::error::Error for EnterError {}

/// What [`Runtime::shutdown`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Tasks whose futures were dropped.
    pub dropped: usize,
    /// Stacks that hold frames of tasks. They and the tasks' futures are leaked.
    pub stacks_with_frames: usize,
}

/// The task that the calling code is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    id: TaskId,
    stackful: bool,
}

/// The task that the calling code is part of; in an interrupt, the interrupted one. `None` in the
/// runtime's own context and outside of any.
pub fn current() -> Option<Current> {
    let _guard = crate::preempt::PreemptGuard::new();
    let runtime = Runtime::current()?;
    let task = runtime.current_task()?;
    Some(Current { id: TaskId::of(task), stackful: runtime.is_on_stack() })
}

impl Current {
    /// Which task.
    pub fn id(&self) -> TaskId {
        self.id
    }

    /// Whether it runs on a stack of its own and may be preempted.
    pub fn is_stackful(&self) -> bool {
        self.stackful
    }
}
