//! A core's timers: a list in the order of their deadlines, whose nodes lie in the futures that
//! wait.

use core::cell::UnsafeCell;
use core::fmt;
use core::future::Future;
use core::marker::PhantomPinned;
use core::pin::Pin;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use super::{Instant, NEVER};
use crate::Runtime;
use crate::platform::bound;
use crate::preempt::{PreemptGuard, PreemptLock};
use crate::task::waker;
use crate::yield_now::yield_in;

/// The timers of one core, first to fire first.
///
/// The core itself inserts and fires; a [`Sleep`] that was moved elsewhere is taken out by any core, which
/// then puts it into its own list. An interrupt only looks at `next`.
#[derive(Debug)]
pub(crate) struct Timers {
    list: PreemptLock<List>,
    /// The first deadline. Written under the lock.
    next: AtomicU64,
}

#[derive(Debug)]
struct List {
    first: Option<NonNull<Node>>,
    /// Its runtime has been shut down, so nothing is put in any more.
    closed: bool,
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
    /// It was taken out since it was due.
    fired: bool,
}

impl Timers {
    pub(crate) const fn new() -> Self {
        Self {
            list: PreemptLock::new(List { first: None, closed: false }),
            next: AtomicU64::new(NEVER),
        }
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
    #[inline(always)]
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
                // SAFETY: as above.
                unsafe {
                    list.remove(first);
                    self.note(&list);
                    (*first.as_ptr()).fired = true;
                    (*first.as_ptr()).waker.take()
                }
            };
            // Outside of the lock: a waker's code is not ours.
            match waker {
                // SAFETY: the caller is the loop of `runtime`.
                Some(waker) if waker::task_of(&waker).is_some() => unsafe {
                    waker::wake_in_loop(runtime, waker);
                },
                Some(foreign) => runtime.catch_panic(|| foreign.wake()),
                None => {}
            }
        }
    }

    /// Takes all timers out and wakes their tasks, and puts none in from now on: the runtime has been shut down.
    /// A `Sleep` that is still in the list belongs to a task of another runtime, whose next poll puts it into
    /// that runtime's list.
    pub(crate) fn close(&self, runtime: &Runtime) {
        loop {
            let waker = {
                let mut list = self.list.lock();
                list.closed = true;
                let Some(first) = list.first else { break };
                // SAFETY: a linked node is alive and ours under the lock.
                unsafe {
                    list.remove(first);
                    self.note(&list);
                    (*first.as_ptr()).waker.take()
                }
            };
            // Outside of the lock, as in `fire`.
            if let Some(waker) = waker {
                runtime.catch_panic(|| waker.wake());
            }
        }
    }

    /// Puts a timer in, and takes its waker. `false`: the runtime has been shut down.
    ///
    /// # Safety
    ///
    /// `node` is in no list and stays alive until it has been removed. The caller is on the core of these
    /// timers' runtime.
    unsafe fn insert(&self, node: NonNull<Node>, waker: &mut Option<Waker>) -> bool {
        let mut list = self.list.lock();
        if list.closed {
            return false;
        }
        // SAFETY: in no list, so ours; and the caller's promise.
        unsafe {
            (*node.as_ptr()).waker = waker.take();
            list.insert(node);
        }
        self.note(&list);
        true
    }

    /// Gives a timer another waker if it is in, and takes that.
    ///
    /// # Safety
    ///
    /// `node` is in no other list.
    unsafe fn renew(&self, node: NonNull<Node>, waker: &mut Option<Waker>) -> Found {
        let _list = self.list.lock();
        // SAFETY: under the lock of the only list that it can be in.
        unsafe {
            let mut old = None;
            if (*node.as_ptr()).linked {
                old = (*node.as_ptr()).waker.take();
                (*node.as_ptr()).waker = waker.take();
            }
            Found { fired: (*node.as_ptr()).fired, _waker: old }
        }
    }

    /// Takes a timer out if it is in.
    ///
    /// # Safety
    ///
    /// `node` is in no other list.
    unsafe fn remove(&self, node: NonNull<Node>) -> Found {
        let mut list = self.list.lock();
        // SAFETY: under the lock of the only list that it can be in.
        unsafe {
            if (*node.as_ptr()).linked {
                list.remove(node);
                self.note(&list);
            }
            Found { fired: (*node.as_ptr()).fired, _waker: (*node.as_ptr()).waker.take() }
        }
    }

    fn note(&self, list: &List) {
        // SAFETY: a linked node is alive and ours under the lock.
        let next = list.first.map_or(NEVER, |first| unsafe { first.as_ref() }.deadline);
        self.next.store(next, Ordering::Relaxed);
    }
}

