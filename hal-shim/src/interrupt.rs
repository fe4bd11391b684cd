//! An interrupt that a program raises itself, to see what its handler may do.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, Ordering};

use trapline::platform::Platform as _;

use crate::machine::{self, Machine};

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets what the software interrupt of every core calls, in interrupt context, before it ends with
/// [`preempt::on_interrupt`](trapline::preempt::on_interrupt).
pub fn on_soft(f: fn()) {
    // Release: what the caller prepared for its handler is there before the handler.
    HANDLER.store(f as *mut (), Ordering::Release);
}

/// Raises the software interrupt on the calling core: at once, or as soon as interrupts are no
/// longer masked. Callable in any context. On Linux, without effect in a thread that is no core.
pub fn raise() {
    machine::raise()
}

/// Calls `f` with this core's interrupts masked: what comes meanwhile is taken right at the end.
#[inline]
pub fn masked<R>(f: impl FnOnce() -> R) -> R {
    let _masked = mask();
    f()
}

/// Masks this core's interrupts until what this returns drops, the latest first.
#[inline]
pub fn mask() -> Masked {
    Masked { state: Machine.mask_interrupts(), not_send: PhantomData }
}

/// Interrupts are masked while it lives.
#[must_use = "interrupts are masked for as long as it lives"]
pub struct Masked {
    state: usize,
    /// They are this core's.
    not_send: PhantomData<*mut ()>,
}

impl Drop for Masked {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the pair of the call in `mask`.
        unsafe { Machine.restore_interrupts(self.state) };
    }
}

/// Calls `f`, in a signal handler of the program's own: for Trapline, that is an interrupt.
#[cfg(target_os = "linux")]
pub fn in_signal_handler(f: impl FnOnce()) {
    machine::in_signal_handler(f);
}

/// Calls `f` with interrupts enabled in the handler of one: what comes meanwhile is taken on top of it.
/// To be called in what [`on_soft`] was given.
#[cfg(target_os = "none")]
pub fn nested<R>(f: impl FnOnce() -> R) -> R {
    use crate::bare::Processor as _;
    let _masked = Machine.mask_interrupts();
    // SAFETY: in a handler; dropped below, with interrupts masked; `on_trap` ends in `on_interrupt`.
    let guard = unsafe { trapline::preempt::InterruptGuard::new() };
    // SAFETY: they are masked, for nothing else than the handler, which is ready for others.
    unsafe { Machine.restore_interrupts(machine::Cpu::ENABLED) };
    let result = f();
    let _masked = Machine.mask_interrupts();
    drop(guard);
    result
}

/// Raises an interrupt on core number `core` that comes also while they are masked. Its handler is
/// [`trap::on_fault`](crate::trap::on_fault)'s, which sees `Trap::Other(2)`.
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub fn raise_nmi(core: usize) {
    machine::raise_nmi(core)
}

/// The machine's handler calls this.
pub(crate) fn handle() {
    let handler = HANDLER.load(Ordering::Acquire);
    if !handler.is_null() {
        // SAFETY: only `on_soft` writes HANDLER, and it stores a `fn()`.
        let handler = unsafe { core::mem::transmute::<*mut (), fn()>(handler) };
        handler();
    }
}
