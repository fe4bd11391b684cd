//! The models' platform. A core is a loom thread, and an interrupt is code that this thread runs
//! between two steps of the code that it interrupts.
//!
//! A step is an access to an atomic or a cell of the runtime: `src/sync/mod.rs` calls
//! [`__trapline_model_step`] before each. A model arms its interrupts with [`interrupt`], and
//! [`harness::interrupted`](crate::harness::interrupted) checks the model once for each step before
//! which an interrupt can come.
//!
//! Stacks are real ones. Loom's threads are coroutines, so loom does not notice when a thread
//! switches its stack.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::ptr::NonNull;
use std::sync::Once;
use std::thread::LocalKey;

use loom::sync::Notify;
use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::AcqRel;
use trapline::platform::{self, CoreSlot, InInterrupt, PanicPayload, Platform};

use crate::harness::keep;

/// A core of the model.
struct Core {
    number: usize,
    slot: CoreSlot,
    /// Stores a wake until the core parks. Sometimes it lets the core go on without a wake, as
    /// `park` may.
    notifier: Notify,
    /// Set when the core is notified, until [`take_inter_processor_interrupt`] takes the
    /// inter-processor interrupt. No other code reads it.
    notified: AtomicBool,
    masked: Cell<bool>,
    in_handler: Cell<bool>,
    /// The time at which the alarm comes, or as soon after that as it can; `u64::MAX`: it is not
    /// set.
    alarm: Cell<u64>,
    /// How many locks of the kernel are held on this core, as [`lock`] counts them.
    locks: Cell<usize>,
    now: Cell<u64>,
}

/// An interrupt that has not come yet.
struct Interrupt {
    core: &'static Core,
    /// The index of the interrupt among those that the model arms.
    number: usize,
    /// After how many steps it comes. `None`: it came while the core was parked, and is still
    /// masked.
    after: Option<usize>,
    arrival: Arrival,
    handler: Box<dyn FnOnce()>,
}

/// The interrupts of the model.
#[derive(Default)]
struct Interrupts {
    /// After how many steps each interrupt comes, in the order in which the model arms them.
    after: Vec<usize>,
    /// Which interrupts have come between two steps in some run.
    came: Vec<bool>,
    /// How many interrupts this run has armed.
    armed: usize,
    coming: Vec<Interrupt>,
}

// Loom runs all threads of a model on the one thread of the test, so these variables belong to one
// model. Loom does not check them, and no access that loom checks may happen while one of them is
// borrowed.
std::thread_local! {
    static CORES: RefCell<Vec<&'static Core>> = const { RefCell::new(Vec::new()) };
    static IN_INTERRUPT: Cell<InInterrupt> = const { Cell::new(InInterrupt::Unknown) };
    static ALARMS: Cell<Alarms> = const { Cell::new(Alarms::Never) };
    /// The deadlines of the sleeping tasks.
    static DEADLINES: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static INTERRUPTS: RefCell<Interrupts> = RefCell::default();
    static STACKS: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
}

loom::thread_local! {
    static CORE: &'static Core = {
        let (slot, notifier) = (CoreSlot::new(), Notify::new());
        CORES.with(|cores| {
            let notified = AtomicBool::new(false);
            let core = keep(Core {
                number: cores.borrow().len(),
                slot,
                notifier,
                notified,
                masked: Cell::new(false),
                in_handler: Cell::new(false),
                alarm: Cell::new(u64::MAX),
                locks: Cell::new(0),
                now: Cell::new(0),
            });
            cores.borrow_mut().push(core);
            core
        })
    };
}

/// Which alarms come by themselves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alarms {
    /// No alarm comes: handlers of the model take their place.
    Never,
    /// Alarms that are set to a time that has passed. Only handlers of the model advance the clock.
    Passed,
    /// All alarms come: where a core parks, its clock advances to the time of its alarm.
    All,
}

/// Adds the deadline of a task that is asleep, or removes it.
pub(crate) fn sleeps_until(deadline: u64, is_asleep: bool) {
    DEADLINES.with_borrow_mut(|deadlines| {
        if is_asleep {
            deadlines.push(deadline);
        } else {
            deadlines.retain(|other| *other != deadline);
        }
    });
}

