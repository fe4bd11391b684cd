//! Signal handlers of the program's own: they may wake, compute, and end their task.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use trapline::preempt::PreemptGuard;
use trapline::time::sleep;
use trapline::{JoinError, block_on, spawn, stackful};

use crate::support::*;

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

/// Returns whether this thread blocks `signal`.
fn blocked(signal: libc::c_int) -> bool {
    // SAFETY: all-zero is a valid value of this C structure, and the arguments are valid.
    unsafe {
        let mut mask = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut mask);
        libc::sigismember(&mask, signal) == 1
    }
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
