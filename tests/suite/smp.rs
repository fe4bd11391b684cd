//! Two cores: spawns, wakes, and what must not be shared.

use alloc::boxed::Box;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};
use core::task::{Poll, Waker};

use trapline::time::{now, sleep};
use trapline::{Config, EnterError, JoinHandle, Runtime, block_on, spawn, stackful, yield_now};

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
                // It was among the first core's timers, and is among this one's from now on.
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

/// The first core is not even in its runtime any more.
pub fn sleep_moved_to_another_core_needs_the_first_no_more() {
    let (here, there) = (runtime(), shared(Config::new()));
    let mut moved = Box::pin(sleep(ms(10)));
    let deadline = moved.deadline();
    run_on(
        here,
        poll_fn(|context| {
            assert!(moved.as_mut().poll(context).is_pending());
            Poll::Ready(())
        }),
    );
    beside(
        move || {
            run_on(there, moved);
            assert!(now() >= deadline);
        },
        || {},
    );
}

/// The core that has them fires them while the other takes them over or drops them.
pub fn sleeps_are_moved_and_dropped_while_they_are_due() {
    const ROUNDS: usize = 200;
    type Moved = spin::Mutex<Option<Pin<Box<trapline::time::Sleep>>>>;
    static MOVED: Moved = spin::Mutex::new(None);
    let (here, there) = (runtime(), shared(Config::new()));
    let done = Count::new();
    let counts = done.clone();
    beside(
        move || {
            run_on(there, async {
                for round in 0..ROUNDS {
                    let mut sleep = loop {
                        if let Some(sleep) = MOVED.lock().take() {
                            break sleep;
                        }
                        yield_now().await;
                    };
                    let deadline = sleep.deadline();
                    // From long before it is due to a little after that.
                    let wait = core::time::Duration::from_nanos(round as u64 % 20 * 10_000);
                    let until = now() + wait;
                    while now() < until {}
                    if round % 3 == 0 {
                        drop(sleep);
                    } else {
                        let ready =
                            poll_fn(|context| Poll::Ready(sleep.as_mut().poll(context))).await;
                        if round % 3 == 1 || ready.is_ready() {
                            drop(sleep);
                        } else {
                            sleep.await;
                            assert!(now() >= deadline);
                        }
                    }
                    counts.add();
                }
            });
        },
        || {
            run_on(here, async {
                for round in 0..ROUNDS {
                    let mut begun = Box::pin(sleep(core::time::Duration::from_micros(150)));
                    let pending =
                        poll_fn(|context| Poll::Ready(begun.as_mut().poll(context).is_pending()))
                            .await;
                    if !pending {
                        // Something else took the core for so long.
                        begun = Box::pin(sleep(core::time::Duration::from_micros(150)));
                    }
                    *MOVED.lock() = Some(begun);
                    done.reaches(round + 1).await;
                }
            });
        },
    );
}

static WAKERS: [spin::Mutex<Option<Waker>>; 8] = [const { spin::Mutex::new(None) }; 8];
static HANDLES: [spin::Mutex<Option<JoinHandle<OnDrop>>>; 8] =
    [const { spin::Mutex::new(None) }; 8];

/// What is counted of the tasks that meet.
#[derive(Clone, Default)]
struct Met {
    spawned: Count,
    futures_dropped: Count,
    outputs_made: Count,
    outputs_dropped: Count,
    /// Cores that spawn no more.
    finished: Count,
}

/// Leaves its waker in a place, is polled for wakes of its own, and waits until somebody takes the waker.
async fn meets(place: usize, yields: usize, _part: OnDrop, met: Met) -> OnDrop {
    let before =
        poll_fn(|context| Poll::Ready(WAKERS[place].lock().replace(context.waker().clone())));
    if let Some(waker) = before.await {
        waker.wake();
    }
    turns(yields).await;
    poll_fn(|context| {
        let there = WAKERS[place].lock();
        let is_mine = there.as_ref().is_some_and(|waker| waker.will_wake(context.waker()));
        if is_mine { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    met.outputs_made.add();
    met.outputs_dropped.on_drop()
}

/// What one core does to the tasks of both.
async fn meet(runtimes: [&'static Runtime; 2], mut random: u64, met: Met) {
    let mut below = |n: usize| {
        random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (random >> 33) as usize % n
    };
    for _ in 0..3_000 {
        let place = below(WAKERS.len());
        match below(6) {
            0 | 1 => {
                met.spawned.add();
                let part = met.futures_dropped.on_drop();
                let handle = runtimes[below(2)].spawn(meets(place, below(3), part, met.clone()));
                // The task of one that was there before runs on by itself.
                let _detached = HANDLES[below(HANDLES.len())].lock().replace(handle);
            }
            2 => {
                let taken = WAKERS[place].lock().take();
                taken.into_iter().for_each(Waker::wake);
            }
            3 => {
                let cloned = WAKERS[place].lock().clone();
                cloned.iter().for_each(Waker::wake_by_ref);
            }
            4 => {
                let taken = HANDLES[place].lock().take();
                if let Some(handle) = taken {
                    handle.abort();
                    if below(2) == 0 {
                        let _ = handle.await;
                    }
                }
            }
            _ => yield_now().await,
        }
    }
    met.finished.add();
    while met.finished.get() < 2 || met.futures_dropped.get() < met.spawned.get() {
        for place in &WAKERS {
            let taken = place.lock().take();
            taken.into_iter().for_each(Waker::wake);
        }
        yield_now().await;
    }
}

/// Both cores spawn, wake, abort and let go of each other's tasks, as it comes. No wake is lost, and
/// futures and outputs are dropped once.
pub fn tasks_of_two_cores_meet() {
    let met = Met::default();
    let (here, there) = (runtime(), shared(Config::new()));
    let theirs = met.clone();
    let met_them = beside(
        move || {
            run_on(there, meet([here, there], 1, theirs));
            there.shutdown().unwrap();
        },
        || run_on(here, meet([here, there], 2, met.clone())),
    );
    for place in &HANDLES {
        drop(place.lock().take());
    }
    here.shutdown().unwrap();
    if met_them.is_some() {
        assert!(met.spawned.get() > 1_000);
        assert_eq!(met.futures_dropped.get(), met.spawned.get());
        assert_eq!(met.outputs_dropped.get(), met.outputs_made.get());
    }
}
