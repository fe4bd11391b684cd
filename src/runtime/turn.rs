//! The loop of a runtime: it chooses the task that gets the core next, and polls that task.
//!
//! # The order
//!
//! 1. Between two polls the loop admits the tasks that have become ready: it wakes the timers that
//!    are due, if the alarm has fired, and empties the inbox. Then it queues the task that was
//!    polled, if that task yielded or was woken during its poll.
//! 2. Plain tasks are polled first, in the order in which they became ready.
//! 3. Stackful tasks that were woken come next. Each gets a slice, in the order of the wakes. A
//!    task that is preempted because something else was woken keeps its place in the queue and the
//!    rest of its slice.
//! 4. Stackful tasks that have used up a slice, or have yielded, come last, in round-robin order
//!    (the queue `turns`).
//! 5. No group starves. While plain tasks keep the core, a stackful task gets the core after each
//!    [`MAX_WAIT`], for one [`STARVED_SHARE`]th of the time that it has waited. While stackful
//!    tasks are woken all the time, a task of the queue `turns` gets the core after it has waited
//!    for the length of a slice.
//! 6. A task that runs on a stack is preempted as soon as a timer, an interrupt or another core
//!    wakes another task, unless its last stretch was shorter than
//!    [`MIN_STRETCH`](crate::time::alarm::MIN_STRETCH). In that case it first runs for
//!    `MIN_STRETCH`. (A *stretch* is the time from the moment when a task's code gets the core on a
//!    stack until it leaves the core or its poll ends.)
//!
//! These limits are times, and the alarm fires when they are over. To see how long stackful tasks
//! have waited, the loop reads the clock only after [`CHECK_STACKFUL_AFTER`] polls.
//!
//! The loop runs in two places ([home, and on a stack](mod@crate::stackful)). *Home* is the stack
//! of the code that entered the runtime. The loop at home does all of the above. The loop on a
//! stack ([`next_on_stack`](Runtime::next_on_stack)) takes from the same queues, and does only the
//! steps that are frequent and call no user code. Where it cannot be sure to choose the task that
//! the loop at home would choose, the core goes home.
//!
//! Rules with a number are those of [`crate::task`].

use core::ptr::NonNull;
use core::task::Poll;

use crate::platform::{PanicPayload, bound};
use crate::runtime::core::{Runtime, count};
use crate::runtime::finish::{Output, Place};
use crate::stackful::on_stack::stack_main;
use crate::stackful::stacks::Reason;
use crate::stackful::switch::{Stack, overflowed};
use crate::sync::atomic::Ordering;
use crate::task::error::JoinError;
use crate::task::header::{Header, Link};
use crate::task::join::joiner_is_task;
use crate::task::state::{Pending, Start};
use crate::task::waker;
use crate::time::alarm::NEVER;

/// How many nanoseconds stackful tasks wait for plain tasks before they are granted the core. They
/// wait longer if [`CHECK_STACKFUL_AFTER`] polls take longer.
const MAX_WAIT: u64 = 250_000;

/// The time that starved tasks have waited, divided by this, is the time that they are granted: one
/// nanosecond for eleven. So if plain tasks are ready all the time, stackful tasks get a twelfth of
/// the core.
const STARVED_SHARE: u64 = 11;

/// After how many polls of plain tasks the loop reads the clock, to see how long stackful tasks
/// have waited.
const CHECK_STACKFUL_AFTER: u64 = 8;

/// After how many further polls the loop reads the clock again, if stackful tasks had not waited
/// long enough at the check before. The loop does so even if the alarm that was set for the end of
/// [`MAX_WAIT`] has not fired.
const CHECK_STACKFUL_AGAIN_AFTER: u64 = 1024;

/// After how many polls of woken stackful tasks the loop reads the clock, to see how long the tasks
/// in `turns` have waited. Each further check comes after as many polls as there were since the
/// first check, but after at most [`CHECK_TURNS_AGAIN_AFTER`].
const CHECK_TURNS_AFTER: u64 = 2;

/// After how many polls, at most, the loop reads the clock again for the tasks in `turns`.
const CHECK_TURNS_AGAIN_AFTER: u64 = 8;

/// The task that gets the core next, already taken from its queue.
enum Next {
    /// The task is plain and RUNNING. The loop polls it at home.
    Plain(NonNull<Header>),
    /// The task that was taken from the queue is not to be polled any more. `fail` or `reap` has
    /// finished it.
    Retired,
    /// `start` has not been called for the task yet. The task is to be polled on this stack, or to
    /// continue there inside `block_on`.
    Stackful(NonNull<Header>, NonNull<Stack>),
    /// The task is RUNNING and was preempted. It continues on this stack.
    Preempted(NonNull<Header>, NonNull<Stack>),
    /// No task is ready: the core parks.
    Idle,
}

