//! How long one group of tasks waits for another that goes first.

use core::cell::Cell;

use crate::time::NEVER;

/// How long one group of tasks has waited for another group that goes first.
///
/// The loop does not read the clock at each poll. After a few polls of the group that goes first it asks
/// whether the other group has waited for too long, and reads the clock only then.
#[derive(Debug)]
pub(crate) struct Aging {
    /// At which count of polls the loop asks next.
    check_at: Cell<u64>,
    /// What `check_at` was set to when the loop last checked_at.
    checked_at: Cell<u64>,
    /// The count of polls when the loop asked for the first time since the group's turn.
    polls: Cell<u64>,
    /// Since when the group waits, or [`NEVER`] if that is not known yet.
    since: Cell<u64>,
    /// When it will have waited for too long; [`NEVER`] if that is not known.
    deadline: Cell<u64>,
}

impl Aging {
    pub(crate) const fn new() -> Self {
        Self {
            check_at: Cell::new(0),
            checked_at: Cell::new(0),
            polls: Cell::new(0),
            since: Cell::new(NEVER),
            deadline: Cell::new(NEVER),
        }
    }

    /// The group has its turn; the loop asks again at this count of polls.
    #[inline]
    pub(crate) fn check_at(&self, polls: u64) {
        self.check_at.set(polls);
    }

    #[inline]
    pub(crate) fn is_check_due(&self, counted: u64) -> bool {
        counted >= self.check_at.get()
    }

    /// The loop has asked, and asks again after as many polls as there were so far, at most `most`. Returns
    /// since when the group has waited, and how many polls there were since. Both count from now if this is
    /// the first time since its turn.
    pub(crate) fn keep_waiting(&self, now: u64, counted: u64, max: u64) -> (u64, u64) {
        if self.checked_at.get() != self.check_at.get() {
            self.since.set(now);
            self.polls.set(counted);
        }
        let polls = (counted - self.polls.get()).max(1);
        self.check_at.set(counted + polls.min(max));
        self.checked_at.set(self.check_at.get());
        (self.since.get(), polls)
    }

    /// Forgets since when it waits.
    #[inline]
    pub(crate) fn restart(&self) {
        self.since.set(NEVER);
    }

    /// Since when it has waited: `now`, if that was not known.
    pub(crate) fn since(&self, now: u64) -> u64 {
        if self.since.get() == NEVER {
            self.since.set(now);
        }
        self.since.get()
    }

    pub(crate) fn set_deadline(&self, deadline: u64) {
        self.deadline.set(deadline);
    }

    #[inline]
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline.get()
    }
}
