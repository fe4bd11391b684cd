//! Address spaces for user programs.

use core::fmt;
use core::ptr::NonNull;

use crate::bare::{self, paging};
use crate::machine;

/// An address space: the kernel's part, which user mode cannot reach, and pages for a user program.
///
/// User addresses from 0x10_0000_0000 to 0x3f_ffff_ffff can be mapped. Dropped, it gives its pages back.
#[derive(Debug)]
pub struct Space(bare::Space);

impl Space {
    /// The size of a page in bytes.
    pub const PAGE: usize = paging::PAGE;

    /// A space with the kernel's part only; `None` if there is no memory.
    pub fn new() -> Option<Self> {
        bare::Space::new().map(Self)
    }

    /// Maps `pages` pages of zeroes from `address` on. Pages can always be read.
    ///
    /// # Errors
    ///
    /// [`MapError`] says why not. Pages that were mapped before the one that failed stay.
    pub fn map(&mut self, address: usize, pages: usize, rights: Rights) -> Result<(), MapError> {
        let size = pages.checked_mul(Self::PAGE).ok_or(MapError::NotUser)?;
        let end = address.checked_add(size).ok_or(MapError::NotUser)?;
        let user = bare::Space::USER;
        if address < user.start || end > user.end {
            return Err(MapError::NotUser);
        }
        if !address.is_multiple_of(Self::PAGE) {
            return Err(MapError::Unaligned);
        }
        self.0.map(address..end, rights)
    }

    /// Copies `bytes` to `address`, whatever the program itself may do there. `None` if a page of it isn't
    /// mapped; what lies before that page has been copied.
    pub fn write(&self, address: usize, bytes: &[u8]) -> Option<()> {
        for (offset, &byte) in bytes.iter().enumerate() {
            let to = self.find(address.checked_add(offset)?)?;
            // SAFETY: the page is this space's. The kernel has no references into it, only such
            // accesses as this one.
            unsafe { to.write_volatile(byte) };
        }
        machine::fence_instructions();
        Some(())
    }

    /// Copies from `address` what the program itself may read there. `None` if a page of it isn't
    /// mapped.
    pub fn read(&self, address: usize, bytes: &mut [u8]) -> Option<()> {
        for (offset, byte) in bytes.iter_mut().enumerate() {
            let from = self.find(address.checked_add(offset)?)?;
            // SAFETY: as in `write`.
            *byte = unsafe { from.read_volatile() };
        }
        Some(())
    }

    /// Where the kernel finds the byte at `address`.
    fn find(&self, address: usize) -> Option<NonNull<u8>> {
        bare::Space::USER.contains(&address).then(|| self.0.find(address))?
    }

    /// Loads it on this core.
    ///
    /// # Safety
    ///
    /// It lives until another, or [`unload`](Self::unload), is loaded on this core.
    pub unsafe fn load(&self) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.load() }
    }

    /// Loads the kernel's own on this core, which has no user part.
    pub fn unload() {
        bare::Space::unload();
    }
}

/// What a program may do with its pages beside reading them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Store.
    pub write: bool,
    /// Fetch instructions.
    pub execute: bool,
}

/// Why pages were not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The addresses are not (all) a user's.
    NotUser,
    /// The address is not that of a page's beginning.
    Unaligned,
    /// A page is mapped there already.
    Taken,
    /// There is no memory.
    OutOfMemory,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotUser => "these are no user addresses",
            Self::Unaligned => "no page begins at this address",
            Self::Taken => "a page is mapped there already",
            Self::OutOfMemory => "there is no memory for the pages",
        })
    }
}

impl core::error::Error for MapError {}
