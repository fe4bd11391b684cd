//! Two cores: spawns and wakes from one to the other, and operations that one of them must
//! refuse.

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::SeqCst};
use core::task::{Poll, Waker};
use core::time::Duration;

use trapline::preempt::{self, PreemptGuard};
use trapline::time::{now, sleep, timeout};
use trapline::{
    Config, EnterError, Hooks, JoinHandle, LocalSpawner, Runtime, StaticTask, TaskBuilder,
    block_on, contexted, current, spawn, stackful, task_local, yield_now,
};

use crate::support::*;

/// Starts a core. A core that has been left just now may still be shutting down, so this tries for
/// some time.
fn start(core: usize, program: fn()) {
    let give_up = now() + ms(5_000);
    loop {
        match hal_shim::start_core(core, program) {
            Ok(()) => break,
            Err(hal_shim::StartError::Running) if now() < give_up => core::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The closure that the other core is to run.
static JOB: spin::Mutex<Option<Box<dyn FnOnce() + Send>>> = spin::Mutex::new(None);

/// Runs `theirs` on another core and `ours` on this one at the same time, and waits for both. On a
/// machine with one core it prints that the test is skipped, and runs neither.
fn beside<T>(theirs: impl FnOnce() + Send + 'static, ours: impl FnOnce() -> T) -> Option<T> {
    static DONE: Event = Event::constant();
    if hal_shim::cores() < 2 {
        hal_shim::print!("(one core: skipped) ");
        return None;
    }
    DONE.clear();
    *JOB.lock() = Some(Box::new(theirs));
    start(1, || {
        let job = JOB.lock().take();
        if let Some(job) = job {
            job();
        }
        DONE.set();
    });
    let output = ours();
    // This core parks: where QEMU counts instructions, a core that spins keeps the other from
    // running.
    block_on(DONE.wait());
    Some(output)
}

/// Makes a runtime that the other core enters.
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

/// Two tasks on two cores wake each other in turns.
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
                // The slice never ends, so only the other core's wake lets the waiter run.
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
            // SAFETY: the task in `here` made the pointer with `Box::into_raw` and does not use it
            // any more. The sleep was pinned and has not moved.
            let mut sleep = unsafe { Pin::new_unchecked(Box::from_raw(MOVED.load(SeqCst))) };
            run_on(there, async {
                // The sleep's timer was in the first core's queue, and is now in the queue of this
                // one.
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
                // SAFETY: the sleep is not moved: the other core makes a pinned box of the same
                // memory.
                let moved = Box::into_raw(unsafe { Pin::into_inner_unchecked(moved) });
                MOVED.store(moved, SeqCst);
                go.add();
                sleep(ms(30)).await;
            });
        },
    );
}

/// Here the first core has left its runtime before the sleep is polled on the second core.
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

/// The first core fires the timers while the second core takes them over or drops them.
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
                    // The delays range from long before the deadline to a little after it.
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
                        // Something else took the core for so long that this sleep was already due.
                        begun = Box::pin(sleep(core::time::Duration::from_micros(150)));
                    }
                    *MOVED.lock() = Some(begun);
                    done.reaches(round + 1).await;
                }
            });
        },
    );
}

/// The wakers that the tasks of both cores leave in places.
static WAKERS: [spin::Mutex<Option<Waker>>; 8] = [const { spin::Mutex::new(None) }; 8];
static HANDLES: [spin::Mutex<Option<JoinHandle<OnDrop>>>; 8] =
    [const { spin::Mutex::new(None) }; 8];

/// The counters of [`tasks_of_two_cores_meet`].
#[derive(Clone, Default)]
struct Met {
    spawned: Count,
    futures_dropped: Count,
    outputs_made: Count,
    outputs_dropped: Count,
    /// How many cores have stopped spawning.
    finished: Count,
}

/// Puts its waker into a place, wakes the waker that was in that place before, and yields `yields`
/// times. Then it waits until its waker is no longer in the place.
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

/// Does random operations on the tasks of both cores.
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
                // The handle that was in that place is dropped, so its task is detached and runs
                // on.
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

/// Both cores spawn, wake, abort and detach each other's tasks at random. No wake is lost, and each
/// future and each output is dropped once.
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

