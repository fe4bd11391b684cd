//! Tests that only a host can run: panics that are caught, signal handlers of the program's own, a
//! program that does not link.
#![cfg(target_os = "linux")]

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use trapline::preempt::PreemptGuard;
use trapline::time::sleep;
use trapline::{
    Config, ConfigError, EnterError, Hooks, JoinError, JoinHandle, Runtime, TaskBuilder, TaskPanic,
    block_on, contexted, spawn, stackful, yield_now,
};

hal_shim::heap!();

/// Runs `test` on a core of its own, with a new runtime.
fn with_runtime(test: impl FnOnce(&'static Runtime) + Send) {
    let runtime = hal_shim::test::keep(Runtime::new());
    // SAFETY: these tests use no standard streams, thread-locals or locks in stackful tasks.
    unsafe { hal_shim::isolated(|| test(runtime)) }
}

/// Spins for `duration`, during which slices may end.
fn compute_for(duration: Duration) {
    let until = trapline::time::now() + duration;
    while trapline::time::now() < until {}
}

/// A value whose drop takes several slices, also while a panic unwinds.
struct Slow;
impl Drop for Slow {
    fn drop(&mut self) {
        compute_for(Duration::from_millis(5));
    }
}

/// Returns the message of the panic that an error reports.
fn message(error: JoinError) -> String {
    match error {
        JoinError::Panicked(payload) => payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()))
            .expect("a message"),
        other => panic!("{other}"),
    }
}

#[test]
fn panic_of_a_plain_task_is_its_handles() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = spawn(async {
                    yield_now().await;
                    panic!("plain {}", 1);
                });
                assert_eq!(message(task.await.unwrap_err()), "plain 1");
                assert_eq!(spawn(async { 1 }).await.unwrap(), 1);
            })
            .unwrap();
    });
}

#[test]
fn panic_of_a_stackful_task_is_its_handles() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = spawn(stackful(async {
                    block_on(sleep(Duration::from_millis(1)));
                    panic!("stackful");
                }));
                assert_eq!(message(task.await.unwrap_err()), "stackful");
                // The next task runs on the same stack.
                assert_eq!(spawn(stackful(async { 2 })).await.unwrap(), 2);
                // If the stackful future is inside of another future, the parent panics with the
                // child's message.
                let parent = spawn(async {
                    stackful(async { panic!("child") }).await;
                });
                assert!(message(parent.await.unwrap_err()).contains("child"));
            })
            .unwrap();
        assert_eq!(runtime.stats().stacks, 1);
    });
}

#[test]
fn hooks_are_left_in_a_panic() {
    /// How many more times the hooks were entered than left, and how often they were entered.
    static INSIDE: AtomicUsize = AtomicUsize::new(0);
    static ENTERED: AtomicUsize = AtomicUsize::new(0);
    struct Counting;
    impl Hooks for Counting {
        fn enter(&self) {
            INSIDE.fetch_add(1, SeqCst);
            ENTERED.fetch_add(1, SeqCst);
        }

        fn leave(&self) {
            INSIDE.fetch_sub(1, SeqCst);
        }
    }
    /// A value that must be dropped while the hooks are entered.
    struct Inside;
    impl Drop for Inside {
        fn drop(&mut self) {
            assert_eq!(INSIDE.load(SeqCst), 1);
        }
    }
    async fn panics() {
        let _inside = Inside;
        yield_now().await;
        panic!("contexted");
    }
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let plain = contexted(panics(), Arc::new(Counting));
                assert_eq!(message(spawn(plain).await.unwrap_err()), "contexted");
                // The hooks were entered for two polls and a drop.
                assert_eq!((INSIDE.load(SeqCst), ENTERED.load(SeqCst)), (0, 3));
                let on_stack = contexted(stackful(panics()), Arc::new(Counting));
                assert_eq!(message(spawn(on_stack).await.unwrap_err()), "contexted");
                assert_eq!(INSIDE.load(SeqCst), 0);
                // A task without hooks that is polled later is not inside of them.
                spawn(stackful(async { compute_for(Duration::from_millis(5)) })).await.unwrap();
                assert_eq!(INSIDE.load(SeqCst), 0);
            })
            .unwrap();
    });
}

/// The future of a preempted task must not be dropped, so the program cannot go on after a panic in
/// its hooks.
#[test]
fn a_panic_of_hooks_ends_the_program() {
    const CHILD: &str = "TRAPLINE_TEST_HOOKS_PANIC";
    struct Panicking(AtomicUsize);
    impl Hooks for Panicking {
        fn enter(&self) {
            // The first poll makes the task stackful, and the second is preempted. The hooks panic
            // when the task is resumed.
            assert!(self.0.fetch_add(1, SeqCst) < 2, "hooks");
        }

        fn leave(&self) {}
    }
    if std::env::var_os(CHILD).is_none() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_panic_of_hooks_ends_the_program", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(!child.status.success());
        assert!(String::from_utf8_lossy(&child.stderr).contains("trapline: hooks panicked"));
        return;
    }
    with_runtime(|runtime| {
        let hog = async {
            loop {
                compute_for(Duration::from_millis(1));
            }
        };
        let hooks = Arc::new(Panicking(AtomicUsize::new(0)));
        let _ = runtime.run_until(runtime.spawn(contexted(stackful(hog), hooks)));
    });
}

#[test]
fn panic_of_the_awaited_future_comes_back() {
    with_runtime(|runtime| {
        let error = runtime
            .run_until(async {
                yield_now().await;
                panic!("root");
            })
            .unwrap_err();
        assert!(matches!(error, EnterError::Panicked(_)), "{error}");
        assert_eq!(runtime.run_until(async { 3 }).unwrap(), 3);
    });
}

#[test]
fn panics_in_drops_end_with_the_task() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                // The future panics when it is dropped after its last poll: the output is not lost.
                let mut bomb = Some(Bomb);
                let task = spawn(poll_fn(move |_| {
                    let _ = &mut bomb;
                    Poll::Ready(4)
                }));
                assert_eq!(task.await.unwrap(), 4);
                // A future panics when it is dropped for an abort.
                let mut bomb = Some(Bomb);
                let task = spawn(poll_fn(move |_| {
                    let _ = &mut bomb;
                    Poll::<()>::Pending
                }));
                yield_now().await;
                task.abort();
                assert!(matches!(task.await, Err(JoinError::Aborted)));
                // The output of a detached task panics when it is dropped.
                drop(spawn(async { Bomb }));
                yield_now().await;
                yield_now().await;
                assert_eq!(spawn(async { 5 }).await.unwrap(), 5);
            })
            .unwrap();
    });
}

/// What the `on_panic` hook was told.
static REPORTED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The `on_panic` hook.
fn report(panic: &TaskPanic<'_>) {
    let message = panic.payload().downcast_ref::<i32>().map_or(panic.message(), |_| "a number");
    REPORTED.lock().unwrap().push(format!("{:?} {message}", panic.name()));
    let name = panic.name().map(|name| format!(" {name:?}")).unwrap_or_default();
    assert_eq!(panic.to_string(), format!("{}{name} panicked: {}", panic.id(), panic.message()));
    if panic.message() == "the hook too" {
        panic!("in the hook");
    }
}

/// Returns what the hook was told since the last call.
fn reported() -> Vec<String> {
    std::mem::take(&mut REPORTED.lock().unwrap())
}

