//! A future with a limit to the time that it takes.

use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use crate::time::sleep::{Sleep, sleep};

/// The error of a [`timeout`]: the time was up before the future was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time was up before the future was done")
    }
}

impl core::error::Error for Elapsed {}

pin_project_lite::pin_project! {
    /// The future that [`timeout`] returns.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        #[pin]
        sleep: Sleep,
    }
}

/// Waits for `future`, but no longer than `duration` from now.
///
/// `future` is polled first, and at least once, so a result that is there in time is not lost. When
/// the time is up, the `Timeout` gives `Err(Elapsed)`; `future` is dropped with the `Timeout`.
///
/// A plain future that computes without awaiting cannot be timed out: the clock is read between its
/// polls. Nor can `stackful(timeout(..))`, where the computation and the timeout are one poll.
/// `timeout(.., stackful(..))` can be timed out: the computation is a child task, which is
/// preempted when the time is up, and the `Timeout` is ready. The drop of the `Timeout` aborts the
/// child. **That does not stop the child at once**: the child finishes the poll that it is in,
/// preempted as before, so a child that never awaits computes for ever. Code that computes for long
/// should look at a flag, or call [`yield_now`](crate::yield_now()) now and then.
///
/// Cancel-safe if `future` is.
///
/// # Panics
///
/// If it is polled outside of a runtime, as for [`Sleep`].
pub fn timeout<F: Future>(duration: Duration, future: F) -> Timeout<F> {
    Timeout { future, sleep: sleep(duration) }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(context) {
            return Poll::Ready(Ok(output));
        }
        this.sleep.poll_deadline(context).map(|()| Err(Elapsed))
    }
}
