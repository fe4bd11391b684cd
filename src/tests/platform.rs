//! A platform whose clock stands still until a test sets it. Each test has a thread, and so a clock
//! and an alarm, of its own.

use core::cell::Cell;
use std::boxed::Box;
use std::thread_local;

use crate::arch;
use crate::platform::{CoreSlot, Interrupts, Platform};

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static ALARM: Cell<Option<u64>> = const { Cell::new(None) };
    static SLOT: &'static CoreSlot = Box::leak(Box::new(CoreSlot::new()));
}

/// Sets the clock of the calling thread.
pub(super) fn set_now(now: u64) {
    NOW.set(now);
}

/// Returns what the alarm of the calling thread was set to since the last call.
pub(super) fn take_alarm() -> Option<u64> {
    ALARM.take()
}

struct Still;

crate::bind_platform!(static STILL: Still = Still);

// SAFETY: each thread is a core with a slot of its own. No test enters a runtime, so no code is
// preempted, parks or wakes another core.
unsafe impl Platform for Still {
    type Backend = arch::Native;

    fn slot(&self) -> &'static CoreSlot {
        SLOT.with(|slot| *slot)
    }

    fn core(&self) -> usize {
        0
    }

    fn now(&self) -> u64 {
        NOW.get()
    }

    fn set_alarm(&self, at: u64) {
        ALARM.set(Some(at));
    }

    fn park(&self) {
        unreachable!("no test parks")
    }

    fn wake(&self, _core: usize) {
        unreachable!("no test wakes a core")
    }

    fn mask_interrupts(&self) -> usize {
        0
    }

    unsafe fn restore_interrupts(&self, _state: usize) {}

    unsafe fn enable_interrupts(&self) {}

    fn interrupts(&self) -> Interrupts {
        Interrupts::Enabled
    }
}
