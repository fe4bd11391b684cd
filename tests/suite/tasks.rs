//! Plain tasks: spawn, wake, join, abort, free.

use alloc::boxed::Box;
use alloc::vec;
use core::future::{Future, poll_fn};
use core::task::{Poll, Waker};

use hal_shim::{heap, interrupt};
use trapline::{Config, JoinError, TaskId, spawn, yield_now};

use crate::support::*;

pub fn spawned_task_is_polled_dropped_and_freed_once() {
    let runtime = runtime();
    let (polls, drops) = (Count::new(), Count::new());
    let future = Counted::new(async { 7 }, &polls, &drops);
    let before = heap::counts();
    let handle = runtime.spawn(future);
    assert_eq!(heap::counts().allocations, before.allocations + 1, "one allocation a task");
    assert_eq!(polls.get(), 0, "spawning polls nothing");
    assert_eq!(run_on(runtime, handle).unwrap(), 7);
    assert_eq!((polls.get(), drops.get()), (1, 1));
    runtime.shutdown().unwrap();
    let after = heap::counts();
    // The two frees are those of the task and of the box inside of `Counted`.
    assert_eq!(after.frees, before.frees + 2);
}

pub fn memory_of_finished_tasks_is_kept_for_new_ones() {
    if cfg!(address_sanitizer) {
        // The sanitizer must see the memory of each task being freed, so the runtime keeps none.
        return;
    }
    let task_memory = 4096;
    let runtime = configured(Config { task_memory, ..Config::new() });
    let before = heap::counts();
    let spawned = run_on(runtime, async {
        // Spawns futures of two sizes that are kept, and of one that is too large to be kept.
        for bytes in [[0_u8; 8].as_slice(), &[0; 200], &[0; 2000]] {
            let spawn_one = || match bytes.len() {
                8 => spawn(holding([0; 8])),
                200 => spawn(holding([0; 200])),
                _ => spawn(holding([0; 2000])),
            };
            spawn_one().await.unwrap();
            let before = heap::counts();
            for _ in 0..10 {
                spawn_one().await.unwrap();
            }
            let allocations = heap::counts().allocations - before.allocations;
            assert_eq!(allocations, if bytes.len() > 512 { 10 } else { 0 }, "{}", bytes.len());
        }
        // Finishes more tasks than `task_memory` can keep.
        for _ in 0..100 {
            drop(spawn(holding([0; 200])));
        }
        turns(2).await;
        let kept = heap::counts().bytes_live - before.bytes_live;
        assert!((3800..=task_memory).contains(&kept), "{kept} bytes are kept");
        // The memory of a task with a larger alignment goes back to the allocator.
        spawn(Aligned(async { 1 })).await.unwrap()
    });
    assert_eq!(spawned, 1);
    runtime.shutdown().unwrap();
    assert_eq!(heap::counts().bytes_live, before.bytes_live);
}

/// A future that holds `bytes` across an await.
async fn holding<const N: usize>(bytes: [u8; N]) {
    core::hint::black_box(&bytes);
    yield_now().await;
    core::hint::black_box(&bytes);
}

#[repr(align(64))]
struct Aligned<F>(F);

impl<F: Future> Future for Aligned<F> {
    type Output = F::Output;

    fn poll(
        self: core::pin::Pin<&mut Self>,
        context: &mut core::task::Context<'_>,
    ) -> Poll<F::Output> {
        assert!(
            (&raw const *self).addr().is_multiple_of(64),
            "the future lies at an unaligned address"
        );
        // SAFETY: the field is pinned because `self` is, and it is the only one.
        unsafe { self.map_unchecked_mut(|aligned| &mut aligned.0) }.poll(context)
    }
}

