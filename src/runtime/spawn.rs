//! Spawning: how a future becomes a task of a runtime.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, size_of};
use core::ptr::{self, NonNull};

use crate::platform::{InInterrupt, bound};
use crate::preempt::guard::PreemptGuard;
use crate::queue::Closed;
use crate::ready;
use crate::runtime::core::Runtime;
use crate::stackful::future::Stackful;
use crate::task::by_place::in_place;
use crate::task::header::Header;
use crate::task::join::JoinHandle;
use crate::task::new::Unspawned;
use crate::task::state::Origin;
use crate::task::storage::{Named, Storage, Unnamed};

impl Runtime {
    /// Spawns a task on this runtime. Any core, in task context or wherever else the allocator may
    /// be called.
    ///
    /// After a [`shutdown`](Self::shutdown), `spawn` drops the future in the caller's context, and
    /// the handle gives [`JoinError::Aborted`](crate::JoinError::Aborted).
    ///
    /// # Panics
    ///
    /// If there is no memory for the task. `spawn` then calls `handle_alloc_error`, as other
    /// allocations of the program do. [`try_spawn`](Self::try_spawn) returns the future in that
    /// case.
    pub fn spawn<F>(&'static self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds make future and output `Send`, and `in_place` passes the address
            // of the future.
            or_panic(|future| unsafe { self.spawn_from(future, Unnamed) }),
        )
    }

    /// Spawns a task on this runtime. Any core, in task context or wherever else the allocator may
    /// be called.
    ///
    /// # Errors
    ///
    /// If there is no memory for the task, or if the runtime has been shut down. The error contains
    /// the future.
    pub fn try_spawn<F>(&'static self, future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds make future and output `Send`, and `in_place` passes the address
            // of the future.
            or_error(|future| unsafe { self.spawn_from(future, Unnamed) }),
        )
    }

    /// Spawns a task that is not local, so it may be polled on any stack.
    ///
    /// # Safety
    ///
    /// As for [`Unspawned::spawn`], with a future and an output that are `Send`.
    #[inline]
    unsafe fn spawn_from<F, K>(&'static self, future: *const F, kind: K) -> Spawned<F>
    where
        F: Future + 'static,
        F::Output: 'static,
        K: Storage,
    {
        // SAFETY: the caller promises what `Unspawned::spawn` demands of a task that is not local.
        unsafe { Unspawned { runtime: self, future, kind, local: false, stackful: false }.spawn() }
    }

    /// Spawns a task that is known to be stackful before its first poll.
    ///
    /// # Safety
    ///
    /// `future` points at a future that may be read. If this returns `Ok`, the future belongs to
    /// the task; otherwise the future still belongs to the caller.
    pub(crate) unsafe fn spawn_stackful<F>(
        &'static self,
        future: *const Stackful<F>,
    ) -> Spawned<Stackful<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // SAFETY: the caller promises that the future may be read, and the bounds make future and
        // output `Send`.
        unsafe {
            Unspawned { runtime: self, future, kind: Unnamed, local: false, stackful: true }.spawn()
        }
    }

    /// Publishes a new task, and makes its join handle.
    ///
    /// # Safety
    ///
    /// As for [`Unspawned::spawn`]. In addition: the task was made from an `Unspawned<F, _>` of
    /// this runtime, for `origin`, and no other code has seen it. If the task's memory comes from
    /// the allocator, the context allows calls of the allocator.
    #[inline]
    pub(crate) unsafe fn publish<F>(
        &'static self,
        task: NonNull<Header>,
        origin: Origin,
    ) -> Spawned<F>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // SAFETY: the task is new, belongs to this runtime, was made for this origin, and has the
        // runtime's reference.
        match unsafe { ready::push_new(self, task, origin) } {
            // SAFETY: a new task has two references. One is the runtime's, and this join handle
            // takes the other.
            Ok(()) => Ok(unsafe { JoinHandle::new(task) }),
            Err(Closed) => {
                // SAFETY: no other code has seen the task. `free` does not drop the task's copy of
                // the future, so the caller still has the future, at the place from which it was
                // copied. The context allows calls of the allocator, by the caller's promise.
                unsafe { Header::free(task, None) };
                Err(SpawnErrorReason::ShutDown)
            }
        }
    }
}

