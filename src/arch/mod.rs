//! Registers and stacks: one self-contained file an architecture. Nothing else knows registers.
//!
//! Each brings a [`StackfulBackend`](crate::stackful::StackfulBackend), and for kernels that want them a
//! trap entry, the [`TrapContext`] that it saves, and the way into user mode and back. [`Native`] is the
//! backend of the target. What all architectures have in common is in [`trap`](crate::trap).
//!
//! On other architectures (AArch64, say) the crate compiles without `Native`, [`TrapContext`] and `trap`:
//! the kernel has its own trap vector, and a backend of its own in
//! [`Platform::Backend`](crate::platform::Platform::Backend).
//!
//! # What an entry sanitizes, and what the switch keeps
//!
//! Code may set something for itself: a rounding mode, the right to access users' pages. When a trap takes
//! the core from it, neither the handler nor the code that runs next may find that set; and when the
//! interrupted code goes on, it must be set again. The trap entries here do both, and so must a kernel's
//! own vector that ends in [`preempt::on_timer`](crate::preempt::on_timer). Code that leaves by itself
//! (in `block_on`, or in the drop of a guard) does so in an ordinary call, so fewer things are open.
//!
//! "Not kept" means: the code that goes on may find another value, as after any call.
//!
//! | | a trap | a leave by itself |
//! |---|---|---|
//! | **Rounding mode and exception flags** | | Rust code must not call with other than the default |
//! | riscv64: `fcsr` | saved with the f registers if FS is Dirty, which writing it makes it; 0 for the handler; restored | not kept |
//! | x86_64: MXCSR, x87 CW | the kernel has neither, CR0.TS is set; a program's are in its `FpArea`. Hosted: Linux saves them for a signal, and gives the handler the default | not kept. Hosted: kept by hal-shim |
//! | loongarch64: `fcsr`, `fcc` | saved if EUEN.FPE is on; 0 for the handler; restored | not kept |
//! | **Flags** | | |
//! | x86_64: DF | cleared for the handler; `iretq` restores it. Hosted: Linux does | must be clear, as in every call |
//! | x86_64: TF, NT | the processor clears them; `iretq` restores them | not kept |
//! | **The right to access users' pages** | | |
//! | riscv64: SUM, MXR | cleared for the handler; restored | given up, and given back |
//! | x86_64: AC (with SMAP) | cleared for the handler; `iretq` restores it. Hosted (alignment checks): the first instructions of hal-shim's handler clear it | given up, and given back. Hosted: not looked at |
//! | loongarch64 | there is none | |
//! | **Reservations** | | |
//! | riscv64: `lr`/`sc` | each return ends them by an `sc.d` | compiled code has none in a call |
//! | loongarch64: `ll`/`sc` | `ertn` ends them | as above |
//! | x86_64 | there are none | |
//! | **FP registers** | | those that a callee preserves |
//! | riscv64: f0 to f31 | saved if FS is Dirty, restored | fs0 to fs11 if FS is Dirty |
//! | x86_64: x87, SSE, AVX | programs' only: saved after each stay in user mode, then cleared | no callee preserves any |
//! | loongarch64: f0 to f31 | saved if FPE is on, restored | fs0 to fs7 if FPE is on |
//! | **Vector registers** | | |
//! | riscv64: V; loongarch64: LSX, LASX | units stay off; a kernel that is compiled for them is a compile error | |
//! | x86_64: SSE in kernel code | is a compile error without an operating system. Hosted: in the signal frame | |
//! | **Per-core register** | | |
//! | riscv64: `tp`; loongarch64: `$r21` | neither saved nor restored: it is the core's. After user mode, the caller's of `run` | as it is |
//! | x86_64: gs | as it is in kernel mode; `swapgs` after user mode | as it is |
//! | **Interrupt enable** | | |
//! | riscv64: SIE; x86_64: IF; loongarch64: IE | masked for the handler; restored | as it is |
//!
//! `TrapContext::run` keeps what its caller has set, and gives a program nothing of it. What a program has left in
//! the FP registers is saved and cleared when it leaves user mode, so that the next one cannot see it
//! speculatively either (CVE-2018-3665).

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
pub use native::{HANDLER_STACK, MIN_EMERGENCY_STACK, TrapContext, TrapCore, install_trap_entry};
pub(crate) use native::{LEAVE, drop_rights, has_rights, restore_rights, touch_stack};

/// An architecture that is not here. The kernel brings its own backend, whose `switch` does what these do.
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
