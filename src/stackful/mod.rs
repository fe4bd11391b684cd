//! Stackful futures: futures that compute for long. They run on stacks of their own and are
//! preempted.
//!
//! A stackful future is a task like any other: it has one state word, one waker and one place in
//! the ready queue. The difference is where it is polled: on a stack from the core's pool. A stack
//! is always in one of four states. It belongs to exactly one of the pool, a task, and the loop.
//!
//! ```text
//!       idle               polling             suspended            preempted
//! ┌───────────────┐   ┌───────────────┐   ┌───────────────┐   ┌───────────────┐
//! │ Stack         │   │ Stack         │   │ Stack         │   │ Stack         │
//! │ stack_main    │   │ stack_main    │   │ stack_main    │   │ stack_main    │
//! │ turn_on       │   │ turn_on       │   │ turn_on       │   │ turn_on       │
//! │ go_home       │   │ the poll      │   │ the poll      │   │ the poll      │
//! │ saved context │   │               │   │ block_on      │   │ trap context  │
//! └───────────────┘   └───────────────┘   │ saved context │   │ trap handler  │
//!  the stack is       the core runs on    └───────────────┘   │ on_timer      │
//!  in the pool        this stack          the task is BLOCKED │ saved context │
//!                                         or queued, like any └───────────────┘
//!                                         other task          the task is RUNNING, in
//!                                                             a queue of `Stacks`
//! ```
//!
//! A suspended or preempted stack *holds frames*, and belongs to its task and to its core. (A task
//! that is preempted in task context, when it drops a guard, has no trap context on its stack.)
//!
//! # Home, and the loop on a stack
//!
//! *Home* is the stack of the code that entered the runtime. At home, plain tasks are polled, the
//! core parks, and tasks of which a stack holds frames are resumed. One switch leads from home to a
//! stack. On the stack, `turn_on` is the loop: after each poll, `turn_on` chooses the next stackful
//! task and polls it by a plain call, so tasks that are not preempted cost no switch. For
//! everything else the core goes home. Home then chooses again, from the same queues.
//!
//! ```text
//!   home: Runtime::run                             a stack: Runtime::turn_on
//!  ┌─────────────────────┐  leave_home: poll     ┌─────────────────────────────┐
//!  │ choose              │ ────────────────────► │ poll ◄─────────────────┐    │
//!  │ poll a plain task   │                       │ next_on_stack: choose ─┘    │
//!  │ park                │ ◄──────────────────── │ go_home: anything else      │
//!  │                     │                       ├─────────────────────────────┤
//!  │                     │ ◄──────────────────── │ leave_stack: preempted,     │
//!  │                     │  leave_home: resume   │ or suspended                │
//!  │                     │ ────────────────────► │                             │
//!  └─────────────────────┘                       └─────────────────────────────┘
//! ```
//!
//! # Rules
//!
//! 1. Preemption is enabled only while the core is on a pooled stack. At that time home's context
//!    is saved, so the core can switch to home.
//! 2. When the core leaves home, no frame of a task is left on home's stack. No plain task is
//!    polled on a pooled stack.
//! 3. The frames that call a poll (`stack_main` and `turn_on`) keep only the runtime, the stack and
//!    the task across the poll. They read everything else after the poll, because the core may have
//!    run other code meanwhile.
//! 4. `Stacks::running` is the stack that the core is on. When the core comes home, home clears it
//!    first.
//! 5. `Header::stack` and `Stack::task` are set while the stack holds frames of the task and the
//!    core is elsewhere. Home sets them after the core has left the stack, and clears them before
//!    the core enters the stack.
//! 6. Only home puts a stack into the pool, and only home takes a stack from the pool in order to
//!    enter it. So no code runs on a stack that is in the pool.
//! 7. The first switch to a stack calls `stack_main`. Each further switch continues by a return,
//!    into `turn_on` or into the task's code. So the frames on a stack do not grow with the number
//!    of switches to it.
//! 8. A task may be preempted after its poll has returned, until `turn_on` disables preemption.
//!    Until then, the value that the poll returned lies on the task's stack.

mod aging;
mod block_on;
mod boot;
mod pool;

pub use crate::platform::backend::{Context, StackMain, StackfulBackend};
pub(crate) use aging::Aging;
pub use block_on::block_on;
pub use boot::{BootStackError, leave_boot_stack};
pub(crate) use pool::{Pool, Stack, min_size as min_stack_size};

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::TypeId;
use core::cell::Cell;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::ptr::{self, NonNull};
use core::task::Poll;

use crate::arch;
use crate::contexted::{self, Hooks, Scope, ScopeEntry};
use crate::fatal::fatal;
use crate::platform::{Interrupts, PanicPayload, bound};
use crate::queue::Fifo;
use crate::sync::local::{AtomicPtr, AtomicU64, Ordering};
use crate::task::join::{JoinError, JoinHandle, panic_message};
use crate::task::{Header, Label, Link, panic};
use crate::time::{MIN_STRETCH, SliceLeft};
use crate::{Runtime, TaskId};

