//! QEMU's riscv64 `virt` machine, booted by OpenSBI into S-mode.
//!
//! [`boot`] brings a hart to Rust code, [`platform`] has what Trapline asks for and the trap
//! handler, [`space`] the paging, and this file what programs ask for.

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

/// Where `virt` has its console.
const UART: NonZeroUsize = NonZeroUsize::new(0x1000_0000).unwrap();
/// Where `virt` has the device that ends it.
const FINISHER: usize = 0x10_0000;

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

#[inline]
pub(crate) fn instructions() -> u64 {
    riscv::register::instret::read64()
}

pub(crate) fn fence_instructions() {
    riscv::asm::fence_i();
}
