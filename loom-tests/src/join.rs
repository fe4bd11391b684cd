//! The join handle on another core than the task's.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use trapline::platform::InInterrupt::{self, No, Unknown};
use trapline::{JoinError, JoinHandle, stackful};

use crate::harness::{Counter, Drops, Payload, Signal, bounded, model, poll_once, runtime};

/// What another core does with the handle of a task that is done at its first poll. It may return
/// what its waker counted, of which nobody must hold a clone any more in the end.
type Joiner = fn(JoinHandle<Payload>) -> Option<Arc<Counter>>;

fn against_completion(in_interrupt: InInterrupt, joiner: Joiner) {
    against_end(in_interrupt, false, joiner);
}

fn against_end(in_interrupt: InInterrupt, on_a_stack: bool, joiner: Joiner) {
    let body = move || {
        let runtime = runtime();
        let signal = Signal::default();
        let (future, output) = (Drops::default(), Drops::default());
        let task = {
            let (signal, payload, output) = (signal.clone(), future.payload(), output.clone());
            poll_fn(move |_| {
                let _part_of_the_future = &payload;
                signal.fire();
                Poll::Ready(output.payload())
            })
        };
        let handle = if on_a_stack { runtime.spawn(stackful(task)) } else { runtime.spawn(task) };
        let joiner = loom::thread::spawn(move || joiner(handle));
        runtime.run_until(signal.wait(1)).unwrap();
        let counter = joiner.join().unwrap();
        runtime.shutdown().unwrap();
        assert_eq!((future.dropped(), output.dropped()), (1, 1));
        if let Some(counter) = counter {
            assert_eq!(Arc::strong_count(&counter), 1, "clones of the join waker");
        }
    };
    // The way through a stack has too many steps to be checked in full.
    if on_a_stack { bounded(2, in_interrupt, body) } else { model(in_interrupt, body) }
}

/// The joiner's wake is not lost, and it sees the output.
fn join(handle: JoinHandle<Payload>) -> Option<Arc<Counter>> {
    drop(trapline::block_on(handle).unwrap());
    None
}

#[test]
fn join_against_completion() {
    against_completion(Unknown, join);
}

#[test]
fn join_against_completion_fast_path() {
    against_completion(No, join);
}

/// A stackful task sets DONE on its stack.
#[test]
fn join_against_a_stackful_completion() {
    against_end(No, true, join);
}

/// Never polled, and dropped before, while or after the task is done.
#[test]
fn join_handle_dropped() {
    against_completion(Unknown, |handle| {
        drop(handle);
        None
    });
}

/// Dropped with a waker in its cell: that one is woken or dropped, and gone in both cases.
#[test]
fn join_handle_dropped_after_poll() {
    against_completion(Unknown, |mut handle| {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(counter.clone());
        let polled = poll_once(&mut handle, &waker);
        drop(handle);
        if let Poll::Ready(output) = polled {
            drop(output.unwrap());
            assert_eq!(counter.wakes(), 0, "wakes of a waker that was not needed");
        }
        drop(waker);
        Some(counter)
    });
}

/// The latest waker counts. One that was replaced is dropped, or woken if it was late.
#[test]
fn join_waker_replaced() {
    against_completion(Unknown, |mut handle| {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(counter.clone());
        match poll_once(&mut handle, &waker) {
            Poll::Ready(output) => drop(output.unwrap()),
            Poll::Pending => drop(trapline::block_on(handle).unwrap()),
        }
        drop(waker);
        Some(counter)
    });
}

/// The task never ends by itself; the shutdown tells who waits for it.
#[test]
fn join_against_shutdown() {
    model(Unknown, || {
        let runtime = runtime();
        let future = Drops::default();
        let payload = future.payload();
        let handle = runtime.spawn(async move {
            let _part_of_the_future = payload;
            std::future::pending::<()>().await;
        });
        let joiner = loom::thread::spawn(move || trapline::block_on(handle));
        let report = runtime.shutdown().unwrap();
        assert_eq!((report.dropped, report.stacks_with_frames), (1, 0));
        assert!(matches!(joiner.join().unwrap(), Err(JoinError::Aborted)));
        assert_eq!(future.dropped(), 1);
        // The joiner may have been the last to hold a reference.
        runtime.shutdown().unwrap();
    });
}
