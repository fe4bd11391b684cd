//! The seam between the runtime and an architecture's stacks.

use core::ptr::NonNull;

use crate::platform::bound;

/// The code that a prepared stack starts in. It never returns: it switches away for good.
pub type StackMain = unsafe extern "C" fn(argument: *mut ()) -> !;

/// Code that is off the core: the stack pointer of a stack on which everything else that it needs
/// to go on has been saved.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context(pub *mut u8);

/// What the runtime asks of an architecture: prepare a stack, and switch between two.
///
/// The crate brings one for each architecture that it knows, in [`arch`](crate::arch). A kernel
/// that has its own names it in [`Platform::Backend`](crate::platform::Platform::Backend).
///
/// A preempted task needs no third function: the trap entry saves the interrupted registers on the
/// interrupted stack, the handler calls [`on_timer`](crate::preempt::on_timer), and that makes the
/// same `switch` that a task makes which leaves by itself.
///
/// # Safety
///
/// - `prepare` writes only to the `MIN_STACK` bytes below `top`.
/// - `switch` saves all that the platform's calling convention wants preserved over a call (also
///   floating-point registers, where it has them), and reads and writes nothing but the two stacks
///   and `save`.
/// - `switch` leaves the per-core register (`tp`, `gs`, `$r21`) as it is, and neither masks nor
///   enables interrupts.
/// - It is a full compiler barrier.
pub unsafe trait StackfulBackend {
    /// The least size of a stack in bytes: a prepared context, one trap context, and the frames of
    /// the handler that leaves the core.
    const MIN_STACK: usize;

    /// Prepares the stack that ends at `top`: the first switch to the returned context calls
    /// `main(argument)` on it.
    ///
    /// # Safety
    ///
    /// `top` is aligned to 16 and at least `MIN_STACK` writable bytes lie below it, which no other
    /// code uses.
    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context;

    /// Leaves the present context, storing it in `*save`, and goes on in `to`. Returns when another
    /// `switch` goes to what was stored.
    ///
    /// # Safety
    ///
    /// `save` is valid for a write until the switch is over. `to` was prepared or saved on this
    /// core, its stack is alive, and it is switched to once for each time that it was saved.
    unsafe fn switch(save: *mut Context, to: Context);
}

impl Context {
    /// No context: what a place holds while its code is on the core.
    pub(crate) const NONE: Self = Self(core::ptr::null_mut());

    /// # Safety
    ///
    /// As [`StackfulBackend::prepare`].
    pub(crate) unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { bound::prepare(top, main, argument) }
    }

    /// # Safety
    ///
    /// As [`StackfulBackend::switch`].
    pub(crate) unsafe fn switch(save: *mut Self, to: Self) {
        // SAFETY: the caller's promise is the same.
        unsafe { bound::switch(save, to) }
    }
}
