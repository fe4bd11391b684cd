//! The steps of the loop for a task that has left the core: the task waits, yields, was preempted,
//! or is over.
//!
//! Rules with a number are those of [`crate::task`].
//!
//! # The end of a task
//!
//! A task ends at home, on its stack or in a shutdown. In each case the steps come in this order:
//!
//! 1. The future is dropped, and the output (a value or an error) is stored in its place.
//! 2. DONE is set, by the loop or by a stackful task on its own stack, and the task leaves the list
//!    of all tasks. From then on the output belongs to the join handle. If there is no join handle,
//!    the owning core drops the output: after it sets DONE, or (for a stackful task, on its stack)
//!    before that.
//! 3. The join waker is woken. This comes after step 2, since the woken code tests DONE.
//! 4. The runtime's reference is released. This comes last, since it may free the task. (If the
//!    join waker wakes a task, the release comes before the wake: see
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
    /// Queues a task whose poll has returned, or that waits in `block_on`, if it was woken or has
    /// yielded; otherwise leaves it BLOCKED. The poll has returned `Pending`, except that of the
    /// root, whose future may be done. The caller has already queued the tasks that were woken
    /// meanwhile, since they were ready earlier than this task.
    #[inline(always)]
    pub(super) fn wait(&'static self, task: NonNull<Header>, place: Place) {
        self.link(task);
        // A task that has yielded stays RUNNING while it is queued. If a wake has set READY, that
        // flag is cleared when the next poll starts.
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

    /// Clears RUNNING of a task that waits and has not yielded. If the task was woken during its
    /// poll, queues it.
    #[inline(always)]
    pub(super) fn wait_for_wake(&'static self, task: NonNull<Header>) {
        // SAFETY: the task is RUNNING, hence alive.
        match unsafe { task.as_ref() }.state.pending() {
            Pending::Blocked => {}
            // If the task was aborted as well, the next `start` of the task acts on the abort.
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
        // If this poll has requested that other tasks go first (`yield_current`), the request is
        // moved from the core's flag, which the next task uses, to the stack, until the task
        // continues.
        stack.yielded.set(self.take_yield());
        stack.set_preempted();
        let stacks = &self.local.stacks;
        // SAFETY: the task had the core until now, so it is in no queue. It is queued here, and
        // stays in this queue until it continues: wakes of a RUNNING task push nothing.
        unsafe {
            // If the task has used up its slice, it goes to the end of `turns`. If some of the
            // slice is left, the task goes to the front of the queue that it was taken from.
            if !stack.has_left() {
                stacks.turns.push_back(task);
            } else if stacks.in_turn.get() {
                stacks.turns.push_front(task);
            } else {
                stacks.ready.push_front(task);
            }
        }
    }

    /// Finishes a stackful task whose last poll has ended. `reason` says how it ended.
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
        // `hold` marks the stack as held, here for ever: frames of the task remain on the stack,
        // and a shutdown must not free it.
        self.hold(task, stack);
        count(&self.counters.ended);
        self.abandon(task);
        // Guards that the task has leaked no longer count.
        self.preempt_count.void_guards();
    }

    /// Finishes a plain task whose poll panicked.
    #[inline(never)]
    pub(super) fn panicked(&'static self, task: NonNull<Header>, payload: PanicPayload) {
        // SAFETY: the task is RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            // The output was stored before the panic, so the join handle gives the output and not
            // the panic. The panic goes to the hook `on_panic`.
            self.catch_user_panic(task, || contain::discard(task, payload));
            self.complete(task, Output::Value, true);
        } else {
            self.fail(task, JoinError::Panicked(payload), true);
        }
        // From here on, guards that the task has leaked no longer count. They count until here,
        // since the future that was dropped above may have held them.
        self.preempt_count.void_guards();
    }

    /// Drops a task's future and finishes the task with `error`. With `release`, drops the
    /// runtime's reference. The task is RUNNING, and no stack holds frames of it.
    #[inline(never)]
    pub(super) fn fail(&'static self, task: NonNull<Header>, error: JoinError, release: bool) {
        // The drop runs the task's code, so the task is the current one.
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
        // If the runtime's reference is the only one, no other code could see DONE. So the task is
        // freed, and DONE is not set.
        if release && header.state.is_unreachable() {
            // SAFETY: rule 6: there is no join handle, so the output belongs to the owning core.
            // There is no other reference through which code could read DONE.
            unsafe {
                self.drop_output(task, output);
                Header::free(task, Some(self.free_list()));
            }
            return;
        }
        // From here on the join handle may take the output on another core.
        let completed = header.state.complete();
        if completed.drop_output {
            // SAFETY: rule 6: there was no join handle when DONE was set, so the output belongs to
            // the owning core.
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
        // SAFETY: the runtime's reference keeps the task alive. Rule 7: this core has set DONE, and
        // the step that set it has returned that this core must take the join waker.
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
    /// The task is alive. Unless `output` is `Nothing`, the conditions of [`Header::drop_output`]
    /// hold.
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

    /// Wakes `joiner`, the join waker of `task`, and calls `release`, which may free the task.
    fn wake_joiner(&self, task: NonNull<Header>, joiner: Waker, release: impl FnOnce()) {
        if waker::task_of(&joiner).is_some() {
            // The release comes first, so that the join handle has the last reference when the
            // waiting task is polled (unless wakers have references too). No user code runs here,
            // so `task` is not needed to report a panic.
            release();
            // SAFETY: the caller is the loop of this runtime, or its shutdown, which runs in place
            // of the loop.
            unsafe { waker::wake_in_loop(self, joiner) };
        } else {
            // The waker is user code. The task stays alive until the waker returns, since a panic
            // of the waker is reported for the task.
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
            // SAFETY: rule 7: `abandon` has set DONE, and has returned that this core must take the
            // join waker.
            self.wake_joiner(task, unsafe { take_waker(header) }, || ());
        }
    }

    /// Frees or releases a task that came from a queue and is not to be polled any more. `start` is
    /// the value that `State::start` has returned for it.
    pub(super) fn reap(&'static self, task: NonNull<Header>, start: Start) {
        match start {
            // SAFETY: no references are left. The future and the output were dropped before the
            // last reference was dropped.
            Start::Free => unsafe { Header::free(task, Some(self.free_list())) },
            // The task became DONE while a waker was between its wake and its push. The runtime's
            // reference has kept the task alive until the loop took it from the queue.
            Start::Finished => self.release(task),
            // `Abandoned`: the runtime keeps its reference for ever. `Run` does not come here.
            Start::Abandoned | Start::Run { .. } => {}
        }
    }

    /// Drops the runtime's reference. The caller is the loop, which may free memory.
    fn release(&'static self, task: NonNull<Header>) {
        // SAFETY: the caller gives up the runtime's reference. If that was the last reference, no
        // other code can reach the task.
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
    /// - A [`PreemptGuard`](crate::preempt::PreemptGuard) that the code does not drop no longer
    ///   counts, and is reported in the same way.
    /// - If the code leaves interrupts masked, they are enabled, and that is reported in the same
    ///   way.
    pub(crate) fn catch_user_panic(&self, task: NonNull<Header>, code: impl FnOnce()) {
        // The count is 1 in the loop and 0 on a stack. It is higher if a poll of `task` has
        // panicked and has leaked a guard.
        let before = self.preempt_count.get();
        // The caller of a shutdown may have masked interrupts. They stay masked then.
        let masked = bound::interrupts() == Interrupts::Masked;
        contain::contain(task, code);
        // `repair` comes before the test for masked interrupts: its report calls user code too,
        // which may leave interrupts masked. `unmask` comes before the report of masked interrupts,
        // so that the hook `on_panic` runs with interrupts enabled.
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
    /// task. Reports name the runtime's root task.
    pub(crate) fn catch_panic(&self, code: impl FnOnce()) {
        self.catch_user_panic(NonNull::from(&self.root), code);
    }

    /// Makes the guards void that user code has leaked, and reports them for `task`.
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
        // The hook `on_panic`, which the report has called, may have leaked another guard.
        self.preempt_count.void_guards();
    }

    /// Puts a task into the list of all tasks, unless it is there already. A task is put there when
    /// it leaves the core for the first time and is not over.
    #[inline]
    pub(super) fn link(&self, task: NonNull<Header>) {
        // A task without a previous task is the first of the list, or not in the list.
        // SAFETY: the task is alive, and only the loop touches its links (rule 4).
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
        // SAFETY: the caller's task is alive, and only the loop touches its links (rule 4).
        let siblings = unsafe { &task.as_ref().siblings };
        let first = self.local.tasks.get();
        siblings.next.set(first);
        if let Some(first) = first {
            // SAFETY: tasks in the list are alive, and only the loop touches their links (rule 4).
            unsafe { first.as_ref() }.siblings.previous.set(Some(task));
        }
        self.local.tasks.set(Some(task));
    }

    /// Takes a task out of the list of all tasks, if it is there.
    fn unlink(&self, task: NonNull<Header>) {
        // SAFETY: the caller's task is alive, and only the loop touches its links (rule 4).
        let siblings = unsafe { &task.as_ref().siblings };
        let (previous, next) = (siblings.previous.take(), siblings.next.take());
        match previous {
            // SAFETY: tasks in the list are alive, and only the loop touches their links (rule 4).
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
    /// Panics if the poll that has just returned left a guard undropped, or interrupts masked.
    /// `expected` is the preempt count without guards: 1 at home, 0 on a stack.
    #[inline(always)]
    pub(crate) fn check_guards(&self, expected: usize, task: NonNull<Header>, poll: Poll<()>) {
        if self.preempt_count.get() != expected || bound::interrupts() == Interrupts::Masked {
            self.held_the_core(task, poll);
        }
    }

    /// Panics, with a message that says what the poll of `task` left behind: masked interrupts or a
    /// guard.
    #[cold]
    #[inline(never)]
    fn held_the_core(&self, task: NonNull<Header>, poll: Poll<()>) -> ! {
        if poll.is_ready() {
            // `panicked` then keeps the output of this poll.
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
