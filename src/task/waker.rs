//! The waker of a task: a pointer to the task's header. The waker owns one reference to the task.
//!
//! All four functions of its vtable (`clone`, `wake`, `wake_by_ref`, `drop`) may run in any
//! context: in an interrupt, on another core, while the interrupted code holds a heap lock, after
//! the runtime has been shut down. They take no lock, and call no allocator and no user's `Drop`.

use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::preempt::guard::PreemptGuard;
use crate::ready;
use crate::runtime::core::Runtime;
use crate::task::header::{Header, Link};
use crate::task::state::Wake;

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop);

/// Makes a waker for `task` that takes over one reference.
///
/// # Safety
///
/// The caller has a reference and gives it away; or the caller makes sure that the waker is not
/// dropped and that the task outlives it.
#[inline]
pub(crate) unsafe fn from_header(task: NonNull<Header>) -> Waker {
    // SAFETY: the four functions are thread-safe, and so keep `RawWakerVTable`'s contract.
    unsafe { Waker::new(task.as_ptr().cast_const().cast(), &VTABLE) }
}

/// Wakes a task. Any context.
///
/// # Safety
///
/// The caller has a reference to `task`.
#[inline]
unsafe fn wake_task(task: NonNull<Header>) {
    // SAFETY: the caller's reference keeps the header alive.
    let header = unsafe { task.as_ref() };
    let Some(runtime) = header.runtime.get() else { return };
    if !ready::is_local(runtime) {
        // SAFETY: the caller has a reference, and `runtime` is the task's.
        unsafe { wake_remote(runtime, task) };
    } else if runtime.preempt_count().is_zero() {
        // SAFETY: the caller has a reference, and `runtime` is the task's. The preempt count is
        // zero only in a stackful task's code, so this is such code.
        unsafe { wake_on_stack(runtime, task) };
    } else if header.state.wake_local() == Wake::Push {
        // SAFETY: this is the fast path, and RUNNING keeps the task alive while it is queued.
        unsafe { runtime.ready().push_back(task) };
    } else if runtime.is_on_stack() && runtime.current_task() == Some(task) {
        // The running task has called its own waker, as a future does when it yields. So it goes
        // behind the tasks that are READY.
        runtime.yield_current();
    }
}

/// Returns the task that `waker` wakes; `None` if the waker is not one of this crate's task wakers.
#[inline]
pub(crate) fn task_of(waker: &Waker) -> Link {
    let is_ours = core::ptr::eq(waker.vtable(), &VTABLE);
    // SAFETY: a waker of this vtable has a reference to a task.
    is_ours.then(|| unsafe { header(waker.data()) })
}

/// Returns this core's runtime, if `waker` wakes the task that is running in it.
#[inline]
pub(crate) fn running_in(waker: &Waker) -> Option<&'static Runtime> {
    let task = task_of(waker)?;
    // SAFETY: the waker has a reference to the task.
    let runtime = unsafe { task.as_ref() }.runtime.get()?;
    // The runtime comes from the task, and is only compared with the one in the slot. So the loads
    // that follow do not have to wait for the load of the slot.
    let is_local = runtime.is_current();
    (is_local && runtime.current_task() == Some(task)).then_some(runtime)
}

/// Does the same as [`Waker::wake`]. But if the task belongs to `runtime`, it does not look up the
/// context in the slot and the platform, since the caller's context is known. Used for due timers
/// and for join wakers.
///
/// # Safety
///
/// The caller is the loop of `runtime`, or the shutdown in the loop's place.
#[inline]
pub(crate) unsafe fn wake_in_loop(runtime: &Runtime, waker: Waker) {
    let Some(task) = task_of(&waker) else { return waker.wake() };
    // SAFETY: the waker has a reference to the task.
    let header = unsafe { task.as_ref() };
    if !header.runtime.get().is_some_and(|own| core::ptr::eq(own, runtime)) {
        return waker.wake();
    }
    if header.state.wake_local() == Wake::Push {
        // SAFETY: the state word told this code to push the task, and this is the loop.
        unsafe { runtime.ready().push_back(task) };
    }
    // The drop of `waker` releases its reference.
}

