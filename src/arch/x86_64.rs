//! x86_64, System V ABI: the switch, and for kernels that want them, a trap entry and the way into user
//! mode.
//!
//! # A stack that is off the core
//!
//! ```text
//!   higher addresses
//!   |        ...           |
//!   |  frame of the code   |   with all that it needs of the other registers
//!   |  that switches       |
//!   +----------------------+
//!   |  rip: where to go on |
//!   |  rbp                 |
//!   |  rbx                 |
//!   +----------------------+ <- Context (= rsp), a `Frame`
//! ```
//!
//! # A stack that was prepared and not yet entered
//!
//! ```text
//!   +----------------------+ <- top, aligned to 16
//!   |  not used            |   keeps what `start` calls aligned
//!   |  `main`              |
//!   +----------------------+
//!   |  rip: `start`        |   calls `main`. An unwinder ends there
//!   |  rbp: 0              |   no frame pointer below `main`'s: a walk along them ends here
//!   |  rbx: its argument   |
//!   +----------------------+ <- Context, a `Frame`
//! ```
//!
//! # What is switched, and what is not
//!
//! The registers that the ABI has a callee preserve: rbx, rbp, r12 to r15, and rsp. The switch is a
//! piece of its caller's code that says which registers it overwrites, so the compiler saves those of them that
//! hold something, with what it would save anyway; but for rbx, rbp and rsp, which it does not give
//! away. No vector register is among them. The control words of MXCSR and of the x87 unit are, but Rust code may
//! assume them to be as the language started with: to go on with others is undefined behaviour
//! already before a switch could carry them along. So they stay as they are. Neither `gs` nor `fs`
//! nor the flags are touched; AC, which kernel code may have set for an access to a user's page, is
//! dealt with by the one who leaves (`drop_rights`).
//!
//! A preempted stack looks no different: above the caller's frame lie those of the handler that
//! left the core and what the trap (or the signal) has saved of the interrupted code.
//!
//! # A stack that was interrupted in kernel mode
//!
//! ```text
//!   |  interrupted frame   |
//!   +----------------------+ <- rsp of the interrupted code, rounded down to 16. No red zone below it:
//!   |  ss, rsp, rflags     |    kernels are compiled without. Pushed by the processor
//!   |  cs, rip             |
//!   |  address, cause      |    by the vector's stub (or the processor: an error code)
//!   |  rax ... r15         |    by `trap_entry`
//!   |  no user's: 0, 0     |
//!   +----------------------+ <- a `TrapContext`, aligned to 16
//!   |  the handler's frames|
//! ```
//!
//! # A stack whose task runs a user program
//!
//! ```text
//!   |  TrapContext::run    |          |  ss, rsp, rflags     | <- `Tss::rsp0`: the end of the context
//!   +----------------------+          |  cs, rip             |
//!   |  rip, rbp, rbx       |          |  address, cause      |
//!   |  r12 ... r15, rflags |          |  rax ... r15         |
//!   +----------------------+          |  fp, thread pointer  |
//!    ^ TrapCore::kernel_sp            +----------------------+ the `TrapContext`, wherever it is
//! ```
//!
//! The processor takes a trap in user mode on the stack that the TSS names, and `syscall` on none; so
//! the TSS names the context's own memory, and all pushes fill it in. Both places are written by the
//! last instructions before user mode and read by the first after it, with interrupts masked all the
//! while: no other code runs in between, and nothing needs to be put back when runs nest.
//!
//! # Traps that cannot wait for a good moment
//!
//! ```text
//!   +----------------------+ <- the end of a part of the emergency stack
//!   |  the core's TrapCore |
//!   +----------------------+ <- the TSS's entry (IST) for the vector
//!   |  TrapContext         |
//!   |  the handler's frames|
//! ```
//!
//! An NMI and a machine check come between any two instructions, also between the entry to kernel
//! mode and its `swapgs`, where cs is the kernel's and rsp and gs are the user's. And when the
//! kernel's stack has overflowed, the processor cannot push the page fault there and makes a double fault of
//! it. These three have stacks of their own, and look at gs itself to know whose it is.
//!
//! # gs
//!
//! In kernel mode the base of gs is the address of the core's `TrapCore`. In user mode it is 0, and `swapgs`
//! exchanges it: user mode cannot change it as long as CR4.FSGSBASE is off.
//!
//! # Floating point
//!
//! A kernel is compiled for soft float, and CR0.TS is set whenever it runs. A user program begins so, too; its
//! first FP instruction is a trap (#NM), upon which it gets an `FpArea` with the initial state, and goes on.
//! From then on that is loaded before it runs and saved after it: the processor says what has
//! changed, and XSAVEOPT looks at that. Then the initial state is loaded: with CR0.TS set, some processors
//! would let another program see speculatively what the last one has left (CVE-2018-3665). So no program
//! sees another's registers, and one that doesn't compute pays nothing.

