//! The models' platform: a core is a loom thread.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use loom::sync::Notify;
use trapline::platform::{CoreSlot, InInterrupt, Platform};
use trapline::stackful::{Context, StackMain, StackfulBackend};

use crate::harness::keep;

struct Core {
    number: usize,
    slot: CoreSlot,
    /// Holds a wake until the core parks, and sometimes lets it go for nothing, as `park` may.
    bell: Notify,
}

// Loom runs all threads of a model on the one thread of the test, so these are a model's own. Loom
// does not see them, and nothing that it sees may happen while one is borrowed.
std::thread_local! {
    static CORES: RefCell<Vec<&'static Core>> = const { RefCell::new(Vec::new()) };
    static IN_INTERRUPT: Cell<InInterrupt> = const { Cell::new(InInterrupt::Perhaps) };
}

loom::thread_local! {
    static CORE: &'static Core = {
        let slot = CoreSlot::new();
        let bell = Notify::new();
        CORES.with(|cores| {
            let core = keep(Core { number: cores.borrow().len(), slot, bell });
            cores.borrow_mut().push(core);
            core
        })
    };
}

/// Starts a run of a model: no cores yet, and this is what they say of interrupts.
pub(crate) fn reset(in_interrupt: InInterrupt) {
    CORES.with(|cores| cores.borrow_mut().clear());
    IN_INTERRUPT.set(in_interrupt);
}

struct Model;

// SAFETY: `slot` and `core` are a loom thread's own. `now` stands still, no alarm ever fires, and there
// are no interrupts to be masked. `bell` keeps a wake until the next `park` and orders memory. Code
// runs on loom's threads alone, never in a handler, so "no" is as true as "perhaps". The stacks are
// the default's.
unsafe impl Platform for Model {
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
        CORE.with(|core| *core).bell.wait();
    }

    fn wake(&self, core: usize) {
        let core = CORES.with(|cores| cores.borrow()[core]);
        core.bell.notify();
    }

    fn mask_interrupts(&self) -> usize {
        0
    }

    unsafe fn restore_interrupts(&self, _state: usize) {}

    unsafe fn enable_interrupts(&self) {}

    fn in_interrupt(&self) -> InInterrupt {
        IN_INTERRUPT.get()
    }
}

/// No model is stackful: a stack belongs to one core.
struct NeverEntered;

// SAFETY: neither function returns.
unsafe impl StackfulBackend for NeverEntered {
    const LEAST_STACK: usize = 1024;

    unsafe fn prepare(_top: NonNull<u8>, _main: StackMain, _argument: *mut ()) -> Context {
        unreachable!("a model took a stack")
    }

    unsafe fn switch(_save: *mut Context, _to: Context) {
        unreachable!("a model entered a stack")
    }
}

trapline::bind_platform!(static MODEL: Model = Model);
