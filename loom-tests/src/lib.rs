//! The interleavings of all that two cores share, model-checked.
//!
//! Each test is a model: loom runs it in every order that its threads' atomic accesses can take, and
//! with every value that the memory model lets them see. `README.md` lists them. They exist only
//! with `--cfg loom`, and go through trapline's public interface.

#![cfg(all(test, loom))]

mod abort;
mod harness;
mod inbox;
mod join;
mod memory;
mod pairs;
mod platform;
mod preempt;
mod shutdown;
mod static_task;
mod wake;
