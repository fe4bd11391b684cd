//! The type [`Runtime`], its fields, and access to them.

use alloc::alloc::Layout;
use core::any::TypeId;
use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use crossbeam_utils::CachePadded;

use crate::config::Config;
use crate::freelist::FreeList;
use crate::platform::{InInterrupt, bound};
use crate::preempt::count::PreemptCount;
use crate::queue::{Fifo, Inbox};
use crate::scope::ScopeLink;
use crate::stackful::stacks::Stacks;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::local::{AtomicPtr, AtomicU64, compiler_fence};
use crate::sync::{const_fn, local};
use crate::task::header::{Header, Link, Typed, Vtable};
use crate::task::panic::TaskPanic;
use crate::task::state::State;
use crate::time::alarm::{Alarm, nanoseconds};
use crate::time::list::Timers;

/// The runtime of one core: it runs that core's tasks.
///
/// There is one for each core, in a static array or in the kernel's per-core area. A core enters
/// its own runtime with [`enter`](Self::enter) or [`run_until`](Self::run_until). Any core may
/// spawn tasks on it.
///
/// ```no_run
/// # use trapline::Runtime;
/// # const CORES: usize = 4;
/// static RUNTIMES: [Runtime; CORES] = [const { Runtime::new() }; CORES];
/// ```
pub struct Runtime {
    /// The inbox, to which other cores write. It has a cache line of its own.
    pub(super) inbox: CachePadded<Inbox<Header>>,
    /// The number of the core that entered first, plus one; 0 before that. That core is the owning
    /// core until the shutdown.
    pub(super) owner: AtomicUsize,
    /// A task was aborted that may be waiting for a stack: the loop is to look for aborted tasks
    /// among those that wait for a stack.
    pub(super) aborted_in_queue: AtomicBool,
    pub(super) config: Config,
    /// `config.slice` in nanoseconds.
    pub(super) slice: u64,
    pub(super) preempt_count: PreemptCount,
    pub(super) alarm: Alarm,
    pub(super) timers: Timers,
    pub(super) counters: Counters,
    /// The root task, whose future is the one that `run_until` waits for.
    pub(super) root: Header,
    pub(super) local: CoreLocal,
}

/// The fields that only the owning core touches, with preemption disabled. Its atomic fields are
/// also touched by that core's interrupts and by the running stackful task.
pub(super) struct CoreLocal {
    pub(super) ready: Fifo<Header>,
    pub(super) free_list: FreeList,
    pub(super) stacks: Stacks<Header>,
    /// The list of all tasks that have been polled and are not done.
    pub(super) tasks: Cell<Link>,
    /// The task whose code has the core. Interrupts read it.
    pub(super) current: AtomicPtr<Header>,
    /// The innermost scope (hooks or a task-local value) that the current task's code is inside of.
    pub(super) scopes: Cell<ScopeLink>,
    /// If the task that is polled is plain and its whole future is hooks around another future:
    /// that inner future. Otherwise `None`.
    pub(super) inside_of_hooks: Cell<Option<Typed>>,
    /// The task that is polled has requested to be polled again, or to continue, after the other
    /// ready tasks ([`yield_current`](Runtime::yield_current)).
    pub(super) yielded: local::AtomicBool,
    /// [`trim`](Runtime::trim) is in progress.
    pub(super) is_trimming: Cell<bool>,
    /// The runtime has been shut down.
    pub(super) closed: Cell<bool>,
    /// The closure that polls the future of `run_until`. The root task calls it until it returns
    /// `Ready`. The closure lies in the frame of `run_until`, and does not outlive that frame.
    pub(super) root: Cell<Option<NonNull<RootPoll<'static>>>>,
}

pub(super) type RootPoll<'a> = dyn FnMut(&mut Context<'_>) -> Poll<()> + 'a;

// SAFETY: `local`, the plain fields of `root` and the cells in `local` and `root` are touched only
// by the owning core, in task context, with preemption disabled. All other fields are atomic, are
// behind a lock, or never change after the first use.
unsafe impl Sync for Runtime {}
// SAFETY: a runtime moves only before its first use, since every use is through `&'static`.
unsafe impl Send for Runtime {}

