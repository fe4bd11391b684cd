//! DF and AC.

use core::arch::{asm, naked_asm};
use core::sync::atomic::AtomicUsize;
#[cfg(target_os = "none")]
use core::sync::atomic::Ordering::SeqCst;

#[cfg(target_os = "none")]
use hal_shim::{interrupt, trap};
#[cfg(target_os = "none")]
use trapline::trap::Trap;

/// What `stac` sets: the right to access users' pages.
#[cfg(target_os = "none")]
const AC: usize = 1 << 18;
const DF_AC: usize = 1 << 10 | 1 << 18;

/// Which are set.
pub fn seen() -> usize {
    let flags: usize;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags & DF_AC
}

/// Sets both until `stop` isn't 0. Returns those that were found cleared meanwhile.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(stop: &AtomicUsize) -> usize {
    naked_asm!(
        "xor ecx, ecx",
        "pushfq",
        "or dword ptr [rsp], {df_ac}",
        "popfq",
        "2:",
        "pushfq",
        "pop rax",
        "not eax",
        "and eax, {df_ac}",
        "or ecx, eax",
        "cmp qword ptr [rdi], 0",
        "je 2b",
        "pushfq",
        "and dword ptr [rsp], ~{df_ac}",
        "popfq",
        "mov eax, ecx",
        "ret",
        df_ac = const DF_AC,
    )
}

/// Sets each alone and both over a breakpoint: the entry must not look for one of them only. Returns those that
/// were cleared by that.
#[cfg(target_os = "none")]
pub unsafe fn hold_over_breakpoint() -> usize {
    // SAFETY: passed on.
    [DF_AC & !AC, AC, DF_AC].iter().fold(0, |lost, &flags| lost | unsafe { hold_these(flags) })
}

#[cfg(target_os = "none")]
#[unsafe(naked)]
unsafe extern "C" fn hold_these(flags: usize) -> usize {
    naked_asm!(
        "pushfq",
        "or [rsp], rdi",
        "popfq",
        "int3",
        "pushfq",
        "mov rax, [rsp]",
        "and dword ptr [rsp], ~{df_ac}",
        "popfq",
        "not eax",
        "and eax, edi",
        "ret",
        df_ac = const DF_AC,
    )
}

#[cfg(target_os = "none")]
pub fn set_right() {
    // SAFETY: no page is a user's here, and kernel code may be anywhere.
    unsafe { asm!("pushfq", "or dword ptr [rsp], {}", "popfq", const AC) };
}

#[cfg(target_os = "none")]
pub fn has_right() -> bool {
    seen() & AC != 0
}

#[cfg(target_os = "none")]
pub fn clear_right() {
    // SAFETY: as before it was set.
    unsafe { asm!("pushfq", "and dword ptr [rsp], {}", "popfq", const !(AC as i32)) };
}

#[cfg(target_os = "none")]
pub fn an_nmi_starts_clean_and_leaves_the_faulting_address() {
    static SEEN: AtomicUsize = AtomicUsize::new(usize::MAX);
    const BEFORE: usize = 0x1234_5678;
    trap::on_fault(|context| {
        if context.trap() != Trap::Other(2) {
            return false;
        }
        SEEN.store(seen(), SeqCst);
        // SAFETY: as a page fault in the handler would.
        unsafe { asm!("mov cr2, {}", in(reg) BEFORE + 1, options(nostack)) };
        true
    });
    let (lost, address) = interrupt::masked(|| {
        let (flags, address): (usize, usize);
        // An NMI after a page fault, before the entry has read the address.
        // SAFETY: nothing else is pushed meanwhile, and the flags are put back.
        unsafe {
            asm!(
                "mov cr2, {before}",
                "pushfq",
                "or dword ptr [rsp], {df_ac}",
                "popfq",
                "int 2",
                "pushfq",
                "mov {flags}, [rsp]",
                "and dword ptr [rsp], ~{df_ac}",
                "popfq",
                "mov {address}, cr2",
                before = in(reg) BEFORE,
                flags = out(reg) flags,
                address = out(reg) address,
                df_ac = const DF_AC,
            )
        };
        (!flags & DF_AC, address)
    });
    trap::reset();
    assert_eq!(SEEN.load(SeqCst), 0, "the handler sees flags of the interrupted code's");
    assert_eq!(lost, 0, "the flags did not come back");
    assert_eq!(address, BEFORE, "the address of a page fault is lost");
}
