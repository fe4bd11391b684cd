//! User code that the runtime calls outside of a poll (drops, foreign wakers, hooks, callbacks).
//! Its panics and the guards that it leaves have no effect on other code.
#![cfg(target_os = "linux")]

use std::cell::RefCell;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use trapline::preempt::PreemptGuard;
use trapline::time::{now, sleep};
use trapline::{
    Config, Hooks, JoinError, LocalSpawner, MIN_SLICE, Runtime, TaskBuilder, TaskPanic, block_on,
    contexted, spawn, stackful, yield_now,
};

hal_shim::heap!();

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Runs `test` on a core of its own, in a runtime with this configuration.
fn run<F: Future<Output = ()>>(config: Config, test: impl FnOnce(&'static Runtime) -> F + Send) {
    let runtime = hal_shim::test::keep(Runtime::with_config(config));
    // SAFETY: these tests use no standard streams, thread-locals or locks in stackful tasks.
    unsafe { hal_shim::isolated(|| runtime.run_until(test(runtime)).unwrap()) }
}

/// Spins for `duration`.
fn compute_for(duration: Duration) {
    let until = now() + duration;
    while now() < until {}
}

/// Yields four times: all other ready tasks are polled four times.
async fn turns() {
    for _ in 0..4 {
        yield_now().await;
    }
}

/// Panics if stackful tasks are not preempted, or if preemption is enabled in the runtime's own
/// code.
async fn preemption_works() {
    let hog = spawn(stackful(async { compute_for(ms(500)) }));
    yield_now().await;
    sleep(ms(2)).await;
    assert!(!hog.is_finished(), "the sleep ended after a computation of 500 ms");
    hog.abort();
}

/// Defines a configuration and a function that returns what `on_panic` was told in a runtime with
/// that configuration.
macro_rules! reports {
    ($reported:ident, $config:ident) => {
        static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
        let $config = Config {
            on_panic: Some(|panic: &TaskPanic<'_>| {
                let line = format!("{} {}", panic.name().unwrap_or("-"), panic.message());
                REPORTS.lock().unwrap().push(line);
            }),
            ..Config::new()
        };
        let $reported = || std::mem::take(&mut *REPORTS.lock().unwrap());
    };
}

const LEFT_A_GUARD: &str = "code that the runtime called outside of a poll (a drop, a waker, a \
                            hook) left a PreemptGuard: drop it there";

