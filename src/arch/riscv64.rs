//! RISC-V, 64 bits, ABI lp64 and lp64d: the switch, and for kernels that want one, a trap entry.
//!
//! Stacks grow downwards; `sp` is always aligned to 16; nothing below `sp` is in use.
//!
//! # A stack that is off the core
//!
//! ```text
//!   higher addresses
//!   |        ...             |
//!   |  the caller's frame    |
//!   +------------------------+
//!   |  fs0 ... fs11          |   written only if `fp` is 1
//!   |  fp: are they?         |
//!   |  s0 ... s11            |
//!   |  ra: where to go on    |
//!   +------------------------+ <- Context (= sp), a `Frame`
//! ```
//!
//! # A stack that was prepared and not yet entered
//!
//! ```text
//!   +------------------------+ <- top, aligned to 16
//!   |  fp: 0                 |
//!   |  s0: 0                 |   no frame pointer below `main`'s
//!   |  s1: `main`            |
//!   |  s2: its argument      |
//!   |  ra: `start`           |
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
//! # Which registers
//!
//! `switch` saves what the ABI has a callee preserve: ra, s0 to s11, sp, and under lp64d fs0 to
//! fs11. It touches neither `tp` (the core's), nor `gp` (the program's), nor `sstatus.SIE`. `fcsr`
//! isn't switched: Rust code may assume the rounding mode that it was started with, and flags are
//! not preserved by calls. A trap falls between any two instructions, so `TrapContext` holds
//! `fcsr` too. Vector registers are not known here: a kernel is not compiled to use them.
//!
//! # Floating point, by `sstatus.FS`
//!
//! FS says of this core's f registers whether somebody has written to them. A kernel that is
//! compiled for soft float keeps it Off, and then all of this costs the reading of it. To keep
//! the f registers of those that use them, and to charge nobody else, one invariant suffices:
//!
//! > If FS isn't Dirty, the f registers hold nothing that the running code wants.
//!
//! - It holds when code starts: what nobody wrote, nobody wants.
//! - Code that writes an f register makes FS Dirty, by hardware.
//! - `switch` away: if FS is Dirty, fs0 to fs11 go into the frame and `fp` is 1. If not, nothing
//!   there is wanted, and `fp` is 0.
//! - `switch` to a frame whose `fp` is 1: FS becomes Dirty and the registers are loaded, so that
//!   the next switch saves them again. To one whose `fp` is 0: that code wants nothing, and a Dirty
//!   of the code that was left (which has its registers in its frame) becomes Clean, or it would be
//!   charged to whoever runs now.
//! - A trap: if FS is Dirty, all f registers go into the trap context before any Rust code runs.
//!   Nothing of them is then wanted by the handler: FS becomes Clean, and a switch in the handler
//!   saves them a second time only if the handler has computed in them. The return from the trap
//!   loads them and the interrupted code's FS. If FS wasn't Dirty, the interrupted code wants
//!   nothing, and the handler may leave in them what it likes.
//!
//! An instruction that only raises a flag of `fcsr` makes FS Dirty as well (some emulators forget
//! that: a flag that is raised there in code that writes no f register can get lost).

use core::arch::naked_asm;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
// Not loom's: traps aren't modelled.
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::stackful::{Context, StackMain, StackfulBackend};

/// What lies at a [`Context`].
#[repr(C, align(16))]
struct Frame {
    ra: usize,
    s: [usize; 12],
    /// Whether `fs` was written: 0 or 1.
    fp: usize,
    fs: [u64; 12],
}

/// Where `sstatus` keeps FS.
const FS_SHIFT: usize = 13;
/// FS: two bits.
const FS_MASK: usize = 0b11;
/// FS: an f register or `fcsr` has been written. (0 is Off, 1 Initial, 2 Clean.)
const FS_DIRTY: usize = 0b11;
/// The bit that makes Dirty of Clean.
const FS_NOT_CLEAN: usize = 0b01;

/// The switch of RISC-V with 64 bits.
#[derive(Debug)]
pub struct Riscv64;

impl Riscv64 {
    /// A handler's frames down to the switch, in a build without optimization.
    const HANDLER: usize = 2048;
    /// What the task itself has on its stack at least: the frames of the runtime's poll loop.
    const POLL: usize = 1024;
}

// SAFETY: `prepare` writes one `Frame` below `top`, less than LEAST_STACK. `switch` saves and loads
// every register that the ABI has a callee preserve, the f registers where the head of this file
// says that they are wanted; it touches the two stacks and `*save` only, neither tp nor gp nor SIE,
// and as a call of a function that the compiler cannot see into it is a barrier.
unsafe impl StackfulBackend for Riscv64 {
    const LEAST_STACK: usize =
        size_of::<Frame>() + size_of::<TrapContext>() + Self::HANDLER + Self::POLL;

    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context {
        // s0 = 0 ends a walk along the frame pointers.
        let mut s = [0; 12];
        s[1] = main as usize;
        s[2] = argument.expose_provenance();
        let frame = Frame { ra: start as *const () as usize, s, fp: 0, fs: [0; 12] };
        // SAFETY: the caller gives LEAST_STACK writable bytes below `top`, aligned to 16.
        unsafe {
            let context = top.byte_sub(size_of::<Frame>());
            context.cast::<Frame>().write(frame);
            Context(context.as_ptr())
        }
    }

