//! From the firmware to Rust code, on the first hart and on the others.
//!
//! OpenSBI jumps to `_start` on one hart, chosen at random, in S-mode, with interrupts and paging
//! off: a0 is its number, a1 the address of the device tree. The others wait in the firmware until
//! [`bring_up`] starts them: then they begin at `_start_other`, with the address of their [`Core`]
//! in a1. From there on, `tp` always has the address of the hart's `Core`.

use core::arch::naked_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use fdt::Fdt;
use fdt::standard_nodes::Cpu;
use riscv::register::sie;
use trapline::platform::Platform as _;

use super::platform::set_clock;
use super::space;
use crate::bare::paging::RAM_END;
use crate::bare::{self, CORES, Core, HEAP, Machine, Space, fail, init_console, set_cores};

/// If the ABI uses FP registers, they are on from the beginning (FS is Initial), else off.
const FS: usize = if cfg!(target_feature = "d") { 1 << 13 } else { 0 };
const FS_MASK: usize = 3 << 13;
/// `sstatus.SIE`.
const SIE: usize = 1 << 1;
static DEVICE_TREE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

unsafe extern "C" {
    /// The beginning of the free memory, from the linker script. It is not data.
    static __heap_start: [u8; 0];
}

/// Whether a hart has passed `_start`. Not in .bss, which that hart clears.
#[unsafe(link_section = ".data")]
static BOOTED: AtomicU32 = AtomicU32::new(0);

/// a0: this hart's number; a1: the device tree; no stack yet.
///
/// Some versions of OpenSBI release a hart a moment before they have written its entry: then
/// another hart begins here too, when its `Core` has been set up already.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "la t0, {booted}",
        "li t1, 1",
        ".option push",
        ".option arch, +a",
        "amoswap.w t1, t1, (t0)",
        ".option pop",
        "bnez t1, 4f",
        "li t0, {fs_mask} | {sie}",
        "csrc sstatus, t0",
        "li t0, {fs}",
        "csrs sstatus, t0",
        "csrw sie, zero",
        ".option push",
        // Otherwise linker relaxation makes this load of gp relative to gp.
        ".option norelax",
        "la gp, __global_pointer$",
        ".option pop",
        "la t0, __bss_start",
        "la t1, __bss_end",
        "2:",
        "bgeu t0, t1, 3f",
        "sd zero, (t0)",
        "addi t0, t0, 8",
        "j 2b",
        "3:",
        "la sp, __boot_stack_top",
        // Core 0.
        "la tp, {cores}",
        "li s0, 0",
        "call {main}",
        // Not the first hart: go to `_start_other`, with the `Core` that has this hart's number.
        "4:",
        "la a1, {cores}",
        "5:",
        "ld t0, {hart}(a1)",
        "beq t0, a0, 6f",
        "addi a1, a1, {core}",
        "j 5b",
        "6:",
        "tail {other}",
        fs_mask = const FS_MASK,
        fs = const FS,
        sie = const SIE,
        booted = sym BOOTED,
        hart = const offset_of!(Core, id),
        core = const size_of::<Core>(),
        other = sym _start_other,
        cores = sym CORES,
        main = sym boot,
    )
}

/// a1: the address of this hart's `Core`; no stack yet.
#[unsafe(naked)]
unsafe extern "C" fn _start_other() -> ! {
    naked_asm!(
        "li t0, {fs_mask} | {sie}",
        "csrc sstatus, t0",
        "li t0, {fs}",
        "csrs sstatus, t0",
        "csrw sie, zero",
        ".option push",
        ".option norelax",
        "la gp, __global_pointer$",
        ".option pop",
        "mv tp, a1",
        "ld sp, {boot_stack_top}(tp)",
        "li s0, 0",
        "call {main_other}",
        fs_mask = const FS_MASK,
        fs = const FS,
        sie = const SIE,
        boot_stack_top = const offset_of!(Core, boot_stack_top),
        main_other = sym boot_other,
    )
}

