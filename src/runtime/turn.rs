//! The loop: who gets the core next.
//!
//! # The order
//!
//! 1. Between two polls the loop admits what has become ready: timers that are due, if the alarm fired,
//!    and the inbox. The task that was polled is queued after them, if it yielded or woke itself.
//! 2. Plain tasks are polled first, in the order in which they became ready.
//! 3. Then stackful tasks that were woken get a slice each, in that order; then those that have used
//!    up a slice or have yielded, by turns. One that is preempted for something that was woken keeps its
//!    place and what is left of its slice.
//! 4. Those that go last are granted a share: while plain tasks keep the core, a stackful one gets it
//!    after each [`MAX_WAIT`], for an [`STARVED_SHARE`]th of the time that it has waited; and while stackful tasks
//!    are woken all the time, one that takes turns gets it after a slice of waiting.
//! 5. A task that has a stack is preempted as soon as something is woken, unless its last stretch was
//!    shorter than [`MIN_STRETCH`](crate::time::MIN_STRETCH): then it has that first.
//!
//! All this is counted in time, which the alarm measures: the loop itself reads the clock only after
//! stackful tasks have waited for [`CHECK_STACKFUL_AFTER`] polls.
//!
//! The loop runs in two places ([home, and on a stack](mod@crate::stackful)). Home does all of the
//! above. The loop on a stack ([`next_on_stack`](Runtime::next_on_stack)) does the part of it that
//! is frequent and calls no user code, from the same queues; where it is not sure to choose as home
//! would, it goes home.

use core::ptr::NonNull;
use core::task::{Context, Poll};

use super::finish::{Output, Place};
use super::{Runtime, count};
use crate::config::STALL_SLICES;
use crate::platform::{PanicPayload, bound};
use crate::stackful::{Reason, Stack, Stall, overflowed};
use crate::sync::atomic::Ordering;
use crate::task::join::{JoinError, joiner_is_task};
use crate::task::state::{Pending, Start};
use crate::task::{Header, Link};
use crate::time::NEVER;

/// How many nanoseconds stackful tasks wait for plain ones before they are granted the core. (They wait
/// longer if [`CHECK_STACKFUL_AFTER`] polls take longer.)
const MAX_WAIT: u64 = 250_000;

/// They are granted this part of the time that they have waited: one nanosecond after eleven. So beside
/// plain tasks that never stop, they have a twelfth of the core.
const STARVED_SHARE: u64 = 11;

/// After so many polls of plain tasks the loop looks at the clock for the stackful.
const CHECK_STACKFUL_AFTER: u64 = 8;

/// After so many further polls it looks again if they had not waited long enough, whatever became of the
/// alarm that was set for it.
const CHECK_STACKFUL_AGAIN_AFTER: u64 = 1024;

/// After so many polls of woken stackful tasks it looks at the clock for those that take turns; then each
/// time after as many polls as there were so far.
const CHECK_TURNS_AFTER: u64 = 2;

/// But after at most so many.
const CHECK_TURNS_AGAIN_AFTER: u64 = 8;

/// Who gets the core next. Taken from the queue that it was in.
enum Next {
    /// RUNNING, to be polled here.
    Plain(NonNull<Header>),
    /// It was not to be polled any more.
    Retired,
    /// To be polled or to go on on this stack.
    Stackful(NonNull<Header>, NonNull<Stack>),
    /// RUNNING, to go on, on this stack.
    Preempted(NonNull<Header>, NonNull<Stack>),
    Idle,
}

/// A stackful task that gets the core, and its stack.
#[derive(Clone, Copy)]
struct Chosen {
    task: NonNull<Header>,
    stack: NonNull<Stack>,
    /// It was preempted, and goes on there.
    was_preempted: bool,
}

impl From<Chosen> for Next {
    #[inline(always)]
    fn from(Chosen { task, stack, was_preempted }: Chosen) -> Self {
        if was_preempted { Self::Preempted(task, stack) } else { Self::Stackful(task, stack) }
    }
}

