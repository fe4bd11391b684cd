//! The registers that the platform needs: interrupts, the timer and the clock.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use trapline::arch::TrapContext;
use trapline::platform::Interrupts;

use super::csr;
use crate::bare::clock::{FRACTION, scale};
use crate::bare::{Core, Processor, fail};

/// The interrupt lines of the core's timer and of IPIs.
pub(super) const TIMER_LINE: usize = 11;
pub(super) const IPI_LINE: usize = 12;

/// Nanoseconds per tick of the clock, and ticks per nanosecond: factors for [`scale`].
static NANOSECONDS_A_TICK: AtomicU64 = AtomicU64::new(0);
static TICKS_A_NANOSECOND: AtomicU64 = AtomicU64::new(0);

/// Finds out how fast the clock is. Called once, by core 0, before anything asks for the time.
pub(super) fn set_clock() {
    const NANOSECONDS: u64 = 1_000_000_000;
    /// The words with the crystal's frequency, and with the ratio of the clock to it: the lower
    /// half of that word multiplies, the upper half divides.
    const CRYSTAL: usize = 4;
    const RATIO: usize = 5;
    let ratio = csr::cpucfg(RATIO);
    let (multiplier, divisor) = ((ratio & 0xffff) as u64, (ratio >> 16 & 0xffff) as u64);
    let frequency = (csr::cpucfg(CRYSTAL) as u64 & 0xffff_ffff) * multiplier / divisor.max(1);
    if frequency == 0 {
        fail(format_args!("the processor does not say how fast its clock is"));
    }
    // The first is rounded down and the second up: when an alarm fires, `now` is not before its
    // time.
    NANOSECONDS_A_TICK.store((NANOSECONDS << FRACTION) / frequency, Ordering::Relaxed);
    TICKS_A_NANOSECOND.store((frequency << FRACTION).div_ceil(NANOSECONDS), Ordering::Relaxed);
}

/// `CRMD.IE`: interrupts are enabled.
const IE: usize = 1 << 2;

/// A processor at privilege level 0.
pub(crate) struct Cpu;

// SAFETY:
// - this_core: `$r21`, which the boot code sets.
// - now: the constant timer, the same on all cores.
// - set_alarm: the core's timer.
// - park: interrupts are enabled in `wait` only. An interrupt that is taken there ends it, even
//   before its `idle`, by `before_return`.
// - Masking is IE, which the processor clears for a trap. `csr::exchange` is a barrier for the
//   compiler.
// - notify: an IPI.
unsafe impl Processor for Cpu {
    const SOFT: usize = IPI_LINE;
    const ENABLED: usize = IE;

    #[inline]
    fn this_core() -> *const () {
        let core;
        // SAFETY: reads a register. `pure`: its value stays the same while the stack stays on its
        // core, and code that can tell cores apart runs on one core only.
        unsafe {
            asm!("move {}, $r21", out(reg) core, options(pure, nomem, nostack, preserves_flags))
        };
        core
    }

    #[inline]
    fn now() -> u64 {
        scale(csr::rdtime(), &NANOSECONDS_A_TICK)
    }

    fn set_alarm(at: u64) {
        /// TCFG: the timer is on.
        const ON: usize = 1 << 0;
        /// TCFG has its ticks in steps of four.
        const STEP: u64 = 4;
        /// The widest that a timer can be.
        const MAX: u64 = (1 << 48) - STEP;
        let config = match at {
            u64::MAX => 0,
            at => {
                // One tick more, since `now` is in the middle of a tick.
                let ticks = scale(at.saturating_sub(Self::now()), &TICKS_A_NANOSECOND) + 1;
                ticks.next_multiple_of(STEP).min(MAX) as usize | ON
            }
        };
        // SAFETY: only this code sets the timer. An interrupt of the earlier setting is void; it is
        // cleared before the timer may fire again.
        unsafe {
            csr::write::<{ csr::TICLR }>(1);
            csr::write::<{ csr::TCFG }>(config);
        }
    }

    fn park() {
        // SAFETY: interrupts are masked, and may be enabled: the caller is no stackful task, so the
        // handler does not preempt it.
        unsafe { wait(IE) };
        Self::mask();
    }

    #[inline]
    fn mask() -> usize {
        // SAFETY: masking interrupts affects no memory.
        unsafe { csr::exchange::<{ csr::CRMD }>(0, IE) & IE }
    }

    #[inline]
    unsafe fn restore(state: usize) {
        // SAFETY: the caller's promise.
        unsafe { csr::exchange::<{ csr::CRMD }>(state, IE) };
    }

    #[inline]
    unsafe fn enable() {
        // SAFETY: the caller's promise.
        unsafe { csr::exchange::<{ csr::CRMD }>(IE, IE) };
    }

    #[inline]
    fn interrupts() -> Interrupts {
        let mode: usize;
        // SAFETY: reads a register. Not pure: another call may read another value.
        unsafe {
            asm!(
                "csrrd {}, {}",
                out(reg) mode,
                const csr::CRMD,
                options(nomem, nostack, preserves_flags),
            );
        }
        if mode & IE != 0 { Interrupts::Enabled } else { Interrupts::Masked }
    }

    fn notify(core: &Core) {
        /// The write ends when the IPI has arrived.
        const BLOCKING: u32 = 1 << 31;
        const CORE_SHIFT: u32 = 16;
        // The device is not memory: only a fence orders the caller's stores before the IPI.
        core::sync::atomic::fence(Ordering::SeqCst);
        // SAFETY: the other core has installed its trap entry, or waits to be started.
        unsafe { csr::iocsr_write(csr::IPI_SEND, (core.number() as u32) << CORE_SHIFT | BLOCKING) };
    }

    fn acknowledge_alarm() {
        // SAFETY: clears an interrupt that is being handled; `set_alarm` sets the next one.
        unsafe { csr::write::<{ csr::TICLR }>(1) };
    }

    fn acknowledge_soft() {
        // SAFETY: only the trap handler, which calls this, waits for the interrupt.
        unsafe { csr::iocsr_write(csr::IPI_CLEAR, 1) };
    }

    /// Code that was interrupted in [`wait`] has waited: it goes on where `wait` was called.
    fn before_return(context: &mut TrapContext) {
        if context.pc().wrapping_sub(wait as *const () as usize) < WAIT && !context.is_user() {
            context.set_pc(context.r[1]);
        }
    }
}

/// Enables interrupts and waits for one.
///
/// The processor leaves `idle` for enabled interrupts only. So after an interrupt between the first
/// two instructions, the `idle` must not be executed: whichever of the three instructions was
/// interrupted, [`before_return`](Cpu::before_return) returns from this function.
///
/// # Safety
///
/// Interrupts are masked, and may be enabled; `enable` is `IE`.
#[unsafe(naked)]
unsafe extern "C" fn wait(enable: usize) {
    naked_asm!("csrxchg $a0, $a0, {crmd}", "idle 0", "ret", crmd = const csr::CRMD)
}

/// The size of [`wait`] in bytes.
const WAIT: usize = 3 * size_of::<u32>();
