//! Paging: the kernel's stacks with their guards, and address spaces for user programs.
//!
//! This file builds, walks and frees the page tables. An architecture implements [`PageTables`]:
//! the format of an entry, the layout of the address space, and the TLB.
//!
//! The tables have three levels, each table is one page, and level 2 is the top. (x86_64 has one
//! level more above; only its own module knows of it.) An entry of level 0 maps a page; an entry of
//! a higher level points to a table, or maps a large page. An entry that maps nothing is 0, and no
//! other entry is.
//!
//! A stack is used at its address in a [window](Windows), where 64 KiB below it are not mapped.

use core::alloc::Layout;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{NonNull, with_exposed_provenance_mut};

use spin::mutex::SpinMutex;
use trapline::trap::{Access, Trap};

use super::{Windows, exclusively};
use crate::machine::Format;
use crate::user::{MapError, Rights};

/// A page table's entry.
pub(crate) type Entry = usize;

/// An architecture's page tables.
///
/// # Safety
///
/// The code here dereferences what [`address`](Self::address) returns for the entries that the
/// other functions made. So `address` gives back the address that an entry was made of, and
/// [`is_table`](Self::is_table) tells tables from large pages. The functions that make an entry
/// never return 0.
pub(crate) unsafe trait PageTables {
    /// The base-2 logarithm of the page size.
    const PAGE_SHIFT: usize;
    /// Where stacks are mapped.
    const STACKS: Windows;
    /// The addresses of a user program.
    const USER: Range<usize>;
    /// The kernel accesses the memory at physical address `p` at `p | DIRECT`.
    const DIRECT: usize = 0;
    /// Whether the TLB may keep the fact that a page is not mapped.
    const CACHES_ABSENCE: bool;

    /// The entry of level 1 or 2 for the table at a physical address.
    fn table(physical: usize) -> Entry;
    /// The entry for a page of a stack: the kernel can read and write it.
    fn stack_page(physical: usize) -> Entry;
    /// The entry for a page of a user program, which can always be read.
    fn user_page(physical: usize, rights: Rights) -> Entry;
    /// The physical address in an entry that is not 0.
    fn address(entry: Entry) -> usize;
    /// Whether an entry of level 1 or 2 that is not 0 points to a table, not to a large page.
    fn is_table(entry: Entry) -> bool;

    /// Calls `f` with the top table that maps the stacks, under the lock of its [`KernelTables`].
    fn with_stacks<R>(f: impl FnOnce(&mut Table) -> R) -> R;
    /// Adds the kernel's part to a new address space with an empty top table. Returns the physical
    /// address of the space's root: the top table, or a page of [`zeroed_page`] that points to it.
    /// `None` if there is no memory.
    fn new_root(top: &mut Table) -> Option<usize>;
    /// The physical address of the root that is loaded while no address space is.
    fn kernel_root() -> usize;
    /// Loads a root on this core, and flushes the users' part from its TLB.
    ///
    /// # Safety
    ///
    /// It is from [`new_root`](Self::new_root) or [`kernel_root`](Self::kernel_root), and its
    /// tables live until another is loaded.
    unsafe fn load(root: usize);

    /// Called when pages of a stack have been mapped: flushes from this core's TLB that they were
    /// not.
    fn stack_mapped();
    /// Called when `pages` of a stack have been unmapped: flushes them from this core's TLB.
    fn stack_unmapped(pages: Range<usize>);
    /// Called when pages of a user program have been mapped: flushes from this core's TLB that they
    /// were not.
    fn user_mapped();
}

pub(crate) const PAGE: usize = 1 << Format::PAGE_SHIFT;
const ENTRIES: usize = PAGE / size_of::<Entry>();
pub(crate) const INDEX_WIDTH: usize = ENTRIES.trailing_zeros() as usize;
/// RAM from this address on is not used.
pub(crate) const RAM_END: usize = Format::STACKS.size - (1 << 30);

/// How far right an address is shifted for its index in a table of this level.
pub(crate) const fn shift(level: usize) -> usize {
    Format::PAGE_SHIFT + INDEX_WIDTH * level
}

/// The index of the entry for `address` in a table of this level.
pub(crate) const fn index(address: usize, level: usize) -> usize {
    address >> shift(level) & (ENTRIES - 1)
}

/// A page table.
#[repr(C)]
#[cfg_attr(not(target_arch = "loongarch64"), repr(align(4096)))]
#[cfg_attr(target_arch = "loongarch64", repr(align(16384)))]
pub(crate) struct Table(pub(crate) [Entry; ENTRIES]);

const _: () = assert!(size_of::<Table>() == PAGE && align_of::<Table>() == PAGE);

const LAYOUT: Layout = Layout::new::<Table>();

/// Tables that are static, and changed under a lock.
#[repr(transparent)]
pub(crate) struct KernelTables<T>(UnsafeCell<T>);