/// A value that panics when it is dropped.
struct Bomb(&'static str);
impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

#[test]
fn panics_that_nobody_gets_are_reported_by_name() {
    let turns = async || {
        for _ in 0..4 {
            yield_now().await;
        }
    };
    let config = Config { on_panic: Some(report), ..Config::new() };
    let runtime = hal_shim::test::keep(Runtime::with_config(config));
    let named = |name| TaskBuilder::new().name(name);
    let test = async || {
        // The handle gets this panic.
        let task = named("awaited").spawn(async { panic!("seen") }).unwrap();
        assert_eq!(message(task.await.unwrap_err()), "seen");
        turns().await;
        assert_eq!(reported(), [""; 0]);
        // These tasks are detached.
        drop(named("detached").spawn(async { panic!("unseen") }).unwrap());
        drop(named("on a stack").spawn(stackful(async { panic!("unseen {}", 2) })).unwrap());
        drop(spawn(async { std::panic::panic_any(3) }));
        turns().await;
        spawn(stackful(async {})).await.unwrap();
        let mut all = reported();
        all.sort();
        assert_eq!(
            all,
            ["None a number", "Some(\"detached\") unseen", "Some(\"on a stack\") unseen 2"]
        );
        // This handle is dropped without being awaited.
        let task = named("dropped").spawn(async { panic!("late") }).unwrap();
        turns().await;
        assert_eq!(
            reported(),
            [""; 0],
            "the panic was reported while the handle could still give it"
        );
        drop(task);
        assert_eq!(reported(), ["Some(\"dropped\") late"]);
        // The drop panics: of an output, of a future that was aborted, of a future that was ready.
        drop(named("output").spawn(async { Bomb("output") }).unwrap());
        turns().await;
        let bomb = Bomb("aborted");
        let task = named("aborted").spawn(async move {
            let _bomb = bomb;
            std::future::pending::<()>().await
        });
        turns().await;
        let task = task.unwrap();
        task.abort();
        assert!(matches!(task.await, Err(JoinError::Aborted)));
        let mut bomb = Some(Bomb("ready"));
        let task = named("ready").spawn(poll_fn(move |_| {
            let _ = &mut bomb;
            Poll::Ready(4)
        }));
        assert_eq!(task.unwrap().await.unwrap(), 4);
        let expected = ["output", "aborted", "ready"];
        assert_eq!(reported(), expected.map(|name| format!("Some({name:?}) {name}")));
        // The poll panics, and so does the drop: the handle gets the first panic, and the hook the
        // second.
        let mut bomb = Some(Bomb("second"));
        let task = named("twice").spawn(poll_fn(move |_| {
            let _ = &mut bomb;
            if true {
                panic!("first");
            }
            Poll::Ready(())
        }));
        let task = task.unwrap();
        turns().await;
        assert_eq!(reported(), ["Some(\"twice\") second"]);
        assert_eq!(message(task.await.unwrap_err()), "first");
        // The hook panics, and so does the drop of a payload.
        drop(spawn(async { panic!("the hook too") }));
        drop(spawn(async { std::panic::panic_any(Bomb("payload")) }));
        turns().await;
        assert_eq!(reported(), ["None the hook too", "None (no message)", "None payload"]);
        assert_eq!(spawn(async { 5 }).await.unwrap(), 5);
        // A waker panics when it is woken.
        let mut task = named("wakes").spawn(yield_now()).unwrap();
        struct Panics;
        impl std::task::Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("waker");
            }
        }
        let waker = Arc::new(Panics).into();
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        turns().await;
        assert_eq!(reported(), ["Some(\"wakes\") waker"]);
        task.await.unwrap();
    };
    // SAFETY: as in `with_runtime`.
    unsafe { hal_shim::isolated(|| runtime.run_until(test()).unwrap()) };
}

/// The program must not survive this: a reference count that wraps frees a task that is in use.
#[test]
fn too_many_references_end_the_program() {
    const CHILD: &str = "TRAPLINE_TEST_REFERENCES";
    if std::env::var_os(CHILD).is_none() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "too_many_references_end_the_program", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(!child.status.success());
        assert!(said.contains("the last that there may be"), "{said}");
        assert!(said.contains("trapline: a task's reference count overflowed"), "{said}");
        assert!(!said.contains("it went on"), "{said}");
        return;
    }
    with_runtime(|runtime| {
        let counts = poll_fn(|context| {
            // Sets the reference count, which is the upper part of the state word, as if almost as
            // many clones as there may be had been forgotten. The state word is the first word of a
            // task.
            // SAFETY: the task is alive, and after this its reference count frees nothing in this
            // process.
            let word = unsafe { &*context.waker().data().cast::<AtomicUsize>() };
            word.store(word.load(SeqCst) & 0xffff | (isize::MAX as usize & !0xffff), SeqCst);
            std::mem::forget(context.waker().clone());
            eprintln!("the last that there may be");
            let _ = std::panic::catch_unwind(|| {
                for _ in 0..0x10000 {
                    std::mem::forget(context.waker().clone());
                }
            });
            eprintln!("it went on");
            Poll::Ready(())
        });
        let _ = runtime.run_until(runtime.spawn(counts));
    });
}

#[test]
#[ignore = "takes half a minute, and minutes if not optimized"]
fn two_billion_wakers_forgotten() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let drops = Arc::new(AtomicUsize::new(0));
                let dropped = CountDrop(drops.clone());
                let task = spawn(async move {
                    let _dropped = dropped;
                    let waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
                    for _ in 0..1_u64 << 31 {
                        std::mem::forget(waker.clone());
                    }
                    yield_now().await;
                    drop(waker);
                    yield_now().await;
                    7
                });
                assert_eq!(task.await.unwrap(), 7);
                assert_eq!(drops.load(SeqCst), 1);
            })
            .unwrap();
    });
}

#[test]
fn a_panicking_task_is_not_preempted_and_a_preempted_one_may_panic() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = spawn(stackful(async {
                    let _slow = Slow;
                    panic!("slowly");
                }));
                let hog = spawn(stackful(async {
                    compute_for(Duration::from_millis(10));
                    panic!("after preemptions");
                }));
                assert_eq!(message(task.await.unwrap_err()), "slowly");
                assert_eq!(message(hog.await.unwrap_err()), "after preemptions");
            })
            .unwrap();
        assert!(runtime.stats().preemptions > 0);
    });
}

#[test]
fn a_hog_that_caught_a_panic_is_preempted_again() {
    with_runtime(|runtime| {
        let ticks = Arc::new(AtomicUsize::new(0));
        let sees = ticks.clone();
        runtime
            .run_until(async {
                let hog = spawn(stackful(async move {
                    let _ = std::panic::catch_unwind(|| {
                        let _slow = Slow;
                        panic!("caught by the task itself");
                    });
                    // The slice ended during the panic. If no further alarm came, this loop would
                    // never end.
                    while sees.load(SeqCst) == 0 {}
                }));
                sleep(Duration::from_millis(10)).await;
                ticks.fetch_add(1, SeqCst);
                hog.await.unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_join_handle_that_gave_its_output_is_not_polled_again() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let mut task = spawn(async { 1 });
                assert_eq!((&mut task).await.unwrap(), 1);
                assert_eq!((task.id(), task.name(), task.is_finished()), (None, None, true));
                task.abort();
                let said = message(spawn(async move { task.await.unwrap() }).await.unwrap_err());
                assert!(said.contains("after it had given its output"), "{said}");
            })
            .unwrap();
    });
}

#[test]
fn block_on_in_a_plain_task_is_refused_by_name() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = TaskBuilder::new().name("blocks").spawn(async { block_on(async {}) });
                let task = task.unwrap();
                let name = format!("{} \"blocks\"", task.id().expect("a task"));
                let said = message(task.await.unwrap_err());
                assert!(said.contains(&name) && said.contains("stackful()"), "{said}");
            })
            .unwrap();
    });
}

#[test]
fn block_on_under_a_guard_is_refused() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = spawn(stackful(async {
                    let _guard = PreemptGuard::new();
                    block_on(async {});
                }));
                let said = message(task.await.unwrap_err());
                assert!(said.contains("PreemptGuard"), "{said}");
                assert_eq!(spawn(stackful(async { 6 })).await.unwrap(), 6);
            })
            .unwrap();
    });
}

#[test]
fn a_signal_handler_of_the_programs_own_is_not_preempted() {
    static WOKEN: AtomicWaker = AtomicWaker::new();
    static IN_HANDLER: AtomicUsize = AtomicUsize::new(0);
    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn on_usr2(_: libc::c_int) {
        let guard = PreemptGuard::new();
        let before = OTHERS.load(SeqCst);
        // Several slices end here.
        compute_for(Duration::from_millis(5));
        drop(guard);
        hal_shim::interrupt::in_signal_handler(|| WOKEN.wake());
        compute_for(Duration::from_millis(5));
        IN_HANDLER.store(1 + OTHERS.load(SeqCst) - before, SeqCst);
    }
    with_runtime(|runtime| {
        // SAFETY: the handler only does atomic operations, reads the clock, and wakes.
        unsafe { libc::signal(libc::SIGUSR2, on_usr2 as *const () as libc::sighandler_t) };
        runtime
            .run_until(async {
                let other = spawn(stackful(async {
                    while IN_HANDLER.load(SeqCst) == 0 {
                        OTHERS.fetch_add(1, SeqCst);
                    }
                }));
                let hog = spawn(stackful(async {
                    // SAFETY: `raise` has no conditions.
                    unsafe { libc::raise(libc::SIGUSR2) };
                    assert_eq!(
                        IN_HANDLER.load(SeqCst),
                        1,
                        "another task ran in the middle of the handler"
                    );
                }));
                hog.await.unwrap();
                other.await.unwrap();
                // Later on, hogs are preempted as usual.
                let stop = Arc::new(AtomicUsize::new(0));
                let sees = stop.clone();
                let hog = spawn(stackful(async move { while sees.load(SeqCst) == 0 {} }));
                sleep(Duration::from_millis(3)).await;
                stop.store(1, SeqCst);
                hog.await.unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_guard_that_was_declared_void_does_nothing_more() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<PreemptGuard>> =
            const { std::cell::RefCell::new(None) };
    }
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                // A plain task may use thread-locals.
                let keeps = spawn(async { KEPT.set(Some(PreemptGuard::new())) });
                // The task was ready before the runtime found its guard, so the handle gives the
                // output.
                keeps.await.unwrap();
                drop(KEPT.take());
                for _ in 0..5 {
                    sleep(Duration::from_millis(1)).await;
                    compute_for(Duration::from_millis(2));
                }
                let hog = spawn(stackful(async {
                    compute_for(Duration::from_millis(5));
                }));
                hog.await.unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_debt_that_falls_due_in_a_panic_is_not_forgotten() {
    // Sooner or later the alarm fires at each instruction with which a pending preemption is
    // handled while the thread is panicking.
    with_runtime(|_| {
        let runtime = hal_shim::test::keep(Runtime::with_config(Config {
            slice: trapline::MIN_SLICE,
            ..Config::new()
        }));
        for _ in 0..200 {
            runtime
                .run_until(async {
                    let stop = Arc::new(AtomicUsize::new(0));
                    let sees = stop.clone();
                    let hog = spawn(stackful(async move {
                        struct Guards;
                        impl Drop for Guards {
                            fn drop(&mut self) {
                                let until = trapline::time::now() + Duration::from_micros(100);
                                while trapline::time::now() < until {
                                    drop(PreemptGuard::new());
                                }
                            }
                        }
                        let _ = std::panic::catch_unwind(|| {
                            let _guards = Guards;
                            std::panic::resume_unwind(Box::new(()));
                        });
                        while sees.load(SeqCst) == 0 {}
                    }));
                    sleep(Duration::from_micros(500)).await;
                    stop.store(1, SeqCst);
                    hog.await.unwrap();
                })
                .unwrap();
        }
    });
}

struct CountDrop(Arc<AtomicUsize>);
impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_guard_across_an_await_in_block_on_is_caught() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = spawn(stackful(async {
                    block_on(async {
                        let _guard = PreemptGuard::new();
                        sleep(Duration::from_millis(1)).await;
                    });
                }));
                let said = message(task.await.unwrap_err());
                assert!(said.contains("PreemptGuard"), "{said}");
                assert_eq!(spawn(stackful(async { 8 })).await.unwrap(), 8);
            })
            .unwrap();
    });
}

