//! The implementations, as the shapes of [`tasks`](crate::tasks) see them.

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
    /// Its crate's name, or what it is.
    const NAME: &'static str;

    /// Runs what `main` makes in a fresh runtime, and all that it spawns, until it is done.
    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static;

    /// Spawns a task that nobody waits for. In task context.
    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static;

    /// Spawns `n` tasks that nobody waits for. In task context.
    fn spawn_all<F>(&self, n: usize, make: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        for _ in 0..n {
            self.spawn(make());
        }
    }

    /// The runtime's own way to let others run, if it has one.
    fn yield_now() -> impl Future<Output = ()> + Send {
        Yield { yielded: false }
    }

    /// Calls `f`, during which no other task of the core runs. That takes something only where
    /// tasks are preempted.
    fn in_one_step<T>(f: impl FnOnce() -> T) -> T {
        f()
    }
}

/// Tasks with handles that can be waited for.
pub trait Join: Runtime {
    /// Spawns a task and waits until it is done. In task context.
    fn spawn_join<F>(&self, future: F) -> impl Future<Output = ()>
    where
        F: Future<Output = ()> + Send + 'static;
}

/// Tasks in places of the program's own, without an allocator.
pub trait Static: Runtime {
    /// A place for one such task at a time.
    type Place<F: Future<Output = ()> + Send + 'static>: 'static;

    /// A place.
    fn place<F>() -> Self::Place<F>
    where
        F: Future<Output = ()> + Send + 'static;

    /// Spawns a task in a place that has none. In task context.
    fn spawn_at<F>(&self, place: &'static Self::Place<F>, future: F)
    where
        F: Future<Output = ()> + Send + 'static;
}

/// Runtimes whose wakers may be used on other cores.
pub trait CrossCore: Runtime {}

/// The places of a run's static tasks, which are there until all clones of this are dropped.
#[derive(Clone, Default)]
struct Places(Rc<RefCell<Vec<Box<dyn Any>>>>);

impl Places {
    /// As many places side by side, as in a `static` array.
    ///
    /// # Safety
    ///
    /// No task lies in them any more when the last clone is dropped, or nobody polls it or wakes it.
    unsafe fn add<P: 'static>(&self, n: usize, place: impl Fn() -> P) -> &'static [P] {
        let places: Box<[P]> = (0..n).map(|_| place()).collect();
        let alive = std::ptr::from_ref(&*places);
        self.0.borrow_mut().push(Box::new(places));
        // SAFETY: a box's content stays where it is, and the caller promises to be done when it goes.
        unsafe { &*alive }
    }
}

/// What everybody writes who has no `yield_now`.
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

/// A place for what `main` returns, for runtimes whose tasks return nothing.
struct Output<T>(Rc<Cell<Option<T>>>);

impl<T> Output<T> {
    /// `main` as a task, and the place where its output will be.
    fn of<M: Future<Output = T>>(main: M) -> (Self, impl Future<Output = ()>) {
        let place = Rc::default();
        let output = Self(Rc::clone(&place));
        (output, async move { place.set(Some(main.await)) })
    }

    /// The output, once it is there.
    fn take(&self) -> Option<T> {
        self.0.take()
    }
}
