//! What can be chosen for a runtime.

use core::fmt;
use core::time::Duration;

use crate::TaskPanic;
use crate::stackful::{self, Stall};

/// The shortest [`Config::slice`]. In a shorter one, a task might make no progress: the switch to its
/// stack takes time too.
pub const MIN_SLICE: Duration = Duration::from_micros(10);

/// How many slices pass between two calls of [`Config::on_stall`], at least.
pub const STALL_SLICES: u32 = 32;

/// What can be chosen for a [`Runtime`](crate::Runtime).
///
/// It is checked when the runtime is entered, since only the platform knows what a stack must hold.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a stackful task keeps the core while other stackful ones want it. At least
    /// [`MIN_SLICE`]; default: 1 ms.
    ///
    /// It may be **up to two** slices: a task that follows one that has left early runs under the alarm
    /// that was set for that one, and when it fires, has a whole slice from there (this saves setting
    /// the alarm for each poll). It is up to an eighth less if the task is preempted for something
    /// urgent in the last eighth of the slice.
    ///
    /// A task that a timer, an interrupt or another core wakes takes the core earlier. A task that the
    /// running one wakes does not preempt it: it has the core when the running task leaves, or at the
    /// next interrupt.
    pub slice: Duration,
    /// The size of a stack in bytes; it is rounded up to a multiple of 16. Default: 16 KiB on a
    /// target without an operating system, 64 KiB hosted.
    pub stack_size: usize,
    /// How many stacks there may be, at least 1. A stackful task for which there is none waits, and
    /// `on_stall` is called. Default: as many as memory allows.
    pub max_stacks: usize,
    /// How many stacks are kept that no task holds; a stack that is given back beyond that is freed. 0
    /// counts as 1: one is kept, which tasks use by turns. Default: 16 on a target without an operating
    /// system, 64 hosted. See also [`Runtime::trim`](crate::Runtime::trim).
    pub max_idle_stacks: usize,
    /// How many bytes of the memory of finished tasks are kept for new ones, which then need no call of the
    /// allocator. Default: 64 KiB on a target without an operating system, 16 MiB hosted.
    pub task_memory: usize,
    /// Called when a task's turn has come and there is no stack for it: all that there may be are held,
    /// or there is no memory for another. Called again while tasks wait, but not before [`STALL_SLICES`]
    /// slices have passed. [`Stall`] names the tasks that hold stacks, each with the reason, and those
    /// that wait.
    ///
    /// In task context of the core, between two polls, with preemption off; it may allocate and spawn,
    /// and must not block. A panic of it goes to `on_panic`. Default: nothing.
    pub on_stall: Option<fn(&Stall<'_>)>,
    /// Called for a panic that was caught and that no join handle gives to a task. See [`TaskPanic`].
    /// Default: nothing.
    pub on_panic: Option<fn(&TaskPanic<'_>)>,
}

impl Config {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            slice: Duration::from_millis(1),
            stack_size: if cfg!(target_os = "none") { 16 * 1024 } else { 64 * 1024 },
            max_stacks: usize::MAX,
            max_idle_stacks: if cfg!(target_os = "none") { 16 } else { 64 },
            task_memory: if cfg!(target_os = "none") { 64 * 1024 } else { 16 * 1024 * 1024 },
            on_stall: None,
            on_panic: None,
        }
    }

    /// Checks what was chosen.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.slice < MIN_SLICE {
            return Err(ConfigError::SliceTooShort);
        }
        if self.max_stacks == 0 {
            return Err(ConfigError::NoStacks);
        }
        let least = stackful::min_stack_size();
        if self.stack_size < least {
            return Err(ConfigError::StackTooSmall { least });
        }
        if self.rounded_stack_size().is_none() {
            return Err(ConfigError::StackTooLarge);
        }
        Ok(())
    }

    /// The size of a stack as the platform is asked for it.
    pub(crate) fn rounded_stack_size(&self) -> Option<usize> {
        self.stack_size.checked_next_multiple_of(16).filter(|size| isize::try_from(*size).is_ok())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// What is wrong with a [`Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The slice is zero, or shorter than [`MIN_SLICE`].
    SliceTooShort,
    /// No stackful task could run without a stack.
    NoStacks,
    /// A stack must hold at least this many bytes: a saved context, a trap context, the frames of the
    /// handler that leaves, and the runtime's own account.
    StackTooSmall {
        /// In bytes.
        least: usize,
    },
    /// No allocation is that large.
    StackTooLarge,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SliceTooShort => {
                write!(f, "Config::slice is too short: give at least {MIN_SLICE:?}")
            }
            Self::NoStacks => f.write_str("Config::max_stacks is zero: allow at least one"),
            Self::StackTooSmall { least } => {
                write!(f, "Config::stack_size is too small: give at least {least} bytes")
            }
            Self::StackTooLarge => f.write_str("Config::stack_size is larger than any allocation"),
        }
    }
}

impl core::error::Error for ConfigError {}
