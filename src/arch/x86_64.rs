//! x86_64, System V ABI: the switch.
//!
//! # A stack that is off the core
//!
//! ```text
//!   higher addresses
//!   |        ...           |
//!   |  the caller's frame  |
//!   +----------------------+
//!   |  rip: where to go on |   pushed by the call of `switch`
//!   |  rbp                 |
//!   |  rbx                 |
//!   |  r12, r13, r14, r15  |
//!   +----------------------+ <- Context (= rsp), a `Frame`
//! ```
//!
//! # A stack that was prepared and not yet entered
//!
//! ```text
//!   +----------------------+ <- top, aligned to 16
//!   |  0                   |   `main`'s return address: there is no caller, so an unwinder, a
//!   +----------------------+   debugger and a walk along the frame pointers end here
//!   |  rip: `start`        |
//!   |  rbp: 0              |   no frame pointer below `main`'s
//!   |  rbx                 |
//!   |  r12: `main`         |
//!   |  r13: its argument   |
//!   |  r14, r15            |
//!   +----------------------+ <- Context, a `Frame`
//! ```
//!
//! # What is switched, and what is not
//!
//! The registers that the ABI has a callee preserve: rbx, rbp, r12 to r15, and rsp. No vector
//! register is among them. The control words of MXCSR and of the x87 unit are, but Rust code may
//! assume them to be as the language started with: to go on with others is undefined behaviour
//! already before a switch could carry them along. So they stay as they are. Neither `gs` nor `fs`
//! nor the interrupt flag is touched.
//!
//! A preempted stack looks no different: above the caller's frame lie those of the handler that
//! left the core and what the trap (or the signal) has saved of the interrupted code.

use core::arch::naked_asm;
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;

use crate::stackful::{Context, StackMain, StackfulBackend};

/// What lies at a [`Context`].
#[repr(C)]
struct Frame {
    r15: usize,
    r14: usize,
    r13: usize,
    r12: usize,
    rbx: usize,
    rbp: usize,
    rip: usize,
}

/// What lies between a prepared `Frame` and the stack's top: the return address of `main`.
const RETURN_ADDRESS: usize = size_of::<usize>();

const _: () = {
    // `rip` is what a `call` pushes: nothing may lie above it.
    assert!(offset_of!(Frame, rip) + size_of::<usize>() == size_of::<Frame>());
    // The ABI wants `rsp + 8` aligned to 16 at a function's first instruction, and `start` gives
    // `main` the `rsp` that remains when `Frame` has been taken off.
    assert!(RETURN_ADDRESS % 16 == 8);
    assert!((size_of::<Frame>() + RETURN_ADDRESS).is_multiple_of(16));
};

/// The switch of x86_64's System V ABI.
#[derive(Debug)]
pub struct X86_64;

impl X86_64 {
    /// What Linux pushes for a signal: the red zone that it leaves out, the state of all vector
    /// registers (2.7 KiB with AVX-512), the rest of the context and the alignment.
    const SIGNAL: usize = 4096;
    /// A handler's frames down to the switch, in a build without optimization.
    const HANDLER: usize = 4096;
    /// Hosted, one signal frame holds the preempted task, and when it is resumed, one other can come
    /// to lie on top of it. Without an operating system it is one trap context, far smaller than a
    /// signal frame.
    const TRAPS: usize = if cfg!(target_os = "none") {
        Self::SIGNAL + Self::HANDLER
    } else {
        2 * (Self::SIGNAL + Self::HANDLER)
    };
}

// SAFETY: `prepare` writes `size_of::<Frame>() + RETURN_ADDRESS` bytes below `top`, less than
// LEAST_STACK. `switch` saves and loads every register that the ABI has a callee preserve, touches
// the two stacks and `*save` only, neither gs/fs nor the interrupt flag, and as a call of a
// function that the compiler cannot see into it is a barrier.
unsafe impl StackfulBackend for X86_64 {
    const LEAST_STACK: usize = size_of::<Frame>() + RETURN_ADDRESS + Self::TRAPS;

    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context {
        let frame = Frame {
            r15: 0,
            r14: 0,
            r13: argument.expose_provenance(),
            r12: main as usize,
            rbx: 0,
            rbp: 0,
            rip: start as *const () as usize,
        };
        // SAFETY: the caller gives LEAST_STACK writable bytes below `top`, aligned to 16.
        unsafe {
            let return_address = top.byte_sub(RETURN_ADDRESS);
            return_address.cast::<usize>().write(0);
            let context = return_address.byte_sub(size_of::<Frame>());
            context.cast::<Frame>().write(frame);
            Context(context.as_ptr())
        }
    }

    #[inline]
    unsafe fn switch(save: *mut Context, to: Context) {
        // SAFETY: the caller's promise is the same.
        unsafe { switch(save, to) }
    }
}

/// rdi: where to store the context that is left; rsi: the context to go on in.
#[unsafe(naked)]
unsafe extern "C" fn switch(save: *mut Context, to: Context) {
    naked_asm!(
        // rsp points to the return address: the `rip` of the frame that is made below it.
        "sub rsp, {rip}",
        "mov [rsp + {r15}], r15",
        "mov [rsp + {r14}], r14",
        "mov [rsp + {r13}], r13",
        "mov [rsp + {r12}], r12",
        "mov [rsp + {rbx}], rbx",
        "mov [rsp + {rbp}], rbp",
        "mov [rdi], rsp",
        // From here on the other stack.
        "mov rsp, rsi",
        "mov rcx, [rsp + {rip}]",
        "mov r15, [rsp + {r15}]",
        "mov r14, [rsp + {r14}]",
        "mov r13, [rsp + {r13}]",
        "mov r12, [rsp + {r12}]",
        "mov rbx, [rsp + {rbx}]",
        "mov rbp, [rsp + {rbp}]",
        "add rsp, {size}",
        // rcx: the address to go on at. A `ret` would be predicted to go where this stack's
        // `switch` was called from, which is wrong each time.
        "jmp rcx",
        r15 = const offset_of!(Frame, r15),
        r14 = const offset_of!(Frame, r14),
        r13 = const offset_of!(Frame, r13),
        r12 = const offset_of!(Frame, r12),
        rbx = const offset_of!(Frame, rbx),
        rbp = const offset_of!(Frame, rbp),
        rip = const offset_of!(Frame, rip),
        size = const size_of::<Frame>(),
    )
}

/// r12: `main`; r13: its argument; rbp: 0; rsp: at the return address 0.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!("mov rdi, r13", "jmp r12")
}
