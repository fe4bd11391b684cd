//! QEMU's x86_64 machine `q35`, booted by PVH.
//!
//! [`boot`] brings a processor to Rust code, [`apic`] has its interrupt controller and the clock,
//! [`platform`] the registers for interrupts and time, [`space`] the page table format, and this
//! file the devices.

mod apic;
mod boot;
mod platform;
mod space;

use uart_16550::Uart16550;
use uart_16550::backend::PioBackend;
use x86::instructions::hlt;
use x86::instructions::port::Port;

pub(crate) use self::apic::{init_core, instructions};
pub(crate) use self::boot::{bring_up, words};
pub(crate) use self::platform::{Cpu, raise_nmi};
pub(crate) use self::space::Format;
pub(crate) use crate::bare::{
    HEAP, Machine, allowance, boot_stack, cores, isolated, passes, raise, start_core, write,
};

/// The console's device.
pub(crate) type Uart = Uart16550<PioBackend>;

/// The port of a PC's console.
const UART: u16 = 0x3f8;
/// The port at which the runner puts `isa-debug-exit`, the device that ends QEMU.
const FINISHER: u16 = 0xf4;

/// # Safety
///
/// Two that are used at a time mix their output.
pub(crate) const unsafe fn uart() -> Uart {
    // SAFETY: the machine has the device, and no other one, at this port.
    match unsafe { Uart16550::new_port(UART) } {
        Ok(uart) => uart,
        Err(_) => panic!("a port that is valid"),
    }
}

/// QEMU ends with twice the number that the device gets, plus one. So seven bits are left for the
/// code, and 127 stands for all codes that don't fit.
pub(crate) fn exit(code: i32) -> ! {
    // One is added, since with 0 QEMU would end with 1, which is its own failure.
    let code = (code & 0xff).min(126) as u8 + 1;
    // SAFETY: the device ends QEMU; without it, no device is at the port.
    unsafe { Port::new(FINISHER).write(code) };
    loop {
        // A few more instructions may be executed until QEMU has ended all cores.
        hlt();
    }
}

/// Does nothing: instruction fetches see earlier stores without a fence.
pub(crate) fn fence_instructions() {}
