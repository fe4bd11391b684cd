//! A spin lock, which leaves it to its users that its holder is not preempted.

use core::cell::UnsafeCell;
use core::fmt;
use core::ops::{Deref, DerefMut};

use crate::sync::local::{AtomicUsize, Ordering};

/// A spin lock for what the runtimes share. Its holder is not preempted, and no interrupt takes it.
pub(crate) struct SpinLock<T> {
    /// 0 or 1. It is a word, since not all architectures can swap bytes.
    locked: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets one holder at a time access the value, and moves that access from core to
// core, for which `T: Send` is required.
unsafe impl<T: Send> Sync for SpinLock<T> {}

impl<T> SpinLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { locked: AtomicUsize::new(0), value: UnsafeCell::new(value) }
    }

    /// # Safety
    ///
    /// The caller is in task context with preemption disabled, until it has dropped the result.
    #[inline]
    pub(crate) unsafe fn lock(&self) -> Locked<'_, T> {
        self.acquire();
        Locked { lock: self }
    }

    #[inline]
    fn acquire(&self) {
        // Acquire pairs with the release in `Locked::drop`.
        while self.locked.swap(1, Ordering::Acquire) != 0 {
            while self.locked.load(Ordering::Relaxed) != 0 {
                core::hint::spin_loop();
            }
        }
    }
}

impl<T> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpinLock").field("locked", &self.locked).finish_non_exhaustive()
    }
}

/// The right to access the value of a [`SpinLock`], whose drop releases the lock.
pub(crate) struct Locked<'a, T> {
    lock: &'a SpinLock<T>,
}

impl<T> Deref for Locked<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `SpinLock::acquire`.
        self.lock.locked.store(0, Ordering::Release);
    }
}
