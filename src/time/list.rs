//! A core's timers: a list in the order of their deadlines. Its nodes lie in the futures that wait.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Waker;

use crate::sync::lock::SpinLock;
use crate::time::alarm::NEVER;

/// The timers of one core, in the order in which they fire.
///
/// Only the core itself inserts timers and fires them. Any core may take a
/// [`Sleep`](super::Sleep) out: a core that drops it, or a core that polls it in another runtime
/// and then puts it into that runtime's list. An interrupt only reads `next`.
#[derive(Debug)]
pub(crate) struct Timers {
    list: SpinLock<List>,
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
pub(crate) struct Node {
    deadline: u64,
    waker: Option<Waker>,
    previous: Option<NonNull<Node>>,
    next: Option<NonNull<Node>>,
    linked: bool,
    /// Whether the timer was taken out of the list because it was due.
    fired: bool,
}

impl Node {
    /// A timer that is in no list.
    pub(crate) const fn new(deadline: u64) -> Self {
        Self { deadline, waker: None, previous: None, next: None, linked: false, fired: false }
    }
}

impl Timers {
    pub(crate) const fn new() -> Self {
        Self {
            list: SpinLock::new(List { first: None, closed: false }),
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

    /// Takes out the first timer if it is due at `now`, and returns its waker, if it has one.
    ///
    /// # Safety
    ///
    /// The caller is the loop of the runtime whose timers these are.
    #[inline(always)]
    pub(crate) unsafe fn pop_due(&self, now: u64) -> Option<Option<Waker>> {
        if self.next() > now {
            return None;
        }
        // SAFETY: the loop runs in task context, with preemption disabled.
        let mut list = unsafe { self.list.lock() };
        let first = list.first?;
        // SAFETY: a linked node is alive and ours under the lock.
        unsafe {
            if first.as_ref().deadline > now {
                return None;
            }
            list.remove(first);
            self.note(&list);
            (*first.as_ptr()).fired = true;
            Some((*first.as_ptr()).waker.take())
        }
    }

    /// Takes out the first timer, due or not, and returns its waker, if it has one. No timer is put
    /// in from now on: the runtime has been shut down. A `Sleep` that is taken out here belongs to
    /// a task of another runtime, and its next poll puts it into that runtime's list.
    ///
    /// # Safety
    ///
    /// Task context, with preemption disabled.
    pub(crate) unsafe fn close(&self) -> Option<Option<Waker>> {
        // SAFETY: the caller's promise.
        let mut list = unsafe { self.list.lock() };
        list.closed = true;
        let first = list.first?;
        // SAFETY: a linked node is alive and ours under the lock.
        unsafe {
            list.remove(first);
            self.note(&list);
            Some((*first.as_ptr()).waker.take())
        }
    }

    /// Puts a timer in, and takes the waker out of `waker`. Returns `false` if the runtime has been
    /// shut down.
    ///
    /// # Safety
    ///
    /// - `node` is in no list, and stays alive until it has been removed.
    /// - The caller is on the core of these timers' runtime.
    /// - The caller is in task context, with preemption disabled.
    pub(crate) unsafe fn insert(&self, node: NonNull<Node>, waker: &mut Option<Waker>) -> bool {
        // SAFETY: the caller's promise.
        let mut list = unsafe { self.list.lock() };
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
    /// - `node` is in no other list.
    /// - The caller is in task context, with preemption disabled.
    pub(crate) unsafe fn renew(&self, node: NonNull<Node>, waker: &mut Option<Waker>) -> Found {
        // SAFETY: the caller's promise.
        let _list = unsafe { self.list.lock() };
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
    /// - `node` is in no other list.
    /// - The caller is in task context, with preemption disabled.
    pub(crate) unsafe fn remove(&self, node: NonNull<Node>) -> Found {
        // SAFETY: the caller's promise.
        let mut list = unsafe { self.list.lock() };
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

/// The state in which a [`Sleep`](super::Sleep) found its timer.
pub(crate) struct Found {
    pub(crate) fired: bool,
    /// The waker that the timer had. It is dropped outside of the lock, since its drop may run user
    /// code.
    pub(super) _waker: Option<Waker>,
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
