//! What a kernel writes to use Trapline: per-core data, [`Platform`], a heap, and the end of its
//! interrupt handlers.

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;

use trapline::arch::Native;
use trapline::platform::{CoreSlot, InInterrupt, Interrupts, Platform};
use trapline::preempt::{self, NoPreempt, PreemptGuard};
use trapline::time::{sleep, timeout};
use trapline::{JoinHandle, Runtime, stackful};

use crate::machine;

/// How many cores this kernel can use. A core's number is its hart's.
pub const CORES: usize = 4;

/// The data of one core. The register `tp` has its address from boot on.
pub struct Core {
    slot: CoreSlot,
    /// Whether an interrupt handler runs.
    in_handler: AtomicBool,
}

pub static CORE: [Core; CORES] =
    [const { Core { slot: CoreSlot::new(), in_handler: AtomicBool::new(false) } }; CORES];
static RUNTIMES: [Runtime; CORES] = [const { Runtime::new() }; CORES];

trapline::bind_platform!(static KERNEL: Kernel = Kernel);

struct Kernel;

// SAFETY: the promises of the trait, in the order of its list.
// - slot, core: `tp` leads to the core's own element of `CORE`, in every context.
// - A core is a hart, so its number never goes to another thread.
// - now: the machine's clock, the same for all harts, rounded down.
// - The alarm is the hart's timer. `on_trap` acknowledges its interrupt before it calls `on_timer`.
// - Masking is SIE, which covers all interrupts that `on_trap` handles.
// - park: `wfi` ends for an interrupt that is pending and enabled in `sie`, also with SIE clear.
// - wake: a software interrupt by the firmware, whose handler calls `on_interrupt`.
// - in_interrupt: the flag is set for as long as a handler runs on the core.
// - interrupts: SIE, which the hart clears for a trap.
// - may_preempt, may_end: always; a panic masks interrupts first.
// - Stacks are from the heap (the default of `allocate_stack`).
// - Stackful tasks here touch no per-core data.
// - Handlers use no task-locals and leave interrupts masked.
unsafe impl Platform for Kernel {
    type Backend = Native;

    fn slot(&self) -> &'static CoreSlot {
        &machine::this_core().slot
    }

    fn core(&self) -> usize {
        let offset = (&raw const *machine::this_core()).addr() - CORE.as_ptr().addr();
        offset / size_of::<Core>()
    }

    fn now(&self) -> u64 {
        machine::now()
    }

    fn set_alarm(&self, at: u64) {
        machine::set_timer(at);
    }

    fn park(&self) {
        machine::wait_for_interrupt();
    }

    fn wake(&self, core: usize) {
        machine::send_ipi(core);
    }

    fn mask_interrupts(&self) -> usize {
        machine::mask_interrupts()
    }

    unsafe fn restore_interrupts(&self, state: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { machine::restore_interrupts(state) };
    }

    unsafe fn enable_interrupts(&self) {
        machine::this_core().in_handler.store(false, Relaxed);
        // SAFETY: the caller promises that this is task context.
        unsafe { machine::enable_interrupts() };
    }

    // The defaults of the next two are safe, and slower.

    fn interrupts(&self) -> Interrupts {
        if machine::has_interrupts_enabled() { Interrupts::Enabled } else { Interrupts::Masked }
    }

    fn in_interrupt(&self) -> InInterrupt {
        if machine::this_core().in_handler.load(Relaxed) {
            InInterrupt::Yes
        } else {
            InInterrupt::No
        }
    }
}

/// The two interrupts that this kernel has.
pub enum Interrupt {
    Timer,
    Ipi,
}

/// The vector calls it when it has saved the interrupted code's registers on the interrupted stack,
/// with interrupts masked.
pub fn on_interrupt(interrupt: Interrupt) {
    let core = machine::this_core();
    core.in_handler.store(true, Relaxed);
    match interrupt {
        Interrupt::Timer => {
            machine::acknowledge_timer();
            // SAFETY: acknowledged, and what remains is to return; the vector kept its part.
            unsafe { preempt::on_timer() }
        }
        Interrupt::Ipi => {
            machine::acknowledge_ipi();
            // SAFETY: as above.
            unsafe { preempt::on_interrupt() }
        }
    }
    // Other tasks may have had the core in between. A task's stack stays on its core.
    core.in_handler.store(false, Relaxed);
}

/// Every other trap is a bug of this kernel.
pub fn on_fault(cause: usize, pc: usize, address: usize) -> ! {
    panic!("trap {cause:#x} at {pc:#x}, address {address:#x}")
}

