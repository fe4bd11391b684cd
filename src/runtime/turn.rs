//! The loop: who gets the core next.
//!
//! # One turn of the loop
//!
//! 1. If it was called: wake the timers that are due, if the alarm fired, and set it for the next.
//! 2. One relaxed look at the inbox: move what was pushed there to the end of the FIFO.
//! 3. Poll the first plain task of the FIFO.
//! 4. If there is none: give a stack to the first stackful task that was in the FIFO.
//! 5. If there is none: let the first preempted task go on.
//! 6. If there is none: park the core.
//!
//! So a task that was woken never waits for those that compute. Those do not wait for ever either:
//! after [`PATIENCE`](crate::ready::PATIENCE) polls of others, 4 or 5 comes before 3.

use core::ptr::NonNull;
use core::task::{Context, Poll};

use super::finish::Output;
use super::{Runtime, count};
use crate::config::STALL_SLICES;
use crate::platform::{PanicPayload, bound};
use crate::stackful::{Reason, Stack, Stall};
use crate::sync::atomic::Ordering;
use crate::task::Header;
use crate::task::join::JoinError;
use crate::task::state::{Pending, Start};

/// Who gets the core next. Taken from the queue that it was in.
enum Next {
    /// RUNNING, to be polled here.
    Plain(NonNull<Header>),
    /// It was not to be polled any more.
    DealtWith,
    /// To be polled or to go on on this stack.
    Stackful(NonNull<Header>, NonNull<Stack>),
    /// RUNNING, to go on.
    Preempted(NonNull<Header>),
    Nobody,
}

// What is rare is in functions of its own that aren't inlined, so that all the rest of a turn is one
// stretch of code which keeps what it needs in registers.
impl Runtime {
    /// Turns the loop until the root is done; a caught panic that is no task's comes back.
    pub(super) fn run(&'static self) -> Result<(), PanicPayload> {
        loop {
            let caught = bound::catch_unwind(&mut || {
                while self.turn() {}
            });
            let Err(payload) = caught else { return Ok(()) };
            self.unmask();
            let task = self.current_task();
            self.set_current(None);
            self.take_yield();
            match task {
                Some(task) if task == NonNull::from(&self.root) => {
                    if self.root.state.pending() == Pending::Ready {
                        // SAFETY: as in `run_until`.
                        unsafe { self.own.ready.push_back(task) };
                    }
                    return Err(payload);
                }
                Some(task) => self.panicked(task, payload),
                None => return Err(payload),
            }
        }
    }

    /// Returns whether to go on.
    #[inline(always)]
    fn turn(&'static self) -> bool {
        if self.gate.is_called() {
            // In this order: what is owed after this comes with a reason that is seen below, or it makes
            // the next stackful task leave at once.
            self.gate.answer();
            if self.alarm.is_due() {
                let now = self.alarm.take_due();
                self.alarm.forget();
                // SAFETY: this is the loop.
                unsafe { self.timers.fire(self, now) };
            }
            self.alarm.set_by(self.timers.next());
        }
        if !self.inbox.is_empty() {
            self.inbox.take(&self.own.ready, false);
        }
        let (task, stack) = match self.choose() {
            Next::Plain(task) => return self.poll(task),
            Next::DealtWith => return true,
            Next::Stackful(task, stack) => {
                if !self.start(task, Some(stack)) {
                    return true;
                }
                self.grant_slice(stack);
                (task, stack)
            }
            Next::Preempted(task) => {
                // SAFETY: preempted tasks are RUNNING, hence alive.
                let header = unsafe { task.as_ref() };
                let Some(stack) = header.stack.get() else {
                    unreachable!("a preempted task has a stack")
                };
                if header.state.is_aborted() {
                    count(&self.counters.aborted_in_poll);
                }
                // SAFETY: the stack of a task that holds frames is alive.
                if unsafe { stack.as_ref() }.yielded.get() {
                    self.yield_current();
                }
                self.grant_rest(stack);
                (task, stack)
            }
            Next::Nobody => {
                self.park();
                return true;
            }
        };
        self.enter_stack(task, stack);
        true
    }

