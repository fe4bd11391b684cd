//! Counts the instructions that scheduling costs on target. `cargo xtask cost` runs this in QEMU
//! with `-icount shift=0,sleep=off`, where the counter counts instructions and nothing else.
//!
//! Each figure is the mean of 10 000 differences of two readings of the counter, less the mean of
//! two readings with nothing in between. Some counters have a resolution of ten instructions, so
//! each round begins a few instructions earlier or later ([`dither`]): the rounding errors are then
//! spread evenly, and the mean is right. The core runs only the runtime and the tasks that are
//! named here, and no slice ends during a measurement.
//!
//! - `suspend_resume`: from where a future inside of `block_on`, which has woken its task, returns
//!   `Pending`, to the beginning of its next poll. The task leaves the stack, the loop finds no
//!   other task, and the stack is entered again.
//! - `preempt_to_poll`: from the enabling of interrupts in a stackful task that computes, with the
//!   timer interrupt pending, to the beginning of the poll of the plain task that slept until then.
//! - `resume_preempted`: from where that plain task returns `Pending`, to the instruction after the
//!   interrupted one.
//! - `wake_to_poll`: from where a plain task calls `wake_by_ref` for another, which is blocked, and
//!   then returns `Pending`, to the beginning of the other's poll.
//! - `spawn_to_poll`: from where a plain task calls `spawn` with a future of two words, and then
//!   returns `Pending`, to the beginning of the new task's poll. The allocation is part of it:
//!   first fit in a heap with few holes, under hal-shim's counting and its lock.
//! - `irq_entry`: from the enabling of interrupts, with the software interrupt pending, to the
//!   beginning of the function that `interrupt::on_soft` was given.
//! - `stackful_poll_extra`: from where a stackful task that has woken itself returns `Pending`, to
//!   the beginning of its next poll, less the same for a plain task, which is `plain_poll`.
//! - `switch`: the backend's `switch` to a stack that at once switches back.
//!
//! "The beginning of a poll" is the first instruction of the future's own code. The registers that
//! the task's poll function saves before it count as the runtime's. "The enabling of interrupts" is
//! the instruction that enables them ([`masked`]).
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
compile_error!("instructions are counted in QEMU: run `cargo xtask cost`");

extern crate alloc;

use alloc::boxed::Box;
use core::future::{Future as _, poll_fn};
use core::pin::Pin;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Poll, Waker};
use core::time::Duration;

use hal_shim::{instructions, interrupt, println};
use spin::mutex::SpinMutex;
use trapline::arch::Native;
use trapline::stackful::{Context, StackfulBackend as _};
use trapline::time::{Instant, Sleep, now, sleep_until};
use trapline::{Config, JoinHandle, Runtime, block_on, spawn, stackful};

/// The number of measurements of each figure.
const ROUNDS: u64 = 10_000;
/// The size of a stack that only switches.
const STACK: usize = 16 * 1024;

static RUNTIME: Runtime =
    Runtime::with_config(Config { slice: Duration::from_secs(3600), ..Config::new() });

hal_shim::entry!(unsafe program);

fn program() {
    let nothing = nothing();
    let enabling = enabling();
    let switch = switch() - nothing;
    let irq_entry = irq_entry() - enabling;
    let plain_poll = poll_again(false) - nothing;
    let stackful_poll = poll_again(true) - nothing;
    let wake_to_poll = wake_to_poll() - nothing;
    let spawn_to_poll = spawn_to_poll() - nothing;
    let suspend_resume = suspend_resume() - nothing;
    let (preempt_to_poll, resume_preempted) = preempt();
    println!(
        "cost: {{\"suspend_resume\":{suspend_resume},\"preempt_to_poll\":{},\
         \"resume_preempted\":{},\"wake_to_poll\":{wake_to_poll},\
         \"spawn_to_poll\":{spawn_to_poll},\"irq_entry\":{irq_entry},\
         \"stackful_poll_extra\":{},\"plain_poll\":{plain_poll},\"switch\":{switch}}}",
        preempt_to_poll - enabling,
        resume_preempted - nothing,
        stackful_poll - plain_poll,
    );
}

