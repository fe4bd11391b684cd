//! Paging on riscv64 (Sv39): the format of an entry, the kernel's map, and the registers.
//!
//! ```text
//!      0 GiB  devices and RAM at their addresses   supervisor only, the same in all spaces
//!     64 GiB  a user program                       up to 256 GiB
//!   -256 GiB  stacks, in 17 windows                supervisor only, the same in all spaces
//! ```

use core::ops::Range;

use riscv::asm::sfence_vma_all;
use riscv::register::satp::{self, Mode};

use crate::bare::Windows;
use crate::bare::paging::{Entry, KernelTables, PageTables, Table, index, physical, zeroed_page};
use crate::user::Rights;

const GIB: usize = 1 << 30;
/// The size of the part where RAM and the devices are at their addresses.
const LOW: usize = 32 * GIB;

// Bits of an entry.
const VALID: Entry = 1 << 0;
const READ: Entry = 1 << 1;
const WRITE: Entry = 1 << 2;
const EXECUTE: Entry = 1 << 3;
/// An entry without any of these points to a table.
const ANY_RIGHT: Entry = READ | WRITE | EXECUTE;
const IN_USER_MODE: Entry = 1 << 4;
const GLOBAL: Entry = 1 << 5;
/// Accessed and dirty, set in advance: some harts fault instead of setting them.
const USED: Entry = 0b11 << 6;

/// Makes an entry.
fn entry(physical: usize, bits: Entry) -> Entry {
    physical >> 12 << 10 | VALID | bits
}

/// The kernel's root.
static KERNEL: KernelTables<Table> = KernelTables::new(Table::EMPTY);

/// Makes the kernel's map, for stacks in this part of RAM. Called once, on core 0, when the heap is
/// ready. `None` if there is no memory for it.
pub(super) fn init(ram: Range<usize>) -> Option<()> {
    KERNEL.with(|kernel| {
        for gib in 0..LOW / GIB {
            kernel.0[gib] = entry(gib * GIB, ANY_RIGHT | GLOBAL | USED);
        }
        // All tables are made now, as spaces copy the root's entries.
        for window in 0..Format::STACKS.number {
            let start = Format::STACKS.start + window * Format::STACKS.size;
            for gib in ram.start / GIB..ram.end.div_ceil(GIB) {
                kernel.0[index(start + gib * GIB, 2)] = Format::table(zeroed_page()?);
            }
        }
        Some(())
    })
}

/// Sv39.
pub(crate) struct Format;

// SAFETY: an entry has the page number from bit 10 on, and VALID makes it not 0. Only entries that
// map a page have a right.
unsafe impl PageTables for Format {
    const PAGE_SHIFT: usize = 12;
    // The smallest stack has two pages, so at most eight lie within a guard's reach on either side.
    const STACKS: Windows =
        Windows { start: (256 * GIB).wrapping_neg(), size: 15 * GIB, number: 17 };
    const USER: Range<usize> = 64 * GIB..256 * GIB;
    const CACHES_ABSENCE: bool = true;

    fn table(physical: usize) -> Entry {
        entry(physical, 0)
    }

    fn stack_page(physical: usize) -> Entry {
        entry(physical, READ | WRITE | GLOBAL | USED)
    }

    fn user_page(physical: usize, rights: Rights) -> Entry {
        let mut bits = READ | IN_USER_MODE | USED;
        if rights.write {
            bits |= WRITE;
        }
        if rights.execute {
            bits |= EXECUTE;
        }
        entry(physical, bits)
    }

    fn address(entry: Entry) -> usize {
        entry >> 10 << 12
    }

    fn is_table(entry: Entry) -> bool {
        entry & ANY_RIGHT == 0
    }

    fn with_stacks<R>(f: impl FnOnce(&mut Table) -> R) -> R {
        KERNEL.with(f)
    }

    fn new_root(top: &mut Table) -> Option<usize> {
        KERNEL.with(|kernel| {
            let end = kernel.0.len();
            for kernels in [0..index(Self::USER.start, 2), index(Self::STACKS.start, 2)..end] {
                top.0[kernels.clone()].copy_from_slice(&kernel.0[kernels]);
            }
        });
        Some(physical(top))
    }

    fn kernel_root() -> usize {
        physical(KERNEL.as_ptr())
    }

    unsafe fn load(root: usize) {
        // SAFETY: every root maps the kernel; the caller promises that it lives.
        unsafe { satp::set(Mode::Sv39, 0, root >> 12) };
        sfence_vma_all();
    }

    fn stack_mapped() {
        sfence_vma_all();
    }

    fn stack_unmapped(_: Range<usize>) {
        sfence_vma_all();
    }

    fn user_mapped() {
        sfence_vma_all();
    }
}
