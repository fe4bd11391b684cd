//! The waker of a task: a pointer to its header that holds a reference.
//!
//! All four functions may run in any context: in an interrupt, on another core, while the
//! interrupted code holds a heap lock, after the runtime has been shut down. They take no lock, call
//! no allocator and no `Drop` of a user's.

use core::ptr::NonNull;
use core::task::{RawWaker, RawWakerVTable, Waker};

use super::state::Wake;
use super::{Header, Link};
use crate::Runtime;
use crate::platform::bound;
use crate::preempt::PreemptGuard;
use crate::ready;

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop);

/// A waker for `task` that takes over one reference.
///
/// # Safety
///
/// The caller has a reference to give away, or sees to it that the waker is not dropped and that the
/// task outlives it.
#[inline]
pub(crate) unsafe fn from_header(task: NonNull<Header>) -> Waker {
    // SAFETY: the four functions keep `RawWakerVTable`'s contract, being thread-safe.
    unsafe { Waker::new(task.as_ptr().cast_const().cast(), &VTABLE) }
}

/// Wakes a task.
///
/// # Safety
///
/// The caller has a reference to `task`.
#[inline]
unsafe fn wake_task(task: NonNull<Header>) {
    // SAFETY: the caller's reference keeps the header.
    let header = unsafe { task.as_ref() };
    let Some(runtime) = header.runtime.get() else { return };
    if !ready::is_local(runtime) {
        // SAFETY: passed on.
        unsafe { wake_remote(runtime, task) };
    } else if runtime.preempt_count().is_zero() {
        // SAFETY: passed on; preemption is enabled only in a stackful task's code.
        unsafe { wake_on_stack(runtime, task) };
    } else if header.state.wake_local() == Wake::Push {
        // SAFETY: the fast path, and RUNNING keeps the task alive.
        unsafe { runtime.ready().push_back(task) };
    } else if runtime.is_on_stack() && runtime.current_task() == Some(task) {
        // The task has woken itself, not something that it waited for: it yields.
        runtime.yield_current();
    }
}

/// The task that `waker` wakes and nothing else; `None` if it isn't one of ours.
#[inline]
pub(crate) fn task_of(waker: &Waker) -> Link {
    let is_ours = core::ptr::eq(waker.vtable(), &VTABLE);
    // SAFETY: a waker of this vtable has a reference to a task.
    is_ours.then(|| unsafe { header(waker.data()) })
}

/// This core's runtime, if `waker` wakes the task that is running in it.
#[inline]
pub(crate) fn running_in(waker: &Waker) -> Option<&'static Runtime> {
    let task = task_of(waker)?;
    // SAFETY: the waker has a reference to it.
    let runtime = unsafe { task.as_ref() }.runtime.get()?;
    // Asked like this, nothing waits for the look at the slot.
    let is_local = bound::slot().runtime().is_some_and(|here| core::ptr::eq(here, runtime));
    (is_local && runtime.current_task() == Some(task)).then_some(runtime)
}

/// As [`Waker::wake`], with less to ask for a task of `runtime`: timers that preempt a task wake this way.
///
/// # Safety
///
/// The caller is the loop of `runtime`.
#[inline]
pub(crate) unsafe fn wake_in_loop(runtime: &Runtime, waker: Waker) {
    let Some(task) = task_of(&waker) else { return waker.wake() };
    // SAFETY: the waker has a reference to it.
    let header = unsafe { task.as_ref() };
    if !header.runtime.get().is_some_and(|own| core::ptr::eq(own, runtime)) {
        return waker.wake();
    }
    if header.state.wake_local() == Wake::Push {
        // SAFETY: the state word said so, and this is the loop.
        unsafe { runtime.ready().push_back(task) };
    }
    // `waker` drops its reference.
}

/// In a stackful task of `runtime`, with preemption enabled.
///
/// # Safety
///
/// As [`wake_task`]; `runtime` is the task's.
#[inline(always)]
unsafe fn wake_on_stack(runtime: &'static Runtime, task: NonNull<Header>) {
    if runtime.current_task() == Some(task) {
        // The task has woken itself, not something that it waited for: it yields.
        runtime.yield_current();
        return;
    }
    runtime.preempt_count().set(1);
    // SAFETY: the caller's reference keeps the header.
    if unsafe { task.as_ref() }.state.wake_local() == Wake::Push {
        // SAFETY: the fast path, now that preemption is disabled, and RUNNING keeps the task alive.
        unsafe { runtime.ready().push_back(task) };
    }
    runtime.preempt_enable();
}

/// In an interrupt, or on another core.
///
/// # Safety
///
/// As [`wake_task`]; `runtime` is the task's.
#[inline(never)]
unsafe fn wake_remote(runtime: &'static Runtime, task: NonNull<Header>) {
    // Preempted between the flag and the push, a waker would keep the task from the queue for as
    // long as it stays preempted itself.
    let _guard = PreemptGuard::new();
    // SAFETY: the caller's reference keeps the header.
    if unsafe { task.as_ref() }.state.wake() == Wake::Push {
        // SAFETY: the state word said so.
        unsafe { ready::push(runtime, task) };
    }
}

/// Drops one reference.
#[inline]
fn release(task: NonNull<Header>) {
    // SAFETY: the caller has the reference that it drops.
    if unsafe { task.as_ref() }.state.release() {
        ready::free(task);
    }
}

/// Drops one reference, which is likely to be the last.
#[inline]
pub(crate) fn release_last(task: NonNull<Header>) {
    // SAFETY: the caller has the reference that it drops.
    if unsafe { task.as_ref() }.state.release_last() {
        ready::free(task);
    }
}

/// # Safety
///
/// `data` is the data of a live waker of this vtable.
#[inline]
unsafe fn header(data: *const ()) -> NonNull<Header> {
    // SAFETY: `from_header` made it from a `NonNull`.
    unsafe { NonNull::new_unchecked(data.cast_mut().cast()) }
}

// Each of these is called with the data of a live waker, by `RawWakerVTable`'s contract.

unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: a live waker's reference keeps the header.
    unsafe { header(data).as_ref() }.state.retain();
    RawWaker::new(data, &VTABLE)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: as `clone`; the reference that the waker had goes at the end.
    unsafe {
        wake_by_ref(data);
        drop(data);
    }
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: as `clone`.
    unsafe { wake_task(header(data)) }
}

unsafe fn drop(data: *const ()) {
    // SAFETY: as `clone`.
    release(unsafe { header(data) });
}
