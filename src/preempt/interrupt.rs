//! The functions that a kernel's interrupt and fault handlers call at their end.

use crate::platform::bound;
use crate::runtime::core::Runtime;
use crate::stackful::stacks::Reason;

/// Preempts the running stackful task if its slice is over, a timer is due, or another task is
/// ready. To be called at the end of a timer interrupt.
///
/// Returns when the interrupted code is to continue, at once or much later, on the same core, with
/// interrupts masked. All that the handler had on its stack is still there at that time. The
/// handler must have saved on its stack before the call what another trap may change meanwhile
/// (trap registers, `errno`).
///
/// # Safety
///
/// - This is called on a core, in the handler of its alarm or of its periodic tick, after the
///   interrupt has been acknowledged, with interrupts masked. It is the last thing that the handler
///   does before it returns.
/// - It is called on the interrupted stack, and what the trap vector saves lies on that stack too.
///   Traps of other tasks come before this function returns, so a save area that exists once per
///   core is overwritten by then. A copy of the context that the kernel keeps elsewhere is not
///   enough either, since the handler's own frames must still be there.
/// - After it has returned, all registers of the interrupted code are restored. The trap vector
///   need not save the callee-saved registers itself: the functions that the handler calls and the
///   switch preserve them.
/// - The control state that the interrupted code may have changed is saved on that stack too. When
///   this function is called, that state is as Rust code expects it: the rounding mode (riscv64,
///   loongarch64: `fcsr` is 0), DF and AC (x86_64: clear), SUM and MXR (riscv64: clear). The return
///   from the trap ends a load reservation (riscv64: by an `sc`). [This
///   table](crate::arch#what-an-entry-sanitizes-and-what-the-switch-keeps) lists everything.
/// - There is enough stack for the handler, this call and the switch: 2 KiB (x86_64: 4 KiB) in a
///   build without optimization. A trap vector that first touches the stack at that depth, before
///   it acknowledges the interrupt or takes a lock, turns an overflow into a fault of the
///   interrupted task. [`end_task`] can then end that task alone.
/// - The handler interrupted task context, not another handler. A handler that enables interrupts
///   holds an [`InterruptGuard`](super::InterruptGuard).
/// - The handler holds no lock. If it holds a guard, or has disabled preemption, the core is not
///   taken in this call: the preemption becomes pending.
pub unsafe fn on_timer() {
    let Some(runtime) = Runtime::current() else { return };
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
    let Some(runtime) = Runtime::current() else { return };
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
/// the core to other tasks. If it ends the task, it does not return.
///
/// It returns, without effect, if there is no task that it may end:
///
/// - outside of a stackful task;
/// - with preemption disabled, since the fault may have interrupted an update that is half done;
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
    let Some(runtime) = Runtime::current() else { return };
    if runtime.is_on_stack() && runtime.preempt_count().is_zero() && bound::may_end() {
        // SAFETY: the preempt count is zero, so the caller has interrupted a stackful task's own
        // code. The caller promises that interrupts are masked.
        unsafe { runtime.end_stack() }
    }
}
