//! The two queues of tasks: a FIFO for one core alone, and an inbox that any context pushes into.
//!
//! Both are lists through the tasks themselves, so a push allocates nothing. A task is in one queue
//! at a time.
//!
//! The inbox is a stack of tasks on one atomic word. A push is one compare-and-swap, so an
//! interrupted pusher leaves nothing half pushed. The loop takes all tasks by one swap. (A stack
//! that is only ever taken as a whole has no ABA problem.)
//!
//! The low bits of the word say what the owning core is doing. So the compare-and-swap that
//! publishes a task also tells the pusher whether to wake or interrupt that core. No push can come
//! unnoticed between the core's last look and its parking: the core announces that it parks by a
//! compare-and-swap on the same word, which fails if a task was pushed.

use core::ptr::{self, NonNull};

use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::local::Cell;
use crate::sync::{UnsafeCell, const_fn, local};

/// What can be in a queue.
///
/// # Safety
///
/// - `link` returns the same cell each time, and no other code uses that cell.
/// - The address of the value is a multiple of 8: the inbox keeps three tags in the low bits of
///   pointers to it.
pub(crate) unsafe trait Linked {
    /// The link of the one queue that the value is in.
    fn link(&self) -> &UnsafeCell<Link<Self>>;
}

/// A place for a pointer to what is in a queue.
pub(crate) type Link<T> = Option<NonNull<T>>;

/// The tasks in the order in which they will be polled. Only the owning core uses it, in task
/// context, with preemption disabled. That core's interrupts may ask whether it is empty.
pub(crate) struct Fifo<T> {
    /// The first task. Interrupts test whether it is null.
    head: local::AtomicPtr<T>,
    /// The last task. Without a meaning while the FIFO is empty.
    tail: Cell<Link<T>>,
}

impl<T: Linked> Fifo<T> {
    pub(crate) const fn new() -> Self {
        Self { head: local::AtomicPtr::new(ptr::null_mut()), tail: Cell::new(None) }
    }

