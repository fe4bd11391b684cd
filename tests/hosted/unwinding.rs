//! Preemption, timers, guards and faults while a panic unwinds, and after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use trapline::preempt::PreemptGuard;
use trapline::time::sleep;
use trapline::{Config, JoinError, Runtime, spawn, stackful, yield_now};

use crate::support::*;

/// A value whose drop takes several slices, also while a panic unwinds.
struct Slow;
impl Drop for Slow {
    fn drop(&mut self) {
        compute_for(Duration::from_millis(5));
    }
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
