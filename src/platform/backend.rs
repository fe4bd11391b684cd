//! The interface between the runtime and an architecture's stacks.

use core::ptr::NonNull;

/// The code that a prepared stack starts in. It never returns: it switches away for ever.
pub type StackMain = unsafe extern "C" fn(argument: *mut ()) -> !;

/// The context of code that is off the core: a stack pointer. Everything else that the code needs
/// to continue has been saved on that stack.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context(pub *mut u8);

/// The part of an architecture that the runtime needs: prepare a stack, and switch between two
/// stacks.
///
/// The crate has one for each architecture that it supports, in [`arch`](crate::arch). A kernel
/// that has its own names it in [`Platform::Backend`](crate::platform::Platform::Backend).
///
/// Preemption needs no third function. The trap entry saves the interrupted registers on the
/// interrupted stack, and the handler calls [`on_timer`](crate::preempt::on_timer). That makes the
/// same `switch` as a task that leaves by itself.
///
/// # Safety
///
/// - `prepare` writes only to the `MIN_STACK` bytes below `top`.
/// - `switch` saves everything that the platform's calling convention preserves over a call
///   (including floating-point registers, where it preserves them). It reads and writes nothing but
///   the two stacks and `save`.
/// - `switch` leaves the per-core register (`tp`, `gs`, `$r21`) as it is, and neither masks nor
///   enables interrupts.
/// - `switch` is a full compiler barrier.
pub unsafe trait StackfulBackend {
    /// The minimum size of a stack in bytes: a prepared context, one trap context, and the frames
    /// of the handler that leaves the core.
    const MIN_STACK: usize;

    /// Prepares the stack that ends at `top`. The first switch to the returned context calls
    /// `main(argument)` on that stack.
    ///
    /// # Safety
    ///
    /// `top` is aligned to 16. At least `MIN_STACK` writable bytes lie below it, and no other code
    /// uses them.
    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context;

    /// Leaves the current context, stores it in `*save`, and continues in `to`. Returns when
    /// another `switch` goes to the stored context.
    ///
    /// # Safety
    ///
    /// `save` is valid for a write until the switch is over. `to` was prepared or saved on this
    /// core, its stack is alive, and it is switched to once for each time that it was saved.
    unsafe fn switch(save: *mut Context, to: Context);
}

impl Context {
    /// No context: the value of a place whose code is on the core.
    pub(crate) const NONE: Self = Self(core::ptr::null_mut());
}
