//! QEMU's riscv64 `virt`, in S-mode: a vector in vectored mode, the firmware's timer, and `tp` as
//! per-core register.
//!
//! The vector saves the registers that a call does not preserve, and no more. The compiler saves
//! the others in the functions that use them, and `switch` saves them where the core leaves the
//! stack: both on the same stack.

use core::arch::{asm, global_asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ptr::with_exposed_provenance_mut;

use crate::kernel::{CPU, Cpu, main, on_fault, on_timer_interrupt};

/// The registers that the vector saves.
#[repr(C, align(16))]
struct Frame {
    ra: usize,
    t: [usize; 7],
    a: [usize; 8],
    /// A later trap overwrites sepc and sstatus.
    sepc: usize,
    sstatus: usize,
    fcsr: usize,
    ft: [u64; 12],
    fa: [u64; 8],
}

/// `sstatus`: interrupts are enabled; floating point is on, with registers that have not been
/// written yet.
const SIE: usize = 1 << 1;
const FS_INITIAL: usize = 1 << 13;
/// `sstatus`: users' pages may be accessed, and pages that are only executable may be read.
const SUM_MXR: usize = 0b11 << 18;
/// `sie` and `sip`: the timer.
const STI: usize = 1 << 5;
/// `stvec`: each interrupt has an entry of its own in the table.
const VECTORED: usize = 1;
/// The value that the kernel keeps in `sscratch`, which this vector does not need.
const SCRATCH: usize = 0x7363_7261_7463_6821;
/// How many nanoseconds a tick of `virt`'s clock takes.
const TICK: u64 = 100;

/// The entry.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "csrw sie, zero",
        "li t0, {fs}",
        "csrs sstatus, t0",
        ".option push",
        ".option norelax",
        "la gp, __global_pointer$",
        ".option pop",
        "la t0, __bss_start",
        "la t1, __bss_end",
        "2:",
        "bgeu t0, t1, 3f",
        "sd zero, (t0)",
        "addi t0, t0, 8",
        "j 2b",
        "3:",
        "la sp, __boot_stack_top",
        "la tp, {cpu}",
        "call {main}",
        fs = const FS_INITIAL,
        cpu = sym CPU,
        main = sym main,
    )
}

// On entry all registers are the interrupted code's, and SIE is 0.
global_asm!(
    ".pushsection .text.own_vector, \"ax\"",
    ".option push",
    ".option arch, +a, +d",
    // Each entry has four bytes.
    ".option norvc",
    ".balign 256",
    ".globl own_vector",
    "own_vector:",
    // Entry 0: an exception. 1 to 4: interrupts that are not enabled. 5: the timer.
    ".rept 5",
    "  j 2f",
    ".endr",
    "j 3f",
    // An exception: reports it and does not return.
    "2:",
    "csrr a0, scause",
    "csrr a1, sepc",
    "csrr a2, stval",
    "la sp, __boot_stack_top",
    "call {on_fault}",
    "3:",
    "addi sp, sp, -{size}",
    "sd ra, {ra}(sp)",
    ".irp n, 0,1,2,3,4,5,6",
    "  sd t\\n, {t} + 8*\\n(sp)",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  sd a\\n, {a} + 8*\\n(sp)",
    "  fsd fa\\n, {fa} + 8*\\n(sp)",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
    "  fsd ft\\n, {ft} + 8*\\n(sp)",
    ".endr",
    "csrr t0, sepc",
    "sd t0, {sepc}(sp)",
    // The interrupted code's own settings do not reach other code, and are restored with it: the
    // right to access users' pages, and the rounding mode. Rust code expects 0 in both.
    "li t0, {sum_mxr}",
    "csrrc t0, sstatus, t0",
    "sd t0, {sstatus}(sp)",
    "fscsr t0, zero",
    "sd t0, {fcsr}(sp)",
    "call {on_timer}",
    // Other tasks may have run, but this is the stack from before, and the handler's callees have
    // preserved all other registers.
    "ld t0, {fcsr}(sp)",
    "fscsr t0",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
    "  fld ft\\n, {ft} + 8*\\n(sp)",
    ".endr",
    // The f registers come before `sstatus`, which also says whether the interrupted code has
    // written any.
    "ld t0, {sstatus}(sp)",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  fld fa\\n, {fa} + 8*\\n(sp)",
    "  ld a\\n, {a} + 8*\\n(sp)",
    ".endr",
    "csrw sstatus, t0",
    "ld t0, {sepc}(sp)",
    "csrw sepc, t0",
    // Ends a reservation (`lr`) that another task has made.
    "addi t1, sp, {sepc}",
    "sc.d zero, t0, (t1)",
    ".irp n, 0,1,2,3,4,5,6",
    "  ld t\\n, {t} + 8*\\n(sp)",
    ".endr",
    "ld ra, {ra}(sp)",
    "addi sp, sp, {size}",
    "sret",
    ".option pop",
    ".popsection",
    on_fault = sym on_fault,
    on_timer = sym on_timer,
    sum_mxr = const SUM_MXR,
    size = const size_of::<Frame>(),
    ra = const offset_of!(Frame, ra),
    t = const offset_of!(Frame, t),
    a = const offset_of!(Frame, a),
    sepc = const offset_of!(Frame, sepc),
    sstatus = const offset_of!(Frame, sstatus),
    fcsr = const offset_of!(Frame, fcsr),
    ft = const offset_of!(Frame, ft),
    fa = const offset_of!(Frame, fa),
);