#[test]
fn a_timer_that_is_due_in_a_panic_waits_for_its_end() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let task = spawn(stackful(async {
                    struct Slow;
                    impl Drop for Slow {
                        fn drop(&mut self) {
                            let until = trapline::time::now() + Duration::from_millis(20);
                            while trapline::time::now() < until {
                                // Guards are also taken and dropped while a panic unwinds.
                                drop(PreemptGuard::new());
                            }
                        }
                    }
                    let _slow = Slow;
                    panic!("beside a timer");
                }));
                let hog = spawn(stackful(async {
                    assert!(
                        !std::thread::panicking(),
                        "the panic of another task is seen in this one"
                    );
                }));
                sleep(Duration::from_millis(2)).await;
                assert_eq!(message(task.await.unwrap_err()), "beside a timer");
                hog.await.unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_thread_that_is_no_core_cannot_enter() {
    static RUNTIME: Runtime = Runtime::new();
    let entered =
        std::thread::spawn(|| RUNTIME.run_until(async {}).map_err(|error| error.to_string()));
    let said = entered.join().unwrap().unwrap_err();
    assert!(said.contains("not a core"), "{said}");
    let blocked = std::thread::spawn(|| block_on(async { 1 })).join();
    let said = blocked.unwrap_err();
    assert!(said.downcast_ref::<&str>().is_some_and(|said| said.contains("not a core")));
}

/// A guard that can be held across an await, although it is not `Send`.
struct Smuggled(#[allow(dead_code)] PreemptGuard);
// SAFETY: not sound in general; the task that holds it never leaves its core.
unsafe impl Send for Smuggled {}

#[test]
fn a_guard_across_an_await_is_caught() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let plain = spawn(async {
                    let _guard = Smuggled(PreemptGuard::new());
                    yield_now().await;
                });
                let on_stack = TaskBuilder::new().name("guarded").spawn(stackful(async {
                    let _guard = Smuggled(PreemptGuard::new());
                    yield_now().await;
                }));
                let on_stack = on_stack.unwrap();
                let drops = Arc::new(AtomicUsize::new(0));
                let (inside, output) = (CountDrop(drops.clone()), CountDrop(drops.clone()));
                let forgotten = spawn(stackful(async move {
                    let _inside = inside;
                    std::mem::forget(PreemptGuard::new());
                    output
                }));
                for (task, name) in [(plain, ""), (on_stack, " \"guarded\"")] {
                    let name = format!("{}{name} held", task.id().expect("a task"));
                    let said = message(task.await.unwrap_err());
                    assert!(said.contains("PreemptGuard") && said.starts_with(&name), "{said}");
                }
                // The task was ready nevertheless: its future and its output are dropped once each.
                drop(forgotten.await.unwrap());
                assert_eq!(drops.load(SeqCst), 2);
                // Later tasks are preempted as usual.
                let ticks = Arc::new(AtomicUsize::new(0));
                let sees = ticks.clone();
                let hog = spawn(stackful(async move { while sees.load(SeqCst) == 0 {} }));
                sleep(Duration::from_millis(3)).await;
                ticks.fetch_add(1, SeqCst);
                hog.await.unwrap();
            })
            .unwrap();
    });
}

static SIGNALLED: AtomicWaker = AtomicWaker::new();
static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    SIGNALS.fetch_add(1, SeqCst);
    hal_shim::interrupt::in_signal_handler(|| SIGNALLED.wake());
}

#[test]
fn a_signal_handler_of_the_programs_own_may_wake() {
    const ROUNDS: usize = 2000;
    with_runtime(|runtime| {
        // SAFETY: the handler only does an atomic operation and wakes.
        unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as libc::sighandler_t) };
        // SAFETY: `pthread_self` has no conditions.
        let thread = unsafe { libc::pthread_self() };
        let served = Arc::new(AtomicUsize::new(0));
        let counts = served.clone();
        // A thread that is not a core sends the signal, while the core is parked, polls, or runs a
        // hog.
        let sender = std::thread::spawn(move || {
            for round in 0..ROUNDS {
                // SAFETY: the core's thread is alive, since it joins this one.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                let deadline = std::time::Instant::now() + Duration::from_secs(10);
                while counts.load(SeqCst) <= round {
                    assert!(
                        std::time::Instant::now() < deadline,
                        "the wake of round {round} was lost"
                    );
                    std::hint::spin_loop();
                }
            }
        });
        runtime
            .run_until(async {
                let hog = spawn(stackful({
                    let served = served.clone();
                    async move { while served.load(SeqCst) < ROUNDS / 2 {} }
                }));
                poll_fn(|context| {
                    SIGNALLED.register(context.waker());
                    let seen = SIGNALS.load(SeqCst);
                    served.store(seen, SeqCst);
                    if seen == ROUNDS { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                hog.await.unwrap();
            })
            .unwrap();
        sender.join().unwrap();
    });
}

#[test]
fn a_waker_may_be_used_and_dropped_by_a_thread_that_is_no_core() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
                let mut thread = None;
                poll_fn(|_| {
                    if thread.is_none() {
                        let waker = waker.clone();
                        thread = Some(std::thread::spawn(move || {
                            std::thread::sleep(Duration::from_millis(5));
                            waker.wake();
                        }));
                        return Poll::Pending;
                    }
                    Poll::Ready(())
                })
                .await;
                thread.unwrap().join().unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_config_in_a_constant() {
    static RUNTIME: Runtime =
        Runtime::with_config(Config { slice: Duration::from_micros(100), ..Config::new() });
    // SAFETY: as in `with_runtime`.
    unsafe { hal_shim::isolated(|| assert_eq!(RUNTIME.run_until(async { 7 }).unwrap(), 7)) }
}

/// A program that uses the runtime and binds no platform must not link, and the linker must name
/// what is missing.
#[test]
fn a_platform_that_is_not_bound_does_not_link() {
    let root = env!("CARGO_MANIFEST_DIR");
    let build = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("unbound");
    std::fs::create_dir_all(build.join("src")).unwrap();
    std::fs::write(
        build.join("Cargo.toml"),
        format!(
            "[package]\nname = \"unbound\"\nedition = \"2024\"\n[workspace]\n\
             [dependencies]\ntrapline = {{ path = {root:?} }}\n"
        ),
    )
    .unwrap();
    // Takes the versions of the dependencies that are here already.
    std::fs::copy(format!("{root}/Cargo.lock"), build.join("Cargo.lock")).unwrap();
    std::fs::write(build.join("src/main.rs"), "fn main() { trapline::spawn(async {}); }\n")
        .unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--target-dir"])
        .arg(build.join("target"))
        .current_dir(&build)
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    assert!(!output.status.success(), "it links without a platform");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("__trapline_bind_platform_slot"), "{said}");
}

/// A task that is woken by the shutdown, while it is queued to be abandoned itself, is DONE after
/// it, also for a second shutdown that finds it in a queue.
#[test]
fn a_second_shutdown_leaves_abandoned_tasks_done() {
    with_runtime(|runtime| {
        let (send, receive) = std::sync::mpsc::channel();
        let [joiner] = runtime
            .run_until(async {
                let joiner = spawn(stackful(async move {
                    let mut handles: [JoinHandle<()>; 2] =
                        std::array::from_fn(|_| receive.recv().unwrap());
                    block_on(poll_fn(move |context| {
                        for handle in &mut handles {
                            let _ = Pin::new(handle).poll(context);
                        }
                        Poll::<()>::Pending
                    }));
                }));
                for _ in 0..2 {
                    let waits = stackful(async { block_on(std::future::pending::<()>()) });
                    send.send(spawn(waits)).unwrap();
                }
                while runtime.stats().stacks < 3 {
                    yield_now().await;
                }
                for _ in 0..10 {
                    yield_now().await;
                }
                [joiner]
            })
            .unwrap();
        assert_eq!(runtime.shutdown().unwrap().stacks_with_frames, 3);
        assert!(joiner.is_finished());
        runtime.shutdown().unwrap();
        assert!(joiner.is_finished(), "the second shutdown made an abandoned task unfinished");
        assert!(matches!(block_on(joiner), Err(JoinError::Abandoned)));
    });
}

