//! Waiting for a future in code that is not async.

use core::cell::Cell;
use core::future::Future;
use core::mem::ManuallyDrop;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use super::Reason;
use crate::Runtime;
use crate::platform::{CoreSlot, InInterrupt, Interrupts, bound};
use crate::task::Label;
use crate::task::waker::from_header;

/// Waits for `future`.
///
/// Inside of a stackful task it suspends the task and not the core: the task keeps its stack, and
/// other tasks run. Outside of any task, on a core that is not inside of a runtime, it parks the core
/// between polls.
///
/// A wake of the task that arrives while it waits here may have been meant for another part of the
/// task's future, say the other arm of a `select`. So after it has waited, it wakes its task once
/// more, and that part is polled.
///
/// An abort of the task takes effect after the poll that this is part of. If `future` waits for a
/// [`stackful`](crate::stackful()) future that was ended by a fault, the task is ended as well: there
/// is no output that it could go on with.
///
/// # Panics
///
/// - In a plain task, which would keep the core from all others, and in code that the runtime calls
///   outside of a poll (hooks, [`Config::on_stall`](crate::Config::on_stall), a timer's waker).
/// - In the drop of a stackful task's future, if the runtime drops it off its stack: in a
///   [`shutdown`](Runtime::shutdown), or where there is no stack for an aborted task.
/// - In a stackful task that must not give the core away: with interrupts masked; under a
///   [`PreemptGuard`](crate::preempt::PreemptGuard), or with preemption disabled; where
///   [`Platform::may_preempt`](crate::platform::Platform::may_preempt) says no, that is, while the task
///   panics or the kernel's own preempt count is not zero.
/// - If `future` leaves a guard, or masked interrupts, when its poll returns.
/// - In an interrupt on a core that is inside of a runtime.
/// - Outside of a runtime, if it has to wait while interrupts are masked, or by a caller that is no
///   core of the platform.
pub fn block_on<F: Future>(future: F) -> F::Output {
    // Pinned here: a future in an argument is one more copy of it on the stack.
    let future = pin!(future);
    match bound::slot().runtime() {
        Some(runtime) => suspend_until(runtime, future),
        None => park_until(bound::slot(), future),
    }
}

fn suspend_until<F: Future>(runtime: &'static Runtime, mut future: Pin<&mut F>) -> F::Output {
    let Some(task) = runtime.current_task() else {
        panic!("block_on was called in the runtime's own context: call it in a stackful task")
    };
    // SAFETY: the task that is polled is alive.
    let name = || unsafe { Label::of(task) };
    // SAFETY: as above.
    let is_stackful = unsafe { task.as_ref() }.state.is_stackful();
    assert!(
        runtime.is_on_stack() || !is_stackful,
        "block_on was called in the drop of the future of {}, which the runtime drops off its stack, since it is \
         shut down or has no stack for it: nothing can wait there",
        name()
    );
    assert!(
        runtime.is_on_stack(),
        "block_on was called in {}, which is a plain task and would keep the core from all others: \
         await the future, or spawn the task with stackful()",
        name()
    );
    assert!(
        bound::in_interrupt() != InInterrupt::Yes,
        "block_on was called in an interrupt: wake a task from there instead"
    );
    assert!(
        runtime.preempt_count().is_zero(),
        "block_on was called in {} under a PreemptGuard, or between preempt::disable and enable: \
         end that first",
        name()
    );
    assert!(
        bound::interrupts() != Interrupts::Masked,
        "block_on was called in {} with interrupts masked, and others would have the core meanwhile: \
         enable them first",
        name()
    );
    // SAFETY: the task isn't DONE before this poll of it is over, and until then the runtime's reference keeps
    // its header; the waker is not dropped, so it needs no reference.
    let waker = ManuallyDrop::new(unsafe { from_header(task) });
    assert!(
        bound::may_preempt(),
        "block_on was called in {} where Platform::may_preempt says no: while it panics, or under a \
         lock of the kernel's, which the core's other tasks would then run with",
        name()
    );
    let mut given_back = GiveBack { waker: &waker, waited: false };
    let stack = runtime.running_stack();
    // What the poll around this one has lost, or the future whose drop this is, is not waited for here.
    let _lost = LostBefore { lost: &stack.lost_child, before: stack.lost_child.replace(false) };
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        assert!(
            runtime.preempt_count().is_zero(),
            "a future in block_on held a PreemptGuard when its poll returned: drop it before the await"
        );
        assert!(
            bound::interrupts() != Interrupts::Masked,
            "a future in block_on had interrupts masked when its poll returned: enable them before the await"
        );
        if stack.lost_child.get() {
            // SAFETY: the running task's own code, by the checks above.
            unsafe { runtime.end_stack() }
        }
        given_back.waited = true;
        // SAFETY: the running task's own code, on its stack, in task context, by the checks above.
        unsafe { runtime.leave_stack(stack, Reason::Suspended) };
    }
}

/// Gives the wakes back that a `block_on` may have taken from others, also when it panics.
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

/// Tells what is around a `block_on` of a child again that was lost before it.
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
            let notified = slot.take_ring();
            if !notified {
                bound::park();
            }
            // SAFETY: what `mask_interrupts` has just returned.
            unsafe { bound::restore_interrupts(interrupts) };
            if notified {
                break;
            }
        }
    }
}

impl CoreSlot {
    /// A waker that ends the parking of this slot's core in `block_on`. The slot is all its data.
    fn waker(&'static self) -> Waker {
        static VTABLE: RawWakerVTable =
            RawWakerVTable::new(|slot| RawWaker::new(slot, &VTABLE), ring, ring, |_| ());
        fn ring(slot: *const ()) {
            // SAFETY: `waker` put a `&'static CoreSlot` there.
            unsafe { &*slot.cast::<CoreSlot>() }.notify();
        }
        // SAFETY: the functions keep `RawWakerVTable`'s contract: slots live for ever, and `ring` is
        // atomic.
        unsafe { Waker::new(core::ptr::from_ref(self).cast(), &VTABLE) }
    }
}
