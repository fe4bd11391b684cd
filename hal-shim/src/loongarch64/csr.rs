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
/// The one of both that the TLB's refill needs.
pub(super) const PGD: usize = 0x1b;
/// Which part of an address is the index at which level.
pub(super) const PWCL: usize = 0x1c;
pub(super) const PWCH: usize = 0x1d;
/// The size of pages in the set-associative part of the TLB.
pub(super) const STLBPS: usize = 0x1e;
/// The core's number.
pub(super) const CPUID: usize = 0x20;
/// The core's timer.
pub(super) const TCFG: usize = 0x41;
pub(super) const TICLR: usize = 0x44;
/// The TLB's refill: its entry, its scratch, and what it fills in.
pub(super) const TLBRENTRY: usize = 0x88;
pub(super) const TLBRSAVE: usize = 0x8b;
pub(super) const TLBRELO0: usize = 0x8c;
pub(super) const TLBRELO1: usize = 0x8d;
pub(super) const TLBREHI: usize = 0x8e;
/// The windows through which the kernel sees all memory.
pub(super) const DMW0: usize = 0x180;
pub(super) const DMW1: usize = 0x181;

/// IOCSR: this core's IPIs.
pub(super) const IPI_ENABLE: usize = 0x1004;
pub(super) const IPI_CLEAR: usize = 0x100c;
/// IOCSR: where a core that isn't started finds where to begin.
pub(super) const MAILBOX: usize = 0x1020;
/// IOCSR: sends an IPI.
pub(super) const IPI_SEND: usize = 0x1040;
/// IOCSR: writes to another core's mailbox.
pub(super) const MAIL_SEND: usize = 0x1048;

/// # Safety
///
/// The core can go on with that value.
pub(super) unsafe fn write<const CSR: usize>(value: usize) {
    // SAFETY: the caller's promise. The register gets the old value.
    unsafe { asm!("csrwr {}, {}", inout(reg) value => _, const CSR, options(nostack)) };
}

/// Writes the bits of `mask`, and returns the old value.
///
/// # Safety
///
/// The core can go on with that value.
#[inline]
pub(super) unsafe fn exchange<const CSR: usize>(value: usize, mask: usize) -> usize {
    let old;
    // SAFETY: the caller's promise. As it may touch memory for all that the compiler knows, nothing
    // moves across it.
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

/// # Safety
///
/// The device can be given that value now.
pub(super) unsafe fn iocsr_write(register: usize, value: u32) {
    // SAFETY: the caller's promise. QEMU that counts instructions ends itself if `iocsrwr` causes an
    // interrupt; but not if the clock is read before it in the same block of translated code (which
    // ends with a page).
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

/// # Safety
///
/// The device can be given that value now.
pub(super) unsafe fn iocsr_write_wide(register: usize, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            // QEMU that counts instructions lets nothing but an access to its clock, and what
            // comes right behind it, raise an interrupt.
            "rdtime.d $zero, $zero",
            "iocsrwr.d {}, {}",
            in(reg) value,
            in(reg) register,
            options(nostack),
        )
    };
}

/// A word of what the processor says about itself.
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