extern "C" fn boot(hart: usize, device_tree: *mut u8) -> ! {
    init_console();
    DEVICE_TREE.store(device_tree, Ordering::Relaxed);
    let tree = tree();
    // The boot hart is core 0, the others follow in the tree's order.
    CORES[0].id.store(hart, Ordering::Relaxed);
    let others = tree.cpus().map(|cpu| cpu.ids().first()).filter(|&other| other != hart);
    let mut number = 1;
    for (core, other) in CORES.iter().skip(1).zip(others) {
        core.id.store(other, Ordering::Relaxed);
        number += 1;
    }
    set_cores(number);
    let Some(cpu) = tree.cpus().next() else { fail(format_args!("the device tree has no cpu")) };
    set_clock(cpu.timebase_frequency() as u64, has_sstc(cpu));
    let start = (&raw const __heap_start).addr();
    let end = end_of_memory(&tree, start).min(RAM_END);
    // SAFETY: called once, and the linker script puts nothing after `start`.
    unsafe { HEAP.add(start..end) };
    if space::init(start..end).is_none() {
        fail(format_args!("no memory for page tables"));
    }
    Space::unload();
    bare::main()
}

extern "C" fn boot_other() -> ! {
    Space::unload();
    bare::main_other()
}

/// Enables the calling hart's software interrupt; `set_alarm` enables the timer's. Their handlers
/// are installed now.
pub(crate) fn init_core() {
    // The timer's interrupt may be pending from before.
    Machine.set_alarm(u64::MAX);
    // SAFETY: its handler is installed.
    unsafe { sie::set_ssoft() };
}

fn tree() -> Fdt<'static> {
    // SAFETY: the firmware passed the address. The tree is outside of the heap, by `end_of_memory`,
    // and no code writes it.
    match unsafe { Fdt::from_ptr(DEVICE_TREE.load(Ordering::Relaxed)) } {
        Ok(tree) => tree,
        Err(error) => fail(format_args!("the firmware's device tree: {error:?}")),
    }
}

/// Whether the harts have a timer for S-mode (the extension sstc).
fn has_sstc(cpu: Cpu<'_, '_>) -> bool {
    let isa = cpu.property("riscv,isa").and_then(|isa| isa.as_str());
    let extensions = cpu.property("riscv,isa-extensions").map_or(&[][..], |list| list.value);
    isa.is_some_and(|isa| isa.split('_').any(|extension| extension == "sstc"))
        || extensions.split(|&byte| byte == 0).any(|extension| extension == b"sstc")
}

/// The end of the memory region that `start` is in, or the address of the device tree if that comes
/// first.
fn end_of_memory(tree: &Fdt<'_>, start: usize) -> usize {
    let tree_start = DEVICE_TREE.load(Ordering::Relaxed).addr();
    let end = tree.memory().regions().find_map(|region| {
        let (from, size) = (region.starting_address.addr(), region.size?);
        (from..from + size).contains(&start).then_some(from + size)
    });
    match end {
        Some(end) if (start..end).contains(&tree_start) => tree_start,
        Some(end) => end,
        None => fail(format_args!("the device tree lists no memory where the kernel is")),
    }
}

pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    tree().chosen().bootargs().unwrap_or("").split_ascii_whitespace()
}

/// Starts a hart that has its boot stack. `Err` is the firmware's error number.
pub(crate) fn bring_up(core: &'static Core) -> Result<(), isize> {
    let hart = core.id.load(Ordering::Relaxed);
    let entry = _start_other as *const () as usize;
    let argument = core::ptr::from_ref(core).expose_provenance();
    // The firmware's call is a fence: the hart sees the stores before it.
    let answer = sbi_rt::hart_start(hart, entry, argument);
    if answer.is_err() { Err(answer.error as isize) } else { Ok(()) }
}
