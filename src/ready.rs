//! The ready queue of a runtime: the FIFO of the owning core's task context, and the inbox that all
//! other code pushes into.
//!
//! Only the owning core touches the FIFO, in task context, with preemption disabled ([the short
//! way](on_fast_path)). "This is the owning core" is true in an interrupt on that core as well, and
//! one that came halfway through a push would lose a task; so would a task that is preempted there.
//! All other code publishes to the inbox: a stack of tasks on one atomic word, pushed by one
//! compare-and-swap and
//! taken whole by one swap. (A stack that is only ever taken whole has no ABA problem.) An
//! interrupted pusher leaves nothing half pushed.
//!
//! The word's low bits say what the owning core is doing, so the same compare-and-swap that
//! publishes a task tells the pusher whether to get that core's attention. Nothing can slip in
//! between: the core announces that it parks by a compare-and-swap on the same word, which fails if a
//! task was pushed.

use core::ptr::{self, NonNull};

use crate::Runtime;
use crate::freelist::FreeList;
use crate::platform::{InInterrupt, bound};
use crate::preempt::PreemptGuard;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::const_fn;
use crate::sync::local::{self, Cell};
use crate::task::{Header, Link};

/// Tasks in the order in which they will be polled. Owning core, in task context, with preemption
/// disabled; its interrupts may ask whether it is empty.
#[derive(Debug)]
pub(crate) struct Fifo {
    /// Interrupts look whether it is null.
    head: local::AtomicPtr<Header>,
    /// The last one, unless it is empty.
    tail: Cell<Link>,
}

impl Fifo {
    pub(crate) const fn new() -> Self {
        Self { head: local::AtomicPtr::new(ptr::null_mut()), tail: Cell::new(None) }
    }

    /// Its core, any context.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// The one that [`pop`](Self::pop) would give.
    #[inline]
    pub(crate) fn first(&self) -> Link {
        NonNull::new(self.head.load(Ordering::Relaxed))
    }

    /// Whether `task`, which is the first, is the only one.
    #[inline]
    pub(crate) fn is_last(&self, task: NonNull<Header>) -> bool {
        self.tail.get() == Some(task)
    }

    /// Appends `task`, and pops the first.
    ///
    /// # Safety
    ///
    /// As [`push_back`](Self::push_back).
    #[inline]
    pub(crate) unsafe fn rotate(&self, task: NonNull<Header>) -> NonNull<Header> {
        let Some(first) = self.first() else { return task };
        let last = self.tail.replace(Some(task)).unwrap_or(first);
        // SAFETY: the caller owns the task's link, and a task in the FIFO is alive, and its link is
        // ours. In this order: the first may be the last.
        unsafe {
            set_next(task, None);
            set_next(last, Some(task));
            self.set_first(next(first));
        }
        first
    }

    #[inline]
    fn set_first(&self, task: Link) {
        self.head.store(task.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Relaxed);
    }

    /// # Safety
    ///
    /// For this and the other functions that take a task: the caller is the owning core's loop (or
    /// task context with preemption off that the loop is waiting for), the task is alive until it
    /// is popped, and it is in no queue.
    #[inline]
    pub(crate) unsafe fn push_back(&self, task: NonNull<Header>) {
        // SAFETY: the caller owns the task's link (rule 3 of the task's fields).
        unsafe { set_next(task, None) };
        self.append(task, task);
    }

    /// Appends tasks that are linked, `first` to `last`.
    #[inline]
    fn append(&self, first: NonNull<Header>, last: NonNull<Header>) {
        let before = self.tail.replace(Some(last));
        match before.filter(|_| !self.is_empty()) {
            // SAFETY: a task in the FIFO is alive, and its link is ours.
            Some(before) => unsafe { set_next(before, Some(first)) },
            None => self.set_first(Some(first)),
        }
    }

