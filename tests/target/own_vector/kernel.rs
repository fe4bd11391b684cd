//! What is the same on all machines: the per-core data, the platform, the timer's handler, and what is
//! checked.

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

/// The core's own data, to which the per-core register points from boot on.
#[repr(C)]
pub struct Cpu {
    /// For a register that can be used, but not read.
    pub this: &'static Cpu,
    /// What nothing else has in its place.
    magic: u64,
    slot: CoreSlot,
    /// The timer was made to fire by [`Platform::wake`].
    kicked: AtomicBool,
}

pub static CPU: Cpu =
    Cpu { this: &CPU, magic: MAGIC, slot: CoreSlot::new(), kicked: AtomicBool::new(false) };

const MAGIC: u64 = 0x6f77_6e20_7665_6374;

impl Cpu {
    /// The core that calls. Whoever calls this, anywhere, checks the register.
    fn here() -> &'static Self {
        let cpu = machine::cpu();
        // SAFETY: if this is not CPU, it leads to a fault or to something else than the magic number, and
        // either fails the test.
        let cpu = unsafe { &*cpu };
        assert!(cpu.magic == MAGIC, "the per-core register is not the kernel's");
        cpu
    }
}

struct Kernel;

trapline::bind_platform!(static PLATFORM: Kernel = Kernel);

// SAFETY: the trait's list, in its order.
// - There is one core.
// - now: the machine's clock, rounded down.
// - The alarm is the core's timer, whose interrupt is acknowledged before `on_timer` is called.
// - The machines mask what interrupts they have.
// - park: a machine's `wait` ends for an interrupt that is pending, and a `wake` has made one pending.
// - wake: makes the timer fire, and no alarm takes its place until it has.
// - in_interrupt: the answer that is always right, "perhaps".
// - interrupts: the answer that is always right, "unknown".
// - may_preempt: while no lock is held that counts by itself; a panic ends the machine.
// - Stacks are from the heap.
// - Stackful tasks here touch no per-core data but what never changes.
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
        // SAFETY: the pair of the call above.
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
        // SAFETY: the pair of the call above.
        unsafe { machine::restore(interrupts) };
    }

    fn mask_interrupts(&self) -> usize {
        machine::mask()
    }

    unsafe fn restore_interrupts(&self, state: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { machine::restore(state) };
    }

    unsafe fn enable_interrupts(&self) {
        // SAFETY: the caller promises that this is the time.
        unsafe { machine::enable() };
    }

    fn may_preempt(&self) -> bool {
        LOCKS.load(Relaxed) == 0
    }
}

/// How many locks of the kernel's own are held, as a kernel counts that has had its own count before it had
/// Trapline. Of the running task's: it is zero whenever that leaves the core.
static LOCKS: AtomicUsize = AtomicUsize::new(0);
/// The timer ticks by itself: [`Platform::set_alarm`] and [`Platform::wake`] do nothing.
static TICKING: AtomicBool = AtomicBool::new(false);

/// How often the timer fired, not counting kicks.
static TICKS: AtomicU64 = AtomicU64::new(0);
/// When the periodic task wants to run; when the handler first saw that it's time; and how many preemptions
/// there had been by then.
static DUE: AtomicU64 = AtomicU64::new(u64::MAX);
static SEEN_AT: AtomicU64 = AtomicU64::new(0);
static SEEN_PREEMPTIONS: AtomicU64 = AtomicU64::new(0);
/// Whoever wants to be woken by the handler.
static LISTENER: AtomicWaker = AtomicWaker::new();

/// The handler of the timer. The machine's vector has saved, on the interrupted stack, the registers that a
/// call doesn't preserve, and has acknowledged the interrupt; interrupts are masked.
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
    // This is all that Trapline wants of a kernel's vector.
    // SAFETY: the handler of the alarm, which remains to return, with interrupts masked. What the vector
    // hasn't saved of the interrupted code's registers, functions save that use them, on the same stack.
    unsafe { preempt::on_timer() };
    // Others may have had the core in between.
    Cpu::here();
    look_for_others_own();
}

