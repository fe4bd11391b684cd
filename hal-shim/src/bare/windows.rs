//! Where stacks lie in the address space: with a wide guard below, which takes no memory.

use core::ops::Range;

use super::paging::PAGE;

/// How much below a stack is mapped nowhere, in bytes. It is more than a page, since two of the three machines'
/// compilers touch nothing on the way down to the end of a large frame: see
/// [`Platform::allocate_stack`](trapline::platform::Platform::allocate_stack).
pub(crate) const GUARD: usize = 64 * 1024;

/// Windows of address space, one after the other. RAM could be mapped in each of them as a whole, at the offset
/// that is its physical address; only the pages of stacks are, each stack in one of the windows.
///
/// Stacks that are neighbours in RAM lie in different windows, so both have their guards and no memory
/// lies between them. And an address always means the same memory: a core that has an old
/// entry in its TLB errs only in that it may reach a stack that has been freed, and no core needs to be told.
pub(crate) struct Windows {
    /// Where the first one begins.
    pub(crate) start: usize,
    /// How large each is. RAM ends at least [`GUARD`] before that, and begins no earlier than [`GUARD`].
    pub(crate) size: usize,
    /// How many there are. One stack has this many neighbours within reach, less one, if all are as small
    /// as they can be.
    pub(crate) number: usize,
}

impl Windows {
    /// Where the pages at `memory` can be mapped: nothing lies within [`GUARD`] on either side. `None`: nowhere.
    pub(crate) fn place(
        &self,
        memory: &Range<usize>,
        mut is_mapped: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        // Stacks of one size that lie side by side find theirs at once.
        let first = memory.start / memory.len();
        (0..self.number)
            .map(|n| self.start + (first + n) % self.number * self.size + memory.start)
            .find(|place| {
                let end = place + memory.len();
                let around = (place - GUARD..*place).chain(end..end + GUARD);
                !around.step_by(PAGE).any(&mut is_mapped)
            })
    }

    /// The memory that is mapped at `address`.
    pub(crate) fn physical(&self, address: usize) -> usize {
        (address - self.start) % self.size
    }
}
