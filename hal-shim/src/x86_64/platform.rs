//! The registers that the platform needs: interrupts, the timer and the clock.

use core::arch::{asm, naked_asm};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use trapline::arch::TrapContext;
use trapline::platform::Interrupts;
use trapline::trap::Trap;
use x86::VirtAddr;
use x86::registers::model_specific::GsBase;

use super::apic;
use super::apic::{SOFT_VECTOR, SPURIOUS_VECTOR};
use crate::bare::{CORES, Core, Processor, cores};

/// Makes `core` the calling core.
///
/// # Safety
///
/// Called once on each core, with a different `core` on each, before any code asks for the calling
/// core.
pub(super) unsafe fn become_core(core: &'static Core) {
    let address = core::ptr::from_ref(core).expose_provenance();
    core.this.store(address, Ordering::Relaxed);
    GsBase::write(VirtAddr::new_truncate(address as u64));
}

// The trap entry relies on it.
const _: () = assert!(offset_of!(Core, trap) == 0);

/// Causes an NMI on core number `core`.
pub(crate) fn raise_nmi(core: usize) {
    if let Some(core) = CORES.get(..cores()).and_then(|cores| cores.get(core)) {
        apic::send(apic::NMI, core.id.load(Ordering::Relaxed) as u32);
    }
}

/// `rflags.IF`: interrupts are enabled.
const IF: usize = 1 << 9;

/// A processor with its local APIC.
pub(crate) struct Cpu;

// SAFETY:
// - this_core: the base of gs is the address of the `Core`, by `become_core`.
// - now: the time-stamp counter, which QEMU keeps the same on all cores, as today's processors do.
// - set_alarm: the APIC's timer.
// - park: `sti` lets no interrupt in before the next instruction has ended. That is `hlt`, which a
//   pending interrupt ends. An NMI between the two breaks this, so `before_return` then skips the
//   `hlt`.
// - Masking is IF, which the processor clears for a trap, as the interrupt table says.
// - notify: an interrupt by the APIC, with a vector of its own.
unsafe impl Processor for Cpu {
    const SOFT: usize = SOFT_VECTOR as usize;
    const ENABLED: usize = IF;

    #[inline]
    fn this_core() -> *const () {
        let core;
        // SAFETY: reads per-core memory. `pure`: its value stays the same while the stack stays on
        // its core, and code that can tell cores apart runs on one core only.
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

    #[inline]
    fn now() -> u64 {
        apic::now()
    }

    #[inline]
    fn set_alarm(at: u64) {
        if at == u64::MAX {
            apic::stop_timer();
        } else {
            apic::start_timer(at.saturating_sub(apic::now()));
        }
    }

    #[inline]
    fn park() {
        // SAFETY: the caller has masked interrupts, and all handlers are installed.
        unsafe { enable_and_halt() };
    }

    #[inline]
    fn mask() -> usize {
        let flags: usize;
        // SAFETY: masking interrupts affects no memory. Without `nomem`, it is a barrier for the
        // compiler.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
        flags & IF
    }

    #[inline]
    unsafe fn restore(state: usize) {
        if state != 0 {
            // SAFETY: the caller's promise.
            unsafe { Self::enable() };
        }
    }

    #[inline]
    unsafe fn enable() {
        // SAFETY: the caller's promise. A barrier as above.
        unsafe { asm!("sti", options(nostack)) };
    }

    #[inline]
    fn interrupts() -> Interrupts {
        let flags: usize;
        // SAFETY: reads a register by way of the stack. Not pure: another call may read another
        // value.
        unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(nomem, preserves_flags)) };
        if flags & IF != 0 { Interrupts::Enabled } else { Interrupts::Masked }
    }

    fn notify(core: &Core) {
        apic::notify(core.id.load(Ordering::Relaxed) as u32);
    }

    fn acknowledge_alarm() {
        apic::end_of_interrupt();
    }

    fn acknowledge_soft() {
        apic::end_of_interrupt();
    }

    fn is_spurious(trap: Trap) -> bool {
        trap == Trap::Interrupt(SPURIOUS_VECTOR.into())
    }

    /// The processor may have pushed to the stack for an interrupt, whose handler then was not
    /// called: acknowledges it here. The code that goes on finds out what the interrupt may have
    /// been for.
    fn after_overflow() {
        apic::end_all_interrupts();
        Core::here().is_notified.swap(0, Ordering::AcqRel);
    }

    /// An NMI may have come between `sti` and `hlt`. An interrupt that `sti` held off comes when
    /// the NMI's handler returns, and `hlt` would wait for another: so it is skipped.
    fn before_return(context: &mut TrapContext) {
        if context.rip == (&raw const hal_shim_hlt).addr() {
            context.rip = (&raw const hal_shim_halted).addr();
        }
    }
}

/// Enables interrupts, waits for one, and masks them again.
///
/// # Safety
///
/// Interrupts are masked, and their handlers may run.
#[unsafe(naked)]
unsafe extern "C" fn enable_and_halt() {
    naked_asm!(
        // Global, as the handler may be in another codegen unit.
        ".globl hal_shim_hlt, hal_shim_halted",
        "sti",
        "hal_shim_hlt:",
        "hlt",
        "hal_shim_halted:",
        "cli",
        "ret",
    )
}

// SAFETY: labels in `enable_and_halt`, of which only the addresses are taken.
unsafe extern "C" {
    safe static hal_shim_hlt: [u8; 0];
    safe static hal_shim_halted: [u8; 0];
}
