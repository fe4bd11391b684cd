//! The allocator of all measured code: the system's, which counts on request.
//!
//! No task is preempted in it, as Trapline's stackful tasks need it. hal-shim's allocator, which
//! the tests use, also masks interrupts and always counts, which would add to the figures.
//!
//! Every implementation that allocates pays for Trapline's guard. Trapline hardly does, since it
//! keeps the memory of its tasks. Without the guard a spawn of the floor takes 1.3 to 3.6 ns less,
//! with up to 1 000 tasks.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Sub;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use trapline::preempt::NoPreempt;

#[global_allocator]
static HEAP: NoPreempt<Counting> = NoPreempt(Counting);

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// Counts of the use of the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of allocations and reallocations.
    pub allocations: u64,
    /// The bytes of live allocations, rounded up by malloc and with its header.
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

/// The counts so far. Only one thread runs while the heap counts.
pub fn counts() -> Counts {
    Counts { allocations: ALLOCATIONS.load(Relaxed), bytes: BYTES.load(Relaxed).cast_signed() }
}

/// Calls `f` and counts its use of the heap, which makes it slower.
pub fn counted<R>(f: impl FnOnce() -> R) -> R {
    COUNTS.store(true, Relaxed);
    let result = f();
    COUNTS.store(false, Relaxed);
    result
}

struct Counting;

impl Counting {
    /// Counts `block` as allocated.
    #[cold]
    fn allocated(block: *mut u8) {
        ALLOCATIONS.store(ALLOCATIONS.load(Relaxed) + 1, Relaxed);
        BYTES.store(BYTES.load(Relaxed).wrapping_add(Self::taken(block)), Relaxed);
    }

    /// Counts `block` as freed.
    #[cold]
    fn freed(block: *mut u8) {
        BYTES.store(BYTES.load(Relaxed).wrapping_sub(Self::taken(block)), Relaxed);
    }

    /// The number of bytes that `block` takes: its usable size, and the word of malloc in front of
    /// it.
    fn taken(block: *mut u8) -> u64 {
        if block.is_null() {
            return 0;
        }
        // SAFETY: the block comes from the system allocator, which is malloc, and is alive.
        let usable = unsafe { libc::malloc_usable_size(block.cast()) };
        (usable + size_of::<usize>()) as u64
    }
}

// SAFETY: every call goes to `System`, which keeps the contract.
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
            // A failed reallocation leaves the old block alive.
            Self::allocated(if moved.is_null() { block } else { moved });
        }
        moved
    }
}
