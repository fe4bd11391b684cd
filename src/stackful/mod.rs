//! Futures that compute: they run on stacks of their own and are preempted.
//!
//! A stackful future is a task like any other: one state word, one waker, one place in the ready
//! queue. What differs is where it is polled: on a stack of the core's pool. A stack is in one of
//! four situations, and in one place: in the pool, its task's, or the loop's.
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
//!    in the pool      the core is here    └───────────────┘   │ on_timer      │
//!                                         the task is BLOCKED │ saved context │
//!                                         or queued, like any └───────────────┘
//!                                         other               the task is RUNNING, in
//!                                                             a queue of the preempted
//! ```
//!
//! In the last two it holds frames, and belongs to its task and to its core.
//!
//! # Home, and the loop on a stack
//!
//! *Home* is the stack of the code that entered the runtime. Plain tasks are polled there, the core
//! parks there, and tasks of which a stack holds frames go on from there. From home to a stack is
//! one switch. There, `turn_on` is the loop: after each poll it chooses, and polls the next
//! stackful task by a plain call, so that tasks that are not preempted cost no switch. For all else
//! it goes home, which chooses again, from the same queues.
//!
//! ```text
//!   home: Runtime::run                             a stack: Runtime::turn_on
//!  ┌─────────────────────┐  leave_home: poll     ┌─────────────────────────────┐
//!  │ choose              │ ────────────────────► │ poll ◄─────────────────┐    │
//!  │ poll a plain task   │                       │ next_on_stack: choose ─┘    │
//!  │ park                │ ◄──────────────────── │ go_home: anything else      │
//!  │                     │                       ├─────────────────────────────┤
//!  │                     │ ◄──────────────────── │ leave_stack: preempted,     │
//!  │                     │  leave_home: go on    │ or suspended                │
//!  │                     │ ────────────────────► │                             │
//!  └─────────────────────┘                       └─────────────────────────────┘
//! ```
//!
//! What holds:
//!
//! 1. Preemption is enabled only on a stack, so home has been left then, and can be entered.
//! 2. No frame of a task's is left at home when the core leaves it, and no plain task is polled on
//!    a stack.
//! 3. The frames below a poll know the runtime, the stack and the task, and read all else after
//!    the poll: the core has done other things meanwhile.
//! 4. `Stacks::running` is the stack that the core is on. When the core comes home, home clears it
//!    first.
//! 5. `Header::stack` and `Stack::task` are set while the stack holds frames of the task and the
//!    core is elsewhere: home sets them when the core has left, and clears them before it enters
//!    the stack.
//! 6. Only home gives a stack to the pool, and only home takes one from there, to enter it. So no
//!    code runs on a stack that is in the pool.
//! 7. The core arrives on a stack by returning, into `turn_on` or into the task's code: the stack
//!    does not grow by it.
//! 8. A task may be preempted after its poll has returned, until preemption is disabled. Until
//!    then, what the poll has returned lies on its stack.

mod aging;
mod backend;
mod block_on;
mod boot;
mod pool;

pub(crate) use aging::Aging;
pub use backend::{Context, StackMain, StackfulBackend};
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
use crate::ready::Fifo;
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
    /// The slice is over or something urgent came, in an interrupt.
    Interrupted,
    /// The same, in task context: when a guard dropped, or at a preemption point.
    Preempted,
    /// The poll returned `Pending`. The stack is idle; so it is in the next three.
    Pending,
    /// The task is over, and DONE. Its output is the join handle's.
    Finished,
    /// The same, and the loop takes the join waker and wakes it.
    FinishedForJoiner,
    /// The task is over and not DONE yet: it has no join handle, and its output has been dropped.
    Detached,
    /// The loop on the stack panicked, outside of any task. The stack is idle.
    Panicked,
    /// It caused a fault, and its handler doesn't go back.
    Ended,
    /// It has overflowed its stack, and no guard caught that. The program ends; the loop says why,
    /// since there is no room for that on this stack.
    Overflowed,
}

