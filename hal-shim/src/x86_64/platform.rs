//! What Trapline asks of a kernel, and the handler of all traps.

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use trapline::arch::{Native, TrapContext};
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::trap::Trap;
use x86::VirtAddr;
use x86::registers::model_specific::GsBase;

use super::apic::{SOFT_VECTOR, SPURIOUS_VECTOR};
use super::{apic, space};
use crate::bare::{CORES, Core, cores};

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// The address of the core that calls, which is at the base of gs.
#[inline]
pub(crate) fn this_core() -> *const () {
    let core;
    // SAFETY: reads what is the same for as long as a stack stays on its core, which is as long as
    // the code that reads it can tell the difference.
    unsafe {
        asm!(
            "mov {}, gs:[{this}]",
            out(reg) core,
            this = const offset_of!(Core, this),
            options(pure, readonly, nostack, preserves_flags),
        )
    };
    core
}

/// Makes `core` the calling core.
///
/// # Safety
///
/// Called once on each core, before anything asks for it, and with a different one on each.
pub(super) unsafe fn become_core(core: &'static Core) {
    let address = core::ptr::from_ref(core).expose_provenance();
    core.this.store(address, Ordering::Relaxed);
    GsBase::write(VirtAddr::new_truncate(address as u64));
}

// What the trap entry builds upon.
const _: () = assert!(offset_of!(Core, trap) == 0);

/// Causes the software interrupt on `core`.
pub(crate) fn notify(core: &Core) {
    apic::notify(core.id.load(Ordering::Relaxed) as u32);
}

/// Causes an interrupt that cannot be masked on core number `core`.
pub(crate) fn raise_nmi(core: usize) {
    if let Some(core) = CORES.get(..cores()).and_then(|cores| cores.get(core)) {
        apic::send(apic::NMI, core.id.load(Ordering::Relaxed) as u32);
    }
}

/// `rflags.IF`, where `mask_interrupts` finds it.
pub(crate) const IF: usize = 1 << 9;

// SAFETY: the trait's list, in its order.
// - slot, core: of a static table, by gs.
// - now: the time-stamp counter, which QEMU keeps the same on all cores, as today's processors do;
//   rounded down.
// - The alarm is the core's timer, whose trap `on_trap` acknowledges before it calls `on_timer`.
// - Masking is IF. Only an NMI comes nevertheless, whose handler doesn't call into Trapline.
// - park: `sti` lets no interrupt in before the next instruction is over; that is `hlt`, which ends for
//   one that is pending. An NMI in between undoes that, so `before_return` then skips the `hlt`.
// - wake: the software interrupt, whose trap calls `on_interrupt`. One that has not been handled
//   stands for all that come later; the handler's swap sees what they wrote.
// - in_interrupt: precise, set and cleared by `on_trap`, and by `enable_interrupts` for a handler
//   that has left its stack.
// - interrupts: IF, which the processor clears for a trap, by the table of interrupts.
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
        apic::now()
    }

    #[inline]
    fn set_alarm(&self, at: u64) {
        if at == u64::MAX {
            apic::stop_timer();
        } else {
            apic::start_timer(at.saturating_sub(apic::now()));
        }
    }

    fn park(&self) {
        // SAFETY: the caller has masked interrupts, which are masked again, and all handlers are there.
        unsafe { enable_and_halt() };
    }

    fn wake(&self, core: usize) {
        if let Some(core) = CORES.get(core) {
            core.wake();
        }
    }

    #[inline]
    fn mask_interrupts(&self) -> usize {
        let flags: usize;
        // SAFETY: masking interrupts is no danger to memory. As it may touch memory for all that
        // the compiler knows, nothing moves across it.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
        flags & IF
    }

    #[inline]
    unsafe fn restore_interrupts(&self, state: usize) {
        if state != 0 {
            // SAFETY: the caller promises that they were enabled before. A barrier as above.
            unsafe { asm!("sti", options(nostack)) };
        }
    }

    #[inline]
    unsafe fn enable_interrupts(&self) {
        Core::here().in_interrupt.store(false, Ordering::Relaxed);
        // SAFETY: the caller promises that this is the time. A barrier as above.
        unsafe { asm!("sti", options(nostack)) };
    }

    #[inline]
    fn interrupts(&self) -> Interrupts {
        let flags: usize;
        // SAFETY: reads a register, by way of the stack. Not pure: another call may find it otherwise.
        unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
        if flags & IF != 0 { Interrupts::Enabled } else { Interrupts::Masked }
    }

    #[inline]
    fn in_interrupt(&self) -> InInterrupt {
        Core::here().in_interrupt()
    }

    fn allocate_stack(&self, size: usize) -> Option<NonNull<u8>> {
        space::allocate_stack(size)
    }

    unsafe fn free_stack(&self, base: NonNull<u8>, size: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { space::free_stack(base, size) }
    }
}

/// Waits with interrupts enabled, which are masked before and after.
#[unsafe(naked)]
unsafe extern "C" fn enable_and_halt() {
    naked_asm!(
        // The handler may be in another unit of the compiler's.
        ".globl hal_shim_hlt, hal_shim_halted",
        "sti",
        "hal_shim_hlt:",
        "hlt",
        "hal_shim_halted:",
        "cli",
        "ret",
    )
}

// SAFETY: labels in `enable_and_halt`. Only addresses are taken.
unsafe extern "C" {
    safe static hal_shim_hlt: [u8; 0];
    safe static hal_shim_halted: [u8; 0];
}

/// The software interrupt's vector.
pub(crate) const SOFT: usize = SOFT_VECTOR as usize;
const SPURIOUS: usize = SPURIOUS_VECTOR as usize;

pub(crate) fn acknowledge_alarm() {
    apic::end_of_interrupt();
}

pub(crate) fn acknowledge_soft() {
    apic::end_of_interrupt();
}

/// Whether a trap is the machine's own matter: an interrupt that was withdrawn, and isn't acknowledged.
pub(crate) fn answers(trap: Trap) -> bool {
    trap == Trap::Interrupt(SPURIOUS)
}

/// A stack has overflowed, perhaps when the processor pushed there for an interrupt, whose handler was not
/// called then: it is acknowledged here. The code that goes on finds out what it may have been about.
pub(crate) fn after_overflow() {
    apic::end_all_interrupts();
    Core::here().is_notified.swap(0, Ordering::AcqRel);
}

/// An NMI may have come between `sti` and `hlt`. What `sti` held off is let in when it returns, and `hlt` would
/// wait for others: so it is skipped.
pub(crate) fn before_return(context: &mut TrapContext) {
    if context.rip == (&raw const hal_shim_hlt).addr() {
        context.rip = (&raw const hal_shim_halted).addr();
    }
}
