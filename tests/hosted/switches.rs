//! Switches between tasks: what each task keeps, and backtraces in the middle of a switch.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use trapline::preempt::PreemptGuard;
use trapline::{spawn, stackful};

use crate::support::*;

fn errno() -> libc::c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn set_errno(value: libc::c_int) {
    // SAFETY: a thread may write its errno at any time.
    unsafe { *libc::__errno_location() = value }
}

#[test]
fn errno_is_the_tasks_own() {
    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    /// Calls `f` until the core was left for another task within it. `errno` must be unchanged
    /// after each call.
    fn over(what: &str, f: impl Fn()) {
        let before = OTHERS.load(SeqCst);
        let until = trapline::time::now() + Duration::from_secs(10);
        while OTHERS.load(SeqCst) == before {
            assert!(trapline::time::now() < until, "{what}: no other task ran");
            set_errno(libc::ENOENT);
            f();
            assert_eq!(errno(), libc::ENOENT, "{what}: errno was changed");
        }
    }
    let pause = || compute_for(Duration::from_millis(3));
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let other = spawn(stackful(async {
                    while STOP.load(SeqCst) == 0 {
                        OTHERS.fetch_add(1, SeqCst);
                        set_errno(libc::EBADF);
                    }
                }));
                let asks = spawn(stackful(async move {
                    over("an interrupt", pause);
                    over("a guard's drop", || {
                        let _guard = PreemptGuard::new();
                        pause();
                    });
                    over("interrupts unmasked", || hal_shim::interrupt::masked(pause));
                    over("both", || {
                        let _guard = PreemptGuard::new();
                        hal_shim::interrupt::masked(pause);
                    });
                    over("the heap", || drop(std::hint::black_box(Box::new(1))));
                    over("a line printed", || hal_shim::print!(""));
                }));
                let asked = asks.await;
                STOP.store(1, SeqCst);
                other.await.unwrap();
                asked.unwrap();
            })
            .unwrap();
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_rounding_mode_is_the_tasks_own() {
    use std::arch::asm;

    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    /// Returns MXCSR and the control word of the x87 unit, without the flags of exceptions.
    fn modes() -> (u32, u16) {
        let (mut mxcsr, mut x87) = (0_u32, 0_u16);
        // SAFETY: it writes to two variables of this function.
        unsafe { asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &mut mxcsr, in(reg) &mut x87) };
        (mxcsr & !0x3f, x87)
    }
    fn set_modes(mxcsr: u32, x87: u16) {
        // SAFETY: no floating-point operation that depends on the modes runs before they are
        // restored.
        unsafe { asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &mxcsr, in(reg) &x87) };
    }
    const USUAL: (u32, u16) = (0x1f80, 0x37f);
    const TOWARDS_ZERO: (u32, u16) = (0x7f80, 0xf7f);
    /// Calls `f` with other modes until the core was left for another task within it. The modes
    /// must be kept.
    fn over(what: &str, f: fn()) {
        set_modes(TOWARDS_ZERO.0, TOWARDS_ZERO.1);
        let before = OTHERS.load(SeqCst);
        let mut kept = true;
        for _ in 0..1000 {
            f();
            kept &= modes() == TOWARDS_ZERO;
            if OTHERS.load(SeqCst) != before || !kept {
                break;
            }
        }
        set_modes(USUAL.0, USUAL.1);
        assert!(kept, "{what}: the modes were changed");
        assert_ne!(OTHERS.load(SeqCst), before, "{what}: no other task ran");
        assert_eq!(SEEN.load(SeqCst), 0, "{what}: the modes reached another task");
    }
    /// Computes for longer than a slice, without reading the clock.
    fn pause() {
        for round in 0..3_000_000 {
            std::hint::black_box(round);
        }
    }
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let other = spawn(stackful(async {
                    while STOP.load(SeqCst) == 0 {
                        OTHERS.fetch_add(1, SeqCst);
                        SEEN.fetch_add((modes() != USUAL).into(), SeqCst);
                    }
                }));
                let asks = spawn(stackful(async {
                    over("an interrupt", pause);
                    over("a guard's drop", || {
                        let _guard = PreemptGuard::new();
                        pause();
                    });
                    over("interrupts unmasked", || hal_shim::interrupt::masked(pause));
                }));
                let asked = asks.await;
                STOP.store(1, SeqCst);
                other.await.unwrap();
                asked.unwrap();
            })
            .unwrap();
    });
}

