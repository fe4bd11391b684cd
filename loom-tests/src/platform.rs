//! The models' platform: a core is a loom thread, and an interrupt is code that this thread runs between two
//! steps of the code that it is in.
//!
//! A step is an access of one of the runtime's atomics and cells: `src/sync.rs` calls
//! [`__trapline_model_step`] before each. A model arms its interrupts with [`interrupt`], and
//! [`harness::interrupted`](crate::harness::interrupted) checks it once for each step before which one can
//! come.
//!
//! Stacks are real ones: loom's threads are coroutines, so switching the stack under one of them is
//! nothing that loom would notice, just as no core does.

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

struct Core {
    number: usize,
    slot: CoreSlot,
    /// Holds a wake until the core parks, and sometimes lets it go for nothing, as `park` may.
    bell: Notify,
    /// Was it notified? Its inter-processor interrupt, which only
    /// [`take_inter_processor_interrupt`] looks at.
    notified: AtomicBool,
    masked: Cell<bool>,
    in_handler: Cell<bool>,
    /// When the alarm comes, or as soon as it can after that; `u64::MAX`: it is not set.
    alarm: Cell<u64>,
    /// How many locks of the kernel's own are held, as [`lock`] counts them.
    locks: Cell<usize>,
    now: Cell<u64>,
}

/// One that has not come yet.
struct Interrupt {
    core: &'static Core,
    /// Which of the model's.
    number: usize,
    /// After how many steps it comes; `None`: it has come while the core was parked, and is masked yet.
    after: Option<usize>,
    arrival: Arrival,
    handler: Box<dyn FnOnce()>,
}

#[derive(Default)]
struct Interrupts {
    /// After how many steps each of the model's comes, in the order in which they are armed.
    after: Vec<usize>,
    /// Which have come between two steps in some run.
    came: Vec<bool>,
    /// How many this run has armed.
    armed: usize,
    coming: Vec<Interrupt>,
}

// Loom runs all threads of a model on the one thread of the test, so these are a model's own. Loom
// does not see them, and nothing that it sees may happen while one is borrowed.
std::thread_local! {
    static CORES: RefCell<Vec<&'static Core>> = const { RefCell::new(Vec::new()) };
    static IN_INTERRUPT: Cell<InInterrupt> = const { Cell::new(InInterrupt::Unknown) };
    static ALARMS: Cell<Alarms> = const { Cell::new(Alarms::Never) };
    /// Until when tasks sleep.
    static DEADLINES: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static INTERRUPTS: RefCell<Interrupts> = RefCell::default();
    static STACKS: RefCell<Vec<Memory>> = const { RefCell::new(Vec::new()) };
}

