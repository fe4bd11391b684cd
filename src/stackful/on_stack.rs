//! The loop on a stack.

use core::ptr::NonNull;
use core::task::Poll;

use crate::arch;
use crate::platform::backend::Context;
use crate::platform::{PanicPayload, bound};
use crate::runtime::core::Runtime;
use crate::stackful::stacks::Reason;
use crate::stackful::switch::Stack;
use crate::task::contain;
use crate::task::error::JoinError;
use crate::task::header::{Header, Link};

/// The entry function of each stack. It runs the part of the loop that polls stackful tasks, which
/// calls the tasks' code. It catches every panic that unwinds to the base of the stack.
///
/// # Safety
///
/// `stack` is the `Stack` that this code runs on. The stack was entered for the running task.
pub(crate) unsafe extern "C" fn stack_main(stack: *mut ()) -> ! {
    // SAFETY: the caller's promise. A stack is freed only while no code runs on it.
    let stack = unsafe { &*stack.cast::<Stack>() };
    let Some(runtime) = Runtime::current() else {
        unreachable!("a stack was entered outside of a runtime")
    };
    let mut ended = None;
    loop {
        let caught = bound::catch_unwind(&mut || runtime.turn_on(stack, ended.take()));
        let Err(payload) = caught else { unreachable!("the loop on a stack has returned") };
        ended = runtime.caught_on(stack, payload);
    }
}

// The functions below run on a pooled stack. The result of a poll lies on that stack too, and not
// in the runtime: until preemption is disabled for the last time after the poll, the task may be
// preempted, and polls of other tasks may end meanwhile.
impl Runtime {
    /// The loop on a stack. It polls the running task, then the tasks whose turn comes and of which
    /// no stack holds frames. For everything else it goes home. If the poll of the running task
    /// panicked, `ended` is that task and how its poll has ended.
    ///
    /// Across a poll, the frame of this function keeps only the stack, the runtime and the task
    /// that is polled. This function reads everything else anew after the poll, since the core may
    /// have run other code meanwhile.
    fn turn_on(&'static self, stack: &Stack, ended: Option<(NonNull<Header>, Reason)>) {
        let mut next = ended.and_then(|(task, reason)| self.leave_poll(stack, task, reason));
        loop {
            let task = next.unwrap_or_else(|| self.brought());
            // Home may have brought a task that was aborted. The loop on a stack itself begins no
            // poll of such a task.
            // SAFETY: the loop has started the task, so it is RUNNING, hence alive.
            let is_over = next.is_none() && unsafe { task.as_ref() }.state.is_aborted();
            self.begin_task_code();
            if is_over {
                next = self.end_last_poll(stack, task, Poll::Pending);
                continue;
            }
            // SAFETY: the task is RUNNING, and this is its core.
            let poll = unsafe { Header::poll(task) };
            self.check_guards(0, task, poll);
            // SAFETY: the task is RUNNING, hence alive.
            next = if poll.is_ready() || unsafe { task.as_ref() }.state.is_aborted() {
                self.end_last_poll(stack, task, poll)
            } else {
                self.preempt_count().set(1);
                self.leave_poll(stack, task, Reason::Pending)
            };
        }
    }

    /// Returns the task that home has brought to this stack to be polled.
    fn brought(&self) -> NonNull<Header> {
        let Some(task) = self.current_task() else {
            unreachable!("a stack was entered without a task")
        };
        task
    }

    /// Handles a panic on a stack. If it came from the poll of a task, returns that task and how
    /// its poll has ended.
    #[cold]
    #[inline(never)]
    fn caught_on(
        &'static self,
        stack: &Stack,
        payload: PanicPayload,
    ) -> Option<(NonNull<Header>, Reason)> {
        if let Some(task) = self.current_task() {
            let reason = self.panicked_on_stack(task, payload);
            stack.lost_child.set(false);
            return Some((task, reason));
        }
        self.stacks().payload.set(Some(payload));
        self.go_home(stack, Reason::Panicked);
        // Home has brought a task, which is the current one now. `turn_on` polls it.
        None
    }