/// A stackful task that gets the core, and the stack for it.
#[derive(Clone, Copy)]
struct Chosen {
    task: NonNull<Header>,
    stack: NonNull<Stack>,
    /// The task was preempted, and continues on `stack`.
    was_preempted: bool,
}

impl From<Chosen> for Next {
    #[inline(always)]
    fn from(Chosen { task, stack, was_preempted }: Chosen) -> Self {
        if was_preempted { Self::Preempted(task, stack) } else { Self::Stackful(task, stack) }
    }
}

// Rare steps are in functions of their own that are not inlined. So the frequent path of a turn is
// straight code that keeps its values in registers.
impl Runtime {
    /// Runs the loop until the root task is done. Returns the payload of a caught panic, if the
    /// panic came from the root task or from outside of any task.
    pub(super) fn run(&'static self) -> Result<(), PanicPayload> {
        loop {
            let caught = bound::catch_unwind(&mut || {
                // The entry into the runtime has marked the timers as due, and other cores may have
                // pushed tasks. After a panic, this replaces the look that the interrupted turn did
                // not get to.
                self.look_out_of_line();
                while self.turn() {}
            });
            let Err(payload) = caught else {
                // The loop has ended because the root is done, or because the loop on a stack
                // panicked.
                return self.local.stacks.take_payload().map_or(Ok(()), Err);
            };
            // User code that panicked may have left interrupts masked, and may have requested
            // another poll (`yield_current`). Both are undone before more user code is called.
            self.unmask();
            let task = self.current_task();
            self.set_current(None);
            self.take_yield();
            match task {
                Some(task) if task == NonNull::from(&self.root) => {
                    if self.root.state.pending() == Pending::Ready {
                        // SAFETY: the root is READY. The wake that set READY while the root was
                        // RUNNING did not push it, so the root is in no queue. The root lives in
                        // the runtime.
                        unsafe { self.local.ready.push_back(task) };
                    }
                    return Err(payload);
                }
                Some(task) => self.panicked(task, payload),
                None => return Err(payload),
            }
        }
    }

    /// Admits what has become ready: fires the timers if the alarm has fired, and empties the
    /// inbox.
    ///
    /// After a poll it is called before the polled task is queued: a task that was woken during the
    /// poll became ready earlier than the polled task, so it goes first.
    #[inline(always)]
    fn look(&'static self) {
        self.look_and(Self::fire_out_of_line);
    }

    /// Does the same as [`look`](Self::look) after an alarm, when timers are likely to be due:
    /// `fire` is inlined.
    #[inline(always)]
    fn look_at_timers(&'static self) {
        self.look_and(Self::fire);
    }

