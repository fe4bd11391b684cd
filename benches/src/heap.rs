//! The allocator of all that is measured: the system's, which counts on request.
//!
//! It doesn't preempt, as Trapline's stackful tasks want it. hal-shim's own, which tests use, masks interrupts as
//! well and counts all the time; nobody should pay for that here.
//!
//! All that allocate pay for the guard, which is Trapline's; Trapline itself hardly, since it keeps the memory of
//! its tasks. Without the guard a spawn of the floor's takes 1.3 to 3.6 ns less, with up to 1 000 tasks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Sub;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use trapline::preempt::NoPreempt;

#[global_allocator]
static HEAP: NoPreempt<Counting> = NoPreempt(Counting);

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// What was asked of the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Allocations, also those that changed the size of one.
    pub allocations: u64,
    /// What allocations take that were not given back, in bytes: what malloc makes of them, with its own head.
    pub bytes: i64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            allocations: self.allocations - before.allocations,
            bytes: self.bytes - before.bytes,
        }
    }
}

/// The counts so far. Only one thread is busy while it counts.
pub fn counts() -> Counts {
    Counts { allocations: ALLOCATIONS.load(Relaxed), bytes: BYTES.load(Relaxed).cast_signed() }
}

/// Calls `f`, and counts what is asked of the heap meanwhile. What is measured in it takes longer.
pub fn counted<R>(f: impl FnOnce() -> R) -> R {
    COUNTS.store(true, Relaxed);
    let result = f();
    COUNTS.store(false, Relaxed);
    result
}

struct Counting;

impl Counting {
    /// Notes that `block` came.
    #[cold]
    fn allocated(block: *mut u8) {
        ALLOCATIONS.store(ALLOCATIONS.load(Relaxed) + 1, Relaxed);
        BYTES.store(BYTES.load(Relaxed).wrapping_add(Self::taken(block)), Relaxed);
    }

    /// Notes that `block` goes.
    #[cold]
    fn freed(block: *mut u8) {
        BYTES.store(BYTES.load(Relaxed).wrapping_sub(Self::taken(block)), Relaxed);
    }

    /// How many bytes `block` takes in memory: what is usable, and the word in front that malloc keeps of it.
    fn taken(block: *mut u8) -> u64 {
        if block.is_null() {
            return 0;
        }
        // SAFETY: the block is the system allocator's, which is malloc, and alive.
        let usable = unsafe { libc::malloc_usable_size(block.cast()) };
        (usable + size_of::<usize>()) as u64
    }
}

// SAFETY: every call is passed on.
unsafe impl GlobalAlloc for Counting {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        let block = unsafe { System.alloc(layout) };
        if COUNTS.load(Relaxed) {
            Self::allocated(block);
        }
        block
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if COUNTS.load(Relaxed) {
            Self::freed(block);
        }
        // SAFETY: passed on.
        unsafe { System.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        let block = unsafe { System.alloc_zeroed(layout) };
        if COUNTS.load(Relaxed) {
            Self::allocated(block);
        }
        block
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if COUNTS.load(Relaxed) {
            Self::freed(block);
        }
        // SAFETY: passed on.
        let moved = unsafe { System.realloc(block, layout, size) };
        if COUNTS.load(Relaxed) {
            // Refused, the old block is still there.
            Self::allocated(if moved.is_null() { block } else { moved });
        }
        moved
    }
}
