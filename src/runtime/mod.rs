//! The runtime of a core: how tasks come into it, its loop, and how it ends.

mod enter;
mod finish;
mod shutdown;
mod spawn;
mod turn;

pub use enter::EnterError;
pub use shutdown::Shutdown;
pub use spawn::{LocalSpawner, SpawnError, SpawnErrorReason, TaskBuilder, spawn, try_spawn};
pub(crate) use spawn::{Spawned, here, or_error};

use core::cell::Cell;
use core::fmt;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use crossbeam_utils::CachePadded;

use crate::TaskPanic;
use crate::config::Config;
use crate::contexted::ScopeLink;
use crate::freelist::FreeList;
use crate::platform::{InInterrupt, Interrupts, bound};
use crate::preempt::PreemptCount;
use crate::ready::{self, Fifo, Inbox};
use crate::stackful::Stacks;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::const_fn;
use crate::sync::local::{self, AtomicPtr, AtomicU64, compiler_fence};
use crate::task::state::{State, Wake};
use crate::task::{self, Header, Label, Link, TaskId, Typed};
use crate::time::{Alarm, Timers, nanoseconds};

/// What runs the tasks of one core.
///
/// There is one for each core, in a static array or the kernel's per-core area. A core enters its own
/// with [`enter`](Self::enter) or [`run_until`](Self::run_until); any core may spawn on it.
///
/// ```no_run
/// # use trapline::Runtime;
/// # const CORES: usize = 4;
/// static RUNTIMES: [Runtime; CORES] = [const { Runtime::new() }; CORES];
/// ```
pub struct Runtime {
    /// What other cores write to, on a cache line of its own.
    inbox: CachePadded<Inbox>,
    /// The core that entered first, plus one. It is the owning core until the shutdown.
    owner: AtomicUsize,
    /// A task was aborted in a queue, so look among those that wait for a stack.
    aborted_in_queue: AtomicBool,
    config: Config,
    /// `config.slice` in nanoseconds.
    slice: u64,
    preempt_count: PreemptCount,
    alarm: Alarm,
    timers: Timers,
    counters: Counters,
    /// The future that `run_until` waits for, as a task.
    root: Header,
    local: CoreLocal,
}

/// What only the owning core touches, with preemption disabled; what is atomic, its interrupts and the running stackful
/// task as well.
struct CoreLocal {
    ready: Fifo,
    free_list: FreeList,
    stacks: Stacks,
    /// All tasks that have been polled and are not done.
    tasks: Cell<Link>,
    /// The task whose code has the core. Interrupts look at it.
    current: AtomicPtr<Header>,
    /// What hooks that code is inside of.
    scopes: Cell<ScopeLink>,
    /// In a plain task that consists of hooks around a future: that future.
    inside_of_hooks: Cell<Option<Typed>>,
    /// The task that is polled wants to be polled again, or to go on, after the others.
    yielded: local::AtomicBool,
    /// [`trim`](Runtime::trim) is at work.
    is_trimming: Cell<bool>,
    closed: Cell<bool>,
    /// What `run_until` has the loop poll until it says that its future is done: a closure in the
    /// frame of `run_until`, whose lifetime is that frame's.
    root: Cell<Option<NonNull<RootPoll<'static>>>>,
}

type RootPoll<'a> = dyn FnMut(&mut Context<'_>) -> Poll<()> + 'a;

// SAFETY: `own`, `root`'s plain fields and the cells in them are touched only by the owning core in
// task context with preemption disabled; all else is atomic or behind a lock.
unsafe impl Sync for Runtime {}
// SAFETY: a runtime moves only before its first use, since all use is through `&'static`.
unsafe impl Send for Runtime {}

/// What a runtime has counted, in [`Runtime::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Polls of tasks, each stretch on a stack counting as one.
    pub polls: u64,
    /// How often a stackful task was preempted.
    pub preemptions: u64,
    /// How often the core parked.
    pub parks: u64,
    /// How often a task got the core after it was aborted, since a stack holds frames of it: it goes on
    /// to the end of its poll.
    pub aborted_in_poll: u64,
    /// How many stacks there are.
    pub stacks: u64,
    /// How many tasks wait for a stack now.
    pub waiting: u64,
    /// How often a task found no stack when its turn came, and began to wait: all [`Config::max_stacks`]
    /// were held, or there was no memory for another.
    pub failed_growths: u64,
    /// How many tasks were ended by [`preempt::end_task`](crate::preempt::end_task). Their stacks and
    /// futures are leaked.
    pub ended: u64,
}

#[derive(Debug)]
struct Counters {
    polls: AtomicU64,
    preemptions: AtomicU64,
    parks: AtomicU64,
    aborted_in_poll: AtomicU64,
    ended: AtomicU64,
}

