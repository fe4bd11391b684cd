//! RISC-V, 64 bits, ABIs lp64 and lp64d: the switch and, for kernels that use them, a trap entry
//! and the way into user mode and back.
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
//!   |  fs0 ... fs11          |   a `FloatFrame`. Present only if the `pc` below is `resume_float`,
//!   |  pc: where to resume   |   which loads it
//!   +------------------------+
//!   |  s0, s1                |
//!   |  pc: where to resume   |
//!   +------------------------+ <- Context (= sp), a `Frame`
//! ```
//!
//! # A stack that was prepared and not yet entered
//!
//! ```text
//!   +------------------------+ <- top, aligned to 16
//!   |  s0: `main`            |
//!   |  s1: its argument      |
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
//!   |  TrapContext           |   its sp and sepc are those of the code whose stack overflowed
//!   +------------------------+
//!   |  the handler's frames  |
//! ```
//!
//! # A stack whose task runs a user program
//!
//! ```text
//!   |  TrapContext::run      |
//!   +------------------------+
//!   |  UserFrame             |   the registers that the ABI has a callee preserve, gp, and sstatus
//!   +------------------------+ <- TrapCore::kernel_sp. TrapCore::context: the context that runs
//! ```
//!
//! `TrapCore::kernel_sp` and `TrapCore::context` are written by the last instructions before user
//! mode, and read by the first instructions after it. Interrupts are masked in the kernel from the
//! former to the latter, so no other kernel code runs in between, and nested runs need not restore
//! the two.
//!
//! `sscratch` holds the address of the core's [`TrapCore`] whenever code runs, in kernel mode and
//! in user mode.
//!
//! # Which registers
//!
//! `switch` is inlined into its caller and tells the compiler which registers it overwrites. The
//! compiler saves those of them that hold live values, together with what it saves anyway. `switch`
//! itself saves the registers that it does not declare as overwritten: s0, s1 and sp, and fs0 to
//! fs11. The latter are rarely in use, and FS tells whether they are. `switch` touches neither `tp`
//! (the core's), nor `gp` (the same for all kernel code), nor `sstatus.SIE`. Kernel code may have
//! set SUM and MXR for an access to a user's page: the code that leaves clears them before it calls
//! `switch` (`drop_rights`), and sets them again afterwards (`restore_rights`). `fcsr` is not
//! switched: Rust code may assume the rounding mode that it was started with, and calls do not
//! preserve the flags. A trap can come between any two instructions, so `TrapContext` holds `fcsr`
//! too, and the code that runs next gets the 0 that Rust code starts with. Vector registers are not
//! handled here: a kernel must not be compiled to use them.
//!
//! # Floating point, by `sstatus.FS`
//!
//! FS says whether the f registers of this core have been written. A kernel that is compiled for
//! soft float keeps FS Off. For such a kernel, all of the following costs one read of FS in a
//! switch or a trap. One invariant is enough to keep the f registers of tasks that use them, at no
//! cost for the other tasks:
//!
//! > If FS is not Dirty, the f registers hold nothing that the running code needs.
//!
//! - The invariant holds when code starts: it has written no f register yet.
//! - When code writes an f register, the hardware makes FS Dirty.
//! - `switch` away: if FS is Dirty, fs0 to fs11 go into a `FloatFrame`, and FS becomes Clean.
//!   Otherwise the code that runs next would save them too. The switch back resumes at
//!   `resume_float`, which makes FS Dirty and loads them, so that the next switch saves them again.
//! - `switch` away while FS is not Dirty: no f register is needed, and `pc` is the address at which
//!   the caller resumes.
//! - A machine may know Off and Dirty only, and treat Clean as Dirty. Then every switch saves the
//!   registers.
//! - A trap: if FS is Dirty, all f registers go into the trap context before any Rust code runs.
//!   The handler needs none of their values, so FS becomes Clean, and a switch in the handler saves
//!   them a second time only if the handler itself has written f registers. The return from the
//!   trap loads them and the interrupted code's FS. If FS was not Dirty, the interrupted code needs
//!   none of them, and the handler may leave any values in them.
//!
//! An instruction that only raises a flag of `fcsr` makes FS Dirty as well. Some emulators do not
//! implement that: on those, a flag that is raised in kernel code that writes no f register can be
//! lost.
//!
//! A user program begins with FS Off. Its first FP instruction is therefore illegal: the program
//! then gets f registers that are zero, and FS Clean, and resumes at that instruction. From then
//! on, the f registers are loaded before the program runs, and saved after a trap that finds FS
//! Dirty. `fcsr` is always saved, because of the emulators named above. After the saving, the f
//! registers are set to zero: a processor that speculates with FS Off could otherwise let the next
//! program see their values. So no program sees the registers of another one, and a program that
//! uses no floating point pays nothing.

