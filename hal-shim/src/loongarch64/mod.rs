//! QEMU's loongarch64 `virt` machine, started by `-kernel` without firmware.
//!
//! [`boot`] brings a core to Rust code, [`fw_cfg`] is where it learns about the machine, [`platform`] has what
//! Trapline asks for and the trap handler, [`space`] the paging, and this file what programs ask for.

mod boot;
mod csr;
mod fw_cfg;
mod platform;
mod space;

use core::arch::asm;
use core::num::NonZeroUsize;
use core::ptr::with_exposed_provenance_mut;

use uart_16550::Uart16550;
use uart_16550::backend::MmioBackend;

pub(crate) use self::boot::{bring_up, init_core, words};
pub(crate) use self::platform::Cpu;
pub(crate) use self::space::Format;
use crate::bare::last_words;
pub(crate) use crate::bare::{
    HEAP, Machine, allowance, boot_stack, cores, isolated, passes, raise, start_core, write,
};

/// The console's device.
pub(crate) type Uart = Uart16550<MmioBackend>;

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
pub(crate) const unsafe fn uart() -> Uart {
    // SAFETY: the machine has the device there, with a register each byte; nothing else is there.
    match unsafe { Uart16550::new_mmio_from_address(UART, 1) } {
        Ok(uart) => uart,
        Err(_) => panic!("an address and a stride that are valid"),
    }
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

#[inline]
pub(crate) fn instructions() -> u64 {
    let tens: u64;
    // SAFETY: reads a counter. QEMU adds up instructions in front of a stretch that it translates as a whole, so the
    // branch, which ends the stretch, makes it exact. A barrier for the compiler, as far as it knows.
    unsafe { asm!("rdtime.d {}, $zero", "b 1f", "1:", out(reg) tens, options(nostack)) };
    tens * 10
}

pub(crate) fn fence_instructions() {
    // SAFETY: changes nothing.
    unsafe { asm!("ibar 0", options(nostack)) };
}