/// Why the core came home from a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The loop on the stack has nothing to poll there. The stack is idle.
    Idle,
    /// The task waits in `block_on`.
    Suspended,
    /// An interrupt handler preempted the task: its slice is over, or another task became ready.
    Interrupted,
    /// The task was preempted in task context: it dropped a guard or reached a preemption point, or
    /// a preemption was pending when its code was about to run.
    Preempted,
    /// The poll returned `Pending`. The stack is idle, as it is with the next three reasons.
    Pending,
    /// The task has finished and is DONE. Its output belongs to the join handle.
    Finished,
    /// As `Finished`, and the loop must take the join waker and wake it.
    FinishedForJoiner,
    /// The task has finished and is not DONE yet. It has no join handle, and its output has been
    /// dropped.
    Detached,
    /// The loop on the stack panicked, outside of any task. The stack is idle.
    Panicked,
    /// The task was ended in the middle of its poll: by the handler of a fault that the task
    /// caused, or in `block_on` because a child was ended by a fault. The stack is never entered
    /// again.
    Ended,
    /// The task has overflowed its stack, and no guard caught the overflow. The program ends. The
    /// loop reports it at home, since this stack has no room for that.
    Overflowed,
}

/// The task and the stack that the core came home from, and the reason.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    /// The task that had the core; `None` if the loop on the stack went home without a task.
    pub(crate) task: Link,
    pub(crate) stack: NonNull<Stack>,
    pub(crate) reason: Reason,
}

impl Left {
    /// Returns the task that had the core. Panics if there was none.
    #[inline(always)]
    pub(crate) fn task(self) -> NonNull<Header> {
        let Some(task) = self.task else { unreachable!("no task had the core") };
        task
    }
}

/// A future that runs on a stack of its own and is preempted. Made by [`stackful`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Stackful<F: Future> {
    /// `None` once the future has been moved into a task of its own. Pinned from the first poll on
    /// a stack, which is also the future's first poll at all.
    future: Option<F>,
    /// Whether this `Stackful` is the whole of a task that runs on a stack, possibly with hooks
    /// around it. If so, nothing moves the future any more, even if `F: Unpin`: only the runtime
    /// reaches the task's memory, and hooks give no access to the future inside of them.
    on_stack: bool,
    /// The child task, once the future has been moved into it.
    child: Option<JoinHandle<F::Output>>,
    /// The hooks of the parent, if this is a child: the child's polls run inside of them, too.
    hooks: Vec<Arc<dyn Hooks>>,
}

/// Makes a future that may compute for as long as it likes: when its slice is over, the timer takes
/// the core from it, and the core's other tasks run.
///
/// - **Spawned directly**, also with [`contexted()`](crate::contexted()) around it, it is one task,
///   which is polled on a stack.
/// - **Inside of any other future**, it spawns a child task at its first poll, on the core of its
///   parent. It waits for the child, and aborts the child when it is dropped. The parent stays what
///   it was. For example, a spawned `stackful(f).map(g)` is a plain task: `f` runs in a child on a
///   stack, and `g` runs in the plain parent and is not preempted. To have both preempted, put
///   `stackful` outermost: `stackful(f.map(g))`.
///
/// The task holds a stack only while it is being polled, is preempted, or is inside of
/// [`block_on()`].
///
/// The future must be `Send` for the same reason as with [`std::thread::spawn`]: it may be
/// preempted between any two instructions, and other tasks of the core run then.
///
/// [`std::thread::spawn`]: https://doc.rust-lang.org/std/thread/fn.spawn.html
///
/// # Errors
///
/// If there is no memory for the child's task, the parent is polled again and tries again. A task
/// for which there is no stack waits, and [`Config::on_stall`](crate::Config::on_stall) is called.
///
/// # Panics
///
/// - If polled on a core that is not inside of a runtime.
/// - In the parent, if the child panicked, with the child's message.
/// - If the child was ended by a fault, there is no output. Then the parent is aborted. If the
///   parent waits in [`block_on()`], it is ended as well. The future of [`Runtime::run_until`]
///   cannot be aborted, and panics.
pub fn stackful<F>(future: F) -> Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Stackful { future: Some(future), on_stack: false, child: None, hooks: Vec::new() }
}

impl<F> Future for Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut core::task::Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is moved only before its first poll. `child` and the other fields are
        // not structurally pinned.
        let this = unsafe { self.get_unchecked_mut() };
        if !this.on_stack {
            return this.poll_off_stack(context);
        }
        let Some(future) = &mut this.future else { unreachable!("on_stack keeps the future") };
        let mut scope;
        let _inside = if this.hooks.is_empty() {
            None
        } else {
            scope = Scope::new(ScopeEntry::Hooks(&this.hooks));
            Some(scope.begin())
        };
        // SAFETY: with `on_stack` set, the future is never moved again.
        unsafe { Pin::new_unchecked(future) }.poll(context)
    }
}

