//! QEMU's x86_64 machine `q35`, booted by PVH.
//!
//! [`boot`] brings a processor to Rust code, [`apic`] has its interrupt controller and the clock,
//! [`platform`] what Trapline asks for and the trap handler, [`space`] the paging, and this file what programs
//! ask for.

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

/// Where a PC has its console.
const UART: u16 = 0x3f8;
/// Where the runner puts `isa-debug-exit`, the device that ends QEMU.
const FINISHER: u16 = 0xf4;

/// # Safety
///
/// Two at a time write into each other's lines.
pub(crate) const unsafe fn uart() -> Uart {
    // SAFETY: the machine has the device there, and nothing else is there.
    match unsafe { Uart16550::new_port(UART) } {
        Ok(uart) => uart,
        Err(_) => panic!("a port that is valid"),
    }
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

/// What was written is seen by fetches from then on without more ado.
pub(crate) fn fence_instructions() {}
