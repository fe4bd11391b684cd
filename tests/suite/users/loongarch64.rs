//! User programs for loongarch64, and what the tests need to know of the architecture.

use core::arch::{global_asm, naked_asm};
use core::sync::atomic::AtomicUsize;

use trapline::arch::TrapContext;

/// The trap that `user_other` ends with: an address error of a memory access, since the load's
/// address is not a valid one.
pub const OTHER: usize = 0x8 << 16 | 1 << 22;
/// Whether a page that is mapped as not executable cannot be executed. QEMU hangs where such a page
/// is executed, so `hal-shim` maps no page as not executable.
pub const HAS_NO_EXECUTE: bool = false;
/// Whether there is a breakpoint that is shorter than the shortest other instruction.
pub const HAS_SHORT_BREAKPOINT: bool = false;

global_asm!(
    ".pushsection .rodata.user, \"a\"",
    ".balign 16",
    ".globl user_code, user_code_end, user_call, user_spin, user_spin_a_while, user_load, user_store",
    ".globl user_jump, user_push, user_breakpoint, user_short_breakpoint, user_illegal",
    ".globl user_privileged, user_other, user_poison, user_compute, user_registers, user_thread_pointer",
    "user_code:",
    // Calls again and again, with the registers unchanged. The result of a call is the number of
    // the next one.
    "user_call:",
    "  syscall 0",
    "  move $a7, $a0",
    "  b user_call",
    "user_spin:",
    "  addi.d $s0, $s0, 1",
    "  b user_spin",
    // a0: the number of rounds.
    "user_spin_a_while:",
    "  addi.d $a0, $a0, -1",
    "  bnez $a0, user_spin_a_while",
    "  syscall 0",
    // a0: the address, here and in the next three programs.
    "user_load:",
    "  ld.d $a0, $a0, 0",
    "  syscall 0",
    "user_store:",
    "  st.d $a0, $a0, 0",
    "  syscall 0",
    "user_jump:",
    "  jr $a0",
    "user_push:",
    "  st.d $a0, $sp, -8",
    "  syscall 0",
    "user_breakpoint:",
    "user_short_breakpoint:",
    "  break 0",
    "  li.w $a7, 77",
    "  syscall 0",
    "user_illegal:",
    "  .4byte 0xffffffff",
    "user_privileged:",
    "  csrrd $a0, 0",
    "  syscall 0",
    "user_other:",
    "  li.d $a0, 1 << 60",
    "  ld.d $a1, $a0, 0",
    "  syscall 0",
    // Overwrites the kernel's registers, then calls again and again.
    "user_poison:",
    "  li.w $r21, -1",
    "  li.w $tp, -1",
    "  li.w $ra, -1",
    "1:",
    "  syscall 0",
    "  b 1b",
    // Calls again and again, with its thread pointer in a2.
    "user_thread_pointer:",
    "  move $a2, $tp",
    "  syscall 0",
    "  b user_thread_pointer",
    // a0: a value, written to f9 if a1 is not 0. Calls again and again, with the bits of f9 in a2.
    "user_compute:",
    "  beqz $a1, 1f",
    "  movgr2fr.d $f9, $a0",
    "1:",
    "  movfr2gr.d $a2, $f9",
    "  syscall 0",
    "  b 1b",
    // a0: the address of a word that ends the program when it is not 0; a1: a seed. Fills all
    // registers from the seed and checks them again and again. The number of the call is not 0 if a
    // register was changed.
    "user_registers:",
    "  move $sp, $a1",
    "  move $tp, $a0",
    // r30 and r31 are scratch. tp: the address of the word; sp: the seed. Register n holds seed +
    // n.
    ".irp n, 1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29",
    "  addi.d $r\\n, $sp, \\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "  addi.d $r31, $sp, 100 + \\n",
    "  movgr2fr.d $f\\n, $r31",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  bstrpick.d $r31, $sp, 8 + \\n, 8 + \\n",
    "  movgr2cf $fcc\\n, $r31",
    ".endr",
    // Sets the rounding mode.
    "  andi $r31, $sp, 0x300",
    "  movgr2fcsr $fcsr0, $r31",
    "2:",
    ".irp n, 1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29",
    "  addi.d $r31, $sp, \\n",
    "  bne $r31, $r\\n, 8f",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "  movfr2gr.d $r30, $f\\n",
    "  addi.d $r31, $sp, 100 + \\n",
    "  bne $r31, $r30, 8f",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  movcf2gr $r30, $fcc\\n",
    "  bstrpick.d $r31, $sp, 8 + \\n, 8 + \\n",
    "  bne $r31, $r30, 8f",
    ".endr",
    "  movfcsr2gr $r31, $fcsr0",
    "  andi $r30, $sp, 0x300",
    "  bne $r31, $r30, 8f",
    "  ld.d $r31, $tp, 0",
    "  beqz $r31, 2b",
    "  li.w $a7, 0",
    "  syscall 0",
    "8:",
    "  li.w $a7, 1",
    "  syscall 0",
    "user_code_end:",
    ".popsection",
);

