//! Mistakes that a caller can make: each gives a clear error or has defined behaviour, and
//! loses nothing.

use alloc::vec::Vec;
use core::future::{Future, poll_fn};

use hal_shim::heap;
use trapline::time::sleep;
use trapline::{
    Config, ConfigError, EnterError, JoinError, LocalSpawner, MIN_SLICE, Runtime, SpawnErrorReason,
    TaskBuilder, block_on, spawn, stackful, try_spawn,
};

use crate::support::*;

pub fn nested_runtimes() {
    let (outer, inner) = (runtime(), runtime());
    run_on(outer, async {
        assert!(matches!(inner.run_until(async {}), Err(EnterError::Nested)));
        assert!(matches!(outer.run_until(async {}), Err(EnterError::Nested)));
        assert!(matches!(inner.enter(), Err(EnterError::Nested)));
        let nested =
            spawn(stackful(async { matches!(outer.run_until(async {}), Err(EnterError::Nested)) }));
        assert!(nested.await.unwrap());
    });
    // After the errors, the core is in no runtime and can enter one.
    assert_eq!(run_on(inner, async { 1 }), 1);
}
/// Returns the error with which a runtime refuses `config`.
fn refused(config: Config) -> ConfigError {
    match configured(config).run_until(async {}) {
        Err(EnterError::Config(error)) => error,
        other => panic!("{other:?}"),
    }
}

pub fn zero_slice_or_nearly() {
    for slice in [core::time::Duration::ZERO, MIN_SLICE - core::time::Duration::from_nanos(1)] {
        assert_eq!(refused(Config { slice, ..Config::new() }), ConfigError::SliceTooShort);
    }
}

pub fn stack_that_holds_no_context() {
    let ConfigError::StackTooSmall { least } = refused(Config { stack_size: 64, ..Config::new() })
    else {
        panic!("a stack of 64 bytes was not refused")
    };
    // A stack of the size `least` that the error names is accepted, and one byte less is refused.
    assert_eq!(
        refused(Config { stack_size: least - 1, ..Config::new() }),
        ConfigError::StackTooSmall { least }
    );
    // A stack of that size is also enough for a task that is preempted.
    let runtime = configured(Config { stack_size: least, ..Config::new() });
    run_on(runtime, async {
        let stop = Event::new();
        let sees = stop.clone();
        let hog = spawn(stackful(async move { while !sees.is_set() {} }));
        while runtime.stats().preemptions < 2 {
            sleep(ms(1)).await;
        }
        stop.set();
        hog.await.unwrap();
    });
    assert_eq!(
        refused(Config { stack_size: usize::MAX, ..Config::new() }),
        ConfigError::StackTooLarge
    );
}

pub fn no_stacks_at_all() {
    assert_eq!(refused(Config { max_stacks: 0, ..Config::new() }), ConfigError::NoStacks);
}

pub fn memory_out_at_spawn_gives_the_future_back() {
    let runtime = runtime();
    let (polls, drops) = (Count::new(), Count::new());
    let future = Counted::new(async { 6 }, &polls, &drops);
    heap::fail_after(Some(0));
    let spawned = runtime.try_spawn(future);
    heap::fail_after(None);
    let error = spawned.expect_err("there was no memory");
    assert_eq!(error.reason, SpawnErrorReason::OutOfMemory);
    assert_eq!(drops.get(), 0);
    heap::fail_after(Some(0));
    let spawned = TaskBuilder::new().name("again").spawn_on(runtime, error.future);
    heap::fail_after(None);
    let error = spawned.expect_err("there was no memory");
    assert_eq!(error.reason, SpawnErrorReason::OutOfMemory);
    let error = run_on(runtime, async {
        let spawner = LocalSpawner::current().unwrap();
        heap::fail_after(Some(0));
        let spawned = spawner.try_spawn(error.future);
        heap::fail_after(None);
        spawned.expect_err("there was no memory")
    });
    assert_eq!((error.reason, drops.get()), (SpawnErrorReason::OutOfMemory, 0));
    // The error holds the future unchanged, so the future can still be spawned and run.
    assert_eq!(run_on(runtime, runtime.spawn(error.future)).unwrap(), 6);
    assert_eq!((polls.get(), drops.get()), (1, 1));
}

