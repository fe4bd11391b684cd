//! A wrapper around a stackful future stays off the stack: only the stackful future itself, perhaps
//! with hooks around it, is a task that is polled on a stack.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use trapline::time::{now, sleep};
use trapline::{
    Current, Hooks, JoinHandle, Stackful, StaticTask, TaskBuilder, contexted, current, spawn,
    stackful, task_local,
};

use crate::support::*;

/// A wrapper of the same size as the future in it, which begins at the same address.
struct Wrapper<F>(F);

/// How many polls of wrappers happened on a stack.
static ON_STACK: AtomicUsize = AtomicUsize::new(0);

fn count_if_on_stack() {
    if current().is_some_and(|current| current.is_stackful()) {
        ON_STACK.fetch_add(1, SeqCst);
    }
}

impl<F: Future> Future for Wrapper<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        count_if_on_stack();
        // SAFETY: the field is pinned because `self` is.
        let poll = unsafe { self.map_unchecked_mut(|this| &mut this.0) }.poll(context);
        count_if_on_stack();
        poll
    }
}

struct Nothing;

impl Hooks for Nothing {
    fn enter(&self) {}
    fn leave(&self) {}
}

fn hooks() -> Arc<Nothing> {
    Arc::new(Nothing)
}

async fn who() -> Current {
    trapline::yield_now().await;
    current().unwrap()
}

/// Checks that the stackful part of the task ran in a child, and the wrapper off the stack.
async fn is_a_parent(task: JoinHandle<Current>) {
    let parent = task.id().unwrap();
    let child = task.await.unwrap();
    assert!(child.is_stackful());
    assert_ne!(child.id(), parent);
    assert_eq!(ON_STACK.load(SeqCst), 0, "the wrapper was polled on a stack");
}

/// Checks that the stackful future is the task itself.
async fn is_one_task(task: JoinHandle<Current>) {
    let id = task.id().unwrap();
    let current = task.await.unwrap();
    assert!(current.is_stackful());
    assert_eq!(current.id(), id);
}

pub fn a_wrapper_is_polled_off_the_stack() {
    fn wrapped() -> impl Future<Output = Current> + Send {
        Wrapper(stackful(who()))
    }
    assert_eq!(size_of_val(&wrapped()), size_of_val(&stackful(who())));
    static CELL: StaticTask<Room> = StaticTask::new();
    ON_STACK.store(0, SeqCst);
    let runtime = runtime();
    run_on(runtime, async {
        is_a_parent(spawn(wrapped())).await;
        is_a_parent(runtime.spawn(wrapped())).await;
        is_a_parent(TaskBuilder::new().name("wrapped").spawn(wrapped()).unwrap()).await;
        is_a_parent(CELL.spawn(wrapped()).unwrap()).await;
        is_a_parent(spawn(Wrapper(wrapped()))).await;
        is_a_parent(spawn(async { Wrapper(wrapped()).await })).await;
    });
}

/// A placeholder type that gives a static cell 256 bytes for a future.
struct Room(#[expect(dead_code)] [usize; 32]);

impl Future for Room {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

pub fn a_wrapper_among_hooks_is_polled_off_the_stack() {
    task_local! {
        static KEY: u8;
    }
    ON_STACK.store(0, SeqCst);
    run(async {
        is_one_task(spawn(stackful(who()))).await;
        is_one_task(spawn(contexted(stackful(who()), hooks()))).await;
        is_one_task(spawn(contexted(contexted(stackful(who()), hooks()), hooks()))).await;
        is_a_parent(spawn(contexted(Wrapper(stackful(who())), hooks()))).await;
        is_a_parent(spawn(Wrapper(contexted(stackful(who()), hooks())))).await;
        let wrapped = Wrapper(contexted(stackful(who()), hooks()));
        is_a_parent(spawn(contexted(wrapped, hooks()))).await;
        let wrapped = Wrapper(stackful(who()));
        is_a_parent(spawn(contexted(contexted(wrapped, hooks()), hooks()))).await;
        is_a_parent(spawn(contexted(KEY.scope(1, stackful(who())), hooks()))).await;
        // A future with hooks around it may borrow.
        let number = 7;
        assert_eq!(contexted(async { number }, hooks()).await, 7);
    });
}

/// A stackful future inside of another one of the same type: only the outer one is the spawned
/// task.
pub fn of_two_of_one_type_one_is_the_task() {
    type Any = Pin<Box<dyn Future<Output = Current> + Send>>;
    run(async {
        let inner: Any = Box::pin(who());
        let inner: Stackful<Any> = stackful(inner);
        let outer: Any = Box::pin(async move {
            let outer = current().unwrap();
            let inner = inner.await;
            assert!(outer.is_stackful() && inner.is_stackful());
            assert_ne!(outer.id(), inner.id());
            outer
        });
        is_one_task(spawn(stackful(outer))).await;
    });
}

/// A future that is ready as soon as one of the two is.
struct Race<A, B>(A, B);

impl<A: Future<Output = ()>, B: Future<Output = ()>> Future for Race<A, B> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: both fields are pinned because `self` is.
        let (a, b) = unsafe {
            let Race(a, b) = self.get_unchecked_mut();
            (Pin::new_unchecked(a), Pin::new_unchecked(b))
        };
        if a.poll(context).is_ready() || b.poll(context).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// The other arm has size zero, so the race is as large as the stackful future in it.
pub fn a_race_with_what_takes_no_room_is_decided() {
    static CANCELLED: AtomicBool = AtomicBool::new(false);
    static CANCEL: AtomicWaker = AtomicWaker::new();
    for hooked in [false, true] {
        CANCELLED.store(false, SeqCst);
        run(async {
            let cancelled = poll_fn(|context| {
                CANCEL.register(context.waker());
                if CANCELLED.load(SeqCst) { Poll::Ready(()) } else { Poll::Pending }
            });
            let computes = Count::new();
            let counts = computes.clone();
            let give_up = now() + ms(20_000);
            let computing = stackful(async move {
                counts.add();
                // An abort takes effect only at the end of a poll.
                while !CANCELLED.load(SeqCst) {
                    assert!(now() < give_up, "the other arm was not polled");
                }
                never().await
            });
            let race = Race(computing, cancelled);
            let race = if hooked { spawn(contexted(race, hooks())) } else { spawn(race) };
            computes.reaches(1).await;
            CANCELLED.store(true, SeqCst);
            CANCEL.wake();
            race.await.unwrap();
        });
    }
}

/// A stackful future that is `Unpin` is polled in one task, and then moved to another task and
/// polled there.
pub fn one_that_is_moved_between_polls_stays_stackful() {
    type Any = Pin<Box<dyn Future<Output = Current> + Send>>;

    /// A future that polls the stackful future once and then returns it.
    struct Once(Option<Stackful<Any>>);

    impl Future for Once {
        type Output = Stackful<Any>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Stackful<Any>> {
            let mut inside = self.0.take().unwrap();
            assert!(Pin::new(&mut inside).poll(context).is_pending());
            Poll::Ready(inside)
        }
    }

    run(async {
        let future: Any = Box::pin(async {
            sleep(ms(1)).await;
            current().unwrap()
        });
        let moved = spawn(Once(Some(stackful(future)))).await.unwrap();
        let parent = spawn(moved);
        let id = parent.id().unwrap();
        let child = parent.await.unwrap();
        assert!(child.is_stackful());
        assert_ne!(child.id(), id);
    });
}
