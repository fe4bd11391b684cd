//! Calls that take a large value where it lies.

use core::mem::ManuallyDrop;

/// Turns a function that takes a `ManuallyDrop<T>` into one that takes a `T`, without a copy:
/// `undropped(function)(value, other)`.
///
/// Without optimization each by-value call copies its argument once more, and `ManuallyDrop::new`
/// copies it three times. Futures and outputs may be large. The call of the returned function is
/// the one copy.
#[inline(always)]
pub(crate) fn undropped<T, A, R>(function: fn(ManuallyDrop<T>, A) -> R) -> fn(T, A) -> R {
    // SAFETY: `ManuallyDrop` is `repr(transparent)`, so it has the ABI of `T`, and a function that
    // takes a `ManuallyDrop<T>` may be called with a `T`.
    unsafe { core::mem::transmute::<fn(ManuallyDrop<T>, A) -> R, fn(T, A) -> R>(function) }
}

/// Calls a function with the address of a value, which is the function's to drop or to move on:
/// `in_place()(value, |place| …)`. See [`undropped`] for the reason.
#[inline(always)]
pub(crate) fn in_place<T, C, R>() -> fn(T, C) -> R
where
    C: FnOnce(*mut T) -> R,
{
    #[inline(always)]
    fn call<T, C: FnOnce(*mut T) -> R, R>(mut value: ManuallyDrop<T>, code: C) -> R {
        code(&raw mut *value)
    }
    undropped(call::<T, C, R>)
}