pub fn tasks_run_in_the_order_of_their_wakes() {
    let trace = Trace::new();
    run(async {
        let mut handles = vec![];
        for names in [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]] {
            let trace = trace.clone();
            handles.push(spawn(async move {
                for name in names {
                    trace.note(name);
                    yield_now().await;
                }
            }));
        }
        trace.note("root");
        for handle in handles {
            handle.await.unwrap();
        }
    });
    assert_eq!(
        trace.events(),
        [
            "root", // the root has spawned the tasks and goes on
            "a1",   // the tasks run in the order in which they were spawned
            "b1",   // a has yielded
            "c1",   // b has yielded
            "a2",   // c has yielded; the yields queued the tasks in the same order
            "b2",   // a has yielded again
            "c2",   // b has yielded again
        ]
    );
}

pub fn wake_during_the_poll_polls_again() {
    let (polls, drops) = (Count::new(), Count::new());
    run(async {
        let mut first = true;
        let future = poll_fn(move |context| {
            if core::mem::take(&mut first) {
                context.waker().wake_by_ref();
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        });
        spawn(Counted::new(future, &polls, &drops)).await.unwrap();
    });
    assert_eq!((polls.get(), drops.get()), (2, 1));
}

pub fn many_wakes_make_one_poll() {
    let (polls, drops) = (Count::new(), Count::new());
    run(async {
        let (sender, receiver) = waker_channel();
        let handle = spawn(Counted::new(
            poll_fn(move |context| {
                sender.send(context.waker().clone());
                Poll::<()>::Pending
            }),
            &polls,
            &drops,
        ));
        turns(3).await;
        assert_eq!(polls.get(), 1);
        let waker = receiver.take();
        // The first wake makes the task READY and queues it; the others find it READY.
        for _ in 0..100 {
            waker.wake_by_ref();
        }
        turns(3).await;
        assert_eq!(polls.get(), 2);
        handle.abort();
        assert!(handle.await.is_err());
    });
    assert_eq!((polls.get(), drops.get()), (2, 1));
}

pub fn wake_after_completion_does_nothing() {
    let (polls, drops) = (Count::new(), Count::new());
    run(async {
        let (sender, receiver) = waker_channel();
        let future = poll_fn(move |context| {
            sender.send(context.waker().clone());
            Poll::Ready(())
        });
        let handle = spawn(Counted::new(future, &polls, &drops));
        handle.await.unwrap();
        let waker = receiver.take();
        waker.wake_by_ref();
        let clone = waker.clone();
        clone.wake();
        turns(3).await;
        waker.wake();
        turns(3).await;
    });
    assert_eq!((polls.get(), drops.get()), (1, 1));
}

/// A place through which a task hands its waker to the test.
#[derive(Clone, Default)]
pub struct WakerCell(alloc::sync::Arc<spin::Mutex<Option<Waker>>>);

pub fn waker_channel() -> (WakerCell, WakerCell) {
    let cell = WakerCell::default();
    (cell.clone(), cell)
}

impl WakerCell {
    pub fn send(&self, waker: Waker) {
        let _guard = trapline::preempt::PreemptGuard::new();
        *self.0.lock() = Some(waker);
    }

    pub fn take(&self) -> Waker {
        let _guard = trapline::preempt::PreemptGuard::new();
        self.0.lock().take().expect("no waker was sent")
    }
}

pub fn waker_may_outlive_task_and_runtime() {
    let runtime = runtime();
    let before = heap::counts();
    let (sender, receiver) = waker_channel();
    run_on(runtime, async {
        let handle = spawn(poll_fn(move |context| {
            sender.send(context.waker().clone());
            Poll::<()>::Pending
        }));
        turns(2).await;
        drop(handle);
    });
    let report = runtime.shutdown().unwrap();
    assert_eq!((report.dropped, report.stacks_with_frames), (1, 0));
    let waker = receiver.take();
    drop(receiver);
    let live = heap::counts().bytes_live;
    waker.wake_by_ref();
    let clone = waker.clone();
    drop(waker);
    clone.wake();
    assert_eq!(heap::counts().bytes_live, live, "a waker has freed memory");
    runtime.shutdown().unwrap();
    assert_eq!(
        heap::counts().bytes_live,
        before.bytes_live,
        "the runtime did not free the task that the waker handed to it"
    );
}

static HELD: spin::Mutex<Option<Waker>> = spin::Mutex::new(None);
static FREES: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);

