//! The core's one alarm, shared by its timers and by the slice of the running stackful task.

use core::time::Duration;

use crate::platform::bound;
use crate::sync::local::{AtomicBool, AtomicU64, Ordering, compiler_fence};

/// No time: an alarm that is not set, a queue without timers.
pub(crate) const NEVER: u64 = u64::MAX;

/// The least stretch, in nanoseconds: if a task was preempted after less than that, its next stretch is not
/// preempted before it has had as much. What is urgent comes later by as much then.
///
/// It is longer than the switch to a stack and back takes: hosted, with system calls and signals.
pub(crate) const MIN_STRETCH: u64 = if cfg!(target_os = "none") { 20_000 } else { 50_000 };

/// Stands for the end of a slice that began without a look at the clock.
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
    /// What the next slice is to be instead of a whole one, in nanoseconds; or zero.
    granted: AtomicU64,
    /// When it fired, if the loop has not looked at the timers since; else [`NEVER`].
    due: AtomicU64,
    /// When a stretch on a stack began or ended, as of the last look at the clock there.
    seen: AtomicU64,
    /// Until when the running task is not preempted, if that is later than now.
    protected_until: AtomicU64,
    /// It would have been preempted but for `protected_until`.
    deferred: AtomicBool,
}

/// For how many nanoseconds of a stretch that it is granted a task is not preempted. What is urgent comes later
/// by as much.
pub(crate) fn protection(pending: u64) -> u64 {
    const MAX: u64 = if cfg!(target_os = "none") { 25_000 } else { 250_000 };
    pending.clamp(MIN_STRETCH, MAX)
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
            granted: AtomicU64::new(0),
            due: AtomicU64::new(NEVER),
            seen: AtomicU64::new(0),
            protected_until: AtomicU64::new(0),
            deferred: AtomicBool::new(false),
        }
    }

    /// With preemption disabled or interrupts masked: a handler that comes meanwhile sets no alarm.
    #[inline]
    fn set(&self, at: u64) {
        if self.at.load(Ordering::Relaxed) != at {
            // In this order: an alarm that fires in between is forgotten, and the next comes although it need
            // not; in the other order it would be relied on although it is gone.
            self.at.store(at, Ordering::Relaxed);
            bound::set_alarm(at);
        }
    }

    /// Sees to it that the alarm fires at `at` or earlier. As [`set`](Self::set).
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

    /// Starts a slice of a task that has not run for a part of it under the alarm that is set.
    /// `false`: that fires too late.
    #[inline]
    pub(crate) fn begin_covered(&self) -> bool {
        let is_covered = self.covers_slice.load(Ordering::Relaxed);
        if is_covered {
            // The alarm was set for the next timer, too. What a task adds on a stack sees to it
            // itself; for those that others have added since, the caller does.
            self.slice_end.store(UNKNOWN, Ordering::Relaxed);
            self.protected_until.store(0, Ordering::Relaxed);
        }
        is_covered
    }

    /// Starts a slice, and sets the alarm.
    #[inline(never)]
    pub(crate) fn begin_slice(&self, slice: u64, next_timer: u64) {
        match self.granted.swap(0, Ordering::Relaxed) {
            0 => self.resume_slice(slice, next_timer),
            grant => self.resume_protected(grant.min(slice), protection(grant), next_timer),
        }
    }

    /// Makes the slice that begins next one of `grant`.
    pub(crate) fn grant(&self, grant: u64) {
        self.granted.store(grant, Ordering::Relaxed);
        self.covers_slice.store(false, Ordering::Relaxed);
    }

    /// Starts what is left of a slice.
    pub(crate) fn resume_slice(&self, left: u64, next_timer: u64) {
        let now = bound::now();
        self.seen.store(now, Ordering::Relaxed);
        self.run_until(now.saturating_add(left), next_timer);
    }

    /// As [`resume_slice`](Self::resume_slice), and for the first `least` of it the task is not preempted.
    #[cold]
    #[inline(never)]
    pub(crate) fn resume_protected(&self, left: u64, least: u64, next_timer: u64) {
        let now = bound::now();
        self.seen.store(now, Ordering::Relaxed);
        self.deferred.store(false, Ordering::Relaxed);
        self.protect(now, least);
        let until = now.saturating_add(least);
        self.run_until(now.saturating_add(left).max(until), next_timer.max(until));
    }

    #[inline]
    fn run_until(&self, end: u64, next_timer: u64) {
        self.slice_end.store(end, Ordering::Relaxed);
        self.covers_slice.store(true, Ordering::Relaxed);
        self.set(end.min(next_timer));
    }

    /// From `now` on, for so long, the running task is not preempted.
    pub(crate) fn protect(&self, now: u64, least: u64) {
        self.protected_until.store(now.saturating_add(least), Ordering::Relaxed);
    }

    /// Whether the running stretch is, or was, one that is protected.
    #[inline]
    pub(crate) fn protects(&self) -> bool {
        self.protected_until.load(Ordering::Relaxed) > self.seen.load(Ordering::Relaxed)
    }

    /// Whether the stretch that ends now was shorter than [`MIN_STRETCH`]. One that began without a look at
    /// the clock counts from the last one.
    #[inline]
    pub(crate) fn is_short(&self, now: u64) -> bool {
        now.wrapping_sub(self.seen.load(Ordering::Relaxed)) < MIN_STRETCH
    }

    /// Whether the running task may not be preempted yet; then the alarm is set to fire when it may.
    #[cold]
    #[inline(never)]
    pub(crate) fn stays(&self, now: u64) -> bool {
        let until = self.protected_until.load(Ordering::Relaxed);
        if now >= until {
            return false;
        }
        self.deferred.store(true, Ordering::Relaxed);
        // What is set may have fired just now.
        self.forget();
        self.set(until);
        true
    }

    /// Whether something wanted the core while the task was not to be preempted, since the last call.
    #[inline]
    pub(crate) fn take_deferred(&self) -> bool {
        self.deferred.swap(false, Ordering::Relaxed)
    }

    /// The stretch on the stack ends now.
    #[inline]
    pub(crate) fn end_stretch(&self, now: u64) {
        self.seen.store(now, Ordering::Relaxed);
    }

    /// When a stack was last known to have the core.
    #[inline]
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
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
        // It has been here for longer than the least stretch, or would have been told so before.
        self.seen.store(now.saturating_sub(MIN_STRETCH), Ordering::Relaxed);
        self.run_until(end, next_timer);
        None
    }

    /// What is left of the slice of the task that runs now.
    pub(crate) fn slice_left(&self, now: u64, slice: u64) -> SliceLeft {
        match self.slice_end.load(Ordering::Relaxed) {
            UNKNOWN => SliceLeft::Nanoseconds(slice),
            end => SliceLeft::of(end.saturating_sub(now), slice),
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
