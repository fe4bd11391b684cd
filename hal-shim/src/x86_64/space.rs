//! Paging: the kernel's map, its stacks with their guards, and address spaces for user programs.
//!
//! ```text
//!      0 GiB  devices and RAM where they are   supervisor only, the same in all spaces
//!     64 GiB  a user program's                 up to 256 GiB
//!   -128 TiB  stacks, in 17 windows            supervisor only, the same in all spaces
//! ```
//!
//! The first two are below the first entry of the highest table, the root, and the third below the one in the
//! middle. The next tables have an entry for each GiB.
//!
//! A stack is used at its address in a [window](Windows), where 64 KiB below it are not mapped.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::NonNull;

use spin::mutex::SpinMutex;
use x86::PhysAddr;
use x86::VirtAddr;
use x86::instructions::tlb;
use x86::registers::control::{Cr3, Cr3Flags};
use x86::structures::paging::{PhysFrame, Size4KiB};

use crate::bare::{Windows, exclusively};
use crate::user::{MapError, Rights};

const PAGE: usize = 4096;
const LARGE_PAGE: usize = 1 << 21;
const GIB: usize = 1 << 30;
/// Where stacks are. The least one has two pages, so at most eight lie within a guard's reach on either side.
const STACKS: Windows =
    Windows { start: 0xffff_8000_0000_0000, size: 16 * GIB, number: 17, page: PAGE };
/// The root's entry for them.
const STACKS_ENTRY: usize = 256;
/// What RAM there is beyond is not used.
pub(super) const RAM_END: usize = STACKS.size - GIB;
/// Where the users' part begins and ends.
const USER: Range<usize> = 64 * GIB..256 * GIB;
/// How much the boot code maps: what every loader leaves us in, and the devices.
pub(super) const BOOT_GIBS: usize = 4;

/// A page table's entry.
type Entry = usize;
pub(super) const PRESENT: Entry = 1 << 0;
pub(super) const WRITE: Entry = 1 << 1;
const IN_USER_MODE: Entry = 1 << 2;
/// Accessed and dirty, said in advance.
const USED: Entry = 0b11 << 5;
/// Not a table: a page of 2 MiB.
pub(super) const LARGE: Entry = 1 << 7;
pub(super) const GLOBAL: Entry = 1 << 8;
const NO_EXECUTE: Entry = 1 << 63;
const ADDRESS: Entry = 0x000f_ffff_ffff_f000;
/// A table below: what may be done is said in the last one.
const TABLE: Entry = PRESENT | WRITE | IN_USER_MODE;

/// A table of 512 entries.
#[derive(Debug)]
#[repr(C, align(4096))]
pub(super) struct Table([Entry; 512]);

const EMPTY: Table = Table([0; 512]);
const LAYOUT: Layout = Layout::new::<Table>();

/// The kernel's tables, of which the boot code fills in what it needs.
#[repr(C)]
pub(super) struct Tables {
    pub(super) root: Table,
    pub(super) gibs: Table,
    stacks: Table,
    /// What maps RAM and devices, in large pages.
    pub(super) low: [Table; BOOT_GIBS],
}

pub(super) struct Kernel(UnsafeCell<Tables>);
// SAFETY: changed only under `LOCK`; `Space::new` reads under it what changes no more.
unsafe impl Sync for Kernel {}

pub(super) static KERNEL: Kernel = Kernel(UnsafeCell::new(Tables {
    root: EMPTY,
    gibs: EMPTY,
    stacks: EMPTY,
    low: [EMPTY; BOOT_GIBS],
}));
/// The right to change the kernel's tables.
static LOCK: SpinMutex<()> = SpinMutex::new(());

/// The part of `address` that selects the entry: level 2 is that of GiBs.
fn index(address: usize, level: usize) -> usize {
    address >> (12 + 9 * level) & 511
}

/// A page of zeroes for a table or for a user.
fn zeroed_page() -> Option<usize> {
    // SAFETY: its size is not zero.
    let page = unsafe { alloc::alloc::alloc_zeroed(LAYOUT) };
    (!page.is_null()).then(|| page.expose_provenance())
}

/// # Safety
///
/// `page` is from `zeroed_page`, and nobody uses it.
unsafe fn free_page(page: usize) {
    // SAFETY: the caller's promise.
    unsafe { alloc::alloc::dealloc(core::ptr::with_exposed_provenance_mut(page), LAYOUT) }
}