    #[inline]
    unsafe fn switch(save: *mut Context, to: Context) {
        // SAFETY: the caller's promise is the same.
        unsafe { switch(save, to) }
    }
}

/// a0: where to store the context that is left; a1: the context to go on in.
#[unsafe(naked)]
unsafe extern "C" fn switch(save: *mut Context, to: Context) {
    naked_asm!(
        ".option push",
        // What the assembler may use; whether there is an FPU is decided by FS, when it runs.
        ".option arch, +d",
        "addi sp, sp, -{size}",
        "sd ra, {ra}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  sd s\n, {s} + 8*\n(sp)",
        r".endr",
        "csrr t0, sstatus",
        "srli t0, t0, {fs_shift}",
        "andi t0, t0, {fs_mask}",
        "addi t0, t0, -{fs_dirty}",
        "seqz t0, t0",
        // t0: 1 if FS is Dirty.
        "sd t0, {fp}(sp)",
        "beqz t0, 2f",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fsd fs\n, {fs} + 8*\n(sp)",
        r".endr",
        "2:",
        "sd sp, (a0)",
        // From here on the other stack. t0: as before.
        "mv sp, a1",
        "ld t1, {fp}(sp)",
        "beqz t1, 3f",
        "li t2, {fs_mask} << {fs_shift}",
        "csrs sstatus, t2",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  fld fs\n, {fs} + 8*\n(sp)",
        r".endr",
        "j 4f",
        // This side wants no f register. Dirty, and only Dirty, becomes Clean.
        "3:",
        "beqz t0, 4f",
        "li t2, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t2",
        "4:",
        // Not ra: a jump by ra or t0 would be predicted to go where this stack's `switch` was
        // called from, which is wrong each time.
        "ld t1, {ra}(sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  ld s\n, {s} + 8*\n(sp)",
        r".endr",
        "addi sp, sp, {size}",
        "jr t1",
        ".option pop",
        ra = const offset_of!(Frame, ra),
        s = const offset_of!(Frame, s),
        fp = const offset_of!(Frame, fp),
        fs = const offset_of!(Frame, fs),
        size = const size_of::<Frame>(),
        fs_shift = const FS_SHIFT,
        fs_mask = const FS_MASK,
        fs_dirty = const FS_DIRTY,
        fs_not_clean = const FS_NOT_CLEAN,
    )
}

/// s1: `main`; s2: its argument; s0: 0; sp: the stack's top.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    // ra = 0: there is no caller, an unwinder and a debugger end here.
    naked_asm!("mv a0, s2", "li ra, 0", "jr s1")
}

/// What a trap interrupted, as [`install_trap_entry`]'s entry saves it on the interrupted stack.
///
/// All that the next trap will overwrite is in here, read once, by the entry: the handler looks
/// here and not at the CSRs. When it returns, this is what is restored, so a handler may change it,
/// `sepc` for instance to step over an instruction.
#[repr(C, align(16))]
#[derive(Clone, Debug)]
pub struct TrapContext {
    /// The integer registers x0 to x31. `x[0]` is not written. `x[4]`, tp, isn't restored on the
    /// return to kernel mode: it belongs to the core and not to what runs there.
    pub x: [usize; 32],
    /// The interrupted instruction's address.
    pub sepc: usize,
    /// The status at the trap: SPP, SPIE and FS are the interrupted code's.
    pub sstatus: usize,
    /// Why: the highest bit says that it was an interrupt.
    pub scause: usize,
    /// The faulting address, or what else the cause comes with.
    pub stval: usize,
    /// Whether `f` and `fcsr` were saved and will be restored: 1 if FS was Dirty, else 0.
    pub fp: usize,
    /// Rounding mode and flags of floating point, if `fp` is 1.
    pub fcsr: usize,
    /// f0 to f31, if `fp` is 1.
    pub f: [u64; 32],
}

// Immediate offsets of loads and stores reach up to 2047; the stack stays aligned to 16.
const _: () =
    assert!(size_of::<TrapContext>() < 2048 && size_of::<TrapContext>().is_multiple_of(16));
const _: () = assert!(size_of::<Frame>() < 2048 && size_of::<Frame>().is_multiple_of(16));