    /// # Safety
    ///
    /// As [`push_back`](Self::push_back).
    pub(crate) unsafe fn push_front(&self, task: NonNull<Header>) {
        let second = self.first();
        // SAFETY: as `push_back`.
        unsafe { set_next(task, second) };
        self.set_first(Some(task));
        if second.is_none() {
            self.tail.set(Some(task));
        }
    }

    #[inline]
    pub(crate) fn pop(&self) -> Link {
        let task = self.first()?;
        // SAFETY: a task in the FIFO is alive, and its link is ours.
        self.set_first(unsafe { next(task) });
        Some(task)
    }

    /// Calls `f` for each task, first to last. It puts none in and takes none out.
    pub(crate) fn each(&self, mut f: impl FnMut(NonNull<Header>)) {
        let mut rest = self.first();
        while let Some(task) = rest {
            f(task);
            // SAFETY: a task in the FIFO is alive, and its link is ours.
            rest = unsafe { next(task) };
        }
    }

    /// Appends a chain of tasks of which the last was pushed first.
    ///
    /// # Safety
    ///
    /// As [`push_back`](Self::push_back), for each of them.
    unsafe fn append_reversed(&self, newest: Link) {
        let Some(last) = newest else { return };
        // Turn the chain round in place: it becomes first-pushed to last-pushed.
        let mut first = last;
        // SAFETY: the caller owns the chain's links.
        let mut rest = unsafe { next(last) };
        // SAFETY: as above.
        unsafe { set_next(last, None) };
        while let Some(task) = rest {
            // SAFETY: as above.
            unsafe {
                rest = next(task);
                set_next(task, Some(first));
            }
            first = task;
        }
        self.append(first, last);
    }
}

/// # Safety
///
/// `task` is alive and its link is the caller's.
#[inline]
unsafe fn next(task: NonNull<Header>) -> Link {
    // SAFETY: the caller's promise.
    unsafe { task.as_ref().next.with(|next| *next) }
}

/// # Safety
///
/// As [`next`].
#[inline]
unsafe fn set_next(task: NonNull<Header>, to: Link) {
    // SAFETY: the caller's promise.
    unsafe { task.as_ref().next.with_mut(|next| *next = to) }
}

/// The owning core is parked, or will be as soon as it has masked and looked: a push must wake it.
const PARKED: usize = 1;
/// The owning core is on a stackful task's stack: an urgent push must interrupt it.
const STACKFUL: usize = 2;
/// The runtime has been shut down: no new tasks.
const CLOSED: usize = 4;
const TAGS: usize = PARKED | STACKFUL | CLOSED;

/// Where everyone but the loop publishes tasks.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// The task that was pushed last, and the tags.
    word: AtomicPtr<Header>,
}

/// What a push is for, which decides who is disturbed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// A wake or a spawn from another core. A running stackful task is preempted for it.
    Urgent,
    /// A wake or a spawn on the owning core. Its task context disturbs nobody, and an interrupt ends
    /// in `on_interrupt`, which looks into the inbox. Only a parked core is woken: the interrupt may
    /// be one that the platform cannot see.
    Local,
    /// A task to be freed: it can wait until the core is there anyway.
    Reap,
}

/// The inbox is closed.
#[derive(Debug)]
pub(crate) struct Closed;

fn tags(word: *mut Header) -> usize {
    word.addr() & TAGS
}

fn task_of(word: *mut Header) -> Link {
    NonNull::new(word.map_addr(|address| address & !TAGS))
}

fn tagged(tags: usize) -> *mut Header {
    ptr::without_provenance_mut(tags)
}

impl Inbox {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self { word: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// One relaxed look, for the loop between two polls, and for an interrupt.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: `take` acquires.
        self.word.load(Ordering::Relaxed).addr() & !TAGS == 0
    }

    /// Publishes a task. Returns whether the owning core must be woken.
    ///
    /// # Safety
    ///
    /// The caller was told to push the task, which stays alive until it is taken.
    pub(crate) unsafe fn push(&self, task: NonNull<Header>, push: Push) -> bool {
        // SAFETY: passed on.
        let pushed = unsafe { self.publish(task, push, 0) };
        // No tag refuses it.
        pushed.unwrap_or(false)
    }

