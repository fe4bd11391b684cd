//! How tasks come.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use super::Runtime;
use crate::platform::{InInterrupt, bound};
use crate::ready::{self, Origin};
use crate::stackful::Stackful;
use crate::task::join::JoinHandle;
use crate::task::{self, Header, Kind, Named, New, Unnamed};

impl Runtime {
    /// Spawns a task on this runtime. Any core, task context or with the allocator usable.
    ///
    /// After a [`shutdown`](Self::shutdown) the future is dropped by the caller, and the handle says
    /// [`JoinError::Aborted`](crate::JoinError::Aborted).
    ///
    /// # Panics
    ///
    /// As every allocation of the program's does when memory is out; [`try_spawn`](Self::try_spawn) gives the
    /// future back.
    pub fn spawn<F>(&'static self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.try_spawn(future) {
            Ok(handle) => handle,
            Err(error) => error.into_handle(),
        }
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
        // SAFETY: the bounds.
        unsafe {
            New { runtime: self, future, kind: Unnamed, local: false, stackful: false }.spawn()
        }
    }

    /// Spawns a task that is known to be stackful before its first poll.
    pub(crate) fn try_spawn_stackful<F>(
        &'static self,
        future: Stackful<F>,
    ) -> Result<JoinHandle<F::Output>, SpawnError<Stackful<F>>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        // SAFETY: the bounds.
        unsafe {
            New { runtime: self, future, kind: Unnamed, local: false, stackful: true }.spawn()
        }
    }

    /// Publishes a new task, and makes its join handle.
    ///
    /// # Safety
    ///
    /// As [`New::spawn`], for a `New<F, _>` of this runtime's that nobody has seen. The caller may call the
    /// allocator if the task is its.
    #[inline]
    pub(crate) unsafe fn publish<F>(
        &'static self,
        task: NonNull<Header>,
        origin: Origin,
    ) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        // SAFETY: a new task of this runtime, made for this origin, with the runtime's reference.
        match unsafe { ready::push_new(self, task, origin) } {
            // SAFETY: the other reference is the join handle's.
            Ok(()) => Ok(unsafe { JoinHandle::new(task) }),
            Err(ready::Closed) => {
                // SAFETY: nobody has seen it.
                let future = unsafe { task::unmake(task) };
                Err(SpawnError { future, reason: SpawnErrorReason::ShutDown })
            }
        }
    }
}

impl<F, K> New<F, K>
where
    F: Future + 'static,
    F::Output: 'static,
    K: Kind,
{
    /// Allocates the task and publishes it.
    ///
    /// # Safety
    ///
    /// Future and output are `Send`; or it is `local`, and [`LocalSpawner::runtime`] has given the caller
    /// the runtime.
    #[inline]
    unsafe fn spawn(self) -> Result<JoinHandle<F::Output>, SpawnError<F>> {
        let runtime = self.runtime;
        let origin = ready::origin(runtime);
        match self.allocate(origin) {
            // SAFETY: a new task of this runtime's, and the caller promises the rest.
            Ok(task) => unsafe { runtime.publish(task, origin) },
            Err(future) => Err(SpawnError { future, reason: SpawnErrorReason::OutOfMemory }),
        }
    }
}

/// Spawns a task on this core's runtime. See [`Runtime::spawn`].
///
/// # Panics
///
/// On a core that is not inside of a runtime; use [`Runtime::spawn`] there.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match try_spawn(future) {
        Ok(handle) => handle,
        Err(error) => error.into_handle(),
    }
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
    match Runtime::current() {
        Some(runtime) => runtime.try_spawn(future),
        None => Err(SpawnError { future, reason: SpawnErrorReason::NoRuntime }),
    }
}

/// Spawns tasks whose futures need not be `Send`, on this core's runtime.
///
/// Such a task is an ordinary one, but it never leaves its core, and nothing of it ever runs on a stack: a
/// [`stackful`](crate::stackful()) future in it is always a child. What isn't `Send` may be shared among
/// the local tasks of a core and the future of [`Runtime::run_until`], none of which is preempted.
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
    /// `None` in a stackful task, which the others preempt, and which they would share something with that
    /// isn't `Send`; in an interrupt, if the platform is certain that it is one; and outside of a runtime.
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
        match self.try_spawn(future) {
            Ok(handle) => handle,
            Err(error) => error.into_handle(),
        }
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
        self.spawn_kind(future, Unnamed)
    }

    fn spawn_kind<F, K>(self, future: F, kind: K) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + 'static,
        F::Output: 'static,
        K: Kind,
    {
        let Some(runtime) = self.runtime() else {
            return Err(SpawnError { future, reason: SpawnErrorReason::NotLocal });
        };
        // SAFETY: `runtime` has just said so.
        unsafe { New { runtime, future, kind, local: true, stackful: false }.spawn() }
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
        match Runtime::current() {
            Some(runtime) => self.spawn_on(runtime, future),
            None => Err(SpawnError { future, reason: SpawnErrorReason::NoRuntime }),
        }
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
        let kind = Named(self.name);
        // SAFETY: the bounds.
        unsafe { New { runtime, future, kind, local: false, stackful: false }.spawn() }
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
        spawner.spawn_kind(future, Named(self.name))
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

impl<F: Future> SpawnError<F> {
    fn into_handle(self) -> JoinHandle<F::Output> {
        match self.reason {
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
