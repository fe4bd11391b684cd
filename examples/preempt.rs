//! A task that is due every millisecond, beside tasks that compute without ever awaiting.
//!
//! As plain futures, these hogs keep the core until they are done. As `stackful` futures they
//! compute just as much, and the periodic task runs on time:
//!
//! ```text
//! cargo xtask demo                      on Linux, compared with threads
//! cargo xtask demo --arch riscv64       on a RISC-V machine in QEMU
//! cargo run --release --example preempt hogs=4 seconds=5 slice_us=1000
//! ```
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::hint::black_box;
use core::time::Duration;

use hal_shim::{print, println};
use trapline::time::{Instant, now, sleep_until};
use trapline::{Config, JoinHandle, Runtime, spawn, stackful};

const PERIOD: Duration = Duration::from_millis(1);

/// How long all plain hogs together compute.
const STARVING: Duration = Duration::from_millis(200);

// `unsafe` promises that the stackful tasks only do what hosted code may do. These only compute and
// read the clock.
hal_shim::entry!(unsafe program);

fn program() {
    let hogs: u32 = argument("hogs", 4, |hogs| (1..=10_000).contains(hogs));
    let seconds: f64 = argument("seconds", 5.0, |seconds| (0.1..=3600.0).contains(seconds));
    let length = Duration::from_secs_f64(seconds);
    let config = Config::new();
    let slice =
        argument("slice_us", config.slice.as_micros() as u64, |us| (10..=1_000_000).contains(us));
    let config = Config { slice: Duration::from_micros(slice), ..config };
    let runtime: &'static Runtime = Box::leak(Box::new(Runtime::with_config(config)));
    println!("a task is due every millisecond; {hogs} hogs never await");

    let plain =
        round(runtime, Stretches { count: 1, busy: STARVING, alone: Duration::ZERO }, |_| {
            let hog = || spawn(async move { work_until(now() + STARVING / hogs) });
            (0..hogs).map(|_| hog()).collect()
        });
    println!("plain hogs:    {}", plain.lateness);

    let preempt = round(runtime, Stretches::of(length), |end| {
        let hog = || spawn(stackful(async move { work_until(end) }));
        (0..hogs).map(|_| hog()).collect()
    });
    println!("stackful hogs: {}", preempt.lateness);

    let work: u64 = preempt.work.iter().sum();
    let hog_share = (work as f64 / preempt.took.as_secs_f64() / preempt.rate_alone).min(1.0);
    println!(
        "               {} preemptions; the hogs got {:.1} % of the core",
        preempt.preemptions,
        100.0 * hog_share
    );

    // `cargo xtask demo` parses this line.
    print!(r#"preempt: {{"hogs":{hogs},"seconds":{seconds},{},"#, preempt.lateness.json());
    print!(r#""preemptions":{},"hog_share":{hog_share:.4},"#, preempt.preemptions);
    print!(r#""hog_shares":["#);
    for (i, hog) in preempt.work.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        print!("{comma}{:.6}", *hog as f64 / work as f64);
    }
    println!(r#"],"plain":{{{}}}}}"#, plain.lateness.json());
}

/// The lengths of the parts of a measurement. For a while everything runs, then the same work runs
/// alone, and so on in turn: what slows down the machine at times slows down both.
#[derive(Clone, Copy)]
struct Stretches {
    count: u32,
    busy: Duration,
    alone: Duration,
}

impl Stretches {
    /// Returns parts of about a quarter of a second, of which `length` is busy in all.
    fn of(length: Duration) -> Self {
        let count = (length.as_millis() as u32 / 250).max(1);
        Self { count, busy: length / count, alone: length / count / 5 }
    }
}

/// The results of one round of the periodic task beside the hogs.
struct Round {
    lateness: Lateness,
    /// How many pieces of work each hog has done.
    work: Vec<u64>,
    /// How long the hogs computed.
    took: Duration,
    /// How many pieces of work a second are done where no other task runs.
    rate_alone: f64,
    preemptions: u64,
}

/// Runs the periodic task beside the hogs that `start_hogs` spawns. The hogs compute until the time
/// that it is given.
fn round(
    runtime: &'static Runtime,
    stretches: Stretches,
    start_hogs: impl FnOnce(Instant) -> Vec<JoinHandle<u64>>,
) -> Round {
    let preemptions = runtime.stats().preemptions;
    let round = runtime.run_until(async {
        let start = now();
        let periodic = spawn(periodic(stretches));
        let hogs = start_hogs(start + (stretches.busy + stretches.alone) * stretches.count);
        let mut work = Vec::with_capacity(hogs.len());
        for hog in hogs {
            work.push(hog.await.expect("no hog is aborted"));
        }
        let end = now();
        let Periodic { late, work_alone, alone } =
            periodic.await.expect("the periodic task is not aborted");
        Round {
            lateness: Lateness::of(late),
            work,
            took: end.saturating_since(start).saturating_sub(alone),
            rate_alone: work_alone as f64 / alone.as_secs_f64(),
            preemptions: runtime.stats().preemptions - preemptions,
        }
    });
    round.expect("this core is not inside of a runtime")
}

/// The results of the periodic task.
struct Periodic {
    /// By how many nanoseconds each activation was late.
    late: Vec<u64>,
    /// How many pieces of work it did while it kept the core for itself, and how long that took.
    work_alone: u64,
    alone: Duration,
}

/// Sleeps until fixed times, so a missed activation makes the next ones late as well, instead of
/// reducing their number.
async fn periodic(stretches: Stretches) -> Periodic {
    let turns = (stretches.busy.as_nanos() / PERIOD.as_nanos()) as u32;
    let late = Vec::with_capacity((turns * stretches.count) as usize);
    let mut seen = Periodic { late, work_alone: 0, alone: Duration::ZERO };
    for _ in 0..stretches.count {
        let mut due = now();
        for _ in 0..turns {
            due += PERIOD;
            sleep_until(due).await;
            seen.late.push(now().as_nanos() - due.as_nanos());
        }
        // This task is not stackful, so no other task runs while it computes.
        let begin = now();
        seen.work_alone += work_until(begin + stretches.alone);
        seen.alone += now().saturating_since(begin);
    }
    seen
}

/// Computes until `end`, and returns how many pieces of work it has done.
fn work_until(end: Instant) -> u64 {
    let expected = piece_of_work();
    let mut pieces = 0;
    while now() < end {
        assert_eq!(piece_of_work(), expected, "preemption has changed a register");
        pieces += 1;
    }
    pieces
}

/// Computes a number in registers. The result is always the same, unless a register is overwritten.
fn piece_of_work() -> u64 {
    let mut x = black_box(0x9e37_79b9_7f4a_7c15_u64);
    for _ in 0..1000 {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}

/// How late the periodic task ran.
struct Lateness {
    activations: usize,
    /// How many activations were late by a period or more.
    missed: usize,
    p50: Nanoseconds,
    p99: Nanoseconds,
    p999: Nanoseconds,
    max: Nanoseconds,
}

impl Lateness {
    fn of(mut late: Vec<u64>) -> Self {
        late.sort_unstable();
        let at = |permille: usize| {
            let rank = (late.len() * permille).div_ceil(1000);
            Nanoseconds(late.get(rank.saturating_sub(1)).copied().unwrap_or(0))
        };
        Self {
            activations: late.len(),
            missed: late.iter().filter(|&&late| u128::from(late) >= PERIOD.as_nanos()).count(),
            p50: at(500),
            p99: at(990),
            p999: at(999),
            max: at(1000),
        }
    }

    fn json(&self) -> impl fmt::Display {
        let Self { activations, missed, p50, p99, p999, max } = self;
        fmt::from_fn(move |f| {
            write!(f, r#""activations":{activations},"missed":{missed},"lateness_us":{{"#)?;
            write!(f, r#""p50":{p50},"p99":{p99},"p999":{p999},"max":{max}}}"#)
        })
    }
}

impl fmt::Display for Lateness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { activations, missed, p50, p99, p999, max } = self;
        write!(f, "late by p50 {p50} µs, p99 {p99}, p99.9 {p999}, max {max}; ")?;
        write!(f, "{missed} of {activations} missed")
    }
}

/// A duration in nanoseconds that is printed in microseconds.
struct Nanoseconds(u64);

impl fmt::Display for Nanoseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// Returns the value of the word `name=value` of the command line. A value that is not allowed ends
/// the program.
fn argument<T: core::str::FromStr>(name: &str, default: T, allowed: impl Fn(&T) -> bool) -> T {
    let Some(text) = hal_shim::arg(name) else { return default };
    text.parse().ok().filter(allowed).unwrap_or_else(|| {
        println!("{name}={text}: not a number, or too small or too large");
        hal_shim::exit(2)
    })
}
