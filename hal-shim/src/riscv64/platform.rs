//! What Trapline asks of a kernel, and the handler of all traps.

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use riscv::register::{sie, sip, time};
use sbi_rt::HartMask;
use trapline::arch::{Native, TrapContext};
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::trap::{Access, Trap};

use super::space;
use crate::bare::{CORES, Core};

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// The address of the core that calls, which is in `tp`.
#[inline]
pub(crate) fn this_core() -> *const () {
    let core;
    // SAFETY: reads a register that is the same for as long as a stack stays on its core, which
    // is as long as the code that reads it can tell the difference.
    unsafe { asm!("mv {}, tp", out(reg) core, options(pure, nomem, nostack, preserves_flags)) };
    core
}

/// Causes a software interrupt on `core`.
pub(crate) fn notify(core: &Core) {
    if core::ptr::eq(core, Core::here()) {
        // SAFETY: its handler is there.
        unsafe { sip::set_ssoft() };
    } else {
        sbi_rt::send_ipi(HartMask::from_mask_base(1, core.id.load(Ordering::Relaxed)));
    }
}

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

pub(super) fn set_clock(frequency: u64, has_sstc: bool) {
    let frequency = frequency.max(1);
    FREQUENCY.store(frequency, Ordering::Relaxed);
    let is_whole = NANOSECONDS.is_multiple_of(frequency);
    TICK.store(if is_whole { NANOSECONDS / frequency } else { 0 }, Ordering::Relaxed);
    HAS_SSTC.store(has_sstc, Ordering::Relaxed);
}

/// `sstatus.SIE`, where `mask_interrupts` finds and `restore_interrupts` leaves it.
pub(crate) const SIE: usize = 1 << 1;

// SAFETY: the trait's list, in its order.
// - slot, core: of a static table, by `tp`.
// - now: the time CSR, the same on all harts, rounded down.
// - The alarm is the S-mode timer, whose trap `on_trap` acknowledges before it calls `on_timer`.
// - Masking is SIE. Nothing else than interrupts calls into Trapline from a trap.
// - park: `wfi` ends for an interrupt that is pending and enabled in `sie`, whatever SIE says.
// - wake: a software interrupt, by the firmware, whose trap calls `on_interrupt`. One that has not
//   been handled stands for all that come later; the handler's swap sees what they wrote.
// - in_interrupt: precise, set and cleared by `on_trap`, and by `enable_interrupts` for a handler
//   that has left its stack.
// - interrupts: SIE, which the processor clears for a trap.
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
        to_nanoseconds(time::read64())
    }

    fn set_alarm(&self, at: u64) {
        if at == u64::MAX {
            // SAFETY: no interrupt comes that the caller doesn't know.
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
        // SAFETY: its handler is there.
        unsafe { sie::set_stimer() };
    }

    fn park(&self) {
        riscv::asm::wfi();
    }

    fn wake(&self, core: usize) {
        if let Some(core) = CORES.get(core) {
            core.wake();
        }
    }

    #[inline]
    fn mask_interrupts(&self) -> usize {
        let status: usize;
        // SAFETY: masking interrupts is no danger to memory. As it may touch memory for all that
        // the compiler knows, nothing moves across it.
        unsafe { asm!("csrrci {}, sstatus, {}", out(reg) status, const SIE, options(nostack)) };
        status & SIE
    }

    #[inline]
    unsafe fn restore_interrupts(&self, state: usize) {
        // SAFETY: the caller promises that they were enabled before. A barrier as above.
        unsafe { asm!("csrs sstatus, {}", in(reg) state, options(nostack)) };
    }

    unsafe fn enable_interrupts(&self) {
        Core::here().in_interrupt.store(false, Ordering::Relaxed);
        // SAFETY: the caller promises that this is the time. A barrier as above.
        unsafe { asm!("csrsi sstatus, {}", const SIE, options(nostack)) };
    }

    #[inline]
    fn interrupts(&self) -> Interrupts {
        let status: usize;
        // SAFETY: reads a register. Not pure: another call may find it otherwise.
        unsafe {
            asm!("csrr {}, sstatus", out(reg) status, options(nomem, nostack, preserves_flags));
        }
        if status & SIE != 0 { Interrupts::Enabled } else { Interrupts::Masked }
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

/// The software interrupt's number.
pub(crate) const SOFT: usize = 1;

pub(crate) fn acknowledge_alarm() {
    // SAFETY: `set_alarm` enables the next one.
    unsafe { sie::clear_stimer() };
}

pub(crate) fn acknowledge_soft() {
    // SAFETY: nobody else waits for it.
    unsafe { sip::clear_ssoft() };
}

/// Whether a trap is the machine's own matter: this core's TLB had kept from before that a stack isn't there.
pub(crate) fn answers(trap: Trap) -> bool {
    match trap {
        Trap::PageFault { addr, access: Access::Read | Access::Write } => space::is_mapped(addr),
        _ => false,
    }
}

/// Nothing is to be done: `wfi` needs no interrupts, so none comes between.
pub(crate) fn before_return(_: &mut TrapContext) {}

/// Nothing is to be done: the entry finds an overflow before an interrupt is acknowledged, so that still is
/// pending.
pub(crate) fn after_overflow() {}
