//! The memory of tasks, which loom checks for leaks, but for those that a shutdown leaks by design.

use std::alloc::Layout;
use std::cell::RefCell;

std::thread_local! {
    /// All tasks that there are.
    static TASKS: RefCell<Vec<(*mut u8, Layout)>> = const { RefCell::new(Vec::new()) };
}

#[unsafe(no_mangle)]
unsafe fn __trapline_model_alloc(layout: Layout) -> *mut u8 {
    // SAFETY: the caller keeps the contract of `alloc`.
    let task = unsafe { loom::alloc::alloc(layout) };
    TASKS.with_borrow_mut(|tasks| tasks.push((task, layout)));
    task
}

#[unsafe(no_mangle)]
unsafe fn __trapline_model_dealloc(task: *mut u8, layout: Layout) {
    TASKS.with_borrow_mut(|tasks| tasks.retain(|known| known.0 != task));
    // SAFETY: the caller keeps the contract of `dealloc`.
    unsafe { loom::alloc::dealloc(task, layout) }
}

/// Frees the tasks that are left at the end of a run in which a shutdown has abandoned stacks: those that
/// they hold frames of, and those of which such a frame has a waker.
pub(crate) fn free_abandoned() {
    for (task, layout) in TASKS.take() {
        // SAFETY: allocated with this layout, and nobody uses it in this run any more. What is in it, leaks.
        unsafe { loom::alloc::dealloc(task, layout) };
    }
}