use core::arch::{asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;

use crate::stackful::{Context, StackMain, StackfulBackend};

#[cfg(all(target_os = "none", target_feature = "sse"))]
compile_error!(
    "the trap entry doesn't save the kernel's own SSE registers: build the kernel for soft float, as for \
     the target x86_64-unknown-none"
);

/// What lies at a [`Context`].
#[repr(C)]
struct Frame {
    rbx: usize,
    rbp: usize,
    rip: usize,
}

/// What lies between a prepared `Frame` and the stack's top.
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
    // `start` calls `main` with the stack pointer here, which has to be aligned to 16 then.
    assert!(offset_of!(Start, main) == size_of::<Frame>());
    assert!((size_of::<Start>() - offset_of!(Start, main)).is_multiple_of(16));
};

/// How many bytes of the interrupted stack the handler of an interrupt may use. That includes its call of
/// [`preempt::on_timer`](crate::preempt::on_timer) and the switch, which take less than half of it in a
/// build without optimization. The trap entry makes sure that so much is there: if not, the trap is an
/// [overflow](TrapContext::is_overflow).
pub const HANDLER_STACK: usize = 4096;

/// The switch of x86_64's System V ABI.
#[derive(Debug)]
pub struct X86_64;

impl X86_64 {
    /// What [`MIN_STACK`](StackfulBackend::MIN_STACK) counts for what Linux pushes for a signal, twice
    /// hosted: the red zone that it leaves out, the state of all vector registers (2.7 KiB with AVX-512), the rest
    /// of the context and the alignment. Where it is more (11 KiB with AMX),
    /// [`Platform::min_stack`](crate::platform::Platform::min_stack) adds the rest.
    pub const SIGNAL: usize = 4096;
    /// Hosted, one signal frame holds the preempted task, and when it is resumed, one other can come
    /// to lie on top of it. Without an operating system it is one trap context, far smaller than a
    /// signal frame; what the task itself has there at least is within what is counted too much.
    const TRAPS: usize = if cfg!(target_os = "none") {
        Self::SIGNAL + HANDLER_STACK
    } else {
        2 * (Self::SIGNAL + HANDLER_STACK)
    };
}

// SAFETY: `prepare` writes `size_of::<Start>()` bytes below `top`, less than MIN_STACK. `switch` saves
// and loads rbx, rbp and rsp, and tells the compiler that it overwrites all other registers; it
// touches the two stacks and `*save` only, neither gs/fs nor the interrupt flag; and an `asm!` without
// `nomem` is a barrier.
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
        // SAFETY: the caller's promise: what is at `to` was left by this very code or by `prepare`.
        unsafe {
            asm!(
                "lea rax, [rip + 2f]",
                "jmp {exchange}",
                // A switch came back to what was saved there.
                "2:",
                exchange = sym exchange,
                inout("rdi") save => _,
                inout("rsi") to.0 => _,
                out("r12") _,
                out("r13") _,
                out("r14") _,
                out("r15") _,
                clobber_abi("sysv64"),
            );
        }
    }
}

/// rdi: where to store the context that is left; rsi: the one to go on in; rax: where the caller goes on.
///
/// A function of its own, since only so an unwinder can be told where all is after each instruction. It
/// is told the same before and after the change of stacks, as both look the same.
#[unsafe(naked)]
unsafe extern "C" fn exchange() {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_def_cfa rsp, 0",
        ".cfi_register rip, rax",
        "push rax",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rip, 0",
        "push rbp",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbp, 0",
        "push rbx",
        ".cfi_adjust_cfa_offset 8",
        ".cfi_rel_offset rbx, 0",
        "mov [rdi], rsp",
        // From here on the other stack.
        "mov rsp, rsi",
        "pop rbx",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_same_value rbx",
        "pop rbp",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_same_value rbp",
        // Not a `ret`: it would be predicted to go where a function was called from.
        "pop rax",
        ".cfi_adjust_cfa_offset -8",
        ".cfi_register rip, rax",
        "jmp rax",
        ".cfi_endproc",
    )
}

/// rsp: at `main` of a prepared stack; rbx: its argument; rbp: 0. There is no caller.
///
/// It begins with a `nop` that isn't run: an unwinder looks for what is before the place where a frame goes on.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!(
        ".cfi_startproc",
        ".cfi_undefined rip",
        "nop",
        "mov rdi, rbx",
        "call [rsp]",
        "ud2",
        ".cfi_endproc",
    )
}

/// The size of the `nop` at the beginning of [`start`].
const START: usize = 1;

/// How many bytes of stack a task that leaves by itself takes, from where it must not be preempted any more.
pub(crate) const LEAVE: usize = 1024;

/// Reads the stack `DEPTH` bytes below. If nothing is mapped there, the fault comes here, in the code of the task,
/// which can be ended alone. Without this it would come in the runtime's own code, or in a handler.
#[inline(always)]
pub(crate) fn touch_stack<const DEPTH: usize>() {
    // SAFETY: reads what lies below the stack pointer, if anything does.
    unsafe { asm!("test byte ptr [rsp - {}], 0", const DEPTH, options(nostack, readonly)) };
}

