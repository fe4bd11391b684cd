//! Panics that no join handle gives, and the containment of user code outside of polls.

use core::fmt;
use core::ptr::NonNull;

use super::join::panic_message;
use super::{Header, Label, TaskId};
use crate::platform::{PanicPayload, bound};
use crate::preempt::PreemptGuard;

/// A panic that was caught, and that no join handle gives to a task. Handed to
/// [`Config::on_panic`](crate::Config::on_panic).
///
/// It is one of these:
///
/// - The panic of a task that was detached, or whose handle was dropped without giving it.
/// - A panic in the drop of a task's future (also after a panic in its poll) or of its output.
/// - A panic of a waker that another executor or the kernel made, when a finished task or a timer wakes
///   it, and of [`Config::on_stall`](crate::Config::on_stall).
/// - The report that one of these left a [`PreemptGuard`], or masked interrupts.
///
/// What belongs to no task in particular (`on_stall`, the waker of a timer) is reported for the
/// runtime's own task, whose name is `run_until`.
///
/// The hook is called in task context with preemption disabled, on the core of the task's runtime or on
/// the core that drops the task's handle. It may allocate and spawn; it must not block. A panic of the
/// hook itself is dropped.
///
/// Displayed: which task, its name if it has one, and the message. Panics come here only if the platform
/// can catch them: see [`Platform::catch_unwind`](crate::platform::Platform::catch_unwind).
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

/// Calls `code`, user code outside of a poll of `task`. A panic of it ends here, and is reported.
///
/// The caller sees to the preempt count: the loop by [`Runtime::guarded`], a poll by the check after it.
pub(crate) fn contain(task: NonNull<Header>, code: impl FnOnce()) {
    let mut code = Some(code);
    let caught = bound::catch_unwind(&mut || {
        if let Some(code) = code.take() {
            code();
        }
    });
    if let Err(payload) = caught {
        discard(task, payload);
    }
}

/// Reports a panic of `task`, which the caller keeps alive, and drops what it carried.
#[cold]
#[inline(never)]
pub(crate) fn discard(task: NonNull<Header>, payload: PanicPayload) {
    report(task, &payload);
    if let Err(again) = try_drop(payload) {
        report(task, &again);
        drop_payload(again);
    }
}

/// Tells the hook of the task's runtime. The caller keeps the task alive.
#[cold]
#[inline(never)]
pub(crate) fn report(task: NonNull<Header>, payload: &PanicPayload) {
    // SAFETY: the caller keeps it alive.
    let runtime = unsafe { task.as_ref() }.runtime.get();
    let Some(hook) = runtime.and_then(|runtime| runtime.on_panic()) else { return };
    // SAFETY: as above.
    let panic = TaskPanic { task: unsafe { Label::of(task) }, payload };
    let called = bound::catch_unwind(&mut || {
        // The hook may share locks with plain tasks, wherever it is called.
        let _guard = PreemptGuard::new();
        hook(&panic);
    });
    if let Err(again) = called {
        drop_payload(again);
    }
}

/// Drops what a panic carried, since there is nothing to hand it to.
pub(crate) fn drop_payload(payload: PanicPayload) {
    if let Err(again) = try_drop(payload) {
        // A payload whose drop panics: enough.
        core::mem::forget(again);
    }
}

fn try_drop(payload: PanicPayload) -> Result<(), PanicPayload> {
    let mut payload = Some(payload);
    bound::catch_unwind(&mut || drop(payload.take()))
}
