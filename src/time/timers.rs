//! A core's timers: a list in the order of their deadlines. Its nodes lie in the futures that wait.

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

/// The timers of one core, in the order in which they fire.
///
/// Only the core itself inserts timers and fires them. Any core may take a [`Sleep`] out: a core
/// that drops it, or a core that polls it in another runtime and then puts it into that runtime's
/// list. An interrupt only reads `next`.
#[derive(Debug)]
pub(crate) struct Timers {
    list: PreemptLock<List>,
    /// The first deadline, or [`NEVER`]. Written under the lock.
    next: AtomicU64,
}

/// The list of timers, which the lock guards.
#[derive(Debug)]
struct List {
    first: Option<NonNull<Node>>,
    /// Whether the runtime has been shut down, so that no timer is put in any more.
    closed: bool,
}

// SAFETY: nodes are touched only under the lock, wherever their futures are moved: see `Node`.
unsafe impl Send for List {}

/// A timer in the list. While the node is in a list, every field is touched only under that list's
/// lock; while it is in none, only by its `Sleep`.
#[derive(Debug)]
struct Node {
    deadline: u64,
    waker: Option<Waker>,
    previous: Option<NonNull<Node>>,
    next: Option<NonNull<Node>>,
    linked: bool,
    /// Whether the timer was taken out of the list because it was due.
    fired: bool,
}

impl Timers {
    pub(crate) const fn new() -> Self {
        Self {
            list: PreemptLock::new(List { first: None, closed: false }),
            next: AtomicU64::new(NEVER),
        }
    }

    /// Returns the next deadline; [`NEVER`] if there is no timer. Any context.
    #[inline]
    pub(crate) fn next(&self) -> u64 {
        // Relaxed: only this core inserts. A removal by another core that this load misses costs an
        // alarm that was not necessary.
        self.next.load(Ordering::Relaxed)
    }

    /// Takes out all timers that are due at `now`, and wakes their wakers.
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
                // SAFETY: a linked node is alive, and this code's under the lock.
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
            // Outside of the lock, since a waker may run user code.
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

