//! Sleeping: futures that wait for a deadline. The timer of such a future is a node in its
//! runtime's list of timers, and lies in the future itself.

use core::cell::UnsafeCell;
use core::fmt;
use core::future::Future;
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr::{self, NonNull};
use core::task::{Context, Poll};
use core::time::Duration;

use crate::platform::bound;
use crate::preempt::guard::PreemptGuard;
use crate::runtime::core::Runtime;
use crate::time::instant::{Instant, now};
use crate::time::list::Node;
use crate::yield_now::yield_in;

/// Waits until `duration` has passed since this call (and not since the first poll). If that time
/// is over at the first poll, as with a `duration` of zero, the future lets other tasks have the
/// core once, as [`yield_now`](crate::yield_now()) does.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(now() + duration)
}

/// Waits until `deadline`. If that has passed at the first poll, the future lets other tasks have
/// the core once, as [`yield_now`](crate::yield_now()) does.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline: deadline.0,
        polled: false,
        runtime: None,
        node: UnsafeCell::new(Node::new(deadline.0)),
        _pinned: PhantomPinned,
    }
}

/// The future that [`sleep`] and [`sleep_until`] return. Allocates nothing. Cancel-safe.
///
/// A `Sleep` belongs to the runtime that polled it last, whose loop wakes the task when the
/// deadline has passed. A `Sleep` may be moved to a task of another runtime, on the same core or on
/// another, also after it has been polled: the next poll there makes it belong to that runtime.
/// Until that poll the old runtime fires it, as long as a core is inside of the old runtime. A
/// [`shutdown`](crate::Runtime::shutdown) of the old runtime wakes the task, which then polls the
/// `Sleep` in its own runtime. A `Sleep` may be dropped on any core, in task context.
///
/// Polled outside of any runtime, a `Sleep` stays with the runtime that it belongs to.
///
/// # Panics
///
/// If it is polled before its deadline on a core that is not inside of a runtime, and it belongs to
/// no runtime yet or to one that has been shut down: no runtime would fire it.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: u64,
    polled: bool,
    /// The runtime in whose list the node is or was.
    runtime: Option<&'static Runtime>,
    node: UnsafeCell<Node>,
    _pinned: PhantomPinned,
}

// SAFETY: the node is touched under its list's lock, which any core may take.
unsafe impl Send for Sleep {}
// SAFETY: nothing that can change is accessed through a shared reference.
unsafe impl Sync for Sleep {}

impl Sleep {
    /// Returns the node, which is touched only under the lock of its list. No `&mut` to it may
    /// exist, since the list has pointers to it.
    fn node(&self) -> NonNull<Node> {
        // SAFETY: the address of a field is not null.
        unsafe { NonNull::new_unchecked(self.node.get()) }
    }

    /// Returns when the future will be ready.
    pub fn deadline(&self) -> Instant {
        Instant(self.deadline)
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out.
        let polled =
            core::mem::replace(unsafe { &mut self.as_mut().get_unchecked_mut().polled }, true);
        let poll = self.poll_deadline(context);
        if poll.is_ready() && !polled {
            // Without the yield, a loop that awaits such a `Sleep` would keep the core for itself.
            yield_in(context);
            return Poll::Pending;
        }
        poll
    }
}

impl Sleep {
    /// Polls the deadline alone: returns `Ready` as soon as it has passed, without the yield that
    /// `poll` adds.
    pub(super) fn poll_deadline(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        if this.deadline <= bound::now() {
            return Poll::Ready(());
        }
        let here = Runtime::current();
        let node = this.node();
        // No user code is called under a lock: the new waker is cloned before the list is locked,
        // and the old waker is dropped after the list is unlocked.
        let mut waker = Some(context.waker().clone());
        if let Some(owner) = this.runtime {
            let found = if here.is_none_or(|here| ptr::eq(here, owner)) {
                let _guard = PreemptGuard::new();
                // SAFETY: the node is in no other list than that of its runtime. A poll is in task
                // context, and the guard disables preemption.
                unsafe { owner.timers().renew(node, &mut waker) }
            } else {
                let _guard = PreemptGuard::new();
                // SAFETY: as above.
                unsafe { owner.timers().remove(node) }
            };
            // `fired`: the timer was taken out of the list because it was due, perhaps just now by
            // another core.
            if found.fired {
                return Poll::Ready(());
            }
            if waker.is_none() {
                return Poll::Pending;
            }
        }
        let Some(runtime) = here else {
            panic!(
                "a Sleep was polled outside of a runtime: poll it in Runtime::enter or run_until"
            )
        };
        this.runtime = Some(runtime);
        let is_in = {
            let _guard = PreemptGuard::new();
            // SAFETY: the node is in no list, is pinned, and is removed by `drop` at the latest.
            // This is the core of the runtime, in task context, and the guard disables preemption.
            unsafe { runtime.timers().insert(node, &mut waker) }
        };
        if !is_in {
            // The runtime is being shut down. So the task is woken at once, as the shutdown wakes
            // the tasks that have timers in the list.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if runtime.is_on_stack() {
            // `set_by` compares with the alarm and then sets it. Without the guard, the task could
            // be preempted in between, and would then replace the alarm that the loop has set
            // since.
            let _guard = PreemptGuard::new();
            runtime.alarm().set_by(runtime.timers().next());
        } else {
            // The loop sets the alarm before it gives the core away again.
            runtime.preempt_count().set_need_resched();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime {
            let found = {
                let _guard = PreemptGuard::new();
                // SAFETY: the node can be in no other list than that of its runtime. A future is
                // dropped in task context, and the guard disables preemption.
                unsafe { runtime.timers().remove(self.node()) }
            };
            // The timer's waker is dropped here, after the guard, since its drop may run user code.
            drop(found);
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}