    /// Ends a stackful task that has finished or was aborted, and begins the next poll. All user
    /// code that this involves runs here, on the task's stack.
    #[inline(never)]
    fn end_last_poll(&'static self, stack: &Stack, task: NonNull<Header>, poll: Poll<()>) -> Link {
        let error = if poll.is_ready() { None } else { Some(JoinError::Aborted) };
        let reason = self.end_on_stack(task, error);
        stack.lost_child.set(false);
        self.leave_poll(stack, task, reason)
    }

    /// Begins the next poll on this stack, and returns its task. Returns `None` if the core went
    /// home and home has brought a task. Called with preemption disabled.
    #[inline(always)]
    fn leave_poll(&'static self, stack: &Stack, task: NonNull<Header>, reason: Reason) -> Link {
        if stack.lost_canary() {
            self.leave_overflowed(stack);
        }
        if arch::has_rights() {
            // The poll has left a section open in which it may access user pages. Other tasks must
            // not have that right.
            arch::drop_rights();
        }
        match self.next_on_stack(NonNull::from(stack), task, reason) {
            Ok(next) => Some(next),
            Err(reason) => {
                self.go_home(stack, reason);
                None
            }
        }
    }

    /// Goes home from an idle stack. Returns when home has brought the next task.
    #[inline(never)]
    fn go_home(&'static self, stack: &Stack, reason: Reason) {
        self.stacks().reason.set(reason);
        // SAFETY: as in `switch_to_loop` (`switch.rs`). The stack holds no frame of a task, only
        // frames of the loop. Home gives the stack to the pool after the switch.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
    }

    /// Ends a stackful task whose poll panicked. Guards that the task has not dropped keep
    /// preemption disabled until its future is gone.
    #[cold]
    #[inline(never)]
    fn panicked_on_stack(&'static self, task: NonNull<Header>, payload: PanicPayload) -> Reason {
        self.unmask();
        // SAFETY: the task is RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            self.catch_user_panic(task, || contain::discard(task, payload));
            self.end_on_stack(task, None)
        } else {
            self.end_on_stack(task, Some(JoinError::Panicked(payload)))
        }
    }

    /// Finishes a stackful task. If there is an error, drops the future first and stores the error
    /// as the output. If there is no join handle, drops the output. All of this may be preempted
    /// and may block.
    #[inline(never)]
    fn end_on_stack(&'static self, task: NonNull<Header>, error: Option<JoinError>) -> Reason {
        // Clears the task's request to be polled again (a yield), since the task is over.
        self.take_yield();
        let is_error = error.is_some();
        if let Some(error) = error {
            // SAFETY: the task is RUNNING, on its core, and its poll is over.
            self.catch_user_panic(task, || unsafe { Header::fail(task, error) });
        }
        self.end_task_code();
        // SAFETY: the task is RUNNING, hence alive.
        let header = unsafe { task.as_ref() };
        match header.state.complete_for_join() {
            Some(false) => return Reason::Finished,
            Some(true) => return Reason::FinishedForJoiner,
            None => {}
        }
        if is_error || header.vtable.value_needs_drop {
            self.begin_task_code();
            // SAFETY: there is no join handle, so the output is the owning core's (rule 6 of
            // `crate::task`). It is dropped once, since `Detached` tells the loop that it is gone.
            self.catch_user_panic(task, || unsafe { Header::drop_output(task) });
            self.end_task_code();
        }
        Reason::Detached
    }

    /// Enables preemption for the task's code, on its stack. Takes a pending preemption first.
    #[inline(always)]
    fn begin_task_code(&'static self) {
        if self.enable_and_test() {
            // SAFETY: this is the running task's own code, on its stack, in task context.
            unsafe { self.leave_for_pending(false) };
        }
    }

    /// Disables preemption for the runtime's own code, on the task's stack. Guards that the task
    /// has not dropped no longer count.
    #[inline]
    fn end_task_code(&self) {
        if self.preempt_count().get() == 0 {
            self.preempt_count().set(1);
        } else {
            self.preempt_count().void_guards();
        }
    }
}
