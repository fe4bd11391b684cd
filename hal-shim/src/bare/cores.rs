//! Cores: the data of each, the way from its boot stack to its programs, and its traps.

use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use trapline::arch::{MIN_EMERGENCY_STACK, TrapContext, TrapCore, install_trap_entry};
use trapline::platform::{CoreSlot, Platform as _};
use trapline::preempt;
use trapline::trap::Trap;

use super::{Machine, Processor as _, fail, paging};
use crate::machine::{self, Cpu};
use crate::{StartError, heap, interrupt};

/// How many cores can be used.
const MAX_CORES: usize = 64;

pub(crate) static CORES: [Core; MAX_CORES] = [const { Core::new() }; MAX_CORES];
static HOW_MANY: AtomicUsize = AtomicUsize::new(1);

/// The size of a boot stack, which the linker script repeats for core 0.
const BOOT_STACK: usize = 64 * 1024;
/// The size of the stack on which a core runs its programs.
const STACK: usize = 64 * 1024;

const _: () = assert!(BOOT_STACK >= MIN_EMERGENCY_STACK);

unsafe extern "Rust" {
    /// `entry!` defines it.
    safe fn __hal_shim_program();
}

unsafe extern "C" {
    /// The end of core 0's boot stack, from the linker script.
    static __boot_stack_top: [u8; 0];
}

/// A core. The per-core register of each has the address of its `Core`.
#[repr(C, align(64))]
pub(crate) struct Core {
    /// The trap entry's data. The first field, since x86_64's entry expects it there.
    pub(crate) trap: TrapCore,
    /// The address of this `Core`, for processors whose per-core register can address memory, but
    /// is slow to read.
    pub(crate) this: AtomicUsize,
    /// The end of the stack that it boots on, which later is its emergency stack. 0: it has none
    /// yet.
    pub(crate) boot_stack_top: AtomicUsize,
    /// The number that the machine knows it by.
    pub(crate) id: AtomicUsize,
    /// The `fn()` that it runs next, or null.
    program: AtomicPtr<()>,
    /// Set from when a program is given to it until that has returned. (Never set for core 0.)
    is_started: AtomicBool,
    /// It has booted, and waits for a program or runs one.
    pub(crate) is_up: AtomicBool,
    /// Only this core uses it: how many more allocations it is granted.
    pub(super) allowance: AtomicUsize,
    pub(crate) slot: CoreSlot,
    /// Only this core uses it: whether a trap handler runs.
    pub(crate) in_interrupt: AtomicBool,
    /// Only this core uses it: whether the program has raised the software interrupt. A wake may
    /// have caused it as well.
    is_raised: AtomicBool,
    /// 1: an IPI was sent that has not been handled yet. A word, as not all processors swap bytes.
    pub(crate) is_notified: AtomicUsize,
}

impl Core {
    const fn new() -> Self {
        Self {
            trap: TrapCore::new(),
            this: AtomicUsize::new(0),
            boot_stack_top: AtomicUsize::new(0),
            id: AtomicUsize::new(0),
            program: AtomicPtr::new(core::ptr::null_mut()),
            is_started: AtomicBool::new(false),
            is_up: AtomicBool::new(false),
            allowance: AtomicUsize::new(heap::UNLIMITED),
            slot: CoreSlot::new(),
            in_interrupt: AtomicBool::new(false),
            is_raised: AtomicBool::new(false),
            is_notified: AtomicUsize::new(0),
        }
    }

    /// The calling core.
    #[inline]
    pub(crate) fn here() -> &'static Self {
        let core: *const Self = Cpu::this_core().cast();
        // SAFETY: the boot code of each core sets the register to the address of an element of
        // CORES, before it calls Rust code that gets here, and no code changes it.
        unsafe { &*core }
    }

    #[inline]
    pub(crate) fn number(&self) -> usize {
        (core::ptr::from_ref(self).addr() - CORES.as_ptr().addr()) / size_of::<Self>()
    }

    pub(super) fn boot_stack(&self) -> Range<usize> {
        let top = self.boot_stack_top.load(Ordering::Relaxed);
        top - BOOT_STACK..top
    }

    /// Raises the software interrupt on the calling core.
    pub(super) fn raise(&self) {
        self.is_raised.store(true, Ordering::Relaxed);
        Cpu::notify(self);
        let are_enabled = {
            let state = Machine.mask_interrupts();
            // SAFETY: `state` is from the call above.
            unsafe { Machine.restore_interrupts(state) };
            state != 0
        };
        // On some machines the interrupt comes a few instructions later.
        while are_enabled && self.is_raised.load(Ordering::Relaxed) {
            core::hint::spin_loop();
        }
    }

    /// Sends the core an IPI, unless an earlier one has not been handled yet.
    pub(crate) fn wake(&self) {
        // Release: the handler sees what was written before.
        if self.is_notified.swap(1, Ordering::AcqRel) == 0 {
            Cpu::notify(self);
        }
    }
}

pub(crate) fn cores() -> usize {
    HOW_MANY.load(Ordering::Relaxed)
}

/// Sets the number of cores. Called by core 0, before it starts others.
pub(crate) fn set_cores(cores: usize) {
    HOW_MANY.store(cores.clamp(1, MAX_CORES), Ordering::Relaxed);
}

/// Runs the program. Called by core 0 when the heap and the kernel's map are ready.
pub(crate) fn main() -> ! {
    CORES[0].boot_stack_top.store((&raw const __boot_stack_top).addr(), Ordering::Relaxed);
    leave_boot_stack(|| {
        init();
        __hal_shim_program();
        machine::exit(0)
    })
}

