//! SUM and MXR of `sstatus`, and the rounding mode.

use core::arch::{asm, naked_asm};
use core::sync::atomic::AtomicUsize;

/// SUM of `sstatus`: supervisor code may access users' pages. MXR, beside it: loads may read pages
/// that are only executable.
const SUM: usize = 1 << 18;
const SUM_MXR: usize = 0b11 << 18;

/// Returns SUM and MXR as they are set, and the rounding mode.
pub fn seen() -> usize {
    let (status, rounding): (usize, usize);
    // SAFETY: it only reads.
    unsafe { asm!("csrr {}, sstatus", "frrm {}", out(reg) status, out(reg) rounding) };
    status & SUM_MXR | rounding
}

/// Sets SUM and MXR and rounds up until `stop` is not 0. Returns the bits that were found changed
/// meanwhile.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(stop: &AtomicUsize) -> usize {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        "li t0, {sum_mxr}",
        "li t4, 0",
        "csrs sstatus, t0",
        "fsrmi 3",
        "2:",
        "csrr t1, sstatus",
        "and t1, t1, t0",
        "xor t1, t1, t0",
        "or t4, t4, t1",
        "frrm t1",
        "xori t1, t1, 3",
        "or t4, t4, t1",
        "ld t1, (a0)",
        "beqz t1, 2b",
        "fsrmi 0",
        "csrc sstatus, t0",
        "mv a0, t4",
        "ret",
        ".option pop",
        sum_mxr = const SUM_MXR,
    )
}

/// Sets SUM and MXR and rounds up while it executes a breakpoint. Returns the bits that the
/// breakpoint changed.
#[unsafe(naked)]
pub unsafe extern "C" fn hold_over_breakpoint() -> usize {
    naked_asm!(
        ".option push",
        ".option arch, +d",
        "li t0, {sum_mxr}",
        "csrs sstatus, t0",
        "fsrmi 3",
        "ebreak",
        "csrrc t1, sstatus, t0",
        "and t1, t1, t0",
        "xor t1, t1, t0",
        "fsrmi a0, 0",
        "xori a0, a0, 3",
        "or a0, a0, t1",
        "ret",
        ".option pop",
        sum_mxr = const SUM_MXR,
    )
}

pub fn set_right() {
    // SAFETY: kernel code may access all memory, with and without SUM.
    unsafe { asm!("csrs sstatus, {}", in(reg) SUM) };
}

pub fn has_right() -> bool {
    seen() & SUM != 0
}

pub fn clear_right() {
    // SAFETY: SUM is as it was before `set_right`.
    unsafe { asm!("csrc sstatus, {}", in(reg) SUM) };
}
