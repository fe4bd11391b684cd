//! Slices: the time that a task is granted when it gets the core, and the rest of that time when it
//! loses the core.

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

    /// If the time for which the running task is protected from preemption is not over: clears the
    /// pending preemption, sets the alarm for the end of that time, and enables preemption for the
    /// task's code. Returns `false` if that time is over, or if another preemption has become
    /// pending meanwhile. Called on the task's core, in task context or with interrupts masked.
    #[cold]
    #[inline(never)]
    pub(super) fn stay(&self, now: u64) -> bool {
        // Preemption is disabled while the alarm is being set, since the old alarm may fire
        // meanwhile.
        self.preempt_count().set(1);
        self.preempt_count().clear_pending();
        if !self.alarm().stays(now) {
            self.preempt_count().set_pending();
            return false;
        }
        !self.enable_and_test()
    }

    /// Starts a slice for a run of a user program in a plain task, so that the run ends with the
    /// slice. (In a stackful task, the task's slice does that.) Returns `false` if a plain task
    /// must let other tasks go first, because a preemption is pending.
    #[cfg(all(
        any(target_os = "none", doc),
        any(target_arch = "riscv64", target_arch = "x86_64", target_arch = "loongarch64")
    ))]
    pub(crate) fn begin_user_slice(&self) -> bool {
        if self.is_on_stack() {
            // The slice of the task that runs on the stack has already begun.
            return true;
        }
        if self.preempt_count().is_pending() {
            // The preemption is reported only once (as `Trap::Timer`), so that a task that ignores
            // `Timer` makes progress.
            self.preempt_count().clear_pending();
            return false;
        }
        // Wakes by other cores must interrupt the program, as they interrupt a stackful task. If
        // the inbox is not empty, the program gets the shortest slice.
        let slice = if self.inbox().announce_stackful() {
            self.slice()
        } else {
            crate::time::alarm::nanoseconds(crate::MIN_SLICE)
        };
        let next_timer = self.timers().next();
        if self.alarm().begin_covered() {
            // The loop does not look at timers that a plain task adds before that task's poll is
            // over. So the alarm is set for them here.
            self.alarm().set_by(next_timer);
        } else {
            self.alarm().begin_slice(slice, next_timer);
        }
        true
    }
}
