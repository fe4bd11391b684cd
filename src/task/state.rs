//! The state word of a task: flags, and above them the reference count.
//!
//! Every transition is one function. It makes one atomic step and returns what the caller must now
//! do: this module touches nothing but the word, and the callers act on its answers. The edges are
//! numbered in [the life of a task](super).

use crate::fatal::fatal;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::const_fn;

/// The task is to be polled (again). If this flag is set and `RUNNING` is clear, the task is in
/// exactly one queue, or the code that set the flag is about to push the task: no other code may
/// push it.
const READY: usize = 1 << 0;

/// The owning core has the task. The core polls it, or has preempted it in the middle of a poll, or
/// has it in the loop's own queues after a yield, or after a wake or a spawn on that core. Only the
/// owning core sets and clears the flag, in task context, and only while it is set may that core
/// touch the future. A wake never pushes a task with this flag: it only sets `READY`.
const RUNNING: usize = 1 << 1;

/// The future has been dropped and will not be polled again. Set once, by the owning core, when it
/// clears `RUNNING` for the last time. The output is in the future's place unless `ABANDONED` is
/// set.
const DONE: usize = 1 << 2;

/// An abort of the task was asked for. Never cleared.
const ABORT: usize = 1 << 3;

/// The join handle exists. While this flag and `DONE` are both set, the handle owns the output.
const JOIN: usize = 1 << 4;

/// The join waker's cell is filled and belongs to the code that sets `DONE`. While this flag is
/// clear and `JOIN` is set, the cell belongs to the join handle. Never set after `DONE`.
const JOIN_WAKER: usize = 1 << 5;

/// The output is stored although the task is still `RUNNING`: the drop of the future panicked, or
/// the check after the last poll did (which panics if the poll has left a guard alive or interrupts
/// masked). Only the owning core reads the flag.
const STORED: usize = 1 << 6;

/// Set together with `DONE`: the future was left where it is, since frames on a stack that will
/// never run again may point into it. So there is no output.
const ABANDONED: usize = 1 << 7;

/// The task is polled on a stack. Set before the task is spawned, or by the owning core when the
/// first poll finds that the task wants a stack. Never cleared.
const STACKFUL: usize = 1 << 8;

/// One reference. The runtime has one until the future is gone; the join handle has one, and so has
/// each waker. Queues have none: a task in a queue is not `DONE`, so the runtime's reference keeps
/// it alive. The exceptions are queued tasks for which [`Start`] says `Finished` or `Abandoned`
/// (the runtime has kept its reference) or `Free` (the task has no references).
const REFERENCE: usize = 1 << 9;

/// More references than a program can make unless it forgets them in a loop for years.
const REFERENCES_MAX: usize = isize::MAX as usize;

/// The state word.
#[derive(Debug)]
pub(crate) struct State(AtomicUsize);

/// Tells the caller of [`State::wake`] what to do.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Wake {
    /// The task was BLOCKED: push it. No other code will.
    Push,
    /// Nothing: the task is queued already, or its poll will find `READY`, or it is finished.
    Nothing,
}

/// Tells the caller of [`State::abort`] what to do.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Abort {
    /// The task was BLOCKED: push it. No other code will.
    Push,
    /// The task may be in the queue of tasks that wait for a stack: tell its runtime.
    Queued,
    /// Nothing: the check of the state before or after the next poll will find `ABORT`; or the task
    /// is finished.
    Nothing,
}

/// Tells the caller of [`State::start`] what to do with the task that it took from a queue.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Start {
    /// Poll the task. If it is `aborted`, drop its future instead, unless a stack holds frames of
    /// its poll: such a poll is resumed first, or, in a shutdown, abandoned.
    Run { aborted: bool },
    /// Release the reference that the runtime kept for this moment: a shutdown finished the task
    /// while a waker was about to push it.
    Finished,
    /// Leave the task as it is: as in `Finished`, but frames on a stack may point at it.
    Abandoned,
    /// Free the task: its last reference was dropped where no memory may be freed.
    Free,
}

/// Tells the caller of [`State::pending`] what to do after a poll.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Pending {
    /// Nothing: the task is BLOCKED, and a wake will push it.
    Blocked,
    /// Push the task: it was woken or aborted during the poll.
    Ready,
}

/// Tells the caller of [`State::complete`] or [`State::abandon`] what to do.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct Completed {
    /// The join handle is gone: the caller drops the output.
    pub(crate) drop_output: bool,
    /// The caller takes the join waker and wakes it.
    pub(crate) wake_joiner: bool,
}

/// The answer of [`State::shut_down`], about a task that is in no queue of the runtime.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub(crate) struct ShutDown {
    /// A waker is between its `wake` and its push: the runtime's reference stays until the loop or
    /// the shutdown has taken the pushed task from the inbox.
    pub(crate) push_is_coming: bool,
}

