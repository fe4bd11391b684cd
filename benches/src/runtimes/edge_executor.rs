//! edge-executor for one thread, with the unbounded queue. Its bounded queue holds 64 tasks.

use std::rc::Rc;

use edge_executor::{LocalExecutor, UnboundQueue};

use super::{CrossCore, Join, Output, Runtime};

type Executor = LocalExecutor<'static, UnboundQueue>;

/// The executor.
pub struct EdgeExecutor(Rc<Executor>);

impl Runtime for EdgeExecutor {
    const NAME: &'static str = "edge-executor";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let executor = Rc::new(Executor::new_with(UnboundQueue::new));
        let (output, main) = Output::of(main(Self(executor.clone())));
        executor.spawn(main).detach();
        loop {
            if let Some(output) = output.take() {
                return output;
            }
            executor.try_tick();
        }
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(future).detach();
    }
}

impl Join for EdgeExecutor {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.spawn(future).await;
    }
}

impl CrossCore for EdgeExecutor {}
