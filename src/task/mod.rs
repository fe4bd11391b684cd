//! A task: one piece of memory, with a header in front and the future, later its output, behind it.
//!
//! That memory comes from the allocator, or is a [`StaticTask`](static_task::StaticTask). What tasks
//! differ in besides their futures is their [`Storage`].
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
//! The numbers stand at the functions of [`state::State`] that take the edge. RUNNING means that the owning
//! core has the task: it polls it, or has preempted it in the middle of a poll, or has it in its own queues
//! after a yield (which touches no state), a wake or a spawn in task context of that core. What wakes it
//! there sets READY and pushes nothing; so the start of its next poll is a load as long as nobody from
//! elsewhere has. One that suspended itself in [`block_on`](crate::block_on) takes edge 3 or 4 like any
//! other and is resumed, not polled anew, after edge 2. A task is freed when its last reference goes
//! after DONE; if the runtime's is the only one left, without DONE, which nobody could see.
//!
//! # Who may touch which field, and when
//!
//! 1. `state`: anyone who holds a reference, at any time.
//! 2. `vtable`, `runtime`, `kind`: anyone who holds a reference; they never change.
//! 3. `next`: whoever must push the task ([`state::Wake::Push`], or the dropper of the last
//!    reference) until the push; from then on the owning core.
//! 4. `siblings`, `stack`: the owning core, in task context with preemption off.
//! 5. The future: the owning core while the task is RUNNING.
//! 6. The output: the owning core until DONE; then the join handle if it still exists when DONE is
//!    set, else the owning core.
//! 7. `join_waker`: the join handle while `JOIN_WAKER` is clear and the task not DONE; whoever sets
//!    DONE, if it finds `JOIN_WAKER` set.
//! 8. The memory of a static cell: whoever set its `in_use`, until the task is published; then as above,
//!    until the last reference is gone; then whoever dropped that, until it clears `in_use`.

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
    /// The link of the one queue that the task is in.
    pub(crate) next: UnsafeCell<Link>,
    /// The list of all tasks of the runtime that have been started.
    pub(crate) siblings: Siblings,
    /// The stack that holds frames of it.
    pub(crate) stack: Cell<Option<NonNull<Stack>>>,
    join_waker: UnsafeCell<MaybeUninit<Waker>>,
}

/// A place for a pointer to a task.
pub(crate) type Link = Option<NonNull<Header>>;

/// A place, and the type of what lies there.
pub(crate) type Typed = (*const (), TypeId);

/// The links of the runtime's list of all tasks.
#[derive(Debug)]
pub(crate) struct Siblings {
    pub(crate) previous: Cell<Link>,
    pub(crate) next: Cell<Link>,
}

/// What depends on the future's type.
pub(crate) struct Vtable {
    /// Polls the future; when it is ready, drops it and stores the output.
    ///
    /// # Safety: the caller may touch the future (rule 5), which has not been dropped.
    poll: unsafe fn(NonNull<Header>, &mut Context<'_>) -> Poll<()>,
    /// Drops the future and stores the error as the output.
    ///
    /// # Safety: as `poll`.
    fail: unsafe fn(NonNull<Header>, JoinError),
    /// Where the output lies, an [`Outcome<T>`].
    ///
    /// # Safety: the caller may touch the output (rule 6), which is there.
    output: unsafe fn(NonNull<Header>) -> *mut (),
    /// Drops the output; a panic in its place is reported.
    ///
    /// # Safety: as `output`, and it is not used again.
    drop_output: unsafe fn(NonNull<Header>),
    /// Whether an output that is no error has anything to be dropped.
    pub(crate) value_needs_drop: bool,
    /// Frees the memory. # Safety: future and output are gone, and nobody holds a reference.
    free: unsafe fn(NonNull<Header>, Option<&FreeList>),
    /// Whether `free` may be called in any context.
    pub(crate) freed_anywhere: bool,
    /// Of the memory that `free` gives back.
    pub(crate) layout: Layout,
    /// Where the future lies, and of which type it is.
    future: unsafe fn(NonNull<Header>) -> *const (),
    future_type: TypeId,
    /// Whether the future or its output may not be `Send`.
    local: bool,
    /// What the task is called. # Safety: the task is alive.
    name: unsafe fn(NonNull<Header>) -> Option<&'static str>,
}

/// A task as it lies in memory.
#[repr(C)]
struct Task<F: Future, K> {
    body: Body<F>,
    kind: K,
}

/// What all kinds of tasks have.
#[repr(C)]
struct Body<F: Future> {
    header: Header,
    stage: UnsafeCell<Stage<F>>,
}

/// What tasks differ in besides their futures. It lies behind the future, so one that needs nothing takes
/// no room.
pub(crate) trait Storage: Sized + 'static {
    /// Whether [`free`](Self::free) may be called in any context.
    const FREED_ANYWHERE: bool;

