//! The part of a task that does not depend on its future's type. The numbered rules are in
//! [`task`](super).

use alloc::alloc::Layout;
use core::any::TypeId;
use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};

use crate::freelist::FreeList;
use crate::queue;
use crate::queue::Linked;
use crate::runtime::core::Runtime;
use crate::stackful::pool::Stack;
use crate::sync::{UnsafeCell, const_fn};
use crate::task::error::JoinError;
use crate::task::id::{Label, TaskId};
use crate::task::state::State;

/// The part of a task that does not depend on its future's type.
#[repr(C)]
pub(crate) struct Header {
    pub(crate) state: State,
    pub(crate) vtable: &'static Vtable,
    pub(crate) runtime: Cell<Option<&'static Runtime>>,
    /// Links the task into the one queue that it is in.
    next: UnsafeCell<Link>,
    /// Links the task into its runtime's list of all tasks that have been started.
    pub(crate) siblings: Siblings,
    /// The stack that holds frames of the task. Set while the core does not run on that stack, and
    /// `None` while it does.
    pub(crate) stack: Cell<Option<NonNull<Stack<Header>>>>,
    /// The waker that the join handle has left, to be woken when the task is DONE (rule 7).
    pub(super) join_waker: UnsafeCell<MaybeUninit<Waker>>,
}

/// A place for a pointer to a task.
pub(crate) type Link = queue::Link<Header>;

/// An address, and the type of the value that lies there.
pub(crate) type Typed = (*const (), TypeId);

/// The links of a task in its runtime's list of all tasks.
#[derive(Debug)]
pub(crate) struct Siblings {
    pub(crate) previous: Cell<Link>,
    pub(crate) next: Cell<Link>,
}

/// The functions and constants of a task that depend on the type of its future.
pub(crate) struct Vtable {
    /// Polls the future. When the future is ready, drops it and stores the output.
    ///
    /// # Safety
    ///
    /// The caller may touch the future (rule 5), which has not been dropped.
    pub(crate) poll: unsafe fn(NonNull<Header>, &mut Context<'_>) -> Poll<()>,
    /// Drops the future and stores the error as the output.
    ///
    /// # Safety
    ///
    /// As for `poll`.
    pub(crate) fail: unsafe fn(NonNull<Header>, JoinError),
    /// Returns the address of the output, an [`Outcome<T>`](crate::task::output::Outcome).
    ///
    /// # Safety
    ///
    /// The caller may touch the output (rule 6), which has been stored.
    pub(crate) output: unsafe fn(NonNull<Header>) -> *mut (),
    /// Drops the output. If the output is a panic ([`JoinError::Panicked`]), reports that panic.
    ///
    /// # Safety
    ///
    /// As for `output`, and the output is not used again.
    pub(crate) drop_output: unsafe fn(NonNull<Header>),
    /// Whether the output has a destructor to run when it is a value, and not an error.
    pub(crate) value_needs_drop: bool,
    /// Frees the memory. The second argument is as for [`Header::free`].
    ///
    /// # Safety
    ///
    /// The future and the output are gone, no code holds a reference, and the rest is as for
    /// [`Header::free`].
    pub(crate) free: unsafe fn(NonNull<Header>, Option<&FreeList>),
    /// Whether `free` may be called in any context.
    pub(crate) freed_anywhere: bool,
    /// The layout of the memory that `free` gives back.
    pub(crate) layout: Layout,
    /// Returns the address of the future.
    ///
    /// # Safety
    ///
    /// The task is of this vtable's type and allocated.
    pub(crate) future: unsafe fn(NonNull<Header>) -> *const (),
    /// The type of the future.
    pub(crate) future_type: TypeId,
    /// Whether the future or its output may not be `Send`.
    pub(crate) local: bool,
    /// Returns the name of the task.
    ///
    /// # Safety
    ///
    /// The task is alive.
    pub(crate) name: unsafe fn(NonNull<Header>) -> Option<&'static str>,
}

// SAFETY: `link` returns the cell `next` each time, and only the queues use that cell. The
// assertion below checks the alignment.
unsafe impl Linked for Header {
    #[inline(always)]
    fn link(&self) -> &UnsafeCell<Link> {
        &self.next
    }
}

const _: () = assert!(align_of::<Header>() >= 8);

impl Header {
    const_fn! {
        pub(crate) fn new(
            state: State,
            vtable: &'static Vtable,
            runtime: Option<&'static Runtime>,
        ) -> Self {
            Self {
                state,
                vtable,
                runtime: Cell::new(runtime),
                next: UnsafeCell::new(None),
                siblings: Siblings { previous: Cell::new(None), next: Cell::new(None) },
                stack: Cell::new(None),
                join_waker: UnsafeCell::new(MaybeUninit::uninit()),
            }
        }
    }

