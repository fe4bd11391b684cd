//! From the loader to Rust code, on the first processor and on the others.
//!
//! A PVH loader (QEMU's `-kernel`) finds the entry in [`NOTE`] and jumps to `_start` on one
//! processor, in protected mode, with interrupts and paging off: ebx is the address of a
//! [`StartInfo`]. The others wait until [`bring_up`] starts them: then they begin in real mode at a
//! copy of [`trampoline`], and go on at `start_other`. From [`boot`] and [`boot_other`] on, the
//! base of gs is always the address of the processor's [`Core`].

use core::arch::naked_asm;
use core::ffi::CStr;
use core::hint::spin_loop;
use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicPtr, Ordering};

use trapline::platform::Platform as _;

use super::platform::become_core;
use super::space::{self, BOOT_GIBS, GLOBAL, KERNEL, LARGE, PRESENT, Tables, WRITE};
use super::{FINISHER, UART, apic};
use crate::bare::paging::RAM_END;
use crate::bare::{self, CORES, Core, HEAP, Machine, fail, init_console, set_cores};

unsafe extern "C" {
    /// The beginning of the free memory, from the linker script. It is not data.
    static __heap_start: [u8; 0];
    /// The end of [`trampoline`].
    static hal_shim_trampoline_end: [u8; 0];
}

/// An ELF note, by which a PVH loader finds the entry. Notes are aligned to 4.
#[repr(C, packed(4))]
struct Note {
    name_size: u32,
    entry_size: u32,
    kind: u32,
    name: [u8; 4],
    entry: unsafe extern "C" fn() -> !,
}

#[used]
#[unsafe(link_section = ".note.pvh")]
static NOTE: Note = Note { name_size: 4, entry_size: 8, kind: 18, name: *b"Xen\0", entry: _start };

/// The data that a PVH loader passes.
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    /// The address of ACPI's root pointer.
    acpi: u64,
    /// From version 1 on.
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

const MAGIC: u32 = 0x336e_c578;

/// An entry of the memory map.
#[repr(C)]
struct Region {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// The kind of regions that are free to be used.
const RAM: u32 = 1;

static COMMAND_LINE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());

/// The null segment, and flat code and data for 64 bits. In use until the trap entry installs its
/// own.
static GDT: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: usize = 0x08;
const DATA: usize = 0x10;

/// The operand of `lgdt`, which reads only the first six bytes in 32-bit mode.
#[repr(C, packed)]
struct GdtPointer {
    limit: u16,
    base: &'static [u64; 3],
}

static GDT_POINTER: GdtPointer = GdtPointer { limit: size_of::<[u64; 3]>() as u16 - 1, base: &GDT };

/// CPUID 0x8000_0001, edx: 64-bit mode, and pages that are not executable.
const LONG_MODE_AND_NX: u32 = 1 << 29 | 1 << 20;
/// EFER: turns on the same two.
const EFER: u32 = 0xc000_0080;
const EFER_LME_NXE: u32 = 1 << 8 | 1 << 11;
/// CR4: physical address extension, global pages.
const CR4_PAE_PGE: u32 = 1 << 5 | 1 << 7;
/// CR0: paging, write protection also for the kernel, protected mode. Caches are on, as the bits
/// that turn them off are clear.
const CR0_PG_WP_PE: u32 = 1 << 31 | 1 << 16 | 1 << 0;

