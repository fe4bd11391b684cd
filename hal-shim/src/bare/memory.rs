//! The machine's memory as a heap.

use core::alloc::{GlobalAlloc, Layout};
use core::ops::Range;
use core::ptr::NonNull;

use linked_list_allocator::Heap;
use spin::mutex::SpinMutex;

use super::exclusively;

/// How many pieces a machine's memory can have: a PC has one below 4 GiB and one above.
const PIECES: usize = 4;
/// Smaller pieces are not used, in bytes.
const LEAST: usize = 4096;

/// The machine's memory, behind a lock that all cores share.
pub(crate) struct Memory(SpinMutex<[Heap; PIECES]>);

pub(crate) static HEAP: Memory = Memory(SpinMutex::new([const { Heap::empty() }; PIECES]));

impl Memory {
    /// Adds a piece, unless there are too many, or it is too small.
    ///
    /// # Safety
    ///
    /// It is memory, and no other code uses it.
    pub(crate) unsafe fn add(&self, piece: Range<usize>) {
        exclusively(&self.0, |heaps| {
            if let Some(heap) = heaps.iter_mut().find(|heap| heap.size() == 0)
                && piece.len() >= LEAST
            {
                let start = core::ptr::with_exposed_provenance_mut(piece.start);
                // SAFETY: the caller's promise.
                unsafe { heap.init(start, piece.len()) }
            }
        });
    }
}

// SAFETY: each call goes to the `Heap` that has the memory, under the lock.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        exclusively(&self.0, |heaps| {
            heaps.iter_mut().find_map(|heap| heap.allocate_first_fit(layout).ok())
        })
        .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(pointer) = NonNull::new(pointer) else { return };
        exclusively(&self.0, |heaps| {
            let has = |heap: &&mut Heap| (heap.bottom()..heap.top()).contains(&pointer.as_ptr());
            if let Some(heap) = heaps.iter_mut().find(has) {
                // SAFETY: the caller gives back what `alloc` returned, with the same layout; the
                // address says that it was this heap's.
                unsafe { heap.deallocate(pointer, layout) };
            }
        });
    }
}
