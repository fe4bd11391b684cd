//! QEMU's loongarch64 `virt` machine, started by `-kernel` without firmware.
//!
//! [`boot`] brings a core to Rust code and [`fw_cfg`] describes the machine to it, [`platform`] has
//! the registers for interrupts and time, [`space`] the page table format, and this file the
//! devices.

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

/// The kernel's direct windows to all memory, at its physical address plus this: one for devices,
/// and one for all else.
const UNCACHED: usize = 0x8000 << 48;
const CACHED: usize = 0x9000 << 48;

/// The address at which the kernel accesses a device.
const fn uncached(physical: usize) -> usize {
    UNCACHED | physical
}

/// The physical address of `address`, which is in one of the direct windows.
const fn physical(address: usize) -> usize {
    address & ((1 << 48) - 1)
}

/// The address of `virt`'s console.
const UART: NonZeroUsize = NonZeroUsize::new(uncached(0x1fe0_01e0)).unwrap();
/// The address of the device that switches `virt` off, and the byte that does so.
const SLEEP_CONTROL: usize = uncached(0x100e_001c);
const SOFT_OFF: u8 = 0x34;
/// The configuration registers of the PCI devices of bus 0, and the distance from one device's to
/// the next's.
const PCI_CONFIG: usize = uncached(0x2000_0000);
const PCI_DEVICE: usize = 1 << 15;
/// A free physical address for a PCI device's memory.
const PCI_MEMORY: usize = 0x4000_0000;
/// QEMU's `pvpanic-pci`: its vendor and device, and the byte that reports a panic of the guest.
const PVPANIC: u32 = 0x0011_1b36;
const PANICKED: u8 = 1 << 0;

/// # Safety
///
/// Two that are used at a time mix their output.
pub(crate) const unsafe fn uart() -> Uart {
    // SAFETY: the machine has the device at this address, with one register per byte.
    match unsafe { Uart16550::new_mmio_from_address(UART, 1) } {
        Ok(uart) => uart,
        Err(_) => panic!("an address and a stride that are valid"),
    }
}

/// QEMU ends with 0 or, by its panic device, with another code, which is always the same. So the
/// code is printed.
pub(crate) fn exit(code: i32) -> ! {
    match code & 0xff {
        0 => {}
        code => {
            last_words(format_args!("\r\nexit code {code}\r\n"));
            report_panic();
        }
    }
    // SAFETY: the machine has the device at this address, and the byte switches it off.
    unsafe { with_exposed_provenance_mut::<u8>(SLEEP_CONTROL).write_volatile(SOFT_OFF) };
    loop {
        // A few more instructions may be executed until QEMU has ended all cores.
        core::hint::spin_loop();
    }
}

/// Reports to QEMU that the guest has failed, if it has the device for that: `-device pvpanic-pci
/// -action panic=exit-failure`.
fn report_panic() {
    /// Configuration registers.
    const COMMAND: usize = 0x4;
    const MEMORY_BASE: usize = 0x10;
    /// In the command register: the device responds at its memory's address.
    const MEMORY_ON: u32 = 1 << 1;
    let devices = (0..32).map(|device| PCI_CONFIG + device * PCI_DEVICE);
    for config in devices {
        let register = |offset| with_exposed_provenance_mut::<u32>(config + offset);
        // SAFETY: the machine has the configuration registers there; where there is no device, they
        // read as all ones. No other code uses the bus.
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
    // SAFETY: reads a counter. QEMU adds the instructions of a translation block before it runs the
    // block, so the branch, which ends the block, makes the count exact. Without `nomem`, it is a
    // barrier for the compiler.
    unsafe { asm!("rdtime.d {}, $zero", "b 1f", "1:", out(reg) tens, options(nostack)) };
    tens * 10
}

pub(crate) fn fence_instructions() {
    // SAFETY: changes nothing.
    unsafe { asm!("ibar 0", options(nostack)) };
}
