//! Giving the others a turn.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::task::waker::running_in;

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
        // The running task doesn't have to be woken to be polled again: its runtime still has it.
        match running_in(context.waker()) {
            Some(runtime) => runtime.yield_current(),
            None => context.waker().wake_by_ref(),
        }
        Poll::Pending
    }
}
