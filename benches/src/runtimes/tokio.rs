//! tokio's `current_thread` runtime.
//!
//! tokio's `yield_now` goes through the driver and costs two to four times as much as a task that
//! wakes itself. Tasks wake themselves here.

use tokio::runtime::Builder;

use super::{CrossCore, Join, Runtime};

/// The runtime.
#[derive(Debug)]
pub struct Tokio;

impl Runtime for Tokio {
    const NAME: &'static str = "tokio";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let runtime = Builder::new_current_thread()
            .build()
            .expect("a runtime without drivers needs nothing from the system");
        runtime.block_on(main(Self))
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(tokio::spawn(future));
    }
}

impl Join for Tokio {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(future).await.expect("the task is not aborted");
    }
}

impl CrossCore for Tokio {}
