//! A task: one block of memory, with a header in front and the future, later its output, behind it.
//!
//! The memory comes from the allocator, or is a [`StaticTask`](static_task::StaticTask). Apart from
//! the type of their futures, tasks differ only in their [`Storage`].
//!
//! # The life of a task
//!
//! ```text
//!                       spawn on its own core (1)
//!         ┌────────────────────────────────────────────────────┐
//!         │ spawn (1)             start (2)                    ▼     complete (7)
//!         └──────────► READY ─────────────────────────────► RUNNING ──────────────► DONE
//!                      ▲   ▲                               ▲ │ │ ▲                  ▲ ▲
//!      wake, abort (5) │   │ pending (4): woken meanwhile  │ │ │ └─ yield (10)      │ │
//!          ┌───────────┘   └───────────────────────────────┼─┘ │    wake, abort (6) │ │
//!          │       wake on its own core (11)               │   │                    │ │
//!       BLOCKED ───────────────────────────────────────────┘   │     abandon (8) ───┘ │
//!          ▲ │     pending (3): not woken meanwhile            │                      │
//!          └─┼─────────────────────────────────────────────────┘                      │
//!            └── shut_down, complete (9) ─────────────────────────────────────────────┘
//! ```
//!
//! The numbers stand at the functions of [`state::State`] that take the edge; edge 10, which
//! touches no state, is [`Runtime::yield_current`].
//!
//! RUNNING means that the owning core has the task. The core polls the task, or has preempted it in
//! the middle of a poll, or has the task in its own queues after a yield, or after a wake or a
//! spawn in task context of that core. A wake of a RUNNING task sets READY and pushes nothing. So
//! while READY is clear, the start of the next poll is a load.
//!
//! A task that suspended itself in [`block_on`](crate::block_on) takes edge 3 or 4 like any other
//! task. After edge 2 its stack is resumed, and its future is not polled anew.
//!
//! A task is freed when its last reference is dropped after DONE. If the runtime's reference is the
//! only one left when the future is gone, the loop frees the task without setting DONE: no other
//! code could read the flag.
//!
//! # Which code may touch which field, and when
//!
//! 1. `state`: any code that holds a reference, at any time.
//! 2. `vtable`, `runtime`, `kind`: any code that holds a reference. These fields never change after
//!    other code can reach the task.
//! 3. `next`: the code that must push the task (told so by [`state::Wake::Push`] or
//!    [`state::Abort::Push`], or because it dropped the last reference), until the push. From the
//!    push on, the owning core.
//! 4. `siblings`, `stack`: the owning core, in task context with preemption disabled.
//! 5. The future: the owning core, while the task is RUNNING.
//! 6. The output: the owning core until DONE. After that the join handle, if it still exists when
//!    DONE is set; else the owning core.
//! 7. `join_waker`: the join handle, while `JOIN_WAKER` is clear. The code that sets DONE, if it
//!    finds `JOIN_WAKER` set.
//! 8. The memory of a static cell: the code that set the cell's `in_use`, until the task is
//!    published. After that rules 1 to 7 apply, until the last reference is gone. From then on the
//!    code that dropped the last reference, until that code clears `in_use`.

pub(crate) mod join;
pub(crate) mod local;
pub(crate) mod panic;
pub(crate) mod state;
pub(crate) mod static_task;
pub(crate) mod waker;

use alloc::alloc::Layout;
use core::any::TypeId;
use core::cell::Cell;
use core::fmt;
use core::future::Future;
use core::mem::{ManuallyDrop, MaybeUninit};
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};

use crate::Runtime;
use crate::freelist::FreeList;
use crate::queue::{self, Linked};
use crate::ready::Origin;
use crate::stackful::Stack;
use crate::sync::{UnsafeCell, alloc, const_fn, dealloc};
use join::JoinError;
use state::State;

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
    /// The stack that holds frames of the task, while the core is elsewhere.
    pub(crate) stack: Cell<Option<NonNull<Stack>>>,
    /// The waker that the join handle has left, to be woken when the task is DONE (rule 7).
    join_waker: UnsafeCell<MaybeUninit<Waker>>,
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
    poll: unsafe fn(NonNull<Header>, &mut Context<'_>) -> Poll<()>,
    /// Drops the future and stores the error as the output.
    ///
    /// # Safety
    ///
    /// As for `poll`.
    fail: unsafe fn(NonNull<Header>, JoinError),
    /// Returns the address of the output, an [`Outcome<T>`].
    ///
    /// # Safety
    ///
    /// The caller may touch the output (rule 6), which has been stored.
    output: unsafe fn(NonNull<Header>) -> *mut (),
    /// Drops the output. If the output is a panic ([`JoinError::Panicked`]), reports that panic.
    ///
    /// # Safety
    ///
    /// As for `output`, and the output is not used again.
    drop_output: unsafe fn(NonNull<Header>),
    /// Whether an output that is no error has a destructor to run.
    pub(crate) value_needs_drop: bool,
    /// Frees the memory. The second argument is as for [`Header::free`].
    ///
    /// # Safety
    ///
    /// The future and the output are gone, no code holds a reference, and the rest is as for
    /// [`Header::free`].
    free: unsafe fn(NonNull<Header>, Option<&FreeList>),
    /// Whether `free` may be called in any context.
    pub(crate) freed_anywhere: bool,
    /// The layout of the memory that `free` gives back.
    pub(crate) layout: Layout,
    /// Returns the address of the future.
    ///
    /// # Safety
    ///
    /// The task is of this vtable's type and allocated.
    future: unsafe fn(NonNull<Header>) -> *const (),
    /// The type of the future.
    future_type: TypeId,
    /// Whether the future or its output may not be `Send`.
    local: bool,
    /// Returns the name of the task.
    ///
    /// # Safety
    ///
    /// The task is alive.
    name: unsafe fn(NonNull<Header>) -> Option<&'static str>,
}