/// The counts of a runtime, which [`Runtime::stats`] returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Polls of tasks. Each stretch on a stack counts as one.
    pub polls: u64,
    /// How often a stackful task was preempted.
    pub preemptions: u64,
    /// How often the core parked.
    pub parks: u64,
    /// How often an aborted task got the core because a stack holds frames of it: such a task
    /// continues to the end of its poll.
    pub aborted_in_poll: u64,
    /// How many stacks there are.
    pub stacks: u64,
    /// How many tasks wait for a stack now.
    pub waiting: u64,
    /// How often a task found no stack when its turn came, and began to wait. All
    /// [`Config::max_stacks`] were held, or there was no memory for another.
    pub failed_growths: u64,
    /// How many tasks were ended by [`preempt::end_task`](crate::preempt::end_task). Their stacks
    /// and futures are leaked.
    pub ended: u64,
}

#[derive(Debug)]
pub(super) struct Counters {
    pub(super) polls: AtomicU64,
    pub(super) preemptions: AtomicU64,
    pub(super) parks: AtomicU64,
    pub(super) aborted_in_poll: AtomicU64,
    pub(super) ended: AtomicU64,
}

/// Increments the counter and returns the new value. Only the owning core calls this, so a load and
/// a store are enough.
#[inline]
pub(super) fn count(counter: &AtomicU64) -> u64 {
    let counted = counter.load(Ordering::Relaxed) + 1;
    counter.store(counted, Ordering::Relaxed);
    counted
}

impl Runtime {
    const_fn! {
        /// Makes a runtime with the default [`Config`].
        pub fn new() -> Self {
            Self::with_config(Config::new())
        }
    }

    const_fn! {
        /// Makes a runtime with the given `config`, which is checked when the runtime is entered.
        pub fn with_config(config: Config) -> Self {
            Self {
                inbox: CachePadded::new(Inbox::new()),
                owner: AtomicUsize::new(0),
                aborted_in_queue: AtomicBool::new(false),
                slice: nanoseconds(config.slice),
                config,
                preempt_count: PreemptCount::new(),
                alarm: Alarm::new(),
                timers: Timers::new(),
                counters: Counters {
                    polls: AtomicU64::new(0),
                    preemptions: AtomicU64::new(0),
                    parks: AtomicU64::new(0),
                    aborted_in_poll: AtomicU64::new(0),
                    ended: AtomicU64::new(0),
                },
                root: Header::new(State::immortal(), &ROOT, None),
                local: CoreLocal {
                    ready: Fifo::new(),
                    free_list: FreeList::new(config.task_memory),
                    stacks: Stacks::new(),
                    tasks: Cell::new(None),
                    current: AtomicPtr::new(core::ptr::null_mut()),
                    scopes: Cell::new(None),
                    inside_of_hooks: Cell::new(None),
                    yielded: local::AtomicBool::new(false),
                    is_trimming: Cell::new(false),
                    closed: Cell::new(false),
                    root: Cell::new(None),
                },
            }
        }
    }

