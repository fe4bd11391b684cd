//! The per-task allocator: memory of finished tasks, kept for the next ones of the same size.
//!
//! A task is one allocation of the kernel's allocator, which takes a lock, masks interrupts or searches
//! where two instructions would do. So a runtime keeps what its tasks leave, up to
//! [`Config::task_memory`](crate::Config::task_memory), in a list for each size. It is the owning core's alone, in
//! task context: a spawn from elsewhere allocates, and a task whose last reference goes elsewhere
//! comes back through the inbox.

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;

use crate::sync::{KEEPS_TASK_MEMORY, alloc, dealloc};

/// Sizes are told apart by so many bytes, to which the layouts of tasks are rounded anyway.
const GRAIN: usize = 8;
/// Larger tasks, in bytes, are left to the allocator.
const LARGEST: usize = 512;
const SIZES: usize = LARGEST / GRAIN + 1;

/// What lies in memory that is kept.
struct FreeBlock {
    next: List,
}

type List = Option<NonNull<FreeBlock>>;

/// The memory that a runtime keeps. Owning core, in task context with preemption disabled.
pub(crate) struct FreeList {
    lists: [Cell<List>; SIZES],
    /// How many bytes more may be kept.
    budget: Cell<usize>,
    /// Memory has been asked for here, so it is worth keeping some. Where the platform is not certain of
    /// interrupts, it never is.
    is_used: Cell<bool>,
}

impl FreeList {
    pub(crate) const fn new(budget: usize) -> Self {
        Self {
            lists: [const { Cell::new(None) }; SIZES],
            budget: Cell::new(budget),
            is_used: Cell::new(false),
        }
    }

    /// The list for memory of this layout, if such is kept.
    #[inline]
    fn list(&self, layout: Layout) -> Option<&Cell<List>> {
        let fits = KEEPS_TASK_MEMORY
            && layout.align() == GRAIN
            && layout.size().is_multiple_of(GRAIN)
            && layout.size() >= size_of::<FreeBlock>();
        self.lists.get(layout.size() / GRAIN).filter(|_| fits)
    }

    /// Memory of this layout, kept or new. `None`: there is none.
    #[inline]
    pub(crate) fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        let kept = self.list(layout).and_then(|list| Some((list, list.get()?)));
        let Some((list, kept)) = kept else {
            self.is_used.set(true);
            // SAFETY: a task's layout is not empty.
            return NonNull::new(unsafe { alloc(layout) });
        };
        // SAFETY: what is in a list is a `FreeBlock`, by `free`.
        list.set(unsafe { kept.as_ref() }.next);
        self.budget.set(self.budget.get() + layout.size());
        Some(kept.cast())
    }

    /// Whether [`free`](Self::free) would keep memory of this layout, and not call the allocator.
    #[inline]
    pub(crate) fn keeps(&self, layout: Layout) -> bool {
        self.is_used.get() && self.budget.get() >= layout.size() && self.list(layout).is_some()
    }

    /// Keeps memory, or gives it back to the allocator.
    ///
    /// # Safety
    ///
    /// The memory is the allocator's, of this layout, and is not used again.
    #[inline]
    pub(crate) unsafe fn free(&self, memory: NonNull<u8>, layout: Layout) {
        let budget = self.budget.get().checked_sub(layout.size()).filter(|_| self.is_used.get());
        match (self.list(layout), budget) {
            (Some(list), Some(budget)) => {
                self.budget.set(budget);
                let kept = memory.cast::<FreeBlock>();
                // SAFETY: the caller's, and large and aligned enough, by `list`.
                unsafe { kept.write(FreeBlock { next: list.get() }) };
                list.set(Some(kept));
            }
            // SAFETY: the caller's promise.
            _ => unsafe { dealloc(memory.as_ptr(), layout) },
        }
    }

    /// Gives all back to the allocator, and keeps nothing from now on.
    pub(crate) fn close(&self) {
        self.trim();
        self.budget.set(0);
    }

    /// Gives all back to the allocator.
    pub(crate) fn trim(&self) {
        for (index, list) in self.lists.iter().enumerate() {
            while let Some(kept) = list.get() {
                // SAFETY: what is in a list is a `FreeBlock`, in memory of the list's size and of no other
                // alignment, by `list`.
                unsafe {
                    list.set(kept.as_ref().next);
                    self.budget.set(self.budget.get() + index * GRAIN);
                    let layout = Layout::from_size_align_unchecked(index * GRAIN, GRAIN);
                    dealloc(kept.as_ptr().cast(), layout);
                }
            }
        }
    }
}

impl fmt::Debug for FreeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreeList").field("budget", &self.budget.get()).finish_non_exhaustive()
    }
}
