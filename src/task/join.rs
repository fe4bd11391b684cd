//! The join handle of a task: awaiting, aborting and detaching the task.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};

use crate::preempt::guard::PreemptGuard;
use crate::ready;
use crate::runtime::core::Runtime;
use crate::task::error::JoinError;
use crate::task::header::{Header, label};
use crate::task::id::TaskId;
use crate::task::output::Outcome;
use crate::task::state::Abort;
use crate::task::waker::release_last;
use crate::task::{contain, waker};

/// The handle of a spawned task. Awaited, it gives the task's output.
///
/// Dropping the handle **detaches** the task, as in tokio: the task runs on, and its runtime drops
/// the output. (In smol and async-task, dropping the handle cancels; here only
/// [`abort`](Self::abort) does.) A panic of a detached task is reported to
/// [`Config::on_panic`](crate::Config::on_panic). If the task has finished already, the drop of the
/// handle drops the output at once. A panic of that drop is reported in the same way, and does not
/// reach the code that drops the handle.
///
/// The handle may be polled on any core, and by one task after another: only the waker of the
/// latest poll is woken. Poll and drop the handle in task context, since the output may be dropped
/// there. Cancel-safe: a poll that returns `Pending` takes nothing.
///
/// # Errors
///
/// Awaited, the handle gives a [`JoinError`] if the task has no output.
///
/// # Panics
///
/// If the handle is polled again after it was ready.
pub struct JoinHandle<T> {
    of: Of,
    output: PhantomData<fn() -> T>,
}

/// The state of a join handle: whether it has a task.
#[derive(Clone, Copy)]
enum Of {
    /// A task, to which the handle has a reference.
    Task(NonNull<Header>),
    /// A future that was not made a task, since the runtime had been shut down.
    Nothing,
    /// Nothing any more: the handle has given the output or the error.
    Past,
}

// SAFETY: the handle's part of a task (the output and the waker's cell) passes from core to core by
// releases and acquires of the state word, and `spawn` demands `T: Send`.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: through a shared reference, a handle uses only the state word, the fields that never
// change, and (to abort) `ready::push` and `Runtime::aborted_in_queue`, which any context may call.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> Unpin for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// Makes a handle, which takes over the join handle's reference to `task`.
    ///
    /// # Safety
    ///
    /// The caller has that reference and gives it away, `JOIN` is set, and `T` is the output type
    /// of the task's future.
    pub(crate) unsafe fn new(task: NonNull<Header>) -> Self {
        Self { of: Of::Task(task), output: PhantomData }
    }

    /// Makes a handle without a task, for a future that was refused. The handle gives
    /// [`JoinError::Aborted`].
    pub(crate) fn aborted() -> Self {
        Self { of: Of::Nothing, output: PhantomData }
    }

    fn task(&self) -> Option<NonNull<Header>> {
        match self.of {
            Of::Task(task) => Some(task),
            Of::Nothing | Of::Past => None,
        }
    }

    fn header(&self) -> Option<&Header> {
        // SAFETY: the handle's reference keeps the header alive.
        self.task().map(|task| unsafe { task.as_ref() })
    }

    /// Asks that the task's future be dropped. Does not wait for that. Any context.
    ///
    /// A task that is in the middle of a poll finishes that poll first, even if it has been
    /// preempted or is inside of [`block_on`](crate::block_on). If that poll is the last, the task
    /// has finished: the handle gives `Ok` with the output. Else the handle gives
    /// [`JoinError::Aborted`], once the future has been dropped.
    ///
    /// A plain task's future is dropped by the loop when the task's turn comes. A stackful task's
    /// future is dropped on a stack, right after the poll that the task is in, or when the task's
    /// turn comes; that drop may be preempted and may call `block_on`. The loop drops the future of
    /// a stackful task only if the task's turn comes and there is no stack for it.
    pub fn abort(&self) {
        let Some(task) = self.task() else { return };
        // SAFETY: the handle's reference keeps the header alive.
        let header = unsafe { task.as_ref() };
        let Some(runtime) = header.runtime.get() else { return };
        // The guard prevents a preemption between the setting of READY and the push: see
        // `waker::wake_remote`.
        let _guard = PreemptGuard::new();
        match header.state.abort() {
            // SAFETY: the state word told this code to push the task, and preemption is disabled.
            Abort::Push => unsafe { ready::push(runtime, task) },
            Abort::Queued => runtime.aborted_in_queue(),
            Abort::Nothing => {}
        }
    }

    /// Returns whether the handle would be ready at once. Any context.
    pub fn is_finished(&self) -> bool {
        self.header().is_none_or(|task| task.state.is_done())
    }

    /// Returns the id of the task; `None` once its output has been taken.
    pub fn id(&self) -> Option<TaskId> {
        self.task().map(TaskId::of)
    }

    /// Returns the name of the task, if it was given one; `None` once its output has been taken.
    pub fn name(&self) -> Option<&'static str> {
        // SAFETY: the handle's reference keeps the task alive.
        self.task().and_then(|task| unsafe { Header::name(task) })
    }
}

