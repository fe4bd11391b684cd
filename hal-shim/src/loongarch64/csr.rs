//! Control and status registers, and the per-core devices in the IOCSR space.

use core::arch::asm;

/// The present mode: privilege level, interrupts, paging.
pub(super) const CRMD: usize = 0x0;
pub(super) const EUEN: usize = 0x2;
/// Which interrupts are enabled.
pub(super) const ECFG: usize = 0x4;
/// The roots of the page tables: for addresses of users, and for those of the kernel.
pub(super) const PGDL: usize = 0x19;
pub(super) const PGDH: usize = 0x1a;
/// The root of the two that the TLB's refill needs.
pub(super) const PGD: usize = 0x1b;
/// Which bits of an address are the index of which level.
pub(super) const PWCL: usize = 0x1c;
pub(super) const PWCH: usize = 0x1d;
/// The size of pages in the set-associative part of the TLB.
pub(super) const STLBPS: usize = 0x1e;
/// The core's number.
pub(super) const CPUID: usize = 0x20;
/// The core's timer.
pub(super) const TCFG: usize = 0x41;
pub(super) const TICLR: usize = 0x44;
/// The TLB's refill: its entry, its scratch register, and the entries that it fills in.
pub(super) const TLBRENTRY: usize = 0x88;
pub(super) const TLBRSAVE: usize = 0x8b;
pub(super) const TLBRELO0: usize = 0x8c;
pub(super) const TLBRELO1: usize = 0x8d;
pub(super) const TLBREHI: usize = 0x8e;
/// The kernel's direct windows to all memory.
pub(super) const DMW0: usize = 0x180;
pub(super) const DMW1: usize = 0x181;

/// IOCSR: this core's IPIs.
pub(super) const IPI_ENABLE: usize = 0x1004;
pub(super) const IPI_CLEAR: usize = 0x100c;
/// IOCSR: the mailbox in which a core that isn't started finds its entry.
pub(super) const MAILBOX: usize = 0x1020;
/// IOCSR: sends an IPI.
pub(super) const IPI_SEND: usize = 0x1040;
/// IOCSR: writes to another core's mailbox.
pub(super) const MAIL_SEND: usize = 0x1048;

/// Writes a register.
///
/// # Safety
///
/// The running code stays sound with that value.
pub(super) unsafe fn write<const CSR: usize>(value: usize) {
    // SAFETY: the caller's promise. `csrwr` swaps, so the operand is overwritten.
    unsafe { asm!("csrwr {}, {}", inout(reg) value => _, const CSR, options(nostack)) };
}

/// Writes the bits of `mask`, and returns the old value. The compiler moves no memory access across
/// it.
///
/// # Safety
///
/// The running code stays sound with that value.
#[inline]
pub(super) unsafe fn exchange<const CSR: usize>(value: usize, mask: usize) -> usize {
    let old;
    // SAFETY: the caller's promise. Without `nomem`, it is a barrier for the compiler.
    unsafe {
        asm!(
            "csrxchg {}, {}, {}",
            inout(reg) value => old,
            in(reg) mask,
            const CSR,
            options(nostack),
        )
    };
    old
}

/// Writes a word to a per-core device.
///
/// # Safety
///
/// The device can be given that value now.
pub(super) unsafe fn iocsr_write(register: usize, value: u32) {
    // SAFETY: the caller's promise. While QEMU counts instructions, it aborts if `iocsrwr` causes
    // an interrupt, but not if the clock is read before it in the same translation block. (A block
    // ends at the end of a page, so the two instructions must not lie on two pages.)
    unsafe {
        asm!(
            ".balign 8",
            "rdtime.d $zero, $zero",
            "iocsrwr.w {}, {}",
            in(reg) value,
            in(reg) register,
            options(nostack),
        )
    };
}

/// Writes two words to a per-core device.
///
/// # Safety
///
/// The device can be given that value now.
pub(super) unsafe fn iocsr_write_wide(register: usize, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            // While QEMU counts instructions, only an access to its clock, and the instruction
            // right behind it, may raise an interrupt.
            "rdtime.d $zero, $zero",
            "iocsrwr.d {}, {}",
            in(reg) value,
            in(reg) register,
            options(nostack),
        )
    };
}

/// A word of the processor's description of itself.
pub(super) fn cpucfg(word: usize) -> usize {
    let value;
    // SAFETY: only reads.
    unsafe { asm!("cpucfg {}, {}", out(reg) value, in(reg) word, options(pure, nomem, nostack)) };
    value
}

/// The clock, in ticks.
#[inline]
pub(super) fn rdtime() -> u64 {
    let ticks;
    // SAFETY: only reads.
    unsafe { asm!("rdtime.d {}, $zero", out(reg) ticks, options(nomem, nostack)) };
    ticks
}