/// The result of spawning an `F`. `Ok`: the join handle of the task, to which the future belongs
/// now. `Err`: the reason why there is no task; the future is still at its place.
pub(crate) type Spawned<F> = Result<JoinHandle<<F as Future>::Output>, SpawnErrorReason>;

/// Makes the function that [`in_place`] calls for a spawn that panics on failure.
pub(crate) fn or_panic<F: Future>(
    spawn: impl FnOnce(*const F) -> Spawned<F>,
) -> impl FnOnce(*mut F) -> JoinHandle<F::Output> {
    |future| match spawn(future) {
        Ok(handle) => handle,
        // SAFETY: the spawn has failed, so the future is still at its place and belongs to this
        // code.
        Err(reason) => unsafe { refused(future, reason) },
    }
}

/// Makes the function that [`in_place`] calls for a spawn that returns the future on failure.
pub(crate) fn or_error<F: Future>(
    spawn: impl FnOnce(*const F) -> Spawned<F>,
) -> impl FnOnce(*mut F) -> Result<JoinHandle<F::Output>, SpawnError<F>> {
    |future| match spawn(future) {
        Ok(handle) => Ok(handle),
        // SAFETY: the spawn has failed, so the future is still at its place and belongs to this
        // code.
        Err(reason) => unsafe { given_back(future, reason) },
    }
}

/// Returns the future with the reason why it was not spawned.
///
/// # Safety
///
/// `future` points at a future that belongs to the caller. This function moves it out, so the
/// caller does not use it again.
#[cold]
unsafe fn given_back<F, T>(future: *mut F, reason: SpawnErrorReason) -> Result<T, SpawnError<F>> {
    // SAFETY: the caller promises that the future is there, and does not use it again.
    Err(SpawnError { future: unsafe { future.read() }, reason })
}

/// Drops the future of a spawn that failed. If the runtime has been shut down, returns the handle
/// of an aborted task; otherwise panics.
///
/// # Safety
///
/// `future` points at a future that belongs to the caller. This function drops it, so the caller
/// does not use it again.
#[cold]
unsafe fn refused<F: Future>(future: *mut F, reason: SpawnErrorReason) -> JoinHandle<F::Output> {
    /// Drops the future, also when the code below panics.
    struct Drop<F>(*mut F);
    impl<F> core::ops::Drop for Drop<F> {
        fn drop(&mut self) {
            // SAFETY: the caller of `refused` promises that the future is there, and does not use
            // it again.
            unsafe { self.0.drop_in_place() }
        }
    }
    let _drop = Drop(future);
    match reason {
        SpawnErrorReason::OutOfMemory => {
            alloc::alloc::handle_alloc_error(core::alloc::Layout::new::<F>())
        }
        SpawnErrorReason::ShutDown => JoinHandle::aborted(),
        SpawnErrorReason::NoRuntime => {
            panic!("trapline::spawn was called outside of a runtime: use Runtime::spawn there")
        }
        SpawnErrorReason::NotLocal => {
            panic!(
                "a LocalSpawner was used in a stackful task or outside of its runtime: use it in \
                 plain tasks"
            )
        }
        SpawnErrorReason::InUse => unreachable!("only the spawn of a StaticTask fails with InUse"),
    }
}

/// The size in bytes up to which the compiler may keep a future in registers where it is spawned.
/// If a function that is not inlined got a pointer to the future, the future would have to be in
/// memory. So for a future of up to this size, that function gets a pointer to a copy.
const IN_REGISTERS: usize = 4 * size_of::<usize>();