/// A generator of pseudo-random numbers: the same seed gives the same numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 ^ self.0 >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn microseconds(&mut self, max: usize) -> Duration {
        Duration::from_micros(self.below(max) as u64)
    }
}

/// A value in a future, in an output, or in a panic's payload. It must be dropped once, and be
/// intact at that time.
struct Part {
    whole: [u64; 4],
    dropped: Count,
}

impl Part {
    const WHOLE: [u64; 4] = [0x7061_7274; 4];
}

impl Drop for Part {
    fn drop(&mut self) {
        assert_eq!(self.whole, Self::WHOLE, "a part was dropped twice or overwritten");
        self.whole = [0; 4];
        self.dropped.add();
    }
}

/// Hooks that count in `wrong` each call of `enter` or `leave` that is out of order. They do not
/// panic, since hooks must not.
#[derive(Default)]
struct InTurn {
    is_inside: AtomicUsize,
    wrong: Count,
}

impl Hooks for InTurn {
    fn enter(&self) {
        if self.is_inside.swap(1, SeqCst) != 0 {
            self.wrong.add();
        }
    }

    fn leave(&self) {
        if self.is_inside.swap(0, SeqCst) != 1 {
            self.wrong.add();
        }
    }
}

/// A future that does random operations.
type Acts = Pin<Box<dyn Future<Output = Part> + Send>>;

/// The state that the tasks of one storm share.
struct Storm {
    runtimes: Vec<&'static Runtime>,
    handles: [spin::Mutex<Option<JoinHandle<Part>>>; 16],
    wakers: [spin::Mutex<Option<Waker>>; 8],
    /// How many more tasks may be made.
    tasks: AtomicUsize,
    made: Count,
    dropped: Count,
    wrong: Count,
    /// How many cores have done all of their own operations.
    finished: Count,
}

static STORM: spin::Mutex<Option<Arc<Storm>>> = spin::Mutex::new(None);
static STORMS_CELLS: [StaticTask<Acts>; 4] = [const { StaticTask::new() }; 4];
/// The event that the software interrupt sets.
static SOFT: Event = Event::constant();

task_local! {
    static DEPTH: Cell<u64>;
}

/// Takes a lock that stackful tasks share. A guard forbids preemption while it is held: a preempted
/// holder would make the core's other tasks spin for ever.
fn locked<T, R>(place: &spin::Mutex<T>, f: impl FnOnce(&mut T) -> R) -> R {
    let _guard = PreemptGuard::new();
    f(&mut place.lock())
}

/// Computes for a random time, and checks that the values on its stack have not changed.
fn compute(random: &mut Random) {
    let mut values = [0_u64; 16];
    values.fill_with(|| random.next());
    let before = core::hint::black_box(values);
    for _ in 0..random.below(4_000) {
        core::hint::black_box(&mut values);
    }
    assert_eq!(values, before, "a task's stack has changed");
}

impl Storm {
    fn part(&self) -> Part {
        self.made.add();
        Part { whole: Part::WHOLE, dropped: self.dropped.clone() }
    }

    fn hooks(&self) -> Arc<InTurn> {
        Arc::new(InTurn { wrong: self.wrong.clone(), ..InTurn::default() })
    }

    /// Returns a future that does random operations; `None` if enough tasks have been made or
    /// `depth` is too large.
    fn acts(self: &Arc<Self>, random: &mut Random, depth: usize, panics: bool) -> Option<Acts> {
        let one_less = |tasks: usize| tasks.checked_sub(1);
        if depth > 2 || self.tasks.fetch_update(SeqCst, SeqCst, one_less).is_err() {
            return None;
        }
        let (storm, mut random, part) = (self.clone(), Random(random.next()), self.part());
        Some(Box::pin(async move {
            // Captures the whole `part`. If the block used only a field that is `Copy`, the future
            // would hold a copy of that field and no `Part` to drop.
            let part = part;
            for _ in 0..=random.below(6) {
                storm.act(&mut random, depth + 1, panics).await;
            }
            assert_eq!(part.whole, Part::WHOLE);
            storm.part()
        }))
    }

    /// Puts a handle into a place for other tasks. The handle that was there is dropped, so its
    /// task runs on detached.
    fn leave(&self, random: &mut Random, handle: JoinHandle<Part>) {
        let place = &self.handles[random.below(self.handles.len())];
        let _detached = locked(place, |place| place.replace(handle));
    }