use core::arch::{asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
// Not loom's atomics: traps are not modelled.
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::fatal::fatal;
use crate::stackful::{Context, StackMain, StackfulBackend};
use crate::trap::cause::{Access, Syscall, Trap};
use crate::trap::handler;

#[cfg(all(target_os = "none", target_feature = "v"))]
compile_error!(
    "neither the trap entry nor the switch saves the kernel's own vector registers: build the \
     kernel without the target feature `v`"
);

/// The state that a [`Context`] points to.
#[repr(C, align(16))]
struct Frame {
    pc: usize,
    s0: usize,
    s1: usize,
}

/// The state that lies above the `Frame` if f registers are needed.
#[repr(C, align(16))]
struct FloatFrame {
    pc: usize,
    fs: [u64; 12],
}

/// The position of FS in `sstatus`.
const FS_SHIFT: usize = 13;
/// FS has two bits.
const FS_MASK: usize = 0b11;
/// FS is Dirty: an f register or `fcsr` has been written. (0 is Off, 1 is Initial.)
const FS_DIRTY: usize = 0b11;
/// The bit in which Dirty (3) differs from Clean (2). Clearing it after the f registers have been
/// loaded, which makes FS Dirty, makes FS Clean.
const FS_NOT_CLEAN: usize = 0b01;

/// How many bytes of the interrupted stack the handler of an interrupt may use. The amount includes
/// the handler's call of [`preempt::on_timer`](crate::preempt::on_timer) and the switch, which take
/// less than half of it in a build without optimization. The trap entry checks that this much stack
/// is there. If it is not, the trap is an [overflow](TrapContext::is_overflow).
pub const HANDLER_STACK: usize = 2048;

/// The switch of 64-bit RISC-V.
#[derive(Debug)]
pub struct Riscv64;

impl Riscv64 {
    /// The minimum for the task's own frames: those of the runtime's poll loop, and a few of the
    /// future's. A future that reads the clock takes 3.7 KiB in a build without optimization.
    const POLL: usize = 4096;
}

// SAFETY: `prepare` writes one `Frame` below `top`, less than MIN_STACK. `switch` saves and loads
// s0, s1 and sp, and fs0 to fs11 where the head of this file says that they are needed. It tells
// the compiler that it overwrites all other registers but tp and gp, which it leaves alone, as it
// does SIE. It accesses the two stacks and `*save` only. An `asm!` without `nomem` is a compiler
// barrier.
unsafe impl StackfulBackend for Riscv64 {
    const MIN_STACK: usize = size_of::<Frame>()
        + size_of::<FloatFrame>()
        + size_of::<TrapContext>()
        + HANDLER_STACK
        + Self::POLL;

    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context {
        let frame = Frame {
            pc: start as *const () as usize + NOP,
            s0: main as usize,
            s1: argument.expose_provenance(),
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
                // a0: where to store the context that is left; a1: the context to enter. The call
                // links through t1 and not through ra or t0: a link through those would make the
                // processor's return-address predictor expect a return, but `exchange` ends in a
                // jump.
                "call t1, {exchange}",
                exchange = sym exchange,
                inout("a0") save => _,
                inout("a1") to.0 => _,
                out("s2") _,
                out("s3") _,
                out("s4") _,
                out("s5") _,
                out("s6") _,
                out("s7") _,
                out("s8") _,
                out("s9") _,
                out("s10") _,
                out("s11") _,
                // Declares the other caller-saved registers too, ra among them.
                clobber_abi("C"),
            );
        }
    }
}

/// Exchanges the stacks. a0: where to store the context that is left; a1: the context to enter; t1:
/// the address at which the caller resumes.
///
/// The exchange is a function of its own, because only then can CFI tell an unwinder after each
/// instruction where everything is. The CFI is the same before and after the change of stacks,
/// because both stacks have the same layout.
#[unsafe(naked)]
unsafe extern "C" fn exchange() {
    naked_asm!(
        ".option push",
        // Lets the assembler accept the D extension. Whether the machine has an FPU is decided by
        // FS at run time.
        ".option arch, +d",
        ".cfi_startproc",
        // CFI: the return address is in t1, not in ra.
        ".cfi_register ra, t1",
        // t2: sstatus. Its sign bit (SD) is set if FS, VS or XS is Dirty. So a single branch keeps
        // the path without f registers short, and 3 finds out which of them is Dirty.
        "csrr t2, sstatus",
        "bltz t2, 3f",
        ".cfi_remember_state",
        "2:",
        // a0, a1: as above; t1: where the left stack resumes, which is the caller or
        // `resume_float`. Builds the `Frame`.
        "addi sp, sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        "sd t1, {pc}(sp)",
        ".cfi_rel_offset ra, {pc}",
        "sd s0, {s0}(sp)",
        ".cfi_rel_offset s0, {s0}",
        "sd s1, {s1}(sp)",
        ".cfi_rel_offset s1, {s1}",
        // sp: the `Frame`, which is the context that is left.
        "sd sp, (a0)",
        // From here on, sp is on the stack that is entered. A `Frame` lies there too, so the CFI
        // above stays true.
        "mv sp, a1",
        // Takes the `Frame` off the stack. t1: where this stack resumes: the caller, `resume_float`
        // or `start`.
        "ld t1, {pc}(sp)",
        "ld s0, {s0}(sp)",
        "ld s1, {s1}(sp)",
        "addi sp, sp, {size}",
        ".cfi_def_cfa_offset 0",
        ".cfi_same_value s0",
        ".cfi_same_value s1",
        ".cfi_register ra, t1",
        // Not through ra or t0: the processor would predict such a jump as a return from the latest
        // call.
        "jr t1",
        // t2: sstatus, with SD set. Goes back to 2 unless FS is the field that is Dirty.
        "3:",
        ".cfi_restore_state",
        "srli t2, t2, {fs_shift}",
        "andi t2, t2, {fs_mask}",
        "addi t2, t2, -{fs_dirty}",
        "bnez t2, 2b",
        // FS is Dirty: builds a `FloatFrame` above the `Frame`. Its pc is where the caller resumes.
        "addi sp, sp, -{float_size}",
        ".cfi_def_cfa_offset {float_size}",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fsd fs\n, {fs} + 8*\n(sp)",
        r".endr",
        "sd t1, {float_pc}(sp)",
        ".cfi_rel_offset ra, {float_pc}",
        // FS: Dirty to Clean, or the code that runs next would save the same registers.
        "li t2, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t2",
        // t1: where this stack resumes: `resume_float`, behind its `nop`, as if that function had
        // called.
        "lla t1, {resume_float}",
        "addi t1, t1, {nop}",
        "j 2b",
        ".cfi_endproc",
        ".option pop",
        pc = const offset_of!(Frame, pc),
        s0 = const offset_of!(Frame, s0),
        s1 = const offset_of!(Frame, s1),
        size = const size_of::<Frame>(),
        float_pc = const offset_of!(FloatFrame, pc),
        fs = const offset_of!(FloatFrame, fs),
        float_size = const size_of::<FloatFrame>(),
        resume_float = sym resume_float,
        nop = const NOP,
        fs_shift = const FS_SHIFT,
        fs_mask = const FS_MASK,
        fs_dirty = const FS_DIRTY,
        fs_not_clean = const FS_NOT_CLEAN,
    )
}