impl<F, K> Unspawned<F, K>
where
    F: Future + 'static,
    F::Output: 'static,
    K: Storage,
{
    /// Allocates the task and publishes it.
    ///
    /// # Safety
    ///
    /// - Future and output are `Send`; or the task is `local`, and the caller got the runtime from
    ///   [`LocalSpawner::runtime`].
    /// - `future` points at a future that may be read. If this returns `Ok`, the future belongs to
    ///   the task; otherwise the future still belongs to the caller.
    #[inline]
    unsafe fn spawn(self) -> Spawned<F> {
        if ready::on_fast_path(self.runtime) {
            // SAFETY: the caller promises what `spawn` demands. This is the fast path, so the
            // origin is `Local`.
            return unsafe { self.spawn_from(Origin::Local) };
        }
        if size_of::<F>() <= IN_REGISTERS {
            // SAFETY: passed on.
            return unsafe { self.spawn_a_copy() };
        }
        // SAFETY: passed on.
        unsafe { self.spawn_with_guard() }
    }

    /// Does the same as [`spawn_with_guard`](Self::spawn_with_guard), for a small future. This is
    /// not a part of `spawn`, since in an unoptimized build it reserves stack space for a future.
    ///
    /// # Safety
    ///
    /// As for [`spawn`](Self::spawn).
    #[inline]
    unsafe fn spawn_a_copy(self) -> Spawned<F> {
        // SAFETY: the caller promises that the future may be read. If the spawn succeeds, only the
        // copy is used from here on; if it fails, only the caller's future is used.
        let copy = MaybeUninit::new(unsafe { self.future.read() });
        // SAFETY: the caller promises what `spawn` demands, and it holds for the copy as well.
        unsafe { Unspawned { future: copy.as_ptr(), ..self }.spawn_with_guard() }
    }

    /// Spawns outside of the fast path: from a stackful task, which may be preempted here, from an
    /// interrupt, or from another core.
    ///
    /// # Safety
    ///
    /// As for [`spawn`](Self::spawn).
    #[inline(never)]
    unsafe fn spawn_with_guard(self) -> Spawned<F> {
        let _guard = PreemptGuard::new();
        let origin = ready::origin(self.runtime);
        // SAFETY: the caller promises what `spawn` demands. `origin` stays true, since preemption
        // was disabled before and is still disabled.
        unsafe { self.spawn_from(origin) }
    }

    /// Allocates the task and publishes it. `origin` says from which context.
    ///
    /// # Safety
    ///
    /// As for [`spawn`](Self::spawn). In addition, `origin` is the caller's context.
    #[inline(always)]
    unsafe fn spawn_from(self, origin: Origin) -> Spawned<F> {
        let runtime = self.runtime;
        // SAFETY: the caller promises that the future may be read.
        match unsafe { self.allocate(origin) } {
            // SAFETY: the task is new, was made from this `Unspawned` for this runtime and origin,
            // and no other code has seen it. The caller promises the rest.
            Some(task) => unsafe { runtime.publish::<F>(task, origin) },
            None => Err(SpawnErrorReason::OutOfMemory),
        }
    }
}

/// Spawns a task on this core's runtime. See [`Runtime::spawn`].
///
/// # Panics
///
/// On a core that is not inside of a runtime (use [`Runtime::spawn`] there), and if there is no
/// memory for the task.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    in_place()(
        future,
        // SAFETY: the bounds make future and output `Send`, and `in_place` passes the address of
        // the future.
        or_panic(|future| unsafe { here()?.spawn_from(future, Unnamed) }),
    )
}

/// Spawns a task on this core's runtime. See [`Runtime::try_spawn`].
///
/// # Errors
///
/// As [`Runtime::try_spawn`], and on a core that is not inside of a runtime. The error contains the
/// future.
pub fn try_spawn<F>(future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    in_place()(
        future,
        // SAFETY: the bounds make future and output `Send`, and `in_place` passes the address of
        // the future.
        or_error(|future| unsafe { here()?.spawn_from(future, Unnamed) }),
    )
}

/// Returns the calling core's runtime.
#[inline]
pub(crate) fn here() -> Result<&'static Runtime, SpawnErrorReason> {
    Runtime::current().ok_or(SpawnErrorReason::NoRuntime)
}

