//! What the loop does with a task that has left the core: the task waits, yields, goes on later, or
//! is over.
//!
//! # The end of a task
//!
//! The steps of an end have an order, wherever the task ends (at home, on its stack, in a
//! shutdown):
//!
//! 1. The future is dropped, and the output (a value or an error) is stored in its place.
//! 2. DONE is set, by the loop or by a stackful task on its own stack, and the task leaves the list
//!    of all tasks. From then on the join handle has the output. If there is no join handle, the
//!    owning core drops the output: after DONE, or (a stackful task, on its stack) before it.
//! 3. The join waker is woken. It comes after DONE, which the woken code looks for.
//! 4. The runtime's reference is released. It comes last, since the task may be freed with it. (If
//!    the join waker is a task's, the release comes before the wake: see
//!    [`wake_joiner`](Runtime::wake_joiner).)

use core::ptr::NonNull;
use core::task::Poll;
use core::task::Waker;

use crate::platform::{Interrupts, PanicPayload, bound};
use crate::runtime::core::{Runtime, count};
use crate::stackful::stacks::Reason;
use crate::stackful::switch::Stack;
use crate::task::error::JoinError;
use crate::task::header::{Header, label};
use crate::task::join::take_waker;
use crate::task::state::{Pending, Start};
use crate::task::{contain, waker};

/// The place where a task is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the loop, at home. The task is plain.
    Loop,
    /// On a stack of the pool. The task is stackful.
    Stack,
}

/// What is stored in the place of a finished task's future.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// The value that the last poll returned.
    Value,
    /// The error that says why there is no value.
    Error,
    /// Nothing any more: the output has been dropped.
    Nothing,
}

impl Runtime {
    /// Queues a task whose poll returned `Pending` (or the root, whose future is done), or that
    /// waits in `block_on`, if it is to be polled again; else leaves it BLOCKED. The caller has
    /// already queued what was woken meanwhile, since that was ready earlier than this task.
    #[inline(always)]
    pub(super) fn wait(&'static self, task: NonNull<Header>, place: Place) {
        self.link(task);
        // A task that has yielded stays RUNNING and is queued as it is. If a wake has set READY,
        // that flag is cleared when the next poll starts.
        if self.take_yield() {
            match place {
                // SAFETY: the task is RUNNING, so no other code pushes it.
                Place::Loop => unsafe { self.local.ready.push_back(task) },
                // SAFETY: as above.
                Place::Stack => unsafe { self.local.stacks.turns.push_back(task) },
            }
            return;
        }
        self.wait_for_wake(task);
    }

    /// Takes RUNNING from a task that waits and has not yielded. If the task was woken during its
    /// poll, queues it.
    #[inline(always)]
    pub(super) fn wait_for_wake(&'static self, task: NonNull<Header>) {
        // SAFETY: the task is RUNNING, hence alive.
        match unsafe { task.as_ref() }.state.pending() {
            Pending::Blocked => {}
            // If the task was aborted as well, the `start` of its next turn acts on the abort.
            Pending::Ready => {
                // SAFETY: the task is READY, and the wake that set READY while the task was RUNNING
                // did not push it.
                unsafe { self.local.ready.push_back(task) };
            }
        }
    }

    /// Queues a task that was preempted and is to continue on `stack`. It stays RUNNING, so wakes
    /// that come meanwhile set READY and push nothing.
    #[inline(always)]
    pub(super) fn preempted(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) {
        count(&self.counters.preemptions);
        self.link(task);
        // SAFETY: the stack holds frames of the task, so it is alive.
        let stack = unsafe { stack.as_ref() };
        // The request to let other tasks go first belongs to this poll. It is taken from the core's
        // flag, which the next task uses, and kept in the stack until the task continues.
        stack.yielded.set(self.take_yield());
        stack.set_preempted();
        let stacks = &self.local.stacks;
        // SAFETY: RUNNING tasks are in no queue, and this one is queued here, until it continues.
        unsafe {
            // A slice that is used up: the task goes to the end of `turns`. The rest of a slice:
            // the task keeps its place at the front of the queue that it was taken from.
            if !stack.has_left() {
                stacks.turns.push_back(task);
            } else if stacks.in_turn.get() {
                stacks.turns.push_front(task);
            } else {
                stacks.ready.push_front(task);
            }
        }
    }

