//! What can be chosen for a runtime.

use core::fmt;
use core::time::Duration;

use crate::TaskPanic;
use crate::stackful::{self, Stall};

/// The shortest slice. In a shorter one a task might not get beyond the way into it.
pub const LEAST_SLICE: Duration = Duration::from_micros(10);

/// For so many slices nothing is heard of a stall after [`Config::on_stall`] was called.
pub const STALL_SLICES: u32 = 32;

/// What can be chosen for a [`Runtime`](crate::Runtime).
///
/// Checked when the runtime is entered, since what a stack must hold is known only to the
/// platform.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a stackful task keeps the core while other stackful ones want it, at least [`LEAST_SLICE`]: if
    /// something urgent comes in the last eighth, a little less, and if it begins under the alarm of one
    /// that has left early, up to two slices. What is woken by a timer, an interrupt or another core takes the
    /// core earlier; what the task wakes itself has it when the task leaves, or at the next interrupt.
    /// Default: 1 ms.
    pub slice: Duration,
    /// The size of a stack in bytes; it is rounded up to a multiple of 16. Default: 16 KiB on a
    /// target without an operating system, 64 KiB hosted.
    pub stack_size: usize,
    /// How many stacks there may be; a stackful task for which there is none waits its turn.
    /// Default: as many as memory allows.
    pub stacks: usize,
    /// How many stacks are kept that no task holds; what is given back beyond that is freed. At least 1: the
    /// one that tasks use by turns. Default: 16 on a target without an operating system, 64 hosted. See also
    /// [`Runtime::trim`](crate::Runtime::trim).
    pub idle_stacks: usize,
    /// How many bytes of the memory of finished tasks are kept for new ones, which then need no call of the
    /// allocator. Default: 64 KiB on a target without an operating system, 16 MiB hosted.
    pub task_memory: usize,
    /// Called when a task's turn has come and there is no stack for it (all that there may be are held, or
    /// there is no memory for another), and from then on as long as tasks wait for one: every
    /// [`STALL_SLICES`] slices, and not more often. The holders may compute, or may wait for something
    /// themselves; [`Stall`] says who they are. In task context of the core, between two polls; it must not block. A
    /// panic of it is caught. Default: nothing.
    pub on_stall: Option<fn(&Stall<'_>)>,
    /// Called for a panic that was caught and that nobody gets. See [`TaskPanic`]. Default: nothing.
    pub on_panic: Option<fn(&TaskPanic<'_>)>,
}

impl Config {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            slice: Duration::from_millis(1),
            stack_size: if cfg!(target_os = "none") { 16 * 1024 } else { 64 * 1024 },
            stacks: usize::MAX,
            idle_stacks: if cfg!(target_os = "none") { 16 } else { 64 },
            task_memory: if cfg!(target_os = "none") { 64 * 1024 } else { 16 * 1024 * 1024 },
            on_stall: None,
            on_panic: None,
        }
    }

    /// Checks what was chosen.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.slice < LEAST_SLICE {
            return Err(ConfigError::SliceTooShort);
        }
        if self.stacks == 0 {
            return Err(ConfigError::NoStacks);
        }
        let least = stackful::least_stack_size();
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
    /// The slice is zero, or shorter than [`LEAST_SLICE`].
    SliceTooShort,
    /// No stackful task could run without a stack.
    NoStacks,
    /// A stack must hold at least this many bytes: a saved context, a trap context, and the frames
    /// of the handler that leaves.
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
                write!(f, "Config::slice is too short: give at least {LEAST_SLICE:?}")
            }
            Self::NoStacks => f.write_str("Config::stacks is zero: allow at least one"),
            Self::StackTooSmall { least } => {
                write!(f, "Config::stack_size is too small: give at least {least} bytes")
            }
            Self::StackTooLarge => f.write_str("Config::stack_size is larger than any allocation"),
        }
    }
}

impl core::error::Error for ConfigError {}
