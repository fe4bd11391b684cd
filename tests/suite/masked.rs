//! A preemption that becomes pending while interrupts are masked, and the events that let it
//! come.

use hal_shim::interrupt::{self, mask, masked};
use trapline::preempt::{self, PreemptGuard};
use trapline::{Config, EnterError, Runtime, spawn, stackful};

use crate::support::*;

/// Returns a runtime in which no slice ends: only a pending preemption or a wake preempts.
fn no_slice_ends() -> &'static Runtime {
    configured(Config { slice: LONG, ..Config::new() })
}

static SOFT: Event = Event::constant();

/// Runs `task` on a stack. Beside it a plain task waits for the event that the software interrupt
/// sets; when it is woken, it notes "woken" and increments the counter.
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

/// A guard that drops with interrupts masked leaves the preemption pending.
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
            // The preemption comes when interrupts are enabled, or a few instructions later, when
            // the alarm fires.
            woken.spin_until(1);
            trace.note("resumed");
        },
    );
    assert_eq!(
        trace.events(),
        [
            "masked",  // the guard has dropped, and interrupts are still masked
            "woken",   // interrupts are enabled: the alarm preempts, and the plain task runs
            "resumed", // the stackful task goes on
        ]
    );
}

/// A guard that drops in an interrupt handler does not let a pending preemption come.
pub fn a_guard_in_a_handler_pays_nothing() {
    static TRACE: spin::Mutex<Option<Trace>> = spin::Mutex::new(None);
    fn handler() {
        SOFT.set();
        if let Some(trace) = &*TRACE.lock() {
            // Each call of `note` takes and drops a guard.
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
            // This interrupt comes when interrupts are enabled, while a preemption is pending and
            // the alarm for it is set.
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
            // A guard within a guard, both dropped while interrupts are still masked.
            drop((PreemptGuard::new(), PreemptGuard::new()));
            preempt::point();
            trace.note("one mask");
            drop(outer);
            woken.spin_until(1);
            trace.note("none");
        },
    );
    assert_eq!(
        trace.events(),
        [
            "two masks", // the guards have dropped under two masks
            "one mask",  // further guards have dropped under the outer mask
            "woken",     // the outer mask is gone: the interrupt comes and preempts
            "none",      // the stackful task goes on
        ]
    );
}

pub fn a_runtime_is_not_entered_with_interrupts_masked() {
    let runtime = runtime();
    let entered = masked(|| runtime.run_until(async {}));
    assert!(matches!(entered, Err(EnterError::InterruptsMasked)), "{entered:?}");
    run_on(runtime, async {});
    // A kernel may shut down its runtime with interrupts masked, as its last action.
    masked(|| runtime.shutdown()).unwrap();
}

pub fn the_raw_pair_is_a_guard() {
    // Outside of a runtime the two calls have no effect.
    preempt::disable();
    preempt::point();
    // SAFETY: pairs with the call of `disable` above.
    unsafe { preempt::enable() };
    let trace = beside_a_waiter(
        || SOFT.set(),
        |trace, _| {
            preempt::disable();
            let guard = PreemptGuard::new();
            preempt::disable();
            interrupt::raise();
            // SAFETY: pairs with the second call of `disable`.
            unsafe { preempt::enable() };
            drop(guard);
            preempt::point();
            trace.note("disabled");
            // SAFETY: pairs with the first call of `disable`.
            unsafe { preempt::enable() };
            trace.note("enabled");
        },
    );
    assert_eq!(
        trace.events(),
        [
            "disabled", // the interrupt has come, and the preempt count is still raised
            "woken",    // the last `enable`: the pending preemption comes
            "enabled",  // the stackful task goes on
        ]
    );
    // In a plain task the two calls have no effect either.
    run(async {
        preempt::disable();
        preempt::point();
        // SAFETY: pairs with the call of `disable` above.
        unsafe { preempt::enable() };
    });
}

/// A preemption point has no effect in a handler, under a guard, or with interrupts masked.
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
                // The handler runs when interrupts are enabled, and calls `point` while the
                // preemption is pending.
                interrupt::raise();
            });
            preempt::point();
            woken.spin_until(1);
            trace.note("resumed");
        },
    );
    assert_eq!(
        trace.events(),
        [
            "guarded", // the point under the guard has no effect
            "masked",  // nor has the point with interrupts masked
            "woken",   // interrupts are enabled: the pending preemption comes
            "resumed", // the stackful task goes on
        ]
    );
}
