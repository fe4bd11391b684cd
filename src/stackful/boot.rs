//! From the stack that a core was booted on to one that was allocated.

use core::convert::Infallible;
use core::fmt;

use super::Context;
use crate::platform::bound;

/// Leaves the calling core's boot stack for ever: calls `main` on a stack of at least `size` bytes,
/// which comes from [`Platform::allocate_stack`](crate::platform::Platform::allocate_stack), like those
/// of tasks, with the same guard. Returns only if that fails.
///
/// Called once the allocator works, and before the core enters its runtime. Nothing that lies on the
/// boot stack is dropped; its memory is free for other use once `main` runs, unless there is a pointer
/// to something that is pinned or borrowed there.
///
/// # Errors
///
/// There is no memory, or `size` is too small for the architecture's trap context and handlers.
///
/// # Panics
///
/// On a core that is inside of a runtime: tasks hold pointers to the stack that it was entered on.
pub fn leave_boot_stack(size: usize, main: fn() -> !) -> Result<Infallible, BootStackError> {
    assert!(
        bound::slot().runtime().is_none(),
        "leave_boot_stack was called inside of a runtime: call it before the core enters"
    );
    let least = bound::min_stack();
    let size = size
        .checked_next_multiple_of(16)
        .filter(|&size| size >= least)
        .ok_or(BootStackError::TooSmall { least })?;
    let base = bound::allocate_stack(size).ok_or(BootStackError::OutOfMemory)?;
    let mut left = Context::NONE;
    // SAFETY: the platform gave `size` bytes, a multiple of 16 and aligned so, at least what a prepared
    // context needs. It is entered once. What is left is never entered again, so `left` is only
    // written before this frame is abandoned.
    unsafe {
        let context = Context::prepare(base.add(size), call, main as *mut ());
        Context::switch(&raw mut left, context);
    }
    unreachable!("somebody went back to a boot stack")
}

/// # Safety
///
/// `main` is a `fn() -> !`.
unsafe extern "C" fn call(main: *mut ()) -> ! {
    // SAFETY: the caller's promise.
    let main = unsafe { core::mem::transmute::<*mut (), fn() -> !>(main) };
    main()
}

/// Why a core is still on its boot stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootStackError {
    /// The size that was asked for does not hold a trap context and its handler.
    TooSmall {
        /// The least size in bytes.
        least: usize,
    },
    /// The platform has no memory for it.
    OutOfMemory,
}

impl fmt::Display for BootStackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooSmall { least } => write!(f, "a core's stack needs at least {least} bytes"),
            Self::OutOfMemory => f.write_str("there is no memory for the core's stack"),
        }
    }
}

impl core::error::Error for BootStackError {}
