//! A stall: tasks wait for a stack, and there is none.

use crate::config::STALL_SLICES;
use crate::platform::bound;
use crate::runtime::core::Runtime;
use crate::stackful::stall::{Holds, Report, Stall, StalledTask};
use crate::task::header::label;

impl Runtime {
    /// Calls the hook `on_stall`, unless the hook was called less than [`STALL_SLICES`] slices ago.
    /// Returns the time from which the hook may be called again. The caller has found that tasks
    /// wait for a stack.
    pub(super) fn report_stall(&'static self) -> u64 {
        let next_report = &self.local.stacks.next_report;
        let now = bound::now();
        if now >= next_report.get() {
            let pause = self.slice.saturating_mul(STALL_SLICES.into());
            next_report.set(now.saturating_add(pause));
            if let Some(on_stall) = self.config.on_stall {
                self.catch_panic(|| on_stall(&Stall { report: self }));
            }
        }
        next_report.get()
    }
}

impl Report for Runtime {
    fn each_holder(&self, f: &mut dyn FnMut(StalledTask, Holds)) {
        self.stacks().pool.each(|stack| {
            let Some(task) = stack.task.get() else { return };
            // SAFETY: a task of which a stack holds frames is alive. A task that was ended by a
            // fault stays alive for ever.
            let (label, state) = unsafe { (label(task), &task.as_ref().state) };
            let holds = match stack.is_preempted() {
                true => Holds::Preempted,
                false if state.is_done() => Holds::Ended,
                false => Holds::Suspended,
            };
            f(StalledTask { label }, holds);
        });
    }

    fn each_waiter(&self, f: &mut dyn FnMut(StalledTask)) {
        self.stacks().each_waiting(|task| {
            // SAFETY: tasks in a queue are alive.
            f(StalledTask { label: unsafe { label(task) } });
        });
    }

    fn waiting(&self) -> usize {
        self.stacks().waiting() as usize
    }

    fn stacks(&self) -> usize {
        self.stacks().pool.total()
    }

    fn is_out_of_memory(&self) -> bool {
        self.may_have_more_stacks()
    }
}
