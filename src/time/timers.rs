//! A core's timers: a list in the order of their deadlines, whose nodes lie in the futures that
//! wait.

use core::cell::UnsafeCell;
use core::fmt;
use core::future::Future;
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use super::{Instant, NEVER};
use crate::Runtime;
use crate::platform::bound;
use crate::preempt::PreemptLock;
use crate::task::waker;

/// The timers of one core, first to fire first.
///
/// The core itself inserts and fires; a [`Sleep`] that was moved elsewhere is taken out by any core.
/// An interrupt only looks at `next`.
#[derive(Debug)]
pub(crate) struct Timers {
    list: PreemptLock<List>,
    /// The first deadline. Written under the lock.
    next: AtomicU64,
}

#[derive(Debug)]
struct List {
    first: Option<NonNull<Node>>,
}

// SAFETY: nodes are touched only under the lock, wherever their futures go: see `Node`.
unsafe impl Send for List {}

/// A timer in the list. Every field is touched only under the lock of the list that it is in; while
/// it is in none, only by its `Sleep`.
#[derive(Debug)]
struct Node {
    deadline: u64,
    waker: Option<Waker>,
    previous: Option<NonNull<Node>>,
    next: Option<NonNull<Node>>,
    linked: bool,
}

impl Timers {
    pub(crate) const fn new() -> Self {
        Self { list: PreemptLock::new(List { first: None }), next: AtomicU64::new(NEVER) }
    }

    /// When the next timer fires; [`NEVER`] if there is none. Any context.
    #[inline]
    pub(crate) fn next(&self) -> u64 {
        // Relaxed: who inserts is this core. A removal elsewhere only costs an alarm for nothing.
        self.next.load(Ordering::Relaxed)
    }

    /// Wakes all that are due at `now`.
    ///
    /// # Safety
    ///
    /// The caller is the loop of `runtime`, whose timers these are.
    #[inline]
    pub(crate) unsafe fn fire(&self, runtime: &Runtime, now: u64) {
        while self.next() <= now {
            let waker = {
                // SAFETY: the caller is the loop.
                let mut list = unsafe { self.list.lock_with_gate_shut() };
                let Some(first) = list.first else { break };
                // SAFETY: a linked node is alive and ours under the lock.
                if unsafe { first.as_ref() }.deadline > now {
                    break;
                }
                // SAFETY: as above, and so is the next.
                unsafe {
                    let node = first.as_ptr();
                    list.first = (*node).next;
                    (*node).linked = false;
                    if let Some(second) = list.first {
                        (*second.as_ptr()).previous = None;
                    }
                    self.note(&list);
                    (*node).waker.take()
                }
            };
            // Outside of the lock: a waker's code is not ours.
            match waker {
                // SAFETY: the caller is the loop of `runtime`.
                Some(waker) if waker::task_of(&waker).is_some() => unsafe {
                    waker::wake_in_loop(runtime, waker);
                },
                Some(foreign) => runtime.guarded_alone(|| foreign.wake()),
                None => {}
            }
        }
    }

    fn note(&self, list: &List) {
        // SAFETY: a linked node is alive and ours under the lock.
        let next = list.first.map_or(NEVER, |first| unsafe { first.as_ref() }.deadline);
        self.next.store(next, Ordering::Relaxed);
    }
}

impl List {
    /// # Safety
    ///
    /// `node` is in no list and stays alive until it has been removed.
    unsafe fn insert(&mut self, node: NonNull<Node>) {
        // SAFETY: the caller's node and the linked ones are alive and ours under the lock.
        unsafe {
            let deadline = node.as_ref().deadline;
            let mut previous: Option<NonNull<Node>> = None;
            let mut next = self.first;
            // Equal deadlines fire in the order in which they were set.
            while let Some(other) = next.filter(|other| other.as_ref().deadline <= deadline) {
                previous = Some(other);
                next = other.as_ref().next;
            }
            (*node.as_ptr()).previous = previous;
            (*node.as_ptr()).next = next;
            (*node.as_ptr()).linked = true;
            if let Some(next) = next {
                (*next.as_ptr()).previous = Some(node);
            }
            match previous {
                Some(previous) => (*previous.as_ptr()).next = Some(node),
                None => self.first = Some(node),
            }
        }
    }

