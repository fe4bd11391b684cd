//! Hooks run around every stretch of a task on the core.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::task::Poll;

use trapline::time::sleep;
use trapline::{Config, Hooks, block_on, contexted, spawn, stackful, yield_now};

use crate::support::*;

/// Hooks that note each of their calls in a trace.
struct Noting {
    trace: Trace,
    enter: &'static str,
    leave: &'static str,
}

impl Noting {
    fn outer(trace: &Trace) -> Arc<Self> {
        Arc::new(Self { trace: trace.clone(), enter: "[", leave: "]" })
    }

    fn inner(trace: &Trace) -> Arc<Self> {
        Arc::new(Self { trace: trace.clone(), enter: "(", leave: ")" })
    }
}

impl Hooks for Noting {
    fn enter(&self) {
        self.trace.note(self.enter);
    }

    fn leave(&self) {
        self.trace.note(self.leave);
    }
}

/// The number of the context that the core is in; 0: none.
static LOADED: AtomicUsize = AtomicUsize::new(0);

/// Hooks that check at each call that the core is in no other context.
struct Exclusive {
    number: usize,
    stretches: AtomicUsize,
}

impl Exclusive {
    fn new(number: usize) -> Arc<Self> {
        Arc::new(Self { number, stretches: AtomicUsize::new(0) })
    }

    fn check(&self) {
        assert_eq!(LOADED.load(SeqCst), self.number, "the core is in another task's context");
    }
}

impl Hooks for Exclusive {
    fn enter(&self) {
        assert_eq!(LOADED.swap(self.number, SeqCst), 0, "entered while another context was loaded");
        self.stretches.fetch_add(1, SeqCst);
    }

    fn leave(&self) {
        assert_eq!(LOADED.swap(0, SeqCst), self.number, "left a context that was not loaded");
    }
}

pub fn hooks_run_around_every_poll_and_the_drop() {
    let trace = Trace::new();
    let noted = trace.clone();
    run(async {
        struct Noted(Trace);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.note("drop");
            }
        }
        let dropped = Noted(trace.clone());
        let task = async move {
            let _dropped = &dropped;
            noted.note("a");
            yield_now().await;
            noted.note("b");
        };
        spawn(contexted(task, Noting::outer(&trace))).await.unwrap();
    });
    assert_eq!(
        trace.events(),
        [
            "[",    // the first poll begins
            "a",    // the future is polled
            "]",    // the poll ends: the task has yielded
            "[",    // the second poll begins
            "b",    // the future is polled
            "drop", // the body is over and drops what it captured
            "]",    // the poll ends: the task has finished
            "[",    // the runtime is about to drop the finished future
            "]",    // the runtime has dropped the future
        ]
    );
}

pub fn hooks_run_around_the_drop_of_an_aborted_future() {
    let trace = Trace::new();
    run(async {
        let task = spawn(contexted(never(), Noting::outer(&trace)));
        turns(2).await;
        task.abort();
        assert!(task.await.is_err());
        drop(contexted(never(), Noting::inner(&trace)));
    });
    assert_eq!(
        trace.events(),
        [
            "[", // the first poll begins
            "]", // the poll ends with Pending
            "[", // the runtime is about to drop the aborted future
            "]", // the runtime has dropped the future
            "(", // the drop of the future that was never spawned begins
            ")", // and ends
        ]
    );
}

pub fn hooks_nest() {
    let trace = Trace::new();
    let noted = trace.clone();
    run(async {
        let inside = async move { noted.note("x") };
        let inner = contexted(inside, Noting::inner(&trace));
        contexted(inner, Noting::outer(&trace)).await;
    });
    let events: Vec<_> = trace.events().into_iter().take(5).collect();
    assert_eq!(
        events,
        [
            "[", // the poll begins
            "(", // the inner future is polled
            "x", // the innermost future is polled
            ")", // the inner poll is over
            "]", // the outer poll is over
        ]
    );
}