    #[inline(always)]
    fn choose(&'static self) -> Next {
        let stacks = &self.own.stacks;
        let polls = self.polls();
        if stacks.may_be_impatient(polls)
            && let Some(next) = self.choose_impatient()
        {
            return next;
        }
        while let Some(task) = self.own.ready.pop() {
            // SAFETY: a task in the FIFO is alive: it is not DONE, or it is ours to bury.
            let header = unsafe { task.as_ref() };
            if header.state.is_plain_and_started() {
                return Next::Plain(task);
            }
            if !header.state.is_stackful() {
                return if self.start(task, None) { Next::Plain(task) } else { Next::DealtWith };
            }
            // The only one there is: it would come out of its queue at once.
            if self.own.ready.is_empty()
                && stacks.ready.is_empty()
                && !stacks.are_awaited()
                && stacks.preempted.is_empty()
                && let Some(stack) = header.stack.get().or_else(|| stacks.pool.take())
            {
                return Next::Stackful(task, stack);
            }
            self.queue_stackful(task);
        }
        // Without this, stackful tasks that only yield would keep a preempted one waiting.
        if stacks.preempted.is_impatient(polls)
            && let Some(task) = stacks.preempted.pop(polls)
        {
            return Next::Preempted(task);
        }
        if let Some(next) = self.choose_stackful(polls) {
            return next;
        }
        stacks.preempted.pop(polls).map_or(Next::Nobody, Next::Preempted)
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
        // SAFETY: as above, and in no queue now.
        unsafe { self.own.stacks.ready.push_back(task, self.polls()) };
        self.own.stacks.note_patience();
    }

    /// Somebody has waited for too many polls and goes first, but not twice running: a stack was
    /// perhaps left for somebody in the FIFO.
    #[cold]
    #[inline(never)]
    fn choose_impatient(&'static self) -> Option<Next> {
        let stacks = &self.own.stacks;
        let polls = self.polls();
        if stacks.preempted.is_empty() {
            stacks.preempted.rest();
        }
        if stacks.ready.is_empty() && !stacks.are_awaited() {
            stacks.ready.rest();
        }
        stacks.note_patience();
        if self.own.stack_polls.get() == polls {
            return None;
        }
        if stacks.preempted.is_impatient(polls) {
            return stacks.preempted.pop(polls).map(Next::Preempted);
        }
        if stacks.ready.is_impatient(polls) { self.choose_stackful(polls) } else { None }
    }

    /// The first stackful task from the FIFO that can have a stack, or has one.
    #[inline(always)]
    fn choose_stackful(&'static self, polls: u64) -> Option<Next> {
        let stacks = &self.own.stacks;
        // Before those that are queued, from among which they were taken.
        if stacks.are_awaited()
            && let Some(next) = self.choose_waiting()
        {
            return Some(next);
        }
        let task = stacks.ready.pop(polls)?;
        // SAFETY: as in `choose`.
        let held = unsafe { task.as_ref() }.stack.get();
        match held.or_else(|| self.take_stack()) {
            Some(stack) => Some(Next::Stackful(task, stack)),
            None => self.put_off_starts(task),
        }
    }

    /// The first of those that wait for a stack, if there is one now.
    #[cold]
    #[inline(never)]
    fn choose_waiting(&'static self) -> Option<Next> {
        let stacks = &self.own.stacks;
        if self.aborted_in_queue.swap(false, Ordering::Acquire) {
            self.stop_waiting();
        }
        let Some(stack) = self.take_stack() else {
            if stacks.are_awaited() {
                self.report_stall();
            }
            return None;
        };
        stacks.ready.wait_again(self.polls());
        stacks.note_patience();
        let task = stacks.pop_waiting();
        if task.is_none() {
            // SAFETY: taken above, and not entered.
            unsafe { stacks.pool.give(stack) };
        }
        task.map(|task| Next::Stackful(task, stack))
    }

    /// A stackful task whose turn has come, and there is no stack for it, nor for those after it. The first of
    /// these that has one comes back.
    #[cold]
    #[inline(never)]
    fn put_off_starts(&'static self, task: NonNull<Header>) -> Option<Next> {
        let stacks = &self.own.stacks;
        let mut next = Some(task);
        while let Some(task) = next {
            // SAFETY: as in `choose`.
            let header = unsafe { task.as_ref() };
            if let Some(stack) = header.stack.get() {
                return Some(Next::Stackful(task, stack));
            }
            if header.state.is_done() || header.state.is_aborted() {
                // One that was aborted has its future dropped here, by the loop: it may be long before there is
                // a stack for that.
                let _never_run = self.start(task, None);
            } else {
                // SAFETY: not DONE, hence alive, and in no queue now.
                unsafe { stacks.push_waiting(task) };
            }
            next = stacks.ready.pop(self.polls());
        }
        if stacks.are_awaited() {
            self.report_stall();
        }
        None
    }

