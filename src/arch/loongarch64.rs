//! LoongArch, 64 bits, ABIs lp64s and lp64d: the switch and, for kernels that use them, a trap
//! entry and the way into user mode and back.
//!
//! Stacks grow downwards. `sp` is always aligned to 16. Nothing below `sp` is in use.
//!
//! # A stack that is off the core
//!
//! ```text
//!   higher addresses
//!   |        ...             |
//!   |  the frame of the code |   holds what that code needs of the other registers
//!   |  that switches         |
//!   +------------------------+
//!   |  fs0 ... fs7           |   only under lp64d, and written only if bit 0 of pc is 1
//!   |  fp ($r22), s8         |
//!   |  pc: where to resume   |   bit 0: the switch back loads fs0 to fs7 first
//!   +------------------------+ <- Context (= sp), a `Frame`
//! ```
//!
//! # A stack that was prepared and not yet entered
//!
//! ```text
//!   +------------------------+ <- top, aligned to 16
//!   |  fs0 ... fs7           |   as above; not written
//!   |  fp: `main`            |
//!   |  s8: its argument      |
//!   |  pc: `start`           |
//!   +------------------------+ <- Context, a `Frame`
//! ```
//!
//! # A preempted stack
//!
//! ```text
//!   |  interrupted frame     |
//!   +------------------------+ <- sp of the interrupted code
//!   |  TrapContext           |   pushed by `trap_entry`, or what the kernel's own vector saves
//!   +------------------------+
//!   |  the handler's frames  |   down to `preempt::on_timer`
//!   +------------------------+
//!   |  Frame                 |   pushed by the same `switch` that a task calls to leave by itself
//!   +------------------------+ <- Context
//! ```
//!
//! # A stack that has overflowed
//!
//! ```text
//!   |  frames                |
//!   +------------------------+ <- the stack's end; below it, an unmapped page. `trap_entry` probes
//!   :  too little room       :    for the room that the context and the handler need. The probe or
//!   +------------------------+    a push faults and enters `trap_entry` again, which recognizes
//!                                 the address of that instruction and moves to the emergency
//!                                 stack:
//!
//!   +------------------------+ <- the top of the core's emergency stack
//!   |  TrapContext           |   its sp and ERA are those of the code whose stack overflowed
//!   +------------------------+
//!   |  the handler's frames  |
//! ```
//!
//! # A stack whose task runs a user program
//!
//! ```text
//!   |  TrapContext::run      |
//!   +------------------------+
//!   |  UserFrame             |   the registers that the ABI has a callee preserve, $tp, and EUEN
//!   +------------------------+ <- TrapCore::kernel_sp. TrapCore::context: the context that runs
//! ```
//!
//! `TrapCore::kernel_sp` and `TrapCore::context` are written by the last instructions before user
//! mode, and read by the first instructions after it. Interrupts are masked in the kernel from the
//! former to the latter, so no other kernel code runs in between, and nested runs need not restore
//! the two.
//!
//! # The entry's CSRs
//!
//! SAVE1 holds the address of the core's [`TrapCore`] whenever code runs, in kernel mode and in
//! user mode. SAVE0 and SAVE2 to SAVE4 are scratch from the first instruction of the entry to its
//! last push. Only the pushes can trap there. A kernel that takes its traps by this entry leaves
//! these five CSRs to it. The TLB refill has CSRs of its own, so it may come between any two
//! instructions.
//!
//! # Which registers
//!
//! `switch` is inlined into its caller and tells the compiler which registers it overwrites. The
//! compiler saves those of them that hold live values, together with what it saves anyway. `switch`
//! itself saves the registers that it does not declare as overwritten: fp, s8 and sp, and under
//! lp64d fs0 to fs7. The latter are rarely in use, and EUEN tells whether they are. `switch`
//! touches neither `$r21` (the core's), nor `$tp`, nor `CRMD.IE`. Kernel code has no right to
//! access users' pages that it would have to give itself, so `drop_rights` does nothing. `fcsr` is
//! not switched: Rust code may assume the rounding mode that it was started with, and calls do not
//! preserve the flags. A trap can come between any two instructions, so `TrapContext` holds `fcsr`
//! and the condition flags `fcc` too, and the code that runs next gets the 0 in `fcsr` that Rust
//! code starts with. Vector registers are not handled here: EUEN keeps their units off, and a
//! kernel must not be compiled to use them.
//!
//! # Floating point, by `EUEN.FPE`
//!
//! LoongArch does not track whether the f registers have been written, but with FPE off, an FP
//! instruction traps. Under lp64d, the same invariant as on RISC-V is enough to keep the f
//! registers of tasks that use them, at no cost for the other tasks:
//!
//! > If FPE is off, the f registers hold nothing that the running code needs.
//!
//! - FPE is off when code starts. The first FP instruction traps, and `on_trap` has the return from
//!   that trap turn FPE on, with registers that are zero: the code has written no f register yet.
//! - `switch` away: if FPE is on, fs0 to fs7 go into the frame, and FPE goes off. Otherwise the
//!   code that runs next would save them too. Bit 0 of `pc` tells the switch back to turn FPE on
//!   and to load them.
//! - `switch` away while FPE is off: no f register is needed, and bit 0 of `pc` is 0.
//! - A trap: if FPE is on, all f registers go into the trap context before any Rust code runs, and
//!   FPE goes off for the handler. The return from the trap loads them, and turns FPE on or off as
//!   it was.
//!
//! Under lp64s, kernel code never uses the f registers, FPE is off in the kernel, and none of this
//! is compiled.
//!
//! A kernel under lp64d that has a vector of its own keeps the invariant as follows:
//!
//! - The vector answers exception 0xf, the trap of an FP instruction with FPE off, by turning FPE
//!   on and returning to that instruction.
//! - It saves and loads f registers, `fcsr` and `fcc` if FPE was on at the trap.
//! - It touches none of them while FPE is off, as that traps in the vector. Nor does the code that
//!   answers 0xf, which would trap for ever.
//!
//! A user program, under both ABIs, begins with FPE off. Its first FP instruction traps: the
//! program then gets f registers that are zero, and resumes at that instruction. From then on, the
//! f registers are loaded before the program runs, and saved after it. After the saving, they are
//! set to zero: a processor that speculates with FPE off could otherwise let the next program see
//! their values. So no program sees the registers of another one, and a program that uses no
//! floating point pays nothing. The kernel's rounding mode is the one that 0 in `fcsr` means. The
//! entry sets it again after each trap that finds FPE on.

use core::arch::{asm, naked_asm};
#[cfg(target_feature = "d")]
use core::mem::MaybeUninit;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
// Not loom's atomics: traps are not modelled.
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::fatal::fatal;
use crate::stackful::{Context, StackMain, StackfulBackend};
use crate::trap::cause::{Access, Syscall, Trap};
use crate::trap::handler;

