//! async-task with a `VecDeque`: the least executor on top of that crate.
//!
//! The queue belongs to the thread and accepts no wakes from other threads.

use std::cell::RefCell;
use std::collections::VecDeque;

use async_task::{Runnable, Task};

use super::{Join, Output, Runtime};

type Queue = RefCell<VecDeque<Runnable>>;

/// The queue. It is leaked, so that a wake reaches it without a reference count.
pub struct AsyncTask(&'static Queue);

impl AsyncTask {
    fn task<T>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let queue = self.0;
        let schedule = move |runnable| queue.borrow_mut().push_back(runnable);
        // SAFETY: tasks are polled, woken and dropped on this thread only. Future and queue have no
        // lifetime that could end before.
        let (runnable, task) = unsafe { async_task::spawn_unchecked(future, schedule) };
        runnable.schedule();
        task
    }
}

impl Runtime for AsyncTask {
    const NAME: &'static str = "async-task";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let queue: &'static Queue = Box::leak(Box::default());
        let (output, main) = Output::of(main(Self(queue)));
        Self(queue).task(main).detach();
        loop {
            let next = queue.borrow_mut().pop_front();
            match next {
                Some(runnable) => _ = runnable.run(),
                None => break,
            }
        }
        output.take().expect("no task is left to wake main")
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.task(future).detach();
    }
}

impl Join for AsyncTask {
    async fn spawn_join<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.task(future).await;
    }
}
