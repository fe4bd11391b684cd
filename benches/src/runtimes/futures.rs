//! futures' `LocalPool`.

use futures::executor::{LocalPool, LocalSpawner};
use futures::task::LocalSpawnExt as _;

use super::{CrossCore, Join, Runtime};

/// The pool's spawner.
#[derive(Debug)]
pub struct Futures(LocalSpawner);

impl Runtime for Futures {
    const NAME: &'static str = "futures";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let mut pool = LocalPool::new();
        let main = main(Self(pool.spawner()));
        pool.run_until(main)
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn_local(future).expect("the pool is there");
    }
}

impl Join for Futures {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn_local_with_handle(future).expect("the pool is there").await;
    }
}

impl CrossCore for Futures {}
