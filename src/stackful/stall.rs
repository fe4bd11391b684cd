//! The report that tasks wait for a stack and there is none.

use core::fmt;

use crate::task::id::{Label, TaskId};

/// What a [`Stall`] asks of the runtime.
pub(crate) trait Report {
    /// Calls `f` for each task that holds a stack.
    fn each_holder(&self, f: &mut dyn FnMut(StalledTask, Holds));
    /// Calls `f` for each task that waits for a stack.
    fn each_waiter(&self, f: &mut dyn FnMut(StalledTask));
    fn waiting(&self) -> usize;
    fn stacks(&self) -> usize;
    fn is_out_of_memory(&self) -> bool;
}

/// The report that tasks wait for a stack and there is none: all
/// [`Config::max_stacks`](crate::Config::max_stacks) are held, or there is no memory for another.
/// Passed to [`Config::on_stall`](crate::Config::on_stall).
///
/// Displayed, it names in one line the tasks that wait, and the tasks that hold stacks with the
/// reasons.
pub struct Stall<'a> {
    pub(crate) report: &'a (dyn Report + Sync),
}

impl Stall<'_> {
    /// Calls `f` for each task that holds a stack.
    pub fn holders(&self, mut f: impl FnMut(TaskId)) {
        self.each_holder(|task, _| f(task.id()));
    }

    /// Calls `f` for each task that holds a stack, with the reason.
    pub fn each_holder(&self, mut f: impl FnMut(StalledTask, Holds)) {
        self.report.each_holder(&mut f);
    }

    /// Calls `f` for each task that waits for a stack, in the order in which they get one.
    pub fn each_waiter(&self, mut f: impl FnMut(StalledTask)) {
        self.report.each_waiter(&mut f);
    }

    /// Returns how many tasks wait for a stack.
    pub fn waiting(&self) -> usize {
        self.report.waiting()
    }

    /// Returns how many stacks there are.
    pub fn stacks(&self) -> usize {
        self.report.stacks()
    }

    /// Returns whether memory is lacking, that is,
    /// [`Config::max_stacks`](crate::Config::max_stacks) would allow another stack.
    pub fn is_out_of_memory(&self) -> bool {
        self.report.is_out_of_memory()
    }
}

impl fmt::Display for Stall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.is_out_of_memory() { "no memory for more" } else { "no more allowed" };
        write!(f, "{} stacks, {why}; {} tasks wait:", self.stacks(), self.waiting())?;
        let mut result = Ok(());
        self.each_waiter(|task| result = result.and_then(|()| write!(f, " {task}")));
        result?;
        f.write_str("; held by")?;
        self.each_holder(|task, holds| {
            result = result.and_then(|()| write!(f, " {task} ({holds})"))
        });
        result
    }
}

impl fmt::Debug for Stall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A task that a [`Stall`] names. Displayed as its id, and its name if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalledTask {
    pub(crate) label: Label,
}

impl StalledTask {
    /// Returns the task's id.
    pub fn id(&self) -> TaskId {
        self.label.id
    }

    /// Returns the task's name, if it was given one.
    pub fn name(&self) -> Option<&'static str> {
        self.label.name
    }
}

impl fmt::Display for StalledTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.fmt(f)
    }
}

/// Why a task holds a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holds {
    /// The task computes: it was preempted, and is resumed when its turn comes.
    Preempted,
    /// The task waits in [`block_on()`](crate::block_on()).
    Suspended,
    /// The task was ended by a fault, and holds the stack for ever.
    Ended,
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preempted => "preempted",
            Self::Suspended => "in block_on",
            Self::Ended => "ended by a fault",
        })
    }
}
