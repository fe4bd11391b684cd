//! A panic that no join handle gives, and what it carried.

use core::fmt;

use crate::platform::{PanicPayload, bound};
use crate::task::id::{Label, TaskId};

/// A panic that was caught and that no join handle gives to a task. Handed to
/// [`Config::on_panic`](crate::Config::on_panic).
///
/// It is one of the following:
///
/// - The panic of a task that was detached, or whose handle was dropped before it had given the
///   panic.
/// - A panic in the drop of a task's future (also after a panic in its poll) or of its output.
/// - A panic of a waker that another executor or the kernel made, when a finished task or a timer
///   wakes it; and a panic of [`Config::on_stall`](crate::Config::on_stall).
/// - The report that one of these drops, wakers and hooks left a
///   [`PreemptGuard`](crate::preempt::PreemptGuard), or left interrupts masked.
///
/// A panic that belongs to no task in particular (of `on_stall`, or of a timer's waker) is reported
/// for the runtime's own task, whose name is `run_until`.
///
/// The hook is called in task context with preemption disabled, on the core of the task's runtime
/// or on the core that drops the task's handle. The hook may allocate and spawn; it must not block.
/// A panic of the hook itself is dropped.
///
/// `Display` writes the task's id, its name if it has one, and the message. Panics are reported
/// only if the platform can catch them: see
/// [`Platform::catch_unwind`](crate::platform::Platform::catch_unwind).
pub struct TaskPanic<'a> {
    pub(super) task: Label,
    pub(super) payload: &'a PanicPayload,
}

impl TaskPanic<'_> {
    /// Returns the id of the task.
    pub fn id(&self) -> TaskId {
        self.task.id
    }

    /// Returns the name of the task, if it was given one.
    pub fn name(&self) -> Option<&'static str> {
        self.task.name
    }

    /// Returns the message of the panic, if its payload is text.
    pub fn message(&self) -> &str {
        panic_message(self.payload)
    }

    /// Returns the payload of the panic.
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

/// Drops the payload of a panic that is reported to no code.
pub(crate) fn drop_payload(payload: PanicPayload) {
    if let Err(again) = try_drop(payload) {
        // The drop of the second payload is not tried: it could panic again, without end.
        core::mem::forget(again);
    }
}

/// Drops a payload. If that panics, returns the payload of the new panic.
pub(super) fn try_drop(payload: PanicPayload) -> Result<(), PanicPayload> {
    let mut payload = Some(payload);
    bound::catch_unwind(&mut || drop(payload.take()))
}

/// Returns the message of a panic, if its payload is text.
pub(crate) fn panic_message(payload: &PanicPayload) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<alloc::string::String>().map(|s| s.as_str()))
        .unwrap_or("(no message)")
}
