//! The runtime of a core: how tasks are spawned on it, its loop, and how it is shut down.

pub(crate) mod core;
mod current;
mod enter;
mod finish;
mod root;
mod shutdown;
pub(crate) mod spawn;
mod stall;
mod turn;

pub use core::{Runtime, Stats};
pub use current::{Current, current};
pub use enter::EnterError;
pub use shutdown::Shutdown;
pub use spawn::{LocalSpawner, SpawnError, SpawnErrorReason, TaskBuilder, spawn, try_spawn};
