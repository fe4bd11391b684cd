//! User programs for x86_64, and what the tests need to know of the architecture.

use core::arch::{asm, global_asm, naked_asm};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;

use hal_shim::{interrupt, trap};
use trapline::arch::TrapContext;
use trapline::time::now;
use trapline::trap::{Access, Trap};

use super::{CALL, Hooks, Label, Process, STACK_AT, Space, first_trap, next_trap, program};

/// The trap that `user_other` ends with: a general protection fault, with the loaded selector as
/// error code.
pub const OTHER: usize = 13 | 0x28 << 8;
/// Whether a page that is mapped as not executable cannot be executed.
pub const HAS_NO_EXECUTE: bool = true;
/// Whether there is a breakpoint that is shorter than the shortest other instruction.
pub const HAS_SHORT_BREAKPOINT: bool = false;

global_asm!(
    ".pushsection .rodata.user, \"a\"",
    ".balign 16",
    ".globl user_code, user_code_end, user_call, user_spin, user_spin_a_while, user_load, user_store",
    ".globl user_jump, user_push, user_breakpoint, user_short_breakpoint, user_illegal",
    ".globl user_privileged, user_other, user_poison, user_compute, user_registers",
    ".globl user_flags, user_local_segment, user_thread_pointer",
    "user_code:",
    // Calls again and again, with the registers unchanged. The fourth argument is moved from rcx to
    // r10 first. The result of a call is the number of the next one.
    "user_call:",
    "  mov r10, rcx",
    "2:",
    "  syscall",
    "  jmp 2b",
    "user_spin:",
    "  inc rbx",
    "  jmp user_spin",
    // rdi: the number of rounds.
    "user_spin_a_while:",
    "  dec rdi",
    "  jnz user_spin_a_while",
    "  syscall",
    // rdi: the address, here and in the next three programs.
    "user_load:",
    "  mov rax, [rdi]",
    "  syscall",
    "user_store:",
    "  mov [rdi], rax",
    "  syscall",
    "user_jump:",
    "  jmp rdi",
    "user_push:",
    "  push rdi",
    "  syscall",
    "user_breakpoint:",
    // The long form of the breakpoint.
    "  .byte 0xcd, 3",
    "  mov eax, 77",
    "  syscall",
    "user_short_breakpoint:",
    "  int3",
    "  mov eax, 77",
    "  syscall",
    "user_illegal:",
    "  ud2",
    "user_privileged:",
    "  mov rax, cr3",
    "  syscall",
    "user_other:",
    "  mov eax, 0x28",
    "  mov ds, eax",
    "  syscall",
    // Overwrites the kernel's state (segments, pointers, flags), then calls again and again.
    "user_poison:",
    "  xor eax, eax",
    "  mov gs, eax",
    "  mov fs, eax",
    "  mov ds, eax",
    "  mov rsp, -1",
    "  mov rbp, -1",
    "  std",
    "2:",
    "  syscall",
    "  jmp 2b",
    // Sets DF, NT and AC, and then faults by a load from address 0.
    "user_flags:",
    "  push 0x44400",
    "  popfq",
    "  mov rax, [0]",
    // Calls again and again, with the word at its thread pointer in rdx.
    "user_thread_pointer:",
    "  mov rdx, fs:[0]",
    "  syscall",
    "  jmp user_thread_pointer",
    // Loads a segment from the local descriptor table, which a program does not have.
    "user_local_segment:",
    "  mov eax, 7",
    "  mov ds, eax",
    "  syscall",
    // rdi: a value, written to xmm9 if rsi is not 0. Calls again and again, with the bits of xmm9
    // in rdx.
    "user_compute:",
    "  test rsi, rsi",
    "  jz 2f",
    "  movq xmm9, rdi",
    "2:",
    "  movq rdx, xmm9",
    "  syscall",
    "  jmp 2b",
    // rdi: the address of a word that ends the program when it is not 0; rsi: a seed. Fills all
    // registers from the seed and checks them again and again. The number of the call is not 0 if a
    // register was changed.
    "user_registers:",
    // rbp: the address of the word. rsp: the seed, so nothing can be pushed. Register n holds seed
    // + n.
    "  mov rbp, rdi",
    "  mov rsp, rsi",
    // Writes to the second word whether the processor has the upper halves of ymm.
    "  mov eax, 1",
    "  cpuid",
    "  and ecx, 1 << 28 | 1 << 27",
    "  xor eax, eax",
    "  cmp ecx, 1 << 28 | 1 << 27",
    "  sete al",
    "  mov [rbp + 8], rax",
    // Sets a control word that depends on the seed, so that no other program has it: the mask of
    // exceptions.
    "  mov eax, esp",
    "  and eax, 3",
    "  shl eax, 13",
    "  or eax, 0x1f80",
    "  mov [rbp + 16], eax",
    "  ldmxcsr [rbp + 16]",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "  lea rax, [rsp + 100 + \\n]",
    "  movq xmm\\n, rax",
    ".endr",
    "  cmp qword ptr [rbp + 8], 0",
    "  je 3f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "  vinsertf128 ymm\\n, ymm\\n, xmm\\n, 1",
    ".endr",
    "3:",
    // Fills the top of the x87 unit's stack.
    "  lea rax, [rsp + 99]",
    "  mov [rbp + 24], rax",
    "  fild qword ptr [rbp + 24]",
    "  mov r15, 0",
    ".irp r, rax,rbx,rcx,rdx,rsi,rdi,r8,r9,r10,r11,r12,r13,r14",
    "  inc r15",
    "  lea \\r, [rsp + r15]",
    ".endr",
    "4:",
    "  mov r15, rsp",
    ".irp r, rax,rbx,rcx,rdx,rsi,rdi,r8,r9,r10,r11,r12,r13,r14",
    "  inc r15",
    "  cmp r15, \\r",
    "  jne 8f",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
    "  lea r15, [rsp + 100 + \\n]",
    "  movq r14, xmm\\n",
    "  cmp r15, r14",
    "  jne 8f",
    ".endr",
    "  cmp qword ptr [rbp + 8], 0",
    "  je 5f",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14",
    "  vextractf128 xmm15, ymm\\n, 1",
    "  lea r15, [rsp + 100 + \\n]",
    "  movq r14, xmm15",
    "  cmp r15, r14",
    "  jne 8f",
    ".endr",
    "  lea r15, [rsp + 115]",
    "  movq xmm15, r15",
    "5:",
    "  stmxcsr [rbp + 32]",
    "  mov r15d, [rbp + 32]",
    "  cmp r15d, [rbp + 16]",
    "  jne 8f",
    "  fld st(0)",
    "  fistp qword ptr [rbp + 32]",
    "  mov r15, [rbp + 32]",
    "  cmp r15, [rbp + 24]",
    "  jne 8f",
    "  lea r14, [rsp + 13]",
    "  cmp qword ptr [rbp], 0",
    "  je 4b",
    "  xor eax, eax",
    "  syscall",
    "8:",
    "  mov eax, 1",
    "  syscall",
    "user_code_end:",
    ".popsection",
);