/// Spawns tasks whose futures need not be `Send`, on this core's runtime.
///
/// Such a task never leaves its core, and none of its own code runs on a stack of the pool: a
/// [`stackful`](crate::stackful()) future in it is always spawned as a child task. The local tasks
/// of a core and the future of [`Runtime::run_until`] may share values that are not `Send`, since
/// none of them is preempted.
///
/// ```
/// # use std::{cell::Cell, rc::Rc};
/// # use trapline::{LocalSpawner, Runtime, yield_now};
/// # fn on(runtime: &'static Runtime) {
/// let _ = runtime.run_until(async {
///     let spawner = LocalSpawner::current().expect("in a plain task");
///     let shared = Rc::new(Cell::new(1));
///     let theirs = shared.clone();
///     let task = spawner.spawn(async move {
///         yield_now().await;
///         theirs.set(2);
///         theirs
///     });
///     assert_eq!(task.await.unwrap().get(), 2);
/// });
/// # }
/// ```
// `spawn` checks the context again, since a `LocalSpawner` does not prove that the context is
// right: it may have been moved out of its runtime, or a stackful task may have got it from a
// thread-local.
#[derive(Clone, Copy, Debug)]
pub struct LocalSpawner {
    runtime: &'static Runtime,
    not_send: PhantomData<*mut ()>,
}

impl LocalSpawner {
    /// Returns the spawner of the runtime that the calling core is inside of.
    ///
    /// Returns `None`:
    ///
    /// - in a stackful task, since local tasks may run while the stackful task is preempted, so it
    ///   must not share values that are not `Send` with them;
    /// - in an interrupt, if the platform is certain that the context is an interrupt;
    /// - outside of a runtime.
    pub fn current() -> Option<Self> {
        let spawner = Self { runtime: Runtime::current()?, not_send: PhantomData };
        spawner.runtime().map(|_| spawner)
    }

    /// Returns the runtime, if the caller may spawn local tasks on it.
    ///
    /// A caller that gets `Some` may spawn a task that is not `Send`, for these reasons:
    ///
    /// - The values in the future come from code of this core that is not on a stack, and they stay
    ///   with such code.
    /// - The core's loop polls and drops the future (rule 5 of [`crate::task`]), and does so at
    ///   home, never on a stack of the pool ([`Header::is_future`]). In a shutdown the same core
    ///   drops the future: `Runtime::claim_for_shutdown` admits no other core.
    /// - The loop also drops the output, unless the output belongs to the owner of the join handle.
    ///   In that case either the output is `Send`, or the handle is not `Send`.
    /// - All of that code counts as one thread in the sense of `Send`: no part of it preempts
    ///   another part, and the platform promises that no other thread becomes this core while there
    ///   are such tasks.
    #[inline]
    pub(crate) fn runtime(self) -> Option<&'static Runtime> {
        let here = Runtime::current().is_some_and(|runtime| ptr::eq(runtime, self.runtime))
            && !self.runtime.is_on_stack()
            && bound::in_interrupt() != InInterrupt::Yes;
        here.then_some(self.runtime)
    }

    /// Spawns a local task.
    ///
    /// # Panics
    ///
    /// In a context in which [`current`](Self::current) returns `None` or another runtime's
    /// spawner, and if there is no memory for the task.
    pub fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // SAFETY: `in_place` passes the address of the future.
        in_place()(future, or_panic(|future| unsafe { self.spawn_from(future, Unnamed) }))
    }

    /// Spawns a local task.
    ///
    /// # Errors
    ///
    /// In a context in which [`current`](Self::current) returns `None` or another runtime's
    /// spawner, and if there is no memory for the task. The error contains the future.
    pub fn try_spawn<F>(self, future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        in_place()(
            future,
            // SAFETY: `in_place` passes the address of the future.
            or_error(|future| unsafe { self.spawn_from(future, Unnamed) }),
        )
    }

    /// Spawns a local task, if the caller may do that.
    ///
    /// # Safety
    ///
    /// `future` points at a future that may be read. If this returns `Ok`, the future belongs to
    /// the task; otherwise the future still belongs to the caller.
    unsafe fn spawn_from<F, K>(self, future: *const F, kind: K) -> Spawned<F>
    where
        F: Future + 'static,
        F::Output: 'static,
        K: Storage,
    {
        let runtime = self.runtime().ok_or(SpawnErrorReason::NotLocal)?;
        // SAFETY: `LocalSpawner::runtime` has just returned the runtime for a local task, and the
        // caller promises that the future may be read.
        unsafe { Unspawned { runtime, future, kind, local: true, stackful: false }.spawn() }
    }
}