    /// Takes all timers out and wakes their tasks, and lets none in from now on: the runtime has
    /// been shut down. A `Sleep` that is still in the list belongs to a task of another runtime.
    /// The next poll of that task puts it into that runtime's list.
    pub(crate) fn close(&self, runtime: &Runtime) {
        loop {
            let waker = {
                let mut list = self.list.lock();
                list.closed = true;
                let Some(first) = list.first else { break };
                // SAFETY: a linked node is alive, and this code's under the lock.
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

    /// Puts a timer in, and takes the waker out of `waker`. Returns `false` if the runtime has been
    /// shut down.
    ///
    /// # Safety
    ///
    /// `node` is in no list, and stays alive until it has been removed. The caller is on the core
    /// of these timers' runtime.
    unsafe fn insert(&self, node: NonNull<Node>, waker: &mut Option<Waker>) -> bool {
        let mut list = self.list.lock();
        if list.closed {
            return false;
        }
        // SAFETY: `node` is in no list, so it is the caller's. The caller promises the rest.
        unsafe {
            (*node.as_ptr()).waker = waker.take();
            list.insert(node);
        }
        self.note(&list);
        true
    }

    /// Gives a timer the new waker, if the timer is in the list, and takes that waker out of
    /// `waker`.
    ///
    /// # Safety
    ///
    /// `node` is in no other list.
    unsafe fn renew(&self, node: NonNull<Node>, waker: &mut Option<Waker>) -> Found {
        let _list = self.list.lock();
        // SAFETY: the lock that is held is that of the only list that the node can be in.
        unsafe {
            let mut old = None;
            if (*node.as_ptr()).linked {
                old = (*node.as_ptr()).waker.take();
                (*node.as_ptr()).waker = waker.take();
            }
            Found { fired: (*node.as_ptr()).fired, _waker: old }
        }
    }

    /// Takes a timer out, if it is in the list.
    ///
    /// # Safety
    ///
    /// `node` is in no other list.
    unsafe fn remove(&self, node: NonNull<Node>) -> Found {
        let mut list = self.list.lock();
        // SAFETY: the lock that is held is that of the only list that the node can be in.
        unsafe {
            if (*node.as_ptr()).linked {
                list.remove(node);
                self.note(&list);
            }
            Found { fired: (*node.as_ptr()).fired, _waker: (*node.as_ptr()).waker.take() }
        }
    }

    /// Notes the first deadline of the list in `next`.
    fn note(&self, list: &List) {
        // SAFETY: a linked node is alive, and this code's under the lock.
        let next = list.first.map_or(NEVER, |first| unsafe { first.as_ref() }.deadline);
        self.next.store(next, Ordering::Relaxed);
    }
}

/// The state in which a [`Sleep`] found its timer.
struct Found {
    fired: bool,
    /// The waker that the timer had. It is dropped outside of the lock, since its drop may run user
    /// code.
    _waker: Option<Waker>,
}

impl List {
    /// Inserts `node` before the first node with a later deadline.
    ///
    /// # Safety
    ///
    /// `node` is in no list, and stays alive until it has been removed.
    unsafe fn insert(&mut self, node: NonNull<Node>) {
        // SAFETY: the caller's node and the linked nodes are alive, and this code's under the lock.
        unsafe {
            let deadline = node.as_ref().deadline;
            let mut previous: Option<NonNull<Node>> = None;
            let mut next = self.first;
            // Timers with equal deadlines fire in the order in which they were set.
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

    /// Takes `node` out of the list.
    ///
    /// # Safety
    ///
    /// `node` is in this list.
    unsafe fn remove(&mut self, node: NonNull<Node>) {
        // SAFETY: linked nodes are alive, and this code's under the lock.
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

/// Waits until `duration` has passed since this call (and not since the first poll). If that time
/// is over at the first poll, as with a `duration` of zero, the future lets other tasks have the
/// core once, as [`yield_now`](crate::yield_now()) does.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(super::now() + duration)
}

/// Waits until `deadline`. If that has passed at the first poll, the future lets other tasks have
/// the core once, as [`yield_now`](crate::yield_now()) does.
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
/// A `Sleep` belongs to the runtime that polled it last, whose loop wakes the task when the
/// deadline has passed. A `Sleep` may be moved to a task of another runtime, on the same core or on
/// another, also after it has been polled: the next poll there makes it that runtime's. Until that
/// poll the old runtime fires it, as long as a core is inside of the old runtime. A
/// [`shutdown`](crate::Runtime::shutdown) of the old runtime wakes the task, which then polls the
/// `Sleep` in its own runtime. A `Sleep` may be dropped on any core, in task context.
///
/// Polled outside of any runtime, a `Sleep` stays with the runtime that it belongs to.
///
/// # Panics
///
/// If it is polled before its deadline on a core that is not inside of a runtime, and it belongs to
/// no runtime yet or to one that has been shut down: no runtime would fire it.
#[must_use = "futures do nothing unless awaited"]
pub struct Sleep {
    deadline: u64,
    polled: bool,
    /// The runtime in whose list the node is or was.
    runtime: Option<&'static Runtime>,
    node: UnsafeCell<Node>,
    _pinned: PhantomPinned,
}

// SAFETY: the node is touched under its list's lock, which any core may take.
unsafe impl Send for Sleep {}
// SAFETY: nothing that can change is accessed through a shared reference.
unsafe impl Sync for Sleep {}

impl Sleep {
    /// Returns the node, which is touched only under the lock of its list. No `&mut` to it may
    /// exist, since the list has pointers to it.
    fn node(&self) -> NonNull<Node> {
        // SAFETY: the address of a field is not null.
        unsafe { NonNull::new_unchecked(self.node.get()) }
    }

    /// Returns when the future will be ready.
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
            // Without the yield, a loop that awaits such a `Sleep` would keep the core for itself.
            yield_in(context);
            return Poll::Pending;
        }
        poll
    }
}

impl Sleep {
    /// Becomes ready as soon as the deadline has passed, without a yield.
    pub(super) fn poll_deadline(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        // SAFETY: nothing is moved out.
        let this = unsafe { self.get_unchecked_mut() };
        if this.deadline <= bound::now() {
            return Poll::Ready(());
        }
        let here = bound::slot().runtime();
        let node = this.node();
        // No user code is called under a lock: the new waker is cloned before, and the old one is
        // dropped after.
        let mut waker = Some(context.waker().clone());
        if let Some(owner) = this.runtime {
            let found = if here.is_none_or(|here| ptr::eq(here, owner)) {
                // SAFETY: the node is in no other list than that of its runtime.
                unsafe { owner.timers().renew(node, &mut waker) }
            } else {
                // SAFETY: as above.
                unsafe { owner.timers().remove(node) }
            };
            // The timer was taken out when it was due, perhaps just now on another core.
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
        // SAFETY: the node is in no list, is pinned, and is removed by `drop` at the latest. This
        // is the core of the runtime.
        if !unsafe { runtime.timers().insert(node, &mut waker) } {
            // The runtime is in its shutdown: the task is woken at once, like those with timers in
            // the list.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if runtime.is_on_stack() {
            // Without the guard, the task could be preempted between the two steps of `set_by`, and
            // then set an alarm in place of the one that the loop has set since.
            let _guard = PreemptGuard::new();
            runtime.alarm().set_by(runtime.timers().next());
        } else {
            // The loop sets the alarm before it gives the core away again.
            runtime.preempt_count().set_need_resched();
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime {
            // SAFETY: the node can be in no other list than that of its runtime.
            unsafe { runtime.timers().remove(self.node()) };
        }
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline()).finish_non_exhaustive()
    }
}
