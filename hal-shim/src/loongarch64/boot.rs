//! From QEMU to Rust code, on the first core and on the others.
//!
//! QEMU jumps to `_start` at privilege level 0, with interrupts and paging off. Older versions do
//! so on all cores at once; then all but core 0 wait there, as they do in QEMU's own code in newer
//! versions, until their mailbox has an entry and an IPI wakes them. [`bring_up`] makes the entry
//! `_start`. From there on, `$r21` always has the address of the core's [`Core`].

use alloc::string::String;
use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use spin::Once;

use super::platform::{Cpu, IPI_LINE, TIMER_LINE, set_clock};
use super::{CACHED, UNCACHED, csr, fw_cfg, physical, space};
use crate::bare::paging::RAM_END;
use crate::bare::{self, CORES, Core, HEAP, Processor as _, fail, init_console, set_cores};

/// CRMD: paging on (and the direct windows with it), memory is cached, privilege level 0,
/// interrupts masked.
const PAGING: usize = 0xb0;
/// DMWn: the window is for privilege level 0; accesses through it are cached.
const LEVEL_0: usize = 1 << 0;
const COHERENT: usize = 1 << 4;
/// CPUID: the bits of the core's number.
const CPUID_MASK: usize = 0x1ff;
/// The command line.
static WORDS: Once<String> = Once::new();

unsafe extern "C" {
    /// The beginning of the free memory, from the linker script. It is not data.
    static __heap_start: [u8; 0];
}

/// No stack yet; the program counter is a physical address, or one in the cached window.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "li.d $t0, {uncached} | {level_0}",
        "csrwr $t0, {dmw0}",
        "li.d $t0, {cached} | {coherent} | {level_0}",
        "csrwr $t0, {dmw1}",
        // Jump to the address in the window before paging is turned on.
        "li.d $t0, {cached}",
        "la.pcrel $t1, 2f",
        "or $t0, $t0, $t1",
        "jr $t0",
        "2:",
        "li.w $t0, {paging}",
        "csrwr $t0, {crmd}",
        "csrwr $zero, {euen}",
        "csrwr $zero, {tcfg}",
        "csrrd $t0, {cpuid}",
        "andi $t0, $t0, {cpuid_mask}",
        // t0: the core's number.
        "bnez $t0, 5f",
        "csrwr $zero, {ecfg}",
        "la.pcrel $t0, __bss_start",
        "la.pcrel $t1, __bss_end",
        "3:",
        "bgeu $t0, $t1, 4f",
        "st.d $zero, $t0, 0",
        "addi.d $t0, $t0, 8",
        "b 3b",
        "4:",
        "la.pcrel $sp, __boot_stack_top",
        "la.pcrel $r21, {cores}",
        "move $fp, $zero",
        "bl {main}",
        // Another core. Its IPI is the only interrupt that is enabled, and wakes it although
        // interrupts are masked.
        "5:",
        "li.w $t1, {ipi}",
        "csrwr $t1, {ecfg}",
        "li.w $t1, {ipi_enable}",
        "li.w $t2, 1",
        "iocsrwr.w $t2, $t1",
        "li.w $t1, {mailbox}",
        "6:",
        "iocsrrd.d $t2, $t1",
        "bnez $t2, 7f",
        "idle 0",
        "b 6b",
        "7:",
        "la.pcrel $r21, {cores}",
        "li.w $t1, {core}",
        "mul.d $t0, $t0, $t1",
        "add.d $r21, $r21, $t0",
        "ld.d $sp, $r21, {boot_stack_top}",
        "move $fp, $zero",
        "bl {main_other}",
        uncached = const UNCACHED,
        cached = const CACHED,
        level_0 = const LEVEL_0,
        coherent = const COHERENT,
        paging = const PAGING,
        dmw0 = const csr::DMW0,
        dmw1 = const csr::DMW1,
        crmd = const csr::CRMD,
        euen = const csr::EUEN,
        ecfg = const csr::ECFG,
        tcfg = const csr::TCFG,
        cpuid = const csr::CPUID,
        cpuid_mask = const CPUID_MASK,
        ipi = const 1 << IPI_LINE,
        ipi_enable = const csr::IPI_ENABLE,
        mailbox = const csr::MAILBOX,
        cores = sym CORES,
        core = const size_of::<Core>(),
        boot_stack_top = const offset_of!(Core, boot_stack_top),
        main = sym boot,
        main_other = sym boot_other,
    )
}

extern "C" fn boot() -> ! {
    init_console();
    if !fw_cfg::is_there() {
        fail(format_args!("this is not QEMU's `virt` machine: it has no fw_cfg"));
    }
    set_clock();
    set_cores(fw_cfg::cores());
    let start = (&raw const __heap_start).addr();
    let Some(end) = fw_cfg::end_of_memory(physical(start)) else {
        fail(format_args!("fw_cfg lists no memory where the kernel is"))
    };
    // SAFETY: called once, and the linker script puts nothing after `start`.
    unsafe { HEAP.add(start..CACHED | end.min(RAM_END)) };
    WORDS.call_once(|| String::from_utf8_lossy(&fw_cfg::words()).into_owned());
    space::init_core();
    bare::main()
}

extern "C" fn boot_other() -> ! {
    space::init_core();
    bare::main_other()
}

/// Enables the lines of the calling core's timer and IPIs. Their handlers are installed now.
pub(crate) fn init_core() {
    // SAFETY: the handler of both is installed. Interrupts that were pending before have no effect.
    unsafe {
        csr::write::<{ csr::TICLR }>(1);
        csr::iocsr_write(csr::IPI_CLEAR, u32::MAX);
        csr::iocsr_write(csr::IPI_ENABLE, 1);
        csr::write::<{ csr::ECFG }>(1 << TIMER_LINE | 1 << IPI_LINE);
    }
}

pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    WORDS.get().map_or("", |words| words.as_str()).split_ascii_whitespace()
}

/// Starts a core that has its boot stack.
pub(crate) fn bring_up(core: &'static Core) -> Result<(), isize> {
    send_mail(core.number(), physical(_start as *const () as usize));
    Cpu::notify(core);
    Ok(())
}

/// Writes the entry for a core that has not been started. The caller sends the IPI that wakes it.
fn send_mail(core: usize, entry: usize) {
    /// The write ends when the mail has arrived.
    const BLOCKING: u64 = 1 << 31;
    const CORE_SHIFT: u32 = 16;
    /// Which half of which mailbox.
    const HALF_SHIFT: u32 = 2;
    const VALUE_SHIFT: u32 = 32;
    // The low half comes last: the core begins when the address isn't zero.
    for half in [1, 0] {
        let value = (entry >> (32 * half)) as u32;
        let mail = u64::from(value) << VALUE_SHIFT
            | (core as u64) << CORE_SHIFT
            | (half as u64) << HALF_SHIFT
            | BLOCKING;
        // SAFETY: the core waits for it. The fence: the core sees the stores before it.
        unsafe {
            core::sync::atomic::fence(Ordering::SeqCst);
            csr::iocsr_write_wide(csr::MAIL_SEND, mail);
        }
    }
}
