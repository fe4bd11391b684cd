//! Giving the others a turn.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::Runtime;
use crate::task::waker::task_of;

/// Lets every other task that is ready have its turn first. Cancel-safe.
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
        // Its own task doesn't have to be woken to be polled again: it is still there.
        match (Runtime::current(), task_of(context.waker())) {
            (Some(runtime), task @ Some(_)) if runtime.current_task() == task => {
                runtime.yield_current();
            }
            _ => context.waker().wake_by_ref(),
        }
        Poll::Pending
    }
}
