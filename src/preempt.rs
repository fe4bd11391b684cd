//! Preemption: the preempt count, the guards, and the functions that take the core from a task.
//!
//! A core has one preempt count. The count is zero while the code of a stackful task runs, and
//! raised everywhere else: in the runtime's own code, in plain tasks, and under a [`PreemptGuard`].
//! An interrupt that should preempt while the count is raised sets a flag (need_resched) instead.
//! The preemption is *pending* then, and happens when the count returns to zero.
//!
//! Two things can still forbid a pending preemption at that time: interrupts are masked, or the
//! [platform](crate::platform::Platform::may_preempt) says no. The preemption stays pending then.
//! It happens at the drop of the next guard, at the next [`point()`], or at the alarm, whichever
//! comes first.
//!
//! - If interrupts are masked, the alarm is set to fire as soon as they are enabled.
//! - After a "no", the alarm is set to ask again a slice later. Each "no" to an alarm doubles that
//!   time, up to 16 slices or 10 ms, whichever is less (but to a slice at least).
//!
//! # Kernels with critical sections of their own
//!
//! A kernel's own locks can forbid preemption in two ways:
//!
//! - The locks call [`disable`] and [`enable`], which are a [`PreemptGuard`] in two calls. Trapline
//!   does the counting.
//! - The kernel has a preempt count of its own. It answers in
//!   [`may_preempt`](crate::platform::Platform::may_preempt) whether its count is zero, and calls
//!   [`point()`] when its count returns to zero.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::Runtime;
use crate::platform::bound;
use crate::stackful::Reason;
use crate::sync::local::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence};

/// The preempt count of one core, and its need_resched flag. Preemption is enabled while the count
/// is zero. Only that core and its interrupts access these fields, so all accesses are relaxed, and
/// compiler fences keep the order that an interrupt sees.
#[derive(Debug)]
pub(crate) struct PreemptCount {
    /// How many reasons there are to keep the core. The runtime's own code is one of them.
    count: AtomicUsize,
    /// A preemption was due where it was forbidden: the preempt count was not zero, interrupts were
    /// masked, or the platform said no.
    pending: AtomicBool,
    /// The loop must look at more than the inbox before its next poll: at the alarm and the timers.
    need_resched: AtomicBool,
    /// How often all guards have been declared void.
    epoch: AtomicUsize,
    /// How many alarms could not preempt in the stretch `refused_in` because `may_preempt` said no.
    refused: AtomicU64,
    /// The number of the stretch of a task that `refused` counts in.
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

