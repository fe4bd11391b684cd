//! Hooks around every stretch on the core.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::task::Poll;

use trapline::time::sleep;
use trapline::{Config, Hooks, block_on, contexted, spawn, stackful, yield_now};

use crate::support::*;

/// Hooks that note their calls.
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

/// Which of several contexts the core is in: 0 is none.
static LOADED: AtomicUsize = AtomicUsize::new(0);

/// Hooks that must find the core in no context, and leave it so.
struct Exclusive {
    number: usize,
    stretches: AtomicUsize,
}

impl Exclusive {
    fn new(number: usize) -> Arc<Self> {
        Arc::new(Self { number, stretches: AtomicUsize::new(0) })
    }

    fn check(&self) {
        assert_eq!(LOADED.load(SeqCst), self.number, "the context of another");
    }
}

impl Hooks for Exclusive {
    fn enter(&self) {
        assert_eq!(LOADED.swap(self.number, SeqCst), 0, "entered without the other having left");
        self.stretches.fetch_add(1, SeqCst);
    }

    fn leave(&self) {
        assert_eq!(LOADED.swap(0, SeqCst), self.number, "left without having entered");
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
    assert_eq!(trace.events(), ["[", "a", "]", "[", "b", "drop", "]", "[", "]"]);
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
    assert_eq!(trace.events(), ["[", "]", "[", "]", "(", ")"]);
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
    assert_eq!(events, ["[", "(", "x", ")", "]"]);
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
            assert_eq!(LOADED.load(SeqCst), 0, "a plain task runs in no context");
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
    // No preemption comes between.
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    run_on(runtime, async {
        // Contexted inside of stackful, so that nothing is inherited.
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
    assert_eq!(trace.events(), ["[", "a", "]", "[", "b", "]", "[", "]"]);
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
    assert_eq!(events[at - 2..at + 3], ["[", "(", "x", ")", "]"], "{events:?}");
    // Nobody is left inside.
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
                // Entered twice, the hooks would panic.
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