#[cfg(all(target_os = "none", any(target_feature = "lsx", target_feature = "lasx")))]
compile_error!(
    "neither the trap entry nor the switch saves the kernel's own vector registers: build the \
     kernel without the target features `lsx` and `lasx`"
);

/// The state that a [`Context`] points to.
#[repr(C, align(16))]
struct Frame {
    pc: usize,
    /// $r22.
    fp: usize,
    s8: usize,
    #[cfg(target_feature = "d")]
    fs: [MaybeUninit<u64>; 8],
}

/// The numbers of the CSRs, and what the SAVE registers hold.
mod csr {
    pub(super) const PRMD: usize = 0x1;
    pub(super) const EUEN: usize = 0x2;
    pub(super) const ECFG: usize = 0x4;
    pub(super) const ESTAT: usize = 0x5;
    pub(super) const ERA: usize = 0x6;
    pub(super) const BADV: usize = 0x7;
    pub(super) const BADI: usize = 0x8;
    pub(super) const EENTRY: usize = 0xc;
    /// SAVE0: the interrupted t0.
    pub(super) const SAVE_T0: usize = 0x30;
    /// SAVE1: the address of the core's `TrapCore`.
    pub(super) const SAVE_CORE: usize = 0x31;
    /// SAVE2: the interrupted ERA, in case that the push of the registers faults. Bit 0: interrupts
    /// were masked.
    pub(super) const SAVE_ERA: usize = 0x32;
    /// SAVE3: the interrupted t1.
    pub(super) const SAVE_T1: usize = 0x33;
    /// SAVE4: the interrupted sp.
    pub(super) const SAVE_SP: usize = 0x34;
}

/// EUEN: the FPU is on.
#[cfg(target_feature = "d")]
const FPE: usize = 1 << 0;
/// PRMD: the interrupted privilege level. 0 is the kernel's.
const PPLV: usize = 0b11;
/// PRMD: the privilege level of user programs.
const USER: usize = 3;
/// PRMD: interrupts were enabled in the interrupted code.
const PIE: usize = 1 << 2;

/// `fcsr0`: the enables, the rounding mode and the flags. The other fields describe the latest
/// instruction only.
const FCSR_KEPT: usize = 0x1f_031f;

/// How many bytes of the interrupted stack the handler of an interrupt may use. The amount includes
/// the handler's call of [`preempt::on_timer`](crate::preempt::on_timer) and the switch, which take
/// less than half of it in a build without optimization. The trap entry checks that this much stack
/// is there. If it is not, the trap is an [overflow](TrapContext::is_overflow).
pub const HANDLER_STACK: usize = 2048;

/// The switch of 64-bit LoongArch.
#[derive(Debug)]
pub struct LoongArch64;

impl LoongArch64 {
    /// The minimum for the task's own frames: those of the runtime's poll loop, and a few of the
    /// future's. A future that reads the clock takes 3.7 KiB in a build without optimization.
    const POLL: usize = 4096;
}

