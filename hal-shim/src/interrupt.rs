//! The software interrupt, which a program raises itself, and the masking of interrupts.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, Ordering};

use trapline::platform::Platform as _;

use crate::machine::{self, Machine};

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the function that each core's software interrupt calls, in interrupt context, before it
/// ends with [`preempt::on_interrupt`](trapline::preempt::on_interrupt).
pub fn on_soft(f: fn()) {
    // Release: the handler sees what the caller prepared for it.
    HANDLER.store(f as *mut (), Ordering::Release);
}

/// Raises the software interrupt on the calling core: at once, or as soon as interrupts are no
/// longer masked. Callable in any context. On Linux, it has no effect in a thread that is no core.
pub fn raise() {
    machine::raise()
}

/// Calls `f` with this core's interrupts masked. Interrupts that come meanwhile are taken at its
/// end.
#[inline]
pub fn masked<R>(f: impl FnOnce() -> R) -> R {
    let _masked = mask();
    f()
}

/// Masks this core's interrupts until the returned value is dropped. Values must be dropped in
/// reverse order.
#[inline]
pub fn mask() -> Masked {
    Masked { state: Machine.mask_interrupts(), not_send: PhantomData }
}

/// Interrupts are masked while it lives.
#[must_use = "interrupts are masked for as long as it lives"]
pub struct Masked {
    state: usize,
    /// The state is this core's.
    not_send: PhantomData<*mut ()>,
}

impl Drop for Masked {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the state is from the call in `mask`.
        unsafe { Machine.restore_interrupts(self.state) };
    }
}

/// Calls `f`, in a signal handler of the program's own, as interrupt context for Trapline.
#[cfg(target_os = "linux")]
pub fn in_signal_handler(f: impl FnOnce()) {
    machine::in_signal_handler(f);
}

/// Calls `f` with interrupts enabled in an interrupt handler, so that interrupts nest. To be called
/// in the function that [`on_soft`] was given.
#[cfg(target_os = "none")]
pub fn nested<R>(f: impl FnOnce() -> R) -> R {
    use crate::bare::Processor as _;
    let _masked = Machine.mask_interrupts();
    // SAFETY: called in a handler, and dropped below, with interrupts masked; `on_trap` ends in
    // `on_interrupt`.
    let guard = unsafe { trapline::preempt::InterruptGuard::new() };
    // SAFETY: interrupts are masked only for the handler, which allows others now.
    unsafe { Machine.restore_interrupts(machine::Cpu::ENABLED) };
    let result = f();
    let _masked = Machine.mask_interrupts();
    drop(guard);
    result
}

/// Raises an NMI on core number `core`, which comes also while interrupts are masked. The function
/// of [`trap::on_fault`](crate::trap::on_fault) handles it, as `Trap::Other(2)`.
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub fn raise_nmi(core: usize) {
    machine::raise_nmi(core)
}

/// Calls the function of [`on_soft`], if there is one. Called by the software interrupt's handler.
pub(crate) fn handle() {
    let handler = HANDLER.load(Ordering::Acquire);
    if !handler.is_null() {
        // SAFETY: only `on_soft` writes HANDLER, and it stores a `fn()`.
        let handler = unsafe { core::mem::transmute::<*mut (), fn()>(handler) };
        handler();
    }
}
