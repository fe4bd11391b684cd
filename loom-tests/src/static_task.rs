//! Spawns in one static cell, one after the other and at the same time.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};

use trapline::platform::InInterrupt::Unknown;
use trapline::{SpawnErrorReason, StaticTask};

use crate::harness::{Drops, keep, model, runtime};

type Future = Pin<Box<dyn std::future::Future<Output = ()> + Send>>;

/// The last waker of a finished task is dropped on another core, while this core spawns in the
/// task's cell. Either the spawn finds the cell as the first task left it, or it is refused.
#[test]
fn spawn_against_the_last_waker() {
    model(Unknown, || {
        let runtime = runtime();
        let cell = keep(StaticTask::<Future>::new());
        let drops = Drops::default();
        let waker = Arc::new(Mutex::new(None::<Waker>));
        let first: Future = Box::pin({
            let (waker, payload) = (waker.clone(), drops.payload());
            poll_fn(move |context| {
                let _part_of_the_future = &payload;
                *waker.lock().unwrap() = Some(context.waker().clone());
                Poll::Ready(())
            })
        });
        let handle = cell.spawn_on(runtime, first).unwrap();
        runtime.run_until(handle).unwrap().unwrap();
        let waker = waker.lock().unwrap().take().unwrap();
        let other = loom::thread::spawn(move || drop(waker));
        let second = || -> Future {
            let payload = drops.payload();
            Box::pin(async move { drop(payload) })
        };
        let spawned = cell.spawn_on(runtime, second());
        other.join().unwrap();
        let task = spawned.unwrap_or_else(|error| {
            assert_eq!(error.reason, SpawnErrorReason::InUse);
            cell.spawn_on(runtime, error.future).unwrap()
        });
        runtime.run_until(task).unwrap().unwrap();
        cell.spawn_on(runtime, second()).unwrap();
        runtime.shutdown().unwrap();
        drops.assert_all_dropped();
        assert_eq!(drops.made(), 3);
    });
}

/// Two cores spawn in one cell: one of the spawns succeeds, and the other one gives its future
/// back.
#[test]
fn spawn_against_spawn() {
    model(Unknown, || {
        let runtime = runtime();
        let cell = keep(StaticTask::<Future>::new());
        let drops = Drops::default();
        let spawn = {
            let drops = drops.clone();
            move || {
                let payload = drops.payload();
                let future: Future = Box::pin(async move { drop(payload) });
                match cell.spawn_on(runtime, future) {
                    Ok(_detached) => 1,
                    Err(error) => {
                        assert_eq!(error.reason, SpawnErrorReason::InUse);
                        0
                    }
                }
            }
        };
        let other = loom::thread::spawn(spawn.clone());
        let spawned = spawn() + other.join().unwrap();
        assert_eq!(spawned, 1);
        runtime.shutdown().unwrap();
        drops.assert_all_dropped();
    });
}