// SAFETY: `prepare` writes one `Frame` below `top`, less than MIN_STACK. `switch` saves and loads
// fp, s8 and sp, and fs0 to fs7 where the head of this file says that they are needed. It tells the
// compiler that it overwrites all other registers but $r21 and $tp, which it leaves alone, as it
// does IE. It accesses the two stacks and `*save` only. An `asm!` without `nomem` is a compiler
// barrier.
unsafe impl StackfulBackend for LoongArch64 {
    const MIN_STACK: usize =
        size_of::<Frame>() + size_of::<TrapContext>() + HANDLER_STACK + Self::POLL;

    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context {
        let frame = Frame {
            pc: start as *const () as usize + START,
            fp: main as usize,
            s8: argument.expose_provenance(),
            #[cfg(target_feature = "d")]
            fs: [MaybeUninit::uninit(); 8],
        };
        // SAFETY: the caller gives MIN_STACK writable bytes below `top`, aligned to 16.
        unsafe {
            let context = top.byte_sub(size_of::<Frame>());
            context.cast::<Frame>().write(frame);
            Context(context.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn switch(save: *mut Context, to: Context) {
        // SAFETY: the caller promises that `to` was saved by this same code or made by `prepare`.
        unsafe {
            asm!(
                // a0: where to store the context that is left; a1: the context to enter; t0: the
                // address behind the jump. A jump and not a call: a call would make the processor's
                // return-address predictor expect a return, but `exchange` ends in a jump.
                "la.pcrel $t0, 2f",
                "b {exchange}",
                // Another switch has entered the context that was saved here.
                "2:",
                exchange = sym exchange,
                inout("$a0") save => _,
                inout("$a1") to.0 => _,
                out("$s0") _,
                out("$s1") _,
                out("$s2") _,
                out("$s3") _,
                out("$s4") _,
                out("$s5") _,
                out("$s6") _,
                out("$s7") _,
                // Declares the other caller-saved registers too, $ra among them.
                clobber_abi("C"),
            );
        }
    }
}

/// Exchanges the stacks. a0: where to store the context that is left; a1: the context to enter; t0:
/// the address at which the caller resumes.
///
/// The exchange is a function of its own, because only then can CFI tell an unwinder after each
/// instruction where everything is. The CFI is the same before and after the change of stacks,
/// because both stacks have the same layout.
#[unsafe(naked)]
unsafe extern "C" fn exchange() {
    naked_asm!(
        ".cfi_startproc",
        // CFI: the return address is in t0 ($r12), not in ra ($r1).
        ".cfi_register 1, 12",
        // Builds the `Frame`.
        "addi.d $sp, $sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        "st.d $fp, $sp, {fp}",
        ".cfi_rel_offset 22, {fp}",
        "st.d $s8, $sp, {s8}",
        ".cfi_rel_offset 31, {s8}",
        // t1: EUEN. 3 saves the f registers if FPE is on.
        #[cfg(target_feature = "d")]
        "csrrd $t1, {euen}
        andi $t1, $t1, {fpe}
        bnez $t1, 3f
        .cfi_remember_state
        2:",
        // a0, a1: as above; t0: where the left stack resumes; bit 0: its f registers are saved.
        "st.d $t0, $sp, {pc}",
        ".cfi_rel_offset 1, {pc}",
        // sp: the `Frame`, which is the context that is left.
        "st.d $sp, $a0, 0",
        // From here on, sp is on the stack that is entered. A `Frame` lies there too, so the CFI
        // above stays true.
        "move $sp, $a1",
        // t0: where this stack resumes: the caller or `start`; bit 0: 4 loads its f registers
        // first.
        "ld.d $t0, $sp, {pc}",
        #[cfg(target_feature = "d")]
        "andi $t1, $t0, 1
        bnez $t1, 4f
        .cfi_remember_state
        5:",
        // Takes the `Frame` off the stack. Bit 0 of t0 is 0.
        "ld.d $fp, $sp, {fp}",
        "ld.d $s8, $sp, {s8}",
        "addi.d $sp, $sp, {size}",
        ".cfi_def_cfa_offset 0",
        ".cfi_same_value 22",
        ".cfi_same_value 31",
        ".cfi_register 1, 12",
        // Not through ra: the processor would predict such a jump as a return from the latest call.
        "jr $t0",
        // The entered code needs its f registers: turns FPE on first, so that FP instructions do
        // not trap. `csrwr` exchanges: t1 gets the old EUEN, which is not needed. Then clears bit 0
        // of t0.
        #[cfg(target_feature = "d")]
        "4:
        .cfi_restore_state
        li.w $t1, {fpe}
        csrwr $t1, {euen}
        .irp n, 0,1,2,3,4,5,6,7
          fld.d $fs\\n, $sp, {fs} + 8*\\n
        .endr
        addi.d $t0, $t0, -1
        b 5b",
        // FPE is on: saves the f registers. Then turns FPE off, or the code that runs next would
        // save the same registers, and sets bit 0 of t0, so that the switch back loads them.
        #[cfg(target_feature = "d")]
        "3:
        .cfi_restore_state
        .irp n, 0,1,2,3,4,5,6,7
          fst.d $fs\\n, $sp, {fs} + 8*\\n
        .endr
        csrwr $zero, {euen}
        addi.d $t0, $t0, 1
        b 2b",
        ".cfi_endproc",
        pc = const offset_of!(Frame, pc),
        fp = const offset_of!(Frame, fp),
        s8 = const offset_of!(Frame, s8),
        #[cfg(target_feature = "d")]
        fs = const offset_of!(Frame, fs),
        size = const size_of::<Frame>(),
        #[cfg(target_feature = "d")]
        euen = const csr::EUEN,
        #[cfg(target_feature = "d")]
        fpe = const FPE,
    )
}

/// Calls `main` on a prepared stack. fp: `main`; s8: its argument; sp: the stack's top. There is no
/// caller and no frame pointer: an unwinder, a debugger and a walk along the frame pointers end
/// here.
///
/// It begins with a `nop` that never runs: an unwinder looks up the instruction before the address
/// at which a frame resumes, and that instruction must belong to this function.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        // CFI: there is no return address (in ra, $r1), so unwinding ends here.
        ".cfi_undefined 1",
        "nop",
        // a0: the argument; t0: `main`; fp: 0, which ends the chain of frame pointers.
        "move $a0, $s8",
        "move $t0, $fp",
        "move $fp, $zero",
        "jirl $ra, $t0, 0",
        // `main` never returns: if it does, this traps.
        "break 0",
        ".cfi_endproc",
    )
}

/// The size in bytes of the `nop` that [`start`] begins with.
const START: usize = 4;

/// How many bytes of stack a task that leaves by itself takes, from the point where it must not be
/// preempted any more.
pub(crate) const LEAVE: usize = 1024;

/// Reads the stack `DEPTH` bytes below the stack pointer. If nothing is mapped there, the fault is
/// taken here, in the code of the task, which can be ended alone. Without this probe, the fault
/// would be taken in the runtime's own code or in a handler.
#[inline(always)]
pub(crate) fn touch_stack<const DEPTH: usize>() {
    // SAFETY: only reads, and discards the value. If nothing is mapped below the stack pointer, the
    // read faults.
    unsafe { asm!("ld.b {}, $sp, -{}", out(reg) _, const DEPTH, options(nostack, readonly)) };
}

/// Returns whether the running code has given itself a right that no other code may have: LoongArch
/// has no such right.
#[inline(always)]
pub(crate) fn has_rights() -> bool {
    false
}

/// Does nothing: there are no such rights.
#[cold]
pub(crate) fn drop_rights() -> usize {
    0
}

/// Does nothing: there are no rights to give back.
///
/// # Safety
///
/// No condition here. The other architectures have one.
#[cold]
pub(crate) unsafe fn restore_rights(_: usize) {}

/// The state of the code that a trap interrupted. The trap entry pushes it on the interrupted
/// kernel stack, or it belongs to a user program, which [`run`](TrapContext::run) takes to user
/// mode and back.
///
/// The entry reads once everything that the next trap overwrites, and stores it here. Handlers read
/// this context and not the CSRs. When a handler returns, the state in the context is restored.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct TrapContext {
    /// The integer registers $r0 to $r31. `r[0]` is not written. `r[21]` is neither written nor
    /// restored by traps in kernel mode: it belongs to the core and not to the code that runs
    /// there.
    pub r: [usize; 32],
    /// The address of the interrupted instruction. After a system call or a breakpoint, the address
    /// of the next instruction.
    pub era: usize,
    /// PRMD at the trap. PPLV and PIE are the interrupted code's. In a user program's context only
    /// PIE has a meaning: whether the program can be interrupted.
    pub prmd: usize,
    /// The cause: the exception or, if that is 0, the interrupts that were pending.
    pub estat: usize,
    /// The interrupts that were enabled.
    pub ecfg: usize,
    /// The faulting address.
    pub badv: usize,
    /// The faulting instruction.
    pub badi: usize,
    /// Whether `fcsr`, `fcc` and `f` hold values: 1 if so, else 0.
    pub fp: usize,
    /// The rounding mode, the enables and the flags of floating point, if `fp` is 1.
    pub fcsr: usize,
    /// The condition flags fcc0 to fcc7, if `fp` is 1.
    pub fcc: [u8; 8],
    /// f0 to f31, if `fp` is 1.
    pub f: [u64; 32],
}

/// The registers that [`enter`] saves for its caller while a user program runs.
#[repr(C, align(16))]
struct UserFrame {
    ra: usize,
    tp: usize,
    /// $r22 to $r31.
    s: [usize; 10],
    /// Whether `fs` was written: 0 or 1.
    #[cfg(target_feature = "d")]
    fp: usize,
    #[cfg(target_feature = "d")]
    fs: [u64; 8],
}

// Immediate offsets of loads and stores reach up to 2047. The sizes are multiples of 16, so the
// stack stays aligned.
const _: () =
    assert!(size_of::<TrapContext>() < 2048 && size_of::<TrapContext>().is_multiple_of(16));
const _: () = assert!(size_of::<Frame>() < 2048 && size_of::<Frame>().is_multiple_of(16));
const _: () = assert!(size_of::<UserFrame>() < 2048 && size_of::<UserFrame>().is_multiple_of(16));

/// The storage of one core that its trap entry uses. The kernel keeps one `TrapCore` for each core.
///
/// Apart from [`install_trap_entry`], only the entry and `TrapContext::run` write the fields, on
/// this core and with interrupts masked.
#[repr(C)]
#[derive(Debug)]
pub struct TrapCore {
    /// The bounds of the emergency stack.
    emergency_base: AtomicUsize,
    emergency_top: AtomicUsize,
    /// While user mode runs: the stack pointer of `enter`, its $r21, and the context that runs.
    kernel_sp: AtomicUsize,
    kernel_r21: AtomicUsize,
    context: AtomicUsize,
}

