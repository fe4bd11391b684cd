//! LoongArch, 64 bits, ABI lp64s and lp64d: the switch, and for kernels that want them, a trap entry and
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
//!   |  fs0 ... fs7           |   only where the ABI has FP registers, and written only if `pc` says so
//!   |  fp ($r22), s8         |
//!   |  pc: where to go on    |   bit 0: fs0 to fs7 are to be loaded first
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
//!   |  TrapContext           |   sp and ERA are those of the code that overflowed
//!   +------------------------+
//!   |  the handler's frames  |
//! ```
//!
//! # A stack whose task runs a user program
//!
//! ```text
//!   |  TrapContext::run      |
//!   +------------------------+
//!   |  UserFrame             |   what the ABI has a callee preserve, $tp, and EUEN
//!   +------------------------+ <- TrapCore::kernel_sp; TrapCore::context: what is run
//! ```
//!
//! These two places are written by the last instructions before user mode and read by the first after it,
//! with interrupts masked all the while. So no other code runs in between, and nothing needs to be put back
//! when runs nest.
//!
//! # The entry's CSRs
//!
//! SAVE1 holds the address of the core's [`TrapCore`] whenever code runs, in whichever mode. SAVE0 and
//! SAVE2 to SAVE4 are scratch from an entry to the end of its pushes, in which only those pushes can trap.
//! A kernel that takes its traps by this entry leaves the five to it. The TLB's refill has CSRs of
//! its own, so it may come between any two instructions.
//!
//! # Which registers
//!
//! `switch` is a piece of its caller's code that says which registers it overwrites, so the compiler saves
//! those of them that hold something, with what it would save anyway. What it does not give away
//! `switch` saves itself: fp, s8 and sp; and under lp64d fs0 to fs7, since those are rarely in use, as
//! EUEN tells. It touches neither `$r21` (the core's), nor `$tp`, nor `CRMD.IE`. `fcsr` isn't switched: Rust code
//! may assume the rounding mode that it was started with, and flags are not preserved by calls. A trap
//! falls between any two instructions, so `TrapContext` holds `fcsr` and the condition flags `fcc` too.
//! Vector registers are not known here: EUEN keeps their units off, and a kernel must not be compiled to use
//! them. There is no right to access users' pages that kernel code would give itself.
//!
//! # Floating point, by `EUEN.FPE`
//!
//! LoongArch has no dirty tracking, but with FPE off, an FP instruction traps. Under lp64d, the
//! same invariant as on RISC-V keeps the f registers of tasks that use them, at no cost for the others:
//!
//! > If FPE is off, the f registers hold nothing that the running code wants.
//!
//! - It is off when code starts. The first FP instruction traps, and [`on_trap`] has the return from that
//!   trap turn FPE on, with registers that are zero: the code has written nothing yet.
//! - `switch` away: if FPE is on, fs0 to fs7 go into the frame, and FPE goes off, or the code that runs
//!   next would save them too. `pc` says so to the switch back: FPE goes on, and they are loaded.
//! - If FPE is off, `pc` says nothing.
//! - A trap: if FPE is on, all f registers go into the trap context before any Rust code runs, and FPE goes
//!   off for the handler. The return loads them, and turns FPE on or off as it was.
//!
//! Under lp64s, kernel code never uses them, FPE is off in the kernel, and none of this is compiled.
//!
//! A kernel under lp64d that has a vector of its own keeps the invariant there: it answers exception
//! 0xf, the trap of an FP instruction with FPE off, by turning FPE on and going back to that instruction. Its
//! vector saves and loads f registers, `fcsr` and `fcc` if FPE was on at the trap, and touches none of
//! them while it is off, since that traps in the vector; nor does the code that answers 0xf, which
//! would trap for ever.
//!
//! A user program, under both, begins with FPE off. Its first FP instruction traps: it then gets f
//! registers that are zero, and goes on. From then on they are loaded before it runs, and saved and set to
//! zero after: with FPE off, a processor that speculates could let the next program see what the last one has
//! left. So no program sees another's, and one that doesn't compute pays nothing. The kernel's rounding mode
//! is the one that 0 in `fcsr` means: it is put back after traps that found FPE on.

