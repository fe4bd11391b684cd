//! Guards and calls that disable preemption, and the points where a pending preemption happens.

use core::marker::PhantomData;

use crate::runtime::core::Runtime;
use crate::sync::local::Ordering;

/// Disables preemption on this core until [`enable`] has been called as often. The pair is a
/// [`PreemptGuard`] for kernels whose critical sections begin and end in different functions.
///
/// Any context: task context, interrupts, and outside of a runtime, where it does nothing. Pairs
/// nest, also with guards. As with a guard, a task panics if it returns from its poll with
/// preemption disabled.
#[inline]
pub fn disable() {
    // If the task is preempted after `Runtime::current` has read the core's slot, it continues on
    // the same core, and so in the same runtime.
    if let Some(runtime) = Runtime::current() {
        runtime.preempt_count().increment();
    }
}

/// Undoes one [`disable`]. If the preempt count returns to zero and a preemption is pending, other
/// tasks have the core before this returns. In an interrupt, if interrupts are masked, or if
/// [`may_preempt`](crate::platform::Platform::may_preempt) says no, the preemption stays pending.
///
/// # Panics
///
/// If preemption is not disabled.
///
/// # Safety
///
/// It pairs with a `disable` on this core: in the same poll of the same task, in the same handler,
/// or in code that stays outside of a runtime from the `disable` to the `enable`. No panic or fault
/// has ended the task in between: that undoes all `disable` calls of the task.
#[inline]
pub unsafe fn enable() {
    let Some(runtime) = Runtime::current() else { return };
    match runtime.preempt_count().get() {
        1 if runtime.is_on_stack() => runtime.preempt_enable(),
        // Outside of a stackful task's code, the runtime itself accounts for 1 of the count, and
        // that 1 is not for `enable` to undo.
        0 | 1 => never_disabled(),
        depth => runtime.preempt_count().set(depth - 1),
    }
}

#[cold]
#[inline(never)]
fn never_disabled() -> ! {
    panic!("preempt::enable was called more often than preempt::disable")
}

/// A preemption point: if a preemption is pending and nothing forbids it any more, other tasks have
/// the core before this returns. Otherwise it does nothing, and costs a few instructions.
///
/// Any context. It does nothing in an interrupt, with interrupts masked, under a guard, in plain
/// tasks and outside of a runtime.
///
/// A kernel that has a preempt count of its own calls it whenever that count returns to zero (see
/// [`may_preempt`](crate::platform::Platform::may_preempt)). A kernel that gets the traps of user
/// programs as values (from `TrapContext::run`) calls [`on_timer`](super::on_timer) for the timer's
/// trap while it may not leave the core yet (under a [`PreemptGuard`], or while its own count is
/// not zero), and calls `point` as soon as it may.
#[inline]
pub fn point() {
    if let Some(runtime) = Runtime::current()
        && runtime.preempt_count().is_pending()
    {
        leave_at_point(runtime);
    }
}

/// Takes the pending preemption if the calling code is a stackful task's, with preemption enabled.
#[cold]
#[inline(never)]
fn leave_at_point(runtime: &'static Runtime) {
    if runtime.is_on_stack() && runtime.preempt_count().is_zero() {
        runtime.preempt_count().set(1);
        runtime.preempt_enable();
    }
}

/// Disables preemption on this core while the guard lives.
///
/// A stackful task holds one while it touches per-core or thread-local data of the kernel, and no
/// longer than needed. If the task's slice ends meanwhile, a preemption is pending, and happens
/// when the last guard drops. If interrupts are masked at that drop, or if
/// [`may_preempt`](crate::platform::Platform::may_preempt) says no, the preemption stays
/// [pending](super). Guards nest. In plain tasks, in interrupts and outside of a runtime, guards
/// have no effect and cost a few instructions.
///
/// A guard must not be held across an await.
///
/// # Panics
///
/// The runtime checks after each poll: a task panics if its poll returns while the task holds a
/// guard or has forgotten one.
#[derive(Debug)]
#[must_use = "preemption is disabled only while the guard lives"]
pub struct PreemptGuard {
    increment: Increment,
}

impl PreemptGuard {
    /// Disables preemption. Any context.
    #[inline]
    pub fn new() -> Self {
        Self { increment: Increment::new(Runtime::current()) }
    }
}

impl Default for PreemptGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for PreemptGuard {
    #[inline]
    fn drop(&mut self) {
        let Some(runtime) = self.increment.runtime else { return };
        let count = runtime.preempt_count().get();
        if !self.increment.is_void() && count == 1 && runtime.is_on_stack() {
            self.increment.runtime = None;
            // Enables preemption, and leaves the core first if a preemption is pending and nothing
            // else forbids it.
            runtime.preempt_enable();
        }
    }
}

/// Disables preemption in an interrupt handler that enables interrupts before it ends.
///
/// Unlike the drop of a [`PreemptGuard`], its drop never preempts: the handler ends in
/// [`on_timer`](super::on_timer) or [`on_interrupt`](super::on_interrupt), which takes a pending
/// preemption.
#[derive(Debug)]
#[must_use = "preemption is disabled only while the guard lives"]
pub struct InterruptGuard {
    _increment: Increment,
}

impl InterruptGuard {
    /// Disables preemption.
    ///
    /// # Safety
    ///
    /// - This is called in an interrupt handler, before the handler enables interrupts.
    /// - The guard is dropped after the handler has masked interrupts again.
    /// - The handler then ends in [`on_timer`](super::on_timer) or
    ///   [`on_interrupt`](super::on_interrupt), where a pending preemption happens.
    pub unsafe fn new() -> Self {
        Self { _increment: Increment::new(Runtime::current()) }
    }
}

/// One increment of the preempt count.
#[derive(Debug)]
struct Increment {
    runtime: Option<&'static Runtime>,
    epoch: usize,
    /// Makes the type `!Send`, since the preempt count is this core's.
    not_send: PhantomData<*mut ()>,
}

impl Increment {
    #[inline]
    fn new(runtime: Option<&'static Runtime>) -> Self {
        // As in `disable`: a task that is preempted after `Runtime::current` has read the core's
        // slot stays in the same runtime.
        if let Some(runtime) = runtime {
            runtime.preempt_count().increment();
        }
        let epoch = runtime.map_or(0, |r| r.preempt_count().epoch.load(Ordering::Relaxed));
        Self { runtime, epoch, not_send: PhantomData }
    }

    /// Returns whether the increment no longer counts, or was made outside of a runtime.
    fn is_void(&self) -> bool {
        self.runtime.is_none_or(|r| r.preempt_count().epoch.load(Ordering::Relaxed) != self.epoch)
    }
}

impl Drop for Increment {
    #[inline]
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime
            && !self.is_void()
        {
            runtime.preempt_count().set(runtime.preempt_count().get() - 1);
        }
    }
}