impl<F> Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Polls off a stack. This is a poll in a parent, which polls the child, or the first poll of a
    /// task that is stackful as a whole.
    fn poll_off_stack(&mut self, context: &mut core::task::Context<'_>) -> Poll<F::Output> {
        let Some(runtime) = Runtime::current() else {
            panic!("stackful() was polled outside of a runtime: spawn it, or await it in a task")
        };
        if self.future.is_some() {
            let whole = (ptr::from_ref(self).cast(), TypeId::of::<Self>());
            if let Some(task) = runtime.task_that_is(whole) {
                // This `Stackful` is the whole task, and this is its first poll, by the loop. All
                // further polls are on a stack.
                self.on_stack = true;
                // SAFETY: the current task is alive. It is being polled, so this is its core.
                unsafe { task.as_ref() }.state.set_stackful();
                runtime.yield_current();
                return Poll::Pending;
            }
            if !self.spawn_child(runtime) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let Some(child) = &mut self.child else {
            // The child was ended by a fault, and the parent has been aborted.
            return Poll::Pending;
        };
        let error = match child.poll_in_place(context) {
            Poll::Ready(Ok(value)) => return value.into_ready(),
            Poll::Ready(Err(error)) => error,
            Poll::Pending => return Poll::Pending,
        };
        match error {
            JoinError::Panicked(payload) => {
                let message = String::from(panic_message(&payload));
                // Before the panic below, since the drop of the payload may panic too.
                panic::drop_payload(payload);
                panic!("a stackful future panicked: {message}")
            }
            JoinError::Abandoned if runtime.abort_current() => {
                self.child = None;
                Poll::Pending
            }
            // `Aborted`: only this `Stackful` has the child's handle, so a shutdown aborted the
            // child. That shutdown ends the parent too, unless the parent has been moved to another
            // runtime. `Abandoned`: the parent cannot be aborted.
            error => panic!("a stackful future was ended: {error}"),
        }
    }

    /// Moves the future into a child task. Returns `false` if there is no memory or the runtime has
    /// been shut down. The future then stays in `self`.
    #[inline(never)]
    fn spawn_child(&mut self, runtime: &'static Runtime) -> bool {
        let Some(hooks) = contexted::inherited(runtime) else { return false };
        // `spawn_stackful` copies `self` into the child, so `self` gets the field values of the
        // child here. It keeps them until the child has been published or refused.
        self.hooks = hooks;
        self.on_stack = true;
        // SAFETY: `self` is a valid `Stackful` that only this code accesses. On `Ok` the future and
        // the hooks belong to the task, and are overwritten below without a drop.
        match unsafe { runtime.spawn_stackful(self) } {
            Ok(child) => {
                // SAFETY: the fields are `self`'s, and the values that are overwritten have been
                // moved.
                unsafe {
                    ptr::from_mut(&mut self.future).write(None);
                    ptr::from_mut(&mut self.hooks).write(Vec::new());
                }
                self.on_stack = false;
                self.child = Some(child);
                true
            }
            Err(_) => {
                self.on_stack = false;
                // Otherwise the future would be dropped inside of these hooks, which this code is
                // already inside of.
                self.hooks.clear();
                false
            }
        }
    }
}

impl<F: Future> Drop for Stackful<F> {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            child.abort();
        }
        if !self.hooks.is_empty() {
            let future = &mut self.future;
            // Dropped in place, as the future may be pinned.
            contexted::within(ScopeEntry::Hooks(&self.hooks), || *future = None);
        }
    }
}

impl<F: Future> fmt::Debug for Stackful<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stackful").field("child", &self.child).finish_non_exhaustive()
    }
}

/// Returns the addresses of the stack on which this core runs a stackful task, as
/// [`Platform::allocate_stack`](crate::platform::Platform::allocate_stack) gave the stack; `None`
/// if the core runs no stackful task.
///
/// It is meant for the handler of a fault: if the faulting address is in the guard below this
/// stack, the task has overflowed its stack. Any context.
pub fn current_stack() -> Option<core::ops::Range<usize>> {
    let stack = Runtime::current()?.stacks().running()?;
    // SAFETY: the running stack is alive.
    Some(unsafe { stack.as_ref() }.memory())
}

impl Runtime {
    /// Grants a slice to the code on `stack`. Loop only.
    #[inline(always)]
    pub(crate) fn grant_slice(&self, stack: NonNull<Stack>) {
        // SAFETY: a stack is alive until it is freed, and only the loop, which calls this, frees
        // stacks.
        unsafe { stack.as_ref() }.left.set(0);
        if !self.alarm().begin_covered() {
            self.alarm().begin_slice(self.slice(), self.timers().next());
        }
    }

    /// Grants the code on `stack` the time that was noted when it was preempted. Loop only.
    #[inline(always)]
    pub(crate) fn grant_rest(&self, stack: NonNull<Stack>) {
        // SAFETY: as in `grant_slice`.
        let stack = unsafe { stack.as_ref() };
        let (left, next_timer) = (stack.left.get(), self.timers().next());
        match stack.protected.get() {
            0 => self.alarm().resume_slice(left, next_timer),
            least => {
                stack.protected.set(0);
                self.alarm().resume_protected(left, least, next_timer);
            }
        }
    }