use core::arch::{asm, naked_asm};
#[cfg(target_feature = "d")]
use core::mem::MaybeUninit;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
// Not loom's: traps aren't modelled.
use core::sync::atomic::{AtomicUsize, Ordering};

use crate::fatal::fatal;
use crate::stackful::{Context, StackMain, StackfulBackend};
use crate::trap::{self, Access, Syscall, Trap, TrapHandler};

#[cfg(all(target_os = "none", any(target_feature = "lsx", target_feature = "lasx")))]
compile_error!(
    "neither the trap entry nor the switch saves the kernel's own vector registers: build the kernel \
     without the target features `lsx` and `lasx`"
);

/// What lies at a [`Context`].
#[repr(C, align(16))]
struct Frame {
    pc: usize,
    /// $r22.
    fp: usize,
    s8: usize,
    #[cfg(target_feature = "d")]
    fs: [MaybeUninit<u64>; 8],
}

/// CSRs by number, and what is in them.
mod csr {
    pub(super) const PRMD: usize = 0x1;
    pub(super) const EUEN: usize = 0x2;
    pub(super) const ECFG: usize = 0x4;
    pub(super) const ESTAT: usize = 0x5;
    pub(super) const ERA: usize = 0x6;
    pub(super) const BADV: usize = 0x7;
    pub(super) const BADI: usize = 0x8;
    pub(super) const EENTRY: usize = 0xc;
    /// The interrupted t0.
    pub(super) const SAVE_T0: usize = 0x30;
    /// The core's `TrapCore`.
    pub(super) const SAVE_CORE: usize = 0x31;
    /// Where the interrupted code was, should pushing its registers fault; bit 0: with interrupts masked.
    pub(super) const SAVE_ERA: usize = 0x32;
    /// The interrupted t1.
    pub(super) const SAVE_T1: usize = 0x33;
    /// The interrupted sp.
    pub(super) const SAVE_SP: usize = 0x34;
}

/// EUEN: the FPU is on.
#[cfg(target_feature = "d")]
const FPE: usize = 1 << 0;
/// PRMD: the privilege level that was interrupted; 0 is the kernel's.
const PPLV: usize = 0b11;
/// PRMD: the privilege level of user programs.
const USER: usize = 3;
/// PRMD: interrupts were enabled.
const PIE: usize = 1 << 2;

/// `fcsr0`: enables, rounding mode and flags. The rest is about the latest instruction only.
const FCSR_KEPT: usize = 0x1f_031f;

/// How many bytes of the interrupted stack the handler of an interrupt may use. That includes its call of
/// [`preempt::on_timer`](crate::preempt::on_timer) and the switch, which take less than half of it in a
/// build without optimization. The trap entry makes sure that so much is there: if not, the trap is an
/// [overflow](TrapContext::is_overflow).
pub const HANDLER_STACK: usize = 2048;

/// The switch of LoongArch with 64 bits.
#[derive(Debug)]
pub struct LoongArch64;

impl LoongArch64 {
    /// The least that the task's own frames take: those of the runtime's poll loop, and a few of the future's.
    /// One that looks at the clock has 3.7 KiB in a build without optimization.
    const POLL: usize = 4096;
}

// SAFETY: `prepare` writes one `Frame` below `top`, less than MIN_STACK. `switch` saves and loads
// fp, s8 and sp, and fs0 to fs7 where the head of this file says that they are wanted; it tells the
// compiler that it overwrites all other registers but $r21 and $tp, which it leaves alone, as it does IE;
// it touches the two stacks and `*save` only; and an `asm!` without `nomem` is a barrier.
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
        // SAFETY: the caller's promise: what is at `to` was left by this very code or by `prepare`.
        unsafe {
            asm!(
                "la.pcrel $t0, 2f",
                "b {exchange}",
                // A switch came back to what was saved there.
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
                // And $ra.
                clobber_abi("C"),
            );
        }
    }
}

