//! The parts that are the same on all machines: the per-core data, the platform, the timer's
//! handler, and the checks.

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, UnsafeCell};
use core::fmt::Write;
use core::future::poll_fn;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::task::Poll;
use core::time::Duration;

use atomic_waker::AtomicWaker;
use trapline::arch::Native;
use trapline::platform::{CoreSlot, Platform};
use trapline::preempt::{self, NoPreempt};
use trapline::time::{now, sleep, sleep_until};
use trapline::{Config, Runtime, block_on, spawn, stackful};

use crate::machine;

/// The per-core data of the only core. The per-core register points to it from boot on.
#[repr(C)]
pub struct Cpu {
    /// A pointer to this struct, for machines on which the per-core register can be used but not
    /// read.
    pub this: &'static Cpu,
    /// A number that no other data has in this place.
    magic: u64,
    slot: CoreSlot,
    /// Whether [`Platform::wake`] has made the timer fire.
    kicked: AtomicBool,
}

pub static CPU: Cpu =
    Cpu { this: &CPU, magic: MAGIC, slot: CoreSlot::new(), kicked: AtomicBool::new(false) };

const MAGIC: u64 = 0x6f77_6e20_7665_6374;

impl Cpu {
    /// Returns the per-core data of the calling core. Each call checks the per-core register.
    fn here() -> &'static Self {
        let cpu = machine::cpu();
        // SAFETY: if the pointer is not that of `CPU`, the access faults or reads another number
        // than the magic one. Either fails the test.
        let cpu = unsafe { &*cpu };
        assert!(cpu.magic == MAGIC, "the per-core register was overwritten");
        cpu
    }
}

struct Kernel;

trapline::bind_platform!(static PLATFORM: Kernel = Kernel);

// SAFETY: for each promise of the trait, in its order:
// - slot, core: there is one core.
// - now: the machine's clock, rounded down.
// - set_alarm: the alarm is the core's timer, whose interrupt is acknowledged before `on_timer` is
//   called.
// - mask_interrupts: the machines mask all interrupts that they have.
// - park: a machine's `wait` ends for an interrupt that is pending, and a `wake` has made one
//   pending.
// - wake: it makes the timer fire, and `set_alarm` sets no other time until it has fired.
// - in_interrupt: the default answer, "unknown", is always right.
// - interrupts: the default answer, "unknown", is always right.
// - may_preempt: true while no lock is held that the kernel counts by itself. A panic ends the
//   machine.
// - The stacks come from the heap.
// - The stackful tasks of this kernel touch only per-core data that never changes.
// - The handler leaves interrupts masked.
unsafe impl Platform for Kernel {
    type Backend = Native;

    fn slot(&self) -> &'static CoreSlot {
        &Cpu::here().slot
    }

    fn core(&self) -> usize {
        0
    }

    fn now(&self) -> u64 {
        machine::now()
    }

    fn set_alarm(&self, at: u64) {
        if TICKING.load(Relaxed) {
            return;
        }
        let interrupts = machine::mask();
        machine::set_timer(if Cpu::here().kicked.load(Relaxed) { 0 } else { at });
        // SAFETY: pairs with the call of `mask` above.
        unsafe { machine::restore(interrupts) };
    }

    fn park(&self) {
        machine::wait();
    }

    fn wake(&self, _: usize) {
        if TICKING.load(Relaxed) {
            return;
        }
        let interrupts = machine::mask();
        Cpu::here().kicked.store(true, Relaxed);
        machine::set_timer(0);
        // SAFETY: pairs with the call of `mask` above.
        unsafe { machine::restore(interrupts) };
    }

    fn mask_interrupts(&self) -> usize {
        machine::mask()
    }

    unsafe fn restore_interrupts(&self, state: usize) {
        // SAFETY: the caller promises that `state` comes from `mask_interrupts`, which is `mask`.
        unsafe { machine::restore(state) };
    }

    unsafe fn enable_interrupts(&self) {
        // SAFETY: the caller promises that interrupts may come now.
        unsafe { machine::enable() };
    }

    fn may_preempt(&self) -> bool {
        LOCKS.load(Relaxed) == 0
    }
}

/// How many of the kernel's locks are held, in the manner of a kernel that had a preempt count of
/// its own before it had Trapline. It counts the locks of the running task, and is zero whenever
/// that task leaves the core.
static LOCKS: AtomicUsize = AtomicUsize::new(0);
/// Whether the timer ticks by itself: [`Platform::set_alarm`] and [`Platform::wake`] then do
/// nothing.
static TICKING: AtomicBool = AtomicBool::new(false);