/// Resumes code that needs its f registers. sp: its `FloatFrame`.
///
/// It begins with a `nop` that never runs: an unwinder looks up the instruction before the address
/// at which a frame resumes, and that instruction must belong to this function.
#[unsafe(naked)]
unsafe extern "C" fn resume_float() {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        // Not compressed: the `nop` has the size NOP.
        ".option norvc",
        ".cfi_startproc",
        ".cfi_def_cfa_offset {float_size}",
        ".cfi_rel_offset ra, {float_pc}",
        "nop",
        // FS: Dirty, so that FP instructions are legal, and the next switch saves the registers
        // again.
        "li t2, {fs_mask} << {fs_shift}",
        "csrs sstatus, t2",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fld fs\n, {fs} + 8*\n(sp)",
        r".endr",
        // t1: where the code resumes. Jumps there and not through ra or t0, as in `exchange`.
        "ld t1, {float_pc}(sp)",
        "addi sp, sp, {float_size}",
        ".cfi_def_cfa_offset 0",
        ".cfi_register ra, t1",
        "jr t1",
        ".cfi_endproc",
        ".option pop",
        float_pc = const offset_of!(FloatFrame, pc),
        fs = const offset_of!(FloatFrame, fs),
        float_size = const size_of::<FloatFrame>(),
        fs_shift = const FS_SHIFT,
        fs_mask = const FS_MASK,
    )
}

/// Calls `main` on a prepared stack. s0: `main`; s1: its argument; sp: the stack's top. There is no
/// caller and no frame pointer: an unwinder, a debugger and a walk along the frame pointers end
/// here.
///
/// It begins with a `nop` that never runs: an unwinder looks up the instruction before the address
/// at which a frame resumes, and that instruction must belong to this function.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        // CFI: there is no return address, so unwinding ends here.
        ".cfi_undefined ra",
        ".option push",
        // Not compressed: the `nop` has the size NOP.
        ".option norvc",
        "nop",
        ".option pop",
        // a0: the argument; t1: `main`; s0: 0, which ends the chain of frame pointers.
        "mv a0, s1",
        "mv t1, s0",
        "li s0, 0",
        "jalr t1",
        // `main` never returns: if it does, this traps.
        "unimp",
        ".cfi_endproc",
    )
}

/// The size in bytes of the `nop` that [`start`] and [`resume_float`] begin with.
const NOP: usize = 4;

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
    unsafe { asm!("lb zero, -{}(sp)", const DEPTH, options(nostack, readonly)) };
}

/// Returns whether the running code has given itself a right that no other code may have: SUM or
/// MXR.
#[inline(always)]
pub(crate) fn has_rights() -> bool {
    let rights: usize;
    // SAFETY: reads a CSR. The shift keeps bits 18 to 31 of `sstatus` in one instruction. SUM and
    // MXR are the lowest two of them. The bits above are rarely set. If one is, the result is a
    // needless `true`, which does no harm.
    unsafe {
        asm!(
            "csrr {0}, sstatus",
            "srliw {0}, {0}, {1}",
            out(reg) rights,
            const SUM_MXR.trailing_zeros(),
            options(nomem, nostack, preserves_flags),
        )
    };
    rights != 0
}

/// Takes these rights from the running code, before other code runs, and returns which of them it
/// had.
#[cold]
pub(crate) fn drop_rights() -> usize {
    let status: usize;
    // SAFETY: without the rights, the running code may access less. `csrrc` reads `sstatus` and
    // clears the bits in one instruction, so no trap can come between the two.
    unsafe { asm!("csrrc {}, sstatus, {}", out(reg) status, in(reg) SUM_MXR, options(nostack)) };
    status & SUM_MXR
}

/// Gives the rights back to the running code.
///
/// # Safety
///
/// `rights` is what [`drop_rights`] returned for the running code.
#[cold]
pub(crate) unsafe fn restore_rights(rights: usize) {
    // SAFETY: the caller promises that the running code had these rights.
    unsafe { asm!("csrs sstatus, {}", in(reg) rights, options(nostack)) };
}

/// The state of the code that a trap interrupted. The trap entry pushes it on the interrupted
/// kernel stack, or it belongs to a user program, which [`run`](TrapContext::run) takes to user
/// mode and back.
///
/// The entry reads once everything that the next trap overwrites, and stores it here. Handlers read
/// this context and not the CSRs. When a handler returns, the state in the context is restored.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct TrapContext {
    /// The integer registers x0 to x31. `x[0]` is not written. `x[4]`, tp, is not restored on the
    /// return to kernel mode: it belongs to the core and not to the code that runs there.
    pub x: [usize; 32],
    /// The address of the interrupted instruction. After a system call or a breakpoint, the address
    /// of the next instruction.
    pub sepc: usize,
    /// `sstatus` at the trap. SPP, SPIE and FS are the interrupted code's. In a user program's
    /// context only SPIE has a meaning: whether the program can be interrupted.
    pub sstatus: usize,
    /// The cause. The highest bit is set if the trap was an interrupt.
    pub scause: usize,
    /// The faulting address, or other information that comes with the cause.
    pub stval: usize,
    /// Whether `f` and `fcsr` hold values: 1 if so, else 0.
    pub fp: usize,
    /// The rounding mode and the flags of floating point, if `fp` is 1.
    pub fcsr: usize,
    /// f0 to f31, if `fp` is 1.
    pub f: [u64; 32],
}

/// The registers that [`enter`] saves for its caller while a user program runs.
#[repr(C, align(16))]
struct UserFrame {
    ra: usize,
    gp: usize,
    s: [usize; 12],
    sstatus: usize,
    /// Written only if FS is Dirty in `sstatus`.
    fs: [u64; 12],
}