/// a0: where to store the context that is left; a1: the one to go on in; t0: where the caller goes on.
///
/// A function of its own, since only so an unwinder can be told where all is after each instruction. It
/// is told the same before and after the change of stacks, as both look the same.
#[unsafe(naked)]
unsafe extern "C" fn exchange() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_register 1, 12",
        "addi.d $sp, $sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        "st.d $fp, $sp, {fp}",
        ".cfi_rel_offset 22, {fp}",
        "st.d $s8, $sp, {s8}",
        ".cfi_rel_offset 31, {s8}",
        #[cfg(target_feature = "d")]
        "csrrd $t1, {euen}
        andi $t1, $t1, {fpe}
        bnez $t1, 3f
        .cfi_remember_state
        2:",
        "st.d $t0, $sp, {pc}",
        ".cfi_rel_offset 1, {pc}",
        "st.d $sp, $a0, 0",
        // From here on the other stack.
        "move $sp, $a1",
        "ld.d $t0, $sp, {pc}",
        #[cfg(target_feature = "d")]
        "andi $t1, $t0, 1
        bnez $t1, 4f
        .cfi_remember_state
        5:",
        "ld.d $fp, $sp, {fp}",
        "ld.d $s8, $sp, {s8}",
        "addi.d $sp, $sp, {size}",
        ".cfi_def_cfa_offset 0",
        ".cfi_same_value 22",
        ".cfi_same_value 31",
        ".cfi_register 1, 12",
        // Not by ra: such a jump would be predicted to go where a function was called from.
        "jr $t0",
        // The f registers are wanted.
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

/// fp: `main`; s8: its argument; sp: the stack's top. There is no caller and no frame pointer: an unwinder, a
/// debugger and a walk along the frame pointers end here.
///
/// It begins with a `nop` that isn't run: an unwinder looks for what is before the place where a frame goes on.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined 1",
        "nop",
        "move $a0, $s8",
        "move $t0, $fp",
        "move $fp, $zero",
        "jirl $ra, $t0, 0",
        "break 0",
        ".cfi_endproc",
    )
}

/// The size of the `nop` at the beginning of [`start`].
const START: usize = 4;

/// How many bytes of stack a task that leaves by itself takes, from where it must not be preempted any more.
pub(crate) const LEAVE: usize = 1024;

/// Reads the stack `DEPTH` bytes below. If nothing is mapped there, the fault comes here, in the code of the task,
/// which can be ended alone. Without this it would come in the runtime's own code, or in a handler.
#[inline(always)]
pub(crate) fn touch_stack<const DEPTH: usize>() {
    // SAFETY: reads what lies below the stack pointer, if anything does.
    unsafe { asm!("ld.b {}, $sp, -{}", out(reg) _, const DEPTH, options(nostack, readonly)) };
}

/// Whether the running code has given itself a right that no other code is to have: there is none.
#[inline(always)]
pub(crate) fn has_rights() -> bool {
    false
}

/// Gives up nothing.
#[cold]
pub(crate) fn drop_rights() -> usize {
    0
}

/// Gives nothing back.
///
/// # Safety
///
/// None here: see the other architectures.
#[cold]
pub(crate) unsafe fn restore_rights(_: usize) {}

/// What a trap interrupted: pushed by the entry on the interrupted kernel stack, or a user program's, which
/// [`run`](TrapContext::run) takes to user mode and back.
///
/// All that the next trap will overwrite is in here, read once, by the entry: handlers look here and
/// not at the CSRs. What is here when a handler returns is restored.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct TrapContext {
    /// The integer registers $r0 to $r31. `r[0]` is not written. `r[21]` is neither written nor
    /// restored by traps in kernel mode: it belongs to the core and not to what runs there.
    pub r: [usize; 32],
    /// The interrupted instruction's address; after a system call or a breakpoint, the next one's.
    pub era: usize,
    /// The mode at the trap: PPLV and PIE are the interrupted code's. Of a user program only PIE counts:
    /// whether it can be interrupted.
    pub prmd: usize,
    /// Why: the exception, or if that is 0, the interrupts that were pending.
    pub estat: usize,
    /// Which interrupts were enabled.
    pub ecfg: usize,
    /// The faulting address.
    pub badv: usize,
    /// The faulting instruction.
    pub badi: usize,
    /// Whether `fcsr`, `fcc` and `f` hold something: 1 if so, else 0.
    pub fp: usize,
    /// Rounding mode, enables and flags of floating point, if `fp` is 1.
    pub fcsr: usize,
    /// The condition flags fcc0 to fcc7, if `fp` is 1.
    pub fcc: [u8; 8],
    /// f0 to f31, if `fp` is 1.
    pub f: [u64; 32],
}