    /// Takes the handle out of a random place.
    fn take(&self, random: &mut Random) -> Option<JoinHandle<Part>> {
        locked(&self.handles[random.below(self.handles.len())], Option::take)
    }

    /// Does one random operation. Every wait in it ends by itself or has a timeout.
    async fn act(self: &Arc<Self>, random: &mut Random, depth: usize, panics: bool) {
        let there = self.runtimes[random.below(self.runtimes.len())];
        let what = random.below(26);
        match what {
            // Operations that spawn a task.
            0..=7 => {
                let Some(acts) = self.acts(random, depth, true) else { return };
                let handle = match what {
                    0 => there.spawn(acts),
                    1 => there.spawn(stackful(acts)),
                    2 => there.spawn(contexted(acts, self.hooks())),
                    3 => there.spawn(contexted(stackful(acts), self.hooks())),
                    4 => spawn(stackful(contexted(acts, self.hooks()))),
                    5 => TaskBuilder::new().name("storm").spawn(acts).unwrap(),
                    6 => match LocalSpawner::current() {
                        Some(spawner) => {
                            let shared = Rc::new(random.next());
                            spawner.spawn(async move {
                                let before = *shared;
                                let part = acts.await;
                                assert_eq!(*shared, before);
                                part
                            })
                        }
                        None => spawn(acts),
                    },
                    _ => {
                        let cell = &STORMS_CELLS[random.below(STORMS_CELLS.len())];
                        let spawned = cell.spawn_on(there, acts);
                        let Ok(handle) = spawned else { return };
                        handle
                    }
                };
                self.leave(random, handle);
            }
            // Operations that make a part of this task.
            8..=12 => {
                // A child's panic is a panic of this task too, and the panic handler would report
                // it.
                let Some(acts) = self.acts(random, depth, panics && what == 11) else { return };
                match what {
                    8 => drop(stackful(acts).await),
                    9 => drop(timeout(random.microseconds(300), stackful(acts)).await),
                    10 => drop(contexted(stackful(acts), self.hooks()).await),
                    11 => {
                        let number = random.next();
                        let scoped = async {
                            drop(acts.await);
                            DEPTH.with(Cell::get)
                        };
                        assert_eq!(DEPTH.scope(Cell::new(number), scoped).await, number);
                    }
                    _ => {
                        let mut begun = Box::pin(stackful(acts));
                        let _ = poll_fn(|context| Poll::Ready(begun.as_mut().poll(context))).await;
                    }
                }
            }
            13 => {
                let first = self.acts(random, depth, false);
                let second = self.acts(random, depth, false);
                let (Some(first), Some(second)) = (first, second) else { return };
                let (mut first, mut second) = (stackful(first), stackful(second));
                poll_fn(|context| match Pin::new(&mut first).poll(context) {
                    Poll::Ready(part) => Poll::Ready(part),
                    Poll::Pending => Pin::new(&mut second).poll(context),
                })
                .await;
            }
            14 if current().is_some_and(|task| task.is_stackful()) => {
                match self.acts(random, depth, panics) {
                    Some(acts) => drop(block_on(timeout(random.microseconds(300), acts))),
                    None => block_on(sleep(random.microseconds(100))),
                }
            }
            15 | 16 => {
                if let Some(handle) = self.take(random) {
                    handle.abort();
                    if what == 15 {
                        let _ = timeout(random.microseconds(300), handle).await;
                    }
                }
            }
            17 => {
                if let Some(handle) = self.take(random) {
                    let _ = timeout(random.microseconds(300), handle).await;
                }
            }
            18 => {
                let place = &self.wakers[random.below(self.wakers.len())];
                let woken = poll_fn(|context| {
                    let mine = context.waker().clone();
                    let _before = locked(place, |place| place.replace(mine));
                    Poll::<()>::Pending
                });
                let _ = timeout(random.microseconds(100), woken).await;
            }
            19 => {
                let place = &self.wakers[random.below(self.wakers.len())];
                locked(place, Option::take).into_iter().for_each(Waker::wake);
            }
            20 => {
                SOFT.clear();
                let _ = timeout(random.microseconds(100), SOFT.wait()).await;
            }
            21 => hal_shim::interrupt::raise(),
            22 => {
                let guard = PreemptGuard::new();
                preempt::disable();
                compute(random);
                // SAFETY: pairs with the call of `disable` above.
                unsafe { preempt::enable() };
                drop(guard);
                preempt::point();
            }
            23 => drop(there.trim()),
            24 if panics && random.below(4) == 0 => {
                // Only where a panic does not end the machine. The panic is deliberate, so the
                // panic hook must not report it.
                #[cfg(not(target_os = "none"))]
                std::panic::resume_unwind(Box::new(self.part()));
            }
            25 => sleep(random.microseconds(100)).await,
            _ => {
                compute(random);
                yield_now().await;
            }
        }
    }

