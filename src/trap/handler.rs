//! The kernel's handler of traps.
//!
//! `C` is the `TrapContext` of the architecture, which is known further up.

use core::sync::atomic::{AtomicPtr, Ordering};

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the handler for the traps of all cores.
pub(crate) fn set_handler<C>(handler: fn(&mut C)) {
    // Release: the handler sees what the caller of this function has prepared for it.
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Calls the kernel's handler. An architecture's trap entry calls this for a trap in kernel mode.
pub(crate) extern "C" fn dispatch<C>(context: &mut C) {
    // Acquire pairs with the release in `set_handler`.
    let handler = HANDLER.load(Ordering::Acquire);
    // SAFETY: traps lead here only after `install_trap_entry` has called `set_handler`, and no
    // other code writes `HANDLER`. `C` is the architecture's `TrapContext` in both calls.
    let handler = unsafe { core::mem::transmute::<*mut (), fn(&mut C)>(handler) };
    handler(context);
}
