//! What Trapline asks of a kernel, and the handler of all traps.

use core::arch::{asm, naked_asm};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use trapline::arch::{Native, TrapContext};
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::trap::{Access, Trap};

use super::{csr, space};
use crate::bare::{CORES, Core, fail};

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// The address of the core that calls, which is in `$r21`.
#[inline]
pub(crate) fn this_core() -> *const () {
    let core;
    // SAFETY: reads a register that is the same for as long as a stack stays on its core, which
    // is as long as the code that reads it can tell the difference.
    unsafe { asm!("move {}, $r21", out(reg) core, options(pure, nomem, nostack, preserves_flags)) };
    core
}

/// The interrupts' lines: the core's timer, and IPIs.
pub(super) const TIMER_LINE: usize = 11;
pub(super) const IPI_LINE: usize = 12;

/// Causes an interrupt on `core`. Several may melt into one.
pub(crate) fn notify(core: &Core) {
    /// Waits until it has arrived.
    const BLOCKING: u32 = 1 << 31;
    const CORE_SHIFT: u32 = 16;
    // The fence: the device is not memory, so what was stored before must be told to come first.
    core::sync::atomic::fence(Ordering::SeqCst);
    // SAFETY: its handler is there, or the core waits for it to be started.
    unsafe { csr::iocsr_write(csr::IPI_SEND, (core.number() as u32) << CORE_SHIFT | BLOCKING) };
}

/// Nanoseconds a tick of the clock and ticks a nanosecond, both times 2^[`FRACTION`].
static NANOSECONDS_A_TICK: AtomicU64 = AtomicU64::new(0);
static TICKS_A_NANOSECOND: AtomicU64 = AtomicU64::new(0);
const FRACTION: u32 = 32;

/// Finds out how fast the clock is.
pub(super) fn set_clock() {
    const NANOSECONDS: u64 = 1_000_000_000;
    /// The crystal's frequency; what it is multiplied by, and in the upper half, divided by.
    const CRYSTAL: usize = 4;
    const RATIO: usize = 5;
    let ratio = csr::cpucfg(RATIO);
    let (multiplier, divisor) = ((ratio & 0xffff) as u64, (ratio >> 16 & 0xffff) as u64);
    let frequency = (csr::cpucfg(CRYSTAL) as u64 & 0xffff_ffff) * multiplier / divisor.max(1);
    if frequency == 0 {
        fail(format_args!("the processor does not say how fast its clock is"));
    }
    // The first is rounded down and the second up: when an alarm fires, `now` is not before its time.
    NANOSECONDS_A_TICK.store((NANOSECONDS << FRACTION) / frequency, Ordering::Relaxed);
    TICKS_A_NANOSECOND.store((frequency << FRACTION).div_ceil(NANOSECONDS), Ordering::Relaxed);
}

/// `factor` is times 2^[`FRACTION`].
#[inline]
fn scale(value: u64, factor: &AtomicU64) -> u64 {
    ((u128::from(value) * u128::from(factor.load(Ordering::Relaxed))) >> FRACTION) as u64
}

/// `CRMD.IE`, where `mask_interrupts` finds and `restore_interrupts` leaves it.
pub(crate) const IE: usize = 1 << 2;

// SAFETY: the trait's list, in its order.
// - slot, core: of a static table, by `$r21`.
// - now: the constant timer, the same on all cores, rounded down.
// - The alarm is the core's timer, whose trap `on_trap` acknowledges before it calls `on_timer`.
// - Masking is IE. Nothing else than interrupts calls into Trapline from a trap.
// - park: interrupts are enabled in `wait` only, and one that is taken there ends it, even before its
//   `idle`.
// - wake: an IPI, whose trap calls `on_interrupt`. One that has not been handled stands for all that
//   come later; the handler's swap sees what they wrote.
// - in_interrupt: precise, set and cleared by `on_trap`, and by `enable_interrupts` for a handler
//   that has left its stack.
// - interrupts: IE, which the processor clears for a trap.
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
        scale(csr::rdtime(), &NANOSECONDS_A_TICK)
    }

    fn set_alarm(&self, at: u64) {
        /// TCFG: on. The ticks are in steps of four.
        const ON: usize = 1 << 0;
        const STEP: u64 = 4;
        /// The widest that a timer can be.
        const MAX: u64 = (1 << 48) - STEP;
        let config = match at {
            u64::MAX => 0,
            at => {
                // One more, since `now` is in the middle of a tick.
                let ticks = scale(at.saturating_sub(self.now()), &TICKS_A_NANOSECOND) + 1;
                ticks.next_multiple_of(STEP).min(MAX) as usize | ON
            }
        };
        // SAFETY: the timer is for this. What has fired before is void, and must be before the timer
        // may fire again.
        unsafe {
            csr::write::<{ csr::TICLR }>(1);
            csr::write::<{ csr::TCFG }>(config);
        }
    }

    fn park(&self) {
        // SAFETY: interrupts are masked, and nothing is on the way that they would disturb: the handler
        // preempts nobody, as the caller is no stackful task.
        unsafe { wait(IE) };
        self.mask_interrupts();
    }

    fn wake(&self, core: usize) {
        if let Some(core) = CORES.get(core) {
            core.wake();
        }
    }

    #[inline]
    fn mask_interrupts(&self) -> usize {
        // SAFETY: masking interrupts is no danger to memory.
        unsafe { csr::exchange::<{ csr::CRMD }>(0, IE) & IE }
    }

    #[inline]
    unsafe fn restore_interrupts(&self, state: usize) {
        // SAFETY: the caller promises that they were so before.
        unsafe { csr::exchange::<{ csr::CRMD }>(state, IE) };
    }

    unsafe fn enable_interrupts(&self) {
        Core::here().in_interrupt.store(false, Ordering::Relaxed);
        // SAFETY: the caller promises that this is the time.
        unsafe { csr::exchange::<{ csr::CRMD }>(IE, IE) };
    }

    #[inline]
    fn interrupts(&self) -> Interrupts {
        let mode: usize;
        // SAFETY: reads a register. Not pure: another call may find it otherwise.
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

/// Enables interrupts and waits for one. The processor leaves `idle` for enabled interrupts only; so one
/// that comes between the two instructions must not be followed by the second: whichever of the three
/// was interrupted, [`before_return`] has it go on where this was called.
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

/// The software interrupt is an IPI.
pub(crate) const SOFT: usize = IPI_LINE;

pub(crate) fn acknowledge_alarm() {
    // SAFETY: `set_alarm` sets the next one.
    unsafe { csr::write::<{ csr::TICLR }>(1) };
}

pub(crate) fn acknowledge_soft() {
    // SAFETY: nobody else waits for it.
    unsafe { csr::iocsr_write(csr::IPI_CLEAR, 1) };
}

/// Whether a trap is the machine's own matter: this core's TLB had kept from before that a stack isn't there.
pub(crate) fn answers(trap: Trap) -> bool {
    match trap {
        Trap::PageFault { addr, access: Access::Read | Access::Write } => space::is_mapped(addr),
        _ => false,
    }
}

/// Who was interrupted in [`wait`] has waited.
pub(crate) fn before_return(context: &mut TrapContext) {
    if context.pc().wrapping_sub(wait as *const () as usize) < WAIT && !context.is_user() {
        context.set_pc(context.r[1]);
    }
}

/// Nothing is to be done: the entry finds an overflow before an interrupt is acknowledged, so that still is
/// pending.
pub(crate) fn after_overflow() {}