impl TrapCore {
    /// Returns the storage of a core that has not installed the entry yet.
    pub const fn new() -> Self {
        Self {
            emergency_base: AtomicUsize::new(0),
            emergency_top: AtomicUsize::new(0),
            kernel_sp: AtomicUsize::new(0),
            kernel_r21: AtomicUsize::new(0),
            context: AtomicUsize::new(0),
        }
    }

    /// Returns the calling core's `TrapCore`.
    ///
    /// # Safety
    ///
    /// The calling core has installed the entry.
    unsafe fn here() -> &'static Self {
        let core: *const Self;
        // SAFETY: reads a CSR. The result stays valid: a task does not change cores while its stack
        // holds the result.
        unsafe {
            asm!(
                "csrrd {}, {}",
                out(reg) core,
                const csr::SAVE_CORE,
                options(nomem, nostack, preserves_flags),
            )
        };
        // SAFETY: `install_trap_entry` wrote a `&'static TrapCore` to SAVE1, and the entry keeps it
        // there.
        unsafe { &*core }
    }

    /// Returns whether `address` lies on the emergency stack.
    fn is_emergency(&self, address: usize) -> bool {
        let base = self.emergency_base.load(Ordering::Relaxed);
        (base..self.emergency_top.load(Ordering::Relaxed)).contains(&address)
    }
}

impl Default for TrapCore {
    fn default() -> Self {
        Self::new()
    }
}

/// The minimum size of an emergency stack in bytes: room for two contexts, of a trap and of a fault
/// in its handler, and for the frames of both.
pub const MIN_EMERGENCY_STACK: usize = 2 * (size_of::<TrapContext>() + 4096);

/// Directs this core's traps to `handler`, for kernels that have no trap vector of their own.
///
/// All cores share one handler: the one that was given last.
///
/// # Panics
///
/// If `emergency_stack` is smaller than [`MIN_EMERGENCY_STACK`].
///
/// # Safety
///
/// - This core is at privilege level 0, and `ECFG.VS` is 0, so that all traps have one entry. From
///   now on, the entry owns `EENTRY` and the CSRs SAVE0 to SAVE4.
/// - The kernel handles the TLB refill. At all times the refill lets the kernel reach its code, its
///   stacks and `core`.
/// - Below the stack pointer of every stack on which a trap can be taken there is room for a
///   [`TrapContext`] and the handler's frames, or an unmapped page. `sp` is aligned to 16 wherever
///   a trap can be taken.
/// - `core` and `emergency_stack` are used by this core only. `emergency_stack` is at least
///   [`MIN_EMERGENCY_STACK`] bytes of memory, valid for ever, and aligned to 16 at both ends.
/// - `handler` returns with interrupts masked, and only if the core may resume where the
///   `TrapContext` says.
pub unsafe fn install_trap_entry(
    core: &'static TrapCore,
    emergency_stack: NonNull<[u8]>,
    handler: fn(&mut TrapContext),
) {
    assert!(
        emergency_stack.len() >= MIN_EMERGENCY_STACK,
        "the emergency stack is too small: MIN_EMERGENCY_STACK says how large it must be"
    );
    let base = emergency_stack.cast::<u8>().as_ptr().expose_provenance();
    core.emergency_base.store(base, Ordering::Relaxed);
    core.emergency_top.store(base + emergency_stack.len(), Ordering::Relaxed);
    handler::set_handler(handler);
    // SAFETY: the caller promises what the entry relies on. The entry begins at the first multiple
    // of ENTRY_ALIGN from `trap_entry` on. SAVE1 is written first, because the entry reads it.
    // `csrwr` exchanges, so both operands are overwritten.
    unsafe {
        asm!(
            "csrwr {core}, {save_core}",
            "csrwr {entry}, {eentry}",
            core = inout(reg) core => _,
            entry = inout(reg) (trap_entry as *const ()).addr().next_multiple_of(ENTRY_ALIGN) => _,
            save_core = const csr::SAVE_CORE,
            eentry = const csr::EENTRY,
            options(nostack),
        )
    }
}

/// ESTAT: the codes of the exceptions.
mod exception {
    pub(super) const INTERRUPT: usize = 0x0;
    pub(super) const LOAD_PAGE: usize = 0x1;
    pub(super) const STORE_PAGE: usize = 0x2;
    pub(super) const FETCH_PAGE: usize = 0x3;
    /// A store to a page that is not dirty: the page must not be written.
    pub(super) const PAGE_MODIFICATION: usize = 0x4;
    pub(super) const PAGE_NOT_READABLE: usize = 0x5;
    pub(super) const PAGE_NOT_EXECUTABLE: usize = 0x6;
    /// An access of any kind to a page that is the kernel's.
    pub(super) const PAGE_PRIVILEGE: usize = 0x7;
    /// An invalid address. With the subcode 0, that of an instruction.
    pub(super) const ADDRESS: usize = 0x8;
    pub(super) const SYSTEM_CALL: usize = 0xb;
    pub(super) const BREAKPOINT: usize = 0xc;
    pub(super) const UNDEFINED_INSTRUCTION: usize = 0xd;
    pub(super) const PRIVILEGED_INSTRUCTION: usize = 0xe;
    pub(super) const FP_DISABLED: usize = 0xf;
}
/// The positions of the exception and of its subcode in ESTAT.
const EXCEPTION_SHIFT: usize = 16;
const EXCEPTION_MASK: usize = 0x3f;
const SUBCODE_SHIFT: usize = 22;
const SUBCODE_MASK: usize = 0x1ff;
/// The interrupt lines in ESTAT and ECFG, and the timer's line.
const LINES: usize = 0x1fff;
const TIMER: u32 = 11;

impl TrapContext {
    /// Returns the context of a user program that begins at `entry` with the stack pointer `stack`.
    /// All other registers are 0, interrupts are enabled, and floating point is unused.
    pub const fn user(entry: usize, stack: usize) -> Self {
        let mut r = [0; 32];
        r[3] = stack;
        Self {
            r,
            era: entry,
            prmd: USER | PIE,
            estat: 0,
            ecfg: 0,
            badv: 0,
            badi: 0,
            fp: 0,
            fcsr: 0,
            fcc: [0; 8],
            f: [0; 32],
        }
    }

    /// Sets the first six arguments, as the calling convention passes integers.
    #[must_use]
    pub const fn with_arguments(mut self, arguments: [usize; 6]) -> Self {
        let mut n = 0;
        while n < arguments.len() {
            self.r[4 + n] = arguments[n];
            n += 1;
        }
        self
    }