    /// Sets the count to 1, for the runtime's own code. Guards that are still alive no longer
    /// count, and their drops do nothing.
    pub(crate) fn void_guards(&self) {
        self.epoch.store(self.epoch.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.set(1);
    }

    /// Returns whether preemption is enabled.
    #[inline]
    pub(crate) fn is_zero(&self) -> bool {
        self.get() == 0
    }

    /// Returns the count: the number of reasons that keep preemption disabled.
    #[inline]
    pub(crate) fn get(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Sets the count: to 1 for the runtime's own code, to 0 for the code of a task.
    #[inline]
    pub(crate) fn set(&self, depth: usize) {
        compiler_fence(Ordering::SeqCst);
        self.count.store(depth, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// Increments the count. Any context.
    #[inline]
    fn increment(&self) {
        self.set(self.get() + 1);
    }

    /// Makes a preemption pending, and sets need_resched. Its core, any context.
    #[inline]
    pub(crate) fn set_pending(&self) {
        self.pending.store(true, Ordering::Relaxed);
        self.set_need_resched();
    }

    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Notes that `may_preempt` said no to an alarm. `stretch` is the number of stretches that
    /// tasks have had on the core. Its core, in the alarm's handler.
    pub(crate) fn refuse(&self, stretch: u64) {
        let before = self.refusals(stretch);
        self.refused_in.store(stretch, Ordering::Relaxed);
        self.refused.store(before.saturating_add(1), Ordering::Relaxed);
    }

    /// Returns to how many alarms `may_preempt` said no in this stretch.
    fn refusals(&self, stretch: u64) -> u64 {
        if self.refused_in.load(Ordering::Relaxed) == stretch {
            self.refused.load(Ordering::Relaxed)
        } else {
            0
        }
    }

    /// Returns after how many nanoseconds the next alarm asks `may_preempt` again.
    pub(crate) fn retry_after(&self, slice: u64, stretch: u64) -> u64 {
        /// In nanoseconds. In a kernel that does not call `point`, a pending preemption waits at
        /// most this long (or a slice, if a slice is longer).
        const MAX: u64 = 10_000_000;
        /// Limits the wait where slices are short.
        const MAX_SLICES: u64 = 16;
        let slices = 1 << self.refusals(stretch).min(MAX_SLICES.ilog2().into());
        slice.saturating_mul(slices).min(slice.max(MAX))
    }

    /// Clears the pending preemption. `need_resched` stays set.
    #[inline]
    pub(crate) fn clear_pending(&self) {
        self.pending.store(false, Ordering::Relaxed);
    }

    /// Makes the loop look at the alarm and the timers before its next poll. Its core, any context.
    #[inline]
    pub(crate) fn set_need_resched(&self) {
        self.need_resched.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn need_resched(&self) -> bool {
        self.need_resched.load(Ordering::Relaxed)
    }

    /// Clears need_resched, since the loop is about to look. Clears the pending preemption as well,
    /// since the loop has the core.
    #[inline]
    pub(crate) fn clear_need_resched(&self) {
        self.need_resched.store(false, Ordering::Relaxed);
        self.clear_pending();
        // The loop's look comes after this: an interrupt that comes later sets the flags anew.
        compiler_fence(Ordering::SeqCst);
    }
}

/// Preempts the running stackful task if its slice is over, a timer is due, or another task is
/// ready. To be called at the end of a timer interrupt.
///
/// Returns when the interrupted code is to continue, at once or much later, on the same core, with
/// interrupts masked. All that the handler has on its stack is still there then. The handler must
/// have saved on its stack before the call what another trap may change meanwhile (trap registers,
/// `errno`).
///
/// # Safety
///
/// - This is called on a core, in the handler of its alarm or of its periodic tick, after the
///   interrupt has been acknowledged, with interrupts masked. It is the last thing that the handler
///   does before it returns.
/// - It is called on the interrupted stack, and what the trap vector saves lies on that stack too.
///   Traps of other tasks come before this function returns, so a place that exists once for each
///   core is overwritten by then. A copy of the context that the kernel keeps elsewhere is not
///   enough either, since the handler's own frames must still be there.
/// - After it has returned, all registers of the interrupted code are restored. Those that a callee
///   preserves may be left to the handler's callees and to the switch.
/// - What the interrupted code may have set for itself is saved on that stack too. When this is
///   called, it is as Rust code expects it: the rounding mode (riscv64, loongarch64: `fcsr` is 0),
///   DF and AC (x86_64: clear), SUM and MXR (riscv64: clear). The return from the trap ends a
///   reservation (riscv64: by an `sc`). [This
///   table](crate::arch#what-an-entry-sanitizes-and-what-the-switch-keeps) lists everything.
/// - There is enough stack for the handler, this call and the switch: 2 KiB (x86_64: 4 KiB) in a
///   build without optimization. A trap vector that first touches the stack at that depth, before
///   it acknowledges the interrupt or takes a lock, turns an overflow into a fault of the
///   interrupted task. [`end_task`] can then end that task alone.
/// - The handler interrupted task context, not another handler. A handler that enables interrupts
///   holds an [`InterruptGuard`].
/// - The handler holds no lock. If it holds a guard, or has disabled preemption, the core is not
///   taken in this call: the preemption becomes pending.
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
        // If the task leaves by itself before its protected stretch ends, the loop looks at the
        // timers then.
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
    // SAFETY: the preempt count is zero, so the interrupted code is a stackful task's own. The
    // caller promises that this is its stack and that interrupts are masked.
    unsafe { runtime.leave_preempted(left, now, Reason::Interrupted) };
}

/// Preempts the running stackful task if another task was woken. To be called at the end of any
/// other interrupt than the timer's.
///
/// The handler of the inter-processor interrupt that
/// [`Platform::wake`](crate::platform::Platform::wake) sends must call it. The handler of a device
/// that wakes tasks should call it: otherwise the woken tasks wait until the slice is over. Returns
/// as [`on_timer`] does.
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
        // SAFETY: as in `on_timer`.
        unsafe { runtime.leave_preempted(left, now, Reason::Interrupted) };
    }
}

/// Ends the running stackful task, in the handler of a fault that the task has caused, and gives
/// the core to other tasks. It does not return then.
///
/// It returns, without effect, if there is no task that it may end:
///
/// - outside of a stackful task;
/// - with preemption disabled, as the fault may have left something half done;
/// - where the platform says that the code [may not be left for
///   ever](crate::platform::Platform::may_end), since it panics or holds a lock of the kernel.
///
/// The kernel decides what the handler does then.
///
/// The frames of the task are abandoned without their drops, and other code may hold pointers to
/// them and to the future. So the frames, the future and the stack are leaked.
/// [`Stats::ended`](crate::Stats::ended) counts such tasks. The join handle gives
/// [`JoinError::Abandoned`](crate::JoinError::Abandoned).
///
/// # Safety
///
/// - This is called in the handler of a fault (on any stack), with interrupts masked. The fault had
///   interrupted task context.
/// - The handler holds no lock and no guard. What the task itself holds stays held.
pub unsafe fn end_task() {
    let Some(runtime) = bound::slot().runtime() else { return };
    if runtime.is_on_stack() && runtime.preempt_count().is_zero() && bound::may_end() {
        // SAFETY: the preempt count is zero, so the caller has interrupted a stackful task's own
        // code. The caller promises that interrupts are masked.
        unsafe { runtime.end_stack() }
    }
}

/// Disables preemption on this core until [`enable`] has been called as often. The pair is a
/// [`PreemptGuard`] for kernels whose critical sections begin and end in different functions.
///
/// Any context: task context, interrupts, and outside of a runtime, where it does nothing. Pairs
/// nest, also with guards. As with a guard, a task panics if it returns from its poll with
/// preemption disabled.
#[inline]
pub fn disable() {
    // If the task is preempted after the look at the slot, it continues on the same core, and so in
    // the same runtime.
    if let Some(runtime) = bound::slot().runtime() {
        runtime.preempt_count().increment();
    }
}

/// Undoes one [`disable`]. If the preempt count returns to zero and a preemption is pending, other
/// tasks have the core before this returns. In an interrupt, or if interrupts are masked, the
/// preemption stays pending.
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
    let Some(runtime) = bound::slot().runtime() else { return };
    match runtime.preempt_count().get() {
        1 if runtime.is_on_stack() => runtime.preempt_enable(),
        // In all code but a stackful task's, one reason in the count is the runtime's own.
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
/// programs as values calls [`on_timer`] for the timer's trap while it may not leave the core yet
/// (under a [`PreemptGuard`], or while its own count is not zero), and calls `point` as soon as it
/// may.
#[inline]
pub fn point() {
    if let Some(runtime) = bound::slot().runtime()
        && runtime.preempt_count().is_pending()
    {
        pay_here(runtime);
    }
}

/// Takes the pending preemption if the calling code is a stackful task's, with preemption enabled.
#[cold]
#[inline(never)]
fn pay_here(runtime: &'static Runtime) {
    if runtime.is_on_stack() && runtime.preempt_count().is_zero() {
        runtime.preempt_count().set(1);
        runtime.preempt_enable();
    }
}

/// Disables preemption on this core while it lives.
///
/// A stackful task holds one while it touches per-core or thread-local data of the kernel, and no
/// longer than needed. If the task's slice ends meanwhile, a preemption is pending, and happens
/// when the last guard drops. If interrupts are masked at that drop, or if
/// [`may_preempt`](crate::platform::Platform::may_preempt) says no, the preemption stays
/// [pending](self). Guards nest. In plain tasks, in interrupts and outside of a runtime, guards
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
            // Enables preemption, and leaves the core first if a preemption is pending and nothing
            // else forbids it.
            runtime.preempt_enable();
        }
    }
}

