//! User programs for riscv64, and what the tests need to know of the architecture.

use core::arch::{global_asm, naked_asm};
use core::hint::black_box;
use core::sync::atomic::AtomicUsize;

use trapline::arch::TrapContext;
use trapline::trap::Trap;

use super::{Hooks, Label, Process, next_trap, program};

/// The trap that `user_other` ends with: a load-reserved of an address that is not aligned.
pub const OTHER: usize = 4;
/// Whether a page that is mapped as not executable cannot be executed.
pub const HAS_NO_EXECUTE: bool = true;
/// Whether there is a breakpoint that is shorter than the shortest other instruction.
pub const HAS_SHORT_BREAKPOINT: bool = true;

global_asm!(
    ".pushsection .rodata.user, \"a\"",
    ".option push",
    ".option arch, +a, +c, +d",
    ".option norelax",
    ".balign 16",
    ".globl user_code, user_code_end, user_call, user_spin, user_spin_a_while, user_load, user_store",
    ".globl user_jump, user_push, user_breakpoint, user_short_breakpoint, user_illegal",
    ".globl user_privileged, user_other, user_poison, user_compute, user_registers, user_round_up",
    ".globl user_thread_pointer",
    "user_code:",
    // Calls again and again, with the registers unchanged. The result of a call is the number of
    // the next one.
    "user_call:",
    "  ecall",
    "  mv a7, a0",
    "  j user_call",
    "user_spin:",
    "  addi s0, s0, 1",
    "  j user_spin",
    // a0: the number of rounds.
    "user_spin_a_while:",
    "  addi a0, a0, -1",
    "  bnez a0, user_spin_a_while",
    "  ecall",
    // a0: the address, here and in the next three programs.
    "user_load:",
    "  ld a0, (a0)",
    "  ecall",
    "user_store:",
    "  sd a0, (a0)",
    "  ecall",
    "user_jump:",
    "  jr a0",
    "user_push:",
    "  sd a0, -8(sp)",
    "  ecall",
    "user_breakpoint:",
    "  .option push",
    "  .option norvc",
    "  ebreak",
    "  .option pop",
    "  li a7, 77",
    "  ecall",
    "user_short_breakpoint:",
    "  c.ebreak",
    "  li a7, 77",
    "  ecall",
    "user_illegal:",
    "  .4byte 0xffffffff",
    "user_privileged:",
    "  csrr a0, sstatus",
    "  ecall",
    "user_other:",
    "  addi a0, sp, -9",
    "  lr.d a1, (a0)",
    "  ecall",
    // Overwrites the kernel's registers, then calls again and again.
    "user_poison:",
    "  li tp, -1",
    "  li gp, -1",
    "  li ra, -1",
    "1:",
    "  ecall",
    "  j 1b",
    // a0: a value, written to f9 if a1 is not 0. Calls again and again, with the bits of f9 in a2.
    "user_compute:",
    "  beqz a1, 1f",
    "  fmv.d.x f9, a0",
    "1:",
    "  fmv.x.d a2, f9",
    "  ecall",
    "  j 1b",
    // Calls again and again, with its thread pointer in a2.
    "user_thread_pointer:",
    "  mv a2, tp",
    "  ecall",
    "  j user_thread_pointer",
    "user_round_up:",
    "  fsrmi 3",
    "  ecall",
    // a0: the address of a word that ends the program when it is not 0; a1: a seed. Fills all
    // registers from the seed and checks them again and again. The number of the call is not 0 if a
    // register was changed.
    "user_registers:",
    "  mv sp, a1",
    "  mv tp, a0",
    // x30 and x31 are scratch. tp: the address of the word; sp: the seed. Register n holds seed +
    // n.
    ".irp n, 1,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29",
    "  addi x\\n, sp, \\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "  addi x31, sp, 100 + \\n",
    "  fmv.d.x f\\n, x31",
    ".endr",
    "  andi x31, sp, 0x7f",
    "  fscsr x31",
    "  li x30, 0",
    "2:",
    ".irp n, 1,3,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29",
    "  addi x31, sp, \\n",
    "  bne x31, x\\n, 8f",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "  fmv.x.d x30, f\\n",
    "  addi x31, sp, 100 + \\n",
    "  bne x31, x30, 8f",
    ".endr",
    "  frcsr x31",
    "  andi x30, sp, 0x7f",
    "  bne x31, x30, 8f",
    "  ld x31, (tp)",
    "  beqz x31, 2b",
    "  li a7, 0",
    "  ecall",
    "8:",
    "  li a7, 1",
    "  ecall",
    "user_code_end:",
    ".option pop",
    ".popsection",
);

