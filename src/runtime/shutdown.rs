//! Dropping all tasks, for good.

use core::ptr::NonNull;

use super::Runtime;
use super::enter::EnterError;
use crate::task::join::JoinError;
use crate::task::state::Start;
use crate::task::{Header, Link};

impl Runtime {
    /// Drops every task's future and refuses new ones, for good.
    ///
    /// Join handles of unfinished tasks say [`JoinError::Aborted`]. A task of which a stack holds frames
    /// (preempted, or inside of [`block_on`](crate::block_on)) cannot be dropped: frames may hold or
    /// point at anything. Its future and its stack are leaked, its handle says
    /// [`JoinError::Abandoned`], and [`Shutdown::stacks_with_frames`] counts it.
    ///
    /// A [`Sleep`](crate::time::Sleep) that was polled here and has been moved to a task of another
    /// runtime wakes that task, and goes on there.
    ///
    /// The memory of a task is freed with its last waker. A waker that is dropped after the shutdown may
    /// hand the memory back to this runtime: call `shutdown` again, and it is freed. The call does
    /// nothing else then.
    ///
    /// On the owning core, in task context, outside of [`enter`](Self::enter). Interrupts may be masked.
    ///
    /// # Errors
    ///
    /// [`Nested`](EnterError::Nested) inside of a runtime, [`InInterrupt`](EnterError::InInterrupt) in an
    /// interrupt, [`OtherCore`](EnterError::OtherCore) on another core than the owning one,
    /// [`NoCore`](EnterError::NoCore) by a caller that is no core.
    pub fn shutdown(&'static self) -> Result<Shutdown, EnterError> {
        let _entered = self.claim_for_shutdown()?;
        self.local.closed.set(true);
        let mut report = Shutdown { dropped: 0, stacks_with_frames: 0 };
        loop {
            self.inbox.close(&self.local.ready);
            let queued = (self.local.ready.pop())
                .or_else(|| self.local.stacks.ready.pop())
                .or_else(|| self.local.stacks.turns.pop())
                .or_else(|| self.local.stacks.pop_waiting());
            if let Some(task) = queued {
                report.dropped += usize::from(self.shut_down_queued(task));
            } else if let Some(task) = self.first_without_frames() {
                // SAFETY: a task in the list is alive, and this one in no queue of ours.
                let shut = unsafe { task.as_ref() }.state.shut_down();
                self.fail(task, JoinError::Aborted, !shut.push_is_coming);
                report.dropped += 1;
            } else {
                break;
            }
        }
        // What is left in the list has frames on stacks.
        while let Some(task) = self.local.tasks.get() {
            self.abandon(task);
        }
        // Timers of futures that others have by now.
        self.timers.close(self);
        self.local.free_list.close();
        report.stacks_with_frames = self.local.stacks.pool.free_idle();
        Ok(report)
    }

    /// A task from the queue of a runtime that shuts down. Returns whether a future was dropped.
    fn shut_down_queued(&'static self, task: NonNull<Header>) -> bool {
        // SAFETY: a task in the queue is alive.
        let header = unsafe { task.as_ref() };
        match header.state.start() {
            // The runtime's own, whose future has gone with the frame of `run_until`.
            Start::Run { .. } if task == NonNull::from(&self.root) => {
                let _ = header.state.pending();
                false
            }
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

    fn first_without_frames(&self) -> Link {
        let mut rest = self.local.tasks.get();
        while let Some(task) = rest {
            // SAFETY: tasks in the list are alive, and their links ours (rule 4).
            let header = unsafe { task.as_ref() };
            if header.stack.get().is_none() {
                return Some(task);
            }
            rest = header.siblings.next.get();
        }
        None
    }
}

/// What [`Runtime::shutdown`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shutdown {
    /// Tasks whose futures were dropped.
    pub dropped: usize,
    /// Stacks that hold frames of tasks. They and the tasks' futures are leaked.
    pub stacks_with_frames: usize,
}
