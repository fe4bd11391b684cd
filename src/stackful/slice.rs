//! Slices: what a task is granted when it gets the core, and what is left when it loses it.

use core::ptr::NonNull;

use crate::runtime::core::Runtime;
use crate::stackful::stacks::Reason;
use crate::stackful::switch::Stack;
use crate::time::alarm::{MIN_STRETCH, SliceLeft};

impl Runtime {
    /// Grants a slice to the code on `stack`. Loop only.
    #[inline(always)]
    pub(crate) fn grant_slice(&self, stack: NonNull<Stack>) {
        // SAFETY: a stack is alive until it is freed, and only the loop, which calls this, frees
        // stacks.
        unsafe { stack.as_ref() }.left.set(0);
        if !self.alarm().begin_covered() {
            self.alarm().begin_slice(self.slice(), self.timers().next());
        }
    }

    /// Grants the code on `stack` the time that was noted when it was preempted. Loop only.
    #[inline(always)]
    pub(crate) fn grant_rest(&self, stack: NonNull<Stack>) {
        // SAFETY: as in `grant_slice`.
        let stack = unsafe { stack.as_ref() };
        let (left, next_timer) = (stack.left.get(), self.timers().next());
        match stack.protected.get() {
            0 => self.alarm().resume_slice(left, next_timer),
            least => {
                stack.protected.set(0);
                self.alarm().resume_protected(left, least, next_timer);
            }
        }
    }

    /// Notes how much of its slice the running task has left, and leaves the running stack.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack).
    #[inline(always)]
    pub(crate) unsafe fn leave_preempted(&'static self, left: SliceLeft, now: u64, reason: Reason) {
        let stack = self.running_stack();
        let is_short = self.alarm().is_short(now);
        self.alarm().end_stretch(now);
        stack.set_left(match left {
            SliceLeft::Nanoseconds(left) => {
                if is_short {
                    stack.protected.set(MIN_STRETCH);
                }
                (true, left)
            }
            SliceLeft::Nothing => (false, self.slice()),
        });
        // SAFETY: the caller's promise. `stack` is the running stack.
        unsafe { self.leave_stack(stack, reason) };
    }

    /// If the running task has not yet had its protected stretch: sets the alarm for the end of
    /// that stretch, and enables preemption for the task's code. Returns `false` if a preemption is
    /// pending now. Called on the task's core, in task context or with interrupts masked.
    #[cold]
    #[inline(never)]
    pub(super) fn stay(&self, now: u64) -> bool {
        // An alarm that fires while the alarm is being set finds preemption disabled.
        self.preempt_count().set(1);
        self.preempt_count().clear_pending();
        if !self.alarm().stays(now) {
            self.preempt_count().set_pending();
            return false;
        }
        !self.enable_and_test()
    }
}
