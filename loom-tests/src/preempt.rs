//! Preemption: an interrupt takes the core from a stackful task, between any two steps.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use trapline::platform::InInterrupt::{self, No, Unknown};
use trapline::preempt::{self, PreemptGuard};
use trapline::{JoinError, block_on, stackful, yield_now};

use crate::harness::{
    Drops, FireOnDrop, Signal, Threads, interrupted, model, runtime, runtime_with_one_stack,
    runtime_without_slices,
};
use crate::memory::free_abandoned;
use crate::platform::{
    Arrival, Expected, alarms_come, assert_task_context, clock, clock_runs, compute, interrupt,
    lock, masked, on_interrupt, on_timer, sleeps_until, take_inter_processor_interrupt,
    time_passes, unlock,
};

/// Three tasks keep the FIFO moving, and an interrupt wakes a fourth task. No task is lost.
fn interrupt_against_fifo(in_interrupt: InInterrupt) {
    interrupted::<1>(None, in_interrupt, || {
        let runtime = runtime();
        let ended = Signal::default();
        for _ in 0..3 {
            let ended = ended.clone();
            drop(runtime.spawn(async move {
                yield_now().await;
                ended.fire();
            }));
        }
        let woken = Signal::default();
        drop(runtime.spawn({
            let (woken, ended) = (woken.clone(), ended.clone());
            async move {
                woken.wait(1).await;
                ended.fire();
            }
        }));
        interrupt(Arrival::Sure, move || {
            woken.fire();
            on_interrupt();
        });
        runtime.run_until(ended.wait(4)).unwrap();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_in_interrupt_against_fifo() {
    interrupt_against_fifo(Unknown);
}

#[test]
fn wake_in_interrupt_against_fifo_fast_path() {
    interrupt_against_fifo(No);
}

/// A stackful task wakes other tasks and is preempted for a timer meanwhile. Neither the woken
/// tasks nor the task that waits for the timer are lost.
#[test]
fn preemption_against_fifo() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let woken = [(); 2].map(|()| Signal::default());
        let waiters = woken.each_ref().map(|woken| runtime.spawn(woken.wait(1)));
        let sleeper = runtime.spawn(trapline::time::sleep(Duration::from_millis(10)));
        let computes = stackful(async move { woken.iter().for_each(Signal::fire) });
        interrupt(Arrival::Sure, on_timer);
        runtime
            .run_until(async move {
                // All other tasks are waiting when this one goes on.
                yield_now().await;
                trapline::spawn(computes).await.unwrap();
                for waiter in waiters {
                    waiter.await.unwrap();
                }
                sleeper.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// A stackful task spawns two tasks and drops the handle of one, and is preempted in any step of
/// that, while the loop wakes a sleeper. No task is lost.
#[test]
fn preemption_against_spawns() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let sleeper = runtime.spawn(trapline::time::sleep(Duration::from_millis(10)));
        let computes = stackful(async {
            let kept = trapline::spawn(async {});
            drop(trapline::spawn(async {}));
            kept.await.unwrap();
        });
        interrupt(Arrival::Sure, on_timer);
        runtime
            .run_until(async move {
                // The sleeper waits when the stackful task is spawned.
                yield_now().await;
                trapline::spawn(computes).await.unwrap();
                sleeper.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// Whether an event has come for a task, and whether that task has had the core since.
#[derive(Clone, Default)]
struct Errand {
    came: Arc<AtomicBool>,
    answered: Arc<AtomicBool>,
}

impl Errand {
    fn assert_answered(&self) {
        assert!(
            self.answered.load(Relaxed) || !self.came.load(Relaxed),
            "the woken task has not had the core yet"
        );
    }

    /// Waits for an interrupt that wakes the task.
    async fn interrupt(self) {
        let woken = Signal::default();
        let wait = woken.wait(1);
        interrupt(Arrival::Sure, move || {
            self.came.store(true, Relaxed);
            woken.fire();
            on_interrupt();
        });
        wait.await;
        assert_task_context();
        self.answered.store(true, Relaxed);
    }

    /// Waits for a timer.
    async fn timer(self) {
        let sleep = trapline::time::sleep(Duration::from_millis(10));
        interrupt(Arrival::Sure, move || {
            self.came.store(true, Relaxed);
            on_timer();
        });
        sleep.await;
        assert_task_context();
        self.answered.store(true, Relaxed);
    }
}

/// A task computes, with guards and without, while other tasks wait for interrupts. A woken task
/// has the core before the first task goes on, or as soon as no guard forbids it.
fn at_once<F, const N: usize>(in_interrupt: InInterrupt, wait: [fn(Errand) -> F; N])
where
    F: Future<Output = ()> + Send + 'static,
{
    interrupted::<N>(None, in_interrupt, move || {
        let runtime = runtime();
        let errands: [_; N] = std::array::from_fn(|_| Errand::default());
        let waiters: [_; N] = std::array::from_fn(|n| {
            let (errand, wait) = (errands[n].clone(), wait[n]);
            runtime.spawn(async move { wait(errand).await })
        });
        let computes = stackful(async move {
            let check = || {
                assert_task_context();
                // A second interrupt may come in the minimal stretch that follows the first, and
                // then waits for the end of that stretch.
                if N == 1 {
                    errands.iter().for_each(Errand::assert_answered);
                }
            };
            check();
            drop(PreemptGuard::new());
            check();
            drop((PreemptGuard::new(), PreemptGuard::new()));
            check();
            yield_now().await;
            check();
        });
        runtime
            .run_until(async move {
                // The other tasks are waiting when this one goes on.
                yield_now().await;
                trapline::spawn(computes).await.unwrap();
                for waiter in waiters {
                    waiter.await.unwrap();
                }
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn interrupt_preempts_at_once() {
    at_once(Unknown, [Errand::interrupt]);
}

#[test]
fn interrupt_preempts_at_once_fast_path() {
    at_once(No, [Errand::interrupt]);
}

#[test]
fn alarm_preempts_at_once() {
    at_once(Unknown, [Errand::timer]);
}

#[test]
fn alarm_preempts_at_once_fast_path() {
    at_once(No, [Errand::timer]);
}

#[test]
fn two_interrupts_preempt() {
    at_once(No, [Errand::interrupt, Errand::interrupt]);
}

/// A task computes in sections in which it must not leave the core, while another task waits for an
/// interrupt. The other task never has the core inside of a section. It has the core right after
/// the section in which the interrupt came, in whatever way that section ends.
fn sections(in_interrupt: InInterrupt, section: fn(&dyn Fn())) {
    interrupted::<1>(None, in_interrupt, move || {
        alarms_come();
        let runtime = runtime();
        let errand = Errand::default();
        let waiter = runtime.spawn(errand.clone().interrupt());
        let computes = stackful(async move {
            for _ in 0..2 {
                section(&|| {
                    let answered = errand.answered.load(Relaxed);
                    // These steps let the interrupt come within the section.
                    drop(PreemptGuard::new());
                    preempt::point();
                    assert_eq!(
                        errand.answered.load(Relaxed),
                        answered,
                        "the task left the core in a section"
                    );
                });
                errand.assert_answered();
            }
        });
        runtime
            .run_until(async move {
                yield_now().await;
                trapline::spawn(computes).await.unwrap();
                waiter.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// A preemption that is pending while the kernel holds a lock comes at the next preemption point.
#[test]
fn a_debt_outlives_a_lock_of_the_kernels() {
    for in_interrupt in [Unknown, No] {
        sections(in_interrupt, |section| {
            lock();
            section();
            unlock();
            preempt::point();
        });
    }
}

/// A preemption that is pending while interrupts are masked comes when they are enabled.
#[test]
fn a_debt_outlives_a_masked_section() {
    for in_interrupt in [Unknown, No] {
        sections(in_interrupt, |section| {
            let guard = PreemptGuard::new();
            // The interrupt may come before the mask, or right after it.
            drop(PreemptGuard::new());
            masked(|| {
                drop(guard);
                section();
            });
        });
    }
}

/// A preemption that is pending while `disable` is in effect comes at the last `enable`.
#[test]
fn a_debt_outlives_the_raw_pair() {
    sections(No, |section| {
        preempt::disable();
        preempt::disable();
        section();
        // SAFETY: pairs with the second call of `disable`.
        unsafe { preempt::enable() };
        section();
        // SAFETY: pairs with the first call of `disable`.
        unsafe { preempt::enable() };
    });
}

/// A handler that takes and drops guards does not let a pending preemption come.
#[test]
fn a_guard_in_a_handler_pays_nothing() {
    interrupted::<2>(None, No, || {
        alarms_come();
        let runtime = runtime();
        let errand = Errand::default();
        let waiter = runtime.spawn(errand.clone().interrupt());
        let computes = stackful(async move {
            let answered = errand.answered.clone();
            interrupt(Arrival::Unknown, move || {
                let before = answered.load(Relaxed);
                drop(PreemptGuard::new());
                preempt::point();
                assert_eq!(
                    answered.load(Relaxed),
                    before,
                    "the core was left in the middle of a handler"
                );
                on_interrupt();
            });
            for _ in 0..2 {
                drop(PreemptGuard::new());
                errand.assert_answered();
            }
        });
        runtime
            .run_until(async move {
                yield_now().await;
                trapline::spawn(computes).await.unwrap();
                waiter.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// Polls both futures, in this order, until both are ready.
async fn both(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let mut both = (Box::pin(first), Box::pin(second));
    let mut done = (false, false);
    poll_fn(move |context| {
        done.0 = done.0 || both.0.as_mut().poll(context).is_ready();
        done.1 = done.1 || both.1.as_mut().poll(context).is_ready();
        if done == (true, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Sleeps. A core that parks meanwhile must have its alarm set for this sleep.
async fn sleep_in_time(milliseconds: u64) {
    let mut sleep = Box::pin(trapline::time::sleep(Duration::from_millis(milliseconds)));
    let due = clock() + milliseconds * 1_000_000;
    poll_fn(move |context| {
        sleeps_until(due, false);
        let poll = sleep.as_mut().poll(context);
        sleeps_until(due, poll.is_pending() && clock() < due);
        poll
    })
    .await;
}

/// A stackful task starts two sleeps, the later one first. Alarms and a pending preemption come
/// between any two of its steps. The timers fire on time, though no slice ends.
fn timers_of_a_stackful_task(in_interrupt: InInterrupt) {
    interrupted::<2>(None, in_interrupt, || {
        clock_runs();
        let runtime = runtime_without_slices();
        let woken = Signal::default();
        let waiter = runtime.spawn({
            let wait = woken.wait(1);
            async move {
                wait.await;
                sleep_in_time(2).await;
            }
        });
        let plain = runtime.spawn(sleep_in_time(1));
        let sleeps = stackful(async move {
            interrupt(Arrival::Unknown, || {
                time_passes();
            });
            interrupt(Arrival::Sure, move || {
                woken.fire();
                on_interrupt();
            });
            both(sleep_in_time(20), sleep_in_time(10)).await;
        });
        runtime
            .run_until(async move {
                yield_now().await;
                trapline::spawn(sleeps).await.unwrap();
                plain.await.unwrap();
                waiter.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn alarms_against_timers_of_a_stackful_task() {
    timers_of_a_stackful_task(Unknown);
}

/// A task computes until two other tasks have had the core, one that an interrupt wakes and one
/// that a timer wakes. The alarm comes when its time is there, and at any step before. The task
/// computes with guards, under a lock of the kernel, or with interrupts masked.
fn hog<const N: usize>(in_interrupt: InInterrupt, section: fn()) {
    interrupted::<N>(None, in_interrupt, move || {
        clock_runs();
        let runtime = runtime();
        let errand = Errand::default();
        let slept = Arc::new(AtomicBool::new(false));
        let waiter = runtime.spawn(errand.clone().interrupt());
        let sleeper = runtime.spawn({
            let slept = slept.clone();
            async move {
                sleep_in_time(1).await;
                slept.store(true, Relaxed);
            }
        });
        let computes = stackful(async move {
            if N == 2 {
                interrupt(Arrival::Unknown, || {
                    time_passes();
                });
            }
            section();
            let mut alarms = 0;
            while !slept.load(Relaxed)
                || errand.came.load(Relaxed) && !errand.answered.load(Relaxed)
            {
                compute();
                alarms += 1;
                assert!(alarms < 20, "20 alarms have come, and the task still has the core");
            }
        });
        runtime
            .run_until(async move {
                yield_now().await;
                trapline::spawn(computes).await.unwrap();
                sleeper.await.unwrap();
                waiter.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn alarms_against_a_hog() {
    hog::<2>(No, || ());
}

#[test]
fn alarms_against_a_hog_with_guards() {
    hog::<1>(No, || {
        let guard = PreemptGuard::new();
        time_passes();
        drop(PreemptGuard::new());
        drop(guard);
    });
}

#[test]
fn alarms_against_a_hog_under_a_lock() {
    hog::<1>(No, || {
        lock();
        drop(PreemptGuard::new());
        compute();
        drop(PreemptGuard::new());
        unlock();
    });
}

#[test]
fn alarms_against_a_hog_that_is_masked() {
    hog::<1>(Unknown, || {
        let guard = PreemptGuard::new();
        masked(|| {
            drop(guard);
            time_passes();
            drop(PreemptGuard::new());
        });
    });
}

/// A task computes until a task has run that another core spawns: the spawn interrupts this core.
#[test]
fn spawn_interrupts_stack() {
    model(No, || {
        let runtime = runtime();
        let ended = Signal::default();
        let answered = Arc::new(AtomicBool::new(false));
        drop(runtime.spawn(stackful({
            let (ended, answered) = (ended.clone(), answered.clone());
            async move {
                while !answered.load(Relaxed) {
                    loom::thread::yield_now();
                    take_inter_processor_interrupt();
                }
                ended.fire();
            }
        })));
        let spawner = loom::thread::spawn(move || {
            runtime.spawn(async move { answered.store(true, Relaxed) })
        });
        runtime.run_until(ended.wait(1)).unwrap();
        drop(spawner.join().unwrap());
        runtime.shutdown().unwrap();
    });
}

/// A wake from another core ends a round of `block_on` and is not meant for it. The task is polled
/// again after the `block_on`, and that poll sees what the other core wrote before its wake.
fn block_on_gives_back(in_interrupt: InInterrupt) {
    interrupted::<1>(Some(1), in_interrupt, || {
        let runtime = runtime();
        let threads = Threads::default();
        let [begun, other] = [(); 2].map(|()| Signal::default());
        let task = runtime.spawn(stackful({
            let (threads, begun, other) = (threads.clone(), begun.clone(), other.clone());
            let flag = flag();
            let mut polled = false;
            poll_fn(move |context| {
                if !std::mem::replace(&mut polled, true) {
                    threads.start(set_and_wake(&flag, context));
                    begun.fire();
                    block_on(other.wait(1));
                    // Stands for a task of which another part waits for the flag and was polled
                    // before the `block_on`, so this poll does not look at the flag.
                    return Poll::Pending;
                }
                if flag.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
            })
        }));
        drop(runtime.spawn(async move {
            begun.wait(1).await;
            other.fire();
        }));
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(task).unwrap().unwrap();
        threads.join();
        runtime.shutdown().unwrap();
    });
}

#[test]
fn wake_against_suspended() {
    block_on_gives_back(Unknown);
}

#[test]
fn wake_against_suspended_fast_path() {
    block_on_gives_back(No);
}

/// A join handle's holder is woken when the runtime shuts down while the task is suspended or
/// preempted.
#[test]
fn join_against_abandon() {
    interrupted::<1>(Some(1), No, || {
        let runtime = runtime();
        let [begun, never] = [(); 2].map(|()| Signal::default());
        let handle = runtime.spawn(stackful({
            let begun = begun.clone();
            async move {
                begun.fire();
                block_on(never.wait(1));
            }
        }));
        let joiner = loom::thread::spawn(move || trapline::block_on(handle));
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(begun.wait(1)).unwrap();
        let report = runtime.shutdown().unwrap();
        assert_eq!((report.dropped, report.stacks_with_frames), (0, 1));
        assert!(matches!(joiner.join().unwrap(), Err(JoinError::Abandoned)));
        runtime.shutdown().unwrap();
        free_abandoned();
    });
}

/// Two tasks have one stack. The task that holds it keeps it until the other one, which waits for
/// it, is dropped.
#[test]
fn abort_against_waiting_for_stack() {
    interrupted::<1>(Some(1), No, || {
        let runtime = runtime_with_one_stack();
        let gone = Signal::default();
        let waiter = Drops::default();
        let holder = runtime.spawn(stackful({
            let gone = gone.clone();
            async move { block_on(gone.wait(1)) }
        }));
        let handle = runtime.spawn(stackful({
            let parts = (waiter.payload(), FireOnDrop(gone));
            async move {
                let _parts_of_the_future = parts;
            }
        }));
        let aborter = loom::thread::spawn(move || handle.abort());
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(holder).unwrap().unwrap();
        aborter.join().unwrap();
        assert_eq!(waiter.dropped(), 1);
        runtime.shutdown().unwrap();
    });
}

/// Two tasks have one stack, and the task that holds it waits for another core.
#[test]
fn wake_against_waiting_for_stack() {
    interrupted::<1>(Some(1), No, || {
        let runtime = runtime_with_one_stack();
        let threads = Threads::default();
        let holder = runtime.spawn(stackful({
            let (threads, flag) = (threads.clone(), flag());
            async move {
                let mut started = false;
                block_on(poll_fn(|context| {
                    if !std::mem::replace(&mut started, true) {
                        threads.start(set_and_wake(&flag, context));
                    }
                    if flag.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
                }));
            }
        }));
        let waiter = runtime.spawn(stackful(async {}));
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(waiter).unwrap().unwrap();
        runtime.run_until(holder).unwrap().unwrap();
        threads.join();
        runtime.shutdown().unwrap();
    });
}

/// Two tasks end, each perhaps while the other is preempted at its end. One panics, and its handle
/// says so; the other gives its output.
#[test]
fn two_ends_of_stackful_tasks() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let panics = runtime.spawn(stackful(async {
            std::panic::resume_unwind(Box::new(Expected));
        }));
        let returns = runtime.spawn(stackful(async { 7 }));
        interrupt(Arrival::Unknown, on_timer);
        runtime
            .run_until(async move {
                assert!(matches!(panics.await, Err(JoinError::Panicked(_))));
                assert!(matches!(returns.await, Ok(7)));
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// Two tasks wake each other on a stack that the loop does not leave, and an interrupt wakes a
/// plain task at any step. The plain task has the core before either of the two goes on, and no
/// wake is lost.
#[test]
fn interrupt_against_turns_on_a_stack() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let errand = Errand::default();
        let waiter = runtime.spawn(errand.clone().interrupt());
        let turns = [(); 2].map(|()| Signal::default());
        let tasks = [0, 1].map(|me| {
            let (turns, errand) = (turns.clone(), errand.clone());
            stackful(async move {
                for turn in 1..=2 {
                    turns[me].wait(turn).await;
                    assert_task_context();
                    errand.assert_answered();
                    turns[1 - me].fire();
                    errand.assert_answered();
                }
            })
        });
        runtime
            .run_until(async move {
                // The plain task is waiting when this task goes on.
                yield_now().await;
                let tasks = tasks.map(trapline::spawn);
                turns[0].fire();
                for task in tasks {
                    task.await.unwrap();
                }
                waiter.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// A task panics and leaves a guard. The next task on the same stack is preempted as usual, and
/// what is polled at home is not.
#[test]
fn interrupt_against_a_guard_that_a_panic_leaves() {
    interrupted::<1>(None, No, || {
        let runtime = runtime_with_one_stack();
        let errand = Errand::default();
        let waiter = runtime.spawn(errand.clone().interrupt());
        let panics = stackful(async {
            std::mem::forget((PreemptGuard::new(), PreemptGuard::new()));
            std::panic::resume_unwind(Box::new(Expected));
        });
        let computes = stackful(async move {
            errand.assert_answered();
            drop(PreemptGuard::new());
            errand.assert_answered();
        });
        runtime
            .run_until(async move {
                yield_now().await;
                let panics = trapline::spawn(panics);
                let computes = trapline::spawn(computes);
                assert!(matches!(panics.await, Err(JoinError::Panicked(_))));
                computes.await.unwrap();
                waiter.await.unwrap();
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// A task that was preempted and has gone on holds no frames when its poll has ended: a shutdown
/// drops its future.
#[test]
fn shutdown_after_a_preemption() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let future = Drops::default();
        let part = future.payload();
        drop(runtime.spawn(stackful(async move {
            let _part = part;
            std::future::pending::<()>().await;
        })));
        // The first task has the core again before this one has been polled three times.
        let last = runtime.spawn(stackful(async {
            yield_now().await;
            yield_now().await;
        }));
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(last).unwrap().unwrap();
        let report = runtime.shutdown().unwrap();
        assert_eq!((report.dropped, report.stacks_with_frames), (1, 0));
        future.assert_all_dropped();
    });
}

/// A task waits in `block_on`, while another task is polled that ends this wait.
#[test]
fn interrupt_against_a_suspended_task_beside_another() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let signals = [(); 2].map(|()| Signal::default());
        let [first, second] = signals.clone();
        let waits = runtime.spawn(stackful(async move {
            block_on(first.wait(1));
            second.fire();
            3
        }));
        let [first, second] = signals;
        let wakes = runtime.spawn(stackful(async move {
            first.fire();
            second.wait(1).await;
            4
        }));
        interrupt(Arrival::Unknown, on_timer);
        runtime
            .run_until(async move {
                assert_eq!(waits.await.unwrap(), 3);
                assert_eq!(wakes.await.unwrap(), 4);
            })
            .unwrap();
        runtime.shutdown().unwrap();
    });
}

/// A task that has yielded is aborted by another task, on the stack on which both are polled. It is
/// not polled again.
#[test]
fn abort_of_a_task_that_takes_turns() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let polls = Arc::new(AtomicUsize::new(0));
        let future = Drops::default();
        let victim = runtime.spawn(stackful({
            let (polls, part) = (polls.clone(), future.payload());
            async move {
                let _part = part;
                loop {
                    polls.fetch_add(1, Relaxed);
                    yield_now().await;
                }
            }
        }));
        let aborts = runtime.spawn(stackful(async move {
            while polls.load(Relaxed) < 2 {
                yield_now().await;
            }
            victim.abort();
            let before = polls.load(Relaxed);
            assert!(matches!(victim.await, Err(JoinError::Aborted)));
            assert_eq!(polls.load(Relaxed), before);
        }));
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(aborts).unwrap().unwrap();
        runtime.shutdown().unwrap();
        future.assert_all_dropped();
    });
}

/// The join handle of a stackful task is dropped on another core while the task ends. The output is
/// dropped once.
#[test]
fn end_of_a_stackful_task_against_its_handle() {
    interrupted::<1>(Some(1), No, || {
        let runtime = runtime_with_one_stack();
        let output = Drops::default();
        let handle = runtime.spawn(stackful({
            let part = output.payload();
            async move { part }
        }));
        let dropper = loom::thread::spawn(move || drop(handle));
        interrupt(Arrival::Unknown, on_timer);
        // This task gets the stack when the first one has left it.
        let second = runtime.spawn(stackful(async {}));
        runtime.run_until(second).unwrap().unwrap();
        dropper.join().unwrap();
        runtime.shutdown().unwrap();
        assert_eq!(output.dropped(), 1);
    });
}

/// A BLOCKED stackful task that is aborted is not polled again, though it is given a stack.
#[test]
fn abort_of_a_blocked_stackful_task() {
    interrupted::<1>(None, No, || {
        let runtime = runtime();
        let (polls, future) = (Arc::new(AtomicUsize::new(0)), Drops::default());
        let polled = Signal::default();
        let handle = runtime.spawn(stackful({
            let (polls, polled, part) = (polls.clone(), polled.clone(), future.payload());
            poll_fn(move |_| {
                let _part_of_the_future = &part;
                polls.fetch_add(1, Relaxed);
                polled.fire();
                Poll::<()>::Pending
            })
        }));
        interrupt(Arrival::Unknown, on_timer);
        let aborted = runtime.run_until(async move {
            polled.wait(1).await;
            handle.abort();
            handle.await
        });
        assert!(matches!(aborted.unwrap(), Err(JoinError::Aborted)));
        assert_eq!((polls.load(Relaxed), future.dropped()), (1, 1));
        runtime.shutdown().unwrap();
    });
}

/// An abort from another core takes effect before, in, or right after the only poll of a stackful
/// task.
#[test]
fn abort_against_the_end_of_a_stackful_poll() {
    interrupted::<1>(Some(1), No, || {
        let runtime = runtime();
        let future = Drops::default();
        let handle = runtime.spawn(stackful({
            let part = future.payload();
            async move {
                let _part_of_the_future = part;
                yield_now().await;
            }
        }));
        let aborter = loom::thread::spawn(move || {
            handle.abort();
            handle
        });
        interrupt(Arrival::Unknown, on_timer);
        runtime.run_until(yield_now()).unwrap();
        let handle = aborter.join().unwrap();
        assert!(matches!(runtime.run_until(handle).unwrap(), Ok(()) | Err(JoinError::Aborted)));
        assert_eq!(future.dropped(), 1);
        runtime.shutdown().unwrap();
    });
}

/// Returns a flag that loom checks.
fn flag() -> loom::sync::Arc<loom::sync::atomic::AtomicBool> {
    Default::default()
}

/// Returns the code of another core: it sets the flag and wakes the task.
fn set_and_wake(
    flag: &loom::sync::Arc<loom::sync::atomic::AtomicBool>,
    context: &Context<'_>,
) -> impl FnOnce() + 'static {
    let (flag, waker) = (flag.clone(), context.waker().clone());
    move || {
        // Relaxed: only the wake may order this store.
        flag.store(true, Relaxed);
        waker.wake();
    }
}