/// How a [`Sleep`] found its timer.
struct Found {
    fired: bool,
    /// The waker that it had. To be dropped outside of the lock, being a user's code.
    _waker: Option<Waker>,
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

/// Waits until `duration` from now (from this call, not from the first poll). If that time is over when
/// it is first polled, as with a `duration` of zero, it lets other tasks have the core once, as
/// [`yield_now`](crate::yield_now()) does.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(super::now() + duration)
}

/// Waits until `deadline`. If that has passed when it is first polled, it lets other tasks have the core
/// once, as [`yield_now`](crate::yield_now()) does.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep {
        deadline: deadline.0,
        polled: false,
        runtime: None,
        node: UnsafeCell::new(Node {
            deadline: deadline.0,
            waker: None,
            previous: None,
            next: None,
            linked: false,
            fired: false,
        }),
        _pinned: PhantomPinned,
    }
}

/// The future that [`sleep`] and [`sleep_until`] return. Allocates nothing. Cancel-safe.
///
/// A `Sleep` belongs to the runtime that polled it last, whose loop wakes the task when it is time. It
/// may be moved to a task of another runtime, on the same core or on another, also after it has been
/// polled: the next poll there makes it that runtime's. Until that poll the old runtime fires it, as
/// long as a core is inside of that. A [`shutdown`](crate::Runtime::shutdown) of the old runtime wakes
/// the task, which then polls it in its own. It may be dropped on any core, in task context.
///
/// Polled outside of any runtime, it stays with the one that it has.
///
/// # Panics
///
/// Polled before its time on a core that is not inside of a runtime, if it belongs to no runtime yet,
/// or to one that has been shut down: nothing would fire it.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: u64,
    polled: bool,
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

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out.
        let polled =
            core::mem::replace(unsafe { &mut self.as_mut().get_unchecked_mut().polled }, true);
        let poll = self.poll_deadline(context);
        if poll.is_ready() && !polled {
            // A loop around it would keep the core for itself.
            yield_in(context);
            return Poll::Pending;
        }
        poll
    }
}

impl Sleep {
    /// Ready as soon as the deadline has passed.
    pub(super) fn poll_deadline(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        if this.deadline <= bound::now() {
            return Poll::Ready(());
        }
        let here = bound::slot().runtime();
        let node = this.node();
        // A user's code is not called under a lock: the new waker is cloned before, the old one dropped after.
        let mut waker = Some(context.waker().clone());
        if let Some(home) = this.runtime {
            let found = if here.is_none_or(|here| ptr::eq(here, home)) {
                // SAFETY: it is in no other list.
                unsafe { home.timers().renew(node, &mut waker) }
            } else {
                // SAFETY: as above.
                unsafe { home.timers().remove(node) }
            };
            // It was taken out when it was due, perhaps just now on another core.
            if found.fired {
                return Poll::Ready(());
            }
            if waker.is_none() {
                return Poll::Pending;
            }
        }
        let Some(runtime) = here else {
            panic!(
                "a Sleep was polled outside of a runtime: poll it in Runtime::enter or run_until"
            )
        };
        this.runtime = Some(runtime);
        // SAFETY: it is in no list, pinned, and removed by `drop` at the latest; this is the runtime's core.
        if !unsafe { runtime.timers().insert(node, &mut waker) } {
            // In its shutdown: it is woken at once, like those that were in the list.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if runtime.is_on_stack() {
            // Preempted between the two steps of it, the task would go on to set what the loop has set since.
            let _guard = PreemptGuard::new();
            runtime.alarm().set_by(runtime.timers().next());
        } else {
            // The loop will, before it gives the core away again.
            runtime.preempt_count().set_need_resched();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime {
            // SAFETY: it can be in no other list.
            unsafe { runtime.timers().remove(self.node()) };
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}
