//! Aborts from another core.

use std::future::poll_fn;
use std::task::Poll;

use trapline::JoinError;
use trapline::platform::InInterrupt::{self, No, Unknown};

use crate::harness::{Drops, FireOnDrop, Signal, bounded, runtime};

/// Another core aborts a task that would wait for ever: before, while or after it is polled.
fn against_poll(in_interrupt: InInterrupt) {
    // Without the bound this takes minutes.
    bounded(3, in_interrupt, || {
        let runtime = runtime();
        let signal = Signal::default();
        let future = Drops::default();
        let handle = runtime.spawn({
            let parts = (future.payload(), FireOnDrop(signal.clone()));
            poll_fn(move |_| {
                let _parts_of_the_future = &parts;
                Poll::<()>::Pending
            })
        });
        let aborter = loom::thread::spawn(move || {
            handle.abort();
            trapline::block_on(handle)
        });
        runtime.run_until(signal.wait(1)).unwrap();
        assert!(matches!(aborter.join().unwrap(), Err(JoinError::Aborted)));
        assert_eq!(future.dropped(), 1);
        runtime.shutdown().unwrap();
    });
}

#[test]
fn abort_against_poll() {
    against_poll(Unknown);
}

#[test]
fn abort_against_poll_fast_path() {
    against_poll(No);
}

/// Another core aborts a task that is ready at its first poll. The handle gives the output or the
/// error, and nothing is dropped twice.
#[test]
fn abort_against_completion() {
    // Without the bound this takes minutes.
    bounded(3, Unknown, || {
        let runtime = runtime();
        let signal = Signal::default();
        let (future, output) = (Drops::default(), Drops::default());
        let handle = runtime.spawn({
            let parts = (future.payload(), FireOnDrop(signal.clone()));
            let output = output.clone();
            poll_fn(move |_| {
                let _parts_of_the_future = &parts;
                Poll::Ready(output.payload())
            })
        });
        let aborter = loom::thread::spawn(move || {
            handle.abort();
            trapline::block_on(handle)
        });
        runtime.run_until(signal.wait(1)).unwrap();
        match aborter.join().unwrap() {
            Ok(payload) => drop(payload),
            Err(JoinError::Aborted) => assert_eq!(output.made(), 0),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(future.dropped(), 1);
        output.assert_all_dropped();
        runtime.shutdown().unwrap();
    });
}