/// From where the core came home.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    /// The task that had it, unless the loop on the stack sends the core home by itself.
    pub(crate) task: Link,
    pub(crate) stack: NonNull<Stack>,
    pub(crate) reason: Reason,
}

impl Left {
    #[inline(always)]
    pub(crate) fn task(self) -> NonNull<Header> {
        let Some(task) = self.task else { unreachable!("no task had the core") };
        task
    }
}

/// A future that runs on a stack of its own and is preempted. Made by [`stackful`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Stackful<F: Future> {
    /// `None` once it has been moved into a task of its own. Pinned from the first poll on a stack,
    /// which is the first poll of it at all.
    future: Option<F>,
    /// It is the whole of a task that runs on a stack, perhaps with hooks around it. Nothing moves it any
    /// more, also if `F: Unpin`: only the runtime reaches the task's memory, and hooks give no access to
    /// the future inside of them.
    on_stack: bool,
    child: Option<JoinHandle<F::Output>>,
    /// What hooks a child runs inside of, since its parent was inside of them.
    hooks: Vec<Arc<dyn Hooks>>,
}

/// Makes a future that may compute for as long as it likes: the timer takes the core from it when its
/// slice is over, and the core's other tasks run.
///
/// - Spawned as it is, it is one task, which is polled on a stack; also with
///   [`contexted()`](crate::contexted()) around it.
/// - **Inside of any other future** it spawns a child task at its first poll, on the core of its parent,
///   waits for it, and aborts it when dropped. The parent stays what it was: spawned,
///   `stackful(f).map(g)` is a plain task, `f` runs in a child on a stack, and `g` runs in the plain
///   parent and is not preempted. To have all of it preempted, put `stackful` outermost:
///   `stackful(f.map(g))`.
///
/// It holds a stack only while it is being polled, is preempted, or is inside of [`block_on()`].
///
/// The future must be `Send` for the reason that [`std::thread::spawn`] demands it: it may be preempted
/// between any two instructions, and other tasks of the core run there.
///
/// [`std::thread::spawn`]: https://doc.rust-lang.org/std/thread/fn.spawn.html
///
/// # Errors
///
/// If there is no memory for the child's task, the parent is polled again and tries again. A task for
/// which there is no stack waits, and [`Config::on_stall`](crate::Config::on_stall) is called.
///
/// # Panics
///
/// - Polled on a core that is not inside of a runtime.
/// - In the parent, when the child panicked, with the child's message.
/// - If the child was ended by a fault, there is no output: the parent is aborted, or, if it waits in
///   [`block_on()`], ended as well. The future of [`Runtime::run_until`] cannot be aborted, and panics.
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
        // SAFETY: `future` is moved only before its first poll, `child` is not pinned, and nothing
        // else moves.
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
        // SAFETY: with `on_stack` set, it is never moved again.
        unsafe { Pin::new_unchecked(future) }.poll(context)
    }
}

impl<F> Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// A poll off a stack: that of a child's parent, or the first one of a task that is stackful as a whole.
    fn poll_off_stack(&mut self, context: &mut core::task::Context<'_>) -> Poll<F::Output> {
        let Some(runtime) = bound::slot().runtime() else {
            panic!("stackful() was polled outside of a runtime: spawn it, or await it in a task")
        };
        if self.future.is_some() {
            let whole = (ptr::from_ref(self).cast(), TypeId::of::<Self>());
            if let Some(task) = runtime.task_that_is(whole) {
                // This is the whole task, polled for the first time, by the loop: from now on on a stack.
                self.on_stack = true;
                // SAFETY: the current task is alive; it is polled, so this is its core.
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
            // The child was ended, and the parent has been told.
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
                // Before the panic, as its drop may panic too.
                panic::drop_payload(payload);
                panic!("a stackful future panicked: {message}")
            }
            JoinError::Abandoned if runtime.abort_current() => {
                self.child = None;
                Poll::Pending
            }
            // Aborted: only this has its handle, so a shutdown did it. That ends its parent too, unless the
            // parent has been moved to another runtime.
            error => panic!("a stackful future was ended: {error}"),
        }
    }

    /// Moves the future into a task of its own. `false`: there is no memory, or the runtime has been shut
    /// down, and the future has stayed.
    #[inline(never)]
    fn spawn_child(&mut self, runtime: &'static Runtime) -> bool {
        let Some(hooks) = contexted::inherited(runtime) else { return false };
        // The child is a copy of what this is until it has been published, or was refused.
        self.hooks = hooks;
        self.on_stack = true;
        // SAFETY: a `Stackful` that only this code sees, and that is the task's if there is one.
        match unsafe { runtime.spawn_stackful(self) } {
            Ok(child) => {
                // SAFETY: what is overwritten has been moved.
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
                // The future would be dropped inside of them, where we are already.
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
            // Dropped in its place, as it may be pinned.
            contexted::within(ScopeEntry::Hooks(&self.hooks), || *future = None);
        }
    }
}

