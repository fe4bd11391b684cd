//! The schedules' platform: a core is a shuttle thread.

use std::cell::RefCell;
use std::ptr::NonNull;

use shuttle::sync::{Condvar, Mutex};
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::stackful::{Context, StackMain, StackfulBackend};

struct Core {
    number: usize,
    slot: CoreSlot,
    /// Whether it was woken since it last parked.
    woken: Mutex<bool>,
    bell: Condvar,
}

// Shuttle runs all threads of a schedule on the one thread of the test, so these are a schedule's own.
std::thread_local! {
    static CORES: RefCell<Vec<&'static Core>> = const { RefCell::new(Vec::new()) };
}

shuttle::thread_local! {
    static CORE: &'static Core = {
        CORES.with_borrow_mut(|cores| {
            let (woken, bell) = (Mutex::new(false), Condvar::new());
            let core = Core { number: cores.len(), slot: CoreSlot::new(), woken, bell };
            // A schedule's threads may be gone before the last of them looks for it.
            cores.push(Box::leak(Box::new(core)));
            cores[cores.len() - 1]
        })
    };
}

/// Starts a schedule: no cores yet.
pub(crate) fn reset() {
    CORES.with_borrow_mut(Vec::clear);
}

struct Schedule;

// SAFETY: `slot` and `core` are a shuttle thread's own. `now` stands still, no alarm ever fires, and there
// are no interrupts to be masked. `woken` keeps a wake until the next `park`, and its lock orders memory.
// Code runs on shuttle's threads alone, never in a handler. The stacks are the default's.
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
            woken = core.bell.wait(woken).unwrap();
        }
        *woken = false;
    }

    fn wake(&self, core: usize) {
        let core = CORES.with_borrow(|cores| cores[core]);
        *core.woken.lock().unwrap() = true;
        core.bell.notify_one();
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

/// No schedule is stackful: a stack belongs to one core.
struct NeverEntered;

// SAFETY: neither function returns.
unsafe impl StackfulBackend for NeverEntered {
    const MIN_STACK: usize = 1024;

    unsafe fn prepare(_top: NonNull<u8>, _main: StackMain, _argument: *mut ()) -> Context {
        unreachable!("a schedule took a stack")
    }

    unsafe fn switch(_save: *mut Context, _to: Context) {
        unreachable!("a schedule entered a stack")
    }
}

trapline::bind_platform!(static PLATFORM: Schedule = Schedule);