    /// Sets whether the program can be interrupted. A program that cannot be interrupted keeps the
    /// core until it traps by itself.
    #[must_use]
    pub const fn with_interrupts(mut self, enabled: bool) -> Self {
        self.prmd = if enabled { self.prmd | PIE } else { self.prmd & !PIE };
        self
    }

    /// Returns the exception. It is `exception::INTERRUPT` for an interrupt.
    #[inline]
    fn exception(&self) -> usize {
        self.estat >> EXCEPTION_SHIFT & EXCEPTION_MASK
    }

    /// Returns whether the trap was an interrupt that was withdrawn before the entry has read which
    /// one. Handlers do not see such a trap: there is nothing to handle, and the interrupted code
    /// resumes.
    #[inline]
    fn is_withdrawn(&self) -> bool {
        let exceptions = EXCEPTION_MASK << EXCEPTION_SHIFT;
        self.estat & (self.ecfg & LINES | exceptions) == 0
    }

    /// Returns what the trap was.
    #[inline]
    pub fn trap(&self) -> Trap {
        if self.exception() != exception::INTERRUPT {
            return self.fault();
        }
        // Of several lines, the one that the architecture puts first.
        match (self.estat & self.ecfg & LINES).checked_ilog2() {
            Some(TIMER) => Trap::Timer,
            Some(line) => Trap::Interrupt(line as usize),
            None => Trap::Other(self.estat),
        }
    }

    /// Returns what the exception was.
    #[cold]
    fn fault(&self) -> Trap {
        let page = |access| Trap::PageFault { addr: self.badv, access };
        match self.exception() {
            exception::SYSTEM_CALL => Trap::Syscall,
            exception::BREAKPOINT => Trap::Breakpoint,
            exception::UNDEFINED_INSTRUCTION
            | exception::PRIVILEGED_INSTRUCTION
            | exception::FP_DISABLED => Trap::IllegalInstruction,
            exception::LOAD_PAGE | exception::PAGE_NOT_READABLE => page(Access::Read),
            exception::STORE_PAGE | exception::PAGE_MODIFICATION => page(Access::Write),
            exception::FETCH_PAGE | exception::PAGE_NOT_EXECUTABLE => page(Access::Execute),
            exception::PAGE_PRIVILEGE if self.badv == self.era => page(Access::Execute),
            exception::PAGE_PRIVILEGE if is_store(self.badi) => page(Access::Write),
            exception::PAGE_PRIVILEGE => page(Access::Read),
            exception::ADDRESS if self.estat >> SUBCODE_SHIFT & SUBCODE_MASK == 0 => {
                page(Access::Execute)
            }
            // Without the interrupt lines that happen to be pending.
            _ => Trap::Other(self.estat & !LINES),
        }
    }

    /// Returns whether the trap interrupted user mode, and not the kernel.
    pub fn is_user(&self) -> bool {
        self.prmd & PPLV != 0
    }

    /// Returns whether the kernel's stack pointer pointed to memory that is not there when the trap
    /// was taken, most likely because the stack had overflowed. Must be called on the core that
    /// took the trap.
    pub fn is_overflow(&self) -> bool {
        // SAFETY: this core has taken the trap, so the entry is installed.
        let core = unsafe { TrapCore::here() };
        core.is_emergency(core::ptr::from_ref(self).addr())
            && !core.is_emergency(self.sp().wrapping_sub(1))
    }

    /// Returns the address at which the interrupted code resumes.
    pub fn pc(&self) -> usize {
        self.era
    }

    /// Sets the address at which the interrupted code resumes.
    pub fn set_pc(&mut self, pc: usize) {
        self.era = pc;
    }

    /// Returns the stack pointer.
    pub fn sp(&self) -> usize {
        self.r[3]
    }

    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: usize) {
        self.r[3] = sp;
    }

    /// Returns what the program asks for, after a [`Trap::Syscall`].
    pub fn syscall(&self) -> Syscall {
        Syscall { number: self.r[11], arguments: core::array::from_fn(|n| self.r[4 + n]) }
    }

    /// Sets the value that a system call returns: a0.
    pub fn set_result(&mut self, result: usize) {
        self.r[4] = result;
    }

    /// Sets the pointer by which the program finds its thread-local data: $tp.
    pub fn set_thread_pointer(&mut self, pointer: usize) {
        self.r[2] = pointer;
    }

    /// Runs the program until its next trap.
    ///
    /// # Safety
    ///
    /// The contract is that of [`run`](TrapContext::run). In addition, interrupts are masked; they
    /// still are when `enter_user` returns.
    pub(crate) unsafe fn enter_user(&mut self) {
        // SAFETY: the caller promises that the entry is installed.
        let core = unsafe { TrapCore::here() };
        self.prmd = USER | self.prmd & PIE;
        if self.fp != 0 {
            self.fp = has_fp().into();
            // Loading `fcsr` with an exception that is both enabled and flagged may raise that
            // exception.
            self.fcsr &= FCSR_KEPT;
        }
        loop {
            // SAFETY: interrupts are masked, PRMD is that of user mode, `core` is this core's, and
            // `fp` is 1 only if the machine has f registers.
            unsafe { enter(self, core) };
            if self.is_withdrawn() {
                continue;
            }
            if self.exception() != exception::FP_DISABLED || self.fp != 0 || !has_fp() {
                break;
            }
            self.begin_fp();
        }
        self.step_over();
    }

    /// Gives the interrupted code f registers that are zero. FPE is turned on when the context is
    /// loaded.
    fn begin_fp(&mut self) {
        (self.fp, self.fcsr, self.fcc, self.f) = (1, 0, [0; 8], [0; 32]);
    }

    /// Sets `era` to the instruction behind a system call or a breakpoint. All instructions have
    /// four bytes.
    fn step_over(&mut self) {
        if matches!(self.exception(), exception::SYSTEM_CALL | exception::BREAKPOINT) {
            self.era += 4;
        }
    }
}

/// Returns whether `instruction`, which accesses memory, is a store.
fn is_store(instruction: usize) -> bool {
    // Compares opcodes, which have different lengths. In this order: sc and stptr; st and fst; stx
    // and fstx, am*, fstgt and the like, stgt and the like.
    matches!(instruction >> 24 & 0xff, 0x21 | 0x23 | 0x25 | 0x27)
        || matches!(instruction >> 22 & 0x3ff, 0xa4..=0xa7 | 0xad | 0xaf)
        || matches!(
            instruction >> 15 & 0x1_ffff,
            0x7020..=0x703f | 0x7070..=0x707f | 0x70b0..=0x70e3 | 0x70ec..=0x70ef | 0x70f8..=0x70ff
        )
}

/// Returns whether the machine has floating point.
fn has_fp() -> bool {
    let features: usize;
    // SAFETY: reads the features of the processor.
    unsafe {
        asm!("cpucfg {}, {}", out(reg) features, in(reg) 2, options(pure, nomem, nostack));
    }
    features & 1 != 0
}