    /// # Safety
    ///
    /// `node` is in this list.
    unsafe fn remove(&mut self, node: NonNull<Node>) {
        // SAFETY: linked nodes are alive and ours under the lock.
        unsafe {
            let Node { previous, next, .. } = *node.as_ref();
            match previous {
                Some(previous) => (*previous.as_ptr()).next = next,
                None => self.first = next,
            }
            if let Some(next) = next {
                (*next.as_ptr()).previous = previous;
            }
            (*node.as_ptr()).linked = false;
        }
    }
}

/// Waits until `duration` from now.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(super::now() + duration)
}

/// Waits until `deadline`. Ready at once if that has passed.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline: deadline.0,
        runtime: None,
        node: UnsafeCell::new(Node {
            deadline: deadline.0,
            waker: None,
            previous: None,
            next: None,
            linked: false,
        }),
        _pinned: PhantomPinned,
    }
}

/// The future that [`sleep`] and [`sleep_until`] return. Allocates nothing. Cancel-safe.
///
/// The timer belongs to the core on which it is first polled. It may be moved to another core's task
/// after that, and dropped there, in task context.
///
/// # Panics
///
/// Polled on a core that is not inside of a runtime: there would be nobody to fire it.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: u64,
    /// Whose list the node is in or was in.
    runtime: Option<&'static Runtime>,
    node: UnsafeCell<Node>,
    _pinned: PhantomPinned,
}

// SAFETY: the node is touched under its list's lock, which any core may take.
unsafe impl Send for Sleep {}
// SAFETY: nothing is touched through a shared reference.
unsafe impl Sync for Sleep {}

impl Sleep {
    /// The node, to be touched under the lock of its list; never by a reference that claims it
    /// alone, since the list has pointers to it.
    fn node(&self) -> NonNull<Node> {
        // SAFETY: the address of a field.
        unsafe { NonNull::new_unchecked(self.node.get()) }
    }

    /// When it will be ready.
    pub fn deadline(&self) -> Instant {
        Instant(self.deadline)
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        if this.deadline <= bound::now() {
            return Poll::Ready(());
        }
        // A user's code, so before the lock.
        let waker = context.waker().clone();
        let node = this.node();
        if let Some(runtime) = this.runtime {
            let list = runtime.timers().list.lock();
            // SAFETY: under the lock of the only list that it can be in.
            let (linked, old) =
                unsafe { ((*node.as_ptr()).linked, (*node.as_ptr()).waker.replace(waker)) };
            drop(list);
            drop(old);
            // It was unlinked when it was due, perhaps just now on another core.
            return if linked { Poll::Pending } else { Poll::Ready(()) };
        }
        let Some(runtime) = bound::slot().runtime() else {
            panic!(
                "a Sleep was polled outside of a runtime: poll it in Runtime::enter or run_until"
            )
        };
        this.runtime = Some(runtime);
        let mut list = runtime.timers().list.lock();
        // SAFETY: it is in no list, pinned, and removed by `drop` at the latest.
        unsafe {
            (*node.as_ptr()).waker = Some(waker);
            list.insert(node);
        }
        runtime.timers().note(&list);
        if runtime.is_on_stack() {
            runtime.alarm().set_by(runtime.timers().next());
        } else {
            // The loop will, before it gives the core away again.
            runtime.gate().call();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime else { return };
        let mut list = runtime.timers().list.lock();
        let node = self.node();
        // SAFETY: under the lock of the only list that it can be in.
        if unsafe { node.as_ref() }.linked {
            // SAFETY: it is in this list.
            unsafe { list.remove(node) };
            runtime.timers().note(&list);
        }
        // The waker is dropped after the lock, with the node.
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}
