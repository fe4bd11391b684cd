//! The free list of a runtime: the memory of finished tasks, kept for new tasks of the same size.
//!
//! A task is one allocation. The kernel's allocator takes a lock, masks interrupts or searches,
//! while two instructions are enough to take a block from a list. So a runtime keeps the memory
//! that its finished tasks leave, up to [`Config::task_memory`](crate::Config::task_memory), in a
//! list for each size.
//!
//! Only the owning core uses the free list, in task context. A spawn from another context calls the
//! allocator. A task whose last reference is dropped in another context comes back to its runtime
//! through the inbox.

use core::alloc::Layout;
use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;

use crate::sync::{KEEPS_TASK_MEMORY, alloc, dealloc};

/// The step between the sizes of two lists, in bytes. The layouts of tasks are rounded to it
/// anyway.
const GRAIN: usize = 8;
/// The size of the largest tasks, in bytes, whose memory is kept. The memory of larger tasks goes
/// back to the allocator.
const LARGEST: usize = 512;
const SIZES: usize = LARGEST / GRAIN + 1;

/// The content of a block of memory in a list: the link to the next block.
struct FreeBlock {
    next: List,
}

type List = Option<NonNull<FreeBlock>>;

/// The memory that a runtime keeps. Only the owning core uses it, in task context with preemption
/// disabled.
pub(crate) struct FreeList {
    lists: [Cell<List>; SIZES],
    /// How many more bytes may be kept.
    budget: Cell<usize>,
    /// Whether memory has ever been allocated through this free list. If not, keeping memory is of
    /// no use yet. It stays `false` where the platform cannot tell that no interrupt is running: no
    /// spawn is on the fast path there, so every spawn calls the allocator.
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

    /// Returns the list for memory of this layout; `None` if memory of this layout is never kept.
    #[inline]
    fn list(&self, layout: Layout) -> Option<&Cell<List>> {
        let fits = KEEPS_TASK_MEMORY
            && layout.align() == GRAIN
            && layout.size().is_multiple_of(GRAIN)
            && layout.size() >= size_of::<FreeBlock>();
        self.lists.get(layout.size() / GRAIN).filter(|_| fits)
    }

    /// Returns memory of this layout, kept or new. `None`: there is no memory.
    #[inline]
    pub(crate) fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        let kept = self.list(layout).and_then(|list| Some((list, list.get()?)));
        let Some((list, kept)) = kept else {
            self.is_used.set(true);
            // SAFETY: a task's layout is not empty.
            return NonNull::new(unsafe { alloc(layout) });
        };
        // SAFETY: memory in a list contains a `FreeBlock`, which `free` has written.
        list.set(unsafe { kept.as_ref() }.next);
        self.budget.set(self.budget.get() + layout.size());
        Some(kept.cast())
    }

    /// Returns whether [`free`](Self::free) would keep memory of this layout, without a call of the
    /// allocator.
    #[inline]
    pub(crate) fn keeps(&self, layout: Layout) -> bool {
        self.is_used.get() && self.budget.get() >= layout.size() && self.list(layout).is_some()
    }

    /// Keeps memory, or gives it back to the allocator.
    ///
    /// # Safety
    ///
    /// The memory came from the allocator, with this layout, and the caller does not use it again.
    #[inline]
    pub(crate) unsafe fn free(&self, memory: NonNull<u8>, layout: Layout) {
        let budget = self.budget.get().checked_sub(layout.size()).filter(|_| self.is_used.get());
        match (self.list(layout), budget) {
            (Some(list), Some(budget)) => {
                self.budget.set(budget);
                let kept = memory.cast::<FreeBlock>();
                // SAFETY: the memory is the caller's to give, and `list` has checked that it is
                // large enough and aligned for a `FreeBlock`.
                unsafe { kept.write(FreeBlock { next: list.get() }) };
                list.set(Some(kept));
            }
            // SAFETY: the caller promises that the memory came from the allocator with this layout,
            // and is not used again.
            _ => unsafe { dealloc(memory.as_ptr(), layout) },
        }
    }

    /// Gives all kept memory back to the allocator, and keeps none from now on.
    pub(crate) fn close(&self) {
        self.trim();
        self.budget.set(0);
    }

    /// Gives all kept memory back to the allocator.
    pub(crate) fn trim(&self) {
        for (index, list) in self.lists.iter().enumerate() {
            while let Some(kept) = list.get() {
                // SAFETY: memory in a list contains a `FreeBlock`. It has the size of its list and
                // the alignment `GRAIN`, since `list` admits no other layout.
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
