//! Address spaces for user programs.

use core::fmt;
use core::ptr::NonNull;

use crate::bare::{self, paging};
use crate::machine;

/// An address space: the kernel's part, which user mode cannot reach, and pages for a user program.
///
/// User addresses from 0x10_0000_0000 to 0x3f_ffff_ffff can be mapped. When it is dropped, its
/// pages are freed.
#[derive(Debug)]
pub struct Space(bare::Space);

impl Space {
    /// The size of a page in bytes.
    pub const PAGE: usize = paging::PAGE;

    /// Creates a space with the kernel's part only. `None` if there is no memory.
    pub fn new() -> Option<Self> {
        bare::Space::new().map(Self)
    }

    /// Maps `pages` pages of zeroes from `address` on. Pages can always be read.
    ///
    /// # Errors
    ///
    /// [`MapError`] is the reason. Pages before the one that failed stay mapped.
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

    /// Copies `bytes` to `address`, whatever rights the program itself has there. `None` if one of
    /// the pages isn't mapped; the bytes before that page have been copied.
    pub fn write(&self, address: usize, bytes: &[u8]) -> Option<()> {
        for (offset, &byte) in bytes.iter().enumerate() {
            let to = self.find(address.checked_add(offset)?)?;
            // SAFETY: the page is this space's. The kernel has no references into it, and accesses
            // it only here and in `read`.
            unsafe { to.write_volatile(byte) };
        }
        machine::fence_instructions();
        Some(())
    }

    /// Copies the bytes at `address`, which the program itself can read, to `bytes`. `None` if one
    /// of the pages isn't mapped.
    pub fn read(&self, address: usize, bytes: &mut [u8]) -> Option<()> {
        for (offset, byte) in bytes.iter_mut().enumerate() {
            let from = self.find(address.checked_add(offset)?)?;
            // SAFETY: as in `write`.
            *byte = unsafe { from.read_volatile() };
        }
        Some(())
    }

    /// A pointer for the kernel to the byte at `address`.
    fn find(&self, address: usize) -> Option<NonNull<u8>> {
        bare::Space::USER.contains(&address).then(|| self.0.find(address))?
    }

    /// Loads this space on this core.
    ///
    /// # Safety
    ///
    /// It lives until another one, or by [`unload`](Self::unload) the kernel's, is loaded on this
    /// core.
    pub unsafe fn load(&self) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.0.load() }
    }

    /// Loads the kernel's own space on this core, which has no user part.
    pub fn unload() {
        bare::Space::unload();
    }
}

/// A program's rights to its pages, beside the right to read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// It may store.
    pub write: bool,
    /// It may fetch instructions.
    pub execute: bool,
}

/// Why pages were not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Not all of the addresses are user addresses.
    NotUser,
    /// No page begins at the address.
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
