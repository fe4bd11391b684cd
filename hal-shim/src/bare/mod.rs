//! The code that the machines without an operating system share.
//!
//! [`mod@cores`] starts cores and handles their traps, [`memory`] is the heap, [`mod@paging`] has
//! the page tables, [`windows`] chooses the addresses of stacks, [`mod@platform`] is the platform
//! for Trapline, and this file has the console and the end of the machine. A machine's own module
//! has the rest: its boot code, its registers and its devices.

#[cfg(not(target_arch = "riscv64"))]
pub(crate) mod clock;
mod cores;
mod memory;
pub(crate) mod paging;
mod platform;
mod windows;

use core::fmt::{self, Write as _};
use core::ops::Range;
use core::panic::PanicInfo;
use core::sync::atomic::AtomicUsize;

use spin::mutex::SpinMutex;
use trapline::platform::Platform as _;
use uart_16550::Config;

pub(crate) use self::cores::{CORES, Core, cores, main, main_other, set_cores, start_core};
pub(crate) use self::memory::HEAP;
pub(crate) use self::paging::Space;
pub(crate) use self::platform::{Machine, Processor};
pub(crate) use self::windows::Windows;
use crate::machine::{self, Uart};

// SAFETY: the device is used under this lock, except by `last_words`.
static CONSOLE: SpinMutex<Uart> = SpinMutex::new(unsafe { machine::uart() });

/// Calls `f` with the locked value and with interrupts masked, as a handler may take the lock too.
pub(crate) fn exclusively<T, R>(lock: &SpinMutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    crate::interrupt::masked(|| f(&mut lock.lock()))
}

pub(crate) fn init_console() {
    // An error does no harm: the firmware has set it up before, or QEMU's works without.
    let _ = exclusively(&CONSOLE, |uart| uart.init(Config::default()));
}

pub(crate) fn write(bytes: &[u8]) {
    exclusively(&CONSOLE, |uart| {
        for line in bytes.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_suffix(b"\n") {
                Some(text) => {
                    uart.send_bytes_exact(text);
                    uart.send_bytes_exact(b"\r\n");
                }
                None => uart.send_bytes_exact(line),
            }
        }
    });
}

/// Prints without the lock, which the code that fails may hold.
pub(crate) fn last_words(words: fmt::Arguments<'_>) {
    struct Last(Uart);
    impl fmt::Write for Last {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.send_bytes_exact(text.as_bytes());
            Ok(())
        }
    }
    // SAFETY: the machine ends, and this may mix with other cores' last output.
    let mut last = Last(unsafe { machine::uart() });
    let _ = last.write_fmt(words);
}

/// Ends the machine for an error that no `Err` can report.
pub(crate) fn fail(message: fmt::Arguments<'_>) -> ! {
    last_words(format_args!("\r\nhal-shim: {message}\r\n"));
    machine::exit(1)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = Machine.mask_interrupts();
    let core = crate::this_core();
    match trapline::current() {
        Some(task) => last_words(format_args!("\r\ncore {core}, {task}: {info}\r\n")),
        None => last_words(format_args!("\r\ncore {core}: {info}\r\n")),
    }
    machine::exit(101)
}

/// Calls `f` with the number of allocations that this core is still granted.
pub(crate) fn allowance<R>(f: impl FnOnce(&AtomicUsize) -> R) -> R {
    f(&Core::here().allowance)
}

pub(crate) fn raise() {
    Core::here().raise();
}

pub(crate) fn boot_stack() -> Range<usize> {
    Core::here().boot_stack()
}

/// # Safety
///
/// None here: see [`crate::isolated`].
pub(crate) unsafe fn isolated<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    f()
}

/// A panic ends the machine, so a test that returns has passed.
pub(crate) fn passes(_: &'static str, test: fn()) -> bool {
    test();
    true
}
