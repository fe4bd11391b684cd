//! The task that the calling code is part of.

use core::fmt;

use crate::preempt::guard::PreemptGuard;
use crate::runtime::core::Runtime;
use crate::task::header::label;
use crate::task::id::{Label, TaskId};

/// The task that the calling code is part of.
///
/// `Display` writes the name that the runtime's own messages give to the task: its id, and its name
/// if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    label: Label,
    stackful: bool,
}

/// Returns the task that the calling code is part of. In an interrupt, that is the interrupted
/// task. `None` outside of any task: in the runtime's own code, and on a core that is not inside of
/// a runtime.
pub fn current() -> Option<Current> {
    let _guard = PreemptGuard::new();
    let runtime = Runtime::current()?;
    let task = runtime.current_task()?;
    // SAFETY: the task has the core, hence is alive.
    Some(Current { label: unsafe { label(task) }, stackful: runtime.is_on_stack() })
}

impl Current {
    /// Returns the task's id.
    pub fn id(&self) -> TaskId {
        self.label.id
    }

    /// Returns the task's name, if it was given one. The future of [`Runtime::run_until`] has the
    /// name `run_until`.
    pub fn name(&self) -> Option<&'static str> {
        self.label.name
    }

    /// Returns whether the task runs on a stack of its own and may be preempted.
    pub fn is_stackful(&self) -> bool {
        self.stackful
    }
}

impl fmt::Display for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.fmt(f)
    }
}
