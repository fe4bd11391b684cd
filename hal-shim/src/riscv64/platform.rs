//! What Trapline asks of a kernel, and the handler of all traps.

use core::arch::asm;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use riscv::register::{sie, sip, time};
use sbi_rt::HartMask;
use trapline::arch::{Native, TrapContext, TrapCore};
use trapline::platform::{CoreSlot, InInterrupt, Platform};
use trapline::preempt;
use trapline::trap::{Access, Trap};

use super::boot::BOOT_STACK;
use super::{fail, space};
use crate::{heap, interrupt};

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// How many harts can be used.
const MAX_CORES: usize = 64;

pub(crate) static CORES: [Core; MAX_CORES] = [const { Core::new() }; MAX_CORES];

/// A core. `tp` holds the address of the own one.
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The trap entry's.
    pub(super) trap: TrapCore,
    /// The end of the stack that it boots on, which later is its emergency stack; 0 if it has none
    /// yet.
    pub(super) boot_stack_top: AtomicUsize,
    /// The firmware's number of it.
    pub(super) hart: AtomicUsize,
    /// The `fn()` that it was started with.
    pub(super) program: AtomicPtr<()>,
    /// From when a program is given to it until that has returned. (Core 0 runs without it.)
    pub(super) is_started: AtomicBool,
    /// The core's own: how many more allocations it is granted.
    pub(super) allowance: AtomicUsize,
    slot: CoreSlot,
    /// The core's own: whether a trap handler runs.
    in_interrupt: AtomicBool,
    /// The core's own: whether the software interrupt is (also) one that the program raised.
    is_raised: AtomicBool,
    /// 1: an IPI is on its way that has not been handled yet. A word, as the hart has no atomics for bytes.
    pub(super) is_notified: AtomicUsize,
}

impl Core {
    const fn new() -> Self {
        Self {
            trap: TrapCore::new(),
            boot_stack_top: AtomicUsize::new(0),
            hart: AtomicUsize::new(0),
            program: AtomicPtr::new(core::ptr::null_mut()),
            is_started: AtomicBool::new(false),
            allowance: AtomicUsize::new(heap::UNLIMITED),
            slot: CoreSlot::new(),
            in_interrupt: AtomicBool::new(false),
            is_raised: AtomicBool::new(false),
            is_notified: AtomicUsize::new(0),
        }
    }

    /// The core that calls.
    #[inline]
    pub(super) fn here() -> &'static Self {
        let core: *const Self;
        // SAFETY: reads a register that is the same for as long as a stack stays on its core, which
        // is as long as the code that reads it can tell the difference.
        unsafe { asm!("mv {}, tp", out(reg) core, options(pure, nomem, nostack, preserves_flags)) };
        // SAFETY: from its first instructions on each hart has the address of an element of CORES
        // there.
        unsafe { &*core }
    }

    pub(super) fn number(&self) -> usize {
        (core::ptr::from_ref(self).addr() - CORES.as_ptr().addr()) / size_of::<Self>()
    }

    pub(super) fn boot_stack(&self) -> Range<usize> {
        let top = self.boot_stack_top.load(Ordering::Relaxed);
        top - BOOT_STACK..top
    }

    /// Raises the software interrupt on the calling core.
    pub(super) fn raise(&self) {
        self.is_raised.store(true, Ordering::Relaxed);
        // SAFETY: its handler is there.
        unsafe { sip::set_ssoft() };
    }
}

/// Ticks of the clock in a second.
static FREQUENCY: AtomicU64 = AtomicU64::new(1);
static HAS_SSTC: AtomicBool = AtomicBool::new(false);
const NANOSECONDS: u64 = 1_000_000_000;

pub(super) fn set_clock(frequency: u64, has_sstc: bool) {
    FREQUENCY.store(frequency.max(1), Ordering::Relaxed);
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
// - may_preempt: always; a panic ends the machine with interrupts masked.
// - Stacks are from the heap, mapped a second time, where the page below is not mapped.
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

    fn now(&self) -> u64 {
        let frequency = FREQUENCY.load(Ordering::Relaxed);
        let ticks = time::read64();
        ticks / frequency * NANOSECONDS + ticks % frequency * NANOSECONDS / frequency
    }

    fn set_alarm(&self, at: u64) {
        if at == u64::MAX {
            // SAFETY: no interrupt comes that the caller doesn't know.
            unsafe { sie::clear_stimer() };
            return;
        }
        // Rounded up: when it fires, `now` is not before `at`.
        let frequency = FREQUENCY.load(Ordering::Relaxed);
        let ticks =
            at / NANOSECONDS * frequency + (at % NANOSECONDS * frequency).div_ceil(NANOSECONDS);
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
        let Some(core) = CORES.get(core) else { return };
        // Release: what was written before is seen by the handler.
        if core.is_notified.swap(1, Ordering::AcqRel) != 0 {
            return;
        }
        if core::ptr::eq(core, Core::here()) {
            // SAFETY: its handler is there.
            unsafe { sip::set_ssoft() };
        } else {
            let hart = core.hart.load(Ordering::Relaxed);
            sbi_rt::send_ipi(HartMask::from_mask_base(1, hart));
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
    fn in_interrupt(&self) -> InInterrupt {
        if Core::here().in_interrupt.load(Ordering::Relaxed) {
            InInterrupt::Yes
        } else {
            InInterrupt::No
        }
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
const SOFT: usize = 1;

/// Handles interrupts, also those of user programs, and all else that is trapped in kernel mode. With
/// interrupts masked.
pub(super) fn on_trap(context: &mut TrapContext) {
    let core = Core::here();
    // It may have interrupted a handler, which then has forbidden to be left.
    let outer = core.in_interrupt.load(Ordering::Relaxed);
    core.in_interrupt.store(true, Ordering::Relaxed);
    match context.trap() {
        Trap::Timer => {
            // SAFETY: acknowledges it; `set_alarm` enables the next one.
            unsafe {
                sie::clear_stimer();
                preempt::on_timer();
            }
        }
        Trap::Interrupt(SOFT) => {
            // SAFETY: acknowledges it, before looking who it was for: what comes from here on
            // raises it again.
            unsafe { sip::clear_ssoft() };
            // Acquire: what was written before a wake is seen by the runtime's look at its inbox.
            core.is_notified.swap(0, Ordering::AcqRel);
            if core.is_raised.load(Ordering::Relaxed) {
                core.is_raised.store(false, Ordering::Relaxed);
                interrupt::handle();
            }
            // SAFETY: the interrupt is acknowledged, and all that remains is to return.
            unsafe { preempt::on_interrupt() };
        }
        other => on_fault(context, other),
    }
    core.in_interrupt.store(outer, Ordering::Relaxed);
}

/// A trap that is no interrupt.
#[cold]
fn on_fault(context: &mut TrapContext, trap: Trap) {
    if let Trap::PageFault { addr, access: Access::Read | Access::Write } = trap
        && space::is_mapped(addr)
    {
        // This core's TLB had kept from before that it isn't.
        return;
    }
    if !crate::trap::handle(context) {
        fail(format_args!(
            "core {}: {}: {trap:x?} at {:#x}, sp {:#x}",
            Core::here().number(),
            if context.is_overflow() { "a stack has overflowed" } else { "unexpected trap" },
            context.pc(),
            context.sp(),
        ));
    }
}
