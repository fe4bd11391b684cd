//! The shapes that measure the cost of tasks. They are the same for every runtime.
//!
//! A main task spawns tasks and waits, as a program does. The measurement begins and ends in it or
//! in its tasks. Tasks are `Send`, so shared state is atomic; but apart from wakes the tasks only
//! load and store it, which costs next to nothing.

use std::future::poll_fn;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use atomic_waker::AtomicWaker;

use crate::runtimes::{
    CrossCore, Join, Runtime, Static, async_executor::AsyncExecutor, async_task::AsyncTask,
    edge_executor::EdgeExecutor, embassy::Embassy, floor::FloorBoxed, futures::Futures,
    tokio::Tokio, trapline::Mixed, trapline::Stackful, trapline::Trapline,
    trapline::TraplineStatic,
};
use crate::{Cell, Sample, Shape, Span, cores};

/// The number of tasks that are blocked in `idle_bytes`.
const BLOCKED: usize = 10_000;

/// Adds the cells of all runtimes.
pub(crate) fn add_to(cells: &mut Vec<Cell>) {
    // This is the order of the rows, and of the implementations in each.
    boxed::<Trapline>(cells);
    boxed::<FloorBoxed>(cells);
    boxed::<AsyncTask>(cells);
    boxed::<AsyncExecutor>(cells);
    boxed::<Tokio>(cells);
    boxed::<EdgeExecutor>(cells);
    boxed::<Futures>(cells);
    places::<TraplineStatic>(cells);
    places::<Embassy>(cells);
    join::<Trapline>(cells);
    join::<AsyncTask>(cells);
    join::<AsyncExecutor>(cells);
    join::<Tokio>(cells);
    join::<EdgeExecutor>(cells);
    join::<Futures>(cells);
    all::<Trapline>(cells);
    memory::<TraplineStatic>(cells);
    all::<FloorBoxed>(cells);
    all::<Embassy>(cells);
    all::<AsyncTask>(cells);
    all::<AsyncExecutor>(cells);
    all::<Tokio>(cells);
    all::<EdgeExecutor>(cells);
    all::<Futures>(cells);
    if cores::other().is_some() {
        cross::<Trapline>(cells);
        cross::<Embassy>(cells);
        cross::<AsyncExecutor>(cells);
        cross::<Tokio>(cells);
        cross::<EdgeExecutor>(cells);
        cross::<Futures>(cells);
    }
    // Trapline's two kinds of tasks, alone and mixed. The first of these repeats its `hop`, since
    // cells that are compared are best measured shortly after each other.
    cells.push(cell::<Trapline>("turn_plain", None, hop::<Trapline>));
    cells.push(cell::<Stackful>("turn_stackful", None, hop::<Stackful>));
    cells.push(cell::<Mixed>("turn_mixed", None, hop::<Mixed>));
    for n in [1, 100] {
        cells.push(cell::<Stackful>("stackful_yield", Some(n), yields::<Stackful>));
    }
    cells.push(cell::<Stackful>("spawn_join_in_stackful", None, spawn_join_in_stackful));
    cells.push(cell::<Stackful>("stackful_spawn_join", None, spawn_join::<Stackful>));
}

fn cell<R: Runtime>(bench: &'static str, n: Option<usize>, shape: Shape) -> Cell {
    Cell { bench, n, implementation: R::NAME, shape }
}

/// Adds the rows of runtimes that allocate their tasks.
fn boxed<R: Runtime>(cells: &mut Vec<Cell>) {
    for n in [1, 100, 1_000, 100_000] {
        cells.push(cell::<R>("spawn", Some(n), spawn::<R>));
    }
}

/// Adds the rows of runtimes whose tasks can be static.
fn places<R: Static>(cells: &mut Vec<Cell>) {
    for n in [1, 100, 1_000, 100_000] {
        cells.push(cell::<R>("spawn_static", Some(n), spawn_static::<R>));
    }
}

/// Adds the rows of runtimes that have join handles.
fn join<R: Join>(cells: &mut Vec<Cell>) {
    cells.push(cell::<R>("spawn_join", None, spawn_join::<R>));
}

