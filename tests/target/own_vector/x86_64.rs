//! QEMU's x86_64 `q35`, by PVH: an IDT of which two gates matter, the local APIC's timer, gs.
//!
//! The vector saves what a call doesn't preserve, and no more. The rest the compiler saves in the functions that
//! use it, and `switch` where the stack is left: on the same stack. There is no user mode, so no `swapgs`.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use crate::kernel::{CPU, Cpu, main, on_fault, on_timer_interrupt};

/// An ELF note, by which QEMU finds the entry.
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

/// The map: 4 GiB, each address itself. A root, a table of GiBs, and four of pages of 2 MiB.
#[repr(align(4096))]
#[expect(dead_code, reason = "Rust code never looks at it")]
struct Tables(UnsafeCell<[[u64; 512]; 6]>);

// SAFETY: the boot code writes it, and then only the processor.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables(UnsafeCell::new([[0; 512]; 6]));
const PRESENT_WRITE: u32 = 0b11;
const LARGE: u32 = 1 << 7;

/// Null, code, data.
static GDT: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;

/// What `lgdt` and `lidt` read, and what `sgdt` and `sidt` write.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: usize,
}

/// In 32-bit mode `lgdt` reads half of the address, and that half is all of it.
#[repr(C, packed)]
struct GdtPointer {
    limit: u16,
    base: &'static [u64; 3],
}

static GDT_POINTER: GdtPointer = GdtPointer { limit: size_of_val(&GDT) as u16 - 1, base: &GDT };

const EFER: u32 = 0xc000_0080;
const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// In protected mode, without paging; no stack yet.
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
        "mov edi, offset {tables}",
        "lea eax, [edi + 4096 + {present_write}]",
        "mov [edi], eax",
        ".irp n, 0,1,2,3",
        "  add eax, 4096",
        "  mov [edi + 4096 + 8*\\n], eax",
        ".endr",
        "lea edx, [edi + 2*4096]",
        "mov eax, {present_write} | {large}",
        "mov ecx, 4*512",
        "2:",
        "mov [edx], eax",
        "add eax, 1 << 21",
        "add edx, 8",
        "dec ecx",
        "jnz 2b",
        // PAE; the tables; long mode; paging and protected mode.
        "mov eax, 1 << 5",
        "mov cr4, eax",
        "mov cr3, edi",
        "mov ecx, {efer}",
        "rdmsr",
        "or eax, 1 << 8",
        "wrmsr",
        "mov eax, 1 << 31 | 1 << 0",
        "mov cr0, eax",
        "lgdt [{gdt_pointer}]",
        // A far jump to 64-bit code.
        ".byte 0xea",
        ".long {start}",
        ".word {code}",
        ".code64",
        tables = sym TABLES,
        present_write = const PRESENT_WRITE,
        large = const LARGE,
        efer = const EFER,
        gdt_pointer = sym GDT_POINTER,
        start = sym start,
        code = const CODE,
    )
}

#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        "mov eax, {data}",
        ".irp s, ds,es,ss,fs,gs",
        "  mov \\s, eax",
        ".endr",
        "lea rsp, [rip + __boot_stack_top]",
        "lea rax, [rip + {cpu}]",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, {gs_base}",
        "wrmsr",
        "xor ebp, ebp",
        "call {main}",
        data = const DATA,
        cpu = sym CPU,
        gs_base = const GS_BASE,
        main = sym main,
    )
}

/// The timer. The processor has aligned the stack to 16 and pushed five words, ss to rip; with nine
/// more it is aligned again. It has cleared TF and NT, but neither DF nor AC: what the interrupted code has
/// set for itself is nobody else's, and comes back with it by `iretq`.
#[unsafe(naked)]
unsafe extern "C" fn timer_vector() {
    naked_asm!(
        ".irp r, rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11",
        "  push \\r",
        ".endr",
        "push {flags}",
        "popfq",
        "call {on_timer}",
        // Much may have happened, but this is the stack from before, and the handler's callees have
        // preserved the rest.
        ".irp r, r11,r10,r9,r8,rdi,rsi,rdx,rcx,rax",
        "  pop \\r",
        ".endr",
        "iretq",
        flags = const RESERVED,
        on_timer = sym on_timer,
    )
}

/// An interrupt that was withdrawn.
#[unsafe(naked)]
unsafe extern "C" fn spurious_vector() {
    naked_asm!("iretq")
}