/// A task as it is laid out in memory.
#[repr(C)]
struct Task<F: Future, K> {
    body: Body<F>,
    kind: K,
}

/// The part of a task that does not depend on its [`Storage`].
#[repr(C)]
struct Body<F: Future> {
    header: Header,
    stage: UnsafeCell<Stage<F>>,
}

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
    /// that memory. `free_list`, and the right to call the allocator, are as for [`Header::free`].
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

/// The future, and later in the same place its output. The state word says which of them is there.
union Stage<F: Future> {
    future: ManuallyDrop<F>,
    output: ManuallyDrop<Outcome<F::Output>>,
}

/// A future's output, or the reason why there is none. Unlike a `Result`, it can be given its value
/// in place, without a copy on the stack.
#[repr(C)]
pub(crate) struct Outcome<T> {
    is_value: bool,
    content: Content<T>,
}

/// The content of an [`Outcome`], whose `is_value` says which field is valid.
union Content<T> {
    value: ManuallyDrop<T>,
    error: ManuallyDrop<JoinError>,
}

impl<T> Outcome<T> {
    /// Moves the value that lies at `value` to `this`.
    ///
    /// # Safety
    ///
    /// `this` is valid for writes. `value` points at a value that is the caller's and is not used
    /// again.
    #[inline]
    unsafe fn put(this: *mut Self, value: *const T) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*this).is_value).write(true);
            (&raw mut (*this).content.value).cast::<T>().copy_from_nonoverlapping(value, 1);
        }
    }

    /// Writes an error to `this`.
    ///
    /// # Safety
    ///
    /// `this` is valid for writes.
    unsafe fn put_error(this: *mut Self, error: JoinError) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*this).is_value).write(false);
            (&raw mut (*this).content.error).cast::<JoinError>().write(error);
        }
    }

    /// Takes the outcome: returns the address of the value, or the error, moved out.
    ///
    /// # Safety
    ///
    /// `this` points at an outcome, which is taken once.
    #[inline]
    pub(crate) unsafe fn take(this: *mut Self) -> Result<*const T, JoinError> {
        // SAFETY: the caller's promise; `is_value` says which field is valid.
        unsafe {
            if (*this).is_value {
                Ok((&raw const (*this).content.value).cast())
            } else {
                Err(ManuallyDrop::take(&mut (*this).content.error))
            }
        }
    }
}