/// ebx: the start info; no stack yet.
#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        ".code32",
        "cld",
        "mov edi, offset __bss_start",
        "mov ecx, offset __bss_end",
        "sub ecx, edi",
        "shr ecx, 2",
        "xor eax, eax",
        "rep stosd",
        // `cpuid` overwrites ebx.
        "mov ebp, ebx",
        "mov eax, 0x80000000",
        "cpuid",
        "cmp eax, 0x80000001",
        "jb 4f",
        "mov eax, 0x80000001",
        "cpuid",
        "and edx, {long_mode_and_nx}",
        "cmp edx, {long_mode_and_nx}",
        "jne 4f",
        // The kernel's tables: the root, the one for GiBs, and one for each GiB.
        "mov edi, offset {kernel}",
        "lea eax, [edi + {gibs} + {table}]",
        "mov [edi + {root}], eax",
        "lea eax, [edi + {low} + {table}]",
        "lea edx, [edi + {gibs}]",
        "mov ecx, {boot_gibs}",
        "2:",
        "mov [edx], eax",
        "add eax, 4096",
        "add edx, 8",
        "dec ecx",
        "jnz 2b",
        "lea edx, [edi + {low}]",
        "mov eax, {page}",
        "mov ecx, 512 * {boot_gibs}",
        "3:",
        "mov [edx], eax",
        "add eax, 1 << 21",
        "add edx, 8",
        "dec ecx",
        "jnz 3b",
        "mov eax, {cr4}",
        "mov cr4, eax",
        "mov cr3, edi",
        "mov ecx, {efer}",
        "rdmsr",
        "or eax, {efer_on}",
        "wrmsr",
        "mov eax, {cr0}",
        "mov cr0, eax",
        "lgdt [{gdt_pointer}]",
        // A far jump to 64-bit code.
        ".byte 0xea",
        ".long {start}",
        ".word {code}",
        // No 64-bit mode: print the message by 32-bit code.
        "4:",
        "mov esi, offset {message}",
        "5:",
        "lodsb",
        "test al, al",
        "jz 6f",
        "mov dx, {uart}",
        "out dx, al",
        "jmp 5b",
        "6:",
        "mov dx, {finisher}",
        "mov al, 2",
        "out dx, al",
        "7:",
        "hlt",
        "jmp 7b",
        ".code64",
        long_mode_and_nx = const LONG_MODE_AND_NX,
        kernel = sym KERNEL,
        root = const offset_of!(Tables, root),
        gibs = const offset_of!(Tables, gibs),
        low = const offset_of!(Tables, low),
        table = const PRESENT | WRITE,
        page = const PRESENT | WRITE | LARGE | GLOBAL,
        boot_gibs = const BOOT_GIBS,
        cr4 = const CR4_PAE_PGE,
        efer = const EFER,
        efer_on = const EFER_LME_NXE,
        cr0 = const CR0_PG_WP_PE,
        gdt_pointer = sym GDT_POINTER,
        start = sym start,
        code = const CODE,
        message = sym MESSAGE,
        uart = const UART,
        finisher = const FINISHER,
    )
}

static MESSAGE: [u8; 74] =
    *b"hal-shim: the processor has no 64-bit mode, or none that can forbid code\n\0";

/// In 64-bit mode. ebp: the start info; no stack yet.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        "mov eax, {data}",
        "mov ss, eax",
        "mov ds, eax",
        "mov es, eax",
        "lea rsp, [rip + __boot_stack_top]",
        "mov edi, ebp",
        "xor ebp, ebp",
        "call {main}",
        data = const DATA,
        main = sym boot,
    )
}

/// The address at which the others begin: in the first MiB, and that of a page. Nothing else is
/// there.
const TRAMPOLINE: usize = 0x8000;

/// In real mode, at [`TRAMPOLINE`]; no stack yet.
#[unsafe(naked)]
unsafe extern "C" fn trampoline() {
    naked_asm!(
        ".code16",
        "2:",
        "cli",
        "cld",
        "xor eax, eax",
        "mov ds, ax",
        // The prefix makes it load 32 bits of the base.
        ".byte 0x66",
        "lgdt [hal_shim_gdt_pointer]",
        "mov eax, {cr4}",
        "mov cr4, eax",
        "mov eax, offset {kernel}",
        "mov cr3, eax",
        "mov ecx, {efer}",
        "rdmsr",
        "or eax, {efer_on}",
        "wrmsr",
        "mov eax, {cr0}",
        "mov cr0, eax",
        // A far jump to 64-bit code, with a 32-bit address.
        ".byte 0x66, 0xea",
        ".long {start_other}",
        ".word {code}",
        "3:",
        ".set hal_shim_gdt_pointer, {trampoline} + (3b - 2b)",
        ".word {gdt_size} - 1",
        ".long {gdt}",
        ".code64",
        ".global hal_shim_trampoline_end",
        "hal_shim_trampoline_end:",
        trampoline = const TRAMPOLINE,
        cr4 = const CR4_PAE_PGE,
        kernel = sym KERNEL,
        efer = const EFER,
        efer_on = const EFER_LME_NXE,
        cr0 = const CR0_PG_WP_PE,
        start_other = sym start_other,
        code = const CODE,
        gdt_size = const size_of::<[u64; 3]>(),
        gdt = sym GDT,
    )
}