impl<T> JoinHandle<T> {
    /// Does the same as `poll`, but leaves the output in the task, from which the caller moves it
    /// to its final place.
    pub(crate) fn poll_in_place(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Value<T>, JoinError>> {
        let task = match self.of {
            Of::Task(task) => task,
            Of::Nothing => {
                self.of = Of::Past;
                return Poll::Ready(Err(JoinError::Aborted));
            }
            Of::Past => panic!("a JoinHandle was polled after it had given its output"),
        };
        // SAFETY: the handle's reference keeps the header alive.
        let header = unsafe { task.as_ref() };
        if !header.state.is_done() && wait(header, context.waker()) {
            return Poll::Pending;
        }
        self.of = Of::Past;
        // Owns the handle's reference from now on.
        let release = Release(task);
        if !header.state.has_output() {
            return Poll::Ready(Err(JoinError::Abandoned));
        }
        // SAFETY: rule 6: DONE has been acquired and JOIN is set, so the output is the handle's.
        // The caller of `new` promised its type. The output is taken only once, since `of` is
        // `Past` from now on.
        let taken = unsafe { Outcome::take((header.vtable.output)(task).cast::<Outcome<T>>()) };
        Poll::Ready(taken.map(|value| Value { value, _release: release }))
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.poll_in_place(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(value)) => value.into_result(),
            Poll::Ready(Err(error)) => failed(error),
        }
    }
}

/// Returns the error. This is a separate function since in an unoptimized build its stack frame has
/// room for a `T`, which would otherwise enlarge the frame of `poll`.
#[cold]
fn failed<T>(error: JoinError) -> Poll<Result<T, JoinError>> {
    Poll::Ready(Err(error))
}

/// The output of a finished task, still in its place in the task, and the reference that keeps the
/// task alive. The reference is dropped with the `Value`.
///
/// A `Value` must be consumed: its drop does not drop the output.
pub(crate) struct Value<T> {
    value: *const T,
    _release: Release,
}

impl<T> Value<T> {
    /// Moves the output out.
    #[inline]
    fn into_result(self) -> Poll<Result<T, JoinError>> {
        // SAFETY: the output is there, and this is the only time that it is moved.
        Poll::Ready(Ok(unsafe { self.value.read() }))
    }

    /// Moves the output out.
    pub(crate) fn into_ready(self) -> Poll<T> {
        // SAFETY: as in `into_result`.
        Poll::Ready(unsafe { self.value.read() })
    }
}

/// A join handle's reference to a task, which its drop releases.
struct Release(NonNull<Header>);

impl Drop for Release {
    #[inline]
    fn drop(&mut self) {
        release_last(self.0);
    }
}