/// Something was found set that other code had set for itself.
static STRANGE: AtomicBool = AtomicBool::new(false);

fn look_for_others_own() {
    if machine::sees_others_own() {
        STRANGE.store(true, Relaxed);
    }
}

/// Any other trap is a mistake. The machine says what it knows of it.
pub extern "C" fn on_fault(cause: usize, pc: usize, address: usize) -> ! {
    fail(format_args!("unexpected trap: cause {cause:#x} at {pc:#x}, address {address:#x}"))
}

const SLICE: Duration = Duration::from_micros(500);
const TICK: Duration = Duration::from_micros(250);
const PERIOD: Duration = Duration::from_millis(1);
const ROUNDS: u64 = 200;
/// How many preemptions and wakes there are at least. (Under a busy host, some fall together.)
const LEAST: u64 = ROUNDS / 2;
/// How often each hog looks around at least.
const HOG_ROUNDS: u64 = 20;
/// A hog looks around after having counted so far, which takes longer than a slice.
const HOLD: usize = 1_000_000;

static RUNTIME: Runtime = Runtime::with_config(Config { slice: SLICE, ..Config::new() });
/// The periodic task has done all its rounds.
static DONE: AtomicBool = AtomicBool::new(false);
/// The hog that looked around last, and how often it was another one than before.
static LAST_HOG: AtomicUsize = AtomicUsize::new(0);
static TURNS: AtomicU64 = AtomicU64::new(0);

