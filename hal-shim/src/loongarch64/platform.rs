//! What Trapline asks of a kernel, and the handler of all traps.

use core::arch::{asm, naked_asm};
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use trapline::arch::{Native, TrapContext, TrapCore};
use trapline::platform::{CoreSlot, InInterrupt, Platform};
use trapline::preempt;
use trapline::trap::{Access, Trap};

use super::boot::BOOT_STACK;
use super::{csr, fail, space};
use crate::{heap, interrupt};

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// How many cores can be used.
pub(super) const MAX_CORES: usize = 64;

pub(crate) static CORES: [Core; MAX_CORES] = [const { Core::new() }; MAX_CORES];

/// A core. `$r21` holds the address of the own one.
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The trap entry's.
    pub(super) trap: TrapCore,
    /// The end of the stack that it boots on, which later is its emergency stack; 0 if it has none
    /// yet.
    pub(super) boot_stack_top: AtomicUsize,
    /// The `fn()` that it was started with.
    pub(super) program: AtomicPtr<()>,
    /// From when a program is given to it until that has returned. (Core 0 runs without it.)
    pub(super) is_started: AtomicBool,
    /// The core's own: how many more allocations it is granted.
    pub(super) allowance: AtomicUsize,
    slot: CoreSlot,
    /// The core's own: whether a trap handler runs.
    in_interrupt: AtomicBool,
    /// The core's own: whether the IPI is (also) one that the program raised.
    is_raised: AtomicBool,
    /// 1 if an IPI is on its way that has not been handled yet, else 0. (A word: there is an instruction that
    /// swaps those.)
    pub(super) is_notified: AtomicUsize,
}

impl Core {
    const fn new() -> Self {
        Self {
            trap: TrapCore::new(),
            boot_stack_top: AtomicUsize::new(0),
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
        unsafe {
            asm!("move {}, $r21", out(reg) core, options(pure, nomem, nostack, preserves_flags))
        };
        // SAFETY: from its first instructions on each core has the address of an element of CORES
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

    /// Raises an IPI on the calling core.
    pub(super) fn raise(&self) {
        self.is_raised.store(true, Ordering::Relaxed);
        send_ipi(self.number());
    }
}

/// The interrupts' lines: the core's timer, and IPIs.
pub(super) const TIMER_LINE: usize = 11;
pub(super) const IPI_LINE: usize = 12;

/// Causes an interrupt on `core`. Several may melt into one.
fn send_ipi(core: usize) {
    /// Waits until it has arrived.
    const BLOCKING: u32 = 1 << 31;
    const CORE_SHIFT: u32 = 16;
    // The fence: the device is not memory, so what was stored before must be told to come first.
    core::sync::atomic::fence(Ordering::SeqCst);
    // SAFETY: its handler is there, or the core waits for it to be started.
    unsafe { csr::iocsr_write(csr::IPI_SEND, (core as u32) << CORE_SHIFT | BLOCKING) };
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
    (u128::from(value) * u128::from(factor.load(Ordering::Relaxed)) >> FRACTION) as u64
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

    #[inline]
    fn now(&self) -> u64 {
        scale(csr::rdtime(), &NANOSECONDS_A_TICK)
    }

    fn set_alarm(&self, at: u64) {
        /// TCFG: on. The ticks are in steps of four.
        const ON: usize = 1 << 0;
        const STEP: u64 = 4;
        /// The widest that a timer can be.
        const MOST: u64 = (1 << 48) - STEP;
        let config = match at {
            u64::MAX => 0,
            at => {
                // One more, since `now` is in the middle of a tick.
                let ticks = scale(at.saturating_sub(self.now()), &TICKS_A_NANOSECOND) + 1;
                ticks.next_multiple_of(STEP).min(MOST) as usize | ON
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
        let Some(notified) = CORES.get(core) else { return };
        // Release: what was written before is seen by the handler.
        if notified.is_notified.swap(1, Ordering::AcqRel) == 0 {
            send_ipi(core);
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

/// Enables interrupts and waits for one. The processor leaves `idle` for enabled interrupts only; so one
/// that comes between the two instructions must not be followed by the second: whichever of the three
/// was interrupted, [`on_trap`] goes on where this was called.
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

/// Handles interrupts, also those of user programs, and all else that is trapped in kernel mode. With
/// interrupts masked.
pub(super) fn on_trap(context: &mut TrapContext) {
    let core = Core::here();
    // It may have interrupted a handler, which then has forbidden to be left.
    let outer = core.in_interrupt.load(Ordering::Relaxed);
    core.in_interrupt.store(true, Ordering::Relaxed);
    match context.trap() {
        Trap::Timer => {
            // SAFETY: acknowledges it; `set_alarm` sets the next one.
            unsafe {
                csr::write::<{ csr::TICLR }>(1);
                preempt::on_timer();
            }
        }
        Trap::Interrupt(IPI_LINE) => {
            // SAFETY: acknowledges it, before looking who it was for: what comes from here on
            // raises it again.
            unsafe { csr::iocsr_write(csr::IPI_CLEAR, 1) };
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
    if context.pc().wrapping_sub(wait as *const () as usize) < WAIT && !context.is_user() {
        context.set_pc(context.r[1]);
    }
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
