//! QEMU's x86_64 `q35`, booted by PVH: an IDT of which two gates are used (the timer and spurious
//! interrupts), the local APIC's timer, and gs as per-core register.
//!
//! The vector saves the registers that a call does not preserve, and no more. The compiler saves
//! the others in the functions that use them, and `switch` saves them where the core leaves the
//! stack: both on the same stack. There is no user mode, so there is no `swapgs`.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

use crate::kernel::{CPU, Cpu, main, on_fault, on_timer_interrupt};

/// The ELF note in which QEMU finds the entry.
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

/// The page tables, which map 4 GiB to themselves: a root, a table of GiBs, and four tables of
/// pages of 2 MiB.
#[repr(align(4096))]
#[expect(dead_code, reason = "Rust code never looks at it")]
struct Tables(UnsafeCell<[[u64; 512]; 6]>);

// SAFETY: only the boot code writes the tables, and later only the processor accesses them.
unsafe impl Sync for Tables {}

static TABLES: Tables = Tables(UnsafeCell::new([[0; 512]; 6]));
const PRESENT_WRITE: u32 = 0b11;
const LARGE: u32 = 1 << 7;

/// The segments: null, code, data.
static GDT: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;

/// The operand of `lgdt`, `lidt`, `sgdt` and `sidt`.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: usize,
}

/// The operand of the 32-bit `lgdt`, which reads the lower half of the address. The upper half is
/// zero.
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

/// The entry, in protected mode without paging and without a stack.
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
        // Enables PAE, sets the page tables, enables long mode, and then paging, in protected mode.
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
        // A far jump to the 64-bit code.
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

/// The 64-bit part of the entry: sets the segments, the stack and gs.
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

/// The vector of the timer. The processor has aligned the stack to 16 and pushed five words, ss to
/// rip. With nine more words the stack is aligned again. The processor has cleared TF and NT, but
/// neither DF nor AC, which the interrupted code may have set: they are cleared here, and `iretq`
/// restores them.
#[unsafe(naked)]
unsafe extern "C" fn timer_vector() {
    naked_asm!(
        ".irp r, rax,rcx,rdx,rsi,rdi,r8,r9,r10,r11",
        "  push \\r",
        ".endr",
        "push {flags}",
        "popfq",
        "call {on_timer}",
        // Other tasks may have run, but this is the stack from before, and the handler's callees
        // have preserved all other registers.
        ".irp r, r11,r10,r9,r8,rdi,rsi,rdx,rcx,rax",
        "  pop \\r",
        ".endr",
        "iretq",
        flags = const RESERVED,
        on_timer = sym on_timer,
    )
}

/// The vector of an interrupt that was withdrawn.
#[unsafe(naked)]
unsafe extern "C" fn spurious_vector() {
    naked_asm!("iretq")
}

/// The vector of all other traps, with or without an error code. The first two words that the
/// processor pushed are reported.
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

/// The vectors after the processor's own 32.
const TIMER_VECTOR: usize = 32;
const SPURIOUS_VECTOR: usize = 33;

#[repr(align(16))]
struct Idt(UnsafeCell<[[u64; 2]; 34]>);

// SAFETY: only `init` writes the table, and later only the processor reads it.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 34]));

/// Returns an interrupt gate, in which the processor clears IF.
fn gate(entry: unsafe extern "C" fn()) -> [u64; 2] {
    const PRESENT_INTERRUPT: u64 = 0x8e << 40;
    let entry = entry as usize as u64;
    let low = entry & 0xffff | u64::from(CODE) << 16 | (entry >> 16 & 0xffff) << 48;
    [low | PRESENT_INTERRUPT, entry >> 32]
}

/// The registers of the local APIC.
const APIC: usize = 0xfee0_0000;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const DIVIDE: usize = 0x3e0;
/// The HPET: a clock that reports its own frequency.
const HPET: usize = 0xfed0_0000;
const HPET_PERIOD: usize = 0x4;
const HPET_CONFIG: usize = 0x10;
const HPET_COUNTER: usize = 0xf0;

/// Writes a register of a device.
///
/// # Safety
///
/// The device must accept that value.
unsafe fn write(register: usize, value: u32) {
    // SAFETY: the caller promises that the device accepts the value. The machine has both devices.
    unsafe { with_exposed_provenance_mut::<u32>(register).write_volatile(value) };
}

