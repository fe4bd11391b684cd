//! Two cores: spawns, wakes, and what must not be shared.

use alloc::boxed::Box;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};

use trapline::time::{now, sleep};
use trapline::{Config, EnterError, Runtime, block_on, spawn, stackful};

use crate::support::*;

static JOB: spin::Mutex<Option<Box<dyn FnOnce() + Send>>> = spin::Mutex::new(None);

/// Runs `theirs` on another core beside `ours` on this one, and waits for both. With one core in the
/// machine, says so and does nothing.
fn beside<T>(theirs: impl FnOnce() + Send + 'static, ours: impl FnOnce() -> T) -> Option<T> {
    static DONE: Event = Event::constant();
    if hal_shim::cores() < 2 {
        hal_shim::print!("(one core: skipped) ");
        return None;
    }
    DONE.clear();
    *JOB.lock() = Some(Box::new(theirs));
    // A core that was just left may still be on its way out.
    let give_up = now() + ms(5_000);
    loop {
        let started = hal_shim::start_core(1, || {
            let job = JOB.lock().take();
            if let Some(job) = job {
                job();
            }
            DONE.set();
        });
        match started {
            Ok(()) => break,
            Err(hal_shim::StartError::Running) if now() < give_up => core::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
    let output = ours();
    // Parked: a core that spins keeps the other from running where QEMU counts instructions.
    block_on(DONE.wait());
    Some(output)
}

/// A runtime for the other core.
fn shared(config: Config) -> &'static Runtime {
    configured(config)
}

pub fn spawn_from_another_core() {
    let (here, there) = (runtime(), shared(Config::new()));
    let done = Event::new();
    let waits = done.clone();
    beside(
        move || run_on(there, async move { waits.wait().await }),
        || {
            let sum = run_on(here, async move {
                let mut sum = 0;
                for n in 0..100 {
                    let handle = there.spawn(async move {
                        assert_eq!(hal_shim::this_core(), 1);
                        n
                    });
                    sum += handle.await.unwrap();
                }
                let number = there.spawn(stackful(async { hal_shim::this_core() })).await.unwrap();
                assert_eq!(number, 1);
                sum
            });
            assert_eq!(sum, 4950);
            done.set();
        },
    );
}

pub fn wakes_back_and_forth() {
    const ROUNDS: usize = 300;
    static BALL: AtomicUsize = AtomicUsize::new(0);
    static EVENTS: [Event; 2] = [Event::constant(), Event::constant()];
    BALL.store(0, SeqCst);
    async fn play(me: usize) {
        for _ in 0..ROUNDS {
            core::future::poll_fn(|context| {
                let mut wait = core::pin::pin!(EVENTS[me].wait());
                let _ = wait.as_mut().poll(context);
                if BALL.load(SeqCst) % 2 == me {
                    core::task::Poll::Ready(())
                } else {
                    core::task::Poll::Pending
                }
            })
            .await;
            BALL.fetch_add(1, SeqCst);
            EVENTS[1 - me].set();
        }
    }
    let (here, there) = (runtime(), shared(Config::new()));
    let played = beside(move || run_on(there, play(1)), || run_on(here, play(0)));
    if played.is_some() {
        assert_eq!(BALL.load(SeqCst), 2 * ROUNDS);
    }
}

pub fn wake_from_another_core_preempts_at_once() {
    let there = shared(Config { slice: LONG, ..Config::new() });
    let running = Count::new();
    let woken = Count::new();
    let (runs, sees) = (running.clone(), woken.clone());
    let event = Event::new();
    let waits = event.clone();
    beside(
        move || {
            run_on(there, async move {
                let waiter = spawn(async move {
                    waits.wait().await;
                    woken.add();
                });
                turns(2).await;
                // Its slice never ends: only the other core's wake lets the waiter run.
                spawn(stackful(async move {
                    runs.add();
                    sees.spin_until(1);
                }))
                .await
                .unwrap();
                waiter.await.unwrap();
            })
        },
        || {
            running.spin_until(1);
            event.set();
        },
    );
    if hal_shim::cores() > 1 {
        assert_eq!(there.stats().preemptions, 1);
    }
}

pub fn parked_core_is_woken() {
    let there = shared(Config::new());
    let event = Event::new();
    let waits = event.clone();
    beside(
        move || run_on(there, async move { waits.wait().await }),
        || {
            let give_up = now() + ms(10_000);
            while there.stats().parks == 0 && now() < give_up {
                core::hint::spin_loop();
            }
            event.set();
        },
    );
    if hal_shim::cores() > 1 {
        assert!(there.stats().parks >= 1);
    }
}

pub fn two_cores_cannot_enter_one_runtime() {
    let one = runtime();
    let held = Count::new();
    let (holds, tried) = (held.clone(), Event::new());
    let waits = tried.clone();
    beside(
        move || {
            run_on(one, async move {
                holds.add();
                waits.wait().await;
            })
        },
        || {
            held.spin_until(1);
            let entered = one.run_until(async {});
            assert!(matches!(entered, Err(EnterError::OtherCore { owner: 1 })), "{entered:?}");
            let shut = one.shutdown();
            assert!(matches!(shut, Err(EnterError::OtherCore { owner: 1 })), "{shut:?}");
            tried.set();
        },
    );
}

pub fn sleep_moved_to_another_core() {
    static MOVED: AtomicPtr<trapline::time::Sleep> = AtomicPtr::new(core::ptr::null_mut());
    let (here, there) = (runtime(), shared(Config::new()));
    let go = Count::new();
    let goes = go.clone();
    beside(
        move || {
            goes.spin_until(1);
            // SAFETY: `here` made it by `Box::into_raw` and forgot it; it was pinned and still is.
            let mut sleep = unsafe { Pin::new_unchecked(Box::from_raw(MOVED.load(SeqCst))) };
            run_on(there, async {
                // Registered with the first core's timers, fired there, awaited here.
                sleep.as_mut().await;
            });
            drop(sleep);
        },
        || {
            run_on(here, async {
                let mut moved = Box::pin(sleep(ms(10)));
                core::future::poll_fn(|context| {
                    assert!(moved.as_mut().poll(context).is_pending());
                    core::task::Poll::Ready(())
                })
                .await;
                // SAFETY: it stays where it is: the other core makes a pinned box of it again.
                let moved = Box::into_raw(unsafe { Pin::into_inner_unchecked(moved) });
                MOVED.store(moved, SeqCst);
                go.add();
                sleep(ms(30)).await;
            });
        },
    );
}