/// Adds the rows of all runtimes.
fn all<R: Runtime>(cells: &mut Vec<Cell>) {
    for n in [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000] {
        cells.push(cell::<R>("yield", Some(n), yields::<R>));
    }
    let rows: [(_, Shape); 4] = [
        ("hop", hop::<R>),
        ("hop_atomic_waker", hop_atomic_waker::<R>),
        ("redundant_wake", redundant_wake::<R>),
        ("waker_clone", waker_clone::<R>),
    ];
    cells.extend(rows.map(|(bench, shape)| cell::<R>(bench, None, shape)));
    memory::<R>(cells);
}

/// Adds the row that measures memory.
fn memory<R: Runtime>(cells: &mut Vec<Cell>) {
    cells.push(cell::<R>("idle_bytes", None, idle_bytes::<R>));
}

/// Adds the rows of runtimes that accept wakes from other cores.
fn cross<R: CrossCore>(cells: &mut Vec<Cell>) {
    cells.push(cell::<R>("cross_wake", None, cross_wake::<R>));
}

/// Leaks a value that tasks share.
fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Counts tasks down and wakes the task that waits for the last one.
struct Latch {
    left: AtomicUsize,
    waiting: OnceLock<Waker>,
}

impl Latch {
    /// Makes a latch at zero, which wakes the task that awaits this function.
    async fn mine() -> &'static Self {
        let waiting = poll_fn(|context| Poll::Ready(OnceLock::from(context.waker().clone()))).await;
        leaked(Self { left: AtomicUsize::new(0), waiting })
    }

    /// Sets the number of tasks that are still to count down.
    fn set(&self, n: usize) {
        self.left.store(n, Ordering::Relaxed);
    }

    /// Decrements the number and returns whether it is zero. A load and a store suffice, as all
    /// tasks are on one core. Tasks that may be preempted between the two call this [in one
    /// step](Runtime::in_one_step), so that no count is lost.
    fn count_down(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed) - 1;
        self.left.store(left, Ordering::Relaxed);
        if left == 0 {
            self.waiting.get().expect("the latch was made with a waker").wake_by_ref();
        }
        left == 0
    }

    /// Waits until the number is zero.
    async fn zero(&self) {
        poll_fn(|_| match self.left.load(Ordering::Relaxed) {
            0 => Poll::Ready(()),
            _ => Poll::Pending,
        })
        .await;
    }
}

/// Repeatedly spawns `n` tasks that do nothing and lets them run.
fn spawn<R: Runtime>(n: usize, operations: u64) -> Sample {
    R::run(move |runtime| async move {
        let latch = Latch::mine().await;
        rounds(n, operations, latch, || {
            for _ in 0..n {
                runtime.spawn(async { _ = latch.count_down() });
            }
        })
        .await
    })
}

/// The same in static places that are reused.
fn spawn_static<R: Static>(n: usize, operations: u64) -> Sample {
    R::run(move |runtime| async move {
        let latch = Latch::mine().await;
        in_places(runtime, n, operations, latch, || async { _ = latch.count_down() }).await
    })
}

async fn in_places<R: Static, F>(
    runtime: R,
    n: usize,
    operations: u64,
    latch: &'static Latch,
    make: impl Fn() -> F,
) -> Sample
where
    F: Future<Output = ()> + Send + 'static,
{
    let places: Box<[R::Place<F>]> = (0..n).map(|_| R::place()).collect();
    let places = Box::into_raw(places);
    // SAFETY: they are freed below, when every task is done.
    let borrowed: &'static [R::Place<F>] = unsafe { &*places };
    let sample = rounds(n, operations, latch, || {
        for place in borrowed {
            runtime.spawn_at(place, make());
        }
    })
    .await;
    // SAFETY: `rounds` has returned, so each task has counted down. No other task runs between that
    // and the task's end, as the runtime polls this task after it.
    drop(unsafe { Box::from_raw(places) });
    sample
}

/// Runs rounds of `n` tasks that `spawn` spawns. The first round is not measured.
async fn rounds(n: usize, operations: u64, latch: &Latch, mut spawn: impl FnMut()) -> Sample {
    let mut round = async || {
        latch.set(n);
        spawn();
        latch.zero().await;
    };
    round().await;
    let rounds = operations.div_ceil(n as u64);
    let span = Span::begin();
    for _ in 0..rounds {
        round().await;
    }
    span.end(rounds * n as u64)
}

