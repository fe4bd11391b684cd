//! Runtimes: how they are set up, which threads enter them, and how they are shut down.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use trapline::time::sleep;
use trapline::{Config, JoinError, JoinHandle, Runtime, block_on, spawn, stackful, yield_now};

use crate::support::*;

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

/// A core's number may be given to another thread between two entries of a runtime. The loop's
/// frames on idle stacks, and the frames of tasks, go on in that thread.
#[test]
fn another_thread_goes_on_with_the_stacks() {
    // Runs in a process of its own, in which each thread gets the same core number.
    if let Ok(output) = in_child("runtimes::another_thread_goes_on_with_the_stacks", "alone") {
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
