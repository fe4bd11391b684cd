//! Traps that the machine has no answer to: faults, breakpoints, interrupts that cannot be masked.

use core::sync::atomic::{AtomicPtr, Ordering};

pub use trapline::arch::TrapContext;

/// What answers such traps, and says whether it did.
pub type FaultHandler = fn(&mut TrapContext) -> bool;

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets what is called, on all cores, for a trap in kernel mode and for an interrupt in user mode that is
/// neither the alarm nor the software interrupt. It is called on the interrupted stack (or, if that has
/// overflowed, on the emergency stack), with interrupts masked. If it says `false`, the machine ends with
/// a message, as it does without one.
pub fn on_fault(f: FaultHandler) {
    // Release: what the caller prepared for its handler is there before the handler.
    HANDLER.store(f as *mut (), Ordering::Release);
}

/// Takes the handler of [`on_fault`] away.
pub fn reset() {
    HANDLER.store(core::ptr::null_mut(), Ordering::Release);
}

/// The machine's handler calls this.
pub(crate) fn handle(context: &mut TrapContext) -> bool {
    let handler = HANDLER.load(Ordering::Acquire);
    if handler.is_null() {
        return false;
    }
    // SAFETY: only `on_fault` writes HANDLER, and it stores a `FaultHandler`.
    let handler = unsafe { core::mem::transmute::<*mut (), FaultHandler>(handler) };
    handler(context)
}