    /// Returns the runtime that the calling core is inside of. Any context.
    #[inline]
    pub fn current() -> Option<&'static Self> {
        // SAFETY: a slot is null or holds the `&'static Runtime` that `enter` put there.
        unsafe { bound::slot().runtime().cast::<Self>().as_ref() }
    }

    /// Returns whether the calling core is inside of this runtime. Any context.
    #[inline(always)]
    pub(crate) fn is_current(&self) -> bool {
        Self::current().is_some_and(|current| core::ptr::eq(current, self))
    }

    /// Returns the counts of the runtime. Any context. If it is called on another core, the counts
    /// may come from slightly different moments.
    pub fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            polls: get(&self.counters.polls),
            preemptions: get(&self.counters.preemptions),
            parks: get(&self.counters.parks),
            aborted_in_poll: get(&self.counters.aborted_in_poll),
            stacks: self.local.stacks.pool.total() as u64,
            waiting: self.local.stacks.waiting(),
            failed_growths: self.local.stacks.failed_growths(),
            ended: get(&self.counters.ended),
        }
    }

    /// Frees the idle stacks, and the memory of finished tasks that the runtime keeps. Returns how
    /// many stacks it has freed.
    ///
    /// It is called on the owning core, in task context: in a plain task, or outside of
    /// [`enter`](Self::enter). Elsewhere (in a stackful task, on another core) it does nothing and
    /// returns 0. It calls [`Platform::free_stack`](crate::platform::Platform::free_stack) and the
    /// allocator. See also [`Config::max_idle_stacks`].
    pub fn trim(&self) -> usize {
        let may_trim = match Runtime::current() {
            None => true,
            // While a task is polled, the loop is not in the middle of work on the pool.
            Some(own) if core::ptr::eq(own, self) => {
                self.current_task().is_some() && !self.is_on_stack()
            }
            // On a stack of another runtime, this code could be preempted in the middle of the
            // change to the pool. The core could then enter this runtime.
            Some(other) => !other.is_on_stack(),
        };
        // Relaxed: a core reads its own number here only if it has stored that number itself.
        let is_owner = bound::core().checked_add(1) == Some(self.owner.load(Ordering::Relaxed));
        let in_interrupt = bound::in_interrupt();
        // If the platform is not certain about the context, the caller may be an interrupt handler
        // that has interrupted this function on this core. `is_trimming` is set in that case.
        if !may_trim
            || !is_owner
            || in_interrupt == InInterrupt::Yes
            || self.local.is_trimming.replace(true)
        {
            return 0;
        }
        // Only task context may touch the free list, so the platform must be certain of that
        // context.
        if in_interrupt == InInterrupt::No {
            self.local.free_list.trim();
        }
        let freed = self.local.stacks.pool.trim();
        self.local.is_trimming.set(false);
        freed
    }

    /// Returns whether the limit on the number of stacks allows another stack. If so, only a lack
    /// of memory can prevent it.
    pub(crate) fn may_have_more_stacks(&self) -> bool {
        self.local.stacks.pool.total() < self.config.max_stacks
    }

    /// Returns whether `task` is the root task.
    pub(crate) fn is_root(&self, task: NonNull<Header>) -> bool {
        task == NonNull::from(&self.root)
    }

    #[inline]
    pub(crate) fn inbox(&self) -> &Inbox<Header> {
        &self.inbox
    }

    /// Returns the free list: the memory of finished tasks that the runtime keeps. It may be used
    /// on the [fast path](crate::ready::on_fast_path) only.
    #[inline]
    pub(crate) fn free_list(&self) -> &FreeList {
        &self.local.free_list
    }

    /// Returns whether the runtime has been shut down. Owning core.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.local.closed.get()
    }

    /// Returns the loop's FIFO. It may be used by the loop, and otherwise on the [fast
    /// path](crate::ready::on_fast_path) only.
    #[inline]
    pub(crate) fn ready(&self) -> &Fifo<Header> {
        &self.local.ready
    }

    #[inline]
    pub(crate) fn preempt_count(&self) -> &PreemptCount {
        &self.preempt_count
    }

    #[inline]
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    #[inline]
    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }

    #[inline]
    pub(crate) fn stacks(&self) -> &Stacks<Header> {
        &self.local.stacks
    }

    /// Returns the hook that is called for panics that no join handle returns.
    pub(crate) fn on_panic(&self) -> Option<fn(&TaskPanic<'_>)> {
        self.config.on_panic
    }

    /// Returns the slice in nanoseconds.
    #[inline]
    pub(crate) fn slice(&self) -> u64 {
        self.slice
    }

    /// Returns how many polls have been counted.
    #[inline]
    pub(crate) fn polls(&self) -> u64 {
        self.counters.polls.load(Ordering::Relaxed)
    }

    /// Returns the task whose code has the core.
    pub(crate) fn current_task(&self) -> Link {
        NonNull::new(self.local.current.load(Ordering::Relaxed))
    }

    /// Sets the task whose code has the core.
    #[inline]
    pub(crate) fn set_current(&self, task: Link) {
        let task = task.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        self.local.current.store(task, Ordering::Relaxed);
    }

    /// Returns the cell of the innermost scope that the running poll is inside of. Only that poll's
    /// own code, with preemption disabled, and the loop use it.
    #[inline]
    pub(crate) fn scopes(&self) -> &Cell<ScopeLink> {
        &self.local.scopes
    }

    /// Returns the running task if its whole future, apart from hooks around it, has the place and
    /// the type that `whole` gives. A local task is never returned.
    pub(crate) fn task_that_is(&self, whole: Typed) -> Link {
        let is_inside = self.local.inside_of_hooks.get() == Some(whole);
        self.current_task().filter(|&task| is_inside || Header::is_future(task, whole))
    }

    /// Notes that `inside`, which is the running task's whole future except for hooks around it, is
    /// polled now. The drop of the returned value removes the note.
    pub(crate) fn inside_of_hooks(&self, inside: Typed) -> InsideOfHooks<'_> {
        self.local.inside_of_hooks.set(Some(inside));
        InsideOfHooks(&self.local.inside_of_hooks)
    }

    /// Requests that the running task is polled again, or continues, after the other ready tasks,
    /// without a wake: the task stays RUNNING. The caller is that task's own code, or the loop that
    /// resumes the task. (Edge 10 of [`crate::task`])
    #[inline]
    pub(crate) fn yield_current(&self) {
        self.local.yielded.store(true, Ordering::Relaxed);
    }

    /// Returns whether the task that has just left the core has called
    /// [`yield_current`](Self::yield_current), and clears that request. The caller is the loop, or
    /// that task itself.
    #[inline]
    pub(crate) fn take_yield(&self) -> bool {
        // The task is no longer the running one, so an interrupt no longer makes the request for
        // it. So the load and the store need not be one atomic step.
        compiler_fence(Ordering::SeqCst);
        let yielded = self.local.yielded.load(Ordering::Relaxed);
        if yielded {
            self.local.yielded.store(false, Ordering::Relaxed);
        }
        yielded
    }

    /// Returns whether a stack has the core.
    #[inline]
    pub(crate) fn is_on_stack(&self) -> bool {
        self.local.stacks.running().is_some()
    }

    /// Wakes the owning core if it is parked, and interrupts it if it is not.
    pub(crate) fn wake_core(&self) {
        // Relaxed: the caller has read (with acquire) a tag of the inbox that the owning core wrote
        // (with release) after it stored its number in `owner`.
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != 0 {
            bound::wake(owner - 1);
        }
    }

    /// Returns whether the running stackful task is to leave the core: another task became ready,
    /// or a preemption is pending.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        !self.inbox.is_empty() || !self.local.ready.is_empty() || self.preempt_count.is_pending()
    }
}

/// A guard for the note that [`Runtime::inside_of_hooks`] makes. Its drop removes the note.
pub(crate) struct InsideOfHooks<'a>(&'a Cell<Option<Typed>>);

impl Drop for InsideOfHooks<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime")
            .field("config", &self.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// The vtable of the runtime's root task, whose future lies outside of the task.
static ROOT: Vtable = Vtable {
    poll: |task, context| {
        // SAFETY: the caller's task is alive.
        unsafe { task.as_ref() }
            .runtime
            .get()
            .map_or(Poll::Pending, |runtime| runtime.poll_root(context))
    },
    // SAFETY (of each function below): it is never called. The runtime makes no join handle for its
    // root task and does not abort it, and the reference count of that task never becomes zero.
    fail: |_, _| unreachable!(),
    output: |_| unreachable!(),
    drop_output: |_| unreachable!(),
    value_needs_drop: false,
    free: |_, _| unreachable!(),
    freed_anywhere: false,
    layout: Layout::new::<()>(),
    future: |_| core::ptr::null(),
    // No task has a future of this type.
    future_type: TypeId::of::<Vtable>(),
    // The future that `run_until` waits for need not be `Send`.
    local: true,
    name: |_| Some("run_until"),
};
