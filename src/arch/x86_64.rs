//! x86_64, System V ABI: the switch and, for kernels that use them, a trap entry and the way into
//! user mode and back.
//!
//! Stacks grow downwards.
//!
//! # A stack that is off the core
//!
//! ```text
//!   higher addresses
//!   |        ...             |
//!   |  the frame of the code |   holds what that code needs of the other registers
//!   |  that switches         |
//!   +------------------------+
//!   |  rip: where to resume  |
//!   |  rbp                   |
//!   |  rbx                   |
//!   +------------------------+ <- Context (= rsp), a `Frame`
//! ```
//!
//! # A stack that was prepared and not yet entered
//!
//! ```text
//!   +------------------------+ <- top, aligned to 16
//!   |  not used              |   keeps rsp aligned to 16 where `start` calls `main`
//!   |  `main`                |
//!   +------------------------+
//!   |  rip: `start`          |   calls `main`. An unwinder ends there
//!   |  rbp: 0                |   ends the chain of frame pointers
//!   |  rbx: its argument     |
//!   +------------------------+ <- Context, a `Frame`
//! ```
//!
//! # A preempted stack
//!
//! ```text
//!   |  interrupted frame     |
//!   +------------------------+ <- rsp of the interrupted code
//!   |  TrapContext           |   pushed by `trap_entry`, or what the kernel's own vector saves;
//!   |                        |   hosted: the signal frame
//!   +------------------------+
//!   |  the handler's frames  |   down to `preempt::on_timer`
//!   +------------------------+
//!   |  Frame                 |   pushed by the same `switch` that a task calls to leave by itself
//!   +------------------------+ <- Context
//! ```
//!
//! # A stack that was interrupted in kernel mode
//!
//! ```text
//!   |  interrupted frame     |
//!   +------------------------+ <- rsp of the interrupted code, rounded down to 16. Below it lies
//!   |  ss, rsp, rflags       |    no red zone: kernels have none. Pushed by the processor
//!   |  cs, rip               |
//!   |  address, cause        |    pushed by the vector's stub (an error code: by the processor)
//!   |  rax ... r15           |    pushed by `trap_entry`
//!   |  0, 0                  |    the place of a user program's FP registers and thread pointer
//!   +------------------------+ <- a `TrapContext`, aligned to 16
//!   |  the handler's frames  |
//! ```
//!
//! # A stack whose task runs a user program
//!
//! ```text
//!   |  TrapContext::run      |          |  ss, rsp, rflags     | <- `Tss::rsp0`: the context's end
//!   +------------------------+          |  cs, rip             |
//!   |  rip, rbp, rbx         |          |  address, cause      |
//!   |  r12 ... r15, rflags   |          |  rax ... r15         |
//!   +------------------------+          |  fp, thread pointer  |
//!    ^ TrapCore::kernel_sp              +----------------------+ the `TrapContext`, anywhere
//! ```
//!
//! The processor takes a trap in user mode on the stack that the TSS names, and changes to no stack
//! at all for `syscall`. So the TSS names the memory of the context itself, and the pushes of the
//! entry fill the context. `TrapCore::kernel_sp` and `Tss::rsp0` are written by the last
//! instructions before user mode, and read by the first instructions after it. Interrupts are
//! masked in the kernel from the former to the latter, so no other kernel code runs in between, and
//! nested runs need not restore the two.
//!
//! # Traps that can come at any instruction
//!
//! ```text
//!   +------------------------+ <- the end of a part of the emergency stack
//!   |  TrapCore's address    |
//!   +------------------------+ <- the TSS's entry (IST) for the vector
//!   |  TrapContext           |
//!   |  the handler's frames  |
//! ```
//!
//! An NMI and a machine check can come between any two instructions. One such place is between the
//! entry to kernel mode and its `swapgs`, where cs is the kernel's, but rsp and gs are the user's.
//! When the kernel's stack has overflowed, the processor cannot push the page fault there and
//! raises a double fault instead. These three vectors have stacks of their own, and their entry
//! compares the base of gs with the core's address to find out whether gs is the user's.
//!
//! # Which registers
//!
//! `switch` is inlined into its caller and tells the compiler which registers it overwrites. The
//! compiler saves those of them that hold live values, together with what it saves anyway. The
//! registers that the ABI has a callee preserve are rbx, rbp, r12 to r15, and rsp. `switch` itself
//! saves the ones that it does not declare as overwritten: rbx, rbp and rsp. No vector register is
//! callee-saved. The control words of MXCSR and of the x87 unit are, but Rust code may assume that
//! they hold the values that the language started with: running with other values is undefined
//! behaviour even before a switch could carry them along. So `switch` leaves them as they are. It
//! touches neither `gs`, nor `fs`, nor the flags. Kernel code may have set AC for an access to a
//! user's page: the code that leaves clears it before it calls `switch` (`drop_rights`), and sets
//! it again afterwards (`restore_rights`).
//!
//! # gs
//!
//! In kernel mode, the base of gs is the address of the core's `TrapCore`. In user mode, it is 0.
//! `swapgs` exchanges the two. User mode cannot change the base as long as CR4.FSGSBASE is off.
//!
//! # Floating point, by `CR0.TS`
//!
//! A kernel is compiled for soft float, and CR0.TS is set whenever kernel code runs. A user program
//! begins with CR0.TS set, too. Its first FP instruction is a trap (#NM): the program then gets an
//! `FpArea` with the initial state, and resumes at that instruction. From then on, the area is
//! loaded before the program runs, and saved after it: XSAVEOPT writes only what has changed, as
//! the processor tracks that. After the saving, the initial state is loaded: with CR0.TS set, some
//! processors could otherwise let another program see the values speculatively (CVE-2018-3665). So
//! no program sees the registers of another one, and a program that uses no floating point pays
//! nothing.

