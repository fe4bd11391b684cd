//! How long one group of tasks waits for another group that goes first.

use core::cell::Cell;

use crate::time::alarm::NEVER;

/// How long one group of tasks has waited for another group that goes first.
///
/// The loop does not read the clock at each poll. After a few polls of the group that goes first,
/// it checks whether the other group has waited for too long, and reads the clock only then.
#[derive(Debug)]
pub(crate) struct Aging {
    /// The count of polls at which the loop checks next.
    check_at: Cell<u64>,
    /// The value that the last check gave to `check_at`. If they differ, the group has had its turn
    /// since.
    checked_at: Cell<u64>,
    /// The count of polls at the loop's first check since the group's turn.
    polls: Cell<u64>,
    /// The time since which the group waits, or [`NEVER`] if that is not known yet.
    since: Cell<u64>,
    /// The time at which the group will have waited for too long; [`NEVER`] if that is not known.
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

    /// Notes that the group has its turn. The loop checks again at this count of polls.
    #[inline]
    pub(crate) fn check_at(&self, polls: u64) {
        self.check_at.set(polls);
    }

    /// Returns whether the loop is to check at this count of polls.
    #[inline]
    pub(crate) fn is_check_due(&self, counted: u64) -> bool {
        counted >= self.check_at.get()
    }

    /// Notes that the loop has checked. It checks again after as many polls as there have been so
    /// far, but at most `max`. Returns the time since which the group has waited, and the number of
    /// polls since then (at least 1). Both count from now if this is the first check since the
    /// group's turn.
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

    /// Forgets since when the group waits.
    #[inline]
    pub(crate) fn restart(&self) {
        self.since.set(NEVER);
    }

    /// Returns since when the group has waited. If that was not known, it waits from `now` on.
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
