//! Stackful tasks, whom an interrupt takes the core from between any two steps.

use std::future::poll_fn;
use std::task::Poll;

use trapline::platform::InInterrupt::{self, No, Perhaps};
use trapline::stackful;

use crate::harness::{Signal, interrupted, runtime};
use crate::platform::{Arrival, interrupt, on_timer};

/// The slice ends anywhere in the life of a task that yields once.
fn against_itself(in_interrupt: InInterrupt) {
    interrupted::<1>(None, in_interrupt, || {
        let runtime = runtime();
        let signal = Signal::default();
        let handle = runtime.spawn(stackful({
            let signal = signal.clone();
            async move {
                trapline::yield_now().await;
                signal.fire();
            }
        }));
        interrupt(Arrival::Perhaps, on_timer);
        runtime.run_until(signal.wait(1)).unwrap();
        runtime.run_until(handle).unwrap().unwrap();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn preemption_against_itself() {
    against_itself(Perhaps);
}

#[test]
fn preemption_against_itself_short_way() {
    against_itself(No);
}
