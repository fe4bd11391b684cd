//! What the models are made of.

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
    /// What frees the things that this run of the model keeps.
    static KEPT: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

/// Keeps a thing for as long as a run of the model lasts, which is for ever as far as it can tell.
pub(crate) fn keep<T: 'static>(thing: T) -> &'static T {
    let thing = Box::into_raw(Box::new(thing));
    KEPT.with(|kept| {
        kept.borrow_mut().push(Box::new(move || {
            // SAFETY: `run` calls this once, when the model has joined its threads and returned; it
            // came from a box.
            drop(unsafe { Box::from_raw(thing) });
        }));
    });
    // SAFETY: alive until then.
    unsafe { &*thing }
}

/// Checks a model in full. Tasks that it leaks or frees twice are found by loom.
pub(crate) fn model(in_interrupt: InInterrupt, body: impl Fn() + Send + Sync + 'static) {
    said(|| check(None, in_interrupt, Arc::new(body)));
}

/// Checks a model in the runs in which a thread has to let another go first at most `bound` times
/// where it could have gone on.
pub(crate) fn bounded(
    bound: usize,
    in_interrupt: InInterrupt,
    body: impl Fn() + Send + Sync + 'static,
) {
    said(|| check(Some(bound), in_interrupt, Arc::new(body)));
}

/// Checks a model with `N` interrupts, once for each step (or pair of steps, and so on) before
/// which they can come.
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

/// Says how many runs there were.
fn said(check: impl FnOnce() -> usize) {
    let begin = Instant::now();
    let runs = check();
    println!("{runs} runs in {:.1} s", begin.elapsed().as_secs_f64());
}

/// Calls `check` with each combination of as many steps as there are interrupts. Behind the last step
/// of a model's, none comes any more.
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

/// How much further than usually the models that are not checked in full go.
pub(crate) fn deeper() -> usize {
    std::env::var("LOOM_DEEPER").ok().and_then(|value| value.parse().ok()).unwrap_or(0)
}

type Body = dyn Fn() + Send + Sync;

/// Returns how many runs there were.
fn check(bound: Option<usize>, in_interrupt: InInterrupt, body: Arc<Body>) -> usize {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = bound.map(|bound| bound + deeper());
    // As many steps as a run has.
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

/// A runtime for this run of the model.
pub(crate) fn runtime() -> &'static Runtime {
    keep(Runtime::new())
}

/// A runtime in which no slice ends, so that an alarm comes for timers and debts alone.
pub(crate) fn runtime_without_slices() -> &'static Runtime {
    keep(Runtime::with_config(Config { slice: Duration::from_secs(1 << 20), ..Config::new() }))
}

/// A runtime whose stackful tasks have to take turns on one stack.
pub(crate) fn runtime_with_one_stack() -> &'static Runtime {
    keep(Runtime::with_config(Config { max_stacks: 1, ..Config::new() }))
}

/// Threads that are started in one place and joined in another.
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

/// Counts how many of its payloads were made and dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drops(Arc<[AtomicUsize; 2]>);

/// Something that must be dropped exactly once.
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
        assert_eq!(self.made(), self.dropped(), "payloads made and payloads dropped");
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.0[1].fetch_add(1, Relaxed);
    }
}

/// Tells one task of a core what another one did. Loom does not see it: use it on one core only.
#[derive(Clone, Default)]
pub(crate) struct Signal(Arc<Mutex<(usize, Option<Waker>)>>);

impl Signal {
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

    /// Waits until it has been fired so often.
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

/// Fires when it is dropped.
pub(crate) struct FireOnDrop(pub(crate) Signal);

impl Drop for FireOnDrop {
    fn drop(&mut self) {
        self.0.fire();
    }
}

/// A waker that only counts.
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

/// Polls once.
pub(crate) fn poll_once<F: Future + Unpin>(future: &mut F, waker: &Waker) -> Poll<F::Output> {
    let future = Pin::new(future);
    future.poll(&mut Context::from_waker(waker))
}
