//! An allocator that uses wakers while it holds its lock, as README.md and the design allow.
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

/// What the next call of the allocator does under its lock.
static LAST_WAKER: Mutex<Option<Waker>> = Mutex::new(None);
static ARMED: AtomicBool = AtomicBool::new(false);
thread_local! {
    static LOCKED: Cell<bool> = const { Cell::new(false) };
}
/// How often it was called by code that already held the lock: with a real lock, a deadlock.
static NESTED: AtomicUsize = AtomicUsize::new(0);

struct Locking;

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

// SAFETY: passed on to the system's.
unsafe impl GlobalAlloc for Locking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        locked(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        locked(|| unsafe { System.dealloc(block, layout) })
    }
}

#[global_allocator]
static HEAP: NoPreempt<Locking> = NoPreempt(Locking);

/// One test, since there is one waker and one count.
#[test]
fn the_last_waker_of_a_task_may_go_in_the_allocator() {
    // With and without room for what the runtime keeps of finished tasks; small tasks and large ones.
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
        // SAFETY: stackful tasks here do nothing.
        unsafe { hal_shim::isolated(|| body().unwrap()) };
    }
}

/// Leaves its waker, and waits for ever.
fn waits() -> impl Future<Output = ()> + Send + 'static {
    poll_fn(|context| {
        *LAST_WAKER.lock().unwrap() = Some(context.waker().clone());
        Poll::Pending
    })
}

/// Ends a task of which one waker is left, which goes in the next call of the allocator.
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