impl State {
    const_fn! {
        /// The state of a new task, with references of the runtime and the join handle. The task is
        /// RUNNING if it goes to the FIFO, and READY if it goes to the inbox. (Edge 1)
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
        /// The state of the runtime's own root task: BLOCKED, without a join handle, and never
        /// freed.
        pub(crate) fn immortal() -> Self {
            Self(AtomicUsize::new((REFERENCES_MAX / 2) & !(REFERENCE - 1)))
        }
    }

    /// Wakes the task. (Edges 5, 6)
    ///
    /// This is a read-modify-write with release even when the task is READY already: the poll that
    /// acquires the word in [`start`](Self::start) must see what was written before this wake. With
    /// a plain load that finds READY and returns, the poll that is just starting could miss those
    /// writes.
    #[inline]
    pub(crate) fn wake(&self) -> Wake {
        let before = self.set_ready(READY);
        if before & (READY | RUNNING | DONE) == 0 { Wake::Push } else { Wake::Nothing }
    }

    /// Wakes the task from its own core, in task context. The later poll sees all that the caller
    /// has written by program order, since tasks do not migrate. So one atomic step sets RUNNING
    /// for a task that goes to the loop's queue, and the start of its poll needs no further one. If
    /// READY is set already, a load is enough here. (Edges 6, 11)
    #[inline]
    pub(crate) fn wake_local(&self) -> Wake {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            if word & (READY | DONE) != 0 {
                return Wake::Nothing;
            }
            let (flag, done) =
                if word & RUNNING == 0 { (RUNNING, Wake::Push) } else { (READY, Wake::Nothing) };
            // Relaxed: this core was the last to use the task's link, which the push writes. A
            // later acquire of the word still pairs with the wakes by other cores, since this
            // read-modify-write continues their release sequences.
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

    /// Asks for an abort: a wake that also sets ABORT. (Edges 5, 6)
    pub(crate) fn abort(&self) -> Abort {
        let before = self.set_ready(READY | ABORT);
        match before & (READY | RUNNING | DONE) {
            0 => Abort::Push,
            flags if flags & DONE == 0 && before & STACKFUL != 0 => Abort::Queued,
            _ => Abort::Nothing,
        }
    }

    /// Sets `flags` in the word, and returns the word before that.
    #[inline]
    fn set_ready(&self, flags: usize) -> usize {
        // Release pairs with the acquire in `start`. Acquire pairs with the release in `pending`:
        // the code that pushes the task may touch its link, which the owning core last used before
        // it released RUNNING there.
        self.0.fetch_or(flags, Ordering::AcqRel)
    }

    /// Returns whether a task that was taken from a queue is a plain one that is RUNNING, and has
    /// been neither woken nor aborted since. If so, there is nothing to do before its poll. Owning
    /// core. (Edge 2)
    #[inline]
    pub(crate) fn is_plain_and_started(&self) -> bool {
        // Relaxed, although the load may return an old value: a wake that it misses has set READY,
        // which stays set. The loop finds READY after the poll, or, if that poll yields, at the
        // start of the next one.
        let word = self.0.load(Ordering::Relaxed);
        word & (READY | RUNNING | DONE | ABORT | STACKFUL) == RUNNING
    }

    /// Returns whether the task is polled on a stack. Owning core.
    #[inline]
    pub(crate) fn is_stackful(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STACKFUL != 0
    }

    /// Makes the task one that is polled on a stack. Owning core.
    pub(crate) fn set_stackful(&self) {
        self.0.fetch_or(STACKFUL, Ordering::Relaxed);
    }

    /// Takes the task from a queue to be polled. Owning core. (Edge 2)
    #[inline]
    pub(crate) fn start(&self) -> Start {
        // Relaxed: as in `is_plain_and_started`.
        let word = self.0.load(Ordering::Relaxed);
        if word & (READY | RUNNING | DONE | ABORT) == RUNNING {
            return Start::Run { aborted: false };
        }
        // Acquire, in both branches: pairs with the release of every wake that came before. No
        // release is needed here: what this core did with the link is released later, by `pending`
        // or with the last reference.
        let before = if word & RUNNING != 0 {
            self.0.fetch_and(!READY, Ordering::Acquire)
        } else {
            // One addition flips both flags, since READY is set and RUNNING is clear. For
            // `Finished` and `Free` the two flags may get wrong values, but no code depends on them
            // any more.
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

    /// Does the same as [`start`](Self::start), unless the task is DONE or was aborted: then it
    /// does nothing and returns `false`. Owning core. (Edge 2)
    #[inline]
    pub(crate) fn start_unless_over(&self) -> bool {
        // Relaxed: as in `is_plain_and_started`.
        let word = self.0.load(Ordering::Relaxed);
        match word & (READY | RUNNING | DONE | ABORT) {
            RUNNING => true,
            flags if flags & (DONE | ABORT) != 0 => false,
            // An abort that comes between the load and this step is not lost: ABORT stays set, and
            // is found after the poll.
            _ => matches!(self.start(), Start::Run { .. }),
        }
    }

    /// Ends a poll that returned `Pending`, or suspends the task in `block_on`. Owning core. (Edges
    /// 3, 4)
    #[inline]
    pub(crate) fn pending(&self) -> Pending {
        // Release pairs with the acquire in `set_ready`: code that wakes the task after this may
        // push it, and so write the link, which was this core's until now.
        let before = self.0.fetch_sub(RUNNING, Ordering::Release);
        debug_assert_eq!(before & (RUNNING | DONE), RUNNING);
        if before & READY != 0 { Pending::Ready } else { Pending::Blocked }
    }

    /// Returns whether the runtime's reference is the only one, so that no other code can reach the
    /// task any more. Owning core.
    #[inline]
    pub(crate) fn is_unreachable(&self) -> bool {
        // Acquire pairs with the releases by the code that had references: the caller may free the
        // task.
        let word = self.0.load(Ordering::Acquire);
        word & (JOIN | !(REFERENCE - 1)) == REFERENCE
    }

    /// Sets DONE: the future is gone and the output is stored. Owning core. (Edge 7)
    pub(crate) fn complete(&self) -> Completed {
        // Release pairs with the handle's acquire of DONE in `is_done`: the handle reads the
        // output. Acquire pairs with the release in `set_join_waker`: the caller reads the waker.
        let before = self.0.fetch_add(DONE - RUNNING, Ordering::AcqRel);
        debug_assert_eq!(before & (RUNNING | DONE), RUNNING);
        Completed {
            drop_output: before & JOIN == 0,
            wake_joiner: before & (JOIN | JOIN_WAKER) == JOIN | JOIN_WAKER,
        }
    }

    /// Does the same as [`complete`](Self::complete), if there is a join handle, which then has the
    /// output. Returns whether the caller takes the join waker and wakes it. Returns `None` if
    /// there is no join handle: then DONE is not set, and the caller drops the output first. Owning
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

    /// Sets DONE for a task whose future is never touched again but not dropped either. Owning
    /// core. (Edge 8)
    pub(crate) fn abandon(&self) -> Completed {
        // The orderings are as in `complete`.
        let before = self.0.fetch_or(DONE | ABANDONED, Ordering::AcqRel);
        Completed {
            drop_output: false,
            wake_joiner: before & (JOIN | JOIN_WAKER) == JOIN | JOIN_WAKER,
        }
    }

    /// Takes a task that is in no queue of the runtime and holds no frames, to drop its future.
    /// Owning core, during the shutdown. (Edge 9)
    pub(crate) fn shut_down(&self) -> ShutDown {
        // With RUNNING set, no wake pushes the task any more. Relaxed: this core was the last to
        // touch the future and the links, and a push that is still coming synchronizes through the
        // inbox.
        let before = self.0.fetch_or(RUNNING, Ordering::Relaxed);
        debug_assert_eq!(before & (RUNNING | DONE), 0);
        ShutDown { push_is_coming: before & READY != 0 }
    }

    /// Notes that the output is stored although the poll panics. Owning core.
    pub(crate) fn set_stored(&self) {
        self.0.fetch_or(STORED, Ordering::Relaxed);
    }

    /// Returns whether the output is stored although the poll panicked. Owning core.
    pub(crate) fn is_stored(&self) -> bool {
        self.0.load(Ordering::Relaxed) & STORED != 0
    }

    /// Returns whether the task is DONE. If so, the output is visible to the caller.
    pub(crate) fn is_done(&self) -> bool {
        // Acquire pairs with the release in `complete`.
        self.0.load(Ordering::Acquire) & DONE != 0
    }

    /// Returns whether an abort was asked for. Owning core. Only a hint: `start` and `pending`
    /// decide.
    #[inline]
    pub(crate) fn is_aborted(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ABORT != 0
    }

    /// Returns whether there is an output, after [`is_done`](Self::is_done) has said `true`.
    pub(crate) fn has_output(&self) -> bool {
        self.0.load(Ordering::Relaxed) & ABANDONED == 0
    }

    /// Gives the waker's cell, which the join handle has filled, to the code that sets DONE.
    /// Returns `false` if the task is done: then the cell stays the handle's.
    pub(crate) fn set_join_waker(&self) -> bool {
        self.unless_done(|word| word | JOIN_WAKER)
    }

    /// Takes the waker's cell back for the join handle. Returns `false` if the task is done: then
    /// the cell is no longer the handle's.
    pub(crate) fn take_join_waker(&self) -> bool {
        self.unless_done(|word| word & !JOIN_WAKER)
    }

    /// Returns whether the waker's cell is given to the code that sets DONE. Join handle only.
    pub(crate) fn has_join_waker(&self) -> bool {
        self.0.load(Ordering::Relaxed) & JOIN_WAKER != 0
    }

    /// Does the same as [`detach`](Self::detach), for a handle that is dropped on the owning core,
    /// on the [fast path](crate::ready::on_fast_path), while the task is not in the middle of a
    /// poll. Does so only if the runtime and the handle have the only references. Returns whether
    /// it did.
    #[inline]
    pub(crate) fn detach_alone(&self) -> bool {
        // Code that has neither a reference nor the waker that a poll lends does not touch the
        // word, and the runtime's loop waits for the caller. So no other code writes the word
        // between the load and the store, and no read-modify-write is needed. Acquire pairs with
        // the releases by the code that had references. It must be here: the plain store ends their
        // release sequences, so a later acquire does not pair with them.
        let word = self.0.load(Ordering::Acquire);
        let is_alone = word & !STACKFUL == RUNNING | JOIN | (2 * REFERENCE);
        if is_alone {
            self.0.store((word & !JOIN) - REFERENCE, Ordering::Relaxed);
        }
        is_alone
    }

    /// Clears the join handle's flag and drops its reference, if that is all there is to do.
    /// Returns `false` if the task is done, if the waker's cell is filled, or if other code changes
    /// the word at the same time.
    #[inline]
    pub(crate) fn detach(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & (DONE | JOIN_WAKER) == 0
            && self
                .0
                // Release, as in `release`. This reference is not the last: the runtime has one
                // until DONE.
                .compare_exchange(
                    word,
                    (word & !JOIN) - REFERENCE,
                    Ordering::Release,
                    Ordering::Relaxed,
                )
                .is_ok()
    }

    /// Clears the join handle's flag, and takes the waker's cell back unless the task is done.
    /// Returns two facts: whether the task was done, in which case the handle drops the output; and
    /// whether the waker's cell was filled, in which case the handle drops the waker if the task
    /// was not done.
    pub(crate) fn drop_join(&self) -> (bool, bool) {
        // Both flags are cleared in one step. If the task is done, it would be enough to clear
        // JOIN, since the cell belongs to the code that set DONE.
        let gave_up = |word: usize| word & !(JOIN | JOIN_WAKER);
        let before = self
            .0
            // Acquire pairs with the release in `complete`: the handle reads the output. What the
            // handle does with the output is released with its reference.
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |word| Some(gave_up(word)))
            .unwrap_or_else(|word| word);
        (before & DONE != 0, before & JOIN_WAKER != 0)
    }

    /// Applies `step` to the word unless the task is DONE. Returns whether it did.
    fn unless_done(&self, step: impl Fn(usize) -> usize) -> bool {
        self.0
            // Release pairs with the acquire in `complete`, which reads the waker. Acquire on
            // failure pairs with the release in `complete`: DONE, and with it the output.
            .fetch_update(Ordering::Release, Ordering::Acquire, |word| {
                (word & DONE == 0).then(|| step(word))
            })
            .is_ok()
    }

    /// Adds one reference. Any context.
    #[inline]
    pub(crate) fn retain(&self) {
        // Relaxed: code that clones a reference has one already, so the clone publishes nothing.
        let before = self.0.fetch_add(REFERENCE, Ordering::Relaxed);
        if before > REFERENCES_MAX {
            // A count that wraps around would free a task that is in use.
            fatal("trapline: a task's reference count overflowed: wakers are being forgotten");
        }
    }

    /// Does the same as [`release`](Self::release), where the reference is likely to be the last.
    #[inline]
    #[must_use]
    pub(crate) fn release_last(&self) -> bool {
        // If the caller's reference is the only one, no other code can make another. Acquire: as in
        // `release`.
        self.0.load(Ordering::Acquire) & !(REFERENCE - 1) == REFERENCE || self.release()
    }

    /// Drops one reference. Any context. Returns `true` if it was the last: then the task is the
    /// caller's, to free or to hand over to its runtime.
    #[inline]
    #[must_use]
    pub(crate) fn release(&self) -> bool {
        // Release: what was done through this reference happens before the task is freed.
        let before = self.0.fetch_sub(REFERENCE, Ordering::Release);
        if before & !(REFERENCE - 1) == REFERENCE {
            // Acquire: the code that drops the last reference sees what was done through all
            // others. It is a load and not a fence, since ThreadSanitizer does not support fences.
            self.0.load(Ordering::Acquire);
            return true;
        }
        false
    }
}

/// The context from which code calls a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The [fast path](crate::ready::on_fast_path).
    Local,
    /// Any other context.
    Remote,
}