/// Checks that after a signal handler of the program's own, in whatever way it ends, no task of the
/// core counts as being in a handler.
fn tasks_are_in_no_handler_after(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    with_runtime(|runtime| {
        // SAFETY: all-zero is a valid value of this C structure. The handlers below only do what a
        // handler may do.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_NODEFER;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
        }
        runtime
            .run_until(async {
                let interrupted = spawn(stackful(async move {
                    // SAFETY: `raise` has no conditions.
                    unsafe { libc::raise(signal) };
                }));
                let other = spawn(stackful(async { block_on(sleep(Duration::from_millis(1))) }));
                let _ = interrupted.await;
                other.await.unwrap();
            })
            .unwrap();
    });
}

#[test]
fn a_signal_handler_of_the_programs_own_may_end_its_task() {
    extern "C" fn ends(_: libc::c_int) {
        // SAFETY: as in the handler of a fault: the task does not go on, and no lock is held.
        hal_shim::interrupt::in_signal_handler(|| unsafe { trapline::preempt::end_task() });
    }
    tasks_are_in_no_handler_after(libc::SIGWINCH, ends);
}

#[test]
fn a_long_signal_handler_of_the_programs_own_keeps_the_core() {
    extern "C" fn computes(_: libc::c_int) {
        hal_shim::interrupt::in_signal_handler(|| compute_for(Duration::from_millis(20)));
    }
    tasks_are_in_no_handler_after(libc::SIGIO, computes);
}

/// Computes until another task sets `done`, for at most 10 seconds.
async fn hog_until(done: Arc<AtomicUsize>) {
    let until = trapline::time::now() + Duration::from_secs(10);
    while done.load(SeqCst) == 0 {
        assert!(trapline::time::now() < until, "no other task ran beside the hog");
    }
}

/// Checks that hogs are preempted on this core: when only a slice ends, and when a timer is due.
async fn hogs_are_preempted() {
    let done = Arc::new(AtomicUsize::new(0));
    let hog = spawn(stackful(hog_until(done.clone())));
    let sets = spawn(stackful(async move { done.store(1, SeqCst) }));
    hog.await.unwrap();
    sets.await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let hog = spawn(stackful(hog_until(done.clone())));
    sleep(Duration::from_millis(3)).await;
    done.store(1, SeqCst);
    hog.await.unwrap();
}

fn errno() -> libc::c_int {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

fn set_errno(value: libc::c_int) {
    // SAFETY: a thread may write its errno at any time.
    unsafe { *libc::__errno_location() = value }
}

#[test]
fn errno_is_the_tasks_own() {
    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    /// Calls `f` until the core was left for another task within it. `errno` must be unchanged
    /// after each call.
    fn over(what: &str, f: impl Fn()) {
        let before = OTHERS.load(SeqCst);
        let until = trapline::time::now() + Duration::from_secs(10);
        while OTHERS.load(SeqCst) == before {
            assert!(trapline::time::now() < until, "{what}: no other task ran");
            set_errno(libc::ENOENT);
            f();
            assert_eq!(errno(), libc::ENOENT, "{what}: errno was changed");
        }
    }
    let pause = || compute_for(Duration::from_millis(3));
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let other = spawn(stackful(async {
                    while STOP.load(SeqCst) == 0 {
                        OTHERS.fetch_add(1, SeqCst);
                        set_errno(libc::EBADF);
                    }
                }));
                let asks = spawn(stackful(async move {
                    over("an interrupt", pause);
                    over("a guard's drop", || {
                        let _guard = PreemptGuard::new();
                        pause();
                    });
                    over("interrupts unmasked", || hal_shim::interrupt::masked(pause));
                    over("both", || {
                        let _guard = PreemptGuard::new();
                        hal_shim::interrupt::masked(pause);
                    });
                    over("the heap", || drop(std::hint::black_box(Box::new(1))));
                    over("a line printed", || hal_shim::print!(""));
                }));
                let asked = asks.await;
                STOP.store(1, SeqCst);
                other.await.unwrap();
                asked.unwrap();
            })
            .unwrap();
    });
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_rounding_mode_is_the_tasks_own() {
    use std::arch::asm;

    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    /// Returns MXCSR and the control word of the x87 unit, without the flags of exceptions.
    fn modes() -> (u32, u16) {
        let (mut mxcsr, mut x87) = (0_u32, 0_u16);
        // SAFETY: it writes to two variables of this function.
        unsafe { asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &mut mxcsr, in(reg) &mut x87) };
        (mxcsr & !0x3f, x87)
    }
    fn set_modes(mxcsr: u32, x87: u16) {
        // SAFETY: no floating-point operation that depends on the modes runs before they are
        // restored.
        unsafe { asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &mxcsr, in(reg) &x87) };
    }
    const USUAL: (u32, u16) = (0x1f80, 0x37f);
    const TOWARDS_ZERO: (u32, u16) = (0x7f80, 0xf7f);
    /// Calls `f` with other modes until the core was left for another task within it. The modes
    /// must be kept.
    fn over(what: &str, f: fn()) {
        set_modes(TOWARDS_ZERO.0, TOWARDS_ZERO.1);
        let before = OTHERS.load(SeqCst);
        let mut kept = true;
        for _ in 0..1000 {
            f();
            kept &= modes() == TOWARDS_ZERO;
            if OTHERS.load(SeqCst) != before || !kept {
                break;
            }
        }
        set_modes(USUAL.0, USUAL.1);
        assert!(kept, "{what}: the modes were changed");
        assert_ne!(OTHERS.load(SeqCst), before, "{what}: no other task ran");
        assert_eq!(SEEN.load(SeqCst), 0, "{what}: the modes reached another task");
    }
    /// Computes for longer than a slice, without reading the clock.
    fn pause() {
        for round in 0..3_000_000 {
            std::hint::black_box(round);
        }
    }
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let other = spawn(stackful(async {
                    while STOP.load(SeqCst) == 0 {
                        OTHERS.fetch_add(1, SeqCst);
                        SEEN.fetch_add((modes() != USUAL).into(), SeqCst);
                    }
                }));
                let asks = spawn(stackful(async {
                    over("an interrupt", pause);
                    over("a guard's drop", || {
                        let _guard = PreemptGuard::new();
                        pause();
                    });
                    over("interrupts unmasked", || hal_shim::interrupt::masked(pause));
                }));
                let asked = asks.await;
                STOP.store(1, SeqCst);
                other.await.unwrap();
                asked.unwrap();
            })
            .unwrap();
    });
}

/// Installs `handler` for `signal`. While it runs, `blocks` are blocked, and so is `signal` itself
/// unless `flags` say otherwise.
fn handle(
    signal: libc::c_int,
    flags: libc::c_int,
    blocks: &[libc::c_int],
    handler: extern "C" fn(libc::c_int),
) {
    // SAFETY: all-zero is a valid value of this C structure. The handlers in this file only do what
    // a handler may do.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        for &blocked in blocks {
            libc::sigaddset(&mut action.sa_mask, blocked);
        }
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

/// Returns whether this thread blocks `signal`.
fn blocked(signal: libc::c_int) -> bool {
    // SAFETY: all-zero is a valid value of this C structure, and the arguments are valid.
    unsafe {
        let mut mask = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        libc::sigismember(&mask, signal) == 1
    }
}

extern "C" fn ends_the_task(_: libc::c_int) {
    // SAFETY: as in the handler of a fault: the task does not go on, and no lock is held.
    hal_shim::interrupt::in_signal_handler(|| unsafe { trapline::preempt::end_task() });
}

/// Checks twice that a task that raises `signal` is ended, and that the core goes on with the same
/// signals blocked as before.
fn is_ended_by(signal: libc::c_int) {
    with_runtime(|runtime| {
        let before = (1..32).filter(|&signal| blocked(signal)).collect::<Vec<_>>();
        runtime
            .run_until(async {
                for round in 1..=2 {
                    let task = spawn(stackful(async move {
                        // SAFETY: `raise` has no conditions.
                        unsafe { libc::raise(signal) };
                    }));
                    assert!(matches!(task.await, Err(JoinError::Abandoned)), "round {round}");
                    let now = (1..32).filter(|&signal| blocked(signal)).collect::<Vec<_>>();
                    assert_eq!(now, before, "other signals are blocked after round {round}");
                    hogs_are_preempted().await;
                }
            })
            .unwrap();
        assert_eq!(runtime.stats().ended, 2);
    });
}

