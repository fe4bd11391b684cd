//! The atomics and cells that cores share, and those that a core shares with its own interrupts.
//! Only this module knows `cfg(loom)` and `cfg(shuttle)`.
//!
//! The types for data that only one core and its own interrupts touch are in [`local`]. Their
//! accesses are always relaxed, and the models have no other core for them. Under loom, each access
//! of either kind is a step, and the models let an interrupt come before any step.

pub(crate) mod lock;

#[cfg(not(loom))]
pub(crate) use alloc::alloc::{alloc, dealloc};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic;
/// shuttle's atomics. At each access, shuttle may let another thread continue. All accesses are
/// sequentially consistent: shuttle finds steps in the wrong order, and loom finds orderings that
/// are too weak.
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic;

/// Whether the memory of finished tasks is kept for new tasks. It is not kept under a tool that
/// checks allocations (loom's models, AddressSanitizer).
pub(crate) const KEEPS_TASK_MEMORY: bool = cfg!(not(any(loom, address_sanitizer)));

/// The types for data that one core and its interrupts share.
#[cfg(not(loom))]
pub(crate) mod local {
    pub(crate) use core::cell::Cell;
    pub(crate) use core::sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, compiler_fence,
    };
}

// The functions that the models provide.
#[cfg(loom)]
unsafe extern "Rust" {
    /// Lets an interrupt come here.
    safe fn __trapline_model_step();
    /// Does the same as `alloc::alloc::alloc`, and finds leaks.
    pub(crate) fn __trapline_model_alloc(layout: core::alloc::Layout) -> *mut u8;
    /// Does the same as `alloc::alloc::dealloc`.
    pub(crate) fn __trapline_model_dealloc(block: *mut u8, layout: core::alloc::Layout);
}

#[cfg(loom)]
pub(crate) use {__trapline_model_alloc as alloc, __trapline_model_dealloc as dealloc};

/// Defines an atomic that wraps the one of the module `inner`. Each access is a step.
#[cfg(loom)]
macro_rules! stepped {
    ([$($constant:tt)?] $name:ident $(<$of:ident>)?: $value:ty) => {
        pub(crate) struct $name $(<$of>)? (inner::$name $(<$of>)?);

        impl $(<$of>)? core::fmt::Debug for $name $(<$of>)? {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.0.fmt(f)
            }
        }

        // Each type gets all functions, whether or not they are used for it.
        #[allow(dead_code)]
        impl $(<$of>)? $name $(<$of>)? {
            pub(crate) $($constant)? fn new(value: $value) -> Self {
                Self(inner::$name::new(value))
            }

            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $value {
                super::__trapline_model_step();
                self.0.load(order)
            }

            #[track_caller]
            pub(crate) fn store(&self, value: $value, order: Ordering) {
                super::__trapline_model_step();
                self.0.store(value, order);
            }

            #[track_caller]
            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                super::__trapline_model_step();
                self.0.swap(value, order)
            }

            #[track_caller]
            pub(crate) fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                super::__trapline_model_step();
                self.0.compare_exchange(from, to, success, failure)
            }

            #[track_caller]
            pub(crate) fn compare_exchange_weak(
                &self,
                from: $value,
                to: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                super::__trapline_model_step();
                self.0.compare_exchange_weak(from, to, success, failure)
            }

            /// Takes two steps or more.
            #[track_caller]
            pub(crate) fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut update: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut found = self.load(failure);
                while let Some(to) = update(found) {
                    match self.compare_exchange_weak(found, to, success, failure) {
                        Ok(before) => return Ok(before),
                        Err(other) => found = other,
                    }
                }
                Err(found)
            }
        }
    };
}

#[cfg(loom)]
pub(crate) mod atomic {
    use loom::sync::atomic as inner;
    pub(crate) use loom::sync::atomic::Ordering;

    stepped!([] AtomicBool: bool);
    stepped!([] AtomicUsize: usize);
    stepped!([] AtomicPtr<T>: *mut T);

    impl AtomicUsize {
        #[track_caller]
        pub(crate) fn fetch_add(&self, value: usize, order: Ordering) -> usize {
            super::__trapline_model_step();
            self.0.fetch_add(value, order)
        }