// What is rare is in functions of its own that aren't inlined, so that all the rest of a turn is one
// stretch of code which keeps what it needs in registers.
impl Runtime {
    /// Turns the loop until the root is done; a caught panic that is no task's comes back.
    pub(super) fn run(&'static self) -> Result<(), PanicPayload> {
        loop {
            let caught = bound::catch_unwind(&mut || {
                self.look_out_of_line();
                while self.turn() {}
            });
            let Err(payload) = caught else {
                return self.local.stacks.take_payload().map_or(Ok(()), Err);
            };
            self.unmask();
            let task = self.current_task();
            self.set_current(None);
            self.take_yield();
            match task {
                Some(task) if task == NonNull::from(&self.root) => {
                    if self.root.state.pending() == Pending::Ready {
                        // SAFETY: as in `run_until`.
                        unsafe { self.local.ready.push_back(task) };
                    }
                    return Err(payload);
                }
                Some(task) => self.panicked(task, payload),
                None => return Err(payload),
            }
        }
    }

    /// Admits what has become ready. To be called between a poll and the queueing of its task.
    #[inline(always)]
    fn look(&'static self) {
        self.look_and(Self::fire_out_of_line);
    }

    /// The same after an alarm: timers are likely to be due.
    #[inline(always)]
    fn look_at_timers(&'static self) {
        self.look_and(Self::fire);
    }

