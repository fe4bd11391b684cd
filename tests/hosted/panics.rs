//! Panics of tasks, of drops and of hooks: which handle or hook gets them.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use trapline::time::sleep;
use trapline::{
    Config, EnterError, Hooks, JoinError, Runtime, TaskBuilder, TaskPanic, block_on, contexted,
    spawn, stackful, yield_now,
};

use crate::support::*;

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
            .args(["--exact", "panics::a_panic_of_hooks_ends_the_program", "--nocapture"])
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
