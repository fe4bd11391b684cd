//! Stackful tasks: preemption, slices, urgency, `block_on`, the pool.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::task::Poll;

use hal_shim::{heap, interrupt};
use trapline::preempt::PreemptGuard;
use trapline::stackful::{Holds, Stall};
use trapline::time::{Elapsed, now, sleep, sleep_until, timeout};
use trapline::{
    Config, ConfigError, EnterError, JoinError, MIN_SLICE, Runtime, STALL_SLICES, TaskBuilder,
    TaskId, block_on, spawn, stackful, yield_now,
};

use crate::support::*;

pub fn hog_is_preempted() {
    let runtime = runtime();
    let count = Count::new();
    let seen = count.clone();
    run_on(runtime, async {
        // The hog ends only if the other task of the same core runs.
        let started = Count::new();
        let starts = started.clone();
        let hog = spawn(stackful(async move {
            starts.add();
            seen.spin_until(3);
        }));
        let other = spawn(async move {
            started.reaches(1).await;
            for _ in 0..3 {
                sleep(ms(1)).await;
                count.add();
            }
        });
        hog.await.unwrap();
        other.await.unwrap();
    });
    assert!(runtime.stats().preemptions >= 3);
}

pub fn hogs_take_turns() {
    const HOGS: usize = 4;
    static STRETCHES: [AtomicUsize; HOGS] = [const { AtomicUsize::new(0) }; HOGS];
    static RUNNING: AtomicUsize = AtomicUsize::new(HOGS);
    let stop = Event::new();
    run(async {
        for (me, stretches) in STRETCHES.iter().enumerate() {
            stretches.store(0, SeqCst);
            let stop = stop.clone();
            spawn(stackful(async move {
                while !stop.is_set() {
                    // Another hog had the core since this one last looked.
                    if RUNNING.swap(me, SeqCst) != me {
                        stretches.fetch_add(1, SeqCst);
                    }
                }
            }));
        }
        let least = || STRETCHES.iter().map(|stretches| stretches.load(SeqCst)).min();
        while least() < Some(25) {
            sleep(ms(10)).await;
        }
        stop.set();
    });
    // The test counts turns and not work: a busy host takes away some turns, but much more of the
    // work.
    let stretches: Vec<usize> = STRETCHES.iter().map(|stretches| stretches.load(SeqCst)).collect();
    assert!(stretches.iter().all(|stretches| *stretches <= 50), "{stretches:?}");
}

pub fn slice_of_a_hog_is_kept() {
    let runtime = configured(Config { slice: ms(2), ..Config::new() });
    let stop = Event::new();
    run_on(runtime, async {
        let hogs: Vec<_> = (0..2)
            .map(|_| {
                let stop = stop.clone();
                spawn(stackful(async move { while !stop.is_set() {} }))
            })
            .collect();
        let started = now();
        sleep(ms(50)).await;
        stop.set();
        for hog in hogs {
            hog.await.unwrap();
        }
        let most = now().saturating_since(started).as_millis() as u64 / 2 + 4;
        let preemptions = runtime.stats().preemptions;
        assert!(preemptions <= most, "{preemptions} preemptions where {most} slices ended");
    });
}

pub fn interrupts_wake_preempts_at_once() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    run_on(runtime, async {
        let count = Count::new();
        let counts = count.clone();
        let urgent = spawn(async move {
            SOFT.wait().await;
            counts.add();
        });
        turns(2).await;
        // The hog's slice never ends, so only the interrupt can let the urgent task run.
        let hog = spawn(stackful(async move {
            interrupt::raise();
            count.spin_until(1);
        }));
        hog.await.unwrap();
        urgent.await.unwrap();
    });
    assert_eq!(runtime.stats().preemptions, 1);
}

pub fn timer_preempts_at_once() {
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    run_on(runtime, async {
        let count = Count::new();
        let counts = count.clone();
        let started = Count::new();
        let starts = started.clone();
        let sleeper = spawn(async move {
            started.reaches(1).await;
            for _ in 0..3 {
                sleep(ms(2)).await;
                counts.add();
            }
        });
        // The hog's slice never ends, so only the timers can let the sleeper run.
        spawn(stackful(async move {
            starts.add();
            count.spin_until(3);
        }))
        .await
        .unwrap();
        sleeper.await.unwrap();
    });
    assert!(runtime.stats().preemptions >= 3);
}

pub fn own_wake_preempts_nobody() {
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    let trace = Trace::new();
    run_on(runtime, async {
        let event = Event::new();
        let (waits, notes) = (event.clone(), trace.clone());
        let woken = spawn(async move {
            waits.wait().await;
            notes.note("woken");
        });
        turns(2).await;
        let notes = trace.clone();
        spawn(stackful(async move {
            event.set();
            notes.note("waker goes on");
        }))
        .await
        .unwrap();
        woken.await.unwrap();
    });
    assert_eq!(
        trace.events(),
        [
            "waker goes on", // the task that wakes keeps the core
            "woken",         // that task has finished, so the woken task runs
        ]
    );
    assert_eq!(runtime.stats().preemptions, 0);
}