    /// Returns whether there is no task. On the owning core, in any context.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.first().is_none()
    }

    /// Returns the task that [`pop`](Self::pop) would return.
    #[inline]
    pub(crate) fn first(&self) -> Link<T> {
        NonNull::new(self.head.load(Ordering::Relaxed))
    }

    /// Returns whether `task`, which is the first, is the only one.
    #[inline]
    pub(crate) fn is_last(&self, task: NonNull<T>) -> bool {
        self.tail.get() == Some(task)
    }

    /// Appends `task`, and pops the first task, which is `task` itself if there is no other.
    ///
    /// # Safety
    ///
    /// As [`push_back`](Self::push_back).
    #[inline]
    pub(crate) unsafe fn rotate(&self, task: NonNull<T>) -> NonNull<T> {
        let Some(first) = self.first() else { return task };
        let last = self.tail.replace(Some(task)).unwrap_or(first);
        // SAFETY: the caller owns the link of `task`; a task in the FIFO is alive, and its link
        // belongs to the owning core, which runs this code. The order matters: if the first task is
        // also the last, its link must be set to `task` before it is read.
        unsafe {
            set_next(task, None);
            set_next(last, Some(task));
            self.set_first(next(first));
        }
        first
    }

    #[inline]
    fn set_first(&self, task: Link<T>) {
        self.head.store(task.map_or(ptr::null_mut(), NonNull::as_ptr), Ordering::Relaxed);
    }

    /// Appends `task`.
    ///
    /// # Safety
    ///
    /// This holds for all functions that take a task:
    ///
    /// - The caller is the owning core's loop, or code in task context on that core, with
    ///   preemption disabled, while the loop waits for it.
    /// - The task is alive until it is popped.
    /// - The task is in no queue.
    #[inline]
    pub(crate) unsafe fn push_back(&self, task: NonNull<T>) {
        // SAFETY: the caller owns the task's link (rule 3 of the task's fields).
        unsafe { set_next(task, None) };
        self.append(task, task);
    }

    /// Appends a chain of linked tasks, from `first` to `last`.
    #[inline]
    fn append(&self, first: NonNull<T>, last: NonNull<T>) {
        let before = self.tail.replace(Some(last));
        match before.filter(|_| !self.is_empty()) {
            // SAFETY: a task in the FIFO is alive, and its link belongs to the owning core, which
            // runs this code.
            Some(before) => unsafe { set_next(before, Some(first)) },
            None => self.set_first(Some(first)),
        }
    }

    /// Puts `task` before all others.
    ///
    /// # Safety
    ///
    /// As [`push_back`](Self::push_back).
    pub(crate) unsafe fn push_front(&self, task: NonNull<T>) {
        let second = self.first();
        // SAFETY: as in `push_back`.
        unsafe { set_next(task, second) };
        self.set_first(Some(task));
        if second.is_none() {
            self.tail.set(Some(task));
        }
    }

    /// Takes the first task out.
    #[inline]
    pub(crate) fn pop(&self) -> Link<T> {
        let task = self.first()?;
        // SAFETY: a task in the FIFO is alive, and its link belongs to the owning core, which runs
        // this code.
        self.set_first(unsafe { next(task) });
        Some(task)
    }

    /// Calls `f` for each task, from the first to the last. `f` neither adds nor removes tasks.
    pub(crate) fn each(&self, mut f: impl FnMut(NonNull<T>)) {
        let mut rest = self.first();
        while let Some(task) = rest {
            f(task);
            // SAFETY: a task in the FIFO is alive, and its link belongs to the owning core, which
            // runs this code.
            rest = unsafe { next(task) };
        }
    }

    /// Appends a chain of tasks that begins with the task that was pushed last.
    ///
    /// # Safety
    ///
    /// As [`push_back`](Self::push_back), for each of the tasks.
    unsafe fn append_reversed(&self, newest: Link<T>) {
        let Some(last) = newest else { return };
        // Reverses the chain in place, so that it begins with the task that was pushed first.
        let mut first = last;
        // SAFETY: the caller owns the links of the chain, whose tasks are alive.
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

/// Reads the link of `task`.
///
/// # Safety
///
/// `task` is alive, and its link is the caller's.
#[inline]
unsafe fn next<T: Linked>(task: NonNull<T>) -> Link<T> {
    // SAFETY: the caller promises that the task is alive and the link its own.
    unsafe { task.as_ref().link().with(|next| *next) }
}

/// Sets the link of `task`.
///
/// # Safety
///
/// As [`next`].
#[inline]
unsafe fn set_next<T: Linked>(task: NonNull<T>, to: Link<T>) {
    // SAFETY: the caller promises that the task is alive and the link its own.
    unsafe { task.as_ref().link().with_mut(|next| *next = to) }
}

/// The owning core is parked, or is about to park with interrupts masked: a push must wake it.
const PARKED: usize = 1;

/// The owning core is on the stack of a stackful task: an urgent push must interrupt it.
const STACKFUL: usize = 2;

/// The runtime has been shut down: it takes no new tasks.
const CLOSED: usize = 4;

/// All tags. They fit into the low bits, since a header is aligned to 8 bytes or more.
const TAGS: usize = PARKED | STACKFUL | CLOSED;

/// The place where all code but the loop publishes tasks.
pub(crate) struct Inbox<T> {
    /// A pointer to the task that was pushed last, with the tags in its low bits.
    word: AtomicPtr<T>,
}

/// The purpose of a push, which decides in which states the owning core is notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Push {
    /// A wake or a spawn from another core. A parked core is woken, and a running stackful task is
    /// preempted.
    Urgent,
    /// A wake or a spawn on the owning core. It preempts no task: task context does not ask for
    /// that, and an interrupt handler ends in `on_interrupt`, which looks into the inbox. Only a
    /// parked core is woken, since the interrupt may be one that the platform cannot see.
    Local,
    /// A task to be freed. That can wait until the core looks into the inbox for another reason.
    Reap,
}

/// The error that the inbox is closed: the runtime has been shut down.
#[derive(Debug)]
pub(crate) struct Closed;

/// Returns the tags of a word.
fn tags<T>(word: *mut T) -> usize {
    word.addr() & TAGS
}

/// Returns the task that a word points to.
fn task_of<T>(word: *mut T) -> Link<T> {
    NonNull::new(word.map_addr(|address| address & !TAGS))
}

/// Returns a word with these tags and without a task.
fn tagged<T>(tags: usize) -> *mut T {
    ptr::without_provenance_mut(tags)
}