/// The boot code calls it on each core, on the core's boot stack.
pub extern "C" fn core_main(core: usize) -> ! {
    static HAS_BOOTED: AtomicBool = AtomicBool::new(false);
    machine::init();
    if !HAS_BOOTED.swap(true, Relaxed) {
        let others = (0..CORES).filter(|&other| other != core && machine::start(other));
        let others: Vec<usize> = others.collect();
        RUNTIMES[core].spawn(program(core, others));
    }
    // SAFETY: the vector is there, and this is task context.
    unsafe { machine::enable_interrupts() };
    match RUNTIMES[core].enter() {
        Err(error) => panic!("{error}"),
    }
}

/// How many tasks compute at this moment.
static HOGS: AtomicUsize = AtomicUsize::new(0);

/// Computes for many milliseconds, and never awaits.
fn compute() -> u64 {
    let sum = (0..3_000_000).map(core::hint::black_box).sum();
    HOGS.fetch_sub(1, Relaxed);
    sum
}

/// Spawns a task on a core that computes, and is preempted.
fn spawn_hog(core: usize) -> JoinHandle<u64> {
    HOGS.fetch_add(1, Relaxed);
    RUNTIMES[core].spawn(stackful(async { compute() }))
}

/// The first task: the program of this kernel.
async fn program(core: usize, others: Vec<usize>) {
    println(format_args!("{} more cores", others.len()));
    let mut tests = Tests { passed: 0, failed: 0 };

    // Two tasks that compute on this core. Beside them, this one is due every millisecond.
    let hogs = [spawn_hog(core), spawn_hog(core)];
    let mut rounds = 0;
    while HOGS.load(Relaxed) != 0 {
        sleep(Duration::from_millis(1)).await;
        rounds += 1;
    }
    let [first, second] = hogs;
    let are_right = first.await.ok() == second.await.ok();
    let preemptions = RUNTIMES[core].stats().preemptions;
    println(format_args!("{rounds} rounds beside two hogs, {preemptions} preemptions"));
    tests.check("hogs_are_preempted", are_right && rounds > 2 && preemptions > 2);

    // One on each of the other cores. Its end wakes this task, by an interrupt.
    let hogs: Vec<_> = others.iter().map(|&core| spawn_hog(core)).collect();
    let mut answers = 0;
    for hog in hogs {
        answers += usize::from(hog.await.is_ok());
    }
    tests.check("every_core_answers", answers == others.len());

    // What does not come in time is dropped.
    let late = timeout(Duration::from_millis(1), sleep(Duration::from_secs(3600))).await;
    tests.check("a_timeout_ends_a_wait", late.is_err());

    println(format_args!("{} passed, {} failed", tests.passed, tests.failed));
    machine::exit(u8::from(tests.failed != 0))
}

/// Counts checks, and prints a line for each.
struct Tests {
    passed: usize,
    failed: usize,
}

impl Tests {
    fn check(&mut self, name: &str, passed: bool) {
        *(if passed { &mut self.passed } else { &mut self.failed }) += 1;
        println(format_args!("test {name} ... {}", if passed { "ok" } else { "FAILED" }));
    }
}

/// A task is not preempted while it holds the heap's lock: the other tasks of its core would wait
/// for the lock, and never let the holder go on.
#[global_allocator]
static HEAP: NoPreempt<Heap> = NoPreempt(Heap::new());

/// A heap that never takes memory back. That is enough for this kernel: Trapline keeps stacks and
/// the memory of finished tasks for new ones.
#[repr(align(4096))]
struct Heap {
    memory: UnsafeCell<[u8; Self::SIZE]>,
    used: spin::Mutex<usize>,
}

impl Heap {
    const SIZE: usize = 1 << 20;

    const fn new() -> Self {
        Self { memory: UnsafeCell::new([0; Self::SIZE]), used: spin::Mutex::new(0) }
    }
}

// SAFETY: `used` says which bytes have been given away, under its lock; the others are not touched.
unsafe impl Sync for Heap {}

// SAFETY: no two blocks overlap, since `used` only grows; each is aligned, as the memory is to a
// page.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut used = self.used.lock();
        let start = used.next_multiple_of(layout.align());
        let end = start.saturating_add(layout.size());
        if end > Self::SIZE || layout.align() > align_of::<Self>() {
            return core::ptr::null_mut();
        }
        *used = end;
        // SAFETY: within the memory.
        unsafe { self.memory.get().cast::<u8>().add(start) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

/// The console, shared by all cores.
static CONSOLE: spin::Mutex<Console> = spin::Mutex::new(Console);

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(machine::put);
        Ok(())
    }
}

fn println(line: fmt::Arguments<'_>) {
    // As for the heap: a lock that tasks of one core share is held with preemption disabled.
    let _guard = PreemptGuard::new();
    let _ = writeln!(CONSOLE.lock(), "{line}");
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    // First, so that the core is not taken from this code. The lock may be this core's already.
    machine::mask_interrupts();
    let _ = match trapline::current() {
        Some(task) => writeln!(Console, "{task}: {info}"),
        None => writeln!(Console, "{info}"),
    };
    machine::exit(101)
}