pub fn last_waker_dropped_in_an_interrupt_frees_nothing_there() {
    use core::sync::atomic::Ordering::SeqCst;
    interrupt::on_soft(|| {
        let before = heap::counts().frees;
        drop(HELD.lock().take());
        FREES.store(heap::counts().frees - before, SeqCst);
    });
    // The runtime keeps no memory, so the allocator counts all that the loop frees.
    let runtime = configured(Config { task_memory: 0, ..Config::new() });
    let live = run_on(runtime, async {
        spawn(poll_fn(|context| {
            *HELD.lock() = Some(context.waker().clone());
            Poll::Ready(())
        }))
        .await
        .unwrap();
        let live = heap::counts().bytes_live;
        FREES.store(usize::MAX, SeqCst);
        interrupt::raise();
        assert_eq!(FREES.load(SeqCst), 0, "the interrupt freed something, or never came");
        turns(2).await;
        live
    });
    assert!(heap::counts().bytes_live < live, "the loop did not free the task");
}

pub fn join_gives_the_output() {
    run(async {
        // One task finishes before it is awaited, and one is awaited before it finishes.
        let early = spawn(async { Box::new(1) });
        turns(2).await;
        assert!(early.is_finished());
        let event = Event::new();
        let waits = event.clone();
        let late = spawn(async move {
            waits.wait().await;
            Box::new(2)
        });
        assert!(!late.is_finished());
        spawn(async move {
            turns(5).await;
            event.set();
        });
        assert_eq!(*late.await.unwrap() + *early.await.unwrap(), 3);
    });
}

pub fn output_of_a_detached_task_is_dropped() {
    let drops = Count::new();
    run(async {
        let output = drops.on_drop();
        drop(spawn(async move {
            yield_now().await;
            output
        }));
        turns(1).await;
        assert_eq!(drops.get(), 0, "the detached task did not go on");
        turns(3).await;
    });
    assert_eq!(drops.get(), 1);
}

pub fn output_nobody_took_is_dropped_with_the_handle() {
    let drops = Count::new();
    run(async {
        let output = drops.on_drop();
        let handle = spawn(async move { output });
        turns(2).await;
        assert!(handle.is_finished());
        assert_eq!(drops.get(), 0, "the output was dropped before the handle");
        drop(handle);
        assert_eq!(drops.get(), 1);
    });
}

pub fn abort_of_a_queued_task() {
    let (polls, drops) = (Count::new(), Count::new());
    run(async {
        let handle = spawn(Counted::new(never(), &polls, &drops));
        handle.abort();
        handle.abort();
        assert_eq!(drops.get(), 0, "the caller of abort dropped the future");
        assert!(matches!(handle.await, Err(JoinError::Aborted)));
    });
    assert_eq!((polls.get(), drops.get()), (0, 1));
}

pub fn abort_of_a_blocked_task() {
    let (polls, drops) = (Count::new(), Count::new());
    run(async {
        let handle = spawn(Counted::new(never(), &polls, &drops));
        turns(2).await;
        handle.abort();
        assert!(matches!(handle.await, Err(JoinError::Aborted)));
    });
    assert_eq!((polls.get(), drops.get()), (1, 1));
}

pub fn abort_of_itself() {
    let drops = Count::new();
    let polls = Count::new();
    run(async {
        let cell = alloc::sync::Arc::new(spin::Mutex::new(None::<trapline::JoinHandle<()>>));
        let own = cell.clone();
        let finished = Event::new();
        let tells = finished.clone();
        let dropped = drops.on_drop();
        let future = async move {
            let _dropped = dropped;
            if let Some(handle) = &*own.lock() {
                handle.abort();
            }
            tells.set();
            never().await
        };
        let handle = spawn(Counted::new(future, &polls, &Count::new()));
        *cell.lock() = Some(handle);
        finished.wait().await;
        turns(2).await;
        assert_eq!(drops.get(), 1);
        let handle = cell.lock().take().expect("the handle");
        assert!(matches!(handle.await, Err(JoinError::Aborted)));
    });
    assert_eq!(polls.get(), 1);
}

