//! Scheduling latency, side by side in one run: what a yield costs, and a spawn that is awaited.
//!
//! The peer is `async-task` with a `VecDeque`, the least that one would write with what there is. `floor`
//! is no peer: a queue of boxed futures that are polled in turn, without wakers, states or reference counts,
//! which is the least that a yield can cost where tasks are boxed.
//!
//! Quote ratios of one run: absolute times are the machine's.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use trapline::{Runtime, spawn, stackful, yield_now};

/// How long `tasks` tasks take for `rounds` yields each.
type Yields = fn(rounds: u64, tasks: usize) -> Duration;

fn runtime() -> &'static Runtime {
    Box::leak(Box::new(Runtime::new()))
}

/// Runs `measure` on a core of its own.
fn on_core(measure: impl FnOnce(&'static Runtime) -> Duration + Send) -> Duration {
    // SAFETY: stackful tasks here only yield and return.
    unsafe { hal_shim::isolated(|| measure(runtime())) }
}

async fn yield_for(rounds: u64) {
    for _ in 0..rounds {
        yield_now().await;
    }
}

/// Spawns what `make` makes, `tasks` times, and waits for all.
fn all_of<F>(tasks: usize, make: impl Fn() -> F + Sync) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    on_core(|runtime| {
        let measured = runtime.run_until(async {
            let started = Instant::now();
            let handles: Vec<_> = (0..tasks).map(|_| spawn(make())).collect();
            for handle in handles {
                handle.await.expect("nobody aborts it");
            }
            started.elapsed()
        });
        measured.expect("a runtime of its own")
    })
}

/// Spawns what `make` makes and waits for it, `tasks` times.
fn each_of<F>(tasks: u64, make: impl Fn() -> F + Sync) -> Duration
where
    F: Future<Output = ()> + Send + 'static,
{
    on_core(|runtime| {
        let measured = runtime.run_until(async {
            let started = Instant::now();
            for _ in 0..tasks {
                spawn(make()).await.expect("nobody aborts it");
            }
            started.elapsed()
        });
        measured.expect("a runtime of its own")
    })
}

type Runnables = Rc<RefCell<VecDeque<async_task::Runnable>>>;

fn async_task_yields(rounds: u64, tasks: usize) -> Duration {
    let queue = Runnables::default();
    let started = Instant::now();
    let handles: Vec<_> = (0..tasks)
        .map(|_| {
            let pushes = queue.clone();
            // SAFETY: all is polled, woken and dropped on this thread, before the queue is.
            let (runnable, task) = unsafe {
                async_task::spawn_unchecked(yield_for(rounds), move |runnable| {
                    pushes.borrow_mut().push_back(runnable)
                })
            };
            runnable.schedule();
            task
        })
        .collect();
    loop {
        let next = queue.borrow_mut().pop_front();
        match next {
            Some(runnable) => runnable.run(),
            None => break,
        };
    }
    drop(handles);
    started.elapsed()
}

fn floor_yields(rounds: u64, tasks: usize) -> Duration {
    let mut context = Context::from_waker(Waker::noop());
    let started = Instant::now();
    let mut queue: VecDeque<Pin<Box<dyn Future<Output = ()>>>> = VecDeque::new();
    for _ in 0..tasks {
        queue.push_back(Box::pin(yield_for(rounds)));
    }
    while let Some(mut task) = queue.pop_front() {
        if task.as_mut().poll(&mut context).is_pending() {
            queue.push_back(task);
        }
    }
    started.elapsed()
}

/// One element is one yield of one task.
fn yields(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("yield");
    let rows: [(&str, Yields); 4] = [
        ("trapline", |rounds, tasks| all_of(tasks, || yield_for(rounds))),
        ("trapline stackful", |rounds, tasks| all_of(tasks, || stackful(yield_for(rounds)))),
        ("async-task", async_task_yields),
        ("floor", floor_yields),
    ];
    for tasks in [1, 100, 10_000] {
        for (name, run) in rows {
            group.bench_with_input(BenchmarkId::new(name, tasks), &tasks, |bencher, &tasks| {
                bencher.iter_custom(|yields| {
                    let rounds = yields.div_ceil(tasks as u64);
                    run(rounds, tasks).mul_f64(yields as f64 / (rounds * tasks as u64) as f64)
                });
            });
        }
    }
    group.finish();
}

/// One element is a task that is spawned, run once and awaited.
fn spawns(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spawn_join");
    group.bench_function("trapline", |bencher| {
        bencher.iter_custom(|tasks| each_of(tasks, || async { black_box(()) }));
    });
    group.bench_function("trapline stackful", |bencher| {
        bencher.iter_custom(|tasks| each_of(tasks, || stackful(async { black_box(()) })));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = yields, spawns
}
criterion_main!(benches);