/// Adds up differences of the instruction counter.
struct Meter {
    from: AtomicU64,
    sum: AtomicU64,
    rounds: AtomicU64,
}

impl Meter {
    const fn new() -> Self {
        Self { from: AtomicU64::new(0), sum: AtomicU64::new(0), rounds: AtomicU64::new(0) }
    }

    /// Begins a measurement.
    #[inline(always)]
    fn start(&self) {
        self.from.store(instructions(), Ordering::Relaxed);
    }

    /// Ends a measurement, if one has begun.
    #[inline(always)]
    fn end(&self) {
        let to = instructions();
        let add =
            |sum: &AtomicU64, n| sum.store(sum.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        match self.from.swap(0, Ordering::Relaxed) {
            0 => {}
            from => {
                add(&self.sum, to - from);
                add(&self.rounds, 1);
            }
        }
    }

    /// Returns whether there are enough measurements, and shifts the next round at random.
    #[inline(never)]
    fn done(&self) -> bool {
        dither();
        self.rounds.load(Ordering::Relaxed) >= ROUNDS
    }

    /// The rounded mean.
    fn mean(&self) -> u64 {
        let rounds = self.rounds.load(Ordering::Relaxed);
        (self.sum.load(Ordering::Relaxed) + rounds / 2) / rounds
    }
}

/// Executes a random number of instructions.
fn dither() {
    static SEED: AtomicU64 = AtomicU64::new(1);
    // Knuth's generator, whose upper bits are the random ones.
    let seed = SEED.load(Ordering::Relaxed).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    SEED.store(seed, Ordering::Relaxed);
    for _ in 0..(seed >> 33) % 10 {
        nop();
    }
}

#[inline(always)]
fn nop() {
    // SAFETY: the instruction has no effect. The compiler must assume one, so it does not move it.
    unsafe { core::arch::asm!("nop", options(nostack, preserves_flags)) };
}

/// Calls `f` with interrupts masked. A pending interrupt is taken right after the instruction that
/// enables interrupts, or on x86_64 one instruction later, which is the `nop` here.
#[inline(always)]
fn masked(f: impl FnOnce()) {
    interrupt::masked(f);
    nop();
}

/// Runs the runtime until `task` is done.
fn run(task: JoinHandle<()>) {
    let ran = RUNTIME.run_until(task).expect("this core is in no runtime");
    ran.expect("the task is not aborted");
}

/// Measures the measurement itself.
fn nothing() -> u64 {
    static METER: Meter = Meter::new();
    while !METER.done() {
        METER.start();
        METER.end();
    }
    METER.mean()
}

/// Measures the measurement itself with the enabling of interrupts while none is pending.
fn enabling() -> u64 {
    static METER: Meter = Meter::new();
    while !METER.done() {
        masked(|| METER.start());
        METER.end();
    }
    METER.mean()
}

fn switch() -> u64 {
    static METER: Meter = Meter::new();
    /// The contexts of this code and of the other stack while they are off the core.
    type Contexts = [Context; 2];

    unsafe extern "C" fn other(contexts: *mut ()) -> ! {
        let contexts = contexts.cast::<Contexts>();
        loop {
            // SAFETY: as below, with the contexts exchanged.
            unsafe { Native::switch(&raw mut (*contexts)[1], (*contexts)[0]) };
        }
    }
    let mut contexts: Contexts = [Context(core::ptr::null_mut()); 2];
    let contexts = &raw mut contexts;
    let mut stack = Box::new([0_u128; STACK / size_of::<u128>()]);
    let base = NonNull::from(&mut *stack).cast::<u8>();
    // SAFETY: the stack is alive, only `other` uses it, it is large enough, and its end is aligned
    // to 16. The two alternate, so that each context is entered once for each time that it was
    // stored, in a place that outlives them.
    unsafe {
        (*contexts)[1] = Native::prepare(base.add(STACK), other, contexts.cast());
        while !METER.done() {
            METER.start();
            Native::switch(&raw mut (*contexts)[0], (*contexts)[1]);
            METER.end();
        }
    }
    METER.mean()
}

fn irq_entry() -> u64 {
    static METER: Meter = Meter::new();
    interrupt::on_soft(|| METER.end());
    while !METER.done() {
        masked(|| {
            interrupt::raise();
            METER.start();
        });
    }
    interrupt::on_soft(|| ());
    METER.mean()
}

/// Runs a task that always wakes itself.
fn poll_again(on_stack: bool) -> u64 {
    static METERS: [Meter; 2] = [const { Meter::new() }; 2];
    let meter = &METERS[usize::from(on_stack)];
    let task = poll_fn(move |context| {
        meter.end();
        if meter.done() {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        meter.start();
        Poll::Pending
    });
    run(if on_stack { RUNTIME.spawn(stackful(task)) } else { RUNTIME.spawn(task) });
    meter.mean()
}

/// Runs two tasks that wake each other.
fn wake_to_poll() -> u64 {
    static METER: Meter = Meter::new();
    static WAKERS: SpinMutex<[Option<Waker>; 2]> = SpinMutex::new([None, None]);

    /// Stores this task's waker for the other task, and returns the other's if it is stored
    /// already.
    #[inline(never)]
    fn introduce(me: usize, own: &Waker) -> Option<Waker> {
        let mut wakers = WAKERS.lock();
        wakers[me] = Some(own.clone());
        wakers[1 - me].clone()
    }
    let player = |me: usize| {
        let mut other = None;
        poll_fn(move |context| {
            METER.end();
            let done = METER.done();
            if other.is_none() {
                other = introduce(me, context.waker());
            }
            METER.start();
            if let Some(other) = &other {
                other.wake_by_ref();
            }
            if done { Poll::Ready(()) } else { Poll::Pending }
        })
    };
    let first = RUNTIME.spawn(player(0));
    run(RUNTIME.spawn(player(1)));
    run(first);
    METER.mean()
}

fn spawn_to_poll() -> u64 {
    static METER: Meter = Meter::new();
    let mut child = None;
    run(RUNTIME.spawn(poll_fn(move |context| {
        if METER.done() {
            return Poll::Ready(());
        }
        drop(child.take());
        let parent = context.waker().clone();
        let future = poll_fn(move |_| {
            METER.end();
            parent.wake_by_ref();
            Poll::Ready(())
        });
        METER.start();
        child = Some(spawn(future));
        Poll::Pending
    })));
    METER.mean()
}

fn suspend_resume() -> u64 {
    static METER: Meter = Meter::new();
    let task = async {
        block_on(poll_fn(|context| {
            METER.end();
            if METER.done() {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            METER.start();
            Poll::Pending
        }));
    };
    run(RUNTIME.spawn(stackful(task)));
    METER.mean()
}

/// Runs a task that sleeps and one that computes. Returns `preempt_to_poll` and `resume_preempted`.
fn preempt() -> (u64, u64) {
    static TO_POLL: Meter = Meter::new();
    static RESUMED: Meter = Meter::new();
    /// The due time in nanoseconds of the platform's clock.
    static DUE: AtomicU64 = AtomicU64::new(0);
    const SLEEP: Duration = Duration::from_micros(10);
    /// The alarm may be coarser than the clock.
    const TICK: Duration = Duration::from_micros(1);

    #[inline(never)]
    fn sleep_again(sleep: &mut Pin<Box<Sleep>>, context: &mut core::task::Context<'_>) -> Poll<()> {
        let due = now() + SLEEP;
        DUE.store(due.as_nanos(), Ordering::Relaxed);
        sleep.set(sleep_until(due));
        sleep.as_mut().poll(context)
    }
    let mut sleep = Box::pin(sleep_until(now()));
    let sleeper = RUNTIME.spawn(poll_fn(move |context| {
        TO_POLL.end();
        let poll = sleep_again(&mut sleep, context);
        RESUMED.start();
        poll
    }));
    let hog = async {
        while !RESUMED.done() {
            masked(|| {
                let due = Instant::from_nanos(DUE.load(Ordering::Relaxed));
                while now() <= due + TICK {}
                TO_POLL.start();
            });
            RESUMED.end();
        }
    };
    run(RUNTIME.spawn(stackful(hog)));
    sleeper.abort();
    (TO_POLL.mean(), RESUMED.mean())
}
