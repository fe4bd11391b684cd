//! A future's output, or why there is none.

use core::mem::ManuallyDrop;

use crate::task::error::JoinError;

/// A future's output, or the reason why there is none. Unlike a `Result`, it can be given its value
/// in place, without a copy on the stack.
#[repr(C)]
pub(crate) struct Outcome<T> {
    is_value: bool,
    content: Content<T>,
}

/// The content of an [`Outcome`], whose `is_value` says which field is valid.
union Content<T> {
    value: ManuallyDrop<T>,
    error: ManuallyDrop<JoinError>,
}

impl<T> Outcome<T> {
    /// Moves the value that lies at `value` to `this`.
    ///
    /// # Safety
    ///
    /// `this` is valid for writes. `value` points at a value that is the caller's and is not used
    /// again.
    #[inline]
    pub(super) unsafe fn put(this: *mut Self, value: *const T) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*this).is_value).write(true);
            (&raw mut (*this).content.value).cast::<T>().copy_from_nonoverlapping(value, 1);
        }
    }

    /// Writes an error to `this`.
    ///
    /// # Safety
    ///
    /// `this` is valid for writes.
    pub(super) unsafe fn put_error(this: *mut Self, error: JoinError) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*this).is_value).write(false);
            (&raw mut (*this).content.error).cast::<JoinError>().write(error);
        }
    }

    /// Takes the outcome: returns the address of the value, or the error, moved out.
    ///
    /// # Safety
    ///
    /// `this` points at an outcome, which is taken once.
    #[inline]
    pub(crate) unsafe fn take(this: *mut Self) -> Result<*const T, JoinError> {
        // SAFETY: the caller's promise; `is_value` says which field is valid.
        unsafe {
            if (*this).is_value {
                Ok((&raw const (*this).content.value).cast())
            } else {
                Err(ManuallyDrop::take(&mut (*this).content.error))
            }
        }
    }
}
