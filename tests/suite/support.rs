//! Helpers that all tests of the suite use.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::task::{Context, Poll};
use core::time::Duration;

use atomic_waker::AtomicWaker;
use trapline::preempt::PreemptGuard;
use trapline::{Config, Runtime};

/// Makes a runtime that only the calling test uses.
pub fn runtime() -> &'static Runtime {
    configured(Config::new())
}

/// Like [`runtime`], with this configuration.
pub fn configured(config: Config) -> &'static Runtime {
    hal_shim::test::keep(Runtime::with_config(config))
}

/// Runs `future` in a new runtime.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    run_on(runtime(), future)
}

/// Runs `future` in `runtime`, and panics if the runtime cannot be entered.
pub fn run_on<T>(runtime: &'static Runtime, future: impl Future<Output = T>) -> T {
    match runtime.run_until(future) {
        Ok(output) => output,
        Err(error) => panic!("{error}"),
    }
}

pub const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Returns whether the clock counts this core's instructions, so that nothing outside of the test
/// takes time. QEMU's machines with one core run in this mode.
pub fn time_is_counted() -> bool {
    cfg!(target_os = "none") && hal_shim::cores() == 1
}

/// A slice that does not end while a test runs.
pub const LONG: Duration = Duration::from_secs(3600);

/// A counter that tasks and interrupts share.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    pub fn new() -> Self {
        Self::default()
    }

    /// Increments the counter and returns the new value.
    pub fn add(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    pub fn raise_to(&self, n: usize) {
        self.0.fetch_max(n, SeqCst);
    }

    pub fn get(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// Spins until the counter is at least `n`.
    pub fn spin_until(&self, n: usize) {
        while self.get() < n {
            core::hint::spin_loop();
        }
    }

    /// Waits until the counter is at least `n`. Other tasks run meanwhile.
    pub async fn reaches(&self, n: usize) {
        while self.get() < n {
            trapline::time::sleep(Duration::from_micros(100)).await;
        }
    }

    /// Returns a value that increments the counter when it is dropped.
    pub fn on_drop(&self) -> OnDrop {
        OnDrop(self.clone())
    }
}

/// A value whose drop increments a counter.
pub struct OnDrop(Count);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.add();
    }
}

/// A list of events, in the order in which they were noted.
#[derive(Clone)]
pub struct Trace(Arc<spin::Mutex<Vec<&'static str>>>);

impl Trace {
    pub fn new() -> Self {
        Self(Arc::default())
    }

    pub fn note(&self, event: &'static str) {
        let _guard = PreemptGuard::new();
        self.0.lock().push(event);
    }

    pub fn events(&self) -> Vec<&'static str> {
        let _guard = PreemptGuard::new();
        self.0.lock().clone()
    }
}

/// A flag that is set once, with a waker for one waiting task. An interrupt may set it.
#[derive(Default)]
pub struct Event {
    set: AtomicBool,
    waker: AtomicWaker,
}

impl Event {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes an event for a `static`.
    pub const fn constant() -> Self {
        Self { set: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    pub fn set(&self) {
        self.set.store(true, SeqCst);
        self.waker.wake();
    }

    pub fn clear(&self) {
        self.set.store(false, SeqCst);
    }

    pub fn is_set(&self) -> bool {
        self.set.load(SeqCst)
    }

    pub fn wait(&self) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(|context| {
            self.waker.register(context.waker());
            if self.is_set() { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

/// A future that counts its polls and its drop.
pub struct Counted<F> {
    future: Pin<Box<F>>,
    polls: Count,
    _drops: OnDrop,
}

impl<F: Future> Counted<F> {
    pub fn new(future: F, polls: &Count, drops: &Count) -> Self {
        Self { future: Box::pin(future), polls: polls.clone(), _drops: drops.on_drop() }
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.add();
        self.future.as_mut().poll(context)
    }
}

/// Returns a future that is never ready.
pub fn never() -> impl Future<Output = ()> + Send {
    core::future::pending()
}

/// Yields `n` times: all other ready tasks are polled `n` times.
pub async fn turns(n: usize) {
    for _ in 0..n {
        trapline::yield_now().await;
    }
}
