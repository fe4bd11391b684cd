//! What becomes of a task after it had the core, and its end.

use core::ptr::NonNull;
use core::task::Waker;

use super::{Runtime, count};
use crate::platform::{Interrupts, PanicPayload, bound};
use crate::stackful::{Reason, Stack};
use crate::task::join::{JoinError, take_waker};
use crate::task::state::{Pending, Start};
use crate::task::{Header, panic, waker};

/// Where a task is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A plain one.
    Loop,
    /// A stackful one.
    Stack,
}

/// What is stored where a finished task's future was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// What its last poll returned.
    Value,
    /// Why there is no value.
    Error,
    /// Nothing any more: it has been dropped.
    Nothing,
}

impl Runtime {
    /// A task whose poll returned `Pending`, or that waits in `block_on`. What was woken meanwhile has been
    /// queued, as it was ready before this one.
    #[inline(always)]
    pub(super) fn wait(&'static self, task: NonNull<Header>, place: Place) {
        self.link(task);
        if self.take_yield() {
            match place {
                // SAFETY: RUNNING, so no other code pushes it.
                Place::Loop => unsafe { self.local.ready.push_back(task) },
                // SAFETY: as above.
                Place::Stack => unsafe { self.local.stacks.turns.push_back(task) },
            }
            return;
        }
        self.wait_for_wake(task);
    }

    /// A task that waits, and does not yield.
    #[inline(always)]
    pub(super) fn wait_for_wake(&'static self, task: NonNull<Header>) {
        // SAFETY: the task is RUNNING, hence alive.
        match unsafe { task.as_ref() }.state.pending() {
            Pending::Blocked => {}
            // If it was aborted as well, `start` acts on it.
            Pending::Ready => {
                // SAFETY: READY, and the wake that set it while it was RUNNING did not push it.
                unsafe { self.local.ready.push_back(task) };
            }
        }
    }

    /// A task that was preempted, and wants to go on.
    #[inline(always)]
    pub(super) fn preempted(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) {
        count(&self.counters.preemptions);
        self.link(task);
        // SAFETY: the stack is alive.
        let stack = unsafe { stack.as_ref() };
        stack.yielded.set(self.take_yield());
        stack.set_preempted();
        let stacks = &self.local.stacks;
        // SAFETY: RUNNING tasks are in no queue, and this one is until it goes on.
        unsafe {
            if !stack.has_left() {
                stacks.turns.push_back(task);
            } else if stacks.in_turn.get() {
                stacks.turns.push_front(task);
            } else {
                stacks.ready.push_front(task);
            }
        }
    }

    /// A stackful task whose last poll has ended, as `reason` says.
    #[inline(never)]
    pub(super) fn poll_was_last(&'static self, task: NonNull<Header>, reason: Reason) {
        if reason == Reason::Detached {
            self.complete(task, Output::Nothing, true);
        } else {
            self.finished(task, reason == Reason::FinishedForJoiner, true);
        }
    }

    /// A task that a fault has ended on `stack`, which is left to it.
    pub(super) fn ended(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) {
        // SAFETY: the loop, which a handler has just left for.
        unsafe { bound::enable_interrupts() };
        self.hold(task, stack);
        count(&self.counters.ended);
        self.abandon(task);
        // Guards that the task had leaked.
        self.preempt_count.void_guards();
    }