/// Handles a trap in kernel mode. Runs on the interrupted stack, or on the emergency stack after an
/// overflow.
extern "C" fn on_trap(context: &mut TrapContext) {
    if context.is_withdrawn() {
        return;
    }
    if context.exception() != exception::INTERRUPT {
        #[cfg(target_feature = "d")]
        if context.exception() == exception::FP_DISABLED && context.fp == 0 {
            return context.begin_fp();
        }
        context.step_over();
    }
    handler::dispatch(context);
}

/// Ends the program: the emergency stack itself has overflowed, so no stack is left to handle a
/// trap on.
extern "C" fn no_stack_left() -> ! {
    fatal("trapline: the emergency stack overflowed: give install_trap_entry a larger one")
}

/// Enters user mode. a0: the context to run; a1: the core's `TrapCore`. Returns after the next trap
/// in user mode, by the end of [`trap_entry`].
#[unsafe(naked)]
unsafe extern "C" fn enter(context: *mut TrapContext, core: *const TrapCore) {
    naked_asm!(
        // Builds the `UserFrame`: the registers that the caller expects to be preserved, and tp.
        "addi.d $sp, $sp, -{frame}",
        "st.d $ra, $sp, {frame_ra}",
        "st.d $tp, $sp, {frame_tp}",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, {frame_s} + 8*(\n - 22)",
        r".endr",
        // Whether the caller needs its fs registers, and if so, the registers: FPE is on then.
        #[cfg(target_feature = "d")]
        "csrrd $t0, {euen}
        andi $t0, $t0, {fpe}
        st.d $t0, $sp, {frame_fp}
        beqz $t0, 2f
        .irp n, 0,1,2,3,4,5,6,7
          fst.d $fs\\n, $sp, {frame_fs} + 8*\\n
        .endr
        2:",
        // sp: the `UserFrame`. The TrapCore now says where the next trap in user mode finds the
        // frame, $r21 and the context.
        "st.d $sp, $a1, {kernel_sp}",
        "st.d $r21, $a1, {kernel_r21}",
        "st.d $a0, $a1, {context}",
        // Turns FPE on if the context holds f registers, else off: `fp` is 0 or 1, and FPE is bit 0
        // of EUEN. `csrwr` exchanges: t1 gets the old EUEN, and t0 keeps `fp`.
        // a0: the context. The rest is free.
        "ld.d $t0, $a0, {fp}",
        "move $t1, $t0",
        "csrwr $t1, {euen}",
        "beqz $t0, 3f",
        // Loads the program's f registers, the condition flags fcc, and fcsr.
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          fld.d $f\\n, $a0, {f} + 8*\\n
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          ld.bu $t0, $a0, {fcc} + \\n
          movgr2cf $fcc\\n, $t0
        .endr
        ld.d $t0, $a0, {fcsr}
        movgr2fcsr $fcsr0, $t0",
        "3:",
        // ERA and PRMD: where the program resumes, its privilege level (3), and whether it can be
        // interrupted. Interrupts are masked, so no trap can overwrite the two. (The TLB refill has
        // CSRs of its own.)
        "ld.d $t0, $a0, {era}",
        "csrwr $t0, {csr_era}",
        "ld.d $t0, $a0, {prmd}",
        "csrwr $t0, {csr_prmd}",
        // Loads every register. a0, the base, is the last.
        r".irp n, 1,2,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,4",
        r"  ld.d $r\n, $a0, {r} + 8*\n",
        r".endr",
        // To ERA, with the privilege level and the interrupt enable of PRMD. `ertn` also ends any
        // reservation that other code has made, so that an `sc` of the program cannot succeed by
        // it.
        "ertn",
        frame = const size_of::<UserFrame>(),
        frame_ra = const offset_of!(UserFrame, ra),
        frame_tp = const offset_of!(UserFrame, tp),
        frame_s = const offset_of!(UserFrame, s),
        #[cfg(target_feature = "d")]
        frame_fp = const offset_of!(UserFrame, fp),
        #[cfg(target_feature = "d")]
        frame_fs = const offset_of!(UserFrame, fs),
        kernel_sp = const offset_of!(TrapCore, kernel_sp),
        kernel_r21 = const offset_of!(TrapCore, kernel_r21),
        context = const offset_of!(TrapCore, context),
        r = const offset_of!(TrapContext, r),
        era = const offset_of!(TrapContext, era),
        prmd = const offset_of!(TrapContext, prmd),
        fp = const offset_of!(TrapContext, fp),
        fcsr = const offset_of!(TrapContext, fcsr),
        fcc = const offset_of!(TrapContext, fcc),
        f = const offset_of!(TrapContext, f),
        euen = const csr::EUEN,
        csr_era = const csr::ERA,
        csr_prmd = const csr::PRMD,
        #[cfg(target_feature = "d")]
        fpe = const FPE,
    )
}

/// The alignment of the entry: EENTRY has no lower bits. The entry begins at the first multiple of
/// this value from [`trap_entry`] on.
const ENTRY_ALIGN: usize = 4096;