pub fn hooks_run_around_preemption() {
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, SeqCst);
    LOADED.store(0, SeqCst);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let contexts = [Exclusive::new(1), Exclusive::new(2)];
    let hogs: Vec<_> = contexts
        .iter()
        .map(|context| {
            let own = context.clone();
            runtime.spawn(contexted(
                stackful(async move {
                    while !STOP.load(SeqCst) {
                        own.check();
                    }
                }),
                context.clone(),
            ))
        })
        .collect();
    run_on(runtime, async {
        while contexts.iter().any(|context| context.stretches.load(SeqCst) < 20) {
            sleep(ms(1)).await;
            assert_eq!(LOADED.load(SeqCst), 0, "the plain task runs in a context");
        }
        STOP.store(true, SeqCst);
        for hog in hogs {
            hog.await.unwrap();
        }
    });
    assert!(runtime.stats().preemptions >= 20);
    assert_eq!(LOADED.load(SeqCst), 0);
}

pub fn hooks_run_around_block_on() {
    let trace = Trace::new();
    let noted = trace.clone();
    // No slice ends, so no preemption adds hook calls to the trace.
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    run_on(runtime, async {
        // The hooks are inside of `stackful`, so the stackful task is not a child and inherits no
        // hooks.
        let task = contexted(
            async move {
                noted.note("a");
                block_on(yield_now());
                noted.note("b");
            },
            Noting::outer(&trace),
        );
        spawn(stackful(task)).await.unwrap();
    });
    assert_eq!(
        trace.events(),
        [
            "[", // the poll begins
            "a", // the task runs
            "]", // block_on suspends the task
            "[", // the task is resumed
            "b", // the task runs
            "]", // the poll is over
            "[", // the drop of the finished future begins
            "]", // and ends
        ]
    );
}

pub fn a_stackful_child_inherits_all_hooks() {
    let trace = Trace::new();
    let noted = trace.clone();
    run(async {
        let grandchild = async move { noted.note("x") };
        let child = stackful(async move { stackful(grandchild).await });
        let task = contexted(contexted(child, Noting::inner(&trace)), Noting::outer(&trace));
        spawn(task).await.unwrap();
    });
    let events = trace.events();
    let at = events.iter().position(|&event| event == "x").unwrap();
    assert_eq!(
        events[at - 2..at + 3],
        [
            "[", // the grandchild's poll enters the inherited outer hooks
            "(", // then the inherited inner hooks
            "x", // the grandchild's future is polled
            ")", // the poll leaves the inner hooks
            "]", // then the outer hooks
        ],
        "{events:?}"
    );
    // Each call of `enter` has its call of `leave`.
    let count = |wanted| events.iter().filter(|&&event| event == wanted).count();
    assert_eq!((count("["), count("(")), (count("]"), count(")")));
}

pub fn a_task_that_is_spawned_inside_inherits_nothing() {
    let trace = Trace::new();
    let noted = trace.clone();
    run(async {
        let task = async move {
            spawn(async move { noted.note("x") }).await.unwrap();
        };
        contexted(Box::pin(task), Noting::outer(&trace)).await;
    });
    let events = trace.events();
    let at = events.iter().position(|&event| event == "x").unwrap();
    assert_eq!(events[at - 1], "]", "{events:?}");
}

pub fn a_child_without_memory_does_not_leave_its_parents_hooks() {
    LOADED.store(0, SeqCst);
    let context = Exclusive::new(1);
    let own = context.clone();
    run(async {
        let task = async move {
            let mut child = Box::pin(stackful(async {}));
            for allowed in 0..4 {
                hal_shim::heap::fail_after(Some(allowed));
                // The failed spawn must leave the hooks balanced: `enter` panics if they are
                // entered twice.
                let _ = poll_fn(|context| Poll::Ready(child.as_mut().poll(context))).await;
                hal_shim::heap::fail_after(None);
                own.check();
            }
            child.await;
        };
        contexted(task, context).await;
    });
    assert_eq!(LOADED.load(SeqCst), 0);
}