/// The boot code calls it, on the boot stack, with the per-core register set.
pub extern "C" fn main() -> ! {
    machine::init();
    let before = machine::system_registers();
    // SAFETY: the vector is there, and nothing is masked on purpose.
    unsafe { machine::enable() };
    let Ok(seen) = RUNTIME.run_until(run()) else { fail(format_args!("no runtime")) };
    let Ok(owed) = RUNTIME.run_until(hold_locks()) else { fail(format_args!("no runtime")) };
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
        "{median} ns from the timer to the task, at most {most}; {preemptions} preemptions, {turns} turns, {} parks\n",
        stats.parks
    ));
    let tests = [
        // The hog that has the core is preempted, and nobody else's turn comes before. By the clock only half of
        // the times: where it doesn't count instructions, a busy host makes the machine wait in between.
        ("nothing_is_late", seen.most_slices <= 1 && u128::from(median) < SLICE.as_nanos()),
        ("hogs_are_preempted_and_take_turns", preemptions >= LEAST && turns >= HOG_ROUNDS / 2),
        ("preempted_tasks_keep_their_registers", seen.intact),
        ("what_code_set_for_itself_is_nobody_elses", !STRANGE.load(Relaxed)),
        ("the_handler_wakes", seen.heard >= LEAST && stats.parks > 0),
        ("what_a_lock_of_the_kernels_holds_up_is_owed", owed),
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

/// What the tasks saw.
struct Seen {
    /// How many nanoseconds after the timer's interrupt the periodic task ran, each time, and after how
    /// many preemptions at most.
    late: Vec<u64>,
    most_slices: u64,
    /// No task has lost a register.
    intact: bool,
    /// How often the handler's wake was heard.
    heard: u64,
}

async fn run() -> Seen {
    let listener = spawn(listen());
    let hogs = [0x1111_0000, 0x2222_0000].map(|seed| spawn(stackful(hog(seed))));
    let blocking = spawn(stackful(block()));
    let (late, most_slices) = spawn(periodic()).await.expect("nobody aborts it");
    DONE.store(true, Relaxed);
    let mut intact = blocking.await.expect("nobody aborts it");
    for hog in hogs {
        intact &= hog.await.expect("nobody aborts a hog");
    }
    // Nothing else computes any more, so the core parks, and the handler's wake finds it so.
    for _ in 0..10 {
        sleep(PERIOD).await;
        Cpu::here();
    }
    listener.abort();
    Seen { late, most_slices, intact, heard: HEARD.load(Relaxed) }
}

/// Sleeps, [`ROUNDS`] times, and looks how late it runs.
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
        // If no interrupt has seen it: the loop has, which looked at the clock.
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

/// Computes without ever awaiting, in all registers, until it is told to end. Returns whether they kept
/// their values.
async fn hog(seed: usize) -> bool {
    let (mut intact, mut rounds) = (true, 0);
    while !DONE.load(Relaxed) || rounds < HOG_ROUNDS {
        // SAFETY: it only counts.
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

/// Waits in the middle of its poll, on a stack, and computes in between.
async fn block() -> bool {
    let mut intact = true;
    for _ in 0..50 {
        block_on(sleep(PERIOD));
        Cpu::here();
        // SAFETY: it only counts.
        intact &= unsafe { machine::hold(0x3333_0000, HOLD / 10) } == 0;
    }
    intact
}

/// Two tasks that always hold a lock of the kernel's when a slice ends. Each has the core right after it has given
/// its lock back.
async fn hold_locks() -> bool {
    let tasks = [0x1111_0000, 0x2222_0000].map(|me| {
        spawn(stackful(async move {
            let mut right = true;
            for _ in 0..20 {
                LOCKS.store(1, Relaxed);
                let before = RUNTIME.stats().preemptions;
                let ticks = TICKS.load(Relaxed);
                LAST_HOG.store(me, Relaxed);
                // The slice ends.
                while TICKS.load(Relaxed) < ticks + 3 {
                    core::hint::spin_loop();
                }
                right &= RUNTIME.stats().preemptions == before && LAST_HOG.load(Relaxed) == me;
                LOCKS.store(0, Relaxed);
                preempt::point();
                let ticks = TICKS.load(Relaxed);
                loop {
                    // In this order: others may have the core in between.
                    let seen = TICKS.load(Relaxed);
                    if RUNTIME.stats().preemptions != before {
                        break;
                    }
                    // The alarm that the point has set came, and did not preempt it.
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
        right &= task.await.expect("nobody aborts it");
    }
    right
}

/// Where the timer ticks by itself, sleepers wake beside tasks that compute, those take turns, and what an interrupt
/// wakes runs.
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
        intact &= hog.await.expect("nobody aborts a hog");
    }
    // And where nothing computes, the core parks.
    let parks = RUNTIME.stats().parks;
    sleep(PERIOD).await;
    listener.abort();
    intact
        && RUNTIME.stats().parks > parks
        && RUNTIME.stats().preemptions >= preemptions + 20
        && TURNS.load(Relaxed) >= turns + HOG_ROUNDS / 2
        && HEARD.load(Relaxed) > heard + 20
}

static HEARD: AtomicU64 = AtomicU64::new(0);

/// Counts how often the timer's handler woke it.
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

/// A heap that gives and never takes back.
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

// SAFETY: one core, whose handler doesn't allocate; and by `NoPreempt` no task comes between.
unsafe impl Sync for Heap {}

// SAFETY: no two blocks overlap, since `used` only grows; each is aligned, as the heap is to a page.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.used.get().next_multiple_of(layout.align());
        let end = start.saturating_add(layout.size());
        if end > Self::SIZE || layout.align() > align_of::<Self>() {
            return core::ptr::null_mut();
        }
        self.used.set(end);
        // SAFETY: within the heap.
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

fn say(words: core::fmt::Arguments<'_>) {
    let _ = Console.write_fmt(words);
}

fn fail(why: core::fmt::Arguments<'_>) -> ! {
    machine::mask();
    say(format_args!("\n{why}\n"));
    machine::exit(101)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    fail(format_args!("{info}"))
}
