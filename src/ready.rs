//! The ready queue of a runtime. It has two parts: the FIFO, for the owning core's task context,
//! and the inbox, into which all other code pushes.
//!
//! Only the owning core touches the FIFO, in task context, with preemption disabled ([the fast
//! path](on_fast_path)). It is not enough that the code runs on the owning core. If an interrupt
//! handler pushed into the FIFO while it had interrupted another push halfway, a task would be
//! lost. The same would happen if a task were preempted halfway through a push.
//!
//! All other code pushes into the inbox, by one compare-and-swap. The [queues](crate::queue)
//! themselves do not depend on the runtime.

use core::ptr::NonNull;

use crate::freelist::FreeList;
use crate::platform::{InInterrupt, bound};
use crate::preempt::guard::PreemptGuard;
use crate::queue::{Closed, Push};
use crate::runtime::core::Runtime;
use crate::task::header::Header;
use crate::task::state::Origin;

/// Returns whether the caller is on the fast path: in task context of `runtime`'s own core, with
/// preemption disabled. There, no other code of the core except interrupts can run between two
/// steps of the caller. Code other than the loop may touch the runtime's FIFO, or free memory, only
/// on the fast path. A stackful task's code gets onto the fast path with a [`PreemptGuard`].
#[inline]
pub(crate) fn on_fast_path(runtime: &Runtime) -> bool {
    is_local(runtime) && !runtime.preempt_count().is_zero()
}

/// Returns whether the caller is certainly in task context of `runtime`'s own core. (If the
/// platform is not certain, the answer is `false`.)
#[inline]
pub(crate) fn is_local(runtime: &Runtime) -> bool {
    runtime.is_current() && bound::in_interrupt() == InInterrupt::No
}

/// Publishes a task of `runtime`. Any context, with preemption disabled.
///
/// # Safety
///
/// The state word of the task told the caller to push it.
pub(crate) unsafe fn push(runtime: &Runtime, task: NonNull<Header>) {
    if on_fast_path(runtime) {
        // SAFETY: this is the owning core, in task context, between two steps of its loop, with
        // preemption disabled. The task is in no queue, by its state word, and it is alive while it
        // is queued.
        unsafe { runtime.ready().push_back(task) };
        return;
    }
    // SAFETY: the state word told the caller to push the task. The runtime's reference keeps the
    // task alive until the loop takes it from the inbox.
    if unsafe { runtime.inbox().push(task, urgency(runtime)) } {
        runtime.wake_core();
    }
}

/// Returns the caller's context: `Local` on the [fast path](on_fast_path), else `Remote`. Called
/// with preemption disabled, so that the answer stays true.
#[inline]
pub(crate) fn origin(runtime: &Runtime) -> Origin {
    if on_fast_path(runtime) { Origin::Local } else { Origin::Remote }
}

/// Publishes a new task. Any context.
///
/// # Safety
///
/// `task` belongs to this runtime and is new, and has the runtime's reference. `origin` is the
/// caller's context.
#[inline]
pub(crate) unsafe fn push_new(
    runtime: &Runtime,
    task: NonNull<Header>,
    origin: Origin,
) -> Result<(), Closed> {
    if origin == Origin::Remote {
        // SAFETY: the caller promises what `push_new_remote` demands.
        return unsafe { push_new_remote(runtime, task) };
    }
    if runtime.is_closed() {
        return Err(Closed);
    }
    // SAFETY: `origin` says that this is the fast path: the owning core, in task context between
    // two steps of its loop, with preemption disabled. A new task is in no queue, and the runtime's
    // reference keeps it alive.
    unsafe { runtime.ready().push_back(task) };
    Ok(())
}

/// Publishes a new task to the inbox. Any context.
///
/// # Safety
///
/// As for [`push_new`], without the condition on `origin`.
#[inline(never)]
unsafe fn push_new_remote(runtime: &Runtime, task: NonNull<Header>) -> Result<(), Closed> {
    let _guard = PreemptGuard::new();
    // SAFETY: the task is new, so only the caller pushes it. The runtime's reference keeps it alive
    // until the loop takes it from the inbox.
    if unsafe { runtime.inbox().push_new(task, urgency(runtime)) }? {
        runtime.wake_core();
    }
    Ok(())
}

/// Frees a task whose last reference is gone. Any context. The core may be in the middle of a call
/// of the allocator (this may be an interrupt). So the task is freed here only if that needs no
/// allocator; otherwise its runtime's loop frees it.
#[inline(never)]
pub(crate) fn free(task: NonNull<Header>) {
    // SAFETY: the task has no references, so no other code can reach it.
    let Some(runtime) = unsafe { task.as_ref() }.runtime.get() else { return };
    if on_fast_path(runtime) {
        free_local(runtime, task, Some(runtime.free_list()));
    } else {
        free_with_guard(runtime, task);
    }
}

/// Does the same as [`free`] outside of the fast path: in a stackful task, which may be preempted
/// here, in an interrupt, or on another core.
#[inline(never)]
fn free_with_guard(runtime: &'static Runtime, task: NonNull<Header>) {
    let _guard = PreemptGuard::new();
    free_local(runtime, task, on_fast_path(runtime).then(|| runtime.free_list()));
}

/// Frees the task, or pushes it to `runtime`, its runtime, whose loop then frees it. `free_list` is
/// the free list of `runtime` if the caller is on the [fast path](on_fast_path); else `None`.
#[inline]
fn free_local(runtime: &Runtime, task: NonNull<Header>, free_list: Option<&FreeList>) {
    // SAFETY: the task has no references, so no other code can reach it.
    let header = unsafe { task.as_ref() };
    let free_list = free_list.filter(|free_list| free_list.keeps(header.vtable.layout));
    if header.vtable.freed_anywhere || free_list.is_some() {
        // SAFETY: `free` calls no allocator here: the task may be freed anywhere, or its memory
        // goes to the free list. The free list is used in task context of its core, with preemption
        // disabled. All references are gone, and the future and the output were dropped before.
        unsafe { Header::free(task, free_list) };
    } else {
        // SAFETY: no other code can reach the task. It is in no queue, since it was finished. It
        // stays alive until the runtime's loop frees it.
        let notify = unsafe { runtime.inbox().push(task, Push::Reap) };
        debug_assert!(!notify);
    }
}

/// Returns how urgent a push into the inbox of `runtime` by this core is: whether it preempts the
/// running task.
fn urgency(runtime: &Runtime) -> Push {
    if runtime.is_current() { Push::Local } else { Push::Urgent }
}