    /// A plain task whose poll panicked.
    #[inline(never)]
    pub(super) fn panicked(&'static self, task: NonNull<Header>, payload: PanicPayload) {
        // SAFETY: RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            self.catch_user_panic(task, || panic::discard(task, payload));
            self.complete(task, Output::Value, true);
        } else {
            self.fail(task, JoinError::Panicked(payload), true);
        }
        // Guards that the task had leaked.
        self.preempt_count.void_guards();
    }

    /// Drops a task's future and finishes the task with `error`. It is RUNNING and no stack holds
    /// frames of it.
    #[inline(never)]
    pub(super) fn fail(&'static self, task: NonNull<Header>, error: JoinError, release: bool) {
        self.set_current(Some(task));
        // SAFETY: RUNNING, on its core, and no frame is in the middle of a poll.
        self.catch_user_panic(task, || unsafe { Header::fail(task, error) });
        self.set_current(None);
        self.complete(task, Output::Error, release);
    }

    /// Finishes a task whose output is stored, and with `release` drops the runtime's reference.
    #[inline(never)]
    pub(super) fn complete(&'static self, task: NonNull<Header>, output: Output, release: bool) {
        self.unlink(task);
        self.take_yield();
        // SAFETY: RUNNING, hence alive, until the reference is released below.
        let header = unsafe { task.as_ref() };
        if release && header.state.is_unreachable() {
            // SAFETY: rule 6: there is no join handle, and no other reference that could ask for DONE.
            unsafe {
                self.drop_output(task, output);
                Header::free(task, Some(self.free_list()));
            }
            return;
        }
        let completed = header.state.complete();
        if completed.drop_output {
            // SAFETY: rule 6: there was no join handle when DONE was set.
            unsafe { self.drop_output(task, output) };
        }
        self.after_done(task, completed.wake_joiner, release);
    }

    /// A stackful task that has set DONE itself, on its stack.
    #[inline]
    fn finished(&'static self, task: NonNull<Header>, wake_joiner: bool, release: bool) {
        self.unlink(task);
        self.take_yield();
        self.after_done(task, wake_joiner, release);
    }

    /// Wakes the joiner of a task that is DONE if the step that set it said so, and with `release` drops the
    /// runtime's reference.
    #[inline(always)]
    fn after_done(&'static self, task: NonNull<Header>, wake_joiner: bool, release: bool) {
        // SAFETY: the runtime's reference keeps it; rule 7: DONE was set by this core, which was told so.
        let joiner = wake_joiner.then(|| unsafe { take_waker(task.as_ref()) });
        let release = || {
            if release {
                self.release(task);
            }
        };
        match joiner {
            Some(joiner) => self.wake_joiner(task, joiner, release),
            None => release(),
        }
    }

    /// # Safety
    ///
    /// As [`Header::drop_output`].
    #[inline]
    unsafe fn drop_output(&self, task: NonNull<Header>, output: Output) {
        let is_there = match output {
            Output::Nothing => false,
            Output::Error => true,
            // SAFETY: the caller's task is alive.
            Output::Value => unsafe { task.as_ref() }.vtable.value_needs_drop,
        };
        if is_there {
            // SAFETY: passed on.
            self.catch_user_panic(task, || unsafe { Header::drop_output(task) });
        }
    }

    /// Wakes the joiner of `task`, and calls `release`, after which the task may be gone.
    fn wake_joiner(&self, task: NonNull<Header>, joiner: Waker, release: impl FnOnce()) {
        if waker::task_of(&joiner).is_some() {
            // First, so that the joiner has the last reference.
            release();
            // SAFETY: this is the loop of this runtime, or its shutdown in the loop's place.
            unsafe { waker::wake_in_loop(self, joiner) };
        } else {
            self.catch_user_panic(task, || joiner.wake());
            release();
        }
    }

    /// Finishes a task of which frames on a stack remain that will never run again. They may point into
    /// it, so the runtime's reference is never released.
    pub(super) fn abandon(&'static self, task: NonNull<Header>) {
        self.unlink(task);
        self.take_yield();
        // SAFETY: RUNNING or suspended, hence alive, and for ever.
        let header = unsafe { task.as_ref() };
        if header.state.abandon().wake_joiner {
            // SAFETY: rule 7: `abandon` set DONE and said so.
            self.wake_joiner(task, unsafe { take_waker(header) }, || ());
        }
    }

    /// A task from a queue that is not to be polled any more.
    pub(super) fn reap(&'static self, task: NonNull<Header>, start: Start) {
        match start {
            // SAFETY: no references are left, and future and output went before the last.
            Start::Free => unsafe { Header::free(task, Some(self.free_list())) },
            Start::Finished => self.release(task),
            Start::Abandoned | Start::Run { .. } => {}
        }
    }

    /// Drops the runtime's reference, in its own loop, where it may free.
    fn release(&'static self, task: NonNull<Header>) {
        // SAFETY: the runtime has the reference that it drops; it was the last, so the task is ours.
        unsafe {
            if task.as_ref().state.release() {
                Header::free(task, Some(self.free_list()));
            }
        }
    }

    /// Calls user code outside of a poll. All such code is called by this, from the loop and from the runtime's
    /// code on a stack. A panic ends here and is reported for `task`. A
    /// [`PreemptGuard`](crate::preempt::PreemptGuard) that the code leaves counts no longer, interrupts that it
    /// leaves masked are enabled, and both are reported in the same way.
    pub(crate) fn catch_user_panic(&self, task: NonNull<Header>, code: impl FnOnce()) {
        // 1 in the loop, 0 on a stack; more, if the poll that `task` panicked in has left a guard.
        let before = self.preempt_count.get();
        // A shutdown's caller may have masked them.
        let masked = bound::interrupts() == Interrupts::Masked;
        panic::contain(task, code);
        if self.preempt_count.get() > before {
            self.repair(task);
        }
        if !masked && self.unmask() {
            panic::contain(task, || {
                panic!(
                    "code that the runtime called outside of a poll (a drop, a waker, a hook) left \
                     interrupts masked: enable them there"
                )
            });
        }
    }

    /// As [`guarded`](Self::guarded), for what belongs to no task.
    pub(crate) fn catch_panic(&self, code: impl FnOnce()) {
        self.catch_user_panic(NonNull::from(&self.root), code);
    }

    #[cold]
    #[inline(never)]
    fn repair(&self, task: NonNull<Header>) {
        self.preempt_count.void_guards();
        panic::contain(task, || {
            panic!(
                "code that the runtime called outside of a poll (a drop, a waker, a hook) left a \
                 PreemptGuard: drop it there"
            )
        });
        // The hook that this was reported to may have left another.
        self.preempt_count.void_guards();
    }

    #[inline]
    pub(super) fn link(&self, task: NonNull<Header>) {
        // SAFETY: alive, and its links are the loop's (rule 4).
        let is_first = unsafe { task.as_ref() }.siblings.previous.get().is_none();
        if is_first && self.local.tasks.get() != Some(task) {
            self.link_first(task);
        }
    }

    #[inline(never)]
    fn link_first(&self, task: NonNull<Header>) {
        if task == NonNull::from(&self.root) {
            return;
        }
        // SAFETY: as `link`.
        let siblings = unsafe { &task.as_ref().siblings };
        let first = self.local.tasks.get();
        siblings.next.set(first);
        if let Some(first) = first {
            // SAFETY: tasks in the list are alive, and their links the loop's.
            unsafe { first.as_ref() }.siblings.previous.set(Some(task));
        }
        self.local.tasks.set(Some(task));
    }

    fn unlink(&self, task: NonNull<Header>) {
        // SAFETY: as `link`.
        let siblings = unsafe { &task.as_ref().siblings };
        let (previous, next) = (siblings.previous.take(), siblings.next.take());
        match previous {
            // SAFETY: tasks in the list are alive, and their links the loop's.
            Some(previous) => unsafe { previous.as_ref() }.siblings.next.set(next),
            None if self.local.tasks.get() == Some(task) => self.local.tasks.set(next),
            // It was never linked.
            None => return,
        }
        if let Some(next) = next {
            // SAFETY: as above.
            unsafe { next.as_ref() }.siblings.previous.set(previous);
        }
    }
}