// SAFETY: only `with` makes references, under `LOCK`. Code that has the pointer only takes its
// address, except for the boot code, which fills tables in before Rust code runs.
unsafe impl<T: Send> Sync for KernelTables<T> {}

/// Held while any [`KernelTables`] are changed.
static LOCK: SpinMutex<()> = SpinMutex::new(());

impl<T> KernelTables<T> {
    pub(crate) const fn new(tables: T) -> Self {
        Self(UnsafeCell::new(tables))
    }

    pub(crate) fn as_ptr(&self) -> *const T {
        self.0.get()
    }

    /// Calls `f` with the tables, which are locked meanwhile.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        // SAFETY: `LOCK` is held for as long as the reference lives, which `f` cannot keep, and
        // only this function makes references.
        exclusively(&LOCK, |()| f(unsafe { &mut *self.0.get() }))
    }
}

/// A pointer to the memory at a physical address.
fn pointer<T>(physical: usize) -> *mut T {
    with_exposed_provenance_mut(Format::DIRECT | physical)
}

/// The physical address of memory that the kernel accesses by `pointer`.
pub(crate) fn physical<T>(pointer: *const T) -> usize {
    pointer.expose_provenance() & !Format::DIRECT
}

/// Allocates a page of zeroes, for a table or for a user program, and returns its physical address.
pub(crate) fn zeroed_page() -> Option<usize> {
    // SAFETY: the size is not zero.
    let page = unsafe { alloc::alloc::alloc_zeroed(LAYOUT) };
    (!page.is_null()).then(|| physical(page))
}

/// # Safety
///
/// `page` is from [`zeroed_page`], and no longer used.
unsafe fn free_page(page: usize) {
    // SAFETY: the caller's promise.
    unsafe { alloc::alloc::dealloc(pointer(page), LAYOUT) }
}

impl Table {
    pub(crate) const EMPTY: Self = Self([0; ENTRIES]);

    /// The table at a physical address.
    ///
    /// # Safety
    ///
    /// There is a table, and the caller has exclusive access to it.
    pub(crate) unsafe fn at(physical: usize) -> &'static mut Self {
        // SAFETY: the caller's promise.
        unsafe { &mut *pointer(physical) }
    }

    /// The level 0 entry for `address`. `make` adds the tables that are missing above it. `None` if
    /// a table is missing or cannot be allocated, or if a large page is mapped there.
    fn find(&mut self, address: usize, make: bool) -> Option<&mut Entry> {
        let mut table = self;
        for level in [2, 1] {
            let entry = &mut table.0[index(address, level)];
            if *entry == 0 {
                if !make {
                    return None;
                }
                *entry = Format::table(zeroed_page()?);
            }
            if !Format::is_table(*entry) {
                return None;
            }
            // SAFETY: the entry points to a table, of the tree below `self`, which is borrowed
            // exclusively.
            table = unsafe { Self::at(Format::address(*entry)) };
        }
        Some(&mut table.0[index(address, 0)])
    }

    /// The level 0 entry for `address`, or 0.
    fn get(&self, address: usize) -> Entry {
        let mut table = self;
        for level in [2, 1] {
            let entry = table.0[index(address, level)];
            if entry == 0 || !Format::is_table(entry) {
                return 0;
            }
            // SAFETY: the entry points to a table, of the tree below `self`, which is borrowed, so
            // that no code changes it.
            table = unsafe { &*pointer(Format::address(entry)) };
        }
        table.0[index(address, 0)]
    }
}

/// Allocates memory for a stack of `size` bytes, and maps it with a guard below.
pub(super) fn allocate_stack(size: usize) -> Option<NonNull<u8>> {
    let layout = stack_layout(size)?;
    // SAFETY: the size is not zero.
    let memory = NonNull::new(unsafe { alloc::alloc::alloc(layout) })?;
    let start = physical(memory.as_ptr());
    let place = Format::with_stacks(|stacks| {
        let memory = start..start + layout.size();
        let place = Format::STACKS.place(&memory, |page| stacks.get(page) != 0)?;
        for page in memory.step_by(PAGE) {
            let Some(entry) = stacks.find(place + (page - start), true) else {
                unmap(stacks, place..place + layout.size());
                return None;
            };
            *entry = Format::stack_page(page);
        }
        Some(place)
    });
    let Some(place) = place else {
        // SAFETY: allocated above with this layout, and not used.
        unsafe { alloc::alloc::dealloc(memory.as_ptr(), layout) };
        return None;
    };
    Format::stack_mapped();
    // The stack ends where its last page does.
    let base = place + layout.size() - size;
    NonNull::new(with_exposed_provenance_mut(base))
}

/// # Safety
///
/// `base` and `size` are of one [`allocate_stack`], and the stack is no longer used.
pub(super) unsafe fn free_stack(base: NonNull<u8>, size: usize) {
    let Some(layout) = stack_layout(size) else { unreachable!("it was allocated with this size") };
    let end = base.as_ptr().addr() + size;
    let place = end - layout.size();
    Format::with_stacks(|stacks| unmap(stacks, place..end));
    let memory = pointer(Format::STACKS.physical(place));
    // SAFETY: `allocate_stack` allocated it with this layout, and the caller promises that it is no
    // longer used.
    unsafe { alloc::alloc::dealloc(memory, layout) };
}

