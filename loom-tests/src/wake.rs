//! Wakes, while the owning core polls, finishes, parks or yields.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use trapline::platform::InInterrupt::{self, No, Unknown};
use trapline::yield_now;

use crate::harness::{Drops, FireOnDrop, Signal, Threads, bounded, model, runtime};

/// Returns two flags that loom checks.
fn flags() -> [Arc<AtomicBool>; 2] {
    std::array::from_fn(|_| Arc::new(AtomicBool::new(false)))
}

/// Two threads each write a flag and wake the task. If a wake or the write before it were lost, the
/// task would wait for ever. The second of the two wakes finds READY set.
fn against_poll(in_interrupt: InInterrupt) {
    // Without the bound this takes many minutes.
    bounded(2, in_interrupt, || {
        let runtime = runtime();
        let flags = flags();
        let threads = Threads::default();
        let mut started = false;
        let both = poll_fn(|context| {
            if !std::mem::replace(&mut started, true) {
                for flag in flags.clone() {
                    let waker = context.waker().clone();
                    threads.start(move || {
                        // Relaxed: only the wake may order this store.
                        flag.store(true, Relaxed);
                        waker.wake();
                    });
                }
            }
            let set = flags.iter().all(|flag| flag.load(Relaxed));
            if set { Poll::Ready(()) } else { Poll::Pending }
        });
        runtime.run_until(both).unwrap();
        threads.join();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_against_poll() {
    against_poll(Unknown);
}

#[test]
fn wake_against_poll_fast_path() {
    against_poll(No);
}

/// The same for a core that is parked in `block_on`, outside of any runtime.
#[test]
fn wake_against_block_on() {
    // Without the bound this takes a minute.
    bounded(3, Unknown, || {
        let flags = flags();
        let threads = Threads::default();
        let mut started = false;
        trapline::block_on(poll_fn(|context| {
            if !std::mem::replace(&mut started, true) {
                for flag in flags.clone() {
                    let waker = context.waker().clone();
                    threads.start(move || {
                        flag.store(true, Relaxed);
                        waker.wake();
                    });
                }
            }
            let set = flags.iter().all(|flag| flag.load(Relaxed));
            if set { Poll::Ready(()) } else { Poll::Pending }
        }));
        threads.join();
    });
}

/// Two wakers outlive the only poll of their task. They find the task RUNNING, done, or held by
/// themselves alone, and the last one sees to it that the task is freed. (The model drops the join
/// handle first: its reference would outlive the wakers.)
fn against_completion(in_interrupt: InInterrupt) {
    model(in_interrupt, || {
        let runtime = runtime();
        let threads = Threads::default();
        let signal = Signal::default();
        let (future, output) = (Drops::default(), Drops::default());
        let handle = runtime.spawn({
            let parts = (future.payload(), FireOnDrop(signal.clone()));
            let (threads, output) = (threads.clone(), output.clone());
            poll_fn(move |context| {
                let _parts_of_the_future = &parts;
                let waker = context.waker().clone();
                threads.start(move || {
                    waker.wake_by_ref();
                    drop(waker);
                });
                let waker = context.waker().clone();
                threads.start(move || drop(waker));
                Poll::Ready(output.payload())
            })
        });
        drop(handle);
        runtime.run_until(signal.wait(1)).unwrap();
        threads.join();
        runtime.shutdown().unwrap();
        assert_eq!((future.dropped(), output.dropped()), (1, 1));
    });
}

#[test]
fn wake_against_completion() {
    against_completion(Unknown);
}

#[test]
fn wake_against_completion_fast_path() {
    against_completion(No);
}

/// The core has no ready task and parks, for the first time, when another core spawns a task: the
/// core is notified, or it finds the task before it parks.
fn against_park(in_interrupt: InInterrupt) {
    model(in_interrupt, || {
        let runtime = runtime();
        let signal = Signal::default();
        let spawner = loom::thread::spawn({
            let signal = signal.clone();
            move || runtime.spawn(async move { signal.fire() })
        });
        runtime.run_until(signal.wait(1)).unwrap();
        let handle = spawner.join().unwrap();
        assert!(handle.is_finished());
        drop(handle);
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_against_park() {
    against_park(Unknown);
}

#[test]
fn wake_against_park_fast_path() {
    against_park(No);
}

/// Another core wakes a task that has yielded and is still in the queue. The poll after the yield
/// sees what was written before the wake, or there is one more poll.
fn against_yield(in_interrupt: InInterrupt) {
    bounded(3, in_interrupt, || {
        let runtime = runtime();
        let [flag, _] = flags();
        let threads = Threads::default();
        let mut polls = 0;
        let task = runtime.spawn({
            let threads = threads.clone();
            poll_fn(move |context| {
                polls += 1;
                if polls == 1 {
                    let (flag, waker) = (flag.clone(), context.waker().clone());
                    threads.start(move || {
                        flag.store(true, Relaxed);
                        waker.wake();
                    });
                }
                if flag.load(Relaxed) {
                    return Poll::Ready(());
                }
                if polls == 1 {
                    let _pending = pin!(yield_now()).poll(context);
                }
                Poll::Pending
            })
        });
        runtime.run_until(task).unwrap().unwrap();
        threads.join();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_against_yield() {
    against_yield(Unknown);
}

#[test]
fn wake_against_yield_fast_path() {
    against_yield(No);
}

/// Another task of the same core and another core wake a task. The task is queued once, and sees
/// what both wrote.
fn from_here_and_elsewhere(in_interrupt: InInterrupt) {
    bounded(3, in_interrupt, || {
        let runtime = runtime();
        let [flag, _] = flags();
        let threads = Threads::default();
        let here = Signal::default();
        let task = runtime.spawn({
            let (threads, here) = (threads.clone(), here.clone());
            let mut started = false;
            let mut here = Box::pin(here.wait(1));
            poll_fn(move |context| {
                if !std::mem::replace(&mut started, true) {
                    let (flag, waker) = (flag.clone(), context.waker().clone());
                    threads.start(move || {
                        flag.store(true, Relaxed);
                        waker.wake();
                    });
                }
                let fired = here.as_mut().poll(context).is_ready();
                if fired && flag.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
            })
        });
        drop(runtime.spawn(async move { here.fire() }));
        runtime.run_until(task).unwrap().unwrap();
        threads.join();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_from_here_and_elsewhere() {
    from_here_and_elsewhere(Unknown);
}

#[test]
fn wake_from_here_and_elsewhere_fast_path() {
    from_here_and_elsewhere(No);
}

/// In its poll, a task lends its waker to another core without a reference, and drops its own join
/// handle meanwhile. No wake and no clone is lost by that.
fn lent(clones: bool) {
    model(No, move || {
        let runtime = runtime();
        let handle = std::sync::Arc::new(std::sync::Mutex::new(None));
        let own = handle.clone();
        let [done, _] = flags();
        let finished = done.clone();
        let mut started = false;
        let task = poll_fn(move |context| {
            if !std::mem::replace(&mut started, true) {
                // SAFETY: the other thread is joined below, before the poll returns, so the waker
                // outlives its use.
                let waker: &'static Waker = unsafe { std::mem::transmute(context.waker()) };
                let other = loom::thread::spawn(move || {
                    if clones {
                        drop(waker.clone());
                    }
                    waker.wake_by_ref();
                });
                drop(own.lock().unwrap().take());
                other.join().unwrap();
                return Poll::Pending;
            }
            finished.store(true, Relaxed);
            Poll::Ready(())
        });
        *handle.lock().unwrap() = Some(runtime.spawn(task));
        let turns = async {
            for _ in 0..4 {
                trapline::yield_now().await;
            }
        };
        runtime.run_until(turns).unwrap();
        assert!(done.load(Relaxed), "the wake was lost");
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_by_a_lent_waker() {
    lent(false);
}

#[test]
fn clone_of_a_lent_waker() {
    lent(true);
}