    /// What the task is called.
    fn name(&self) -> Option<&'static str>;

    /// Gives the memory of a task of this kind back to where it came from.
    ///
    /// # Safety
    ///
    /// Nobody uses it again, and the task in it has been dropped; `layout` is its own. `free_list` as for
    /// [`Header::free`].
    unsafe fn free(self, memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>);
}

/// # Safety
///
/// As [`Storage::free`], for memory that came from the allocator.
#[inline(always)]
unsafe fn give_back(memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>) {
    // SAFETY: passed on.
    unsafe {
        match free_list {
            Some(free_list) => free_list.free(memory, layout),
            None => dealloc(memory.as_ptr(), layout),
        }
    }
}

/// A task that the allocator has memory for, without a name.
pub(crate) struct Unnamed;

/// A task that the allocator has memory for, and that was given a name, or could have been.
pub(crate) struct Named(pub(crate) Option<&'static str>);

impl Storage for Unnamed {
    const FREED_ANYWHERE: bool = false;

    fn name(&self) -> Option<&'static str> {
        None
    }

    #[inline(always)]
    unsafe fn free(self, memory: NonNull<u8>, layout: Layout, free_list: Option<&FreeList>) {
        // SAFETY: passed on.
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
        // SAFETY: passed on.
        unsafe { give_back(memory, layout, free_list) }
    }
}

/// The future, and later in the same place the output. The state word says which.
union Stage<F: Future> {
    future: ManuallyDrop<F>,
    output: ManuallyDrop<Outcome<F::Output>>,
}

/// A future's output, or why there is none: a `Result` whose value can be written in its place, without a
/// copy on the stack.
#[repr(C)]
pub(crate) struct Outcome<T> {
    is_value: bool,
    content: Content<T>,
}

/// `is_value` says which.
union Content<T> {
    value: ManuallyDrop<T>,
    error: ManuallyDrop<JoinError>,
}

impl<T> Outcome<T> {
    /// Moves the value that lies at `value` to `this`.
    ///
    /// # Safety
    ///
    /// `this` is valid for writes. The value is there, the caller's, and not used again.
    #[inline]
    unsafe fn put(this: *mut Self, value: *const T) {
        // SAFETY: the caller's promise.
        unsafe {
            (&raw mut (*this).is_value).write(true);
            (&raw mut (*this).content.value).cast::<T>().copy_from_nonoverlapping(value, 1);
        }
    }

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

    /// Where the value lies, or the error, moved out.
    ///
    /// # Safety
    ///
    /// It is there, and is taken once.
    #[inline]
    pub(crate) unsafe fn take(this: *mut Self) -> Result<*const T, JoinError> {
        // SAFETY: the caller's promise, and the flag says which it is.
        unsafe {
            if (*this).is_value {
                Ok((&raw const (*this).content.value).cast())
            } else {
                Err(ManuallyDrop::take(&mut (*this).content.error))
            }
        }
    }
}

/// The inbox keeps three tags in the low bits of pointers to headers.
const _: () = assert!(align_of::<Header>() >= 8);

