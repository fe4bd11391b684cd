//! Which task: its number, and its name in messages.

use core::fmt;
use core::ptr::NonNull;

/// Identifies a task. The id is unique among the tasks that have not been freed, and may be used
/// again for a later task.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(usize);

impl TaskId {
    pub(crate) fn of<T>(task: NonNull<T>) -> Self {
        Self(task.as_ptr().addr())
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {:#x}", self.0)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A task as messages name it: its id, and its name if it has one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) id: TaskId,
    pub(crate) name: Option<&'static str>,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "{} {name:?}", self.id),
            None => self.id.fmt(f),
        }
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
