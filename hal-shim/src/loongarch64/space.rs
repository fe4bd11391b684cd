//! Paging on loongarch64: the format of an entry, the TLB, and the registers.
//!
//! ```text
//!   0x0000_0000_0000_0000   a user program, by the tables of PGDL
//!   0x8000_0000_0000_0000   all memory, uncached        the kernel's two direct windows,
//!   0x9000_0000_0000_0000   all memory, cached          which need no tables
//!   0xffff_8000_0000_0000   stacks, in 9 windows, by the tables of PGDH
//! ```
//!
//! Tables have 2048 entries in a page of 16 KiB. An entry of level 0 has the TLB's format, one of a
//! higher level is the physical address of the next table. [`refill`] walks them when the TLB has
//! no entry.

use core::arch::{asm, naked_asm};
use core::ops::Range;

use super::{CACHED, csr, physical};
use crate::bare::Windows;
use crate::bare::paging::{self, Entry, INDEX_WIDTH, KernelTables, PAGE, PageTables, Table, shift};
use crate::user::Rights;

// Bits of an entry.
const VALID: Entry = 1 << 0;
/// Dirty: the page can be written.
const WRITE: Entry = 1 << 1;
const IN_USER_MODE: Entry = 3 << 2;
const COHERENT: Entry = 1 << 4;
const GLOBAL: Entry = 1 << 6;
const ADDRESS: Entry = ((1 << 48) - 1) & !(PAGE - 1);

/// The kernel's root, and the users' root while no address space is loaded, which stays empty.
static KERNEL: KernelTables<Table> = KernelTables::new(Table::EMPTY);
static NO_USER: KernelTables<Table> = KernelTables::new(Table::EMPTY);

/// Sets up the calling core's paging.
pub(super) fn init_core() {
    const WIDTH_SHIFT: usize = 5;
    let lower =
        shift(0) | INDEX_WIDTH << WIDTH_SHIFT | (shift(1) | INDEX_WIDTH << WIDTH_SHIFT) << 10;
    // The highest level is the third above the last: in the second, the field for the shift is too
    // narrow.
    const HIGHEST_WIDTH_SHIFT: usize = 6;
    let higher = shift(2) | INDEX_WIDTH << HIGHEST_WIDTH_SHIFT;
    let entry = (refill as *const ()).addr().next_multiple_of(REFILL_ALIGN);
    // SAFETY: the TLB has not been used yet. The registers describe the tables as `refill` walks
    // them, and the two roots are static.
    unsafe {
        csr::write::<{ csr::STLBPS }>(Format::PAGE_SHIFT);
        csr::write::<{ csr::TLBREHI }>(Format::PAGE_SHIFT);
        csr::write::<{ csr::PWCL }>(lower);
        csr::write::<{ csr::PWCH }>(higher);
        csr::write::<{ csr::PGDH }>(paging::physical(KERNEL.as_ptr()));
        csr::write::<{ csr::PGDL }>(Format::kernel_root());
        csr::write::<{ csr::TLBRENTRY }>(physical(entry));
    }
    flush_all();
}

/// The low bits of TLBRENTRY are zero: the entry begins at the first multiple of this in
/// [`refill`].
const REFILL_ALIGN: usize = 4096;

/// Fills in the TLB's missing entry, for two neighbouring pages: the one with the address that was
/// accessed, and the other of the pair. On entry, addresses are physical, and all registers hold
/// the interrupted code's values.
#[unsafe(naked)]
unsafe extern "C" fn refill() {
    naked_asm!(
        ".balign {align}",
        "csrwr $t0, {save}",
        "csrrd $t0, {pgd}",
        "lddir $t0, $t0, 3",
        "beqz $t0, 2f",
        "lddir $t0, $t0, 1",
        "beqz $t0, 2f",
        "ldpte $t0, 0",
        "ldpte $t0, 1",
        "3:",
        "tlbfill",
        "csrrd $t0, {save}",
        "ertn",
        // Without a table, both pages are not mapped.
        "2:",
        "csrwr $zero, {even}",
        "csrwr $zero, {odd}",
        "b 3b",
        align = const REFILL_ALIGN,
        save = const csr::TLBRSAVE,
        pgd = const csr::PGD,
        even = const csr::TLBRELO0,
        odd = const csr::TLBRELO1,
    )
}

/// Flushes this core's TLB.
fn flush_all() {
    // SAFETY: `refill` fills in again what is needed.
    unsafe { asm!("dbar 0", "invtlb 0, $zero, $zero", options(nostack)) };
}

/// Flushes the users' part from this core's TLB.
fn flush_users() {
    // SAFETY: `refill` fills in again what is needed. 3: all entries that are not global.
    unsafe { asm!("dbar 0", "invtlb 3, $zero, $zero", options(nostack)) };
}

/// Pages of 16 KiB, in the TLB's format.
pub(crate) struct Format;

// SAFETY: an entry of level 0 has the address in the bits of ADDRESS, and VALID makes it not 0. An
// entry of a higher level is an address from the heap, so it isn't 0 either. There are no large
// pages.
unsafe impl PageTables for Format {
    const PAGE_SHIFT: usize = 14;
    // The smallest stack has one page, so at most four lie within a guard's reach on either side.
    const STACKS: Windows = Windows { start: 0xffff_8000 << 32, size: 1 << 34, number: 9 };
    // It does not begin at 0, so that null pointers are not mapped.
    const USER: Range<usize> = 0x1_0000..1 << (shift(2) + INDEX_WIDTH);
    const DIRECT: usize = CACHED;
    // The TLB is filled in with entries that are not valid, too.
    const CACHES_ABSENCE: bool = true;

    fn table(physical: usize) -> Entry {
        physical
    }

    fn stack_page(physical: usize) -> Entry {
        physical | VALID | WRITE | COHERENT | GLOBAL
    }

    fn user_page(physical: usize, rights: Rights) -> Entry {
        // Pages that can be read can be executed, since most versions of QEMU hang when an
        // instruction is fetched that an entry forbids.
        let mut bits = VALID | IN_USER_MODE | COHERENT;
        if rights.write {
            bits |= WRITE;
        }
        physical | bits
    }

    fn address(entry: Entry) -> usize {
        entry & ADDRESS
    }

    fn is_table(_: Entry) -> bool {
        true
    }

    fn with_stacks<R>(f: impl FnOnce(&mut Table) -> R) -> R {
        KERNEL.with(f)
    }

    fn new_root(top: &mut Table) -> Option<usize> {
        // The kernel's part has a root of its own.
        Some(paging::physical(top))
    }

    fn kernel_root() -> usize {
        paging::physical(NO_USER.as_ptr())
    }

    unsafe fn load(root: usize) {
        // SAFETY: the caller promises that its tables live.
        unsafe { csr::write::<{ csr::PGDL }>(root) };
        flush_users();
    }

    fn stack_mapped() {
        flush_all();
    }

    fn stack_unmapped(_: Range<usize>) {
        flush_all();
    }

    fn user_mapped() {
        flush_users();
    }
}