impl Header {
    const_fn! {
        pub(crate) fn new(state: State, vtable: &'static Vtable, runtime: Option<&'static Runtime>) -> Self {
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
    /// Before anybody else can reach the task (rule 2).
    pub(crate) unsafe fn set_runtime(&self, runtime: &'static Runtime) {
        self.runtime.set(Some(runtime));
    }

    /// Polls the future of `task`.
    ///
    /// # Safety
    ///
    /// Rule 5: on the owning core, while the task is RUNNING, and no earlier call said Ready.
    #[inline]
    pub(crate) unsafe fn poll(task: NonNull<Self>) -> Poll<()> {
        // SAFETY: RUNNING keeps the runtime's reference, so the header lives through the poll, and
        // so does the borrowed waker; `ManuallyDrop` keeps it from releasing a reference that it
        // does not have.
        unsafe {
            let waker = ManuallyDrop::new(waker::from_header(task));
            (task.as_ref().vtable.poll)(task, &mut Context::from_waker(&waker))
        }
    }

    /// Drops the future of `task` and stores `error` as its output.
    ///
    /// # Safety
    ///
    /// Rule 5: on the owning core, while the task is RUNNING and no frame is in the middle of a poll;
    /// the future has not been dropped.
    pub(crate) unsafe fn fail(task: NonNull<Self>, error: JoinError) {
        // SAFETY: passed on.
        unsafe { (task.as_ref().vtable.fail)(task, error) }
    }

    /// Drops the output of `task`.
    ///
    /// # Safety
    ///
    /// Rule 6: the output is there, the caller's, and not used again.
    pub(crate) unsafe fn drop_output(task: NonNull<Self>) {
        // SAFETY: passed on.
        unsafe { (task.as_ref().vtable.drop_output)(task) }
    }

    /// Whether the task's whole future is what lies at `place` and is of this type, and it is `Send`.
    ///
    /// Of the type, or of one that differs from it in lifetimes only. It takes both, place and type: what
    /// begins where the future does may be a part of it, and what is of its type may be another.
    pub(crate) fn is_future(task: NonNull<Self>, (place, of_type): Typed) -> bool {
        // SAFETY: the caller's pointer to the task is valid, and the function only computes.
        unsafe {
            let vtable = task.as_ref().vtable;
            !vtable.local && vtable.future_type == of_type && (vtable.future)(task) == place
        }
    }

    /// What `task` is called.
    ///
    /// # Safety
    ///
    /// It is alive.
    pub(crate) unsafe fn name(task: NonNull<Self>) -> Option<&'static str> {
        // SAFETY: passed on.
        unsafe { (task.as_ref().vtable.name)(task) }
    }

    /// Frees a task.
    ///
    /// # Safety
    ///
    /// Its last reference is gone, and with it future and output. The caller may call the
    /// allocator. `free_list` is that of the task's runtime, if this is its core, in task context with the gate
    /// shut.
    pub(crate) unsafe fn free(task: NonNull<Self>, free_list: Option<&FreeList>) {
        // SAFETY: passed on.
        unsafe { (task.as_ref().vtable.free)(task, free_list) }
    }
}

/// A task that nobody has polled: a future, and who may poll it where.
pub(crate) struct Unspawned<F, K> {
    pub(crate) runtime: &'static Runtime,
    /// Where it lies. It is copied from there when the task is made, and is the task's when that has been
    /// published.
    pub(crate) future: *const F,
    pub(crate) kind: K,
    /// The future or its output may not be `Send`.
    pub(crate) local: bool,
    /// Whether it is known to be stackful.
    pub(crate) stackful: bool,
}

impl<F, K> Unspawned<F, K>
where
    F: Future + 'static,
    F::Output: 'static,
    K: Storage,
{
    /// Allocates the task; `None` when there is no memory.
    ///
    /// The caller gets both references: the runtime's and the join handle's.
    ///
    /// # Safety
    ///
    /// There is a future to be read.
    #[inline]
    pub(crate) unsafe fn allocate(self, origin: Origin) -> Option<NonNull<Header>> {
        let layout = Layout::new::<Task<F, K>>();
        let memory = match origin {
            Origin::Local => self.runtime.free_list().allocate(layout),
            // SAFETY: the layout is not empty: there is a header.
            Origin::Remote => NonNull::new(unsafe { alloc(layout) }),
        };
        // SAFETY: freshly allocated for this type, and the caller's promise.
        memory.map(|memory| unsafe { self.write(memory.cast(), origin) })
    }

    /// Makes the task in memory that its kind will free. As [`allocate`](Self::allocate).
    ///
    /// # Safety
    ///
    /// There is a future to be read. The memory is writable, as large and as aligned as a `Task<F, K>`, and
    /// used by no other code until it is freed.
    #[inline]
    unsafe fn write(self, memory: NonNull<Task<F, K>>, origin: Origin) -> NonNull<Header> {
        let vtable = if self.local { &Task::<F, K>::LOCAL_VTABLE } else { &Task::<F, K>::VTABLE };
        let header = Header::new(State::spawned(origin, self.stackful), vtable, Some(self.runtime));
        let task = memory.as_ptr();
        // SAFETY: the caller's promise. Field by field: a `Task` as a value would be another copy of the
        // future on the stack.
        unsafe {
            (&raw mut (*task).body.header).write(header);
            (&raw mut (*task).kind).write(self.kind);
            let stage = UnsafeCell::make_around(&raw mut (*task).body.stage);
            (&raw mut (*stage).future).cast::<F>().copy_from_nonoverlapping(self.future, 1);
        }
        memory.cast()
    }
}

/// Makes a function that takes a value of one that takes it without dropping it:
/// `undropped(function)(value, other)`.
///
/// Without optimization each by-value call copies what it is given once more, and `ManuallyDrop::new` does
/// so three times. Futures and outputs may be large. The one call that this makes is the one copy.
#[inline(always)]
pub(crate) fn undropped<T, A, R>(function: fn(ManuallyDrop<T>, A) -> R) -> fn(T, A) -> R {
    // SAFETY: `ManuallyDrop` is `repr(transparent)`, so it has the ABI of `T`, and a function that takes the
    // one may be called with the other.
    unsafe { core::mem::transmute::<fn(ManuallyDrop<T>, A) -> R, fn(T, A) -> R>(function) }
}

/// Calls a function on a value where it lies, which is then the function's to drop or to move on:
/// `in_place()(value, |place| …)`. See [`undropped`].
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
        // SAFETY: `Vtable::free`: nobody can reach it, and its kind knows where it came from. What has a
        // destructor in the body is gone; loom's cells have one of their own.
        unsafe {
            let kind = core::ptr::read(&raw const (*task).kind);
            core::ptr::drop_in_place(&raw mut (*task).body);
            kind.free(memory, Layout::new::<Self>(), free_list);
        }
    }

    unsafe fn name(task: NonNull<Header>) -> Option<&'static str> {
        // SAFETY: `task` is of this type and alive, and its kind never changes (rule 2).
        unsafe { (*task.cast::<Self>().as_ptr()).kind.name() }
    }
}

