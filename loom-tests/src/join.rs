//! The join handle is on another core than its task.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use trapline::platform::InInterrupt::{self, No, Unknown};
use trapline::{JoinError, JoinHandle, stackful};

use crate::harness::{Counter, Drops, Payload, Signal, bounded, model, poll_once, runtime};

/// The operations of another core on the handle of a task that is ready at its first poll. Returns
/// the counter of its waker, if it used one: at the end of the model no clone of that waker may
/// exist.
type Joiner = fn(JoinHandle<Payload>) -> Option<Arc<Counter>>;

/// Checks `joiner` against the end of a plain task.
fn against_completion(in_interrupt: InInterrupt, joiner: Joiner) {
    against_end(in_interrupt, false, joiner);
}

/// Checks `joiner` against the end of a plain or a stackful task.
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
            assert_eq!(Arc::strong_count(&counter), 1, "a clone of the join waker was not dropped");
        }
    };
    // With a stack there are too many steps to check all runs.
    if on_a_stack { bounded(2, in_interrupt, body) } else { model(in_interrupt, body) }
}

/// Awaits the output: the wake is not lost, and the output is seen.
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

/// A stackful task sets DONE while it is on its stack.
#[test]
fn join_against_a_stackful_completion() {
    against_end(No, true, join);
}

/// The handle is never polled, and is dropped before, while or after the task ends.
#[test]
fn join_handle_dropped() {
    against_completion(Unknown, |handle| {
        drop(handle);
        None
    });
}

/// The handle is dropped after a poll has left a waker in it: that waker is woken or dropped, and
/// no clone of it is left in either case.
#[test]
fn join_handle_dropped_after_poll() {
    against_completion(Unknown, |mut handle| {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(counter.clone());
        let polled = poll_once(&mut handle, &waker);
        drop(handle);
        if let Poll::Ready(output) = polled {
            drop(output.unwrap());
            assert_eq!(counter.wakes(), 0, "the waker was woken though the output was ready");
        }
        drop(waker);
        Some(counter)
    });
}

/// The latest waker counts. A waker that was replaced is dropped, or woken if it was replaced too
/// late.
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

/// The task never ends by itself, and the shutdown wakes the joiner.
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
        // The joiner may have held the last reference, which the second shutdown frees.
        runtime.shutdown().unwrap();
    });
}
