//! The loop: who gets the core next.
//!
//! # One turn of the loop
//!
//! 1. If the alarm fired: wake the timers that are due.
//! 2. One relaxed look at the inbox: move what was pushed there to the end of the FIFO.
//! 3. Poll the first plain task of the FIFO.
//! 4. If there is none: give a stack to the first stackful task that is READY.
//! 5. If there is none: let the first preempted task go on.
//! 6. If there is none: park the core.
//!
//! So a task that was woken never waits for those that compute. Those do not wait for ever either:
//! after [`PATIENCE`](crate::ready::PATIENCE) polls of others, 4 or 5 comes before 3.

use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use super::{Root, Runtime, count};
use crate::platform::{PanicPayload, bound};
use crate::ready::Fifo;
use crate::stackful::{HeldStack, Outcome, Stack, Stall};
use crate::sync::atomic::Ordering;
use crate::task::join::JoinError;
use crate::task::state::{Pending, Start};
use crate::task::{self, Header};

impl Runtime {
    /// Turns the loop until `done`; a caught panic that is no task's comes back.
    pub(super) fn run(&'static self, done: &mut dyn FnMut() -> bool) -> Result<(), PanicPayload> {
        loop {
            let caught = bound::catch_unwind(&mut || {
                while !done() {
                    self.turn();
                }
            });
            let Err(payload) = caught else { return Ok(()) };
            let task = self.current_task();
            self.set_current(None);
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

    fn turn(&'static self) {
        // In this order: what is owed after this comes with a reason that is seen below, or it makes
        // the next stackful task leave at once.
        self.gate.settle();
        if self.alarm.is_due() {
            self.alarm.clear_due();
            self.alarm.forget();
            self.timers.fire(bound::now());
        }
        if !self.inbox.is_empty() {
            self.inbox.take(&self.own.ready, false);
        }
        // Who has waited for too many polls goes first, but not twice running: a stack was perhaps
        // left for somebody in the FIFO.
        let patient = !self.own.after_stack.replace(false);
        let [ready, waiting, preempted] =
            self.own.stacks.queues().map(|queue| patient && queue.is_impatient());
        let ran = (preempted && self.resume_preempted())
            || ((ready || waiting) && self.run_stackful())
            || self.run_plain()
            // Without this, stackful tasks that only yield would keep a preempted one waiting.
            || (self.own.stacks.preempted.is_impatient() && self.resume_preempted())
            || self.run_stackful()
            || self.resume_preempted();
        if !ran {
            self.park();
        }
    }

    /// Polls the first plain task of the FIFO. On the way to it, stackful ones move to their own queue.
    fn run_plain(&'static self) -> bool {
        while let Some(task) = self.own.ready.pop() {
            // SAFETY: a task in the FIFO is alive: it is READY and not DONE, or it is ours to bury.
            if unsafe { task.as_ref() }.stack.get() == HeldStack::PLAIN {
                self.alarm.set_by(self.timers.next());
                self.start(task, None);
                return true;
            }
            // SAFETY: still READY (or ours to bury), and in no queue now.
            unsafe { self.own.stacks.ready.push_back(task) };
        }
        false
    }

    /// Gives a stack, or its own, to the first stackful task that is READY and can have one.
    fn run_stackful(&'static self) -> bool {
        let stacks = &self.own.stacks;
        if !stacks.waiting.is_empty() {
            if self.aborted_in_queue.swap(false, Ordering::Acquire) {
                self.stop_waiting();
            }
            // Before those that are queued, from among which they were taken.
            if let Some(stack) = self.take_stack() {
                match stacks.waiting.pop() {
                    Some(task) => {
                        self.start(task, Some(stack));
                        return true;
                    }
                    // SAFETY: taken above, and not entered.
                    None => unsafe { stacks.pool.give(stack) },
                }
            } else {
                stacks.waiting.wait_again();
            }
        }
        while let Some(task) = stacks.ready.pop() {
            // SAFETY: as in `run_plain`.
            let header = unsafe { task.as_ref() };
            let held = header.stack.get().get();
            let needs_none = held.is_some() || header.state.is_done() || header.state.is_aborted();
            let stack = if needs_none { held } else { self.take_stack() };
            if needs_none || stack.is_some() {
                self.start(task, stack);
                return true;
            }
            // SAFETY: still READY, and in no queue now.
            unsafe { stacks.waiting.push_back(task) };
        }
        false
    }

    /// Gives the core, and perhaps `stack`, to a task that was in a queue.
    fn start(&'static self, task: NonNull<Header>, stack: Option<NonNull<Stack>>) {
        // SAFETY: a task that was queued is alive: it is READY and not DONE, or it is ours to bury.
        let header = unsafe { task.as_ref() };
        let holds_frames = header.stack.get().get().is_some();
        let outcome = match (header.state.start(), stack) {
            (Start::Run { aborted: true }, _) if !holds_frames => {
                if let Some(stack) = stack {
                    // SAFETY: taken above, and not entered.
                    unsafe { self.own.stacks.pool.give(stack) };
                }
                return self.fail(task, JoinError::Aborted, true);
            }
            (Start::Run { .. }, Some(stack)) => self.enter_stack(task, stack),
            (Start::Run { .. }, None) => Outcome::Polled(self.poll(task)),
            (other, _) => return self.bury(task, other),
        };
        self.settle(task, outcome);
    }

    /// Lets the preempted task go on that is first in turn.
    fn resume_preempted(&'static self) -> bool {
        let Some(task) = self.own.stacks.preempted.pop() else { return false };
        // SAFETY: preempted tasks are RUNNING, hence alive.
        let Some(stack) = unsafe { task.as_ref() }.stack.get().get() else {
            unreachable!("a preempted task has a stack")
        };
        let outcome = self.enter_stack(task, stack);
        self.settle(task, outcome);
        true
    }

    fn enter_stack(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> Outcome {
        while !self.inbox.announce_stackful() {
            // It came after this turn's look, perhaps in a hurry: the task leaves at once.
            self.inbox.take(&self.own.ready, false);
            self.gate.owe();
        }
        self.count_poll();
        self.own.after_stack.set(true);
        // SAFETY: RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_aborted() {
            count(&self.counters.aborted_in_poll);
        }
        self.run_on_stack(task, stack)
    }

    /// Polls a plain task.
    fn poll(&'static self, task: NonNull<Header>) -> Poll<()> {
        self.count_poll();
        self.set_current(Some(task));
        let poll = if task == NonNull::from(&self.root) {
            self.poll_root()
        } else {
            // SAFETY: `start` made it RUNNING, this is the owning core, and it is not DONE.
            unsafe { Header::poll(task) }
        };
        self.check_guards(1, task, poll);
        self.set_current(None);
        poll
    }

    fn count_poll(&self) {
        count(&self.counters.polls);
        for queue in self.own.stacks.queues() {
            queue.wait_one_poll();
        }
    }

    /// Polls what `run_until` waits for. The root task itself is never ready.
    fn poll_root(&'static self) -> Poll<()> {
        if let Root::Polls(mut poll) = self.own.root.get() {
            // SAFETY: the root task is never freed, so a waker of it needs no reference.
            let waker =
                ManuallyDrop::new(unsafe { task::waker::from_header(NonNull::from(&self.root)) });
            // SAFETY: `run_until` is in its loop, further up on this stack, so its closure lives, and
            // nobody else calls it.
            if unsafe { poll.as_mut() }(&mut Context::from_waker(&waker)) {
                self.own.root.set(Root::None);
            }
        }
        Poll::Pending
    }

    /// Moves the aborted among those that wait for a stack to the others: they need none.
    fn stop_waiting(&'static self) {
        let waiting = Fifo::new();
        while let Some(task) = self.own.stacks.waiting.pop() {
            // SAFETY: READY, hence alive, and in no queue now.
            unsafe {
                let aborted = task.as_ref().state.is_aborted();
                if aborted {
                    self.own.stacks.ready.push_back(task);
                } else {
                    waiting.push_back(task);
                }
            }
        }
        while let Some(task) = waiting.pop() {
            // SAFETY: as above.
            unsafe { self.own.stacks.waiting.push_back(task) };
        }
    }

    fn take_stack(&'static self) -> Option<NonNull<Stack>> {
        let size = self.config.rounded_stack_size()?;
        self.own.stacks.pool.take(self, size, self.config.stacks)
    }

    fn park(&'static self) {
        if !self.own.stacks.waiting.is_empty()
            && let Some(on_stall) = self.config.on_stall
        {
            on_stall(&Stall { runtime: self });
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