        #[track_caller]
        pub(crate) fn fetch_sub(&self, value: usize, order: Ordering) -> usize {
            super::__trapline_model_step();
            self.0.fetch_sub(value, order)
        }

        #[track_caller]
        pub(crate) fn fetch_or(&self, value: usize, order: Ordering) -> usize {
            super::__trapline_model_step();
            self.0.fetch_or(value, order)
        }

        #[track_caller]
        pub(crate) fn fetch_and(&self, value: usize, order: Ordering) -> usize {
            super::__trapline_model_step();
            self.0.fetch_and(value, order)
        }
    }

    /// Counts the end of the atomic as an access: all other accesses must happen before the atomic
    /// is freed.
    impl Drop for AtomicUsize {
        fn drop(&mut self) {
            if !loom::thread::panicking() {
                self.0.with_mut(|_| ());
            }
        }
    }
}

/// The types for data that one core and its interrupts share. loom sees only that their accesses
/// are steps.
#[cfg(loom)]
pub(crate) mod local {
    use core::sync::atomic as inner;
    pub(crate) use core::sync::atomic::{Ordering, compiler_fence};

    stepped!([const] AtomicBool: bool);
    stepped!([const] AtomicU64: u64);
    stepped!([const] AtomicUsize: usize);
    stepped!([const] AtomicPtr<T>: *mut T);

    /// A cell of which each access is a step.
    #[derive(Debug)]
    pub(crate) struct Cell<T: Copy>(core::cell::Cell<T>);

    impl<T: Copy> Cell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(core::cell::Cell::new(value))
        }

        pub(crate) fn get(&self) -> T {
            super::__trapline_model_step();
            self.0.get()
        }

        pub(crate) fn set(&self, value: T) {
            super::__trapline_model_step();
            self.0.set(value);
        }

        pub(crate) fn replace(&self, value: T) -> T {
            super::__trapline_model_step();
            self.0.replace(value)
        }
    }
}

/// A cell whose accesses loom checks. Its end counts as a write: all accesses must happen before
/// the cell is freed.
#[cfg(loom)]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T> {
    /// Stands for the value in loom's checks. The address of the value may be read without an
    /// access.
    access: loom::cell::UnsafeCell<()>,
    value: core::cell::UnsafeCell<T>,
}

#[cfg(loom)]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { access: loom::cell::UnsafeCell::new(()), value: core::cell::UnsafeCell::new(value) }
    }

    #[track_caller]
    pub(crate) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        __trapline_model_step();
        self.access.with(|_| f(self.value.get()))
    }

    #[track_caller]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        __trapline_model_step();
        self.access.with_mut(|_| f(self.value.get()))
    }

    /// Returns the address of the value. This is not an access.
    pub(crate) fn address(&self) -> *const T {
        self.value.get()
    }

    /// Makes a cell at `place`, except for its value. Returns the address where the value is to be
    /// written.
    ///
    /// # Safety
    ///
    /// `place` is valid for writes. The cell is used only after its value has been written.
    pub(crate) unsafe fn make_around(place: *mut Self) -> *mut T {
        // SAFETY: the caller promises that `place` is valid for writes.
        unsafe {
            (&raw mut (*place).access).write(loom::cell::UnsafeCell::new(()));
            (&raw mut (*place).value).cast()
        }
    }
}

#[cfg(loom)]
impl<T> Drop for UnsafeCell<T> {
    fn drop(&mut self) {
        if !loom::thread::panicking() {
            self.access.with_mut(|_| ());
        }
    }
}

/// `core`'s cell with loom's interface. (Under loom, loom sees each access.)
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

    /// Returns the address of the value.
    pub(crate) fn address(&self) -> *const T {
        self.0.get()
    }

    /// Makes a cell at `place`, except for its value. Returns the address where the value is to be
    /// written.
    ///
    /// # Safety
    ///
    /// `place` is valid for writes. The cell is used only after its value has been written.
    #[inline(always)]
    pub(crate) unsafe fn make_around(place: *mut Self) -> *mut T {
        // The cell consists of the value only.
        place.cast()
    }
}

/// Defines a `const fn`; under loom, whose atomics cannot be made in constants, a plain `fn`.
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