// Immediate offsets of loads and stores reach up to 2047. The sizes are multiples of 16, so the
// stack stays aligned.
const _: () =
    assert!(size_of::<TrapContext>() < 2048 && size_of::<TrapContext>().is_multiple_of(16));
const _: () = assert!(size_of::<Frame>().is_multiple_of(16));
const _: () = assert!(size_of::<FloatFrame>() < 2048 && size_of::<FloatFrame>().is_multiple_of(16));
const _: () = assert!(size_of::<UserFrame>() < 2048 && size_of::<UserFrame>().is_multiple_of(16));

/// The storage of one core that its trap entry uses. The kernel keeps one `TrapCore` for each core.
///
/// Apart from [`install_trap_entry`], only the entry and `TrapContext::run` write the fields, on
/// this core and with interrupts masked.
#[repr(C)]
#[derive(Debug)]
pub struct TrapCore {
    /// The registers of the interrupted code, until they have a place on a stack.
    t0: AtomicUsize,
    t1: AtomicUsize,
    sp: AtomicUsize,
    /// The interrupted sepc, in case that the push of the registers faults. Bit 0: interrupts were
    /// masked.
    sepc: AtomicUsize,
    /// The bounds of the emergency stack.
    emergency_base: AtomicUsize,
    emergency_top: AtomicUsize,
    /// While user mode runs: the stack pointer of `enter`, its tp, and the context that runs.
    kernel_sp: AtomicUsize,
    kernel_tp: AtomicUsize,
    context: AtomicUsize,
}

impl TrapCore {
    /// Returns the storage of a core that has not installed the entry yet.
    pub const fn new() -> Self {
        Self {
            t0: AtomicUsize::new(0),
            t1: AtomicUsize::new(0),
            sp: AtomicUsize::new(0),
            sepc: AtomicUsize::new(0),
            emergency_base: AtomicUsize::new(0),
            emergency_top: AtomicUsize::new(0),
            kernel_sp: AtomicUsize::new(0),
            kernel_tp: AtomicUsize::new(0),
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
            asm!("csrr {}, sscratch", out(reg) core, options(nomem, nostack, preserves_flags))
        };
        // SAFETY: `install_trap_entry` wrote a `&'static TrapCore` to `sscratch`, and the entry
        // keeps it there.
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
/// - This core is in S-mode. From now on, the entry owns `stvec` and `sscratch`.
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
    // SAFETY: the caller promises what the entry relies on. The entry is aligned to 4, so the two
    // low bits of its address are 0, which is the mode "direct" of `stvec`. `sscratch` is written
    // first, because the entry reads it.
    unsafe {
        asm!(
            "csrw sscratch, {core}",
            "csrw stvec, {entry}",
            core = in(reg) core,
            entry = in(reg) trap_entry as *const (),
            options(nostack),
        )
    }
}

/// `scause`: the trap was an interrupt.
const INTERRUPT: usize = 1 << (usize::BITS - 1);
/// `sstatus`: the trap came from S-mode.
const SPP: usize = 1 << 8;
/// `sstatus`: interrupts were enabled in the interrupted code.
const SPIE: usize = 1 << 5;
/// `sstatus`: S-mode may access users' pages (SUM), and may load from pages that can only be
/// executed (MXR).
const SUM_MXR: usize = 0b11 << 18;
/// `sstatus`: the width of user mode's registers.
const UXL: usize = 0b11 << 32;

/// The values of `scause` for exceptions.
mod exception {
    pub(super) const ILLEGAL: usize = 2;
    pub(super) const BREAKPOINT: usize = 3;
    pub(super) const USER_CALL: usize = 8;
    pub(super) const FETCH_PAGE: usize = 12;
    pub(super) const LOAD_PAGE: usize = 13;
    pub(super) const STORE_PAGE: usize = 15;
}
/// The value of `scause` for the timer interrupt.
const TIMER: usize = INTERRUPT | 5;

impl TrapContext {
    /// Returns the context of a user program that begins at `entry` with the stack pointer `stack`.
    /// All other registers are 0, interrupts are enabled, and floating point is unused.
    pub const fn user(entry: usize, stack: usize) -> Self {
        let mut x = [0; 32];
        x[2] = stack;
        Self { x, sepc: entry, sstatus: SPIE, scause: 0, stval: 0, fp: 0, fcsr: 0, f: [0; 32] }
    }

    /// Sets the first six arguments, as the calling convention passes integers.
    #[must_use]
    pub const fn with_arguments(mut self, arguments: [usize; 6]) -> Self {
        let mut n = 0;
        while n < arguments.len() {
            self.x[10 + n] = arguments[n];
            n += 1;
        }
        self
    }

    /// Sets whether the program can be interrupted. A program that cannot be interrupted keeps the
    /// core until it traps by itself.
    #[must_use]
    pub const fn with_interrupts(mut self, enabled: bool) -> Self {
        self.sstatus = if enabled { self.sstatus | SPIE } else { self.sstatus & !SPIE };
        self
    }

    /// Returns what the trap was.
    #[inline]
    pub fn trap(&self) -> Trap {
        let fault = |access| Trap::PageFault { addr: self.stval, access };
        match self.scause {
            TIMER => Trap::Timer,
            cause if cause & INTERRUPT != 0 => Trap::Interrupt(cause & !INTERRUPT),
            exception::USER_CALL => Trap::Syscall,
            exception::BREAKPOINT => Trap::Breakpoint,
            exception::ILLEGAL => Trap::IllegalInstruction,
            exception::FETCH_PAGE => fault(Access::Execute),
            exception::LOAD_PAGE => fault(Access::Read),
            exception::STORE_PAGE => fault(Access::Write),
            other => Trap::Other(other),
        }
    }

    /// Returns whether the trap interrupted user mode, and not the kernel.
    pub fn is_user(&self) -> bool {
        self.sstatus & SPP == 0
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
        self.sepc
    }

