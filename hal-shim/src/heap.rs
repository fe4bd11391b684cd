//! The global allocator: it counts, and passes calls on to the machine's. A test can make it fail.
//!
//! [`entry!`](crate::entry) installs it; a program without `entry!` installs it by
//! [`heap!`](crate::heap!). Otherwise nothing is counted.

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};

use trapline::preempt::NoPreempt;

use crate::interrupt::masked;
use crate::machine;

/// The type of the allocator that [`heap!`](crate::heap!) installs.
pub type Heap = NoPreempt<Counted>;

/// The allocator.
pub const HEAP: Heap = NoPreempt(Counted);

/// Makes [`HEAP`] the program's global allocator, as [`entry!`](crate::entry) does too. To be used
/// once in a program.
#[macro_export]
macro_rules! heap {
    () => {
        #[global_allocator]
        static __HAL_SHIM_HEAP: $crate::heap::Heap = $crate::heap::HEAP;
    };
}

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static FREES: AtomicUsize = AtomicUsize::new(0);
static BYTES_LIVE: AtomicUsize = AtomicUsize::new(0);

/// The use of the heap by the whole program, on all its cores, since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Allocations that were granted.
    pub allocations: usize,
    /// Allocations that were freed.
    pub frees: usize,
    /// Bytes in allocations that were granted and not freed.
    pub bytes_live: usize,
}

/// Returns the counts. They are exact while no other core and no other thread uses the heap.
pub fn counts() -> Counts {
    Counts {
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
        frees: FREES.load(Ordering::Relaxed),
        bytes_live: BYTES_LIVE.load(Ordering::Relaxed),
    }
}

/// Grants this core `n` more allocations and refuses all after them, until this is called again.
/// `None` refuses none.
pub fn fail_after(n: Option<usize>) {
    machine::allowance(|allowance| allowance.store(n.unwrap_or(UNLIMITED), Ordering::Relaxed));
}

/// The allowance of a core on which no allocation is refused.
pub(crate) const UNLIMITED: usize = usize::MAX;

/// Decrements this core's allowance. Returns whether the allocation is refused.
fn refused() -> bool {
    // A load and a store are enough: no other core uses it, and interrupts are masked.
    machine::allowance(|allowance| match allowance.load(Ordering::Relaxed) {
        UNLIMITED => false,
        0 => true,
        n => {
            allowance.store(n - 1, Ordering::Relaxed);
            false
        }
    })
}

/// The machine's allocator with the counts.
///
/// Interrupts are masked in each call: otherwise, a handler that allocates could interrupt an
/// allocation.
#[derive(Debug)]
pub struct Counted;

impl Counted {
    fn granted(pointer: *mut u8, layout: Layout) -> *mut u8 {
        if !pointer.is_null() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
            BYTES_LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        }
        pointer
    }
}

// SAFETY: each call is passed on to an allocator, or refused with null.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        masked(|| {
            if refused() {
                return core::ptr::null_mut();
            }
            // SAFETY: the caller's promise is the same.
            Self::granted(unsafe { machine::HEAP.alloc(layout) }, layout)
        })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        masked(|| {
            if refused() {
                return core::ptr::null_mut();
            }
            // SAFETY: the caller's promise is the same.
            Self::granted(unsafe { machine::HEAP.alloc_zeroed(layout) }, layout)
        })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        masked(|| {
            FREES.fetch_add(1, Ordering::Relaxed);
            BYTES_LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
            // SAFETY: the caller's promise is the same.
            unsafe { machine::HEAP.dealloc(pointer, layout) }
        })
    }

    /// Counts no new allocation: the allocation changes its size.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        masked(|| {
            if refused() {
                return core::ptr::null_mut();
            }
            // SAFETY: the caller's promise is the same.
            let pointer = unsafe { machine::HEAP.realloc(pointer, layout, size) };
            if !pointer.is_null() {
                BYTES_LIVE.fetch_add(size, Ordering::Relaxed);
                BYTES_LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
            }
            pointer
        })
    }
}
