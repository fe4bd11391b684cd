//! The floor: the least that tasks cost with `malloc` and the textbook's protocol.
//!
//! One allocation a task, one atomic word of flags and references, wakers that count as references, an intrusive
//! first-in-first-out queue. The transitions are as they must be where another core or an interrupt may come
//! between: a yield takes two read-modify-writes, a wake of another task and its poll three.
//!
//! It is no bound: one can be below it, and Trapline is here and there, by what the floor leaves out. Tasks'
//! memory is not kept for the next ones. A yield goes by way of the waker, and not past it. A wake on the
//! task's own core takes the steps of one from anywhere, of which the read-modify-write that takes the task
//! from the queue could go.
//!
//! And it leaves out what a runtime for kernels can't: other cores and interrupts (a wake pushes into the loop's
//! own queue, so all happens on one thread), join handles and outputs, abort, panics in a poll, the list
//! of all tasks and a shutdown (what is blocked at the end is leaked), overflow of the reference count,
//! parking, timers, names, and any look at whether somebody must be preempted.

use std::alloc::{Layout, dealloc};
use std::cell::{Cell, UnsafeCell};
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::{Output, Runtime};

/// To be polled (again).
const READY: usize = 1;
/// In the queue, being polled, or done: whoever wakes it has nothing to push.
const TAKEN: usize = 2;
/// Each waker has one, and the runtime until the task is done.
const REFERENCE: usize = 4;

struct Header {
    state: AtomicUsize,
    /// The next in the queue.
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
    /// The task is a `Task<F>` and not done, and the caller is the loop.
    unsafe fn poll(task: *const Header, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: the future is the loop's. It never moves: its task doesn't.
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
    /// The task is alive until it is popped, and in no queue.
    #[inline]
    unsafe fn push(&self, task: *const Header) {
        // SAFETY: what is in the queue is alive.
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
        // SAFETY: what is in the queue is alive.
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
    // SAFETY: passed on; the waker's reference is given up last.
    unsafe {
        wake_by_ref(task);
        drop_reference(task);
    }
}

unsafe fn wake_by_ref(task: *const ()) {
    let task = task.cast::<Header>();
    // SAFETY: a waker keeps its task alive. It was not TAKEN, so it is in no queue, and not done, so the runtime's
    // reference keeps it alive from here on.
    unsafe {
        if (*task).state.fetch_or(READY | TAKEN, Ordering::AcqRel) & TAKEN == 0 {
            (*task).queue.push(task);
        }
    }
}

unsafe fn drop_reference(task: *const ()) {
    let task = task.cast::<Header>();
    // SAFETY: a waker keeps its task alive. The last reference goes after the runtime's, so the future is gone.
    unsafe {
        if (*task).state.fetch_sub(REFERENCE, Ordering::AcqRel) < 2 * REFERENCE {
            free(task);
        }
    }
}

/// # Safety
///
/// Nobody holds a reference.
unsafe fn free(task: *const Header) {
    // SAFETY: it was allocated as a box of this layout; nothing in it wants to be dropped.
    unsafe { dealloc(task.cast_mut().cast(), *(*task).layout) };
}

/// Polls a task from the queue.
///
/// # Safety
///
/// It was just popped.
#[inline]
unsafe fn poll(task: *const Header) {
    // SAFETY: TAKEN and not done: the runtime's reference keeps it alive, and the waker borrows that one.
    unsafe {
        let state = &(*task).state;
        state.fetch_and(!READY, Ordering::AcqRel);
        let waker = ManuallyDrop::new(Waker::new(task.cast(), &WAKER));
        match ((*task).poll)(task, &mut Context::from_waker(&waker)) {
            Poll::Pending => loop {
                let now = state.load(Ordering::Relaxed);
                if now & READY != 0 {
                    // It stays TAKEN. What it was woken for is acquired before the next poll.
                    (*task).queue.push(task);
                    break;
                }
                let free = now & !TAKEN;
                if state.compare_exchange(now, free, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    break;
                }
            },
            // It stays TAKEN for ever.
            Poll::Ready(()) => drop_reference(task.cast()),
        }
    }
}

/// The runtime: a queue, leaked.
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
        // SAFETY: a new task, with the runtime's reference.
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
            // SAFETY: it was just popped.
            unsafe { poll(task) };
        }
        output.take().expect("nobody is left to wake main")
    }

    fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.push(future);
    }
}