pub fn memory_out_for_a_child() {
    run(async {
        let mut child = core::pin::pin!(stackful(async { 8 }));
        let polls = Count::new();
        let output = poll_fn(|context| {
            // During the first polls there is no memory for the child's task: the parent is polled
            // again and tries again.
            heap::fail_after((polls.add() <= 3).then_some(0));
            let poll = child.as_mut().poll(context);
            heap::fail_after(None);
            poll
        })
        .await;
        assert_eq!(output, 8);
        assert!(polls.get() > 3);
    });
}

pub fn memory_out_for_a_stack_waits() {
    // The size exceeds the memory of every platform.
    let runtime = configured(Config { stack_size: isize::MAX as usize & !15, ..Config::new() });
    run_on(runtime, async {
        let stackful = spawn(stackful(async {}));
        sleep(ms(3)).await;
        assert!(!stackful.is_finished());
        stackful.abort();
        assert_eq!(spawn(async { 4 }).await.unwrap(), 4, "other tasks run");
        assert!(matches!(stackful.await, Err(JoinError::Aborted)));
    });
}

pub fn memory_out_for_a_stack_is_told() {
    static TOLD: spin::Mutex<Vec<(usize, usize, bool)>> = spin::Mutex::new(Vec::new());
    TOLD.lock().clear();
    let runtime = configured(Config {
        stack_size: isize::MAX as usize & !15,
        on_stall: Some(|stall| {
            TOLD.lock().push((stall.stacks(), stall.waiting(), stall.is_out_of_memory()));
        }),
        ..Config::new()
    });
    run_on(runtime, async {
        let tasks = [spawn(stackful(async {})), spawn(stackful(async {}))];
        sleep(ms(3)).await;
        assert_eq!(*TOLD.lock(), [(0, 2, true)]);
        assert_eq!((runtime.stats().waiting, runtime.stats().failed_growths), (2, 2));
        drop(tasks);
    });
}

pub fn spawn_outside_of_a_runtime() {
    assert!(Runtime::current().is_none());
    let (polls, drops) = (Count::new(), Count::new());
    let error = try_spawn(Counted::new(async {}, &polls, &drops)).expect_err("no runtime");
    assert_eq!(error.reason, SpawnErrorReason::NoRuntime);
    assert_eq!(drops.get(), 0);
    drop(error);
    assert_eq!((polls.get(), drops.get()), (0, 1));
}

pub fn nothing_runs_after_a_shutdown() {
    let runtime = runtime();
    assert_eq!(run_on(runtime, async { 1 }), 1);
    runtime.shutdown().unwrap();
    assert!(matches!(runtime.run_until(async {}), Err(EnterError::ShutDown)));
    assert!(matches!(runtime.enter(), Err(EnterError::ShutDown)));
    let (polls, drops) = (Count::new(), Count::new());
    let error = runtime.try_spawn(Counted::new(async {}, &polls, &drops)).expect_err("shut down");
    assert_eq!(error.reason, SpawnErrorReason::ShutDown);
    let error = TaskBuilder::new().spawn_on(runtime, error.future).expect_err("shut down");
    assert_eq!((error.reason, drops.get()), (SpawnErrorReason::ShutDown, 0));
    let handle = runtime.spawn(error.future);
    assert!(handle.is_finished());
    assert_eq!((polls.get(), drops.get()), (0, 1));
    assert!(matches!(block_on(handle), Err(JoinError::Aborted)));
    // A second shutdown has no effect.
    assert_eq!(runtime.shutdown().unwrap().dropped, 0);
}

pub fn shutdown_inside_of_the_runtime() {
    let runtime = runtime();
    run_on(runtime, async {
        assert!(matches!(runtime.shutdown(), Err(EnterError::Nested)));
    });
    assert_eq!(run_on(runtime, async { 3 }), 3);
}

