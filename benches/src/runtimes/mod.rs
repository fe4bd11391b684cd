//! The implementations, behind the traits that the shapes of [`tasks`](crate::tasks) use.

pub mod async_executor;
pub mod async_task;
pub mod edge_executor;
pub mod embassy;
pub mod floor;
pub mod futures;
pub mod tokio;
pub mod trapline;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A runtime of one core.
pub trait Runtime: Sized + 'static {
    /// The name of its crate, or a description.
    const NAME: &'static str;

    /// Runs the future that `main` makes, and the tasks that it spawns, in a new runtime until the
    /// future is done.
    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static;

    /// Spawns a detached task. Called in task context.
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static;

    /// Spawns `n` detached tasks. Called in task context.
    fn spawn_all<F>(&self, n: usize, make: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for _ in 0..n {
            self.spawn(make());
        }
    }

    /// The runtime's own yield, if it has one.
    fn yield_now() -> impl Future<Output = ()> + Send {
        Yield { yielded: false }
    }

    /// Calls `f` while no other task of the core can run. This costs time only where tasks are
    /// preempted.
    fn in_one_step<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
}

/// Runtimes with join handles.
pub trait Join: Runtime {
    /// Spawns a task and waits until it is done. Called in task context.
    fn spawn_join<F>(&self, future: F) -> impl Future<Output = ()>
    where
        F: Future<Output = ()> + Send + 'static;
}

/// Runtimes whose tasks can be in places of the program, without an allocator.
pub trait Static: Runtime {
    /// A place for one task at a time.
    type Place<F: Future<Output = ()> + Send + 'static>: 'static;

    /// Makes a place.
    fn place<F>() -> Self::Place<F>
    where
        F: Future<Output = ()> + Send + 'static;

    /// Spawns a task in a free place. Called in task context.
    fn spawn_at<F>(&self, place: &'static Self::Place<F>, future: F)
    where
        F: Future<Output = ()> + Send + 'static;
}

/// Runtimes whose wakers may be used on other cores.
pub trait CrossCore: Runtime {}

/// The places of a run's static tasks. They live until all clones of this value are dropped.
#[derive(Clone, Default)]
struct Places(Rc<RefCell<Vec<Box<dyn Any>>>>);

impl Places {
    /// Makes `n` adjacent places, as in a `static` array.
    ///
    /// # Safety
    ///
    /// When the last clone is dropped, the places hold no task, or none that is still polled or
    /// woken.
    unsafe fn add<P: 'static>(&self, n: usize, place: impl Fn() -> P) -> &'static [P] {
        let places: Box<[P]> = (0..n).map(|_| place()).collect();
        let alive = std::ptr::from_ref(&*places);
        self.0.borrow_mut().push(Box::new(places));
        // SAFETY: the content of a box does not move, and the caller promises that the places are
        // unused when it is freed.
        unsafe { &*alive }
    }
}

/// The usual yield for runtimes without a `yield_now`.
struct Yield {
    yielded: bool,
}

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// A place for the output of `main`, for runtimes whose tasks return no value.
struct Output<T>(Rc<Cell<Option<T>>>);

impl<T> Output<T> {
    /// Makes `main` a task without an output, and a place for its output.
    fn of<M: Future<Output = T>>(main: M) -> (Self, impl Future<Output = ()>) {
        let place = Rc::default();
        let output = Self(Rc::clone(&place));
        (output, async move { place.set(Some(main.await)) })
    }

    /// Takes the output, once it is there.
    fn take(&self) -> Option<T> {
        self.0.take()
    }
}
