//! QEMU's loongarch64 `virt` machine, started by `-kernel` without firmware.
//!
//! [`boot`] brings a core to Rust code, [`fw_cfg`] is where it learns about the machine, [`platform`] has what
//! Trapline asks for and the trap handler, [`space`] the paging, and this file what programs ask for.

mod boot;
mod csr;
mod fw_cfg;
mod platform;
mod space;

use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::fmt::Write as _;
use core::num::NonZeroUsize;
use core::panic::PanicInfo;
use core::ptr::{NonNull, with_exposed_provenance_mut};
use core::sync::atomic::AtomicUsize;

use linked_list_allocator::Heap;
use spin::mutex::SpinMutex;
use trapline::platform::Platform as _;
use uart_16550::backend::MmioBackend;
use uart_16550::{Config, Uart16550};

pub(crate) use self::boot::{cores, start_core, words};
use self::platform::Core;
pub(crate) use self::platform::{IE as ENABLED, Machine};
pub(crate) use self::space::Space;

/// The windows through which the kernel sees all memory, at its physical address plus this: for devices,
/// and for all else.
const UNCACHED: usize = 0x8000 << 48;
const CACHED: usize = 0x9000 << 48;

/// Where the kernel finds a device.
const fn uncached(physical: usize) -> usize {
    UNCACHED | physical
}

/// The physical address of what the kernel has at `address`, in one of the windows.
const fn physical(address: usize) -> usize {
    address & ((1 << 48) - 1)
}

/// Where `virt` has its console.
const UART: NonZeroUsize = NonZeroUsize::new(uncached(0x1fe0_01e0)).unwrap();
/// Where `virt` has the device that switches it off, and what does so.
const SLEEP_CONTROL: usize = uncached(0x100e_001c);
const SOFT_OFF: u8 = 0x34;
/// The configuration registers of the PCI devices of bus 0, and how far one device's are from the next's.
const PCI_CONFIG: usize = uncached(0x2000_0000);
const PCI_DEVICE: usize = 1 << 15;
/// Where there is room for a PCI device's memory.
const PCI_MEMORY: usize = 0x4000_0000;
/// QEMU's `pvpanic-pci`: its vendor and device, and what says that the guest has panicked.
const PVPANIC: u32 = 0x0011_1b36;
const PANICKED: u8 = 1 << 0;

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
    // If it refuses: QEMU's sends what it is given without being set up.
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

/// QEMU ends with 0 or, by its panic device, with another code, always the same: so the console says
/// which.
pub(crate) fn exit(code: i32) -> ! {
    match code & 0xff {
        0 => {}
        code => {
            last_words(format_args!("\r\nexit code {code}\r\n"));
            report_panic();
        }
    }
    // SAFETY: the machine has the device there, and this is what it is for.
    unsafe { with_exposed_provenance_mut::<u8>(SLEEP_CONTROL).write_volatile(SOFT_OFF) };
    loop {
        // Another core than the one that QEMU ends the machine with may see an instruction or two.
        core::hint::spin_loop();
    }
}

/// Tells QEMU that the guest has failed, if it has the device for that: `-device pvpanic-pci -action
/// panic=exit-failure`.
fn report_panic() {
    /// Configuration registers.
    const COMMAND: usize = 0x4;
    const MEMORY_BASE: usize = 0x10;
    /// Command: the device answers at its memory's address.
    const MEMORY_ON: u32 = 1 << 1;
    let devices = (0..32).map(|device| PCI_CONFIG + device * PCI_DEVICE);
    for config in devices {
        let register = |offset| with_exposed_provenance_mut::<u32>(config + offset);
        // SAFETY: the machine has the configuration registers there; where there is no device, they are all
        // ones. Nobody else uses the bus.
        unsafe {
            if register(0).read_volatile() == PVPANIC {
                register(MEMORY_BASE).write_volatile(PCI_MEMORY as u32);
                register(COMMAND).write_volatile(MEMORY_ON);
                with_exposed_provenance_mut::<u8>(uncached(PCI_MEMORY)).write_volatile(PANICKED);
            }
        }
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
            let start = with_exposed_provenance_mut(start);
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
    let tens: u64;
    // SAFETY: reads a counter. QEMU adds up instructions in front of a stretch that it translates as a whole, so the
    // branch, which ends the stretch, makes it exact. A barrier for the compiler, as far as it knows.
    unsafe { asm!("rdtime.d {}, $zero", "b 1f", "1:", out(reg) tens, options(nostack)) };
    tens * 10
}

pub(crate) fn boot_stack() -> core::ops::Range<usize> {
    Core::here().boot_stack()
}

pub(crate) fn fence_instructions() {
    // SAFETY: changes nothing.
    unsafe { asm!("ibar 0", options(nostack)) };
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
