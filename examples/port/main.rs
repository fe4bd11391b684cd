//! A complete port: a kernel for QEMU's riscv64 `virt` with its own boot code, trap vector, timer,
//! inter-processor interrupts, console and heap.
//!
//! It uses nothing of `hal-shim` but the linker script. Read [`kernel.rs`](kernel.rs) first: it is
//! the part that every port has. [`machine.rs`](machine.rs) is the part that knows the machine:
//! what a kernel has already.
//!
//! ```text
//! cargo xtask qemu riscv64 port --smp 4
//! ```
//!
//! It checks what it shows, and `cargo xtask test --arch riscv64` runs it. Vectors for x86_64 and
//! loongarch64 are in the test kernel `tests/target/own_vector.rs`.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(all(target_os = "none", target_arch = "riscv64"))]
mod kernel;
#[cfg(all(target_os = "none", target_arch = "riscv64"))]
mod machine;

#[cfg(not(all(target_os = "none", target_arch = "riscv64")))]
hal_shim::entry!(unsafe program);

#[cfg(not(all(target_os = "none", target_arch = "riscv64")))]
fn program() {
    hal_shim::println!("this kernel is for one machine: cargo xtask qemu riscv64 port --smp 4");
}