impl Table {
    /// The table that an entry points to.
    ///
    /// # Safety
    ///
    /// The entry is of a table that the caller may change, present, and of no page.
    unsafe fn below(entry: Entry) -> &'static mut Self {
        // SAFETY: the tables are this module's, and are used by who holds the root.
        unsafe { &mut *core::ptr::with_exposed_provenance_mut(entry & ADDRESS) }
    }

    /// From a table of GiBs: the last level's entry for `address`; with `make`, with the tables on the way
    /// to it.
    fn find(&mut self, address: usize, make: bool) -> Option<&mut Entry> {
        let mut table = self;
        for level in [2, 1] {
            let entry = &mut table.0[index(address, level)];
            if *entry & PRESENT == 0 {
                if !make {
                    return None;
                }
                *entry = zeroed_page()? | TABLE;
            }
            if *entry & LARGE != 0 {
                return None;
            }
            // SAFETY: present, and a table. It belongs to the tree of `self`.
            table = unsafe { Self::below(*entry) };
        }
        Some(&mut table.0[index(address, 0)])
    }
}

/// Calls `f` with the kernel's tables.
fn with_kernel<R>(f: impl FnOnce(&mut Tables) -> R) -> R {
    // SAFETY: under the lock, and nobody keeps the reference.
    exclusively(&LOCK, |()| f(unsafe { &mut *KERNEL.0.get() }))
}

/// Completes the kernel's map, for RAM that ends at `end`. Once, on core 0, when the heap is there. `None` if
/// there is no memory for it.
pub(super) fn init(end: usize) -> Option<()> {
    with_kernel(|kernel| {
        for gib in BOOT_GIBS..end.div_ceil(GIB) {
            let table = zeroed_page()? | TABLE;
            // SAFETY: just made.
            for (n, entry) in unsafe { Table::below(table) }.0.iter_mut().enumerate() {
                let page = gib * GIB + n * LARGE_PAGE;
                *entry = page | PRESENT | WRITE | LARGE | GLOBAL | USED;
            }
            kernel.gibs.0[gib] = table;
        }
        // Now, as spaces copy this entry.
        kernel.root.0[STACKS_ENTRY] = (&raw const kernel.stacks).expose_provenance() | TABLE;
        Some(())
    })
}

/// Takes the page of null pointers out of the kernel's map. `None` if there is no memory for it.
pub(super) fn unmap_null() -> Option<()> {
    with_kernel(|kernel| {
        // The first large page in small ones.
        let table = zeroed_page()? | TABLE;
        // SAFETY: just made.
        for (n, entry) in unsafe { Table::below(table) }.0.iter_mut().enumerate().skip(1) {
            let page = n * PAGE;
            *entry = page | PRESENT | WRITE | GLOBAL | USED;
        }
        kernel.low[0].0[0] = table;
        Some(())
    })?;
    tlb::flush(VirtAddr::zero());
    Some(())
}

/// Loads the map whose root is `root` on this core.
///
/// # Safety
///
/// It maps the kernel, and lives until another is loaded.
unsafe fn load(root: *const Table) {
    let frame = PhysFrame::<Size4KiB>::containing_address(PhysAddr::new(root.addr() as u64));
    // SAFETY: the caller's promise.
    unsafe { Cr3::write(frame, Cr3Flags::empty()) };
}

/// Memory for a stack of `size` bytes, with a guard below it.
pub(super) fn allocate_stack(size: usize) -> Option<NonNull<u8>> {
    let layout = stack_layout(size)?;
    // SAFETY: its size is not zero.
    let memory = NonNull::new(unsafe { alloc::alloc::alloc(layout) })?;
    let start = memory.as_ptr().expose_provenance();
    let place = with_kernel(|Tables { stacks, .. }| {
        let memory = start..start + layout.size();
        let place = STACKS.place(&memory, |page| {
            stacks.find(page, false).is_some_and(|entry| *entry & PRESENT != 0)
        })?;
        for page in memory.step_by(PAGE) {
            let Some(entry) = stacks.find(place + (page - start), true) else {
                unmap(stacks, place..place + layout.size());
                return None;
            };
            // What was not present is in no TLB.
            *entry = page | PRESENT | WRITE | GLOBAL | USED | NO_EXECUTE;
        }
        Some(place)
    });
    let Some(place) = place else {
        // SAFETY: as it was allocated, and nobody has it.
        unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) };
        return None;
    };
    // The stack ends where its last page does.
    let base = place + layout.size() - size;
    NonNull::new(core::ptr::with_exposed_provenance_mut(base))
}

/// # Safety
///
/// `base` and `size` are of one `allocate_stack`, and nobody uses the stack.
pub(super) unsafe fn free_stack(base: NonNull<u8>, size: usize) {
    let Some(layout) = stack_layout(size) else { unreachable!("it was allocated with this size") };
    let end = base.as_ptr().addr() + size;
    let place = end - layout.size();
    with_kernel(|kernel| unmap(&mut kernel.stacks, place..end));
    let memory = core::ptr::with_exposed_provenance_mut(STACKS.physical(place));
    // SAFETY: the caller's promise: it was allocated so.
    unsafe { alloc::alloc::dealloc(memory, layout) };
}

