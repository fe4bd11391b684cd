//! User mode: a function runs a user program's context and returns the program's next trap.

use super::cause::Trap;
use super::handler::dispatch;
use crate::arch::{self, TrapContext};
use crate::platform::bound;
use crate::runtime::core::Runtime;

impl TrapContext {
    /// Runs the user program of this context until its next trap, and returns that trap.
    ///
    /// If the trap is an interrupt, the kernel's [`TrapHandler`](super::TrapHandler) has handled it
    /// before this function returns. In a stackful task, other tasks may have had the core in that
    /// handler, so after `Timer` the task just calls `run` again. In a plain task, no other task
    /// has run: yield on `Timer` and on `Interrupt`. If the slice of a plain task has ended before
    /// it calls `run`, `run` returns `Timer` once without running the program.
    ///
    /// This function loads no address space: [`contexted`](crate::contexted()) keeps the right one
    /// loaded across awaits and preemption.
    ///
    /// # Safety
    ///
    /// - This core's traps come to the entry of
    ///   [`install_trap_entry`](crate::arch::install_trap_entry).
    /// - This function is called in task context or outside of a runtime, not in an interrupt
    ///   handler.
    /// - The loaded address space lets user mode reach only what this program may access, and keeps
    ///   the kernel's part as it is.
    pub unsafe fn run(&mut self) -> Trap {
        // A pending preemption is taken here, rather than by an alarm in the middle of the program.
        crate::preempt::point();
        // The handler of an interrupt that comes while the program runs uses this stack. If there
        // is too little of it left, the fault is taken here, in the code of the task, and not in
        // the handler.
        arch::touch_stack::<{ arch::HANDLER_STACK }>();
        let interrupts = bound::mask_interrupts();
        let trap = if Runtime::current().is_none_or(Runtime::begin_user_slice) {
            // SAFETY: interrupts are masked, and the caller promises the rest.
            unsafe { self.enter_user() };
            let trap = self.trap();
            if matches!(trap, Trap::Timer | Trap::Interrupt(_)) {
                dispatch(self);
            }
            trap
        } else {
            Trap::Timer
        };
        // SAFETY: `interrupts` is what `mask_interrupts` returned. A handler that gave the core to
        // other tasks meanwhile has returned with interrupts masked.
        unsafe { bound::restore_interrupts(interrupts) };
        trap
    }
}
