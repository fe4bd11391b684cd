//! Why a task has no output.

use core::fmt;

use crate::platform::PanicPayload;
use crate::task::panic::panic_message;

/// The reason why a task has no output.
#[non_exhaustive]
pub enum JoinError {
    /// The task was aborted before it had finished, by its join handle or by the shutdown of its
    /// runtime, and its future has been dropped. A task that finished before the abort took effect
    /// gives its output.
    Aborted,
    /// The runtime of the task was shut down while a stack held frames of the task, or a fault
    /// ended the task. The future was neither finished nor dropped, and never will be.
    Abandoned,
    /// The future of the task panicked. Occurs only on platforms that can catch a panic.
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
