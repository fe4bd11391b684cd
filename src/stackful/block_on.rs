//! Waiting for a future in code that is not async.

use core::cell::Cell;
use core::future::Future;
use core::mem::ManuallyDrop;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::platform::slot::CoreSlot;
use crate::platform::{InInterrupt, Interrupts, bound};
use crate::runtime::core::Runtime;
use crate::stackful::stacks::Reason;
use crate::task::header::label;
use crate::task::waker::from_header;

/// Waits for `future`.
///
/// Inside of a stackful task, it suspends the task and not the core: the task keeps its stack, and
/// other tasks run. Outside of any task, on a core that is not inside of a runtime, it parks the
/// core between polls.
///
/// A wake of the task that arrives during the wait may have been meant for another part of the
/// task's future, such as the other arm of a `select`. So after `block_on` has waited, it wakes its
/// task once more, and that part is polled.
///
/// An abort of the task takes effect after the poll that calls `block_on`. If `future` waits for a
/// [`stackful`](crate::stackful()) future that was ended by a fault, the task is ended as well,
/// since there is no output with which it could continue.
///
/// # Panics
///
/// - In a plain task, which would keep the core from all other tasks, and in code that the runtime
///   calls outside of a poll (hooks, [`Config::on_stall`](crate::Config::on_stall), a timer's
///   waker).
/// - In the drop of a stackful task's future, if the runtime drops the future off its stack: in a
///   [`shutdown`](Runtime::shutdown), or if there is no stack for an aborted task.
/// - In a stackful task that must not give the core away: with interrupts masked; under a
///   [`PreemptGuard`](crate::preempt::PreemptGuard), or with preemption disabled; or where
///   [`Platform::may_preempt`](crate::platform::Platform::may_preempt) says no, that is, while the
///   task panics or the kernel's own preempt count is not zero.
/// - If `future` leaves a guard, or masked interrupts, when its poll returns.
/// - In an interrupt on a core that is inside of a runtime.
/// - Outside of a runtime, if it has to wait while interrupts are masked, or if the caller is not a
///   core of the platform.
pub fn block_on<F: Future>(future: F) -> F::Output {
    // Pinned here: to pass the future in an argument would copy it on the stack once more.
    let future = pin!(future);
    match Runtime::current() {
        Some(runtime) => suspend_until(runtime, future),
        None => park_until(bound::slot(), future),
    }
}

/// Polls `future` until it is ready, in the running stackful task. Suspends the task between polls.
fn suspend_until<F: Future>(runtime: &'static Runtime, mut future: Pin<&mut F>) -> F::Output {
    let Some(task) = runtime.current_task() else {
        panic!("block_on was called in the runtime's own context: call it in a stackful task")
    };
    // SAFETY: the task that is polled is alive.
    let name = || unsafe { label(task) };
    // SAFETY: as above.
    let is_stackful = unsafe { task.as_ref() }.state.is_stackful();
    assert!(
        runtime.is_on_stack() || !is_stackful,
        "block_on was called in the drop of the future of {}, which the runtime drops off its \
         stack, since the task is shut down or has no stack: no code can wait there",
        name()
    );
    assert!(
        runtime.is_on_stack(),
        "block_on was called in {}, which is a plain task and would keep the core from all other \
         tasks: await the future, or spawn the task with stackful()",
        name()
    );
    assert!(
        bound::in_interrupt() != InInterrupt::Yes,
        "block_on was called in an interrupt: wake a task from there instead"
    );
    assert!(
        runtime.preempt_count().is_zero(),
        "block_on was called in {} under a PreemptGuard, or between preempt::disable and \
         preempt::enable: end that section first",
        name()
    );
    assert!(
        bound::interrupts() != Interrupts::Masked,
        "block_on was called in {} with interrupts masked, and other tasks would have the core \
         meanwhile: enable interrupts first",
        name()
    );
    // SAFETY: the task is not DONE before this poll of it is over, and until then the runtime's
    // reference keeps its header alive. The waker is not dropped, so it needs no reference.
    let waker = ManuallyDrop::new(unsafe { from_header(task) });
    assert!(
        bound::may_preempt(),
        "block_on was called in {} where Platform::may_preempt says no: while it panics, or under \
         a lock of the kernel, which would stay held while the core's other tasks run",
        name()
    );
    let mut given_back = GiveBack { waker: &waker, waited: false };
    let stack = runtime.running_stack();
    // A child that was ended by a fault before this call is not waited for by `future`, but by the
    // poll around this call, or by the future whose drop this is. So the note of it is set aside.
    let _lost = LostBefore { lost: &stack.lost_child, before: stack.lost_child.replace(false) };
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(
            runtime.preempt_count().is_zero(),
            "a future in block_on held a PreemptGuard when its poll returned: drop the guard \
             before the await"
        );
        assert!(
            bound::interrupts() != Interrupts::Masked,
            "a future in block_on had interrupts masked when its poll returned: enable them \
             before the await"
        );
        if stack.lost_child.get() {
            // SAFETY: this is the running task's own code, by the checks above.
            unsafe { runtime.end_stack() }
        }
        given_back.waited = true;
        // SAFETY: this is the running task's own code, on its stack, in task context, by the checks
        // above.
        unsafe { runtime.leave_stack(stack, Reason::Suspended) };
    }
}