unsafe extern "C" {
    /// The vector table above, which is code.
    static own_vector: [u8; 0];
}

extern "C" fn on_timer() {
    // SAFETY: disabling the timer's interrupt acknowledges it; `set_timer` enables it again.
    unsafe { asm!("csrc sie, {}", in(reg) STI, options(nostack)) };
    on_timer_interrupt();
}

/// Installs the vector.
pub fn init() {
    let vector = (&raw const own_vector).addr() | VECTORED;
    // SAFETY: interrupts are masked, and the vector handles all traps.
    unsafe {
        asm!(
            "csrw stvec, {}",
            "csrw sscratch, {}",
            in(reg) vector,
            in(reg) SCRATCH,
            options(nostack),
        )
    };
}

/// Returns the per-core register.
pub fn cpu() -> *const Cpu {
    let cpu;
    // SAFETY: it only reads.
    unsafe { asm!("mv {}, tp", out(reg) cpu, options(nomem, nostack, preserves_flags)) };
    cpu
}

/// Returns the nanoseconds of the clock.
pub fn now() -> u64 {
    let ticks: u64;
    // SAFETY: it only reads.
    unsafe { asm!("rdtime {}", out(reg) ticks, options(nomem, nostack, preserves_flags)) };
    ticks * TICK
}

/// Sets the timer to fire at `at`: at once if that time has passed, not at all at `u64::MAX`.
pub fn set_timer(at: u64) {
    /// The firmware's extension "TIME"; its function 0 sets the timer.
    const TIME: usize = 0x5449_4d45;
    let ticks = if at == u64::MAX { at } else { at.div_ceil(TICK) };
    // SAFETY: it calls the firmware, which changes only a0 and a1. The timer's vector is installed.
    unsafe {
        asm!(
            "ecall",
            "csrs sie, {}",
            in(reg) STI,
            inout("a0") ticks => _,
            out("a1") _,
            in("a6") 0,
            in("a7") TIME,
            options(nostack),
        )
    };
}

/// Waits for an interrupt that is enabled in `sie`, whether or not `sstatus` masks it.
pub fn wait() {
    // SAFETY: `wfi` changes no state. The block is a compiler barrier, since interrupts will be
    // handled.
    unsafe { asm!("wfi", options(nostack)) };
}

/// Masks interrupts, and returns whether they were enabled.
pub fn mask() -> usize {
    let status: usize;
    // SAFETY: masking interrupts does not endanger memory. The block is a compiler barrier.
    unsafe { asm!("csrrci {}, sstatus, {}", out(reg) status, const SIE, options(nostack)) };
    status & SIE
}

/// Enables interrupts if `state` says so.
///
/// # Safety
///
/// `state` must be what `mask` returned.
pub unsafe fn restore(state: usize) {
    // SAFETY: the caller promises that `state` comes from the `mask` with which this pairs. The
    // block is a compiler barrier.
    unsafe { asm!("csrs sstatus, {}", in(reg) state, options(nostack)) };
}

/// Enables interrupts.
///
/// # Safety
///
/// Interrupts may come now.
pub unsafe fn enable() {
    // SAFETY: the caller promises that interrupts may come.
    unsafe { restore(SIE) };
}

pub fn put(byte: u8) {
    const UART: usize = 0x1000_0000;
    // SAFETY: this is the UART's data register. QEMU's UART is always ready.
    unsafe { with_exposed_provenance_mut::<u8>(UART).write_volatile(byte) };
}