/// A value that panics when it is dropped.
struct Bomb(&'static str);
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

#[test]
fn a_panic_stays_with_its_task() {
    // With the shortest slices, a preemption becomes pending while the panic unwinds, and comes as
    // soon as the panic is caught, while the payload is on its way to the handle.
    run(Config { slice: MIN_SLICE, ..Config::new() }, async |_| {
        for round in 0..20 {
            let panicking: [_; 8] = std::array::from_fn(|_| spawn(stackful(async { panic!("A") })));
            let others: [_; 8] = std::array::from_fn(|_| spawn(stackful(async { 7_u64 })));
            for task in panicking {
                let result: Result<u64, _> = task.await;
                assert!(matches!(result, Err(JoinError::Panicked(_))), "{round}: {result:?}");
            }
            for task in others {
                assert_eq!(task.await.unwrap(), 7, "round {round}");
            }
        }
    });
}

/// A place for a guard that several local tasks can reach.
type Kept = Rc<RefCell<Option<PreemptGuard>>>;

/// A value whose drop leaves a guard in the place.
struct Make(Kept);
impl Drop for Make {
    fn drop(&mut self) {
        *self.0.borrow_mut() = Some(PreemptGuard::new());
    }
}

/// A value whose drop takes the guard from the place, drops it, and computes.
struct Take(Kept);
impl Drop for Take {
    fn drop(&mut self) {
        drop(self.0.borrow_mut().take());
        // This runs in the loop. If an alarm preempted here, it would switch stacks in the middle
        // of the loop's own code.
        compute_for(ms(5));
    }
}

#[test]
fn a_guard_that_a_drop_leaves_counts_no_longer() {
    reports!(reported, config);
    run(config, async |_| {
        let spawner = LocalSpawner::current().unwrap();
        for future_drops in [false, true] {
            let kept = Kept::default();
            let make = Make(kept.clone());
            if future_drops {
                let task = spawner.spawn(async move {
                    let _make = make;
                    pending::<()>().await
                });
                yield_now().await;
                task.abort();
            } else {
                drop(spawner.spawn(async move { make }));
            }
            turns().await;
            assert_eq!(reported(), [format!("- {LEFT_A_GUARD}")]);
            // The core enters a stack and leaves it, which sets the preempt count.
            spawn(stackful(async {})).await.unwrap();
            preemption_works().await;
            let take = Take(kept);
            drop(spawner.spawn(async move { take }));
            turns().await;
            assert_eq!(reported(), [""; 0]);
            preemption_works().await;
        }
    });
}

#[test]
fn a_guard_that_is_left_on_a_stack_counts_no_longer() {
    /// A value that a stackful task leaves, so it is `Send`. Its drop forgets a guard.
    struct Left(Arc<AtomicUsize>);
    impl Drop for Left {
        fn drop(&mut self) {
            std::mem::forget(PreemptGuard::new());
            self.0.fetch_add(1, SeqCst);
        }
    }
    reports!(reported, config);
    run(config, async |_| {
        let drops = Arc::new(AtomicUsize::new(0));
        let left = Left(drops.clone());
        drop(spawn(stackful(async move { left })));
        let left = Left(drops.clone());
        let aborted = spawn(stackful(async move {
            let _left = left;
            pending::<()>().await
        }));
        turns().await;
        spawn(stackful(async {})).await.unwrap();
        assert_eq!(reported(), [format!("- {LEFT_A_GUARD}")]);
        aborted.abort();
        assert!(matches!(aborted.await, Err(JoinError::Aborted)));
        assert_eq!(reported(), [format!("- {LEFT_A_GUARD}")]);
        assert_eq!(drops.load(SeqCst), 2);
        preemption_works().await;
    });
}

/// A waker of another library, which calls any code.
struct Foreign(fn());
impl Wake for Foreign {
    fn wake(self: Arc<Self>) {
        (self.0)();
    }
}

#[test]
fn a_foreign_waker_neither_ends_the_loop_nor_leaves_a_guard() {
    reports!(reported, config);
    run(config, async |_| {
        let wakes: [(fn(), &str); 2] = [
            (|| panic!("a foreign waker"), "a foreign waker"),
            (|| std::mem::forget(PreemptGuard::new()), LEFT_A_GUARD),
        ];
        for (wake, said) in wakes {
            let waker = Waker::from(Arc::new(Foreign(wake)));
            // A timer wakes the foreign waker. No task of this runtime belongs to it.
            let mut timer = pin!(sleep(ms(1)));
            assert!(timer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            sleep(ms(5)).await;
            assert_eq!(reported(), [format!("run_until {said}")]);
            preemption_works().await;
            // A task that ends wakes the foreign waker as its joiner: a plain task, and a stackful
            // one.
            let plain = TaskBuilder::new().name("ends").spawn(yield_now()).unwrap();
            let on_stack = TaskBuilder::new().name("ends").spawn(stackful(yield_now())).unwrap();
            for mut handle in [plain, on_stack] {
                let mut context = Context::from_waker(&waker);
                assert!(pin!(&mut handle).poll(&mut context).is_pending());
                while !handle.is_finished() {
                    yield_now().await;
                }
                turns().await;
                assert_eq!(reported(), [format!("ends {said}")]);
                preemption_works().await;
            }
        }
    });
}

#[test]
fn callbacks_neither_end_the_loop_nor_leave_a_guard() {
    static STALLS: AtomicUsize = AtomicUsize::new(0);
    static REPORTED: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let config = Config {
        max_stacks: 1,
        on_stall: Some(|_| match STALLS.fetch_add(1, SeqCst) {
            0 => panic!("on_stall"),
            _ => std::mem::forget(PreemptGuard::new()),
        }),
        on_panic: Some(|panic| {
            REPORTED.lock().unwrap().push(panic.message().to_owned());
            std::mem::forget(PreemptGuard::new());
        }),
        ..Config::new()
    };
    run(config, async |_| {
        // This task holds the only stack, and the next one waits for a stack.
        let holds = spawn(stackful(async { block_on(sleep(ms(20))) }));
        let waits = spawn(stackful(async { 3 }));
        holds.await.unwrap();
        assert_eq!(waits.await.unwrap(), 3);
        assert!(STALLS.load(SeqCst) >= 1);
        assert!(REPORTED.lock().unwrap().iter().any(|message| message == "on_stall"));
        drop(spawn(async { panic!("detached") }));
        drop(spawn(stackful(async { panic!("on a stack") })));
        turns().await;
        assert_eq!(spawn(stackful(async { 4 })).await.unwrap(), 4);
        let reported = std::mem::take(&mut *REPORTED.lock().unwrap());
        for message in ["detached", "on a stack"] {
            assert!(reported.iter().any(|it| it == message), "{reported:?}");
        }
        preemption_works().await;
    });
}

#[test]
fn a_guard_that_hooks_leave_counts_no_longer() {
    /// Hooks that forget a guard when the loop enters them for a task that is resumed.
    struct Leaves(AtomicUsize);
    impl Hooks for Leaves {
        fn enter(&self) {
            if self.0.fetch_add(1, SeqCst) == 2 {
                std::mem::forget(PreemptGuard::new());
            }
        }

        fn leave(&self) {}
    }
    reports!(reported, config);
    run(config, async |_| {
        let hooks = Arc::new(Leaves(AtomicUsize::new(0)));
        // The task is resumed several times, after each of its waits.
        let waits = async {
            block_on(sleep(ms(1)));
            block_on(sleep(ms(1)));
            block_on(sleep(ms(1)));
            6
        };
        let task = TaskBuilder::new().name("hooked").spawn(contexted(stackful(waits), hooks));
        assert_eq!(task.unwrap().await.unwrap(), 6);
        assert_eq!(reported(), [format!("hooked {LEFT_A_GUARD}")]);
        preemption_works().await;
    });
}

#[test]
fn a_panic_of_an_outputs_drop_reaches_only_the_hook() {
    reports!(reported, config);
    run(config, async |_| {
        // The handle is dropped first.
        drop(spawn(async { Bomb("detached") }));
        turns().await;
        assert_eq!(reported(), ["- detached"]);
        // The task ends first.
        let finished = spawn(async { Bomb("kept") });
        turns().await;
        spawn(async move { drop(finished) }).await.unwrap();
        assert_eq!(reported(), ["- kept"]);
        // The output is dropped while another panic unwinds.
        let finished = spawn(async { Bomb("beside") });
        turns().await;
        let panics = spawn(async move {
            let _finished = finished;
            panic!("of its own");
        });
        assert_eq!(format!("{:?}", panics.await), "Err(Panicked(\"of its own\"))");
        assert_eq!(reported(), ["- beside"]);
        // A join handle drops a foreign waker whose drop panics.
        struct Drops;
        impl Wake for Drops {
            fn wake(self: Arc<Self>) {}
        }
        impl Drop for Drops {
            fn drop(&mut self) {
                panic!("a waker's drop");
            }
        }
        let waits = spawn(async {
            let waker = Waker::from(Arc::new(Drops));
            let mut handle = spawn(pending::<()>());
            assert!(pin!(&mut handle).poll(&mut Context::from_waker(&waker)).is_pending());
            // The handle holds the last clone.
            std::mem::forget(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                drop(waker)
            })));
            drop(handle);
        });
        waits.await.unwrap();
        assert_eq!(reported(), ["- a waker's drop"]);
    });
}