    /// Gives the core to the current task, on its stack, until the core comes home. Other stackful
    /// tasks may have been polled on the stack by then. So this function returns only what it reads
    /// after the core has come home.
    #[inline(always)]
    pub(crate) fn leave_home(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> Left {
        // SAFETY: as in `grant_slice`.
        let this = unsafe { stack.as_ref() };
        self.stacks().set_running(Some(stack));
        this.task.set(None);
        // SAFETY: the task is RUNNING, hence alive, and this is its core (rule 4 of `crate::task`).
        unsafe { task.as_ref() }.stack.set(None);
        if this.scopes.get().is_some() {
            self.enter_scopes(task, this);
        }
        // SAFETY: `this.context` was prepared by `Pool::grow`, or saved by `switch_to_loop` or
        // `go_home` on this core, and the stack is alive. The context is entered once for each time
        // that it was saved, since a task is in one queue and an idle stack in one pool. `home`
        // outlives the switch, since it lies in the runtime.
        unsafe { Context::switch(self.stacks().home.as_ptr(), this.context.get()) };
        let Some(stack) = self.stacks().running() else {
            unreachable!("the core came home from no stack")
        };
        let left = Left { task: self.current_task(), stack, reason: self.stacks().reason.get() };
        self.stacks().set_running(None);
        self.set_current(None);
        if self.scopes().get().is_some() {
            // Scopes are set here only if the core has left a poll that has not ended.
            self.leave_scopes(left.task(), left.stack, left.reason);
        }
        left
    }

    /// Runs the entering hooks of the poll that is about to be resumed on `stack`.
    #[inline(never)]
    fn enter_scopes(&self, task: NonNull<Header>, stack: &Stack) {
        let scopes = stack.scopes.take();
        // SAFETY: the poll on the stack has not ended, so its scopes are alive.
        self.catch_user_panic(task, || unsafe { contexted::enter(scopes) });
        self.scopes().set(scopes);
    }

    /// Runs the leaving hooks of the poll that the core has left in the middle, on `stack`.
    #[inline(never)]
    fn leave_scopes(&self, task: NonNull<Header>, stack: NonNull<Stack>, reason: Reason) {
        match reason {
            Reason::Overflowed => overflowed(task),
            Reason::Interrupted | Reason::Ended => {
                // SAFETY: this is the loop. A trap handler has just given the core to it, or, if
                // `Ended`, `block_on` has, which leaves interrupts enabled.
                unsafe { bound::enable_interrupts() };
            }
            _ => {}
        }
        // Before the hooks run: a hook that drops the task's join handle must find that a stack
        // holds frames of the task.
        self.hold(task, stack);
        let scopes = self.scopes().take();
        // SAFETY: a poll that has ended has left all its scopes. These are set, so their poll has
        // not ended.
        self.catch_user_panic(task, || unsafe { contexted::leave(scopes) });
        // SAFETY: as in `grant_slice`.
        unsafe { stack.as_ref() }.scopes.set(scopes);
    }

    /// Notes that `stack` holds frames of `task`, which is off the core. At home.
    #[inline(always)]
    pub(crate) fn hold(&self, task: NonNull<Header>, stack: NonNull<Stack>) {
        // SAFETY: the task is RUNNING, hence alive, and this is its core (rule 4 of `crate::task`).
        // A stack is alive until the loop frees it.
        unsafe {
            task.as_ref().stack.set(Some(stack));
            stack.as_ref().task.set(Some(task));
        }
    }

    /// Notes how much of its slice the running task has left, and leaves the running stack.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack).
    #[inline(always)]
    pub(crate) unsafe fn leave_preempted(&'static self, left: SliceLeft, now: u64, reason: Reason) {
        let stack = self.running_stack();
        let is_short = self.alarm().is_short(now);
        self.alarm().end_stretch(now);
        stack.set_left(match left {
            SliceLeft::Nanoseconds(left) => {
                if is_short {
                    stack.protected.set(MIN_STRETCH);
                }
                (true, left)
            }
            SliceLeft::Nothing => (false, self.slice()),
        });
        // SAFETY: the caller's promise. `stack` is the running stack.
        unsafe { self.leave_stack(stack, reason) };
    }

    /// Leaves the running stack for the loop. Returns when the loop enters the stack again, with
    /// preemption enabled.
    ///
    /// # Safety
    ///
    /// Called on the stack of the running stackful task, which is `stack`, in the task's own code
    /// or in an interrupt of that code, not in the runtime's code. If `reason` is `Interrupted`,
    /// interrupts are masked, and they are masked again when this returns.
    #[inline(always)]
    pub(crate) unsafe fn leave_stack(&'static self, stack: &Stack, reason: Reason) {
        if reason != Reason::Interrupted {
            // The entry of an interrupt has already touched the stack and dropped the rights.
            arch::touch_stack::<{ arch::LEAVE }>();
            if arch::has_rights() {
                // SAFETY: the caller's promise. The reason is not `Interrupted`, so this is task
                // context.
                return unsafe { self.leave_with_rights(stack, reason) };
            }
        }
        // SAFETY: both functions have the contract of this one. `reason` says whether this is an
        // interrupt.
        unsafe {
            if self.switch_to_loop(stack, reason) {
                self.leave_for_pending(reason == Reason::Interrupted);
            }
        }
    }

    /// Leaves the running stack while its code has the right to access user pages. Other code must
    /// not have that right meanwhile.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack), in task context.
    #[cold]
    #[inline(never)]
    unsafe fn leave_with_rights(&'static self, stack: &Stack, reason: Reason) {
        let rights = arch::drop_rights();
        // SAFETY: the caller's promise. `rights` are those that this code had.
        unsafe {
            self.leave_stack(stack, reason);
            arch::restore_rights(rights);
        }
    }

    /// Leaves the stack again for a preemption that became pending between the loop's last check
    /// and the enabling of preemption, or just after that. Repeats this until no preemption is
    /// pending when preemption is enabled.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack). `interrupt` says whether the caller is in an
    /// interrupt.
    #[cold]
    #[inline(never)]
    unsafe fn leave_for_pending(&'static self, interrupt: bool) {
        let reason = if interrupt { Reason::Interrupted } else { Reason::Preempted };
        let (alarm, mut least) = (self.alarm(), MIN_STRETCH);
        loop {
            self.preempt_count().set(1);
            let (stack, now) = (self.running_stack(), bound::now());
            if alarm.protects() {
                // The protected stretch begins now. If the alarm fires again before the task's code
                // runs, the next protected stretch is longer.
                alarm.protect(now, least);
                least = least.saturating_mul(2);
                if self.stay(now) {
                    return;
                }
                continue;
            }
            // The task has had nothing of its stretch, so its next stretch is protected.
            stack.protected.set(MIN_STRETCH);
            alarm.end_stretch(now);
            stack.set_left(match alarm.slice_left(now, self.slice()) {
                SliceLeft::Nanoseconds(left) => (true, left),
                SliceLeft::Nothing if self.preempt_count().is_zero() => (false, self.slice()),
                // The slice was over before the task's code ran. The task gets twice as much each
                // time, until that is enough.
                SliceLeft::Nothing => (false, stack.left.get().saturating_mul(2).max(self.slice())),
            });
            // SAFETY: the caller's promise. `stack` is the running stack, and `reason` says whether
            // this is an interrupt.
            if !unsafe { self.switch_to_loop(stack, reason) } {
                return;
            }
        }
    }

    /// Goes home. When the loop enters the stack again, enables preemption and returns whether a
    /// preemption is pending.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack).
    #[inline(always)]
    unsafe fn switch_to_loop(&'static self, stack: &Stack, reason: Reason) -> bool {
        if stack.has_overflowed() {
            self.leave_overflowed(stack);
        }
        self.preempt_count().set(1);
        self.stacks().reason.set(reason);
        // SAFETY: a task's code runs, so the loop has left home and saved its context in `home`,
        // which is entered once for that. `stack.context` outlives the switch, since it lies at the
        // top of the stack.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        if reason == Reason::Interrupted {
            // The interrupt handler continues. Its return restores what the interrupted code had.
            bound::mask_interrupts();
        }
        self.enable_and_test()
    }

