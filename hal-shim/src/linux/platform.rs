//! The platform that Trapline runs on, by means of Linux.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};

#[cfg(target_arch = "x86_64")]
use trapline::arch::Native;
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, PanicPayload, Platform};
use trapline::stackful::StackfulBackend;

use super::cores::{self, Core};
use super::task_state::TaskState;
use super::{fail, faults};

/// The hosted platform.
pub(crate) struct Machine;

trapline::bind_platform!(static MACHINE: Machine = Machine);

/// The calling core. Ends the process in a thread that is no core.
fn here() -> &'static Core {
    cores::here().unwrap_or_else(|| {
        fail(
            "a thread that is no core cannot enter a runtime or block: \
             use `hal_shim::start_core` or `isolated`",
        )
    })
}

/// The slot of a thread that is no core. (Out of line, so that in a thread that is a core, the
/// address of the slot does not depend on a selection between two addresses.)
#[cold]
#[inline(never)]
fn no_core() -> &'static CoreSlot {
    thread_local! {
        static NO_CORE: CoreSlot = const { CoreSlot::new() };
    }
    // SAFETY: it has no destructor, so it lives as long as the thread. No reference lives longer:
    // only code that waits for a wake would keep one, and `here` keeps it from waiting.
    NO_CORE.with(|slot| unsafe { &*ptr::from_ref(slot) })
}

/// The least size of a guard in bytes.
const GUARD: usize = 64 * 1024;

/// The size of the mapping for a stack of `size` bytes with its guard, and the size of the guard.
fn extent(size: usize) -> Option<(usize, usize)> {
    // SAFETY: sysconf has no conditions.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    let guard = GUARD.checked_next_multiple_of(page)?;
    Some((size.checked_next_multiple_of(page)?.checked_add(guard)?, guard))
}

/// The addresses of the guard below a stack of `allocate_stack`.
pub(super) fn guard_below(stack: &Range<usize>) -> Range<usize> {
    let total = extent(stack.len()).map_or(0, |(total, _)| total);
    stack.end.saturating_sub(total)..stack.start
}

/// The bytes that [`StackfulBackend::MIN_STACK`] counts for each signal's frame.
#[cfg(target_arch = "x86_64")]
const COUNTED: usize = Native::SIGNAL;
#[cfg(not(target_arch = "x86_64"))]
const COUNTED: usize = 0;

// SAFETY: the trait's list, in its order.
// - slot, core: of a static table, by a thread-local number. A thread that is no core has a slot of
//   its own, in which no runtime gets to wait for anything: `here` ends the process.
// - now: CLOCK_MONOTONIC, the same on all processors.
// - The alarm is a timer whose signal goes to the thread that is the core; its handler calls
//   `on_timer`.
// - Masking, park and wake: see the head of `cores.rs`.
// - in_interrupt: precise for our handlers; the program's own handlers use `in_signal_handler`, as
//   the program that wrote `entry!(unsafe …)` promises.
// - interrupts: the flag of `cores.rs`, which is set while signals are handled.
// - may_preempt: not while the thread panics, and not in the program's own signal handlers.
// - may_end: not while the thread panics: std counts it as panicking until the panic was caught. A
//   signal handler of the program's own forbids preemption, but not this: what matters is the code
//   that it has interrupted.
// - allocate_stack: anonymous memory of its own.
// - Thread-local data in stackful tasks: promised by the program that wrote `entry!(unsafe …)`.
// - Our handlers unblock others only when they end or leave their stack.
unsafe impl Platform for Machine {
    #[cfg(not(address_sanitizer))]
    type Backend = trapline::arch::Native;
    #[cfg(address_sanitizer)]
    type Backend = super::fibers::Announced;

    #[inline]
    fn slot(&self) -> &'static CoreSlot {
        match cores::here() {
            Some(core) => &core.slot,
            None => no_core(),
        }
    }

    fn core(&self) -> usize {
        cores::here().map_or(usize::MAX, Core::number)
    }

    fn now(&self) -> u64 {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is writable, and this clock exists on every Linux.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn set_alarm(&self, at: u64) {
        here().set_alarm((at != u64::MAX).then_some(at));
    }

    fn park(&self) {
        here().park();
    }

    fn wake(&self, core: usize) {
        if let Some(core) = cores::at(core) {
            core.wake();
        }
    }

    fn mask_interrupts(&self) -> usize {
        cores::here().is_some_and(Core::mask).into()
    }

    unsafe fn restore_interrupts(&self, was_masked: usize) {
        if was_masked == 0
            && let Some(core) = cores::here()
        {
            core.unmask();
        }
    }

    unsafe fn enable_interrupts(&self) {
        here().unmask_after_leaving_handler();
    }

    #[inline]
    fn interrupts(&self) -> Interrupts {
        match cores::here() {
            Some(core) if core.is_masked() => Interrupts::Masked,
            _ => Interrupts::Enabled,
        }
    }

    fn in_interrupt(&self) -> InInterrupt {
        match cores::here() {
            Some(core) if core.is_in_handler() => InInterrupt::Yes,
            Some(_) => InInterrupt::No,
            None => InInterrupt::Unknown,
        }
    }

    fn may_preempt(&self) -> bool {
        !std::thread::panicking() && cores::here().is_some_and(Core::may_preempt)
    }

    fn preserving(&self, leave: &mut dyn FnMut()) {
        TaskState::around(leave);
    }

    fn may_end(&self) -> bool {
        !std::thread::panicking()
    }

    fn catch_unwind(&self, body: &mut dyn FnMut()) -> Result<(), PanicPayload> {
        catch_unwind(AssertUnwindSafe(body))
    }

    fn min_stack(&self) -> usize {
        // At most two signal frames are on a stack: see the head of `cores.rs`.
        Self::Backend::MIN_STACK + 2 * faults::signal_frame().saturating_sub(COUNTED)
    }

    fn allocate_stack(&self, size: usize) -> Option<NonNull<u8>> {
        let (total, guard) = extent(size)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever there is room.
        let memory = unsafe { libc::mmap(ptr::null_mut(), total, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return None;
        }
        // Stacks grow downwards.
        // SAFETY: these are the mapping's first pages, and no code uses them yet.
        if unsafe { libc::mprotect(memory, guard, libc::PROT_NONE) } != 0 {
            // SAFETY: mapped above with this size, and no code uses it.
            unsafe { libc::munmap(memory, total) };
            return None;
        }
        // The stack ends where the mapping does.
        let base = NonNull::new(memory.cast::<u8>().wrapping_byte_add(total - size))?;
        #[cfg(address_sanitizer)]
        super::fibers::allocated(base, size);
        Some(base)
    }

    unsafe fn free_stack(&self, base: NonNull<u8>, size: usize) {
        let Some((total, _)) = extent(size) else { return };
        #[cfg(address_sanitizer)]
        super::fibers::freed(base, size);
        // SAFETY: the caller gives back a stack of `allocate_stack`, which begins at this offset in
        // its mapping, and is no longer used.
        unsafe { libc::munmap(base.as_ptr().byte_sub(total - size).cast(), total) };
    }
}