loom::thread_local! {
    static CORE: &'static Core = {
        let (slot, bell) = (CoreSlot::new(), Notify::new());
        CORES.with(|cores| {
            let notified = AtomicBool::new(false);
            let core = keep(Core {
                number: cores.borrow().len(),
                slot,
                bell,
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
    /// None: handlers of the model's take their place.
    Never,
    /// Those that are set to a time that has passed. No clock runs but by handlers of the model's.
    Passed,
    /// All: where a core parks, its clock goes on to what the alarm is set to.
    All,
}

/// What sleeps until then is asleep, or is not any more.
pub(crate) fn sleeps_until(deadline: u64, is_asleep: bool) {
    DEADLINES.with_borrow_mut(|deadlines| {
        if is_asleep {
            deadlines.push(deadline);
        } else {
            deadlines.retain(|other| *other != deadline);
        }
    });
}

/// Starts a run of a model: no cores yet, and this is what they say of interrupts.
pub(crate) fn reset(in_interrupt: InInterrupt) {
    CORES.with(|cores| cores.borrow_mut().clear());
    IN_INTERRUPT.set(in_interrupt);
    ALARMS.set(Alarms::Never);
    DEADLINES.take();
    INTERRUPTS.with_borrow_mut(|interrupts| interrupts.armed = 0);
}

/// Ends a run: frees the stacks that hold frames for ever. Interrupts that have not come never will.
pub(crate) fn end() {
    INTERRUPTS.with_borrow_mut(|interrupts| interrupts.coming.clear());
    STACKS.take().into_iter().for_each(Memory::free);
}

/// Lets those interrupts come now that are sure to come.
pub(crate) fn sure_interrupts_come() {
    let core = Core::here();
    core.sure_ones_are_due();
    core.take_interrupts();
}

/// In this run, an alarm comes that is set to a time that has passed.
pub(crate) fn alarms_come() {
    ALARMS.set(Alarms::Passed);
}

/// In this run, each alarm comes, when the clock has got there. A core that parks is asked whether its alarm is set
/// for the first that [sleeps](sleeps_until).
pub(crate) fn clock_runs() {
    ALARMS.set(Alarms::All);
}

/// An interrupt of the model's that lets the clock go on to what the alarm is set to, which comes then. Returns
/// whether it is set.
pub(crate) fn time_passes() -> bool {
    let core = Core::here();
    let at = core.alarm.get();
    if at != u64::MAX {
        core.now.set(core.now.get().max(at));
    }
    at != u64::MAX
}

/// Nanoseconds of this core's clock.
pub(crate) fn clock() -> u64 {
    Core::here().now.get()
}

/// Task context, in code that computes for long: lets an alarm come that is set.
///
/// # Panics
///
/// If none is set: the code would compute for ever.
pub(crate) fn compute() {
    assert!(time_passes(), "no alarm is set, so this task keeps the core for ever");
    __trapline_model_step();
}

/// Says after how many steps each interrupt of the model is to come; a panic says it again.
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

/// Whether the interrupt of this number has come between two steps, in any run since this was asked last.
pub(crate) fn take_came(number: usize) -> bool {
    INTERRUPTS.with_borrow_mut(|interrupts| std::mem::take(&mut interrupts.came[number]))
}

/// From now on, the model's next interrupt may come to this core.
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

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It comes at the latest when the core parks.
    Sure,
    /// If the core parks earlier, it never comes.
    Unknown,
}

/// The alarm's handler, when the slice is over.
pub(crate) fn on_timer() {
    let core = Core::here();
    core.now.set(core.now.get() + 1_000_000_000);
    // SAFETY: the end of a handler that a model's interrupt runs, with interrupts masked.
    unsafe { trapline::preempt::on_timer() }
}

/// The end of any other handler, when the running task has had its least stretch.
pub(crate) fn on_interrupt() {
    let core = Core::here();
    core.now.set(core.now.get() + 100_000);
    // SAFETY: as above.
    unsafe { trapline::preempt::on_interrupt() }
}

/// Calls `f` with interrupts masked.
pub(crate) fn masked(f: impl FnOnce()) {
    let outer = MODEL.mask_interrupts();
    f();
    // SAFETY: the pair of the call above.
    unsafe { MODEL.restore_interrupts(outer) };
}

/// Takes one of the kernel's own locks, under which the platform lets nothing be preempted.
pub(crate) fn lock() {
    let locks = &Core::here().locks;
    locks.set(locks.get() + 1);
}

/// Gives it back.
pub(crate) fn unlock() {
    let locks = &Core::here().locks;
    locks.set(locks.get() - 1);
}

/// Panics in a handler, or where one has left interrupts masked.
pub(crate) fn assert_task_context() {
    let core = Core::here();
    assert!(!core.in_handler.get() && !core.masked.get(), "a task is polled in a handler");
}

/// If the core was notified, its interrupt comes now.
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

    /// Returns whether there are any.
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

    /// The next whose time has come.
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

    /// Runs the handlers of those whose time has come. Not masked.
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

    /// Not masked.
    fn handle(&self, handler: impl FnOnce()) {
        let outer = self.in_handler.replace(true);
        self.masked.set(true);
        handler();
        // Unknown others have had the core meanwhile.
        self.in_handler.set(outer);
        self.masked.set(false);
    }
}

/// What was allocated.
#[derive(Clone, Copy)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn free(self) {
        // SAFETY: all that is in a list was allocated with this layout, and is taken out to be freed.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// Takes what starts there out of the list.
fn take_memory(list: &'static LocalKey<RefCell<Vec<Memory>>>, start: NonNull<u8>) -> Memory {
    list.with_borrow_mut(|list| {
        let place = list.iter().position(|memory| memory.start == start);
        list.swap_remove(place.expect("it was allocated and not freed yet"))
    })
}

/// What a model's task panics with where that is part of the model. Every other panic ends the check.
pub(crate) struct Expected;

struct Model;

// SAFETY: `slot` and `core` are a loom thread's own. `now` only goes forward. Handlers are
// called by `take_interrupts` only, which the mask keeps from it. `bell` keeps a wake until the next
// `park` and orders memory; the handlers that a wake causes elsewhere are those that a model arms.
// "No" is said outside of handlers only. `interrupts` is the mask. Nothing that panics can be interrupted before that
// is caught. Stacks come from the
// global allocator, with the alignment that is asked for.
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
        // Alarms come on either side of the setting.
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
                "parks until {alarm}, and not {first:?}"
            );
            if time_passes() {
                return;
            }
        }
        core.bell.wait();
    }

    fn wake(&self, core: usize) {
        let core = CORES.with(|cores| cores.borrow()[core]);
        core.notified.swap(true, AcqRel);
        core.bell.notify();
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
        // SAFETY: `Config` refuses a stack size of zero.
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