/// Wakes a task from a stackful task of `runtime` that runs with preemption enabled.
///
/// # Safety
///
/// As for [`wake_task`]. `runtime` is the task's and this core's, and preemption is enabled.
#[inline(always)]
unsafe fn wake_on_stack(runtime: &'static Runtime, task: NonNull<Header>) {
    if runtime.current_task() == Some(task) {
        // The running task has called its own waker: it yields, as in `wake_task`.
        runtime.yield_current();
        return;
    }
    runtime.preempt_count().set(1);
    // SAFETY: the caller's reference keeps the header alive.
    if unsafe { task.as_ref() }.state.wake_local() == Wake::Push {
        // SAFETY: this is the fast path, now that preemption is disabled. RUNNING keeps the task
        // alive while it is queued.
        unsafe { runtime.ready().push_back(task) };
    }
    runtime.preempt_enable();
}

/// Wakes a task from an interrupt or from another core.
///
/// # Safety
///
/// As for [`wake_task`]. `runtime` is the task's.
#[inline(never)]
unsafe fn wake_remote(runtime: &'static Runtime, task: NonNull<Header>) {
    // Without the guard, the calling task could be preempted after it has set READY and before the
    // push. Until the calling task is resumed, the woken task would then be in no queue, and no
    // other code could push it.
    let _guard = PreemptGuard::new();
    // SAFETY: the caller's reference keeps the header alive.
    if unsafe { task.as_ref() }.state.wake() == Wake::Push {
        // SAFETY: the state word told this code to push the task, and preemption is disabled.
        unsafe { ready::push(runtime, task) };
    }
}

/// Drops one reference, which the caller has.
#[inline]
fn release(task: NonNull<Header>) {
    // SAFETY: the caller has the reference that it drops, which keeps the header alive until then.
    if unsafe { task.as_ref() }.state.release() {
        ready::free(task);
    }
}

/// Drops one reference, which the caller has and which is likely to be the last.
#[inline]
pub(crate) fn release_last(task: NonNull<Header>) {
    // SAFETY: as in `release`.
    if unsafe { task.as_ref() }.state.release_last() {
        ready::free(task);
    }
}

/// Returns the task of a waker.
///
/// # Safety
///
/// `data` is the data of a live waker of this vtable.
#[inline]
unsafe fn header(data: *const ()) -> NonNull<Header> {
    // SAFETY: `from_header` made `data` from a `NonNull`.
    unsafe { NonNull::new_unchecked(data.cast_mut().cast()) }
}

// By `RawWakerVTable`'s contract, each of the following functions is called with the data of a live
// waker.

unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: a live waker's reference keeps the header alive.
    unsafe { header(data).as_ref() }.state.retain();
    RawWaker::new(data, &VTABLE)
}

unsafe fn wake(data: *const ()) {
    // SAFETY: as in `clone`. The waker's reference is dropped last.
    unsafe {
        wake_by_ref(data);
        drop(data);
    }
}

unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: as in `clone`.
    unsafe { wake_task(header(data)) }
}

unsafe fn drop(data: *const ()) {
    // SAFETY: as in `clone`. The reference is the waker's, which is used no more.
    release(unsafe { header(data) });
}

impl Header {
    /// Polls the future of `task`.
    ///
    /// # Safety
    ///
    /// Rule 5: the caller is on the owning core, and the task is RUNNING. No earlier call returned
    /// `Ready`.
    #[inline]
    pub(crate) unsafe fn poll(task: NonNull<Self>) -> Poll<()> {
        // SAFETY: the caller's promise is that of `Vtable::poll`. The runtime keeps its reference
        // while the task is RUNNING, so the header outlives the poll and with it the borrowed
        // waker. `ManuallyDrop` keeps that waker from releasing a reference that it does not have.
        unsafe {
            let waker = ManuallyDrop::new(from_header(task));
            (task.as_ref().vtable.poll)(task, &mut Context::from_waker(&waker))
        }
    }
}