    /// Runs one core's share of the operations, and then waits until all parts of all cores are
    /// dropped.
    async fn core(self: &Arc<Self>, mut random: Random) {
        for _ in 0..100 {
            self.act(&mut random, 0, false).await;
        }
        self.finished.add();
        let give_up = now() + ms(20_000);
        // The counters are read in this order, so that a part that is made after `dropped` is read
        // counts in `made`.
        while self.finished.get() < self.runtimes.len() || {
            let dropped = self.dropped.get();
            dropped < self.made.get()
        } {
            for place in &self.handles {
                drop(locked(place, Option::take));
            }
            sleep(Duration::from_micros(100)).await;
            assert!(
                now() < give_up,
                "{} of {} parts were dropped",
                self.dropped.get(),
                self.made.get()
            );
        }
    }
}

static STORMS_SEED: AtomicUsize = AtomicUsize::new(0);
static STORMS_CORES: AtomicUsize = AtomicUsize::new(0);

/// Runs one core's share of a storm, from entering the runtime to its shutdown.
fn storm_here() {
    let storm = locked(&STORM, |storm| storm.clone()).expect("no storm has begun");
    let core = hal_shim::this_core();
    let here = storm.runtimes[core];
    run_on(here, storm.core(Random((STORMS_SEED.load(SeqCst) << 8 | core) as u64)));
    for place in &storm.wakers {
        drop(locked(place, Option::take));
    }
    here.shutdown().unwrap();
    let stats = here.stats();
    assert_eq!((stats.ended, stats.waiting), (0, 0));
    STORMS_CORES.fetch_sub(1, SeqCst);
}

/// All operations of a program, at random, on all cores. Each future and each output is dropped
/// once, no task waits for ever, and no memory of a task is overwritten.
pub fn a_storm_of_all_operations() {
    let given = hal_shim::arg("seed").and_then(|seed| seed.parse().ok());
    let seeds = given.map_or(1..4, |seed| seed..seed + 1);
    let cores = hal_shim::cores().min(4);
    hal_shim::interrupt::on_soft(|| SOFT.set());
    for seed in seeds {
        // The seed is printed first, since a panic of a task may end the machine.
        hal_shim::print!("(seed {seed}) ");
        let config = Config {
            slice: Duration::from_micros(100),
            stack_size: 64 * 1024,
            max_stacks: 3,
            max_idle_stacks: 2,
            ..Config::new()
        };
        let storm = Arc::new(Storm {
            runtimes: (0..cores).map(|_| shared(config)).collect(),
            handles: Default::default(),
            wakers: Default::default(),
            tasks: AtomicUsize::new(400 * cores),
            made: Count::new(),
            dropped: Count::new(),
            wrong: Count::new(),
            finished: Count::new(),
        });
        *STORM.lock() = Some(storm.clone());
        STORMS_SEED.store(seed, SeqCst);
        STORMS_CORES.store(cores, SeqCst);
        (1..cores).for_each(|core| start(core, storm_here));
        storm_here();
        while STORMS_CORES.load(SeqCst) > 0 {
            core::hint::spin_loop();
        }
        assert_eq!(storm.dropped.get(), storm.made.get());
        assert_eq!(storm.wrong.get(), 0, "hooks were called out of turn");
        if hal_shim::arg("seed").is_some() {
            let stats = storm.runtimes.iter().map(|runtime| runtime.stats());
            let stats: Vec<_> = stats.collect();
            hal_shim::println!("{} parts, {stats:?}", storm.made.get());
        }
    }
    *STORM.lock() = None;
}