    /// Does the work of [`look`](Self::look) and [`look_at_timers`](Self::look_at_timers), which
    /// differ in the function `fire`.
    #[inline(always)]
    fn look_and(&'static self, fire: fn(&'static Self)) {
        if self.preempt_count.need_resched() {
            // This clears need_resched and the pending preemption, before the timers and the inbox
            // are looked at. If an interrupt comes before the clearing, its push is seen below. If
            // it comes later, it sets the flags again: either its push is seen below too, or the
            // flags make the next stackful task leave the core at once.
            self.preempt_count.clear_need_resched();
            if self.alarm.is_due() {
                fire(self);
            }
            // The alarm is set after `fire`: the timers that have fired are no longer in the list,
            // and a plain task may have added more (`Sleep` sets need_resched for that).
            self.alarm.set_by(self.timers.next().min(self.local.stacks.aging.deadline()));
        }
        // The inbox comes last: while `fire` wakes tasks, interrupts and other cores may push more.
        if !self.inbox.is_empty() {
            self.inbox.take(&self.local.ready, false);
        }
    }

    /// Wakes the timers that are due. The alarm has fired.
    #[inline(always)]
    fn fire(&'static self) {
        let now = self.alarm.take_due();
        // The alarm that has fired counts as not set, so that the caller sets it for the next
        // timer.
        self.alarm.forget();
        let aging = &self.local.stacks.aging;
        // The alarm may have fired because stackful tasks have waited for too long. The next
        // `choose` checks that.
        if now >= aging.deadline() {
            aging.check_at(0);
            aging.set_deadline(NEVER);
        }
        // SAFETY: this is the loop.
        while let Some(waker) = unsafe { self.timers.pop_due(now) } {
            match waker {
                // SAFETY: as above.
                Some(waker) if waker::task_of(&waker).is_some() => unsafe {
                    waker::wake_in_loop(self, waker);
                },
                Some(foreign) => self.catch_panic(|| foreign.wake()),
                None => {}
            }
        }
    }

    /// Does the same as [`fire`](Self::fire), out of line: after most polls no timer is due.
    #[inline(never)]
    fn fire_out_of_line(&'static self) {
        self.fire();
    }

    /// Does the same as [`look`](Self::look), for callers for which there is mostly nothing to
    /// admit.
    #[inline(always)]
    fn look_if_needed(&'static self) {
        if self.preempt_count.need_resched() || !self.inbox.is_empty() {
            self.look_out_of_line();
        }
    }

    /// Does the same as [`look`](Self::look), out of line.
    #[cold]
    #[inline(never)]
    fn look_out_of_line(&'static self) {
        self.look();
    }

    /// Makes one turn of the loop: chooses a task, and polls it or resumes it; parks the core if no
    /// task is ready. Returns `false` if the loop is to end.
    #[inline(always)]
    fn turn(&'static self) -> bool {
        let (task, stack) = match self.choose() {
            Next::Plain(task) => return self.poll(task),
            Next::Retired => {
                // To finish the task, the loop may have called user code (drops, wakers), which may
                // have added timers or woken tasks. So the loop looks again before it chooses.
                self.look_out_of_line();
                return true;
            }
            Next::Stackful(task, stack) => {
                // `start` comes before the slice begins, since it may find that the task is over.
                if !self.start(task, Some(stack)) {
                    self.look_out_of_line();
                    return true;
                }
                self.grant_slice(stack);
                // User code that ran since the last look may have added a timer. If the slice
                // begins under an alarm that is already set, `grant_slice` does not set the alarm
                // for that timer.
                self.alarm.set_by(self.timers.next());
                (task, stack)
            }
            Next::Preempted(task, stack) => {
                // SAFETY: a preempted task is RUNNING, hence alive.
                if unsafe { task.as_ref() }.state.is_aborted() {
                    count(&self.counters.aborted_in_poll);
                }
                // SAFETY: the stack of a task that holds frames is alive.
                if unsafe { stack.as_ref() }.yielded.get() {
                    // The task had called `yield_current` before it was preempted. `preempted` has
                    // kept that request in the stack, since the core's flag is for the running
                    // task.
                    self.yield_current();
                }
                self.grant_rest(stack);
                (task, stack)
            }
            Next::Idle => {
                // The event that ended the wait (an alarm, a push by an interrupt or by another
                // core) is handled before the next choice.
                self.park();
                self.look_out_of_line();
                return true;
            }
        };
        self.enter_stack(task, stack)
    }

    /// Chooses the next task and takes it from its queue, in the order that the module's
    /// documentation gives.
    #[inline(always)]
    fn choose(&'static self) -> Next {
        let stacks = &self.local.stacks;
        let polls = self.polls();
        // The check for starvation comes before the FIFO: otherwise plain tasks would always go
        // first. It costs one comparison as long as no check is due.
        if stacks.aging.is_check_due(polls)
            && let Some(chosen) = self.choose_starved()
        {
            return chosen.into();
        }
        while let Some(task) = self.local.ready.pop() {
            // SAFETY: a task in the FIFO is alive: either it is not DONE, so the runtime has a
            // reference to it, or it is DONE and stays alive until this loop reaps it.
            let header = unsafe { task.as_ref() };
            if header.state.is_plain_and_started() {
                return Next::Plain(task);
            }
            // A plain task that gets here was woken from another context (it is READY and not
            // RUNNING), was aborted, or is over.
            if !header.state.is_stackful() {
                return if self.start(task, None) { Next::Plain(task) } else { Next::Retired };
            }
            // If this stackful task is the only task that is ready, it would be chosen at once from
            // the queue of stackful tasks. So it skips that queue.
            if self.local.ready.is_empty()
                && stacks.are_idle()
                && let Some(stack) = header.stack.get().or_else(|| stacks.pool.take())
            {
                stacks.in_turn.set(false);
                return Next::Stackful(task, stack);
            }
            self.queue_stackful(task);
        }
        self.choose_stackful(polls).map_or(Next::Idle, Next::from)
    }

    /// Appends a stackful task to the queue of woken stackful tasks. The caller has taken the task
    /// from the FIFO. If the task is DONE, finishes with it instead.
    #[inline(never)]
    fn queue_stackful(&'static self, task: NonNull<Header>) {
        // SAFETY: the task comes from the FIFO, and is alive for the reason given in `choose`.
        if unsafe { task.as_ref() }.state.is_done() {
            // For a task that is DONE, only a reference is left to be dropped, or memory to be
            // freed. That needs no stack, so the task must not wait for one.
            let _never_run = self.start(task, None);
            return;
        }
        let stacks = &self.local.stacks;
        if stacks.are_idle() {
            // The wait of the stackful tasks begins now. The clock is read later, if at all.
            stacks.aging.restart();
            stacks.aging.check_at(self.polls() + CHECK_STACKFUL_AFTER);
        }
        // SAFETY: the task is alive, for the reason given in `choose`, and it is in no queue now.
        unsafe { stacks.ready.push_back(task) };
    }

    /// Returns a stackful task, with a grant, if plain tasks have kept the core for too long.
    #[cold]
    #[inline(never)]
    fn choose_starved(&'static self) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        let (aging, polls) = (&stacks.aging, self.polls());
        // This check takes the place of the one that the alarm causes at the deadline, so the
        // deadline is cleared. It is set again below if the tasks have not waited long enough.
        aging.set_deadline(NEVER);
        if stacks.are_idle() {
            aging.check_at(u64::MAX);
            return None;
        }
        aging.check_at(polls + CHECK_STACKFUL_AGAIN_AFTER);
        // No plain task competes: `choose` gets to the stackful tasks by itself, with whole slices.
        if self.local.ready.is_empty() {
            return None;
        }
        let now = bound::now();
        // The wait counts from the first reading of the clock for it (`since`), or from when a
        // stack was last known to have the core (`seen`), whichever is later. No stackful task has
        // had the core since that time.
        let since = aging.since(now).max(self.alarm.seen());
        let until = since.saturating_add(MAX_WAIT);
        if now < until {
            aging.set_deadline(until);
            self.alarm.set_by(until);
            return None;
        }
        // The grant is a fixed fraction of the time waited, so the share of the core does not
        // depend on how often the check is made.
        let next = self.choose_stackful(polls)?;
        Some(self.grant_only(next, (now - since) / STARVED_SHARE))
    }

    /// Returns whether the loop is to check now how long the tasks in `turns` have waited.
    #[inline(always)]
    fn may_starve_turns(&'static self, polls: u64) -> bool {
        let stacks = &self.local.stacks;
        if !stacks.turn_aging.is_check_due(polls) {
            return false;
        }
        if stacks.turns.is_empty() {
            stacks.turn_aging.check_at(polls + CHECK_TURNS_AFTER);
            return false;
        }
        true
    }

    /// Returns a task of the queue `turns` if woken stackful tasks have kept the core for too long.
    #[cold]
    #[inline(never)]
    fn choose_starved_turn(&'static self) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        let (now, polls) = (bound::now(), self.polls());
        let (since, polls) = stacks.turn_aging.keep_waiting(now, polls, CHECK_TURNS_AGAIN_AFTER);
        let waited = now.saturating_sub(since);
        if waited < self.slice {
            return None;
        }
        let next = self.choose_turn(self.polls())?;
        // If the woken tasks use much of a slice each, the chosen task gets a whole slice, as it
        // does when only `turns` has tasks. If the woken tasks leave the core soon, the chosen task
        // gets only a small grant, so that the woken tasks wait no longer than that grant.
        let are_long = waited / polls >= self.slice / 8;
        Some(if are_long { next } else { self.grant_only(next, waited / STARVED_SHARE) })
    }

    /// Limits the next stretch of the chosen task to `grant` nanoseconds. Returns `chosen`.
    fn grant_only(&'static self, chosen: Chosen, grant: u64) -> Chosen {
        if chosen.was_preempted {
            // SAFETY: the stack of a task that holds frames is alive.
            unsafe { chosen.stack.as_ref() }.grant(grant);
        } else {
            self.alarm.grant(grant);
        }
        chosen
    }

    /// Returns the first stackful task that has a stack or can be given one.
    #[inline(always)]
    fn choose_stackful(&'static self, polls: u64) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        // Tasks that wait for a stack go before the tasks of the other queues, since the turn of
        // the waiting tasks came earlier.
        if stacks.are_awaited()
            && let Some(next) = self.choose_waiting()
        {
            return Some(next);
        }
        if !stacks.ready.is_empty() {
            if self.may_starve_turns(polls)
                && let Some(next) = self.choose_starved_turn()
            {
                return Some(next);
            }
            while let Some(task) = stacks.ready.pop() {
                if let Some(next) = self.with_stack(task) {
                    stacks.in_turn.set(false);
                    return Some(next);
                }
            }
        }
        // `turns` comes after the woken tasks, except for the check for starvation above.
        let next = self.choose_turn(polls);
        if next.is_none() && stacks.are_awaited() {
            self.report_stall();
        }
        next
    }

    /// Returns the first task of the queue `turns` that has a stack or can be given one.
    #[inline(always)]
    fn choose_turn(&'static self, polls: u64) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        while let Some(task) = stacks.turns.pop() {
            if let Some(next) = self.with_stack(task) {
                stacks.in_turn.set(true);
                stacks.turn_aging.check_at(polls + CHECK_TURNS_AFTER);
                return Some(next);
            }
        }
        None
    }

    /// Returns `task`, a stackful task that was taken from a queue, with the stack that holds its
    /// frames, or with a free stack. `None`: there is no stack. In that case the task has been
    /// queued to wait for one, or (if it was aborted or is DONE) has been finished.
    #[inline(always)]
    fn with_stack(&'static self, task: NonNull<Header>) -> Option<Chosen> {
        // SAFETY: a task that was queued is alive, for the reason given in `choose`.
        let held = unsafe { task.as_ref() }.stack.get();
        if let Some(stack) = held {
            // SAFETY: the stack of a task that holds frames is alive.
            let was_preempted = unsafe { stack.as_ref() }.take_preempted();
            return Some(Chosen { task, stack, was_preempted });
        }
        let stack = self.take_stack();
        if stack.is_none() {
            self.defer_start(task);
        }
        stack.map(|stack| Chosen { task, stack, was_preempted: false })
    }

    /// Returns the first of the tasks that wait for a stack, if there is a stack now.
    #[cold]
    #[inline(never)]
    fn choose_waiting(&'static self) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        // Aborted tasks leave the waiting queue first, so that a free stack goes to a task that
        // needs it. Acquire pairs with the release in `Runtime::aborted_in_queue`, so the loop sees
        // the abort.
        if self.aborted_in_queue.swap(false, Ordering::Acquire) {
            self.stop_waiting();
        }
        let Some(stack) = stacks.pool.take().or_else(|| self.grow()) else {
            if stacks.are_awaited() {
                self.report_stall();
            }
            return None;
        };
        let Some(task) = stacks.pop_waiting() else {
            self.give_back(stack);
            return None;
        };
        stacks.in_turn.set(false);
        Some(Chosen { task, stack, was_preempted: false })
    }

    /// Queues a stackful task to wait for a stack: its turn has come, and there is no stack for it.
    /// If the task was aborted or is DONE, finishes it instead.
    #[cold]
    #[inline(never)]
    fn defer_start(&'static self, task: NonNull<Header>) {
        // SAFETY: a task that was queued is alive, for the reason given in `choose`.
        let state = unsafe { &task.as_ref().state };
        if state.is_done() || state.is_aborted() {
            // The loop drops the future of an aborted task here, at home, and not on a stack: it
            // may be long before there is a stack for that.
            let _never_run = self.start(task, None);
            return;
        }
        // SAFETY: the task is not DONE, hence alive, and it is in no queue now.
        unsafe { self.local.stacks.push_waiting(task) };
    }

    /// Makes a task that was in a queue RUNNING. `false`: the task is not to be polled any more,
    /// and `fail` or `reap` has finished it. `stack` is the one that holds frames of the task, or
    /// one that was taken from the pool for it.
    #[inline(always)]
    fn start(&'static self, task: NonNull<Header>, stack: Option<NonNull<Stack>>) -> bool {
        // SAFETY: a task that was queued is alive, for the reason given in `choose`.
        let start = unsafe { task.as_ref() }.state.start();
        start == Start::Run { aborted: false } || self.start_otherwise(task, stack, start)
    }

    /// Does the part of [`start`](Self::start) for a task that was aborted or is over. Returns what
    /// `start` returns.
    #[cold]
    #[inline(never)]
    fn start_otherwise(
        &'static self,
        task: NonNull<Header>,
        stack: Option<NonNull<Stack>>,
        start: Start,
    ) -> bool {
        // SAFETY: the task is alive, for the reason given in `start`.
        let holds_frames = unsafe { task.as_ref() }.stack.get().is_some();
        match start {
            // Aborted, in the middle of a poll: frames cannot be dropped, so the poll continues to
            // its end.
            Start::Run { .. } if holds_frames => {
                count(&self.counters.aborted_in_poll);
                return true;
            }
            // Aborted, between two polls: `turn_on` drops the future on that stack, where the drop
            // may block and be preempted.
            Start::Run { .. } if stack.is_some() => return true,
            // Aborted, between two polls, without a stack: the future is dropped here.
            Start::Run { .. } => self.fail(task, JoinError::Aborted, true),
            // The task is DONE. A stack that holds frames of it stays with it; one from the pool
            // goes back.
            other => {
                if let Some(stack) = stack.filter(|_| !holds_frames) {
                    self.give_back(stack);
                }
                self.reap(task, other);
            }
        }
        false
    }

    /// Polls a plain task that is RUNNING. Returns `false` if the loop is to end.
    #[inline(always)]
    fn poll(&'static self, task: NonNull<Header>) -> bool {
        count(&self.counters.polls);
        self.set_current(Some(task));
        // SAFETY: the task is RUNNING and not DONE, and this is the owning core.
        let poll = unsafe { Header::poll(task) };
        // The check comes while the task is still the current one, so that a panic of the check
        // counts as a panic of the task.
        self.check_guards(1, task, poll);
        // The task is not current any more when `look` calls user code (the wakers of timers).
        self.set_current(None);
        self.look();
        match poll {
            Poll::Pending => {
                self.wait(task, Place::Loop);
                true
            }
            Poll::Ready(()) if task == NonNull::from(&self.root) => {
                // `complete` is not called for the root task: another `run_until` may use it again.
                self.wait(task, Place::Loop);
                false
            }
            Poll::Ready(()) => {
                self.complete(task, Output::Value, true);
                true
            }
        }
    }

    /// Prepares the core for a task's code on a stack: announces the stretch to other cores, counts
    /// it, and makes `task` the current task. The caller is the loop, at home or on a stack.
    #[inline(always)]
    fn begin_stretch(&'static self, task: NonNull<Header>) {
        while !self.inbox.announce_stackful() {
            // Another task was pushed after this turn's look. The push may not have interrupted
            // this core, and the pushed task may be urgent. So a preemption is made pending, and
            // `task` leaves the core as soon as preemption is enabled.
            self.inbox.take(&self.local.ready, false);
            self.preempt_count.set_pending();
        }
        // A stackful task has the core now, so the count of polls for which stackful tasks wait
        // begins again.
        self.local.stacks.aging.check_at(count(&self.counters.polls) + CHECK_STACKFUL_AFTER);
        self.set_current(Some(task));
    }

    /// Gives the core to a task that is RUNNING, on its stack, until the core comes home, and then
    /// does what the reason for coming home demands. Other stackful tasks may have been polled in
    /// between, so only `left` says which task and stack the core comes from. Returns `false` if
    /// the loop is to end.
    #[inline(always)]
    fn enter_stack(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> bool {
        self.begin_stretch(task);
        // Each arm first gives the stack back to the pool, or notes that the task holds it, since
        // the calls after that may run user code or take a stack.
        let left = self.leave_home(task, stack);
        match left.reason {
            // `next_on_stack` has queued the task of the last poll.
            Reason::Idle => self.give_back(left.stack),
            Reason::Suspended => {
                let task = left.task();
                self.hold(task, left.stack);
                // As after a poll at home, tasks that have become ready meanwhile are queued before
                // the task itself.
                self.look_if_needed();
                self.wait(task, Place::Stack);
            }
            reason @ (Reason::Interrupted | Reason::Preempted) => {
                if reason == Reason::Interrupted {
                    // SAFETY: this is the loop, and a handler has just left the interrupted stack
                    // for it.
                    unsafe { bound::enable_interrupts() };
                }
                // The order of `preempted` and `look_at_timers` does not matter: the preempted task
                // goes to a queue of stackful tasks, and the tasks that `look_at_timers` admits go
                // to the FIFO. Mostly an alarm has preempted the task, so timers are likely to be
                // due.
                self.hold(left.task(), left.stack);
                self.preempted(left.task(), left.stack);
                self.look_at_timers();
            }
            Reason::Pending => {
                // The loop on the stack has left the steps after this poll to home.
                self.give_back(left.stack);
                self.look_if_needed();
                self.wait(left.task(), Place::Stack);
            }
            reason => return self.came_home(left.task, left.stack, reason),
        }
        true
    }

    /// Does the rare part of [`enter_stack`](Self::enter_stack): a task is over, or the loop on a
    /// stack panicked. Returns `false` if the loop is to end.
    #[inline(never)]
    fn came_home(&'static self, task: Link, stack: NonNull<Stack>, reason: Reason) -> bool {
        match (reason, task) {
            (Reason::Overflowed, Some(task)) => overflowed(task),
            (Reason::Ended, Some(task)) => self.ended(task, stack),
            // The poll is over, so no frame of the task is left, and the stack can serve the next
            // task.
            (_, Some(task)) => {
                self.give_back(stack);
                self.poll_was_last(task, reason);
            }
            // The loop on a stack panicked, outside of any task. `run` takes the payload.
            (_, None) => {
                self.give_back(stack);
                return false;
            }
        }
        self.look_if_needed();
        true
    }

    /// Gives an idle stack to the pool. At home.
    #[inline(always)]
    fn give_back(&self, stack: NonNull<Stack>) {
        // SAFETY: the stack is of this runtime's pool. The core has left it, or has not entered it
        // since it was taken. No poll is in progress on it, so it holds no frames of a task.
        unsafe { self.local.stacks.pool.give(stack, self.config.max_idle_stacks) };
    }

    /// Does what the loop has to do for `task`, whose poll on `stack` has ended, and prepares the
    /// next poll on that stack. Returns the next task. `Err`: the core is to go home, for this
    /// reason.
    ///
    /// The caller is the loop on `stack`, with preemption disabled. All steps that may call user
    /// code are left to home, which has the stack space for user code: timers that are due, a
    /// joiner that is not a task, a plain task.
    #[inline(always)]
    pub(crate) fn next_on_stack(
        &'static self,
        stack: NonNull<Stack>,
        task: NonNull<Header>,
        reason: Reason,
    ) -> Result<NonNull<Header>, Reason> {
        // This check comes before any change, since home does all that is to be done for `task` if
        // this returns `Err`. If need_resched is set, the alarm may have fired, and only home fires
        // timers.
        if self.preempt_count.need_resched()
            // SAFETY: rule 7: this core has set DONE, and the step that set it has returned that
            // the join waker is there.
            || reason == Reason::FinishedForJoiner && !unsafe { joiner_is_task(task.as_ref()) }
        {
            return Err(reason);
        }
        // No task is current from here on: the steps below may free the task, and a panic of the
        // loop is not a panic of the task.
        self.set_current(None);
        // As in a turn at home, tasks that were pushed during the poll go before the task itself.
        if !self.inbox.is_empty() {
            self.inbox.take(&self.local.ready, false);
        }
        let next = if reason == Reason::Pending {
            self.link(task);
            if self.take_yield() {
                self.choose_after_yield(task)
            } else {
                self.wait_for_wake(task);
                self.choose_on_stack()
            }
        } else {
            self.poll_was_last(task, reason);
            self.choose_on_stack()
        };
        // A slice and a stretch begin as they do at home, but without a switch of stacks.
        let next = next.ok_or(Reason::Idle)?;
        self.grant_slice(stack);
        self.begin_stretch(next);
        Ok(next)
    }

    /// Queues `task`, which has yielded, as the last of the queue `turns`, and returns what
    /// [`choose_on_stack`](Self::choose_on_stack) returns.
    #[inline(always)]
    fn choose_after_yield(&'static self, task: NonNull<Header>) -> Option<NonNull<Header>> {
        let stacks = &self.local.stacks;
        let polls = self.polls();
        // These are the tests that `choose_on_stack` makes before it gets to `turns`. If only the
        // queue `turns` has tasks, one operation appends `task` and takes the first.
        let are_alone = self.local.ready.is_empty()
            && stacks.ready.is_empty()
            && !stacks.are_awaited()
            && !stacks.aging.is_check_due(polls);
        if !are_alone {
            // SAFETY: the task is RUNNING, so no other code pushes it; its poll is over, so it is
            // in no queue.
            unsafe { stacks.turns.push_back(task) };
            return self.choose_on_stack();
        }
        // SAFETY: as above.
        let next = unsafe { stacks.turns.rotate(task) };
        if !self.start_on_stack(next) {
            // SAFETY: the task was just popped, so it is in no queue, and it is alive, as all
            // queued tasks are.
            unsafe { stacks.turns.push_front(next) };
            return None;
        }
        stacks.in_turn.set(true);
        stacks.turn_aging.check_at(polls + CHECK_TURNS_AFTER);
        Some(next)
    }

    /// Makes a queued task RUNNING if it may be polled on any stack, which is so if no stack holds
    /// frames of it, it is not DONE and it was not aborted. `false`: nothing was changed.
    #[inline(always)]
    fn start_on_stack(&'static self, task: NonNull<Header>) -> bool {
        // SAFETY: the task is queued, and is alive for the reason given in `choose`.
        let header = unsafe { task.as_ref() };
        header.stack.get().is_none() && header.state.start_unless_over()
    }

    /// Returns the task that [`choose`](Self::choose) would choose next, taken from its queue and
    /// RUNNING, if it is to be polled on a stack and no stack holds frames of it. `None`: home
    /// chooses.
    #[inline(always)]
    fn choose_on_stack(&'static self) -> Option<NonNull<Header>> {
        let stacks = &self.local.stacks;
        let polls = self.polls();
        // Home makes the checks for starvation, and gives stacks to the tasks that wait for one.
        if stacks.aging.is_check_due(polls) || stacks.are_awaited() {
            return None;
        }
        loop {
            let (queue, in_turn) = if let Some(task) = self.local.ready.first() {
                // SAFETY: the task is in the FIFO, and is alive for the reason given in `choose`.
                let header = unsafe { task.as_ref() };
                if !header.state.is_stackful() || header.state.is_done() {
                    return None;
                }
                // As in `choose`: if this is the only task that is ready, it is taken from the FIFO
                // directly.
                let is_alone = self.local.ready.is_last(task) && stacks.are_idle();
                if !is_alone {
                    self.local.ready.pop();
                    self.queue_stackful(task);
                    continue;
                }
                (&self.local.ready, false)
            } else if !stacks.ready.is_empty() {
                if self.may_starve_turns(polls) {
                    return None;
                }
                (&stacks.ready, false)
            } else {
                (&stacks.turns, true)
            };
            // The task is started before it is popped: if home must take it, it is still the first
            // of its queue.
            let task = queue.first()?;
            if !self.start_on_stack(task) {
                return None;
            }
            queue.pop();
            stacks.in_turn.set(in_turn);
            if in_turn {
                stacks.turn_aging.check_at(polls + CHECK_TURNS_AFTER);
            }
            return Some(task);
        }
    }

    /// Moves aborted tasks from the queue of those that wait for a stack to the queue of woken
    /// tasks. They need no stack: the loop can drop their futures without one.
    fn stop_waiting(&'static self) {
        let stacks = &self.local.stacks;
        stacks.retain_waiting(|task| {
            // SAFETY: a task that waits for a stack is not DONE, hence alive. `retain_waiting` has
            // popped it, so it is in no queue now.
            unsafe {
                let aborted = task.as_ref().state.is_aborted();
                if aborted {
                    stacks.ready.push_back(task);
                }
                !aborted
            }
        });
    }

    /// Returns an idle stack, or a new one if the limit and the memory allow it.
    #[inline(always)]
    fn take_stack(&'static self) -> Option<NonNull<Stack>> {
        self.local.stacks.pool.take().or_else(|| self.new_stack())
    }

    /// Returns a new stack, unless tasks wait for one.
    #[cold]
    #[inline(never)]
    fn new_stack(&'static self) -> Option<NonNull<Stack>> {
        // If tasks wait, the loop has just tried to make a stack for one of them, and could not (in
        // `choose_waiting`, or here). So there is no stack for another task either.
        if self.local.stacks.are_awaited() { None } else { self.grow() }
    }

    /// Returns a new stack. `None`: all stacks that
    /// [`Config::max_stacks`](crate::Config::max_stacks) allows exist, or there is no memory.
    #[cold]
    #[inline(never)]
    fn grow(&'static self) -> Option<NonNull<Stack>> {
        let size = self.config.rounded_stack_size()?;
        self.local.stacks.pool.grow(size, self.config.max_stacks, stack_main)
    }

    /// Parks the core until an interrupt comes or another core wakes it, unless a task has become
    /// ready or the alarm has fired.
    #[inline(never)]
    fn park(&'static self) {
        if self.local.stacks.are_awaited() {
            // Memory for another stack may become free while the core is parked, and `on_stall` is
            // to be called again after a while. Neither event causes an interrupt, so the alarm is
            // set to end the wait.
            let next_look = self.report_stall();
            if self.config.on_stall.is_some() || self.may_have_more_stacks() {
                self.alarm.set_by(next_look);
            }
        }
        // `on_stall` may have added a timer.
        self.alarm.set_by(self.timers.next());
        let interrupts = bound::mask_interrupts();
        // From here on neither an interrupt nor another core can make a task ready unnoticed. The
        // alarm's interrupt is masked. A push to the inbox either comes before `announce_park`,
        // which then fails, or finds the inbox's tag PARKED and wakes this core. The FIFO is tested
        // because user code that ran since `choose` popped the last task (`on_stall`, the drop of
        // an aborted future) may have queued another.
        if !self.alarm.is_due() && self.local.ready.is_empty() && self.inbox.announce_park() {
            count(&self.counters.parks);
            bound::park();
            // `take` also takes back the announcement, so that a push no longer wakes the core.
            self.inbox.take(&self.local.ready, false);
        }
        // SAFETY: the value is the one that `mask_interrupts` has just returned.
        unsafe { bound::restore_interrupts(interrupts) };
    }
}
