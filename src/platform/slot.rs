//! The slot of a core, in which the runtime's functions find the runtime that the core is inside
//! of.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::const_fn;
use crate::sync::local::AtomicPtr;

/// A core's place for the pointer to the runtime that the core is inside of.
///
/// A kernel keeps one slot for each core, in its per-core area or in a static array, and hands it
/// out in [`Platform::slot`](crate::platform::Platform::slot). Only Trapline uses its content.
#[derive(Debug)]
pub struct CoreSlot {
    /// A `&'static Runtime`, or null. `Runtime::current` knows the type.
    runtime: AtomicPtr<()>,
    /// A wake has come for a [`block_on`](crate::block_on) that parks this core without a runtime.
    notified: AtomicBool,
    /// The number of the core that was the last to enter such a `block_on`.
    core: AtomicUsize,
}

impl CoreSlot {
    const_fn! {
        /// Makes an empty slot, for a core that is inside of no runtime.
        pub fn new() -> Self {
            Self {
                runtime: AtomicPtr::new(core::ptr::null_mut()),
                notified: AtomicBool::new(false),
                core: AtomicUsize::new(0),
            }
        }
    }

    /// Returns the runtime that this core is inside of, or null. Called on this core only.
    #[inline]
    pub(crate) fn runtime(&self) -> *const () {
        // Relaxed: only the core itself writes its slot, its own interrupts included.
        self.runtime.load(Ordering::Relaxed)
    }

    /// Notes which runtime this core is inside of; null for none. On this core.
    pub(crate) fn set_runtime(&self, runtime: *const ()) {
        self.runtime.store(runtime.cast_mut(), Ordering::Relaxed);
    }

    /// Sets the core number that [`notify`](Self::notify) returns. Called before the slot's waker
    /// is made.
    pub(crate) fn set_core(&self, core: usize) {
        // Relaxed: the waker that reads the number came from this core after this store.
        self.core.store(core, Ordering::Relaxed);
    }

    /// Notes a wake for `block_on`. Returns the number of the core that is to be woken for it;
    /// `None` if `take_notified` has not taken an earlier wake yet. Any context.
    pub(crate) fn notify(&self) -> Option<usize> {
        // Release pairs with the acquire in `take_notified`: what was written before the wake is
        // seen after it.
        let was_notified = self.notified.swap(true, Ordering::Release);
        (!was_notified).then(|| self.core.load(Ordering::Relaxed))
    }

    /// Returns whether the slot was notified since the last call of this function.
    pub(crate) fn take_notified(&self) -> bool {
        // Acquire pairs with the release in `notify`.
        self.notified.swap(false, Ordering::Acquire)
    }
}

impl Default for CoreSlot {
    fn default() -> Self {
        Self::new()
    }
}