impl<F: Future> fmt::Debug for Stackful<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stackful").field("child", &self.child).finish_non_exhaustive()
    }
}

/// The addresses of the stack that this core runs a stackful task on, as
/// [`Platform::allocate_stack`](crate::platform::Platform::allocate_stack) gave it; `None` if it runs
/// none.
///
/// It is meant for the handler of a fault: the task has overflowed its stack if the faulting address is
/// in the guard below. Any context.
pub fn current_stack() -> Option<core::ops::Range<usize>> {
    let stack = bound::slot().runtime()?.stacks().running()?;
    // SAFETY: the running stack is alive.
    Some(unsafe { stack.as_ref() }.memory())
}

impl Runtime {
    /// Grants the code on `stack` a slice. Loop only.
    #[inline(always)]
    pub(crate) fn grant_slice(&self, stack: NonNull<Stack>) {
        // SAFETY: stacks live until they are freed, which only the loop does.
        unsafe { stack.as_ref() }.left.set(0);
        if !self.alarm().begin_covered() {
            self.alarm().begin_slice(self.slice(), self.timers().next());
        }
    }

    /// Grants the code on `stack` what it had left when it was preempted. Loop only.
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
    /// tasks may have been polled by then, also on other stacks: so nothing is returned but what is
    /// read after that.
    #[inline(always)]
    pub(crate) fn leave_home(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> Left {
        // SAFETY: as in `grant_slice`.
        let this = unsafe { stack.as_ref() };
        self.stacks().set_running(Some(stack));
        this.task.set(None);
        // SAFETY: RUNNING, hence alive, and this is its core (rule 4).
        unsafe { task.as_ref() }.stack.set(None);
        if this.scopes.get().is_some() {
            self.enter_scopes(task, this);
        }
        // SAFETY: the stack is prepared or was saved by `switch_to_loop` or `go_home` on this core, and
        // is alive; it is entered once for each time, since its task is in one queue and an idle
        // stack in one pool. Home's place outlives the switch, since it is in the runtime.
        unsafe { Context::switch(self.stacks().home.as_ptr(), this.context.get()) };
        let Some(stack) = self.stacks().running() else {
            unreachable!("the core came home from no stack")
        };
        let left = Left { task: self.current_task(), stack, reason: self.stacks().reason.get() };
        self.stacks().set_running(None);
        self.set_current(None);
        if self.scopes().get().is_some() {
            // Only a poll that is in the middle is inside of hooks.
            self.leave_scopes(left.task(), left.stack, left.reason);
        }
        left
    }

    #[inline(never)]
    fn enter_scopes(&self, task: NonNull<Header>, stack: &Stack) {
        let scopes = stack.scopes.take();
        // SAFETY: the stack's poll is in the middle.
        self.catch_user_panic(task, || unsafe { contexted::enter(scopes) });
        self.scopes().set(scopes);
    }

    #[inline(never)]
    fn leave_scopes(&self, task: NonNull<Header>, stack: NonNull<Stack>, reason: Reason) {
        match reason {
            Reason::Overflowed => overflowed(task),
            Reason::Interrupted | Reason::Ended => {
                // SAFETY: the loop, which a handler has just left for.
                unsafe { bound::enable_interrupts() };
            }
            _ => {}
        }
        // Hooks that drop the task's join handle find that frames of it are left.
        self.hold(task, stack);
        let scopes = self.scopes().take();
        // SAFETY: a poll that is over has left all its scopes, so this one is in the middle.
        self.catch_user_panic(task, || unsafe { contexted::leave(scopes) });
        // SAFETY: as in `grant_slice`.
        unsafe { stack.as_ref() }.scopes.set(scopes);
    }

    /// Notes that `stack` holds frames of `task`, which is off the core. At home.
    #[inline(always)]
    pub(crate) fn hold(&self, task: NonNull<Header>, stack: NonNull<Stack>) {
        // SAFETY: RUNNING, hence alive, and this is its core (rule 4). Stacks live until the loop
        // frees them.
        unsafe {
            task.as_ref().stack.set(Some(stack));
            stack.as_ref().task.set(Some(task));
        }
    }

    /// Leaves the running stack with what its task has left of its slice.
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
        // SAFETY: passed on.
        unsafe { self.leave_stack(stack, reason) };
    }

