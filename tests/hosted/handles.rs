//! Join handles and wakers: their last polls, their number, and their use by other threads.

use std::future::poll_fn;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use trapline::{spawn, yield_now};

use crate::support::*;

/// The program must not survive this: a reference count that wraps frees a task that is in use.
#[test]
fn too_many_references_end_the_program() {
    const CHILD: &str = "TRAPLINE_TEST_REFERENCES";
    if std::env::var_os(CHILD).is_none() {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "handles::too_many_references_end_the_program", "--nocapture"])
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
