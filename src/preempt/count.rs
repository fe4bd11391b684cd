//! The preempt count itself, and the flags that go with it.

use crate::sync::local::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

/// The preempt count of one core, and its need_resched flag. Preemption is enabled while the count
/// is zero. Only that core and its interrupts access these fields, so all accesses are relaxed, and
/// compiler fences keep the order that an interrupt sees.
#[derive(Debug)]
pub(crate) struct PreemptCount {
    /// The number of reasons that keep preemption disabled. The runtime's own code is one of them.
    count: AtomicUsize,
    /// A preemption was due where it was forbidden: the preempt count was not zero, interrupts were
    /// masked, or the platform said no.
    pending: AtomicBool,
    /// The loop must look at more than the inbox before its next poll: at the alarm and the timers.
    need_resched: AtomicBool,
    /// How often [`void_guards`](Self::void_guards) was called. A guard that has another epoch is
    /// void: it no longer counts.
    pub(super) epoch: AtomicUsize,
    /// How many alarms could not preempt because `may_preempt` said no, in the stretch that
    /// `refused_in` names.
    refused: AtomicU64,
    /// The stretch that `refused` counts in, as the core's count of polls.
    refused_in: AtomicU64,
}

impl PreemptCount {
    pub(crate) const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            pending: AtomicBool::new(false),
            need_resched: AtomicBool::new(false),
            epoch: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            refused_in: AtomicU64::new(0),
        }
    }

    /// Sets the count to 1, for the runtime's own code. Guards that are still alive no longer
    /// count, and their drops do nothing.
    pub(crate) fn void_guards(&self) {
        self.epoch.store(self.epoch.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.set(1);
    }

    /// Returns whether preemption is enabled.
    #[inline]
    pub(crate) fn is_zero(&self) -> bool {
        self.get() == 0
    }

    /// Returns the count: the number of reasons that keep preemption disabled.
    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Sets the count: to 1 for the runtime's own code, to 0 for the code of a task.
    #[inline]
    pub(crate) fn set(&self, depth: usize) {
        compiler_fence(Ordering::SeqCst);
        self.count.store(depth, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// Increments the count. Any context.
    #[inline]
    pub(super) fn increment(&self) {
        self.set(self.get() + 1);
    }

    /// Makes a preemption pending, and sets need_resched. Called on this count's core, in any
    /// context.
    #[inline]
    pub(crate) fn set_pending(&self) {
        self.pending.store(true, Ordering::Relaxed);
        self.set_need_resched();
    }

    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Notes that `may_preempt` said no to an alarm. `stretch` identifies the running stretch: it
    /// is the core's count of polls. Called on this count's core, in the alarm's handler.
    pub(crate) fn refuse(&self, stretch: u64) {
        let before = self.refusals(stretch);
        self.refused_in.store(stretch, Ordering::Relaxed);
        self.refused.store(before.saturating_add(1), Ordering::Relaxed);
    }

    /// Returns how many alarms `may_preempt` has refused in this stretch.
    fn refusals(&self, stretch: u64) -> u64 {
        if self.refused_in.load(Ordering::Relaxed) == stretch {
            self.refused.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// Returns how many nanoseconds from now the next alarm is to ask `may_preempt` again.
    pub(crate) fn retry_after(&self, slice: u64, stretch: u64) -> u64 {
        /// In nanoseconds. In a kernel that does not call `point`, a pending preemption waits at
        /// most this long (or a slice, if a slice is longer).
        const MAX: u64 = 10_000_000;
        /// The maximum wait in slices. It is the smaller limit if slices are short.
        const MAX_SLICES: u64 = 16;
        let slices = 1 << self.refusals(stretch).min(MAX_SLICES.ilog2().into());
        slice.saturating_mul(slices).min(slice.max(MAX))
    }

    /// Clears the pending preemption. `need_resched` stays set.
    #[inline]
    pub(crate) fn clear_pending(&self) {
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Makes the loop look at the alarm and the timers before its next poll. Called on this count's
    /// core, in any context.
    #[inline]
    pub(crate) fn set_need_resched(&self) {
        self.need_resched.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn need_resched(&self) -> bool {
        self.need_resched.load(Ordering::Relaxed)
    }

    /// Clears need_resched, since the loop is about to look at the alarm and the timers. Clears the
    /// pending preemption as well, since the loop has the core.
    #[inline]
    pub(crate) fn clear_need_resched(&self) {
        self.need_resched.store(false, Ordering::Relaxed);
        self.clear_pending();
        // The loop looks only after the flags are cleared: an interrupt that comes later sets them
        // again.
        compiler_fence(Ordering::SeqCst);
    }
}
