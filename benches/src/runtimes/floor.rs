//! The floor: the least that tasks cost with `malloc` and the textbook's protocol.
//!
//! It has one allocation per task, one atomic word of flags and references, wakers that count as
//! references, and an intrusive first-in-first-out queue. The transitions are those that are needed
//! if another core or an interrupt may come between: a yield takes two read-modify-writes, a wake
//! of another task and its poll take three.
//!
//! The floor is no lower bound: a runtime can be below it, and Trapline is in some rows, by
//! optimizations that the floor lacks. The floor does not keep the memory of tasks for new ones. A
//! yield uses the waker. A wake on the task's own core takes the same steps as one from anywhere,
//! of which the read-modify-write that takes the task from the queue could be saved.
//!
//! It also lacks what a runtime for kernels needs: other cores and interrupts (a wake pushes into
//! the loop's own queue, so all happens on one thread), join handles and outputs, abort, panics in
//! a poll, the list of all tasks and a shutdown (tasks that are blocked at the end are leaked),
//! overflow checks of the reference count, parking, timers, names, and any check whether a task
//! must be preempted.

use std::alloc::{Layout, dealloc};
use std::cell::{Cell, UnsafeCell};
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::{Output, Runtime};

/// The task is to be polled (again).
const READY: usize = 1;
/// The task is in the queue, being polled, or done: a wake does not push it.
const TAKEN: usize = 2;
/// One reference. Each waker has one, and the runtime has one until the task is done.
const REFERENCE: usize = 4;

struct Header {
    state: AtomicUsize,
    /// The next task in the queue.
    next: Cell<*const Header>,
    queue: &'static Queue,
    /// Polls the future, and drops it when it is ready.
    poll: unsafe fn(*const Header, &mut Context<'_>) -> Poll<()>,
    layout: &'static Layout,
}

#[repr(C)]
struct Task<F> {
    header: Header,
    future: UnsafeCell<ManuallyDrop<F>>,
}

impl<F: Future<Output = ()>> Task<F> {
    const LAYOUT: Layout = Layout::new::<Self>();

    /// # Safety
    ///
    /// `task` is a `Task<F>` and not done, and the caller is the loop.
    unsafe fn poll(task: *const Header, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: only the loop uses the future, and the future never moves, as its task does not.
        unsafe {
            let future = (*task.cast::<Self>()).future.get();
            let poll = Pin::new_unchecked(&mut **future).poll(context);
            if poll.is_ready() {
                ManuallyDrop::drop(&mut *future);
            }
            poll
        }
    }
}

#[derive(Debug)]
struct Queue {
    head: Cell<*const Header>,
    tail: Cell<*const Header>,
}

impl Queue {
    /// # Safety
    ///
    /// `task` stays alive until it is popped, and is in no queue.
    #[inline]
    unsafe fn push(&self, task: *const Header) {
        // SAFETY: a task in the queue is alive, as the callers of `push` promise.
        unsafe {
            (*task).next.set(ptr::null());
            match self.tail.replace(task) {
                last if last.is_null() => self.head.set(task),
                last => (*last).next.set(task),
            }
        }
    }

    #[inline]
    fn pop(&self) -> Option<*const Header> {
        let task = self.head.get();
        if task.is_null() {
            return None;
        }
        // SAFETY: a task in the queue is alive, as the callers of `push` promise.
        self.head.set(unsafe { (*task).next.get() });
        if self.head.get().is_null() {
            self.tail.set(ptr::null());
        }
        Some(task)
    }
}

static WAKER: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_reference);

unsafe fn clone(task: *const ()) -> RawWaker {
    // SAFETY: a waker keeps its task alive.
    unsafe { (*task.cast::<Header>()).state.fetch_add(REFERENCE, Ordering::Relaxed) };
    RawWaker::new(task, &WAKER)
}

unsafe fn wake(task: *const ()) {
    // SAFETY: the caller keeps the contract of both; the reference of the waker is released last.
    unsafe {
        wake_by_ref(task);
        drop_reference(task);
    }
}

unsafe fn wake_by_ref(task: *const ()) {
    let task = task.cast::<Header>();
    // SAFETY: a waker keeps its task alive. A task that was not TAKEN is in no queue and not done,
    // so that the reference of the runtime keeps it alive from here on.
    unsafe {
        if (*task).state.fetch_or(READY | TAKEN, Ordering::AcqRel) & TAKEN == 0 {
            (*task).queue.push(task);
        }
    }
}

unsafe fn drop_reference(task: *const ()) {
    let task = task.cast::<Header>();
    // SAFETY: a waker keeps its task alive. The runtime releases its reference only after the
    // future is dropped, so that no future is left when the last reference goes.
    unsafe {
        if (*task).state.fetch_sub(REFERENCE, Ordering::AcqRel) < 2 * REFERENCE {
            free(task);
        }
    }
}

/// # Safety
///
/// There is no reference to the task.
unsafe fn free(task: *const Header) {
    // SAFETY: it was allocated as a box of this layout, and no part of it needs to be dropped.
    unsafe { dealloc(task.cast_mut().cast(), *(*task).layout) };
}

/// Polls a task from the queue.
///
/// # Safety
///
/// `task` was just popped.
#[inline]
unsafe fn poll(task: *const Header) {
    // SAFETY: the task is TAKEN and not done, so that the reference of the runtime keeps it alive.
    // The waker borrows that reference.
    unsafe {
        let state = &(*task).state;
        state.fetch_and(!READY, Ordering::AcqRel);
        let waker = ManuallyDrop::new(Waker::new(task.cast(), &WAKER));
        match ((*task).poll)(task, &mut Context::from_waker(&waker)) {
            Poll::Pending => loop {
                let now = state.load(Ordering::Relaxed);
                if now & READY != 0 {
                    // The task stays TAKEN. The next poll acquires the data that it was woken for.
                    (*task).queue.push(task);
                    break;
                }
                let free = now & !TAKEN;
                if state.compare_exchange(now, free, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    break;
                }
            },
            // The task stays TAKEN, so that later wakes do not push it.
            Poll::Ready(()) => drop_reference(task.cast()),
        }
    }
}

/// The runtime: a leaked queue.
#[derive(Debug)]
pub struct FloorBoxed(&'static Queue);

impl FloorBoxed {
    #[inline]
    fn push<F: Future<Output = ()> + 'static>(&self, future: F) {
        let task = Box::into_raw(Box::new(Task {
            header: Header {
                state: AtomicUsize::new(READY | TAKEN | REFERENCE),
                next: Cell::new(ptr::null()),
                queue: self.0,
                poll: Task::<F>::poll,
                layout: &Task::<F>::LAYOUT,
            },
            future: UnsafeCell::new(ManuallyDrop::new(future)),
        }));
        // SAFETY: the task is new, and the reference of the runtime keeps it alive.
        unsafe { self.0.push(task.cast()) };
    }
}

impl Runtime for FloorBoxed {
    const NAME: &'static str = "floor-boxed";

    fn run<M>(main: impl FnOnce(Self) -> M) -> M::Output
    where
        M: Future<Output: 'static> + 'static,
    {
        let empty = Queue { head: Cell::new(ptr::null()), tail: Cell::new(ptr::null()) };
        let queue: &'static Queue = Box::leak(Box::new(empty));
        let (output, main) = Output::of(main(Self(queue)));
        Self(queue).push(main);
        while let Some(task) = queue.pop() {
            // SAFETY: the task was just popped.
            unsafe { poll(task) };
        }
        output.take().expect("no task is left to wake main")
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.push(future);
    }
}
