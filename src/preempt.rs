//! When the core may be taken from a task, and the functions that take it.
//!
//! A core has one preempt count. It is zero while the code of a stackful task runs, and more than
//! that everywhere else: in the runtime's own code, in plain tasks, and under a [`PreemptGuard`]. An
//! interrupt that ought to preempt while the count is not zero sets a flag (need_resched) instead:
//! the preemption is *pending*, and comes when the count is zero again.
//!
//! Two things can hold it up even then: interrupts are masked, or the
//! [platform](crate::platform::Platform::may_preempt) says no. It stays pending, and comes with the next
//! guard that drops, the next [`point()`], or the alarm. Where interrupts are masked, the alarm is set
//! to fire as soon as they are enabled. After a "no" it asks again a slice later, and after each
//! further "no" twice as late as before, up to 16 slices or 10 ms, whichever is less (but not before
//! a slice).
//!
//! # For kernels that count by themselves
//!
//! A kernel's own locks can forbid preemption in two ways. They call [`disable`] and [`enable`], which
//! are a [`PreemptGuard`] in two calls: then Trapline counts. Or the kernel has a count of its own:
//! then it answers in [`may_preempt`](crate::platform::Platform::may_preempt) whether that is zero,
//! and calls [`point()`] when it gets to zero.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::Runtime;
use crate::platform::bound;
use crate::stackful::Reason;
use crate::sync::local::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

/// The preempt count of one core and its need_resched flag. Preemption is enabled while the count is zero.
/// Only that core and its interrupts touch it, so all is relaxed, and compiler fences keep the order
/// that an interrupt sees.
#[derive(Debug)]
pub(crate) struct PreemptCount {
    /// How many reasons there are to keep the core. The runtime's own code is one.
    count: AtomicUsize,
    /// A preemption was due where it could not be: the preempt count was not zero, interrupts were masked, or the platform
    /// said no.
    pending: AtomicBool,
    /// The loop shall look at more than the inbox before its next poll: at the alarm and the timers.
    need_resched: AtomicBool,
    /// How often all guards were declared void.
    epoch: AtomicUsize,
    /// How many alarms could not preempt since `may_preempt` said no, and in which stretch of a task.
    refused: AtomicU64,
    refused_in: AtomicU64,
}

