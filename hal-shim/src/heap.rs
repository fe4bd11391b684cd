//! The global allocator: the machine's, counted, and made to fail where a test wants it.
//!
//! [`entry!`](crate::entry) installs it; a program without `entry!` does with [`heap!`](crate::heap!). Without
//! it, nothing is counted.

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};

use trapline::preempt::NoPreempt;

use crate::interrupt::masked;
use crate::machine;

/// What [`heap!`](crate::heap!) installs.
pub type Heap = NoPreempt<Counted>;

/// The one that there is.
pub const HEAP: Heap = NoPreempt(Counted);

/// Makes [`HEAP`] the program's global allocator, as [`entry!`](crate::entry) does too: once in a program.
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

/// What the whole program, on all its cores, has asked of the heap since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Allocations that were granted.
    pub allocations: usize,
    /// Allocations that were given back.
    pub frees: usize,
    /// Bytes in allocations that were granted and not given back.
    pub bytes_live: usize,
}

/// The counts now. Exact when no other core and no other thread is busy.
pub fn counts() -> Counts {
    Counts {
        allocations: ALLOCATIONS.load(Ordering::Relaxed),
        frees: FREES.load(Ordering::Relaxed),
        bytes_live: BYTES_LIVE.load(Ordering::Relaxed),
    }
}

/// Lets this core have `n` more allocations and refuses all that it asks for after them, until this
/// is called again. `None` refuses nothing.
pub fn fail_after(n: Option<usize>) {
    machine::allowance(|allowance| allowance.store(n.unwrap_or(UNLIMITED), Ordering::Relaxed));
}

/// The allowance of a core of which no test wants anything.
pub(crate) const UNLIMITED: usize = usize::MAX;

/// Takes one off this core's allowance.
fn refused() -> bool {
    // A load and a store: no other core has this one, and interrupts are masked.
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
/// Interrupts are masked inside: a handler that allocates may have interrupted an allocation.
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

// SAFETY: every call is passed on to an allocator, or answered with null.
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

    /// Counts as one allocation that changes its size.
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