/// Steps through a switch to a new stack, one away from it and one back to it. At each instruction
/// the unwinder walks to the end of the stack.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_backtrace_from_any_instruction_of_a_switch_comes_to_the_end() {
    use std::cell::UnsafeCell;
    use std::ffi::{c_int, c_void};
    use std::ptr::{NonNull, null_mut};
    use trapline::arch::Native;
    use trapline::stackful::{Context as Stack, StackfulBackend};

    const END_OF_STACK: c_int = 5;
    const TOO_MANY: usize = 1000;
    static WALKS: AtomicUsize = AtomicUsize::new(0);
    static WRONG: AtomicUsize = AtomicUsize::new(0);

    unsafe extern "C" {
        fn _Unwind_Backtrace(
            trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(frame: *mut c_void) -> usize;
    }
    /// The number of frames, and the return address of the last one, which is 0 where the outermost
    /// frame has no caller.
    struct Walk(usize, usize);
    extern "C" fn count(frame: *mut c_void, walk: *mut c_void) -> c_int {
        // SAFETY: `step` passes the pointer to its `walk` and waits for the end of the walk. The
        // unwinder passes a valid frame.
        unsafe {
            let Walk(frames, last) = &mut *walk.cast();
            *frames += 1;
            *last = _Unwind_GetIP(frame);
            if *frames < TOO_MANY { 0 } else { END_OF_STACK }
        }
    }
    extern "C" fn step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
        let mut walk = Walk(0, usize::MAX);
        // SAFETY: the unwinder passes the argument on to `count` during this call, and keeps no
        // pointer.
        let end = unsafe { _Unwind_Backtrace(count, (&raw mut walk).cast()) };
        WALKS.fetch_add(1, SeqCst);
        if end != END_OF_STACK || walk.1 != 0 {
            // SAFETY: Linux passes a context to a handler that was installed with SA_SIGINFO.
            let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            WRONG.store(registers[libc::REG_RIP as usize] as usize, SeqCst);
        }
    }
    /// Sets the trap flag to `flag`, which is 0x100 or 0: each instruction traps, or none.
    #[unsafe(naked)]
    unsafe extern "C" fn trap_each_instruction(flag: usize) {
        std::arch::naked_asm!(
            ".cfi_startproc",
            "pushfq",
            ".cfi_adjust_cfa_offset 8",
            "and dword ptr [rsp], ~0x100",
            "or [rsp], rdi",
            "popfq",
            ".cfi_adjust_cfa_offset -8",
            "ret",
            ".cfi_endproc",
        )
    }
    /// The two stacks that are off the core in turn: the thread's and the new one.
    struct Both(UnsafeCell<[Stack; 2]>);
    unsafe extern "C" fn main(both: *mut ()) -> ! {
        loop {
            // SAFETY: the test passes a pointer to its `both`, waits, and has been saved in `outer`
            // by its switch.
            unsafe {
                let [outer, inner] = &mut *(*both.cast::<Both>()).0.get();
                Native::switch(inner, Stack(outer.0));
            }
        }
    }
    let mut memory = vec![0_u128; 64 * 1024];
    // SAFETY: the handler calls only the unwinder, which allocates nothing after its first walk.
    // The stack ends where `memory` ends, is aligned, and outlives its use. Each of the two stacks
    // is entered once for each time that it was left.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, null_mut()), 0);
        let top = NonNull::new(memory.as_mut_ptr_range().end.cast::<u8>()).unwrap();
        let both = Both(UnsafeCell::new([Stack(null_mut()), Stack(null_mut())]));
        let [outer, inner] = &mut *both.0.get();
        *inner = Native::prepare(top, main, (&raw const both).cast_mut().cast());
        libc::raise(libc::SIGTRAP);
        trap_each_instruction(0x100);
        Native::switch(outer, Stack(inner.0));
        Native::switch(outer, Stack(inner.0));
        trap_each_instruction(0);
    }
    assert!(WALKS.load(SeqCst) > 50, "{WALKS:?}");
    assert_eq!(
        WRONG.load(SeqCst),
        0,
        "a walk from this instruction did not reach the end of the stack"
    );
}
