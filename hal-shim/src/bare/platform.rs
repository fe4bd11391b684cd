//! The platform that Trapline runs on. An architecture implements [`Processor`] by its registers.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use trapline::arch::{Native, TrapContext};
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::trap::Trap;

use super::{CORES, Core, paging};
use crate::machine::Cpu;

/// A processor. All functions act on the calling core.
///
/// # Safety
///
/// Each function does what its description says. [`Machine`] relies on it.
pub(crate) unsafe trait Processor {
    /// The number that the software interrupt has in [`Trap::Interrupt`].
    const SOFT: usize;
    /// The state that [`mask`](Self::mask) returns if interrupts were enabled, never 0. 0: they
    /// were masked.
    const ENABLED: usize;

    /// The core's [`Core`], in [`CORES`].
    fn this_core() -> *const ();
    /// The time in nanoseconds, rounded down, by a clock that is the same on all cores and never
    /// goes backwards.
    fn now() -> u64;
    /// Has the core's timer cause [`Trap::Timer`] when [`now`](Self::now) is `at` or later, in
    /// place of the last time that was set. `u64::MAX` stops the timer.
    fn set_alarm(at: u64);
    /// Waits for an interrupt. Called with interrupts masked, and returns so. An interrupt that is
    /// pending already ends it.
    fn park();
    /// Masks interrupts, and returns a state for [`restore`](Self::restore). The compiler moves no
    /// memory access across it, nor across the next two.
    fn mask() -> usize;
    /// Enables interrupts if `state` says so.
    ///
    /// # Safety
    ///
    /// `state` is from [`mask`](Self::mask), or interrupts may be enabled.
    unsafe fn restore(state: usize);
    /// Enables interrupts.
    ///
    /// # Safety
    ///
    /// Their handlers may run now.
    unsafe fn enable();
    /// Whether interrupts are enabled. They are masked in a handler that has not enabled them.
    fn interrupts() -> Interrupts;

    /// Causes the software interrupt on `core`, which may be the calling one. Several may become
    /// one.
    fn notify(core: &Core);
    /// Acknowledges the timer's interrupt.
    fn acknowledge_alarm();
    /// Acknowledges the software interrupt.
    fn acknowledge_soft();
    /// Whether a trap is to be ignored: an interrupt that was withdrawn, and is not acknowledged.
    fn is_spurious(_: Trap) -> bool {
        false
    }
    /// Called when a stack has overflowed outside of a trap handler. The default does nothing, for
    /// processors where an interrupt that has no room on the stack stays pending: the trap entry
    /// finds the overflow before the interrupt is acknowledged.
    fn after_overflow() {}
    /// Called at the end of each trap in kernel mode and of each interrupt. The default does
    /// nothing, for processors where [`park`](Self::park) doesn't enable interrupts.
    fn before_return(_: &mut TrapContext) {}
}

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

// SAFETY: the trait's list, in its order.
// - slot, core: of a static table, by `Processor::this_core`.
// - now, park: `Processor` promises the same.
// - The alarm is the core's timer, whose trap `on_trap` acknowledges before it calls `on_timer`.
// - Masking: only interrupts call into Trapline from a trap. x86_64 has an NMI, which cannot be
//   masked; its handler doesn't call into Trapline.
// - wake: the software interrupt, whose trap calls `on_interrupt`. One that has not been handled
//   stands for all that come later; the handler's swap sees what they wrote.
// - in_interrupt: precise, set and cleared by `on_trap`, and by `enable_interrupts` for a handler
//   that has left its stack.
// - interrupts: the processor's flag, which is cleared for a trap.
// - may_preempt, may_end: always; a panic ends the machine with interrupts masked.
// - Stacks are from the heap, mapped a second time, where 64 KiB below are not mapped.
// - There is no other per-core data than this crate's own, which it touches with interrupts masked
//   or by single loads and stores.
// - A handler enables interrupts by leaving its stack or in `interrupt::nested`, with the guard.
unsafe impl Platform for Machine {
    type Backend = Native;

    #[inline]
    fn slot(&self) -> &'static CoreSlot {
        &Core::here().slot
    }

    #[inline]
    fn core(&self) -> usize {
        Core::here().number()
    }

    #[inline]
    fn now(&self) -> u64 {
        Cpu::now()
    }

    #[inline]
    fn set_alarm(&self, at: u64) {
        Cpu::set_alarm(at);
    }

    #[inline]
    fn park(&self) {
        Cpu::park();
    }

    fn wake(&self, core: usize) {
        if let Some(core) = CORES.get(core) {
            core.wake();
        }
    }

    #[inline]
    fn mask_interrupts(&self) -> usize {
        Cpu::mask()
    }

    #[inline]
    unsafe fn restore_interrupts(&self, state: usize) {
        // SAFETY: the caller passes what `mask_interrupts` returned.
        unsafe { Cpu::restore(state) };
    }

    #[inline]
    unsafe fn enable_interrupts(&self) {
        Core::here().in_interrupt.store(false, Ordering::Relaxed);
        // SAFETY: the caller promises that this is the time.
        unsafe { Cpu::enable() };
    }

    #[inline]
    fn interrupts(&self) -> Interrupts {
        Cpu::interrupts()
    }

    #[inline]
    fn in_interrupt(&self) -> InInterrupt {
        if Core::here().in_interrupt.load(Ordering::Relaxed) {
            InInterrupt::Yes
        } else {
            InInterrupt::No
        }
    }

    fn allocate_stack(&self, size: usize) -> Option<NonNull<u8>> {
        paging::allocate_stack(size)
    }

    unsafe fn free_stack(&self, base: NonNull<u8>, size: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { paging::free_stack(base, size) }
    }
}
