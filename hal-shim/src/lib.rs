//! The parts of a kernel that examples and tests of Trapline need, so that each of them is one
//! source for every machine.
//!
//! The API is the same on Linux ("hosted": a core is a thread, a trap is a signal) and on QEMU's
//! machines: riscv64 `virt` (booted by OpenSBI into S-mode), x86_64 `q35` (booted by PVH) and
//! loongarch64 `virt`. Only the machines have user programs, address spaces and faults (`user`,
//! `trap`). The crate implements [`trapline::platform::Platform`] and binds it; depending on this
//! crate is enough. Below each stack that it allocates, at least 64 KiB of addresses are not
//! mapped, so that a task which overflows its stack faults, also by a large frame in code without
//! stack probes.
//!
//! ```
//! // Needed for the machines that have no `std`.
//! #![cfg_attr(target_os = "none", no_std, no_main)]
//!
//! use hal_shim::println;
//!
//! hal_shim::entry!(unsafe program);
//!
//! fn program() {
//!     println!("{} cores, rounds={:?}", hal_shim::cores(), hal_shim::arg("rounds"));
//! }
//! ```
//!
//! When the program returns, the exit code is 0. When it panics, on any core, a message is printed
//! and the exit code is 101. [`exit`] ends it with another code.
//!
//! # What hosted code must not do
//!
//! On Linux, a stackful task can be preempted at any instruction that isn't Trapline's or this
//! crate's, and another task continues **on the same thread**. std and libc don't expect that: a
//! thread may then wait for a lock that it holds itself, and a thread-local value may be in the
//! middle of a change. This cannot be checked, so starting hosted mode is `unsafe`. The program
//! that writes `unsafe` promises, for all code in stackful tasks, that without a
//! [`PreemptGuard`](trapline::preempt::PreemptGuard):
//!
//! - it doesn't use std's standard streams. Use [`println!`] of this crate instead;
//! - it keeps no reference to a thread-local value over an instruction where it can be preempted,
//!   which is any instruction, and calls no code that does;
//! - it takes no lock that another task of this thread takes, std's and libc's own included: those
//!   in `getenv`, the time zone, the name resolver, the dynamic linker. (The allocator is guarded
//!   if it is the one of [`heap!`], which [`entry!`] installs, or if the program wraps it in a
//!   [`NoPreempt`](trapline::preempt::NoPreempt).)
//! - it captures and prints no `std::backtrace::Backtrace`. That takes a lock of std's which the
//!   message of every panic takes as well: if a task is preempted while it holds that lock, and
//!   another task of the core panics, that task waits for ever, and the core with it. Errors of
//!   types that capture a backtrace (when `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is set) must be
//!   created under a guard too;
//! - it does not rely on per-thread state of libc and std to stay the same over such an
//!   instruction: `dlerror`, `h_errno`, `uselocale`, the state of `strtok` and the buffers of
//!   functions like it, the capture of a test's output. (`errno` is kept for each task.)
//!
//! The rounding mode and the masked exceptions of floating point (MXCSR and the x87 unit's control
//! word) are kept for a preempted task, and other tasks don't see them. They are not switched where
//! a task gives up the core itself, in [`block_on`](trapline::block_on) and at the end of a poll:
//! restore them before that. (Rust does not allow its code to run with other modes than the default
//! at all.)
//!
//! And for all code of a thread that is a core:
//!
//! - it doesn't change the thread's signal mask or its alternate signal stack: code with another
//!   mask than the core began with is taken for a signal handler, which isn't preempted;
//! - it handles system calls that end early: see "[Signals and system
//!   calls](#signals-and-system-calls)";
//! - the program doesn't use the signals `SIGRTMIN`, `SIGRTMIN + 1` and `SIGURG` anywhere, and
//!   doesn't fork and then continue in the child;
//! - a core's number isn't given to another thread (by [`start_core`] or [`isolated`]) while a
//!   runtime that was entered under that number has stacks that hold frames, or unfinished tasks of
//!   a [`LocalSpawner`](trapline::LocalSpawner), and is entered or shut down again.
//!
//! A signal handler of the program's own may wake tasks, and use Trapline as an interrupt may, only
//! inside of [`interrupt::in_signal_handler`]: elsewhere in the handler, Trapline takes it for task
//! context. Inside, it isn't preempted. Outside, it isn't preempted either if its signal is masked
//! (which is so unless it was installed with `SA_NODEFER`), or if it runs on the alternate signal
//! stack (`SA_ONSTACK`). Inside, it may end its task with
//! [`end_task`](trapline::preempt::end_task); the thread then gets the core's signal mask back,
//! whatever the handler had blocked. A signal of the program's own that arrives in a handler of
//! this crate, the function of [`on_soft`](interrupt::on_soft) included, is delivered when that
//! handler has ended.
//!
//! If a task overflows its stack, a message on standard error says so and names the task, as std's
//! message does for a thread. Then the handler of `SIGSEGV` is called that was installed when the
//! first core started; without one the process dies by the signal. A handler that the program
//! installs later replaces message and handler. It needs `SA_ONSTACK`, as the task's stack has no
//! room for it.
//!
//! # Signals and system calls
//!
//! A core's thread gets a signal when a slice ends, when a timer is due, and when another thread
//! wakes one of its tasks. So system calls are interrupted: those of stackful tasks in every slice,
//! and those of plain tasks by timers and wakes. The handlers are installed with `SA_RESTART`, so
//! Linux restarts a call that has done nothing yet and has no time limit: `read`, `write`, `recv`,
//! `send`, `accept`, `waitpid`, locks. The table shows the results of calls that wait for 10 ms and
//! of transfers of 1 MiB, in a stackful task beside one that computes, with slices of 1 ms:
//!
//! | Call                                                              | Result                   |
//! |-------------------------------------------------------------------|--------------------------|
//! | `nanosleep`, `clock_nanosleep`                                    | 81 and 98 of 100 `EINTR` |
//! | `poll`, `select`, `epoll_wait`                                    | 97 to 100 of 100 `EINTR` |
//! | `futex` with a time limit, `recv` with `SO_RCVTIMEO`              | all `EINTR`              |
//! | `write` to a pipe, `send` to a socket (read slowly)               | all short                |
//! | `getrandom`                                                       | all short                |
//! | `read` of a byte; `write` of 4 KiB to a pipe, of 64 MiB to a file | all whole                |
//!
//! In a plain task without timers and wakes, no call was interrupted or short. So repeat such
//! calls, with the rest of the time or of the bytes. std's `sleep`, `read_exact`, `write_all` and
//! locks do that; a stream's `read` with a time limit returns `ErrorKind::Interrupted`. While a
//! call waits, the core runs no other task until a signal ends the call: it is better to await a
//! [`sleep`](trapline::time::sleep()), or to let another thread make the call and wake the task.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