/// Counts one more, and returns how many it are. Owning core, so a load and a store do.
#[inline]
fn count(counter: &AtomicU64) -> u64 {
    let counted = counter.load(Ordering::Relaxed) + 1;
    counter.store(counted, Ordering::Relaxed);
    counted
}

impl Runtime {
    const_fn! {
        /// A runtime with the default [`Config`].
        pub fn new() -> Self {
            Self::with_config(Config::new())
        }
    }

    const_fn! {
        /// A runtime with what was chosen in `config`, which is checked when it is entered.
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
                root: Header::new(State::immortal(), &task::ROOT, None),
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

    /// The runtime that the calling core is inside of. Any context.
    #[inline]
    pub fn current() -> Option<&'static Self> {
        bound::slot().runtime()
    }

    /// What the runtime has counted. Any context; on another core the figures may be of slightly
    /// different moments.
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

    /// Frees the stacks that are idle, and the memory that is kept of finished tasks. Returns how many
    /// stacks it has freed.
    ///
    /// On the owning core, in task context: in a plain task, or outside of [`enter`](Self::enter).
    /// Elsewhere (in a stackful task, on another core) it does nothing and returns 0. It calls
    /// [`Platform::free_stack`](crate::platform::Platform::free_stack) and the allocator. See also
    /// [`Config::max_idle_stacks`].
    pub fn trim(&self) -> usize {
        let may_trim = match bound::slot().runtime() {
            None => true,
            // While a task is polled, the loop is not in the middle of work on the pool.
            Some(own) if core::ptr::eq(own, self) => {
                self.current_task().is_some() && !self.is_on_stack()
            }
            // On a stack of another runtime's, this could be preempted halfway, and the core enter this one then.
            Some(other) => !other.is_on_stack(),
        };
        // Relaxed: a core finds its own number only after it has stored it.
        let is_owner = bound::core().checked_add(1) == Some(self.owner.load(Ordering::Relaxed));
        let in_interrupt = bound::in_interrupt();
        // Where the platform isn't certain, it may be an interrupt of this very function.
        if !may_trim
            || !is_owner
            || in_interrupt == InInterrupt::Yes
            || self.local.is_trimming.replace(true)
        {
            return 0;
        }
        if in_interrupt == InInterrupt::No {
            self.local.free_list.trim();
        }
        let freed = self.local.stacks.pool.trim();
        self.local.is_trimming.set(false);
        freed
    }

    /// Whether it is memory that sets the limit to the stacks there are.
    pub(crate) fn may_have_more_stacks(&self) -> bool {
        self.local.stacks.pool.total() < self.config.max_stacks
    }

    #[inline]
    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The memory that it keeps. For whom [`ready`] allows it.
    #[inline]
    pub(crate) fn free_list(&self) -> &FreeList {
        &self.local.free_list
    }