/// What handles a trap.
///
/// It runs on the interrupted stack with interrupts masked, and returns so. A handler of an
/// interrupt acknowledges it first, and may end with a call of
/// [`preempt::on_timer`](crate::preempt::on_timer) or
/// [`preempt::on_interrupt`](crate::preempt::on_interrupt), which may leave the core there and
/// return much later.
pub type TrapHandler = fn(&mut TrapContext);

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Makes this core's traps end in `handler`, for kernels that have no trap vector of their own.
///
/// The handler is one for all cores, the one that was given last; `stvec` is set on the core that
/// calls.
///
/// # Safety
///
/// - This core is in S-mode, and takes traps from S-mode only: the entry stores on the interrupted
///   stack, so a trap from user mode would store to an address of the user's.
/// - Every stack on which a trap can be taken has room for a [`TrapContext`] and the handler's
///   frames; `sp` is aligned to 16 wherever a trap can be taken.
/// - `handler` returns with interrupts masked, and only to go on where `TrapContext` says.
pub unsafe fn install_trap_entry(handler: TrapHandler) {
    // Release: what the caller prepared for its handler is there before the handler.
    HANDLER.store(handler as *mut (), Ordering::Release);
    // SAFETY: the caller promises what the entry builds upon. The entry is aligned to 4, so that
    // the two low bits of its address are the mode "direct".
    unsafe { core::arch::asm!("csrw stvec, {}", in(reg) trap_entry as *const (), options(nostack)) }
}

/// From the entry's calling convention to Rust's.
extern "C" fn dispatch(context: &mut TrapContext) {
    let handler = HANDLER.load(Ordering::Acquire);
    // SAFETY: `stvec` leads here only after `install_trap_entry` has stored a `TrapHandler`, and
    // nobody else writes HANDLER.
    let handler = unsafe { core::mem::transmute::<*mut (), TrapHandler>(handler) };
    handler(context);
}

/// On entry, all registers are the interrupted code's, SIE is 0, and the CSRs tell the rest.
#[unsafe(naked)]
unsafe extern "C" fn trap_entry() {
    naked_asm!(
        ".balign 4",
        ".option push",
        // What the assembler may use; whether there is an FPU is decided by FS, when it runs.
        ".option arch, +a, +d",
        "addi sp, sp, -{size}",
        r".irp n, 1,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  sd x\n, {x} + 8*\n(sp)",
        r".endr",
        // All but sp may be used now.
        "addi t0, sp, {size}",
        "sd t0, {x} + 8*2(sp)",
        "csrr t0, sepc",
        "sd t0, {sepc}(sp)",
        "csrr t1, sstatus",
        "sd t1, {sstatus}(sp)",
        "csrr t0, scause",
        "sd t0, {scause}(sp)",
        "csrr t0, stval",
        "sd t0, {stval}(sp)",
        // t1: sstatus.
        "srli t1, t1, {fs_shift}",
        "andi t1, t1, {fs_mask}",
        "addi t1, t1, -{fs_dirty}",
        "seqz t1, t1",
        // t1: 1 if FS is Dirty.
        "sd t1, {fp}(sp)",
        "beqz t1, 2f",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fsd f\n, {f} + 8*\n(sp)",
        r".endr",
        "frcsr t0",
        "sd t0, {fcsr}(sp)",
        "li t0, {fs_not_clean} << {fs_shift}",
        "csrc sstatus, t0",
        "2:",
        "mv a0, sp",
        // The walk along the frame pointers goes on in the interrupted code by s0; ra is where
        // it would return to, as nobody called this.
        "call {dispatch}",
        // sp: the context, as callees preserve it. The interrupted code's status first: its SIE
        // is 0 since the trap cleared it before we read it, so from here on no trap can overwrite
        // sepc; and its FS is Dirty if f registers are to be loaded.
        "ld t0, {sstatus}(sp)",
        "csrw sstatus, t0",
        "ld t1, {fp}(sp)",
        "beqz t1, 3f",
        "ld t0, {fcsr}(sp)",
        "fscsr t0",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fld f\n, {f} + 8*\n(sp)",
        r".endr",
        "3:",
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
        "ld sp, {x} + 8*2(sp)",
        "sret",
        ".option pop",
        dispatch = sym dispatch,
        x = const offset_of!(TrapContext, x),
        sepc = const offset_of!(TrapContext, sepc),
        sstatus = const offset_of!(TrapContext, sstatus),
        scause = const offset_of!(TrapContext, scause),
        stval = const offset_of!(TrapContext, stval),
        fp = const offset_of!(TrapContext, fp),
        fcsr = const offset_of!(TrapContext, fcsr),
        f = const offset_of!(TrapContext, f),
        size = const size_of::<TrapContext>(),
        fs_shift = const FS_SHIFT,
        fs_mask = const FS_MASK,
        fs_dirty = const FS_DIRTY,
        fs_not_clean = const FS_NOT_CLEAN,
    )
}
