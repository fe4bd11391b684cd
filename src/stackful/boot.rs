//! Moving a core from its boot stack to an allocated stack.

use core::convert::Infallible;
use core::fmt;

use crate::platform::backend::Context;
use crate::platform::bound;
use crate::runtime::core::Runtime;

/// Leaves the calling core's boot stack for ever, and calls `main` on a stack of at least `size`
/// bytes. Like the stacks of tasks, that stack comes from
/// [`Platform::allocate_stack`](crate::platform::Platform::allocate_stack), with the same guard.
/// Returns only if that fails.
///
/// Called once the allocator works, and before the core enters its runtime. Nothing that lies on
/// the boot stack is dropped. The memory of the boot stack is free for other use once `main` runs,
/// unless there is a pointer to something that is pinned or borrowed on that stack.
///
/// # Errors
///
/// There is no memory, or `size` is too small for the architecture's trap context and handlers.
///
/// # Panics
///
/// On a core that is inside of a runtime: tasks hold pointers to the stack on which the runtime was
/// entered.
pub fn leave_boot_stack(size: usize, main: fn() -> !) -> Result<Infallible, BootStackError> {
    assert!(
        Runtime::current().is_none(),
        "leave_boot_stack was called inside of a runtime: call it before the core enters"
    );
    let least = bound::min_stack();
    let size = size
        .checked_next_multiple_of(16)
        .filter(|&size| size >= least)
        .ok_or(BootStackError::TooSmall { least })?;
    let base = bound::allocate_stack(size).ok_or(BootStackError::OutOfMemory)?;
    let mut left = Context::NONE;
    // SAFETY: the platform gave `size` bytes, aligned to 16. `size` is a multiple of 16, and is
    // enough for a prepared context. That context is entered once. The context in `left` is never
    // entered, so `left` is only written before this frame is abandoned.
    unsafe {
        let context = Context::prepare(base.add(size), call, main as *mut ());
        Context::switch(&raw mut left, context);
    }
    unreachable!("a boot stack that had been left was entered")
}

/// Calls `main`. This is the first code on the new stack.
///
/// # Safety
///
/// `main` is a `fn() -> !`.
unsafe extern "C" fn call(main: *mut ()) -> ! {
    // SAFETY: the caller's promise.
    let main = unsafe { core::mem::transmute::<*mut (), fn() -> !>(main) };
    main()
}

/// The reason for which a core is still on its boot stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootStackError {
    /// The requested size is too small for a trap context and its handler.
    TooSmall {
        /// The minimum size in bytes.
        least: usize,
    },
    /// The platform has no memory for the stack.
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