/// How many times the timer has fired by itself, without those that `wake` caused.
static TICKS: AtomicU64 = AtomicU64::new(0);
/// When the periodic task is due; when the handler first saw that it is due; and how many
/// preemptions there had been by then.
static DUE: AtomicU64 = AtomicU64::new(u64::MAX);
static SEEN_AT: AtomicU64 = AtomicU64::new(0);
static SEEN_PREEMPTIONS: AtomicU64 = AtomicU64::new(0);
/// The waker of the task that the handler wakes.
static LISTENER: AtomicWaker = AtomicWaker::new();

/// Handles the timer's interrupt. The machine's vector has saved, on the interrupted stack, the
/// registers that a call does not preserve, and has acknowledged the interrupt. Interrupts are
/// masked.
pub fn on_timer_interrupt() {
    look_for_others_own();
    if TICKING.load(Relaxed) {
        machine::set_timer(machine::now() + TICK.as_nanos() as u64);
    }
    if !Cpu::here().kicked.swap(false, Relaxed) {
        TICKS.store(TICKS.load(Relaxed) + 1, Relaxed);
        LISTENER.wake();
    }
    let now = machine::now();
    if now >= DUE.load(Relaxed) && SEEN_AT.load(Relaxed) == 0 {
        SEEN_AT.store(now, Relaxed);
        SEEN_PREEMPTIONS.store(RUNTIME.stats().preemptions, Relaxed);
    }
    // This call is all that Trapline needs in a kernel's vector.
    // SAFETY: this is the handler of the alarm, which only returns after this call, with interrupts
    // masked. It runs on the interrupted stack. Functions that use the registers that the vector
    // has not saved save them on the same stack.
    unsafe { preempt::on_timer() };
    // Other tasks may have had the core during the call.
    Cpu::here();
    look_for_others_own();
}

/// Whether a setting of other code was found in code that had not made it.
static STRANGE: AtomicBool = AtomicBool::new(false);

/// Sets `STRANGE` if the core has a setting that only other code makes.
fn look_for_others_own() {
    if machine::sees_others_own() {
        STRANGE.store(true, Relaxed);
    }
}

/// Ends the machine: any other trap is a mistake. The arguments are what the machine reports of it.
pub extern "C" fn on_fault(cause: usize, pc: usize, address: usize) -> ! {
    fail(format_args!("unexpected trap: cause {cause:#x} at {pc:#x}, address {address:#x}"))
}

const SLICE: Duration = Duration::from_micros(500);
const TICK: Duration = Duration::from_micros(250);
const PERIOD: Duration = Duration::from_millis(1);
const ROUNDS: u64 = 200;
/// The minimal number of preemptions and of wakes. (On a busy host, some of them coincide.)
const LEAST: u64 = ROUNDS / 2;
/// How many rounds each hog does at least.
const HOG_ROUNDS: u64 = 20;
/// How far a hog counts in a round, which takes longer than a slice.
const HOLD: usize = 1_000_000;

static RUNTIME: Runtime = Runtime::with_config(Config { slice: SLICE, ..Config::new() });
/// Whether the periodic task has done all its rounds, which ends the hogs.
static DONE: AtomicBool = AtomicBool::new(false);
/// The hog that completed the latest round, and how many times that was another one than before.
static LAST_HOG: AtomicUsize = AtomicUsize::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);

/// Runs the checks. The boot code calls this on the boot stack, with the per-core register set.
pub extern "C" fn main() -> ! {
    machine::init();
    let before = machine::system_registers();
    // SAFETY: the vector is installed, and no code expects interrupts to be masked.
    unsafe { machine::enable() };
    let Ok(seen) = RUNTIME.run_until(run()) else { fail(format_args!("no runtime")) };
    let Ok(pending_comes) = RUNTIME.run_until(hold_locks()) else {
        fail(format_args!("no runtime"))
    };
    TICKING.store(true, Relaxed);
    machine::set_timer(machine::now());
    let Ok(ticked) = RUNTIME.run_until(tick()) else { fail(format_args!("no runtime")) };
    let after = machine::system_registers();

    let stats = RUNTIME.stats();
    let mut late = seen.late;
    late.sort_unstable();
    let (median, most) = (late[late.len() / 2], late[late.len() - 1]);
    let (preemptions, turns) = (stats.preemptions, TURNS.load(Relaxed));
    say(format_args!(
        "{median} ns from the timer to the task, at most {most}; {preemptions} preemptions, \
         {turns} turns, {} parks\n",
        stats.parks
    ));
    let tests = [
        // When the periodic task is due, the running hog is preempted, and no other task has the
        // core first. By the clock this is demanded of half of the rounds only: where the clock
        // does not count instructions, a busy host stops the machine at times.
        ("nothing_is_late", seen.most_slices <= 1 && u128::from(median) < SLICE.as_nanos()),
        ("hogs_are_preempted_and_take_turns", preemptions >= LEAST && turns >= HOG_ROUNDS / 2),
        ("preempted_tasks_keep_their_registers", seen.intact),
        ("what_code_set_for_itself_is_nobody_elses", !STRANGE.load(Relaxed)),
        ("the_handler_wakes", seen.heard >= LEAST && stats.parks > 0),
        ("what_a_lock_of_the_kernels_holds_up_is_owed", pending_comes),
        ("a_tick_is_enough", ticked),
        ("vector_and_registers_stay_the_kernels", before == after),
    ];
    let failed = tests.iter().filter(|(_, passed)| !passed).count();
    for (name, passed) in tests {
        say(format_args!("test {name} ... {}\n", if passed { "ok" } else { "FAILED" }));
    }
    if before != after {
        say(format_args!("before {before:x?}\nafter  {after:x?}\n"));
    }
    say(format_args!("{} passed, {failed} failed\n", tests.len() - failed));
    machine::exit(if failed == 0 { 0 } else { 1 })
}

