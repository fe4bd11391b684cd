//! What a kernel would otherwise bring, so that an example of Trapline or a test of it is one
//! source for every machine.
//!
//! The same names on Linux ("hosted": a core is a thread, a signal is a trap) and on QEMU's machines: riscv64
//! `virt` (booted by OpenSBI into S-mode), x86_64 `q35` (booted by PVH) and loongarch64 `virt`. It implements
//! [`trapline::platform::Platform`] and binds it; depending on this crate is enough. User programs,
//! address spaces and faults (`user`, `trap`) there are on the machines only. Below each stack that it
//! gives, at least 64 KiB of addresses are not mapped, so that a task which overflows its stack faults,
//! also by a large frame in code without stack probes.
//!
//! ```
//! // The only lines that know that some machines have no `std`.
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
//! The program returns: exit code 0. It panics, on any core: a message and 101. [`exit`]: as told.
//!
//! # What hosted code must not do
//!
//! A stackful task on Linux is preempted in the middle of anything that isn't Trapline's or this
//! crate's, and another task goes on **on the same thread**. std and libc don't expect that: a lock
//! may then be held by the thread that waits for it, and a thread-local value be in the middle of a
//! change. Nothing can check that, so starting hosted mode is `unsafe`, and the program that writes
//! the word promises, for all code in stackful tasks, that without a
//! [`PreemptGuard`](trapline::preempt::PreemptGuard):
//!
//! - it doesn't use std's standard streams: [`println!`] of this crate is there for that;
//! - it keeps no reference to a thread-local value over an instruction where it can be preempted,
//!   which is any, and calls nothing that does;
//! - it takes no lock that another task of this thread takes, std's and libc's own included:
//!   those in `getenv`, the time zone, the name resolver, the dynamic linker. (The allocator is
//!   guarded if it is [`heap!`]'s, which [`entry!`] installs, or in a
//!   [`NoPreempt`](trapline::preempt::NoPreempt) of the program's own.)
//! - it captures and prints no `std::backtrace::Backtrace`. That takes a lock of std's which the message
//!   of every panic takes as well: if a task is preempted while it holds that lock, and another task of
//!   the core panics, that one waits for ever, and the core with it. Errors of types that capture one
//!   (when `RUST_BACKTRACE` or `RUST_LIB_BACKTRACE` is set) are made under a guard too;
//! - it expects nothing that libc and std keep for the thread to stay as it is over such an instruction:
//!   `dlerror`, `h_errno`, `uselocale`, the state of `strtok` and the buffers of functions like it, the
//!   capture of a test's output. (`errno` is the task's own, and stays.)
//!
//! The rounding mode and the masked exceptions of floating point (MXCSR and the x87 unit's control word)
//! are kept for a preempted task, and other tasks don't see them. They are not switched where a task
//! leaves by itself, in [`block_on`](trapline::block_on) and at the end of a poll: set them back before.
//! (By the rules of Rust, its code may not run with other modes than the default at all.)
//!
//! And for all code of a thread that is a core:
//!
//! - it doesn't change the thread's signal mask or its alternate signal stack: a mask that isn't the
//!   one that the core began with is taken for a signal handler's, which isn't preempted;
//! - it takes a system call that ends early for what it is: see "[Signals and system
//!   calls](#signals-and-system-calls)";
//! - nowhere does the program use the signals `SIGRTMIN`, `SIGRTMIN + 1` and `SIGURG`, nor fork and
//!   then go on in the child;
//! - a core's number isn't given to another thread (by [`start_core`] or [`isolated`]) while a runtime
//!   that was entered under that number has stacks that hold frames or tasks of a
//!   [`LocalSpawner`](trapline::LocalSpawner)'s that aren't finished, and is entered or shut down again.
//!
//! A signal handler of the program's own may wake tasks, and use Trapline as an interrupt may, inside of
//! [`interrupt::in_signal_handler`] only: elsewhere in the handler, Trapline takes it for task context.
//! In there it isn't preempted. Outside of it, it isn't preempted either if its signal is masked, which
//! is so unless it was installed with `SA_NODEFER`, or if it runs on the alternate signal stack
//! (`SA_ONSTACK`). It may end its task with [`end_task`](trapline::preempt::end_task) in there; the
//! thread then gets the core's signal mask back, whatever the handler had blocked. A signal of the
//! program's own that arrives in a handler of this crate, the function of
//! [`on_soft`](interrupt::on_soft) included, is delivered when that is over.
//!
//! If a task overflows its stack, a message on standard error says so and names it, as std's message for
//! a thread does. Then the handler of `SIGSEGV` is called that was installed when the first core
//! started; without one the process dies by the signal. A handler that the program installs later takes
//! the place of message and handler. It needs `SA_ONSTACK`: the task's stack has no room for it.
//!
//! # Signals and system calls
//!
//! A core's thread gets a signal when a slice ends, when a timer is due, and when another thread wakes
//! one of its tasks. So system calls are interrupted: those of stackful tasks in every slice, and those
//! of plain tasks by timers and wakes. The handlers are installed with `SA_RESTART`, so Linux restarts a
//! call that has done nothing yet and has no time limit: `read`, `write`, `recv`, `send`, `accept`,
//! `waitpid`, locks. The table shows what became of calls that wait for 10 ms and of transfers of 1 MiB,
//! in a stackful task beside one that computes, with slices of 1 ms:
//!
//! | Call                                                  | Result                                |
//! |-------------------------------------------------------|---------------------------------------|
//! | `nanosleep`, `clock_nanosleep`                        | 81 and 98 of 100 `EINTR`              |
//! | `poll`, `select`, `epoll_wait`                        | 97 to 100 of 100 `EINTR`              |
//! | `futex` with a time limit, `recv` with `SO_RCVTIMEO`  | all `EINTR`                           |
//! | `write` to a pipe, `send` to a socket (read slowly)   | all short                             |
//! | `getrandom`                                           | all short                             |
//! | `read` of a byte; `write` of 4 KiB to a pipe, of 64 MiB to a file | all whole                 |
//!
//! In a plain task without timers and wakes, none was interrupted or short. So repeat such calls, with
//! the rest of the time or of the bytes. std's `sleep`, `read_exact`, `write_all` and locks do that; a
//! stream's `read` with a time limit gives `ErrorKind::Interrupted`. A call that waits keeps the core
//! from all other tasks until a signal ends it: rather await a [`sleep`](trapline::time::sleep()), or
//! let another thread make the call and wake the task.
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

