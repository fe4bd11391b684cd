//! The state word of a task: flags, and above them the reference count.
//!
//! Every transition is one function. It makes one atomic step and returns what the caller must now
//! do; the atomics decide, the callers act. The edges are numbered in [the life of a
//! task](super).

use crate::fatal::fatal;
use crate::ready::Origin;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::const_fn;

/// To be polled (again). Without `RUNNING`, the task is in exactly one queue, or the one who set
/// the flag is about to push it: nobody else may push it.
const READY: usize = 1 << 0;

/// The owning core has it: it is being polled, off the core in the middle of a poll by preemption, or
/// back in the loop's own queues, by a yield or a wake of that core's. Only the owning core sets and
/// clears it, in task context, and only while it is set may that core touch the future. Nobody
/// pushes a task that has it; a wake leaves `READY`.
const RUNNING: usize = 1 << 1;

/// The future has been dropped and will not be polled again. Set once, by the owning core, when it
/// clears `RUNNING` for the last time. The output is in the future's place unless `ABANDONED`.
const DONE: usize = 1 << 2;

/// Somebody asked for the task to be aborted. Never cleared.
const ABORT: usize = 1 << 3;

/// The join handle exists. While it is set and `DONE` too, the handle owns the output.
const JOIN: usize = 1 << 4;

/// The join waker's cell is filled and belongs to whoever sets `DONE`; while it is clear and `JOIN`
/// is set, the cell belongs to the join handle. Never set after `DONE`.
const JOIN_WAKER: usize = 1 << 5;

/// The output is stored although the task is still `RUNNING`: the drop of the future panicked
/// after its last poll. Only the owning core reads it.
const STORED: usize = 1 << 6;

/// Together with `DONE`: the future was left where it is, since frames on a stack that will never
/// run again may point into it, so there is no output.
const ABANDONED: usize = 1 << 7;

/// It is polled on a stack. Set before the task is spawned, or by the owning core when its first poll finds
/// that it wants one. Never cleared.
const STACKFUL: usize = 1 << 8;

/// One reference. The runtime has one until the future is gone; so have the join handle and each
/// waker. Queues have none: a task in a queue is not `DONE`, so the runtime's holds it (what a shutdown
/// leaves, as [`Start`] tells, is the exception).
const REFERENCE: usize = 1 << 9;

/// More references than any program can make without forgetting them in a loop for years.
const REFERENCES_MAX: usize = isize::MAX as usize;

/// The state word.
#[derive(Debug)]
pub(crate) struct State(AtomicUsize);

/// What [`State::wake`] wants done.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Wake {
    /// The task was BLOCKED: push it. Nobody else will.
    Push,
    /// It is queued already, or its poll will find the flag, or it is finished.
    Nothing,
}

/// What [`State::abort`] wants done.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Abort {
    /// The task was BLOCKED: push it. Nobody else will.
    Push,
    /// It may be in the queue of those that wait for a stack: tell its runtime.
    Queued,
    /// Its next poll, or the look before that, will find the flag; or it is finished.
    Nothing,
}

/// What [`State::start`] wants done with a task that was taken from a queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Start {
    /// Poll it; with `aborted`, drop its future instead unless a stack holds frames of it.
    Run { aborted: bool },
    /// It was finished by a shutdown while its waker was about to push it: release the reference
    /// that the runtime kept for this.
    Finished,
    /// As `Finished`, but frames on a stack may point at the task: leave it.
    Abandoned,
    /// Its last reference was dropped where nothing may be freed: free it.
    Free,
}

/// What [`State::pending`] wants done after a poll.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Pending {
    /// BLOCKED: nothing; a wake will push it.
    Blocked,
    /// Woken or aborted during the poll: push it.
    Ready,
}

/// What [`State::complete`] found.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Completed {
    /// The join handle is gone: the output is the caller's to drop.
    pub(crate) drop_output: bool,
    /// The join waker is the caller's to take and wake.
    pub(crate) wake_joiner: bool,
}

/// What [`State::shut_down`] wants done with a task in no queue of the runtime's.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct ShutDown {
    /// A waker is between its `wake` and its push: the runtime's reference stays until that push
    /// has been seen.
    pub(crate) push_is_coming: bool,
}

