//! Awaiting, aborting and letting go of a task.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll, Waker};

use super::state::Abort;
use super::waker::{self, release_last};
use super::{Header, Label, Outcome, TaskId, panic};
use crate::Runtime;
use crate::platform::PanicPayload;
use crate::preempt::PreemptGuard;
use crate::ready;

/// Why a task has no output.
#[non_exhaustive]
pub enum JoinError {
    /// It was aborted before it had finished, by its join handle or by the shutdown of its runtime, and
    /// its future has been dropped. A task that finished first gives its output, aborted or not.
    Aborted,
    /// Its runtime was shut down while a stack held frames of it, or a fault ended it. Its future was
    /// neither finished nor dropped and never will be.
    Abandoned,
    /// Its future panicked. Comes only from platforms that can catch a panic.
    Panicked(PanicPayload),
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("Aborted"),
            Self::Abandoned => f.write_str("Abandoned"),
            Self::Panicked(payload) => {
                f.debug_tuple("Panicked").field(&panic_message(payload)).finish()
            }
        }
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aborted => f.write_str("the task was aborted"),
            Self::Abandoned => {
                f.write_str("the task was left in the middle, by a fault or a shutdown")
            }
            Self::Panicked(payload) => write!(f, "the task panicked: {}", panic_message(payload)),
        }
    }
}

impl core::error::Error for JoinError {}

/// What a panic said, if it said it in words.
pub(crate) fn panic_message(payload: &PanicPayload) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<alloc::string::String>().map(|s| s.as_str()))
        .unwrap_or("(no message)")
}

/// A spawned task's output, to be awaited.
///
/// Dropping it **detaches**, as in tokio: the task runs on, and its runtime drops the output. (In smol
/// and async-task, dropping the handle cancels; here only [`abort`](Self::abort) does.) A panic of a
/// detached task is reported to [`Config::on_panic`](crate::Config::on_panic). If the task has finished
/// already, dropping the handle drops the output, there and then; a panic of that drop is reported in
/// the same way, and does not reach the code that drops the handle.
///
/// It may be polled on any core, and by one task after another: the latest waker counts. Poll and drop
/// it in task context, since the output may be dropped there. Cancel-safe: a poll that returns
/// `Pending` takes nothing.
///
/// # Errors
///
/// Awaited, it gives a [`JoinError`] if the task has no output.
///
/// # Panics
///
/// Polled again after it was ready.
pub struct JoinHandle<T> {
    of: Of,
    output: PhantomData<fn() -> T>,
}

/// What a join handle is a handle of.
#[derive(Clone, Copy)]
enum Of {
    /// A task, of which it has a reference.
    Task(NonNull<Header>),
    /// A future that no task was made of, since the runtime had been shut down.
    Nothing,
    /// A task whose output it has given.
    Past,
}

// SAFETY: the handle's part of a task (output and waker's cell) goes from core to core by the
// state word's releases and acquires, and `spawn` demands `T: Send`.
unsafe impl<T: Send> Send for JoinHandle<T> {}
// SAFETY: through a shared reference a handle only asks the state word.
unsafe impl<T: Send> Sync for JoinHandle<T> {}

impl<T> Unpin for JoinHandle<T> {}

impl<T> JoinHandle<T> {
    /// Takes over the join handle's reference to `task`.
    ///
    /// # Safety
    ///
    /// The reference is the caller's to give, `JOIN` is set, and `T` is the future's output.
    pub(crate) unsafe fn new(task: NonNull<Header>) -> Self {
        Self { of: Of::Task(task), output: PhantomData }
    }

    /// A handle of a task that never was.
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
        // SAFETY: the handle's reference keeps the header.
        self.task().map(|task| unsafe { task.as_ref() })
    }

    /// Asks that the task's future be dropped.
    ///
    /// A task that is in the middle of a poll finishes that poll first, also when it has been preempted
    /// or is inside of [`block_on`](crate::block_on). If that poll is the last, the task has finished:
    /// the handle gives `Ok` with the output. Else the handle gives [`JoinError::Aborted`], once the
    /// future has been dropped.
    ///
    /// A plain task's future is dropped by the loop when the task's turn comes. A stackful task's future
    /// is dropped on a stack, right after the poll that the task is in, or when its turn comes; the drop
    /// may be preempted and may call `block_on`. Only if the task's turn comes and there is no stack for
    /// it, the loop drops the future.
    ///
    /// Any context. It does not wait.
    pub fn abort(&self) {
        let Some(task) = self.task() else { return };
        // SAFETY: the handle's reference keeps the header.
        let header = unsafe { task.as_ref() };
        let Some(runtime) = header.runtime.get() else { return };
        // As in `waker::wake_task`.
        let _guard = PreemptGuard::new();
        match header.state.abort() {
            // SAFETY: the state word said so.
            Abort::Push => unsafe { ready::push(runtime, task) },
            Abort::Queued => runtime.aborted_in_queue(),
            Abort::Nothing => {}
        }
    }

    /// Whether the handle would be ready at once. Any context.
    pub fn is_finished(&self) -> bool {
        self.header().is_none_or(|task| task.state.is_done())
    }

    /// Which task it is; `None` once its output has been taken.
    pub fn id(&self) -> Option<TaskId> {
        self.task().map(TaskId::of)
    }

    /// What the task is called, if it was given a name; `None` once its output has been taken.
    pub fn name(&self) -> Option<&'static str> {
        // SAFETY: the handle's reference keeps the task.
        self.task().and_then(|task| unsafe { Header::name(task) })
    }
}