/// Names the function that is the program: `entry!(unsafe program);`
///
/// It is called on core 0, with interrupts enabled, and with preemption possible as soon as it
/// enters a runtime. The function may have any name but `main`, as on Linux this defines one.
///
/// # Safety
///
/// The word `unsafe` is yours: it promises what "[What hosted code must not
/// do](crate#what-hosted-code-must-not-do)" lists.
#[cfg(target_os = "linux")]
#[macro_export]
macro_rules! entry {
    (unsafe $program:path) => {
        $crate::heap!();

        fn main() {
            // SAFETY: `entry!(unsafe …)`: who wrote that promises what hosted code does not do.
            unsafe { $crate::_run($program) }
        }
    };
}

/// Names the function that is the program: `entry!(unsafe program);`
///
/// It is called on core 0, with interrupts enabled, and with preemption possible as soon as it
/// enters a runtime. The function may have any name but `main`, as on Linux this defines one.
///
/// # Safety
///
/// The word `unsafe` is yours: it promises what "[What hosted code must not
/// do](crate#what-hosted-code-must-not-do)" lists.
#[cfg(target_os = "none")]
#[macro_export]
macro_rules! entry {
    (unsafe $program:path) => {
        $crate::heap!();

        const _: () = {
            // SAFETY: the name is this crate's, and a second `entry!` does not link.
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
/// What one call prints stays together if it is no longer than 256 bytes.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::_print(::core::format_args!($($arg)*)) };
}

/// Prints a line to the console, as std's does. Callable in any context, also in interrupts.
///
/// What one call prints stays together if it is no longer than 256 bytes.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($arg:tt)*) => {
        $crate::_print(::core::format_args!("{}\n", ::core::format_args!($($arg)*)))
    };
}

/// Ends the machine, or the process, with an exit code of 0 to 255. Callable in any context.
pub fn exit(code: i32) -> ! {
    machine::exit(code)
}

/// The value of the first word `name=value` of the command line: the process's on Linux, else what
/// the firmware was given (QEMU's `-append`).
pub fn arg(name: &str) -> Option<&'static str> {
    machine::words().find_map(|word| match word.split_once('=') {
        Some((key, value)) if key == name => Some(value),
        _ => None,
    })
}

/// How many cores there are, which have the numbers 0 up to this. At least one.
///
/// On Linux, as many as the process has processors, and at least four: threads can share one.
pub fn cores() -> usize {
    machine::cores()
}

/// The number of the core that calls. 0 is the one that runs the program.
///
/// On Linux, `usize::MAX` in a thread that is no core.
pub fn this_core() -> usize {
    use trapline::platform::Platform as _;
    machine::Machine.core()
}

/// Instructions that this core has executed since some moment, where instructions are counted (QEMU with
/// `-icount`). loongarch64 tells only full tens of them: take the mean of many stretches.
#[cfg(target_os = "none")]
#[inline]
pub fn instructions() -> u64 {
    machine::instructions()
}

/// The stack that the calling core was booted on, which it has left by now.
#[cfg(target_os = "none")]
pub fn boot_stack() -> core::ops::Range<usize> {
    machine::boot_stack()
}

/// Starts core number `core`, which calls `program` and stops when that returns.
///
/// # Errors
///
/// [`StartError`] says why it did not start.
pub fn start_core(core: usize, program: fn()) -> Result<(), StartError> {
    machine::start_core(core, program)
}

/// Why a core was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartError {
    /// There is no core with this number: see [`cores`].
    NoSuchCore,
    /// It runs already.
    Running,
    /// The firmware or the operating system would not, with its error number.
    Refused(isize),
    /// There is no memory for its stack.
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

/// Calls `f` on a core with nothing left over from earlier calls, and returns what it returns.
///
/// On Linux that is a new thread, which takes the number of the calling core (or a free one, if the
/// caller is a plain thread, such as one of `cargo test`'s) and gives it back; the caller waits.
/// Without an operating system `f` is called where we are. To be called outside of any runtime.
///
/// # Panics
///
/// If `f` does, with the same payload. On Linux also if no thread or timer is to be had.
///
/// # Safety
///
/// The caller promises what "[What hosted code must not do](crate#what-hosted-code-must-not-do)"
/// lists.
pub unsafe fn isolated<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    // SAFETY: the caller's promise is the same.
    unsafe { machine::isolated(f) }
}
