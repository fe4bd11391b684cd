//! From QEMU to Rust code, on the first core and on the others.
//!
//! QEMU jumps to `_start` at privilege level 0, with interrupts and paging off. Older versions do so on all
//! cores at once; then all but core 0 wait there, as they do in QEMU's own code in newer versions: until their
//! mailbox says where to begin and an IPI wakes them. [`start_core`] has them begin at `_start`. From
//! there on `$r21` is the address of the core's [`Core`], for ever.
//!
//! Each leaves its boot stack for an allocated one as soon as it can, and from then on the boot stack is
//! its emergency stack.

use alloc::string::String;
use core::alloc::Layout;
use core::arch::naked_asm;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use spin::Once;
use trapline::arch::{LEAST_EMERGENCY_STACK, install_trap_entry};
use trapline::platform::Platform as _;

use super::platform::{CORES, Core, IPI_LINE, MAX_CORES, Machine, TIMER_LINE, on_trap, set_clock};
use super::{CACHED, HEAP, UNCACHED, csr, exit, fail, fw_cfg, init_console, physical, space};
use crate::StartError;

/// CRMD: paging on (and the direct map with it), memory is cached, privilege level 0, interrupts masked.
const PAGING: usize = 0xb0;
/// DMWn: for privilege level 0; and whether what is seen through it is cached.
const LEVEL_0: usize = 1 << 0;
const COHERENT: usize = 1 << 4;
/// CPUID: the number.
const CPUID_MASK: usize = 0x1ff;
/// How large a boot stack is, as the linker script says for core 0.
pub(super) const BOOT_STACK: usize = 64 * 1024;
/// How large the stack is that a core enters its runtime on.
const STACK: usize = 64 * 1024;

const _: () = assert!(BOOT_STACK >= LEAST_EMERGENCY_STACK);

static HOW_MANY: AtomicUsize = AtomicUsize::new(1);
static WORDS: Once<String> = Once::new();

unsafe extern "C" {
    /// The linker script's: not data, but where the free memory begins and the boot stack ends.
    static __heap_start: [u8; 0];
    static __boot_stack_top: [u8; 0];
}

unsafe extern "Rust" {
    /// What `entry!` defines.
    safe fn __hal_shim_program();
}

/// No stack yet; the program counter is a physical address, or one of the cached window's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "li.d $t0, {uncached} | {level_0}",
        "csrwr $t0, {dmw0}",
        "li.d $t0, {cached} | {coherent} | {level_0}",
        "csrwr $t0, {dmw1}",
        // To the address in the window, and only then paging.
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
        // Another core. Its IPI is the only interrupt that is enabled, and wakes it though it is masked.
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
        main = sym main,
        main_other = sym main_other,
    )
}

extern "C" fn main() -> ! {
    init_console();
    if !fw_cfg::is_there() {
        fail(format_args!("this is not QEMU's `virt` machine: it has no fw_cfg"));
    }
    set_clock();
    HOW_MANY.store(fw_cfg::cores().clamp(1, MAX_CORES), Ordering::Relaxed);
    let start = (&raw const __heap_start).addr();
    let Some(end) = fw_cfg::end_of_memory(physical(start)) else {
        fail(format_args!("the kernel does not lie in memory that the machine tells of"))
    };
    // SAFETY: once, and the linker script puts nothing from there on.
    unsafe { HEAP.init(start, CACHED | end) };
    WORDS.call_once(|| String::from_utf8_lossy(&fw_cfg::words()).into_owned());
    CORES[0].boot_stack_top.store((&raw const __boot_stack_top).addr(), Ordering::Relaxed);
    space::init_core();
    leave_boot_stack(STACK, || {
        init_core();
        __hal_shim_program();
        exit(0)
    })
}

extern "C" fn main_other() -> ! {
    space::init_core();
    leave_boot_stack(STACK, || {
        init_core();
        loop {
            run_program();
        }
    })
}

fn leave_boot_stack(size: usize, main: fn() -> !) -> ! {
    match trapline::stackful::leave_boot_stack(size, main) {
        Err(error) => fail(format_args!("{error}")),
    }
}

