//! Paging: the kernel's stacks with their guards, and address spaces for user programs.
//!
//! ```text
//!   0x0000_0000_0000_0000   a user program's; what PGDL leads to
//!   0x8000_0000_0000_0000   all memory, uncached        the two windows of the kernel, which
//!   0x9000_0000_0000_0000   all memory, cached          need no tables
//!   0xffff_8000_0000_0000   stacks, in 9 windows; what PGDH leads to
//! ```
//!
//! A stack is used at its address in a [window](Windows), where 64 KiB below it are not mapped. (An old entry
//! of a TLB's that says that there is no stack is forgotten by [`is_mapped`].)
//!
//! Tables have three levels, of one page of 2048 entries each. What is in the last is what the TLB wants, and in
//! the others the physical address of the next; 0 is nothing in all of them. [`refill`] walks them.

use core::alloc::Layout;
use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use spin::mutex::SpinMutex;

use super::{CACHED, csr, physical};
use crate::bare::{Windows, exclusively};
use crate::user::{MapError, Rights};

/// What addresses say: where in a page of 16 KiB, and eleven bits each for the tables' indices.
const PAGE_SHIFT: usize = 14;
const INDEX_WIDTH: usize = 11;
const PAGE: usize = 1 << PAGE_SHIFT;
const ENTRIES: usize = 1 << INDEX_WIDTH;
/// Where an address has the index of the middle and of the highest level.
const MIDDLE_SHIFT: usize = PAGE_SHIFT + INDEX_WIDTH;
const HIGHEST_SHIFT: usize = MIDDLE_SHIFT + INDEX_WIDTH;
/// Where stacks are. The least one has one page, so at most four lie within a guard's reach on either side.
const STACKS: Windows = Windows { start: 0xffff_8000 << 32, size: 1 << 34, number: 9, page: PAGE };
/// What RAM there is beyond is not used.
pub(super) const RAM_END: usize = STACKS.size - (1 << 30);
/// Where the users' part begins, so that null pointers lead nowhere, and where it ends.
const USER: Range<usize> = 0x1_0000..1 << (HIGHEST_SHIFT + INDEX_WIDTH);

/// A page table's entry.
type Entry = usize;
const VALID: Entry = 1 << 0;
/// Dirty: it can be written.
const WRITE: Entry = 1 << 1;
const IN_USER_MODE: Entry = 3 << 2;
const COHERENT: Entry = 1 << 4;
const GLOBAL: Entry = 1 << 6;
const ADDRESS: Entry = ((1 << 48) - 1) & !(PAGE - 1);

// It is one word of eight bytes, and a table one page.
const _: () = assert!(ENTRIES * size_of::<Entry>() == PAGE);

#[derive(Debug)]
#[repr(C, align(16384))]
struct Table([Entry; ENTRIES]);

const LAYOUT: Layout = Layout::new::<Table>();

/// Highest tables that are static: the kernel's, and that of no user.
struct Root(UnsafeCell<Table>);
// SAFETY: the kernel's is changed only under `LOCK`, and that of no user never.
unsafe impl Sync for Root {}

static KERNEL: Root = Root(UnsafeCell::new(Table([0; ENTRIES])));
static NO_USER: Root = Root(UnsafeCell::new(Table([0; ENTRIES])));
/// The right to change the kernel's tables.
static LOCK: SpinMutex<()> = SpinMutex::new(());

/// The part of `address` that selects the entry: level 2 is the highest.
fn index(address: usize, level: usize) -> usize {
    address >> (PAGE_SHIFT + INDEX_WIDTH * level) & (ENTRIES - 1)
}

/// A page of zeroes for a table or for a user: its physical address.
fn zeroed_page() -> Option<usize> {
    // SAFETY: its size is not zero.
    let page = unsafe { alloc::alloc::alloc_zeroed(LAYOUT) };
    (!page.is_null()).then(|| physical(page.expose_provenance()))
}

/// # Safety
///
/// `page` is from `zeroed_page`, and nobody uses it.
unsafe fn free_page(page: usize) {
    // SAFETY: the caller's promise.
    unsafe { alloc::alloc::dealloc(with_exposed_provenance_mut(CACHED | page), LAYOUT) }
}

impl Table {
    /// The table that an entry points to.
    ///
    /// # Safety
    ///
    /// The entry is one of a higher level, not 0, and the caller may change the table.
    unsafe fn below(entry: Entry) -> &'static mut Self {
        // SAFETY: the tables are this module's, and are used by who holds the root.
        unsafe { &mut *with_exposed_provenance_mut(CACHED | entry) }
    }

    /// The last level's entry for `address`; with `make`, with the tables on the way to it.
    fn find(&mut self, address: usize, make: bool) -> Option<&mut Entry> {
        let mut table = self;
        for level in [2, 1] {
            let entry = &mut table.0[index(address, level)];
            if *entry == 0 {
                if !make {
                    return None;
                }
                *entry = zeroed_page()?;
            }
            // SAFETY: not 0, and it belongs to the tree of `self`.
            table = unsafe { Self::below(*entry) };
        }
        Some(&mut table.0[index(address, 0)])
    }
}

