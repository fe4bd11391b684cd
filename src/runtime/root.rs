//! The root task: the future of `run_until`.

use core::ptr::NonNull;
use core::task::{Context, Poll};

use crate::ready;
use crate::runtime::core::Runtime;
use crate::sync::atomic::Ordering;
use crate::task::state::Wake;

impl Runtime {
    /// Polls the future that `run_until` waits for. Returns `Pending` if no `run_until` is in
    /// progress, or if its future is done.
    pub(crate) fn poll_root(&'static self, context: &mut Context<'_>) -> Poll<()> {
        let Some(mut poll) = self.local.root.get() else { return Poll::Pending };
        // SAFETY: the pointer is set only while `run_until` runs the loop. The frame of `run_until`
        // is one of this code's callers, so the closure in it is alive. Only the poll of the root
        // task calls the closure.
        let poll = unsafe { poll.as_mut() }(context);
        if poll.is_ready() {
            self.local.root.set(None);
        }
        poll
    }

    /// Makes the loop look for aborted tasks among those that wait for a stack. Any context, with
    /// preemption disabled.
    pub(crate) fn aborted_in_queue(&self) {
        // Release pairs with the acquire in `choose_waiting`. The wake of the root task comes after
        // the flag is set: so if the core is parked or about to park, the loop makes one more turn,
        // and that turn finds the flag. (On hardware a store would be enough. Loom lets the swap in
        // `choose_waiting` miss a store, so this is a swap.)
        self.aborted_in_queue.swap(true, Ordering::Release);
        if self.root.state.wake() == Wake::Push {
            // SAFETY: the state word told the caller to push the root, which lives in the runtime.
            unsafe { ready::push(self, NonNull::from(&self.root)) };
        }
    }
}