// SAFETY: `next` is used by the queues alone. The assertion holds for the alignment.
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

    /// Polls the future of `task`.
    ///
    /// # Safety
    ///
    /// Rule 5: the caller is on the owning core, and the task is RUNNING. No earlier call returned
    /// `Ready`.
    #[inline]
    pub(crate) unsafe fn poll(task: NonNull<Self>) -> Poll<()> {
        // SAFETY: the caller's promise is that of `Vtable::poll`. The runtime keeps its reference
        // while the task is RUNNING, so the header outlives the poll and with it the borrowed
        // waker. `ManuallyDrop` keeps that waker from releasing a reference that it does not have.
        unsafe {
            let waker = ManuallyDrop::new(waker::from_header(task));
            (task.as_ref().vtable.poll)(task, &mut Context::from_waker(&waker))
        }
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
    /// The future may also be of a type that differs from `of_type` in lifetimes only. The address
    /// alone does not suffice: a value that begins where the future begins may be a part of the
    /// future. The type alone does not suffice either: a value of the same type may be another one.
    pub(crate) fn is_future(task: NonNull<Self>, (place, of_type): Typed) -> bool {
        // SAFETY: the caller's pointer to the task is valid, and the function only computes an
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

/// A future that is about to become a task, and where that task may be polled.
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
    unsafe fn write(self, memory: NonNull<Task<F, K>>, origin: Origin) -> NonNull<Header> {
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

/// Turns a function that takes a `ManuallyDrop<T>` into one that takes a `T`, without a copy:
/// `undropped(function)(value, other)`.
///
/// Without optimization each by-value call copies its argument once more, and `ManuallyDrop::new`
/// copies it three times. Futures and outputs may be large. The call of the returned function is
/// the one copy.
#[inline(always)]
pub(crate) fn undropped<T, A, R>(function: fn(ManuallyDrop<T>, A) -> R) -> fn(T, A) -> R {
    // SAFETY: `ManuallyDrop` is `repr(transparent)`, so it has the ABI of `T`, and a function that
    // takes a `ManuallyDrop<T>` may be called with a `T`.
    unsafe { core::mem::transmute::<fn(ManuallyDrop<T>, A) -> R, fn(T, A) -> R>(function) }
}

/// Calls a function with the address of a value, which is the function's to drop or to move on:
/// `in_place()(value, |place| …)`. See [`undropped`] for the reason.
#[inline(always)]
pub(crate) fn in_place<T, C, R>() -> fn(T, C) -> R
where
    C: FnOnce(*mut T) -> R,
{
    #[inline(always)]
    fn call<T, C: FnOnce(*mut T) -> R, R>(mut value: ManuallyDrop<T>, code: C) -> R {
        code(&raw mut *value)
    }
    undropped(call::<T, C, R>)
}

impl<F, K> Task<F, K>
where
    F: Future + 'static,
    F::Output: 'static,
    K: Storage,
{
    const VTABLE: Vtable = Self::vtable(false);
    const LOCAL_VTABLE: Vtable = Self::vtable(true);

    const fn vtable(local: bool) -> Vtable {
        Vtable {
            poll: Body::<F>::poll,
            fail: Body::<F>::fail,
            output: Body::<F>::output,
            drop_output: Body::<F>::drop_output,
            value_needs_drop: core::mem::needs_drop::<F::Output>(),
            free: Self::free,
            freed_anywhere: K::FREED_ANYWHERE,
            layout: Layout::new::<Self>(),
            future: Body::<F>::future,
            future_type: TypeId::of::<F>(),
            local,
            name: Self::name,
        }
    }

    unsafe fn free(task: NonNull<Header>, free_list: Option<&FreeList>) {
        let memory = task.cast::<u8>();
        let task = task.cast::<Self>().as_ptr();
        // SAFETY: by the contract of `Vtable::free` no code can reach the task, and its storage
        // knows where the memory came from. All of the body that has a destructor is gone, except
        // for loom's cells, which have one of their own.
        unsafe {
            let kind = core::ptr::read(&raw const (*task).kind);
            core::ptr::drop_in_place(&raw mut (*task).body);
            kind.free(memory, Layout::new::<Self>(), free_list);
        }
    }

    unsafe fn name(task: NonNull<Header>) -> Option<&'static str> {
        // SAFETY: `task` is of this type and alive, and its storage never changes (rule 2).
        unsafe { (*task.cast::<Self>().as_ptr()).kind.name() }
    }
}

impl<F> Body<F>
where
    F: Future + 'static,
    F::Output: 'static,
{
    /// Returns the cell of the future and the output.
    ///
    /// # Safety
    ///
    /// `task` is of this type and allocated.
    unsafe fn stage<'a>(task: NonNull<Header>) -> &'a UnsafeCell<Stage<F>> {
        // SAFETY: the caller promises the type, and uses the borrow only within its own call.
        unsafe { &(*task.cast::<Self>().as_ptr()).stage }
    }

    unsafe fn poll(task: NonNull<Header>, context: &mut Context<'_>) -> Poll<()> {
        in_place()(
            // SAFETY: by the contract of `Vtable::poll` the future is there and this code's (rule
            // 5). It is never moved, so the pin holds.
            unsafe {
                Self::stage(task)
                    .with_mut(|stage| Pin::new_unchecked(&mut *(*stage).future).poll(context))
            },
            |poll: *mut Poll<F::Output>| {
                // SAFETY: the poll has just returned this value, which is this function's.
                let Poll::Ready(output) = (unsafe { &*poll }) else { return Poll::Pending };
                // The future is dropped before the output takes its place. If that drop panics,
                // `Store` stores the output all the same.
                let store = Store {
                    task,
                    // SAFETY: the future has been dropped, and `Store` moves the output once.
                    put: || unsafe { Outcome::put(Self::outcome(task), output) },
                };
                // SAFETY: the future is there and this code's, as for the poll above. It is dropped
                // once, since the task is not polled after `Ready`.
                unsafe { Self::drop_future(task) };
                store.store();
                Poll::Ready(())
            },
        )
    }

    unsafe fn fail(task: NonNull<Header>, error: JoinError) {
        let mut error = Some(error);
        let store = Store {
            task,
            put: || {
                if let Some(error) = error.take() {
                    // SAFETY: the future has been dropped, so its place is free for the output.
                    unsafe { Outcome::put_error(Self::outcome(task), error) }
                }
            },
        };
        // SAFETY: by `Vtable::fail` the future is there and this code's. It is dropped once.
        unsafe { Self::drop_future(task) };
        store.store();
    }

    /// Drops the future.
    ///
    /// # Safety
    ///
    /// As for [`stage`](Self::stage). The future is there, is the caller's (rule 5), and is not
    /// used again.
    unsafe fn drop_future(task: NonNull<Header>) {
        // SAFETY: the caller's promise.
        unsafe { Self::stage(task).with_mut(|stage| ManuallyDrop::drop(&mut (*stage).future)) }
    }

    /// Returns the address of the output.
    ///
    /// # Safety
    ///
    /// As for [`stage`](Self::stage), and the caller may touch that memory (rules 5 and 6).
    unsafe fn outcome(task: NonNull<Header>) -> *mut Outcome<F::Output> {
        // SAFETY: the caller promises the type, and that it may touch the memory.
        unsafe { Self::stage(task).with_mut(|stage| (&raw mut (*stage).output).cast()) }
    }

    unsafe fn output(task: NonNull<Header>) -> *mut () {
        // SAFETY: the contract of `Vtable::output`.
        unsafe { Self::outcome(task).cast() }
    }

    unsafe fn drop_output(task: NonNull<Header>) {
        // SAFETY: the contract of `Vtable::drop_output`: the output is there and this code's. The
        // task is alive, and the value is dropped once.
        unsafe {
            match Outcome::take(Self::outcome(task)) {
                Ok(value) => core::ptr::drop_in_place(value.cast_mut()),
                // The drop of the payload may panic too.
                Err(JoinError::Panicked(payload)) => panic::discard(task, payload),
                Err(JoinError::Aborted | JoinError::Abandoned) => {}
            }
        }
    }

    unsafe fn future(task: NonNull<Header>) -> *const () {
        // SAFETY: `task` is of this type and allocated, and only an address is computed.
        unsafe { (&raw const (*Self::stage(task).address()).future).cast() }
    }
}

/// An output that is to be stored in the place of a future. It is stored even if the drop of that
/// future panics: then by the drop of the `Store`.
struct Store<P: FnMut()> {
    task: NonNull<Header>,
    /// Stores the output. Called once, when the future has been dropped or its drop unwinds. After
    /// that call, `put` is not used again.
    put: P,
}

impl<P: FnMut()> Store<P> {
    /// Stores the output after the future's drop has returned.
    fn store(self) {
        (ManuallyDrop::new(self).put)();
    }
}

impl<P: FnMut()> Drop for Store<P> {
    /// Stores the output while the future's drop unwinds.
    fn drop(&mut self) {
        (self.put)();
        // SAFETY: the task is RUNNING, which keeps it allocated.
        unsafe { self.task.as_ref() }.state.set_stored();
    }
}

/// The vtable of the runtime's root task, whose future lies outside of the task.
pub(crate) static ROOT: Vtable = Vtable {
    poll: |task, context| {
        // SAFETY: the caller's task is alive.
        unsafe { task.as_ref() }
            .runtime
            .get()
            .map_or(Poll::Pending, |runtime| runtime.poll_root(context))
    },
    // SAFETY (of each function below): it is never called. The runtime makes no join handle for its
    // root task and does not abort it, and the references of that task never run out.
    fail: |_, _| unreachable!(),
    output: |_| unreachable!(),
    drop_output: |_| unreachable!(),
    value_needs_drop: false,
    free: |_, _| unreachable!(),
    freed_anywhere: false,
    layout: Layout::new::<()>(),
    future: |_| core::ptr::null(),
    // No task has a future of this type.
    future_type: TypeId::of::<Vtable>(),
    // The future that `run_until` waits for need not be `Send`.
    local: true,
    name: |_| Some("run_until"),
};

/// Identifies a task. The id is unique among the tasks that have not been freed, and may be used
/// again for a later task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(usize);

impl TaskId {
    pub(crate) fn of(task: NonNull<Header>) -> Self {
        Self(task.as_ptr().addr())
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {:#x}", self.0)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A task as messages name it: its id, and its name if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) id: TaskId,
    pub(crate) name: Option<&'static str>,
}

impl Label {
    /// Returns the label of `task`.
    ///
    /// # Safety
    ///
    /// The task is alive.
    pub(crate) unsafe fn of(task: NonNull<Header>) -> Self {
        // SAFETY: the caller promises that the task is alive.
        Self { id: TaskId::of(task), name: unsafe { Header::name(task) } }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "{} {name:?}", self.id),
            None => self.id.fmt(f),
        }
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
