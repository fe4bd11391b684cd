//! The wrapper of the program's allocator.

use core::alloc::{GlobalAlloc, Layout};

use crate::preempt::guard::PreemptGuard;

/// A global allocator under which tasks are not preempted.
///
/// Without it, a task could be preempted while it holds the allocator's lock, and the core's other
/// tasks would wait for that lock for ever. Nor is `malloc` reentrant. Wrap the program's
/// allocator:
///
/// ```ignore
/// #[global_allocator]
/// static HEAP: NoPreempt<Heap> = NoPreempt(Heap::new());
/// ```
#[derive(Debug, Default)]
pub struct NoPreempt<A>(pub A);

// SAFETY: each call is passed on unchanged, so the contract is the inner allocator's.
unsafe impl<A: GlobalAlloc> GlobalAlloc for NoPreempt<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.realloc(block, layout, size) }
    }
}
