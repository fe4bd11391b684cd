//! QEMU's riscv64 `virt` machine, booted by OpenSBI into S-mode.
//!
//! [`boot`] brings a hart to Rust code, [`platform`] has what Trapline asks for and the trap
//! handler, [`space`] the paging, and this file what programs ask for.

mod boot;
mod platform;
mod space;

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write as _;
use core::num::NonZeroUsize;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

use linked_list_allocator::Heap;
use spin::mutex::SpinMutex;
use trapline::platform::Platform as _;
use uart_16550::backend::MmioBackend;
use uart_16550::{Config, Uart16550};

pub(crate) use self::boot::{cores, start_core, words};
use self::platform::Core;
pub(crate) use self::platform::{Machine, SIE as ENABLED};
pub(crate) use self::space::Space;

/// Where `virt` has its console.
const UART: NonZeroUsize = NonZeroUsize::new(0x1000_0000).unwrap();
/// Where `virt` has the device that ends it.
const FINISHER: usize = 0x10_0000;

/// # Safety
///
/// Two at a time write into each other's lines.
const unsafe fn uart() -> Uart16550<MmioBackend> {
    // SAFETY: the machine has the device there, with a register each byte; nothing else is there.
    match unsafe { Uart16550::new_mmio_from_address(UART, 1) } {
        Ok(uart) => uart,
        Err(_) => panic!("an address and a stride that are valid"),
    }
}

// SAFETY: only here, under the lock.
static CONSOLE: SpinMutex<Uart16550<MmioBackend>> = SpinMutex::new(unsafe { uart() });

/// Calls `f` with what the lock guards, with interrupts masked: their handlers may want it too.
fn exclusively<T, R>(lock: &SpinMutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    let state = Machine.mask_interrupts();
    let result = f(&mut lock.lock());
    // SAFETY: the pair of the call above. If `f` panics, the machine ends.
    unsafe { Machine.restore_interrupts(state) };
    result
}

fn init_console() {
    // If it refuses: the firmware has used it before, so it is set up well enough.
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

/// Prints without the lock, which may be held by the code that is at its end.
fn last_words(words: core::fmt::Arguments<'_>) {
    struct Last(Uart16550<MmioBackend>);
    impl core::fmt::Write for Last {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            self.0.send_bytes_exact(text.as_bytes());
            Ok(())
        }
    }
    // SAFETY: the machine ends, and what remains of others' output is worth less than this.
    let mut last = Last(unsafe { uart() });
    let _ = last.write_fmt(words);
}

/// Ends the machine for a mistake that cannot be answered with an `Err`.
fn fail(message: core::fmt::Arguments<'_>) -> ! {
    last_words(format_args!("\r\nhal-shim: {message}\r\n"));
    exit(1)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = Machine.mask_interrupts();
    last_words(format_args!("\r\ncore {}: {info}\r\n", crate::this_core()));
    exit(101)
}

pub(crate) fn exit(code: i32) -> ! {
    let word: u32 = match code & 0xff {
        0 => 0x5555,
        code => (code as u32) << 16 | 0x3333,
    };
    // SAFETY: the machine has the device there, and this is what it is for.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(FINISHER).write_volatile(word) };
    loop {
        // Another hart than the one that QEMU ends the machine with may see an instruction or two.
        core::hint::spin_loop();
    }
}

/// The machine's memory, behind a lock that all cores share.
pub(crate) struct Memory(SpinMutex<Heap>);

pub(crate) static HEAP: Memory = Memory(SpinMutex::new(Heap::empty()));

impl Memory {
    /// # Safety
    ///
    /// Called once. Nobody else uses the memory from `start` to `end`.
    unsafe fn init(&self, start: usize, end: usize) {
        exclusively(&self.0, |heap| {
            let start = core::ptr::with_exposed_provenance_mut(start);
            // SAFETY: the caller's promise.
            unsafe { heap.init(start, end - start.addr()) }
        });
    }
}

// SAFETY: passed on to `Heap`, one call at a time.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        exclusively(&self.0, |heap| heap.allocate_first_fit(layout))
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller gives back what `alloc` gave, with the same layout.
            exclusively(&self.0, |heap| unsafe { heap.deallocate(pointer, layout) });
        }
    }
}

/// How many more allocations this core is granted.
pub(crate) fn allowance<R>(f: impl FnOnce(&AtomicUsize) -> R) -> R {
    f(&Core::here().allowance)
}

pub(crate) fn raise() {
    Core::here().raise();
}

#[inline]
pub(crate) fn instructions() -> u64 {
    riscv::register::instret::read64()
}

pub(crate) fn boot_stack() -> core::ops::Range<usize> {
    Core::here().boot_stack()
}

pub(crate) fn fence_instructions() {
    riscv::asm::fence_i();
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