mod console;
pub mod heap;
pub mod interrupt;
pub mod test;
#[cfg(target_os = "none")]
pub mod trap;
#[cfg(target_os = "none")]
pub mod user;

#[cfg(target_os = "none")]
mod bare;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as machine;

#[cfg(all(target_os = "none", target_arch = "riscv64"))]
mod riscv64;
#[cfg(all(target_os = "none", target_arch = "riscv64"))]
use riscv64 as machine;

#[cfg(all(target_os = "none", target_arch = "x86_64"))]
mod x86_64;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
use x86_64 as machine;

#[cfg(all(target_os = "none", target_arch = "loongarch64"))]
mod loongarch64;
#[cfg(all(target_os = "none", target_arch = "loongarch64"))]
use loongarch64 as machine;

#[doc(hidden)]
pub use console::_print;
#[cfg(target_os = "linux")]
#[doc(hidden)]
pub use linux::run as _run;

/// Makes a function the program: `entry!(unsafe program);`
///
/// It is called on core 0, with interrupts enabled, and with preemption possible as soon as it
/// enters a runtime. The function may have any name but `main`, as on Linux this defines one.
///
/// # Safety
///
/// By writing `unsafe`, the program promises what "[What hosted code must not
/// do](crate#what-hosted-code-must-not-do)" lists.
#[cfg(target_os = "linux")]
#[macro_export]
macro_rules! entry {
    (unsafe $program:path) => {
        $crate::heap!();

        fn main() {
            // SAFETY: the program that wrote `entry!(unsafe …)` promises the same.
            unsafe { $crate::_run($program) }
        }
    };
}

