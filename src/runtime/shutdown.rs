//! The shutdown of a runtime: it drops all tasks, and the runtime never runs tasks again.
//!
//! Rules with a number are those of [`crate::task`].

use core::ptr::NonNull;

use crate::runtime::core::Runtime;
use crate::runtime::enter::EnterError;
use crate::task::error::JoinError;
use crate::task::header::{Header, Link};
use crate::task::state::Start;

impl Runtime {
    /// Drops every task's future, and refuses new tasks from now on.
    ///
    /// The join handles of unfinished tasks give [`JoinError::Aborted`]. A task of which a stack
    /// holds frames (it is preempted, or inside of [`block_on`](crate::block_on)) cannot be
    /// dropped, since the runtime does not know which values the frames own or point at. The future
    /// and the stack of such a task are leaked, its handle gives [`JoinError::Abandoned`], and
    /// [`Shutdown::stacks_with_frames`] counts its stack.
    ///
    /// A [`Sleep`](crate::time::Sleep) that was polled on this runtime, and has since been moved to
    /// a task of another runtime, is woken: that task is polled again, and the poll of the `Sleep`
    /// puts it into the other runtime's timers.
    ///
    /// The memory of a task is freed when its last reference (a waker or the join handle) is
    /// dropped. If that happens after the shutdown, the memory may be handed back to this runtime.
    /// Another call of `shutdown` frees that memory, and does nothing else.
    ///
    /// The call is made on the owning core, in task context, outside of [`enter`](Self::enter).
    /// Interrupts may be masked.
    ///
    /// # Errors
    ///
    /// - [`Nested`](EnterError::Nested) if the core is inside of a runtime
    /// - [`InInterrupt`](EnterError::InInterrupt) in an interrupt
    /// - [`OtherCore`](EnterError::OtherCore) on a core that is not the owning core
    /// - [`NoCore`](EnterError::NoCore) if the caller is not a core
    pub fn shutdown(&'static self) -> Result<Shutdown, EnterError> {
        let _entered = self.claim_for_shutdown()?;
        self.local.closed.set(true);
        let mut report = Shutdown { dropped: 0, stacks_with_frames: 0 };
        // Queued tasks come before the tasks of the list, since a task that is passed to
        // `State::shut_down` must be in no queue. The drop of a future may wake or abort other
        // tasks, so each round begins with the inbox.
        loop {
            self.inbox.close(&self.local.ready);
            let queued = (self.local.ready.pop())
                .or_else(|| self.local.stacks.ready.pop())
                .or_else(|| self.local.stacks.turns.pop())
                .or_else(|| self.local.stacks.pop_waiting());
            if let Some(task) = queued {
                report.dropped += usize::from(self.shut_down_queued(task));
            } else if let Some(task) = self.first_without_frames() {
                // SAFETY: a task in the list is alive. The queues are empty, so this task is in
                // none of them.
                let shut = unsafe { task.as_ref() }.state.shut_down();
                // If a waker is about to push the task, the runtime keeps its reference until the
                // task has been taken from the inbox.
                self.fail(task, JoinError::Aborted, !shut.push_is_coming);
                report.dropped += 1;
            } else {
                break;
            }
        }
        // Each task that is still in the list has frames on a stack.
        while let Some(task) = self.local.tasks.get() {
            self.abandon(task);
        }
        // The timers that are left belong to futures that have been moved to other runtimes.
        // SAFETY: the core is inside of the runtime, at home, so preemption is disabled.
        while let Some(waker) = unsafe { self.timers.close() } {
            if let Some(waker) = waker {
                self.catch_panic(|| waker.wake());
            }
        }
        self.local.free_list.close();
        report.stacks_with_frames = self.local.stacks.pool.free_idle();
        Ok(report)
    }

    /// Finishes a task that was in a queue when the runtime shut down. Returns whether a future was
    /// dropped.
    fn shut_down_queued(&'static self, task: NonNull<Header>) -> bool {
        // SAFETY: a task in a queue is alive.
        let header = unsafe { task.as_ref() };
        match header.state.start() {
            // The root task has no future to drop: the future was in the frame of `run_until`,
            // which has ended. `pending` clears RUNNING, which `start` has set.
            Start::Run { .. } if task == NonNull::from(&self.root) => {
                let _ = header.state.pending();
                false
            }
            // A task with frames on a stack stays in the list, and `shutdown` abandons it later.
            Start::Run { .. } if header.stack.get().is_some() => false,
            Start::Run { .. } => {
                self.fail(task, JoinError::Aborted, true);
                true
            }
            other => {
                self.reap(task, other);
                false
            }
        }
    }

    /// Returns the first task of the list of which no stack holds frames.
    fn first_without_frames(&self) -> Link {
        let mut rest = self.local.tasks.get();
        while let Some(task) = rest {
            // SAFETY: tasks in the list are alive, and their links belong to the owning core, which
            // runs this code (rule 4).
            let header = unsafe { task.as_ref() };
            if header.stack.get().is_none() {
                return Some(task);
            }
            rest = header.siblings.next.get();
        }
        None
    }
}

/// The result of [`Runtime::shutdown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// The number of tasks whose futures were dropped.
    pub dropped: usize,
    /// The number of stacks that hold frames of tasks. These stacks, and the futures of these
    /// tasks, are leaked.
    pub stacks_with_frames: usize,
}
