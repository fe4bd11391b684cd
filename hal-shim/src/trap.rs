//! Traps that this crate does not handle itself: faults, breakpoints, NMIs.

use core::sync::atomic::{AtomicPtr, Ordering};

pub use trapline::arch::TrapContext;

/// A handler of such traps. It returns whether it has handled the trap.
pub type FaultHandler = fn(&mut TrapContext) -> bool;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the function that is called, on all cores, for a trap in kernel mode and for an interrupt
/// in user mode that is neither the alarm nor the software interrupt. It is called on the
/// interrupted stack (or, if that has overflowed, on the emergency stack), with interrupts masked.
/// If it returns `false`, the machine ends with a message, as it does without a handler.
pub fn on_fault(f: FaultHandler) {
    // Release: the handler sees what the caller prepared for it.
    HANDLER.store(f as *mut (), Ordering::Release);
}

/// Removes the handler of [`on_fault`].
pub fn reset() {
    HANDLER.store(core::ptr::null_mut(), Ordering::Release);
}

/// Calls the handler, if there is one. Called by the trap handler of `bare`.
pub(crate) fn handle(context: &mut TrapContext) -> bool {
    let handler = HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: only `on_fault` writes HANDLER, and it stores a `FaultHandler`.
    let handler = unsafe { core::mem::transmute::<*mut (), FaultHandler>(handler) };
    handler(context)
}