    /// Publishes a new task, unless the runtime has been shut down.
    ///
    /// # Safety
    ///
    /// As [`push`](Self::push).
    pub(crate) unsafe fn push_new(
        &self,
        task: NonNull<Header>,
        push: Push,
    ) -> Result<bool, Closed> {
        // SAFETY: passed on.
        unsafe { self.publish(task, push, CLOSED) }
    }

    /// Pushes unless a tag of `refused` is set.
    ///
    /// # Safety
    ///
    /// As [`push`](Self::push).
    unsafe fn publish(
        &self,
        task: NonNull<Header>,
        push: Push,
        refused: usize,
    ) -> Result<bool, Closed> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            let tags = tags(word);
            if tags & refused != 0 {
                return Err(Closed);
            }
            let notifies = match push {
                Push::Urgent => PARKED | STACKFUL,
                Push::Local => PARKED,
                Push::Reap => 0,
            };
            let notify = tags & notifies != 0;
            // The first who notifies takes the request along; the others leave it to whom it concerns.
            let kept = if notify { tags & CLOSED } else { tags };
            // SAFETY: the link is the pusher's until the swap (rule 3).
            unsafe { set_next(task, task_of(word)) };
            let new = task.as_ptr().map_addr(|address| address | kept);
            // Release pairs with the acquire in `take`: the link, and for a new task all of it. Older
            // pushes keep their effect since each push is a read-modify-write. Acquire pairs with
            // the release in `announce`: who notifies must see which core it is.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(notify),
                Err(found) => word = found,
            }
        }
    }

    /// Moves all that was pushed to the FIFO, in the order of the pushes, and forgets what the core
    /// announced. Owning core's loop.
    #[inline(never)]
    pub(crate) fn take(&self, to: &Fifo, closed: bool) {
        let left = tagged(if closed { CLOSED } else { 0 });
        // Acquire pairs with the release in `publish`. Nothing is released: the tags carry no data.
        let word = self.word.swap(left, Ordering::Acquire);
        // SAFETY: what was pushed is alive, in no other queue, and from now on the owning core's.
        unsafe { to.append_reversed(task_of(word)) };
    }

    /// Announces that the core parks. `false`: something was pushed. Owning core's loop, with
    /// interrupts masked.
    #[must_use]
    pub(crate) fn announce_park(&self) -> bool {
        self.announce(PARKED)
    }

    /// Announces that the core enters a stackful task's stack. `false`: something was pushed. Owning
    /// core's loop.
    #[inline]
    #[must_use]
    pub(crate) fn announce_stackful(&self) -> bool {
        // A tag that is there already was put there by this core, and costs nothing to keep.
        self.word.load(Ordering::Relaxed) == tagged(STACKFUL) || self.announce(STACKFUL)
    }

    fn announce(&self, tag: usize) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if task_of(word).is_some() {
                return false;
            }
            let new = tagged(tags(word) & CLOSED | tag);
            // Pusher and core agree by the order of changes to this one word. Release is for what the
            // pusher reads to notify: the number of this core.
            match self.word.compare_exchange_weak(word, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
    }

    /// Refuses new tasks from now on, and moves what was pushed to the FIFO. Owning core.
    pub(crate) fn close(&self, to: &Fifo) {
        self.take(to, true);
    }
}

/// Whether this is task context of `runtime`'s own core with preemption disabled, where nothing can
/// come between: only there may other code than the loop touch its FIFO, or free memory. A stackful
/// task's code makes it so with a [`PreemptGuard`].
#[inline]
pub(crate) fn on_fast_path(runtime: &Runtime) -> bool {
    is_local(runtime) && !runtime.preempt_count().is_zero()
}

/// Whether this is certainly task context of `runtime`'s own core.
#[inline]
pub(crate) fn is_local(runtime: &Runtime) -> bool {
    bound::slot().runtime().is_some_and(|own| ptr::eq(own, runtime))
        && bound::in_interrupt() == InInterrupt::No
}

