//! Model checks of all interleavings of the data that two cores share.
//!
//! Each test is a model: loom runs it in every order that the atomic accesses of its threads can
//! take, and with every value that the memory model lets them see. `README.md` lists the models.
//! They exist only with `--cfg loom`, and use Trapline's public interface.

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