    /// Sets the address at which the interrupted code resumes.
    pub fn set_pc(&mut self, pc: usize) {
        self.sepc = pc;
    }

    /// Returns the stack pointer.
    pub fn sp(&self) -> usize {
        self.x[2]
    }

    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: usize) {
        self.x[2] = sp;
    }

    /// Returns what the program asks for, after a [`Trap::Syscall`].
    pub fn syscall(&self) -> Syscall {
        Syscall { number: self.x[17], arguments: core::array::from_fn(|n| self.x[10 + n]) }
    }

    /// Sets the value that a system call returns: a0.
    pub fn set_result(&mut self, result: usize) {
        self.x[10] = result;
    }

    /// Sets the pointer by which the program finds its thread-local data: tp.
    pub fn set_thread_pointer(&mut self, pointer: usize) {
        self.x[4] = pointer;
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
        // `sstatus` cannot mask interrupts in user mode: S-mode interrupts are taken there whatever
        // SIE is. Only `sie` can, so `sie` is 0 while a program runs that must not be interrupted.
        let enabled = self.sstatus & SPIE != 0;
        let mut sie = 0;
        if !enabled {
            // SAFETY: `csrrw` reads `sie` and sets it to 0, which enables no interrupt.
            unsafe { asm!("csrrw {}, sie, zero", out(reg) sie, options(nostack)) };
        }
        loop {
            // FS is on while `enter` loads the f registers. `enter` then makes it Clean.
            let fs = if self.fp == 0 { 0 } else { FS_DIRTY << FS_SHIFT };
            self.sstatus = status() & UXL | self.sstatus & SPIE | fs;
            // SAFETY: interrupts are masked, `sstatus` is that of user mode, and `core` is this
            // core's.
            unsafe { enter(self, core) };
            if self.scause != exception::ILLEGAL || self.fp != 0 || !has_fp() {
                break;
            }
            // The illegal instruction may be the program's first FP instruction. The program gets f
            // registers and runs it again. If it is illegal for another reason, it traps again, and
            // `fp` is 1 then.
            (self.fp, self.fcsr, self.f) = (1, 0, [0; 32]);
        }
        if !enabled {
            // SAFETY: enables what was enabled before.
            unsafe { asm!("csrw sie, {}", in(reg) sie, options(nostack)) };
            self.sstatus &= !SPIE;
        }
        match self.scause {
            // `ecall` has no compressed form: it always has four bytes.
            exception::USER_CALL => self.sepc += 4,
            exception::BREAKPOINT => self.step_over_breakpoint(),
            _ => {}
        }
    }

    /// Sets `sepc` to the instruction behind the breakpoint. Its length is read from memory, as a
    /// breakpoint has two or four bytes.
    fn step_over_breakpoint(&mut self) {
        // SAFETY: `load_half` may fault, as other cores may have unmapped the page meanwhile:
        // `on_trap` handles that fault. `csrrs` reads `sstatus` and sets SUM and MXR in one
        // instruction. `csrc` then clears those of the two that were not set before.
        let half = unsafe {
            let status: usize;
            asm!("csrrs {}, sstatus, {}", out(reg) status, in(reg) SUM_MXR, options(nostack));
            let half = load_half(self.sepc);
            asm!("csrc sstatus, {}", in(reg) !status & SUM_MXR, options(nostack));
            half
        };
        // The lowest two bits tell the length of an instruction.
        self.sepc += if half & 0b11 == 0b11 { 4 } else { 2 };
    }
}

/// Returns `sstatus`.
fn status() -> usize {
    let status;
    // SAFETY: reads a CSR.
    unsafe { asm!("csrr {}, sstatus", out(reg) status, options(nomem, nostack, preserves_flags)) };
    status
}

/// Returns whether the machine has floating point: FS can be something else than Off.
fn has_fp() -> bool {
    if status() >> FS_SHIFT & FS_MASK != 0 {
        return true;
    }
    let on: usize;
    // SAFETY: FS is Off before and after, and no code in between uses an f register.
    unsafe {
        asm!(
            "csrs sstatus, {fs}",
            "csrr {on}, sstatus",
            // Clears both bits: one that is left could count as Dirty.
            "csrc sstatus, {fs}",
            fs = in(reg) FS_MASK << FS_SHIFT,
            on = out(reg) on,
            options(nostack),
        );
    }
    on >> FS_SHIFT & FS_MASK != 0
}

/// Handles a trap in kernel mode. Runs on the interrupted stack, or on the emergency stack after an
/// overflow.
extern "C" fn on_trap(context: &mut TrapContext) {
    if context.scause & INTERRUPT == 0 {
        if context.sepc == load_half as *const () as usize {
            // The load of `load_half` faulted. Makes `load_half` return all ones to its caller.
            context.x[10] = usize::MAX;
            context.sepc = context.x[1];
            return;
        }
        if context.scause == exception::BREAKPOINT {
            context.step_over_breakpoint();
        }
    }
    handler::dispatch(context);
}