impl<F> Body<F>
where
    F: Future + 'static,
    F::Output: 'static,
{
    /// # Safety
    ///
    /// `task` is of this type and allocated.
    unsafe fn stage<'a>(task: NonNull<Header>) -> &'a UnsafeCell<Stage<F>> {
        // SAFETY: the caller promises the type; the borrow is used within the caller's own call.
        unsafe { &(*task.cast::<Self>().as_ptr()).stage }
    }

    unsafe fn poll(task: NonNull<Header>, context: &mut Context<'_>) -> Poll<()> {
        in_place()(
            // SAFETY: `Vtable::poll`: the future is there and ours (rule 5); it is never moved, so the
            // pin holds.
            unsafe {
                Self::stage(task)
                    .with_mut(|stage| Pin::new_unchecked(&mut *(*stage).future).poll(context))
            },
            |poll: *mut Poll<F::Output>| {
                // SAFETY: what has just been returned, and is ours.
                let Poll::Ready(output) = (unsafe { &*poll }) else { return Poll::Pending };
                // The future goes before the output takes its place, and should its drop panic,
                // the output is stored all the same.
                let store = Store {
                    task,
                    // SAFETY: the future has been dropped, and the output is moved once, by `Store`.
                    put: || unsafe { Outcome::put(Self::outcome(task), output) },
                };
                // SAFETY: as above; it is dropped once, since nobody polls after Ready.
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
                    // SAFETY: the future has been dropped.
                    unsafe { Outcome::put_error(Self::outcome(task), error) }
                }
            },
        };
        // SAFETY: `Vtable::fail`: the future is there, ours, and dropped once.
        unsafe { Self::drop_future(task) };
        store.store();
    }

    unsafe fn drop_future(task: NonNull<Header>) {
        // SAFETY: as the callers.
        unsafe { Self::stage(task).with_mut(|stage| ManuallyDrop::drop(&mut (*stage).future)) }
    }

    /// The output's place.
    ///
    /// # Safety
    ///
    /// As [`stage`](Self::stage), and the caller may touch it (rules 5 and 6).
    unsafe fn outcome(task: NonNull<Header>) -> *mut Outcome<F::Output> {
        // SAFETY: passed on.
        unsafe { Self::stage(task).with_mut(|stage| (&raw mut (*stage).output).cast()) }
    }

    unsafe fn output(task: NonNull<Header>) -> *mut () {
        // SAFETY: `Vtable::output`.
        unsafe { Self::outcome(task).cast() }
    }

    unsafe fn drop_output(task: NonNull<Header>) {
        // SAFETY: `Vtable::drop_output`, as `output`; the task is alive, and the value is dropped once.
        unsafe {
            match Outcome::take(Self::outcome(task)) {
                Ok(value) => core::ptr::drop_in_place(value.cast_mut()),
                // Its drop may panic too.
                Err(JoinError::Panicked(payload)) => panic::discard(task, payload),
                Err(JoinError::Aborted | JoinError::Abandoned) => {}
            }
        }
    }

    unsafe fn future(task: NonNull<Header>) -> *const () {
        // SAFETY: `task` is of this type and allocated; only an address is computed.
        unsafe { (&raw const (*Self::stage(task).address()).future).cast() }
    }
}

