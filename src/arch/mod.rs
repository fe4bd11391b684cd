//! Registers and stacks: one self-contained file an architecture. Nothing else knows registers.
//!
//! Each brings a [`StackfulBackend`](crate::stackful::StackfulBackend), and for kernels that want them a
//! trap entry, the [`TrapContext`] that it saves, and the way into user mode and back. [`Native`] is the backend of
//! the target. What is not in a single architecture's words is in [`trap`](crate::trap).

#[cfg(target_arch = "riscv64")]
pub mod riscv64;
#[cfg(target_arch = "riscv64")]
use riscv64 as native;

#[cfg(target_arch = "x86_64")]
pub mod x86_64;
#[cfg(target_arch = "x86_64")]
use x86_64 as native;

#[cfg(target_arch = "loongarch64")]
pub mod loongarch64;
#[cfg(target_arch = "loongarch64")]
use loongarch64 as native;

#[cfg(target_arch = "loongarch64")]
pub use native::LoongArch64 as Native;
#[cfg(target_arch = "riscv64")]
pub use native::Riscv64 as Native;
#[cfg(target_arch = "x86_64")]
pub use native::X86_64 as Native;
#[cfg(all(
    any(target_os = "none", doc),
    any(target_arch = "riscv64", target_arch = "x86_64", target_arch = "loongarch64")
))]
pub use native::{HANDLER_STACK, LEAST_EMERGENCY_STACK, TrapContext, TrapCore, install_trap_entry};
pub(crate) use native::{LEAVE, drop_rights, has_rights, restore_rights, touch_stack};

/// An architecture that is not here. A kernel brings its own backend, whose switch deals with what these would.
#[cfg(not(any(target_arch = "riscv64", target_arch = "x86_64", target_arch = "loongarch64")))]
mod native {
    pub(crate) const LEAVE: usize = 0;

    pub(crate) fn touch_stack<const DEPTH: usize>() {}

    pub(crate) fn has_rights() -> bool {
        false
    }

    pub(crate) fn drop_rights() -> usize {
        0
    }

    /// # Safety
    ///
    /// None here.
    pub(crate) unsafe fn restore_rights(_: usize) {}
}