/// The interrupt may have arrived in the middle of entering or shutting down the same runtime.
pub fn a_runtime_is_neither_entered_nor_shut_down_in_an_interrupt() {
    static TRIED: spin::Mutex<Option<&'static Runtime>> = spin::Mutex::new(None);
    static REFUSED: Event = Event::constant();
    let runtime = runtime();
    *TRIED.lock() = Some(runtime);
    hal_shim::interrupt::on_soft(|| {
        if let Some(runtime) = TRIED.lock().take() {
            let shut = runtime.shutdown();
            assert!(matches!(shut, Err(EnterError::InInterrupt)), "{shut:?}");
            let entered = runtime.run_until(async {});
            assert!(matches!(entered, Err(EnterError::InInterrupt)), "{entered:?}");
            REFUSED.set();
        }
    });
    hal_shim::interrupt::raise();
    while !REFUSED.is_set() {}
    run_on(runtime, async {});
}

pub fn shutdown_with_tasks_in_every_state() {
    let runtime = configured(Config { max_stacks: 2, ..Config::new() });
    let drops = Count::new();
    let held = Count::new();
    let started = Count::new();
    let stop = Event::new();
    let (queued, blocked, finished, suspended, preempted, waiting, sleeping) =
        run_on(runtime, async {
            let finished = {
                let output = drops.on_drop();
                spawn(async move { output })
            };
            let blocked = {
                let dropped = drops.on_drop();
                spawn(async move {
                    let _dropped = dropped;
                    never().await
                })
            };
            let sleeping = {
                let dropped = drops.on_drop();
                spawn(async move {
                    let _dropped = dropped;
                    sleep(LONG).await
                })
            };
            let suspended = {
                let dropped = held.on_drop();
                spawn(stackful(async move {
                    let _dropped = dropped;
                    block_on(never())
                }))
            };
            let preempted = {
                let (dropped, runs) = (held.on_drop(), started.clone());
                let stop = stop.clone();
                spawn(stackful(async move {
                    let _dropped = dropped;
                    runs.add();
                    while !stop.is_set() {}
                }))
            };
            while (started.get(), runtime.stats().stacks) != (1, 2) {
                sleep(ms(1)).await;
            }
            let waiting = {
                let dropped = drops.on_drop();
                spawn(stackful(async move {
                    let _dropped = dropped;
                }))
            };
            // The hog is preempted while this task sleeps; then both stacks are held.
            sleep(ms(3)).await;
            assert!(!waiting.is_finished());
            let queued = {
                let dropped = drops.on_drop();
                spawn(async move {
                    let _dropped = dropped;
                    // This line never runs: the shutdown drops the future before its first poll.
                    let _ = try_spawn(async {});
                })
            };
            (queued, blocked, finished, suspended, preempted, waiting, sleeping)
        });
    assert_eq!(drops.get(), 0);
    let report = runtime.shutdown().unwrap();
    assert_eq!((report.dropped, report.stacks_with_frames), (4, 2));
    assert_eq!(drops.get(), 4, "queued, blocked, waiting for a stack, sleeping");
    assert_eq!(held.get(), 0, "a future was dropped while a stack holds its frames");
    for handle in [queued, waiting] {
        assert!(handle.is_finished());
        assert!(matches!(block_on(handle), Err(JoinError::Aborted)));
    }
    assert!(matches!(block_on(preempted), Err(JoinError::Abandoned)));
    assert!(matches!(block_on(blocked), Err(JoinError::Aborted)));
    assert!(matches!(block_on(sleeping), Err(JoinError::Aborted)));
    assert!(matches!(block_on(suspended), Err(JoinError::Abandoned)));
    drop(block_on(finished).unwrap());
    assert_eq!(drops.get(), 5);
}

pub fn no_such_core() {
    let error = hal_shim::start_core(1_000_000, || ());
    assert_eq!(error, Err(hal_shim::StartError::NoSuchCore));
}