    /// Finishes a stackful task whose last poll has ended as `reason` says.
    #[inline(never)]
    pub(super) fn poll_was_last(&'static self, task: NonNull<Header>, reason: Reason) {
        // `Detached`: the task has no join handle, its output has been dropped on its stack, and
        // DONE is not set. Otherwise the task has set DONE itself, on its stack.
        if reason == Reason::Detached {
            self.complete(task, Output::Nothing, true);
        } else {
            self.finished(task, reason == Reason::FinishedForJoiner);
        }
    }

    /// Finishes a task that a fault has ended on `stack`. The task keeps that stack for ever.
    pub(super) fn ended(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) {
        // SAFETY: this is the loop, and a handler has just left the interrupted stack for it.
        unsafe { bound::enable_interrupts() };
        // The stack is marked as held for ever: frames of the task remain on it, and a shutdown
        // must not free it.
        self.hold(task, stack);
        count(&self.counters.ended);
        self.abandon(task);
        // Guards that the task has leaked count no longer.
        self.preempt_count.void_guards();
    }

    /// Finishes a plain task whose poll panicked.
    #[inline(never)]
    pub(super) fn panicked(&'static self, task: NonNull<Header>, payload: PanicPayload) {
        // SAFETY: the task is RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            // The output is stored although the poll panicked, so the join handle gives the output
            // and not the panic. The panic goes to the hook `on_panic`.
            self.catch_user_panic(task, || contain::discard(task, payload));
            self.complete(task, Output::Value, true);
        } else {
            self.fail(task, JoinError::Panicked(payload), true);
        }
        // Guards that the task has leaked count no longer. They count until here: the future that
        // was dropped above may have held them.
        self.preempt_count.void_guards();
    }

    /// Drops a task's future and finishes the task with `error`. With `release`, drops the
    /// runtime's reference. The task is RUNNING, and no stack holds frames of it.
    #[inline(never)]
    pub(super) fn fail(&'static self, task: NonNull<Header>, error: JoinError, release: bool) {
        // The drop is code of the task, so the task is the current one.
        self.set_current(Some(task));
        // SAFETY: the task is RUNNING, on its core, and no frame of it is in the middle of a poll.
        self.catch_user_panic(task, || unsafe { Header::fail(task, error) });
        self.set_current(None);
        self.complete(task, Output::Error, release);
    }

    /// Finishes a task that is RUNNING and whose output is stored. With `release`, drops the
    /// runtime's reference.
    #[inline(never)]
    pub(super) fn complete(&'static self, task: NonNull<Header>, output: Output, release: bool) {
        self.unlink(task);
        // A request to be polled again is void: the task is over.
        self.take_yield();
        // SAFETY: the task is RUNNING, hence alive, until the reference is released below.
        let header = unsafe { task.as_ref() };
        // The runtime's reference is the only one, so no other code could see DONE: the task is
        // freed without setting it.
        if release && header.state.is_unreachable() {
            // SAFETY: rule 6: there is no join handle, so the output is the owning core's, and
            // there is no other reference through which code could ask for DONE.
            unsafe {
                self.drop_output(task, output);
                Header::free(task, Some(self.free_list()));
            }
            return;
        }
        // From here on the join handle may take the output on another core.
        let completed = header.state.complete();
        if completed.drop_output {
            // SAFETY: rule 6: there was no join handle when DONE was set, so the output is the
            // owning core's.
            unsafe { self.drop_output(task, output) };
        }
        self.after_done(task, completed.wake_joiner, release);
    }

    /// Finishes a stackful task that has set DONE itself, on its stack.
    #[inline]
    fn finished(&'static self, task: NonNull<Header>, wake_joiner: bool) {
        self.unlink(task);
        // As in `complete`: a request to be polled again is void.
        self.take_yield();
        self.after_done(task, wake_joiner, true);
    }

    /// Does the last steps for a task that is DONE. Wakes its join waker if the step that set DONE
    /// said so (`wake_joiner`). With `release`, drops the runtime's reference.
    #[inline(always)]
    fn after_done(&'static self, task: NonNull<Header>, wake_joiner: bool, release: bool) {
        // The join waker is taken out of the task before the release, which may free the task.
        // SAFETY: the runtime's reference keeps the task. Rule 7: this core has set DONE, and that
        // step said that the join waker is this core's to take.
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

    /// Drops the output of a task, if it is there and has a destructor to run.
    ///
    /// # Safety
    ///
    /// As for [`Header::drop_output`], unless `output` is `Nothing`; and the task is alive.
    #[inline]
    unsafe fn drop_output(&self, task: NonNull<Header>, output: Output) {
        let is_there = match output {
            Output::Nothing => false,
            Output::Error => true,
            // SAFETY: the caller promises that the task is alive.
            Output::Value => unsafe { task.as_ref() }.vtable.value_needs_drop,
        };
        if is_there {
            // SAFETY: the caller promises what `drop_output` demands.
            self.catch_user_panic(task, || unsafe { Header::drop_output(task) });
        }
    }

    /// Wakes `joiner`, the join waker of `task`, and calls `release`, after which the task may be
    /// gone.
    fn wake_joiner(&self, task: NonNull<Header>, joiner: Waker, release: impl FnOnce()) {
        if waker::task_of(&joiner).is_some() {
            // The release comes first, so that the join handle has the last reference when the
            // joiner's task is polled (unless wakers have one). No user code runs here, so `task`
            // is not needed for a report.
            release();
            // SAFETY: the caller is the loop of this runtime, or its shutdown, which runs in place
            // of the loop.
            unsafe { waker::wake_in_loop(self, joiner) };
        } else {
            // The waker is user code. The task stays alive until it returns, since a panic is
            // reported for it.
            self.catch_user_panic(task, || joiner.wake());
            release();
        }
    }

    /// Finishes a task that has frames on a stack which will never run again. The frames may point
    /// into the task, so the runtime's reference is never released.
    pub(super) fn abandon(&'static self, task: NonNull<Header>) {
        self.unlink(task);
        self.take_yield();
        // SAFETY: the task is RUNNING or suspended, hence alive; and it stays so for ever, since
        // the runtime's reference is kept.
        let header = unsafe { task.as_ref() };
        if header.state.abandon().wake_joiner {
            // SAFETY: rule 7: `abandon` has set DONE, and said that the join waker is this core's
            // to take.
            self.wake_joiner(task, unsafe { take_waker(header) }, || ());
        }
    }

    /// Finishes with a task that came from a queue and is not to be polled any more. `start` is
    /// what the state word said of it.
    pub(super) fn reap(&'static self, task: NonNull<Header>, start: Start) {
        match start {
            // SAFETY: no references are left. The future and the output were dropped before the
            // last reference was.
            Start::Free => unsafe { Header::free(task, Some(self.free_list())) },
            // The task became DONE while a waker was between its wake and its push. The runtime's
            // reference has kept it until this push was seen.
            Start::Finished => self.release(task),
            // `Abandoned`: the runtime keeps its reference for ever. `Run` does not come here.
            Start::Abandoned | Start::Run { .. } => {}
        }
    }

    /// Drops the runtime's reference. The caller is the loop, which may free memory.
    fn release(&'static self, task: NonNull<Header>) {
        // SAFETY: the caller drops the reference that the runtime has. If that was the last, the
        // task is this code's alone.
        unsafe {
            if task.as_ref().state.release() {
                Header::free(task, Some(self.free_list()));
            }
        }
    }

    /// Calls user code outside of a poll. The loop, and the runtime's code on a stack, call all
    /// such code by this function:
    ///
    /// - A panic of the code ends here, and is reported for `task`.
    /// - A [`PreemptGuard`](crate::preempt::PreemptGuard) that the code leaves counts no longer,
    ///   and is reported in the same way.
    /// - Interrupts that the code leaves masked are enabled, and that is reported in the same way.
    pub(crate) fn catch_user_panic(&self, task: NonNull<Header>, code: impl FnOnce()) {
        // 1 in the loop, 0 on a stack. It is more if the poll that `task` panicked in has left a
        // guard.
        let before = self.preempt_count.get();
        // The caller of a shutdown may have masked interrupts. They stay masked then.
        let masked = bound::interrupts() == Interrupts::Masked;
        contain::contain(task, code);
        // `repair` comes before the test of the interrupts: its report calls user code too, which
        // may leave them masked. Interrupts are enabled before the report of that, so that the hook
        // runs with interrupts enabled.
        if self.preempt_count.get() > before {
            self.repair(task);
        }
        if !masked && self.unmask() {
            contain::contain(task, || {
                panic!(
                    "code that the runtime called outside of a poll (a drop, a waker, a hook) left \
                     interrupts masked: enable them there"
                )
            });
        }
    }

    /// Does the same as [`catch_user_panic`](Self::catch_user_panic), for code that belongs to no
    /// task. The runtime's root task stands for it in reports.
    pub(crate) fn catch_panic(&self, code: impl FnOnce()) {
        self.catch_user_panic(NonNull::from(&self.root), code);
    }

    /// Makes the guards void that user code has left, and reports that for `task`.
    #[cold]
    #[inline(never)]
    fn repair(&self, task: NonNull<Header>) {
        self.preempt_count.void_guards();
        contain::contain(task, || {
            panic!(
                "code that the runtime called outside of a poll (a drop, a waker, a hook) left a \
                 PreemptGuard: drop it there"
            )
        });
        // The hook that got the report may have left another guard.
        self.preempt_count.void_guards();
    }

    /// Puts a task into the list of all tasks, unless it is there already. A task gets there after
    /// its first poll.
    #[inline]
    pub(super) fn link(&self, task: NonNull<Header>) {
        // A task without a previous one is the first of the list, or not in the list.
        // SAFETY: the task is alive, and its links are the loop's to touch (rule 4).
        let is_first = unsafe { task.as_ref() }.siblings.previous.get().is_none();
        if is_first && self.local.tasks.get() != Some(task) {
            self.link_first(task);
        }
    }

    /// Puts a task at the front of the list of all tasks. The root task is never in the list: it
    /// belongs to the runtime, and a shutdown must not drop it.
    #[inline(never)]
    fn link_first(&self, task: NonNull<Header>) {
        if task == NonNull::from(&self.root) {
            return;
        }
        // SAFETY: the caller's task is alive, and its links are the loop's to touch (rule 4).
        let siblings = unsafe { &task.as_ref().siblings };
        let first = self.local.tasks.get();
        siblings.next.set(first);
        if let Some(first) = first {
            // SAFETY: tasks in the list are alive, and their links are the loop's to touch (rule
            // 4).
            unsafe { first.as_ref() }.siblings.previous.set(Some(task));
        }
        self.local.tasks.set(Some(task));
    }

    /// Takes a task out of the list of all tasks, if it is there.
    fn unlink(&self, task: NonNull<Header>) {
        // SAFETY: the caller's task is alive, and its links are the loop's to touch (rule 4).
        let siblings = unsafe { &task.as_ref().siblings };
        let (previous, next) = (siblings.previous.take(), siblings.next.take());
        match previous {
            // SAFETY: tasks in the list are alive, and their links are the loop's to touch (rule
            // 4).
            Some(previous) => unsafe { previous.as_ref() }.siblings.next.set(next),
            None if self.local.tasks.get() == Some(task) => self.local.tasks.set(next),
            // The task was never put into the list.
            None => return,
        }
        if let Some(next) = next {
            // SAFETY: as above.
            unsafe { next.as_ref() }.siblings.previous.set(previous);
        }
    }
}

impl Runtime {
    /// Panics if the poll that has just returned left a guard, or left interrupts masked.
    /// `expected` is the preempt count without guards: 1 at home, 0 on a stack.
    #[inline(always)]
    pub(crate) fn check_guards(&self, expected: usize, task: NonNull<Header>, poll: Poll<()>) {
        if self.preempt_count.get() != expected || bound::interrupts() == Interrupts::Masked {
            self.held_the_core(task, poll);
        }
    }

    /// Panics, with a message that says what the poll of `task` left.
    #[cold]
    #[inline(never)]
    fn held_the_core(&self, task: NonNull<Header>, poll: Poll<()>) -> ! {
        if poll.is_ready() {
            // SAFETY: the task is RUNNING, hence alive.
            unsafe { task.as_ref() }.state.set_stored();
        }
        // SAFETY: as above.
        let name = unsafe { label(task) };
        if self.unmask() {
            panic!(
                "{name} had interrupts masked when its poll returned: enable them before the await"
            );
        }
        panic!(
            "{name} held or forgot a PreemptGuard when its poll returned, or had called \
             preempt::disable: drop it, or call preempt::enable, before the await"
        );
    }
}
