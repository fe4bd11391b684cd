//! The demo's load on plain Linux threads: what a kernel scheduler makes of it.
//!
//! The same work, the same due times and the same arithmetic as in `examples/preempt.rs`, with a
//! thread where that has a task.

use std::hint::black_box;
use std::io;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::setpriority_process;
use rustix::thread::{ClockId, CpuSet, clock_nanosleep_absolute};
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use rustix::time::{Timespec, clock_gettime};
use serde::{Deserialize, Serialize};

/// What the demo asks for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub hogs: u32,
    pub seconds: f64,
}

/// How late the periodic task ran, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lateness {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Lateness {
    /// Nearest-rank percentiles of `nanoseconds`.
    fn of(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let at = |permille: usize| {
            let rank = (nanoseconds.len() * permille).div_ceil(1000);
            nanoseconds.get(rank.saturating_sub(1)).map_or(0.0, |&late| late as f64 / 1000.0)
        };
        Self { p50: at(500), p99: at(990), p999: at(999), max: at(1000) }
    }
}

/// What one kind of threads made of the load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub lateness_us: Lateness,
    pub hog_share: f64,
    #[serde(skip)]
    pub missed: u64,
}

/// How the periodic thread is scheduled. The hogs always have Linux's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    Default,
    Fifo,
}

/// The core that the demo measures on: the last of those that we may use. Everything else of ours
/// keeps off it from now on, if there is another.
pub fn measured_cpu() -> Result<usize> {
    let mut ours = sched_getaffinity(None).context("asking for our cores")?;
    let cpu = (0..CpuSet::MAX_CPU).rfind(|&cpu| ours.is_set(cpu)).context("no core is ours")?;
    if ours.count() > 1 {
        ours.unset(cpu);
        sched_setaffinity(None, &ours).context("leaving the measured core")?;
    }
    Ok(cpu)
}

/// Runs `work` on a new thread that may only use `cpu`, and goes before other programs there where that
/// is permitted; what it starts inherits both. So what is compared is disturbed as little as can be,
/// and all of it alike.
pub fn pinned<T: Send>(cpu: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    let thread = || {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).with_context(|| format!("pinning to core {cpu}"))?;
        // Without the privilege it stays as it is.
        _ = setpriority_process(None, -20);
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(thread).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Measures the load on threads that share `cpu`; `None` if we may not schedule so.
pub fn measure(load: Load, scheduling: Scheduling, cpu: usize) -> Result<Option<Measured>> {
    pinned(cpu, || {
        let permitted = thread::scope(|scope| {
            scope.spawn(move || schedule(scheduling)).join().expect("it does not panic")
        });
        if permitted.is_err() {
            return None;
        }
        Some(together(load, scheduling))
    })
}

const PERIOD: Duration = Duration::from_millis(1);

/// Busy stretches and stretches in which one hog computes alone alternate, at fixed times, as in
/// the example.
fn together(load: Load, scheduling: Scheduling) -> Measured {
    let count = ((load.seconds * 4.0) as u32).max(1);
    let busy = Duration::from_secs_f64(load.seconds) / count;
    let alone = busy / 5;
    // Everybody is there before it begins.
    let start = now() + Duration::from_millis(50) + Duration::from_micros(200) * load.hogs;
    let stretches = move || (0..count).map(move |turn| start + (busy + alone) * turn);

    let periodic = move || {
        schedule(scheduling).expect("it was permitted a moment ago");
        let turns = (busy.as_nanos() / PERIOD.as_nanos()) as u32;
        let mut late = Vec::with_capacity((turns * count) as usize);
        for begin in stretches() {
            for due in (1..=turns).map(|turn| begin + PERIOD * turn) {
                sleep_until(due);
                late.push(now().saturating_sub(due).as_nanos() as u64);
            }
        }
        late
    };
    let hog = move || {
        let work = stretches().map(|begin| {
            sleep_until(begin);
            work_until(begin + busy)
        });
        work.sum::<u64>()
    };
    let one_alone = move || {
        let (mut work, mut took) = (0, Duration::ZERO);
        for begin in stretches() {
            // The hogs see that their time is over when they get the core, so leave it to them first.
            sleep_until(begin + busy + alone / 5);
            let from = now();
            work += work_until(begin + busy + alone);
            took += now() - from;
        }
        work as f64 / took.as_secs_f64()
    };
    // Threads inherit the pinning.
    thread::scope(|scope| {
        let periodic = scope.spawn(periodic);
        let one_alone = scope.spawn(one_alone);
        let hogs: Vec<_> = (0..load.hogs).map(|_| scope.spawn(hog)).collect();
        let work: u64 = hogs.into_iter().map(|hog| hog.join().expect("it does not panic")).sum();
        let late = periodic.join().expect("it does not panic");
        let rate_alone = one_alone.join().expect("it does not panic");
        Measured {
            missed: late.iter().filter(|&&late| u128::from(late) >= PERIOD.as_nanos()).count()
                as u64,
            lateness_us: Lateness::of(late),
            hog_share: (work as f64 / (busy * count).as_secs_f64() / rate_alone).min(1.0),
        }
    })
}

/// Computes until `end`; returns how many pieces of work that were.
fn work_until(end: Duration) -> u64 {
    let mut pieces = 0;
    while now() < end {
        let mut x = black_box(0x9e37_79b9_7f4a_7c15_u64);
        for _ in 0..1000 {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        black_box(x);
        pieces += 1;
    }
    pieces
}

/// The clock that the sleeps below use.
fn now() -> Duration {
    let now = clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn sleep_until(due: Duration) {
    let due = Timespec { tv_sec: due.as_secs() as i64, tv_nsec: due.subsec_nanos().into() };
    // A signal ends the sleep early; nothing else can go wrong with a time in range.
    while clock_nanosleep_absolute(ClockId::Monotonic, &due).is_err() {}
}

/// Schedules the calling thread.
fn schedule(scheduling: Scheduling) -> io::Result<()> {
    if scheduling == Scheduling::Default {
        return Ok(());
    }
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread, and `lowest` outlives the call.
    let failed = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &lowest) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let lateness = Lateness::of((1..=1000).rev().map(|us| us * 1000).collect());
        assert_eq!(lateness, Lateness { p50: 500.0, p99: 990.0, p999: 999.0, max: 1000.0 });
        let one = Lateness::of(vec![1500]);
        assert_eq!(one, Lateness { p50: 1.5, p99: 1.5, p999: 1.5, max: 1.5 });
        assert_eq!(Lateness::of(vec![]).max, 0.0);
    }

    #[test]
    fn threads_are_measured() {
        let load = Load { hogs: 2, seconds: 0.1 };
        let measured = measure(load, Scheduling::Default, measured_cpu().unwrap()).unwrap();
        let measured = measured.expect("the default is always permitted");
        assert!(measured.hog_share > 0.0 && measured.hog_share <= 1.0);
        assert!(measured.lateness_us.p50 > 0.0);
    }
}
