//! Preemption: the preempt count, the guards, and the functions that take the core from a task.
//!
//! A core has one preempt count. The count is zero while the code of a stackful task runs, and
//! raised everywhere else: in the runtime's own code, in plain tasks, and under a [`PreemptGuard`].
//! An interrupt that should preempt while the count is raised makes the preemption *pending*
//! instead, and sets need_resched. A pending preemption happens when the count returns to zero.
//!
//! Two things can still forbid a pending preemption at that time: interrupts are masked, or the
//! [platform](crate::platform::Platform::may_preempt) says no. The preemption stays pending then.
//! It happens at the drop of the next guard, at the next [`point()`], or at the alarm, whichever
//! comes first.
//!
//! - If interrupts are masked, the alarm is set to fire as soon as they are enabled.
//! - If the platform says no, the alarm is set to ask again a slice later. Each "no" to an alarm
//!   doubles that time, up to 16 slices or 10 ms, whichever is less. The time is never shorter than
//!   a slice.
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

mod allocator;
pub(crate) mod count;
pub(crate) mod guard;
mod interrupt;

pub use allocator::NoPreempt;
pub use guard::{InterruptGuard, PreemptGuard, disable, enable, point};
pub use interrupt::{end_task, on_interrupt, on_timer};