    /// Tells the hook that tasks wait for a stack, unless it was told a moment ago. Returns when to look again.
    fn report_stall(&'static self) -> u64 {
        let next_report = &self.own.stacks.next_report;
        let now = bound::now();
        if now >= next_report.get() {
            let pause = self.slice.saturating_mul(STALL_SLICES.into());
            next_report.set(now.saturating_add(pause));
            if let Some(on_stall) = self.config.on_stall {
                self.guarded_alone(|| on_stall(&Stall { runtime: self }));
            }
        }
        next_report.get()
    }

    /// Makes a task that was in a queue RUNNING. `false`: it isn't to be polled any more, and has been dealt
    /// with. `stack` is its own, or was taken for it.
    #[inline(always)]
    fn start(&'static self, task: NonNull<Header>, stack: Option<NonNull<Stack>>) -> bool {
        // SAFETY: a task that was queued is alive: it is not DONE, or it is ours to bury.
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
                    // SAFETY: taken for the task, and not entered.
                    unsafe { self.own.stacks.pool.give(stack) };
                }
                self.bury(task, other);
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
        match poll {
            Poll::Pending => {
                self.wait(task);
                true
            }
            Poll::Ready(()) if task == NonNull::from(&self.root) => {
                // Another `run_until` may come.
                self.wait(task);
                false
            }
            Poll::Ready(()) => {
                self.complete(task, Output::Value, true);
                true
            }
        }
    }

    /// Gives the core to a task that is RUNNING, on its stack, until it leaves.
    #[inline(always)]
    fn enter_stack(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) {
        while !self.inbox.announce_stackful() {
            // It came after this turn's look, perhaps in a hurry: the task leaves at once.
            self.inbox.take(&self.own.ready, false);
            self.gate.owe();
        }
        self.own.stack_polls.set(count(&self.counters.polls));
        // SAFETY: RUNNING, hence alive, unless it is done below; and this is its core (rule 4).
        let held = unsafe { &task.as_ref().stack };
        match self.run_on_stack(task, stack) {
            Reason::Suspended => {
                held.set(Some(stack));
                self.wait(task);
            }
            reason @ (Reason::Interrupted | Reason::Preempted) => {
                if reason == Reason::Interrupted {
                    // SAFETY: the loop, which a handler has just left for.
                    unsafe { bound::enable_interrupts() };
                }
                held.set(Some(stack));
                self.preempted(task, stack);
            }
            Reason::Pending => {
                self.put_back(task, stack);
                self.wait(task);
            }
            ended => self.ended(task, stack, ended),
        }
    }

    /// Polls what `run_until` waits for.
    pub(crate) fn poll_root(&'static self, context: &mut Context<'_>) -> Poll<()> {
        let Some(mut poll) = self.own.root.get() else { return Poll::Pending };
        // SAFETY: `run_until` is in its loop, further up on this stack, so its closure lives, and
        // nobody else calls it.
        let poll = unsafe { poll.as_mut() }(context);
        if poll.is_ready() {
            self.own.root.set(None);
        }
        poll
    }

    /// Moves the aborted among those that wait for a stack to the others: they need none.
    fn stop_waiting(&'static self) {
        let stacks = &self.own.stacks;
        stacks.retain_waiting(|task| {
            // SAFETY: not DONE, hence alive, and in no queue now.
            unsafe {
                let aborted = task.as_ref().state.is_aborted();
                if aborted {
                    stacks.ready.push_back(task, self.polls());
                    stacks.note_patience();
                }
                !aborted
            }
        });
    }

    /// An idle stack, or a new one if there may be more.
    #[inline(always)]
    fn take_stack(&'static self) -> Option<NonNull<Stack>> {
        self.own.stacks.pool.take().or_else(|| self.new_stack())
    }

    #[cold]
    #[inline(never)]
    fn new_stack(&'static self) -> Option<NonNull<Stack>> {
        let size = self.config.rounded_stack_size()?;
        self.own.stacks.pool.grow(self, size, self.config.stacks)
    }

    #[inline(never)]
    fn park(&'static self) {
        if self.own.stacks.are_awaited() {
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
        if !self.alarm.is_due() && self.own.ready.is_empty() && self.inbox.announce_park() {
            count(&self.counters.parks);
            bound::park();
            self.inbox.take(&self.own.ready, false);
        }
        // SAFETY: what `mask_interrupts` has just returned.
        unsafe { bound::restore_interrupts(interrupts) };
    }
}
