//! Checks the registers of riscv64: all integer registers but sp, gp and tp, and f0 to f31 with
//! fcsr.

use core::arch::naked_asm;
use core::mem::offset_of;

use super::Patterns;

/// The size of the frame: ra, s0 to s11, fs0 to fs11, and the pointer to the patterns.
const FRAME: usize = 8 * (1 + 12 + 12 + 1);
/// The offset of the pointer to the patterns in the frame.
const POINTER: usize = 8 * 25;
/// The rounding mode "up", which is not the one that code starts with.
const ROUNDING: usize = 3 << 5;

/// Fills the registers and checks them again and again until the patterns' `stop` is set. Returns
/// 0, or the number of a changed register + 1 (from 101: f; 200: fcsr).
///
/// # Safety
///
/// `patterns` must be writable.
#[unsafe(naked)]
pub unsafe extern "C" fn fill_and_check(patterns: *mut Patterns) -> u64 {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        "addi sp, sp, -{frame}",
        "sd ra, (sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  sd s\n, 8 + 8*\n(sp)",
        r"  fsd fs\n, 8*13 + 8*\n(sp)",
        r".endr",
        "sd a0, {pointer}(sp)",
        "li t0, {rounding}",
        "fscsr t0",
        // a0: the patterns, until the last integer register is filled. t0 and t1 stay scratch.
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  fld f\n, {float} + 16*\n(a0)",
        r".endr",
        r".irp n, 1,7,8,9,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,10",
        r"  ld x\n, {integer} + 8*\n(a0)",
        r".endr",
        // All registers but t0 and t1 hold their patterns. From here on these two hold theirs for a
        // while, and t2 and s0 are scratch.
        "2:",
        "ld t2, {pointer}(sp)",
        "ld t0, {integer} + 8*5(t2)",
        "ld t1, {integer} + 8*6(t2)",
        ".rept 64",
        "  nop",
        ".endr",
        "ld s0, {integer} + 8*5(t2)",
        "beq s0, t0, 3f",
        "li a0, 6",
        "j 9f",
        "3:",
        "ld s0, {integer} + 8*6(t2)",
        "beq s0, t1, 3f",
        "li a0, 7",
        "j 9f",
        "3:",
        "ld s0, {integer} + 8*8(t2)",
        "ld t2, {integer} + 8*7(t2)",
        // t0: the patterns; t1: one of the patterns.
        "ld t0, {pointer}(sp)",
        r".irp n, 1,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  ld t1, {integer} + 8*\n(t0)",
        r"  beq t1, x\n, 3f",
        r"  li a0, \n + 1",
        r"  j 9f",
        r"3:",
        r".endr",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
        r"  ld t1, {float} + 16*\n(t0)",
        // t0: the bits of the register, until the patterns are needed again.
        r"  fmv.x.d t0, f\n",
        r"  beq t0, t1, 3f",
        r"  li a0, 101 + \n",
        r"  j 9f",
        r"3:",
        r"  ld t0, {pointer}(sp)",
        r".endr",
        "frcsr t1",
        "addi t1, t1, -{rounding}",
        "beqz t1, 3f",
        "li a0, 200",
        "j 9f",
        "3:",
        "ld t1, {rounds}(t0)",
        "addi t1, t1, 1",
        "sd t1, {rounds}(t0)",
        "ld t1, {stop}(t0)",
        "ld t1, (t1)",
        "beqz t1, 2b",
        "li a0, 0",
        // a0: the result. All other registers are restored.
        "9:",
        "fscsr zero",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  ld s\n, 8 + 8*\n(sp)",
        r"  fld fs\n, 8*13 + 8*\n(sp)",
        r".endr",
        "ld ra, (sp)",
        "addi sp, sp, {frame}",
        "ret",
        ".option pop",
        frame = const FRAME.next_multiple_of(16),
        pointer = const POINTER,
        rounding = const ROUNDING,
        integer = const offset_of!(Patterns, integer),
        float = const offset_of!(Patterns, float),
        stop = const offset_of!(Patterns, stop),
        rounds = const offset_of!(Patterns, rounds),
    )
}

/// Fills s0 to s11 and fs0 to fs11, which a callee preserves, and calls `function`. Returns the
/// same as [`fill_and_check`].
///
/// # Safety
///
/// `patterns` must be readable.
#[unsafe(naked)]
pub unsafe extern "C" fn fill_and_call(
    patterns: *const Patterns,
    function: extern "C" fn(),
) -> u64 {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        "addi sp, sp, -{frame}",
        "sd ra, (sp)",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  sd s\n, 8 + 8*\n(sp)",
        r"  fsd fs\n, 8*13 + 8*\n(sp)",
        r".endr",
        "sd a0, {pointer}(sp)",
        r".irp n, 8,9,18,19,20,21,22,23,24,25,26,27",
        r"  ld x\n, {integer} + 8*\n(a0)",
        r"  fld f\n, {float} + 16*\n(a0)",
        r".endr",
        "jalr a1",
        // t0: the patterns; t1: one of the patterns; a0: the result.
        "ld t0, {pointer}(sp)",
        r".irp n, 8,9,18,19,20,21,22,23,24,25,26,27",
        r"  li a0, \n + 1",
        r"  ld t1, {integer} + 8*\n(t0)",
        r"  bne t1, x\n, 9f",
        r"  li a0, 101 + \n",
        r"  ld t1, {float} + 16*\n(t0)",
        r"  fmv.x.d t2, f\n",
        r"  bne t1, t2, 9f",
        r".endr",
        "li a0, 0",
        "9:",
        r".irp n, 0,1,2,3,4,5,6,7,8,9,10,11",
        r"  ld s\n, 8 + 8*\n(sp)",
        r"  fld fs\n, 8*13 + 8*\n(sp)",
        r".endr",
        "ld ra, (sp)",
        "addi sp, sp, {frame}",
        "ret",
        ".option pop",
        frame = const FRAME.next_multiple_of(16),
        pointer = const POINTER,
        integer = const offset_of!(Patterns, integer),
        float = const offset_of!(Patterns, float),
    )
}
