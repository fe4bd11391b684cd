//! User mode: the context of a program is run, and the next trap comes back as a value.

use super::cause::Trap;
use super::handler::dispatch;
use crate::arch::{self, TrapContext};
use crate::platform::bound;
use crate::runtime::core::Runtime;

impl TrapContext {
    /// Runs the user program of this context until its next trap, and returns that trap.
    ///
    /// An interrupt has been handled by then, by the kernel's [`TrapHandler`](super::TrapHandler).
    /// In a stackful task, other tasks may have had the core in that handler, so `Timer` needs no
    /// answer but the next `run`. In a plain task, no other task has run: yield on `Timer` and on
    /// `Interrupt`. If the time of a plain task was up before it called `run`, it gets `Timer` at
    /// once.
    ///
    /// This function loads no address space: [`contexted`](crate::contexted()) keeps the right one
    /// loaded across awaits and preemption.
    ///
    /// # Safety
    ///
    /// - This core's traps come to the entry of
    ///   [`install_trap_entry`](crate::arch::install_trap_entry).
    /// - It is called in task context or outside of a runtime, not in a handler of an interrupt.
    /// - The loaded address space lets user mode reach only what this program may access, and keeps
    ///   the kernel's part as it is.
    pub unsafe fn run(&mut self) -> Trap {
        // A pending preemption is taken here, rather than by an alarm in the middle of the program.
        crate::preempt::point();
        // The handler of an interrupt of the program runs on this stack.
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
