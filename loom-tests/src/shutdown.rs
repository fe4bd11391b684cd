//! A shutdown, while other cores still use the runtime.

use std::future::poll_fn;
use std::task::Poll;

use trapline::platform::InInterrupt::{self, No, Unknown};
use trapline::{JoinError, SpawnErrorReason};

use crate::harness::{Drops, Signal, Threads, bounded, model, runtime};

/// A future that is spawned during the shutdown is dropped by the shutdown, or given back to the
/// spawner.
#[test]
fn spawn_against_shutdown() {
    model(Unknown, || {
        let runtime = runtime();
        let future = Drops::default();
        let spawner = loom::thread::spawn({
            let payload = future.payload();
            move || {
                runtime.try_spawn(async move {
                    let _part_of_the_future = payload;
                    std::future::pending::<()>().await;
                })
            }
        });
        let report = runtime.shutdown().unwrap();
        match spawner.join().unwrap() {
            Ok(handle) => {
                assert_eq!((report.dropped, future.dropped()), (1, 1));
                assert!(matches!(trapline::block_on(handle), Err(JoinError::Aborted)));
            }
            Err(error) => {
                assert_eq!(error.reason, SpawnErrorReason::ShutDown);
                assert_eq!((report.dropped, future.dropped()), (0, 0));
                drop(error);
                assert_eq!(future.dropped(), 1);
            }
        }
        // The handle is dropped outside of the runtime and may have been the last reference, which
        // the second shutdown frees.
        runtime.shutdown().unwrap();
    });
}

/// Two cores hold a waker each when the task's runtime shuts down. Each waker finds the task
/// BLOCKED, being dropped, or done. The last one hands the task to the runtime, and a second
/// shutdown frees it.
fn wake_against(in_interrupt: InInterrupt) {
    // Without the bound this takes minutes.
    bounded(4, in_interrupt, || {
        let runtime = runtime();
        let threads = Threads::default();
        let signal = Signal::default();
        let future = Drops::default();
        let handle = runtime.spawn({
            let (threads, signal, payload) = (threads.clone(), signal.clone(), future.payload());
            let mut polled = false;
            poll_fn(move |context| {
                let _part_of_the_future = &payload;
                if !std::mem::replace(&mut polled, true) {
                    for _ in 0..2 {
                        let waker = context.waker().clone();
                        threads.start(move || waker.wake());
                    }
                    signal.fire();
                }
                Poll::<()>::Pending
            })
        });
        drop(handle);
        runtime.run_until(signal.wait(1)).unwrap();
        let report = runtime.shutdown().unwrap();
        assert_eq!((report.dropped, future.dropped()), (1, 1));
        threads.join();
        let report = runtime.shutdown().unwrap();
        assert_eq!(report.dropped, 0);
    });
}

#[test]
fn wake_against_shutdown() {
    wake_against(Unknown);
}

#[test]
fn wake_against_shutdown_fast_path() {
    wake_against(No);
}
