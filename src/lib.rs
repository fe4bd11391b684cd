//! Trapline: an async runtime for kernels, in which a task that computes is preempted.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;

pub mod arch;
mod config;
mod fatal;
pub mod platform;
pub mod preempt;
mod ready;
mod runtime;
pub mod stackful;
mod sync;
mod task;
pub mod time;
mod yield_now;

pub use config::{Config, ConfigError, LEAST_SLICE};
pub use runtime::{
    Current, EnterError, Runtime, Shutdown, SpawnError, SpawnErrorReason, Stats, current, spawn,
    try_spawn,
};
pub use stackful::{Stackful, block_on, stackful};
pub use task::TaskId;
pub use task::join::{JoinError, JoinHandle};
pub use yield_now::{YieldNow, yield_now};
