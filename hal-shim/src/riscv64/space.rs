//! Paging (Sv39): the kernel's map, its stacks with their guards, and address spaces for user programs.
//!
//! ```text
//!      0 GiB  devices and RAM where they are   supervisor only, the same in all spaces
//!     64 GiB  a user program's                 up to 256 GiB
//!   -256 GiB  stacks, in 17 windows            supervisor only, the same in all spaces
//! ```
//!
//! A stack is used at its address in a [window](Windows), where 64 KiB below it are not mapped.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::NonNull;

use riscv::asm::sfence_vma_all;
use riscv::register::satp::{self, Mode};
use spin::mutex::SpinMutex;

use crate::bare::{Windows, exclusively};
use crate::user::{MapError, Rights};

const PAGE: usize = 4096;
const GIB: usize = 1 << 30;
/// How much of the address space is RAM's and the devices', where they are.
const LOW: usize = 32 * GIB;
/// Where stacks are. The least one has two pages, so at most eight lie within a guard's reach on either side.
const STACKS: Windows =
    Windows { start: (256 * GIB).wrapping_neg(), size: 15 * GIB, number: 17, page: PAGE };
/// What RAM there is beyond is not used.
pub(super) const RAM_END: usize = STACKS.size - GIB;
/// Where the users' part begins and ends.
const USER: Range<usize> = 64 * GIB..256 * GIB;

/// A page table's entry.
type Entry = usize;
const VALID: Entry = 1 << 0;
const READ: Entry = 1 << 1;
const WRITE: Entry = 1 << 2;
const EXECUTE: Entry = 1 << 3;
const ANY_RIGHT: Entry = READ | WRITE | EXECUTE;
const IN_USER_MODE: Entry = 1 << 4;
const GLOBAL: Entry = 1 << 5;
/// Accessed and dirty, said in advance: some harts fault instead of setting them.
const USED: Entry = 0b11 << 6;

/// A table of 512 entries, of the highest level unless said otherwise.
#[derive(Debug)]
#[repr(C, align(4096))]
struct Table([Entry; 512]);

const LAYOUT: Layout = Layout::new::<Table>();

/// The kernel's root.
struct Kernel(UnsafeCell<Table>);
// SAFETY: changed only under `LOCK`; read by `Space::new`, when the root itself changes no more.
unsafe impl Sync for Kernel {}

static KERNEL: Kernel = Kernel(UnsafeCell::new(Table([0; 512])));
/// The right to change the kernel's tables.
static LOCK: SpinMutex<()> = SpinMutex::new(());

fn entry_of(address: usize) -> Entry {
    address >> 12 << 10
}

fn address_of(entry: Entry) -> usize {
    entry >> 10 << 12
}

/// The part of `address` that selects the entry: level 2 is the highest.
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
    /// The entry is of a table that the caller may change, valid, and has no right.
    unsafe fn below(entry: Entry) -> &'static mut Self {
        // SAFETY: the tables are this module's, and are used by who holds the root.
        unsafe { &mut *core::ptr::with_exposed_provenance_mut(address_of(entry)) }
    }

    /// The last level's entry for `address`; with `make`, with the tables on the way to it.
    fn find(&mut self, address: usize, make: bool) -> Option<&mut Entry> {
        let mut table = self;
        for level in [2, 1] {
            let entry = &mut table.0[index(address, level)];
            if *entry & VALID == 0 {
                if !make {
                    return None;
                }
                *entry = entry_of(zeroed_page()?) | VALID;
            }
            if *entry & ANY_RIGHT != 0 {
                return None;
            }
            // SAFETY: valid, and no leaf. It belongs to the tree of `self`.
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

/// Makes the kernel's map, for stacks in this part of RAM. Once, on core 0, when the heap is there. `None`
/// if there is no memory for it.
pub(super) fn init(ram: Range<usize>) -> Option<()> {
    with_kernel(|kernel| {
        for gib in 0..LOW / GIB {
            kernel.0[gib] = entry_of(gib * GIB) | VALID | ANY_RIGHT | GLOBAL | USED;
        }
        // All of them now, as spaces copy the root's entries.
        for window in 0..STACKS.number {
            let start = STACKS.start + window * STACKS.size;
            for gib in ram.start / GIB..ram.end.div_ceil(GIB) {
                kernel.0[index(start + gib * GIB, 2)] = entry_of(zeroed_page()?) | VALID;
            }
        }
        Some(())
    })
}

/// Loads the map whose root is `table` on this core.
///
/// # Safety
///
/// It maps the kernel, and lives until another is loaded.
unsafe fn load(table: *const Table) {
    // SAFETY: the caller's promise.
    unsafe { satp::set(Mode::Sv39, 0, table.addr() >> 12) };
    sfence_vma_all();
}

/// Loads the kernel's map on this core.
pub(super) fn load_kernel() {
    // SAFETY: static, and `init` has filled it in.
    unsafe { load(KERNEL.0.get()) };
}

/// Memory for a stack of `size` bytes, with a guard below it.
pub(super) fn allocate_stack(size: usize) -> Option<NonNull<u8>> {
    let layout = stack_layout(size)?;
    // SAFETY: its size is not zero.
    let memory = NonNull::new(unsafe { alloc::alloc::alloc(layout) })?;
    let start = memory.as_ptr().expose_provenance();
    let place = with_kernel(|kernel| {
        let memory = start..start + layout.size();
        let place = STACKS.place(&memory, |page| {
            kernel.find(page, false).is_some_and(|entry| *entry & VALID != 0)
        })?;
        for page in memory.step_by(PAGE) {
            let Some(entry) = kernel.find(place + (page - start), true) else {
                unmap(kernel, place..place + layout.size());
                return None;
            };
            *entry = entry_of(page) | VALID | READ | WRITE | GLOBAL | USED;
        }
        Some(place)
    });
    sfence_vma_all();
    let Some(place) = place else {
        // SAFETY: as it was allocated, and nobody has it.
        unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) };
        return None;
    };
    // The stack ends where its last page does.
    let base = place + layout.size() - size;
    NonNull::new(core::ptr::with_exposed_provenance_mut(base))
}

