//! The flags DF (the direction of copies) and AC (the right to access users' pages).

use core::arch::{asm, naked_asm};
use core::sync::atomic::AtomicUsize;
#[cfg(target_os = "none")]
use core::sync::atomic::Ordering::SeqCst;

#[cfg(target_os = "none")]
use hal_shim::{interrupt, trap};
#[cfg(target_os = "none")]
use trapline::trap::Trap;

/// AC, which `stac` sets: the right to access users' pages.
#[cfg(target_os = "none")]
const AC: usize = 1 << 18;
const DF_AC: usize = 1 << 10 | 1 << 18;

/// Returns which of the two flags are set.
pub fn seen() -> usize {
    let flags: usize;
    // SAFETY: it only reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags & DF_AC
}

/// Sets both flags until `stop` is not 0. Returns the flags that were found cleared meanwhile.
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

/// Executes a breakpoint with DF set, with AC set, and with both: the trap entry must not test for
/// one flag only. Returns the flags that the breakpoint cleared.
#[cfg(target_os = "none")]
pub unsafe fn hold_over_breakpoint() -> usize {
    // SAFETY: `hold_these` demands the same as this function: a handler answers the breakpoint.
    [DF_AC & !AC, AC, DF_AC].iter().fold(0, |lost, &flags| lost | unsafe { hold_these(flags) })
}

/// Sets `flags`, executes a breakpoint and clears both flags. Returns those of `flags` that the
/// breakpoint cleared.
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
    // SAFETY: no user page is mapped, so AC permits no additional access, and kernel code may run
    // with AC set.
    unsafe { asm!("pushfq", "or dword ptr [rsp], {}", "popfq", const AC) };
}

#[cfg(target_os = "none")]
pub fn has_right() -> bool {
    seen() & AC != 0
}

#[cfg(target_os = "none")]
pub fn clear_right() {
    // SAFETY: the flags are as they were before `set_right`.
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
        // SAFETY: a page fault in the handler would write `cr2` in the same way.
        unsafe { asm!("mov cr2, {}", in(reg) BEFORE + 1, options(nostack)) };
        true
    });
    let (lost, address) = interrupt::masked(|| {
        let (flags, address): (usize, usize);
        // The situation: a page fault wrote `cr2`, and an NMI arrives before the entry has read
        // `cr2`.
        // SAFETY: no other code pushes to the stack within the block, and the flags are restored.
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
    assert_eq!(SEEN.load(SeqCst), 0, "the handler sees flags of the interrupted code");
    assert_eq!(lost, 0, "the flags were lost");
    assert_eq!(address, BEFORE, "the address of a page fault is lost");
}
