//! The registers that the platform needs: interrupts, the timer and the clock.

use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use riscv::register::{sie, sip, time};
use sbi_rt::HartMask;
use trapline::platform::Interrupts;

use crate::bare::{Core, Processor};

/// Ticks of the clock in a second.
static FREQUENCY: AtomicU64 = AtomicU64::new(1);
static HAS_SSTC: AtomicBool = AtomicBool::new(false);
/// Nanoseconds in a tick, if that is a whole number; else 0.
static TICK: AtomicU64 = AtomicU64::new(0);
const NANOSECONDS: u64 = 1_000_000_000;

/// The time of a number of ticks, rounded down.
#[inline]
fn to_nanoseconds(ticks: u64) -> u64 {
    match TICK.load(Ordering::Relaxed) {
        0 => {
            let frequency = FREQUENCY.load(Ordering::Relaxed);
            ticks / frequency * NANOSECONDS + ticks % frequency * NANOSECONDS / frequency
        }
        tick => ticks * tick,
    }
}

/// The first tick that isn't before a time.
#[inline]
fn to_ticks(at: u64) -> u64 {
    match TICK.load(Ordering::Relaxed) {
        0 => {
            let frequency = FREQUENCY.load(Ordering::Relaxed);
            at / NANOSECONDS * frequency + (at % NANOSECONDS * frequency).div_ceil(NANOSECONDS)
        }
        tick => at.div_ceil(tick),
    }
}

/// Sets the clock's frequency, and whether the harts have the extension sstc. Called once, by core
/// 0, before anything asks for the time.
pub(super) fn set_clock(frequency: u64, has_sstc: bool) {
    let frequency = frequency.max(1);
    FREQUENCY.store(frequency, Ordering::Relaxed);
    let is_whole = NANOSECONDS.is_multiple_of(frequency);
    TICK.store(if is_whole { NANOSECONDS / frequency } else { 0 }, Ordering::Relaxed);
    HAS_SSTC.store(has_sstc, Ordering::Relaxed);
}

/// `sstatus.SIE`: interrupts are enabled.
const SIE: usize = 1 << 1;

/// A hart in S-mode.
pub(crate) struct Cpu;

// SAFETY:
// - this_core: `tp`, which the boot code sets.
// - now: the time CSR, the same on all harts.
// - set_alarm: the S-mode timer, by sstc or by the firmware.
// - park: `wfi` ends for an interrupt that is pending and enabled in `sie`, whatever SIE says.
// - Masking is SIE, which the processor clears for a trap.
// - notify: the supervisor software interrupt; for another hart, the firmware causes it.
unsafe impl Processor for Cpu {
    const SOFT: usize = 1;
    const ENABLED: usize = SIE;

    #[inline]
    fn this_core() -> *const () {
        let core;
        // SAFETY: reads a register. `pure`: its value stays the same while the stack stays on its
        // core, and code that can tell cores apart runs on one core only.
        unsafe { asm!("mv {}, tp", out(reg) core, options(pure, nomem, nostack, preserves_flags)) };
        core
    }

    #[inline]
    fn now() -> u64 {
        to_nanoseconds(time::read64())
    }

    fn set_alarm(at: u64) {
        if at == u64::MAX {
            // SAFETY: disables an interrupt, so no new one comes.
            unsafe { sie::clear_stimer() };
            return;
        }
        // Rounded up: when it fires, `now` is not before `at`.
        let ticks = to_ticks(at);
        if HAS_SSTC.load(Ordering::Relaxed) {
            // SAFETY: this is stimecmp, which the harts have.
            unsafe { asm!("csrw 0x14d, {}", in(reg) ticks, options(nostack)) };
        } else {
            sbi_rt::set_timer(ticks);
        }
        // SAFETY: the trap entry, which handles it, was installed before.
        unsafe { sie::set_stimer() };
    }

    #[inline]
    fn park() {
        riscv::asm::wfi();
    }

    #[inline]
    fn mask() -> usize {
        let status: usize;
        // SAFETY: masking interrupts affects no memory. Without `nomem`, it is a barrier for the
        // compiler.
        unsafe { asm!("csrrci {}, sstatus, {}", out(reg) status, const SIE, options(nostack)) };
        status & SIE
    }

    #[inline]
    unsafe fn restore(state: usize) {
        // SAFETY: the caller's promise. A barrier as above.
        unsafe { asm!("csrs sstatus, {}", in(reg) state, options(nostack)) };
    }

    #[inline]
    unsafe fn enable() {
        // SAFETY: the caller's promise. A barrier as above.
        unsafe { asm!("csrsi sstatus, {}", const SIE, options(nostack)) };
    }

    #[inline]
    fn interrupts() -> Interrupts {
        let status: usize;
        // SAFETY: reads a register. Not pure: another call may read another value.
        unsafe {
            asm!("csrr {}, sstatus", out(reg) status, options(nomem, nostack, preserves_flags));
        }
        if status & SIE != 0 { Interrupts::Enabled } else { Interrupts::Masked }
    }

    fn notify(core: &Core) {
        if core::ptr::eq(core, Core::here()) {
            // SAFETY: the trap entry, which handles it, was installed before.
            unsafe { sip::set_ssoft() };
        } else {
            sbi_rt::send_ipi(HartMask::from_mask_base(1, core.id.load(Ordering::Relaxed)));
        }
    }

    fn acknowledge_alarm() {
        // SAFETY: disables an interrupt; `set_alarm` enables the next one.
        unsafe { sie::clear_stimer() };
    }

    fn acknowledge_soft() {
        // SAFETY: only the trap handler, which calls this, waits for the interrupt.
        unsafe { sip::clear_ssoft() };
    }
}