/// Repeatedly spawns one task and waits for it.
fn spawn_join<R: Join>(_: usize, operations: u64) -> Sample {
    R::run(move |runtime| async move {
        runtime.spawn_join(async {}).await;
        let span = Span::begin();
        for _ in 0..operations {
            runtime.spawn_join(async { black_box(()) }).await;
        }
        span.end(operations)
    })
}

/// [`spawn_join`] in a stackful task, which spawns a plain task and waits for it.
fn spawn_join_in_stackful(_: usize, operations: u64) -> Sample {
    Stackful::run(move |runtime| async move {
        let sample = leaked(Mutex::new(None));
        runtime
            .spawn_join(async move {
                Trapline.spawn_join(async {}).await;
                let span = Span::begin();
                for _ in 0..operations {
                    Trapline.spawn_join(async { black_box(()) }).await;
                }
                let measured = span.end(operations);
                *lock(sample) = Some(measured);
            })
            .await;
        lock(sample).take().expect("the task has measured")
    })
}

/// Runs `n` tasks that yield. The measurement begins when each has been polled once and ends when
/// each has been polled once more for each of its yields.
fn yields<R: Runtime>(n: usize, operations: u64) -> Sample {
    struct Shared {
        all_started: &'static Latch,
        all_done: &'static Latch,
        span: Mutex<Option<Span>>,
    }
    let rounds = operations.div_ceil(n as u64);
    R::run(move |runtime| async move {
        let (all_started, all_done) = (Latch::mine().await, Latch::mine().await);
        all_started.set(n);
        all_done.set(n);
        let shared = leaked(Shared { all_started, all_done, span: Mutex::new(None) });
        runtime.spawn_all(n, || async move {
            R::in_one_step(|| {
                if shared.all_started.count_down() {
                    *lock(&shared.span) = Some(Span::begin());
                }
            });
            for _ in 0..rounds {
                R::yield_now().await;
            }
            R::in_one_step(|| shared.all_done.count_down());
        });
        all_done.zero().await;
        let span = lock(&shared.span).take().expect("all have started");
        span.end(rounds * n as u64)
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs two tasks that wake each other by wakers that they keep.
fn hop<R: Runtime>(_: usize, operations: u64) -> Sample {
    take_turns::<R, OnceLock<Waker>>(operations, |context, mine, other| {
        mine.get_or_init(|| context.waker().clone());
        if let Some(other) = other.get() {
            other.wake_by_ref();
        }
    })
}

/// Runs two tasks that wake each other through `AtomicWaker`, as drivers do.
fn hop_atomic_waker<R: Runtime>(_: usize, operations: u64) -> Sample {
    take_turns::<R, AtomicWaker>(operations, |context, mine, other| {
        mine.register(context.waker());
        other.wake();
    })
}

/// Runs two tasks that call `turn` in each poll, with the places of their wakers, until they have
/// been polled as often as `operations` asks.
fn take_turns<R: Runtime, P: Default + Send + Sync + 'static>(
    operations: u64,
    turn: impl Fn(&mut Context<'_>, &P, &P) + Copy + Send + 'static,
) -> Sample {
    R::run(move |runtime| async move {
        let latch = Latch::mine().await;
        let places: &'static [P; 2] = leaked(<[P; 2]>::default());
        let left = leaked(AtomicU64::new(operations));
        latch.set(2);
        let span = Span::begin();
        for me in 0..2 {
            runtime.spawn(poll_fn(move |context| {
                turn(context, &places[me], &places[1 - me]);
                match left.load(Ordering::Relaxed) {
                    0 => {
                        R::in_one_step(|| latch.count_down());
                        Poll::Ready(())
                    }
                    // If a stackful task is preempted between the load and the store, the turn of
                    // the other task in that time is not counted. That is one per slice at most and
                    // makes no difference.
                    turns => {
                        left.store(turns - 1, Ordering::Relaxed);
                        Poll::Pending
                    }
                }
            }));
        }
        latch.zero().await;
        span.end(operations)
    })
}

/// Wakes a task that is already woken and not polled yet.
fn redundant_wake<R: Runtime>(_: usize, operations: u64) -> Sample {
    with_anothers_waker::<R>(operations, |waker| waker.wake_by_ref())
}

/// Clones and drops a waker.
fn waker_clone<R: Runtime>(_: usize, operations: u64) -> Sample {
    with_anothers_waker::<R>(operations, |waker| drop(black_box(waker.clone())))
}

/// Repeats an operation with the waker of another task, which is READY.
fn with_anothers_waker<R: Runtime>(operations: u64, act: impl Fn(&Waker) + 'static) -> Sample {
    R::run(move |runtime| async move {
        let place: &'static OnceLock<Waker> = leaked(OnceLock::new());
        runtime.spawn(poll_fn(|context| match place.set(context.waker().clone()) {
            Ok(()) => Poll::Pending,
            Err(_) => Poll::Ready(()),
        }));
        let waker = loop {
            match place.get() {
                Some(waker) => break waker,
                None => R::yield_now().await,
            }
        };
        waker.wake_by_ref();
        let span = Span::begin();
        for _ in 0..operations {
            act(black_box(waker));
        }
        span.end(operations)
    })
}

/// A gate that many tasks wait for. It holds their wakers.
struct Gate {
    open: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

/// A future of 48 bytes that waits at a gate.
struct Blocked {
    gate: &'static Gate,
    latch: &'static Latch,
    _more: [u64; 4],
}

const _: () = assert!(size_of::<Blocked>() == 48);

impl Future for Blocked {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let open = self.gate.open.load(Ordering::Relaxed);
        if !open {
            lock(&self.gate.wakers).push(context.waker().clone());
        }
        self.latch.count_down();
        if open { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Measures the memory of blocked tasks whose futures take 48 bytes. It includes all memory that
/// the runtime has for so many tasks, but not the list of wakers, which belongs to the gate.
fn idle_bytes<R: Runtime>(_: usize, _: u64) -> Sample {
    R::run(move |runtime| async move {
        let latch = Latch::mine().await;
        let wakers = Mutex::new(Vec::with_capacity(BLOCKED));
        let gate: &'static Gate = leaked(Gate { open: AtomicBool::new(false), wakers });
        latch.set(BLOCKED);
        let span = Span::begin();
        runtime.spawn_all(BLOCKED, || Blocked { gate, latch, _more: [0; 4] });
        latch.zero().await;
        let sample = span.end(BLOCKED as u64);
        gate.open.store(true, Ordering::Relaxed);
        latch.set(BLOCKED);
        std::mem::take(&mut *lock(&gate.wakers)).into_iter().for_each(Waker::wake);
        latch.zero().await;
        sample
    })
}

/// Runs two tasks on two cores, which wait for their turn and then wake each other. Both cores also
/// run a task that yields, so that neither sleeps. An operation is a wake of the other core and one
/// back.
fn cross_wake<R: CrossCore>(_: usize, operations: u64) -> Sample {
    #[derive(Default)]
    struct Court {
        wakers: [OnceLock<Waker>; 2],
        /// Core 0 has the even turns, core 1 the odd ones.
        turn: AtomicU64,
    }
    let court: &'static Court = leaked(Court::default());
    let end = 2 * operations;
    let side = move |me: usize| {
        R::run(move |runtime| async move {
            let latch = Latch::mine().await;
            let span: &'static Mutex<Option<Span>> = leaked(Mutex::new(None));
            latch.set(2);
            runtime.spawn(async move {
                while court.turn.load(Ordering::Relaxed) < end {
                    R::yield_now().await;
                }
                latch.count_down();
            });
            runtime.spawn(async move {
                // Until the other task is there, no task would wake this one.
                poll_fn(|context| Poll::Ready(court.wakers[me].set(context.waker().clone())))
                    .await
                    .expect("each side has one task");
                while court.wakers[1 - me].get().is_none() {
                    R::yield_now().await;
                }
                *lock(span) = Some(Span::begin());
                poll_fn(|_| {
                    // Pairs with the release of the other task, as for any data behind a wake.
                    let turn = court.turn.load(Ordering::Acquire);
                    if turn % 2 == me as u64 && turn < end {
                        court.turn.store(turn + 1, Ordering::Release);
                        court.wakers[1 - me]
                            .get()
                            .expect("both tasks have stored their wakers")
                            .wake_by_ref();
                    }
                    if turn + 1 >= end { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                latch.count_down();
            });
            latch.zero().await;
            let span = lock(span).take().expect("the task has begun a measurement");
            span.end(operations)
        })
    };
    let other = cores::other().expect("`cross_wake` has cells only with a second processor");
    std::thread::scope(|scope| {
        let other = scope.spawn(move || cores::on(other, move || side(1)));
        let sample = side(0);
        other.join().expect("it does not panic");
        sample
    })
}
