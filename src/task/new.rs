//! The making of a task: memory is allocated, and the header and the future are written to it. The
//! result is a task that is ready to be published.

use alloc::alloc::Layout;
use core::future::Future;
use core::ptr::NonNull;

use crate::runtime::core::Runtime;
use crate::sync::{UnsafeCell, alloc};
use crate::task::header::Header;
use crate::task::raw::Task;
use crate::task::state::{Origin, State};
use crate::task::storage::Storage;

/// A future that is about to become a task, and the properties of that task.
pub(crate) struct Unspawned<F, K> {
    pub(crate) runtime: &'static Runtime,
    /// The address of the future. The future is copied from there when the task is made, and
    /// belongs to the task from the moment when the task is published.
    pub(crate) future: *const F,
    pub(crate) kind: K,
    /// Whether the future or its output may not be `Send`.
    pub(crate) local: bool,
    /// Whether the task is known to be stackful.
    pub(crate) stackful: bool,
}

impl<F, K> Unspawned<F, K>
where
    F: Future + 'static,
    F::Output: 'static,
    K: Storage,
{
    /// Allocates the task. Returns `None` when there is no memory.
    ///
    /// The caller gets both references: the runtime's and the join handle's.
    ///
    /// # Safety
    ///
    /// `future` points at a future that may be read.
    #[inline]
    pub(crate) unsafe fn allocate(self, origin: Origin) -> Option<NonNull<Header>> {
        let layout = Layout::new::<Task<F, K>>();
        let memory = match origin {
            Origin::Local => self.runtime.free_list().allocate(layout),
            // SAFETY: the layout is not empty, since a task has a header.
            Origin::Remote => NonNull::new(unsafe { alloc(layout) }),
        };
        // SAFETY: the memory was just allocated for this type, and the caller promises the future.
        memory.map(|memory| unsafe { self.write(memory.cast(), origin) })
    }

    /// Makes the task in memory that its storage will free. Otherwise like
    /// [`allocate`](Self::allocate).
    ///
    /// # Safety
    ///
    /// `future` points at a future that may be read. The memory is writable, as large and as
    /// aligned as a `Task<F, K>`, and used by no other code until it is freed.
    #[inline]
    pub(super) unsafe fn write(
        self,
        memory: NonNull<Task<F, K>>,
        origin: Origin,
    ) -> NonNull<Header> {
        let vtable = if self.local { &Task::<F, K>::LOCAL_VTABLE } else { &Task::<F, K>::VTABLE };
        let header = Header::new(State::spawned(origin, self.stackful), vtable, Some(self.runtime));
        let task = memory.as_ptr();
        // SAFETY: the caller's promise. The task is written field by field: a `Task` as a value
        // would be another copy of the future on the stack.
        unsafe {
            (&raw mut (*task).body.header).write(header);
            (&raw mut (*task).kind).write(self.kind);
            let stage = UnsafeCell::make_around(&raw mut (*task).body.stage);
            (&raw mut (*stage).future).cast::<F>().copy_from_nonoverlapping(self.future, 1);
        }
        memory.cast()
    }
}
