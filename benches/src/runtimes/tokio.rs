//! tokio's `current_thread` runtime.
//!
//! Its own `yield_now` goes by way of the driver, which costs two to four times as much as a task that wakes itself.
//! So here tasks wake themselves.

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
        let runtime =
            Builder::new_current_thread().build().expect("nothing is asked of the system");
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
        tokio::spawn(future).await.expect("nobody aborts it");
    }
}

impl CrossCore for Tokio {}