/// Anything else, with or without an error code: the first two words of what was pushed tell enough.
#[unsafe(naked)]
unsafe extern "C" fn fault_vector() {
    naked_asm!(
        "pop rdi",
        "pop rsi",
        "mov rdx, cr2",
        "lea rsp, [rip + __boot_stack_top]",
        "call {on_fault}",
        on_fault = sym on_fault,
    )
}

/// The vectors behind the processor's own 32.
const TIMER_VECTOR: usize = 32;
const SPURIOUS_VECTOR: usize = 33;

#[repr(align(16))]
struct Idt(UnsafeCell<[[u64; 2]; 34]>);

// SAFETY: `init` writes it, and then only the processor reads it.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 34]));

/// An interrupt gate: IF is cleared.
fn gate(entry: unsafe extern "C" fn()) -> [u64; 2] {
    const PRESENT_INTERRUPT: u64 = 0x8e << 40;
    let entry = entry as usize as u64;
    let low = entry & 0xffff | u64::from(CODE) << 16 | (entry >> 16 & 0xffff) << 48;
    [low | PRESENT_INTERRUPT, entry >> 32]
}

/// The local APIC's registers.
const APIC: usize = 0xfee0_0000;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const DIVIDE: usize = 0x3e0;
/// The HPET, a clock that says how fast it is.
const HPET: usize = 0xfed0_0000;
const HPET_PERIOD: usize = 0x4;
const HPET_CONFIG: usize = 0x10;
const HPET_COUNTER: usize = 0xf0;

/// # Safety
///
/// The device can be given that value.
unsafe fn write(register: usize, value: u32) {
    // SAFETY: the caller's promise. The machine has both devices.
    unsafe { with_exposed_provenance_mut::<u32>(register).write_volatile(value) };
}

/// # Safety
///
/// The device at `port` can be given that value.
unsafe fn out(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

extern "C" fn on_timer() {
    // SAFETY: acknowledges it.
    unsafe { write(APIC + END_OF_INTERRUPT, 0) };
    on_timer_interrupt();
}

pub fn init() {
    let mut idt = [gate(fault_vector); 34];
    idt[TIMER_VECTOR] = gate(timer_vector);
    idt[SPURIOUS_VECTOR] = gate(spurious_vector);
    let pointer = TablePointer { limit: size_of_val(&idt) as u16 - 1, base: IDT.0.get().addr() };
    // SAFETY: interrupts are masked, and nobody uses the table yet, which then has all gates. The
    // controllers of old are masked. What lies in KERNEL_GS_BASE nobody uses without `swapgs`.
    unsafe {
        IDT.0.get().write(idt);
        asm!("lidt [{}]", in(reg) &pointer, options(nostack));
        out(0x21, 0xff);
        out(0xa1, 0xff);
        asm!("wrmsr", in("ecx") KERNEL_GS_BASE, in("eax") 0x6773_2121, in("edx") 0, options(nostack));
    }
    // SAFETY: the clock runs; the timer, by one and one-shot, has its gate, and isn't set yet.
    unsafe {
        write(HPET + HPET_CONFIG, 1);
        write(APIC + SPURIOUS, 1 << 8 | SPURIOUS_VECTOR as u32);
        write(APIC + DIVIDE, 0b1011);
        write(APIC + TIMER, TIMER_VECTOR as u32);
    }
}

/// The per-core register.
pub fn cpu() -> *const Cpu {
    let cpu;
    // SAFETY: if gs is the kernel's, this reads what never changes; if not, the test has failed.
    unsafe {
        asm!(
            "mov {}, gs:[{this}]",
            out(reg) cpu,
            this = const offset_of!(Cpu, this),
            options(readonly, nostack, preserves_flags),
        )
    };
    cpu
}

pub fn now() -> u64 {
    // SAFETY: reading the device has no effect.
    let (counter, femtoseconds) = unsafe {
        (
            with_exposed_provenance::<u64>(HPET + HPET_COUNTER).read_volatile(),
            with_exposed_provenance::<u32>(HPET + HPET_PERIOD).read_volatile(),
        )
    };
    (u128::from(counter) * u128::from(femtoseconds) / 1_000_000) as u64
}

/// Has the timer fire at `at` or, if that has passed, at once; at `u64::MAX` not at all. (QEMU's counts
/// nanoseconds. Early, if it cannot count so far: that is allowed.)
pub fn set_timer(at: u64) {
    let count = match at {
        u64::MAX => 0,
        at => at.saturating_sub(now()).saturating_add(1).min(u32::MAX.into()) as u32,
    };
    // SAFETY: its handler is there.
    unsafe { write(APIC + INITIAL_COUNT, count) };
}

/// Waits for an interrupt: `sti` lets none in before `hlt`.
pub fn wait() {
    // SAFETY: a barrier, as the interrupt is handled here. They are masked before and after.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// The flags: one that is always set; that interrupts are enabled; and those that code may set for itself: DF,
/// and AC, by which `stac` allows accesses to users' pages.
const RESERVED: usize = 1 << 1;
const IF: usize = 1 << 9;
const DF_AC: usize = 1 << 10 | 1 << 18;

pub fn mask() -> usize {
    let flags: usize;
    // SAFETY: no danger to memory. A barrier for the compiler.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags & IF
}

/// # Safety
///
/// `state` is what `mask` returned.
pub unsafe fn restore(state: usize) {
    if state != 0 {
        // SAFETY: the caller's promise.
        unsafe { enable() };
    }
}

/// # Safety
///
/// Interrupts may come.
pub unsafe fn enable() {
    // SAFETY: the caller's promise. A barrier for the compiler.
    unsafe { asm!("sti", options(nostack)) };
}

pub fn put(byte: u8) {
    // SAFETY: the UART's data register. QEMU's is always ready.
    unsafe { out(0x3f8, byte) };
}

pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: `isa-debug-exit` is for this. QEMU ends with twice the value plus one, and 1 is its own
        // failure: so it is given one more.
        unsafe { out(0xf4, code + 1) };
    }
}