/// Publishes a task of `runtime`. Any context, with preemption off.
///
/// # Safety
///
/// Its state word told the caller to push it.
pub(crate) unsafe fn push(runtime: &Runtime, task: NonNull<Header>) {
    if on_fast_path(runtime) {
        // SAFETY: this is the owning core, in task context between two steps of its loop, with
        // preemption disabled; the task is alive while it is queued.
        unsafe { runtime.ready().push_back(task) };
        return;
    }
    // SAFETY: the state word said so; the runtime's reference keeps the task until it is taken.
    if unsafe { runtime.inbox().push(task, urgency(runtime)) } {
        runtime.wake_core();
    }
}

/// From where something is asked of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From where the [fast path](on_fast_path) is open.
    Local,
    /// From any other context.
    Remote,
}

/// Where the caller is.
#[inline]
pub(crate) fn origin(runtime: &Runtime) -> Origin {
    if on_fast_path(runtime) { Origin::Local } else { Origin::Remote }
}

/// Publishes a new task. Any context.
///
/// # Safety
///
/// `task` is of this runtime, new, and the caller holds the reference that goes with the queue. `origin` is
/// the caller's.
#[inline]
pub(crate) unsafe fn push_new(
    runtime: &Runtime,
    task: NonNull<Header>,
    origin: Origin,
) -> Result<(), Closed> {
    if origin == Origin::Remote {
        // SAFETY: passed on.
        return unsafe { push_new_remote(runtime, task) };
    }
    if runtime.is_closed() {
        return Err(Closed);
    }
    // SAFETY: as in `push`.
    unsafe { runtime.ready().push_back(task) };
    Ok(())
}

/// # Safety
///
/// As [`push_new`].
#[inline(never)]
unsafe fn push_new_remote(runtime: &Runtime, task: NonNull<Header>) -> Result<(), Closed> {
    let _guard = PreemptGuard::new();
    // SAFETY: passed on.
    if unsafe { runtime.inbox().push_new(task, urgency(runtime)) }? {
        runtime.wake_core();
    }
    Ok(())
}

/// Frees a task whose last reference is gone: here, if that needs no allocator, which the caller may be in the
/// middle of; else by its runtime's loop. Any context.
#[inline(never)]
pub(crate) fn free(task: NonNull<Header>) {
    // SAFETY: without references it is the caller's alone.
    let Some(runtime) = unsafe { task.as_ref() }.runtime.get() else { return };
    if on_fast_path(runtime) {
        free_local(runtime, task, Some(runtime.free_list()));
    } else {
        free_with_guard(runtime, task);
    }
}

/// The same in a stackful task, which may be preempted here, and elsewhere.
#[inline(never)]
fn free_with_guard(runtime: &'static Runtime, task: NonNull<Header>) {
    let _guard = PreemptGuard::new();
    free_local(runtime, task, on_fast_path(runtime).then(|| runtime.free_list()));
}

/// `free_list` is that of `runtime` where the [fast path](on_fast_path) is open.
#[inline]
fn free_local(runtime: &Runtime, task: NonNull<Header>, free_list: Option<&FreeList>) {
    // SAFETY: as in `free`.
    let header = unsafe { task.as_ref() };
    let free_list = free_list.filter(|free_list| free_list.keeps(header.vtable.layout));
    if header.vtable.freed_anywhere || free_list.is_some() {
        // SAFETY: it calls no allocator, and the free_list is used in task context of its core; the references are
        // gone, and future and output went before them.
        unsafe { Header::free(task, free_list) };
    } else {
        // SAFETY: the caller's alone, and in no queue, since it had been finished. It stays alive
        // until the runtime frees it.
        let notify = unsafe { runtime.inbox().push(task, Push::Reap) };
        debug_assert!(!notify);
    }
}

fn urgency(runtime: &Runtime) -> Push {
    if bound::slot().runtime().is_some_and(|own| ptr::eq(own, runtime)) {
        Push::Local
    } else {
        Push::Urgent
    }
}