/// A task whose child was ended by a fault is aborted. Its drops may nevertheless wait in
/// `block_on` for something else.
#[test]
fn drops_after_the_loss_of_a_child_may_block() {
    struct Flush(Arc<AtomicUsize>);
    impl Drop for Flush {
        fn drop(&mut self) {
            block_on(sleep(Duration::from_millis(1)));
            self.0.fetch_add(1, SeqCst);
        }
    }
    with_runtime(|runtime| {
        handle(libc::SIGWINCH, libc::SA_NODEFER, &[], ends_the_task);
        let flushed = Arc::new(AtomicUsize::new(0));
        let (in_poll, dropped) = (flushed.clone(), Flush(flushed.clone()));
        runtime
            .run_until(async {
                let parent = spawn(stackful(async move {
                    let _dropped = dropped;
                    let mut child = Box::pin(stackful(async {
                        // SAFETY: `raise` has no conditions.
                        unsafe { libc::raise(libc::SIGWINCH) };
                    }));
                    poll_fn(|context| {
                        let polled = child.as_mut().poll(context);
                        assert!(polled.is_pending());
                        // The poll that loses the child may wait as well.
                        block_on(sleep(Duration::from_millis(1)));
                        in_poll.fetch_add(1, SeqCst);
                        polled
                    })
                    .await;
                }));
                assert!(matches!(parent.await, Err(JoinError::Aborted)));
            })
            .unwrap();
        assert_eq!(flushed.load(SeqCst), 3);
        assert_eq!(runtime.stats().ended, 1, "only the child must be ended");
        assert_eq!(runtime.shutdown().unwrap().stacks_with_frames, 1);
    });
}

#[test]
fn a_handler_that_ended_its_task_leaves_no_signal_blocked() {
    handle(libc::SIGPWR, 0, &[libc::SIGTTIN, libc::SIGURG], ends_the_task);
    is_ended_by(libc::SIGPWR);
}

#[test]
fn a_handler_that_ended_its_task_on_top_of_another_leaves_no_signal_blocked() {
    extern "C" fn raises(_: libc::c_int) {
        hal_shim::interrupt::in_signal_handler(|| {
            // SAFETY: `raise` has no conditions.
            unsafe { libc::raise(libc::SIGXFSZ) };
        });
    }
    handle(libc::SIGXFSZ, libc::SA_ONSTACK, &[], ends_the_task);
    handle(libc::SIGXCPU, 0, &[libc::SIGTTIN], raises);
    is_ended_by(libc::SIGXCPU);
}

/// A signal of the program's own is blocked while a handler of Trapline runs. Otherwise its handler
/// could end the task in the middle of the alarm's handling, and the next alarm would never be set.
#[test]
fn a_handler_of_the_programs_own_waits_for_ours() {
    static INSIDE: AtomicUsize = AtomicUsize::new(0);
    static ON_TOP: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn ends(signal: libc::c_int) {
        ON_TOP.fetch_add(INSIDE.load(SeqCst), SeqCst);
        ends_the_task(signal);
    }
    handle(libc::SIGVTALRM, 0, &[], ends);
    hal_shim::interrupt::on_soft(|| {
        INSIDE.store(1, SeqCst);
        // SAFETY: `raise` has no conditions.
        unsafe { libc::raise(libc::SIGVTALRM) };
        INSIDE.store(0, SeqCst);
    });
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                for _ in 0..2 {
                    let task = spawn(stackful(async { hal_shim::interrupt::raise() }));
                    assert!(matches!(task.await, Err(JoinError::Abandoned)));
                    hogs_are_preempted().await;
                }
            })
            .unwrap();
    });
    assert_eq!(ON_TOP.load(SeqCst), 0);
}

/// A handler on the alternate stack is not preempted, even if it does not block its signal: its
/// frames are not on the task's stack.
#[test]
fn a_handler_on_the_alternate_stack_is_not_preempted() {
    static OTHERS: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    static RAN: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn computes(_: libc::c_int) {
        let before = OTHERS.load(SeqCst);
        compute_for(Duration::from_millis(5));
        let guard = PreemptGuard::new();
        compute_for(Duration::from_millis(5));
        drop(guard);
        RAN.store(1 + OTHERS.load(SeqCst) - before, SeqCst);
    }
    handle(libc::SIGPROF, libc::SA_ONSTACK | libc::SA_NODEFER, &[], computes);
    with_runtime(|runtime| {
        // SAFETY: all-zero is a valid value of this C structure, and the arguments are valid.
        let stack = unsafe {
            let mut stack = std::mem::zeroed::<libc::stack_t>();
            assert_eq!(libc::sigaltstack(std::ptr::null(), &mut stack), 0);
            stack
        };
        assert_eq!(stack.ss_flags & libc::SS_DISABLE, 0);
        // SAFETY: `getauxval` has no conditions. 51 is AT_MINSIGSTKSZ.
        let frame = unsafe { libc::getauxval(51) } as usize;
        assert!(stack.ss_size >= frame + 32 * 1024, "{} bytes", stack.ss_size);
        runtime
            .run_until(async {
                let other = spawn(stackful(async {
                    while STOP.load(SeqCst) == 0 {
                        OTHERS.fetch_add(1, SeqCst);
                    }
                }));
                // SAFETY: `raise` has no conditions.
                let raises = spawn(stackful(async { unsafe { libc::raise(libc::SIGPROF) } }));
                raises.await.unwrap();
                STOP.store(1, SeqCst);
                other.await.unwrap();
                hogs_are_preempted().await;
            })
            .unwrap();
    });
    assert_eq!(RAN.load(SeqCst), 1, "another task ran in the middle of the handler");
}

/// Runs this test as `case` in a process of its own, and returns its output. In that process,
/// returns the name of the case as an error.
fn in_child(test: &str, case: &str) -> Result<std::process::Output, String> {
    const CASE: &str = "TRAPLINE_TEST_CASE";
    if let Ok(case) = std::env::var(CASE) {
        return Err(case);
    }
    Ok(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CASE, case)
        .output()
        .unwrap())
}

/// Uses up the stack except for `bytes` bytes, and calls `then` there.
fn with_only(bytes: usize, then: &dyn Fn()) {
    let here = std::hint::black_box([0_u8; 32]);
    let stack = trapline::stackful::current_stack().expect("in a stackful task");
    assert!(stack.contains(&here.as_ptr().addr()));
    if here.as_ptr().addr() - stack.start > bytes {
        with_only(bytes, then);
    } else {
        then();
    }
    std::hint::black_box(here);
}

/// Overflows its stack.
fn recurse(depth: usize) -> usize {
    let here = std::hint::black_box([depth; 32]);
    if here[1] == usize::MAX { 0 } else { recurse(depth + 1) + here[1] }
}

/// Spins with too little stack for a signal, and without any call that needs stack. It ends only
/// with its task.
fn spin() {
    let until = trapline::time::now() + Duration::from_secs(10);
    with_only(900, &|| while std::hint::black_box(true) {});
    assert!(trapline::time::now() < until);
}

/// Causes a fault that is not an overflow.
fn write_wildly() {
    // SAFETY: none: the fault is the purpose, and ends the process or the task.
    unsafe { std::ptr::null_mut::<u8>().write_volatile(1) }
}

/// A thread wakes a task while another task's stack has no space for the signal. Then it wakes one
/// again, with enough space.
fn wakes_end(name: &'static str) {
    static WOKEN: AtomicWaker = AtomicWaker::new();
    static WAKES: AtomicUsize = AtomicUsize::new(0);
    /// Returns a future that waits for wake number `n`.
    fn woken(n: usize) -> impl Future<Output = ()> {
        poll_fn(move |context| {
            WOKEN.register(context.waker());
            if WAKES.load(SeqCst) >= n { Poll::Ready(()) } else { Poll::Pending }
        })
    }
    let wakes_soon = || {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            WAKES.fetch_add(1, SeqCst);
            WOKEN.wake();
        })
    };
    // No slice ends.
    let config = Config { slice: Duration::from_secs(1000), ..Config::new() };
    let runtime = hal_shim::test::keep(Runtime::with_config(config));
    let test = async || {
        let waits = spawn(async { woken(1).await });
        let task = TaskBuilder::new().name(name).spawn(stackful(async { spin() })).unwrap();
        wakes_soon();
        assert!(matches!(task.await, Err(JoinError::Abandoned)));
        waits.await.unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let sets = done.clone();
        let waits = spawn(async move {
            woken(2).await;
            sets.store(1, SeqCst);
        });
        // The task is BLOCKED after this.
        yield_now().await;
        yield_now().await;
        wakes_soon();
        spawn(stackful(hog_until(done))).await.unwrap();
        waits.await.unwrap();
        hal_shim::println!("went on");
    };
    // SAFETY: as in `with_runtime`.
    unsafe { hal_shim::isolated(|| runtime.run_until(test()).unwrap()) };
}