use core::arch::{asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;

use crate::stackful::{Context, StackMain, StackfulBackend};

#[cfg(all(target_os = "none", target_feature = "sse"))]
compile_error!(
    "the trap entry doesn't save the kernel's own SSE registers: build the kernel for soft float, \
     as for the target x86_64-unknown-none"
);

/// The state that a [`Context`] points to.
#[repr(C)]
struct Frame {
    rbx: usize,
    rbp: usize,
    rip: usize,
}

/// The content of a prepared stack, from the `Frame` to the stack's top.
#[repr(C)]
struct Start {
    frame: Frame,
    main: StackMain,
    padding: usize,
}

const _: () = {
    // The order of the pushes and pops in `exchange`.
    assert!(offset_of!(Frame, rbx) == 0);
    assert!(offset_of!(Frame, rbp) == size_of::<usize>());
    assert!(offset_of!(Frame, rip) == 2 * size_of::<usize>());
    assert!(size_of::<Frame>() == 3 * size_of::<usize>());
    // When `start` calls `main`, rsp is the address of the field `main`, which must be aligned to
    // 16.
    assert!(offset_of!(Start, main) == size_of::<Frame>());
    assert!((size_of::<Start>() - offset_of!(Start, main)).is_multiple_of(16));
};

/// How many bytes of the interrupted stack the handler of an interrupt may use. The amount includes
/// the handler's call of [`preempt::on_timer`](crate::preempt::on_timer) and the switch, which take
/// less than half of it in a build without optimization. The trap entry checks that this much stack
/// is there. If it is not, the trap is an [overflow](TrapContext::is_overflow).
pub const HANDLER_STACK: usize = 4096;

/// The switch of x86_64 with the System V ABI.
#[derive(Debug)]
pub struct X86_64;

impl X86_64 {
    /// How many bytes [`MIN_STACK`](StackfulBackend::MIN_STACK) counts for the signal frame that
    /// Linux pushes; hosted, it counts them twice. A signal frame consists of the red zone that
    /// Linux leaves out, the state of all vector registers (2.7 KiB with AVX-512), the rest of the
    /// context, and the alignment. Where the frame is larger (11 KiB with AMX),
    /// [`Platform::min_stack`](crate::platform::Platform::min_stack) adds the rest.
    pub const SIGNAL: usize = 4096;
    /// The room for traps and their handlers. Hosted, one signal frame holds the preempted task,
    /// and when the task is resumed, another signal frame can come to lie on top of it. Without an
    /// operating system, there is one trap context, which is far smaller than a signal frame: the
    /// surplus covers the minimum for the task's own frames.
    const TRAPS: usize = if cfg!(target_os = "none") {
        Self::SIGNAL + HANDLER_STACK
    } else {
        2 * (Self::SIGNAL + HANDLER_STACK)
    };
}

// SAFETY: `prepare` writes `size_of::<Start>()` bytes below `top`, less than MIN_STACK. `switch`
// saves and loads rbx, rbp and rsp. It tells the compiler that it overwrites all other registers.
// It accesses the two stacks and `*save` only, and touches neither gs nor fs nor the interrupt
// flag. An `asm!` without `nomem` is a compiler barrier.
unsafe impl StackfulBackend for X86_64 {
    const MIN_STACK: usize = size_of::<Start>() + Self::TRAPS;

    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context {
        let rip = start as *const () as usize + START;
        let frame = Frame { rbx: argument.expose_provenance(), rbp: 0, rip };
        // SAFETY: the caller gives MIN_STACK writable bytes below `top`, aligned to 16.
        unsafe {
            let context = top.byte_sub(size_of::<Start>());
            context.cast::<Start>().write(Start { frame, main, padding: 0 });
            Context(context.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn switch(save: *mut Context, to: Context) {
        // SAFETY: the caller promises that `to` was saved by this same code or made by `prepare`.
        unsafe {
            asm!(
                // rdi: where to store the context that is left; rsi: the context to enter; rax: the
                // address behind the jump. A jump and not a call: a call would make the processor's
                // return-address predictor expect a return, but `exchange` ends in a jump.
                "lea rax, [rip + 2f]",
                "jmp {exchange}",
                // Another switch has entered the context that was saved here.
                "2:",
                exchange = sym exchange,
                inout("rdi") save => _,
                inout("rsi") to.0 => _,
                out("r12") _,
                out("r13") _,
                out("r14") _,
                out("r15") _,
                // Declares the caller-saved registers too.
                clobber_abi("sysv64"),
            );
        }
    }
}

/// Exchanges the stacks. rdi: where to store the context that is left; rsi: the context to enter;
/// rax: the address at which the caller resumes.
///
/// The exchange is a function of its own, because only then can CFI tell an unwinder after each
/// instruction where everything is. The CFI is the same before and after the change of stacks,
/// because both stacks have the same layout.
#[unsafe(naked)]
unsafe extern "C" fn exchange() {
    naked_asm!(
        ".cfi_startproc",
        // CFI: the return address is in rax, and not on the stack.
        ".cfi_def_cfa rsp, 0",
        ".cfi_register rip, rax",
        // Builds the `Frame`.
        "push rax",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rip, 0",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        // rsp: the `Frame`, which is the context that is left.
        "mov [rdi], rsp",
        // From here on, rsp is on the stack that is entered. A `Frame` lies there too, so the CFI
        // above stays true.
        "mov rsp, rsi",
        "pop rbx",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_same_value rbx",
        "pop rbp",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_same_value rbp",
        // rax: where this stack resumes: the caller or `start`. Not a `ret`: the processor would
        // predict it to go behind the latest call.
        "pop rax",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_register rip, rax",
        "jmp rax",
        ".cfi_endproc",
    )
}

/// Calls `main` on a prepared stack. rsp: the address of the field `main` of a `Start`; rbx: the
/// argument; rbp: 0. There is no caller and no frame pointer: an unwinder, a debugger and a walk
/// along the frame pointers end here.
///
/// It begins with a `nop` that never runs: an unwinder looks up the instruction before the address
/// at which a frame resumes, and that instruction must belong to this function.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        // CFI: there is no return address, so unwinding ends here.
        ".cfi_undefined rip",
        "nop",
        // rdi: the argument. rsp is aligned to 16, as the ABI wants it at a call, and points to
        // `main`.
        "mov rdi, rbx",
        "call [rsp]",
        // `main` never returns: if it does, this traps.
        "ud2",
        ".cfi_endproc",
    )
}

/// The size in bytes of the `nop` that [`start`] begins with.
const START: usize = 1;

/// How many bytes of stack a task that leaves by itself takes, from the point where it must not be
/// preempted any more.
pub(crate) const LEAVE: usize = 1024;

/// Reads the stack `DEPTH` bytes below the stack pointer. If nothing is mapped there, the fault is
/// taken here, in the code of the task, which can be ended alone. Without this probe, the fault
/// would be taken in the runtime's own code or in a handler.
#[inline(always)]
pub(crate) fn touch_stack<const DEPTH: usize>() {
    // SAFETY: only reads, and discards the value. If nothing is mapped below the stack pointer, the
    // read faults.
    unsafe { asm!("test byte ptr [rsp - {}], 0", const DEPTH, options(nostack, readonly)) };
}

/// The flag AC. In kernel mode, users' pages may be accessed although SMAP is on. (In user mode,
/// unaligned accesses are faults.)
const AC: usize = 1 << 18;

/// Returns whether the running code has given itself a right that no other code may have: AC. On
/// Linux, code runs in user mode, where AC allows nothing. So a hosted poll does not read the
/// flags.
#[inline(always)]
pub(crate) fn has_rights() -> bool {
    if cfg!(target_os = "linux") {
        return false;
    }
    let flags: usize;
    // SAFETY: reads the flags, by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & AC != 0
}

/// Takes this right from the running code, before other code runs, and returns it. Without `clac`,
/// which not every processor has.
#[cold]
pub(crate) fn drop_rights() -> usize {
    // SAFETY: without AC, the running code may access less. `popfq` loads the flags as `pushfq` has
    // pushed them, but for AC.
    unsafe { asm!("pushfq", "and dword ptr [rsp], {}", "popfq", const !(AC as i32)) };
    AC
}

/// Gives the rights back to the running code.
///
/// # Safety
///
/// `rights` is what [`drop_rights`] returned for the running code.
#[cold]
pub(crate) unsafe fn restore_rights(rights: usize) {
    // SAFETY: the caller promises that the running code had these rights.
    unsafe { asm!("pushfq", "or [rsp], {}", "popfq", in(reg) rights) };
}

#[cfg(any(target_os = "none", doc))]
pub use self::traps::{
    FpArea, MIN_EMERGENCY_STACK, Registers, TIMER_VECTOR, TrapContext, TrapCore, install_trap_entry,
};

/// The trap entry, and the way into user mode and back. Hosted, signals take their place.
#[cfg(any(target_os = "none", doc))]
mod traps {
    use alloc::alloc::{Layout, alloc_zeroed};
    use alloc::boxed::Box;
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    use core::arch::{asm, naked_asm};
    use core::cell::UnsafeCell;
    use core::fmt;
    use core::mem::{offset_of, size_of};
    use core::ptr::NonNull;
    // Not loom's atomics: traps are not modelled.
    use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

    use crate::fatal::fatal;
    use crate::trap::cause::{Access, Syscall, Trap};
    use crate::trap::handler;

    /// The state of the code that a trap interrupted. The trap entry pushes it on the interrupted
    /// kernel stack, or it belongs to a user program, which [`run`](TrapContext::run) takes to user
    /// mode and back.
    ///
    /// The entry reads once everything that the next trap overwrites, and stores it here. Handlers
    /// read this context and not `cr2`. When a handler returns, the state in the context is
    /// restored.
    #[repr(C, align(16))]
    #[derive(Clone, Debug)]
    pub struct TrapContext {
        /// The base of fs in user mode.
        thread_pointer: usize,
        /// A user program's FP registers, once it has used one.
        pub fp: Option<Box<FpArea>>,
        /// The general registers.
        pub registers: Registers,
        /// The cause: the vector, and from bit 8 on the error code. -1 for a system call.
        pub cause: usize,
        /// The faulting address, if the cause comes with one.
        pub address: usize,
        /// The address at which the interrupted code resumes.
        pub rip: usize,
        /// The code segment. The lowest two bits tell whether user mode (3) or the kernel (0) was
        /// interrupted.
        pub cs: usize,
        /// The flags. In a user program's context, IF says whether the program can be interrupted.
        pub rflags: usize,
        /// The stack pointer.
        pub rsp: usize,
        /// The stack segment, which belongs to `rsp`.
        pub ss: usize,
    }

    /// The general registers but the stack pointer. The first field is the register that is pushed
    /// last.
    #[repr(C)]
    #[derive(Clone, Debug)]
    #[allow(missing_docs)]
    pub struct Registers {
        pub r15: usize,
        pub r14: usize,
        pub r13: usize,
        pub r12: usize,
        pub r11: usize,
        pub r10: usize,
        pub r9: usize,
        pub r8: usize,
        pub rdi: usize,
        pub rsi: usize,
        pub rbp: usize,
        pub rbx: usize,
        pub rdx: usize,
        pub rcx: usize,
        pub rax: usize,
    }

    /// The size of what is pushed below the registers: a user program's `thread_pointer` and `fp`,
    /// both 0 for the kernel.
    const USERS_PART: usize = offset_of!(TrapContext, registers);
    /// The size of what the stub or the processor pushes below `rip`: `address` and `cause`.
    const CAUSE: usize = offset_of!(TrapContext, rip) - offset_of!(TrapContext, cause);

    const _: () = {
        // The processor pushes rip to ss. The stubs and the entry push the fields below.
        assert!(offset_of!(TrapContext, ss) + size_of::<usize>() == size_of::<TrapContext>());
        assert!(
            offset_of!(TrapContext, ss) - offset_of!(TrapContext, rip) == 4 * size_of::<usize>()
        );
        assert!(
            offset_of!(TrapContext, rip) - offset_of!(TrapContext, address) == size_of::<usize>()
        );
        assert!(CAUSE == 2 * size_of::<usize>());
        assert!(
            USERS_PART == 2 * size_of::<usize>()
                && size_of::<Registers>() == 15 * size_of::<usize>()
        );
        // The entry pushes 0 for `fp`, which is `None`.
        assert!(size_of::<Option<Box<FpArea>>>() == size_of::<usize>());
        // The processor aligns the stack to 16 before it pushes. The entry must have it aligned to
        // 16 before it calls a function.
        assert!(size_of::<TrapContext>().is_multiple_of(16));
    };

    /// The memory of a program's floating-point registers, in the standard form of an XSAVE area:
    /// the legacy part, the header, and the part of AVX. FXSAVE uses the first part only.
    #[repr(C, align(64))]
    #[derive(Clone)]
    pub struct FpArea([u8; 512 + 64 + 256]);

    impl fmt::Debug for FpArea {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("FpArea").finish_non_exhaustive()
        }
    }

    impl FpArea {
        /// The state in which a processor starts: the registers are zero, and all exceptions are
        /// masked.
        const INITIAL: Self = {
            let mut area = [0; size_of::<Self>()];
            // The control word of the x87 unit, and MXCSR.
            [area[0], area[1]] = 0x037f_u16.to_le_bytes();
            [area[24], area[25], area[26], area[27]] = 0x1f80_u32.to_le_bytes();
            Self(area)
        };

        /// Returns an area in the state [`INITIAL`](Self::INITIAL), or `None` if there is no
        /// memory.
        fn initial() -> Option<Box<Self>> {
            // SAFETY: the size of the layout is not zero.
            let area = NonNull::new(unsafe { alloc_zeroed(Layout::new::<Self>()) })?;
            // SAFETY: the memory is from the global allocator, with the layout of `Self`, and all
            // zeroes are a valid `Self`.
            let mut area = unsafe { Box::from_raw(area.cast::<Self>().as_ptr()) };
            area.0.copy_from_slice(&CLEAN.0);
            Some(area)
        }

        /// Loads the area into the FP registers.
        ///
        /// # Safety
        ///
        /// CR0.TS is clear, and no code uses what the registers hold any more. `FP_SAVE` was set on
        /// this core.
        unsafe fn load(&self) {
            let area = self.0.as_ptr();
            // SAFETY: the area is as large and as aligned as the instruction requires, and holds
            // only what `initial` or `save` wrote. The kernel's code uses no such register.
            unsafe {
                match FP_SAVE.load(Ordering::Relaxed) {
                    // Without XSAVE, FXRSTOR loads x87 and SSE. XRSTOR also loads AVX. Its mask
                    // (edx:eax) is all ones: all components that XCR0 enables.
                    FXSAVE => asm!("fxrstor64 [{}]", in(reg) area, options(nostack, readonly)),
                    _ => {
                        asm!(
                            "xrstor64 [{}]",
                            in(reg) area,
                            in("eax") !0,
                            in("edx") !0,
                            options(nostack, readonly),
                        )
                    }
                }
            }
        }

        /// Saves the FP registers into the area.
        ///
        /// # Safety
        ///
        /// As for `load`. In addition, the registers hold the values of the program that the area
        /// belongs to.
        unsafe fn save(&mut self) {
            let area = self.0.as_mut_ptr();
            // SAFETY: as in `load`. The instructions write to the area only.
            unsafe {
                match FP_SAVE.load(Ordering::Relaxed) {
                    // The mask (edx:eax) is as in `load`. XSAVEOPT leaves out what has not changed
                    // since the latest XRSTOR from this area.
                    FXSAVE => asm!("fxsave64 [{}]", in(reg) area, options(nostack)),
                    XSAVE => {
                        asm!(
                            "xsave64 [{}]",
                            in(reg) area,
                            in("eax") !0,
                            in("edx") !0,
                            options(nostack),
                        )
                    }
                    _ => {
                        asm!(
                            "xsaveopt64 [{}]",
                            in(reg) area,
                            in("eax") !0,
                            in("edx") !0,
                            options(nostack),
                        )
                    }
                }
            }
        }
    }

    /// The values that the FP registers have while no program's values are in them.
    static CLEAN: FpArea = FpArea::INITIAL;

    /// How FP registers are saved: FXSAVE, XSAVE or XSAVEOPT. The same on all cores.
    static FP_SAVE: AtomicU8 = AtomicU8::new(FXSAVE);
    const FXSAVE: u8 = 0;
    const XSAVE: u8 = 1;
    const XSAVEOPT: u8 = 2;

    /// CR0. MP and TS together make WAIT trap. EM: the x87 unit is emulated. TS: the FP registers
    /// belong to other code. NE: x87 errors are reported by #MF.
    const CR0_MP: usize = 1 << 1;
    const CR0_EM: usize = 1 << 2;
    const CR0_TS: usize = 1 << 3;
    const CR0_NE: usize = 1 << 5;
    /// CR4: the kernel supports SSE (FXSAVE), the exceptions of SSE, and XSAVE.
    const CR4_OSFXSR: usize = 1 << 9;
    const CR4_OSXMMEXCPT: usize = 1 << 10;
    const CR4_OSXSAVE: usize = 1 << 18;

    /// Prepares the calling core for the FP registers of user programs.
    fn init_fp() {
        // SAFETY: the kernel uses no FP register. No code uses what these bits enable before
        // `FpArea` saves and loads it.
        unsafe {
            asm!(
                "mov {scratch}, cr0",
                "and {scratch}, {off}",
                "or {scratch}, {on}",
                "mov cr0, {scratch}",
                scratch = out(reg) _,
                off = const !(CR0_EM as i32),
                on = const CR0_MP | CR0_TS | CR0_NE,
                options(nostack),
            );
        }
        let has_xsave = __cpuid(1).ecx & 1 << 26 != 0;
        let cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | if has_xsave { CR4_OSXSAVE } else { 0 };
        // SAFETY: as for CR0 above.
        unsafe {
            asm!(
                "mov {scratch}, cr4",
                "or {scratch}, {on}",
                "mov cr4, {scratch}",
                scratch = out(reg) _,
                on = in(reg) cr4,
                options(nostack),
            );
        }
        if !has_xsave {
            return;
        }
        const X87_SSE: u32 = 0b011;
        const AVX: u32 = 0b100;
        let can = __cpuid_count(0xd, 0).eax;
        let avx = __cpuid_count(0xd, 2);
        // The code relies on the part of AVX coming right after the header, as it does on every
        // known processor. Elsewhere AVX stays off.
        let has_avx = can & AVX != 0 && (avx.ebx, avx.eax) == (512 + 64, 256);
        let components = X87_SSE | if has_avx { AVX } else { 0 };
        // SAFETY: CR4.OSXSAVE is set, and the processor has these components.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") components, in("edx") 0, options(nostack)) };
        let has_xsaveopt = __cpuid_count(0xd, 1).eax & 1 != 0;
        FP_SAVE.store(if has_xsaveopt { XSAVEOPT } else { XSAVE }, Ordering::Relaxed);
    }

    /// Lets FP instructions run on this core, by clearing CR0.TS.
    ///
    /// # Safety
    ///
    /// What the registers hold is overwritten before user mode can see it.
    unsafe fn enable_fp() {
        // SAFETY: the caller promises what the registers need. `clts` changes nothing but CR0.TS.
        unsafe { asm!("clts", options(nostack)) };
    }

    /// Makes the next FP instruction on this core trap, by setting CR0.TS.
    fn disable_fp() {
        // SAFETY: the kernel has no FP instruction that could trap.
        unsafe {
            asm!(
                "mov {0}, cr0",
                "or {0}, {ts}",
                "mov cr0, {0}",
                out(reg) _,
                ts = const CR0_TS,
                options(nostack),
            )
        };
    }

    /// The selectors of the GDT. `syscall` requires this order: ss follows cs.
    const KERNEL_CS: usize = 0x08;
    const KERNEL_SS: usize = 0x10;
    const USER_SS: usize = 0x18 | 3;
    const USER_CS: usize = 0x20 | 3;
    const TSS: usize = 0x28;

    /// The GDT: flat 64-bit segments, and two empty entries for the descriptor of the TSS.
    const GDT: [u64; 7] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        0,
    ];

    /// The task state segment: it names the stacks that the processor changes to.
    #[repr(C, packed(4))]
    struct Tss {
        reserved: u32,
        /// The stacks for traps to privilege level 0 to 2. The first is `rsp0`: where the processor
        /// pushes a trap in user mode.
        rsp: [usize; 3],
        reserved_too: usize,
        /// The stacks IST 1 to 7.
        ist: [usize; 7],
        reserved_again: [u16; 5],
        /// The offset of the bitmap of I/O ports. It is behind the end of the TSS, so there is
        /// none.
        bitmap: u16,
    }

    const _: () = assert!(size_of::<Tss>() == 104);

    /// The storage of one core that its trap entry uses. The kernel keeps one `TrapCore` for each
    /// core, at the beginning of the memory that the base of gs points to.
    ///
    /// Apart from [`install_trap_entry`], only the entry, `TrapContext::run` and the processor
    /// write the fields, on this core and with interrupts masked.
    #[repr(C, align(16))]
    pub struct TrapCore {
        /// While user mode runs: the stack pointer of `enter`.
        kernel_sp: AtomicUsize,
        /// The user's stack pointer, until it has a place in the context.
        user_sp: AtomicUsize,
        /// The bounds of the part of the emergency stack that double faults use.
        emergency_base: AtomicUsize,
        emergency_top: AtomicUsize,
        gdt: UnsafeCell<[u64; GDT.len()]>,
        tss: UnsafeCell<Tss>,
    }

    // SAFETY: only the own core accesses the fields: first `install_trap_entry`, and from then on
    // the processor and the entry, with interrupts masked. An NMI can come between the accesses of
    // the entry. Its entry reads only fields that are not written any more.
    unsafe impl Sync for TrapCore {}

    impl fmt::Debug for TrapCore {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TrapCore").finish_non_exhaustive()
        }
    }

    impl TrapCore {
        /// Returns the storage of a core that has not installed the entry yet.
        pub const fn new() -> Self {
            Self {
                kernel_sp: AtomicUsize::new(0),
                user_sp: AtomicUsize::new(0),
                emergency_base: AtomicUsize::new(0),
                emergency_top: AtomicUsize::new(0),
                gdt: UnsafeCell::new(GDT),
                tss: UnsafeCell::new(Tss {
                    reserved: 0,
                    rsp: [0; 3],
                    reserved_too: 0,
                    ist: [0; 7],
                    reserved_again: [0; 5],
                    bitmap: size_of::<Tss>() as u16,
                }),
            }
        }
    }

    impl Default for TrapCore {
        fn default() -> Self {
            Self::new()
        }
    }

    /// The offset of `Tss::rsp0` in a `TrapCore`.
    const CORE_RSP0: usize = offset_of!(TrapCore, tss) + offset_of!(Tss, rsp);

    /// The minimum size of one IST stack in bytes: room for two contexts, of a trap and of a fault
    /// in its handler, and for the frames of both.
    const MIN_PART: usize = 2 * (size_of::<TrapContext>() + 4096);
    /// The minimum size of an emergency stack in bytes. It has three parts: for double faults, for
    /// NMIs and for machine checks.
    pub const MIN_EMERGENCY_STACK: usize = 3 * MIN_PART;

    /// The vector of [`Trap::Timer`]. The kernel programs its timer to raise this vector.
    pub const TIMER_VECTOR: u8 = 32;

    /// The vectors that the entry knows.
    mod vector {
        pub(super) const NMI: usize = 2;
        pub(super) const BREAKPOINT: usize = 3;
        pub(super) const ILLEGAL: usize = 6;
        pub(super) const NO_FP: usize = 7;
        pub(super) const DOUBLE_FAULT: usize = 8;
        pub(super) const PAGE_FAULT: usize = 14;
        pub(super) const MACHINE_CHECK: usize = 18;
        /// The first vector whose use the kernel decides.
        pub(super) const FIRST_INTERRUPT: usize = 32;
        pub(super) const ALL: usize = 256;
    }

    /// The cause of a system call, which has no vector.
    const SYSCALL: usize = usize::MAX;

    /// Returns on which of the TSS's IST stacks a vector is taken. 0 is the interrupted stack.
    const fn stack_of(vector: usize) -> u64 {
        match vector {
            vector::DOUBLE_FAULT => 1,
            vector::NMI => 2,
            vector::MACHINE_CHECK => 3,
            _ => 0,
        }
    }

    /// The IDT: two words for each vector. All cores share it, and each core writes the same
    /// values.
    static IDT: [AtomicU64; 2 * vector::ALL] = [const { AtomicU64::new(0) }; 2 * vector::ALL];

    /// The operand of `lgdt` and `lidt`.
    #[repr(C, packed)]
    struct TablePointer {
        limit: u16,
        base: *const u64,
    }

    // The numbers of the MSRs. EFER.SCE enables `syscall`.
    const EFER: u32 = 0xc000_0080;
    const EFER_SCE: u64 = 1;
    /// `syscall`: its segments, its entry, and the flags that it clears.
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    const FS_BASE: u32 = 0xc000_0100;
    const GS_BASE: u32 = 0xc000_0101;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;

    /// Writes a model-specific register.
    ///
    /// # Safety
    ///
    /// The register exists, and the value does no harm.
    unsafe fn write_msr(register: u32, value: u64) {
        let (low, high) = (value as u32, (value >> 32) as u32);
        // SAFETY: the caller promises that the register exists and that the value does no harm.
        unsafe {
            asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack))
        };
    }

    /// Reads a model-specific register.
    ///
    /// # Safety
    ///
    /// The register exists.
    unsafe fn read_msr(register: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: the caller promises that the register exists.
        unsafe {
            asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack))
        };
        u64::from(low) | u64::from(high) << 32
    }

    /// Directs this core's traps to `handler`, for kernels that have no IDT of their own.
    ///
    /// All cores share one handler: the one that was given last. NMIs and machine checks are passed
    /// to the handler on the emergency stack, also those that come in user mode, and the handler
    /// may return from them.
    ///
    /// # Panics
    ///
    /// If `emergency_stack` is smaller than [`MIN_EMERGENCY_STACK`].
    ///
    /// # Safety
    ///
    /// - This core is in 64-bit mode, and CR4.FSGSBASE is off. EFER.NXE is on: otherwise a fault of
    ///   a fetch is reported as one of a load. From now on, the entry owns the GDT, LDT, IDT and
    ///   TSS, fs, gs and their bases, and the registers of `syscall`. The base of gs becomes the
    ///   address of `core`.
    /// - The kernel is compiled without SSE, x87 and red zone.
    /// - Below the stack pointer of every stack on which a trap can be taken there is room for a
    ///   [`TrapContext`] and the handler's frames, or an unmapped page.
    /// - `core` and `emergency_stack` are used by this core only. `emergency_stack` is at least
    ///   [`MIN_EMERGENCY_STACK`] bytes of memory, valid for ever, and aligned to 16 at both ends.
    /// - `handler` returns with interrupts masked, and only if the core may resume where the
    ///   `TrapContext` says. During an NMI or a machine check, the handler takes no trap itself:
    ///   the return from that trap would let in the next NMI, on the stack that is in use.
    pub unsafe fn install_trap_entry(
        core: &'static TrapCore,
        emergency_stack: NonNull<[u8]>,
        handler: fn(&mut TrapContext),
    ) {
        assert!(
            emergency_stack.len() >= MIN_EMERGENCY_STACK,
            "the emergency stack is too small: MIN_EMERGENCY_STACK says how large it must be"
        );
        handler::set_handler(handler);
        init_fp();

        let base = emergency_stack.cast::<u8>().as_ptr().expose_provenance();
        let part = (emergency_stack.len() / 3) & !15;
        core.emergency_base.store(base, Ordering::Relaxed);
        core.emergency_top.store(base + part, Ordering::Relaxed);
        let core_address = core::ptr::from_ref(core).expose_provenance();
        let mut ist = [0; 7];
        for (n, stack) in ist.iter_mut().take(3).enumerate() {
            // The core's address lies above the first push, and takes 16 bytes so that the push is
            // aligned to 16.
            *stack = base + (n + 1) * part - 16;
            let place: *mut usize = core::ptr::with_exposed_provenance_mut(*stack);
            // SAFETY: the address is aligned, and lies in the emergency stack, which the caller
            // gives.
            unsafe { place.write(core_address) };
        }

        let tss = core.tss.get().expose_provenance() as u64;
        // The descriptor of an available TSS: the base in four parts, the limit, and the type.
        let low = tss << 16 & 0xff_ffff_0000
            | tss << 32 & 0xff00_0000_0000_0000
            | 0x89 << 40
            | (size_of::<Tss>() as u64 - 1);
        // SAFETY: neither the processor nor the entry uses the two tables yet: the entry is
        // installed on a core once, below.
        unsafe {
            (&raw mut (*core.tss.get()).ist).write_unaligned(ist);
            let gdt = core.gdt.get().cast::<u64>();
            gdt.add(TSS / 8).write(low);
            gdt.add(TSS / 8 + 1).write(tss >> 32);
        }

        for (number, gate) in IDT.chunks_exact(2).enumerate() {
            let entry = (stubs as *const () as usize + number * STUB) as u64;
            // The type is an interrupt gate, so that interrupts are masked. User mode may raise
            // only a breakpoint by an instruction (DPL 3).
            let kind = if number == vector::BREAKPOINT { 0xee } else { 0x8e };
            let low = entry & 0xffff
                | (KERNEL_CS as u64) << 16
                | stack_of(number) << 32
                | kind << 40
                | (entry >> 16 & 0xffff) << 48;
            gate[0].store(low, Ordering::Relaxed);
            gate[1].store(entry >> 32, Ordering::Relaxed);
        }

        let gdt = TablePointer { limit: size_of_val(&GDT) as u16 - 1, base: core.gdt.get().cast() };
        let idt = TablePointer { limit: size_of_val(&IDT) as u16 - 1, base: IDT.as_ptr().cast() };
        // SAFETY: the tables are static and filled in. The segments are those in which 64-bit mode
        // continues. gs is loaded before its base, because the load of gs changes the base. The
        // caller promises the rest.
        unsafe {
            asm!(
                // The new GDT. A far return loads cs from it: no `mov` can.
                "lgdt [{gdt}]",
                "push {cs}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                // The kernel's ss. The other segment registers get null selectors, as 64-bit mode
                // needs no more.
                "mov {scratch:e}, {ss}",
                "mov ss, {scratch:e}",
                "xor {scratch:e}, {scratch:e}",
                "mov ds, {scratch:e}",
                "mov es, {scratch:e}",
                "mov fs, {scratch:e}",
                "mov gs, {scratch:e}",
                // The TSS, which names rsp0 and the IST stacks.
                "mov {scratch:e}, {tss}",
                "ltr {scratch:x}",
                // No local table. A reset leaves one at address 0.
                "xor {scratch:e}, {scratch:e}",
                "lldt {scratch:x}",
                gdt = in(reg) &raw const gdt,
                scratch = out(reg) _,
                cs = const KERNEL_CS,
                ss = const KERNEL_SS,
                tss = const TSS,
            );
            write_msr(GS_BASE, core_address as u64);
            write_msr(KERNEL_GS_BASE, 0);
            write_msr(STAR, (KERNEL_CS as u64) << 32);
            write_msr(LSTAR, syscall_entry as *const () as u64);
            // All flags that have a meaning in kernel mode, TF, IF, DF, IOPL, NT and AC among them.
            write_msr(FMASK, flag::ALL);
            write_msr(EFER, read_msr(EFER) | EFER_SCE);
            // The IDT is last, because the entry of an NMI reads the base of gs.
            asm!("lidt [{}]", in(reg) &raw const idt, options(nostack));
        }
    }

    /// Bits of rflags.
    mod flag {
        /// Always 1.
        pub(super) const RESERVED: usize = 1 << 1;
        pub(super) const INTERRUPTS: usize = 1 << 9;
        /// The flags of the interrupted code that an interrupt leaves set: DF and AC.
        pub(super) const DF_AC: usize = 1 << 10 | super::super::AC;
        /// The flags that user mode can change itself: the arithmetic ones, TF, DF, NT, AC and ID.
        pub(super) const USERS: usize = 0x24_4dd5;
        pub(super) const ALL: u64 = 0x3f_7fd5;
    }

    /// Bits of the error code of a page fault.
    const ERROR_WRITE: usize = 1 << 1;
    const ERROR_USER: usize = 1 << 2;
    const ERROR_FETCH: usize = 1 << 4;

    /// Returns whether the address is canonical for 48 bits: the highest 17 bits are equal.
    fn is_canonical(address: usize) -> bool {
        canonical(address) == address
    }

    /// Returns the canonical address that has the same low 48 bits.
    fn canonical(address: usize) -> usize {
        ((address as isize) << 16 >> 16) as usize
    }

    impl TrapContext {
        /// Returns the context of a user program that begins at `entry` with the stack pointer
        /// `stack`. All other registers are 0, interrupts are enabled, and floating point is
        /// unused.
        pub const fn user(entry: usize, stack: usize) -> Self {
            let registers = Registers {
                r15: 0,
                r14: 0,
                r13: 0,
                r12: 0,
                r11: 0,
                r10: 0,
                r9: 0,
                r8: 0,
                rdi: 0,
                rsi: 0,
                rbp: 0,
                rbx: 0,
                rdx: 0,
                rcx: 0,
                rax: 0,
            };
            Self {
                thread_pointer: 0,
                fp: None,
                registers,
                cause: 0,
                address: 0,
                rip: entry,
                cs: USER_CS,
                rflags: flag::RESERVED | flag::INTERRUPTS,
                rsp: stack,
                ss: USER_SS,
            }
        }

        /// Sets the first six arguments, as the calling convention passes integers.
        #[must_use]
        pub const fn with_arguments(mut self, arguments: [usize; 6]) -> Self {
            let [rdi, rsi, rdx, rcx, r8, r9] = arguments;
            self.registers.rdi = rdi;
            self.registers.rsi = rsi;
            self.registers.rdx = rdx;
            self.registers.rcx = rcx;
            self.registers.r8 = r8;
            self.registers.r9 = r9;
            self
        }

        /// Sets whether the program can be interrupted. A program that cannot be interrupted keeps
        /// the core until it traps by itself.
        #[must_use]
        pub const fn with_interrupts(mut self, enabled: bool) -> Self {
            let others = self.rflags & !flag::INTERRUPTS;
            self.rflags = if enabled { others | flag::INTERRUPTS } else { others };
            self
        }

        /// Returns the vector. It has no meaning for a system call.
        fn vector(&self) -> usize {
            self.cause & 0xff
        }

        /// Returns what the trap was.
        #[inline]
        pub fn trap(&self) -> Trap {
            let error = self.cause >> 8;
            match self.vector() {
                _ if self.cause == SYSCALL => Trap::Syscall,
                vector::BREAKPOINT => Trap::Breakpoint,
                vector::ILLEGAL => Trap::IllegalInstruction,
                vector::PAGE_FAULT => {
                    let access = if error & ERROR_FETCH != 0 {
                        Access::Execute
                    } else if error & ERROR_WRITE != 0 {
                        Access::Write
                    } else {
                        Access::Read
                    };
                    Trap::PageFault { addr: self.address, access }
                }
                // The processor could not push another trap. It is reported as a store that
                // faulted, if the faulting address is near the stack pointer.
                vector::DOUBLE_FAULT
                    if self.rsp.wrapping_sub(self.address) <= size_of::<Self>() =>
                {
                    Trap::PageFault { addr: self.address, access: Access::Write }
                }
                number if number == usize::from(TIMER_VECTOR) => Trap::Timer,
                number if number >= vector::FIRST_INTERRUPT => Trap::Interrupt(number),
                _ => Trap::Other(self.cause),
            }
        }

        /// Returns whether the trap interrupted user mode, and not the kernel.
        pub fn is_user(&self) -> bool {
            self.cs & 3 != 0
        }

        /// Returns whether the kernel's stack pointer pointed to memory that is not there when the
        /// trap was taken, most likely because the stack had overflowed.
        pub fn is_overflow(&self) -> bool {
            self.cause != SYSCALL && self.vector() == vector::DOUBLE_FAULT
        }

        /// Returns the address at which the interrupted code resumes.
        pub fn pc(&self) -> usize {
            self.rip
        }

        /// Sets the address at which the interrupted code resumes.
        pub fn set_pc(&mut self, pc: usize) {
            self.rip = pc;
        }

        /// Returns the stack pointer.
        pub fn sp(&self) -> usize {
            self.rsp
        }

        /// Sets the stack pointer.
        pub fn set_sp(&mut self, sp: usize) {
            self.rsp = sp;
        }

        /// Returns what the program asks for, after a [`Trap::Syscall`].
        pub fn syscall(&self) -> Syscall {
            let Registers { rax, rdi, rsi, rdx, r10, r8, r9, .. } = self.registers;
            Syscall { number: rax, arguments: [rdi, rsi, rdx, r10, r8, r9] }
        }

        /// Sets the value that a system call returns: rax.
        pub fn set_result(&mut self, result: usize) {
            self.registers.rax = result;
        }

        /// Sets the pointer by which the program finds its thread-local data: the base of fs.
        pub fn set_thread_pointer(&mut self, pointer: usize) {
            self.thread_pointer = pointer;
        }

        /// Runs the program until its next trap.
        ///
        /// # Safety
        ///
        /// The contract is that of [`run`](TrapContext::run). In addition, interrupts are masked;
        /// they still are when `enter_user` returns.
        pub(crate) unsafe fn enter_user(&mut self) {
            // `iretq` to an address that is not canonical faults while still in kernel mode.
            // Reports that fault without entering user mode.
            if !is_canonical(self.rip) {
                self.cause = (ERROR_USER | ERROR_FETCH) << 8 | vector::PAGE_FAULT;
                self.address = self.rip;
                return;
            }
            self.cs = USER_CS;
            self.ss = USER_SS;
            self.rflags = self.rflags & (flag::USERS | flag::INTERRUPTS) | flag::RESERVED;
            self.thread_pointer = canonical(self.thread_pointer);
            loop {
                let context: *mut Self = self;
                let Some(fp) = &mut self.fp else {
                    // SAFETY: the caller promises that the entry is installed. Interrupts are
                    // masked, and the context is made for user mode.
                    unsafe { enter(context) };
                    if self.vector() != vector::NO_FP || self.cause == SYSCALL {
                        return;
                    }
                    self.fp = FpArea::initial();
                    if self.fp.is_none() {
                        return;
                    }
                    continue;
                };
                // SAFETY: as for `enter` above. CR0.TS is clear from `enable_fp` to `disable_fp`.
                // The registers hold the program's values from `load` to `save`, and CLEAN
                // overwrites them afterwards.
                unsafe {
                    enable_fp();
                    fp.load();
                    enter(context);
                    if let Some(fp) = &mut self.fp {
                        fp.save();
                    }
                    CLEAN.load();
                }
                disable_fp();
                return;
            }
        }
    }

    /// Ends the program: the emergency stack itself has overflowed, so no stack is left to handle a
    /// trap on.
    fn no_stack_left() -> ! {
        fatal("trapline: the emergency stack overflowed: give install_trap_entry a larger one")
    }

    /// Handles a double fault, an NMI or a machine check. Runs on the IST stack of the vector.
    extern "C" fn on_urgent(context: &mut TrapContext, core: &TrapCore) {
        let emergency = core.emergency_base.load(Ordering::Relaxed)
            ..=core.emergency_top.load(Ordering::Relaxed);
        if context.is_overflow() && emergency.contains(&context.rsp) {
            // The double fault's own push has overwritten what lay there.
            no_stack_left();
        }
        handler::dispatch(context);
    }

    /// The size of each stub in bytes.
    const STUB: usize = 16;

    /// The stubs that the IDT leads to, one for each vector. On entry, all registers but rsp, rip,
    /// cs, ss and rflags are the interrupted code's, and interrupts are masked. rsp points to what
    /// the processor has pushed, for some vectors with an error code at the lowest address.
    #[unsafe(naked)]
    unsafe extern "C" fn stubs() {
        naked_asm!(
            // Each round of `.rept` emits one stub, of STUB bytes. A stub brings the stack to the
            // form of a `TrapContext` down to `cause`: it pushes 0 for `address` where the
            // processor has pushed no error code, and then the vector.
            ".set trapline_vector, 0",
            ".rept {all}",
            ".balign {stub}",
            // Vectors with an IST stack. No error code.
            ".if trapline_vector == {nmi} || trapline_vector == {machine_check}",
            "  push 0",
            "  push offset trapline_vector",
            "  jmp {urgent_entry}",
            // A vector with an IST stack. Its error code, always 0, takes the place of `address`.
            ".elseif trapline_vector == {double_fault}",
            "  push offset trapline_vector",
            "  jmp {urgent_entry}",
            // The vectors for which the processor pushes an error code: 10 to 14, 17, 21, 29, 30.
            ".elseif trapline_vector < 32 && (0x60227c00 >> (trapline_vector & 31)) & 1",
            "  push offset trapline_vector",
            "  jmp {trap_entry_with_error}",
            // All other vectors. No error code.
            ".else",
            "  push 0",
            "  push offset trapline_vector",
            "  jmp {trap_entry}",
            ".endif",
            ".set trapline_vector, trapline_vector + 1",
            ".endr",
            all = const vector::ALL,
            stub = const STUB,
            nmi = const vector::NMI,
            machine_check = const vector::MACHINE_CHECK,
            double_fault = const vector::DOUBLE_FAULT,
            urgent_entry = sym urgent_entry,
            trap_entry_with_error = sym trap_entry_with_error,
            trap_entry = sym trap_entry,
        )
    }

    /// Turns the vector and the error code into `cause` and `address`. rsp: the vector; above it,
    /// the error code; above that, what the processor always pushes. All other registers are the
    /// interrupted code's.
    #[unsafe(naked)]
    unsafe extern "C" fn trap_entry_with_error() {
        naked_asm!(
            // Saves two registers to work with. rsp: two registers below `cause`.
            "push rax",
            "push rcx",
            // `cause`: the vector, and from bit 8 on the error code. rcx and rax are free.
            "mov ecx, [rsp + 16 + {word}]",
            "shl rcx, 8",
            "or [rsp + 16], rcx",
            // `address`: cr2 for a page fault, else 0. cr2 is read here, before a nested fault can
            // overwrite it.
            "xor eax, eax",
            "cmp byte ptr [rsp + 16], {page_fault}",
            "jne 2f",
            "mov rax, cr2",
            "2:",
            // rax: `address`, which takes the place of the error code. Then rax and rcx are the
            // interrupted code's again, and rsp is at `cause`.
            "mov [rsp + 16 + {word}], rax",
            "mov rcx, [rsp]",
            "mov rax, [rsp + {word}]",
            "add rsp, 16",
            "jmp {trap_entry}",
            word = const size_of::<usize>(),
            page_fault = const vector::PAGE_FAULT,
            trap_entry = sym trap_entry,
        )
    }

    /// The entry of all traps but system calls, double faults, NMIs and machine checks. rsp:
    /// `cause`. The context is filled in from `cause` upwards. All other registers are the
    /// interrupted code's, gs too, and interrupts are masked.
    #[unsafe(naked)]
    unsafe extern "C" fn trap_entry() {
        naked_asm!(
            ".cfi_startproc",
            ".cfi_signal_frame",
            // CFI: rip and rsp of the interrupted code lie in the context.
            ".cfi_def_cfa rsp, {size} - {cause_at}",
            ".cfi_offset rip, {rip} - {size}",
            ".cfi_offset rsp, {rsp} - {size}",
            // User mode (the lowest bits of cs are not 0) continues at 3.
            "test byte ptr [rsp + {cs}], 3",
            "jnz 3f",
            // Kernel mode: rsp is on the interrupted stack, and gs is the core's. Pushes the
            // registers, and 0 for `fp` and `thread_pointer`.
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            "  .cfi_adjust_cfa_offset 8",
            "  .cfi_rel_offset \\r, 0",
            ".endr",
            "push 0",
            "push 0",
            ".cfi_adjust_cfa_offset 16",
            // rsp: the `TrapContext`, aligned to 16. Probes the stack as deep as the handler may
            // go. If it is not there, the fault is taken here, before anything is acknowledged or
            // locked. The entry of that page fault probes and faults again, further down, until the
            // processor cannot push any more. It then raises a double fault, which is taken on the
            // emergency stack.
            "test byte ptr [rsp - {handler}], 0",
            // 5 clears DF and AC if the interrupted code had one set.
            "test dword ptr [rsp + {rflags}], {df_ac}",
            "jnz 5f",
            // rdi and rsp: the `TrapContext`. DF and AC are clear.
            "2:",
            "mov rdi, rsp",
            "call {dispatch}",
            // rsp: the `TrapContext`, as callees preserve rsp. Skips `thread_pointer` and `fp`, and
            // loads the registers.
            ".cfi_remember_state",
            "add rsp, {users_part}",
            ".cfi_adjust_cfa_offset -{users_part}",
            ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rdi,rsi,rbp,rbx,rdx,rcx,rax",
            "  pop \\r",
            "  .cfi_adjust_cfa_offset -8",
            "  .cfi_same_value \\r",
            ".endr",
            // rsp: `cause`. Skips `cause` and `address`. `iretq` then loads rip, cs, rflags, rsp
            // and ss.
            "add rsp, {cause}",
            ".cfi_adjust_cfa_offset -{cause}",
            "iretq",
            // Clears the flags DF and AC that are the interrupted code's: the handler must neither
            // copy backwards nor access users' pages. `iretq` loads them again from the context.
            // The processor has cleared TF and NT already. IF stays 0.
            ".cfi_restore_state",
            "5:",
            "push {flags}",
            "popfq",
            "jmp 2b",
            ".cfi_endproc",
            // A trap in user mode: rsp is in the context that runs, where rsp0 of the TSS points;
            // gs is the user's. After `swapgs`, gs is the core's. Saves the registers. CR0.TS, DF
            // and AC are still as the program had them.
            "3:",
            "swapgs",
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            ".endr",
            // All registers are saved. The place of `fp` and `thread_pointer` keeps what the
            // context holds.
            "jmp {leave}",
            cs = const offset_of!(TrapContext, cs) - offset_of!(TrapContext, cause),
            cause = const CAUSE,
            users_part = const USERS_PART,
            size = const size_of::<TrapContext>(),
            cause_at = const offset_of!(TrapContext, cause),
            rip = const offset_of!(TrapContext, rip),
            rsp = const offset_of!(TrapContext, rsp),
            rflags = const offset_of!(TrapContext, rflags),
            handler = const super::HANDLER_STACK,
            df_ac = const flag::DF_AC,
            flags = const flag::RESERVED,
            dispatch = sym handler::dispatch::<TrapContext>,
            leave = sym leave,
        )
    }

    /// The entry of system calls. rcx: where the program resumes; r11: its flags. All other
    /// registers are the user's, rsp and gs too. Interrupts are masked, by FMASK.
    #[unsafe(naked)]
    unsafe extern "C" fn syscall_entry() {
        naked_asm!(
            // No register is free, and `syscall` changes no stack. `swapgs` makes gs the core's,
            // which gives a place for the user's rsp.
            "swapgs",
            "mov gs:[{user_sp}], rsp",
            // rsp: the end of the context that runs.
            "mov rsp, gs:[{rsp0}]",
            // Pushes what the processor and a stub push for a trap: ss, rsp, rflags, cs, rip,
            // `address` and `cause`.
            "push {ss}",
            "push qword ptr gs:[{user_sp}]",
            "push r11",
            "push {cs}",
            "push rcx",
            "push 0",
            "push {syscall}",
            // rsp: `cause`. Saves the registers, rcx and r11 too, although their values from before
            // the call are lost.
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            ".endr",
            "jmp {leave}",
            user_sp = const offset_of!(TrapCore, user_sp),
            rsp0 = const CORE_RSP0,
            ss = const USER_SS,
            cs = const USER_CS,
            syscall = const SYSCALL as isize,
            leave = sym leave,
        )
    }

    /// Returns from `enter`. All of the user's registers are saved; gs is the core's.
    #[unsafe(naked)]
    unsafe extern "C" fn leave() {
        naked_asm!(
            // rsp: what `enter` has pushed.
            "mov rsp, gs:[{kernel_sp}]",
            // Loads the caller's flags. The user's DF would make the kernel copy backwards, and the
            // user's AC would let it access users' pages. The caller's IF is 0. Then loads the
            // registers that the caller expects to be preserved.
            "popfq",
            "pop r15",
            "pop r14",
            "pop r13",
            "pop r12",
            "pop rbx",
            "pop rbp",
            "ret",
            kernel_sp = const offset_of!(TrapCore, kernel_sp),
        )
    }

    /// Enters user mode. rdi: the context to run, made for user mode; gs: the core's. Returns after
    /// the next trap in user mode, by [`leave`].
    #[unsafe(naked)]
    unsafe extern "C" fn enter(context: *mut TrapContext) {
        naked_asm!(
            // Saves the registers that the caller expects to be preserved, and its flags. `leave`
            // takes them off.
            "push rbp",
            "push rbx",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "pushfq",
            // The `TrapCore` now says where the next trap in user mode finds the frame. The TSS now
            // says that it is pushed into the context, from the end downwards.
            "mov gs:[{kernel_sp}], rsp",
            "lea rax, [rdi + {size}]",
            "mov gs:[{rsp0}], rax",
            // Null selectors, as others could be left over from another program. fs gets its
            // selector before its base, because the load of the selector changes the base.
            "xor esi, esi",
            "mov ds, esi",
            "mov es, esi",
            "mov fs, esi",
            // ecx: the MSR; edx:eax: the base of fs, the program's thread pointer.
            "mov ecx, {fs_base}",
            "mov eax, [rdi + {thread_pointer}]",
            "mov edx, [rdi + {thread_pointer} + 4]",
            "wrmsr",
            // From here on rsp is in the context, and from `swapgs` on gs is the user's. Only an
            // NMI, a machine check or a double fault can be taken here. Their entry needs neither.
            // The null selector of gs comes after `swapgs`, so that it cannot change the core's
            // base.
            "lea rsp, [rdi + {users_part}]",
            "swapgs",
            "mov gs, esi",
            // rsp: the registers of the context. Loads all, rdi and rsi too.
            ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rdi,rsi,rbp,rbx,rdx,rcx,rax",
            "  pop \\r",
            ".endr",
            // rsp: `cause`. Skips `cause` and `address`. `iretq` then loads rip, cs, rflags, rsp
            // and ss, those of user mode.
            "add rsp, {cause}",
            "iretq",
            kernel_sp = const offset_of!(TrapCore, kernel_sp),
            rsp0 = const CORE_RSP0,
            size = const size_of::<TrapContext>(),
            fs_base = const FS_BASE,
            thread_pointer = const offset_of!(TrapContext, thread_pointer),
            users_part = const USERS_PART,
            cause = const CAUSE,
        )
    }

    /// The entry of double faults, NMIs and machine checks. rsp: `cause`, on the IST stack of the
    /// vector. All other registers are the interrupted code's. The trap can come anywhere, so cs
    /// does not tell whether gs is the user's.
    #[unsafe(naked)]
    unsafe extern "C" fn urgent_entry() {
        naked_asm!(
            ".cfi_startproc",
            ".cfi_signal_frame",
            // CFI: rip and rsp of the interrupted code lie in the context.
            ".cfi_def_cfa rsp, {size} - {cause_at}",
            ".cfi_offset rip, {rip} - {size}",
            ".cfi_offset rsp, {rsp} - {size}",
            // Pushes the registers, and 0 for `fp` and `thread_pointer`. rsp: the `TrapContext`,
            // aligned to 16.
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            "  .cfi_adjust_cfa_offset 8",
            "  .cfi_rel_offset \\r, 0",
            ".endr",
            "push 0",
            "push 0",
            // Clears DF and AC, which may be the interrupted code's or a program's. IF stays 0.
            "push {flags}",
            "popfq",
            ".cfi_adjust_cfa_offset {users_part}",
            // cr2 belongs to a page fault whose entry may not have read it yet. So it is kept in
            // `address`, and put back at the end.
            "mov rax, cr2",
            "mov [rsp + {address}], rax",
            // rsi: the address of the core's `TrapCore`, which `install_trap_entry` has written
            // above the context.
            "mov rsi, [rsp + {size}]",
            // rax: the base of gs. If it is the core's address, gs is the kernel's. Otherwise it is
            // the user's, and `swapgs` makes it the core's. ebx: 1 if so, else 0.
            "mov ecx, {gs_base}",
            "rdmsr",
            "shl rdx, 32",
            "or rax, rdx",
            "xor ebx, ebx",
            "cmp rax, rsi",
            "je 2f",
            "swapgs",
            "inc ebx",
            "2:",
            // rdi and rsp: the `TrapContext`; rsi: the `TrapCore`; ebx: whether gs was the user's.
            // Callees preserve rbx and rsp.
            "mov rdi, rsp",
            "call {on_urgent}",
            // Gives gs back to the user if it was the user's, and cr2 to the interrupted code.
            "test ebx, ebx",
            "jz 3f",
            "swapgs",
            "3:",
            "mov rax, [rsp + {address}]",
            "mov cr2, rax",
            // Skips `thread_pointer` and `fp`, and loads the registers.
            "add rsp, {users_part}",
            ".cfi_adjust_cfa_offset -{users_part}",
            ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rdi,rsi,rbp,rbx,rdx,rcx,rax",
            "  pop \\r",
            "  .cfi_adjust_cfa_offset -8",
            "  .cfi_same_value \\r",
            ".endr",
            // rsp: `cause`. Skips `cause` and `address`. `iretq` then loads rip, cs, rflags, rsp
            // and ss.
            "add rsp, {cause}",
            ".cfi_adjust_cfa_offset -{cause}",
            "iretq",
            ".cfi_endproc",
            address = const offset_of!(TrapContext, address),
            size = const size_of::<TrapContext>(),
            cause_at = const offset_of!(TrapContext, cause),
            rip = const offset_of!(TrapContext, rip),
            rsp = const offset_of!(TrapContext, rsp),
            flags = const flag::RESERVED,
            gs_base = const GS_BASE,
            on_urgent = sym on_urgent,
            users_part = const USERS_PART,
            cause = const CAUSE,
        )
    }
}
