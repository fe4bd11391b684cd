//! Linux ("hosted"): a core is a thread, a trap is a signal, memory is the process's.
//!
//! [`mod@cores`] has the cores and their signals, [`platform`] the platform for Trapline,
//! [`faults`] reports stack overflows, and this file has the functions of the crate's API.

mod cores;
mod faults;
#[cfg(address_sanitizer)]
mod fibers;
mod platform;
mod task_state;

use std::alloc::System;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use trapline::preempt::PreemptGuard;

use self::cores::Claim;
pub(crate) use self::cores::raise;
pub(crate) use self::platform::Machine;
use crate::{StartError, heap};

pub(crate) static HEAP: System = System;

thread_local! {
    static ALLOWANCE: AtomicUsize = const { AtomicUsize::new(heap::UNLIMITED) };
}

/// Calls `f` with the number of allocations that this thread is still granted.
pub(crate) fn allowance<R>(f: impl FnOnce(&AtomicUsize) -> R) -> R {
    ALLOWANCE.with(f)
}

/// Whether the program has promised, by `unsafe`, what hosted code must not do.
static HOSTED: AtomicBool = AtomicBool::new(false);

/// Makes the calling thread core 0 and runs the program.
///
/// # Safety
///
/// As [`entry!`](crate::entry).
pub unsafe fn run(program: fn()) -> ! {
    HOSTED.store(true, Ordering::Relaxed);
    // Called now, as the first call allocates and takes a lock.
    let _ = words();
    let claim = Claim::take(0).unwrap_or_else(|| fail("core 0 is taken: `entry!` runs once"));
    if let Err(error) = claim.core().attach() {
        fail(&format!("cannot start hosted mode: {}", std::io::Error::from_raw_os_error(error)));
    }
    // The panic is caught here and does not unwind out of `main`, as this thread must stay a core
    // while it panics.
    match catch_unwind(program) {
        Ok(()) => exit(0),
        Err(_) => exit(101),
    }
}

pub(crate) fn in_signal_handler(f: impl FnOnce()) {
    match cores::here() {
        Some(core) => core.in_own_handler(f),
        None => f(),
    }
}

/// Ends the process for an error that no `Err` can report.
pub(crate) fn fail(message: &str) -> ! {
    let _guard = PreemptGuard::new();
    write_to(libc::STDERR_FILENO, b"hal-shim: ");
    write_to(libc::STDERR_FILENO, message.as_bytes());
    write_to(libc::STDERR_FILENO, b"\n");
    // SAFETY: no conditions.
    unsafe { libc::_exit(1) }
}

pub(crate) fn exit(code: i32) -> ! {
    let _guard = PreemptGuard::new();
    if cores::here().is_some_and(cores::Core::is_handling) {
        // The exit handlers that `exit` runs must not run in a signal handler.
        // SAFETY: no conditions.
        unsafe { libc::_exit(code) }
    }
    std::process::exit(code)
}

pub(crate) fn words() -> impl Iterator<Item = &'static str> {
    static WORDS: OnceLock<Vec<String>> = OnceLock::new();
    let _guard = PreemptGuard::new();
    WORDS
        .get_or_init(|| std::env::args_os().map(|word| word.to_string_lossy().into()).collect())
        .iter()
        .skip(1)
        .map(String::as_str)
}

fn write_to(file: i32, bytes: &[u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: `rest` is readable for its length.
        match unsafe { libc::write(file, rest.as_ptr().cast(), rest.len()) } {
            ..0 if cores::errno() == libc::EINTR => {}
            // The console is gone: the program continues without it.
            ..=0 => return,
            written => rest = &rest[written as usize..],
        }
    }
}

pub(crate) fn write(bytes: &[u8]) {
    let errno = cores::errno();
    write_to(libc::STDOUT_FILENO, bytes);
    cores::set_errno(errno);
}

pub(crate) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    let _guard = PreemptGuard::new();
    *CORES.get_or_init(|| {
        thread::available_parallelism().map_or(1, usize::from).clamp(4, cores::MAX_CORES)
    })
}

pub(crate) fn start_core(core: usize, program: fn()) -> Result<(), StartError> {
    if !HOSTED.load(Ordering::Relaxed) {
        return Err(StartError::NotHosted);
    }
    if core >= cores() {
        return Err(StartError::NoSuchCore);
    }
    let refused = |error: i32| StartError::Refused(error as isize);
    let claim = Claim::take(core).ok_or(StartError::Running)?;
    let _guard = PreemptGuard::new();
    let (report, started) = mpsc::sync_channel(1);
    thread::Builder::new()
        .name(format!("core {core}"))
        .spawn(move || {
            // This thread owns the claim, and drops it after it has detached from the core.
            let result = claim.core().attach();
            let attached = result.is_ok();
            let _ = report.send(result);
            if attached {
                if catch_unwind(program).is_err() {
                    exit(101);
                }
                claim.core().detach();
            }
        })
        .map_err(|error| refused(error.raw_os_error().unwrap_or(libc::EAGAIN)))?;
    match started.recv() {
        Ok(result) => result.map_err(refused),
        // The thread ended without a report.
        Err(_) => Err(refused(libc::EAGAIN)),
    }
}

/// # Safety
///
/// As [`crate::isolated`].
pub(crate) unsafe fn isolated<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    HOSTED.store(true, Ordering::Relaxed);
    let attach = |core: &'static cores::Core| {
        core.attach().unwrap_or_else(|error| {
            panic!("cannot start a core: {}", std::io::Error::from_raw_os_error(error))
        })
    };
    // The new thread takes the number of the caller's core, or a free one.
    let mine = cores::here();
    let claim = match mine {
        Some(core) => {
            core.detach();
            None
        }
        None => Some(Claim::any().unwrap_or_else(|| panic!("all core numbers are taken"))),
    };
    let core = mine.unwrap_or_else(|| claim.as_ref().expect("taken above").core());
    let outcome = thread::scope(|scope| {
        let body = || {
            attach(core);
            let outcome = catch_unwind(AssertUnwindSafe(f));
            core.detach();
            outcome
        };
        let thread = thread::Builder::new().name(format!("core {}", core.number()));
        thread.spawn_scoped(scope, body).expect("no thread for a core").join()
    });
    if let Some(core) = mine {
        attach(core);
    }
    match outcome {
        Ok(Ok(value)) => value,
        Ok(Err(payload)) | Err(payload) => resume_unwind(payload),
    }
}

/// Runs a test on a core of its own, under a time limit.
pub(crate) fn passes(name: &'static str, test: fn()) -> bool {
    let limit = match crate::arg("limit").map(str::parse) {
        None => 60,
        Some(Ok(seconds)) => seconds,
        Some(Err(_)) => fail("`limit=` must be a whole number of seconds"),
    };
    let (running, done) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let watchdog = scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(limit);
            running.store(true, Ordering::Release);
            while !done.load(Ordering::Acquire) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    crate::println!("FAILED");
                    fail(&format!("test {name} does not end: stopped after {limit} s"));
                }
                thread::park_timeout(left);
            }
        });
        // Until the watchdog runs it may allocate, which a test would count.
        while !running.load(Ordering::Acquire) {
            thread::yield_now();
        }
        // SAFETY: a program that runs tests has promised the same with `entry!`.
        let passed = catch_unwind(|| unsafe { isolated(test) }).is_ok();
        done.store(true, Ordering::Release);
        watchdog.thread().unpark();
        // ThreadSanitizer does not see the end of the scope, but it sees this join.
        watchdog.join().expect("it only waits");
        passed
    })
}