/// Wakes the task again when a `block_on` that has waited ends, also by a panic: it may have
/// consumed wakes that were meant for other parts of the task.
struct GiveBack<'a> {
    waker: &'a Waker,
    waited: bool,
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        if self.waited {
            self.waker.wake_by_ref();
        }
    }
}

/// Restores, after a `block_on`, the note that a child was ended by a fault before it. The code
/// around the `block_on` waits for that child.
struct LostBefore<'a> {
    lost: &'a Cell<bool>,
    before: bool,
}

impl Drop for LostBefore<'_> {
    fn drop(&mut self) {
        if self.before {
            self.lost.set(true);
        }
    }
}

/// Polls `future` until it is ready, on a core that is outside of a runtime. Parks the core between
/// polls.
fn park_until<F: Future>(slot: &'static CoreSlot, mut future: Pin<&mut F>) -> F::Output {
    let core = bound::core();
    assert!(
        core != usize::MAX,
        "block_on was called by a thread that is not a core of the platform"
    );
    slot.set_core(core);
    let waker = slot.waker();
    let mut given_back = GiveBack { waker: &waker, waited: false };
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        given_back.waited = true;
        assert!(
            bound::interrupts() != Interrupts::Masked,
            "block_on has to wait, and interrupts are masked: enable them first"
        );
        loop {
            let interrupts = bound::mask_interrupts();
            let notified = slot.take_notified();
            if !notified {
                bound::park();
            }
            // SAFETY: `interrupts` is what `mask_interrupts` has just returned.
            unsafe { bound::restore_interrupts(interrupts) };
            if notified {
                break;
            }
        }
    }
}

impl CoreSlot {
    /// Returns a waker that ends the parking of this slot's core in `block_on`. Its data is only
    /// the address of the slot.
    fn waker(&'static self) -> Waker {
        static VTABLE: RawWakerVTable =
            RawWakerVTable::new(|slot| RawWaker::new(slot, &VTABLE), notify, notify, |_| ());
        fn notify(slot: *const ()) {
            // SAFETY: `waker` put a `&'static CoreSlot` there.
            let slot = unsafe { &*slot.cast::<CoreSlot>() };
            if let Some(core) = slot.notify() {
                bound::wake(core);
            }
        }
        // SAFETY: the functions keep the contract of `RawWakerVTable`: a slot lives for ever, and
        // `notify` is thread-safe, since it accesses only atomics and calls `Platform::wake`.
        unsafe { Waker::new(core::ptr::from_ref(self).cast(), &VTABLE) }
    }
}
