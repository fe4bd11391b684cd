//! Trapline, with plain and with stackful tasks.

use trapline::{spawn, stackful, yield_now};

use super::{CrossCore, Join, Runtime};

/// Plain tasks.
#[derive(Debug)]
pub struct Trapline;

/// Stackful tasks.
#[derive(Debug)]
pub struct Stackful;

fn run<M: Future>(main: M) -> M::Output {
    // What is left of it after the shutdown is a page.
    let runtime: &'static trapline::Runtime = Box::leak(Box::default());
    let output =
        runtime.run_until(main).expect("this thread is a core that is inside of no runtime");
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
        spawn(future).await.expect("nobody aborts it");
    }
}

impl CrossCore for Trapline {}

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
}

impl Join for Stackful {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn(stackful(future)).await.expect("nobody aborts it");
    }
}
