//! How long one group of tasks waits for another that goes first.

use core::cell::Cell;

use crate::time::NEVER;

/// How long a group waits for another that goes first, and when it is to be asked for that.
///
/// The loop doesn't look at the clock for each poll. After a few polls of the others it asks the group
/// whether that has waited for too long, and only then it does.
#[derive(Debug)]
pub(crate) struct Patience {
    /// At how many polls it is to be asked.
    ask_at: Cell<u64>,
    /// What that was when it had been asked last.
    asked: Cell<u64>,
    /// How many polls had been counted when it was asked for the first time since its turn.
    polls: Cell<u64>,
    /// Since when it waits, or [`NEVER`] if that is not known yet.
    since: Cell<u64>,
    /// When it will have waited for too long, if it knows.
    until: Cell<u64>,
}

impl Patience {
    pub(crate) const fn new() -> Self {
        Self {
            ask_at: Cell::new(0),
            asked: Cell::new(0),
            polls: Cell::new(0),
            since: Cell::new(NEVER),
            until: Cell::new(NEVER),
        }
    }

    /// It has its turn, and is asked again at so many polls.
    #[inline]
    pub(crate) fn ask_at(&self, polls: u64) {
        self.ask_at.set(polls);
    }

    #[inline]
    pub(crate) fn is_to_be_asked(&self, counted: u64) -> bool {
        counted >= self.ask_at.get()
    }

    /// It has been asked, and will be again. Returns since when it has waited, and how many polls there
    /// were since; it counts from now if this is the first time since its turn.
    pub(crate) fn wait_on(&self, now: u64, counted: u64, most: u64) -> (u64, u64) {
        if self.asked.get() != self.ask_at.get() {
            self.since.set(now);
            self.polls.set(counted);
        }
        let polls = (counted - self.polls.get()).max(1);
        self.ask_at.set(counted + polls.min(most));
        self.asked.set(self.ask_at.get());
        (self.since.get(), polls)
    }

    /// Since when it waits is not known.
    #[inline]
    pub(crate) fn forget(&self) {
        self.since.set(NEVER);
    }

    /// Since when it has waited, which is `now` if that was not known.
    pub(crate) fn since(&self, now: u64) -> u64 {
        if self.since.get() == NEVER {
            self.since.set(now);
        }
        self.since.get()
    }

    pub(crate) fn wait_until(&self, until: u64) {
        self.until.set(until);
    }

    #[inline]
    pub(crate) fn until(&self) -> u64 {
        self.until.get()
    }
}
