//! Checks the registers of loongarch64: all integer registers but sp, $tp and $r21. Where the ABI
//! has them, also f0 to f31, fcc0 to fcc7 and fcsr.

use core::arch::naked_asm;
use core::mem::offset_of;

use super::Patterns;

/// The size of the frame: ra, $r22 to $r31, fs0 to fs7, and the pointer to the patterns.
const FRAME: usize = 8 * (1 + 10 + 8 + 1);
/// The offset of the pointer to the patterns in the frame.
const POINTER: usize = 8 * 19;
/// The rounding mode "towards plus infinity", which is not the one that code starts with.
#[cfg(target_feature = "d")]
const ROUNDING: usize = 2 << 8;

/// Fills the registers and checks them again and again until the patterns' `stop` is set. Returns
/// 0, or the number of a changed register + 1 (from 101: f; from 151: fcc; 200: fcsr).
///
/// # Safety
///
/// `patterns` must be writable.
#[unsafe(naked)]
pub unsafe extern "C" fn fill_and_check(patterns: *mut Patterns) -> u64 {
    naked_asm!(
        "addi.d $sp, $sp, -{frame}",
        "st.d $ra, $sp, 0",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, 8 + 8*(\n - 22)",
        r".endr",
        "st.d $a0, $sp, {pointer}",
        // a0: the patterns, until the last integer register is filled. t0 ($r12) and t1 ($r13) stay
        // scratch.
        #[cfg(target_feature = "d")]
        ".irp n, 0,1,2,3,4,5,6,7
          fst.d $fs\\n, $sp, 8*11 + 8*\\n
        .endr
        li.w $t0, {rounding}
        movgr2fcsr $fcsr0, $t0
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          fld.d $f\\n, $a0, {float} + 16*\\n
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          ld.bu $t0, $a0, {float} + 16*\\n + 8
          srli.d $t0, $t0, 1
          movgr2cf $fcc\\n, $t0
        .endr",
        r".irp n, 1,5,6,7,8,9,10,11,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31,4",
        r"  ld.d $r\n, $a0, {integer} + 8*\n",
        r".endr",
        // All registers but t0 and t1 hold their patterns. From here on these two hold theirs for a
        // while, and t2 ($r14) and s0 ($r23) are scratch.
        "2:",
        "ld.d $t2, $sp, {pointer}",
        "ld.d $t0, $t2, {integer} + 8*12",
        "ld.d $t1, $t2, {integer} + 8*13",
        ".rept 64",
        "  nop",
        ".endr",
        "ld.d $s0, $t2, {integer} + 8*12",
        "beq $s0, $t0, 3f",
        "li.w $a0, 13",
        "b 9f",
        "3:",
        "ld.d $s0, $t2, {integer} + 8*13",
        "beq $s0, $t1, 3f",
        "li.w $a0, 14",
        "b 9f",
        "3:",
        "ld.d $s0, $t2, {integer} + 8*23",
        "ld.d $t2, $t2, {integer} + 8*14",
        // t0: the patterns; t1: one of the patterns.
        "ld.d $t0, $sp, {pointer}",
        r".irp n, 1,4,5,6,7,8,9,10,11,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $t1, $t0, {integer} + 8*\n",
        r"  beq $t1, $r\n, 3f",
        r"  li.w $a0, \n + 1",
        r"  b 9f",
        r"3:",
        r".endr",
        // In the following lines t0 holds the bits of a register, until the patterns are needed
        // again.
        #[cfg(target_feature = "d")]
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          ld.d $t1, $t0, {float} + 16*\\n
          movfr2gr.d $t0, $f\\n
          beq $t0, $t1, 3f
          li.w $a0, 101 + \\n
          b 9f
        3:
          ld.d $t0, $sp, {pointer}
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          ld.bu $t1, $t0, {float} + 16*\\n + 8
          bstrpick.d $t1, $t1, 1, 1
          movcf2gr $t0, $fcc\\n
          beq $t0, $t1, 3f
          li.w $a0, 151 + \\n
          b 9f
        3:
          ld.d $t0, $sp, {pointer}
        .endr
        movfcsr2gr $t1, $fcsr0
        addi.d $t1, $t1, -{rounding}
        beqz $t1, 3f
        li.w $a0, 200
        b 9f
        3:",
        "ld.d $t1, $t0, {rounds}",
        "addi.d $t1, $t1, 1",
        "st.d $t1, $t0, {rounds}",
        "ld.d $t1, $t0, {stop}",
        "ld.d $t1, $t1, 0",
        "beqz $t1, 2b",
        "move $a0, $zero",
        // a0: the result. All other registers are restored.
        "9:",
        #[cfg(target_feature = "d")]
        "movgr2fcsr $fcsr0, $zero
        .irp n, 0,1,2,3,4,5,6,7
          fld.d $fs\\n, $sp, 8*11 + 8*\\n
        .endr",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $r\n, $sp, 8 + 8*(\n - 22)",
        r".endr",
        "ld.d $ra, $sp, 0",
        "addi.d $sp, $sp, {frame}",
        "ret",
        frame = const FRAME.next_multiple_of(16),
        pointer = const POINTER,
        #[cfg(target_feature = "d")]
        rounding = const ROUNDING,
        integer = const offset_of!(Patterns, integer),
        #[cfg(target_feature = "d")]
        float = const offset_of!(Patterns, float),
        stop = const offset_of!(Patterns, stop),
        rounds = const offset_of!(Patterns, rounds),
    )
}

/// Fills $r22 to $r31 and, where the ABI has them, fs0 to fs7, which a callee preserves, and calls
/// `function`. Returns the same as [`fill_and_check`].
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
        "addi.d $sp, $sp, -{frame}",
        "st.d $ra, $sp, 0",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  st.d $r\n, $sp, 8 + 8*(\n - 22)",
        r".endr",
        "st.d $a0, $sp, {pointer}",
        #[cfg(target_feature = "d")]
        ".irp n, 0,1,2,3,4,5,6,7
          fst.d $fs\\n, $sp, 8*11 + 8*\\n
          fld.d $fs\\n, $a0, {float} + 16*\\n
        .endr",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $r\n, $a0, {integer} + 8*\n",
        r".endr",
        "jirl $ra, $a1, 0",
        // t0: the patterns; t1: one of the patterns; a0: the result.
        "ld.d $t0, $sp, {pointer}",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  li.w $a0, \n + 1",
        r"  ld.d $t1, $t0, {integer} + 8*\n",
        r"  bne $t1, $r\n, 9f",
        r".endr",
        #[cfg(target_feature = "d")]
        ".irp n, 0,1,2,3,4,5,6,7
          li.w $a0, 125 + \\n
          ld.d $t1, $t0, {float} + 16*\\n
          movfr2gr.d $t2, $fs\\n
          bne $t1, $t2, 9f
        .endr",
        "move $a0, $zero",
        "9:",
        #[cfg(target_feature = "d")]
        ".irp n, 0,1,2,3,4,5,6,7
          fld.d $fs\\n, $sp, 8*11 + 8*\\n
        .endr",
        r".irp n, 22,23,24,25,26,27,28,29,30,31",
        r"  ld.d $r\n, $sp, 8 + 8*(\n - 22)",
        r".endr",
        "ld.d $ra, $sp, 0",
        "addi.d $sp, $sp, {frame}",
        "ret",
        frame = const FRAME.next_multiple_of(16),
        pointer = const POINTER,
        integer = const offset_of!(Patterns, integer),
        #[cfg(target_feature = "d")]
        float = const offset_of!(Patterns, float),
    )
}
