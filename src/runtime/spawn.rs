//! How tasks come.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, size_of};
use core::ptr::{self, NonNull};

use super::Runtime;
use crate::platform::{InInterrupt, bound};
use crate::preempt::PreemptGuard;
use crate::ready::{self, Origin};
use crate::stackful::Stackful;
use crate::task::join::JoinHandle;
use crate::task::{Header, Named, Storage, Unnamed, Unspawned, in_place};

impl Runtime {
    /// Spawns a task on this runtime. Any core, task context or with the allocator usable.
    ///
    /// After a [`shutdown`](Self::shutdown) the future is dropped by the caller, and the handle says
    /// [`JoinError::Aborted`](crate::JoinError::Aborted).
    ///
    /// # Panics
    ///
    /// If memory is out, as every allocation of the program's then does (by `handle_alloc_error`);
    /// [`try_spawn`](Self::try_spawn) gives the future back.
    pub fn spawn<F>(&'static self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds.
            or_panic(|future| unsafe { self.spawn_from(future, Unnamed) }),
        )
    }

    /// Spawns a task on this runtime. Any core, task context or with the allocator usable.
    ///
    /// # Errors
    ///
    /// Memory is out, or the runtime has been shut down. The future comes back.
    pub fn try_spawn<F>(&'static self, future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds.
            or_error(|future| unsafe { self.spawn_from(future, Unnamed) }),
        )
    }

    /// Spawns a task that may be polled on any stack.
    ///
    /// # Safety
    ///
    /// As [`Unspawned::spawn`]: future and output are `Send`.
    #[inline]
    unsafe fn spawn_from<F, K>(&'static self, future: *const F, kind: K) -> Spawned<F>
    where
        F: Future + 'static,
        F::Output: 'static,
        K: Storage,
    {
        // SAFETY: passed on.
        unsafe { Unspawned { runtime: self, future, kind, local: false, stackful: false }.spawn() }
    }

    /// Spawns a task that is known to be stackful before its first poll.
    ///
    /// # Safety
    ///
    /// There is a future to be read, which is the task's if this is `Ok`, and the caller's if not.
    pub(crate) unsafe fn spawn_stackful<F>(
        &'static self,
        future: *const Stackful<F>,
    ) -> Spawned<Stackful<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // SAFETY: passed on, and the bounds.
        unsafe {
            Unspawned { runtime: self, future, kind: Unnamed, local: false, stackful: true }.spawn()
        }
    }

    /// Publishes a new task, and makes its join handle.
    ///
    /// # Safety
    ///
    /// As [`Unspawned::spawn`], for a `Unspawned<F, _>` of this runtime's that no other code has seen. If the task is the
    /// allocator's memory, the caller may call the allocator.
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
        // SAFETY: a new task of this runtime, made for this origin, with the runtime's reference.
        match unsafe { ready::push_new(self, task, origin) } {
            // SAFETY: the other reference is the join handle's.
            Ok(()) => Ok(unsafe { JoinHandle::new(task) }),
            Err(ready::Closed) => {
                // SAFETY: no other code has seen the task, and the future is still where it was copied from.
                unsafe { Header::free(task, None) };
                Err(SpawnErrorReason::ShutDown)
            }
        }
    }
}

/// The join handle of a task that was made of an `F`, which is the task's; or why there is none, and the
/// future is where it was.
pub(crate) type Spawned<F> = Result<JoinHandle<<F as Future>::Output>, SpawnErrorReason>;

/// What [`in_place`] calls for a function that panics when it cannot spawn.
pub(crate) fn or_panic<F: Future>(
    spawn: impl FnOnce(*const F) -> Spawned<F>,
) -> impl FnOnce(*mut F) -> JoinHandle<F::Output> {
    |future| match spawn(future) {
        Ok(handle) => handle,
        // SAFETY: the future is still there, and ours.
        Err(reason) => unsafe { refused(future, reason) },
    }
}

/// What [`in_place`] calls for a function that gives the future back when it cannot spawn.
pub(crate) fn or_error<F: Future>(
    spawn: impl FnOnce(*const F) -> Spawned<F>,
) -> impl FnOnce(*mut F) -> Result<JoinHandle<F::Output>, SpawnError<F>> {
    |future| match spawn(future) {
        Ok(handle) => Ok(handle),
        // SAFETY: the future is still there, and ours.
        Err(reason) => unsafe { given_back(future, reason) },
    }
}

