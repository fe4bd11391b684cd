//! An interrupt that a program raises itself, to see what its handler may do.

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
    struct Restore(usize);
    impl Drop for Restore {
        #[inline]
        fn drop(&mut self) {
            // SAFETY: the pair of the call below.
            unsafe { Machine.restore_interrupts(self.0) };
        }
    }
    let _restore = Restore(Machine.mask_interrupts());
    f()
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