/// Returns the half word at `address` (a0), or all ones if the load faults. [`on_trap`] finishes
/// the function after a fault, so it consists of the load and the return only.
#[unsafe(naked)]
unsafe extern "C" fn load_half(address: usize) -> usize {
    naked_asm!("lhu a0, (a0)", "ret")
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
        ".option push",
        ".option arch, +a, +d",
        // gp is overwritten below, so the linker must not shorten addresses to offsets from gp.
        ".option norelax",
        // Builds the `UserFrame`: the registers that the caller expects to be preserved, and gp.
        "addi sp, sp, -{frame}",
        "sd ra, {frame_ra}(sp)",
        "sd gp, {frame_gp}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  sd s\n, {frame_s} + 8*\n(sp)",
        r".endr",
        // The caller's sstatus. If its FS is Dirty, the caller needs its fs registers.
        "csrr t0, sstatus",
        "sd t0, {frame_sstatus}(sp)",
        "srli t0, t0, {fs_shift}",
        "andi t0, t0, {fs_mask}",
        "addi t0, t0, -{fs_dirty}",
        "bnez t0, 2f",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fsd fs\n, {frame_fs} + 8*\n(sp)",
        r".endr",
        "2:",
        // sp: the `UserFrame`. The TrapCore now says where the next trap in user mode finds the
        // frame, tp and the context.
        "sd sp, {kernel_sp}(a1)",
        "sd tp, {kernel_tp}(a1)",
        "sd a0, {context}(a1)",
        // a0: the context. All other registers are free. The new sstatus is that of user mode: SPP
        // is 0, and SIE is 0, so that interrupts stay masked until `sret`. If the context holds f
        // registers, FS is on.
        "ld t0, {sstatus}(a0)",
        "csrw sstatus, t0",
        // Loads the program's f registers if it has any. The loads make FS Dirty. FS becomes Clean
        // afterwards, so that the next trap finds Dirty only if the program has written one.
        "ld t0, {fp}(a0)",
        "beqz t0, 3f",
        "ld t0, {fcsr}(a0)",
        "fscsr t0",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fld f\n, {f} + 8*\n(a0)",
        r".endr",
        "li t0, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t0",
        "3:",
        // sepc: where the program resumes. t0 keeps the same address for the `sc.d`.
        "ld t0, {sepc}(a0)",
        "csrw sepc, t0",
        // Ends any reservation that other code has made, so that an `sc` of the program cannot
        // succeed by it. The `sc.d` stores the value that is there already. It ends a reservation
        // whether it succeeds or fails.
        "addi t1, a0, {sepc}",
        "sc.d t2, t0, (t1)",
        // Loads every register. a0, the base, is the last.
        r".irp n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,10",
        r"  ld x\n, {x} + 8*\n(a0)",
        r".endr",
        // To user mode, as SPP is 0. SIE becomes the context's SPIE.
        "sret",
        ".option pop",
        frame = const size_of::<UserFrame>(),
        frame_ra = const offset_of!(UserFrame, ra),
        frame_gp = const offset_of!(UserFrame, gp),
        frame_s = const offset_of!(UserFrame, s),
        frame_sstatus = const offset_of!(UserFrame, sstatus),
        frame_fs = const offset_of!(UserFrame, fs),
        kernel_sp = const offset_of!(TrapCore, kernel_sp),
        kernel_tp = const offset_of!(TrapCore, kernel_tp),
        context = const offset_of!(TrapCore, context),
        x = const offset_of!(TrapContext, x),
        sepc = const offset_of!(TrapContext, sepc),
        sstatus = const offset_of!(TrapContext, sstatus),
        fp = const offset_of!(TrapContext, fp),
        fcsr = const offset_of!(TrapContext, fcsr),
        f = const offset_of!(TrapContext, f),
        fs_shift = const FS_SHIFT,
        fs_mask = const FS_MASK,
        fs_dirty = const FS_DIRTY,
        fs_not_clean = const FS_NOT_CLEAN,
    )
}

