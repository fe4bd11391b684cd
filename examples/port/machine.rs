//! QEMU's riscv64 `virt` in S-mode: what a kernel has already, whatever runs its tasks.
//!
//! Only the vector is written for Trapline, and any vector that saves the registers on the
//! interrupted stack would do. It saves what a function call does not preserve. The compiler saves
//! the rest in the functions that use it, and so does the switch, on the same stack.

use core::arch::{asm, global_asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::{offset_of, size_of};
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::AtomicU32;

use crate::kernel::{CORE, CORES, Core, Interrupt, core_main, on_fault, on_interrupt};

/// `sstatus`: interrupts enabled.
const SIE: usize = 1 << 1;
/// `sstatus`: the FP unit is on, and its registers have not been written.
const FS_INITIAL: usize = 1 << 13;
/// `sstatus`: the right to access users' pages, and to read those that can only be executed.
const SUM_MXR: usize = 0b11 << 18;
/// `sie`, `sip`: the software interrupt, and the timer's.
const SOFTWARE: usize = 1 << 1;
const TIMER: usize = 1 << 5;
/// `scause` of the two.
const INTERRUPT: usize = 1 << 63;
const CAUSE_SOFTWARE: usize = INTERRUPT | 1;
const CAUSE_TIMER: usize = INTERRUPT | 5;
/// Nanoseconds that a tick of `virt`'s clock takes.
const TICK: u64 = 100;

/// The stack that a core boots on, and on which it enters its runtime.
#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; 64 * 1024]>);

// SAFETY: each is used by one core.
unsafe impl Sync for Stack {}

static STACKS: [Stack; CORES] = [const { Stack(UnsafeCell::new([0; 64 * 1024])) }; CORES];

/// Whether a hart has come through `_start`. Not in .bss, which that hart clears.
#[unsafe(link_section = ".data")]
static IS_BSS_CLEAR: AtomicU32 = AtomicU32::new(0);

/// a0: the hart's number. The firmware jumps here on one hart, chosen at random, and on each of the
/// others when [`start`] has asked for it.
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
        "la t0, {is_bss_clear}",
        "li t1, 1",
        ".option push",
        ".option arch, +a",
        "amoswap.w t1, t1, (t0)",
        ".option pop",
        "bnez t1, 3f",
        "la t0, __bss_start",
        "la t1, __bss_end",
        "2:",
        "bgeu t0, t1, 3f",
        "sd zero, (t0)",
        "addi t0, t0, 8",
        "j 2b",
        // tp = &CORE[hart]; sp = the end of STACKS[hart].
        "3:",
        "li t0, {core_size}",
        "mul t0, t0, a0",
        "la tp, {core}",
        "add tp, tp, t0",
        "li t0, {stack_size}",
        "addi t1, a0, 1",
        "mul t0, t0, t1",
        "la sp, {stacks}",
        "add sp, sp, t0",
        "call {core_main}",
        fs = const FS_INITIAL,
        is_bss_clear = sym IS_BSS_CLEAR,
        core_size = const size_of::<Core>(),
        core = sym CORE,
        stack_size = const size_of::<Stack>(),
        stacks = sym STACKS,
        core_main = sym core_main,
    )
}

/// What the vector saves.
#[repr(C, align(16))]
struct Frame {
    ra: usize,
    t: [usize; 7],
    a: [usize; 8],
    /// A later trap overwrites these.
    sepc: usize,
    sstatus: usize,
    fcsr: usize,
    ft: [u64; 12],
    fa: [u64; 8],
}

// On entry all registers are the interrupted code's, and SIE is 0.
global_asm!(
    ".pushsection .text.vector, \"ax\"",
    ".option push",
    ".option arch, +a, +d",
    ".balign 4",
    ".globl vector",
    "vector:",
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
    // The arguments of on_trap. All that a trap tells is read here, before another one can come.
    "csrr a0, scause",
    "csrr a1, sepc",
    "csrr a2, stval",
    "sd a1, {sepc}(sp)",
    // What the interrupted code has set for itself: other code must not find it set, and this code
    // must find it again.
    "li t0, {sum_mxr}",
    "csrrc t0, sstatus, t0",
    "sd t0, {sstatus}(sp)",
    "fscsr t0, zero",
    "sd t0, {fcsr}(sp)",
    "call {on_trap}",
    // Other tasks may have run. The stack is the same, and the callee-saved registers are back.
    "ld t0, {fcsr}(sp)",
    "fscsr t0",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
    "  fld ft\\n, {ft} + 8*\\n(sp)",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  fld fa\\n, {fa} + 8*\\n(sp)",
    "  ld a\\n, {a} + 8*\\n(sp)",
    ".endr",
    // After the f registers, as it also says whether the interrupted code has written any.
    "ld t0, {sstatus}(sp)",
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
    on_trap = sym on_trap,
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
    /// The code above.
    static vector: [u8; 0];
}

extern "C" fn on_trap(cause: usize, pc: usize, address: usize) {
    match cause {
        CAUSE_TIMER => on_interrupt(Interrupt::Timer),
        CAUSE_SOFTWARE => on_interrupt(Interrupt::Ipi),
        _ => on_fault(cause, pc, address),
    }
}

