//! RISC-V, 64 bits, ABI lp64 and lp64d: the switch, and for kernels that want them, a trap entry and
//! the way into user mode.
//!
//! Stacks grow downwards; `sp` is always aligned to 16; nothing below `sp` is in use.
//!
//! # A stack that is off the core
//!
//! ```text
//!   higher addresses
//!   |        ...             |
//!   |  the frame of the code |   with all that it needs of the other registers
//!   |  that switches         |
//!   +------------------------+
//!   |  fs0 ... fs11          |   a `FloatFrame`, only if `pc` is `resume_float`, which loads it
//!   |  pc: where to go on    |
//!   +------------------------+
//!   |  s0, s1                |
//!   |  pc: where to go on    |
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
//!   |  TrapContext           |   by `trap_entry`, or what the kernel's own vector saves
//!   +------------------------+
//!   |  the handler's frames  |   down to `preempt::on_timer`
//!   +------------------------+
//!   |  Frame                 |   by the same `switch` that a task makes which leaves by itself
//!   +------------------------+ <- Context
//! ```
//!
//! # A stack that has overflowed
//!
//! ```text
//!   |  frames                |
//!   +------------------------+ <- the stack's end; unmapped below. `trap_entry` looks whether there is
//!   :  what is too little    :    room for the context and the handler: its load or push faults, the
//!   +------------------------+    entry is entered again, finds where that came from, and changes over to:
//!
//!   +------------------------+ <- the top of the core's emergency stack
//!   |  TrapContext           |   sp and sepc are those of the code that overflowed
//!   +------------------------+
//!   |  the handler's frames  |
//! ```
//!
//! # A stack whose task runs a user program
//!
//! ```text
//!   |  TrapContext::run      |
//!   +------------------------+
//!   |  UserFrame             |   what the ABI has a callee preserve, and sstatus
//!   +------------------------+ <- TrapCore::kernel_sp; TrapCore::context: what is run
//! ```
//!
//! These two places are written by the last instructions before user mode and read by the first after it,
//! with interrupts masked all the while. So no other code runs in between, and nothing needs to be put back
//! when runs nest.
//!
//! `sscratch` holds the address of the core's [`TrapCore`] whenever code runs, in whichever mode.
//!
//! # Which registers
//!
//! `switch` is a piece of its caller's code that says which registers it overwrites, so the compiler saves
//! those of them that hold something, with what it would save anyway. What it does not give away
//! `switch` saves itself: s0, s1 and sp; and fs0 to fs11, since those are rarely in use, as the
//! hardware knows. It touches neither `tp` (the core's), nor `gp` (the program's), nor `sstatus.SIE`. SUM and
//! MXR, which kernel code may have set for an access to a user's page, are dealt with by the one who leaves
//! (`drop_rights`). `fcsr` isn't switched: Rust code may assume the rounding mode that it was started
//! with, and flags are not preserved by calls. A trap falls between any two instructions, so `TrapContext`
//! holds `fcsr` too, and what runs next gets the 0 that Rust code starts with. Vector registers are not
//! known here: a kernel must not be compiled to use them.
//!
//! # Floating point, by `sstatus.FS`
//!
//! FS says whether this core's f registers have been written. A kernel that is compiled for soft
//! float keeps it Off, and then all of this costs the reading of it. One invariant is enough to keep
//! the f registers of tasks that use them, at no cost for the others:
//!
//! > If FS isn't Dirty, the f registers hold nothing that the running code wants.
//!
//! - It holds when code starts: it has written nothing yet.
//! - Code that writes an f register makes FS Dirty, by hardware.
//! - `switch` away: if FS is Dirty, fs0 to fs11 go into the frame, and FS becomes Clean, or the code
//!   that runs next would save them too. The switch back goes on at `resume_float`, where FS becomes
//!   Dirty and they are loaded, so that the next switch saves them again.
//! - If FS isn't Dirty, nothing there is wanted, and `pc` is where the caller goes on.
//! - A machine may know Off and Dirty only, and take Clean for Dirty. Then all is saved each time.
//! - A trap: if FS is Dirty, all f registers go into the trap context before any Rust code runs.
//!   Nothing of them is then wanted by the handler: FS becomes Clean, and a switch in the handler
//!   saves them a second time only if the handler has computed in them. The return from the trap
//!   loads them and the interrupted code's FS. If FS wasn't Dirty, the interrupted code wants
//!   nothing, and the handler may leave in them what it likes.
//!
//! An instruction that only raises a flag of `fcsr` makes FS Dirty as well (some emulators forget
//! that: a flag that is raised there in kernel code that writes no f register can get lost).
//!
//! A user program begins with FS Off. If it computes, its first FP instruction is illegal: it then gets
//! f registers that are zero, FS Clean, and goes on. From then on they are loaded before it runs, and
//! saved after a trap that finds FS Dirty; `fcsr` always, because of said emulators. Then they are set to
//! zero: with FS Off, a processor that speculates could let the next program see what the last one has left.
//! So no program sees another's, and one that doesn't compute pays nothing.