    #[inline(always)]
    fn look_and(&'static self, fire: fn(&'static Self)) {
        if self.preempt_count.need_resched() {
            // First: an interrupt that sets the flags after this has pushed what is seen below, or it makes
            // the next stackful task leave at once.
            self.preempt_count.clear_need_resched();
            if self.alarm.is_due() {
                fire(self);
            }
            self.alarm.set_by(self.timers.next().min(self.local.stacks.aging.deadline()));
        }
        if !self.inbox.is_empty() {
            self.inbox.take(&self.local.ready, false);
        }
    }

    /// Wakes the timers that are due, since the alarm has fired.
    #[inline(always)]
    fn fire(&'static self) {
        let now = self.alarm.take_due();
        self.alarm.forget();
        let aging = &self.local.stacks.aging;
        if now >= aging.deadline() {
            aging.check_at(0);
            aging.set_deadline(NEVER);
        }
        // SAFETY: this is the loop.
        unsafe { self.timers.fire(self, now) };
    }

    #[inline(never)]
    fn fire_out_of_line(&'static self) {
        self.fire();
    }

    /// The same as [`look`](Self::look) where little is to be seen as a rule.
    #[inline(always)]
    fn look_if_needed(&'static self) {
        if self.preempt_count.need_resched() || !self.inbox.is_empty() {
            self.look_out_of_line();
        }
    }

    #[cold]
    #[inline(never)]
    fn look_out_of_line(&'static self) {
        self.look();
    }

    /// Returns whether to go on.
    #[inline(always)]
    fn turn(&'static self) -> bool {
        let (task, stack) = match self.choose() {
            Next::Plain(task) => return self.poll(task),
            Next::Retired => {
                self.look_out_of_line();
                return true;
            }
            Next::Stackful(task, stack) => {
                if !self.start(task, Some(stack)) {
                    self.look_out_of_line();
                    return true;
                }
                self.grant_slice(stack);
                // User code has perhaps added a timer since the last look.
                self.alarm.set_by(self.timers.next());
                (task, stack)
            }
            Next::Preempted(task, stack) => {
                // SAFETY: preempted tasks are RUNNING, hence alive.
                if unsafe { task.as_ref() }.state.is_aborted() {
                    count(&self.counters.aborted_in_poll);
                }
                // SAFETY: the stack of a task that holds frames is alive.
                if unsafe { stack.as_ref() }.yielded.get() {
                    self.yield_current();
                }
                self.grant_rest(stack);
                (task, stack)
            }
            Next::Idle => {
                self.park();
                self.look_out_of_line();
                return true;
            }
        };
        self.enter_stack(task, stack)
    }

    #[inline(always)]
    fn choose(&'static self) -> Next {
        let stacks = &self.local.stacks;
        let polls = self.polls();
        if stacks.aging.is_check_due(polls)
            && let Some(chosen) = self.choose_starved()
        {
            return chosen.into();
        }
        while let Some(task) = self.local.ready.pop() {
            // SAFETY: a task in the FIFO is alive: it is not DONE, or it is ours to reap.
            let header = unsafe { task.as_ref() };
            if header.state.is_plain_and_started() {
                return Next::Plain(task);
            }
            if !header.state.is_stackful() {
                return if self.start(task, None) { Next::Plain(task) } else { Next::Retired };
            }
            // The only one there is: it would come out of its queue at once.
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

    /// A stackful task from the FIFO.
    #[inline(never)]
    fn queue_stackful(&'static self, task: NonNull<Header>) {
        // SAFETY: alive, as in `choose`.
        if unsafe { task.as_ref() }.state.is_done() {
            // It is only to be freed, and needs no stack for that.
            let _never_run = self.start(task, None);
            return;
        }
        let stacks = &self.local.stacks;
        if stacks.are_idle() {
            // The waiting begins now. When that is, is asked later, if at all.
            stacks.aging.restart();
            stacks.aging.check_at(self.polls() + CHECK_STACKFUL_AFTER);
        }
        // SAFETY: alive, as in `choose`, and in no queue now.
        unsafe { stacks.ready.push_back(task) };
    }

    /// A stackful task, if plain ones have kept the core for too long.
    #[cold]
    #[inline(never)]
    fn choose_starved(&'static self) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        let (aging, polls) = (&stacks.aging, self.polls());
        aging.set_deadline(NEVER);
        if stacks.are_idle() {
            aging.check_at(u64::MAX);
            return None;
        }
        aging.check_at(polls + CHECK_STACKFUL_AGAIN_AFTER);
        if self.local.ready.is_empty() {
            return None;
        }
        let now = bound::now();
        // None of them has had the core since.
        let since = aging.since(now).max(self.alarm.seen());
        let until = since.saturating_add(MAX_WAIT);
        if now < until {
            aging.set_deadline(until);
            self.alarm.set_by(until);
            return None;
        }
        let next = self.choose_stackful(polls)?;
        Some(self.grant_only(next, (now - since) / STARVED_SHARE))
    }

    /// Whether it is to be asked for how long tasks that take turns have waited.
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

    /// Lets those that take turns have one, if woken stackful tasks have kept the core for too long.
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
        // Behind tasks that use much of a slice each, it gets a whole slice, as among its equals. Behind tasks
        // that leave soon it gets a small grant, so that they wait no longer than that.
        let are_long = waited / polls >= self.slice / 8;
        Some(if are_long { next } else { self.grant_only(next, waited / STARVED_SHARE) })
    }

    /// Grants what was chosen no more than so many nanoseconds.
    fn grant_only(&'static self, chosen: Chosen, grant: u64) -> Chosen {
        if chosen.was_preempted {
            // SAFETY: the stack of a task that holds frames is alive.
            unsafe { chosen.stack.as_ref() }.grant(grant);
        } else {
            self.alarm.grant(grant);
        }
        chosen
    }

    /// The first stackful task that can have a stack, or has one.
    #[inline(always)]
    fn choose_stackful(&'static self, polls: u64) -> Option<Chosen> {
        let stacks = &self.local.stacks;
        // Before those that are queued, from among which they were taken.
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
        let next = self.choose_turn(polls);
        if next.is_none() && stacks.are_awaited() {
            self.report_stall();
        }
        next
    }

    /// The first of those that take turns.
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

    /// A stackful task from a queue, with the stack that it has, or a free one. `None`: it waits for one.
    #[inline(always)]
    fn with_stack(&'static self, task: NonNull<Header>) -> Option<Chosen> {
        // SAFETY: as in `choose`.
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

    /// The first of those that wait for a stack, if there is one now.
    #[cold]
    #[inline(never)]
    fn choose_waiting(&'static self) -> Option<Chosen> {
        let stacks = &self.local.stacks;
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

    /// A stackful task whose turn has come, and there is no stack for it.
    #[cold]
    #[inline(never)]
    fn defer_start(&'static self, task: NonNull<Header>) {
        // SAFETY: as in `choose`.
        let state = unsafe { &task.as_ref().state };
        if state.is_done() || state.is_aborted() {
            // One that was aborted has its future dropped here, by the loop: it may be long before there is
            // a stack for that.
            let _never_run = self.start(task, None);
            return;
        }
        // SAFETY: not DONE, hence alive, and in no queue now.
        unsafe { self.local.stacks.push_waiting(task) };
    }

    /// Tells the hook that tasks wait for a stack, unless it was told a moment ago. Returns when to look again.
    fn report_stall(&'static self) -> u64 {
        let next_report = &self.local.stacks.next_report;
        let now = bound::now();
        if now >= next_report.get() {
            let pause = self.slice.saturating_mul(STALL_SLICES.into());
            next_report.set(now.saturating_add(pause));
            if let Some(on_stall) = self.config.on_stall {
                self.catch_panic(|| on_stall(&Stall { runtime: self }));
            }
        }
        next_report.get()
    }

    /// Makes a task that was in a queue RUNNING. `false`: it isn't to be polled any more, and has been dealt
    /// with. `stack` is its own, or was taken for it.
    #[inline(always)]
    fn start(&'static self, task: NonNull<Header>, stack: Option<NonNull<Stack>>) -> bool {
        // SAFETY: a task that was queued is alive: it is not DONE, or it is ours to reap.
        let start = unsafe { task.as_ref() }.state.start();
        start == Start::Run { aborted: false } || self.start_otherwise(task, stack, start)
    }

    #[cold]
    #[inline(never)]
    fn start_otherwise(
        &'static self,
        task: NonNull<Header>,
        stack: Option<NonNull<Stack>>,
        start: Start,
    ) -> bool {
        // SAFETY: as in `start`.
        let holds_frames = unsafe { task.as_ref() }.stack.get().is_some();
        match start {
            Start::Run { .. } if holds_frames => {
                count(&self.counters.aborted_in_poll);
                return true;
            }
            // Its future is dropped there.
            Start::Run { .. } if stack.is_some() => return true,
            Start::Run { .. } => self.fail(task, JoinError::Aborted, true),
            other => {
                if let Some(stack) = stack.filter(|_| !holds_frames) {
                    self.give_back(stack);
                }
                self.reap(task, other);
            }
        }
        false
    }

    /// Polls a plain task that is RUNNING. Returns whether to go on.
    #[inline(always)]
    fn poll(&'static self, task: NonNull<Header>) -> bool {
        count(&self.counters.polls);
        self.set_current(Some(task));
        // SAFETY: it is RUNNING, this is the owning core, and it is not DONE.
        let poll = unsafe { Header::poll(task) };
        self.check_guards(1, task, poll);
        self.set_current(None);
        self.look();
        match poll {
            Poll::Pending => {
                self.wait(task, Place::Loop);
                true
            }
            Poll::Ready(()) if task == NonNull::from(&self.root) => {
                // Another `run_until` may come.
                self.wait(task, Place::Loop);
                false
            }
            Poll::Ready(()) => {
                self.complete(task, Output::Value, true);
                true
            }
        }
    }

    /// Before a task's code gets the core on a stack, wherever the loop is.
    #[inline(always)]
    fn begin_stretch(&'static self, task: NonNull<Header>) {
        while !self.inbox.announce_stackful() {
            // It came after this turn's look, perhaps in a hurry: the task leaves at once.
            self.inbox.take(&self.local.ready, false);
            self.preempt_count.set_pending();
        }
        self.local.stacks.aging.check_at(count(&self.counters.polls) + CHECK_STACKFUL_AFTER);
        self.set_current(Some(task));
    }

    /// Gives the core to a task that is RUNNING, on its stack, until it comes home. By then, others
    /// may have been polled there. Returns whether to go on.
    #[inline(always)]
    fn enter_stack(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> bool {
        self.begin_stretch(task);
        let left = self.leave_home(task, stack);
        match left.reason {
            Reason::Idle => self.give_back(left.stack),
            Reason::Suspended => {
                let task = left.task();
                self.hold(task, left.stack);
                self.look_if_needed();
                self.wait(task, Place::Stack);
            }
            reason @ (Reason::Interrupted | Reason::Preempted) => {
                if reason == Reason::Interrupted {
                    // SAFETY: the loop, which a handler has just left for.
                    unsafe { bound::enable_interrupts() };
                }
                self.hold(left.task(), left.stack);
                self.preempted(left.task(), left.stack);
                self.look_at_timers();
            }
            Reason::Pending => {
                self.give_back(left.stack);
                self.look_if_needed();
                self.wait(left.task(), Place::Stack);
            }
            reason => return self.came_home(left.task, left.stack, reason),
        }
        true
    }

    /// The core came home for what is rare. Returns whether to go on.
    #[inline(never)]
    fn came_home(&'static self, task: Link, stack: NonNull<Stack>, reason: Reason) -> bool {
        match (reason, task) {
            (Reason::Overflowed, Some(task)) => overflowed(task),
            (Reason::Ended, Some(task)) => self.ended(task, stack),
            (_, Some(task)) => {
                self.give_back(stack);
                self.poll_was_last(task, reason);
            }
            // A panic that is no task's.
            (_, None) => {
                self.give_back(stack);
                return false;
            }
        }
        self.look_if_needed();
        true
    }

    /// Takes an idle stack back. At home.
    #[inline(always)]
    fn give_back(&self, stack: NonNull<Stack>) {
        // SAFETY: of this runtime's pool, and left, or not entered since it was taken; a task's
        // that held it is over.
        unsafe { self.local.stacks.pool.give(stack, self.config.max_idle_stacks) };
    }

    /// On `stack`, when the poll of `task` there has ended: does what there is to do for the task,
    /// and begins the next poll there. `Err`: the core is to go home, for this reason.
    ///
    /// All that may call user code is left to home, where there is room for it: timers that are
    /// due, a joiner that is not a task, a plain task.
    #[inline(always)]
    pub(crate) fn next_on_stack(
        &'static self,
        stack: NonNull<Stack>,
        task: NonNull<Header>,
        reason: Reason,
    ) -> Result<NonNull<Header>, Reason> {
        if self.preempt_count.need_resched()
            // SAFETY: rule 7: this core has set DONE, and was told so.
            || reason == Reason::FinishedForJoiner && !unsafe { joiner_is_task(task.as_ref()) }
        {
            return Err(reason);
        }
        // The task may be gone after this, and a panic here is not its own.
        self.set_current(None);
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
        let next = next.ok_or(Reason::Idle)?;
        self.grant_slice(stack);
        self.begin_stretch(next);
        Ok(next)
    }

    /// As [`choose_on_stack`](Self::choose_on_stack), of those that take turns, of which `task`
    /// becomes the last.
    #[inline(always)]
    fn choose_after_yield(&'static self, task: NonNull<Header>) -> Option<NonNull<Header>> {
        let stacks = &self.local.stacks;
        let polls = self.polls();
        let are_alone = self.local.ready.is_empty()
            && stacks.ready.is_empty()
            && !stacks.are_awaited()
            && !stacks.aging.is_check_due(polls);
        if !are_alone {
            // SAFETY: RUNNING, so no other code pushes it.
            unsafe { stacks.turns.push_back(task) };
            return self.choose_on_stack();
        }
        // SAFETY: as above.
        let next = unsafe { stacks.turns.rotate(task) };
        if !self.start_on_stack(next) {
            // SAFETY: just popped.
            unsafe { stacks.turns.push_front(next) };
            return None;
        }
        stacks.in_turn.set(true);
        stacks.turn_aging.check_at(polls + CHECK_TURNS_AFTER);
        Some(next)
    }

    /// Makes a task from a queue RUNNING, if it is to be polled on any stack. `false`: nothing was
    /// done.
    #[inline(always)]
    fn start_on_stack(&'static self, task: NonNull<Header>) -> bool {
        // SAFETY: alive, as in `choose`.
        let header = unsafe { task.as_ref() };
        header.stack.get().is_none() && header.state.start_unless_over()
    }

    /// The task that [`choose`](Self::choose) would choose next, taken from its queue and RUNNING,
    /// if it is to be polled on a stack and holds none. `None`: home chooses.
    #[inline(always)]
    fn choose_on_stack(&'static self) -> Option<NonNull<Header>> {
        let stacks = &self.local.stacks;
        let polls = self.polls();
        if stacks.aging.is_check_due(polls) || stacks.are_awaited() {
            return None;
        }
        loop {
            let (queue, in_turn) = if let Some(task) = self.local.ready.first() {
                // SAFETY: alive, as in `choose`.
                let header = unsafe { task.as_ref() };
                if !header.state.is_stackful() || header.state.is_done() {
                    return None;
                }
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

    /// Polls what `run_until` waits for.
    pub(crate) fn poll_root(&'static self, context: &mut Context<'_>) -> Poll<()> {
        let Some(mut poll) = self.local.root.get() else { return Poll::Pending };
        // SAFETY: `run_until` is in its loop, further up on this stack, so its closure lives, and
        // nobody else calls it.
        let poll = unsafe { poll.as_mut() }(context);
        if poll.is_ready() {
            self.local.root.set(None);
        }
        poll
    }

    /// Moves the aborted among those that wait for a stack to the others: they need none.
    fn stop_waiting(&'static self) {
        let stacks = &self.local.stacks;
        stacks.retain_waiting(|task| {
            // SAFETY: not DONE, hence alive, and in no queue now.
            unsafe {
                let aborted = task.as_ref().state.is_aborted();
                if aborted {
                    stacks.ready.push_back(task);
                }
                !aborted
            }
        });
    }

    /// An idle stack, or a new one if there may be more.
    #[inline(always)]
    fn take_stack(&'static self) -> Option<NonNull<Stack>> {
        self.local.stacks.pool.take().or_else(|| self.new_stack())
    }

    #[cold]
    #[inline(never)]
    fn new_stack(&'static self) -> Option<NonNull<Stack>> {
        // Those that wait for one have just been looked at, so there is none for others.
        if self.local.stacks.are_awaited() { None } else { self.grow() }
    }

    #[cold]
    #[inline(never)]
    fn grow(&'static self) -> Option<NonNull<Stack>> {
        let size = self.config.rounded_stack_size()?;
        self.local.stacks.pool.grow(self, size, self.config.max_stacks)
    }

    #[inline(never)]
    fn park(&'static self) {
        if self.local.stacks.are_awaited() {
            // Memory may come back, and the hook is told again, although nothing else happens here.
            let next_look = self.report_stall();
            if self.config.on_stall.is_some() || self.may_have_more_stacks() {
                self.alarm.set_by(next_look);
            }
        }
        self.alarm.set_by(self.timers.next());
        let interrupts = bound::mask_interrupts();
        // From here on neither an interrupt nor another core can slip in: the alarm's interrupt is
        // masked, and a push either made the announcement fail or finds it and wakes us.
        if !self.alarm.is_due() && self.local.ready.is_empty() && self.inbox.announce_park() {
            count(&self.counters.parks);
            bound::park();
            self.inbox.take(&self.local.ready, false);
        }
        // SAFETY: what `mask_interrupts` has just returned.
        unsafe { bound::restore_interrupts(interrupts) };
    }
}