    /// Returns the stack that the calling code runs on. Panics at home.
    #[inline(always)]
    pub(crate) fn running_stack(&self) -> &Stack {
        let Some(stack) = self.stacks().running() else { unreachable!("the core is on no stack") };
        // SAFETY: the running stack is alive.
        unsafe { stack.as_ref() }
    }

    /// Leaves the running stack for ever. The caller may be on another stack, on which it handles
    /// the task's fault.
    ///
    /// # Safety
    ///
    /// Called in the running stackful task's own code, or, with interrupts masked, in a handler
    /// that has interrupted that code.
    pub(crate) unsafe fn end_stack(&'static self) -> ! {
        let stack = self.running_stack();
        self.preempt_count().set(1);
        // The loop must have none of the task's rights. (The entry of a trap has already dropped
        // them.)
        arch::drop_rights();
        self.stacks().reason.set(Reason::Ended);
        // The fault may have cost an interrupt, such as the alarm's. So the loop looks at the
        // timers, and sets the alarm again.
        self.alarm().forget();
        self.alarm().set_due(bound::now());
        self.preempt_count().set_need_resched();
        // SAFETY: as in `switch_to_loop`. The context that is saved in `stack` is never entered.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        unreachable!("a stack whose task had been ended was entered")
    }

    /// Leaves the running stack, `stack`, for the loop, which ends the program.
    #[cold]
    #[inline(never)]
    fn leave_overflowed(&'static self, stack: &Stack) -> ! {
        self.preempt_count().set(1);
        self.stacks().reason.set(Reason::Overflowed);
        // SAFETY: as in `switch_to_loop`. The context that is saved in `stack` is never entered.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        unreachable!("a stack that had overflowed was entered")
    }

    /// Enables preemption for a task's code, and returns whether a preemption is pending. If so,
    /// the caller disables preemption again and takes the pending preemption, unless an interrupt
    /// has taken it first.
    #[inline(always)]
    fn enable_and_test(&self) -> bool {
        self.preempt_count().set(0);
        self.preempt_count().is_pending()
    }

    /// If the running task has not yet had its protected stretch: sets the alarm for the end of
    /// that stretch, and enables preemption for the task's code. Returns `false` if a preemption is
    /// pending now. Called on the task's core, in task context or with interrupts masked.
    #[cold]
    #[inline(never)]
    fn stay(&self, now: u64) -> bool {
        // An alarm that fires while the alarm is being set finds preemption disabled.
        self.preempt_count().set(1);
        self.preempt_count().clear_pending();
        if !self.alarm().stays(now) {
            self.preempt_count().set_pending();
            return false;
        }
        !self.enable_and_test()
    }

    /// Defers a preemption that must not happen now although the preempt count is zero, or about to
    /// be: keeps the preemption pending, and sets the alarm to try again.
    ///
    /// `may_preempt` is the platform's answer. If it is `true`, masked interrupts forbid the
    /// preemption, and the alarm fires as soon as they are enabled. If it is `false`, the alarm
    /// fires after a while. Called on the task's core, on a stack, with interrupts masked.
    #[cold]
    #[inline(never)]
    pub(crate) fn defer(&self, may_preempt: bool) {
        self.preempt_count().set_pending();
        let wait = if may_preempt {
            0
        } else {
            self.preempt_count().retry_after(self.slice(), self.polls())
        };
        // The timers are not considered: a timer that is due would make the alarm fire at once,
        // again and again.
        self.alarm().set_by(bound::now().saturating_add(wait));
    }

    /// Enables preemption for a task's code. If a preemption is pending and nothing else forbids
    /// it, leaves the stack first. Called on a stack, in the task's code or in an interrupt of that
    /// code.
    #[inline]
    pub(crate) fn preempt_enable(&'static self) {
        if self.enable_and_test() {
            self.take_pending();
        }
    }

    /// Takes the pending preemption, or defers it if something forbids it.
    #[cold]
    #[inline(never)]
    fn take_pending(&'static self) {
        self.preempt_count().set(1);
        let may_preempt = bound::may_preempt();
        if may_preempt && bound::interrupts() == Interrupts::Enabled {
            let (alarm, now) = (self.alarm(), bound::now());
            if alarm.protects() && self.stay(now) {
                return;
            }
            let left = alarm.slice_left(now, self.slice());
            // SAFETY: this is the running task's own code, on its stack. It is in task context,
            // since interrupts are enabled.
            bound::preserving(&mut || unsafe {
                self.leave_preempted(left, now, Reason::Preempted)
            });
            return;
        }
        // Interrupts are masked until preemption is enabled, so the alarm finds it enabled.
        let interrupts = bound::mask_interrupts();
        self.defer(may_preempt);
        self.preempt_count().set(0);
        // SAFETY: `interrupts` is what `mask_interrupts` has just returned.
        unsafe { bound::restore_interrupts(interrupts) };
    }

