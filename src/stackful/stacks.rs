//! The stacks of a core, and the queues of the tasks that run on them.

use core::cell::Cell;
use core::ptr::NonNull;

use crate::platform::PanicPayload;
use crate::platform::backend::Context;
use crate::queue::{Fifo, Link, Linked};
use crate::stackful::aging::Aging;
use crate::stackful::pool::{Pool, Stack};
use crate::sync::local::{AtomicPtr, AtomicU64, Ordering};

/// Why the core came home from a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The loop on the stack has nothing to poll there. The stack is idle.
    Idle,
    /// The task waits in `block_on`.
    Suspended,
    /// An interrupt handler preempted the task: its slice is over, or another task became ready.
    Interrupted,
    /// The task was preempted in task context: it dropped a guard or reached a preemption point, or
    /// a preemption was pending when its code was about to run.
    Preempted,
    /// The poll returned `Pending`. The stack is idle, as it is with the next three reasons.
    Pending,
    /// The task has finished and is DONE. Its output belongs to the join handle.
    Finished,
    /// As `Finished`, and the loop must take the join waker and wake it.
    FinishedForJoiner,
    /// The task has finished and is not DONE yet. It has no join handle, and its output has been
    /// dropped.
    Detached,
    /// The loop on the stack panicked, outside of any task. The stack is idle.
    Panicked,
    /// The task was ended in the middle of its poll: by the handler of a fault that the task
    /// caused, or in `block_on` because a child was ended by a fault. The stack is never entered
    /// again.
    Ended,
    /// The task has overflowed its stack, and no guard caught the overflow. The program ends. The
    /// loop reports it at home, since this stack has no room for that.
    Overflowed,
}

/// The stacks of one core, and the state that they and the loop share. Owning core only.
pub(crate) struct Stacks<T> {
    pub(crate) pool: Pool<T>,
    /// Tasks that were woken. At the front are preempted ones that have time left of their slices.
    pub(crate) ready: Fifo<T>,
    /// Tasks whose turn came while there was no stack. They go before those in `ready` and `turns`.
    pub(super) waiting: Fifo<T>,
    /// How many tasks wait for a stack. Any core may read it.
    waiting_now: AtomicU64,
    /// How often a task began to wait for a stack. Any core may read it.
    failed_growths: AtomicU64,
    /// The time from which [`Config::on_stall`](crate::Config::on_stall) may be called again.
    pub(crate) next_report: Cell<u64>,
    /// Tasks that have used up a slice or have yielded. They take turns.
    pub(crate) turns: Fifo<T>,
    /// Whether the stackful task that has the core was taken from `turns`. If the task is preempted
    /// with time left of its slice, this decides whether it goes to the front of `turns` or of
    /// `ready`.
    pub(crate) in_turn: Cell<bool>,
    /// How long the tasks of all three queues have waited for plain tasks.
    pub(crate) aging: Aging,
    /// How long the tasks in `turns` have waited for those in `ready`.
    pub(crate) turn_aging: Aging,
    /// The context of home (the stack of the code that entered the runtime) while a stack has the
    /// core.
    pub(super) home: Cell<Context>,
    /// The stack that the core is on; null at home. Interrupt handlers read it.
    pub(super) running: AtomicPtr<Stack<T>>,
    /// Why the core last came home.
    pub(super) reason: Cell<Reason>,
    /// The payload of a panic of the loop on a stack, until home takes it.
    pub(super) payload: Cell<Option<PanicPayload>>,
}

impl<T: Linked> Stacks<T> {
    pub(crate) const fn new() -> Self {
        Self {
            pool: Pool::new(),
            ready: Fifo::new(),
            waiting: Fifo::new(),
            waiting_now: AtomicU64::new(0),
            failed_growths: AtomicU64::new(0),
            next_report: Cell::new(0),
            turns: Fifo::new(),
            in_turn: Cell::new(false),
            aging: Aging::new(),
            turn_aging: Aging::new(),
            home: Cell::new(Context::NONE),
            running: AtomicPtr::new(core::ptr::null_mut()),
            reason: Cell::new(Reason::Idle),
            payload: Cell::new(None),
        }
    }

    /// Takes the payload with which the loop on a stack panicked. At home.
    pub(crate) fn take_payload(&self) -> Option<PanicPayload> {
        self.payload.take()
    }

    /// Returns whether all three queues are empty.
    #[inline]
    pub(crate) fn are_idle(&self) -> bool {
        self.ready.is_empty() && self.turns.is_empty() && self.waiting.is_empty()
    }

    /// Returns whether tasks wait for a stack.
    #[inline]
    pub(crate) fn are_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Calls `f` for each task that waits for a stack. Loop only.
    pub(crate) fn each_waiting(&self, f: impl FnMut(NonNull<T>)) {
        self.waiting.each(f);
    }

    /// Returns how many tasks wait for a stack.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting_now.load(Ordering::Relaxed)
    }

    /// Returns how often a task found no stack when its turn came.
    pub(crate) fn failed_growths(&self) -> u64 {
        self.failed_growths.load(Ordering::Relaxed)
    }

    /// Queues a task whose turn came while there was no stack. Loop only.
    ///
    /// # Safety
    ///
    /// As [`Fifo::push_back`].
    pub(crate) unsafe fn push_waiting(&self, task: NonNull<T>) {
        self.waiting_now.store(self.waiting() + 1, Ordering::Relaxed);
        self.failed_growths.store(self.failed_growths() + 1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.waiting.push_back(task) };
    }

    /// Removes and returns the first task that waits for a stack. Loop only.
    pub(crate) fn pop_waiting(&self) -> Link<T> {
        let task = self.waiting.pop()?;
        self.waiting_now.store(self.waiting() - 1, Ordering::Relaxed);
        Some(task)
    }

    /// Calls `f` for each task that waits for a stack, and removes the task from the queue if `f`
    /// returns `false`. A removed task is the responsibility of `f`. Loop only.
    pub(crate) fn retain_waiting(&self, mut f: impl FnMut(NonNull<T>) -> bool) {
        let kept = Fifo::new();
        while let Some(task) = self.pop_waiting() {
            if f(task) {
                // SAFETY: the task was queued, hence alive, and is in no queue now.
                unsafe { kept.push_back(task) };
            }
        }
        while let Some(task) = kept.pop() {
            self.waiting_now.store(self.waiting() + 1, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { self.waiting.push_back(task) };
        }
    }

    /// Returns the stack that has the core.
    #[inline]
    pub(crate) fn running(&self) -> Option<NonNull<Stack<T>>> {
        NonNull::new(self.running.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn set_running(&self, stack: Option<NonNull<Stack<T>>>) {
        let stack = stack.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        self.running.store(stack, Ordering::Relaxed);
    }
}