/// The results of the checks.
struct Seen {
    /// How many nanoseconds after the timer's interrupt the periodic task ran, for each round, and
    /// after how many preemptions at most.
    late: Vec<u64>,
    most_slices: u64,
    /// Whether all tasks have kept their registers.
    intact: bool,
    /// How many wakes of the handler the listener has seen.
    heard: u64,
}

/// Runs the periodic task beside two hogs, a task that blocks, and a listener.
async fn run() -> Seen {
    let listener = spawn(listen());
    let hogs = [0x1111_0000, 0x2222_0000].map(|seed| spawn(stackful(hog(seed))));
    let blocking = spawn(stackful(block()));
    let (late, most_slices) = spawn(periodic()).await.expect("the periodic task is not aborted");
    DONE.store(true, Relaxed);
    let mut intact = blocking.await.expect("the blocking task is not aborted");
    for hog in hogs {
        intact &= hog.await.expect("no hog is aborted");
    }
    // No task computes any more, so the core parks, and the handler's wakes come while it is
    // parked.
    for _ in 0..10 {
        sleep(PERIOD).await;
        Cpu::here();
    }
    listener.abort();
    Seen { late, most_slices, intact, heard: HEARD.load(Relaxed) }
}

/// Sleeps [`ROUNDS`] times, and returns how late it ran.
async fn periodic() -> (Vec<u64>, u64) {
    let mut late = Vec::with_capacity(ROUNDS as usize);
    let mut most_slices = 0;
    for _ in 0..ROUNDS {
        let due = now() + PERIOD;
        SEEN_AT.store(0, Relaxed);
        DUE.store(due.as_nanos(), Relaxed);
        sleep_until(due).await;
        Cpu::here();
        look_for_others_own();
        DUE.store(u64::MAX, Relaxed);
        // If no interrupt has seen the due time, the loop has: it reads the clock itself.
        let (mut nanoseconds, mut slices) = (0, 0);
        if SEEN_AT.load(Relaxed) != 0 {
            nanoseconds = now().as_nanos() - SEEN_AT.load(Relaxed);
            slices = RUNTIME.stats().preemptions - SEEN_PREEMPTIONS.load(Relaxed);
        }
        late.push(nanoseconds);
        most_slices = most_slices.max(slices);
    }
    (late, most_slices)
}

/// Computes in all registers without ever awaiting, until `DONE` is set. Returns whether the
/// registers kept their values.
async fn hog(seed: usize) -> bool {
    let (mut intact, mut rounds) = (true, 0);
    while !DONE.load(Relaxed) || rounds < HOG_ROUNDS {
        // SAFETY: the function only counts, and restores the registers that a callee preserves.
        intact &= unsafe { machine::hold(seed, HOLD) } == 0;
        // SAFETY: as above.
        intact &= unsafe { machine::hold_own(HOLD) } == 0;
        look_for_others_own();
        rounds += 1;
        Cpu::here();
        if LAST_HOG.swap(seed, Relaxed) != seed {
            TURNS.fetch_add(1, Relaxed);
        }
    }
    intact
}

/// Blocks in `block_on` on a stack again and again, and computes in between. Returns whether the
/// registers kept their values.
async fn block() -> bool {
    let mut intact = true;
    for _ in 0..50 {
        block_on(sleep(PERIOD));
        Cpu::here();
        // SAFETY: as in `hog`.
        intact &= unsafe { machine::hold(0x3333_0000, HOLD / 10) } == 0;
    }
    intact
}