pub fn wake_while_preempted_is_kept() {
    let polls = Count::new();
    run(async {
        let count = Count::new();
        let (waker, receiver) = crate::tasks::waker_channel();
        let (seen, counts) = (count.clone(), polls.clone());
        let sent = Count::new();
        let sends = sent.clone();
        let future = poll_fn(move |context| {
            if counts.add() == 1 {
                waker.send(context.waker().clone());
                sends.add();
                // The task is preempted here, until the wake has happened.
                seen.spin_until(1);
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        let handle = spawn(stackful(future));
        sent.reaches(1).await;
        assert_eq!(polls.get(), 1);
        receiver.take().wake();
        count.add();
        // If the wake were lost, this would wait for ever.
        handle.await.unwrap();
    });
    assert_eq!(polls.get(), 2);
}

pub fn timeout_around_a_hog() {
    let stop = Event::new();
    let drops = Count::new();
    run(async {
        let (sees, dropped) = (stop.clone(), drops.on_drop());
        let started = now();
        let hog = stackful(async move {
            let _dropped = dropped;
            while !sees.is_set() {}
        });
        assert_eq!(timeout(ms(5), hog).await, Err(Elapsed));
        assert!(now().saturating_since(started) >= ms(5));
        assert_eq!(drops.get(), 0, "the hog was dropped in the middle of its poll");
        stop.set();
        drops.reaches(1).await;
    });
}

pub fn select_beside_block_on_loses_nothing() {
    run(async {
        let (first, second) = (Event::new(), Event::new());
        let (a, b) = (first.clone(), second.clone());
        let polled = Count::new();
        let polls = polled.clone();
        let task = spawn(stackful(async move {
            let mut left = pin!(a.wait());
            let mut right = pin!(async {
                block_on(poll_fn(|context| {
                    polls.add();
                    pin!(b.wait()).poll(context)
                }));
                never().await;
            });
            poll_fn(|context| {
                if left.as_mut().poll(context).is_ready() {
                    return Poll::Ready("left");
                }
                right.as_mut().poll(context).map(|()| "right")
            })
            .await
        }));
        // The task waits in `block_on`.
        polled.reaches(1).await;
        // This wake is for the left arm, but `block_on` gets it.
        first.set();
        polled.reaches(2).await;
        assert!(!task.is_finished());
        second.set();
        assert_eq!(task.await.unwrap(), "left");
    });
}

pub fn abort_in_mid_poll_ends_with_the_poll() {
    let runtime = runtime();
    let (drops, stop) = (Count::new(), Event::new());
    run_on(runtime, async {
        // This task is preempted when the abort comes.
        let (dropped, sees) = (drops.on_drop(), stop.clone());
        let started = Count::new();
        let starts = started.clone();
        let hog = spawn(stackful(async move {
            let _dropped = dropped;
            starts.add();
            while !sees.is_set() {}
            yield_now().await;
            unreachable!("the abort comes at the end of the poll");
        }));
        // This task is suspended when the abort comes.
        let (dropped, sees) = (drops.on_drop(), stop.clone());
        let starts = started.clone();
        let waiting = spawn(stackful(async move {
            let _dropped = dropped;
            starts.add();
            block_on(sees.wait());
            yield_now().await;
            unreachable!("the abort comes at the end of the poll");
        }));
        started.reaches(2).await;
        hog.abort();
        waiting.abort();
        sleep(ms(3)).await;
        assert!(!hog.is_finished() && !waiting.is_finished());
        assert_eq!(drops.get(), 0);
        stop.set();
        assert!(matches!(hog.await, Err(JoinError::Aborted)));
        assert!(matches!(waiting.await, Err(JoinError::Aborted)));
        assert_eq!(drops.get(), 2);
    });
    assert!(runtime.stats().aborted_in_poll >= 1);
}

pub fn ten_thousand_blocked_tasks_hold_no_stack() {
    const TASKS: usize = 10_000;
    let runtime = configured(Config { max_stacks: 8, ..Config::new() });
    let done = Count::new();
    run_on(runtime, async {
        let events: Vec<_> = (0..TASKS).map(|_| Event::new()).collect();
        let polled = Count::new();
        let handles: Vec<_> = events
            .iter()
            .map(|event| {
                let (event, done, polled) = (event.clone(), done.clone(), polled.clone());
                spawn(stackful(async move {
                    polled.add();
                    event.wait().await;
                    done.add();
                }))
            })
            .collect();
        while polled.get() < TASKS {
            sleep(ms(1)).await;
        }
        sleep(ms(1)).await;
        assert_eq!(done.get(), 0);
        assert!((1..=8).contains(&runtime.stats().stacks));
        for event in &events {
            event.set();
        }
        for handle in handles {
            handle.await.unwrap();
        }
    });
    assert_eq!(done.get(), TASKS);
    assert!(runtime.stats().stacks <= 8);
}

/// The holders of stacks that each report of a stall named.
static STALLS: spin::Mutex<Vec<Vec<TaskId>>> = spin::Mutex::new(Vec::new());

pub fn exhausted_pool_makes_tasks_wait_and_reports() {
    STALLS.lock().clear();
    let runtime = configured(Config {
        max_stacks: 2,
        on_stall: Some(|stall| {
            assert_eq!(stall.stacks(), 2);
            let mut holders = vec![];
            stall.holders(|task| holders.push(task));
            STALLS.lock().push(holders);
        }),
        ..Config::new()
    });
    let trace = Trace::new();
    let mut ids = run_on(runtime, async {
        let event = Event::new();
        let holders: Vec<_> = (0..2)
            .map(|_| {
                let event = event.clone();
                spawn(stackful(async move {
                    block_on(event.wait());
                }))
            })
            .collect();
        // Both holders wait for the same event, which wakes only one of them: the other goes on
        // holding its stack.
        let waiting: Vec<_> = ["first", "second"]
            .map(|name| {
                let trace = trace.clone();
                spawn(stackful(async move { trace.note(name) }))
            })
            .into_iter()
            .collect();
        while STALLS.lock().is_empty() {
            sleep(ms(1)).await;
        }
        assert!(trace.events().is_empty(), "a task ran without a stack");
        event.set();
        for handle in waiting {
            handle.await.unwrap();
        }
        holders.iter().map(|holder| holder.id().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(
        trace.events(),
        [
            "first",  // one holder was woken and gave its stack back
            "second", // the first task gave the same stack back
        ]
    );
    assert_eq!(runtime.stats().stacks, 2);
    let mut reported = STALLS.lock().first().expect("the stall was not reported").clone();
    reported.sort();
    ids.sort();
    assert_eq!(reported, ids);
}

/// The contents of a report of a stall.
#[derive(Clone, Debug, PartialEq)]
struct Report {
    holders: Vec<(Option<&'static str>, Holds)>,
    waiters: Vec<Option<&'static str>>,
    is_out_of_memory: bool,
}

impl Report {
    fn of(stall: &Stall<'_>) -> Self {
        let mut report =
            Self { holders: vec![], waiters: vec![], is_out_of_memory: stall.is_out_of_memory() };
        stall.each_holder(|task, holds| report.holders.push((task.name(), holds)));
        stall.each_waiter(|task| report.waiters.push(task.name()));
        assert_eq!(report.waiters.len(), stall.waiting());
        // The stacks are reported in no particular order.
        report.holders.sort_by_key(|(name, _)| *name);
        report
    }
}

fn named(name: &'static str) -> TaskBuilder {
    TaskBuilder::new().name(name)
}

pub fn tasks_that_compute_stall_others_and_it_is_told() {
    static TOLD: spin::Mutex<Vec<Report>> = spin::Mutex::new(Vec::new());
    static STOP: Event = Event::constant();
    TOLD.lock().clear();
    STOP.clear();
    let runtime = configured(Config {
        max_stacks: 3,
        on_stall: Some(|stall| {
            TOLD.lock().push(Report::of(stall));
            STOP.set();
        }),
        ..Config::new()
    });
    let trace = Trace::new();
    run_on(runtime, async {
        let waiting = named("a").spawn(stackful(async { block_on(STOP.wait()) })).unwrap();
        let is_parked = || runtime.stats().stacks == 1 && runtime.stats().parks > 3;
        while !is_parked() {
            sleep(ms(1)).await;
        }
        let held = Count::new();
        let computing: Vec<_> = ["b", "c"]
            .into_iter()
            .map(|name| {
                let held = held.clone();
                let hog = stackful(async move {
                    held.add();
                    while !STOP.is_set() {}
                });
                named(name).spawn(hog).unwrap()
            })
            .collect();
        // Waits until all three tasks hold their stacks.
        while runtime.stats().preemptions < 4 || held.get() < 2 {
            sleep(ms(1)).await;
        }
        assert_eq!((runtime.stats().stacks, runtime.stats().failed_growths), (3, 0));
        let late: Vec<_> = ["d", "e"]
            .into_iter()
            .map(|name| {
                let trace = trace.clone();
                named(name).spawn(stackful(async move { trace.note(name) })).unwrap()
            })
            .collect();
        // The core never parks. The two late tasks run nevertheless, since the report ends the
        // tasks that hold the stacks.
        for task in late.into_iter().chain(computing).chain([waiting]) {
            task.await.unwrap();
        }
    });
    assert_eq!(
        trace.events(),
        [
            "d", // the report has ended the holders, and a stack is free
            "e", // the first late task gave its stack back
        ]
    );
    let holders = vec![
        (Some("a"), Holds::Suspended),
        (Some("b"), Holds::Preempted),
        (Some("c"), Holds::Preempted),
    ];
    let waiters = vec![Some("d"), Some("e")];
    assert_eq!(*TOLD.lock(), [Report { holders, waiters, is_out_of_memory: false }]);
    assert_eq!((runtime.stats().waiting, runtime.stats().failed_growths), (0, 2));
}

pub fn a_stall_is_told_again_and_not_too_often() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    static ENOUGH: Event = Event::constant();
    const SLICE: core::time::Duration = core::time::Duration::from_micros(200);
    const REPORTS: usize = 5;
    // In the first round the holder computes, so the core never parks; in the second it waits in
    // `block_on`, so the core parks.
    for computes in [true, false] {
        TOLD.store(0, SeqCst);
        ENOUGH.clear();
        let runtime = configured(Config {
            slice: SLICE,
            max_stacks: 1,
            on_stall: Some(|stall| {
                assert_eq!((stall.stacks(), stall.waiting()), (1, 1));
                if TOLD.fetch_add(1, SeqCst) + 1 == REPORTS {
                    ENOUGH.set();
                }
            }),
            ..Config::new()
        });
        run_on(runtime, async {
            let (stop, started) = (Event::new(), Count::new());
            let (sees, starts) = (stop.clone(), started.clone());
            let holder = spawn(stackful(async move {
                starts.add();
                if computes {
                    while !sees.is_set() {}
                } else {
                    block_on(sees.wait());
                }
            }));
            started.reaches(1).await;
            let began = now();
            let waiter = spawn(stackful(async {}));
            // No timer is set: only the stall makes the core run its loop, which would park
            // otherwise.
            ENOUGH.wait().await;
            let took = now().saturating_since(began);
            assert!(took >= SLICE * STALL_SLICES * (REPORTS as u32 - 1), "{computes} {took:?}");
            assert_eq!((runtime.stats().waiting, runtime.stats().failed_growths), (1, 1));
            stop.set();
            waiter.await.unwrap();
            holder.await.unwrap();
            // No task waits for a stack any more, so no further report is made.
            let told = TOLD.load(SeqCst);
            sleep(SLICE * STALL_SLICES * 2).await;
            assert_eq!((TOLD.load(SeqCst), runtime.stats().waiting), (told, 0));
        });
    }
}

pub fn a_waiter_that_is_aborted_is_counted_no_more() {
    let runtime = configured(Config { max_stacks: 1, ..Config::new() });
    run_on(runtime, async {
        let event = Event::new();
        let waits = event.clone();
        let holder = spawn(stackful(async move { block_on(waits.wait()) }));
        let mut waiters: Vec<_> = (0..3).map(|n| spawn(stackful(async move { n }))).collect();
        while runtime.stats().waiting < 3 {
            sleep(ms(1)).await;
        }
        let aborted = waiters.remove(1);
        aborted.abort();
        assert!(matches!(aborted.await, Err(JoinError::Aborted)));
        assert_eq!((runtime.stats().waiting, runtime.stats().failed_growths), (2, 3));
        event.set();
        holder.await.unwrap();
        for (waiter, expected) in waiters.into_iter().zip([0, 2]) {
            assert_eq!(waiter.await.unwrap(), expected);
        }
        assert_eq!(runtime.stats().waiting, 0);
    });
}

/// Lets `tasks` tasks hold a stack each at the same time, and then give it back.
async fn burst(runtime: &'static Runtime, tasks: usize) {
    let (started, events) = (Count::new(), (0..tasks).map(|_| Event::new()).collect::<Vec<_>>());
    let handles: Vec<_> = events
        .iter()
        .map(|event| {
            let (event, starts) = (event.clone(), started.clone());
            spawn(stackful(async move {
                starts.add();
                block_on(event.wait());
            }))
        })
        .collect();
    started.reaches(tasks).await;
    assert!(runtime.stats().stacks >= tasks as u64);
    for event in events {
        event.set();
    }
    for handle in handles {
        handle.await.unwrap();
    }
}

pub fn idle_stacks_beyond_the_limit_are_freed() {
    for (limit, kept) in [(8, 8), (1, 1), (0, 1)] {
        let runtime = configured(Config { max_idle_stacks: limit, ..Config::new() });
        run_on(runtime, async {
            for tasks in [40, 3, 25] {
                burst(runtime, tasks).await;
                // The stack that is held last comes back to the pool last.
                assert!(runtime.stats().stacks <= kept, "{limit} {:?}", runtime.stats());
            }
            // The pool keeps as many stacks as it may: no stack was freed while there was room in
            // the pool.
            assert_eq!(runtime.stats().stacks, kept);
            // Tasks that run one after another use one stack.
            for n in 0..10 {
                assert_eq!(spawn(stackful(async move { n })).await.unwrap(), n);
            }
            assert_eq!(runtime.stats().stacks, kept);
        });
    }
}

pub fn trim_frees_what_is_idle() {
    let runtime = runtime();
    assert_eq!(runtime.trim(), 0, "not entered yet");
    run_on(runtime, async {
        burst(runtime, 10).await;
        assert_eq!(runtime.stats().stacks, 10);
        let event = Event::new();
        let waits = event.clone();
        let started = Count::new();
        let starts = started.clone();
        let holder = spawn(stackful(async move {
            starts.add();
            block_on(waits.wait())
        }));
        started.reaches(1).await;
        // On a stack, `trim` frees nothing: the task could be preempted in the middle of it.
        assert_eq!(spawn(stackful(async { runtime.trim() })).await.unwrap(), 0);
        let live = heap::counts().bytes_live;
        assert_eq!((runtime.trim(), runtime.stats().stacks), (9, 1));
        let kept = !cfg!(address_sanitizer);
        assert!(!kept || heap::counts().bytes_live < live, "trim did not free the tasks' memory");
        assert_eq!(runtime.trim(), 0);
        // The task that holds a stack is not affected, and new stacks are made for the others.
        event.set();
        holder.await.unwrap();
        burst(runtime, 4).await;
        assert_eq!(runtime.stats().stacks, 4);
    });
    assert_eq!((runtime.trim(), runtime.stats().stacks), (4, 0), "trim outside of the runtime");
    run_on(runtime, burst(runtime, 2));
    runtime.shutdown().unwrap();
    assert_eq!((runtime.trim(), runtime.stats().stacks), (0, 0));
}

/// A stackful task of another runtime could be preempted in the middle of `trim`, and an interrupt
/// could arrive while the platform makes or frees a stack.
pub fn trim_does_nothing_on_another_runtimes_stack_or_in_an_interrupt() {
    static IN_INTERRUPT: AtomicUsize = AtomicUsize::new(0);
    static TRIMMED: spin::Mutex<Option<&'static Runtime>> = spin::Mutex::new(None);
    let (one, other) = (runtime(), runtime());
    run_on(one, burst(one, 4));
    run_on(other, async {
        assert_eq!(spawn(stackful(async { one.trim() })).await.unwrap(), 0, "trim on a stack");
        burst(other, 3).await;
        *TRIMMED.lock() = Some(other);
        hal_shim::interrupt::on_soft(|| {
            let trimmed = TRIMMED.lock().take().map_or(0, Runtime::trim);
            IN_INTERRUPT.store(trimmed + 1, SeqCst);
        });
        hal_shim::interrupt::raise();
        while IN_INTERRUPT.load(SeqCst) == 0 {
            yield_now().await;
        }
        assert_eq!(IN_INTERRUPT.load(SeqCst), 1, "trim in an interrupt");
        assert_eq!((one.trim(), other.trim()), (4, 3), "trim in a plain task");
    });
}

/// Holds for builds without optimization too. A stack that is too small would end its task or the
/// program.
pub fn the_min_stack_is_enough() {
    let too_small = configured(Config { stack_size: 16, ..Config::new() }).run_until(async {});
    let Err(EnterError::Config(ConfigError::StackTooSmall { least })) = too_small else {
        panic!("{too_small:?}");
    };
    let slice = core::time::Duration::from_micros(200);
    let runtime = configured(Config { stack_size: least, slice, ..Config::new() });
    run_on(runtime, async {
        let stop = Event::new();
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let stop = stop.clone();
                spawn(stackful(async move { while !stop.is_set() {} }))
            })
            .collect();
        while runtime.stats().preemptions < 50 {
            sleep(ms(1)).await;
        }
        stop.set();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert_eq!(runtime.stats().ended, 0);
}

/// How long a hog had the core and how long it waited for the core, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Had {
    had: u64,
    waited: u64,
    longest_wait: u64,
    waits: u64,
}

impl Had {
    fn permille(self) -> u64 {
        self.had * 1000 / (self.had + self.waited)
    }
}

/// Computes until it has waited for the core `waits` times. The hog has waited where the other
/// tasks have counted further polls in `polls`.
fn compute_beside(polls: &Count, waits: u64) -> Had {
    let mut had = Had::default();
    // Until the hog has waited for the first time, the other tasks may not have started.
    let (mut begun, mut is_waiting) = (false, false);
    let (mut seen, mut last) = (polls.get(), now());
    while had.waits < waits {
        // The hog may be preempted before or after it reads the clock, so the polls are read on
        // both sides.
        let (before, now, after) = (polls.get(), now(), polls.get());
        let time = now.saturating_since(last).as_nanos() as u64;
        let was_waiting = core::mem::replace(&mut is_waiting, after != seen);
        begun |= is_waiting;
        if is_waiting {
            had.waited += time;
            had.waits += u64::from(!was_waiting);
            had.longest_wait = had.longest_wait.max(time);
        } else if begun {
            had.had += time;
        }
        (seen, last) = (before, now);
    }
    had
}

/// Measures a hog's time beside `tasks` other tasks, which are polled again and again: each awaits
/// a new future of `again` in a loop.
fn had_beside<F: Future<Output = ()> + Send + 'static>(
    tasks: usize,
    on_stacks: bool,
    waits: u64,
    again: fn() -> F,
) -> Had {
    run(async {
        let (stop, polls) = (Event::new(), Count::new());
        let busy: Vec<_> = (0..tasks)
            .map(|_| {
                let (stop, polls) = (stop.clone(), polls.clone());
                let task = async move {
                    while !stop.is_set() {
                        polls.add();
                        again().await;
                    }
                };
                if on_stacks { spawn(stackful(task)) } else { spawn(task) }
            })
            .collect();
        let had = spawn(stackful(async move { compute_beside(&polls, waits) })).await.unwrap();
        stop.set();
        for task in busy {
            task.await.unwrap();
        }
        had
    })
}

/// The hog gets about a twelfth of the core's time, and gets it often: not in whole slices, and not
/// after a fixed number of polls.
pub fn a_hog_has_a_share_among_busy_plain_tasks() {
    let check = |what: &str, had: Had| {
        let (share, mean) = (had.permille(), had.waited / had.waits);
        // A busy host may take time from the hog or from the other tasks.
        let (shares, most) =
            if time_is_counted() { (40..=150, 1_000_000) } else { (5..=900, 100_000_000) };
        assert!(shares.contains(&share), "{what}: {share} permille, {had:?}");
        assert!(mean < most, "{what}: the hog waits for {mean} ns, {had:?}");
    };
    check("3 that yield", had_beside(3, false, 100, yield_now));
    check("300 that yield", had_beside(300, false, 100, yield_now));
    check("that wake themselves", had_beside(100, false, 100, wake_oneself));
    check("that sleep for no time", had_beside(100, false, 100, || sleep(ms(0))));
}

/// Stackful tasks share the core evenly: a task that leaves the core before its slice is over and
/// is READY at once goes behind the other tasks.
pub fn a_hog_has_its_share_among_stackful_tasks() {
    /// Returns how often the hog came back to the core, and how often the `busy` other tasks
    /// together left it. Each of them computes for most of a slice before it awaits a future of
    /// `again`. The unit is turns, of which a busy host takes away the same share from all tasks.
    fn turns_of<F: Future<Output = ()> + Send + 'static>(
        busy: usize,
        again: fn() -> F,
    ) -> (usize, usize) {
        run(async {
            const ROUNDS: usize = 30;
            let (stop, left) = (Event::new(), Count::new());
            let others: Vec<_> = (0..busy)
                .map(|_| {
                    let (stop, left) = (stop.clone(), left.clone());
                    spawn(stackful(async move {
                        while !stop.is_set() {
                            let until = now() + core::time::Duration::from_micros(900);
                            while now() < until {}
                            left.add();
                            again().await;
                        }
                    }))
                })
                .collect();
            let hog = spawn(stackful(async move {
                let (mut turns, mut seen, first) = (0, left.get(), left.get());
                while seen - first < ROUNDS * busy {
                    let now = left.get();
                    turns += usize::from(now != seen);
                    seen = now;
                }
                (turns, seen - first)
            }));
            let turns = hog.await.unwrap();
            stop.set();
            for other in others {
                other.await.unwrap();
            }
            turns
        })
    }
    let check = |what: &str, busy: usize, (turns, left): (usize, usize)| {
        let rounds = left / busy;
        // The hog has one turn in each round. A busy host may end slices early; then the other
        // tasks have more turns than they count.
        assert!(turns * 2 >= rounds, "{what}: {turns} turns in {rounds} rounds");
    };
    check("4 that yield", 4, turns_of(4, yield_now));
    check("4 that sleep for no time", 4, turns_of(4, || sleep(ms(0))));
    check("4 that wake themselves", 4, turns_of(4, wake_oneself));
    check("1 that yields", 1, turns_of(1, yield_now));
}

/// Sleeps end all the time, each sooner than the hog gets to a stack: the hog makes progress
/// nevertheless.
pub fn a_hog_gets_on_beside_short_sleeps() {
    for micros in [1, 3, 5] {
        run(async {
            let (stop, rounds) = (Event::new(), Count::new());
            let (sees, counts) = (stop.clone(), rounds.clone());
            let hog = spawn(stackful(async move {
                while !sees.is_set() {
                    counts.add();
                }
            }));
            while rounds.get() == 0 {
                sleep(ms(1)).await;
            }
            let (before, mut most) = (rounds.get(), 100_000);
            while rounds.get() - before < 10_000 && most > 0 {
                sleep(core::time::Duration::from_micros(micros)).await;
                most -= 1;
            }
            stop.set();
            hog.await.unwrap();
            assert!(most > 0, "the hog made no progress beside sleeps of {micros} µs");
        });
    }
}

/// A task that was woken, by a timer or by an interrupt, is polled before a task that yields or
/// wakes itself.
pub fn what_was_woken_goes_before_what_yields() {
    static SOFT: Event = Event::constant();
    interrupt::on_soft(|| SOFT.set());
    for own_yield in [true, false] {
        SOFT.clear();
        let trace = Trace::new();
        run(async {
            let due = now() + ms(5);
            let (by_timer, by_interrupt) = (trace.clone(), trace.clone());
            let sleeper = spawn(async move {
                sleep_until(due).await;
                by_timer.note("due");
            });
            let waiter = spawn(async move {
                SOFT.wait().await;
                by_interrupt.note("woken");
            });
            let notes = trace.clone();
            turns(2).await;
            let busy = spawn(async move {
                // In the middle of this poll the timer comes due and its interrupt arrives, and so
                // does the software interrupt.
                while now() < due + ms(5) {}
                interrupt::raise();
                if own_yield {
                    yield_now().await
                } else {
                    wake_oneself().await
                }
                notes.note("busy again");
            });
            busy.await.unwrap();
            sleeper.await.unwrap();
            waiter.await.unwrap();
        });
        let mut events = trace.events();
        assert_eq!(
            events.pop(),
            Some("busy again"),
            "own yield: {own_yield}, {events:?} before it"
        );
        events.sort_unstable();
        assert_eq!(events, ["due", "woken"]);
    }
}

/// When a hundred tasks are due at once, they all run before one of the hogs does.
pub fn what_is_due_at_once_runs_before_a_hog() {
    const TASKS: usize = 100;
    let runtime = runtime();
    let had = run_on(runtime, async {
        let (stop, done) = (Event::new(), Count::new());
        let hogs: Vec<_> = (0..2)
            .map(|_| {
                let (sees, done) = (stop.clone(), done.clone());
                spawn(stackful(async move {
                    // Counts how many different values of `done` the hog sees.
                    let (mut seen, mut changes) = (0, 0);
                    while !sees.is_set() {
                        let done = done.get();
                        changes += usize::from(core::mem::replace(&mut seen, done) != done);
                    }
                    changes
                }))
            })
            .collect();
        sleep(ms(5)).await;
        let due = now() + ms(50);
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let done = done.clone();
                spawn(async move {
                    sleep_until(due).await;
                    done.add();
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        sleep(ms(5)).await;
        stop.set();
        let mut had = 0;
        for hog in hogs {
            had += hog.await.unwrap();
        }
        had
    });
    // Each hog sees one change, when all tasks are done. A busy host may let a hog run in between.
    let most = if time_is_counted() { 2 } else { 20 };
    assert!((1..=most).contains(&had), "the hogs ran {had} times while {TASKS} tasks were due");
}

pub fn preempted_task_gets_its_turn_among_stackful_ones() {
    let runtime = runtime();
    let gap = run_on(runtime, async {
        let (stop, polls) = (Event::new(), Count::new());
        let (yields, counts) = (stop.clone(), polls.clone());
        // This task is always READY again, and leaves the core before its slice is over.
        let busy = spawn(stackful(async move {
            while !yields.is_set() {
                counts.add();
                yield_now().await;
            }
        }));
        let hog = spawn(stackful(async move {
            // On a busy host it may take some time until the first preemption.
            let (until, mut seen, mut gap) = (now() + ms(20), polls.get(), 0);
            while now() < until || gap == 0 {
                let polls = polls.get();
                gap = gap.max(polls - core::mem::replace(&mut seen, polls));
            }
            gap
        }));
        let gap = hog.await.unwrap();
        stop.set();
        busy.await.unwrap();
        gap
    });
    // While the hog is preempted, the other task is polled 32 times, and as many times again each
    // time that the next alarm comes before the hog has the core back.
    assert!((1..=320).contains(&gap), "{gap}");
}

pub fn sleep_in_a_stackful_task_is_its_only_alarm() {
    run(async {
        let started = now();
        spawn(stackful(async {
            // The task sleeps once by an await and once in `block_on`.
            sleep(ms(3)).await;
            block_on(sleep(ms(3)));
        }))
        .await
        .unwrap();
        assert!(now().saturating_since(started) >= ms(6));
    });
}

/// A slice that ends under a guard leaves a preemption pending, until the last guard drops.
pub fn guard_owes_the_slice() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    let trace = Trace::new();
    run(async {
        let (notes, others) = (trace.clone(), trace.clone());
        let woken = spawn(async move {
            SOFT.wait().await;
            others.note("woken");
        });
        turns(2).await;
        spawn(stackful(async move {
            let outer = PreemptGuard::new();
            let inner = PreemptGuard::new();
            // A task is woken by an interrupt, and the slice ends.
            interrupt::raise();
            let until = now() + ms(3);
            while now() < until {}
            drop(outer);
            notes.note("inner guard lives");
            drop(inner);
            // The pending preemption has come.
            notes.note("no guard");
        }))
        .await
        .unwrap();
        woken.await.unwrap();
    });
    assert_eq!(
        trace.events(),
        [
            "inner guard lives", // one guard has dropped, and the preempt count is still raised
            "woken",             // the last guard has dropped: the pending preemption comes
            "no guard",          // the stackful task goes on
        ]
    );
}

pub fn stackful_inside_of_stackful() {
    let runtime = runtime();
    let output = run_on(runtime, async {
        let count = Count::new();
        let (inner, middle) = (count.clone(), count.clone());
        let ticks = spawn(async move {
            for _ in 0..4 {
                sleep(ms(1)).await;
                count.add();
            }
        });
        let output = stackful(async move {
            let deep = stackful(async move {
                inner.spin_until(2);
                20
            })
            .await;
            let blocked = block_on(stackful(async { 1 }));
            middle.spin_until(4);
            deep + blocked
        })
        .await;
        ticks.await.unwrap();
        output
    });
    assert_eq!(output, 21);
}

pub fn dropped_parent_aborts_its_child() {
    let drops = Count::new();
    run(async {
        let (dropped, polled) = (drops.on_drop(), Count::new());
        let polls = polled.clone();
        let child = stackful(async move {
            let _dropped = dropped;
            polls.add();
            never().await
        });
        let parent = spawn(async move {
            yield_now().await;
            child.await
        });
        polled.reaches(1).await;
        parent.abort();
        assert!(matches!(parent.await, Err(JoinError::Aborted)));
        drops.reaches(1).await;
    });
}

pub fn wakes_from_stacks_arrive() {
    // Pairs of tasks wake each other from their stacks. Slices are so short that many tasks are
    // preempted in the middle of a wake.
    const PAIRS: usize = 4;
    const ROUNDS: usize = 2000;
    let runtime =
        configured(Config { slice: core::time::Duration::from_micros(50), ..Config::new() });
    run_on(runtime, async {
        let mut handles = vec![];
        for _ in 0..PAIRS {
            let turn = Arc::new(AtomicUsize::new(0));
            let events = Arc::new([Event::constant(), Event::constant()]);
            for me in 0..2 {
                let (turn, events) = (turn.clone(), events.clone());
                handles.push(spawn(stackful(async move {
                    for round in 0..ROUNDS {
                        poll_fn(|context| {
                            if turn.load(SeqCst) % 2 == me {
                                return Poll::Ready(());
                            }
                            let mut wait = pin!(events[me].wait());
                            let _ = wait.as_mut().poll(context);
                            // Looks again, since the turn may have come before the waker was
                            // registered.
                            if turn.load(SeqCst) % 2 == me {
                                Poll::Ready(())
                            } else {
                                Poll::Pending
                            }
                        })
                        .await;
                        turn.fetch_add(1, SeqCst);
                        if round % 16 == 0 {
                            for _ in 0..2000 {
                                core::hint::spin_loop();
                            }
                        }
                        events[1 - me].set();
                    }
                })));
            }
        }
        for handle in handles {
            handle.await.unwrap();
        }
    });
}

pub fn block_on_outside_of_tasks_parks() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    // The core is in no runtime: the wake comes from the interrupt.
    interrupt::on_soft(|| SOFT.set());
    let mut raised = false;
    block_on(poll_fn(|context| {
        let mut wait = pin!(SOFT.wait());
        let poll = wait.as_mut().poll(context);
        if !core::mem::replace(&mut raised, true) {
            interrupt::raise();
        }
        poll
    }));
    assert_eq!(block_on(async { 3 }), 3);
}

pub fn hog_that_is_full_of_guards_is_preempted() {
    // Sooner or later the alarm fires at each instruction of a guard's making and dropping.
    let runtime =
        configured(Config { slice: core::time::Duration::from_micros(30), ..Config::new() });
    run_on(runtime, async {
        let stop = Event::new();
        let sees = stop.clone();
        let hog = spawn(stackful(async move {
            while !sees.is_set() {
                drop(PreemptGuard::new());
            }
        }));
        for _ in 0..300 {
            sleep(core::time::Duration::from_micros(100)).await;
        }
        stop.set();
        hog.await.unwrap();
    });
    assert!(runtime.stats().preemptions >= 300);
}

pub fn shortest_slices_get_on() {
    let runtime = configured(Config { slice: MIN_SLICE, ..Config::new() });
    run_on(runtime, async {
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                spawn(stackful(async {
                    for _ in 0..10_000 {
                        core::hint::spin_loop();
                    }
                }))
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

pub fn nested_block_on_outside_of_tasks_gives_wakes_back() {
    static LEFT: Event = Event::constant();
    static RIGHT: Event = Event::constant();
    LEFT.clear();
    RIGHT.clear();
    interrupt::on_soft(|| {
        // The first interrupt wakes the outer arm, the second the inner `block_on`.
        if LEFT.is_set() { RIGHT.set() } else { LEFT.set() }
    });
    let mut left = pin!(LEFT.wait());
    let mut right = pin!(async {
        let mut polls = 0;
        block_on(poll_fn(|context| {
            let mut wait = pin!(RIGHT.wait());
            let poll = wait.as_mut().poll(context);
            polls += 1;
            if polls <= 2 {
                interrupt::raise();
            }
            poll
        }));
        never().await;
    });
    let first = block_on(poll_fn(|context| {
        if left.as_mut().poll(context).is_ready() {
            return Poll::Ready("left");
        }
        right.as_mut().poll(context).map(|()| "right")
    }));
    assert_eq!(first, "left");
}

static RELEASED: Event = Event::constant();

pub fn a_stall_can_be_ended_by_its_report() {
    RELEASED.clear();
    let runtime =
        configured(Config { max_stacks: 1, on_stall: Some(|_| RELEASED.set()), ..Config::new() });
    run_on(runtime, async {
        let holder = spawn(stackful(async { block_on(RELEASED.wait()) }));
        let waiting = spawn(stackful(async { 5 }));
        assert_eq!(waiting.await.unwrap(), 5);
        holder.await.unwrap();
    });
}

pub fn an_aborted_waiter_does_not_keep_the_next_from_its_stack() {
    let runtime = configured(Config { max_stacks: 1, ..Config::new() });
    run_on(runtime, async {
        let event = Event::new();
        let waits = event.clone();
        let holder = spawn(stackful(async move { block_on(waits.wait()) }));
        while runtime.stats().stacks == 0 {
            sleep(ms(1)).await;
        }
        let aborted = spawn(stackful(async {}));
        let next = spawn(stackful(async { 6 }));
        sleep(ms(1)).await;
        assert!(!aborted.is_finished() && !next.is_finished(), "the stack is held");
        aborted.abort();
        assert!(
            matches!(aborted.await, Err(JoinError::Aborted)),
            "the waiter was not aborted while it waited for a stack"
        );
        event.set();
        assert_eq!(next.await.unwrap(), 6);
        holder.await.unwrap();
    });
}

/// A READY task is polled after a bounded number of polls of other tasks, or, if it is stackful,
/// after a bounded time, in whatever way it became READY.
pub fn a_bounded_number_of_polls_is_between_a_task_and_its_turn() {
    const TASKS: usize = 20;
    const STACKFUL: usize = TASKS / 5;
    /// Each other task is polled once, with one child for those that spawn, and so is the root.
    const PLAIN_BOUND: usize = 2 * TASKS + 2;
    // The tasks on stacks take precedence after they have waited for 250 µs, and then one of them
    // is polled. A host may take longer.
    let stackful_bound = STACKFUL * if time_is_counted() { 400_000 } else { 50_000_000 };
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    run(async {
        let stop = Event::new();
        let (all, worst) = (Count::new(), [Count::new(), Count::new()]);
        let tasks: vec::Vec<_> = (0..TASKS)
            .map(|me| {
                let (stop, all) = (stop.clone(), all.clone());
                let is_stackful = me % (TASKS / STACKFUL) == 0;
                let worst = worst[usize::from(is_stackful)].clone();
                let task = async move {
                    while !stop.is_set() {
                        let (before, since) = (all.add(), now());
                        // Some tasks wake themselves, some yield, and some spawn a child that is
                        // polled in turn.
                        match me % 3 {
                            0 => wake_oneself().await,
                            1 => yield_now().await,
                            _ => {
                                let counts = all.clone();
                                drop(spawn(async move { _ = counts.add() }));
                                yield_now().await;
                            }
                        }
                        worst.raise_to(if is_stackful {
                            now().saturating_since(since).as_nanos() as usize
                        } else {
                            all.get() - before
                        });
                    }
                };
                if is_stackful { spawn(stackful(task)) } else { spawn(task) }
            })
            .collect();
        turns(100).await;
        // Many wakes come through the inbox, which is looked at in each turn: neither do they delay
        // the tasks, nor the tasks them.
        let flood = Count::new();
        let counts = flood.clone();
        let waits = spawn(async move {
            for _ in 0..100 {
                SOFT.wait().await;
                SOFT.clear();
                counts.add();
            }
        });
        for round in 0..100 {
            turns(1).await;
            let before = all.get();
            interrupt::raise();
            while flood.get() <= round {
                yield_now().await;
            }
            let polls = all.get() - before;
            assert!(polls <= 2 * PLAIN_BOUND, "the inbox waited for {polls} polls");
        }
        waits.await.unwrap();
        stop.set();
        for task in tasks {
            task.await.unwrap();
        }
        let [plain, stackful] = worst.map(|worst| worst.get());
        assert!(
            (TASKS / 2..=PLAIN_BOUND).contains(&plain),
            "a plain task waited for {plain} polls"
        );
        assert!(
            (1..=stackful_bound).contains(&stackful),
            "a task on a stack waited for {stackful} ns"
        );
    });
}

/// Wakes its own task and is ready at the next poll.
async fn wake_oneself() {
    let mut woken = false;
    poll_fn(|context| {
        if core::mem::replace(&mut woken, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
