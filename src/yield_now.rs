//! Yielding the core to other tasks.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::task::waker::running_in;

/// Lets other tasks have the core first. Cancel-safe.
///
/// A plain task goes behind all plain tasks that are ready by now, including those whose timers are
/// due. It does not go behind stackful tasks. Those get the core when no plain task is ready, and a
/// twelfth of the time beside plain tasks that keep the core.
///
/// A stackful task goes behind the plain tasks, behind stackful tasks that were woken, and behind
/// stackful tasks that used up a slice or yielded earlier.
///
/// A task that wakes itself and returns `Pending`, as the yields of other crates do, goes to the
/// same place. (For a stackful task, this holds if
/// [`in_interrupt`](crate::platform::Platform::in_interrupt) says `No`.)
pub fn yield_now() -> YieldNow {
    YieldNow { yielded: false }
}

/// The future that [`yield_now`] returns.
#[derive(Debug)]
#[must_use = "futures do nothing unless awaited"]
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        yield_in(context);
        Poll::Pending
    }
}

/// Makes the loop poll the running task again, after the other tasks that are ready.
#[inline]
pub(crate) fn yield_in(context: &Context<'_>) {
    // The running task needs no wake to be polled again: its runtime still has it.
    match running_in(context.waker()) {
        Some(runtime) => runtime.yield_current(),
        None => context.waker().wake_by_ref(),
    }
}