/// Loads the byte at `address`. If the load faults, a handler can make this function return by
/// [`skip_probe`].
#[unsafe(naked)]
pub unsafe extern "C" fn probe(address: usize) -> usize {
    naked_asm!("lbu a0, (a0)", "ret")
}

/// Makes an interrupted [`probe`] return `result`.
pub fn skip_probe(context: &mut TrapContext, result: usize) {
    context.x[10] = result;
    context.sepc = context.x[1];
}

/// Executes a breakpoint in the kernel.
pub fn breakpoint() {
    // SAFETY: the test has installed a handler that answers the breakpoint.
    unsafe { core::arch::asm!("ebreak", options(nostack)) }
}

/// Overwrites the per-core register in a trap context.
pub fn poison_core_register(context: &mut TrapContext) {
    context.x[4] = usize::MAX;
}

/// Returns whether the program has used floating point.
pub fn has_computed(context: &TrapContext) -> bool {
    context.fp != 0
}

/// Overflows the stack of the caller. Does not return.
#[unsafe(naked)]
pub unsafe extern "C" fn overflow() {
    naked_asm!("1:", "addi sp, sp, -16", "sd zero, (sp)", "j 1b")
}

/// Sets the stack pointer to an unmapped address, and pushes.
#[unsafe(naked)]
pub unsafe extern "C" fn lose_stack() {
    naked_asm!("li sp, -4096", "sd zero, (sp)", "ret")
}

/// Returns whether interrupts were enabled where the trap came from.
pub fn had_interrupts(context: &TrapContext) -> bool {
    context.sstatus & 1 << 5 != 0
}

/// Enables interrupts, sets the stack pointer to `sp`, and spins until `stop` is not 0.
#[unsafe(naked)]
pub unsafe extern "C" fn spin_at(sp: usize, stop: &AtomicUsize) {
    naked_asm!(
        "mv t1, sp",
        "mv sp, a0",
        "csrsi sstatus, 2",
        "1:",
        "ld t0, (a1)",
        "beqz t0, 1b",
        "mv sp, t1",
        "ret",
    )
}

/// Calls `function` with the stack pointer `sp`.
#[unsafe(naked)]
pub unsafe extern "C" fn call_at(sp: usize, function: extern "C" fn()) {
    naked_asm!(
        "addi sp, sp, -16",
        "sd ra, (sp)",
        "sd s1, 8(sp)",
        "mv s1, sp",
        "mv sp, a0",
        "jalr a1",
        "mv sp, s1",
        "ld ra, (sp)",
        "ld s1, 8(sp)",
        "addi sp, sp, 16",
        "ret",
    )
}

/// Returns the stack pointer.
pub fn stack_pointer() -> usize {
    let sp;
    // SAFETY: it only reads a register.
    unsafe { core::arch::asm!("mv {}, sp", out(reg) sp, options(nomem, nostack)) };
    sp
}

// SAFETY: the assembly above defines the symbol. Only its address is taken.
unsafe extern "C" {
    #[link_name = "user_round_up"]
    safe static ROUND_UP: Label;
}

pub fn a_programs_rounding_is_not_the_kernels() {
    let process = Process::new();
    process.enter();
    let mut context = program(&ROUND_UP, [0; 6]);
    assert_eq!(next_trap(&mut context), Trap::Syscall);
    process.leave();
    // The kernel rounds to the nearest value, which here is the one below.
    assert_eq!((black_box(1.0_f64) / black_box(3.0)).to_bits(), 0x3fd5_5555_5555_5555);
}
