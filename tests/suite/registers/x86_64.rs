//! Checks the registers of x86_64: all but rsp. Hosted, also the vector registers xmm0 to xmm15 and
//! the red zone; kernels are compiled without both.

use core::arch::naked_asm;
use core::mem::{offset_of, size_of};

use super::Patterns;

/// Fills the registers and checks them again and again until the patterns' `stop` is set. Returns
/// 0, or the number of a changed register + 1 (from 101: xmm; 31 and 32: the red zone).
///
/// # Safety
///
/// `patterns` must be writable.
#[unsafe(naked)]
pub unsafe extern "C" fn fill_and_check(patterns: *mut Patterns) -> u64 {
    // The patterns are copied to the stack, so that a register can be compared without the use of
    // another:
    //
    //   rsp + size_of Patterns      the pointer to the caller's patterns
    //   rsp                         the copy
    //   rsp - 8, rsp - 128          the ends of the red zone, filled as well
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        "sub rsp, {size}",
        // rdi: the patterns. rsp is aligned to 16: the return address and seven words were pushed.
        "mov rsi, rdi",
        "mov rdi, rsp",
        "mov ecx, {size} / 8",
        "rep movsq",
        ".if {hosted}",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "  movdqu xmm\\n, [rsp + {float} + 16*\\n]",
        ".endr",
        "mov rax, [rsp + {integer} + 8*30]",
        "mov [rsp - 8], rax",
        "mov rax, [rsp + {integer} + 8*31]",
        "mov [rsp - 128], rax",
        ".endif",
        "mov rax, [rsp + {integer} + 8*0]",
        "mov rbx, [rsp + {integer} + 8*1]",
        "mov rcx, [rsp + {integer} + 8*2]",
        "mov rdx, [rsp + {integer} + 8*3]",
        "mov rsi, [rsp + {integer} + 8*4]",
        "mov rdi, [rsp + {integer} + 8*5]",
        "mov rbp, [rsp + {integer} + 8*6]",
        ".irp n, 8,9,10,11,12,13,14,15",
        "  mov r\\n, [rsp + {integer} + 8*\\n]",
        ".endr",
        // All registers hold their patterns.
        "2:",
        "cmp rax, [rsp + {integer} + 8*0]",
        "mov eax, 1", // moves change no flags
        "jne 9f",
        "cmp rbx, [rsp + {integer} + 8*1]",
        "mov eax, 2",
        "jne 9f",
        "cmp rcx, [rsp + {integer} + 8*2]",
        "mov eax, 3",
        "jne 9f",
        "cmp rdx, [rsp + {integer} + 8*3]",
        "mov eax, 4",
        "jne 9f",
        "cmp rsi, [rsp + {integer} + 8*4]",
        "mov eax, 5",
        "jne 9f",
        "cmp rdi, [rsp + {integer} + 8*5]",
        "mov eax, 6",
        "jne 9f",
        "cmp rbp, [rsp + {integer} + 8*6]",
        "mov eax, 7",
        "jne 9f",
        ".irp n, 8,9,10,11,12,13,14,15",
        "  cmp r\\n, [rsp + {integer} + 8*\\n]",
        "  mov eax, \\n + 1",
        "  jne 9f",
        ".endr",
        ".if {hosted}",
        "mov rax, [rsp - 8]",
        "cmp rax, [rsp + {integer} + 8*30]",
        "mov eax, 31",
        "jne 9f",
        "mov rax, [rsp - 128]",
        "cmp rax, [rsp + {integer} + 8*31]",
        "mov eax, 32",
        "jne 9f",
        // From here on xmm15 and rax are scratch. They are filled again at the end.
        "pcmpeqb xmm15, [rsp + {float} + 16*15]",
        "pmovmskb eax, xmm15",
        "cmp eax, 0xffff",
        "mov eax, 116",
        "jne 9f",
        ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14",
        "  movdqa xmm15, xmm\\n",
        "  pcmpeqb xmm15, [rsp + {float} + 16*\\n]",
        "  pmovmskb eax, xmm15",
        "  cmp eax, 0xffff",
        "  mov eax, 101 + \\n",
        "  jne 9f",
        ".endr",
        "movdqu xmm15, [rsp + {float} + 16*15]",
        ".endif",
        "inc qword ptr [rsp + {rounds}]",
        "mov rax, [rsp + {stop}]",
        "cmp qword ptr [rax], 0",
        "mov rax, [rsp + {integer} + 8*0]",
        "je 2b",
        "xor eax, eax",
        // rax: the result. All other registers are restored.
        "9:",
        "mov rcx, [rsp + {rounds}]",
        "add rsp, {size}",
        "pop rdi",
        "mov [rdi + {rounds}], rcx",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        hosted = const cfg!(target_os = "linux") as usize,
        size = const size_of::<Patterns>(),
        integer = const offset_of!(Patterns, integer),
        float = const offset_of!(Patterns, float),
        stop = const offset_of!(Patterns, stop),
        rounds = const offset_of!(Patterns, rounds),
    )
}

/// Fills rbx, rbp and r12 to r15, which a callee preserves, and calls `function`. Returns the same
/// as [`fill_and_check`].
///
/// # Safety
///
/// `patterns` must be readable.
#[unsafe(naked)]
pub unsafe extern "C" fn fill_and_call(
    patterns: *const Patterns,
    function: extern "C" fn(),
) -> u64 {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdi",
        // rsp is aligned to 16: the return address and seven words were pushed.
        "mov rbx, [rdi + {integer} + 8*1]",
        "mov rbp, [rdi + {integer} + 8*6]",
        ".irp n, 12,13,14,15",
        "  mov r\\n, [rdi + {integer} + 8*\\n]",
        ".endr",
        "call rsi",
        "pop rdi",
        // rdi: the patterns; eax: the result.
        "mov eax, 2",
        "cmp rbx, [rdi + {integer} + 8*1]",
        "jne 9f",
        "mov eax, 7",
        "cmp rbp, [rdi + {integer} + 8*6]",
        "jne 9f",
        ".irp n, 12,13,14,15",
        "  mov eax, \\n + 1",
        "  cmp r\\n, [rdi + {integer} + 8*\\n]",
        "  jne 9f",
        ".endr",
        "xor eax, eax",
        "9:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        integer = const offset_of!(Patterns, integer),
    )
}