use core::arch::{asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
// Not loom's: traps aren't modelled.
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::fatal::fatal;
use crate::stackful::{Context, StackMain, StackfulBackend};
use crate::trap::{self, Access, Syscall, Trap, TrapHandler};

#[cfg(all(target_os = "none", target_feature = "v"))]
compile_error!(
    "neither the trap entry nor the switch saves the kernel's own vector registers: build the kernel \
     without the target feature `v`"
);

/// What lies at a [`Context`].
#[repr(C, align(16))]
struct Frame {
    pc: usize,
    s0: usize,
    s1: usize,
}

/// What lies above it if f registers are wanted.
#[repr(C, align(16))]
struct FloatFrame {
    pc: usize,
    fs: [u64; 12],
}

/// Where `sstatus` keeps FS.
const FS_SHIFT: usize = 13;
/// FS: two bits.
const FS_MASK: usize = 0b11;
/// FS: an f register or `fcsr` has been written. (0 is Off, 1 Initial.)
const FS_DIRTY: usize = 0b11;
/// The bit that makes Dirty of Clean, which is 2: they have been written by loading them.
const FS_NOT_CLEAN: usize = 0b01;

/// How many bytes of the interrupted stack the handler of an interrupt may use. That includes its call of
/// [`preempt::on_timer`](crate::preempt::on_timer) and the switch, which take less than half of it in a
/// build without optimization. The trap entry makes sure that so much is there: if not, the trap is an
/// [overflow](TrapContext::is_overflow).
pub const HANDLER_STACK: usize = 2048;

/// The switch of RISC-V with 64 bits.
#[derive(Debug)]
pub struct Riscv64;

impl Riscv64 {
    /// The least that the task's own frames take: those of the runtime's poll loop, and a few of the future's.
    /// One that looks at the clock has 3.7 KiB in a build without optimization.
    const POLL: usize = 4096;
}

// SAFETY: `prepare` writes one `Frame` below `top`, less than MIN_STACK. `switch` saves and loads
// s0, s1 and sp, and fs0 to fs11 where the head of this file says that they are wanted; it tells the
// compiler that it overwrites all other registers but tp and gp, which it leaves alone, as it does SIE;
// it touches the two stacks and `*save` only; and an `asm!` without `nomem` is a barrier.
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
        // SAFETY: the caller's promise: what is at `to` was left by this very code or by `prepare`.
        unsafe {
            asm!(
                // By t1, and not by ra or t0: a processor would expect a return.
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
                // And ra.
                clobber_abi("C"),
            );
        }
    }
}

