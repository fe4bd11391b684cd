//! Sleeps and timeouts.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use trapline::time::{Elapsed, Instant, Sleep, now, sleep, sleep_until, timeout};
use trapline::{Runtime, spawn, stackful, yield_now};

use crate::support::*;

pub fn sleepers_wake_in_the_order_of_their_deadlines() {
    let trace = Trace::new();
    run(async {
        let start = now() + ms(50);
        // Timers with equal deadlines fire in the order in which they were set.
        let sleepers: Vec<_> = [("c", 3), ("a", 1), ("b", 2), ("b again", 2), ("past", 0)]
            .map(|(name, after)| {
                let trace = trace.clone();
                spawn(async move {
                    sleep_until(start + ms(after)).await;
                    trace.note(name);
                })
            })
            .into_iter()
            .collect();
        for sleeper in sleepers {
            sleeper.await.unwrap();
        }
    });
    assert_eq!(
        trace.events(),
        [
            "past",    // due at 0 ms
            "a",       // due at 1 ms
            "b",       // due at 2 ms, set first
            "b again", // due at 2 ms, set second
            "c",       // due at 3 ms
        ]
    );
}

/// The core never parks and has no task on a stack, so only the loop can set the alarm.
pub fn a_sleeper_wakes_beside_a_task_that_only_yields() {
    run(async {
        let woken = Count::new();
        let counts = woken.clone();
        let sleeper = spawn(async move {
            // Each sleep sets the alarm anew: the first when no alarm is set, the second after the
            // alarm has fired.
            sleep(ms(1)).await;
            sleep(ms(1)).await;
            counts.add();
        });
        let give_up = now() + ms(10_000);
        while woken.get() == 0 {
            assert!(now() < give_up, "the alarm was not set");
            yield_now().await;
        }
        sleeper.await.unwrap();
    });
}

pub fn sleep_never_ends_early() {
    run(async {
        for micros in [0, 1, 10, 100, 1000, 5000] {
            let duration = core::time::Duration::from_micros(micros);
            let deadline = now() + duration;
            sleep(duration).await;
            assert!(now() >= deadline);
        }
        // The deadline is long past.
        sleep_until(Instant::from_nanos(0)).await;
    });
}

/// A `sleep` that is already over yields once: a loop around it would keep the core otherwise. A
/// `timeout` that is already over does not yield.
pub fn a_sleep_that_is_over_lets_others_run() {
    run(async {
        let others = Count::new();
        let counts = others.clone();
        let other = spawn(async move {
            for _ in 0..3 {
                counts.add();
                yield_now().await;
            }
        });
        for turn in 1..=3 {
            if turn % 2 == 0 {
                sleep(ms(0)).await;
            } else {
                sleep_until(Instant::from_nanos(0)).await;
            }
            assert_eq!(others.get(), turn);
        }
        assert_eq!(timeout(ms(0), never()).await, Err(Elapsed));
        assert_eq!(others.get(), 3);
        other.await.unwrap();
    });
}

pub fn timeout_gives_the_output_or_gives_up() {
    run(async {
        let drops = Count::new();
        assert_eq!(timeout(ms(1000), async { 4 }).await, Ok(4));
        let late = Counted::new(never(), &Count::new(), &drops);
        assert_eq!(timeout(ms(2), late).await, Err(Elapsed));
        assert_eq!(drops.get(), 1);
        let slow = async {
            sleep(ms(2)).await;
            5
        };
        assert_eq!(timeout(ms(1000), slow).await, Ok(5));
    });
}

pub fn dropped_sleep_wakes_nobody() {
    let polls = Count::new();
    run(async {
        let counts = polls.clone();
        let task = spawn(Counted::new(
            async {
                // The timeout leaves the task's waker in a timer that is dropped.
                let _ = timeout(ms(1), never()).await;
                let short = sleep(ms(20));
                drop(timeout(ms(1), short));
                never().await
            },
            &counts,
            &Count::new(),
        ));
        sleep(ms(10)).await;
        assert_eq!(polls.get(), 2);
        task.abort();
        let _ = task.await;
    });
}

pub fn timer_that_comes_due_outside_fires_inside() {
    let runtime = runtime();
    let sleeper = run_on(runtime, async {
        let sleeper = spawn(async { sleep(ms(3)).await });
        // The task is polled once, so its timer is set.
        turns(2).await;
        [sleeper]
    });
    let until = now() + ms(6);
    while now() < until {}
    let [sleeper] = sleeper;
    run_on(runtime, sleeper).unwrap();
}