/// Makes a function the program: `entry!(unsafe program);`
///
/// It is called on core 0, with interrupts enabled, and with preemption possible as soon as it
/// enters a runtime. The function may have any name but `main`, as on Linux this defines one.
///
/// # Safety
///
/// By writing `unsafe`, the program promises what "[What hosted code must not
/// do](crate#what-hosted-code-must-not-do)" lists.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! entry {
    (unsafe $program:path) => {
        $crate::heap!();

        const _: () = {
            // SAFETY: only this macro defines the name, and a second `entry!` does not link.
            #[unsafe(no_mangle)]
            fn __hal_shim_program() {
                let program: fn() = $program;
                program()
            }
        };
    };
}

/// Prints to the console, as std's does. Callable in any context, also in interrupts.
///
/// The output of one call is not mixed with other output if it has at most 256 bytes.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::_print(::core::format_args!($($arg)*)) };
}

/// Prints a line to the console, as std's does. Callable in any context, also in interrupts.
///
/// The output of one call is not mixed with other output if it has at most 256 bytes.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => {
        $crate::_print(::core::format_args!("{}\n", ::core::format_args!($($arg)*)))
    };
}

/// Ends the machine, or the process, with an exit code from 0 to 255. Callable in any context.
pub fn exit(code: i32) -> ! {
    machine::exit(code)
}

/// The value of the first word `name=value` of the command line: on Linux the process's, else the
/// one that the firmware was given (QEMU's `-append`).
pub fn arg(name: &str) -> Option<&'static str> {
    machine::words().find_map(|word| match word.split_once('=') {
        Some((key, value)) if key == name => Some(value),
        _ => None,
    })
}

/// The number of cores, at least one. The first has the number 0.
///
/// On Linux, as many as the process has processors, and at least four: threads can share a
/// processor.
pub fn cores() -> usize {
    machine::cores()
}

/// The number of the calling core. Core 0 runs the program.
///
/// On Linux, it is `usize::MAX` in a thread that is no core.
pub fn this_core() -> usize {
    use trapline::platform::Platform as _;
    machine::Machine.core()
}

/// The number of instructions that this core has executed since some moment, if instructions are
/// counted (QEMU with `-icount`). On loongarch64 it is a multiple of ten: take the mean of many
/// measurements.
#[cfg(target_os = "none")]
#[inline]
pub fn instructions() -> u64 {
    machine::instructions()
}

/// The stack on which the calling core was booted, and which it has left.
#[cfg(target_os = "none")]
pub fn boot_stack() -> core::ops::Range<usize> {
    machine::boot_stack()
}

/// Starts core number `core`, which calls `program` and stops when that returns.
///
/// # Errors
///
/// [`StartError`] is the reason why it did not start.
pub fn start_core(core: usize, program: fn()) -> Result<(), StartError> {
    machine::start_core(core, program)
}

/// Why a core was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no core with this number: see [`cores`].
    NoSuchCore,
    /// The core runs already.
    Running,
    /// The firmware or the operating system refused, with this error number.
    Refused(isize),
    /// There is no memory for the core's stack.
    OutOfMemory,
    /// Linux: neither [`entry!`] nor [`isolated`] has started hosted mode in this process.
    NotHosted,
}

impl core::fmt::Display for StartError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoSuchCore => f.write_str("there is no core with this number"),
            Self::Running => f.write_str("this core runs already"),
            Self::Refused(error) => {
                write!(f, "the system refused to start the core: error {error}")
            }
            Self::OutOfMemory => f.write_str("no memory for the core's stack"),
            Self::NotHosted => f.write_str("hosted mode was not started: use `hal_shim::entry!`"),
        }
    }
}

impl core::error::Error for StartError {}

/// Calls `f` on a core without state of earlier calls, and returns its result.
///
/// On Linux that is a new thread, which takes the number of the calling core (or a free one, if the
/// caller is a plain thread, such as one of `cargo test`) and gives it back; the caller waits.
/// Without an operating system, `f` is called directly. To be called outside of any runtime.
///
/// # Panics
///
/// If `f` panics, with the same payload. On Linux also if no thread or timer can be created.
///
/// # Safety
///
/// The caller promises what "[What hosted code must not do](crate#what-hosted-code-must-not-do)"
/// lists.
pub unsafe fn isolated<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    // SAFETY: the caller's promise is the same.
    unsafe { machine::isolated(f) }
}