/// Lets a slice end where the stack has space for all that happens at its end, for the signal's
/// frame only, or not even for that.
fn end_with_little_room() {
    with_runtime(|runtime| {
        handle(libc::SIGSEGV, libc::SA_ONSTACK, &[], ends_the_task);
        let test = async || {
            for room in (800..9000).step_by(32) {
                let done = Arc::new(AtomicUsize::new(0));
                let sees = done.clone();
                let task = spawn(stackful(async move {
                    with_only(room, &|| while sees.load(SeqCst) == 0 {});
                }));
                let sets = spawn(stackful(async move {
                    compute_for(Duration::from_millis(3));
                    done.store(1, SeqCst);
                }));
                let ended = task.await;
                assert!(
                    ended.is_err() || room > 1000,
                    "no fault came though only {room} bytes were left"
                );
                sets.await.unwrap();
                hogs_are_preempted().await;
            }
        };
        runtime.run_until(test()).unwrap();
        hal_shim::println!("went on");
    });
}

#[test]
fn an_overflow_says_whose_before_the_process_dies() {
    use std::os::unix::process::ExitStatusExt;

    const TEST: &str = "an_overflow_says_whose_before_the_process_dies";
    let overflows = |name, f: fn()| {
        with_runtime(|runtime| {
            runtime
                .run_until(async {
                    // With a second task on the core, the end of the slice preempts.
                    let other = spawn(stackful(async { compute_for(Duration::from_millis(50)) }));
                    let task = TaskBuilder::new().name(name).spawn(stackful(async move { f() }));
                    let ended = task.unwrap().await;
                    assert!(matches!(ended, Err(JoinError::Abandoned)));
                    hal_shim::println!("ended");
                    other.await.unwrap();
                    hogs_are_preempted().await;
                    hal_shim::println!("went on");
                })
                .unwrap();
        });
    };
    let ends = || handle(libc::SIGSEGV, libc::SA_ONSTACK, &[], ends_the_task);
    // Each entry: the case; whether stderr reports an overflow; whether the process dies.
    for (case, says, dies) in [
        ("deep", true, true),
        ("no room for a signal", true, true),
        ("wild", false, true),
        ("ended by one sent", false, false),
        // In the following cases the program has a handler of its own, installed before the
        // overflow or later.
        ("ended", true, false),
        ("ended without room", true, false),
        ("ended by a wake without room", true, false),
        ("ended later", false, false),
        ("ended with little room", false, false),
        ("ended wild", false, false),
    ] {
        match in_child(TEST, case).as_ref().map_err(String::as_str) {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let all = format!("{case}: {output:?}");
                // AddressSanitizer's handler ends the process in its own way.
                let died = match output.status.signal() {
                    Some(signal) => signal == libc::SIGSEGV,
                    None => cfg!(address_sanitizer) && !output.status.success(),
                };
                assert_eq!(died, dies, "{all}");
                let name = format!("\"{case}\" overflowed its stack of ");
                assert_eq!(said.contains(&name), says, "{all}");
                assert_eq!(said.contains("overflowed"), says, "{all}");
                let went_on = String::from_utf8_lossy(&output.stdout).contains("went on");
                assert_eq!(went_on, !dies, "{all}");
            }
            Err("deep") => overflows("deep", || _ = recurse(0)),
            Err("no room for a signal") => overflows("no room for a signal", spin),
            Err("wild") => overflows("wild", write_wildly),
            Err("ended by one sent") => {
                ends();
                // SAFETY: `raise` has no conditions.
                overflows("ended by one sent", || _ = unsafe { libc::raise(libc::SIGSEGV) });
            }
            Err("ended") => {
                ends();
                overflows("ended", || _ = recurse(0));
            }
            Err("ended without room") => {
                ends();
                overflows("ended without room", spin);
            }
            Err("ended by a wake without room") => {
                ends();
                wakes_end("ended by a wake without room");
            }
            Err("ended with little room") => end_with_little_room(),
            Err("ended later") => overflows("ended later", || {
                handle(libc::SIGSEGV, libc::SA_ONSTACK, &[], ends_the_task);
                recurse(0);
            }),
            Err(_) => {
                ends();
                overflows("ended wild", write_wildly);
            }
        }
        if std::env::var_os("TRAPLINE_TEST_CASE").is_some() {
            return;
        }
    }
}

/// The processor's registers determine the size of a signal's frame, for which a stack must have
/// space.
#[test]
fn the_min_stack_grows_with_linuxs_signal_frames() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    const TEST: &str = "the_min_stack_grows_with_linuxs_signal_frames";
    let Err(_) = in_child(TEST, "grows") else {
        let output = in_child(TEST, "grows").unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    };
    let least = || {
        let config = Config { stack_size: 16, ..Config::new() };
        let runtime = hal_shim::test::keep(Runtime::with_config(config));
        // SAFETY: as in `with_runtime`.
        match unsafe { hal_shim::isolated(|| runtime.run_until(async {}).unwrap_err()) } {
            EnterError::Config(ConfigError::StackTooSmall { least }) => least,
            other => panic!("{other}"),
        }
    };
    let before = least();
    // The auxiliary vector lies behind the environment. It consists of pairs, and AT_MINSIGSTKSZ is
    // the key of one.
    // SAFETY: no code in this process has changed the environment, and none reads the vector
    // meanwhile.
    let entry = unsafe {
        let mut rest = environ;
        while !rest.read().is_null() {
            rest = rest.add(1);
        }
        let mut entry = rest.add(1).cast::<[usize; 2]>();
        while (*entry)[0] != 51 {
            assert_ne!((*entry)[0], 0, "Linux does not report AT_MINSIGSTKSZ");
            entry = entry.add(1);
        }
        entry
    };
    // SAFETY: as above.
    let told = unsafe { entry.replace([51, 4096 + 10_000]) };
    let after = least();
    // std reads the vector again later, so the entry is restored.
    // SAFETY: as above.
    unsafe { entry.write(told) };
    assert_eq!(after, before + 20_000);
}

/// A task that leaves interrupts masked panics with a message that names it. Other tasks go on and
/// are preempted.
#[test]
fn a_poll_that_leaves_interrupts_masked_panics() {
    fn leave_masked() {
        std::mem::forget(hal_shim::interrupt::mask());
    }
    async fn fails(task: JoinHandle<()>) {
        let said = message(task.await.unwrap_err());
        assert!(said.contains("interrupts masked when its poll returned"), "{said}");
    }
    async fn pending() {
        leave_masked();
        yield_now().await;
    }
    async fn ready() {
        leave_masked();
    }
    /// Goes on only if the hog beside it is preempted.
    async fn others_are_preempted() {
        let stop = Arc::new(AtomicUsize::new(0));
        let seen = stop.clone();
        let hog = spawn(stackful(async move { while seen.load(SeqCst) == 0 {} }));
        sleep(Duration::from_millis(2)).await;
        stop.store(1, SeqCst);
        hog.await.unwrap();
    }
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let first = spawn(pending());
                let name = first.id().unwrap();
                let said = message(first.await.unwrap_err());
                assert!(said.contains(&name.to_string()), "{said}");
                others_are_preempted().await;
                // The handle gives the output, and the panic is reported.
                spawn(ready()).await.unwrap();
                others_are_preempted().await;
                fails(spawn(stackful(pending()))).await;
                others_are_preempted().await;
                spawn(stackful(ready())).await.unwrap();
                others_are_preempted().await;
                // The task leaves a guard as well. The panic reports the mask, which is the worse
                // of the two.
                let both = spawn(async {
                    leave_masked();
                    std::mem::forget(PreemptGuard::new());
                    trapline::preempt::disable();
                    yield_now().await;
                });
                fails(both).await;
                others_are_preempted().await;
                // These tasks panic with interrupts masked.
                let plain = spawn(async {
                    leave_masked();
                    panic!("masked")
                });
                assert_eq!(message(plain.await.unwrap_err()), "masked");
                others_are_preempted().await;
                let on_stack = spawn(stackful(async {
                    leave_masked();
                    panic!("masked")
                }));
                assert_eq!(message(on_stack.await.unwrap_err()), "masked");
                others_are_preempted().await;
                // A drop leaves interrupts masked.
                struct Masks;
                impl Drop for Masks {
                    fn drop(&mut self) {
                        leave_masked();
                    }
                }
                let aborted = spawn({
                    let masks = Masks;
                    async move {
                        let _masks = masks;
                        std::future::pending::<()>().await;
                    }
                });
                yield_now().await;
                aborted.abort();
                assert!(aborted.await.is_err());
                others_are_preempted().await;
            })
            .unwrap();
    });
}

#[test]
fn preemption_left_disabled_by_the_raw_pair_panics() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let disable = || async {
                    trapline::preempt::disable();
                    yield_now().await;
                };
                let plain = spawn(disable());
                assert!(message(plain.await.unwrap_err()).contains("preempt::disable"));
                let on_stack = spawn(stackful(disable()));
                assert!(message(on_stack.await.unwrap_err()).contains("preempt::disable"));
                for stack in [false, true] {
                    // SAFETY: none, which is what this tests: the call panics.
                    let enable = async { unsafe { trapline::preempt::enable() } };
                    let task = if stack { spawn(stackful(enable)) } else { spawn(enable) };
                    assert!(message(task.await.unwrap_err()).contains("more often"));
                }
            })
            .unwrap();
    });
}