pub fn many_sleepers() {
    let seed = 0x9e37_79b9_7f4a_7c15_u64;
    hal_shim::print!("(seed {seed:#x}) ");
    run(async {
        let mut random = seed;
        let mut sleepers = vec![];
        for _ in 0..300 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let after = core::time::Duration::from_micros((random >> 33) % 20_000);
            sleepers.push(spawn(async move {
                let deadline = now() + after;
                sleep_until(deadline).await;
                assert!(now() >= deadline);
                yield_now().await;
            }));
        }
        // Every third task is aborted before its deadline.
        for sleeper in sleepers.iter().step_by(3) {
            sleeper.abort();
        }
        for (number, sleeper) in sleepers.into_iter().enumerate() {
            assert_eq!(sleeper.await.is_err(), number % 3 == 0);
        }
    });
}

/// Returns a sleep that was polled in `runtime` once, before it was due.
fn begun_in(runtime: &'static Runtime, milliseconds: u64) -> Pin<Box<Sleep>> {
    loop {
        let mut begun = Box::pin(sleep(ms(milliseconds)));
        let poll = poll_fn(|context| Poll::Ready(begun.as_mut().poll(context)));
        if run_on(runtime, poll).is_pending() {
            return begun;
        }
    }
}

pub fn a_sleep_goes_on_in_another_runtime() {
    let (first, second) = (runtime(), runtime());
    let begun = begun_in(first, 5);
    let deadline = begun.deadline();
    run_on(second, begun);
    assert!(now() >= deadline);
    // The moved sleep is polled by hand in a second runtime, then awaited by a task in a third.
    // Another sleep stays in the first runtime.
    let third = runtime();
    let (moved, stays) = (begun_in(first, 5), begun_in(first, 1));
    let mut moved = Some(moved);
    let moved = run_on(
        second,
        poll_fn(|context| {
            let mut moved = moved.take().unwrap();
            let _ = moved.as_mut().poll(context);
            Poll::Ready(moved)
        }),
    );
    let deadline = moved.deadline();
    run_on(third, async { spawn(stackful(moved)).await.unwrap() });
    assert!(now() >= deadline);
    run_on(first, stays);
}

pub fn a_sleep_outlives_the_runtime_that_it_began_in() {
    let (first, second) = (runtime(), runtime());
    let (begun, again, dropped) = (begun_in(first, 5), begun_in(first, 6), begun_in(first, 7));
    first.shutdown().unwrap();
    drop(dropped);
    let deadline = again.deadline();
    run_on(second, async {
        spawn(begun).await.unwrap();
        spawn(stackful(again)).await.unwrap();
    });
    assert!(now() >= deadline);
}

/// A waker that counts its wakes and belongs to no task.
struct Counting(Count);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.add();
    }
}

pub fn a_shutdown_wakes_what_sleeps() {
    let (first, second) = (runtime(), runtime());
    let woken = Count::new();
    let waker = Waker::from(Arc::new(Counting(woken.clone())));
    let mut sleeps: Vec<_> = [2000, 300, 1000].map(|after| Box::pin(sleep(ms(after)))).into();
    run_on(first, async {
        for sleep in &mut sleeps {
            assert!(sleep.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        // The shutdown drops this task, and its timer with it.
        spawn(sleep(ms(1500)));
        yield_now().await;
    });
    assert_eq!(woken.get(), 0);
    first.shutdown().unwrap();
    assert_eq!(woken.get(), 3);
    first.shutdown().unwrap();
    assert_eq!(woken.get(), 3);
    // The shutdown wakes the sleep's waker, but the sleep is not over before its deadline.
    let short = sleeps.remove(1);
    let deadline = short.deadline();
    run_on(second, short);
    assert!(now() >= deadline);
}

/// While the runtime is shut down, the drop of a task's future polls a sleep by hand.
pub fn a_sleep_that_begins_in_a_shutdown() {
    struct Begins(Option<Pin<Box<Sleep>>>, Waker, Arc<spin::Mutex<Option<Pin<Box<Sleep>>>>>);
    impl Drop for Begins {
        fn drop(&mut self) {
            let mut sleep = self.0.take().unwrap();
            assert!(sleep.as_mut().poll(&mut Context::from_waker(&self.1)).is_pending());
            *self.2.lock() = Some(sleep);
        }
    }
    let (first, second) = (runtime(), runtime());
    let woken = Count::new();
    let waker = Waker::from(Arc::new(Counting(woken.clone())));
    let kept = Arc::new(spin::Mutex::new(None));
    let begins = Begins(Some(Box::pin(sleep(ms(300)))), waker, kept.clone());
    first.spawn(async move {
        let _begins = begins;
        never().await
    });
    run_on(first, yield_now());
    first.shutdown().unwrap();
    assert_eq!(woken.get(), 1);
    let sleep = kept.lock().take().unwrap();
    let deadline = sleep.deadline();
    run_on(second, sleep);
    assert!(now() >= deadline);
}