/// Unmaps a stack's pages.
fn unmap(stacks: &mut Table, pages: Range<usize>) {
    for page in pages.clone().step_by(PAGE) {
        if let Some(entry) = stacks.find(page, false) {
            *entry = 0;
        }
    }
    Format::stack_unmapped(pages);
}

/// The layout of a stack's pages.
fn stack_layout(size: usize) -> Option<Layout> {
    Layout::from_size_align(size.checked_next_multiple_of(PAGE)?, PAGE).ok()
}

/// Whether a trap comes from an old entry of this core's TLB, which says that a stack's page is not
/// mapped while it is. If so, flushes that entry; the access succeeds when it is repeated.
pub(super) fn is_stale(trap: Trap) -> bool {
    let Trap::PageFault { addr, access: Access::Read | Access::Write } = trap else {
        return false;
    };
    let is_mapped = Format::CACHES_ABSENCE
        && addr >= Format::STACKS.start
        && Format::with_stacks(|stacks| stacks.get(addr) != 0);
    if is_mapped {
        Format::stack_mapped();
    }
    is_mapped
}

/// See [`crate::user::Space`].
#[derive(Debug)]
pub(crate) struct Space {
    /// The physical address that [`PageTables::load`] takes.
    root: usize,
    top: NonNull<Table>,
}

// SAFETY: the tables belong to the value; cores that have it loaded only read them.
unsafe impl Send for Space {}
// SAFETY: as above, and the tables change only by `&mut`.
unsafe impl Sync for Space {}

impl Space {
    pub(crate) const USER: Range<usize> = Format::USER;

    pub(crate) fn new() -> Option<Self> {
        let page = zeroed_page()?;
        // SAFETY: a page of zeroes is an empty table, and no other code has it.
        let top = unsafe { Table::at(page) };
        let Some(root) = Format::new_root(top) else {
            // SAFETY: allocated above, and not used.
            unsafe { free_page(page) };
            return None;
        };
        Some(Self { root, top: top.into() })
    }

    /// Maps the pages from `addresses.start` to `addresses.end`, which are within `USER`.
    pub(crate) fn map(&mut self, addresses: Range<usize>, rights: Rights) -> Result<(), MapError> {
        // SAFETY: the table lives as long as `self`, which is borrowed exclusively.
        let top = unsafe { self.top.as_mut() };
        for address in addresses.step_by(PAGE) {
            let entry = top.find(address, true).ok_or(MapError::OutOfMemory)?;
            if *entry != 0 {
                return Err(MapError::Taken);
            }
            *entry = Format::user_page(zeroed_page().ok_or(MapError::OutOfMemory)?, rights);
        }
        Format::user_mapped();
        Ok(())
    }

    /// A pointer for the kernel to the byte at `address`, which is within `USER`.
    pub(crate) fn find(&self, address: usize) -> Option<NonNull<u8>> {
        // SAFETY: the table lives as long as `self`. The borrow excludes `map`, the only code that
        // changes it; others may read it at the same time.
        match unsafe { self.top.as_ref() }.get(address) {
            0 => None,
            entry => NonNull::new(pointer(Format::address(entry) + address % PAGE)),
        }
    }

    /// # Safety
    ///
    /// As [`crate::user::Space::load`].
    pub(crate) unsafe fn load(&self) {
        // SAFETY: `new` got the root from `new_root`; the caller promises that the space lives.
        unsafe { Format::load(self.root) };
    }

    /// Loads the kernel's tables, which have no user part.
    pub(crate) fn unload() {
        // SAFETY: it is the kernel's root, and static.
        unsafe { Format::load(Format::kernel_root()) };
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        /// Frees the tables and pages to which the entries of a table of this level point.
        ///
        /// # Safety
        ///
        /// They are the space's own and no longer used. There are no large pages.
        unsafe fn free(entries: &[Entry], level: usize) {
            for &entry in entries.iter().filter(|&&entry| entry != 0) {
                let page = Format::address(entry);
                if level > 0 {
                    // SAFETY: not 0 and above level 0, so it points to a table, as `map` maps no
                    // large pages.
                    unsafe { free(&Table::at(page).0, level - 1) };
                }
                // SAFETY: a table or a page from `zeroed_page`, to which only this entry led.
                unsafe { free_page(page) };
            }
        }
        let users = Format::USER.start >> shift(2)..Format::USER.end >> shift(2);
        let top = physical(self.top.as_ptr());
        // SAFETY: no core has the space loaded, by `load`'s contract. The entries outside of
        // `users` are the kernel's. The root is the top table or has a page of its own.
        unsafe {
            free(&self.top.as_ref().0[users], 2);
            free_page(top);
            if self.root != top {
                free_page(self.root);
            }
        }
    }
}