impl<T: Linked> Inbox<T> {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self { word: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// Returns whether no task is in the inbox, by one relaxed load. It is for the loop, between
    /// two polls, and for interrupts.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // Relaxed: `take` acquires.
        self.word.load(Ordering::Relaxed).addr() & !TAGS == 0
    }

    /// Publishes a task. Returns whether the caller must notify the owning core.
    ///
    /// # Safety
    ///
    /// The state word told the caller to push the task, or the caller has dropped its last
    /// reference. The task stays alive until it is taken.
    pub(crate) unsafe fn push(&self, task: NonNull<T>, push: Push) -> bool {
        // SAFETY: the caller makes the promise that `publish` demands, which is this function's.
        let pushed = unsafe { self.publish(task, push, 0) };
        // With no tag to refuse the push, `publish` returns no error.
        pushed.unwrap_or(false)
    }

    /// Publishes a new task, unless the runtime has been shut down. Returns whether the caller must
    /// notify the owning core.
    ///
    /// # Safety
    ///
    /// As [`push`](Self::push).
    pub(crate) unsafe fn push_new(&self, task: NonNull<T>, push: Push) -> Result<bool, Closed> {
        // SAFETY: passed on.
        unsafe { self.publish(task, push, CLOSED) }
    }

    /// Pushes a task, unless a tag of `refused` is set.
    ///
    /// # Safety
    ///
    /// As [`push`](Self::push).
    unsafe fn publish(&self, task: NonNull<T>, push: Push, refused: usize) -> Result<bool, Closed> {
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
            // The first pusher that notifies the core clears the tags PARKED and STACKFUL, so later
            // pushers need not notify it again. A pusher that does not notify leaves the tags for
            // one that does.
            let kept = if notify { tags & CLOSED } else { tags };
            // SAFETY: the link is the pusher's until the swap (rule 3).
            unsafe { set_next(task, task_of(word)) };
            let new = task.as_ptr().map_addr(|address| address | kept);
            // Release pairs with the acquire in `take`: the loop sees the task's link, and all of a
            // new task. Earlier pushes keep their effect, since each push is a read-modify-write.
            // Acquire pairs with the release in `announce`: the pusher that notifies the core must
            // see its number.
            match self.word.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(notify),
                Err(found) => word = found,
            }
        }
    }

    /// Moves all tasks to the FIFO, in the order in which they were pushed, and clears what the
    /// core has announced. With `closed`, sets the tag CLOSED. The caller is the owning core's
    /// loop.
    #[inline(never)]
    pub(crate) fn take(&self, to: &Fifo<T>, closed: bool) {
        let left = tagged(if closed { CLOSED } else { 0 });
        // Acquire pairs with the release in `publish`. Nothing is released, since the tags carry no
        // data.
        let word = self.word.swap(left, Ordering::Acquire);
        // SAFETY: a task that was pushed is alive and in no other queue, and from now on it is the
        // owning core's.
        unsafe { to.append_reversed(task_of(word)) };
    }

    /// Announces that the core parks. `false`: a task was pushed, and nothing is announced. The
    /// caller is the owning core's loop, with interrupts masked.
    #[must_use]
    pub(crate) fn announce_park(&self) -> bool {
        self.announce(PARKED)
    }

    /// Announces that the core enters the stack of a stackful task. `false`: a task was pushed, and
    /// nothing is announced. The caller is the owning core's loop.
    #[inline]
    #[must_use]
    pub(crate) fn announce_stackful(&self) -> bool {
        // If the tag is set already, this core has set it earlier, and it is still true.
        self.word.load(Ordering::Relaxed) == tagged(STACKFUL) || self.announce(STACKFUL)
    }

    /// Sets `tag`, unless a task was pushed.
    fn announce(&self, tag: usize) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if task_of(word).is_some() {
                return false;
            }
            let new = tagged(tags(word) & CLOSED | tag);
            // The order of the changes to this one word decides between pusher and core. Release
            // pairs with the acquire in `publish`: it is for what the pusher reads to notify the
            // core, which is the number of this core.
            match self.word.compare_exchange_weak(word, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(found) => word = found,
            }
        }
    }

    /// Refuses new tasks from now on, and moves the tasks that were pushed to the FIFO. Owning
    /// core.
    pub(crate) fn close(&self, to: &Fifo<T>) {
        self.take(to, true);
    }
}