/// Sets this core's vector, and enables the software interrupt in `sie`.
pub fn init() {
    let address = (&raw const vector).addr();
    // SAFETY: interrupts are masked, and the vector handles all traps.
    unsafe {
        asm!("csrw stvec, {}", "csrs sie, {}", in(reg) address, in(reg) SOFTWARE, options(nostack));
    }
}

/// The data of the core that calls.
pub fn this_core() -> &'static Core {
    let core: *const Core;
    // SAFETY: reads a register that is the same for as long as the calling code can tell: a stack
    // stays on its core while it holds frames.
    unsafe { asm!("mv {}, tp", out(reg) core, options(pure, nomem, nostack, preserves_flags)) };
    // SAFETY: `_start` has set it to an element of `CORE`.
    unsafe { &*core }
}

/// Calls the firmware. Returns its error code: 0 if there is none.
///
/// # Safety
///
/// What the call does is safe.
unsafe fn firmware(extension: usize, function: usize, arguments: [usize; 3]) -> isize {
    let error;
    // SAFETY: the firmware changes a0 and a1 only, and the caller promises the rest. A barrier for
    // the compiler; the fence makes what was written before visible to a core that the call starts
    // or interrupts.
    unsafe {
        asm!(
            "fence",
            "ecall",
            inout("a0") arguments[0] => error,
            inout("a1") arguments[1] => _,
            in("a2") arguments[2],
            in("a6") function,
            in("a7") extension,
            options(nostack),
        );
    }
    error
}

/// Has the firmware start a hart at `_start`. `false`: there is none of this number.
pub fn start(hart: usize) -> bool {
    const HSM: usize = 0x48_534d;
    // SAFETY: the hart begins with its own stack and data.
    unsafe { firmware(HSM, 0, [hart, _start as *const () as usize, 0]) == 0 }
}

/// Causes a software interrupt on a core.
pub fn send_ipi(core: usize) {
    const IPI: usize = 0x73_5049;
    // SAFETY: the vector handles it.
    unsafe { firmware(IPI, 0, [1, core, 0]) };
}

/// In the handler. What is pending is cleared first; what it is about is read after the fence.
pub fn acknowledge_ipi() {
    // SAFETY: whatever the interrupt was sent for, its handler sees to all of it.
    unsafe { asm!("csrc sip, {}", "fence", in(reg) SOFTWARE, options(nostack)) };
}

pub fn now() -> u64 {
    let ticks: u64;
    // SAFETY: only reads.
    unsafe { asm!("rdtime {}", out(reg) ticks, options(nomem, nostack, preserves_flags)) };
    ticks * TICK
}

/// Has the timer fire at `at`, at once if that has passed, and at `u64::MAX` never.
pub fn set_timer(at: u64) {
    const TIME: usize = 0x5449_4d45;
    // Rounded up: when it fires, `now` is not before `at`.
    let ticks = if at == u64::MAX { at } else { at.div_ceil(TICK) };
    // SAFETY: the vector handles the interrupt.
    unsafe {
        firmware(TIME, 0, [ticks as usize, 0, 0]);
        asm!("csrs sie, {}", in(reg) TIMER, options(nostack));
    }
}

/// In the handler: the interrupt stays pending until the timer is set again, so it is disabled.
pub fn acknowledge_timer() {
    // SAFETY: `set_timer` enables it.
    unsafe { asm!("csrc sie, {}", in(reg) TIMER, options(nostack)) };
}

/// Waits for an interrupt that is enabled in `sie`, whatever SIE says.
pub fn wait_for_interrupt() {
    // SAFETY: changes nothing. A barrier for the compiler, as handlers will run.
    unsafe { asm!("wfi", options(nostack)) };
}

pub fn mask_interrupts() -> usize {
    let status: usize;
    // SAFETY: no danger to memory. A barrier for the compiler.
    unsafe { asm!("csrrci {}, sstatus, {}", out(reg) status, const SIE, options(nostack)) };
    status & SIE
}

/// # Safety
///
/// `state` is what `mask_interrupts` returned.
pub unsafe fn restore_interrupts(state: usize) {
    // SAFETY: the caller's promise. A barrier for the compiler.
    unsafe { asm!("csrs sstatus, {}", in(reg) state, options(nostack)) };
}

/// # Safety
///
/// The calling code may be interrupted.
pub unsafe fn enable_interrupts() {
    // SAFETY: the caller's promise.
    unsafe { restore_interrupts(SIE) };
}

pub fn has_interrupts_enabled() -> bool {
    let status: usize;
    // SAFETY: only reads. Not pure: another call may find it otherwise.
    unsafe { asm!("csrr {}, sstatus", out(reg) status, options(nomem, nostack, preserves_flags)) };
    status & SIE != 0
}

pub fn put(byte: u8) {
    const UART: usize = 0x1000_0000;
    // SAFETY: the device's data register. QEMU's is always ready.
    unsafe { with_exposed_provenance_mut::<u8>(UART).write_volatile(byte) };
}

/// Ends QEMU.
pub fn exit(code: u8) -> ! {
    const FINISHER: usize = 0x10_0000;
    let word = if code == 0 { 0x5555 } else { u32::from(code) << 16 | 0x3333 };
    loop {
        // SAFETY: this is what the device is for.
        unsafe { with_exposed_provenance_mut::<u32>(FINISHER).write_volatile(word) };
    }
}