#[test]
fn a_payload_whose_drop_panics_ends_nothing() {
    run(Config::new(), async |_| {
        let parent =
            spawn(async { stackful(async { std::panic::panic_any(Bomb("payload")) }).await });
        let error = parent.await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the task panicked: a stackful future panicked: (no message)"
        );
        assert_eq!(spawn(async { 5 }).await.unwrap(), 5);
        // There is no `on_panic` hook here, and the handles are not awaited.
        let task = spawn(async { std::panic::panic_any(Bomb("payload")) });
        turns().await;
        drop(task);
        drop(spawn(stackful(async { std::panic::panic_any(Bomb("payload")) })));
        turns().await;
        assert_eq!(spawn(stackful(async { 6 })).await.unwrap(), 6);
    });
}

#[test]
fn the_drop_after_a_panic_is_preempted_and_may_block() {
    struct Flush(Arc<AtomicUsize>);
    impl Drop for Flush {
        fn drop(&mut self) {
            while self.0.load(SeqCst) == 0 {}
            block_on(sleep(ms(1)));
            self.0.fetch_add(1, SeqCst);
        }
    }
    run(Config::new(), async |_| {
        let count = Arc::new(AtomicUsize::new(0));
        let mut flush = Some(Flush(count.clone()));
        let task = spawn(stackful(poll_fn(move |_| {
            let _ = &mut flush;
            if true {
                panic!("poll");
            }
            Poll::Ready(())
        })));
        // The drop waits for this task, and is preempted beside it.
        let counts = count.clone();
        spawn(async move {
            sleep(ms(3)).await;
            counts.store(1, SeqCst);
        });
        assert_eq!(format!("{:?}", task.await), "Err(Panicked(\"poll\"))");
        assert_eq!(count.load(SeqCst), 2);
    });
}

