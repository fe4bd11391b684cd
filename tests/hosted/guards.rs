//! Where preemption is forbidden: by guards, by masked interrupts, and by the platform.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use trapline::preempt::PreemptGuard;
use trapline::time::sleep;
use trapline::{Config, JoinHandle, Runtime, TaskBuilder, block_on, spawn, stackful, yield_now};

use crate::support::*;

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