/// Ends QEMU with an exit code.
pub fn exit(code: u8) -> ! {
    const FINISHER: usize = 0x10_0000;
    let word = if code == 0 { 0x5555 } else { u32::from(code) << 16 | 0x3333 };
    loop {
        // SAFETY: the device is for this.
        unsafe { with_exposed_provenance_mut::<u32>(FINISHER).write_volatile(word) };
    }
}

/// Returns the registers that belong to the kernel: stvec, sscratch, tp, gp.
pub fn system_registers() -> [usize; 4] {
    let (vector, scratch, tp, gp);
    // SAFETY: it only reads.
    unsafe {
        asm!(
            "csrr {}, stvec",
            "csrr {}, sscratch",
            "mv {}, tp",
            "mv {}, gp",
            out(reg) vector,
            out(reg) scratch,
            out(reg) tp,
            out(reg) gp,
            options(nostack),
        )
    };
    [vector, scratch, tp, gp]
}

/// Makes the settings that code may make for itself: the rounding mode "up", SUM and MXR. Counts
/// `rounds` down to zero, checks the settings, and restores the usual ones. Returns 0 if none was
/// lost.
///
/// # Safety
///
/// There are no conditions: the function only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold_own(rounds: usize) -> usize {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        "li t0, {sum_mxr}",
        "csrs sstatus, t0",
        "fsrmi 3",
        "2:",
        "addi a0, a0, -1",
        "bnez a0, 2b",
        "csrrc t1, sstatus, t0",
        "and t1, t1, t0",
        "xor t1, t1, t0",
        "fsrmi a0, 0",
        "addi a0, a0, -3",
        "or a0, a0, t1",
        "ret",
        ".option pop",
        sum_mxr = const SUM_MXR,
    )
}

/// Returns whether one of these settings is made now.
pub fn sees_others_own() -> bool {
    let (status, rounding): (usize, usize);
    // SAFETY: it only reads.
    unsafe {
        asm!(
            ".option push",
            ".option arch, +d",
            "csrr {}, sstatus",
            "frrm {}",
            ".option pop",
            out(reg) status,
            out(reg) rounding,
            options(nostack),
        )
    };
    status & SUM_MXR != 0 || rounding != 0
}

/// The registers that a function must preserve.
#[repr(C, align(16))]
struct Saved {
    ra: usize,
    s: [usize; 12],
    fs: [u64; 12],
}

/// Fills all registers with `seed` + 1, `seed` + 2 and so on, counts `rounds` down to zero, and
/// checks the registers. Returns 0 if no register has changed.
///
/// # Safety
///
/// There are no conditions: the function only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(seed: usize, rounds: usize) -> usize {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        "addi sp, sp, -{size}",
        "sd ra, {ra}(sp)",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        "  sd s\\n, {s} + 8*\\n(sp)",
        "  fsd fs\\n, {fs} + 8*\\n(sp)",
        ".endr",
        // a0: the value; a1: the counter. All registers but sp, gp and tp are filled.
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "  addi a0, a0, 1",
        "  fmv.d.x f\\n, a0",
        ".endr",
        ".irp n, 1,5,6,7,8,9,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        "  addi a0, a0, 1",
        "  mv x\\n, a0",
        ".endr",
        "2:",
        "addi a1, a1, -1",
        "bnez a1, 2b",
        // a1: the bits that differ. The registers are checked in the opposite order.
        ".irp n, 31,30,29,28,27,26,25,24,23,22,21,20,19,18,17,16,15,14,13,12,9,8,7,6,5,1",
        "  xor x\\n, x\\n, a0",
        "  or a1, a1, x\\n",
        "  addi a0, a0, -1",
        ".endr",
        ".irp n, 31,30,29,28,27,26,25,24,23,22,21,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0",
        "  fmv.x.d t0, f\\n",
        "  xor t0, t0, a0",
        "  or a1, a1, t0",
        "  addi a0, a0, -1",
        ".endr",
        "mv a0, a1",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        "  ld s\\n, {s} + 8*\\n(sp)",
        "  fld fs\\n, {fs} + 8*\\n(sp)",
        ".endr",
        "ld ra, {ra}(sp)",
        "addi sp, sp, {size}",
        "ret",
        ".option pop",
        size = const size_of::<Saved>(),
        ra = const offset_of!(Saved, ra),
        s = const offset_of!(Saved, s),
        fs = const offset_of!(Saved, fs),
    )
}
