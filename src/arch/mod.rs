//! Registers and stacks: one self-contained file an architecture. Nothing else knows registers.
//!
//! Each brings a [`StackfulBackend`](crate::stackful::StackfulBackend), and where a kernel may want
//! one, a trap context and a trap entry. [`Native`] is the one of the target.

#[cfg(target_arch = "riscv64")]
pub mod riscv64;
#[cfg(target_arch = "riscv64")]
pub use riscv64::Riscv64 as Native;

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::X86_64 as Native;
