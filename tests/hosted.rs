//! Tests that only a host can run: panics that are caught, signal handlers of the program's own, a
//! program that does not link.
#![cfg(target_os = "linux")]

#[path = "hosted/guards.rs"]
mod guards;
#[path = "hosted/handles.rs"]
mod handles;
#[path = "hosted/panics.rs"]
mod panics;
#[path = "hosted/runtimes.rs"]
mod runtimes;
#[path = "hosted/signals.rs"]
mod signals;
#[path = "hosted/stacks.rs"]
mod stacks;
#[path = "hosted/support.rs"]
mod support;
#[path = "hosted/switches.rs"]
mod switches;
#[path = "hosted/unwinding.rs"]
mod unwinding;

hal_shim::heap!();
