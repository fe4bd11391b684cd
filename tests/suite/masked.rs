//! What is owed while interrupts are masked, and what pays it.

use hal_shim::interrupt::{self, mask, masked};
use trapline::preempt::{self, PreemptGuard};
use trapline::{Config, EnterError, Runtime, spawn, stackful};

use crate::support::*;

/// No slice ends, so what preempts is what is owed.
fn no_slice_ends() -> &'static Runtime {
    configured(Config { slice: LONG, ..Config::new() })
}

static SOFT: Event = Event::constant();

/// Runs `task` on a stack. A plain task waits beside it for what the software interrupt sets, and then notes
/// "woken" and counts one.
fn beside_a_waiter(handler: fn(), task: impl FnOnce(&Trace, &Count) + Send + 'static) -> Trace {
    SOFT.clear();
    interrupt::on_soft(handler);
    let trace = Trace::new();
    run_on(no_slice_ends(), async {
        let count = Count::new();
        let (notes, others, counts) = (trace.clone(), trace.clone(), count.clone());
        let woken = spawn(async move {
            SOFT.wait().await;
            others.note("woken");
            counts.add();
        });
        turns(2).await;
        spawn(stackful(async move { task(&notes, &count) })).await.unwrap();
        woken.await.unwrap();
    });
    trace
}

pub fn a_guard_that_drops_with_interrupts_masked_owes() {
    let trace = beside_a_waiter(
        || SOFT.set(),
        |trace, woken| {
            let guard = PreemptGuard::new();
            interrupt::raise();
            masked(|| {
                drop(guard);
                trace.note("masked");
            });
            // At once, or after the few instructions that an alarm takes to come.
            woken.spin_until(1);
            trace.note("paid");
        },
    );
    assert_eq!(trace.events(), ["masked", "woken", "paid"]);
}

pub fn a_guard_in_a_handler_pays_nothing() {
    static TRACE: spin::Mutex<Option<Trace>> = spin::Mutex::new(None);
    fn handler() {
        SOFT.set();
        if let Some(trace) = &*TRACE.lock() {
            // Each takes and drops guards.
            trace.note("handler");
            trace.note("still the handler");
        }
    }
    let trace = beside_a_waiter(handler, |trace, woken| {
        *TRACE.lock() = Some(trace.clone());
        let guard = PreemptGuard::new();
        interrupt::raise();
        masked(|| {
            drop(guard);
            // With the debt, and the alarm for it.
            interrupt::raise();
        });
        woken.spin_until(1);
        *TRACE.lock() = None;
    });
    let events = trace.events();
    assert_eq!(events.len(), 5, "{events:?}");
    for (event, next) in events.iter().zip(&events[1..]) {
        assert!(*event != "handler" || *next == "still the handler", "{events:?}");
    }
}

pub fn nothing_leaves_before_the_last_mask_is_gone() {
    let trace = beside_a_waiter(
        || SOFT.set(),
        |trace, woken| {
            let outer = mask();
            let guards = (PreemptGuard::new(), PreemptGuard::new());
            masked(|| {
                interrupt::raise();
                drop(guards.0);
                masked(|| drop(guards.1));
                preempt::point();
                trace.note("two masks");
            });
            // A guard that finds a debt, and takes and drops others inside.
            drop((PreemptGuard::new(), PreemptGuard::new()));
            preempt::point();
            trace.note("one mask");
            drop(outer);
            woken.spin_until(1);
            trace.note("none");
        },
    );
    assert_eq!(trace.events(), ["two masks", "one mask", "woken", "none"]);
}

pub fn a_runtime_is_not_entered_with_interrupts_masked() {
    let runtime = runtime();
    let entered = masked(|| runtime.run_until(async {}));
    assert!(matches!(entered, Err(EnterError::InterruptsMasked)), "{entered:?}");
    run_on(runtime, async {});
    // A shutdown may be the last thing that a kernel does.
    masked(|| runtime.shutdown()).unwrap();
}

pub fn the_raw_pair_is_a_guard() {
    // Outside of a runtime it does nothing.
    preempt::disable();
    preempt::point();
    // SAFETY: the pair of the call above.
    unsafe { preempt::enable() };
    let trace = beside_a_waiter(
        || SOFT.set(),
        |trace, _| {
            preempt::disable();
            let guard = PreemptGuard::new();
            preempt::disable();
            interrupt::raise();
            // SAFETY: the pair of the call above.
            unsafe { preempt::enable() };
            drop(guard);
            preempt::point();
            trace.note("disabled");
            // SAFETY: the pair of the first call.
            unsafe { preempt::enable() };
            trace.note("enabled");
        },
    );
    assert_eq!(trace.events(), ["disabled", "woken", "enabled"]);
    // In a plain task it is harmless.
    run(async {
        preempt::disable();
        preempt::point();
        // SAFETY: the pair of the call above.
        unsafe { preempt::enable() };
    });
}

pub fn a_point_pays_nothing_where_nothing_may() {
    let trace = beside_a_waiter(
        || {
            SOFT.set();
            preempt::point();
        },
        |trace, woken| {
            let guard = PreemptGuard::new();
            interrupt::raise();
            preempt::point();
            trace.note("guarded");
            masked(|| {
                drop(guard);
                preempt::point();
                trace.note("masked");
                // In the handler, when this is over.
                interrupt::raise();
            });
            preempt::point();
            woken.spin_until(1);
            trace.note("paid");
        },
    );
    assert_eq!(trace.events(), ["guarded", "masked", "woken", "paid"]);
}