impl PreemptCount {
    pub(crate) const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            pending: AtomicBool::new(false),
            need_resched: AtomicBool::new(false),
            epoch: AtomicUsize::new(0),
            refused: AtomicU64::new(0),
            refused_in: AtomicU64::new(0),
        }
    }

    /// Sets the count to 1, for the runtime's own code. Guards that still live count no longer, and
    /// their drops do nothing.
    pub(crate) fn void_guards(&self) {
        self.epoch.store(self.epoch.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.set(1);
    }

    #[inline]
    pub(crate) fn is_zero(&self) -> bool {
        self.get() == 0
    }

    /// How many reasons keep it shut.
    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Sets the number of reasons: to 1 for the runtime's own code, to 0 for the code of a task.
    #[inline]
    pub(crate) fn set(&self, depth: usize) {
        compiler_fence(Ordering::SeqCst);
        self.count.store(depth, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// One reason more. Any context.
    #[inline]
    fn increment(&self) {
        self.set(self.get() + 1);
    }

    #[inline]
    pub(crate) fn set_pending(&self) {
        self.pending.store(true, Ordering::Relaxed);
        self.set_need_resched();
    }

    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// `may_preempt` said no to an alarm. `stretch` is the number of stretches that tasks have had on the
    /// core. Its core, in the handler.
    pub(crate) fn refuse(&self, stretch: u64) {
        let before = self.refusals(stretch);
        self.refused_in.store(stretch, Ordering::Relaxed);
        self.refused.store(before.saturating_add(1), Ordering::Relaxed);
    }

    /// To how many alarms `may_preempt` said no in this stretch.
    fn refusals(&self, stretch: u64) -> u64 {
        if self.refused_in.load(Ordering::Relaxed) == stretch {
            self.refused.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// After how many nanoseconds the next alarm asks `may_preempt` again.
    pub(crate) fn retry_after(&self, slice: u64, stretch: u64) -> u64 {
        /// In nanoseconds. In a kernel that calls no `point`, a pending preemption waits at most so long.
        const MAX: u64 = 10_000_000;
        /// Where slices are short, so many of them are enough.
        const MAX_SLICES: u64 = 16;
        let slices = 1 << self.refusals(stretch).min(MAX_SLICES.ilog2().into());
        slice.saturating_mul(slices).min(slice.max(MAX))
    }

    /// The task leaves the core, so nothing is pending. That the loop was called stays noted.
    #[inline]
    pub(crate) fn clear_pending(&self) {
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Calls the loop. Its core, any context.
    #[inline]
    pub(crate) fn set_need_resched(&self) {
        self.need_resched.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn need_resched(&self) -> bool {
        self.need_resched.load(Ordering::Relaxed)
    }

    /// The loop is about to look. It has the core, so nothing is pending to it.
    #[inline]
    pub(crate) fn clear_need_resched(&self) {
        self.need_resched.store(false, Ordering::Relaxed);
        self.clear_pending();
        // What an interrupt says after this, it says anew.
        compiler_fence(Ordering::SeqCst);
    }
}

/// Ends a timer interrupt: preempts the running stackful task if its slice is over or a timer is
/// due.
///
/// Returns when the interrupted code is to go on, at once or much later, on the same core, with
/// interrupts masked. What the handler has on its stack is still there then. What another trap may
/// have changed since (trap registers, `errno`), the handler must have saved on its stack before.
///
/// # Safety
///
/// - Called on a core, in the handler of its alarm or of its periodic tick, as the last thing that it does but
///   return, after the interrupt has been acknowledged, with interrupts masked.
/// - It is called on the interrupted stack, and what the vector saves lies on that stack too. Other
///   tasks' traps come before this returns, so a place that exists once a core is overwritten by
///   then; and a copy of the context that the kernel keeps elsewhere is not enough either, since the
///   handler's own frames must still be there.
/// - After it has returned, all registers of the interrupted code are restored. Those that a callee
///   preserves may be left to the handler's callees and to the switch.
/// - What the interrupted code may have set for itself is saved there too, and when this is called is
///   as Rust code expects it: the rounding mode (riscv64, loongarch64: `fcsr` is 0), DF and AC (x86_64:
///   clear), SUM and MXR (riscv64: clear). The return from the trap ends a reservation (riscv64: by an
///   `sc`). [The table](crate::arch#what-an-entry-sanitizes-and-what-the-switch-keeps) has all of it.
/// - There is stack enough for the handler, this call and the switch: 2 KiB (x86_64: 4 KiB) in a build
///   without optimization. A vector that touches the stack that deep first, before it acknowledges the
///   interrupt or takes a lock, turns an overflow into a fault of the interrupted task, which
///   [`end_task`] ends alone.
/// - The handler interrupted task context, not another handler: one that enables interrupts holds an
///   [`InterruptGuard`].
/// - The handler holds no lock. If it holds a guard, or has preemption disabled, the core is not taken
///   here: the preemption is pending.
pub unsafe fn on_timer() {
    let Some(runtime) = bound::slot().runtime() else { return };
    let alarm = runtime.alarm();
    let now = bound::now();
    if !runtime.preempt_count().is_zero() {
        alarm.forget();
        alarm.set_due(now);
        runtime.preempt_count().set_pending();
        return;
    }
    if alarm.protects() && alarm.stays(now) {
        // If the task leaves by itself before that time, the loop looks at the timers then.
        alarm.set_due(now);
        runtime.preempt_count().set_need_resched();
        return;
    }
    let left = match alarm.look(now, runtime.slice(), runtime.timers().next()) {
        Some(left) => {
            alarm.set_due(now);
            runtime.preempt_count().set_need_resched();
            left
        }
        None if runtime.is_wanted() || alarm.take_deferred() => {
            alarm.slice_left(now, runtime.slice())
        }
        None => return,
    };
    if !bound::may_preempt() {
        runtime.preempt_count().refuse(runtime.polls());
        alarm.forget();
        runtime.defer(false);
        return;
    }
    // SAFETY: the preempt count is zero, so this is a stackful task's stack, which the caller promises.
    unsafe { runtime.leave_preempted(left, now, Reason::Interrupted) };
}

/// Ends any other interrupt: preempts the running stackful task if another task was woken meanwhile.
///
/// The handler of the inter-processor interrupt that [`Platform::wake`](crate::platform::Platform::wake)
/// sends must call it, and that of a device that wakes tasks should: otherwise the woken tasks wait
/// until the slice is over. Returns as [`on_timer`] does.
///
/// # Safety
///
/// As [`on_timer`].
pub unsafe fn on_interrupt() {
    let Some(runtime) = bound::slot().runtime() else { return };
    if !runtime.is_wanted() {
        return;
    }
    if !runtime.preempt_count().is_zero() {
        runtime.preempt_count().set_pending();
    } else if !bound::may_preempt() {
        runtime.defer(false);
    } else {
        let (alarm, now) = (runtime.alarm(), bound::now());
        if alarm.protects() && alarm.stays(now) {
            return;
        }
        let left = alarm.slice_left(now, runtime.slice());
        // SAFETY: the preempt count is zero, so this is a stackful task's stack, which the caller promises.
        unsafe { runtime.leave_preempted(left, now, Reason::Interrupted) };
    }
}

/// Ends the running stackful task, in the handler of a fault that it has caused, and gives the core to
/// other tasks: it does not return.
///
/// It returns, without effect, if there is no task that it may end: outside of a stackful task; with
/// preemption disabled, as the fault may have left something half done; or where the platform says
/// that the code [may not be left for ever](crate::platform::Platform::may_end), since it panics or
/// holds a lock of the kernel's. What the handler does then is the kernel's decision.
///
/// The task's frames go without their drops, and other code may point at them and at the future. So
/// both are leaked, and the stack too; [`Stats::ended`](crate::Stats::ended) counts such tasks. The
/// join handle says [`JoinError::Abandoned`](crate::JoinError::Abandoned).
///
/// # Safety
///
/// - Called in the handler of a fault (on any stack), with interrupts masked, which had
///   interrupted task context.
/// - The handler holds no lock and no guard. What the task itself holds stays held.
pub unsafe fn end_task() {
    let Some(runtime) = bound::slot().runtime() else { return };
    if runtime.is_on_stack() && runtime.preempt_count().is_zero() && bound::may_end() {
        // SAFETY: the preempt count is zero, so this is a stackful task's own code, which the caller interrupted.
        unsafe { runtime.end_stack() }
    }
}

/// Forbids preemption on this core, until as many calls of [`enable`] have come: a [`PreemptGuard`]
/// for kernels whose critical sections begin and end in different functions.
///
/// Any context: task context, interrupts, and outside of a runtime, where it does nothing. Pairs
/// nest, also with guards. A task that returns from its poll with preemption disabled panics, as with
/// a guard.
#[inline]
pub fn disable() {
    // Preempted since the look at the slot, the task goes on on the same core and so in the same runtime.
    if let Some(runtime) = bound::slot().runtime() {
        runtime.preempt_count().increment();
    }
}

/// Takes one [`disable`] back. If the preempt count gets to zero and a preemption is pending, other tasks
/// have the core before this returns; in an interrupt, or where interrupts are masked, it stays pending.
///
/// # Panics
///
/// If preemption is not disabled.
///
/// # Safety
///
/// It pairs with a `disable` on this core: in the same poll of the same task, in the same handler, or
/// in code that is outside of a runtime from the one to the other. No panic or fault has ended the
/// task in between: that takes back all that the task has disabled.
#[inline]
pub unsafe fn enable() {
    let Some(runtime) = bound::slot().runtime() else { return };
    match runtime.preempt_count().get() {
        1 if runtime.is_on_stack() => runtime.preempt_enable(),
        // In all other code than a stackful task's, one reason is the runtime's own.
        0 | 1 => never_disabled(),
        depth => runtime.preempt_count().set(depth - 1),
    }
}

#[cold]
#[inline(never)]
fn never_disabled() -> ! {
    panic!("preempt::enable was called more often than preempt::disable")
}

/// A preemption point: if a preemption is pending and nothing forbids it any more, other tasks have the
/// core before this returns. If not, it does nothing, and costs a few instructions.
///
/// Any context: it does nothing in an interrupt, with interrupts masked, under a guard, in plain tasks
/// and outside of a runtime.
///
/// A kernel that has a preempt count of its own calls it whenever that gets to zero (see
/// [`may_preempt`](crate::platform::Platform::may_preempt)). A kernel that gets the traps of user
/// programs as values calls [`on_timer`] for the timer's trap while it may not leave the core yet
/// (under a [`PreemptGuard`], or while its own count is not zero), and `point` where it may.
#[inline]
pub fn point() {
    if let Some(runtime) = bound::slot().runtime()
        && runtime.preempt_count().is_pending()
    {
        pay_here(runtime);
    }
}

#[cold]
#[inline(never)]
fn pay_here(runtime: &'static Runtime) {
    if runtime.is_on_stack() && runtime.preempt_count().is_zero() {
        runtime.preempt_count().set(1);
        runtime.preempt_enable();
    }
}

/// Forbids preemption on this core while it lives.
///
/// A stackful task holds one while it touches per-core or thread-local data of the kernel's, and no
/// longer than needed: if its slice ends meanwhile, a preemption is pending, and comes when the last guard
/// drops. With interrupts masked, or while [`may_preempt`](crate::platform::Platform::may_preempt) says
/// no, the drop leaves it [pending](self). Guards nest. In plain tasks, in interrupts and outside of a
/// runtime they have no effect and cost a few instructions.
///
/// A guard must not be held across an await.
///
/// # Panics
///
/// The runtime checks after each poll: a task whose poll returns while it holds a guard, or has
/// forgotten one, panics there.
#[derive(Debug)]
#[must_use = "preemption is forbidden for as long as the guard lives"]
pub struct PreemptGuard {
    increment: Increment,
}

impl PreemptGuard {
    /// Forbids preemption. Any context.
    #[inline]
    pub fn new() -> Self {
        Self { increment: Increment::new(bound::slot().runtime()) }
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
            // Enables preemption, and leaves first if something is pending and this is no interrupt.
            runtime.preempt_enable();
        }
    }
}

/// Forbids preemption in an interrupt handler that enables interrupts before it ends.
///
/// Unlike a [`PreemptGuard`], its drop never preempts: the handler ends in [`on_timer`] or
/// [`on_interrupt`], which does.
#[derive(Debug)]
#[must_use = "preemption is forbidden for as long as the guard lives"]
pub struct InterruptGuard {
    _increment: Increment,
}

impl InterruptGuard {
    /// Forbids preemption.
    ///
    /// # Safety
    ///
    /// - It is called in an interrupt handler, before that enables interrupts.
    /// - It is dropped after the handler has masked them again.
    /// - The handler then ends in [`on_timer`] or [`on_interrupt`], where a pending preemption comes.
    pub unsafe fn new() -> Self {
        Self { _increment: Increment::new(bound::slot().runtime()) }
    }
}

/// One increment of the preempt count.
#[derive(Debug)]
struct Increment {
    runtime: Option<&'static Runtime>,
    epoch: usize,
    /// The preempt count is this core's.
    not_send: PhantomData<*mut ()>,
}

impl Increment {
    #[inline]
    fn new(runtime: Option<&'static Runtime>) -> Self {
        // Preempted since the look at the slot, the task goes on on the same core and so in the same
        // runtime.
        if let Some(runtime) = runtime {
            runtime.preempt_count().increment();
        }
        let epoch = runtime.map_or(0, |r| r.preempt_count().epoch.load(Ordering::Relaxed));
        Self { runtime, epoch, not_send: PhantomData }
    }

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

/// A global allocator under which tasks are not preempted.
///
/// Without it, a task could be preempted while it holds the allocator's lock, and the core's other
/// tasks would wait for that lock for ever; and `malloc` is not reentrant. Wrap the program's:
///
/// ```ignore
/// #[global_allocator]
/// static HEAP: NoPreempt<Heap> = NoPreempt(Heap::new());
/// ```
#[derive(Debug, Default)]
pub struct NoPreempt<A>(pub A);

// SAFETY: each call is passed on as it came, so the contract is the inner allocator's.
unsafe impl<A: GlobalAlloc> GlobalAlloc for NoPreempt<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _guard = PreemptGuard::new();
        // SAFETY: passed on.
        unsafe { self.0.realloc(block, layout, size) }
    }
}

/// A spin lock whose holder is not preempted. For task context: an interrupt that took it could
/// wait for the code that it interrupted.
pub(crate) struct PreemptLock<T> {
    /// 0 or 1. A word, since not all architectures swap bytes.
    locked: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets one at a time touch the value, and hands it from core to core.
unsafe impl<T: Send> Sync for PreemptLock<T> {}

impl<T> PreemptLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { locked: AtomicUsize::new(0), value: UnsafeCell::new(value) }
    }

    pub(crate) fn lock(&self) -> Locked<'_, T, PreemptGuard> {
        let guard = PreemptGuard::new();
        self.acquire();
        Locked { lock: self, _guard: guard }
    }

    /// # Safety
    ///
    /// The caller is a runtime's loop, which isn't preempted.
    #[inline]
    pub(crate) unsafe fn lock_with_gate_shut(&self) -> Locked<'_, T, ()> {
        self.acquire();
        Locked { lock: self, _guard: () }
    }

    #[inline]
    fn acquire(&self) {
        // Acquire pairs with the release in `Locked::drop`.
        while self.locked.swap(1, Ordering::Acquire) != 0 {
            while self.locked.load(Ordering::Relaxed) != 0 {
                core::hint::spin_loop();
            }
        }
    }
}

impl<T> fmt::Debug for PreemptLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreemptLock").field("locked", &self.locked).finish_non_exhaustive()
    }
}

/// The right to touch what a [`PreemptLock`] guards.
pub(crate) struct Locked<'a, T, G> {
    lock: &'a PreemptLock<T>,
    _guard: G,
}

impl<T, G> Deref for Locked<'_, T, G> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T, G> DerefMut for Locked<'_, T, G> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T, G> Drop for Locked<'_, T, G> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `lock`. The guard goes after it.
        self.lock.locked.store(0, Ordering::Release);
    }
}