pub fn abort_of_a_finished_task() {
    run(async {
        let handle = spawn(async { 5 });
        turns(2).await;
        handle.abort();
        turns(2).await;
        assert_eq!(handle.await.unwrap(), 5, "the abort took the output away");
    });
}

pub fn join_handle_polled_by_one_task_after_another() {
    run(async {
        let event = Event::new();
        let waits = event.clone();
        let mut handle = spawn(async move {
            waits.wait().await;
            9
        });
        // This task leaves its waker in the handle first, then another task does.
        poll_fn(|context| {
            assert!(core::pin::Pin::new(&mut handle).poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        let second = spawn(handle);
        turns(2).await;
        event.set();
        assert_eq!(second.await.unwrap().unwrap(), 9);
    });
}

pub fn join_handle_polled_by_two_tasks_in_turn() {
    use alloc::sync::Arc;
    type Shared = Arc<spin::Mutex<Option<trapline::JoinHandle<u32>>>>;
    /// Polls the handle once for each event of `told`, counts the polls, and returns the output if
    /// a poll gives it.
    async fn poller(shared: Shared, told: [Arc<Event>; 3], polls: Count) -> Option<u32> {
        for event in told {
            event.wait().await;
            let output = poll_fn(|context| {
                polls.add();
                let mut handle = shared.lock();
                Poll::Ready(handle.as_mut().map(|h| core::pin::Pin::new(h).poll(context)))
            })
            .await;
            if let Some(Poll::Ready(output)) = output {
                *shared.lock() = None;
                return Some(output.unwrap());
            }
        }
        None
    }
    run(async {
        let finish = Event::new();
        let waits = finish.clone();
        let task = spawn(async move {
            waits.wait().await;
            9
        });
        let shared: Shared = Arc::new(spin::Mutex::new(Some(task)));
        let told: [[Arc<Event>; 3]; 2] =
            core::array::from_fn(|_| core::array::from_fn(|_| Event::new()));
        let polls = [Count::new(), Count::new()];
        let [first, second] =
            [0, 1].map(|i| spawn(poller(shared.clone(), told[i].clone(), polls[i].clone())));
        for round in 0..2 {
            for events in &told {
                events[round].set();
                turns(3).await;
            }
        }
        assert_eq!((polls[0].get(), polls[1].get()), (2, 2));
        finish.set();
        turns(4).await;
        // The first task to poll the handle takes the output; the second finds no handle.
        told[0][2].set();
        assert_eq!(first.await.unwrap(), Some(9));
        told[1][2].set();
        assert_eq!(second.await.unwrap(), None);
    });
    // A handle keeps only the latest waker: the earlier one is dropped, and neither wakes its task
    // nor keeps it alive.
    run(async {
        let mut task = spawn(async { yield_now().await });
        let polls = [Count::new(), Count::new()];
        let wakers = polls.clone().map(counting_waker);
        for waker in wakers.iter().chain(&wakers) {
            let mut context = core::task::Context::from_waker(waker);
            assert!(core::pin::Pin::new(&mut task).poll(&mut context).is_pending());
        }
        turns(4).await;
        assert!(task.is_finished());
        assert_eq!((polls[0].get(), polls[1].get()), (0, 1));
        task.await.unwrap();
    });
}

/// Returns a waker that counts its wakes.
fn counting_waker(count: Count) -> Waker {
    struct Counting(Count);
    impl alloc::task::Wake for Counting {
        fn wake(self: alloc::sync::Arc<Self>) {
            self.0.add();
        }
    }
    Waker::from(alloc::sync::Arc::new(Counting(count)))
}

pub fn a_task_that_wakes_itself_starves_nobody() {
    interrupt::on_soft(|| SOFT.set());
    static SOFT: Event = Event::constant();
    SOFT.clear();
    run(async {
        let stop = Event::new();
        let sees = stop.clone();
        let polls = Count::new();
        let counts = polls.clone();
        let busy = spawn(async move {
            while !sees.is_set() {
                counts.add();
                yield_now().await;
            }
        });
        let stopper = stop.clone();
        let waits = spawn(async move {
            SOFT.wait().await;
            stopper.set();
        });
        turns(10).await;
        let before = polls.get();
        // The wake goes through the inbox, while the queue never becomes empty.
        interrupt::raise();
        waits.await.unwrap();
        assert!(polls.get() - before <= 4, "the inbox waited for {} polls", polls.get() - before);
        busy.await.unwrap();
    });
}

pub fn current_names_the_task() {
    assert_eq!(trapline::current(), None);
    run(async {
        let mut handle = None::<trapline::JoinHandle<Option<TaskId>>>;
        let id =
            handle.insert(spawn(async { trapline::current().map(|current| current.id()) })).id();
        assert!(id.is_some());
        assert_eq!(handle.take().unwrap().await.unwrap(), id);
        assert!(!trapline::current().unwrap().is_stackful());
        let stackful = spawn(trapline::stackful(async { trapline::current().unwrap() }));
        let id = stackful.id().unwrap();
        let current = stackful.await.unwrap();
        assert!(current.is_stackful());
        assert_eq!(current.id(), id);
    });
    assert_eq!(trapline::current(), None);
}

pub fn run_until_leaves_the_others_where_they_are() {
    let runtime = runtime();
    let (polls, drops) = (Count::new(), Count::new());
    let event = Event::new();
    let waits = event.clone();
    let handle = runtime.spawn(Counted::new(async move { waits.wait().await }, &polls, &drops));
    run_on(runtime, turns(2));
    event.set();
    assert_eq!(polls.get(), 1, "the task was polled outside of the runtime");
    run_on(runtime, handle).unwrap();
    assert_eq!((polls.get(), drops.get()), (2, 1));
}

pub fn run_until_may_borrow() {
    let mut numbers = vec![3, 1, 2];
    let text = alloc::rc::Rc::new("not Send");
    let runtime = runtime();
    let length = run_on(runtime, async {
        yield_now().await;
        numbers.sort_unstable();
        text.len()
    });
    assert_eq!((numbers, length), (vec![1, 2, 3], 8));
}

pub fn wake_in_an_interrupt() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    let polls = Count::new();
    run(async {
        let counts = polls.clone();
        let handle = spawn(Counted::new(SOFT.wait(), &counts, &Count::new()));
        turns(2).await;
        interrupt::raise();
        handle.await.unwrap();
    });
    assert_eq!(polls.get(), 2);
}

pub fn a_task_spawned_after_an_interrupts_wake_runs() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    run(async {
        let first = spawn(async {
            SOFT.wait().await;
            // The task spawns, since the interrupt handler itself must not allocate.
            spawn(async { 11 }).await.unwrap()
        });
        turns(2).await;
        interrupt::raise();
        assert_eq!(first.await.unwrap(), 11);
    });
}

pub fn abort_before_the_runtime_is_entered() {
    let runtime = runtime();
    let (polls, drops) = (Count::new(), Count::new());
    let handle = runtime.spawn(Counted::new(never(), &polls, &drops));
    handle.abort();
    assert!(matches!(run_on(runtime, handle), Err(JoinError::Aborted)));
    assert_eq!((polls.get(), drops.get()), (0, 1));
}

pub fn a_yield_lets_those_go_first_that_an_interrupt_woke() {
    static SOFT: Event = Event::constant();
    SOFT.clear();
    interrupt::on_soft(|| SOFT.set());
    let woken = Count::new();
    run(async {
        let counts = woken.clone();
        let waits = spawn(async move {
            SOFT.wait().await;
            counts.add();
        });
        turns(3).await;
        interrupt::raise();
        assert_eq!(woken.get(), 0);
        turns(1).await;
        assert_eq!(woken.get(), 1, "the woken task was READY before this task yielded");
        waits.await.unwrap();
    });
}