/// Starts a run of a model: there are no cores yet, and `in_interrupt` is the answer of each core
/// outside of handlers.
pub(crate) fn reset(in_interrupt: InInterrupt) {
    CORES.with(|cores| cores.borrow_mut().clear());
    IN_INTERRUPT.set(in_interrupt);
    ALARMS.set(Alarms::Never);
    DEADLINES.take();
    INTERRUPTS.with_borrow_mut(|interrupts| interrupts.armed = 0);
}

/// Ends a run: frees the stacks that hold frames for ever, and discards the interrupts that have
/// not come.
pub(crate) fn end() {
    INTERRUPTS.with_borrow_mut(|interrupts| interrupts.coming.clear());
    STACKS.take().into_iter().for_each(Memory::free);
}

/// Lets the interrupts come that are sure to come and have not come yet.
pub(crate) fn sure_interrupts_come() {
    let core = Core::here();
    core.sure_ones_are_due();
    core.take_interrupts();
}

/// Lets each alarm come in this run that is set to a time that has passed.
pub(crate) fn alarms_come() {
    ALARMS.set(Alarms::Passed);
}

/// Lets each alarm come in this run when the clock gets to its time. A core that parks is checked:
/// its alarm must be set for the first [sleeping](sleeps_until) task.
pub(crate) fn clock_runs() {
    ALARMS.set(Alarms::All);
}

/// Advances the clock to the time of the alarm, which then comes. Called in an interrupt of the
/// model. Returns whether the alarm is set.
pub(crate) fn time_passes() -> bool {
    let core = Core::here();
    let at = core.alarm.get();
    if at != u64::MAX {
        core.now.set(core.now.get().max(at));
    }
    at != u64::MAX
}

/// Returns the nanoseconds of this core's clock.
pub(crate) fn clock() -> u64 {
    Core::here().now.get()
}

/// Stands for long computation in task context: advances the clock to the alarm and lets it come.
///
/// # Panics
///
/// If no alarm is set: the code would compute for ever.
pub(crate) fn compute() {
    assert!(time_passes(), "no alarm is set, so this task keeps the core for ever");
    __trapline_model_step();
}

/// Sets after how many steps each interrupt of the model comes. A panic prints these numbers.
pub(crate) fn interrupts_come_after(steps: &[usize]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let _ = INTERRUPTS.try_with(|interrupts| {
                let Ok(interrupts) = interrupts.try_borrow() else { return };
                eprintln!("interrupts came after so many steps: {:?}", interrupts.after);
            });
            hook(panic);
        }));
    });
    INTERRUPTS.with_borrow_mut(|interrupts| {
        interrupts.after = steps.to_vec();
        interrupts.came.resize(steps.len(), false);
    });
}

/// Returns whether the interrupt of this number has come between two steps in a run since the last
/// call.
pub(crate) fn take_came(number: usize) -> bool {
    INTERRUPTS.with_borrow_mut(|interrupts| std::mem::take(&mut interrupts.came[number]))
}

/// Arms the model's next interrupt on this core.
pub(crate) fn interrupt(arrival: Arrival, handler: impl FnOnce() + 'static) {
    let core = Core::here();
    INTERRUPTS.with_borrow_mut(|interrupts| {
        let number = interrupts.armed;
        interrupts.armed += 1;
        interrupts.coming.push(Interrupt {
            core,
            number,
            after: Some(interrupts.after[number]),
            arrival,
            handler: Box::new(handler),
        });
    });
}

/// Whether an interrupt comes in every run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The interrupt comes at the latest when the core parks.
    Sure,
    /// The interrupt never comes if the core parks before its step.
    Unknown,
}

/// The handler of the alarm, when the slice is over.
pub(crate) fn on_timer() {
    let core = Core::here();
    core.now.set(core.now.get() + 1_000_000_000);
    // SAFETY: this is the end of a handler that an interrupt of the model runs, with interrupts
    // masked, on the interrupted stack. The handler holds no lock.
    unsafe { trapline::preempt::on_timer() }
}

