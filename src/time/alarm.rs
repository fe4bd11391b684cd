//! The core's one alarm, shared by its timers and by the slice of the running stackful task.

use core::time::Duration;

use crate::platform::bound;
use crate::sync::local::{AtomicBool, AtomicU64, Ordering, compiler_fence};

/// No time: an alarm that is not set, a queue without timers.
pub(crate) const NEVER: u64 = u64::MAX;

/// Stands for the end of a slice that nobody looked at the clock for.
const UNKNOWN: u64 = 0;

/// What the alarm is set to. Only the core and its interrupts touch it, so all is relaxed.
///
/// Setting it costs a system call or a trap to the firmware on some platforms, so the loop does that
/// once before it gives the core away, and not for each timer.
///
/// Reading the clock and setting the alarm for each poll on a stack would cost more than the poll. So
/// a slice alarm that is set stays set when its task leaves early, and the next one starts its slice
/// under it without looking at the clock; if that one still runs when the alarm fires, it gets a
/// whole slice from there. A task thus keeps the core for one slice, and at most for two.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// When the alarm will fire, in nanoseconds of the platform's clock.
    at: AtomicU64,
    /// The end of the running slice.
    slice_end: AtomicU64,
    /// The alarm that is set fires within a slice from when it was set.
    covers_slice: AtomicBool,
    /// When it fired, if the loop has not looked at the timers since; else [`NEVER`].
    due: AtomicU64,
}

pub(crate) const fn nanoseconds(duration: Duration) -> u64 {
    let nanoseconds = duration.as_nanos();
    if nanoseconds < NEVER as u128 { nanoseconds as u64 } else { NEVER }
}

impl Alarm {
    pub(crate) const fn new() -> Self {
        Self {
            at: AtomicU64::new(NEVER),
            slice_end: AtomicU64::new(UNKNOWN),
            covers_slice: AtomicBool::new(false),
            due: AtomicU64::new(NEVER),
        }
    }

    #[inline]
    fn set(&self, at: u64) {
        // An alarm that fires on either side of the store makes the timers due, after which nothing
        // of this is relied on.
        if self.at.load(Ordering::Relaxed) != at {
            bound::set_alarm(at);
            self.at.store(at, Ordering::Relaxed);
        }
    }

    /// Sees to it that the alarm fires at `at` or earlier.
    #[inline]
    pub(crate) fn set_by(&self, at: u64) {
        if at < self.at.load(Ordering::Relaxed) {
            self.set(at);
        }
    }

    /// It fired, or the loop looks at the timers since it did: what was set before is not relied on
    /// any more.
    #[inline]
    pub(crate) fn forget(&self) {
        self.at.store(NEVER, Ordering::Relaxed);
        self.covers_slice.store(false, Ordering::Relaxed);
    }

    /// Starts a slice of a task that has not run for a part of it.
    #[inline]
    pub(crate) fn begin_slice(&self, slice: u64, next_timer: u64) {
        if self.covers_slice.load(Ordering::Relaxed) {
            self.slice_end.store(UNKNOWN, Ordering::Relaxed);
            self.set_by(next_timer);
        } else {
            self.resume_slice(slice, next_timer);
        }
    }

    /// Starts what is left of a slice.
    pub(crate) fn resume_slice(&self, left: u64, next_timer: u64) {
        let end = bound::now().saturating_add(left);
        self.slice_end.store(end, Ordering::Relaxed);
        self.covers_slice.store(true, Ordering::Relaxed);
        self.set(end.min(next_timer));
    }

    /// In the alarm's interrupt, on a stack: is it time to leave? If so, what is left of the slice;
    /// if not, the alarm has been set again.
    #[inline]
    pub(crate) fn look(&self, now: u64, slice: u64, next_timer: u64) -> Option<SliceLeft> {
        let mut end = self.slice_end.load(Ordering::Relaxed);
        if end == UNKNOWN {
            end = now.saturating_add(slice);
        }
        if now >= end {
            return Some(SliceLeft::Nothing);
        }
        if now >= next_timer {
            return Some(SliceLeft::of(end - now, slice));
        }
        self.forget();
        self.resume_slice(end - now, next_timer);
        None
    }

    /// What is left of the slice of the task that runs now.
    pub(crate) fn slice_left(&self, slice: u64) -> SliceLeft {
        match self.slice_end.load(Ordering::Relaxed) {
            UNKNOWN => SliceLeft::Nanoseconds(slice),
            end => SliceLeft::of(end.saturating_sub(bound::now()), slice),
        }
    }

    /// Tells the loop to look at the timers: it is `now` or later.
    #[inline]
    pub(crate) fn set_due(&self, now: u64) {
        self.due.store(now, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed) != NEVER
    }

    /// The loop is about to look at the timers that are due at what this returns.
    #[inline]
    pub(crate) fn take_due(&self) -> u64 {
        let now = self.due.swap(NEVER, Ordering::Relaxed);
        // An alarm that fires after this makes them due again.
        compiler_fence(Ordering::SeqCst);
        now
    }
}

/// What a preempted task has left of its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SliceLeft {
    /// It was used up: the others come first.
    Nothing,
    /// Something more urgent came: it goes on before the others.
    Nanoseconds(u64),
}

impl SliceLeft {
    /// An eighth of a slice or less counts as nothing: it isn't worth an alarm of its own. So where a
    /// task is due as often as slices end, both soon fall together, and cost one alarm.
    #[inline]
    fn of(left: u64, slice: u64) -> Self {
        if left <= slice / 8 { Self::Nothing } else { Self::Nanoseconds(left) }
    }
}
