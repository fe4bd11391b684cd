//! The rounding mode, where the ABI has floating point.

use core::arch::{asm, naked_asm};
use core::sync::atomic::AtomicUsize;

use hal_shim::interrupt;

/// The rounding mode "up" of `fcsr0`.
#[cfg(target_feature = "d")]
const UP: usize = 2 << 8;

/// Returns the rounding mode; 0 where the ABI has no floating point.
pub fn seen() -> usize {
    #[cfg(target_feature = "d")]
    {
        let control: usize;
        // SAFETY: it only reads.
        unsafe { asm!("movfcsr2gr {}, $fcsr0", out(reg) control) };
        control & 0b11 << 8
    }
    #[cfg(not(target_feature = "d"))]
    0
}

/// Rounds up until `stop` is not 0. Returns the bits that were found changed meanwhile.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(stop: &AtomicUsize) -> usize {
    naked_asm!(
        "move $t4, $zero",
        #[cfg(target_feature = "d")]
        "li.w $t0, {up}
        movgr2fcsr $fcsr0, $t0",
        "2:",
        #[cfg(target_feature = "d")]
        "movfcsr2gr $t1, $fcsr0
        xor $t1, $t1, $t0
        or $t4, $t4, $t1",
        "ld.d $t1, $a0, 0",
        "beqz $t1, 2b",
        #[cfg(target_feature = "d")]
        "movgr2fcsr $fcsr0, $zero",
        "move $a0, $t4",
        "ret",
        #[cfg(target_feature = "d")]
        up = const UP,
    )
}

/// Rounds up while it executes a breakpoint. Returns the bits that the breakpoint changed.
#[unsafe(naked)]
pub unsafe extern "C" fn hold_over_breakpoint() -> usize {
    naked_asm!(
        #[cfg(target_feature = "d")]
        "li.w $t0, {up}
        movgr2fcsr $fcsr0, $t0",
        "break 0",
        "move $a0, $zero",
        #[cfg(target_feature = "d")]
        "movfcsr2gr $t1, $fcsr0
        movgr2fcsr $fcsr0, $zero
        xor $a0, $t1, $t0",
        "ret",
        #[cfg(target_feature = "d")]
        up = const UP,
    )
}

/// Jumps to the trap entry as the processor does for an interrupt, but with no interrupt pending:
/// as if the interrupt had been withdrawn before the entry could read its number.
pub fn a_withdrawn_interrupt_is_nothing() {
    // Makes an interrupt the latest trap: ESTAT goes on reporting its exception code.
    interrupt::raise();
    interrupt::masked(|| {
        // SAFETY: the entry returns to the address in ERA, with interrupts masked as PRMD says, and
        // with all registers restored. No interrupt line is enabled meanwhile.
        unsafe {
            asm!(
                "csrwr {lines}, 0x4",
                "csrwr {mode}, 0x1",
                "la.pcrel {at}, 2f",
                "csrwr {at}, 0x6",
                "csrrd {at}, 0xc",
                "jirl $zero, {at}, 0",
                "2:",
                "csrwr {lines}, 0x4",
                lines = inout(reg) 0_usize => _,
                mode = inout(reg) 0_usize => _,
                at = out(reg) _,
            )
        };
    });
}