    /// Leaves the running stack for the loop. Returns when the loop enters it again, with preemption enabled.
    ///
    /// # Safety
    ///
    /// On the stack of the running stackful task, which is `stack`, in its own code or in an interrupt of it,
    /// not in the runtime's. When `Interrupted`, interrupts are masked, and are so again when it returns.
    #[inline(always)]
    pub(crate) unsafe fn leave_stack(&'static self, stack: &Stack, reason: Reason) {
        if reason != Reason::Interrupted {
            // The entry of an interrupt has done both.
            arch::touch_stack::<{ arch::LEAVE }>();
            if arch::has_rights() {
                // SAFETY: passed on.
                return unsafe { self.leave_with_rights(stack, reason) };
            }
        }
        // SAFETY: passed on.
        unsafe {
            if self.switch_to_loop(stack, reason) {
                self.leave_for_pending(reason == Reason::Interrupted);
            }
        }
    }

    /// Leaves the running stack where its code may access users' pages: other code may not meanwhile.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack), in task context.
    #[cold]
    #[inline(never)]
    unsafe fn leave_with_rights(&'static self, stack: &Stack, reason: Reason) {
        let rights = arch::drop_rights();
        // SAFETY: passed on. The rights are this code's own.
        unsafe {
            self.leave_stack(stack, reason);
            arch::restore_rights(rights);
        }
    }

    /// A preemption became pending between the loop's last look and the enabling of preemption, or just after it.
    ///
    /// # Safety
    ///
    /// As [`leave_stack`](Self::leave_stack); `interrupt` says whether it is in one.
    #[cold]
    #[inline(never)]
    unsafe fn leave_for_pending(&'static self, interrupt: bool) {
        let reason = if interrupt { Reason::Interrupted } else { Reason::Preempted };
        let (alarm, mut least) = (self.alarm(), MIN_STRETCH);
        loop {
            self.preempt_count().set(1);
            let (stack, now) = (self.running_stack(), bound::now());
            if alarm.protects() {
                // The least stretch begins here. If the alarm fires again before the task's code runs, the
                // next one is longer.
                alarm.protect(now, least);
                least = least.saturating_mul(2);
                if self.stay(now) {
                    return;
                }
                continue;
            }
            // It has had nothing of this stretch.
            stack.protected.set(MIN_STRETCH);
            alarm.end_stretch(now);
            stack.set_left(match alarm.slice_left(now, self.slice()) {
                SliceLeft::Nanoseconds(left) => (true, left),
                SliceLeft::Nothing if self.preempt_count().is_zero() => (false, self.slice()),
                // A slice shorter than the way into it: double it until it isn't.
                SliceLeft::Nothing => (false, stack.left.get().saturating_mul(2).max(self.slice())),
            });
            // SAFETY: passed on.
            if !unsafe { self.switch_to_loop(stack, reason) } {
                return;
            }
        }
    }