/// Runs what `start_core` has given to this core, or waits for something.
fn run_program() {
    let core = Core::here();
    let interrupts = Machine.mask_interrupts();
    // Acquire pairs with the release in `start_core`.
    let program = core.program.swap(core::ptr::null_mut(), Ordering::Acquire);
    if program.is_null() {
        Machine.park();
    }
    // SAFETY: what `mask_interrupts` has just returned.
    unsafe { Machine.restore_interrupts(interrupts) };
    if !program.is_null() {
        // SAFETY: `start_core` stored a `fn()` there.
        let program = unsafe { core::mem::transmute::<*mut (), fn()>(program) };
        program();
        // Release: what the program did is seen by who starts the next one.
        core.is_started.store(false, Ordering::Release);
    }
}

/// Sets up the calling core's traps and enables interrupts.
fn init_core() {
    let core = Core::here();
    let emergency_stack = core::ptr::with_exposed_provenance_mut(core.boot_stack().start);
    let Some(emergency_stack) = NonNull::new(emergency_stack) else {
        fail(format_args!("a boot stack at address 0"))
    };
    let emergency_stack = NonNull::slice_from_raw_parts(emergency_stack, BOOT_STACK);
    // SAFETY: this is privilege level 0, where QEMU started us. Stacks have an unmapped page below. The
    // refill of `space` reaches all that lies in the window for stacks, the rest needs none. The boot
    // stack has been left for ever, and is this core's. `on_trap` returns with interrupts masked.
    unsafe { install_trap_entry(&core.trap, emergency_stack, on_trap) };
    // SAFETY: the handler of both is there. What was pending before we came means nothing to anybody.
    unsafe {
        csr::write::<{ csr::TICLR }>(1);
        csr::iocsr_write(csr::IPI_CLEAR, u32::MAX);
        csr::iocsr_write(csr::IPI_ENABLE, 1);
        csr::write::<{ csr::ECFG }>(1 << TIMER_LINE | 1 << IPI_LINE);
    }
    core.is_notified.store(0, Ordering::Relaxed);
    // SAFETY: nothing is masked on purpose yet.
    unsafe { Machine.enable_interrupts() };
}

pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    WORDS.get().map_or("", |words| words.as_str()).split_ascii_whitespace()
}

pub(crate) fn cores() -> usize {
    HOW_MANY.load(Ordering::Relaxed)
}

pub(crate) fn start_core(number: usize, program: fn()) -> Result<(), StartError> {
    let core = CORES.get(..cores()).and_then(|cores| cores.get(number));
    let core = core.ok_or(StartError::NoSuchCore)?;
    if number == 0 || core.is_started.swap(true, Ordering::Acquire) {
        return Err(StartError::Running);
    }
    let is_new = core.boot_stack_top.load(Ordering::Relaxed) == 0;
    if is_new {
        const LAYOUT: Layout = match Layout::from_size_align(BOOT_STACK, 16) {
            Ok(layout) => layout,
            Err(_) => panic!("a size and an alignment that are valid"),
        };
        // SAFETY: its size is not zero.
        let stack = unsafe { alloc::alloc::alloc(LAYOUT) };
        if stack.is_null() {
            core.is_started.store(false, Ordering::Release);
            return Err(StartError::OutOfMemory);
        }
        core.boot_stack_top.store(stack.expose_provenance() + BOOT_STACK, Ordering::Relaxed);
    }
    // Release pairs with the acquire in `run_program`.
    core.program.store(program as *mut (), Ordering::Release);
    if is_new {
        send_mail(number, physical(_start as *const () as usize));
    }
    Machine.wake(number);
    Ok(())
}

/// Tells a core that has not been started where to begin. The IPI that wakes it is the caller's.
fn send_mail(core: usize, entry: usize) {
    /// Waits until it has arrived.
    const BLOCKING: u64 = 1 << 31;
    const CORE_SHIFT: u32 = 16;
    /// Which half of which mailbox.
    const HALF_SHIFT: u32 = 2;
    const VALUE_SHIFT: u32 = 32;
    // The half that makes it an address that isn't zero comes last.
    for half in [1, 0] {
        let value = (entry >> (32 * half)) as u32;
        let mail = u64::from(value) << VALUE_SHIFT
            | (core as u64) << CORE_SHIFT
            | (half as u64) << HALF_SHIFT
            | BLOCKING;
        // SAFETY: the core waits for it. The fence: it then sees what was written for it.
        unsafe {
            core::sync::atomic::fence(Ordering::SeqCst);
            csr::iocsr_write_wide(csr::MAIL_SEND, mail);
        }
    }
}