/// Disables preemption in an interrupt handler that enables interrupts before it ends.
///
/// Unlike the drop of a [`PreemptGuard`], its drop never preempts: the handler ends in [`on_timer`]
/// or [`on_interrupt`], which does.
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
    /// - The handler then ends in [`on_timer`] or [`on_interrupt`], where a pending preemption
    ///   happens.
    pub unsafe fn new() -> Self {
        Self { _increment: Increment::new(bound::slot().runtime()) }
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
        // As in `disable`: a task that is preempted after the look at the slot stays in the same
        // runtime.
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

/// A global allocator under which tasks are not preempted.
///
/// Without it, a task could be preempted while it holds the allocator's lock, and the core's other
/// tasks would wait for that lock for ever. Nor is `malloc` reentrant. Wrap the program's
/// allocator:
///
/// ```ignore
/// #[global_allocator]
/// static HEAP: NoPreempt<Heap> = NoPreempt(Heap::new());
/// ```
#[derive(Debug, Default)]
pub struct NoPreempt<A>(pub A);

// SAFETY: each call is passed on unchanged, so the contract is the inner allocator's.
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

/// A spin lock whose holder is not preempted. For task context only: an interrupt handler that
/// takes the lock could wait for the code that it has interrupted.
pub(crate) struct PreemptLock<T> {
    /// 0 or 1. It is a word, since not all architectures can swap bytes.
    locked: AtomicUsize,
    value: UnsafeCell<T>,
}

// SAFETY: the lock lets one holder at a time access the value, and moves that access from core to
// core, for which `T: Send` is required.
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

    /// Takes the lock without a guard.
    ///
    /// # Safety
    ///
    /// The caller is a runtime's loop, which is not preempted.
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

/// The right to access the value of a [`PreemptLock`], whose drop releases the lock.
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
        // Release pairs with the acquire in `PreemptLock::acquire`. The guard is dropped after
        // this.
        self.lock.locked.store(0, Ordering::Release);
    }
}