/// # Safety
///
/// The future is there, and is moved out.
#[cold]
unsafe fn given_back<F, T>(future: *mut F, reason: SpawnErrorReason) -> Result<T, SpawnError<F>> {
    // SAFETY: the caller's promise.
    Err(SpawnError { future: unsafe { future.read() }, reason })
}

/// # Safety
///
/// The future is there, and is dropped.
#[cold]
unsafe fn refused<F: Future>(future: *mut F, reason: SpawnErrorReason) -> JoinHandle<F::Output> {
    /// Also in a panic.
    struct Drop<F>(*mut F);
    impl<F> core::ops::Drop for Drop<F> {
        fn drop(&mut self) {
            // SAFETY: the caller of `refused` promises that it is there.
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
                "a LocalSpawner was used in a stackful task or outside of its runtime: use it in plain tasks"
            )
        }
        SpawnErrorReason::InUse => unreachable!("only a StaticTask is in use"),
    }
}

/// A future of so many bytes may be in registers where it is spawned. It would have to be in memory if
/// code out of line got a pointer to it: that gets one to a copy.
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
    /// Future and output are `Send`; or it is `local`, and [`LocalSpawner::runtime`] has given the caller
    /// the runtime. The future is there to be read; it is the task's if this is `Ok`, and the caller's if not.
    #[inline]
    unsafe fn spawn(self) -> Spawned<F> {
        if ready::on_fast_path(self.runtime) {
            // SAFETY: passed on.
            return unsafe { self.spawn_from(Origin::Local) };
        }
        if size_of::<F>() <= IN_REGISTERS {
            // SAFETY: passed on.
            return unsafe { self.spawn_a_copy() };
        }
        // SAFETY: passed on.
        unsafe { self.spawn_with_guard() }
    }

    /// As [`spawn_with_guard`](Self::spawn_with_guard), for a small future. In a function of its own, as in an
    /// unoptimized build it has room for a future on the stack.
    ///
    /// # Safety
    ///
    /// As [`spawn`](Self::spawn).
    #[inline]
    unsafe fn spawn_a_copy(self) -> Spawned<F> {
        // SAFETY: passed on. Only the copy is used from here on.
        let copy = MaybeUninit::new(unsafe { self.future.read() });
        // SAFETY: passed on.
        unsafe { Unspawned { future: copy.as_ptr(), ..self }.spawn_with_guard() }
    }

    /// From a stackful task, which may be preempted here, or from elsewhere.
    ///
    /// # Safety
    ///
    /// As [`spawn`](Self::spawn).
    #[inline(never)]
    unsafe fn spawn_with_guard(self) -> Spawned<F> {
        let _guard = PreemptGuard::new();
        let origin = ready::origin(self.runtime);
        // SAFETY: passed on.
        unsafe { self.spawn_from(origin) }
    }

    /// # Safety
    ///
    /// As [`spawn`](Self::spawn); `origin` is the caller's.
    #[inline(always)]
    unsafe fn spawn_from(self, origin: Origin) -> Spawned<F> {
        let runtime = self.runtime;
        // SAFETY: the caller's promise.
        match unsafe { self.allocate(origin) } {
            // SAFETY: a new task of this runtime's, and the caller promises the rest.
            Some(task) => unsafe { runtime.publish::<F>(task, origin) },
            None => Err(SpawnErrorReason::OutOfMemory),
        }
    }
}

/// Spawns a task on this core's runtime. See [`Runtime::spawn`].
///
/// # Panics
///
/// On a core that is not inside of a runtime (use [`Runtime::spawn`] there), and if memory is out.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    in_place()(
        future,
        // SAFETY: the bounds.
        or_panic(|future| unsafe { here()?.spawn_from(future, Unnamed) }),
    )
}

/// Spawns a task on this core's runtime. See [`Runtime::try_spawn`].
///
/// # Errors
///
/// As [`Runtime::try_spawn`], and on a core that is not inside of a runtime. The future comes back.
pub fn try_spawn<F>(future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    in_place()(
        future,
        // SAFETY: the bounds.
        or_error(|future| unsafe { here()?.spawn_from(future, Unnamed) }),
    )
}

/// The calling core's runtime.
#[inline]
pub(crate) fn here() -> Result<&'static Runtime, SpawnErrorReason> {
    Runtime::current().ok_or(SpawnErrorReason::NoRuntime)
}