/// Writes to an I/O port.
///
/// # Safety
///
/// The device at `port` must accept that value.
unsafe fn out(port: u16, value: u8) {
    // SAFETY: the caller promises that the device accepts the value.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

extern "C" fn on_timer() {
    // SAFETY: the write acknowledges the interrupt.
    unsafe { write(APIC + END_OF_INTERRUPT, 0) };
    on_timer_interrupt();
}

/// Installs the IDT and sets up the clock and the timer.
pub fn init() {
    let mut idt = [gate(fault_vector); 34];
    idt[TIMER_VECTOR] = gate(timer_vector);
    idt[SPURIOUS_VECTOR] = gate(spurious_vector);
    let pointer = TablePointer { limit: size_of_val(&idt) as u16 - 1, base: IDT.0.get().addr() };
    // SAFETY: interrupts are masked, and the table is not in use before `lidt`, when it has all
    // gates. The two `out`s mask the old interrupt controllers. KERNEL_GS_BASE is only used by
    // `swapgs`, which no code executes.
    unsafe {
        IDT.0.get().write(idt);
        asm!("lidt [{}]", in(reg) &pointer, options(nostack));
        out(0x21, 0xff);
        out(0xa1, 0xff);
        asm!(
            "wrmsr",
            in("ecx") KERNEL_GS_BASE,
            in("eax") 0x6773_2121,
            in("edx") 0,
            options(nostack),
        );
    }
    // SAFETY: the clock runs. The timer, one-shot and without a divisor, has its gate, and is not
    // set yet.
    unsafe {
        write(HPET + HPET_CONFIG, 1);
        write(APIC + SPURIOUS, 1 << 8 | SPURIOUS_VECTOR as u32);
        write(APIC + DIVIDE, 0b1011);
        write(APIC + TIMER, TIMER_VECTOR as u32);
    }
}

/// Returns the per-core register.
pub fn cpu() -> *const Cpu {
    let cpu;
    // SAFETY: if gs is the kernel's, this reads a field that never changes. If not, the test has
    // failed.
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

/// Returns the nanoseconds of the clock.
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

/// Sets the timer to fire at `at`: at once if that time has passed, not at all at `u64::MAX`.
/// (QEMU's timer counts nanoseconds. It fires early if it cannot count so far, which is allowed.)
pub fn set_timer(at: u64) {
    let count = match at {
        u64::MAX => 0,
        at => at.saturating_sub(now()).saturating_add(1).min(u32::MAX.into()) as u32,
    };
    // SAFETY: the timer's vector is installed.
    unsafe { write(APIC + INITIAL_COUNT, count) };
}

/// Waits for an interrupt. `sti` lets no interrupt in before `hlt`.
pub fn wait() {
    // SAFETY: interrupts are masked before and after. The block is a compiler barrier, since the
    // interrupt is handled within it.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}

/// Flags: the one that is always set; IF, interrupts are enabled; and those that code may set for
/// itself: DF, and AC, with which `stac` allows accesses to users' pages.
const RESERVED: usize = 1 << 1;
const IF: usize = 1 << 9;
const DF_AC: usize = 1 << 10 | 1 << 18;

/// Masks interrupts, and returns whether they were enabled.
pub fn mask() -> usize {
    let flags: usize;
    // SAFETY: masking interrupts does not endanger memory. The block is a compiler barrier.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    flags & IF
}

/// Enables interrupts if `state` says so.
///
/// # Safety
///
/// `state` must be what `mask` returned.
pub unsafe fn restore(state: usize) {
    if state != 0 {
        // SAFETY: `state` says that interrupts were enabled before the `mask` with which this
        // pairs.
        unsafe { enable() };
    }
}

/// Enables interrupts.
///
/// # Safety
///
/// Interrupts may come now.
pub unsafe fn enable() {
    // SAFETY: the caller promises that interrupts may come. The block is a compiler barrier.
    unsafe { asm!("sti", options(nostack)) };
}

pub fn put(byte: u8) {
    // SAFETY: this is the UART's data register. QEMU's UART is always ready.
    unsafe { out(0x3f8, byte) };
}

/// Ends QEMU with an exit code.
pub fn exit(code: u8) -> ! {
    loop {
        // SAFETY: the device `isa-debug-exit` is for this. QEMU ends with twice the value plus one,
        // and 1 stands for QEMU's own failure, so the value is the code plus one.
        unsafe { out(0xf4, code + 1) };
    }
}

/// Returns a model-specific register.
fn model_specific(register: u32) -> usize {
    let (low, high): (u32, u32);
    // SAFETY: it reads a register that every 64-bit processor has.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    (high as usize) << 32 | low as usize
}

/// Returns the registers that belong to the kernel: IDT, GDT, task register, the bases of gs and
/// fs.
pub fn system_registers() -> [usize; 6] {
    let mut tables = [const { TablePointer { limit: 0, base: 0 } }; 2];
    let task: usize;
    // SAFETY: it only reads registers, into `tables`.
    unsafe {
        asm!("sidt [{}]", in(reg) &raw mut tables[0], options(nostack));
        asm!("sgdt [{}]", in(reg) &raw mut tables[1], options(nostack));
        asm!("str {}", out(reg) task, options(nomem, nostack));
    }
    let [idt, gdt] = tables;
    let bases = [GS_BASE, KERNEL_GS_BASE, FS_BASE].map(model_specific);
    [idt.base, gdt.base, task, bases[0], bases[1], bases[2]]
}

/// Sets DF and AC, counts `rounds` down to zero, checks that both are still set, and clears them.
/// Returns 0 if both were still set.
///
/// # Safety
///
/// There are no conditions: the function only counts.
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

/// Returns whether DF or AC is set now.
pub fn sees_others_own() -> bool {
    let flags: usize;
    // SAFETY: it only reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags & DF_AC != 0
}

/// Fills all registers with `seed` + 1, `seed` + 2 and so on, counts `rounds` down to zero, and
/// checks the registers. Returns 0 if no register has changed.
///
/// # Safety
///
/// There are no conditions: the function only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(seed: usize, rounds: usize) -> usize {
    naked_asm!(
        ".irp r, rbp,rbx,r12,r13,r14,r15",
        "  push \\r",
        ".endr",
        // rdi: the value; rsi: the counter. All registers but rsp are filled.
        ".irp r, rax,rcx,rdx,rbx,rbp,r8,r9,r10,r11,r12,r13,r14,r15",
        "  inc rdi",
        "  mov \\r, rdi",
        ".endr",
        "2:",
        "dec rsi",
        "jnz 2b",
        // rsi: the bits that differ. The registers are checked in the opposite order.
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