/// An output on its way into the future's place, which must get there although the future's drop
/// may panic.
struct Store<P: FnMut()> {
    task: NonNull<Header>,
    /// Puts it there. Called once, when the future has been dropped, or its drop unwinds, after which it is
    /// not used again.
    put: P,
}

impl<P: FnMut()> Store<P> {
    fn store(self) {
        (ManuallyDrop::new(self).put)();
    }
}

impl<P: FnMut()> Drop for Store<P> {
    fn drop(&mut self) {
        (self.put)();
        // SAFETY: the task is RUNNING, which keeps it allocated.
        unsafe { self.task.as_ref() }.state.set_stored();
    }
}

/// The vtable of the runtime's root task, whose future lies elsewhere.
pub(crate) static ROOT: Vtable = Vtable {
    poll: |task, context| {
        // SAFETY: the caller's task is alive.
        unsafe { task.as_ref() }
            .runtime
            .get()
            .map_or(Poll::Pending, |runtime| runtime.poll_root(context))
    },
    // SAFETY (each): the runtime gives nobody a join handle for its root task, doesn't abort it, and
    // its references never run out; so none of these is called.
    fail: |_, _| unreachable!(),
    output: |_| unreachable!(),
    drop_output: |_| unreachable!(),
    value_needs_drop: false,
    free: |_, _| unreachable!(),
    freed_anywhere: false,
    layout: Layout::new::<()>(),
    future: |_| core::ptr::null(),
    // There is no future of this type.
    future_type: TypeId::of::<Vtable>(),
    // What `run_until` waits for need not be `Send`.
    local: true,
    name: |_| Some("run_until"),
};

/// Which task: unique among those that have not been freed, and used again after that.
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

/// A task in a message: its id, and its name if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) id: TaskId,
    pub(crate) name: Option<&'static str>,
}

impl Label {
    /// # Safety
    ///
    /// The task is alive.
    pub(crate) unsafe fn of(task: NonNull<Header>) -> Self {
        // SAFETY: passed on.
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