/// Spawns tasks whose futures need not be `Send`, on this core's runtime.
///
/// Such a task never leaves its core, and no code of it runs on a stack: a
/// [`stackful`](crate::stackful()) future in it is always a child. What is not `Send` may be shared
/// among the local tasks of a core and the future of [`Runtime::run_until`], none of which is
/// preempted.
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
// It is a witness, not a right: `spawn` looks again, since it may have been taken out of its runtime, or put
// into a thread-local and been found there by a stackful task.
#[derive(Clone, Copy, Debug)]
pub struct LocalSpawner {
    runtime: &'static Runtime,
    not_send: PhantomData<*mut ()>,
}

impl LocalSpawner {
    /// The spawner of the runtime that the calling core is inside of.
    ///
    /// `None` in a stackful task, since it is preempted for local tasks and so must not share with them
    /// what is not `Send`; in an interrupt, if the platform is certain that it is one; and outside of a
    /// runtime.
    pub fn current() -> Option<Self> {
        let spawner = Self { runtime: Runtime::current()?, not_send: PhantomData };
        spawner.runtime().map(|_| spawner)
    }

    /// The runtime, if the caller may spawn local tasks on it.
    ///
    /// Why a task that isn't `Send` may be made by such a caller: what it holds comes from this core's code
    /// that isn't on a stack, and stays there. The future is polled and dropped by the core's loop (rule 5
    /// of the task's fields), never on a stack ([`Header::is_future`]), also in a shutdown, into which
    /// `Runtime::claim_for_shutdown` lets no other core. So is the output, or it is the join handle's
    /// holder's, and then either `Send` or in a handle that isn't. And all of that code is one thread in
    /// the sense of `Send`: nothing of it preempts the rest, and the platform promises that no other thread
    /// ever is this core while there are such tasks.
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
    /// Where [`current`](Self::current) would say `None` or give another spawner, and when memory is out.
    pub fn spawn<F>(self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // SAFETY: where the future lies.
        in_place()(future, or_panic(|future| unsafe { self.spawn_from(future, Unnamed) }))
    }

    /// Spawns a local task.
    ///
    /// # Errors
    ///
    /// Where [`current`](Self::current) would say `None` or give another spawner, and when memory is out. The
    /// future comes back.
    pub fn try_spawn<F>(self, future: F) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        in_place()(
            future,
            // SAFETY: where the future lies.
            or_error(|future| unsafe { self.spawn_from(future, Unnamed) }),
        )
    }

    /// # Safety
    ///
    /// There is a future to be read, which is the task's if this is `Ok`, and the caller's if not.
    unsafe fn spawn_from<F, K>(self, future: *const F, kind: K) -> Spawned<F>
    where
        F: Future + 'static,
        F::Output: 'static,
        K: Storage,
    {
        let runtime = self.runtime().ok_or(SpawnErrorReason::NotLocal)?;
        // SAFETY: `runtime` has just said so, and the caller's promise.
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
/// The name is for people: it stands in messages and in [`Current`](crate::Current), need not be unique, and
/// takes two words of the task's memory. (A [`StaticTask`](crate::StaticTask) has its own way to one.)
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskBuilder {
    name: Option<&'static str>,
}

impl TaskBuilder {
    /// Nothing chosen yet.
    pub const fn new() -> Self {
        Self { name: None }
    }

    /// What the task shall be called.
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
            // SAFETY: the bounds.
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
            // SAFETY: the bounds.
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
            // SAFETY: where the future lies.
            or_error(|future| unsafe { spawner.spawn_from(future, Named(self.name)) }),
        )
    }
}

/// A task was not spawned. The future is in it.
pub struct SpawnError<F> {
    /// What should have been spawned.
    pub future: F,
    /// Why it was not.
    pub reason: SpawnErrorReason,
}

/// Why a task was not spawned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnErrorReason {
    /// The allocator had no memory for it.
    OutOfMemory,
    /// The runtime has been shut down.
    ShutDown,
    /// The calling core is not inside of a runtime.
    NoRuntime,
    /// The caller is not [where this spawner's local tasks are spawned](LocalSpawner::current).
    NotLocal,
    /// The [`StaticTask`](crate::StaticTask) has a task: one that runs, or of which there is a join handle
    /// or a waker.
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
