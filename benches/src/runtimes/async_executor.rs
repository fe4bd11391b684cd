//! async-executor in its static form, which is the faster one, as it keeps no list of its tasks.

use async_executor::{Executor, StaticExecutor};

use super::{CrossCore, Join, Runtime};

/// The executor. It is leaked, as its type demands.
#[derive(Debug)]
pub struct AsyncExecutor(&'static StaticExecutor);

impl Runtime for AsyncExecutor {
    const NAME: &'static str = "async-executor";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let executor = Executor::new().leak();
        futures::executor::block_on(executor.run(main(Self(executor))))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(future).detach();
    }
}

impl Join for AsyncExecutor {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(future).await;
    }
}

impl CrossCore for AsyncExecutor {}