/// a0: where to store the context that is left; a1: the one to go on in; t1: where the caller goes on.
///
/// A function of its own, since only so an unwinder can be told where all is after each instruction. It
/// is told the same before and after the change of stacks, as both look the same.
#[unsafe(naked)]
unsafe extern "C" fn exchange() {
    naked_asm!(
        ".option push",
        // What the assembler may use; whether there is an FPU is decided by FS, when it runs.
        ".option arch, +d",
        ".cfi_startproc",
        ".cfi_register ra, t1",
        "csrr t2, sstatus",
        // Its sign says that there is something Dirty.
        "bltz t2, 3f",
        ".cfi_remember_state",
        "2:",
        "addi sp, sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        "sd t1, {pc}(sp)",
        ".cfi_rel_offset ra, {pc}",
        "sd s0, {s0}(sp)",
        ".cfi_rel_offset s0, {s0}",
        "sd s1, {s1}(sp)",
        ".cfi_rel_offset s1, {s1}",
        "sd sp, (a0)",
        // From here on the other stack.
        "mv sp, a1",
        "ld t1, {pc}(sp)",
        "ld s0, {s0}(sp)",
        "ld s1, {s1}(sp)",
        "addi sp, sp, {size}",
        ".cfi_def_cfa_offset 0",
        ".cfi_same_value s0",
        ".cfi_same_value s1",
        ".cfi_register ra, t1",
        // Not by ra or t0: such a jump would be predicted to go where a function was called from.
        "jr t1",
        // t2: sstatus. It may be something else than FS that is Dirty.
        "3:",
        ".cfi_restore_state",
        "srli t2, t2, {fs_shift}",
        "andi t2, t2, {fs_mask}",
        "addi t2, t2, -{fs_dirty}",
        "bnez t2, 2b",
        "addi sp, sp, -{float_size}",
        ".cfi_def_cfa_offset {float_size}",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fsd fs\n, {fs} + 8*\n(sp)",
        r".endr",
        "sd t1, {float_pc}(sp)",
        ".cfi_rel_offset ra, {float_pc}",
        "li t2, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t2",
        // As if that had called.
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

/// sp: a `FloatFrame`. Goes on in code that wants its f registers.
///
/// It begins with a `nop` that isn't run: an unwinder looks for what is before the place where a frame goes on.
#[unsafe(naked)]
unsafe extern "C" fn resume_float() {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        ".option norvc",
        ".cfi_startproc",
        ".cfi_def_cfa_offset {float_size}",
        ".cfi_rel_offset ra, {float_pc}",
        "nop",
        "li t2, {fs_mask} << {fs_shift}",
        "csrs sstatus, t2",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fld fs\n, {fs} + 8*\n(sp)",
        r".endr",
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

/// s0: `main`; s1: its argument; sp: the stack's top. There is no caller and no frame pointer: an unwinder, a
/// debugger and a walk along the frame pointers end here.
///
/// It begins with a `nop` that isn't run: an unwinder looks for what is before the place where a frame goes on.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined ra",
        ".option push",
        ".option norvc",
        "nop",
        ".option pop",
        "mv a0, s1",
        "mv t1, s0",
        "li s0, 0",
        "jalr t1",
        "unimp",
        ".cfi_endproc",
    )
}

/// The size of the `nop` that [`start`] and [`resume_float`] begin with.
const NOP: usize = 4;

/// How many bytes of stack a task that leaves by itself takes, from where it must not be preempted any more.
pub(crate) const LEAVE: usize = 1024;

/// Reads the stack `DEPTH` bytes below. If nothing is mapped there, the fault comes here, in the code of the task,
/// which can be ended alone. Without this it would come in the runtime's own code, or in a handler.
#[inline(always)]
pub(crate) fn touch_stack<const DEPTH: usize>() {
    // SAFETY: reads what lies below the stack pointer, if anything does.
    unsafe { asm!("lb zero, -{}(sp)", const DEPTH, options(nostack, readonly)) };
}

/// Whether the running code has given itself a right that no other code is to have: SUM or MXR.
#[inline(always)]
pub(crate) fn has_rights() -> bool {
    let rights: usize;
    // SAFETY: reads a CSR. Bits above the two are rare, and do no harm.
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

/// Gives such rights up, before other code runs, and returns which they were.
#[cold]
pub(crate) fn drop_rights() -> usize {
    let status: usize;
    // SAFETY: without them, less is allowed.
    unsafe { asm!("csrrc {}, sstatus, {}", out(reg) status, in(reg) SUM_MXR, options(nostack)) };
    status & SUM_MXR
}

/// Gives the running code its rights back.
///
/// # Safety
///
/// [`drop_rights`] said that it had them.
#[cold]
pub(crate) unsafe fn restore_rights(rights: usize) {
    // SAFETY: the caller's promise.
    unsafe { asm!("csrs sstatus, {}", in(reg) rights, options(nostack)) };
}

/// What a trap interrupted: pushed by the entry on the interrupted kernel stack, or a user program's, which
/// [`run`](TrapContext::run) takes to user mode and back.
///
/// All that the next trap will overwrite is in here, read once, by the entry: handlers look here and
/// not at the CSRs. What is here when a handler returns is restored.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct TrapContext {
    /// The integer registers x0 to x31. `x[0]` is not written. `x[4]`, tp, isn't restored on the
    /// return to kernel mode: it belongs to the core and not to what runs there.
    pub x: [usize; 32],
    /// The interrupted instruction's address; after a system call or a breakpoint, the next one's.
    pub sepc: usize,
    /// The status at the trap: SPP, SPIE and FS are the interrupted code's. Of a user program only SPIE
    /// counts: whether it can be interrupted.
    pub sstatus: usize,
    /// Why: the highest bit says that it was an interrupt.
    pub scause: usize,
    /// The faulting address, or what else the cause comes with.
    pub stval: usize,
    /// Whether `f` and `fcsr` hold something: 1 if so, else 0.
    pub fp: usize,
    /// Rounding mode and flags of floating point, if `fp` is 1.
    pub fcsr: usize,
    /// f0 to f31, if `fp` is 1.
    pub f: [u64; 32],
}

/// What the callers of [`enter`] want preserved while a user program runs.
#[repr(C, align(16))]
struct UserFrame {
    ra: usize,
    gp: usize,
    s: [usize; 12],
    sstatus: usize,
    /// Written if `sstatus` says that FS is Dirty.
    fs: [u64; 12],
}

// Immediate offsets of loads and stores reach up to 2047; the stack stays aligned to 16.
const _: () =
    assert!(size_of::<TrapContext>() < 2048 && size_of::<TrapContext>().is_multiple_of(16));
const _: () = assert!(size_of::<Frame>().is_multiple_of(16));
const _: () = assert!(size_of::<FloatFrame>() < 2048 && size_of::<FloatFrame>().is_multiple_of(16));
const _: () = assert!(size_of::<UserFrame>() < 2048 && size_of::<UserFrame>().is_multiple_of(16));

/// A core's own place for its trap entry. The kernel keeps one for each core.
///
/// Only the entry, on its core, with interrupts masked, touches what is in it.
#[repr(C)]
#[derive(Debug)]
pub struct TrapCore {
    /// Registers of the interrupted code, until they have a place on a stack.
    t0: AtomicUsize,
    t1: AtomicUsize,
    sp: AtomicUsize,
    /// Where the interrupted code was, should pushing its registers fault.
    sepc: AtomicUsize,
    /// The emergency stack.
    emergency_base: AtomicUsize,
    emergency_top: AtomicUsize,
    /// While user mode runs: the stack of the caller of `enter`, its tp, and the context that runs.
    kernel_sp: AtomicUsize,
    kernel_tp: AtomicUsize,
    context: AtomicUsize,
}

impl TrapCore {
    /// For a core that has not installed the entry yet.
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

    /// The calling core's.
    ///
    /// # Safety
    ///
    /// The calling core has installed the entry.
    unsafe fn here() -> &'static Self {
        let core: *const Self;
        // SAFETY: reads a CSR. A task stays on its core while it holds the answer on a stack.
        unsafe {
            asm!("csrr {}, sscratch", out(reg) core, options(nomem, nostack, preserves_flags))
        };
        // SAFETY: `install_trap_entry` wrote it there, a `&'static`, and the entry keeps it there.
        unsafe { &*core }
    }

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

/// The least size of an emergency stack in bytes: a context, a fault in the handler, and their frames.
pub const MIN_EMERGENCY_STACK: usize = 2 * (size_of::<TrapContext>() + 4096);

/// Makes this core's traps end in `handler`, for kernels that have no trap vector of their own.
///
/// The handler is one for all cores, the one that was given last.
///
/// # Safety
///
/// - This core is in S-mode. From now on `stvec` and `sscratch` are the entry's.
/// - Every stack on which a trap can be taken has room for a [`TrapContext`] and the handler's
///   frames, or an unmapped page below it; `sp` is aligned to 16 wherever a trap can be taken.
/// - `core` is this core's alone, and `emergency_stack` too: at least [`MIN_EMERGENCY_STACK`] bytes of
///   memory, for ever, aligned to 16 at both ends.
/// - `handler` returns with interrupts masked, and only to go on where the `TrapContext` says.
pub unsafe fn install_trap_entry(
    core: &'static TrapCore,
    emergency_stack: NonNull<[u8]>,
    handler: TrapHandler,
) {
    assert!(
        emergency_stack.len() >= MIN_EMERGENCY_STACK,
        "the emergency stack is too small: MIN_EMERGENCY_STACK says how large it must be"
    );
    let base = emergency_stack.cast::<u8>().as_ptr().expose_provenance();
    core.emergency_base.store(base, Ordering::Relaxed);
    core.emergency_top.store(base + emergency_stack.len(), Ordering::Relaxed);
    trap::set_handler(handler);
    // SAFETY: the caller promises what the entry builds upon. The entry is aligned to 4, so that
    // the two low bits of its address are the mode "direct".
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

/// `scause`: an interrupt.
const INTERRUPT: usize = 1 << (usize::BITS - 1);
/// `sstatus`: the trap came from S-mode.
const SPP: usize = 1 << 8;
/// `sstatus`: interrupts were enabled where the trap came from.
const SPIE: usize = 1 << 5;
/// `sstatus`: S-mode may access users' pages; and load from pages that can only be executed.
const SUM_MXR: usize = 0b11 << 18;
/// `sstatus`: how wide user mode's registers are.
const UXL: usize = 0b11 << 32;

/// `scause` of exceptions.
mod exception {
    pub(super) const ILLEGAL: usize = 2;
    pub(super) const BREAKPOINT: usize = 3;
    pub(super) const USER_CALL: usize = 8;
    pub(super) const FETCH_PAGE: usize = 12;
    pub(super) const LOAD_PAGE: usize = 13;
    pub(super) const STORE_PAGE: usize = 15;
}
/// `scause` of the timer's interrupt.
const TIMER: usize = INTERRUPT | 5;

impl TrapContext {
    /// A user program that begins at `entry` with the stack pointer `stack`: all other registers are
    /// 0, interrupts are enabled, and floating point is unused.
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

    /// Whether the program can be interrupted. One that cannot keeps the core for as long as it likes.
    #[must_use]
    pub const fn with_interrupts(mut self, enabled: bool) -> Self {
        self.sstatus = if enabled { self.sstatus | SPIE } else { self.sstatus & !SPIE };
        self
    }

    /// What the trap was.
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

    /// Whether user mode was interrupted, and not the kernel.
    pub fn is_user(&self) -> bool {
        self.sstatus & SPP == 0
    }

    /// Whether the kernel's stack pointer led nowhere when the trap was taken, most likely since the stack
    /// had overflowed. To be asked on the core that took it.
    pub fn is_overflow(&self) -> bool {
        // SAFETY: a trap was taken here, so the entry is installed.
        let core = unsafe { TrapCore::here() };
        core.is_emergency(core::ptr::from_ref(self).addr())
            && !core.is_emergency(self.sp().wrapping_sub(1))
    }

    /// Where to go on.
    pub fn pc(&self) -> usize {
        self.sepc
    }

    /// Sets where to go on.
    pub fn set_pc(&mut self, pc: usize) {
        self.sepc = pc;
    }

    /// The stack pointer.
    pub fn sp(&self) -> usize {
        self.x[2]
    }

    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: usize) {
        self.x[2] = sp;
    }

    /// What is asked for, after a [`Trap::Syscall`].
    pub fn syscall(&self) -> Syscall {
        Syscall { number: self.x[17], arguments: core::array::from_fn(|n| self.x[10 + n]) }
    }

    /// Sets what a system call returns: a0.
    pub fn set_result(&mut self, result: usize) {
        self.x[10] = result;
    }

    /// Sets what the program finds its thread-local data by: tp.
    pub fn set_thread_pointer(&mut self, pointer: usize) {
        self.x[4] = pointer;
    }

    /// Runs the program until its next trap.
    ///
    /// # Safety
    ///
    /// As [`run`](TrapContext::run), with interrupts masked. They still are when it returns.
    pub(crate) unsafe fn enter_user(&mut self) {
        // SAFETY: the caller promises that the entry is installed.
        let core = unsafe { TrapCore::here() };
        // User mode can always be interrupted as far as `sstatus` is concerned. What isn't enabled in
        // `sie` cannot interrupt.
        let enabled = self.sstatus & SPIE != 0;
        let mut sie = 0;
        if !enabled {
            // SAFETY: enables nothing.
            unsafe { asm!("csrrw {}, sie, zero", out(reg) sie, options(nostack)) };
        }
        loop {
            // On while they are loaded, upon which `enter` makes it Clean.
            let fs = if self.fp == 0 { 0 } else { FS_DIRTY << FS_SHIFT };
            self.sstatus = status() & UXL | self.sstatus & SPIE | fs;
            // SAFETY: interrupts are masked, `sstatus` is that of user mode, `core` is this core's.
            unsafe { enter(self, core) };
            if self.scause != exception::ILLEGAL || self.fp != 0 || !has_fp() {
                break;
            }
            // Unknown it was the first FP instruction. Another will tell.
            (self.fp, self.fcsr, self.f) = (1, 0, [0; 32]);
        }
        if !enabled {
            // SAFETY: what was enabled before.
            unsafe { asm!("csrw sie, {}", in(reg) sie, options(nostack)) };
            self.sstatus &= !SPIE;
        }
        match self.scause {
            // `ecall` has no short form.
            exception::USER_CALL => self.sepc += 4,
            exception::BREAKPOINT => self.step_over_breakpoint(),
            _ => {}
        }
    }

    fn step_over_breakpoint(&mut self) {
        // SAFETY: `on_exception` mends a fault: other cores may have unmapped the page by now.
        let half = unsafe {
            let status: usize;
            asm!("csrrs {}, sstatus, {}", out(reg) status, in(reg) SUM_MXR, options(nostack));
            let half = load_half(self.sepc);
            asm!("csrc sstatus, {}", in(reg) !status & SUM_MXR, options(nostack));
            half
        };
        // The low bits say how long an instruction is.
        self.sepc += if half & 0b11 == 0b11 { 4 } else { 2 };
    }
}

fn status() -> usize {
    let status;
    // SAFETY: reads a CSR.
    unsafe { asm!("csrr {}, sstatus", out(reg) status, options(nomem, nostack, preserves_flags)) };
    status
}

/// Whether the machine has floating point: FS can be something else than Off.
fn has_fp() -> bool {
    if status() >> FS_SHIFT & FS_MASK != 0 {
        return true;
    }
    let on: usize;
    // SAFETY: nobody computes between here and there.
    unsafe {
        asm!(
            "csrs sstatus, {fs}",
            "csrr {on}, sstatus",
            // Both bits: what is left of them could count as Dirty.
            "csrc sstatus, {fs}",
            fs = in(reg) FS_MASK << FS_SHIFT,
            on = out(reg) on,
            options(nostack),
        );
    }
    on >> FS_SHIFT & FS_MASK != 0
}

/// A trap in kernel mode. On the interrupted stack, or on the emergency stack.
extern "C" fn on_trap(context: &mut TrapContext) {
    if context.scause & INTERRUPT == 0 {
        if context.sepc == load_half as *const () as usize {
            // It gives all ones, and goes on where it was called.
            context.x[10] = usize::MAX;
            context.sepc = context.x[1];
            return;
        }
        if context.scause == exception::BREAKPOINT {
            context.step_over_breakpoint();
        }
    }
    trap::dispatch(context);
}

/// The half word at a0. Where there is none, [`on_trap`] has it return all ones: so it is no more than
/// the load and the return.
#[unsafe(naked)]
unsafe extern "C" fn load_half(address: usize) -> usize {
    naked_asm!("lhu a0, (a0)", "ret")
}

/// The core's stacks are all in use.
extern "C" fn no_stack_left() -> ! {
    fatal("trapline: the emergency stack overflowed: give install_trap_entry a larger one")
}

/// a0: the context to run; a1: the core's `TrapCore`. Returns after the next trap in user mode, by the
/// end of [`trap_entry`].
#[unsafe(naked)]
unsafe extern "C" fn enter(context: *mut TrapContext, core: *const TrapCore) {
    naked_asm!(
        ".option push",
        ".option arch, +a, +d",
        // gp is written below, and mustn't be used to shorten addresses.
        ".option norelax",
        "addi sp, sp, -{frame}",
        "sd ra, {frame_ra}(sp)",
        "sd gp, {frame_gp}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  sd s\n, {frame_s} + 8*\n(sp)",
        r".endr",
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
        "sd sp, {kernel_sp}(a1)",
        "sd tp, {kernel_tp}(a1)",
        "sd a0, {context}(a1)",
        // a0: the context. The rest is free.
        "ld t0, {sstatus}(a0)",
        "csrw sstatus, t0",
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
        "ld t0, {sepc}(a0)",
        "csrw sepc, t0",
        // A reservation of somebody else's ends here.
        "addi t1, a0, {sepc}",
        "sc.d t2, t0, (t1)",
        r".irp n, 1,2,3,4,5,6,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,10",
        r"  ld x\n, {x} + 8*\n(a0)",
        r".endr",
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

/// On entry, all registers are the interrupted code's, SIE is 0, sscratch the core's `TrapCore`, and the
/// CSRs tell the rest.
#[unsafe(naked)]
unsafe extern "C" fn trap_entry() {
    naked_asm!(
        ".balign 4",
        ".option push",
        // What the assembler may use; whether there is an FPU is decided by FS, when it runs.
        ".option arch, +a, +d",
        // gp may be the user's.
        ".option norelax",
        "csrrw sp, sscratch, sp",
        // sp: the core; sscratch: the interrupted sp.
        "sd t0, {core_t0}(sp)",
        "csrr t0, sstatus",
        "andi t0, t0, {spp}",
        "beqz t0, 50f",
        "csrr t0, scause",
        "bgez t0, 40f",
        "csrr t0, sepc",
        "2:",
        "sd t0, {core_sepc}(sp)",
        "ld t0, {core_t0}(sp)",
        "csrrw sp, sscratch, sp",
        // A trap in kernel mode. All registers are the interrupted code's again, and sscratch is the
        // core. If one of the following loads and stores faults, it is found at 40.
        "3:",
        ".cfi_startproc",
        ".cfi_signal_frame",
        // ra is the interrupted code's, so where that goes on is called register 64.
        ".cfi_return_column 64",
        "addi sp, sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        // Is the stack there as deep as the handler may go? If not, that is found before anything is
        // acknowledged or locked.
        "lb zero, -{handler}(sp)",
        r".irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(sp)",
        r"  .cfi_rel_offset \n, {x} + 8*\n",
        r".endr",
        // All but sp may be used now.
        "4:",
        "addi t0, sp, {size}",
        "sd t0, {x} + 8*2(sp)",
        ".cfi_rel_offset sp, {x} + 8*2",
        "csrr t0, sepc",
        "sd t0, {sepc}(sp)",
        ".cfi_rel_offset 64, {sepc}",
        "5:",
        // Interrupted code may have been allowed to access users' pages. Who comes next is not.
        "li t0, {sum_mxr}",
        "csrrc t1, sstatus, t0",
        "sd t1, {sstatus}(sp)",
        "csrr t0, scause",
        "sd t0, {scause}(sp)",
        "csrr t0, stval",
        "sd t0, {stval}(sp)",
        "sd zero, {fp}(sp)",
        // t1: sstatus. Its sign says that there is something Dirty.
        "bltz t1, 30f",
        "6:",
        "mv a0, sp",
        // The walk along the frame pointers goes on in the interrupted code by s0; ra is where
        // it would return to, as nobody called this.
        "call {on_trap}",
        // sp: the context, as callees preserve it. The interrupted code's status first: its SIE
        // is 0 since the trap cleared it before we read it, so from here on no trap can overwrite
        // sepc; and its FS is Dirty if f registers are to be loaded.
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
        "ld t0, {sepc}(sp)",
        "csrw sepc, t0",
        // A reservation made by somebody who ran in between must not let an `sc` of the
        // interrupted code succeed: a store-conditional (of the value that is there) ends it.
        "addi t1, sp, {sepc}",
        "sc.d t2, t0, (t1)",
        // Every register but tp, and sp last.
        r".irp n, 1,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  ld x\n, {x} + 8*\n(sp)",
        r".endr",
        ".cfi_endproc",
        "ld sp, {x} + 8*2(sp)",
        "sret",
        // t1: sstatus. If it is FS that is Dirty, the f registers are saved.
        "30:",
        "srli t1, t1, {fs_shift}",
        "andi t1, t1, {fs_mask}",
        "addi t1, t1, -{fs_dirty}",
        "bnez t1, 6b",
        "li t1, 1",
        "sd t1, {fp}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fsd f\n, {f} + 8*\n(sp)",
        r".endr",
        // The rounding mode is the interrupted code's. What runs next gets the one that Rust code starts with,
        // which is the one that 0 means.
        "fscsr t0, zero",
        "sd t0, {fcsr}(sp)",
        "li t0, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t0",
        "j 6b",
        // An exception in kernel mode. sp: the core; sscratch: the interrupted sp; t0: in the core.
        "40:",
        "sd t1, {core_t1}(sp)",
        "csrr t0, sepc",
        "lla t1, 3b",
        "bltu t0, t1, 41f",
        "lla t1, 4b",
        "bltu t0, t1, 42f",
        // t0: sepc; its bit 0 now: interrupts were masked.
        "41:",
        "csrr t1, sstatus",
        "andi t1, t1, {spie}",
        "seqz t1, t1",
        "or t0, t0, t1",
        "ld t1, {core_t1}(sp)",
        "j 2b",
        // A load or store for another trap's context: below the interrupted sp, there is too little stack.
        // The core has the sepc of that trap, and still its t0.
        "42:",
        "csrr t0, sscratch",
        "csrw sscratch, sp",
        "addi t0, t0, {size}",
        "sd t0, {core_sp}(sp)",
        "ld t1, {core_emergency_base}(sp)",
        "bgeu t1, t0, 43f",
        "ld t1, {core_emergency_top}(sp)",
        "bgeu t1, t0, 44f",
        "43:",
        "ld t0, {core_t0}(sp)",
        "ld t1, {core_t1}(sp)",
        "ld sp, {core_emergency_top}(sp)",
        "addi sp, sp, -{size}",
        r".irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(sp)",
        r".endr",
        "csrr t1, sscratch",
        "ld t0, {core_sp}(t1)",
        "sd t0, {x} + 8*2(sp)",
        "ld t0, {core_sepc}(t1)",
        // SPIE is what it was at that trap.
        "andi t1, t0, 1",
        "andi t0, t0, -2",
        "sd t0, {sepc}(sp)",
        "xori t1, t1, 1",
        "slli t1, t1, {spie_shift}",
        "csrs sstatus, t1",
        "j 5b",
        // It was the emergency stack itself. What lies there is lost anyway.
        "44:",
        "ld sp, {core_emergency_top}(sp)",
        "call {no_stack_left}",
        // A trap in user mode. sp: the core; sscratch: the interrupted sp; t0: in the core.
        "50:",
        "ld t0, {core_context}(sp)",
        r".irp n, 1,3,4,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(t0)",
        r".endr",
        "ld t1, {core_t0}(sp)",
        "sd t1, {x} + 8*5(t0)",
        "csrrw t1, sscratch, sp",
        "sd t1, {x} + 8*2(t0)",
        "ld tp, {core_kernel_tp}(sp)",
        "ld sp, {core_kernel_sp}(sp)",
        // t0: the context; sp: the `UserFrame`; tp: the kernel's.
        "csrr t1, sepc",
        "sd t1, {sepc}(t0)",
        "csrr t1, scause",
        "sd t1, {scause}(t0)",
        "csrr t1, stval",
        "sd t1, {stval}(t0)",
        "csrr t1, sstatus",
        "sd t1, {sstatus}(t0)",
        "ld t2, {fp}(t0)",
        "beqz t2, 52f",
        // The program's rounding mode is not the kernel's, which is the one that 0 means.
        "fscsr t2, zero",
        "sd t2, {fcsr}(t0)",
        "srli t1, t1, {fs_shift}",
        "andi t1, t1, {fs_mask}",
        "addi t1, t1, -{fs_dirty}",
        "bnez t1, 51f",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fsd f\n, {f} + 8*\n(t0)",
        r".endr",
        // No other program is to see them, not even speculatively.
        "51:",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fmv.d.x f\n, zero",
        r".endr",
        // The caller's status, and what its FS says of its f registers.
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
