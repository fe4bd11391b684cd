//! Where a task's memory comes from and goes to, and its name.

use alloc::alloc::Layout;
use core::ptr::NonNull;

use crate::freelist::FreeList;
use crate::sync::dealloc;

/// Where the memory of a task comes from, and which name the task has. The value lies behind the
/// future, so a storage without data takes no space.
pub(crate) trait Storage: Sized + 'static {
    /// Whether [`free`](Self::free) may be called in any context.
    const FREED_ANYWHERE: bool;

    /// Returns the name of the task.
    fn name(&self) -> Option<&'static str>;

    /// Gives the memory of a task with this storage back to where it came from.
    ///
    /// # Safety
    ///
    /// The memory is not used again, and the task in it has been dropped. `layout` is the layout of
    /// that memory. `free_list`, and the right to call the allocator, are as for
    /// [`Header::free`](crate::task::header::Header::free).
    unsafe fn free(self, memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>);
}

/// Gives memory back to `free_list`, or to the allocator if there is none.
///
/// # Safety
///
/// As for [`Storage::free`], and the memory came from the allocator.
#[inline(always)]
unsafe fn give_back(memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>) {
    // SAFETY: the caller promises that the memory is the allocator's, has this layout and is not
    // used again; and that it may use `free_list`, if there is one, else the allocator.
    unsafe {
        match free_list {
            Some(free_list) => free_list.free(memory, layout),
            None => dealloc(memory.as_ptr(), layout),
        }
    }
}

/// The storage of a task in memory of the allocator, without a name.
pub(crate) struct Unnamed;

/// The storage of a task in memory of the allocator, spawned by a function that can name it.
pub(crate) struct Named(pub(crate) Option<&'static str>);

impl Storage for Unnamed {
    const FREED_ANYWHERE: bool = false;

    fn name(&self) -> Option<&'static str> {
        None
    }

    #[inline(always)]
    unsafe fn free(self, memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>) {
        // SAFETY: the caller promises the same, and the memory of an `Unnamed` task came from the
        // allocator.
        unsafe { give_back(memory, layout, free_list) }
    }
}

impl Storage for Named {
    const FREED_ANYWHERE: bool = false;

    fn name(&self) -> Option<&'static str> {
        self.0
    }

    #[inline(always)]
    unsafe fn free(self, memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>) {
        // SAFETY: the caller promises the same, and the memory of a `Named` task came from the
        // allocator.
        unsafe { give_back(memory, layout, free_list) }
    }
}