/// In 64-bit mode; no stack yet.
#[unsafe(naked)]
unsafe extern "C" fn start_other() -> ! {
    naked_asm!(
        "mov eax, {data}",
        "mov ss, eax",
        "mov ds, eax",
        "mov es, eax",
        "mov eax, {apic_id_register}",
        "mov eax, [rax]",
        "shr eax, 24",
        // Its `Core` is the one with this number.
        "lea rdi, [rip + {cores}]",
        "2:",
        "cmp [rdi + {apic_id}], eax",
        "je 3f",
        "add rdi, {core}",
        "jmp 2b",
        "3:",
        "mov rsp, [rdi + {boot_stack_top}]",
        "xor ebp, ebp",
        "call {main_other}",
        data = const DATA,
        apic_id_register = const apic::BASE + apic::ID,
        cores = sym CORES,
        apic_id = const offset_of!(Core, id),
        core = const size_of::<Core>(),
        boot_stack_top = const offset_of!(Core, boot_stack_top),
        main_other = sym boot_other,
    )
}

extern "C" fn boot(info: &'static StartInfo) -> ! {
    // SAFETY: called first, once, by core 0.
    unsafe { become_core(&CORES[0]) };
    init_console();
    if info.magic != MAGIC || info.version == 0 {
        fail(format_args!(
            "this is not a start info of PVH, version 1 or later: magic {:#x}, version {}",
            info.magic, info.version
        ));
    }
    COMMAND_LINE.store(at(info.command_line), Ordering::Relaxed);
    apic::check();
    apic::mask_legacy();
    set_cores(find_cores(info));
    init_memory(info);
    apic::init_core();
    apic::calibrate();
    bare::main()
}

extern "C" fn boot_other(core: &'static Core) -> ! {
    // SAFETY: called first, once by each core, with a `Core` of its own.
    unsafe { become_core(core) };
    bare::main_other()
}

/// A pointer to the memory at a physical address.
fn at<T>(address: u64) -> *mut T {
    core::ptr::with_exposed_provenance_mut(address as usize)
}

/// The end of the boot code's map.
const BOOT_MAP: usize = BOOT_GIBS << 30;

/// The regions of RAM within `part`.
fn memory(info: &StartInfo, part: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    // SAFETY: the loader left the memory map there, and no code writes it.
    let map: &'static [Region] = unsafe {
        core::slice::from_raw_parts(at(info.memory_map), info.memory_map_entries as usize)
    };
    let regions = map.iter().filter(|region| region.kind == RAM).map(move |region| {
        let end = region.start.saturating_add(region.size);
        (region.start as usize).max(part.start)..(end as usize).min(part.end)
    });
    regions.filter(|region| !region.is_empty())
}

/// Adds all RAM above the kernel to the heap, and completes the kernel's map. The firmware and the
/// loader use the RAM below.
fn init_memory(info: &StartInfo) {
    let start = (&raw const __heap_start).addr();
    for region in memory(info, start..BOOT_MAP) {
        // SAFETY: called once, and the linker script puts nothing there.
        unsafe { HEAP.add(region) };
    }
    let Some(end) = memory(info, start..RAM_END).map(|region| region.end).max() else {
        fail(format_args!("the loader's memory map has no memory above the kernel"))
    };
    if space::init(end).is_none() {
        fail(format_args!("no memory for page tables"));
    }
    for region in memory(info, BOOT_MAP..RAM_END) {
        // SAFETY: called once, `space::init` has mapped it, and no code uses it.
        unsafe { HEAP.add(region) };
    }
    // Not earlier, since QEMU puts the start info there.
    if space::unmap_null().is_none() {
        fail(format_args!("no memory for page tables"));
    }
}