/// Stores a waker in the task, to be woken when the task is DONE. Returns `false` if the task is
/// done already.
fn wait(header: &Header, waker: &Waker) -> bool {
    let cell = &header.join_waker;
    if header.state.has_join_waker() {
        // SAFETY: by rule 7 the cell belongs to the code that sets DONE, and that code only moves
        // the waker out, which reads the cell. The handle is the only code that writes the cell,
        // and it does not do so now. `will_wake` compares the two words of the waker and nothing
        // else.
        let same = unsafe { cell.with(|cell| (*cell).assume_init_ref().will_wake(waker)) };
        if same {
            return true;
        }
        if !header.state.take_join_waker() {
            return false;
        }
        // SAFETY: rule 7: the cell is the handle's again, and filled.
        let old = unsafe { cell.with_mut(|cell| (*cell).assume_init_read()) };
        drop(old);
    }
    // This may run a user's clone function. The cell is the handle's meanwhile, so no other code
    // uses it.
    let waker = waker.clone();
    // SAFETY: rule 7: the cell is the handle's, and empty.
    unsafe { cell.with_mut(|cell| (*cell).write(waker)) };
    if header.state.set_join_waker() {
        return true;
    }
    // SAFETY: the task was done, so the cell stayed the handle's, which has just filled it.
    let unused = unsafe { cell.with_mut(|cell| (*cell).assume_init_read()) };
    drop(unused);
    false
}

/// Returns whether the join waker is a task's, so that waking it calls no user code.
///
/// # Safety
///
/// As for [`take_waker`].
pub(crate) unsafe fn joiner_is_task(task: &Header) -> bool {
    // SAFETY: rule 7: the cell is the caller's now, and filled.
    task.join_waker.with(|cell| waker::task_of(unsafe { (*cell).assume_init_ref() }).is_some())
}

/// Takes the join waker out of its cell.
///
/// # Safety
///
/// Rule 7: the caller has set DONE and was told to wake the joiner.
pub(crate) unsafe fn take_waker(task: &Header) -> Waker {
    // SAFETY: rule 7: the cell is the caller's now, and filled.
    unsafe { task.join_waker.with(|cell| (*cell).assume_init_read()) }
}

/// Drops a join handle's reference on the task's core, if there is nothing else to do. Returns
/// whether it did.
#[inline]
fn detach_local(task: NonNull<Header>) -> bool {
    // SAFETY: the handle's reference keeps the header alive.
    let header = unsafe { task.as_ref() };
    let Some(runtime) = header.runtime.get() else { return false };
    if !ready::on_fast_path(runtime) {
        return detach_with_guard(runtime, task);
    }
    // A task in the middle of its poll may have lent its waker to another core, without a
    // reference.
    runtime.current_task() != Some(task)
        && header.stack.get().is_none()
        && header.state.detach_alone()
}

/// Does the same as [`detach_local`], with preemption disabled: a stackful task may be preempted
/// here. On other cores and in interrupts it does nothing.
#[inline(never)]
fn detach_with_guard(runtime: &Runtime, task: NonNull<Header>) -> bool {
    let _guard = PreemptGuard::new();
    ready::on_fast_path(runtime) && detach_local(task)
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        let Some(task) = self.task() else { return };
        // SAFETY: the handle's reference keeps the header alive.
        let header = unsafe { task.as_ref() };
        if detach_local(task) || header.state.detach() {
            return;
        }
        let (done, filled) = header.state.drop_join();
        // A panic of the drops below does not concern the code that drops the handle. So it is
        // reported, and ends here.
        if done {
            if header.state.has_output() {
                // SAFETY: rule 6: DONE was set while JOIN was, so the output is the handle's.
                contain::contain(task, || unsafe { Header::drop_output(task) });
            }
        } else if filled {
            // SAFETY: rule 7: the task was not DONE when this handle took JOIN_WAKER back, in the
            // same step.
            let waker = unsafe { header.join_waker.with_mut(|cell| (*cell).assume_init_read()) };
            if waker::task_of(&waker).is_some() {
                drop(waker);
            } else {
                contain::contain(task, || drop(waker));
            }
        }
        release_last(task);
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            // SAFETY: the handle's reference keeps the task alive.
            .field("task", &self.task().map(|task| unsafe { label(task) }))
            .field("finished", &self.is_finished())
            .finish()
    }
}