/// Takes a stack's pages out of the map.
fn unmap(stacks: &mut Table, pages: Range<usize>) {
    for page in pages.step_by(PAGE) {
        if let Some(entry) = stacks.find(page, false) {
            *entry = 0;
            tlb::flush(VirtAddr::new_truncate(page as u64));
        }
    }
}

/// A stack's pages.
fn stack_layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_next_multiple_of(PAGE)?, PAGE).ok()
}

/// See [`crate::user::Space`].
#[derive(Debug)]
pub(crate) struct Space {
    /// Has two entries: one points to `gibs`, the other to what is the kernel's.
    root: NonNull<Table>,
    gibs: NonNull<Table>,
}

// SAFETY: the tables belong to the value; cores that have it loaded only read them.
unsafe impl Send for Space {}
// SAFETY: as above: without `&mut`, nothing changes.
unsafe impl Sync for Space {}

impl Space {
    pub(crate) const PAGE: usize = PAGE;
    pub(crate) const USER: Range<usize> = USER;

    pub(crate) fn new() -> Option<Self> {
        let page = zeroed_page()?;
        let Some(gibs_page) = zeroed_page() else {
            // SAFETY: just made.
            unsafe { free_page(page) };
            return None;
        };
        // SAFETY: two pages of zeroes, which are tables, and nobody else has them.
        let [root, gibs] = [page, gibs_page].map(|page| unsafe { Table::below(page) });
        root.0[0] = gibs_page | TABLE;
        with_kernel(|kernel| {
            let kernels = USER.start / GIB;
            gibs.0[..kernels].copy_from_slice(&kernel.gibs.0[..kernels]);
            root.0[STACKS_ENTRY] = kernel.root.0[STACKS_ENTRY];
        });
        Some(Self { root: root.into(), gibs: gibs.into() })
    }

    fn gibs(&mut self) -> &mut Table {
        // SAFETY: it lives as long as `self`, which is borrowed.
        unsafe { self.gibs.as_mut() }
    }

    /// Maps the pages from `addresses.start` to `addresses.end`, which are within `USER`.
    pub(crate) fn map(&mut self, addresses: Range<usize>, rights: Rights) -> Result<(), MapError> {
        let mut flags = PRESENT | IN_USER_MODE | USED;
        if rights.write {
            flags |= WRITE;
        }
        if !rights.execute {
            flags |= NO_EXECUTE;
        }
        for address in addresses.step_by(PAGE) {
            let entry = self.gibs().find(address, true).ok_or(MapError::OutOfMemory)?;
            if *entry & PRESENT != 0 {
                return Err(MapError::Taken);
            }
            *entry = zeroed_page().ok_or(MapError::OutOfMemory)? | flags;
        }
        Ok(())
    }

    /// Where the kernel finds the byte at `address`, which is within `USER`.
    pub(crate) fn find(&self, address: usize) -> Option<NonNull<u8>> {
        // SAFETY: it lives as long as `self`, whose borrow keeps `map` away. Others may look too.
        let mut table = unsafe { self.gibs.as_ref() };
        for level in [2, 1] {
            let entry = table.0[index(address, level)];
            if entry & PRESENT == 0 {
                return None;
            }
            // SAFETY: present, and a table, as users have no large pages. As above.
            table = unsafe { &*core::ptr::with_exposed_provenance(entry & ADDRESS) };
        }
        let entry = table.0[index(address, 0)];
        if entry & PRESENT == 0 {
            return None;
        }
        let byte = core::ptr::with_exposed_provenance_mut((entry & ADDRESS) + address % PAGE);
        NonNull::new(byte)
    }

    /// # Safety
    ///
    /// As [`crate::user::Space::load`].
    pub(crate) unsafe fn load(&self) {
        // SAFETY: `new` has put the kernel's part in; the caller promises that it lives.
        unsafe { load(self.root.as_ptr()) };
    }

    pub(crate) fn unload() {
        // SAFETY: static, and `init` has filled it in.
        unsafe { load(KERNEL.0.get().cast()) };
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        /// # Safety
        ///
        /// The table and all below is the space's own, and goes.
        unsafe fn free(entries: &[Entry], level: usize) {
            for &entry in entries.iter().filter(|&entry| entry & PRESENT != 0) {
                if level > 0 {
                    // SAFETY: present, and users have no large pages.
                    unsafe { free(&Table::below(entry).0, level - 1) };
                }
                // SAFETY: a table or a page from `zeroed_page`, which only this entry led to.
                unsafe { free_page(entry & ADDRESS) };
            }
        }
        let users = USER.start / GIB..USER.end / GIB;
        // SAFETY: no core has it loaded: `load`'s contract.
        unsafe {
            free(&self.gibs.as_ref().0[users], 2);
            free_page(self.gibs.as_ptr().addr());
            free_page(self.root.as_ptr().addr());
        }
    }
}