/// The waker of the task that the test polls. A drop wakes it.
static WAITS: AtomicWaker = AtomicWaker::new();

#[test]
fn a_guard_over_the_end_of_a_poll_stays_in_force_until_the_future_is_gone() {
    struct Checks(Arc<AtomicUsize>);
    impl Drop for Checks {
        fn drop(&mut self) {
            // The drop is not preempted: the guard that the task left protects the values that are
            // dropped here.
            let wanted = self.0.clone();
            WAITS.wake();
            compute_for(ms(5));
            wanted.fetch_add(usize::from(wanted.load(SeqCst) == 0), SeqCst);
        }
    }
    run(Config::new(), async |_| {
        let count = Arc::new(AtomicUsize::new(0));
        let mut checks = Some(Checks(count.clone()));
        let seen = count.clone();
        let sleeper = spawn(async move {
            sleep(ms(1)).await;
            seen.fetch_add(10, SeqCst);
        });
        let task = spawn(stackful(poll_fn(move |context| {
            let _ = &mut checks;
            WAITS.register(context.waker());
            std::mem::forget(PreemptGuard::new());
            Poll::<()>::Pending
        })));
        assert!(task.await.unwrap_err().to_string().contains("held or forgot a PreemptGuard"));
        sleeper.await.unwrap();
        assert_eq!(count.load(SeqCst), 11);
        preemption_works().await;
    });
}

/// The only case in which a stackful task's future is dropped off a stack while the runtime runs:
/// no stack can be had.
#[test]
fn block_on_in_a_drop_that_has_no_stack_says_so() {
    struct Blocks;
    impl Drop for Blocks {
        fn drop(&mut self) {
            block_on(sleep(ms(1)));
        }
    }
    static REPORTS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let config = Config {
        max_stacks: 1,
        on_panic: Some(|panic| REPORTS.lock().unwrap().push(panic.message().to_owned())),
        ..Config::new()
    };
    run(config, async |runtime| {
        let holds = spawn(stackful(async { block_on(sleep(ms(50))) }));
        yield_now().await;
        let blocks = Blocks;
        let waits = spawn(stackful(async move { drop(blocks) }));
        while runtime.stats().waiting == 0 {
            sleep(ms(1)).await;
        }
        waits.abort();
        assert!(matches!(waits.await, Err(JoinError::Aborted)));
        assert!(!holds.is_finished());
        let said = REPORTS.lock().unwrap().pop().expect("a report");
        assert!(said.contains("or has no stack"), "{said}");
        holds.await.unwrap();
    });
}
