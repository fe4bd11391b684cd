//! How tasks come.

use core::fmt;
use core::future::Future;

use super::Runtime;
use crate::ready::{self};
use crate::stackful::{HeldStack, Stackful};
use crate::task::join::JoinHandle;
use crate::task::{self};

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
        self.spawn_with(future, HeldStack::PLAIN)
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
        self.spawn_with(future, HeldStack::NONE)
    }

    fn spawn_with<F>(
        &'static self,
        future: F,
        stack: HeldStack,
    ) -> Result<JoinHandle<F::Output>, SpawnError<F>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = match task::allocate(self, future) {
            Ok(task) => task,
            Err(future) => {
                return Err(SpawnError { future, reason: SpawnErrorReason::OutOfMemory });
            }
        };
        // SAFETY: nobody else has seen the task.
        unsafe { task.as_ref() }.stack.set(stack);
        // SAFETY: a new task of this runtime, READY, with the runtime's reference.
        match unsafe { ready::push_new(self, task) } {
            // SAFETY: the other reference is the join handle's.
            Ok(()) => Ok(unsafe { JoinHandle::new(task) }),
            Err(ready::Closed) => {
                // SAFETY: nobody has seen it.
                let future = unsafe { task::deallocate(task) };
                Err(SpawnError { future, reason: SpawnErrorReason::ShutDown })
            }
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
        })
    }
}

impl<F> core::error::Error for SpawnError<F> {}
