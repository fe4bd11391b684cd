//! A kernel that has all of its own: boot, trap vector, timer, console, per-core register. It takes
//! nothing of `hal-shim`'s but the linker script.
//!
//! Of Trapline it uses what such a kernel uses: the runtime, the native switch, and the one
//! function that its timer handler calls after it has acknowledged the timer,
//! [`preempt::on_timer`]. No trap entry, no trap context. The machines' files are what a port
//! consists of; read `own_vector/kernel.rs` first, then the one of your architecture.
//!
//! It checks that preemption works from such a handler and that Trapline never touches what is the
//! kernel's: the vector, the per-core register, the scratch registers.
//!
//! [`preempt::on_timer`]: trapline::preempt::on_timer
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
#[path = "own_vector/kernel.rs"]
mod kernel;

#[cfg(all(target_os = "none", target_arch = "riscv64"))]
#[path = "own_vector/riscv64.rs"]
mod machine;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
#[path = "own_vector/x86_64.rs"]
mod machine;
#[cfg(all(target_os = "none", target_arch = "loongarch64"))]
#[path = "own_vector/loongarch64.rs"]
mod machine;

/// Where there is an operating system, the vector is its.
#[cfg(not(target_os = "none"))]
fn main() {}