    /// Enables interrupts if user code has returned to the runtime with interrupts masked. Returns
    /// whether it did so. Task context. Called after all user code that the runtime calls.
    #[inline]
    pub(crate) fn unmask(&self) -> bool {
        let masked = bound::interrupts() == Interrupts::Masked;
        if masked {
            enable_interrupts();
        }
        masked
    }
}

/// Enables interrupts that user code has left masked.
#[cold]
#[inline(never)]
fn enable_interrupts() {
    // SAFETY: this is the runtime, and code has returned to it that left interrupts masked.
    unsafe { bound::enable_interrupts() };
}

/// Ends the program because `task` has overflowed its stack. Called at home.
#[cold]
pub(crate) fn overflowed(task: NonNull<Header>) -> ! {
    // SAFETY: the task is RUNNING, hence alive.
    let task = unsafe { Label::of(task) };
    fatal(format_args!("trapline: {task} overflowed its stack: set Config::stack_size higher"))
}

/// The code that each stack starts in: the part of the loop that polls stackful tasks, and, called
/// by it, the tasks. Unwinding ends here.
///
/// # Safety
///
/// `stack` is the `Stack` that this code runs on. The stack was entered for the running task.
unsafe extern "C" fn stack_main(stack: *mut ()) -> ! {
    // SAFETY: the caller's promise. A stack is freed only while no code runs on it.
    let stack = unsafe { &*stack.cast::<Stack>() };
    let runtime = stack.runtime;
    let mut ended = None;
    loop {
        let caught = bound::catch_unwind(&mut || runtime.turn_on(stack, ended.take()));
        let Err(payload) = caught else { unreachable!("the loop on a stack has returned") };
        ended = runtime.caught_on(stack, payload);
    }
}

// The functions below run on a pooled stack. The result of a poll lies on that stack too, and not
// in the runtime: until the preempt count is raised for good, the task may be preempted, and polls
// of other tasks may end meanwhile.
impl Runtime {
    /// The loop on a stack. It polls the running task, then the tasks whose turn comes and of which
    /// no stack holds frames. For everything else it goes home. If the poll of the running task
    /// panicked, `ended` is that task and how its poll has ended.
    ///
    /// The frame of this function that is there during a poll keeps the stack, the runtime and the
    /// task that is polled. It reads everything else anew after the poll: the core may have run
    /// other code meanwhile.
    fn turn_on(&'static self, stack: &Stack, ended: Option<(NonNull<Header>, Reason)>) {
        let mut next = ended.and_then(|(task, reason)| self.leave_poll(stack, task, reason));
        loop {
            let task = next.unwrap_or_else(|| self.brought());
            // Home may have brought a task that was aborted. The loop on a stack itself begins no
            // poll of such a task.
            // SAFETY: the loop has started the task, so it is RUNNING, hence alive.
            let is_over = next.is_none() && unsafe { task.as_ref() }.state.is_aborted();
            self.begin_task_code();
            if is_over {
                next = self.end_last_poll(stack, task, Poll::Pending);
                continue;
            }
            // SAFETY: the task is RUNNING, and this is its core.
            let poll = unsafe { Header::poll(task) };
            self.check_guards(0, task, poll);
            // SAFETY: the task is RUNNING, hence alive.
            next = if poll.is_ready() || unsafe { task.as_ref() }.state.is_aborted() {
                self.end_last_poll(stack, task, poll)
            } else {
                self.preempt_count().set(1);
                self.leave_poll(stack, task, Reason::Pending)
            };
        }
    }

    /// Returns the task that home has brought to this stack to be polled.
    fn brought(&self) -> NonNull<Header> {
        let Some(task) = self.current_task() else {
            unreachable!("a stack was entered without a task")
        };
        task
    }

    /// Handles a panic on a stack. If it came from the poll of a task, returns that task and how
    /// its poll has ended.
    #[cold]
    #[inline(never)]
    fn caught_on(
        &'static self,
        stack: &Stack,
        payload: PanicPayload,
    ) -> Option<(NonNull<Header>, Reason)> {
        if let Some(task) = self.current_task() {
            let reason = self.panicked_on_stack(task, payload);
            stack.lost_child.set(false);
            return Some((task, reason));
        }
        self.stacks().payload.set(Some(payload));
        self.go_home(stack, Reason::Panicked);
        // Home has brought a task, which is the current one now. `turn_on` polls it.
        None
    }

    /// Ends a stackful task that has finished or was aborted, and begins the next poll. All user
    /// code that this involves runs here, on the task's stack.
    #[inline(never)]
    fn end_last_poll(&'static self, stack: &Stack, task: NonNull<Header>, poll: Poll<()>) -> Link {
        let error = if poll.is_ready() { None } else { Some(JoinError::Aborted) };
        let reason = self.end_on_stack(task, error);
        stack.lost_child.set(false);
        self.leave_poll(stack, task, reason)
    }

    /// Begins the next poll on this stack, and returns its task. Returns `None` if the core went
    /// home and home has brought a task. Called with preemption disabled.
    #[inline(always)]
    fn leave_poll(&'static self, stack: &Stack, task: NonNull<Header>, reason: Reason) -> Link {
        if stack.lost_canary() {
            self.leave_overflowed(stack);
        }
        if arch::has_rights() {
            // The poll has left a section open in which it may access user pages. Other tasks must
            // not have that right.
            arch::drop_rights();
        }
        match self.next_on_stack(NonNull::from(stack), task, reason) {
            Ok(next) => Some(next),
            Err(reason) => {
                self.go_home(stack, reason);
                None
            }
        }
    }

