//! QEMU's x86_64 machine `q35`, booted by PVH.
//!
//! [`boot`] brings a processor to Rust code, [`apic`] has its interrupt controller and the clock,
//! [`platform`] what Trapline asks for and the trap handler, [`space`] the paging, and this file what programs
//! ask for.

mod apic;
mod boot;
mod platform;
mod space;

use core::alloc::{GlobalAlloc, Layout};
use core::fmt::Write as _;
use core::ops::Range;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use core::sync::atomic::AtomicUsize;

use linked_list_allocator::Heap;
use spin::mutex::SpinMutex;
use trapline::platform::Platform as _;
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};
use x86::instructions::hlt;
use x86::instructions::port::Port;

pub(crate) use self::apic::instructions;
pub(crate) use self::boot::{cores, start_core, words};
use self::platform::Core;
pub(crate) use self::platform::{IF as ENABLED, Machine};
pub(crate) use self::space::Space;

/// Where a PC has its console.
const UART: u16 = 0x3f8;
/// Where the runner puts `isa-debug-exit`, the device that ends QEMU.
const FINISHER: u16 = 0xf4;

/// # Safety
///
/// Two at a time write into each other's lines.
const unsafe fn uart() -> Uart16550<PioBackend> {
    // SAFETY: the machine has the device there, and nothing else is there.
    match unsafe { Uart16550::new_port(UART) } {
        Ok(uart) => uart,
        Err(_) => panic!("a port that is valid"),
    }
}

// SAFETY: only here, under the lock.
static CONSOLE: SpinMutex<Uart16550<PioBackend>> = SpinMutex::new(unsafe { uart() });

/// Calls `f` with what the lock guards, with interrupts masked: their handlers may want it too.
fn exclusively<T, R>(lock: &SpinMutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    let state = Machine.mask_interrupts();
    let result = f(&mut lock.lock());
    // SAFETY: the pair of the call above. If `f` panics, the machine ends.
    unsafe { Machine.restore_interrupts(state) };
    result
}

fn init_console() {
    // If it refuses: QEMU's works without.
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
    struct Last(Uart16550<PioBackend>);
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

/// QEMU ends with twice what the device is given, plus one, so seven bits are left of the code: 127 stands for all
/// that doesn't fit.
pub(crate) fn exit(code: i32) -> ! {
    // One more, since QEMU gives twice this and one: 1 is its own failure.
    let code = (code & 0xff).min(126) as u8 + 1;
    // SAFETY: this is what the device is for; if it isn't there, nothing is.
    unsafe { Port::new(FINISHER).write(code) };
    loop {
        // Another core than the one that QEMU ends the machine with may see an instruction or two.
        hlt();
    }
}

/// In how many pieces the machine's memory can be: q35 has one below 4 GiB and one above.
const REGIONS: usize = 4;

/// The machine's memory, behind a lock that all cores share.
pub(crate) struct Memory(SpinMutex<[Heap; REGIONS]>);

pub(crate) static HEAP: Memory = Memory(SpinMutex::new([const { Heap::empty() }; REGIONS]));

impl Memory {
    /// Adds a piece, unless there are too many, or it is too small to be worth it.
    ///
    /// # Safety
    ///
    /// It is memory, and nobody else uses it.
    unsafe fn add(&self, piece: Range<usize>) {
        exclusively(&self.0, |heaps| {
            if let Some(heap) = heaps.iter_mut().find(|heap| heap.size() == 0)
                && piece.len() >= 4096
            {
                let start = core::ptr::with_exposed_provenance_mut(piece.start);
                // SAFETY: the caller's promise.
                unsafe { heap.init(start, piece.len()) }
            }
        });
    }
}

// SAFETY: passed on to the `Heap` that has the memory, one call at a time.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        exclusively(&self.0, |heaps| {
            heaps.iter_mut().find_map(|heap| heap.allocate_first_fit(layout).ok())
        })
        .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let Some(pointer) = NonNull::new(pointer) else { return };
        exclusively(&self.0, |heaps| {
            let has = |heap: &&mut Heap| (heap.bottom()..heap.top()).contains(&pointer.as_ptr());
            if let Some(heap) = heaps.iter_mut().find(has) {
                // SAFETY: the caller gives back what `alloc` gave, with the same layout; it was this heap's.
                unsafe { heap.deallocate(pointer, layout) };
            }
        });
    }
}

/// How many more allocations this core is granted.
pub(crate) fn allowance<R>(f: impl FnOnce(&AtomicUsize) -> R) -> R {
    f(&Core::here().allowance)
}

pub(crate) fn raise() {
    Core::here().raise();
}

pub(crate) fn raise_nmi(core: usize) {
    Core::raise_nmi(core);
}

pub(crate) fn boot_stack() -> Range<usize> {
    Core::here().boot_stack()
}

/// What was written is seen by fetches from then on without more ado.
pub(crate) fn fence_instructions() {}

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