/// The end of any other handler, when the running task has had the core for its minimal stretch.
pub(crate) fn on_interrupt() {
    let core = Core::here();
    core.now.set(core.now.get() + 100_000);
    // SAFETY: as in `on_timer`.
    unsafe { trapline::preempt::on_interrupt() }
}

/// Calls `f` with interrupts masked.
pub(crate) fn masked(f: impl FnOnce()) {
    let outer = MODEL.mask_interrupts();
    f();
    // SAFETY: pairs with the call of `mask_interrupts` above.
    unsafe { MODEL.restore_interrupts(outer) };
}

/// Takes a lock of the kernel. While it is held, `may_preempt` returns false.
pub(crate) fn lock() {
    let locks = &Core::here().locks;
    locks.set(locks.get() + 1);
}

/// Releases a lock of the kernel.
pub(crate) fn unlock() {
    let locks = &Core::here().locks;
    locks.set(locks.get() - 1);
}

/// Panics in a handler, and where a handler has left interrupts masked.
pub(crate) fn assert_task_context() {
    let core = Core::here();
    assert!(!core.in_handler.get() && !core.masked.get(), "a task is polled in a handler");
}

/// If the core was notified, runs the handler of its inter-processor interrupt.
pub(crate) fn take_inter_processor_interrupt() {
    let core = Core::here();
    if core.notified.swap(false, AcqRel) {
        core.handle(on_interrupt);
    }
}

#[unsafe(no_mangle)]
fn __trapline_model_step() {
    if INTERRUPTS.with_borrow(|interrupts| interrupts.coming.is_empty())
        && ALARMS.get() == Alarms::Never
    {
        return;
    }
    let core = Core::here();
    if !core.masked.get() {
        core.take_interrupts();
        core.each_coming(|interrupt| interrupt.after = interrupt.after.map(|steps| steps - 1));
    }
}

impl Core {
    fn here() -> &'static Self {
        CORE.with(|core| *core)
    }

    fn each_coming(&'static self, mut f: impl FnMut(&mut Interrupt)) {
        INTERRUPTS.with_borrow_mut(|interrupts| {
            interrupts.coming.iter_mut().filter(|it| std::ptr::eq(it.core, self)).for_each(&mut f);
        });
    }

    /// Makes the interrupts due that are sure to come. Returns whether there are any.
    fn sure_ones_are_due(&'static self) -> bool {
        let mut any = false;
        self.each_coming(|interrupt| {
            if interrupt.arrival == Arrival::Sure {
                interrupt.after = None;
                any = true;
            }
        });
        any
    }

    /// Takes the next interrupt that is due.
    fn next_interrupt(&'static self) -> Option<Interrupt> {
        INTERRUPTS.with_borrow_mut(|interrupts| {
            let due = |it: &Interrupt| std::ptr::eq(it.core, self) && it.after.unwrap_or(0) == 0;
            let place = interrupts.coming.iter().position(due)?;
            let interrupt = interrupts.coming.remove(place);
            interrupts.came[interrupt.number] |= interrupt.after.is_some();
            Some(interrupt)
        })
    }

    fn alarm_is_due(&self) -> bool {
        ALARMS.get() != Alarms::Never && self.alarm.get() <= self.now.get()
    }

    /// Runs the handlers of all interrupts that are due. Interrupts must not be masked.
    fn take_interrupts(&'static self) {
        loop {
            if let Some(interrupt) = self.next_interrupt() {
                self.handle(interrupt.handler);
            } else if self.alarm_is_due() {
                self.alarm.set(u64::MAX);
                // SAFETY: as in `on_timer`.
                self.handle(|| unsafe { trapline::preempt::on_timer() });
            } else {
                return;
            }
        }
    }

    /// Runs a handler. Interrupts must not be masked.
    fn handle(&self, handler: impl FnOnce()) {
        let outer = self.in_handler.replace(true);
        self.masked.set(true);
        handler();
        // Other code may have had the core meanwhile, so both flags are set again.
        self.in_handler.set(outer);
        self.masked.set(false);
    }
}

/// An allocation.
#[derive(Clone, Copy)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn free(self) {
        // SAFETY: each `Memory` in a list was allocated with this layout, and is taken out of the
        // list before it is freed.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Takes the allocation that begins at `start` out of the list.