    /// Goes home from an idle stack. Returns when home has brought the next task.
    #[inline(never)]
    fn go_home(&'static self, stack: &Stack, reason: Reason) {
        self.stacks().reason.set(reason);
        // SAFETY: as in `switch_to_loop`. The stack holds no frame of a task, only frames of the
        // loop. Home gives the stack to the pool after the switch.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
    }

    /// Ends a stackful task whose poll panicked. Guards that the task has left stay in force until
    /// its future is gone.
    #[cold]
    #[inline(never)]
    fn panicked_on_stack(&'static self, task: NonNull<Header>, payload: PanicPayload) -> Reason {
        self.unmask();
        // SAFETY: the task is RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            self.catch_user_panic(task, || panic::discard(task, payload));
            self.end_on_stack(task, None)
        } else {
            self.end_on_stack(task, Some(JoinError::Panicked(payload)))
        }
    }

    /// Finishes a stackful task. If there is an error, drops the future first and stores the error
    /// as the output. If there is no join handle, drops the output. All of this may be preempted
    /// and may block.
    #[inline(never)]
    fn end_on_stack(&'static self, task: NonNull<Header>, error: Option<JoinError>) -> Reason {
        // The task may have asked to be polled again. It is not.
        self.take_yield();
        let is_error = error.is_some();
        if let Some(error) = error {
            // SAFETY: the task is RUNNING, on its core, and its poll is over.
            self.catch_user_panic(task, || unsafe { Header::fail(task, error) });
        }
        self.end_task_code();
        // SAFETY: the task is RUNNING, hence alive.
        let header = unsafe { task.as_ref() };
        match header.state.complete_for_join() {
            Some(false) => return Reason::Finished,
            Some(true) => return Reason::FinishedForJoiner,
            None => {}
        }
        if is_error || header.vtable.value_needs_drop {
            self.begin_task_code();
            // SAFETY: rule 6 of `crate::task`: there is no join handle. The output is dropped once,
            // since `Detached` tells the loop that it is gone.
            self.catch_user_panic(task, || unsafe { Header::drop_output(task) });
            self.end_task_code();
        }
        Reason::Detached
    }

    /// Enables preemption for the task's code, on its stack. Takes a pending preemption first.
    #[inline(always)]
    fn begin_task_code(&'static self) {
        if self.enable_and_test() {
            // SAFETY: this is the running task's own code, on its stack, in task context.
            unsafe { self.leave_for_pending(false) };
        }
    }

    /// Disables preemption for the runtime's own code, on the task's stack. Guards that the task
    /// has left no longer count.
    #[inline]
    fn end_task_code(&self) {
        if self.preempt_count().get() == 0 {
            self.preempt_count().set(1);
        } else {
            self.preempt_count().void_guards();
        }
    }
}

/// The stacks of one core, and the state that they and the loop share. Owning core only.
pub(crate) struct Stacks {
    pub(crate) pool: Pool,
    /// Tasks that were woken. At the front are preempted ones that have time left of their slices.
    pub(crate) ready: Fifo<Header>,
    /// Tasks whose turn came while there was no stack. They go before those in `ready` and `turns`.
    waiting: Fifo<Header>,
    /// How many tasks wait for a stack. Any core may read it.
    waiting_now: AtomicU64,
    /// How often a task began to wait for a stack. Any core may read it.
    failed_growths: AtomicU64,
    /// The time from which [`Config::on_stall`](crate::Config::on_stall) may be called again.
    pub(crate) next_report: Cell<u64>,
    /// Tasks that have used up a slice or have yielded. They take turns.
    pub(crate) turns: Fifo<Header>,
    /// Whether the task on a stack was taken from `turns`: it has its turn, or continues it.
    pub(crate) in_turn: Cell<bool>,
    /// How long the tasks of all three queues have waited for plain tasks.
    pub(crate) aging: Aging,
    /// How long the tasks in `turns` have waited for those in `ready`.
    pub(crate) turn_aging: Aging,
    /// The context of home (the stack of the code that entered the runtime) while a stack has the
    /// core.
    home: Cell<Context>,
    /// The stack that the core is on; null at home. Interrupt handlers read it.
    running: AtomicPtr<Stack>,
    /// The reason for which the core came home last.
    reason: Cell<Reason>,
    /// The payload of a panic of the loop on a stack, until home takes it.
    payload: Cell<Option<PanicPayload>>,
}

impl Stacks {
    pub(crate) const fn new() -> Self {
        Self {
            pool: Pool::new(),
            ready: Fifo::new(),
            waiting: Fifo::new(),
            waiting_now: AtomicU64::new(0),
            failed_growths: AtomicU64::new(0),
            next_report: Cell::new(0),
            turns: Fifo::new(),
            in_turn: Cell::new(false),
            aging: Aging::new(),
            turn_aging: Aging::new(),
            home: Cell::new(Context::NONE),
            running: AtomicPtr::new(core::ptr::null_mut()),
            reason: Cell::new(Reason::Idle),
            payload: Cell::new(None),
        }
    }

    /// Takes the payload with which the loop on a stack panicked. At home.
    pub(crate) fn take_payload(&self) -> Option<PanicPayload> {
        self.payload.take()
    }

    /// Returns whether no task is queued here.
    #[inline]
    pub(crate) fn are_idle(&self) -> bool {
        self.ready.is_empty() && self.turns.is_empty() && self.waiting.is_empty()
    }