#[test]
fn block_on_where_others_must_not_have_the_core() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let wait = || block_on(sleep(Duration::from_millis(1)));
                let masked = spawn(stackful(async move { hal_shim::interrupt::masked(wait) }));
                let said = message(masked.await.unwrap_err());
                assert!(said.contains("with interrupts masked"), "{said}");
                // The future inside of `block_on` masks interrupts in its poll.
                let inside = spawn(stackful(async {
                    block_on(poll_fn(|_| {
                        std::mem::forget(hal_shim::interrupt::mask());
                        Poll::<()>::Pending
                    }));
                }));
                let said = message(inside.await.unwrap_err());
                assert!(said.contains("had interrupts masked when its poll returned"), "{said}");
                let counted = spawn(stackful(async move { not_to_be_left(wait) }));
                let said = message(counted.await.unwrap_err());
                assert!(said.contains("Platform::may_preempt"), "{said}");
            })
            .unwrap();
        // Outside of a runtime, with interrupts masked, no event could end the waiting.
        let waited = std::panic::catch_unwind(|| {
            hal_shim::interrupt::masked(|| block_on(sleep(Duration::from_millis(1))))
        });
        assert!(waited.is_err());
        assert_eq!(hal_shim::interrupt::masked(|| block_on(async { 1 })), 1);
    });
}

/// Calls `f` where the platform forbids preemption: with a signal blocked that the thread did not
/// block in the beginning.
fn not_to_be_left<R>(f: impl FnOnce() -> R) -> R {
    struct Unblock(libc::sigset_t);
    impl Drop for Unblock {
        fn drop(&mut self) {
            // SAFETY: the set was initialized below.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
        }
    }
    // SAFETY: all-zero is a valid value of this C structure, and both pointers are to such sets.
    let _unblock = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        let mut before = std::mem::zeroed::<libc::sigset_t>();
        libc::sigaddset(&mut set, libc::SIGUSR2);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
        Unblock(before)
    };
    f()
}

/// A preemption that the platform forbids stays pending, and comes at the next preemption point.
#[test]
fn what_the_platform_forbids_is_owed_and_a_point_pays_it() {
    with_runtime(|runtime| {
        runtime
            .run_until(async {
                let count = Arc::new(AtomicUsize::new(0));
                let [seen, counts] = [(); 2].map(|()| count.clone());
                let hog = spawn(stackful(async move {
                    for round in 1..=3 {
                        not_to_be_left(|| {
                            let preemptions = runtime.stats().preemptions;
                            // Several slices end here.
                            compute_for(Duration::from_millis(5));
                            trapline::preempt::point();
                            drop(PreemptGuard::new());
                            assert_eq!(runtime.stats().preemptions, preemptions);
                        });
                        trapline::preempt::point();
                        assert!(seen.load(SeqCst) >= round, "the pending preemption was lost");
                    }
                }));
                let other = spawn(stackful(async move {
                    while counts.fetch_add(1, SeqCst) < 10 {
                        yield_now().await;
                    }
                }));
                hog.await.unwrap();
                other.await.unwrap();
            })
            .unwrap();
    });
}

/// A preemption that becomes pending while a panic unwinds comes after the panic was caught, also
/// in a task that goes on.
#[test]
fn what_is_owed_in_a_panic_is_paid_after_it() {
    let runtime = hal_shim::test::keep(Runtime::with_config(Config {
        // The task's own slice does not end after the panic.
        slice: Duration::from_millis(20),
        ..Config::new()
    }));
    // SAFETY: as in `with_runtime`.
    unsafe {
        hal_shim::isolated(|| {
            runtime
                .run_until(async {
                    let woken = Arc::new(AtomicUsize::new(0));
                    let (seen, count) = (woken.clone(), woken.clone());
                    let task = spawn(stackful(async move {
                        let caught = std::panic::catch_unwind(|| {
                            struct Long;
                            impl Drop for Long {
                                fn drop(&mut self) {
                                    compute_for(Duration::from_millis(30));
                                }
                            }
                            let _long = Long;
                            std::panic::resume_unwind(Box::new(()));
                        });
                        assert!(caught.is_err());
                        trapline::preempt::point();
                        assert_eq!(seen.load(SeqCst), 1, "the pending preemption was lost");
                    }));
                    let other = spawn(async move {
                        sleep(Duration::from_millis(1)).await;
                        count.fetch_add(1, SeqCst);
                    });
                    task.await.unwrap();
                    other.await.unwrap();
                })
                .unwrap();
        })
    }
}

/// While the platform forbids preemption, the alarm asks more and more rarely. It asks soon again
/// after preemption was allowed.
#[test]
fn putting_off_backs_off() {
    let runtime = hal_shim::test::keep(Runtime::with_config(Config {
        slice: trapline::MIN_SLICE,
        ..Config::new()
    }));
    // SAFETY: as in `with_runtime`.
    unsafe {
        hal_shim::isolated(|| {
            runtime
                .run_until(async {
                    let stop = Arc::new(AtomicUsize::new(0));
                    let seen = stop.clone();
                    let hog = spawn(stackful(async move { while seen.load(SeqCst) == 0 {} }));
                    let task = spawn(stackful(async {
                        not_to_be_left(|| compute_for(Duration::from_millis(20)));
                        // The task calls no preemption point: only the alarm preempts it.
                        compute_for(Duration::from_millis(20));
                    }));
                    task.await.unwrap();
                    stop.store(1, SeqCst);
                    hog.await.unwrap();
                })
                .unwrap();
        })
    }
    assert!(runtime.stats().preemptions > 10);
}

/// A task that panics is not ended by a fault: the panic would never end, and the core would never
/// preempt again.
#[test]
fn a_task_that_panics_is_not_ended() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn ends(_: libc::c_int) {
        ASKED.fetch_add(1, SeqCst);
        // SAFETY: as in the handler of a fault: the task does not go on, and no lock is held.
        hal_shim::interrupt::in_signal_handler(|| unsafe { trapline::preempt::end_task() });
    }
    struct Faults;
    impl Drop for Faults {
        fn drop(&mut self) {
            // SAFETY: `raise` has no conditions.
            unsafe { libc::raise(libc::SIGWINCH) };
        }
    }
    with_runtime(|runtime| {
        // SAFETY: all-zero is a valid value of this C structure. The handler only does what a
        // handler may do.
        unsafe {
            let mut action = std::mem::zeroed::<libc::sigaction>();
            action.sa_sigaction = ends as *const () as usize;
            action.sa_flags = libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGWINCH, &action, std::ptr::null_mut()), 0);
        }
        runtime
            .run_until(async {
                let task = spawn(stackful(async {
                    let _faults = Faults;
                    panic!("its own");
                }));
                assert_eq!(message(task.await.unwrap_err()), "its own");
                assert_eq!(ASKED.load(SeqCst), 1);
                // The core is preempted as before.
                let stop = Arc::new(AtomicUsize::new(0));
                let seen = stop.clone();
                let hog = spawn(stackful(async move { while seen.load(SeqCst) == 0 {} }));
                sleep(Duration::from_millis(2)).await;
                stop.store(1, SeqCst);
                hog.await.unwrap();
            })
            .unwrap();
        assert_eq!(runtime.stats().ended, 0);
    });
}

/// Overwrites the lowest word of a stack, as an overflow does that no guard catches. The program
/// ends when the core leaves the stack, in whatever way, and names the task.
#[test]
fn a_broken_canary_names_the_task() {
    const CHILD: &str = "TRAPLINE_TEST_CANARY";
    const NAME: &str = "a_broken_canary_names_the_task";
    /// Returns the start of the mapping in which the caller's stack lies.
    fn lowest_word() -> *mut usize {
        let local = 0_u8;
        let here = (&raw const local).addr();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = maps.lines().find_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
            (start..end).contains(&here).then_some(start)
        });
        std::ptr::with_exposed_provenance_mut(start.unwrap())
    }
    let Some(how) = std::env::var_os(CHILD) else {
        for how in ["ends", "awaits", "suspends", "preempted", "intact"] {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(CHILD, how)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stderr);
            assert_eq!(child.status.success(), how == "intact", "{how}: {said}");
            let names = said.contains("\"culprit\" overflowed its stack: set Config::stack_size");
            assert_eq!(names, how != "intact", "{how}: {said}");
            assert!(!said.contains("it went on"), "{how}: {said}");
        }
        return;
    };
    let how = how.into_string().unwrap();
    with_runtime(move |runtime| {
        let culprit = async move {
            let word = {
                let _guard = PreemptGuard::new();
                lowest_word()
            };
            if how != "intact" {
                // SAFETY: none: the canary is there to detect this.
                unsafe { word.write(0) };
            }
            match how.as_str() {
                "ends" | "intact" => {}
                "awaits" => yield_now().await,
                "suspends" => block_on(sleep(Duration::from_millis(1))),
                _ => compute_for(Duration::from_millis(100)),
            }
        };
        runtime
            .run_until(async move {
                let culprit =
                    TaskBuilder::new().name("culprit").spawn(stackful(culprit)).expect("memory");
                let neighbour = spawn(stackful(async { compute_for(Duration::from_millis(5)) }));
                let is_intact = culprit.await.is_ok();
                neighbour.await.unwrap();
                if std::env::var_os(CHILD).unwrap() != "intact" {
                    eprintln!("it went on: {is_intact}");
                }
            })
            .unwrap();
    });
}

