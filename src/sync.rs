//! The one place that knows `cfg(loom)`: the atomics and cells that cores share.
//!
//! What only one core and its own interrupts touch uses `core::sync::atomic` directly, with relaxed
//! ordering: no other core is there to be modelled.

#[cfg(not(loom))]
pub(crate) use alloc::alloc::{alloc, dealloc};
#[cfg(not(loom))]
pub(crate) use core::sync::atomic;

/// Whether the memory of finished tasks is kept for new ones. Not under loom, which watches over
/// allocations.
pub(crate) const KEEPS_TASK_MEMORY: bool = cfg!(not(loom));

/// loom's, which finds what was leaked or freed twice.
#[cfg(loom)]
pub(crate) use loom::alloc::{alloc, dealloc};

#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicPtr, Ordering, fence};

    /// loom's, whose end counts as an access: all others must happen before it is freed.
    #[derive(Debug)]
    pub(crate) struct AtomicUsize(loom::sync::atomic::AtomicUsize);

    impl AtomicUsize {
        pub(crate) fn new(value: usize) -> Self {
            Self(loom::sync::atomic::AtomicUsize::new(value))
        }
    }

    impl core::ops::Deref for AtomicUsize {
        type Target = loom::sync::atomic::AtomicUsize;

        fn deref(&self) -> &Self::Target {
            &self.0
        }
    }

    impl Drop for AtomicUsize {
        fn drop(&mut self) {
            if !loom::thread::panicking() {
                self.0.with_mut(|_| ());
            }
        }
    }
}

/// loom's cell, whose end counts as a write: all other accesses must happen before it is freed.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(loom::cell::UnsafeCell<T>);

#[cfg(loom)]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::cell::UnsafeCell::new(value))
    }

    #[track_caller]
    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        self.0.with(f)
    }

    #[track_caller]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        self.0.with_mut(f)
    }
}

#[cfg(loom)]
impl<T> Drop for UnsafeCell<T> {
    fn drop(&mut self) {
        if !loom::thread::panicking() {
            self.0.with_mut(|_| ());
        }
    }
}

/// `core`'s cell with loom's interface, so that loom sees each access.
#[cfg(not(loom))]
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// `const fn`, except under loom, whose atomics cannot be made in constants.
macro_rules! const_fn {
    ($(#[$attribute:meta])* $visibility:vis fn $($rest:tt)*) => {
        $(#[$attribute])*
        #[cfg(not(loom))]
        $visibility const fn $($rest)*
        $(#[$attribute])*
        #[cfg(loom)]
        $visibility fn $($rest)*
    };
}
pub(crate) use const_fn;