/// AC: in the kernel, user's pages may be accessed though SMAP is on. (In user mode: accesses that aren't
/// aligned are faults.)
const AC: usize = 1 << 18;

/// Whether the running code has given itself a right that no other code is to have. In user mode there is
/// none: AC allows nothing there. So a hosted poll doesn't pay for the question.
#[inline(always)]
pub(crate) fn has_rights() -> bool {
    if cfg!(not(target_os = "none")) {
        return false;
    }
    let flags: usize;
    // SAFETY: reads the flags, by way of the stack.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & AC != 0
}

/// Gives such rights up, before other code runs, and returns which they were. Not by `clac`, which not every
/// processor has.
#[cold]
pub(crate) fn drop_rights() -> usize {
    // SAFETY: without AC, less is allowed.
    unsafe { asm!("pushfq", "and dword ptr [rsp], {}", "popfq", const !(AC as i32)) };
    AC
}

/// Gives the running code its rights back.
///
/// # Safety
///
/// [`drop_rights`] said that it had them.
#[cold]
pub(crate) unsafe fn restore_rights(rights: usize) {
    // SAFETY: the caller's promise.
    unsafe { asm!("pushfq", "or [rsp], {}", "popfq", in(reg) rights) };
}

#[cfg(any(target_os = "none", doc))]
pub use self::traps::{
    FpArea, MIN_EMERGENCY_STACK, Registers, TIMER_VECTOR, TrapContext, TrapCore, install_trap_entry,
};