/// Loads the byte at `address`. If the load faults, a handler can make this function return by
/// [`skip_probe`].
#[unsafe(naked)]
pub unsafe extern "C" fn probe(address: usize) -> usize {
    naked_asm!("ld.bu $a0, $a0, 0", "ret")
}

/// Makes an interrupted [`probe`] return `result`.
pub fn skip_probe(context: &mut TrapContext, result: usize) {
    context.r[4] = result;
    context.era = context.r[1];
}

/// Executes a breakpoint in the kernel.
pub fn breakpoint() {
    // SAFETY: the test has installed a handler that answers the breakpoint.
    unsafe { core::arch::asm!("break 0", options(nostack)) }
}

/// Overwrites the per-core register in a trap context.
pub fn poison_core_register(context: &mut TrapContext) {
    context.r[21] = usize::MAX;
}

/// Returns whether the program has used floating point.
pub fn has_computed(context: &TrapContext) -> bool {
    context.fp != 0
}

/// Overflows the stack of the caller. Does not return.
#[unsafe(naked)]
pub unsafe extern "C" fn overflow() {
    naked_asm!("1:", "addi.d $sp, $sp, -16", "st.d $zero, $sp, 0", "b 1b")
}

/// Sets the stack pointer to an unmapped address, and pushes.
#[unsafe(naked)]
pub unsafe extern "C" fn lose_stack() {
    naked_asm!("li.w $sp, -4096", "st.d $zero, $sp, 0", "ret")
}

/// Returns whether interrupts were enabled where the trap came from.
pub fn had_interrupts(context: &TrapContext) -> bool {
    context.prmd & 1 << 2 != 0
}

/// Enables interrupts, sets the stack pointer to `sp`, and spins until `stop` is not 0.
#[unsafe(naked)]
pub unsafe extern "C" fn spin_at(sp: usize, stop: &AtomicUsize) {
    naked_asm!(
        "move $t1, $sp",
        "move $sp, $a0",
        "ori $t0, $zero, 4",
        "csrxchg $t0, $t0, 0x0",
        "2:",
        "ld.d $t0, $a1, 0",
        "beqz $t0, 2b",
        "move $sp, $t1",
        "ret",
    )
}

/// Calls `function` with the stack pointer `sp`.
#[unsafe(naked)]
pub unsafe extern "C" fn call_at(sp: usize, function: extern "C" fn()) {
    naked_asm!(
        "addi.d $sp, $sp, -16",
        "st.d $ra, $sp, 0",
        "st.d $s1, $sp, 8",
        "move $s1, $sp",
        "move $sp, $a0",
        "jirl $ra, $a1, 0",
        "move $sp, $s1",
        "ld.d $ra, $sp, 0",
        "ld.d $s1, $sp, 8",
        "addi.d $sp, $sp, 16",
        "ret",
    )
}

/// Returns the stack pointer.
pub fn stack_pointer() -> usize {
    let sp;
    // SAFETY: it only reads a register.
    unsafe { core::arch::asm!("move {}, $sp", out(reg) sp, options(nomem, nostack)) };
    sp
}