/// Runs the programs that are given to this core. Called by other cores when the kernel's map is
/// loaded.
pub(crate) fn main_other() -> ! {
    leave_boot_stack(|| {
        init();
        // Release pairs with the acquire in `start_core`: after it, nothing frees this core's boot
        // stack.
        Core::here().is_up.store(true, Ordering::Release);
        loop {
            run_program();
        }
    })
}

fn leave_boot_stack(main: fn() -> !) -> ! {
    match trapline::stackful::leave_boot_stack(STACK, main) {
        Err(error) => fail(format_args!("{error}")),
    }
}

/// Sets up the calling core's traps and enables interrupts.
fn init() {
    let core = Core::here();
    let emergency_stack = core::ptr::with_exposed_provenance_mut(core.boot_stack().start);
    let Some(emergency_stack) = NonNull::new(emergency_stack) else {
        fail(format_args!("a boot stack at address 0"))
    };
    let emergency_stack = NonNull::slice_from_raw_parts(emergency_stack, BOOT_STACK);
    // SAFETY: the machines boot into the mode that the entry is for. Stacks have a guard below. The
    // boot stack is this core's, and was left for ever by `leave_boot_stack`. `on_trap` returns
    // with interrupts masked.
    unsafe { install_trap_entry(&core.trap, emergency_stack, on_trap) };
    // An earlier IPI has no effect any more.
    core.is_notified.store(0, Ordering::Relaxed);
    machine::init_core();
    // SAFETY: no code has masked interrupts on purpose, and their handlers are installed.
    unsafe { Machine.enable_interrupts() };
}

/// Runs the program that `start_core` has given to this core, or waits for an interrupt.
fn run_program() {
    let core = Core::here();
    let program = interrupt::masked(|| {
        // Acquire pairs with the release in `start_core`.
        let program = core.program.swap(core::ptr::null_mut(), Ordering::Acquire);
        if program.is_null() {
            Machine.park();
        }
        program
    });
    if !program.is_null() {
        // SAFETY: `start_core` stored a `fn()` there.
        let program = unsafe { core::mem::transmute::<*mut (), fn()>(program) };
        program();
        // Release: the code that starts the next program sees what this one did.
        core.is_started.store(false, Ordering::Release);
    }
}

pub(crate) fn start_core(number: usize, program: fn()) -> Result<(), StartError> {
    const LAYOUT: Layout = match Layout::from_size_align(BOOT_STACK, 16) {
        Ok(layout) => layout,
        Err(_) => panic!("a size and an alignment that are valid"),
    };
    let core = CORES.get(..cores()).and_then(|cores| cores.get(number));
    let core = core.ok_or(StartError::NoSuchCore)?;
    if number == 0 || core.is_started.swap(true, Ordering::Acquire) {
        return Err(StartError::Running);
    }
    // Release pairs with the acquire in `run_program`.
    core.program.store(program as *mut (), Ordering::Release);
    // Acquire pairs with the release in `main_other`.
    if core.is_up.load(Ordering::Acquire) {
        core.wake();
        return Ok(());
    }
    // SAFETY: the size is not zero.
    let stack = unsafe { alloc::alloc::alloc(LAYOUT) };
    let started = if stack.is_null() {
        Err(StartError::OutOfMemory)
    } else {
        core.boot_stack_top.store(stack.expose_provenance() + BOOT_STACK, Ordering::Relaxed);
        machine::bring_up(core).map_err(|error| {
            // SAFETY: allocated above with this layout; the machine says that the core doesn't run.
            unsafe { alloc::alloc::dealloc(stack, LAYOUT) };
            StartError::Refused(error)
        })
    };
    if started.is_err() {
        core.is_started.store(false, Ordering::Release);
    }
    started
}

/// Handles all traps in kernel mode, and interrupts in user mode. Called with interrupts masked.
fn on_trap(context: &mut TrapContext) {
    let core = Core::here();
    // The trap may have interrupted a handler, whose `InterruptGuard` then forbids to leave it.
    let outer = core.in_interrupt.load(Ordering::Relaxed);
    core.in_interrupt.store(true, Ordering::Relaxed);
    match context.trap() {
        Trap::Timer => {
            Cpu::acknowledge_alarm();
            // SAFETY: the interrupt is acknowledged, and the handler only returns after this.
            unsafe { preempt::on_timer() };
        }
        Trap::Interrupt(Cpu::SOFT) => {
            // Before the flags are read: a wake or raise from here on causes another interrupt.
            Cpu::acknowledge_soft();
            // Acquire: when the runtime reads its inbox, it sees what was written before a wake.
            core.is_notified.swap(0, Ordering::AcqRel);
            if core.is_raised.load(Ordering::Relaxed) {
                core.is_raised.store(false, Ordering::Relaxed);
                interrupt::handle();
            }
            // SAFETY: as above.
            unsafe { preempt::on_interrupt() };
        }
        other => on_fault(context, other, outer),
    }
    core.in_interrupt.store(outer, Ordering::Relaxed);
    Cpu::before_return(context);
}

/// Handles a fault, an NMI, or any other trap. `in_handler`: it came in a trap handler.
#[cold]
fn on_fault(context: &mut TrapContext, trap: Trap, in_handler: bool) {
    if Cpu::is_spurious(trap) || paging::is_stale(trap) {
        return;
    }
    let is_overflow = context.is_overflow();
    if is_overflow && !in_handler {
        Cpu::after_overflow();
    }
    // A handler that overflows the stack, as it needs more than HANDLER_STACK, may hold locks. So
    // it isn't safe to end only its task.
    if is_overflow && in_handler || !crate::trap::handle(context) {
        fail(format_args!(
            "core {}: {}: {trap:x?} at {:#x}, sp {:#x}",
            Core::here().number(),
            if is_overflow { "a stack has overflowed" } else { "unexpected trap" },
            context.pc(),
            context.sp(),
        ));
    }
}