/// Spawns a task that has a name.
///
/// ```
/// # use trapline::{Runtime, TaskBuilder};
/// # fn on(runtime: &'static Runtime) {
/// let task = TaskBuilder::new().name("net rx").spawn_on(runtime, async { 1 });
/// assert_eq!(task.unwrap().name(), Some("net rx"));
/// # }
/// ```
///
/// The name is for people: messages and [`Current`](crate::Current) show it. It need not be unique,
/// and takes two words of the task's memory. (A [`StaticTask`](crate::StaticTask) gets its name in
/// another way.)
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskBuilder {
    name: Option<&'static str>,
}

impl TaskBuilder {
    /// Makes a builder without a name.
    pub const fn new() -> Self {
        Self { name: None }
    }

    /// Sets the name of the task.
    #[must_use]
    pub const fn name(self, name: &'static str) -> Self {
        Self { name: Some(name) }
    }

    /// Spawns the task on this core's runtime. See [`try_spawn`].
    ///
    /// # Errors
    ///
    /// As [`try_spawn`].
    pub fn spawn<F>(self, future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds make future and output `Send`, and `in_place` passes the address
            // of the future.
            or_error(|future| unsafe { here()?.spawn_from(future, Named(self.name)) }),
        )
    }

    /// Spawns the task on any runtime. See [`Runtime::try_spawn`].
    ///
    /// # Errors
    ///
    /// As [`Runtime::try_spawn`].
    pub fn spawn_on<F>(
        self,
        runtime: &'static Runtime,
        future: F,
    ) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds make future and output `Send`, and `in_place` passes the address
            // of the future.
            or_error(|future| unsafe { runtime.spawn_from(future, Named(self.name)) }),
        )
    }

    /// Spawns the task as a local one. See [`LocalSpawner::try_spawn`].
    ///
    /// # Errors
    ///
    /// As [`LocalSpawner::try_spawn`].
    pub fn spawn_local<F>(
        self,
        spawner: LocalSpawner,
        future: F,
    ) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        in_place()(
            future,
            // SAFETY: `in_place` passes the address of the future.
            or_error(|future| unsafe { spawner.spawn_from(future, Named(self.name)) }),
        )
    }
}

/// The error of a spawn that failed. It contains the future.
pub struct SpawnError<F> {
    /// The future that was to be spawned.
    pub future: F,
    /// The reason why it was not spawned.
    pub reason: SpawnErrorReason,
}

/// The reason why a task was not spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnErrorReason {
    /// The allocator had no memory for the task.
    OutOfMemory,
    /// The runtime has been shut down.
    ShutDown,
    /// The calling core is not inside of a runtime.
    NoRuntime,
    /// The context is not [one in which this spawner spawns local tasks](LocalSpawner::current).
    NotLocal,
    /// The [`StaticTask`](crate::StaticTask) has a task already: the task runs, or there is still a
    /// join handle or a waker of it.
    InUse,
}

impl<F> fmt::Debug for SpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpawnError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<F> fmt::Display for SpawnError<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            SpawnErrorReason::OutOfMemory => "there is no memory for the task",
            SpawnErrorReason::ShutDown => "the runtime has been shut down",
            SpawnErrorReason::NoRuntime => "this core is not inside of a runtime",
            SpawnErrorReason::NotLocal => "local tasks are spawned in plain tasks of their runtime",
            SpawnErrorReason::InUse => "the static task is in use",
        })
    }
}

impl<F> core::error::Error for SpawnError<F> {}
