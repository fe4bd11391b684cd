//! The rounding mode, where the ABI has floating point.

use core::arch::{asm, naked_asm};
use core::sync::atomic::AtomicUsize;

use hal_shim::interrupt;

/// Rounding up, in `fcsr0`.
#[cfg(target_feature = "d")]
const UP: usize = 2 << 8;

/// The rounding mode.
pub fn seen() -> usize {
    #[cfg(target_feature = "d")]
    {
        let control: usize;
        // SAFETY: only reads.
        unsafe { asm!("movfcsr2gr {}, $fcsr0", out(reg) control) };
        control & 0b11 << 8
    }
    #[cfg(not(target_feature = "d"))]
    0
}

/// Rounds up until `stop` isn't 0. Returns what was found changed meanwhile.
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

/// Rounds up over a breakpoint. Returns what was changed by that.
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

/// Does what the processor does for an interrupt, but without one, as if that had been withdrawn before the
/// entry could read which it was.
pub fn a_withdrawn_interrupt_is_nothing() {
    // The latest trap, whose exception ESTAT still tells, was an interrupt.
    interrupt::raise();
    interrupt::masked(|| {
        // SAFETY: the entry comes back to where ERA says, with interrupts masked as PRMD says, and with
        // all registers. No line is enabled meanwhile.
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