/// Loads the byte at `address`. If the load faults, a handler can make this function return by
/// [`skip_probe`].
#[unsafe(naked)]
pub unsafe extern "C" fn probe(address: usize) -> usize {
    naked_asm!("movzx eax, byte ptr [rdi]", "ret")
}

/// Makes an interrupted [`probe`] return `result`.
pub fn skip_probe(context: &mut TrapContext, result: usize) {
    context.registers.rax = result;
    let stack: *const usize = core::ptr::with_exposed_provenance(context.rsp);
    // SAFETY: `probe` pushes nothing, so rsp points to its return address.
    context.rip = unsafe { stack.read() };
    context.rsp += size_of::<usize>();
}

/// Executes a breakpoint in the kernel.
pub fn breakpoint() {
    // SAFETY: the test has installed a handler that answers the breakpoint.
    unsafe { asm!("int3", options(nostack)) }
}

/// Does nothing: a trap context does not hold the per-core register.
pub fn poison_core_register(_: &mut TrapContext) {}

/// Returns whether the program has used floating point.
pub fn has_computed(context: &TrapContext) -> bool {
    context.fp.is_some()
}

/// Overflows the stack of the caller. Does not return.
#[unsafe(naked)]
pub unsafe extern "C" fn overflow() {
    naked_asm!("2:", "push 0", "jmp 2b")
}

/// Sets the stack pointer to an unmapped address, and pushes.
#[unsafe(naked)]
pub unsafe extern "C" fn lose_stack() {
    naked_asm!("mov rsp, -4096", "push 0", "ret")
}

/// Returns whether interrupts were enabled where the trap came from. Always true here: the entry of
/// another trap, which had masked interrupts, may have found the overflow.
pub fn had_interrupts(_: &TrapContext) -> bool {
    true
}

/// Enables interrupts, sets the stack pointer to `sp`, and spins until `stop` is not 0.
#[unsafe(naked)]
pub unsafe extern "C" fn spin_at(sp: usize, stop: &AtomicUsize) {
    naked_asm!(
        "mov rax, rsp",
        "mov rsp, rdi",
        "sti",
        "2:",
        "cmp qword ptr [rsi], 0",
        "je 2b",
        "mov rsp, rax",
        "ret",
    )
}

