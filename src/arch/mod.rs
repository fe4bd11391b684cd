//! Registers and stacks: one self-contained file for each architecture. No other module knows
//! registers.
//!
//! Each file brings a [`StackfulBackend`](crate::stackful::StackfulBackend) and, for kernels that
//! use them, a trap entry, the [`TrapContext`] that the entry saves, and the way into user mode and
//! back. [`Native`] is the backend of the target. What all architectures have in common is in
//! [`trap`](crate::trap).
//!
//! On other architectures (AArch64, for example) the crate compiles without `Native`,
//! [`TrapContext`] and `trap`. There the kernel has its own trap vector, and a backend of its own
//! in [`Platform::Backend`](crate::platform::Platform::Backend).
//!
//! # What an entry sanitizes, and what the switch keeps
//!
//! Code may set up state for itself, such as a rounding mode or the right to access users' pages.
//! When a trap takes the core from that code, neither the handler nor the code that runs next may
//! find that state. When the interrupted code resumes, it must find it again. The trap entries here
//! ensure both, and so must a kernel's own vector that ends in
//! [`preempt::on_timer`](crate::preempt::on_timer). Code that leaves by itself (in `block_on`, or
//! in the drop of a guard) does so in an ordinary call, so less state must be handled.
//!
//! "Not kept" means: the code that resumes may find another value, as after any call.
//!
//! | | a trap | code that leaves by itself |
//! |---|---|---|
//! | **Rounding mode and exception flags** | | Rust code must not make a call while they differ from the default |
//! | riscv64: `fcsr` | saved with the f registers if FS is Dirty, which a write of `fcsr` makes it; 0 for the handler; restored | not kept |
//! | x86_64: MXCSR, x87 CW | the kernel uses neither, CR0.TS is set; a program's values are in its `FpArea`. Hosted: Linux saves them for a signal, and gives the handler the default | not kept. Hosted: kept by hal-shim |
//! | loongarch64: `fcsr`, `fcc` | saved if EUEN.FPE is on; 0 for the handler (`fcsr`); restored | not kept |
//! | **Flags** | | |
//! | x86_64: DF | cleared for the handler; `iretq` restores it. Hosted: Linux does both | must be clear, as in every call |
//! | x86_64: TF, NT | the processor clears them; `iretq` restores them | not kept |
//! | **The right to access users' pages** | | |
//! | riscv64: SUM, MXR | cleared for the handler; restored | cleared before the switch; set again after it |
//! | x86_64: AC (with SMAP) | cleared for the handler; `iretq` restores it. Hosted (alignment checks): the first instructions of hal-shim's handler clear it | cleared before the switch; set again after it. Hosted: not looked at |
//! | loongarch64 | there is no such right | |
//! | **Reservations** | | |
//! | riscv64: `lr`/`sc` | each return from a trap ends them by an `sc.d` | compiled code has none in a call |
//! | loongarch64: `ll`/`sc` | `ertn` ends them | compiled code has none in a call |
//! | x86_64 | there are none | |
//! | **FP registers** | | those that a callee preserves |
//! | riscv64: f0 to f31 | saved if FS is Dirty, restored | fs0 to fs11 if FS is Dirty |
//! | x86_64: x87, SSE, AVX | those of programs only: saved after each stay in user mode, then cleared | no callee preserves any |
//! | loongarch64: f0 to f31 | saved if FPE is on, restored | fs0 to fs7 if FPE is on |
//! | **Vector registers** | | |
//! | riscv64: V; loongarch64: LSX, LASX | the units stay off; compiling a kernel for them is a compile error | |
//! | x86_64: SSE in kernel code | a compile error without an operating system. Hosted: saved in the signal frame | |
//! | **Per-core register** | | |
//! | riscv64: `tp`; loongarch64: `$r21` | neither saved nor restored, as it belongs to the core. After user mode: the value of the caller of `run` | unchanged |
//! | x86_64: gs | unchanged in kernel mode; `swapgs` after user mode | unchanged |
//! | **Interrupt enable** | | |
//! | riscv64: SIE; x86_64: IF; loongarch64: IE | masked for the handler; restored | unchanged |
//!
//! `TrapContext::run` keeps what its caller has set, and passes none of it to a program. The values
//! that a program leaves in the FP registers are saved and cleared when it leaves user mode, so
//! that the next program cannot see them, not even speculatively (CVE-2018-3665).

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

/// Checks at compile time that the interface of the trap entry is the same on all architectures:
/// each item has the signature that is stated here. Kernel code that uses these items only
/// therefore compiles on all of them.
#[cfg(all(
    any(target_os = "none", doc),
    any(target_arch = "riscv64", target_arch = "x86_64", target_arch = "loongarch64")
))]
const _: () = {
    use core::ptr::NonNull;

    use crate::trap::cause::{Syscall, Trap};

    // A call and not only the signature: these three are `const fn`.
    const _: TrapContext = TrapContext::user(0, 0).with_arguments([0; 6]).with_interrupts(true);

    type Handler = fn(&mut TrapContext);
    let _: fn(usize, usize) -> TrapContext = TrapContext::user;
    let _: fn(TrapContext, [usize; 6]) -> TrapContext = TrapContext::with_arguments;
    let _: fn(TrapContext, bool) -> TrapContext = TrapContext::with_interrupts;
    let _: fn(&TrapContext) -> Trap = TrapContext::trap;
    let _: fn(&TrapContext) -> bool = TrapContext::is_user;
    let _: fn(&TrapContext) -> bool = TrapContext::is_overflow;
    let _: fn(&TrapContext) -> usize = TrapContext::pc;
    let _: fn(&mut TrapContext, usize) = TrapContext::set_pc;
    let _: fn(&TrapContext) -> usize = TrapContext::sp;
    let _: fn(&mut TrapContext, usize) = TrapContext::set_sp;
    let _: fn(&TrapContext) -> Syscall = TrapContext::syscall;
    let _: fn(&mut TrapContext, usize) = TrapContext::set_result;
    let _: fn(&mut TrapContext, usize) = TrapContext::set_thread_pointer;
    // The only caller of this one is `TrapContext::run`.
    let _: unsafe fn(&mut TrapContext) = TrapContext::enter_user;

    let _: fn() -> TrapCore = TrapCore::new;
    let _: unsafe fn(&'static TrapCore, NonNull<[u8]>, Handler) = install_trap_entry;
    let _: [usize; 2] = [HANDLER_STACK, MIN_EMERGENCY_STACK];
};

/// The items of an architecture that has no file here. The kernel brings its own backend, whose
/// `switch` does what these functions do.
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
    /// No condition here. The other architectures have one.
    pub(crate) unsafe fn restore_rights(_: usize) {}
}
