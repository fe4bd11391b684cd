//! The tasks of a schedule, and their operations on each other.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Mutex;
use trapline::{JoinHandle, Runtime, yield_now};

const CORES: usize = 3;
/// How many operations each core does, in addition to those of its tasks.
const ROUNDS: usize = 16;
const PLACES: usize = 3;

/// The state that the cores share.
struct World {
    runtimes: [&'static Runtime; CORES],
    /// Wakers for which no task waits. They may outlive their tasks.
    wakers: [Mutex<Option<Waker>>; PLACES],
    handles: [Mutex<Option<JoinHandle<Payload>>>; PLACES],
    futures: Balance,
    outputs: Balance,
}

/// Counts how many payloads were made and how many were dropped. Shuttle does not see these
/// accesses, and they order nothing.
#[derive(Clone, Default)]
struct Balance(Arc<[AtomicUsize; 2]>);

impl Balance {
    fn payload(&self) -> Payload {
        self.0[0].fetch_add(1, Relaxed);
        Payload(self.clone())
    }

    fn check(&self, of: &str) {
        assert_eq!(
            self.0[0].load(Relaxed),
            self.0[1].load(Relaxed),
            "a payload of the {of} was leaked or dropped twice"
        );
    }
}

/// A value that must be dropped once.
struct Payload(Balance);

impl Drop for Payload {
    fn drop(&mut self) {
        self.0.0[1].fetch_add(1, Relaxed);
    }
}

/// An event for which one task waits. It happens when its [`Fires`] is dropped.
struct Event(Arc<Mutex<(bool, Option<Waker>)>>);

/// The other half of an [`Event`].
struct Fires(Arc<Mutex<(bool, Option<Waker>)>>);

fn event() -> (Event, Fires) {
    let shared = Arc::default();
    (Event(Arc::clone(&shared)), Fires(shared))
}

impl Event {
    async fn wait(self) {
        poll_fn(|context| {
            let waker = context.waker().clone();
            let mut shared = self.0.lock().unwrap();
            let old = shared.1.replace(waker);
            let happened = shared.0;
            drop(shared);
            drop(old);
            if happened { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Fires {
    fn drop(&mut self) {
        let mut shared = self.0.lock().unwrap();
        shared.0 = true;
        let waker = shared.1.take();
        drop(shared);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Returns a random number below `n`.
fn below(n: usize) -> usize {
    thread_rng().gen_range(0..n)
}

/// Spawns a task on a random core.
fn spawn(world: &Arc<World>, depth: usize, fires: Option<Fires>) -> JoinHandle<Payload> {
    let part = world.futures.payload();
    let future = task(Arc::clone(world), depth, fires, part);
    world.runtimes[below(CORES)].spawn(future)
}

/// Returns a task. It waits only for events that happen in any case, whatever becomes of other
/// tasks, so a task that waits for ever has lost a wake.
fn task(
    world: Arc<World>,
    depth: usize,
    fires: Option<Fires>,
    part: Payload,
) -> Pin<Box<dyn Future<Output = Payload> + Send>> {
    Box::pin(async move {
        let _parts = (part, fires);
        match below(if depth == 0 { 3 } else { 5 }) {
            0 => {}
            1 => {
                let waker = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
                let before = world.wakers[below(PLACES)].lock().unwrap().replace(waker);
                drop(before);
                yield_now().await;
            }
            2 => {
                yield_now().await;
                yield_now().await;
            }
            3 => {
                let (event, fires) = event();
                let _detached = spawn(&world, depth - 1, Some(fires));
                event.wait().await;
            }
            _ => {
                let _aborted_or_output = spawn(&world, depth - 1, None).await;
            }
        }
        world.outputs.payload()
    })
}

/// Does random operations on all tasks.
async fn core(world: &Arc<World>) {
    for _ in 0..ROUNDS {
        let place = below(PLACES);
        match below(8) {
            0..3 => {
                let handle = spawn(world, 2, None);
                let before = world.handles[place].lock().unwrap().replace(handle);
                drop(before);
            }
            3 => {
                let taken = world.wakers[place].lock().unwrap().take();
                taken.into_iter().for_each(Waker::wake);
            }
            4 => {
                let cloned = world.wakers[place].lock().unwrap().clone();
                cloned.iter().for_each(Waker::wake_by_ref);
            }
            5 => {
                let taken = world.handles[place].lock().unwrap().take();
                if let Some(mut handle) = taken {
                    // The handle is polled by this task and then perhaps by another one.
                    let polled =
                        poll_fn(|context| Poll::Ready(Pin::new(&mut handle).poll(context)));
                    if polled.await.is_pending() {
                        let before = world.handles[place].lock().unwrap().replace(handle);
                        drop(before);
                    }
                }
            }
            6 => {
                let taken = world.handles[place].lock().unwrap().take();
                if let Some(handle) = taken {
                    if below(2) == 0 {
                        handle.abort();
                    }
                    let _aborted_or_output = handle.await;
                }
            }
            _ => yield_now().await,
        }
    }
}

/// Runs one schedule. Each core runs its tasks while it does random operations on all tasks. It
/// then shuts its runtime down, while the other cores go on.
pub(crate) fn meet() {
    let world = Arc::new(World {
        runtimes: std::array::from_fn(|_| &*Box::leak(Box::new(Runtime::new()))),
        wakers: Default::default(),
        handles: Default::default(),
        futures: Balance::default(),
        outputs: Balance::default(),
    });
    let cores: [_; CORES] = std::array::from_fn(|number| {
        let world = Arc::clone(&world);
        shuttle::thread::spawn(move || {
            world.runtimes[number].run_until(core(&world)).unwrap();
            world.runtimes[number].shutdown().unwrap();
        })
    });
    for core in cores {
        core.join().unwrap();
    }
    for (waker, handle) in world.wakers.iter().zip(&world.handles) {
        drop(waker.lock().unwrap().take());
        drop(handle.lock().unwrap().take());
    }
    world.futures.check("futures");
    world.outputs.check("outputs");
}