impl<T> JoinHandle<T> {
    /// As `poll`, but the output stays in the task until it is moved to its final place.
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
        // SAFETY: the handle's reference keeps the header.
        let header = unsafe { task.as_ref() };
        if !header.state.is_done() && wait(header, context.waker()) {
            return Poll::Pending;
        }
        self.of = Of::Past;
        // The handle's reference, from now on.
        let release = Release(task);
        if !header.state.has_output() {
            return Poll::Ready(Err(JoinError::Abandoned));
        }
        // SAFETY: rule 6: DONE has been acquired and JOIN is set, so the output is ours; `new`
        // promised its type. `Past` makes this the only time.
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

/// In a function of its own, as in an unoptimized build it has room for a `T` on the stack.
#[cold]
fn failed<T>(error: JoinError) -> Poll<Result<T, JoinError>> {
    Poll::Ready(Err(error))
}

/// The output of a finished task, in its place there, and a reference to the task, which goes with it.
///
/// Only to be consumed: its drop does not drop the output.
pub(crate) struct Value<T> {
    value: *const T,
    _release: Release,
}

impl<T> Value<T> {
    #[inline]
    fn into_result(self) -> Poll<Result<T, JoinError>> {
        // SAFETY: the output is there, and this is the only time that it is moved.
        Poll::Ready(Ok(unsafe { self.value.read() }))
    }

    pub(crate) fn into_ready(self) -> Poll<T> {
        // SAFETY: as in `into_result`.
        Poll::Ready(unsafe { self.value.read() })
    }
}

/// A join handle's reference to a task.
struct Release(NonNull<Header>);

impl Drop for Release {
    #[inline]
    fn drop(&mut self) {
        release_last(self.0);
    }
}

/// Leaves a waker with the task. `false`: the task is done.
fn wait(header: &Header, waker: &Waker) -> bool {
    let cell = &header.join_waker;
    if header.state.has_join_waker() {
        // SAFETY: rule 7 gives the cell to whoever sets DONE, and it only moves the waker out, that
        // is, reads it; nobody writes it but us. `will_wake` looks at the two words alone.
        let same = unsafe { cell.with(|cell| (*cell).assume_init_ref().will_wake(waker)) };
        if same {
            return true;
        }
        if !header.state.take_join_waker() {
            return false;
        }
        // SAFETY: rule 7: the cell is ours again, and filled.
        let old = unsafe { cell.with_mut(|cell| (*cell).assume_init_read()) };
        drop(old);
    }
    // A user's clone, which may do anything but return the cell to somebody else: it is ours.
    let waker = waker.clone();
    // SAFETY: rule 7: the cell is ours, and empty.
    unsafe { cell.with_mut(|cell| (*cell).write(waker)) };
    if header.state.set_join_waker() {
        return true;
    }
    // SAFETY: the task was done, so the cell stayed ours, and we filled it.
    let unused = unsafe { cell.with_mut(|cell| (*cell).assume_init_read()) };
    drop(unused);
    false
}

/// Whether the join waker is a task's, so that waking it calls no user code.
///
/// # Safety
///
/// As [`take_waker`].
pub(crate) unsafe fn joiner_is_task(task: &Header) -> bool {
    // SAFETY: the caller owns the cell now, and it is filled.
    task.join_waker.with(|cell| waker::task_of(unsafe { (*cell).assume_init_ref() }).is_some())
}

/// Takes the join waker out of its cell.
///
/// # Safety
///
/// Rule 7: the caller set DONE and was told to wake the joiner.
pub(crate) unsafe fn take_waker(task: &Header) -> Waker {
    // SAFETY: the caller owns the cell now, and it is filled.
    unsafe { task.join_waker.with(|cell| (*cell).assume_init_read()) }
}

/// Drops a join handle's reference on the task's core, if there is nothing else to do.
#[inline]
fn detach_local(task: NonNull<Header>) -> bool {
    // SAFETY: the handle's reference keeps the header.
    let header = unsafe { task.as_ref() };
    let Some(runtime) = header.runtime.get() else { return false };
    if !ready::on_fast_path(runtime) {
        return detach_with_guard(runtime, task);
    }
    // In the middle of its poll it may have lent its waker to another core, without a reference.
    runtime.current_task() != Some(task)
        && header.stack.get().is_none()
        && header.state.detach_alone()
}

/// The same in a stackful task, which may be preempted here; on other cores and in interrupts it
/// does nothing.
#[inline(never)]
fn detach_with_guard(runtime: &Runtime, task: NonNull<Header>) -> bool {
    let _guard = PreemptGuard::new();
    ready::on_fast_path(runtime) && detach_local(task)
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        let Some(task) = self.task() else { return };
        // SAFETY: the handle's reference keeps the header.
        let header = unsafe { task.as_ref() };
        if detach_local(task) || header.state.detach() {
            return;
        }
        let (done, filled) = header.state.drop_join();
        // The code that drops the handle is not concerned in a panic of these: it is reported, and ends here.
        if done {
            if header.state.has_output() {
                // SAFETY: rule 6: DONE was set while JOIN was, so the output is ours.
                panic::contain(task, || unsafe { Header::drop_output(task) });
            }
        } else if filled {
            // SAFETY: rule 7: not DONE and JOIN_WAKER taken back in the same step.
            let waker = unsafe { header.join_waker.with_mut(|cell| (*cell).assume_init_read()) };
            if waker::task_of(&waker).is_some() {
                drop(waker);
            } else {
                panic::contain(task, || drop(waker));
            }
        }
        release_last(task);
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle")
            // SAFETY: the handle's reference keeps the task.
            .field("task", &self.task().map(|task| unsafe { Label::of(task) }))
            .field("finished", &self.is_finished())
            .finish()
    }
}
