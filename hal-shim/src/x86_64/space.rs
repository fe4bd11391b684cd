//! Paging on x86_64: the format of an entry, the kernel's map, and the registers.
//!
//! ```text
//!      0 GiB  devices and RAM at their addresses   supervisor only, the same in all spaces
//!     64 GiB  a user program                       up to 256 GiB
//!   -128 TiB  stacks, in 17 windows                supervisor only, the same in all spaces
//! ```
//!
//! The highest table, the root, is one level above the tables that [`paging`](crate::bare::paging)
//! walks. Its first entry points to the table for the first two parts, and its middle entry to the
//! one for the stacks. These tables have an entry for each GiB.

use core::ops::Range;

use x86::PhysAddr;
use x86::VirtAddr;
use x86::instructions::tlb;
use x86::registers::control::{Cr3, Cr3Flags};
use x86::structures::paging::{PhysFrame, Size4KiB};

use crate::bare::Windows;
use crate::bare::paging::{
    Entry, KernelTables, PAGE, PageTables, Table, index, physical, zeroed_page,
};
use crate::user::Rights;

const LARGE_PAGE: usize = 1 << 21;
const GIB: usize = 1 << 30;
/// The root's entry for stacks.
const STACKS_ENTRY: usize = 256;
/// How many GiB the boot code maps: all that a loader puts the kernel and its data in, and the
/// devices.
pub(super) const BOOT_GIBS: usize = 4;

// Bits of an entry.
pub(super) const PRESENT: Entry = 1 << 0;
pub(super) const WRITE: Entry = 1 << 1;
const IN_USER_MODE: Entry = 1 << 2;
/// Accessed and dirty, set in advance.
const USED: Entry = 0b11 << 5;
/// In an entry of the middle level: a page of 2 MiB, not a table.
pub(super) const LARGE: Entry = 1 << 7;
pub(super) const GLOBAL: Entry = 1 << 8;
const NO_EXECUTE: Entry = 1 << 63;
const ADDRESS: Entry = 0x000f_ffff_ffff_f000;

/// The kernel's tables. The boot code fills in those that it needs.
#[repr(C)]
pub(super) struct Tables {
    pub(super) root: Table,
    pub(super) gibs: Table,
    stacks: Table,
    /// They map RAM and devices, in large pages.
    pub(super) low: [Table; BOOT_GIBS],
}

pub(super) static KERNEL: KernelTables<Tables> = KernelTables::new(Tables {
    root: Table::EMPTY,
    gibs: Table::EMPTY,
    stacks: Table::EMPTY,
    low: [Table::EMPTY; BOOT_GIBS],
});

/// Completes the kernel's map, for RAM that ends at `end`. Called once, on core 0, when the heap is
/// ready. `None` if there is no memory for it.
pub(super) fn init(end: usize) -> Option<()> {
    KERNEL.with(|kernel| {
        for gib in BOOT_GIBS..end.div_ceil(GIB) {
            let page = zeroed_page()?;
            // SAFETY: a page of zeroes is a table, and no other code has it.
            for (n, entry) in unsafe { Table::at(page) }.0.iter_mut().enumerate() {
                let page = gib * GIB + n * LARGE_PAGE;
                *entry = page | PRESENT | WRITE | LARGE | GLOBAL | USED;
            }
            kernel.gibs.0[gib] = Format::table(page);
        }
        // This entry is set now, as spaces copy it.
        kernel.root.0[STACKS_ENTRY] = Format::table(physical(&raw const kernel.stacks));
        Some(())
    })
}

/// Unmaps the page that null pointers lead to. `None` if there is no memory for it.
pub(super) fn unmap_null() -> Option<()> {
    KERNEL.with(|kernel| {
        // The first large page, in small ones.
        let table = zeroed_page()?;
        // SAFETY: a page of zeroes is a table, and no other code has it.
        for (n, entry) in unsafe { Table::at(table) }.0.iter_mut().enumerate().skip(1) {
            let page = n * PAGE;
            *entry = page | PRESENT | WRITE | GLOBAL | USED;
        }
        kernel.low[0].0[0] = Format::table(table);
        Some(())
    })?;
    tlb::flush(VirtAddr::zero());
    Some(())
}

/// Four-level paging.
pub(crate) struct Format;

// SAFETY: an entry has the address in the bits of ADDRESS, and PRESENT makes it not 0. Only entries
// for large pages have LARGE.
unsafe impl PageTables for Format {
    const PAGE_SHIFT: usize = 12;
    // The smallest stack has two pages, so at most eight lie within a guard's reach on either side.
    const STACKS: Windows = Windows { start: 0xffff_8000_0000_0000, size: 16 * GIB, number: 17 };
    const USER: Range<usize> = 64 * GIB..256 * GIB;
    // A page that is not present is in no TLB.
    const CACHES_ABSENCE: bool = false;

    fn table(physical: usize) -> Entry {
        // The entry of the last level says what is allowed.
        physical | PRESENT | WRITE | IN_USER_MODE
    }

    fn stack_page(physical: usize) -> Entry {
        physical | PRESENT | WRITE | GLOBAL | USED | NO_EXECUTE
    }

    fn user_page(physical: usize, rights: Rights) -> Entry {
        let mut bits = PRESENT | IN_USER_MODE | USED;
        if rights.write {
            bits |= WRITE;
        }
        if !rights.execute {
            bits |= NO_EXECUTE;
        }
        physical | bits
    }

    fn address(entry: Entry) -> usize {
        entry & ADDRESS
    }

    fn is_table(entry: Entry) -> bool {
        entry & LARGE == 0
    }

    fn with_stacks<R>(f: impl FnOnce(&mut Table) -> R) -> R {
        KERNEL.with(|kernel| f(&mut kernel.stacks))
    }

    fn new_root(top: &mut Table) -> Option<usize> {
        let page = zeroed_page()?;
        // SAFETY: a page of zeroes is a table, and no other code has it.
        let root = unsafe { Table::at(page) };
        root.0[0] = Self::table(physical(top));
        KERNEL.with(|kernel| {
            let kernels = ..index(Self::USER.start, 2);
            top.0[kernels].copy_from_slice(&kernel.gibs.0[kernels]);
            root.0[STACKS_ENTRY] = kernel.root.0[STACKS_ENTRY];
        });
        Some(page)
    }

    fn kernel_root() -> usize {
        // The root is the first of the tables.
        physical(KERNEL.as_ptr())
    }

    unsafe fn load(root: usize) {
        let frame = PhysFrame::<Size4KiB>::containing_address(PhysAddr::new(root as u64));
        // SAFETY: every root maps the kernel; the caller promises that it lives.
        unsafe { Cr3::write(frame, Cr3Flags::empty()) };
    }

    fn stack_mapped() {}

    fn stack_unmapped(pages: Range<usize>) {
        for page in pages.step_by(PAGE) {
            tlb::flush(VirtAddr::new_truncate(page as u64));
        }
    }

    fn user_mapped() {}
}