fn take_memory(list: &'static LocalKey<RefCell<Vec<Memory>>>, start: NonNull<u8>) -> Memory {
    list.with_borrow_mut(|list| {
        let place = list.iter().position(|memory| memory.start == start);
        list.swap_remove(place.expect("the stack was never allocated, or was freed already"))
    })
}

/// The payload of a panic that is part of a model. Every other panic ends the check.
pub(crate) struct Expected;

/// The platform.
struct Model;

// SAFETY: for each promise of `Platform`:
// - `slot` and `core` belong to one loom thread.
// - `now` only goes forward.
// - `take_interrupts` calls handlers, and only while interrupts are not masked. So does
//   `take_inter_processor_interrupt`, which a model calls in task context only.
// - `notifier` stores a wake until the next `park` and orders memory. The handlers that a wake
//   causes on another core are those that a model arms.
// - `in_interrupt` says "no" only outside of handlers.
// - `interrupts` reports the mask.
// - Code that panics cannot be interrupted before the panic is caught.
// - Stacks come from the global allocator, with the demanded alignment.
unsafe impl Platform for Model {
    type Backend = trapline::arch::Native;

    fn slot(&self) -> &'static CoreSlot {
        &Core::here().slot
    }

    fn core(&self) -> usize {
        Core::here().number
    }

    fn now(&self) -> u64 {
        Core::here().now.get()
    }

    fn set_alarm(&self, at: u64) {
        // An alarm may come right before it is set and right after.
        __trapline_model_step();
        Core::here().alarm.set(at);
    }

    fn park(&self) {
        let core = Core::here();
        if core.alarm_is_due() || core.sure_ones_are_due() {
            return;
        }
        if ALARMS.get() == Alarms::All {
            let first = DEADLINES.with_borrow(|deadlines| deadlines.iter().min().copied());
            let alarm = core.alarm.get();
            assert!(
                first.is_none_or(|first| alarm <= first),
                "the core parks until {alarm}, and not until {first:?}"
            );
            if time_passes() {
                return;
            }
        }
        core.notifier.wait();
    }

    fn wake(&self, core: usize) {
        let core = CORES.with(|cores| cores.borrow()[core]);
        core.notified.swap(true, AcqRel);
        core.notifier.notify();
    }

    fn mask_interrupts(&self) -> usize {
        Core::here().masked.replace(true).into()
    }

    unsafe fn restore_interrupts(&self, was_masked: usize) {
        if was_masked == 0 {
            let core = Core::here();
            core.masked.set(false);
            core.take_interrupts();
        }
    }

    unsafe fn enable_interrupts(&self) {
        let core = Core::here();
        core.in_handler.set(false);
        core.masked.set(false);
    }

    fn catch_unwind(&self, body: &mut dyn FnMut()) -> Result<(), PanicPayload> {
        match std::panic::catch_unwind(AssertUnwindSafe(body)) {
            Err(payload) if !payload.is::<Expected>() => resume_unwind(payload),
            result => result,
        }
    }

    fn allocate_stack(&self, size: usize) -> Option<NonNull<u8>> {
        let layout = Layout::from_size_align(size, 16).ok()?;
        // SAFETY: `size` is not zero, since `Config` refuses a stack size of zero.
        let stack = Memory { start: NonNull::new(unsafe { alloc(layout) })?, layout };
        STACKS.with_borrow_mut(|stacks| stacks.push(stack));
        Some(stack.start)
    }

    unsafe fn free_stack(&self, base: NonNull<u8>, _size: usize) {
        take_memory(&STACKS, base).free();
    }

    fn interrupts(&self) -> platform::Interrupts {
        if Core::here().masked.get() {
            platform::Interrupts::Masked
        } else {
            platform::Interrupts::Enabled
        }
    }

    fn may_preempt(&self) -> bool {
        Core::here().locks.get() == 0
    }

    fn in_interrupt(&self) -> InInterrupt {
        match IN_INTERRUPT.get() {
            InInterrupt::No if Core::here().in_handler.get() => InInterrupt::Yes,
            answer => answer,
        }
    }
}

trapline::bind_platform!(static MODEL: Model = Model);