    /// Goes home; when the loop enters the stack again, enables preemption. Returns whether a
    /// preemption is pending then.
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
        // SAFETY: a task's code runs, so the loop has left home and saved its context there, which
        // is entered once for that. The place in `stack` outlives the switch, since it lies on top
        // of the stack.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        if reason == Reason::Interrupted {
            // The handler goes on; its return restores what the interrupted code had.
            bound::mask_interrupts();
        }
        self.enable_and_test()
    }

    /// The running code's own.
    #[inline(always)]
    pub(crate) fn running_stack(&self) -> &Stack {
        let Some(stack) = self.stacks().running() else { unreachable!("no stack to leave") };
        // SAFETY: the running stack is alive.
        unsafe { stack.as_ref() }
    }

    /// Leaves the running stack for ever, from whichever stack the handler of its fault is on.
    ///
    /// # Safety
    ///
    /// In the running stackful task's own code, or in a handler that has interrupted it, with interrupts
    /// masked.
    pub(crate) unsafe fn end_stack(&'static self) -> ! {
        let stack = self.running_stack();
        self.preempt_count().set(1);
        // The loop has none of what the task may access. (The entry of a trap has dropped it already.)
        arch::drop_rights();
        self.stacks().reason.set(Reason::Ended);
        // The fault may have cost an interrupt, such as the alarm's: the loop looks, and sets it again.
        self.alarm().forget();
        self.alarm().set_due(bound::now());
        self.preempt_count().set_need_resched();
        // SAFETY: as in `switch_to_loop`; what is stored in the stack is never entered.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        unreachable!("somebody entered a stack that had been ended")
    }

    /// Leaves the running stack, `stack`, for the loop, which ends the program.
    #[cold]
    #[inline(never)]
    fn leave_overflowed(&'static self, stack: &Stack) -> ! {
        self.preempt_count().set(1);
        self.stacks().reason.set(Reason::Overflowed);
        // SAFETY: as in `switch_to_loop`; what is stored in the stack is never entered.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        unreachable!("a stack that had overflowed was entered")
    }

    /// Enables preemption for a task's code. Returns whether a preemption was pending before that; then
    /// the caller disables preemption and pays, unless an interrupt has come first.
    #[inline(always)]
    fn enable_and_test(&self) -> bool {
        self.preempt_count().set(0);
        self.preempt_count().is_pending()
    }

    /// If the running task has not had its least stretch yet: enables preemption for its code, and the alarm is
    /// set for the end of that stretch. `false`: a preemption is pending now. Its core, in task context or masked.
    #[cold]
    #[inline(never)]
    fn stay(&self, now: u64) -> bool {
        // An alarm that comes while it is set finds preemption disabled.
        self.preempt_count().set(1);
        self.preempt_count().clear_pending();
        if !self.alarm().stays(now) {
            self.preempt_count().set_pending();
            return false;
        }
        !self.enable_and_test()
    }

    /// The core must not be taken although the preempt count is zero, or about to be: the preemption stays pending, and
    /// the alarm is set to try again. If `may_preempt` said yes, interrupts are what forbids it: the alarm
    /// fires as soon as they are enabled. Else it fires after a while. Its core, on a stack, with interrupts
    /// masked.
    #[cold]
    #[inline(never)]
    pub(crate) fn defer(&self, may_preempt: bool) {
        self.preempt_count().set_pending();
        let wait = if may_preempt {
            0
        } else {
            self.preempt_count().retry_after(self.slice(), self.polls())
        };
        // Not for the timers: one that is due would make the alarm fire at once, again and again.
        self.alarm().set_by(bound::now().saturating_add(wait));
    }

    /// Enables preemption for a task's code, and leaves the stack first if a preemption is pending and nothing else
    /// forbids it. On a stack, in the task's code or in an interrupt of that.
    #[inline]
    pub(crate) fn preempt_enable(&'static self) {
        if self.enable_and_test() {
            self.take_pending();
        }
    }

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
            // SAFETY: the running task's own code, on its stack, and in task context, since interrupts are enabled.
            bound::preserving(&mut || unsafe {
                self.leave_preempted(left, now, Reason::Preempted)
            });
            return;
        }
        // Masked, so that the alarm finds preemption enabled.
        let interrupts = bound::mask_interrupts();
        self.defer(may_preempt);
        self.preempt_count().set(0);
        // SAFETY: what `mask_interrupts` has just returned.
        unsafe { bound::restore_interrupts(interrupts) };
    }

    /// Enables interrupts if user code that has returned to the runtime left them masked, and returns whether
    /// it did. Task context; called after all user code that the runtime calls.
    #[inline]
    pub(crate) fn unmask(&self) -> bool {
        let masked = bound::interrupts() == Interrupts::Masked;
        if masked {
            enable_interrupts();
        }
        masked
    }
}