    /// Gives the runtime's root task its runtime.
    ///
    /// # Safety
    ///
    /// No other code can reach the task yet (rule 2).
    pub(crate) unsafe fn set_runtime(&self, runtime: &'static Runtime) {
        self.runtime.set(Some(runtime));
    }

    /// Drops the future of `task` and stores `error` as its output.
    ///
    /// # Safety
    ///
    /// Rule 5: the caller is on the owning core, the task is RUNNING, and no frame is in the middle
    /// of a poll of it. The future has not been dropped.
    pub(crate) unsafe fn fail(task: NonNull<Self>, error: JoinError) {
        // SAFETY: by the caller's promise the future is the caller's (rule 5) and has not been
        // dropped.
        unsafe { (task.as_ref().vtable.fail)(task, error) }
    }

    /// Drops the output of `task`.
    ///
    /// # Safety
    ///
    /// Rule 6: the output has been stored, is the caller's, and is not used again.
    pub(crate) unsafe fn drop_output(task: NonNull<Self>) {
        // SAFETY: by the caller's promise the output is there, the caller's (rule 6) and not used
        // again.
        unsafe { (task.as_ref().vtable.drop_output)(task) }
    }

    /// Returns whether the future of the task lies at `place`, is as a whole of type `of_type`, and
    /// is `Send`.
    ///
    /// Types that differ in lifetimes only count as the same type. The address alone does not
    /// suffice: a value that begins where the future begins may be only a part of the future. The
    /// type alone does not suffice either: there may be other values of the same type.
    pub(crate) fn is_future(task: NonNull<Self>, (place, of_type): Typed) -> bool {
        // SAFETY: the caller's pointer to the task is valid, and `Vtable::future` only computes an
        // address.
        unsafe {
            let vtable = task.as_ref().vtable;
            !vtable.local && vtable.future_type == of_type && (vtable.future)(task) == place
        }
    }

    /// Returns the name of `task`.
    ///
    /// # Safety
    ///
    /// The task is alive.
    pub(crate) unsafe fn name(task: NonNull<Self>) -> Option<&'static str> {
        // SAFETY: the caller promises that the task is alive.
        unsafe { (task.as_ref().vtable.name)(task) }
    }

    /// Frees a task.
    ///
    /// # Safety
    ///
    /// - The last reference to the task is gone, and so are its future and its output.
    /// - `free_list` is that of the task's runtime, and is given only on that runtime's core, in
    ///   task context with preemption disabled.
    /// - The caller may call the allocator, unless the task is `freed_anywhere` or `free_list`
    ///   keeps its memory.
    pub(crate) unsafe fn free(task: NonNull<Self>, free_list: Option<&FreeList>) {
        // SAFETY: the caller's promises are those of `Vtable::free`.
        unsafe { (task.as_ref().vtable.free)(task, free_list) }
    }
}

/// Returns the label of `task`.
///
/// # Safety
///
/// The task is alive.
pub(crate) unsafe fn label(task: NonNull<Header>) -> Label {
    // SAFETY: the caller's promise.
    Label { id: TaskId::of(task), name: unsafe { Header::name(task) } }
}