/// Calls `f` with the kernel's root.
fn with_kernel<R>(f: impl FnOnce(&mut Table) -> R) -> R {
    // SAFETY: under the lock, and nobody keeps the reference.
    exclusively(&LOCK, |()| f(unsafe { &mut *KERNEL.0.get() }))
}

/// Sets the calling core's paging up.
pub(super) fn init_core() {
    const WIDTH_SHIFT: usize = 5;
    let lower =
        PAGE_SHIFT | INDEX_WIDTH << WIDTH_SHIFT | (MIDDLE_SHIFT | INDEX_WIDTH << WIDTH_SHIFT) << 10;
    // The third level above the last: the second has too little room for its place.
    const HIGHEST_WIDTH_SHIFT: usize = 6;
    let higher = HIGHEST_SHIFT | INDEX_WIDTH << HIGHEST_WIDTH_SHIFT;
    let entry = (refill as *const ()).addr().next_multiple_of(REFILL_ALIGN);
    // SAFETY: nothing has used the TLB yet, and what these describe is what `refill` walks: the kernel's
    // tables for ever.
    unsafe {
        csr::write::<{ csr::STLBPS }>(PAGE_SHIFT);
        csr::write::<{ csr::TLBREHI }>(PAGE_SHIFT);
        csr::write::<{ csr::PWCL }>(lower);
        csr::write::<{ csr::PWCH }>(higher);
        csr::write::<{ csr::PGDH }>(physical(KERNEL.0.get().expose_provenance()));
        csr::write::<{ csr::PGDL }>(physical(NO_USER.0.get().expose_provenance()));
        csr::write::<{ csr::TLBRENTRY }>(physical(entry));
    }
    forget_all();
}

/// TLBRENTRY has no lower bits: the entry begins at the first multiple of this from [`refill`] on.
const REFILL_ALIGN: usize = 4096;

/// Fills in what the TLB is missing: the two neighbouring pages that the address is in one of. On entry,
/// addresses are physical, and all registers are the interrupted code's.
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
        // No table, no pages.
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

/// Empties this core's TLB.
fn forget_all() {
    // SAFETY: what is needed is filled in again.
    unsafe { asm!("dbar 0", "invtlb 0, $zero, $zero", options(nostack)) };
}

/// Forgets what this core's TLB has of the users' part.
fn forget_users() {
    // SAFETY: what is needed is filled in again. 3: all that isn't global.
    unsafe { asm!("dbar 0", "invtlb 3, $zero, $zero", options(nostack)) };
}

/// Memory for a stack of `size` bytes, with a guard below it.
pub(super) fn allocate_stack(size: usize) -> Option<NonNull<u8>> {
    let layout = stack_layout(size)?;
    // SAFETY: its size is not zero.
    let memory = NonNull::new(unsafe { alloc::alloc::alloc(layout) })?;
    let start = physical(memory.as_ptr().expose_provenance());
    let place = with_kernel(|kernel| {
        let memory = start..start + layout.size();
        let place = STACKS
            .place(&memory, |page| kernel.find(page, false).is_some_and(|entry| *entry != 0))?;
        for page in memory.step_by(PAGE) {
            let Some(entry) = kernel.find(place + (page - start), true) else {
                unmap(kernel, place..place + layout.size());
                return None;
            };
            *entry = page | VALID | WRITE | COHERENT | GLOBAL;
        }
        Some(place)
    });
    forget_all();
    let Some(place) = place else {
        // SAFETY: as it was allocated, and nobody has it.
        unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) };
        return None;
    };
    // The stack ends where its last page does.
    let base = place + layout.size() - size;
    NonNull::new(with_exposed_provenance_mut(base))
}

/// # Safety
///
/// `base` and `size` are of one `allocate_stack`, and nobody uses the stack.
pub(super) unsafe fn free_stack(base: NonNull<u8>, size: usize) {
    let Some(layout) = stack_layout(size) else { unreachable!("it was allocated with this size") };
    let end = base.as_ptr().addr() + size;
    let place = end - layout.size();
    with_kernel(|kernel| unmap(kernel, place..end));
    forget_all();
    let memory = with_exposed_provenance_mut(CACHED | STACKS.physical(place));
    // SAFETY: the caller's promise: it was allocated so.
    unsafe { alloc::alloc::dealloc(memory, layout) };
}

