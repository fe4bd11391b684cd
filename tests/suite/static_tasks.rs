//! Tasks in static cells.

use alloc::rc::Rc;
use core::future::{Future, PollFn, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::task::{Context, Poll, Waker};

use hal_shim::{heap, interrupt};
use trapline::{
    Config, JoinError, LocalSpawner, SpawnErrorReason, Stackful, StaticTask, block_on, spawn,
    stackful, static_task, yield_now,
};

use crate::support::*;

/// A future that has a type name, as a static cell needs. It counts its polls and its drop, and is
/// ready at the third poll.
struct Named {
    polls: usize,
    _dropped: Option<OnDrop>,
}

impl Future for Named {
    type Output = usize;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<usize> {
        self.polls += 1;
        context.waker().wake_by_ref();
        if self.polls < 3 { Poll::Pending } else { Poll::Ready(self.polls) }
    }
}

fn named() -> Named {
    Named { polls: 0, _dropped: None }
}

pub fn spawned_again_and_again_without_an_allocation() {
    static CELL: StaticTask<Named> = StaticTask::new();
    let drops = Count::new();
    run(async {
        for round in 1..=100 {
            let future = Named { polls: 0, _dropped: Some(drops.on_drop()) };
            let before = heap::counts();
            let task = CELL.spawn(future).unwrap();
            assert_eq!(task.await.unwrap(), 3);
            let after = heap::counts();
            assert_eq!(after.allocations, before.allocations);
            assert_eq!(drops.get(), round);
        }
    });
}

pub fn spawned_twice_gives_the_future_back() {
    static CELL: StaticTask<Named> = StaticTask::new();
    let drops = Count::new();
    run(async {
        let task = CELL.spawn(named()).unwrap();
        let second = Named { polls: 2, _dropped: Some(drops.on_drop()) };
        let error = CELL.spawn(second).expect_err("it is in use");
        assert_eq!(error.reason, SpawnErrorReason::InUse);
        assert_eq!((error.future.polls, drops.get()), (2, 0));
        assert_eq!(task.await.unwrap(), 3);
        // The error holds the future unchanged, so the future can still be spawned and run.
        assert_eq!(CELL.spawn(error.future).unwrap().await.unwrap(), 3);
    });
    assert_eq!(drops.get(), 1);
}

pub fn in_use_until_the_last_reference_is_gone() {
    static_task!(static CELL: tells);
    async fn tells(waker: crate::tasks::WakerCell) {
        poll_fn(|context| {
            waker.send(context.waker().clone());
            Poll::Ready(())
        })
        .await;
    }
    run(async {
        let (sender, receiver) = crate::tasks::waker_channel();
        let task = CELL.spawn(tells(sender.clone())).unwrap();
        turns(2).await;
        assert!(task.is_finished());
        let in_use = |why| {
            let again = CELL.spawn(tells(sender.clone()));
            assert_eq!(again.expect_err(why).reason, SpawnErrorReason::InUse);
        };
        in_use("the handle is alive");
        task.await.unwrap();
        in_use("the waker is alive");
        let waker = receiver.take();
        let clone = waker.clone();
        waker.wake();
        in_use("the waker's clone is alive");
        drop(clone);
        CELL.spawn(tells(sender.clone())).unwrap().await.unwrap();
        drop(receiver.take());
    });
}

pub fn last_waker_dropped_in_an_interrupt_gives_the_cell_back() {
    static_task!(static CELL: holds);
    static HELD: spin::Mutex<Option<Waker>> = spin::Mutex::new(None);
    async fn holds() {
        poll_fn(|context| {
            *HELD.lock() = Some(context.waker().clone());
            Poll::Ready(())
        })
        .await;
    }
    interrupt::on_soft(|| drop(HELD.lock().take()));
    run(async {
        CELL.spawn(holds()).unwrap().await.unwrap();
        assert!(CELL.spawn(holds()).is_err());
        interrupt::raise();
        assert!(HELD.lock().is_none(), "the interrupt did not come");
        CELL.spawn(holds()).unwrap().await.unwrap();
        drop(HELD.lock().take());
    });
}

pub fn spawned_in_an_interrupt() {
    static_task!(static CELL: counts);
    static COUNTED: AtomicUsize = AtomicUsize::new(0);
    async fn counts() {
        COUNTED.fetch_add(1, SeqCst);
    }
    COUNTED.store(0, SeqCst);
    interrupt::on_soft(|| {
        let spawned = CELL.spawn(counts());
        assert!(CELL.spawn(counts()).is_err());
        drop(spawned.unwrap());
    });
    run(async {
        for round in 1..=10 {
            let before = heap::counts();
            interrupt::raise();
            turns(2).await;
            assert_eq!(COUNTED.load(SeqCst), round);
            assert_eq!(heap::counts().allocations, before.allocations);
        }
    });
}

async fn add(one: u8, two: &'static str, three: alloc::boxed::Box<u64>) -> u64 {
    let sum = u64::from(one) + two.len() as u64;
    yield_now().await;
    sum + *three
}

static_task!(
    /// A static may have documentation.
    static ADD: add
);

pub fn an_async_function_with_arguments() {
    run(async {
        let task = ADD.spawn(add(1, "two", alloc::boxed::Box::new(3))).unwrap();
        assert_eq!(task.name(), Some("add"));
        assert_eq!(task.await.unwrap(), 7);
    });
}

pub fn a_smaller_future_fits() {
    let drops = Count::new();
    run(async {
        let output = drops.on_drop();
        let task = ADD.spawn(async move { output }).unwrap();
        let output = task.await.unwrap();
        assert_eq!(drops.get(), 0);
        drop(output);
    });
    assert_eq!(drops.get(), 1);
}

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(u8);

pub fn alignment_is_kept() {
    static_task!(static CELL: aligned);
    async fn aligned(line: Line) -> Line {
        yield_now().await;
        assert_eq!((&raw const line).addr() % 64, 0);
        line
    }
    run(async { assert_eq!(CELL.spawn(aligned(Line(5))).unwrap().await.unwrap().0, 5) });
}

pub fn after_a_shutdown_the_future_comes_back() {
    static CELL: StaticTask<Named> = StaticTask::new();
    let runtime = runtime();
    runtime.shutdown().unwrap();
    let drops = Count::new();
    let future = Named { polls: 1, _dropped: Some(drops.on_drop()) };
    let error = CELL.spawn_on(runtime, future).expect_err("shut down");
    assert_eq!(error.reason, SpawnErrorReason::ShutDown);
    assert_eq!((error.future.polls, drops.get()), (1, 0));
    let error = CELL.spawn(error.future).expect_err("spawned outside of a runtime");
    assert_eq!(error.reason, SpawnErrorReason::NoRuntime);
    // The cell is free, so another runtime can take it.
    let task = CELL.spawn_on(crate::support::runtime(), error.future).unwrap();
    drop(task);
    assert_eq!(drops.get(), 0);
}

pub fn a_shutdown_gives_the_cell_back() {
    static_task!(static CELL: waits);
    async fn waits(dropped: OnDrop) {
        never().await;
        drop(dropped);
    }
    let drops = Count::new();
    let (first, second) = (runtime(), runtime());
    let handle = CELL.spawn_on(first, waits(drops.on_drop())).unwrap();
    run_on(first, turns(2));
    assert_eq!(first.shutdown().unwrap().dropped, 1);
    assert_eq!(drops.get(), 1);
    assert!(matches!(block_on(handle), Err(JoinError::Aborted)));
    // No core has entered this runtime yet.
    let handle = CELL.spawn_on(second, waits(drops.on_drop())).unwrap();
    assert_eq!(second.shutdown().unwrap().dropped, 1);
    drop(handle);
    assert_eq!(drops.get(), 2);
    assert!(CELL.spawn_on(runtime(), waits(drops.on_drop())).is_ok());
}

pub fn an_abandoned_task_keeps_its_cell() {
    static CELL: StaticTask<Stackful<PollFn<Blocks>>> = StaticTask::new();
    type Blocks = fn(&mut Context<'_>) -> Poll<()>;
    static BEGAN: AtomicBool = AtomicBool::new(false);
    fn blocks(_: &mut Context<'_>) -> Poll<()> {
        BEGAN.store(true, SeqCst);
        block_on(never());
        Poll::Ready(())
    }
    let runtime = runtime();
    let spawn = || CELL.spawn_on(runtime, stackful(poll_fn(blocks as Blocks)));
    let handle = spawn().unwrap();
    run_on(runtime, async {
        while !BEGAN.load(SeqCst) {
            yield_now().await;
        }
    });
    assert_eq!(runtime.shutdown().unwrap().stacks_with_frames, 1);
    assert!(matches!(block_on(handle), Err(JoinError::Abandoned)));
    // The frames on the task's stack may point into the cell.
    assert_eq!(spawn().expect_err("abandoned").reason, SpawnErrorReason::InUse);
}

pub fn stackful_in_a_cell_is_one_task() {
    static CELL: StaticTask<Stackful<Named>> = StaticTask::new();
    run_on(configured(Config { task_memory: 0, ..Config::new() }), async {
        // One stack exists now, and the runtime keeps no memory from which a child could be made.
        spawn(stackful(async {})).await.unwrap();
        let task = CELL.spawn(stackful(named())).unwrap();
        let before = heap::counts();
        let id = task.id();
        assert_eq!(task.await.unwrap(), 3);
        assert_eq!(heap::counts().allocations, before.allocations, "a child was allocated");
        let task = CELL.spawn(stackful(named())).unwrap();
        assert_eq!(task.id(), id);
        assert_eq!(task.await.unwrap(), 3);
    });
}

pub fn local_in_a_cell() {
    static_task!(static CELL: local);
    async fn local(shared: Rc<core::cell::Cell<u32>>) -> Rc<core::cell::Cell<u32>> {
        yield_now().await;
        shared.set(shared.get() + 1);
        shared
    }
    run(async {
        let spawner = LocalSpawner::current().unwrap();
        let shared = Rc::new(core::cell::Cell::new(1));
        for _ in 0..2 {
            let task = CELL.spawn_local(spawner, local(shared.clone())).unwrap();
            assert!(CELL.spawn_local(spawner, local(shared.clone())).is_err());
            task.await.unwrap();
        }
        assert_eq!((shared.get(), Rc::strong_count(&shared)), (3, 1));
    });
}

pub fn from_another_core() {
    static_task!(static CELL: count);
    static COUNTED: AtomicUsize = AtomicUsize::new(0);
    static RUNTIME: trapline::Runtime = trapline::Runtime::new();
    async fn count() {
        COUNTED.fetch_add(1, SeqCst);
    }
    if hal_shim::cores() < 2 {
        return;
    }
    COUNTED.store(0, SeqCst);
    const ROUNDS: usize = 100;
    hal_shim::start_core(1, || {
        for _ in 0..ROUNDS {
            // The runtime may still hold a reference to the previous task when its handle is ready.
            let task = loop {
                match CELL.spawn_on(&RUNTIME, count()) {
                    Ok(task) => break task,
                    Err(error) => assert_eq!(error.reason, SpawnErrorReason::InUse),
                }
            };
            block_on(task).unwrap();
        }
    })
    .unwrap();
    run_on(&RUNTIME, async {
        while COUNTED.load(SeqCst) < ROUNDS {
            trapline::time::sleep(ms(1)).await;
        }
    });
}
