//! embassy-executor: its raw executor, polled in a loop. Its tasks are in static places and are
//! never freed.

use std::pin::Pin;

use embassy_executor::Spawner;
use embassy_executor::raw::{Executor, TaskStorage};

use super::{CrossCore, Output, Places, Runtime, Static};

/// Called when there is a task to poll. It does nothing, as the executor is polled in a loop.
// SAFETY: the executor links to this name with this type, and no other code defines it.
#[unsafe(no_mangle)]
fn __pender(_: *mut ()) {}

/// The executor.
pub struct Embassy {
    spawner: Spawner,
    places: Places,
}

impl Embassy {
    /// Makes `n` adjacent places, as in a task's `static` pool.
    fn places<F: Future + 'static>(&self, n: usize) -> &'static [TaskStorage<F>] {
        // SAFETY: `run` keeps them until it no longer polls the executor, and the measured code
        // wakes no task after that.
        unsafe { self.places.add(n, TaskStorage::new) }
    }
}

fn spawn_at<F: Future<Output = ()> + 'static>(
    spawner: Spawner,
    place: &'static TaskStorage<F>,
    future: F,
) {
    spawner.spawn(place.spawn(|| future).expect("the place is free"));
}

impl Runtime for Embassy {
    const NAME: &'static str = "embassy-executor";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let executor: &'static Executor = Box::leak(Box::new(Executor::new(std::ptr::null_mut())));
        let embassy = Self { spawner: executor.spawner(), places: Places::default() };
        let (spawner, places) = (embassy.spawner, embassy.places.clone());
        let main_place = embassy.places::<Pin<Box<dyn Future<Output = ()>>>>(1);
        let (output, main) = Output::of(main(embassy));
        spawn_at(spawner, &main_place[0], Box::pin(main));
        let output = loop {
            // SAFETY: only the thread that made the executor polls it.
            unsafe { executor.poll() };
            if let Some(output) = output.take() {
                break output;
            }
        };
        drop(places);
        output
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn_at(self.spawner, &self.places(1)[0], future);
    }

    fn spawn_all<F>(&self, n: usize, make: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for place in self.places(n) {
            spawn_at(self.spawner, place, make());
        }
    }
}

impl Static for Embassy {
    type Place<F: Future<Output = ()> + Send + 'static> = TaskStorage<F>;

    fn place<F>() -> TaskStorage<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        TaskStorage::new()
    }

    fn spawn_at<F>(&self, place: &'static TaskStorage<F>, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        spawn_at(self.spawner, place, future);
    }
}

impl CrossCore for Embassy {}