#[cold]
#[inline(never)]
fn enable_interrupts() {
    // SAFETY: the runtime, to which code has returned that has left interrupts masked.
    unsafe { bound::enable_interrupts() };
}

/// Ends the program, at home.
#[cold]
pub(crate) fn overflowed(task: NonNull<Header>) -> ! {
    // SAFETY: RUNNING, hence alive.
    let task = unsafe { Label::of(task) };
    fatal(format_args!("trapline: {task} overflowed its stack: set Config::stack_size higher"))
}

/// What runs on a stack: the loop, as far as stackful tasks are polled, and the tasks. Unwinding
/// ends here.
///
/// # Safety
///
/// `stack` is the `Stack` that this runs on, which was entered for the running task.
unsafe extern "C" fn stack_main(stack: *mut ()) -> ! {
    // SAFETY: the caller's promise; a stack is freed only while nothing runs on it.
    let stack = unsafe { &*stack.cast::<Stack>() };
    let runtime = stack.runtime;
    let mut ended = None;
    loop {
        let caught = bound::catch_unwind(&mut || runtime.turn_on(stack, ended.take()));
        let Err(payload) = caught else { unreachable!("the loop on a stack has ended") };
        ended = runtime.caught_on(stack, payload);
    }
}

// This code runs on a pooled stack. What belongs to a poll lies there too, and not in the runtime:
// until the preempt count is raised for good, the task may be preempted, and other tasks' polls may
// end meanwhile.
impl Runtime {
    /// The loop on a stack. It polls the running task, then those whose turn comes and of which no
    /// stack holds frames, and goes home for all else. `ended`: how the running task's poll has
    /// ended, which panicked.
    ///
    /// A frame of it that is there during a poll knows the stack and the runtime, and the task that
    /// is polled; it reads all else anew: the core has done other things meanwhile.
    fn turn_on(&'static self, stack: &Stack, ended: Option<(NonNull<Header>, Reason)>) {
        let mut next = ended.and_then(|(task, reason)| self.leave_poll(stack, task, reason));
        loop {
            let task = next.unwrap_or_else(|| self.brought());
            // The loop on a stack begins no poll of a task that was aborted; home may have brought
            // one.
            // SAFETY: the loop has started it: it is RUNNING, hence alive.
            let is_over = next.is_none() && unsafe { task.as_ref() }.state.is_aborted();
            self.begin_task_code();
            if is_over {
                next = self.end_last_poll(stack, task, Poll::Pending);
                continue;
            }
            // SAFETY: RUNNING, and this is its core.
            let poll = unsafe { Header::poll(task) };
            self.check_guards(0, task, poll);
            // SAFETY: RUNNING, hence alive.
            next = if poll.is_ready() || unsafe { task.as_ref() }.state.is_aborted() {
                self.end_last_poll(stack, task, poll)
            } else {
                self.preempt_count().set(1);
                self.leave_poll(stack, task, Reason::Pending)
            };
        }
    }

    /// The task that home has brought to this stack, to be polled.
    fn brought(&self) -> NonNull<Header> {
        let Some(task) = self.current_task() else {
            unreachable!("a stack was entered without a task")
        };
        task
    }

