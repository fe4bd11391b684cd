//! The memory of tasks. Loom checks it for leaks, except for the tasks that a shutdown leaks by
//! design.

use std::alloc::Layout;
use std::cell::RefCell;

std::thread_local! {
    /// The tasks that are allocated now.
    static TASKS: RefCell<Vec<(*mut u8, Layout)>> = const { RefCell::new(Vec::new()) };
}

#[unsafe(no_mangle)]
unsafe fn __trapline_model_alloc(layout: Layout) -> *mut u8 {
    // SAFETY: the caller keeps the contract of `alloc`, which is that of `loom::alloc::alloc`.
    let task = unsafe { loom::alloc::alloc(layout) };
    TASKS.with_borrow_mut(|tasks| tasks.push((task, layout)));
    task
}

#[unsafe(no_mangle)]
unsafe fn __trapline_model_dealloc(task: *mut u8, layout: Layout) {
    TASKS.with_borrow_mut(|tasks| tasks.retain(|known| known.0 != task));
    // SAFETY: the caller keeps the contract of `dealloc`, which is that of `loom::alloc::dealloc`.
    unsafe { loom::alloc::dealloc(task, layout) }
}

/// Frees the tasks that are left at the end of a run in which a shutdown abandoned stacks: the
/// tasks of which these stacks hold frames, and those of which such a frame has a waker.
pub(crate) fn free_abandoned() {
    for (task, layout) in TASKS.take() {
        // SAFETY: `task` was allocated with this layout, and no code uses it in this run any more.
        // The values in it are leaked.
        unsafe { loom::alloc::dealloc(task, layout) };
    }
}