impl State {
    const_fn! {
        /// Spawned: referenced by the runtime and the join handle; RUNNING if it goes to the FIFO, READY if
        /// to the inbox. (Edge 1)
        pub(crate) fn spawned(origin: Origin, stackful: bool) -> Self {
            let flag = match origin {
                Origin::Local => RUNNING,
                Origin::Remote => READY,
            };
            let stackful = if stackful { STACKFUL } else { 0 };
            Self(AtomicUsize::new(flag | stackful | JOIN | (2 * REFERENCE)))
        }
    }

    const_fn! {
        /// BLOCKED, without a join handle, and never freed: the runtime's own root task.
        pub(crate) fn immortal() -> Self {
            Self(AtomicUsize::new((REFERENCES_MAX / 2) & !(REFERENCE - 1)))
        }
    }

    /// Wakes. (Edges 5, 6)
    ///
    /// Always a read-modify-write with release, also when the task is READY already: the poll that
    /// acquires it in [`start`](Self::start) must see what was written before this wake. A plain
    /// load that finds READY and returns would let the poll that is starting miss it.
    #[inline]
    pub(crate) fn wake(&self) -> Wake {
        let before = self.set_ready(READY);
        if before & (READY | RUNNING | DONE) == 0 { Wake::Push } else { Wake::Nothing }
    }