/// Steps through a switch to a new stack, one away from it and one back to it. At each instruction
/// the unwinder walks to the end of the stack.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_backtrace_from_any_instruction_of_a_switch_comes_to_the_end() {
    use std::cell::UnsafeCell;
    use std::ffi::{c_int, c_void};
    use std::ptr::{NonNull, null_mut};
    use trapline::arch::Native;
    use trapline::stackful::{Context as Stack, StackfulBackend};

    const END_OF_STACK: c_int = 5;
    const TOO_MANY: usize = 1000;
    static WALKS: AtomicUsize = AtomicUsize::new(0);
    static WRONG: AtomicUsize = AtomicUsize::new(0);

    unsafe extern "C" {
        fn _Unwind_Backtrace(
            trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(frame: *mut c_void) -> usize;
    }
    /// The number of frames, and the return address of the last one, which is 0 where the outermost
    /// frame has no caller.
    struct Walk(usize, usize);
    extern "C" fn count(frame: *mut c_void, walk: *mut c_void) -> c_int {
        // SAFETY: `step` passes the pointer to its `walk` and waits for the end of the walk. The
        // unwinder passes a valid frame.
        unsafe {
            let Walk(frames, last) = &mut *walk.cast();
            *frames += 1;
            *last = _Unwind_GetIP(frame);
            if *frames < TOO_MANY { 0 } else { END_OF_STACK }
        }
    }
    extern "C" fn step(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
        let mut walk = Walk(0, usize::MAX);
        // SAFETY: the unwinder passes the argument on to `count` during this call, and keeps no
        // pointer.
        let end = unsafe { _Unwind_Backtrace(count, (&raw mut walk).cast()) };
        WALKS.fetch_add(1, SeqCst);
        if end != END_OF_STACK || walk.1 != 0 {
            // SAFETY: Linux passes a context to a handler that was installed with SA_SIGINFO.
            let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
            WRONG.store(registers[libc::REG_RIP as usize] as usize, SeqCst);
        }
    }
    /// Sets the trap flag to `flag`, which is 0x100 or 0: each instruction traps, or none.
    #[unsafe(naked)]
    unsafe extern "C" fn trap_each_instruction(flag: usize) {
        std::arch::naked_asm!(
            ".cfi_startproc",
            "pushfq",
            ".cfi_adjust_cfa_offset 8",
            "and dword ptr [rsp], ~0x100",
            "or [rsp], rdi",
            "popfq",
            ".cfi_adjust_cfa_offset -8",
            "ret",
            ".cfi_endproc",
        )
    }
    /// The two stacks that are off the core in turn: the thread's and the new one.
    struct Both(UnsafeCell<[Stack; 2]>);
    unsafe extern "C" fn main(both: *mut ()) -> ! {
        loop {
            // SAFETY: the test passes a pointer to its `both`, waits, and has been saved in `outer`
            // by its switch.
            unsafe {
                let [outer, inner] = &mut *(*both.cast::<Both>()).0.get();
                Native::switch(inner, Stack(outer.0));
            }
        }
    }
    let mut memory = vec![0_u128; 64 * 1024];
    // SAFETY: the handler calls only the unwinder, which allocates nothing after its first walk.
    // The stack ends where `memory` ends, is aligned, and outlives its use. Each of the two stacks
    // is entered once for each time that it was left.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &action, null_mut()), 0);
        let top = NonNull::new(memory.as_mut_ptr_range().end.cast::<u8>()).unwrap();
        let both = Both(UnsafeCell::new([Stack(null_mut()), Stack(null_mut())]));
        let [outer, inner] = &mut *both.0.get();
        *inner = Native::prepare(top, main, (&raw const both).cast_mut().cast());
        libc::raise(libc::SIGTRAP);
        trap_each_instruction(0x100);
        Native::switch(outer, Stack(inner.0));
        Native::switch(outer, Stack(inner.0));
        trap_each_instruction(0);
    }
    assert!(WALKS.load(SeqCst) > 50, "{WALKS:?}");
    assert_eq!(
        WRONG.load(SeqCst),
        0,
        "a walk from this instruction did not reach the end of the stack"
    );
}

/// Home is the stack of the code that entered the runtime. A plain task may use all of it, whatever
/// stackful tasks do at the same time.
#[test]
fn a_plain_task_has_all_of_the_home_stack() {
    fn deep(bytes: usize) -> usize {
        let here = std::hint::black_box([1_u8; 1024]);
        if bytes > here.len() { deep(bytes - here.len()) + usize::from(here[7]) } else { 0 }
    }
    with_runtime(|runtime| {
        let test = async {
            let done = Arc::new(AtomicUsize::new(0));
            let hog = spawn(stackful(hog_until(done.clone())));
            let seen = done.clone();
            let yields = spawn(stackful(async move {
                while seen.load(SeqCst) == 0 {
                    yield_now().await;
                }
            }));
            let plain = spawn(async {
                for _ in 0..20 {
                    // This is more than a pooled stack has.
                    assert_eq!(deep(160 * 1024), 159);
                    sleep(Duration::from_micros(300)).await;
                }
            });
            plain.await.unwrap();
            done.store(1, SeqCst);
            hog.await.unwrap();
            yields.await.unwrap();
        };
        runtime.run_until(test).unwrap();
    });
}

/// A task panics and leaves a guard, or leaves preemption disabled. What is polled on the same
/// stack after it is preempted as usual.
#[test]
fn a_guard_that_a_panic_leaves_counts_no_longer() {
    let runtime =
        hal_shim::test::keep(Runtime::with_config(Config { max_stacks: 2, ..Config::new() }));
    let test = async {
        for by_guard in [false, true] {
            let panics = spawn(stackful(async move {
                yield_now().await;
                if by_guard {
                    std::mem::forget(PreemptGuard::new());
                } else {
                    trapline::preempt::disable();
                }
                std::panic::resume_unwind(Box::new(()));
            }));
            assert!(matches!(panics.await, Err(JoinError::Panicked(_))));
            hogs_are_preempted().await;
        }
    };
    // SAFETY: as in `with_runtime`.
    unsafe { hal_shim::isolated(|| runtime.run_until(test).unwrap()) };
    assert_eq!(runtime.stats().stacks, 2);
}

/// A core's number may be given to another thread between two entries of a runtime. The loop's
/// frames on idle stacks, and the frames of tasks, go on in that thread.
#[test]
fn another_thread_goes_on_with_the_stacks() {
    // Runs in a process of its own, in which each thread gets the same core number.
    if let Ok(output) = in_child("another_thread_goes_on_with_the_stacks", "alone") {
        assert!(output.status.success(), "{output:?}");
        return;
    }
    let runtime = hal_shim::test::keep(Runtime::new());
    let (hog_ends, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (first, last) = (hog_ends.clone(), ends.clone());
    let counts = ends.clone();
    let enters = async {
        // Makes three idle stacks: the three tasks hold a stack each at the same time, and then
        // give it back.
        let idle: Vec<_> = (0..3)
            .map(|_| spawn(stackful(async { block_on(sleep(Duration::from_millis(1))) })))
            .collect();
        for task in idle {
            task.await.unwrap();
        }
        // Leaves two stacks that hold frames: one task is preempted, the other waits in `block_on`.
        drop(spawn(stackful(async move {
            hog_until(first).await;
            counts.fetch_add(1, SeqCst);
        })));
        drop(spawn(stackful(async move {
            block_on(sleep(Duration::from_millis(20)));
            last.fetch_add(10, SeqCst);
        })));
        sleep(Duration::from_millis(5)).await;
    };
    // SAFETY: as in `with_runtime`.
    unsafe { hal_shim::isolated(|| runtime.run_until(enters).unwrap()) };
    let enters_again = async {
        // Tasks are polled on the idle stacks, and the tasks that hold the other stacks go on.
        for _ in 0..100 {
            spawn(stackful(async { yield_now().await })).await.unwrap();
        }
        hogs_are_preempted().await;
        hog_ends.store(1, SeqCst);
        while ends.load(SeqCst) < 11 {
            sleep(Duration::from_millis(1)).await;
        }
        // Leaves an idle stack and a held one again, which this thread used last.
        drop(spawn(stackful(std::future::pending::<()>())));
        let held = spawn(stackful(async { block_on(std::future::pending::<()>()) }));
        sleep(Duration::from_millis(2)).await;
        drop(held);
    };
    // SAFETY: as above.
    unsafe { hal_shim::isolated(|| runtime.run_until(enters_again).unwrap()) };
    // SAFETY: as above.
    let report = unsafe { hal_shim::isolated(|| runtime.shutdown().unwrap()) };
    assert_eq!((report.dropped, report.stacks_with_frames), (1, 1));
}