/// Runs two tasks that hold a lock of the kernel whenever a slice ends. Returns whether neither
/// left the core under its lock, and each other task had the core right after the lock was
/// released.
async fn hold_locks() -> bool {
    let tasks = [0x1111_0000, 0x2222_0000].map(|me| {
        spawn(stackful(async move {
            let mut right = true;
            for _ in 0..20 {
                LOCKS.store(1, Relaxed);
                let before = RUNTIME.stats().preemptions;
                let ticks = TICKS.load(Relaxed);
                LAST_HOG.store(me, Relaxed);
                // The slice ends in this loop.
                while TICKS.load(Relaxed) < ticks + 3 {
                    core::hint::spin_loop();
                }
                right &= RUNTIME.stats().preemptions == before && LAST_HOG.load(Relaxed) == me;
                LOCKS.store(0, Relaxed);
                preempt::point();
                let ticks = TICKS.load(Relaxed);
                loop {
                    // The ticks are read before the preemptions, since other tasks may have the
                    // core in between.
                    let seen = TICKS.load(Relaxed);
                    if RUNTIME.stats().preemptions != before {
                        break;
                    }
                    // The alarm that the point has set came, and did not preempt this task.
                    if seen > ticks + 1 {
                        return false;
                    }
                }
            }
            right
        }))
    });
    let mut right = true;
    for task in tasks {
        right &= task.await.expect("no task is aborted");
    }
    right
}

/// Checks a timer that ticks by itself: sleepers wake beside tasks that compute, these tasks take
/// turns, and a task that an interrupt wakes runs.
async fn tick() -> bool {
    DONE.store(false, Relaxed);
    let (preemptions, turns) = (RUNTIME.stats().preemptions, TURNS.load(Relaxed));
    let heard = HEARD.load(Relaxed);
    let listener = spawn(listen());
    let hogs = [0x1111_0000, 0x2222_0000].map(|seed| spawn(stackful(hog(seed))));
    for _ in 0..20 {
        sleep(PERIOD).await;
    }
    DONE.store(true, Relaxed);
    let mut intact = true;
    for hog in hogs {
        intact &= hog.await.expect("no hog is aborted");
    }
    // When no task computes, the core parks.
    let parks = RUNTIME.stats().parks;
    sleep(PERIOD).await;
    listener.abort();
    intact
        && RUNTIME.stats().parks > parks
        && RUNTIME.stats().preemptions >= preemptions + 20
        && TURNS.load(Relaxed) >= turns + HOG_ROUNDS / 2
        && HEARD.load(Relaxed) > heard + 20
}

/// How many wakes of the timer's handler [`listen`] has counted.
static HEARD: AtomicU64 = AtomicU64::new(0);

/// Counts how many times the timer's handler woke this task.
async fn listen() {
    let mut ticks = 0;
    poll_fn(|context| {
        Cpu::here();
        LISTENER.register(context.waker());
        let now = TICKS.load(Relaxed);
        if now != ticks {
            ticks = now;
            HEARD.fetch_add(1, Relaxed);
        }
        Poll::Pending
    })
    .await
}

/// A heap that never reuses memory.
#[repr(align(4096))]
struct Heap {
    memory: UnsafeCell<[u8; Self::SIZE]>,
    used: Cell<usize>,
}

impl Heap {
    const SIZE: usize = 1 << 20;
}

#[global_allocator]
static HEAP: NoPreempt<Heap> =
    NoPreempt(Heap { memory: UnsafeCell::new([0; Heap::SIZE]), used: Cell::new(0) });

// SAFETY: there is one core, its handler does not allocate, and `NoPreempt` keeps other tasks from
// the core during a call.
unsafe impl Sync for Heap {}

// SAFETY: no two blocks overlap, since `used` only grows. Each block is aligned, since the heap is
// aligned to a page.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.used.get().next_multiple_of(layout.align());
        let end = start.saturating_add(layout.size());
        if end > Self::SIZE || layout.align() > align_of::<Self>() {
            return core::ptr::null_mut();
        }
        self.used.set(end);
        // SAFETY: the block ends within the heap.
        unsafe { self.memory.get().cast::<u8>().add(start) }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        text.bytes().for_each(machine::put);
        Ok(())
    }
}

/// Prints to the console.
fn say(words: core::fmt::Arguments<'_>) {
    let _ = Console.write_fmt(words);
}

/// Prints why the test fails, and ends the machine.
fn fail(why: core::fmt::Arguments<'_>) -> ! {
    machine::mask();
    say(format_args!("\n{why}\n"));
    machine::exit(101)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
