//! The core's one alarm, shared by the core's timers and by the slice of the running stackful task.
//!
//! A *stretch* is the time from when a task gets the core on a stack until it leaves the core.

use core::time::Duration;

use crate::platform::bound;
use crate::sync::local::{AtomicBool, AtomicU64, Ordering, compiler_fence};

/// The value for "no time": of an alarm that is not set, or of a list without timers.
pub(crate) const NEVER: u64 = u64::MAX;

/// The minimum stretch, in nanoseconds. If a task was preempted after a shorter stretch, its next
/// stretch is not preempted before it has lasted this long. Urgent work is then delayed by up to
/// this time.
///
/// The value exceeds the time that a switch to a stack and back takes; in the hosted case that
/// switch includes system calls and signals.
pub(crate) const MIN_STRETCH: u64 = if cfg!(target_os = "none") { 20_000 } else { 50_000 };

/// The value of `slice_end` if the slice began without a reading of the clock.
const UNKNOWN: u64 = 0;

/// The state of the alarm. Only the core and its interrupts touch it, so all accesses are relaxed.
///
/// On some platforms, setting the alarm costs a system call or a trap to the firmware. So the loop
/// sets it once before it gives the core away, and not for each timer.
///
/// Reading the clock and setting the alarm for each poll on a stack would cost more than the poll.
/// So a slice alarm that is set stays set when its task leaves early. The next task starts its
/// slice under that alarm, without reading the clock. If that task still runs when the alarm fires,
/// it gets a whole slice from then on. So a task that keeps the core has it for at least one slice,
/// and for two at most.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// When the alarm will fire, in nanoseconds of the platform's clock; [`NEVER`] if it is not
    /// set.
    at: AtomicU64,
    /// The end of the running slice, or [`UNKNOWN`].
    slice_end: AtomicU64,
    /// Whether the alarm that is set fires within one slice from when it was set.
    covers_slice: AtomicBool,
    /// The length in nanoseconds of the next slice, if it is not a whole one; else zero.
    granted: AtomicU64,
    /// When the alarm fired, if the loop has not looked at the timers since; else [`NEVER`].
    due: AtomicU64,
    /// The time of the last reading of the clock at the beginning or the end of a stretch.
    seen: AtomicU64,
    /// The time until which the running task is protected: it is not preempted before. If that time
    /// has passed, the task may be preempted.
    protected_until: AtomicU64,
    /// Whether the running task would have been preempted but for `protected_until`.
    deferred: AtomicBool,
}

/// Returns for how many nanoseconds a stretch that is granted `grant` nanoseconds is protected from
/// preemption. Urgent work is delayed by up to this time.
pub(crate) fn protection(grant: u64) -> u64 {
    const MAX: u64 = if cfg!(target_os = "none") { 25_000 } else { 250_000 };
    grant.clamp(MIN_STRETCH, MAX)
}

