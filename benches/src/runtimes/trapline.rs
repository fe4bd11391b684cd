//! Trapline with plain, static and stackful tasks, and with plain and stackful ones mixed.

use std::cell::Cell;

use trapline::preempt::PreemptGuard;
use trapline::{StaticTask, spawn, stackful, yield_now};

use super::{CrossCore, Join, Places, Runtime, Static};

/// Plain tasks.
#[derive(Debug)]
pub struct Trapline;

/// Stackful tasks.
#[derive(Debug)]
pub struct Stackful;

/// Plain and stackful tasks alternately. The first spawned task is plain.
#[derive(Debug, Default)]
pub struct Mixed {
    next_is_stackful: Cell<bool>,
}

fn run<M: Future>(main: M) -> M::Output {
    // After the shutdown only a page of it is left.
    let runtime: &'static trapline::Runtime = Box::leak(Box::default());
    let output = runtime.run_until(main).expect("this thread is a core that is in no runtime");
    runtime.shutdown().expect("this core owns the runtime");
    output
}

impl Runtime for Trapline {
    const NAME: &'static str = "trapline";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        run(main(Self))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(spawn(future));
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        yield_now()
    }
}

impl Join for Trapline {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn(future).await.expect("the task is not aborted");
    }
}

impl CrossCore for Trapline {}

/// Plain tasks in static cells.
pub struct TraplineStatic {
    places: Places,
}

impl Runtime for TraplineStatic {
    const NAME: &'static str = "trapline-static";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        // They must live until after the shutdown.
        let places = Places::default();
        run(main(Self { places: places.clone() }))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // SAFETY: `run` keeps the place until every task is gone.
        let place = unsafe { self.places.add(1, StaticTask::new) };
        self.spawn_at(&place[0], future);
    }

    fn spawn_all<F>(&self, n: usize, make: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        // SAFETY: as above.
        for place in unsafe { self.places.add(n, StaticTask::new) } {
            self.spawn_at(place, make());
        }
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        yield_now()
    }
}

impl Static for TraplineStatic {
    type Place<F: Future<Output = ()> + Send + 'static> = StaticTask<F>;

    fn place<F>() -> StaticTask<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        StaticTask::new()
    }

    #[inline]
    fn spawn_at<F>(&self, place: &'static StaticTask<F>, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(place.spawn(future).expect("the place is free"));
    }
}

impl Runtime for Stackful {
    const NAME: &'static str = Trapline::NAME;

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        run(main(Self))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(spawn(stackful(future)));
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        yield_now()
    }

    fn in_one_step<T>(f: impl FnOnce() -> T) -> T {
        let _guard = PreemptGuard::new();
        f()
    }
}

impl Join for Stackful {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn(stackful(future)).await.expect("the task is not aborted");
    }
}

impl Runtime for Mixed {
    const NAME: &'static str = Trapline::NAME;

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        run(main(Self::default()))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let is_stackful = self.next_is_stackful.get();
        self.next_is_stackful.set(!is_stackful);
        if is_stackful {
            Stackful.spawn(future);
        } else {
            Trapline.spawn(future);
        }
    }

    fn yield_now() -> impl Future<Output = ()> + Send {
        yield_now()
    }

    fn in_one_step<T>(f: impl FnOnce() -> T) -> T {
        Stackful::in_one_step(f)
    }
}