/// Takes a stack's pages out of the map.
fn unmap(kernel: &mut Table, pages: Range<usize>) {
    for page in pages.step_by(PAGE) {
        if let Some(entry) = kernel.find(page, false) {
            *entry = 0;
        }
    }
}

/// # Safety
///
/// `base` and `size` are of one `allocate_stack`, and nobody uses the stack.
pub(super) unsafe fn free_stack(base: NonNull<u8>, size: usize) {
    let Some(layout) = stack_layout(size) else { unreachable!("it was allocated with this size") };
    let end = base.as_ptr().addr() + size;
    let place = end - layout.size();
    with_kernel(|kernel| unmap(kernel, place..end));
    sfence_vma_all();
    let memory = core::ptr::with_exposed_provenance_mut(STACKS.physical(place));
    // SAFETY: the caller's promise: it was allocated so.
    unsafe { alloc::alloc::dealloc(memory, layout) };
}

/// Whether there is a stack at `address`. If so, this core forgets that there was none.
pub(super) fn is_mapped(address: usize) -> bool {
    let is_stack = address >= STACKS.start
        && with_kernel(|kernel| {
            kernel.find(address, false).is_some_and(|entry| *entry & VALID != 0)
        });
    if is_stack {
        sfence_vma_all();
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
        let root: *mut Table = core::ptr::with_exposed_provenance_mut(zeroed_page()?);
        let root = NonNull::new(root)?;
        with_kernel(|kernel| {
            // SAFETY: a page of zeroes, which is a table, and nobody else has it.
            let entries = unsafe { &mut (&mut *root.as_ptr()).0 };
            for kernels in [0..index(USER.start, 2), index(STACKS.start, 2)..entries.len()] {
                entries[kernels.clone()].copy_from_slice(&kernel.0[kernels]);
            }
        });
        Some(Self { root })
    }

    fn root(&mut self) -> &mut Table {
        // SAFETY: it lives as long as `self`, which is borrowed.
        unsafe { self.root.as_mut() }
    }

    /// Maps the pages from `addresses.start` to `addresses.end`, which are within `USER`.
    pub(crate) fn map(&mut self, addresses: Range<usize>, rights: Rights) -> Result<(), MapError> {
        let mut flags = VALID | READ | IN_USER_MODE | USED;
        if rights.write {
            flags |= WRITE;
        }
        if rights.execute {
            flags |= EXECUTE;
        }
        for address in addresses.step_by(PAGE) {
            let entry = self.root().find(address, true).ok_or(MapError::OutOfMemory)?;
            if *entry & VALID != 0 {
                return Err(MapError::Taken);
            }
            *entry = entry_of(zeroed_page().ok_or(MapError::OutOfMemory)?) | flags;
        }
        sfence_vma_all();
        Ok(())
    }

    /// Where the kernel finds the byte at `address`, which is within `USER`.
    pub(crate) fn find(&self, address: usize) -> Option<NonNull<u8>> {
        // SAFETY: it lives as long as `self`, whose borrow keeps `map` away. Others may look too.
        let mut table = unsafe { self.root.as_ref() };
        for level in [2, 1] {
            let entry = table.0[index(address, level)];
            if entry & VALID == 0 {
                return None;
            }
            // SAFETY: valid, and a table, as users have no large pages. As above.
            table = unsafe { &*core::ptr::with_exposed_provenance(address_of(entry)) };
        }
        let entry = table.0[index(address, 0)];
        if entry & VALID == 0 {
            return None;
        }
        let byte = core::ptr::with_exposed_provenance_mut(address_of(entry) + address % PAGE);
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
        load_kernel();
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        /// # Safety
        ///
        /// The table and all below is the space's own, and goes.
        unsafe fn free(entries: &[Entry], level: usize) {
            for &entry in entries.iter().filter(|&entry| entry & VALID != 0) {
                if level > 0 {
                    // SAFETY: valid, and leaves are at level 0 only.
                    unsafe { free(&Table::below(entry).0, level - 1) };
                }
                // SAFETY: a table or a page from `zeroed_page`, which only this entry led to.
                unsafe { free_page(address_of(entry)) };
            }
        }
        let users = USER.start / GIB..USER.end / GIB;
        // SAFETY: no core has it loaded: `load`'s contract.
        unsafe {
            free(&self.root.as_ref().0[users], 2);
            free_page(self.root.as_ptr().addr());
        }
    }
}
