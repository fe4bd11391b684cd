//! The helpers that the models are made of.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use loom::thread::JoinHandle;
use trapline::platform::InInterrupt;
use trapline::{Config, Runtime};

use crate::platform;

std::thread_local! {
    /// The closures that free the values that this run of the model keeps.
    static KEPT: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// Keeps a value until the run of the model is over. For the code of the model, that is for ever.
pub(crate) fn keep<T: 'static>(thing: T) -> &'static T {
    let thing = Box::into_raw(Box::new(thing));
    KEPT.with(|kept| {
        kept.borrow_mut().push(Box::new(move || {
            // SAFETY: the pointer comes from a box. `check` calls this once, when the model has
            // joined its threads and returned.
            drop(unsafe { Box::from_raw(thing) });
        }));
    });
    // SAFETY: the value is alive until the run of the model is over.
    unsafe { &*thing }
}

/// Checks all runs of a model. Loom finds tasks that the model leaks or frees twice.
pub(crate) fn model(in_interrupt: InInterrupt, body: impl Fn() + Send + Sync + 'static) {
    said(|| check(None, in_interrupt, Arc::new(body)));
}

/// Checks only those runs of a model in which at most `bound` times a thread is preempted, that is,
/// has to wait for another thread at a place where it could go on.
pub(crate) fn bounded(
    bound: usize,
    in_interrupt: InInterrupt,
    body: impl Fn() + Send + Sync + 'static,
) {
    said(|| check(Some(bound), in_interrupt, Arc::new(body)));
}

/// Checks a model with `N` interrupts: once for each combination of steps before which they can
/// come.
pub(crate) fn interrupted<const N: usize>(
    bound: Option<usize>,
    in_interrupt: InInterrupt,
    body: impl Fn() + Send + Sync + 'static,
) {
    let body: Arc<Body> = Arc::new(body);
    said(|| {
        let mut runs = 0;
        each_step(N, &mut Vec::new(), &mut |steps| {
            platform::interrupts_come_after(steps);
            runs += check(bound, in_interrupt, body.clone());
        });
        runs
    });
}

/// Prints the number of runs that `check` returns, and their time.
fn said(check: impl FnOnce() -> usize) {
    let begin = Instant::now();
    let runs = check();
    println!("{runs} runs in {:.1} s", begin.elapsed().as_secs_f64());
}

/// Calls `check` with each combination of steps, one step for each interrupt. An interrupt that is
/// to come behind the model's last step does not come, which ends the search.
fn each_step(interrupts: usize, steps: &mut Vec<usize>, check: &mut dyn FnMut(&[usize])) {
    let number = steps.len();
    if number == interrupts {
        return check(steps);
    }
    let mut step = 0;
    loop {
        steps.push(step);
        each_step(interrupts, steps, check);
        steps.pop();
        if !platform::take_came(number) {
            return;
        }
        step += 1;
    }
}

/// Returns by how much the bounds of the models are to be raised, from the variable `LOOM_DEEPER`.
pub(crate) fn deeper() -> usize {
    std::env::var("LOOM_DEEPER").ok().and_then(|value| value.parse().ok()).unwrap_or(0)
}

type Body = dyn Fn() + Send + Sync;

/// Checks one model, and returns how many runs there were.
fn check(bound: Option<usize>, in_interrupt: InInterrupt, body: Arc<Body>) -> usize {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound.map(|bound| bound + deeper());
    // The number of steps that a run may have.
    builder.max_branches = 3_000;
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = runs.clone();
    builder.check(move || {
        counter.fetch_add(1, Relaxed);
        platform::reset(in_interrupt);
        body();
        platform::end();
        for free in KEPT.take() {
            free();
        }
    });
    runs.load(Relaxed)
}

/// Makes a runtime for this run of the model.
pub(crate) fn runtime() -> &'static Runtime {
    keep(Runtime::new())
}

/// Makes a runtime in which no slice ends, so that an alarm comes only for timers and pending
/// preemptions.
pub(crate) fn runtime_without_slices() -> &'static Runtime {
    keep(Runtime::with_config(Config { slice: Duration::from_secs(1 << 20), ..Config::new() }))
}

/// Makes a runtime whose stackful tasks take turns on one stack.
pub(crate) fn runtime_with_one_stack() -> &'static Runtime {
    keep(Runtime::with_config(Config { max_stacks: 1, ..Config::new() }))
}

/// Threads that one part of a model starts and another one joins.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Mutex<Vec<JoinHandle<()>>>>);

impl Threads {
    pub(crate) fn start(&self, body: impl FnOnce() + 'static) {
        let thread = loom::thread::spawn(body);
        self.0.lock().unwrap().push(thread);
    }

    pub(crate) fn join(&self) {
        let threads = std::mem::take(&mut *self.0.lock().unwrap());
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

/// Counts how many payloads were made and how many were dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drops(Arc<[AtomicUsize; 2]>);

/// A value that must be dropped exactly once.
#[derive(Debug)]
pub(crate) struct Payload(Drops);

impl Drops {
    pub(crate) fn payload(&self) -> Payload {
        self.0[0].fetch_add(1, Relaxed);
        Payload(self.clone())
    }

    pub(crate) fn made(&self) -> usize {
        self.0[0].load(Relaxed)
    }

    pub(crate) fn dropped(&self) -> usize {
        self.0[1].load(Relaxed)
    }

    #[track_caller]
    pub(crate) fn assert_all_dropped(&self) {
        assert_eq!(self.made(), self.dropped(), "a payload was leaked or dropped twice");
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.0[1].fetch_add(1, Relaxed);
    }
}

/// Wakes a task when another task of the same core has done something. Loom does not check its
/// accesses, so it must be used on one core only.
#[derive(Clone, Default)]
pub(crate) struct Signal(Arc<Mutex<(usize, Option<Waker>)>>);

impl Signal {
    /// Increments the count and wakes the task that waits.
    pub(crate) fn fire(&self) {
        let waker = {
            let (fired, waker) = &mut *self.0.lock().unwrap();
            *fired += 1;
            waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until the signal has been fired `times` times.
    pub(crate) fn wait(&self, times: usize) -> impl Future<Output = ()> + 'static {
        let signal = self.clone();
        poll_fn(move |context| {
            let waker = context.waker().clone();
            let (done, old) = {
                let (fired, place) = &mut *signal.0.lock().unwrap();
                let done = *fired >= times;
                (done, if done { Some(waker) } else { place.replace(waker) })
            };
            drop(old);
            if done { Poll::Ready(()) } else { Poll::Pending }
        })
    }
}

/// A value that fires a signal when it is dropped.
pub(crate) struct FireOnDrop(pub(crate) Signal);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

/// A waker that only counts its wakes.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicUsize);

impl Counter {
    pub(crate) fn wakes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Polls a future once.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    let future = Pin::new(future);
    future.poll(&mut Context::from_waker(waker))
}
