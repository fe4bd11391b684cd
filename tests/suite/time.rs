//! Sleeping and giving up.

use alloc::vec;
use alloc::vec::Vec;

use trapline::time::{Elapsed, Instant, now, sleep, sleep_until, timeout};
use trapline::{spawn, yield_now};

use crate::support::*;

pub fn sleepers_wake_in_the_order_of_their_deadlines() {
    let trace = Trace::new();
    run(async {
        let start = now() + ms(50);
        // Equal deadlines in the order in which they were set.
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
    assert_eq!(trace.events(), ["past", "a", "b", "b again", "c"]);
}

/// The core never parks and has nothing on a stack, so nobody but the loop sets the alarm.
pub fn a_sleeper_wakes_beside_a_task_that_only_yields() {
    run(async {
        let woken = Count::new();
        let counts = woken.clone();
        let sleeper = spawn(async move {
            // Each sets the alarm anew: the first from scratch, the second when it has fired.
            sleep(ms(1)).await;
            sleep(ms(1)).await;
            counts.add();
        });
        let give_up = now() + ms(10_000);
        while woken.get() == 0 {
            assert!(now() < give_up, "nobody has set the alarm");
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
        // Long past, and ready at once.
        sleep_until(Instant::from_nanos(0)).await;
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
                // Leaves its waker with a timer that is dropped.
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
        // Polled once, so that its timer is set.
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
        // Every third gives up before its time.
        for sleeper in sleepers.iter().step_by(3) {
            sleeper.abort();
        }
        for (number, sleeper) in sleepers.into_iter().enumerate() {
            assert_eq!(sleeper.await.is_err(), number % 3 == 0);
        }
    });
}