/// The entry of all traps. On entry, all registers are the interrupted code's, SIE is 0, `sscratch`
/// holds the address of the core's `TrapCore`, and the CSRs describe the trap.
#[unsafe(naked)]
unsafe extern "C" fn trap_entry() {
    naked_asm!(
        // The two low bits of `stvec` are the mode, so the address of the entry is a multiple of 4.
        ".balign 4",
        ".option push",
        // Lets the assembler accept the A and D extensions. Whether the machine has an FPU is
        // decided by FS at run time.
        ".option arch, +a, +d",
        // gp may be the user's, so the linker must not shorten addresses to offsets from gp.
        ".option norelax",
        // No register is free. The exchange of sp with sscratch gives a base address and loses
        // neither value.
        "csrrw sp, sscratch, sp",
        // sp: the TrapCore; sscratch: the interrupted sp. All else is the interrupted code's.
        "sd t0, {core_t0}(sp)",
        // t0 is free. User mode (SPP is 0) continues at 50.
        "csrr t0, sstatus",
        "andi t0, t0, {spp}",
        "beqz t0, 50f",
        // An exception in kernel mode continues at 40. The sign bit of scause is set for
        // interrupts. No interrupt comes between 3 and 4, where interrupts are masked.
        "csrr t0, scause",
        "bgez t0, 40f",
        // An interrupt in kernel mode: t0: sepc. Bit 0 of sepc is always 0, so it can carry a flag:
        // interrupts were masked. They were not, as one was taken.
        "csrr t0, sepc",
        "2:",
        // sp: the TrapCore; sscratch: the interrupted sp; t0: sepc with the flag. Keeps it for 42:
        // if a push below faults, that fault overwrites sepc.
        "sd t0, {core_sepc}(sp)",
        "ld t0, {core_t0}(sp)",
        // Exchanges sp and sscratch back.
        "csrrw sp, sscratch, sp",
        // A trap in kernel mode. All registers are the interrupted code's again, and sscratch is
        // the TrapCore, so the entry can be entered a second time: if one of the loads and stores
        // between 3 and 4 faults, 40 recognizes its address. They change no register but sp.
        "3:",
        ".cfi_startproc",
        ".cfi_signal_frame",
        // CFI: ra is the interrupted code's, so the address at which that code resumes gets a
        // number of its own, 64.
        ".cfi_return_column 64",
        // sp: the place of the TrapContext, aligned to 16 as its size is a multiple of 16.
        "addi sp, sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        // Probes the stack as deep as the handler may go. If it is not there, the fault is taken
        // here, before anything is acknowledged or locked.
        "lb zero, -{handler}(sp)",
        // All registers but sp, whose value has changed already.
        r".irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(sp)",
        r"  .cfi_rel_offset \n, {x} + 8*\n",
        r".endr",
        "4:",
        // sp: the TrapContext. All other registers are saved and free. Saves the interrupted sp,
        // and sepc.
        "addi t0, sp, {size}",
        "sd t0, {x} + 8*2(sp)",
        ".cfi_rel_offset sp, {x} + 8*2",
        "csrr t0, sepc",
        "sd t0, {sepc}(sp)",
        ".cfi_rel_offset 64, {sepc}",
        "5:",
        // sp: the TrapContext, which holds the registers and sepc. (42 comes here too.) `csrrc`
        // reads sstatus and clears SUM and MXR: the interrupted code may have set them to access
        // users' pages, and the handler must not have that right. t1: sstatus with the interrupted
        // code's SUM, MXR and FS.
        "li t0, {sum_mxr}",
        "csrrc t1, sstatus, t0",
        "sd t1, {sstatus}(sp)",
        // Saves scause and stval now, as the next trap overwrites them. fp: 0, no f registers are
        // saved yet.
        "csrr t0, scause",
        "sd t0, {scause}(sp)",
        "csrr t0, stval",
        "sd t0, {stval}(sp)",
        "sd zero, {fp}(sp)",
        // t1: sstatus. Its sign bit (SD) says that FS, VS or XS is Dirty.
        "bltz t1, 30f",
        "6:",
        // a0 and sp: the TrapContext. SUM and MXR are 0, and interrupts are masked.
        "mv a0, sp",
        // A walk along the frame pointers continues in the interrupted code, by s0. The ra that it
        // sees there is the address to which the interrupted code returns, as that code made no
        // call of this entry.
        "call {on_trap}",
        // sp: the TrapContext, as callees preserve sp. Loads the interrupted code's sstatus first.
        // Its SIE is 0, since the trap cleared it before the entry read it, so from here on no trap
        // can overwrite sepc. If f registers are to be loaded, its FS is Dirty, so FP instructions
        // are legal.
        "ld t0, {sstatus}(sp)",
        "csrw sstatus, t0",
        "ld t1, {fp}(sp)",
        "beqz t1, 7f",
        "ld t0, {fcsr}(sp)",
        "fscsr t0",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fld f\n, {f} + 8*\n(sp)",
        r".endr",
        "7:",
        // sepc: where the interrupted code resumes. t0 keeps the same address for the `sc.d`.
        "ld t0, {sepc}(sp)",
        "csrw sepc, t0",
        // Ends any reservation that other code has made meanwhile, so that an `sc` of the
        // interrupted code cannot succeed by it. The `sc.d` stores the value that is there already.
        // It ends a reservation whether it succeeds or fails.
        "addi t1, sp, {sepc}",
        "sc.d t2, t0, (t1)",
        // tp is the core's. sp is the base of the loads.
        // Every register but tp, and sp last.
        r".irp n, 1,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  ld x\n, {x} + 8*\n(sp)",
        r".endr",
        ".cfi_endproc",
        "ld sp, {x} + 8*2(sp)",
        "sret",
        // sp: the TrapContext; t1: sstatus, with SD set. Saves the f registers if FS is the field
        // that is Dirty.
        "30:",
        "srli t1, t1, {fs_shift}",
        "andi t1, t1, {fs_mask}",
        "addi t1, t1, -{fs_dirty}",
        "bnez t1, 6b",
        // FS is Dirty. fp: 1, the context holds f registers.
        "li t1, 1",
        "sd t1, {fp}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fsd f\n, {f} + 8*\n(sp)",
        r".endr",
        // `fscsr` reads fcsr and sets it to 0 in one instruction. The rounding mode is the
        // interrupted code's. The code that runs next gets 0, the one that Rust code starts with.
        "fscsr t0, zero",
        "sd t0, {fcsr}(sp)",
        // FS: Dirty to Clean, after `fscsr`, which makes it Dirty. A switch in the handler then
        // saves no f registers again.
        "li t0, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t0",
        "j 6b",
        // An exception in kernel mode. sp: the TrapCore; sscratch: the interrupted sp; t0: free,
        // its value is in the TrapCore.
        "40:",
        "sd t1, {core_t1}(sp)",
        // t0: sepc. If it lies in the pushes (from 3 to 4), the stack of an earlier trap has too
        // little room: 42.
        "csrr t0, sepc",
        "lla t1, 3b",
        "bltu t0, t1, 41f",
        "lla t1, 4b",
        "bltu t0, t1, 42f",
        // t0: sepc; t1: free. Bit 0 of t0 becomes 1 if interrupts were masked (SPIE is 0). t1 gets
        // its value back.
        "41:",
        "csrr t1, sstatus",
        "andi t1, t1, {spie}",
        "seqz t1, t1",
        "or t0, t0, t1",
        "ld t1, {core_t1}(sp)",
        "j 2b",
        // A load or store for the context of an earlier trap has faulted: there is too little stack
        // below the interrupted sp. The TrapCore has the sepc of that trap in core_sepc, and the
        // registers t0 and t1 of it, which the pushes did not change. sp: the TrapCore; sscratch:
        // the interrupted sp less the context's size. Puts the TrapCore back into sscratch. t0: the
        // interrupted sp.
        "42:",
        "csrr t0, sscratch",
        "csrw sscratch, sp",
        "addi t0, t0, {size}",
        "sd t0, {core_sp}(sp)",
        // If the interrupted sp lies on the emergency stack, no other stack is left: 44.
        "ld t1, {core_emergency_base}(sp)",
        "bgeu t1, t0, 43f",
        "ld t1, {core_emergency_top}(sp)",
        "bgeu t1, t0, 44f",
        // sp: the TrapCore. All registers but sp, t0 and t1 are the interrupted code's. Loads t0
        // and t1, and pushes all on the emergency stack. sp: the TrapContext there.
        "43:",
        "ld t0, {core_t0}(sp)",
        "ld t1, {core_t1}(sp)",
        "ld sp, {core_emergency_top}(sp)",
        "addi sp, sp, -{size}",
        r".irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(sp)",
        r".endr",
        // t1: the TrapCore. The context's sp and sepc are those of the earlier trap. scause and
        // stval will be those of the fault.
        "csrr t1, sscratch",
        "ld t0, {core_sp}(t1)",
        "sd t0, {x} + 8*2(sp)",
        "ld t0, {core_sepc}(t1)",
        // t0: that sepc; bit 0: interrupts were masked at that trap. Makes SPIE what it was then:
        // the fault, taken with interrupts masked, has left it 0. 5 reads it from sstatus.
        "andi t1, t0, 1",
        "andi t0, t0, -2",
        "sd t0, {sepc}(sp)",
        "xori t1, t1, 1",
        "slli t1, t1, {spie_shift}",
        "csrs sstatus, t1",
        "j 5b",
        // sp: the TrapCore. The emergency stack itself has overflowed. What lies there is lost
        // anyway, so this starts at its top again.
        "44:",
        "ld sp, {core_emergency_top}(sp)",
        "call {no_stack_left}",
        // A trap in user mode. sp: the TrapCore; sscratch: the user's sp; t0: free, its value is in
        // the TrapCore; all else is the user's. t0: the context that runs. Saves all registers but
        // sp (x2) and t0 (x5).
        "50:",
        "ld t0, {core_context}(sp)",
        r".irp n, 1,3,4,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(t0)",
        r".endr",
        // t1: free. Saves t0. The exchange with sscratch reads the user's sp and puts the TrapCore
        // back in one instruction.
        "ld t1, {core_t0}(sp)",
        "sd t1, {x} + 8*5(t0)",
        "csrrw t1, sscratch, sp",
        "sd t1, {x} + 8*2(t0)",
        // sp: the TrapCore. Loads what `enter` has left: its tp and its sp.
        "ld tp, {core_kernel_tp}(sp)",
        "ld sp, {core_kernel_sp}(sp)",
        // t0: the context; sp: the `UserFrame`; tp: the kernel's. gp is still the user's. Saves the
        // CSRs.
        "csrr t1, sepc",
        "sd t1, {sepc}(t0)",
        "csrr t1, scause",
        "sd t1, {scause}(t0)",
        "csrr t1, stval",
        "sd t1, {stval}(t0)",
        "csrr t1, sstatus",
        "sd t1, {sstatus}(t0)",
        // t1: the program's sstatus. Has the program f registers? If not, FS is Off.
        "ld t2, {fp}(t0)",
        "beqz t2, 52f",
        // `fscsr` reads fcsr and sets it to 0 in one instruction. The program's rounding mode is
        // not the kernel's, which is 0.
        "fscsr t2, zero",
        "sd t2, {fcsr}(t0)",
        // Saves the f registers if the program has written one since they were loaded: FS is Dirty.
        "srli t1, t1, {fs_shift}",
        "andi t1, t1, {fs_mask}",
        "addi t1, t1, -{fs_dirty}",
        "bnez t1, 51f",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fsd f\n, {f} + 8*\n(t0)",
        r".endr",
        // Clears the f registers: no other program may see them, not even speculatively.
        "51:",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fmv.d.x f\n, zero",
        r".endr",
        // sp: the `UserFrame`. The caller's sstatus: SIE is 0 in it, since `enter` runs with
        // interrupts masked. If its FS is Dirty, the caller needs its fs registers.
        "52:",
        "ld t1, {frame_sstatus}(sp)",
        "csrw sstatus, t1",
        "srli t1, t1, {fs_shift}",
        "andi t1, t1, {fs_mask}",
        "addi t1, t1, -{fs_dirty}",
        "bnez t1, 53f",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fld fs\n, {frame_fs} + 8*\n(sp)",
        r".endr",
        // Takes the `UserFrame` off the stack, and returns to the caller of `enter`.
        "53:",
        "ld ra, {frame_ra}(sp)",
        "ld gp, {frame_gp}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  ld s\n, {frame_s} + 8*\n(sp)",
        r".endr",
        "addi sp, sp, {frame}",
        "ret",
        ".option pop",
        on_trap = sym on_trap,
        no_stack_left = sym no_stack_left,
        sum_mxr = const SUM_MXR,
        x = const offset_of!(TrapContext, x),
        sepc = const offset_of!(TrapContext, sepc),
        sstatus = const offset_of!(TrapContext, sstatus),
        scause = const offset_of!(TrapContext, scause),
        stval = const offset_of!(TrapContext, stval),
        fp = const offset_of!(TrapContext, fp),
        fcsr = const offset_of!(TrapContext, fcsr),
        f = const offset_of!(TrapContext, f),
        size = const size_of::<TrapContext>(),
        frame = const size_of::<UserFrame>(),
        frame_ra = const offset_of!(UserFrame, ra),
        frame_gp = const offset_of!(UserFrame, gp),
        frame_s = const offset_of!(UserFrame, s),
        frame_sstatus = const offset_of!(UserFrame, sstatus),
        frame_fs = const offset_of!(UserFrame, fs),
        core_t0 = const offset_of!(TrapCore, t0),
        core_t1 = const offset_of!(TrapCore, t1),
        core_sp = const offset_of!(TrapCore, sp),
        core_sepc = const offset_of!(TrapCore, sepc),
        core_emergency_base = const offset_of!(TrapCore, emergency_base),
        core_emergency_top = const offset_of!(TrapCore, emergency_top),
        core_kernel_sp = const offset_of!(TrapCore, kernel_sp),
        core_kernel_tp = const offset_of!(TrapCore, kernel_tp),
        core_context = const offset_of!(TrapCore, context),
        spp = const SPP,
        spie = const SPIE,
        spie_shift = const SPIE.trailing_zeros(),
        handler = const HANDLER_STACK,
        fs_shift = const FS_SHIFT,
        fs_mask = const FS_MASK,
        fs_dirty = const FS_DIRTY,
        fs_not_clean = const FS_NOT_CLEAN,
    )
}
