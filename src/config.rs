//! The configuration of a runtime.

use core::fmt;
use core::time::Duration;

use crate::stackful::pool;
use crate::stackful::stall::Stall;
use crate::task::panic::TaskPanic;

/// The shortest [`Config::slice`]. With a shorter slice a task might make no progress, since the
/// switch to its stack takes time too.
pub const MIN_SLICE: Duration = Duration::from_micros(10);

/// How many slices pass, at least, between two calls of [`Config::on_stall`].
pub const STALL_SLICES: u32 = 32;

/// The configuration of a [`Runtime`](crate::Runtime).
///
/// It is checked when the runtime is entered, since only the platform knows how large a stack must
/// be.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long a stackful task keeps the core while other stackful tasks are ready. At least
    /// [`MIN_SLICE`]; default: 1 ms.
    ///
    /// A task may keep the core for **up to two** slices. When a task leaves early, the alarm that
    /// was set for it stays set, and the next task runs under that alarm. If that task still runs
    /// when the alarm fires, it gets a whole slice from that time. (This saves setting the alarm
    /// for each poll.) The slice is up to an eighth shorter if the task is preempted for something
    /// urgent in the last eighth.
    ///
    /// A task that is woken by a timer, an interrupt or another core preempts the running task
    /// before the end of its slice. A task that the running task wakes does not: it gets the core
    /// when the running task leaves, or at the next interrupt.
    pub slice: Duration,
    /// The size of a stack in bytes. It is rounded up to a multiple of 16. Default: 16 KiB on a
    /// target without an operating system, 64 KiB hosted.
    pub stack_size: usize,
    /// How many stacks there may be, at least 1. If there is none left for a stackful task, the
    /// task waits for one, and `on_stall` is called. Default: as many as memory allows.
    pub max_stacks: usize,
    /// How many stacks are kept that no task holds. A stack that is given back beyond that number
    /// is freed. 0 counts as 1: one stack is kept, which tasks use in turn. Default: 16 on a target
    /// without an operating system, 64 hosted. See also [`Runtime::trim`](crate::Runtime::trim).
    pub max_idle_stacks: usize,
    /// How many bytes of the memory of finished tasks are kept for new tasks, which then need no
    /// call of the allocator. Default: 64 KiB on a target without an operating system, 16 MiB
    /// hosted.
    pub task_memory: usize,
    /// The hook that is called when a task's turn has come and there is no stack for it: all
    /// [`max_stacks`](Self::max_stacks) are held, or there is no memory for another. It is called
    /// again while tasks wait, but not before [`STALL_SLICES`] slices have passed. [`Stall`] names
    /// the tasks that hold stacks, each with the reason, and the tasks that wait.
    ///
    /// The hook is called in task context of the core, between two polls, with preemption disabled.
    /// It may allocate and spawn, and must not block. A panic of the hook goes to `on_panic`.
    /// Default: no hook.
    pub on_stall: Option<fn(&Stall<'_>)>,
    /// The hook that is called for a panic that was caught and that no join handle gives. See
    /// [`TaskPanic`]. Default: no hook.
    pub on_panic: Option<fn(&TaskPanic<'_>)>,
}

impl Config {
    /// Makes a configuration with the defaults.
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

    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.slice < MIN_SLICE {
            return Err(ConfigError::SliceTooShort);
        }
        if self.max_stacks == 0 {
            return Err(ConfigError::NoStacks);
        }
        let least = pool::min_size();
        if self.stack_size < least {
            return Err(ConfigError::StackTooSmall { least });
        }
        if self.rounded_stack_size().is_none() {
            return Err(ConfigError::StackTooLarge);
        }
        Ok(())
    }

    /// Returns the size of a stack for which the platform is asked. `None`: no allocation is that
    /// large.
    pub(crate) fn rounded_stack_size(&self) -> Option<usize> {
        self.stack_size.checked_next_multiple_of(16).filter(|size| isize::try_from(*size).is_ok())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}

/// The reason why a [`Config`] is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// The slice is zero, or shorter than [`MIN_SLICE`].
    SliceTooShort,
    /// `max_stacks` is zero. No stackful task could run.
    NoStacks,
    /// The stack size is too small. A stack must have room for a saved context, a trap context, the
    /// frames of the handler that leaves the stack, and the runtime's own record of the stack.
    StackTooSmall {
        /// The smallest allowed size in bytes.
        least: usize,
    },
    /// The stack size is larger than any allocation.
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