    /// Whether it has been shut down. Owning core.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.local.closed.get()
    }

    /// The loop's FIFO. For whom [`ready`] allows it.
    #[inline]
    pub(crate) fn ready(&self) -> &Fifo {
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
    pub(crate) fn stacks(&self) -> &Stacks {
        &self.local.stacks
    }

    /// The hook for panics that no join handle gives.
    pub(crate) fn on_panic(&self) -> Option<fn(&TaskPanic<'_>)> {
        self.config.on_panic
    }

    /// The slice in nanoseconds.
    #[inline]
    pub(crate) fn slice(&self) -> u64 {
        self.slice
    }

    /// How many polls have been counted.
    #[inline]
    pub(crate) fn polls(&self) -> u64 {
        self.counters.polls.load(Ordering::Relaxed)
    }

    pub(crate) fn current_task(&self) -> Link {
        NonNull::new(self.local.current.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn set_current(&self, task: Link) {
        let task = task.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        self.local.current.store(task, Ordering::Relaxed);
    }

    /// The hooks that the running poll is inside of. That poll's own code, with preemption off, and the loop.
    #[inline]
    pub(crate) fn scopes(&self) -> &Cell<ScopeLink> {
        &self.local.scopes
    }

    /// The running task, if it consists of what lies at this place and is of this type, perhaps with hooks
    /// around it. A local task never does.
    pub(crate) fn task_that_is(&self, whole: Typed) -> Link {
        let is_inside = self.local.inside_of_hooks.get() == Some(whole);
        self.current_task().filter(|&task| is_inside || Header::is_future(task, whole))
    }

    /// Notes that `inside` is polled, which is the running task's whole future but for hooks around it.
    /// Ends when what this returns is dropped.
    pub(crate) fn inside_of_hooks(&self, inside: Typed) -> InsideOfHooks<'_> {
        self.local.inside_of_hooks.set(Some(inside));
        InsideOfHooks(&self.local.inside_of_hooks)
    }

    /// Has the running task polled again after all that are READY, without a wake: it stays RUNNING. Its
    /// own code. (Edge 10)
    #[inline]
    pub(crate) fn yield_current(&self) {
        self.local.yielded.store(true, Ordering::Relaxed);
    }

    /// Whether the task that has just left the core asked for that. The loop, and that task itself.
    #[inline]
    pub(crate) fn take_yield(&self) -> bool {
        // It isn't the running one any more, so an interrupt doesn't ask for it any more.
        compiler_fence(Ordering::SeqCst);
        let yielded = self.local.yielded.load(Ordering::Relaxed);
        if yielded {
            self.local.yielded.store(false, Ordering::Relaxed);
        }
        yielded
    }

    /// Whether a stack has the core.
    #[inline]
    pub(crate) fn is_on_stack(&self) -> bool {
        self.local.stacks.running().is_some()
    }

    /// Makes the loop look for the aborted among those that wait for a stack. Any context, with
    /// preemption off.
    pub(crate) fn aborted_in_queue(&self) {
        // Release, and the wake after it: a loop that has parked or is about to comes round once more. (A
        // store would do, but loom lets a swap on the other side miss it.)
        self.aborted_in_queue.swap(true, Ordering::Release);
        if self.root.state.wake() == Wake::Push {
            // SAFETY: the state word said so.
            unsafe { ready::push(self, NonNull::from(&self.root)) };
        }
    }

    /// Aborts the task that is polled, for the loss of its child, which takes effect after the poll.
    /// `false`: it is not one that can be.
    pub(crate) fn abort_current(&self) -> bool {
        match self.current_task() {
            Some(task) if task != NonNull::from(&self.root) => {
                // SAFETY: it is polled, hence alive. RUNNING, so there is nothing to push.
                let _ = unsafe { task.as_ref() }.state.abort();
                if self.is_on_stack() {
                    self.running_stack().lost_child.set(true);
                }
                true
            }
            _ => false,
        }
    }

    /// Gets the owning core's attention.
    pub(crate) fn wake_core(&self) {
        // Relaxed: the tag that the caller acquired was announced by the owner.
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != 0 {
            bound::wake(owner - 1);
        }
    }

    /// Whether the running stackful task is to leave: another task became ready, or a preemption is
    /// pending.
    #[inline]
    pub(crate) fn is_wanted(&self) -> bool {
        !self.inbox.is_empty() || !self.local.ready.is_empty() || self.preempt_count.is_pending()
    }

    /// Panics if the poll that has just returned left a guard, or interrupts masked.
    #[inline(always)]
    pub(crate) fn check_guards(&self, expected: usize, task: NonNull<Header>, poll: Poll<()>) {
        if self.preempt_count.get() != expected || bound::interrupts() == Interrupts::Masked {
            self.held_the_core(task, poll);
        }
    }

    #[cold]
    #[inline(never)]
    fn held_the_core(&self, task: NonNull<Header>, poll: Poll<()>) -> ! {
        if poll.is_ready() {
            // SAFETY: RUNNING, hence alive.
            unsafe { task.as_ref() }.state.set_stored();
        }
        // SAFETY: as above.
        let name = unsafe { Label::of(task) };
        if self.unmask() {
            panic!(
                "{name} had interrupts masked when its poll returned: enable them before the await"
            );
        }
        panic!(
            "{name} held or forgot a PreemptGuard when its poll returned, or had called preempt::disable: \
             drop it, or call preempt::enable, before the await"
        );
    }
}

/// See [`Runtime::inside_of_hooks`].
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

/// The task that the calling code is part of.
///
/// Displayed, it is what the runtime's own messages call the task: its id, and its name if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    label: Label,
    stackful: bool,
}

/// The task that the calling code is part of; in an interrupt, the interrupted one. `None` in the
/// runtime's own context and outside of any.
pub fn current() -> Option<Current> {
    let _guard = crate::preempt::PreemptGuard::new();
    let runtime = Runtime::current()?;
    let task = runtime.current_task()?;
    // SAFETY: it has the core, hence is alive.
    Some(Current { label: unsafe { Label::of(task) }, stackful: runtime.is_on_stack() })
}

impl Current {
    /// Which task.
    pub fn id(&self) -> TaskId {
        self.label.id
    }

    /// What it is called, if it was given a name; the future of [`Runtime::run_until`] is called so.
    pub fn name(&self) -> Option<&'static str> {
        self.label.name
    }

    /// Whether it runs on a stack of its own and may be preempted.
    pub fn is_stackful(&self) -> bool {
        self.stackful
    }
}

impl fmt::Display for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.fmt(f)
    }
}