/// Returns the duration in nanoseconds, and [`NEVER`] for longer ones.
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

    /// Sets the alarm. The caller has disabled preemption or masked interrupts, so that a handler
    /// that comes meanwhile sets no alarm.
    #[inline]
    fn set(&self, at: u64) {
        if self.at.load(Ordering::Relaxed) != at {
            // The store comes first. If an alarm fires between the two lines, its handler forgets
            // `at`, and the next call sets the alarm once more than necessary. In the other order,
            // the handler's `forget` would be overwritten, and the loop would rely on an alarm that
            // is gone.
            self.at.store(at, Ordering::Relaxed);
            bound::set_alarm(at);
        }
    }

    /// Makes the alarm fire at `at` or earlier. The caller is as for [`set`](Self::set).
    #[inline]
    pub(crate) fn set_by(&self, at: u64) {
        if at < self.at.load(Ordering::Relaxed) {
            self.set(at);
        }
    }

    /// Forgets what the alarm is set to, so that the loop no longer relies on it. Called when the
    /// alarm has fired, and when the loop looks at the timers after that.
    #[inline]
    pub(crate) fn forget(&self) {
        self.at.store(NEVER, Ordering::Relaxed);
        self.covers_slice.store(false, Ordering::Relaxed);
    }

    /// Starts a whole slice for a task, under the alarm that is already set. Returns `false`, and
    /// starts no slice, if that alarm may fire too late.
    #[inline]
    pub(crate) fn begin_covered(&self) -> bool {
        let is_covered = self.covers_slice.load(Ordering::Relaxed);
        if is_covered {
            // The alarm also covers the timers that existed when it was set. A task that adds a
            // timer on a stack sets the alarm itself (see `Sleep`). For timers that other code has
            // added since, the loop or `begin_user_slice` sets the alarm.
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

    /// Sets the length of the slice that begins next to `grant` nanoseconds.
    pub(crate) fn grant(&self, grant: u64) {
        self.granted.store(grant, Ordering::Relaxed);
        self.covers_slice.store(false, Ordering::Relaxed);
    }

    /// Starts the remainder of a slice, which is `left` nanoseconds.
    pub(crate) fn resume_slice(&self, left: u64, next_timer: u64) {
        let now = bound::now();
        self.seen.store(now, Ordering::Relaxed);
        self.run_until(now.saturating_add(left), next_timer);
    }

    /// Does the same as [`resume_slice`](Self::resume_slice). In addition the task is not preempted
    /// for the first `least` nanoseconds.
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

    /// Starts a slice that ends at `end`, and sets the alarm for that end or for the next timer.
    #[inline]
    fn run_until(&self, end: u64, next_timer: u64) {
        self.slice_end.store(end, Ordering::Relaxed);
        self.covers_slice.store(true, Ordering::Relaxed);
        self.set(end.min(next_timer));
    }

    /// Protects the running task from preemption for `least` nanoseconds from `now` on.
    pub(crate) fn protect(&self, now: u64, least: u64) {
        self.protected_until.store(now.saturating_add(least), Ordering::Relaxed);
    }

    /// Returns whether the running stretch is protected from preemption, or was so at its
    /// beginning.
    #[inline]
    pub(crate) fn protects(&self) -> bool {
        self.protected_until.load(Ordering::Relaxed) > self.seen.load(Ordering::Relaxed)
    }

    /// Returns whether the stretch that ends now was shorter than [`MIN_STRETCH`]. A stretch that
    /// began without a reading of the clock counts from the last reading.
    #[inline]
    pub(crate) fn is_short(&self, now: u64) -> bool {
        now.wrapping_sub(self.seen.load(Ordering::Relaxed)) < MIN_STRETCH
    }

    /// Returns whether the running task may not be preempted yet. If so, sets the alarm for the
    /// time when it may.
    #[cold]
    #[inline(never)]
    pub(crate) fn stays(&self, now: u64) -> bool {
        let until = self.protected_until.load(Ordering::Relaxed);
        if now >= until {
            return false;
        }
        self.deferred.store(true, Ordering::Relaxed);
        // The alarm that is set may have fired just now, so it is not relied on.
        self.forget();
        self.set(until);
        true
    }

    /// Returns whether [`stays`](Self::stays) has deferred a preemption, and clears that note.
    #[inline]
    pub(crate) fn take_deferred(&self) -> bool {
        self.deferred.swap(false, Ordering::Relaxed)
    }

    /// Notes that the stretch on the stack ends now.
    #[inline]
    pub(crate) fn end_stretch(&self, now: u64) {
        self.seen.store(now, Ordering::Relaxed);
    }

    /// Returns when a stack was last known to have the core.
    #[inline]
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Decides, in the alarm's interrupt on a stack, whether the task must leave because its slice
    /// is over or a timer is due. If so, returns what is left of its slice. If not, sets the alarm
    /// again.
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
        // From here on the stretch counts as no shorter than `MIN_STRETCH`. (For a task that is
        // still protected, `on_timer` returns before it calls this.)
        self.seen.store(now.saturating_sub(MIN_STRETCH), Ordering::Relaxed);
        self.run_until(end, next_timer);
        None
    }

    /// Returns what is left of the slice of the task that runs now.
    pub(crate) fn slice_left(&self, now: u64, slice: u64) -> SliceLeft {
        match self.slice_end.load(Ordering::Relaxed) {
            UNKNOWN => SliceLeft::Nanoseconds(slice),
            end => SliceLeft::of(end.saturating_sub(now), slice),
        }
    }

    /// Makes the loop look at the timers. Those that are due at `now` fire then.
    #[inline]
    pub(crate) fn set_due(&self, now: u64) {
        self.due.store(now, Ordering::Relaxed);
    }

    /// Returns whether the loop must look at the timers.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.due.load(Ordering::Relaxed) != NEVER
    }

    /// Clears the request to look at the timers, and returns the time up to which timers are due.
    #[inline]
    pub(crate) fn take_due(&self) -> u64 {
        let now = self.due.swap(NEVER, Ordering::Relaxed);
        // An alarm that fires after this point makes the timers due again.
        compiler_fence(Ordering::SeqCst);
        now
    }
}

/// The part of its slice that a preempted task has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SliceLeft {
    /// The slice was used up: other tasks go first.
    Nothing,
    /// Urgent work came before the end of the slice: the task goes to the front of its queue, and
    /// has this many nanoseconds left.
    Nanoseconds(u64),
}

impl SliceLeft {
    /// Makes a remainder. An eighth of a slice or less counts as nothing, since it is not worth an
    /// alarm of its own. So if a timer fires as often as slices end, a slice soon ends when the
    /// timer fires, and both cost one alarm.
    #[inline]
    fn of(left: u64, slice: u64) -> Self {
        if left <= slice / 8 { Self::Nothing } else { Self::Nanoseconds(left) }
    }
}