/// Takes a stack's pages out of the map.
fn unmap(kernel: &mut Table, pages: Range<usize>) {
    for page in pages.step_by(PAGE) {
        if let Some(entry) = kernel.find(page, false) {
            *entry = 0;
        }
    }
}

/// Whether there is a stack at `address`. If so, this core forgets that there was none.
pub(super) fn is_mapped(address: usize) -> bool {
    let is_stack = address >= STACKS.start
        && with_kernel(|kernel| kernel.find(address, false).is_some_and(|entry| *entry != 0));
    if is_stack {
        forget_all();
    }
    is_stack
}

/// A stack's pages.
fn stack_layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_next_multiple_of(PAGE)?, PAGE).ok()
}

/// See [`crate::user::Space`].
#[derive(Debug)]
pub(crate) struct Space {
    root: NonNull<Table>,
}

// SAFETY: the tables belong to the value; cores that have it loaded only read them.
unsafe impl Send for Space {}
// SAFETY: as above: without `&mut`, nothing changes.
unsafe impl Sync for Space {}

impl Space {
    pub(crate) const PAGE: usize = PAGE;
    pub(crate) const USER: Range<usize> = USER;

    pub(crate) fn new() -> Option<Self> {
        let root = NonNull::new(with_exposed_provenance_mut(CACHED | zeroed_page()?))?;
        Some(Self { root })
    }

    fn root(&mut self) -> &mut Table {
        // SAFETY: it lives as long as `self`, which is borrowed.
        unsafe { self.root.as_mut() }
    }

    /// Maps the pages from `addresses.start` to `addresses.end`, which are within `USER`.
    pub(crate) fn map(&mut self, addresses: Range<usize>, rights: Rights) -> Result<(), MapError> {
        let mut flags = VALID | IN_USER_MODE | COHERENT;
        if rights.write {
            flags |= WRITE;
        }
        // What can be read can be executed, since most versions of QEMU hang when an instruction is fetched
        // that an entry forbids.
        for address in addresses.step_by(PAGE) {
            let entry = self.root().find(address, true).ok_or(MapError::OutOfMemory)?;
            if *entry != 0 {
                return Err(MapError::Taken);
            }
            *entry = zeroed_page().ok_or(MapError::OutOfMemory)? | flags;
        }
        forget_users();
        Ok(())
    }

    /// Where the kernel finds the byte at `address`, which is within `USER`.
    pub(crate) fn find(&self, address: usize) -> Option<NonNull<u8>> {
        // SAFETY: it lives as long as `self`, whose borrow keeps `map` away. Others may look too.
        let mut table = unsafe { self.root.as_ref() };
        for level in [2, 1] {
            let entry = table.0[index(address, level)];
            if entry == 0 {
                return None;
            }
            // SAFETY: not 0, so a table. As above.
            table = unsafe { &*core::ptr::with_exposed_provenance(CACHED | entry) };
        }
        let entry = table.0[index(address, 0)];
        if entry == 0 {
            return None;
        }
        let byte = with_exposed_provenance_mut(CACHED | (entry & ADDRESS) | (address % PAGE));
        NonNull::new(byte)
    }

    /// # Safety
    ///
    /// As [`crate::user::Space::load`].
    pub(crate) unsafe fn load(&self) {
        // SAFETY: the caller promises that it lives.
        unsafe { load(self.root.as_ptr()) };
    }

    pub(crate) fn unload() {
        // SAFETY: static, and empty.
        unsafe { load(NO_USER.0.get()) };
    }
}

/// Loads the users' part whose root is `table` on this core.
///
/// # Safety
///
/// It lives until another is loaded.
unsafe fn load(table: *mut Table) {
    // SAFETY: the caller's promise.
    unsafe { csr::write::<{ csr::PGDL }>(physical(table.addr())) };
    forget_users();
}

impl Drop for Space {
    fn drop(&mut self) {
        /// # Safety
        ///
        /// The table and all below is the space's own, and goes.
        unsafe fn free(table: &Table, level: usize) {
            for &entry in table.0.iter().filter(|&&entry| entry != 0) {
                if level > 0 {
                    // SAFETY: not 0, and not of the last level.
                    unsafe { free(Table::below(entry), level - 1) };
                }
                // SAFETY: a table or a page from `zeroed_page`, which only this entry led to.
                unsafe { free_page(entry & ADDRESS) };
            }
        }
        // SAFETY: no core has it loaded: `load`'s contract.
        unsafe {
            free(self.root.as_ref(), 2);
            free_page(physical(self.root.as_ptr().addr()));
        }
    }
}
