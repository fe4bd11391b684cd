//! Time: the clock, sleeping, and timeouts.
//!
//! Times are nanoseconds of the platform's clock. A timer belongs to the runtime that polled it
//! last, and fires in task context of that runtime's core, never early. How late it fires depends
//! on what that core runs: a stackful task is preempted for a timer, a plain one is not.

pub(crate) mod alarm;
mod instant;
pub(crate) mod list;
mod sleep;
mod timeout;

pub use instant::{Instant, now};
pub use sleep::{Sleep, sleep, sleep_until};
pub use timeout::{Elapsed, Timeout, timeout};
