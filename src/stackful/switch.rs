//! The switches between home and the stacks, and how a task's code leaves its stack.

use core::ptr::NonNull;

use crate::arch;
use crate::fatal::fatal;
use crate::platform::backend::Context;
use crate::platform::{Interrupts, bound};
use crate::runtime::core::Runtime;
use crate::scope;
use crate::stackful::pool;
use crate::stackful::stacks::Reason;
use crate::task::header::{Header, Link, label};
use crate::time::alarm::{MIN_STRETCH, SliceLeft};

/// The type of a runtime's stacks: their tasks are [`Header`]s.
pub(crate) type Stack = pool::Stack<Header>;

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
    /// Gives the core to the current task, on its stack, until the core comes home. Other stackful
    /// tasks may have been polled on the stack by then. So this function returns only what it reads
    /// after the core has come home.
    #[inline(always)]
    pub(crate) fn leave_home(&'static self, task: NonNull<Header>, stack: NonNull<Stack>) -> Left {
        // SAFETY: a stack is alive until it is freed, and only the loop, which calls this, frees
        // stacks.
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

    /// Runs the `enter` hooks of the scopes of the poll that is about to be resumed on `stack`.
    #[inline(never)]
    fn enter_scopes(&self, task: NonNull<Header>, stack: &Stack) {
        let scopes = stack.scopes.take();
        // SAFETY: the poll on the stack has not ended, so its scopes are alive.
        self.catch_user_panic(task, || unsafe { scope::enter(scopes) });
        self.scopes().set(scopes);
    }

    /// Runs the `leave` hooks of the scopes of the poll that the core has left in the middle, on
    /// `stack`.
    #[inline(never)]
    fn leave_scopes(&self, task: NonNull<Header>, stack: NonNull<Stack>, reason: Reason) {
        match reason {
            Reason::Overflowed => overflowed(task),
            Reason::Interrupted | Reason::Ended => {
                // SAFETY: this is the loop, and the core has just come from a trap handler. If the
                // reason is `Ended`, it may instead have come from `block_on`, where interrupts are
                // enabled already.
                unsafe { bound::enable_interrupts() };
            }
            _ => {}
        }
        // Before the hooks run: a hook that drops the task's join handle must find that a stack
        // holds frames of the task.
        self.hold(task, stack);
        let scopes = self.scopes().take();
        // SAFETY: a poll that has ended has left all its scopes. Here scopes are set, so their poll
        // has not ended, and they are alive.
        self.catch_user_panic(task, || unsafe { scope::leave(scopes) });
        // SAFETY: as in `leave_home`.
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
            // The entry of an interrupt has already touched the stack and dropped the rights that
            // the interrupted code had given itself (see `arch::has_rights`).
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
    pub(super) unsafe fn leave_for_pending(&'static self, interrupt: bool) {
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
            // The task's code has not run in this stretch, so the next stretch is protected from
            // preemption.
            stack.protected.set(MIN_STRETCH);
            alarm.end_stretch(now);
            stack.set_left(match alarm.slice_left(now, self.slice()) {
                SliceLeft::Nanoseconds(left) => (true, left),
                // The slice ended before the task's code ran. Each time this happens, the task gets
                // twice as much time, so that its code runs at last.
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
        // SAFETY: a task's code runs, so the loop has left home and saved its context in `home`.
        // That context is entered once for each time that it is saved. `stack.context` outlives the
        // switch, since it lies at the top of the stack.
        unsafe { Context::switch(stack.context.as_ptr(), self.stacks().home.get()) };
        if reason == Reason::Interrupted {
            // The interrupt handler continues, and expects that interrupts are masked. Its return
            // from the interrupt restores the interrupt state of the interrupted code.
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
        // The loop must not have the rights that the task had given itself, such as the right to
        // access user pages. (The entry of a trap has already dropped them.)
        arch::drop_rights();
        self.stacks().reason.set(Reason::Ended);
        // An interrupt, such as the alarm's, may have been lost because of the fault. So the loop
        // must look at the timers and set the alarm again.
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
    pub(super) fn leave_overflowed(&'static self, stack: &Stack) -> ! {
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
    pub(super) fn enable_and_test(&self) -> bool {
        self.preempt_count().set(0);
        self.preempt_count().is_pending()
    }

    /// Defers a preemption that must not happen now although the preempt count is zero, or is about
    /// to become zero: keeps the preemption pending, and sets the alarm to try again.
    ///
    /// `may_preempt` is the platform's answer. If it is `true`, the preemption is deferred because
    /// interrupts are masked, or because the platform does not know whether they are. The alarm is
    /// then set to now, so it fires as soon as interrupts are enabled. If it is `false`, the alarm
    /// fires after the time that `PreemptCount::retry_after` returns. Called on the task's core, on
    /// a stack, with interrupts masked.
    #[cold]
    #[inline(never)]
    pub(crate) fn defer(&self, may_preempt: bool) {
        self.preempt_count().set_pending();
        let wait = if may_preempt {
            0
        } else {
            self.preempt_count().retry_after(self.slice(), self.polls())
        };
        // The alarm is not set for the next timer: a timer that is due would make it fire at once,
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
        // Interrupts stay masked until preemption is enabled, so the alarm's handler cannot run
        // before that.
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
    // SAFETY: this is the runtime's code, and user code has returned to it with interrupts masked.
    unsafe { bound::enable_interrupts() };
}

/// Ends the program because `task` has overflowed its stack. Called at home.
#[cold]
pub(crate) fn overflowed(task: NonNull<Header>) -> ! {
    // SAFETY: the task is RUNNING, hence alive.
    let task = unsafe { label(task) };
    fatal(format_args!("trapline: {task} overflowed its stack: set Config::stack_size higher"))
}