/// What the callers of [`enter`] want preserved while a user program runs.
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

// Immediate offsets of loads and stores reach up to 2047; the stack stays aligned to 16.
const _: () =
    assert!(size_of::<TrapContext>() < 2048 && size_of::<TrapContext>().is_multiple_of(16));
const _: () = assert!(size_of::<Frame>() < 2048 && size_of::<Frame>().is_multiple_of(16));
const _: () = assert!(size_of::<UserFrame>() < 2048 && size_of::<UserFrame>().is_multiple_of(16));

/// A core's own place for its trap entry. The kernel keeps one for each core.
///
/// Only the entry, on its core, with interrupts masked, touches what is in it.
#[repr(C)]
#[derive(Debug)]
pub struct TrapCore {
    /// The emergency stack.
    emergency_base: AtomicUsize,
    emergency_top: AtomicUsize,
    /// While user mode runs: the stack of the caller of `enter`, its $r21, and the context that runs.
    kernel_sp: AtomicUsize,
    kernel_r21: AtomicUsize,
    context: AtomicUsize,
}

impl TrapCore {
    /// For a core that has not installed the entry yet.
    pub const fn new() -> Self {
        Self {
            emergency_base: AtomicUsize::new(0),
            emergency_top: AtomicUsize::new(0),
            kernel_sp: AtomicUsize::new(0),
            kernel_r21: AtomicUsize::new(0),
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
            asm!(
                "csrrd {}, {}",
                out(reg) core,
                const csr::SAVE_CORE,
                options(nomem, nostack, preserves_flags),
            )
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
/// - This core is at privilege level 0, and `ECFG.VS` is 0: all traps have one entry. From now on `EENTRY` and
///   the CSRs SAVE0 to SAVE4 are the entry's.
/// - The refill of the TLB is the kernel's, and at all times lets the kernel reach its code, its stacks
///   and `core`.
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
    // SAFETY: the caller promises what the entry builds upon. Where it begins is told there.
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

/// ESTAT: the exceptions.
mod exception {
    pub(super) const INTERRUPT: usize = 0x0;
    pub(super) const LOAD_PAGE: usize = 0x1;
    pub(super) const STORE_PAGE: usize = 0x2;
    pub(super) const FETCH_PAGE: usize = 0x3;
    /// A store to a page that isn't dirty: one that must not be written.
    pub(super) const PAGE_MODIFICATION: usize = 0x4;
    pub(super) const PAGE_NOT_READABLE: usize = 0x5;
    pub(super) const PAGE_NOT_EXECUTABLE: usize = 0x6;
    /// Any access to a page that is the kernel's.
    pub(super) const PAGE_PRIVILEGE: usize = 0x7;
    /// An address that is none. With the subcode 0, of an instruction.
    pub(super) const ADDRESS: usize = 0x8;
    pub(super) const SYSTEM_CALL: usize = 0xb;
    pub(super) const BREAKPOINT: usize = 0xc;
    pub(super) const UNDEFINED_INSTRUCTION: usize = 0xd;
    pub(super) const PRIVILEGED_INSTRUCTION: usize = 0xe;
    pub(super) const FP_DISABLED: usize = 0xf;
}
/// The exceptions' place in ESTAT, and that of the subcode.
const EXCEPTION_SHIFT: usize = 16;
const EXCEPTION_MASK: usize = 0x3f;
const SUBCODE_SHIFT: usize = 22;
const SUBCODE_MASK: usize = 0x1ff;
/// The interrupts in ESTAT and ECFG, and the timer's line among them.
const LINES: usize = 0x1fff;
const TIMER: u32 = 11;

impl TrapContext {
    /// A user program that begins at `entry` with the stack pointer `stack`: all other registers are
    /// 0, interrupts are enabled, and floating point is unused.
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

    /// Whether the program can be interrupted. One that cannot keeps the core for as long as it likes.
    #[must_use]
    pub const fn with_interrupts(mut self, enabled: bool) -> Self {
        self.prmd = if enabled { self.prmd | PIE } else { self.prmd & !PIE };
        self
    }

    #[inline]
    fn exception(&self) -> usize {
        self.estat >> EXCEPTION_SHIFT & EXCEPTION_MASK
    }

    /// Whether it was an interrupt that was withdrawn before the entry has read which one. Handlers see
    /// none: it is nothing, and what it interrupted goes on.
    #[inline]
    fn is_withdrawn(&self) -> bool {
        let exceptions = EXCEPTION_MASK << EXCEPTION_SHIFT;
        self.estat & (self.ecfg & LINES | exceptions) == 0
    }

    /// What the trap was.
    #[inline]
    pub fn trap(&self) -> Trap {
        if self.exception() != exception::INTERRUPT {
            return self.fault();
        }
        // Of several, the one that the architecture puts first.
        match (self.estat & self.ecfg & LINES).checked_ilog2() {
            Some(TIMER) => Trap::Timer,
            Some(line) => Trap::Interrupt(line as usize),
            None => Trap::Other(self.estat),
        }
    }

    /// What the exception was.
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
            // Without what happens to be pending.
            _ => Trap::Other(self.estat & !LINES),
        }
    }

    /// Whether user mode was interrupted, and not the kernel.
    pub fn is_user(&self) -> bool {
        self.prmd & PPLV != 0
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
        self.era
    }

    /// Sets where to go on.
    pub fn set_pc(&mut self, pc: usize) {
        self.era = pc;
    }

    /// The stack pointer.
    pub fn sp(&self) -> usize {
        self.r[3]
    }

    /// Sets the stack pointer.
    pub fn set_sp(&mut self, sp: usize) {
        self.r[3] = sp;
    }

    /// What is asked for, after a [`Trap::Syscall`].
    pub fn syscall(&self) -> Syscall {
        Syscall { number: self.r[11], arguments: core::array::from_fn(|n| self.r[4 + n]) }
    }

    /// Sets what a system call returns: a0.
    pub fn set_result(&mut self, result: usize) {
        self.r[4] = result;
    }

    /// Sets what the program finds its thread-local data by: $tp.
    pub fn set_thread_pointer(&mut self, pointer: usize) {
        self.r[2] = pointer;
    }

    /// Runs the program until its next trap.
    ///
    /// # Safety
    ///
    /// As [`run`](TrapContext::run), with interrupts masked. They still are when it returns.
    pub(crate) unsafe fn enter_user(&mut self) {
        // SAFETY: the caller promises that the entry is installed.
        let core = unsafe { TrapCore::here() };
        self.prmd = USER | self.prmd & PIE;
        if self.fp != 0 {
            self.fp = has_fp().into();
            // An exception that is both enabled and said to have happened may happen by being loaded.
            self.fcsr &= FCSR_KEPT;
        }
        loop {
            // SAFETY: interrupts are masked, PRMD is that of user mode, `core` is this core's, and `fp` is
            // 1 only if there are f registers.
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

    /// Gives it f registers that are zero.
    fn begin_fp(&mut self) {
        (self.fp, self.fcsr, self.fcc, self.f) = (1, 0, [0; 8], [0; 32]);
    }

    /// Goes on behind a system call or a breakpoint. All instructions have four bytes.
    fn step_over(&mut self) {
        if matches!(self.exception(), exception::SYSTEM_CALL | exception::BREAKPOINT) {
            self.era += 4;
        }
    }
}

/// Whether `instruction`, which accesses memory, stores there.
fn is_store(instruction: usize) -> bool {
    // By their opcodes, whose lengths differ: sc and stptr; st and fst; stx and fstx, am*, fstgt and
    // the like, stgt and the like.
    matches!(instruction >> 24 & 0xff, 0x21 | 0x23 | 0x25 | 0x27)
        || matches!(instruction >> 22 & 0x3ff, 0xa4..=0xa7 | 0xad | 0xaf)
        || matches!(
            instruction >> 15 & 0x1_ffff,
            0x7020..=0x703f | 0x7070..=0x707f | 0x70b0..=0x70e3 | 0x70ec..=0x70ef | 0x70f8..=0x70ff
        )
}

/// Whether the machine has floating point.
fn has_fp() -> bool {
    let features: usize;
    // SAFETY: reads what the processor can do.
    unsafe {
        asm!("cpucfg {}, {}", out(reg) features, in(reg) 2, options(pure, nomem, nostack));
    }
    features & 1 != 0
}

/// A trap in kernel mode. On the interrupted stack, or on the emergency stack.
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
    trap::dispatch(context);
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
        "addi.d $sp, $sp, -{frame}",
        "st.d $ra, $sp, {frame_ra}",
        "st.d $tp, $sp, {frame_tp}",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, {frame_s} + 8*(\n - 22)",
        r".endr",
        #[cfg(target_feature = "d")]
        "csrrd $t0, {euen}
        andi $t0, $t0, {fpe}
        st.d $t0, $sp, {frame_fp}
        beqz $t0, 2f
        .irp n, 0,1,2,3,4,5,6,7
          fst.d $fs\\n, $sp, {frame_fs} + 8*\\n
        .endr
        2:",
        "st.d $sp, $a1, {kernel_sp}",
        "st.d $r21, $a1, {kernel_r21}",
        "st.d $a0, $a1, {context}",
        // a0: the context. The rest is free.
        "ld.d $t0, $a0, {fp}",
        "move $t1, $t0",
        "csrwr $t1, {euen}",
        "beqz $t0, 3f",
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
        "ld.d $t0, $a0, {era}",
        "csrwr $t0, {csr_era}",
        "ld.d $t0, $a0, {prmd}",
        "csrwr $t0, {csr_prmd}",
        r".irp n, 1,2,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,4",
        r"  ld.d $r\n, $a0, {r} + 8*\n",
        r".endr",
        // Ends also a reservation of somebody else's.
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

/// EENTRY has no lower bits: the entry begins at the first multiple of this from [`trap_entry`] on.
const ENTRY_ALIGN: usize = 4096;

/// On entry, all registers are the interrupted code's, IE is 0, SAVE1 the core's `TrapCore`, and the
/// CSRs tell the rest.
#[unsafe(naked)]
unsafe extern "C" fn trap_entry() {
    naked_asm!(
        ".balign {entry_align}",
        "csrwr $t0, {save_t0}",
        "csrrd $t0, {csr_prmd}",
        "andi $t0, $t0, {pplv} | {pie}",
        "addi.d $t0, $t0, -{pie}",
        // An entry's own pushes run with interrupts masked. So this is none of them, nor user mode, if
        // kernel code was interrupted that had them enabled.
        "bnez $t0, 40f",
        "csrrd $t0, {csr_era}",
        // t0: ERA; its bit 0: interrupts were masked. SAVE_T0: t0. All else is the interrupted code's.
        "2:",
        "csrwr $t0, {save_era}",
        "csrrd $t0, {save_t0}",
        // If one of the following loads and stores faults, it is found at 40, with t0 as it was here.
        "3:",
        ".cfi_startproc",
        ".cfi_signal_frame",
        // ra is the interrupted code's, so where that goes on is called register 64.
        ".cfi_return_column 64",
        "addi.d $sp, $sp, -{size}",
        ".cfi_def_cfa_offset {size}",
        "st.d $ra, $sp, {r} + 8*1",
        ".cfi_rel_offset 1, {r} + 8*1",
        // Is the stack there as deep as the handler may go? If not, that is found before anything is
        // acknowledged or locked.
        "ld.b $ra, $sp, -{handler}",
        r".irp n, 2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, {r} + 8*\n",
        r"  .cfi_rel_offset \n, {r} + 8*\n",
        r".endr",
        // All but sp may be used now.
        "4:",
        "addi.d $t0, $sp, {size}",
        "st.d $t0, $sp, {r} + 8*3",
        ".cfi_rel_offset 3, {r} + 8*3",
        "csrrd $t0, {csr_era}",
        "st.d $t0, $sp, {era}",
        ".cfi_rel_offset 64, {era}",
        "csrrd $t0, {csr_prmd}",
        "st.d $t0, $sp, {prmd}",
        "5:",
        "csrrd $t0, {csr_estat}",
        "st.d $t0, $sp, {estat}",
        "csrrd $t0, {csr_ecfg}",
        "st.d $t0, $sp, {ecfg}",
        "csrrd $t0, {csr_badv}",
        "st.d $t0, $sp, {badv}",
        "csrrd $t0, {csr_badi}",
        "st.d $t0, $sp, {badi}",
        #[cfg(not(target_feature = "d"))]
        "st.d $zero, $sp, {fp}",
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
        "move $a0, $sp",
        // The walk along the frame pointers goes on in the interrupted code by $r22; ra is where
        // it would return to, as nobody called this.
        "bl {on_trap}",
        // sp: the context, as callees preserve it. Interrupts are masked, and from here on only the
        // TLB's refill comes between, which leaves ERA and PRMD alone.
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
        "ld.d $t0, $sp, {era}",
        "csrwr $t0, {csr_era}",
        "ld.d $t0, $sp, {prmd}",
        "csrwr $t0, {csr_prmd}",
        // Every register but $r21, and sp last.
        r".irp n, 1,2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $r\n, $sp, {r} + 8*\n",
        r".endr",
        ".cfi_endproc",
        "ld.d $sp, $sp, {r} + 8*3",
        // Ends also a reservation made by somebody who ran in between: an `sc` of the interrupted code must
        // not succeed by it.
        "ertn",
        // User mode, or kernel code that had interrupts masked. SAVE_T0: t0.
        "40:",
        "csrrd $t0, {csr_prmd}",
        "andi $t0, $t0, {pplv}",
        "bnez $t0, 50f",
        "csrwr $t1, {save_t1}",
        "csrrd $t0, {csr_era}",
        "la.pcrel $t1, 3b",
        "bltu $t0, $t1, 41f",
        "la.pcrel $t1, 4b",
        "bltu $t0, $t1, 42f",
        "41:",
        "csrrd $t1, {save_t1}",
        "ori $t0, $t0, 1",
        "b 2b",
        // A load or store for another trap's context: below the interrupted sp, there is too little stack.
        // SAVE_ERA tells about that trap, SAVE_T0 and SAVE_T1 are still the registers at it.
        "42:",
        "addi.d $sp, $sp, {size}",
        "csrrd $t0, {save_core}",
        "ld.d $t1, $t0, {core_emergency_base}",
        "bgeu $t1, $sp, 43f",
        "ld.d $t1, $t0, {core_emergency_top}",
        "bgeu $t1, $sp, 44f",
        "43:",
        "csrwr $sp, {save_sp}",
        "ld.d $sp, $t0, {core_emergency_top}",
        "csrrd $t0, {save_t0}",
        "csrrd $t1, {save_t1}",
        "addi.d $sp, $sp, -{size}",
        r".irp n, 1,2,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, {r} + 8*\n",
        r".endr",
        "csrrd $t0, {save_sp}",
        "st.d $t0, $sp, {r} + 8*3",
        "csrrd $t0, {save_era}",
        // t1: PIE, if interrupts were enabled.
        "andi $t1, $t0, 1",
        "xori $t1, $t1, 1",
        "slli.d $t1, $t1, {pie_shift}",
        "st.d $t1, $sp, {prmd}",
        "bstrins.d $t0, $zero, 0, 0",
        "st.d $t0, $sp, {era}",
        "b 5b",
        // The emergency stack itself.
        "44:",
        "ld.d $sp, $t0, {core_emergency_top}",
        "bl {no_stack_left}",
        // User mode. SAVE_T0: t0.
        "50:",
        "csrrd $t0, {save_core}",
        "ld.d $t0, $t0, {core_context}",
        r".irp n, 1,2,3,4,5,6,7,8,9,10,11,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $t0, {r} + 8*\n",
        r".endr",
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
        // No other program is to see them, not even speculatively.
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          movgr2fr.d $f\\n, $zero
        .endr",
        "csrwr $zero, {csr_euen}",
        // Nothing is the program's any more.
        "51:",
        "csrrd $t0, {save_core}",
        "ld.d $sp, $t0, {core_kernel_sp}",
        "ld.d $r21, $t0, {core_kernel_r21}",
        #[cfg(target_feature = "d")]
        "ld.d $t0, $sp, {frame_fp}
        move $t1, $t0
        csrwr $t1, {csr_euen}
        beqz $t0, 52f
        .irp n, 0,1,2,3,4,5,6,7
          fld.d $fs\\n, $sp, {frame_fs} + 8*\\n
        .endr
        52:",
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