/// Trap entry and user mode. Hosted, signals take their place.
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
    // Not loom's: traps aren't modelled.
    use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

    use crate::fatal::fatal;
    use crate::trap::{self, Access, Syscall, Trap, TrapHandler};

    /// What a trap interrupted: pushed by the entry on the interrupted kernel stack, or a user program's,
    /// which [`run`](TrapContext::run) takes to user mode and back.
    ///
    /// All that the next trap will overwrite is in here, read once, by the entry: handlers look here and
    /// not at `cr2`. What is here when a handler returns is restored.
    #[repr(C, align(16))]
    #[derive(Clone, Debug)]
    pub struct TrapContext {
        /// The base of fs in user mode.
        thread_pointer: usize,
        /// A user program's FP registers, once it has used one.
        pub fp: Option<Box<FpArea>>,
        /// The general registers.
        pub registers: Registers,
        /// The vector, and from bit 8 on the error code. -1 for a system call.
        pub cause: usize,
        /// The faulting address, if the cause comes with one.
        pub address: usize,
        /// Where to go on.
        pub rip: usize,
        /// The lowest two bits tell whether user mode (3) or the kernel (0) was interrupted.
        pub cs: usize,
        /// The flags. IF in a user program's says whether it can be interrupted.
        pub rflags: usize,
        /// The stack pointer.
        pub rsp: usize,
        /// Comes with `rsp`.
        pub ss: usize,
    }

    /// The general registers but the stack pointer, from the one that is pushed last.
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

    /// What is pushed below the registers: no program's `fp` and thread pointer.
    const USERS_PART: usize = offset_of!(TrapContext, registers);
    /// What the stub or the processor pushes below `rip`.
    const CAUSE: usize = offset_of!(TrapContext, rip) - offset_of!(TrapContext, cause);

    const _: () = {
        // What the processor pushes, and then the stubs and the entry.
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
        // `None` is what the entry pushes for it.
        assert!(size_of::<Option<Box<FpArea>>>() == size_of::<usize>());
        // The processor aligns the stack to 16 before it pushes, and so must we before a call.
        assert!(size_of::<TrapContext>().is_multiple_of(16));
    };

    /// Floating-point registers: the legacy part, the header, and AVX's part of an XSAVE area in its standard
    /// form; of these FXSAVE uses the first.
    #[repr(C, align(64))]
    #[derive(Clone)]
    pub struct FpArea([u8; 512 + 64 + 256]);

    impl fmt::Debug for FpArea {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("FpArea").finish_non_exhaustive()
        }
    }

    impl FpArea {
        /// As a processor starts: registers zero, all exceptions masked.
        const INITIAL: Self = {
            let mut area = [0; size_of::<Self>()];
            // The x87 unit's control word, and MXCSR.
            [area[0], area[1]] = 0x037f_u16.to_le_bytes();
            [area[24], area[25], area[26], area[27]] = 0x1f80_u32.to_le_bytes();
            Self(area)
        };

        /// As [`INITIAL`](Self::INITIAL). `None` if there is no memory.
        fn initial() -> Option<Box<Self>> {
            // SAFETY: its size is not zero.
            let area = NonNull::new(unsafe { alloc_zeroed(Layout::new::<Self>()) })?;
            // SAFETY: from the global allocator with its layout, and all zeroes are valid.
            let mut area = unsafe { Box::from_raw(area.cast::<Self>().as_ptr()) };
            area.0.copy_from_slice(&CLEAN.0);
            Some(area)
        }

        /// # Safety
        ///
        /// CR0.TS is clear, and what the registers hold is not used any more. `FP_SAVE` was set on this core.
        unsafe fn load(&self) {
            let area = self.0.as_ptr();
            // SAFETY: the area is as large and as aligned as the instruction wants, and holds only what
            // `initial` or `save` wrote. The kernel's code uses no such register.
            unsafe {
                match FP_SAVE.load(Ordering::Relaxed) {
                    FXSAVE => asm!("fxrstor64 [{}]", in(reg) area, options(nostack, readonly)),
                    _ => {
                        asm!("xrstor64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack, readonly))
                    }
                }
            }
        }

        /// # Safety
        ///
        /// As `load`; and the registers hold this area's program's.
        unsafe fn save(&mut self) {
            let area = self.0.as_mut_ptr();
            // SAFETY: as in `load`.
            unsafe {
                match FP_SAVE.load(Ordering::Relaxed) {
                    FXSAVE => asm!("fxsave64 [{}]", in(reg) area, options(nostack)),
                    XSAVE => {
                        asm!("xsave64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack))
                    }
                    _ => {
                        asm!("xsaveopt64 [{}]", in(reg) area, in("eax") !0, in("edx") !0, options(nostack))
                    }
                }
            }
        }
    }

    /// What the registers hold while no program's are in them.
    static CLEAN: FpArea = FpArea::INITIAL;

    /// How FP registers are saved, all cores alike.
    static FP_SAVE: AtomicU8 = AtomicU8::new(FXSAVE);
    const FXSAVE: u8 = 0;
    const XSAVE: u8 = 1;
    const XSAVEOPT: u8 = 2;

    /// CR0: whether the x87 unit is there, is emulated, belongs to others, and tells errors by #MF.
    const CR0_MP: usize = 1 << 1;
    const CR0_EM: usize = 1 << 2;
    const CR0_TS: usize = 1 << 3;
    const CR0_NE: usize = 1 << 5;
    /// CR4: the kernel knows of SSE, of its exceptions, and of XSAVE.
    const CR4_OSFXSR: usize = 1 << 9;
    const CR4_OSXMMEXCPT: usize = 1 << 10;
    const CR4_OSXSAVE: usize = 1 << 18;

    /// Prepares the calling core for the FP registers of user programs.
    fn init_fp() {
        // SAFETY: the kernel uses no FP register, and what these enable is not used before it is saved
        // and loaded by `FpArea`.
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
        // SAFETY: as above.
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
        // AVX's part comes right after the header, as on every processor there is.
        let has_avx = can & AVX != 0 && (avx.ebx, avx.eax) == (512 + 64, 256);
        let components = X87_SSE | if has_avx { AVX } else { 0 };
        // SAFETY: CR4.OSXSAVE is set, and the processor has these.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") components, in("edx") 0, options(nostack)) };
        let has_xsaveopt = __cpuid_count(0xd, 1).eax & 1 != 0;
        FP_SAVE.store(if has_xsaveopt { XSAVEOPT } else { XSAVE }, Ordering::Relaxed);
    }

    /// Lets FP instructions run on this core.
    ///
    /// # Safety
    ///
    /// What the registers hold is overwritten before user mode can see it.
    unsafe fn enable_fp() {
        // SAFETY: the caller's promise.
        unsafe { asm!("clts", options(nostack)) };
    }

    /// Makes the next FP instruction on this core trap.
    fn disable_fp() {
        // SAFETY: the kernel has none.
        unsafe {
            asm!("mov {0}, cr0", "or {0}, {ts}", "mov cr0, {0}", out(reg) _, ts = const CR0_TS, options(nostack))
        };
    }

    /// The GDT's selectors. The order is what `syscall` wants: ss follows cs.
    const KERNEL_CS: usize = 0x08;
    const KERNEL_SS: usize = 0x10;
    const USER_SS: usize = 0x18 | 3;
    const USER_CS: usize = 0x20 | 3;
    const TSS: usize = 0x28;

    /// Flat segments for 64 bits, and where the TSS's descriptor goes.
    const GDT: [u64; 7] = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0,
        0,
    ];

    /// The task state segment: the stacks that the processor changes to.
    #[repr(C, packed(4))]
    struct Tss {
        reserved: u32,
        /// Where a trap in user mode is pushed.
        rsp: [usize; 3],
        reserved_too: usize,
        /// IST 1 to 7.
        ist: [usize; 7],
        reserved_again: [u16; 5],
        /// Where the bitmap of I/O ports begins: behind the end.
        bitmap: u16,
    }

    const _: () = assert!(size_of::<Tss>() == 104);

    /// A core's own place for its trap entry. The kernel keeps one for each core, at the beginning of what the
    /// base of gs is the address of.
    ///
    /// Only the entry, on its core, with interrupts masked, touches what is in it.
    #[repr(C, align(16))]
    pub struct TrapCore {
        /// While user mode runs: the stack of the caller of `enter`.
        kernel_sp: AtomicUsize,
        /// The user's stack pointer, until it has a place in the context.
        user_sp: AtomicUsize,
        /// The emergency stack's part for double faults.
        emergency_base: AtomicUsize,
        emergency_top: AtomicUsize,
        gdt: UnsafeCell<[u64; GDT.len()]>,
        tss: UnsafeCell<Tss>,
    }

    // SAFETY: all of it is only touched by its own core: by `install_trap_entry`, and from then on by the
    // processor and the entry, with interrupts masked; what an NMI reads in between is not written.
    unsafe impl Sync for TrapCore {}

    impl fmt::Debug for TrapCore {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("TrapCore").finish_non_exhaustive()
        }
    }

    impl TrapCore {
        /// For a core that has not installed the entry yet.
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

    /// Where the TSS says where a trap in user mode is pushed.
    const CORE_RSP0: usize = offset_of!(TrapCore, tss) + offset_of!(Tss, rsp);

    /// What an IST stack is used for at least: a context, a fault in the handler, and their frames.
    const MIN_PART: usize = 2 * (size_of::<TrapContext>() + 4096);
    /// The least size of an emergency stack in bytes: one for double faults, one for NMIs, one for machine checks.
    pub const MIN_EMERGENCY_STACK: usize = 3 * MIN_PART;

    /// The vector of [`Trap::Timer`]: what the kernel sets its timer's interrupt to.
    pub const TIMER_VECTOR: u8 = 32;

    /// Vectors that the entry knows.
    mod vector {
        pub(super) const NMI: usize = 2;
        pub(super) const BREAKPOINT: usize = 3;
        pub(super) const ILLEGAL: usize = 6;
        pub(super) const NO_FP: usize = 7;
        pub(super) const DOUBLE_FAULT: usize = 8;
        pub(super) const PAGE_FAULT: usize = 14;
        pub(super) const MACHINE_CHECK: usize = 18;
        /// From here on, the kernel decides what they are for.
        pub(super) const FIRST_INTERRUPT: usize = 32;
        pub(super) const ALL: usize = 256;
    }

    /// The cause of a system call, which is no vector.
    const SYSCALL: usize = usize::MAX;

    /// Which of the TSS's stacks a vector is taken on: 0 is the interrupted one.
    const fn stack_of(vector: usize) -> u64 {
        match vector {
            vector::DOUBLE_FAULT => 1,
            vector::NMI => 2,
            vector::MACHINE_CHECK => 3,
            _ => 0,
        }
    }

    /// Two words a vector. The same on all cores, each of which writes it.
    static IDT: [AtomicU64; 2 * vector::ALL] = [const { AtomicU64::new(0) }; 2 * vector::ALL];

    /// What `lgdt` and `lidt` read.
    #[repr(C, packed)]
    struct TablePointer {
        limit: u16,
        base: *const u64,
    }

    const EFER: u32 = 0xc000_0080;
    const EFER_SCE: u64 = 1;
    /// The segments of `syscall`, its entry, and the flags that it clears.
    const STAR: u32 = 0xc000_0081;
    const LSTAR: u32 = 0xc000_0082;
    const FMASK: u32 = 0xc000_0084;
    const FS_BASE: u32 = 0xc000_0100;
    const GS_BASE: u32 = 0xc000_0101;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;

    /// # Safety
    ///
    /// The register exists, and the value does no harm.
    unsafe fn write_msr(register: u32, value: u64) {
        let (low, high) = (value as u32, (value >> 32) as u32);
        // SAFETY: the caller's promise.
        unsafe {
            asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack))
        };
    }

    /// # Safety
    ///
    /// The register exists.
    unsafe fn read_msr(register: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: the caller's promise.
        unsafe {
            asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack))
        };
        u64::from(low) | u64::from(high) << 32
    }

    /// Makes this core's traps end in `handler`, for kernels that have no IDT of their own.
    ///
    /// The handler is one for all cores, the one that was given last. NMIs and machine checks come to it on
    /// the emergency stack, also those in user mode, and it returns from them.
    ///
    /// # Safety
    ///
    /// - This core is in 64-bit mode, with EFER.NXE on (or a fault of a fetch is taken for one of a load) and
    ///   CR4.FSGSBASE off. From now on GDT, LDT, IDT, TSS, fs, gs and its bases, and the registers of
    ///   `syscall` are the entry's. The base of gs becomes the address of `core`.
    /// - The kernel is compiled without SSE, x87 and red zone.
    /// - Every stack on which a trap can be taken has room for a [`TrapContext`] and the handler's frames, or an
    ///   unmapped page below it.
    /// - `core` is this core's alone, and `emergency_stack` too: at least [`MIN_EMERGENCY_STACK`] bytes of
    ///   memory, for ever, aligned to 16 at both ends.
    /// - `handler` returns with interrupts masked, and only to go on where the `TrapContext` says. For an NMI or a
    ///   machine check it takes no trap itself: the return from that would let in the next one, on the stack that is
    ///   in use.
    pub unsafe fn install_trap_entry(
        core: &'static TrapCore,
        emergency_stack: NonNull<[u8]>,
        handler: TrapHandler,
    ) {
        assert!(
            emergency_stack.len() >= MIN_EMERGENCY_STACK,
            "the emergency stack is too small: MIN_EMERGENCY_STACK says how large it must be"
        );
        trap::set_handler(handler);
        init_fp();

        let base = emergency_stack.cast::<u8>().as_ptr().expose_provenance();
        let part = (emergency_stack.len() / 3) & !15;
        core.emergency_base.store(base, Ordering::Relaxed);
        core.emergency_top.store(base + part, Ordering::Relaxed);
        let core_address = core::ptr::from_ref(core).expose_provenance();
        let mut ist = [0; 7];
        for (n, stack) in ist.iter_mut().take(3).enumerate() {
            // The core's address lies above the first push, and keeps that aligned to 16.
            *stack = base + (n + 1) * part - 16;
            let place: *mut usize = core::ptr::with_exposed_provenance_mut(*stack);
            // SAFETY: in the emergency stack, which the caller gives, and aligned.
            unsafe { place.write(core_address) };
        }

        let tss = core.tss.get().expose_provenance() as u64;
        // An available TSS: its base in four parts, its limit, and its kind.
        let low = tss << 16 & 0xff_ffff_0000
            | tss << 32 & 0xff00_0000_0000_0000
            | 0x89 << 40
            | (size_of::<Tss>() as u64 - 1);
        // SAFETY: nobody uses them yet: the entry is installed on a core once, below.
        unsafe {
            (&raw mut (*core.tss.get()).ist).write_unaligned(ist);
            let gdt = core.gdt.get().cast::<u64>();
            gdt.add(TSS / 8).write(low);
            gdt.add(TSS / 8 + 1).write(tss >> 32);
        }

        for (number, gate) in IDT.chunks_exact(2).enumerate() {
            let entry = (stubs as *const () as usize + number * STUB) as u64;
            // An interrupt gate, so interrupts are masked; only a breakpoint may be asked for in user mode.
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
        // SAFETY: the tables are static and filled in. The segments are those that 64-bit mode goes on in.
        // gs is loaded before its base, which that changes. The caller promises the rest.
        unsafe {
            asm!(
                "lgdt [{gdt}]",
                "push {cs}",
                "lea {scratch}, [rip + 2f]",
                "push {scratch}",
                "retfq",
                "2:",
                "mov {scratch:e}, {ss}",
                "mov ss, {scratch:e}",
                "xor {scratch:e}, {scratch:e}",
                "mov ds, {scratch:e}",
                "mov es, {scratch:e}",
                "mov fs, {scratch:e}",
                "mov gs, {scratch:e}",
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
            // All that has a meaning in kernel mode: TF, IF, DF, IOPL, NT, AC among them.
            write_msr(FMASK, flag::ALL);
            write_msr(EFER, read_msr(EFER) | EFER_SCE);
            // Last: an NMI looks at gs.
            asm!("lidt [{}]", in(reg) &raw const idt, options(nostack));
        }
    }

    /// In rflags.
    mod flag {
        /// Always 1.
        pub(super) const RESERVED: usize = 1 << 1;
        pub(super) const INTERRUPTS: usize = 1 << 9;
        /// Those of the interrupted code's that an interrupt leaves set.
        pub(super) const DF_AC: usize = 1 << 10 | super::super::AC;
        /// Those that user mode can change itself: the arithmetic ones, TF, DF, NT, AC and ID.
        pub(super) const USERS: usize = 0x24_4dd5;
        pub(super) const ALL: u64 = 0x3f_7fd5;
    }

    /// In the error code of a page fault.
    const ERROR_WRITE: usize = 1 << 1;
    const ERROR_USER: usize = 1 << 2;
    const ERROR_FETCH: usize = 1 << 4;

    /// Whether the address can be one of 48 bits: the highest 17 bits are equal.
    fn is_canonical(address: usize) -> bool {
        canonical(address) == address
    }

    fn canonical(address: usize) -> usize {
        ((address as isize) << 16 >> 16) as usize
    }

    impl TrapContext {
        /// A user program that begins at `entry` with the stack pointer `stack`: all other registers are
        /// 0, interrupts are enabled, and floating point is unused.
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

        /// Whether the program can be interrupted. One that cannot keeps the core for as long as it likes.
        #[must_use]
        pub const fn with_interrupts(mut self, enabled: bool) -> Self {
            let others = self.rflags & !flag::INTERRUPTS;
            self.rflags = if enabled { others | flag::INTERRUPTS } else { others };
            self
        }

        fn vector(&self) -> usize {
            self.cause & 0xff
        }

        /// What the trap was.
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
                // The push of another trap that failed, if it was where the stack pointer points.
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

        /// Whether user mode was interrupted, and not the kernel.
        pub fn is_user(&self) -> bool {
            self.cs & 3 != 0
        }

        /// Whether the kernel's stack pointer led nowhere when the trap was taken, most likely since the stack
        /// had overflowed.
        pub fn is_overflow(&self) -> bool {
            self.cause != SYSCALL && self.vector() == vector::DOUBLE_FAULT
        }

        /// Where to go on.
        pub fn pc(&self) -> usize {
            self.rip
        }

        /// Sets where to go on.
        pub fn set_pc(&mut self, pc: usize) {
            self.rip = pc;
        }

        /// The stack pointer.
        pub fn sp(&self) -> usize {
            self.rsp
        }

        /// Sets the stack pointer.
        pub fn set_sp(&mut self, sp: usize) {
            self.rsp = sp;
        }

        /// What is asked for, after a [`Trap::Syscall`].
        pub fn syscall(&self) -> Syscall {
            let Registers { rax, rdi, rsi, rdx, r10, r8, r9, .. } = self.registers;
            Syscall { number: rax, arguments: [rdi, rsi, rdx, r10, r8, r9] }
        }

        /// Sets what a system call returns: rax.
        pub fn set_result(&mut self, result: usize) {
            self.registers.rax = result;
        }

        /// Sets what the program finds its thread-local data by: the base of fs.
        pub fn set_thread_pointer(&mut self, pointer: usize) {
            self.thread_pointer = pointer;
        }

        /// Runs the program until its next trap.
        ///
        /// # Safety
        ///
        /// As [`run`](TrapContext::run), with interrupts masked. They still are when it returns.
        pub(crate) unsafe fn enter_user(&mut self) {
            // The processor would find fault with this one while still in kernel mode.
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
                    // SAFETY: the caller promises that the entry is installed; interrupts are masked, and the
                    // context is made for user mode.
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
                // SAFETY: as above. The registers are the program's from `load` to `save`.
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

    /// The core's stacks are all in use.
    fn no_stack_left() -> ! {
        fatal("trapline: the emergency stack overflowed: give install_trap_entry a larger one")
    }

    /// A double fault, an NMI or a machine check, on its stack.
    extern "C" fn on_urgent(context: &mut TrapContext, core: &TrapCore) {
        let emergency = core.emergency_base.load(Ordering::Relaxed)
            ..=core.emergency_top.load(Ordering::Relaxed);
        if context.is_overflow() && emergency.contains(&context.rsp) {
            // What lay there is overwritten already.
            no_stack_left();
        }
        trap::dispatch(context);
    }

    /// The size of each stub in bytes.
    const STUB: usize = 16;

    /// For each vector, what the IDT leads to. On entry, all registers but rsp, rip, cs, ss and rflags are the
    /// interrupted code's, interrupts are masked; rsp points to what the processor has pushed, for some
    /// vectors with an error code.
    #[unsafe(naked)]
    unsafe extern "C" fn stubs() {
        naked_asm!(
            ".set trapline_vector, 0",
            ".rept {all}",
            ".balign {stub}",
            ".if trapline_vector == {nmi} || trapline_vector == {machine_check}",
            "  push 0",
            "  push offset trapline_vector",
            "  jmp {urgent_entry}",
            ".elseif trapline_vector == {double_fault}",
            "  push offset trapline_vector",
            "  jmp {urgent_entry}",
            // 10 to 14, 17, 21, 29, 30.
            ".elseif trapline_vector < 32 && (0x60227c00 >> (trapline_vector & 31)) & 1",
            "  push offset trapline_vector",
            "  jmp {trap_entry_with_error}",
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

    /// rsp: at the vector; above it, the error code; then what the processor pushes always. Makes `cause` and
    /// `address` of the two.
    #[unsafe(naked)]
    unsafe extern "C" fn trap_entry_with_error() {
        naked_asm!(
            "push rax",
            "push rcx",
            // rsp: two registers below `cause`.
            "mov ecx, [rsp + 16 + {word}]",
            "shl rcx, 8",
            "or [rsp + 16], rcx",
            "xor eax, eax",
            "cmp byte ptr [rsp + 16], {page_fault}",
            "jne 2f",
            "mov rax, cr2",
            "2:",
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

    /// rsp: at `cause`, above which the context is filled in.
    #[unsafe(naked)]
    unsafe extern "C" fn trap_entry() {
        naked_asm!(
            ".cfi_startproc",
            ".cfi_signal_frame",
            ".cfi_def_cfa rsp, {size} - {cause_at}",
            ".cfi_offset rip, {rip} - {size}",
            ".cfi_offset rsp, {rsp} - {size}",
            "test byte ptr [rsp + {cs}], 3",
            "jnz 3f",
            // Kernel mode: rsp is on the interrupted stack.
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            "  .cfi_adjust_cfa_offset 8",
            "  .cfi_rel_offset \\r, 0",
            ".endr",
            "push 0",
            "push 0",
            ".cfi_adjust_cfa_offset 16",
            // If the stack isn't there as deep as the handler may go, this faults, again and again on what
            // is left of it, until the processor changes over to the emergency stack: before anything is
            // acknowledged or locked.
            "test byte ptr [rsp - {handler}], 0",
            "test dword ptr [rsp + {rflags}], {df_ac}",
            "jnz 5f",
            "2:",
            "mov rdi, rsp",
            "call {dispatch}",
            // rsp: the context.
            ".cfi_remember_state",
            "add rsp, {users_part}",
            ".cfi_adjust_cfa_offset -{users_part}",
            ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rdi,rsi,rbp,rbx,rdx,rcx,rax",
            "  pop \\r",
            "  .cfi_adjust_cfa_offset -8",
            "  .cfi_same_value \\r",
            ".endr",
            "add rsp, {cause}",
            ".cfi_adjust_cfa_offset -{cause}",
            "iretq",
            // The interrupted code's DF and AC: what comes next is neither to copy backwards nor to access
            // users' pages. They come back by `iretq`. (The processor has cleared TF and NT.)
            ".cfi_restore_state",
            "5:",
            "push {flags}",
            "popfq",
            "jmp 2b",
            ".cfi_endproc",
            // User mode: rsp is in the context that runs; gs is the user's.
            "3:",
            "swapgs",
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            ".endr",
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
            dispatch = sym trap::dispatch,
            leave = sym leave,
        )
    }

    /// A system call. rcx: where to go on; r11: the flags. All other registers, rsp and gs too, are the user's;
    /// interrupts are masked.
    #[unsafe(naked)]
    unsafe extern "C" fn syscall_entry() {
        naked_asm!(
            "swapgs",
            "mov gs:[{user_sp}], rsp",
            "mov rsp, gs:[{rsp0}]",
            // What the processor and a stub push for a trap.
            "push {ss}",
            "push qword ptr gs:[{user_sp}]",
            "push r11",
            "push {cs}",
            "push rcx",
            "push 0",
            "push {syscall}",
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

    /// The end of `enter`. All of the user's registers are saved; gs is the kernel's.
    #[unsafe(naked)]
    unsafe extern "C" fn leave() {
        naked_asm!(
            "mov rsp, gs:[{kernel_sp}]",
            // The caller's flags instead of the user's: DF, and AC, which would let the kernel access users'
            // pages.
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

    /// rdi: the context to run, made for user mode; gs: the core's. Returns after the next trap in user mode,
    /// by [`leave`].
    #[unsafe(naked)]
    unsafe extern "C" fn enter(context: *mut TrapContext) {
        naked_asm!(
            "push rbp",
            "push rbx",
            "push r12",
            "push r13",
            "push r14",
            "push r15",
            "pushfq",
            "mov gs:[{kernel_sp}], rsp",
            "lea rax, [rdi + {size}]",
            "mov gs:[{rsp0}], rax",
            // Null selectors: others are another program's. That of fs before its base, which it
            // changes.
            "xor esi, esi",
            "mov ds, esi",
            "mov es, esi",
            "mov fs, esi",
            "mov ecx, {fs_base}",
            "mov eax, [rdi + {thread_pointer}]",
            "mov edx, [rdi + {thread_pointer} + 4]",
            "wrmsr",
            // From here on rsp is in the context, and from `swapgs` on gs is the user's: only an urgent trap
            // can come, which wants neither.
            "lea rsp, [rdi + {users_part}]",
            "swapgs",
            "mov gs, esi",
            ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rdi,rsi,rbp,rbx,rdx,rcx,rax",
            "  pop \\r",
            ".endr",
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

    /// A double fault, an NMI or a machine check: rsp is at `cause` on the vector's own stack. It may have come
    /// anywhere, so cs doesn't tell whose gs is.
    #[unsafe(naked)]
    unsafe extern "C" fn urgent_entry() {
        naked_asm!(
            ".cfi_startproc",
            ".cfi_signal_frame",
            ".cfi_def_cfa rsp, {size} - {cause_at}",
            ".cfi_offset rip, {rip} - {size}",
            ".cfi_offset rsp, {rsp} - {size}",
            ".irp r, rax,rcx,rdx,rbx,rbp,rsi,rdi,r8,r9,r10,r11,r12,r13,r14,r15",
            "  push \\r",
            "  .cfi_adjust_cfa_offset 8",
            "  .cfi_rel_offset \\r, 0",
            ".endr",
            "push 0",
            "push 0",
            // DF and AC may be the interrupted code's or a program's.
            "push {flags}",
            "popfq",
            ".cfi_adjust_cfa_offset {users_part}",
            // cr2 belongs to a page fault whose entry may not have read it yet, and is put back.
            "mov rax, cr2",
            "mov [rsp + {address}], rax",
            "mov rsi, [rsp + {size}]",
            // rsi: the core, which `install_trap_entry` has left above.
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
            // ebx: whether gs was the user's. Callees preserve it.
            "mov rdi, rsp",
            "call {on_urgent}",
            "test ebx, ebx",
            "jz 3f",
            "swapgs",
            "3:",
            "mov rax, [rsp + {address}]",
            "mov cr2, rax",
            "add rsp, {users_part}",
            ".cfi_adjust_cfa_offset -{users_part}",
            ".irp r, r15,r14,r13,r12,r11,r10,r9,r8,rdi,rsi,rbp,rbx,rdx,rcx,rax",
            "  pop \\r",
            "  .cfi_adjust_cfa_offset -8",
            "  .cfi_same_value \\r",
            ".endr",
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
