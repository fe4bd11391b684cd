//! Values that belong to a scope within a task.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::task::Poll;

use hal_shim::{heap, interrupt};
use trapline::time::sleep;
use trapline::{
    Config, Hooks, NoValue, block_on, contexted, spawn, stackful, task_local, yield_now,
};

use crate::support::*;

task_local! {
    static NUMBER: Cell<usize>;
    /// A value of another type.
    static NAMES: RefCell<Vec<&'static str>>;
}

/// Returns the current value of `NUMBER`.
fn number() -> Result<usize, NoValue> {
    NUMBER.try_with(Cell::get)
}

pub fn a_value_is_found_in_its_scope_alone() {
    assert_eq!(number(), Err(NoValue), "a value outside of a runtime");
    run(async {
        assert_eq!(number(), Err(NoValue));
        let task = spawn(NUMBER.scope(Cell::new(1), async {
            NUMBER.with(|number| number.set(number.get() + 1));
            yield_now().await;
            number()
        }));
        yield_now().await;
        assert_eq!(number(), Err(NoValue), "another task's value is visible");
        assert_eq!(task.await.unwrap(), Ok(2));
        let mut scoped = core::pin::pin!(NUMBER.scope(Cell::new(3), async {
            yield_now().await;
            number()
        }));
        poll_fn(|context| {
            assert!(scoped.as_mut().poll(context).is_pending());
            assert_eq!(number(), Err(NoValue), "the value is visible outside of its scope");
            Poll::Ready(())
        })
        .await;
        assert_eq!(scoped.await, Ok(3));
        assert_eq!(number(), Err(NoValue));
    });
}

pub fn scopes_nest() {
    run(NUMBER.scope(Cell::new(1), async {
        let inner = NAMES.scope(RefCell::default(), async {
            assert_eq!(number(), Ok(1), "the scope of another key hides the value");
            NAMES.with(|names| names.borrow_mut().push("inner"));
            let hidden = NUMBER.scope(Cell::new(2), async {
                NAMES.with(|names| names.borrow_mut().push("innermost"));
                yield_now().await;
                number()
            });
            assert_eq!(hidden.await, Ok(2));
            assert_eq!(number(), Ok(1));
            NAMES.with(|names| names.borrow().clone())
        });
        assert_eq!(inner.await, ["inner", "innermost"]);
        assert_eq!(NAMES.try_with(|_| ()), Err(NoValue));
    }));
}

/// A value whose drop counts up by the number that it finds; by 100 if there is none.
struct Looks(Count);

impl Drop for Looks {
    fn drop(&mut self) {
        for _ in 0..number().unwrap_or(100) {
            self.0.add();
        }
    }
}

pub fn a_drop_is_in_the_scope() {
    let found = Count::new();
    run(async {
        let looks = Looks(found.clone());
        let task = spawn(NUMBER.scope(Cell::new(3), async move {
            let _looks = looks;
            never().await
        }));
        yield_now().await;
        task.abort();
        assert!(task.await.is_err());
        assert_eq!(found.get(), 3);
        drop(NUMBER.scope(Cell::new(4), core::future::ready(Looks(found.clone()))));
    });
    assert_eq!(found.get(), 7);
}

pub fn a_scope_allocates_nothing() {
    let runtime = runtime();
    let bytes = |spawn: &dyn Fn()| {
        let before = heap::counts();
        spawn();
        let after = heap::counts();
        assert_eq!(after.allocations, before.allocations + 1);
        after.bytes_live - before.bytes_live
    };
    let plain = bytes(&|| drop(runtime.spawn(poll_fn(|_| Poll::Ready(())))));
    let scoped = bytes(&|| {
        drop(runtime.spawn(NUMBER.scope(Cell::new(0), poll_fn(|_| Poll::Ready(())))));
    });
    assert!(scoped <= plain + 2 * size_of::<usize>(), "{scoped} {plain}");
    let before = heap::counts().allocations;
    run_on(runtime, NUMBER.scope(Cell::new(0), turns(3)));
    assert_eq!(heap::counts().allocations, before);
    runtime.shutdown().unwrap();
}

pub fn each_hog_keeps_its_own_over_preemption() {
    static STOP: AtomicUsize = AtomicUsize::new(0);
    STOP.store(0, SeqCst);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    run_on(runtime, async {
        let hogs: Vec<_> = (1..=3)
            .map(|own| {
                spawn(stackful(NUMBER.scope(Cell::new(own), async move {
                    let mut rounds = 0;
                    while STOP.load(SeqCst) == 0 {
                        // The hog may also be preempted in the middle of a use of the value.
                        NUMBER.with(|number| {
                            number.set(number.get() + 10);
                            assert_eq!(number.get(), own + 10);
                            number.set(number.get() - 10);
                        });
                        rounds += 1;
                    }
                    assert!(rounds > 0);
                    number()
                })))
            })
            .collect();
        while runtime.stats().preemptions < 30 {
            sleep(ms(1)).await;
            assert_eq!(number(), Err(NoValue));
        }
        STOP.store(1, SeqCst);
        for (index, hog) in hogs.into_iter().enumerate() {
            assert_eq!(hog.await.unwrap(), Ok(index + 1));
        }
    });
}

pub fn block_on_keeps_it_and_may_be_in_the_middle_of_a_use() {
    run(async {
        let task = stackful(NUMBER.scope(Cell::new(1), async {
            NUMBER.with(|number| {
                block_on(async {
                    yield_now().await;
                    NUMBER.with(|same| same.set(2));
                });
                number.get()
            })
        }));
        let task = spawn(task);
        while !task.is_finished() {
            assert_eq!(number(), Err(NoValue));
            yield_now().await;
        }
        assert_eq!(task.await.unwrap(), 2);
    });
}

pub fn children_inherit_hooks_and_no_values() {
    struct Counting(AtomicUsize);
    impl Hooks for Counting {
        fn enter(&self) {
            self.0.fetch_add(1, SeqCst);
        }
        fn leave(&self) {}
    }
    // No slice ends: after a preemption the child would enter the hooks once more.
    run_on(configured(Config { slice: LONG, ..Config::new() }), async {
        let hooks = Arc::new(Counting(AtomicUsize::new(0)));
        let inside = hooks.clone();
        let task = NUMBER.scope(
            Cell::new(1),
            contexted(
                async move {
                    assert_eq!(number(), Ok(1));
                    let entered = inside.0.load(SeqCst);
                    let child = stackful(async move {
                        // The parent has left the hooks since. The child has entered them once
                        // itself.
                        (number(), inside.0.load(SeqCst) - entered)
                    });
                    assert_eq!(child.await, (Err(NoValue), 1));
                    spawn(async { number() }).await.unwrap()
                },
                hooks,
            ),
        );
        assert_eq!(spawn(task).await.unwrap(), Err(NoValue));
    });
}

/// An interrupt finds no value, if the platform reports for certain that it is an interrupt.
pub fn an_interrupt_finds_none_if_it_is_known_to_be_one() {
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    FOUND.store(0, SeqCst);
    interrupt::on_soft(|| FOUND.store(1 + usize::from(number().is_ok()), SeqCst));
    run(NUMBER.scope(Cell::new(1), async {
        interrupt::raise();
        assert_eq!(FOUND.load(SeqCst), 1);
        assert_eq!(number(), Ok(1));
    }));
}
