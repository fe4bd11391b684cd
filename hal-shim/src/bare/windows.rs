//! The addresses of stacks: with a wide guard below each, which takes no memory.

use core::ops::Range;

use super::paging::PAGE;

/// The size of the guard below a stack in bytes. It is more than a page, since for two of the three
/// machines the compiler emits no stack probes, so that the first access to a large frame may be
/// anywhere in it: see
/// [`Platform::allocate_stack`](trapline::platform::Platform::allocate_stack).
pub(crate) const GUARD: usize = 64 * 1024;

/// Windows of address space, one after the other. Each has room for all of RAM, at the offset that
/// is its physical address. Only the pages of stacks are mapped, each stack in one of the windows.
///
/// Stacks that are neighbours in RAM are mapped in different windows, so both have a guard, and no
/// memory is left unused between them. And an address always means the same memory: a core with an
/// old entry in its TLB can only reach a stack that has been freed, so freeing a stack needs no TLB
/// shootdown on other cores.
pub(crate) struct Windows {
    /// The address of the first one.
    pub(crate) start: usize,
    /// The size of each. RAM begins at [`GUARD`] or later, and ends at least [`GUARD`] below this.
    pub(crate) size: usize,
    /// How many there are: one more than the stacks that lie within a guard's reach of one stack,
    /// if all have the least size.
    pub(crate) number: usize,
}

impl Windows {
    /// An address where the pages at `memory` can be mapped: nothing is mapped within [`GUARD`] on
    /// either side. `None` if there is no such address.
    pub(crate) fn place(
        &self,
        memory: &Range<usize>,
        mut is_mapped: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        // For stacks of one size that are neighbours in RAM, the first attempt succeeds.
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