    /// Wakes a plain task from its own core, in task context, where all that it writes is seen by the
    /// poll that comes later: by program order, as tasks don't migrate. So one step takes it to the
    /// loop, none is needed to start its poll, and a load is enough where READY is set. (Edges 6, 11)
    #[inline]
    pub(crate) fn wake_local(&self) -> Wake {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & (READY | DONE) != 0 {
                return Wake::Nothing;
            }
            let (flag, done) =
                if word & RUNNING == 0 { (RUNNING, Wake::Push) } else { (READY, Wake::Nothing) };
            // Relaxed: the link that is pushed was last used by this core. What others have released
            // with their wakes stays in the word, as this is a read-modify-write.
            match self.0.compare_exchange_weak(
                word,
                word | flag,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return done,
                Err(found) => word = found,
            }
        }
    }

    /// Asks for an abort: a wake with one flag more. (Edges 5, 6)
    pub(crate) fn abort(&self) -> Abort {
        let before = self.set_ready(READY | ABORT);
        match before & (READY | RUNNING | DONE) {
            0 => Abort::Push,
            flags if flags & DONE == 0 && before & STACKFUL != 0 => Abort::Queued,
            _ => Abort::Nothing,
        }
    }

    #[inline]
    fn set_ready(&self, flags: usize) -> usize {
        // Release pairs with the acquire in `start`. Acquire: the one who pushes a task may touch
        // its link, which the owning core last used before it released RUNNING in `pending`.
        self.0.fetch_or(flags, Ordering::AcqRel)
    }

    /// Whether a task that was taken from a queue is a plain one that is RUNNING, and nobody has woken it
    /// since: so there is nothing to do before its poll. Owning core. (Edge 2)
    #[inline]
    pub(crate) fn is_plain_and_started(&self) -> bool {
        // Relaxed, and perhaps an older value: a wake that isn't seen has left READY, which is found
        // after the poll, or the next time where that yields.
        let word = self.0.load(Ordering::Relaxed);
        word & (READY | RUNNING | DONE | ABORT | STACKFUL) == RUNNING
    }

    /// Whether it is polled on a stack. Owning core.
    #[inline]
    pub(crate) fn is_stackful(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STACKFUL != 0
    }

    /// From now on, it is. Owning core.
    pub(crate) fn set_stackful(&self) {
        self.0.fetch_or(STACKFUL, Ordering::Relaxed);
    }

    /// Takes from a queue, to be polled. Owning core. (Edge 2)
    #[inline]
    pub(crate) fn start(&self) -> Start {
        // As in `is_plain_and_started`.
        let word = self.0.load(Ordering::Relaxed);
        if word & (READY | RUNNING | DONE | ABORT) == RUNNING {
            return Start::Run { aborted: false };
        }
        // Acquire, in both: pairs with the release of every wake that came before. What this core did
        // with the link is released by `pending` or with the last reference.
        let before = if word & RUNNING != 0 {
            self.0.fetch_and(!READY, Ordering::Acquire)
        } else {
            // One addition flips both flags, since READY is set and RUNNING clear. For `Finished` and `Free`
            // nobody reads the flags again.
            self.0.fetch_add(RUNNING - READY, Ordering::Acquire)
        };
        if before & DONE == 0 {
            debug_assert_ne!(before & (READY | RUNNING), 0);
            Start::Run { aborted: before & ABORT != 0 }
        } else if before < REFERENCE {
            Start::Free
        } else if before & ABANDONED != 0 {
            Start::Abandoned
        } else {
            Start::Finished
        }
    }

    /// As [`start`](Self::start), unless the task is DONE or was aborted: then it does nothing, and
    /// returns `false`. Owning core. (Edge 2)
    #[inline]
    pub(crate) fn start_unless_over(&self) -> bool {
        // As in `is_plain_and_started`.
        let word = self.0.load(Ordering::Relaxed);
        match word & (READY | RUNNING | DONE | ABORT) {
            RUNNING => true,
            flags if flags & (DONE | ABORT) != 0 => false,
            // An abort that comes just now is found after the poll.
            _ => matches!(self.start(), Start::Run { .. }),
        }
    }

    /// The poll returned Pending, or the task suspended itself. Owning core. (Edges 3, 4)
    #[inline]
    pub(crate) fn pending(&self) -> Pending {
        // Release: whoever wakes it now may push it, and its link was ours.
        let before = self.0.fetch_sub(RUNNING, Ordering::Release);
        debug_assert_eq!(before & (RUNNING | DONE), RUNNING);
        if before & READY != 0 { Pending::Ready } else { Pending::Blocked }
    }

    /// Whether the runtime's reference is the only one, and so nobody can find the task any more.
    /// Owning core.
    #[inline]
    pub(crate) fn is_unreachable(&self) -> bool {
        // Acquire pairs with the releases of those who had references: the task may be freed.
        let word = self.0.load(Ordering::Acquire);
        word & (JOIN | !(REFERENCE - 1)) == REFERENCE
    }

    /// The future is gone and the output stored. Owning core. (Edge 7)
    pub(crate) fn complete(&self) -> Completed {
        // Release pairs with the handle's acquire of DONE: it reads the output. Acquire pairs with
        // `set_join_waker`: we read the waker.
        let before = self.0.fetch_add(DONE - RUNNING, Ordering::AcqRel);
        debug_assert_eq!(before & (RUNNING | DONE), RUNNING);
        Completed {
            drop_output: before & JOIN == 0,
            wake_joiner: before & (JOIN | JOIN_WAKER) == JOIN | JOIN_WAKER,
        }
    }

    /// As [`complete`](Self::complete), if there is a join handle, which then has the output. Returns whether the
    /// join waker is the caller's to take and wake; `None`: the output is the caller's to drop first. Owning
    /// core. (Edge 7)
    #[inline]
    pub(crate) fn complete_for_join(&self) -> Option<bool> {
        self.0
            // As in `complete`. Relaxed on failure: JOIN is never set again.
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |word| {
                debug_assert_eq!(word & (RUNNING | DONE), RUNNING);
                (word & JOIN != 0).then(|| word + (DONE - RUNNING))
            })
            .ok()
            .map(|before| before & JOIN_WAKER != 0)
    }

    /// The future is never touched again but not dropped either. Owning core. (Edge 8)
    pub(crate) fn abandon(&self) -> Completed {
        let before = self.0.fetch_or(DONE | ABANDONED, Ordering::AcqRel);
        Completed {
            drop_output: false,
            wake_joiner: before & (JOIN | JOIN_WAKER) == JOIN | JOIN_WAKER,
        }
    }

    /// Takes a task that is in no queue of the runtime's, and holds no frames, to drop its future.
    /// Owning core, while it shuts down. (Edge 9)
    pub(crate) fn shut_down(&self) -> ShutDown {
        // With RUNNING set, no wake pushes any more. Relaxed: future and links were last touched by this
        // core, and a push that is coming synchronizes through the inbox.
        let before = self.0.fetch_or(RUNNING, Ordering::Relaxed);
        debug_assert_eq!(before & (RUNNING | DONE), 0);
        ShutDown { push_is_coming: before & READY != 0 }
    }

    /// Notes that the output is stored while the drop of the future panics. Owning core.
    pub(crate) fn set_stored(&self) {
        self.0.fetch_or(STORED, Ordering::Relaxed);
    }

    /// Whether the output is stored although the poll panicked. Owning core.
    pub(crate) fn is_stored(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STORED != 0
    }

    /// Whether nobody will poll it again. What it says of the output is seen with it.
    pub(crate) fn is_done(&self) -> bool {
        // Acquire pairs with `complete`.
        self.0.load(Ordering::Acquire) & DONE != 0
    }

    /// Whether an abort was asked for. Owning core: a hint, `start` and `pending` decide.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ABORT != 0
    }

    /// After [`is_done`](Self::is_done): whether there is an output.
    pub(crate) fn has_output(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ABANDONED == 0
    }

    /// The join handle filled the waker's cell and gives it away. `false`: the task is done, and
    /// the cell is still the handle's.
    pub(crate) fn set_join_waker(&self) -> bool {
        self.unless_done(|word| word | JOIN_WAKER)
    }

    /// The join handle takes the waker's cell back. `false`: the task is done, and the cell is no
    /// longer the handle's.
    pub(crate) fn take_join_waker(&self) -> bool {
        self.unless_done(|word| word & !JOIN_WAKER)
    }

    /// Whether the waker's cell is given away. Join handle only.
    pub(crate) fn has_join_waker(&self) -> bool {
        self.0.load(Ordering::Relaxed) & JOIN_WAKER != 0
    }

    /// As [`detach`](Self::detach), for a handle that is dropped on the owning core where the [short
    /// way](crate::ready::on_fast_path) is open, of a task that isn't in the middle of a poll, if nobody but the
    /// runtime has another reference.
    #[inline]
    pub(crate) fn detach_alone(&self) -> bool {
        // Who has no reference, nor the waker that a poll lends, doesn't touch the word, and the runtime's loop
        // waits for the caller. So it takes no read-modify-write. Acquire pairs with the releases of those who had references, whose
        // sequence the store ends.
        let word = self.0.load(Ordering::Acquire);
        let is_alone = word & !STACKFUL == RUNNING | JOIN | (2 * REFERENCE);
        if is_alone {
            self.0.store((word & !JOIN) - REFERENCE, Ordering::Relaxed);
        }
        is_alone
    }

    /// The join handle goes, and its reference with it, if that is all there is to do. `false`: the task is
    /// done, or the waker's cell is filled, or somebody changes the word just now.
    #[inline]
    pub(crate) fn detach(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & (DONE | JOIN_WAKER) == 0
            && self
                .0
                // Release, as in `release`. It isn't the last: there is the runtime's until DONE.
                .compare_exchange(
                    word,
                    (word & !JOIN) - REFERENCE,
                    Ordering::Release,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// The join handle goes. Returns whether the task was done, and so whether the output is the
    /// handle's to drop, and (if it was not) whether the waker's cell is.
    pub(crate) fn drop_join(&self) -> (bool, bool) {
        // A step that only clears JOIN is enough when the task is done: JOIN_WAKER was given away.
        let gave_up = |word: usize| word & !(JOIN | JOIN_WAKER);
        let before = self
            .0
            // Acquire pairs with `complete`: the output. What the handle did with it is released with
            // its reference.
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| Some(gave_up(word)))
            .unwrap_or_else(|word| word);
        (before & DONE != 0, before & JOIN_WAKER != 0)
    }

    fn unless_done(&self, step: impl Fn(usize) -> usize) -> bool {
        self.0
            // Release: `complete` reads the waker. Acquire on failure: DONE, and with it the output.
            .fetch_update(Ordering::Release, Ordering::Acquire, |word| {
                (word & DONE == 0).then(|| step(word))
            })
            .is_ok()
    }

    /// One reference more. Any context.
    #[inline]
    pub(crate) fn retain(&self) {
        // Relaxed: who clones a reference has one, so nothing is published by it.
        let before = self.0.fetch_add(REFERENCE, Ordering::Relaxed);
        if before > REFERENCES_MAX {
            // A count that wrapped would free a task that is in use.
            fatal("trapline: a task's reference count overflowed: wakers are being forgotten");
        }
    }

    /// As [`release`](Self::release), where it is likely to be the last.
    #[inline]
    #[must_use]
    pub(crate) fn release_last(&self) -> bool {
        // Nobody else can make another of it. Acquire, as in `release`.
        self.0.load(Ordering::Acquire) & !(REFERENCE - 1) == REFERENCE || self.release()
    }

    /// One reference less. Any context. `true`: it was the last, and the task is the caller's to
    /// free or to hand over.
    #[inline]
    #[must_use]
    pub(crate) fn release(&self) -> bool {
        // Release: what was done through this reference happens before the free.
        let before = self.0.fetch_sub(REFERENCE, Ordering::Release);
        if before & !(REFERENCE - 1) == REFERENCE {
            // Acquire: the last one sees what all others did. A load and not a fence, which
            // ThreadSanitizer does not know.
            self.0.load(Ordering::Acquire);
            return true;
        }
        false
    }
}
