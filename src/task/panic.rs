//! Panics that nobody gets.

use core::fmt;
use core::ptr::NonNull;

use super::join::panic_message;
use super::{Header, Label, TaskId};
use crate::platform::{PanicPayload, bound};

/// A task's panic that was caught, and that no join handle will give to anybody. Handed to
/// [`Config::on_panic`](crate::Config::on_panic).
///
/// The task was detached when it panicked; its handle was dropped without having been asked; or the panic
/// came beside the task's end: in the drop of its future (also after a panic in its poll) or of its output,
/// or in the code of a waker that was to be woken.
///
/// The hook is called in task context by whoever drops the panic: the task's runtime, in its own context, or
/// on any core the one who drops the handle. It may allocate and spawn. If it panics itself, nobody hears of
/// that.
///
/// Displayed: which task, its name if it has one, and the message. It needs a platform that can catch a
/// panic: see [`Platform::catch_unwind`](crate::platform::Platform::catch_unwind) for the others.
pub struct TaskPanic<'a> {
    task: Label,
    payload: &'a PanicPayload,
}

impl TaskPanic<'_> {
    /// Which task.
    pub fn id(&self) -> TaskId {
        self.task.id
    }

    /// What the task is called, if it was given a name.
    pub fn name(&self) -> Option<&'static str> {
        self.task.name
    }

    /// What the panic said, if it said it in words.
    pub fn message(&self) -> &str {
        panic_message(self.payload)
    }

    /// What the panic carried.
    pub fn payload(&self) -> &PanicPayload {
        self.payload
    }
}

impl fmt::Display for TaskPanic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} panicked: {}", self.task, self.message())
    }
}

impl fmt::Debug for TaskPanic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Tells the hook of the task's runtime.
///
/// # Safety
///
/// The task is alive.
#[cold]
#[inline(never)]
pub(crate) unsafe fn report(task: NonNull<Header>, payload: &PanicPayload) {
    // SAFETY: the caller's promise.
    let runtime = unsafe { task.as_ref() }.runtime.get();
    let Some(hook) = runtime.and_then(|runtime| runtime.on_panic()) else { return };
    // SAFETY: as above.
    let panic = TaskPanic { task: unsafe { Label::of(task) }, payload };
    if let Err(again) = bound::catch_unwind(&mut || hook(&panic)) {
        drop_payload(again);
    }
}

/// Drops what a panic carried, since there is nobody to hand it to.
pub(crate) fn drop_payload(payload: PanicPayload) {
    let mut payload = Some(payload);
    if let Err(again) = bound::catch_unwind(&mut || drop(payload.take())) {
        // A payload whose drop panics: enough.
        core::mem::forget(again);
    }
}
