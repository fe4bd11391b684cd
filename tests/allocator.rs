//! An allocator that uses wakers while it holds its lock, which README.md and the design allow.
#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::poll_fn;
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Poll, Waker};

use trapline::preempt::NoPreempt;
use trapline::{Config, Runtime, spawn, stackful, yield_now};

/// The waker that the next call of the allocator wakes and drops under its lock, if `ARMED` is set.
static LAST_WAKER: Mutex<Option<Waker>> = Mutex::new(None);
static ARMED: AtomicBool = AtomicBool::new(false);
// Whether this thread's code is in the allocator.
thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}
/// How many times the allocator was called by code that already held its lock. With a real lock,
/// that is a deadlock.
static NESTED: AtomicUsize = AtomicUsize::new(0);

/// An allocator that counts nested calls.
struct Locking;

/// Calls `f` under the allocator's lock; before that, wakes and drops the waker if `ARMED` is set.
fn locked<R>(f: impl FnOnce() -> R) -> R {
    let nested = LOCKED.replace(true);
    NESTED.fetch_add(usize::from(nested), SeqCst);
    if !nested && ARMED.swap(false, SeqCst) {
        let waker = LAST_WAKER.lock().unwrap().take();
        waker.as_ref().inspect(|waker| waker.wake_by_ref());
        drop(waker);
    }
    let result = f();
    LOCKED.set(nested);
    result
}

// SAFETY: the system's allocator upholds the contract, and both functions only forward their
// arguments.
unsafe impl GlobalAlloc for Locking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`, which is that of the system's.
        locked(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, which is that of the system's.
        locked(|| unsafe { System.dealloc(block, layout) })
    }
}

#[global_allocator]
static HEAP: NoPreempt<Locking> = NoPreempt(Locking);

/// There is only one test in this file, since its tests would share one waker and one counter.
#[test]
fn the_last_waker_of_a_task_may_go_in_the_allocator() {
    // Tests with and without memory that the runtime keeps of finished tasks, and with small and
    // large tasks.
    for task_memory in [0, 1 << 20] {
        let config = Config { task_memory, ..Config::new() };
        let runtime = hal_shim::test::keep(Runtime::with_config(config));
        let body = || {
            runtime.run_until(async {
                last_waker_goes(waits()).await;
                let large = [1_u8; 2000];
                last_waker_goes(async move {
                    waits().await;
                    black_box(&large);
                })
                .await;
                last_waker_goes(stackful(waits())).await;
            })
        };
        // SAFETY: the stackful tasks of this test only leave a waker, and use no standard streams,
        // thread-locals or locks where they can be preempted.
        unsafe { hal_shim::isolated(|| body().unwrap()) };
    }
}

/// Puts its waker into `LAST_WAKER`, and waits for ever.
fn waits() -> impl Future<Output = ()> + Send + 'static {
    poll_fn(|context| {
        *LAST_WAKER.lock().unwrap() = Some(context.waker().clone());
        Poll::Pending
    })
}

/// Aborts a task of which only one waker is left. The next call of the allocator drops that waker.
async fn last_waker_goes(future: impl Future<Output = ()> + Send + 'static) {
    let task = spawn(future);
    yield_now().await;
    yield_now().await;
    task.abort();
    drop(task);
    yield_now().await;
    yield_now().await;
    let before = NESTED.load(SeqCst);
    ARMED.store(true, SeqCst);
    drop(black_box(Box::new(1)));
    assert!(LAST_WAKER.lock().unwrap().is_none(), "the allocator was not called");
    assert_eq!(NESTED.load(SeqCst), before, "the allocator was called under its own lock");
    yield_now().await;
}