/// The entry of all traps. On entry, all registers are the interrupted code's, IE is 0, SAVE1 holds
/// the address of the core's `TrapCore`, and the CSRs describe the trap.
#[unsafe(naked)]
unsafe extern "C" fn trap_entry() {
    naked_asm!(
        // The entry begins here, and not at the address of `trap_entry`, which may be less aligned.
        ".balign {entry_align}",
        // No register is free. `csrwr` exchanges, so it saves t0 and overwrites no other register.
        "csrwr $t0, {save_t0}",
        // t0 is free. t0 becomes 0 if kernel code (PPLV is 0) with interrupts enabled (PIE is 1)
        // was interrupted. The other traps continue at 40. The entry's own pushes run with
        // interrupts masked, so a fault of a push goes there too.
        "csrrd $t0, {csr_prmd}",
        "andi $t0, $t0, {pplv} | {pie}",
        "addi.d $t0, $t0, -{pie}",
        "bnez $t0, 40f",
        // Bit 0 of ERA is always 0, so it can carry a flag: interrupts were masked. They were not
        // here.
        "csrrd $t0, {csr_era}",
        // t0: ERA with the flag; SAVE_T0: t0. All else is the interrupted code's. Keeps ERA for 42:
        // if a push below faults, that fault overwrites the CSR. t0 gets its value back.
        "2:",
        "csrwr $t0, {save_era}",
        "csrrd $t0, {save_t0}",
        // A trap in kernel mode. All registers are the interrupted code's again, so the entry can
        // be entered a second time: if one of the loads and stores between 3 and 4 faults, 40
        // recognizes its address, with t0 and t1 as they are here.
        "3:",
        ".cfi_startproc",
        ".cfi_signal_frame",
        // CFI: ra is the interrupted code's, so the address at which that code resumes gets a
        // number of its own, 64.
        ".cfi_return_column 64",
        // sp: the place of the TrapContext, aligned to 16 as its size is a multiple of 16. Saves ra
        // ($r1) first: the probe needs a register to load into.
        "addi.d $sp, $sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        "st.d $ra, $sp, {r} + 8*1",
        ".cfi_rel_offset 1, {r} + 8*1",
        // Probes the stack as deep as the handler may go. If it is not there, the fault is taken
        // here, before anything is acknowledged or locked.
        "ld.b $ra, $sp, -{handler}",
        // All registers but sp ($r3), whose value has changed already, and $r21, which is the
        // core's.
        r".irp n, 2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, {r} + 8*\n",
        r"  .cfi_rel_offset \n, {r} + 8*\n",
        r".endr",
        "4:",
        // sp: the TrapContext. All other registers are saved and free, but for $r21. Saves the
        // interrupted sp, ERA and PRMD.
        "addi.d $t0, $sp, {size}",
        "st.d $t0, $sp, {r} + 8*3",
        ".cfi_rel_offset 3, {r} + 8*3",
        "csrrd $t0, {csr_era}",
        "st.d $t0, $sp, {era}",
        ".cfi_rel_offset 64, {era}",
        "csrrd $t0, {csr_prmd}",
        "st.d $t0, $sp, {prmd}",
        "5:",
        // sp: the TrapContext, which holds the registers, ERA and PRMD. (42 comes here too.) Saves
        // the other CSRs now, as the next trap overwrites them.
        "csrrd $t0, {csr_estat}",
        "st.d $t0, $sp, {estat}",
        "csrrd $t0, {csr_ecfg}",
        "st.d $t0, $sp, {ecfg}",
        "csrrd $t0, {csr_badv}",
        "st.d $t0, $sp, {badv}",
        "csrrd $t0, {csr_badi}",
        "st.d $t0, $sp, {badi}",
        // fp: 0. Under lp64s, kernel code has no f registers.
        #[cfg(not(target_feature = "d"))]
        "st.d $zero, $sp, {fp}",
        // fp: FPE, 0 or 1. If FPE is on, saves the f registers, the condition flags fcc, and fcsr.
        // The rounding mode is the interrupted code's. The code that runs next gets 0, the one that
        // Rust code starts with. Then turns FPE off, so that a switch in the handler saves no f
        // registers again.
        #[cfg(target_feature = "d")]
        "csrrd $t0, {csr_euen}
        andi $t0, $t0, {fpe}
        st.d $t0, $sp, {fp}
        beqz $t0, 6f
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          fst.d $f\\n, $sp, {f} + 8*\\n
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          movcf2gr $t0, $fcc\\n
          st.b $t0, $sp, {fcc} + \\n
        .endr
        movfcsr2gr $t0, $fcsr0
        st.d $t0, $sp, {fcsr}
        movgr2fcsr $fcsr0, $zero
        csrwr $zero, {csr_euen}
        6:",
        // a0 and sp: the TrapContext. Interrupts are masked.
        "move $a0, $sp",
        // A walk along the frame pointers continues in the interrupted code, by $r22. The ra that
        // it sees there is the address to which the interrupted code returns, as that code made no
        // call of this entry.
        "bl {on_trap}",
        // sp: the TrapContext, as callees preserve sp. Interrupts are masked. From here on only the
        // TLB refill can come in between, which leaves ERA and PRMD alone. Turns FPE on if the
        // context holds f registers, else off: `fp` is 0 or 1, and FPE is bit 0 of EUEN. `csrwr`
        // exchanges: t1 gets the old EUEN, and t0 keeps `fp`. Then loads the f registers, fcc and
        // fcsr.
        #[cfg(target_feature = "d")]
        "ld.d $t0, $sp, {fp}
        move $t1, $t0
        csrwr $t1, {csr_euen}
        beqz $t0, 7f
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          fld.d $f\\n, $sp, {f} + 8*\\n
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          ld.bu $t0, $sp, {fcc} + \\n
          movgr2cf $fcc\\n, $t0
        .endr
        ld.d $t0, $sp, {fcsr}
        movgr2fcsr $fcsr0, $t0
        7:",
        // ERA and PRMD: where the interrupted code resumes, its privilege level, and its interrupt
        // enable.
        "ld.d $t0, $sp, {era}",
        "csrwr $t0, {csr_era}",
        "ld.d $t0, $sp, {prmd}",
        "csrwr $t0, {csr_prmd}",
        // $r21 is the core's. sp is the base of the loads.
        // Every register but $r21, and sp last.
        r".irp n, 1,2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $r\n, $sp, {r} + 8*\n",
        r".endr",
        ".cfi_endproc",
        "ld.d $sp, $sp, {r} + 8*3",
        // To ERA, with the interrupt enable of PRMD. `ertn` also ends any reservation that other
        // code has made meanwhile, so that an `sc` of the interrupted code cannot succeed by it.
        "ertn",
        // A trap in user mode, or in kernel code that had interrupts masked. SAVE_T0: t0. User mode
        // continues at 50.
        "40:",
        "csrrd $t0, {csr_prmd}",
        "andi $t0, $t0, {pplv}",
        "bnez $t0, 50f",
        // SAVE_T1: t1, so that t1 is free too. t0: ERA. If it lies in the pushes (from 3 to 4), the
        // stack of an earlier trap has too little room: 42.
        "csrwr $t1, {save_t1}",
        "csrrd $t0, {csr_era}",
        "la.pcrel $t1, 3b",
        "bltu $t0, $t1, 41f",
        "la.pcrel $t1, 4b",
        "bltu $t0, $t1, 42f",
        // t0: ERA. Its bit 0 becomes 1: interrupts were masked. t1 gets its value back.
        "41:",
        "csrrd $t1, {save_t1}",
        "ori $t0, $t0, 1",
        "b 2b",
        // A load or store for the context of an earlier trap has faulted: there is too little stack
        // below the interrupted sp. SAVE_ERA has the ERA of that trap, and SAVE_T0 and SAVE_T1 have
        // the registers t0 and t1 of it, which the pushes did not change. sp: the interrupted sp
        // less the context's size, to which the size is added again. t0: the TrapCore.
        "42:",
        "addi.d $sp, $sp, {size}",
        "csrrd $t0, {save_core}",
        // If the interrupted sp lies on the emergency stack, no other stack is left: 44.
        "ld.d $t1, $t0, {core_emergency_base}",
        "bgeu $t1, $sp, 43f",
        "ld.d $t1, $t0, {core_emergency_top}",
        "bgeu $t1, $sp, 44f",
        // t0: the TrapCore; sp: the interrupted sp, which SAVE_SP keeps. All registers but sp, t0
        // and t1 are the interrupted code's. Loads t0 and t1, and pushes all on the emergency
        // stack. sp: the TrapContext there.
        "43:",
        "csrwr $sp, {save_sp}",
        "ld.d $sp, $t0, {core_emergency_top}",
        "csrrd $t0, {save_t0}",
        "csrrd $t1, {save_t1}",
        "addi.d $sp, $sp, -{size}",
        r".irp n, 1,2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, {r} + 8*\n",
        r".endr",
        // The context's sp and ERA are those of the earlier trap. ESTAT, BADV and BADI will be
        // those of the fault.
        "csrrd $t0, {save_sp}",
        "st.d $t0, $sp, {r} + 8*3",
        "csrrd $t0, {save_era}",
        // t0: that ERA; bit 0: interrupts were masked at that trap. Makes of it a PRMD: PPLV is 0,
        // and PIE (t1) is what it was then. The fault was taken with interrupts masked, so its own
        // PRMD does not tell. Then clears the flag: `bstrins.d` writes a 0 to bit 0.
        "andi $t1, $t0, 1",
        "xori $t1, $t1, 1",
        "slli.d $t1, $t1, {pie_shift}",
        "st.d $t1, $sp, {prmd}",
        "bstrins.d $t0, $zero, 0, 0",
        "st.d $t0, $sp, {era}",
        "b 5b",
        // t0: the TrapCore. The emergency stack itself has overflowed. What lies there is lost
        // anyway, so this starts at its top again.
        "44:",
        "ld.d $sp, $t0, {core_emergency_top}",
        "bl {no_stack_left}",
        // A trap in user mode. SAVE_T0: the user's t0; all else is the user's. t0: the context that
        // runs. Saves all registers but t0 ($r12).
        "50:",
        "csrrd $t0, {save_core}",
        "ld.d $t0, $t0, {core_context}",
        r".irp n, 1,2,3,4,5,6,7,8,9,10,11,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $t0, {r} + 8*\n",
        r".endr",
        // a0: the context; t0: free. Saves the user's t0, and the CSRs.
        "move $a0, $t0",
        "csrrd $t0, {save_t0}",
        "st.d $t0, $a0, {r} + 8*12",
        "csrrd $t0, {csr_era}",
        "st.d $t0, $a0, {era}",
        "csrrd $t0, {csr_prmd}",
        "st.d $t0, $a0, {prmd}",
        "csrrd $t0, {csr_estat}",
        "st.d $t0, $a0, {estat}",
        "csrrd $t0, {csr_ecfg}",
        "st.d $t0, $a0, {ecfg}",
        "csrrd $t0, {csr_badv}",
        "st.d $t0, $a0, {badv}",
        "csrrd $t0, {csr_badi}",
        "st.d $t0, $a0, {badi}",
        // Has the program f registers? If not, FPE is off. Otherwise saves them, fcc and fcsr. The
        // program's rounding mode is not the kernel's, which is 0.
        "ld.d $t0, $a0, {fp}",
        "beqz $t0, 51f",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          fst.d $f\\n, $a0, {f} + 8*\\n
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          movcf2gr $t0, $fcc\\n
          st.b $t0, $a0, {fcc} + \\n
        .endr
        movfcsr2gr $t0, $fcsr0
        st.d $t0, $a0, {fcsr}
        movgr2fcsr $fcsr0, $zero",
        // Clears the f registers: no other program may see them, not even speculatively. Then turns
        // FPE off.
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          movgr2fr.d $f\\n, $zero
        .endr",
        "csrwr $zero, {csr_euen}",
        // All that is the program's is saved. t0: the TrapCore. Loads what `enter` has left: its sp
        // and its $r21.
        "51:",
        "csrrd $t0, {save_core}",
        "ld.d $sp, $t0, {core_kernel_sp}",
        "ld.d $r21, $t0, {core_kernel_r21}",
        // sp: the `UserFrame`; $r21: the core's. FPE as the caller had it. If it was on, the caller
        // needs its fs registers. `csrwr` exchanges: t1 gets the old EUEN.
        #[cfg(target_feature = "d")]
        "ld.d $t0, $sp, {frame_fp}
        move $t1, $t0
        csrwr $t1, {csr_euen}
        beqz $t0, 52f
        .irp n, 0,1,2,3,4,5,6,7
          fld.d $fs\\n, $sp, {frame_fs} + 8*\\n
        .endr
        52:",
        // Takes the `UserFrame` off the stack, and returns to the caller of `enter`.
        "ld.d $ra, $sp, {frame_ra}",
        "ld.d $tp, $sp, {frame_tp}",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $r\n, $sp, {frame_s} + 8*(\n - 22)",
        r".endr",
        "addi.d $sp, $sp, {frame}",
        "ret",
        on_trap = sym on_trap,
        no_stack_left = sym no_stack_left,
        entry_align = const ENTRY_ALIGN,
        core_emergency_base = const offset_of!(TrapCore, emergency_base),
        core_emergency_top = const offset_of!(TrapCore, emergency_top),
        core_kernel_sp = const offset_of!(TrapCore, kernel_sp),
        core_kernel_r21 = const offset_of!(TrapCore, kernel_r21),
        core_context = const offset_of!(TrapCore, context),
        r = const offset_of!(TrapContext, r),
        era = const offset_of!(TrapContext, era),
        prmd = const offset_of!(TrapContext, prmd),
        estat = const offset_of!(TrapContext, estat),
        ecfg = const offset_of!(TrapContext, ecfg),
        badv = const offset_of!(TrapContext, badv),
        badi = const offset_of!(TrapContext, badi),
        fp = const offset_of!(TrapContext, fp),
        fcsr = const offset_of!(TrapContext, fcsr),
        fcc = const offset_of!(TrapContext, fcc),
        f = const offset_of!(TrapContext, f),
        size = const size_of::<TrapContext>(),
        frame = const size_of::<UserFrame>(),
        frame_ra = const offset_of!(UserFrame, ra),
        frame_tp = const offset_of!(UserFrame, tp),
        frame_s = const offset_of!(UserFrame, s),
        #[cfg(target_feature = "d")]
        frame_fp = const offset_of!(UserFrame, fp),
        #[cfg(target_feature = "d")]
        frame_fs = const offset_of!(UserFrame, fs),
        csr_prmd = const csr::PRMD,
        csr_euen = const csr::EUEN,
        csr_ecfg = const csr::ECFG,
        csr_estat = const csr::ESTAT,
        csr_era = const csr::ERA,
        csr_badv = const csr::BADV,
        csr_badi = const csr::BADI,
        save_t0 = const csr::SAVE_T0,
        save_core = const csr::SAVE_CORE,
        save_era = const csr::SAVE_ERA,
        save_t1 = const csr::SAVE_T1,
        save_sp = const csr::SAVE_SP,
        pplv = const PPLV,
        pie = const PIE,
        pie_shift = const PIE.trailing_zeros(),
        handler = const HANDLER_STACK,
        #[cfg(target_feature = "d")]
        fpe = const FPE,
    )
}
