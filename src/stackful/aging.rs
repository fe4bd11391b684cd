//! How long one group of tasks waits for another group that goes first.

use core::cell::Cell;

use crate::time::alarm::NEVER;

/// How long one group of tasks has waited for another group that goes first.
///
/// The loop does not read the clock at each poll. After a few polls of the group that goes first,
/// it checks whether the other group has waited for too long, and reads the clock only then.
#[derive(Debug)]
pub(crate) struct Aging {
    /// The loop checks next when its count of polls has reached this value.
    check_at: Cell<u64>,
    /// The value that the last [`keep_waiting`](Self::keep_waiting) gave to `check_at`. If the two
    /// differ, `check_at` was set again since: the waiting group has had its turn, or was empty.
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

    /// Makes the loop check when its count of polls has reached `polls`. Also tells
    /// [`keep_waiting`](Self::keep_waiting) that the group has had its turn.
    #[inline]
    pub(crate) fn check_at(&self, polls: u64) {
        self.check_at.set(polls);
    }

    /// Returns whether the loop is to check now, when it has counted `counted` polls.
    #[inline]
    pub(crate) fn is_check_due(&self, counted: u64) -> bool {
        counted >= self.check_at.get()
    }

    /// Notes that the loop checks at the time `now`, when it has counted `counted` polls. Returns
    /// the time of the first check since the group's turn, and the number of polls since that first
    /// check (at least 1). The first check may be this one. The next check comes after as many
    /// further polls, but after at most `max`.
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

    /// Makes the time since which the group waits unknown.
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