/// Calls `function` with the stack pointer `sp`.
#[unsafe(naked)]
pub unsafe extern "C" fn call_at(sp: usize, function: extern "C" fn()) {
    naked_asm!(
        "push rbx",
        "mov rbx, rsp",
        "mov rsp, rdi",
        "call rsi",
        "mov rsp, rbx",
        "pop rbx",
        "ret",
    )
}

/// Returns the stack pointer.
pub fn stack_pointer() -> usize {
    let sp;
    // SAFETY: it only reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) sp, options(nomem, nostack)) };
    sp
}

// SAFETY: the assembly above defines the symbols. Only their addresses are taken.
unsafe extern "C" {
    #[link_name = "user_flags"]
    safe static FLAGS: Label;
    #[link_name = "user_local_segment"]
    safe static LOCAL_SEGMENT: Label;
}

pub fn a_programs_flags_are_not_the_kernels() {
    const DF_NT_AC: usize = 1 << 10 | 1 << 14 | 1 << 18;
    let process = Process::new();
    process.enter();
    let mut context = program(&FLAGS, [0; 6]);
    let trap = next_trap(&mut context);
    let flags: usize;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    process.leave();
    assert_eq!(trap, Trap::PageFault { addr: 0, access: Access::Read });
    assert_eq!(context.rflags & DF_NT_AC, DF_NT_AC);
    assert_eq!(flags & DF_NT_AC, 0);
}

pub fn a_program_has_no_segments_of_its_own() {
    // The trap must be a general protection fault. A page fault would mean that the processor
    // looked for a descriptor table at address 0.
    assert_eq!(first_trap(&LOCAL_SEGMENT, 0).0, Trap::Other(13 | 4 << 8));
}

static NMIS: AtomicUsize = AtomicUsize::new(0);
/// How many NMIs came at the entry to kernel mode, where the stack pointer and gs are still the
/// program's.
static NMIS_IN_BETWEEN: AtomicUsize = AtomicUsize::new(0);

fn count_nmi(context: &mut TrapContext) -> bool {
    if context.trap() != Trap::Other(2) {
        return false;
    }
    // The handler finds the core by gs.
    assert_eq!(hal_shim::this_core(), 0);
    if !context.is_user() && context.sp() == STACK_AT + Space::PAGE {
        NMIS_IN_BETWEEN.fetch_add(1, SeqCst);
    }
    NMIS.fetch_add(1, SeqCst);
    true
}

pub fn an_nmi_finds_the_core_where_gs_is_a_programs() {
    trap::on_fault(count_nmi);
    NMIS.store(0, SeqCst);
    interrupt::raise_nmi(0);
    wait_until(|| NMIS.load(SeqCst) == 1);
    for _ in 0..10 {
        // SAFETY: between the two swaps only the NMI's handler uses gs, and it restores gs.
        unsafe { asm!("cli", "swapgs", "int 2", "swapgs", "sti") };
    }
    trap::reset();
    assert_eq!(NMIS.load(SeqCst), 11);
}

pub fn nmis_meet_system_calls() {
    static STOP: AtomicBool = AtomicBool::new(false);
    fn raise_again_and_again() {
        while !STOP.load(SeqCst) {
            let before = NMIS.load(SeqCst);
            interrupt::raise_nmi(0);
            wait_until(|| NMIS.load(SeqCst) != before || STOP.load(SeqCst));
        }
    }
    if hal_shim::cores() < 2 {
        hal_shim::print!("(one core: skipped) ");
        return;
    }
    trap::on_fault(count_nmi);
    STOP.store(false, SeqCst);
    NMIS_IN_BETWEEN.store(0, SeqCst);
    let process = Process::new();
    process.enter();
    wait_until(|| hal_shim::start_core(1, raise_again_and_again).is_ok());
    let arguments = [0, 61, 62, 63, 64, 65];
    let mut context = program(&CALL, arguments);
    wait_until(|| {
        for _ in 0..1000 {
            assert_eq!(next_trap(&mut context), Trap::Syscall);
            assert_eq!(context.syscall().arguments[1..], arguments[1..]);
        }
        NMIS_IN_BETWEEN.load(SeqCst) >= 10
    });
    STOP.store(true, SeqCst);
    // The last NMI may still be on its way. Its handler stays installed until core 1 has stopped.
    wait_until(|| hal_shim::start_core(1, || ()).is_ok());
    wait_until(|| hal_shim::start_core(1, || ()).is_ok());
    process.leave();
    trap::reset();
}

/// Waits for an effect of another core or of an NMI, at most 20 seconds.
fn wait_until(mut is_so: impl FnMut() -> bool) {
    let give_up = now() + Duration::from_secs(20);
    while !is_so() {
        assert!(now() < give_up, "the awaited effect did not come");
        core::hint::spin_loop();
    }
}
