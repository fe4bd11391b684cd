//! The root task: the future of `run_until`.

use core::ptr::NonNull;
use core::task::{Context, Poll};

use crate::ready;
use crate::runtime::core::Runtime;
use crate::sync::atomic::Ordering;
use crate::task::state::Wake;

impl Runtime {
    /// Polls the future that `run_until` waits for.
    pub(crate) fn poll_root(&'static self, context: &mut Context<'_>) -> Poll<()> {
        let Some(mut poll) = self.local.root.get() else { return Poll::Pending };
        // SAFETY: `run_until` is in its loop, in a frame further up on this stack, so the closure
        // in that frame is alive. Only the poll of the root task calls the closure.
        let poll = unsafe { poll.as_mut() }(context);
        if poll.is_ready() {
            self.local.root.set(None);
        }
        poll
    }

    /// Makes the loop look for aborted tasks among those that wait for a stack. Any context, with
    /// preemption disabled.
    pub(crate) fn aborted_in_queue(&self) {
        // Release pairs with the acquire in `choose_waiting`, and the wake of the root comes after
        // it: a loop that has parked, or is about to park, makes one more turn and finds the flag.
        // (A store would be enough, but loom lets a swap on the other side miss a store.)
        self.aborted_in_queue.swap(true, Ordering::Release);
        if self.root.state.wake() == Wake::Push {
            // SAFETY: the state word told the caller to push the root, which lives in the runtime.
            unsafe { ready::push(self, NonNull::from(&self.root)) };
        }
    }
}