/// Numbers the processors in the order in which ACPI's tables list them, and returns how many there
/// are.
fn find_cores(info: &StartInfo) -> usize {
    /// # Safety
    ///
    /// One of ACPI's tables has a `T` at this address.
    unsafe fn read<T>(address: u64) -> T {
        // SAFETY: the caller's promise.
        unsafe { at::<T>(address).read_unaligned() }
    }
    /// # Safety
    ///
    /// One of ACPI's tables begins at this address.
    unsafe fn length(table: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe { read::<u32>(table + 4) }.into()
    }
    /// The length of the head that all tables have.
    const HEAD: u64 = 36;
    /// The length of the head of the table that lists processors.
    const PROCESSORS_HEAD: u64 = 44;
    /// The kind of a processor's entry there, and the flag of a processor that can be used.
    const PROCESSOR: u8 = 0;
    const ENABLED: u32 = 1 << 0;

    // The processor that runs this is core 0.
    let boot_core = apic::id();
    CORES[0].id.store(boot_core as usize, Ordering::Relaxed);
    let mut number = 1;
    if info.acpi == 0 {
        return number;
    }
    // SAFETY: the firmware's tables are at these addresses, and are read within the lengths that
    // they give.
    unsafe {
        let (list, size) = match read::<u8>(info.acpi + 15) {
            0 | 1 => (read::<u32>(info.acpi + 16).into(), 4),
            _ => (read::<u64>(info.acpi + 24), 8),
        };
        let mut tables = (list + HEAD..list + length(list))
            .step_by(size)
            .map(|entry| if size == 4 { read::<u32>(entry).into() } else { read::<u64>(entry) });
        let Some(table) = tables.find(|&table| read::<[u8; 4]>(table) == *b"APIC") else {
            return number;
        };
        let mut entry = table + PROCESSORS_HEAD;
        while entry < table + length(table) {
            let [kind, size, _, id] = read::<[u8; 4]>(entry);
            let is_other = kind == PROCESSOR
                && u32::from(id) != boot_core
                && read::<u32>(entry + 4) & ENABLED != 0;
            if is_other && let Some(core) = CORES.get(number) {
                core.id.store(id.into(), Ordering::Relaxed);
                number += 1;
            }
            // At least 2, so that a wrong size of 0 does not loop for ever.
            entry += u64::from(size.max(2));
        }
    }
    number
}

pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    let line = COMMAND_LINE.load(Ordering::Relaxed);
    // SAFETY: the pointer is null, or the loader's string, which ends with 0 and is never written.
    let line = if line.is_null() { c"" } else { unsafe { CStr::from_ptr(line.cast()) } };
    line.to_str().unwrap_or("").split_ascii_whitespace()
}

/// Starts a core that has its number and its boot stack. If it doesn't come up, resets it.
pub(crate) fn bring_up(core: &'static Core) -> Result<(), isize> {
    const MILLISECOND: u64 = 1_000_000;
    let wait = |nanoseconds| {
        let end = Machine.now() + nanoseconds;
        while Machine.now() < end && !core.is_up.load(Ordering::Acquire) {
            spin_loop();
        }
    };
    // SAFETY: the page is RAM on every PC, and no other code uses it. If several cores do this at
    // the same time, they write the same bytes. The label is the end of the code.
    unsafe {
        let code = trampoline as *const () as *const u8;
        let size = (&raw const hal_shim_trampoline_end).addr() - code.addr();
        at::<u8>(TRAMPOLINE as u64).copy_from_nonoverlapping(code, size);
    }
    let id = core.id.load(Ordering::Relaxed) as u32;
    apic::send(apic::INIT, id);
    wait(10 * MILLISECOND);
    // The second message is for a processor that misses the first. A running one ignores it.
    for patience in [MILLISECOND, 1000 * MILLISECOND] {
        apic::send(apic::STARTUP | (TRAMPOLINE >> 12) as u32, id);
        wait(patience);
        // Acquire pairs with the release in `bare::main_other`.
        if core.is_up.load(Ordering::Acquire) {
            return Ok(());
        }
    }
    apic::send(apic::INIT, id);
    Err(0)
}
