//! What Trapline asks of a kernel, and the handler of all traps.

use core::arch::asm;
use core::mem::offset_of;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use trapline::arch::x86_64::TIMER_VECTOR;
use trapline::arch::{Native, TrapContext, TrapCore};
use trapline::platform::{CoreSlot, InInterrupt, Platform};
use trapline::preempt;
use x86::VirtAddr;
use x86::registers::model_specific::GsBase;

use super::apic::{SOFT_VECTOR, SPURIOUS_VECTOR};
use super::boot::{BOOT_STACK, cores};
use super::{apic, fail, space};
use crate::{heap, interrupt};

/// The machine as a platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// How many cores can be used.
const MAX_CORES: usize = 64;

pub(crate) static CORES: [Core; MAX_CORES] = [const { Core::new() }; MAX_CORES];

/// A core. The base of gs is the address of the own one.
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The trap entry's.
    pub(super) trap: TrapCore,
    /// The address of this, as the base of gs can be used, but not easily read.
    this: AtomicUsize,
    /// The end of the stack that it boots on, which later is its emergency stack; 0 if it has none
    /// yet.
    pub(super) boot_stack_top: AtomicUsize,
    /// The processor's number of it.
    pub(super) apic_id: AtomicU32,
    /// It has come up, and waits for a program or runs one.
    pub(super) is_up: AtomicBool,
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
    /// An IPI is on its way that has not been handled yet.
    is_notified: AtomicBool,
}

// What the trap entry builds upon.
const _: () = assert!(offset_of!(Core, trap) == 0);

impl Core {
    const fn new() -> Self {
        Self {
            trap: TrapCore::new(),
            this: AtomicUsize::new(0),
            boot_stack_top: AtomicUsize::new(0),
            apic_id: AtomicU32::new(0),
            is_up: AtomicBool::new(false),
            program: AtomicPtr::new(core::ptr::null_mut()),
            is_started: AtomicBool::new(false),
            allowance: AtomicUsize::new(heap::UNLIMITED),
            slot: CoreSlot::new(),
            in_interrupt: AtomicBool::new(false),
            is_raised: AtomicBool::new(false),
            is_notified: AtomicBool::new(false),
        }
    }

    /// The core that calls.
    #[inline]
    pub(super) fn here() -> &'static Self {
        let core: *const Self;
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
        // SAFETY: `become_current` comes before all else, and wrote it.
        unsafe { &*core }
    }

    /// Makes this the calling core.
    ///
    /// # Safety
    ///
    /// Called once on each core, before anything asks for it, and with a different one on each.
    pub(super) unsafe fn become_current(&'static self) {
        let address = core::ptr::from_ref(self).expose_provenance();
        self.this.store(address, Ordering::Relaxed);
        GsBase::write(VirtAddr::new_truncate(address as u64));
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
        apic::notify(self.apic_id.load(Ordering::Relaxed));
    }

    /// Raises an interrupt that cannot be masked on core number `core`.
    pub(super) fn raise_nmi(core: usize) {
        if let Some(core) = CORES.get(..cores()).and_then(|cores| cores.get(core)) {
            apic::send(apic::NMI, core.apic_id.load(Ordering::Relaxed));
        }
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
//   one that is pending.
// - wake: the software interrupt, whose trap calls `on_interrupt`. One that has not been handled
//   stands for all that come later; the handler's swap sees what they wrote.
// - in_interrupt: precise, set and cleared by `on_trap`, and by `enable_interrupts` for a handler
//   that has left its stack.
// - may_preempt: always; a panic ends the machine with interrupts masked.
// - Stacks are from the heap, mapped a second time, where the page below is not mapped.
// - There is no other per-core data than this crate's own, which it touches with interrupts masked
//   or by single loads and stores.
// - No handler enables interrupts but by leaving its stack.
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
        // SAFETY: the caller has masked interrupts, which are masked again, and all handlers are there. As
        // they may touch memory, nothing moves across.
        unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
    }

    fn wake(&self, core: usize) {
        let Some(core) = CORES.get(core) else { return };
        // Release: what was written before is seen by the handler.
        if !core.is_notified.swap(true, Ordering::AcqRel) {
            apic::notify(core.apic_id.load(Ordering::Relaxed));
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

const TIMER: usize = TIMER_VECTOR as usize;
const SOFT: usize = SOFT_VECTOR as usize;
const SPURIOUS: usize = SPURIOUS_VECTOR as usize;

/// Handles interrupts, also those of user programs, and all else that is trapped in kernel mode. With
/// interrupts masked.
pub(super) fn on_trap(context: &mut TrapContext) {
    let core = Core::here();
    // It may have interrupted a handler, which then has forbidden to be left.
    let outer = core.in_interrupt.load(Ordering::Relaxed);
    core.in_interrupt.store(true, Ordering::Relaxed);
    match context.cause {
        TIMER => {
            apic::end_of_interrupt();
            // SAFETY: the interrupt is acknowledged, and all that remains is to return.
            unsafe { preempt::on_timer() };
        }
        SOFT => {
            // Before looking who it was for: what comes from here on raises it again.
            apic::end_of_interrupt();
            // Acquire: what was written before a wake is seen by the runtime's look at its inbox.
            core.is_notified.swap(false, Ordering::AcqRel);
            if core.is_raised.swap(false, Ordering::Relaxed) {
                interrupt::handle();
            }
            // SAFETY: as above.
            unsafe { preempt::on_interrupt() };
        }
        // An interrupt that was withdrawn, and isn't acknowledged.
        SPURIOUS => {}
        _ => on_fault(context),
    }
    core.in_interrupt.store(outer, Ordering::Relaxed);
}

/// A fault, an NMI, or the like.
#[cold]
fn on_fault(context: &mut TrapContext) {
    if !crate::trap::handle(context) {
        fail(format_args!(
            "core {}: {}: {:x?} at {:#x}, sp {:#x}",
            Core::here().number(),
            if context.is_overflow() { "a stack has overflowed" } else { "unexpected trap" },
            context.trap(),
            context.pc(),
            context.sp(),
        ));
    }
}