fn model_specific(register: u32) -> usize {
    let (low, high): (u32, u32);
    // SAFETY: reads a register that every 64-bit processor has.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    (high as usize) << 32 | low as usize
}

/// What is the kernel's: IDT, GDT, task register, the bases of gs and fs.
pub fn system_registers() -> [usize; 6] {
    let mut tables = [const { TablePointer { limit: 0, base: 0 } }; 2];
    let task: usize;
    // SAFETY: only reads, into `tables`.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut tables[0], options(nostack));
        asm!("sgdt [{}]", in(reg) &raw mut tables[1], options(nostack));
        asm!("str {}", out(reg) task, options(nomem, nostack));
    }
    let [idt, gdt] = tables;
    let bases = [GS_BASE, KERNEL_GS_BASE, FS_BASE].map(model_specific);
    [idt.base, gdt.base, task, bases[0], bases[1], bases[2]]
}

/// Sets DF and AC, counts `rounds` down to zero, looks whether both are set, and clears them. Returns whether
/// one was lost: 0 or not.
///
/// # Safety
///
/// None: it only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold_own(rounds: usize) -> usize {
    naked_asm!(
        "pushfq",
        "or dword ptr [rsp], {df_ac}",
        "popfq",
        "2:",
        "dec rdi",
        "jnz 2b",
        "pushfq",
        "mov rax, [rsp]",
        "and dword ptr [rsp], ~{df_ac}",
        "popfq",
        "and eax, {df_ac}",
        "xor eax, {df_ac}",
        "ret",
        df_ac = const DF_AC,
    )
}

/// Whether one of the two is set now.
pub fn sees_others_own() -> bool {
    let flags: usize;
    // SAFETY: only reads.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags & DF_AC != 0
}

/// Fills all registers with `seed` + 1, `seed` + 2 and so on, counts `rounds` down to zero, and looks whether they
/// are still there. Returns 0 if so.
///
/// # Safety
///
/// None: it only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(seed: usize, rounds: usize) -> usize {
    naked_asm!(
        ".irp r, rbp,rbx,r12,r13,r14,r15",
        "  push \\r",
        ".endr",
        // rdi: the value; rsi: the counter. All but rsp.
        ".irp r, rax,rcx,rdx,rbx,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
        "  inc rdi",
        "  mov \\r, rdi",
        ".endr",
        "2:",
        "dec rsi",
        "jnz 2b",
        // rsi: what differs. Backwards.
        ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rbp,rbx,rdx,rcx,rax",
        "  xor \\r, rdi",
        "  or rsi, \\r",
        "  dec rdi",
        ".endr",
        "mov rax, rsi",
        ".irp r, r15,r14,r13,r12,rbx,rbp",
        "  pop \\r",
        ".endr",
        "ret",
    )
}
