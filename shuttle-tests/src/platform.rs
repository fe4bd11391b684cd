//! The platform of the schedules: a core is a shuttle thread.

use std::cell::RefCell;
use std::ptr::NonNull;

use shuttle::sync::{Condvar, Mutex};
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::stackful::{Context, StackMain, StackfulBackend};

/// A core of the schedule.
struct Core {
    number: usize,
    slot: CoreSlot,
    /// Whether the core was woken since it last parked.
    woken: Mutex<bool>,
    notifier: Condvar,
}

// Shuttle runs all threads of a schedule on the one thread of the test, so these cores belong to
// one schedule.
std::thread_local! {
    static CORES: RefCell<Vec<&'static Core>> = const { RefCell::new(Vec::new()) };
}

shuttle::thread_local! {
    static CORE: &'static Core = {
        CORES.with_borrow_mut(|cores| {
            let (woken, notifier) = (Mutex::new(false), Condvar::new());
            let core = Core { number: cores.len(), slot: CoreSlot::new(), woken, notifier };
            // Leaked, since a thread may have ended when another thread of the schedule still uses
            // its core.
            cores.push(Box::leak(Box::new(core)));
            cores[cores.len() - 1]
        })
    };
}

/// Starts a schedule, in which there are no cores yet.
pub(crate) fn reset() {
    CORES.with_borrow_mut(Vec::clear);
}

/// The platform.
struct Schedule;

// SAFETY: `slot` and `core` belong to one shuttle thread. `now` stands still, no alarm ever fires,
// and there are no interrupts to mask. `woken` stores a wake until the next `park`, and its lock
// orders memory. Code runs only on shuttle's threads and never in a handler. The stacks are those
// of the default functions.
unsafe impl Platform for Schedule {
    type Backend = NeverEntered;

    fn slot(&self) -> &'static CoreSlot {
        CORE.with(|core| &core.slot)
    }

    fn core(&self) -> usize {
        CORE.with(|core| core.number)
    }

    fn now(&self) -> u64 {
        0
    }

    fn set_alarm(&self, _at: u64) {}

    fn park(&self) {
        let core = CORE.with(|core| *core);
        let mut woken = core.woken.lock().unwrap();
        while !*woken {
            woken = core.notifier.wait(woken).unwrap();
        }
        *woken = false;
    }

    fn wake(&self, core: usize) {
        let core = CORES.with_borrow(|cores| cores[core]);
        *core.woken.lock().unwrap() = true;
        core.notifier.notify_one();
    }

    fn mask_interrupts(&self) -> usize {
        0
    }

    unsafe fn restore_interrupts(&self, _state: usize) {}

    unsafe fn enable_interrupts(&self) {}

    fn interrupts(&self) -> Interrupts {
        Interrupts::Enabled
    }

    fn in_interrupt(&self) -> InInterrupt {
        InInterrupt::No
    }
}

/// A backend that never enters a stack: no task of a schedule is stackful, since a stack belongs to
/// one core.
struct NeverEntered;

// SAFETY: neither function returns.
unsafe impl StackfulBackend for NeverEntered {
    const MIN_STACK: usize = 1024;

    unsafe fn prepare(_top: NonNull<u8>, _main: StackMain, _argument: *mut ()) -> Context {
        unreachable!("a schedule prepared a stack")
    }

    unsafe fn switch(_save: *mut Context, _to: Context) {
        unreachable!("a schedule entered a stack")
    }
}

trapline::bind_platform!(static PLATFORM: Schedule = Schedule);