    /// Returns whether tasks wait for a stack.
    #[inline]
    pub(crate) fn are_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Returns how many tasks wait for a stack.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting_now.load(Ordering::Relaxed)
    }

    /// Returns how often a task found no stack when its turn came.
    pub(crate) fn failed_growths(&self) -> u64 {
        self.failed_growths.load(Ordering::Relaxed)
    }

    /// Queues a task whose turn came while there was no stack. Loop only.
    ///
    /// # Safety
    ///
    /// As [`Fifo::push_back`].
    pub(crate) unsafe fn push_waiting(&self, task: NonNull<Header>) {
        self.waiting_now.store(self.waiting() + 1, Ordering::Relaxed);
        self.failed_growths.store(self.failed_growths() + 1, Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { self.waiting.push_back(task) };
    }

    /// Removes and returns the first task that waits for a stack. Loop only.
    pub(crate) fn pop_waiting(&self) -> Link {
        let task = self.waiting.pop()?;
        self.waiting_now.store(self.waiting() - 1, Ordering::Relaxed);
        Some(task)
    }

    /// Removes those waiting tasks for which `f` returns `false`. They belong to `f` then. Loop
    /// only.
    pub(crate) fn retain_waiting(&self, mut f: impl FnMut(NonNull<Header>) -> bool) {
        let kept = Fifo::new();
        while let Some(task) = self.pop_waiting() {
            if f(task) {
                // SAFETY: the task was in a queue, and is in none now.
                unsafe { kept.push_back(task) };
            }
        }
        while let Some(task) = kept.pop() {
            self.waiting_now.store(self.waiting() + 1, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { self.waiting.push_back(task) };
        }
    }

    /// Returns the stack that has the core.
    #[inline]
    pub(crate) fn running(&self) -> Option<NonNull<Stack>> {
        NonNull::new(self.running.load(Ordering::Relaxed))
    }

    #[inline]
    fn set_running(&self, stack: Option<NonNull<Stack>>) {
        let stack = stack.map_or(core::ptr::null_mut(), NonNull::as_ptr);
        self.running.store(stack, Ordering::Relaxed);
    }
}

/// The report that tasks wait for a stack and there is none: all
/// [`Config::max_stacks`](crate::Config::max_stacks) are held, or there is no memory for another.
/// Passed to [`Config::on_stall`](crate::Config::on_stall).
///
/// Displayed, it names in one line the tasks that wait, and the tasks that hold stacks with the
/// reasons.
pub struct Stall<'a> {
    pub(crate) runtime: &'a Runtime,
}

impl Stall<'_> {
    /// Calls `f` for each task that holds a stack.
    pub fn holders(&self, mut f: impl FnMut(TaskId)) {
        self.each_holder(|task, _| f(task.id()));
    }

    /// Calls `f` for each task that holds a stack, with the reason.
    pub fn each_holder(&self, mut f: impl FnMut(StalledTask, Holds)) {
        let stacks = self.runtime.stacks();
        stacks.pool.each(|stack| {
            let Some(task) = stack.task.get() else { return };
            // SAFETY: a task of which a stack holds frames is alive. A task that was ended by a
            // fault stays alive for ever.
            let (label, state) = unsafe { (Label::of(task), &task.as_ref().state) };
            let holds = match stack.is_preempted() {
                true => Holds::Preempted,
                false if state.is_done() => Holds::Ended,
                false => Holds::Suspended,
            };
            f(StalledTask { label }, holds);
        });
    }

    /// Calls `f` for each task that waits for a stack, in the order in which they get one.
    pub fn each_waiter(&self, mut f: impl FnMut(StalledTask)) {
        self.runtime.stacks().waiting.each(|task| {
            // SAFETY: tasks in a queue are alive.
            f(StalledTask { label: unsafe { Label::of(task) } });
        });
    }

    /// Returns how many tasks wait for a stack.
    pub fn waiting(&self) -> usize {
        self.runtime.stacks().waiting() as usize
    }

    /// Returns how many stacks there are.
    pub fn stacks(&self) -> usize {
        self.runtime.stacks().pool.total()
    }

    /// Returns whether memory is lacking, that is,
    /// [`Config::max_stacks`](crate::Config::max_stacks) would allow another stack.
    pub fn is_out_of_memory(&self) -> bool {
        self.runtime.may_have_more_stacks()
    }
}

impl fmt::Display for Stall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.is_out_of_memory() { "no memory for more" } else { "no more allowed" };
        write!(f, "{} stacks, {why}; {} tasks wait:", self.stacks(), self.waiting())?;
        let mut result = Ok(());
        self.each_waiter(|task| result = result.and_then(|()| write!(f, " {task}")));
        result?;
        f.write_str("; held by")?;
        self.each_holder(|task, holds| {
            result = result.and_then(|()| write!(f, " {task} ({holds})"))
        });
        result
    }
}

impl fmt::Debug for Stall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A task that a [`Stall`] names. Displayed as its id, and its name if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalledTask {
    label: Label,
}

impl StalledTask {
    /// Returns the task's id.
    pub fn id(&self) -> TaskId {
        self.label.id
    }

    /// Returns the task's name, if it was given one.
    pub fn name(&self) -> Option<&'static str> {
        self.label.name
    }
}

impl fmt::Display for StalledTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.label.fmt(f)
    }
}

/// Why a task holds a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holds {
    /// The task computes: it was preempted, and is resumed when its turn comes.
    Preempted,
    /// The task waits in [`block_on()`].
    Suspended,
    /// The task was ended by a fault, and holds the stack for ever.
    Ended,
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preempted => "preempted",
            Self::Suspended => "in block_on",
            Self::Ended => "ended by a fault",
        })
    }
}
