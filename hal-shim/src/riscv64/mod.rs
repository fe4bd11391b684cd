//! QEMU's riscv64 `virt` machine, booted by OpenSBI into S-mode.
//!
//! [`boot`] brings a hart to Rust code, [`platform`] has the registers for interrupts and time,
//! [`space`] the page table format, and this file the devices.

mod boot;
mod platform;
mod space;

use core::num::NonZeroUsize;

use uart_16550::Uart16550;
use uart_16550::backend::MmioBackend;

pub(crate) use self::boot::{bring_up, init_core, words};
pub(crate) use self::platform::Cpu;
pub(crate) use self::space::Format;
pub(crate) use crate::bare::{
    HEAP, Machine, allowance, boot_stack, cores, isolated, passes, raise, start_core, write,
};

/// The console's device.
pub(crate) type Uart = Uart16550<MmioBackend>;

/// The address of `virt`'s console.
const UART: NonZeroUsize = NonZeroUsize::new(0x1000_0000).unwrap();
/// The address of the device that ends `virt`.
const FINISHER: usize = 0x10_0000;

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

pub(crate) fn exit(code: i32) -> ! {
    let word: u32 = match code & 0xff {
        0 => 0x5555,
        code => (code as u32) << 16 | 0x3333,
    };
    // SAFETY: the machine has the device at this address, and the word ends it.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(FINISHER).write_volatile(word) };
    loop {
        // A few more instructions may be executed until QEMU has ended all harts.
        core::hint::spin_loop();
    }
}

#[inline]
pub(crate) fn instructions() -> u64 {
    riscv::register::instret::read64()
}

pub(crate) fn fence_instructions() {
    riscv::asm::fence_i();
}