    /// A panic on a stack. Returns how the poll of a task ended, if it was one's.
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
        // For the task that is current now.
        None
    }

    /// Ends a stackful task that has finished or was aborted, and begins the next poll. All user
    /// code that this involves runs here, on its stack.
    #[inline(never)]
    fn end_last_poll(&'static self, stack: &Stack, task: NonNull<Header>, poll: Poll<()>) -> Link {
        let error = if poll.is_ready() { None } else { Some(JoinError::Aborted) };
        let reason = self.end_on_stack(task, error);
        stack.lost_child.set(false);
        self.leave_poll(stack, task, reason)
    }

    /// With preemption disabled: begins the next poll on this stack. `None`: went home, which has
    /// brought a task.
    #[inline(always)]
    fn leave_poll(&'static self, stack: &Stack, task: NonNull<Header>, reason: Reason) -> Link {
        if stack.lost_canary() {
            self.leave_overflowed(stack);
        }
        if arch::has_rights() {
            // The poll has left a section open in which it may access users' pages: not the others.
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

    /// Goes home from an idle stack; returns when home has brought the next task.
    #[inline(never)]
    fn go_home(&'static self, stack: &Stack, reason: Reason) {
        self.stacks().reason.set(reason);
        // SAFETY: as in `switch_to_loop`. No frame of a task's is left below `turn_on`. The stack is
        // given to the pool at home, after this.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
    }

    /// A stackful task whose poll panicked. Guards that it has left stay in force until its future is gone.
    #[cold]
    #[inline(never)]
    fn panicked_on_stack(&'static self, task: NonNull<Header>, payload: PanicPayload) -> Reason {
        self.unmask();
        // SAFETY: RUNNING, hence alive.
        if unsafe { task.as_ref() }.state.is_stored() {
            self.catch_user_panic(task, || panic::discard(task, payload));
            self.end_on_stack(task, None)
        } else {
            self.end_on_stack(task, Some(JoinError::Panicked(payload)))
        }
    }

    /// Finishes a stackful task: with an error by dropping its future first. Its output is stored then; if there is
    /// no join handle, it is dropped. All of that may be preempted and block.
    #[inline(never)]
    fn end_on_stack(&'static self, task: NonNull<Header>, error: Option<JoinError>) -> Reason {
        // It may have asked to be polled again, which it is not.
        self.take_yield();
        let is_error = error.is_some();
        if let Some(error) = error {
            // SAFETY: RUNNING, on its core, and the poll is over.
            self.catch_user_panic(task, || unsafe { Header::fail(task, error) });
        }
        self.end_task_code();
        // SAFETY: RUNNING, hence alive.
        let header = unsafe { task.as_ref() };
        match header.state.complete_for_join() {
            Some(false) => return Reason::Finished,
            Some(true) => return Reason::FinishedForJoiner,
            None => {}
        }
        if is_error || header.vtable.value_needs_drop {
            self.begin_task_code();
            // SAFETY: rule 6: there is no join handle, and the output is dropped once: the loop is told.
            self.catch_user_panic(task, || unsafe { Header::drop_output(task) });
            self.end_task_code();
        }
        Reason::Detached
    }

    /// Enables preemption for the task's code, on its stack. If one is pending, it comes first.
    #[inline(always)]
    fn begin_task_code(&'static self) {
        if self.enable_and_test() {
            // SAFETY: the running task's own code, on its stack, in task context.
            unsafe { self.leave_for_pending(false) };
        }
    }

    /// Disables preemption for the runtime's own code, on the task's stack. Guards that the task has left count
    /// no longer.
    #[inline]
    fn end_task_code(&self) {
        if self.preempt_count().get() == 0 {
            self.preempt_count().set(1);
        } else {
            self.preempt_count().void_guards();
        }
    }
}

/// The stacks of one core, and what goes back and forth between them and the loop. Owning core only.
pub(crate) struct Stacks {
    pub(crate) pool: Pool,
    /// Those that were woken, and of these the preempted that have something left of their slices, which
    /// go on first.
    pub(crate) ready: Fifo,
    /// Tasks whose turn came while there was no stack. They go before the others.
    waiting: Fifo,
    /// How many tasks wait. Any core may ask.
    waiting_now: AtomicU64,
    /// How often a task began to wait. Any core may ask.
    failed_growths: AtomicU64,
    /// When [`Config::on_stall`](crate::Config::on_stall) may be called again.
    pub(crate) next_report: Cell<u64>,
    /// Those that have used up a slice or have yielded, by turns.
    pub(crate) turns: Fifo,
    /// The task on a stack had its turn, or goes on in it.
    pub(crate) in_turn: Cell<bool>,
    /// How long they all have waited for plain tasks.
    pub(crate) aging: Aging,
    /// How long those that take turns have waited for those that were woken.
    pub(crate) turn_aging: Aging,
    /// Home, while a stack has the core: the stack of the code that entered the runtime.
    home: Cell<Context>,
    /// The stack that the core is on; null at home. Interrupts look at it.
    running: AtomicPtr<Stack>,
    /// Why the core came home last.
    reason: Cell<Reason>,
    /// A panic of the loop on a stack, on its way home.
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

    /// What the loop on a stack panicked with. At home.
    pub(crate) fn take_payload(&self) -> Option<PanicPayload> {
        self.payload.take()
    }

    /// Whether no task is queued here.
    #[inline]
    pub(crate) fn are_idle(&self) -> bool {
        self.ready.is_empty() && self.turns.is_empty() && self.waiting.is_empty()
    }

    /// Whether tasks wait for a stack.
    #[inline]
    pub(crate) fn are_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many tasks wait for a stack.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting_now.load(Ordering::Relaxed)
    }

    /// How often a task found no stack when its turn came.
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

    /// The first of those that wait. Loop only.
    pub(crate) fn pop_waiting(&self) -> Link {
        let task = self.waiting.pop()?;
        self.waiting_now.store(self.waiting() - 1, Ordering::Relaxed);
        Some(task)
    }

    /// Takes out those tasks for which `f` says `false`: they are `f`'s then. Loop only.
    pub(crate) fn retain_waiting(&self, mut f: impl FnMut(NonNull<Header>) -> bool) {
        let kept = Fifo::new();
        while let Some(task) = self.pop_waiting() {
            if f(task) {
                // SAFETY: it was in a queue, and is in none now.
                unsafe { kept.push_back(task) };
            }
        }
        while let Some(task) = kept.pop() {
            self.waiting_now.store(self.waiting() + 1, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { self.waiting.push_back(task) };
        }
    }

    /// The stack that has the core.
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

/// Tasks wait for a stack, and there is none: all [`Config::max_stacks`](crate::Config::max_stacks) are held, or
/// there is no memory for another. Handed to [`Config::on_stall`](crate::Config::on_stall).
///
/// Displayed, it names the tasks that wait and the tasks that hold stacks, with the reasons, in a line.
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
            // SAFETY: a task of which a stack holds frames is alive; one that was ended is so for ever.
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

    /// How many tasks wait for a stack.
    pub fn waiting(&self) -> usize {
        self.runtime.stacks().waiting() as usize
    }

    /// How many stacks there are.
    pub fn stacks(&self) -> usize {
        self.runtime.stacks().pool.total()
    }

    /// Whether memory is lacking: [`Config::max_stacks`](crate::Config::max_stacks) would allow another stack.
    pub fn is_out_of_memory(&self) -> bool {
        self.runtime.may_have_more_stacks()
    }
}

impl fmt::Display for Stall<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.is_out_of_memory() { "no memory for more" } else { "all there may be" };
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

/// A task that a [`Stall`] names. Displayed: its id, and its name if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StalledTask {
    label: Label,
}

impl StalledTask {
    /// Which task.
    pub fn id(&self) -> TaskId {
        self.label.id
    }

    /// What it is called, if it was given a name.
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
    /// It computes: it was preempted, and goes on when its turn comes.
    Preempted,
    /// It waits in [`block_on()`].
    Suspended,
    /// It was ended by a fault, and holds the stack for ever.
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
