//! Runs the demo's load on plain Linux threads, to compare with a kernel's scheduler.
//!
//! The work, the due times and the arithmetic are those of `examples/preempt.rs`, with a thread in
//! place of each task.

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

/// The load of the demo.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub hogs: u32,
    pub seconds: f64,
}

/// The lateness of the periodic task in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lateness {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Lateness {
    /// Computes the nearest-rank percentiles of `nanoseconds`.
    fn of(mut nanoseconds: Vec<u64>) -> Self {
        nanoseconds.sort_unstable();
        let at = |permille: usize| {
            let rank = (nanoseconds.len() * permille).div_ceil(1000);
            nanoseconds.get(rank.saturating_sub(1)).map_or(0.0, |&late| late as f64 / 1000.0)
        };
        Self { p50: at(500), p99: at(990), p999: at(999), max: at(1000) }
    }
}

/// The results of the load with one scheduling of the periodic thread.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub lateness_us: Lateness,
    pub hog_share: f64,
    #[serde(skip)]
    pub missed: u64,
}

/// The scheduling of the periodic thread. The hogs always have Linux's default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduling {
    Default,
    Fifo,
}

/// Returns the core that the demo measures on: the last one that this process may use. If there are
/// others, this thread and the threads that it starts use only those from now on.
pub fn measured_cpu() -> Result<usize> {
    let mut ours = sched_getaffinity(None).context("reading the cores of this process")?;
    let cpu = (0..CpuSet::MAX_CPU)
        .rfind(|&cpu| ours.is_set(cpu))
        .context("this process may use no core")?;
    if ours.count() > 1 {
        ours.unset(cpu);
        sched_setaffinity(None, &ours).context("leaving the measured core")?;
    }
    Ok(cpu)
}

/// Runs `work` on a new thread that is pinned to `cpu` and, where that is permitted, has the
/// highest nice priority. Its threads and processes inherit both, so that other programs disturb
/// all measured loads little and alike.
pub fn pinned<T: Send>(cpu: usize, work: impl FnOnce() -> T + Send) -> Result<T> {
    let thread = || {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).with_context(|| format!("pinning to core {cpu}"))?;
        // This fails without the privilege, and the priority stays as it is.
        _ = setpriority_process(None, -20);
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(thread).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Measures the load on threads that share `cpu`; `None` if `scheduling` is not permitted.
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

/// Runs the load on the calling thread's core. As in the example, stretches in which all threads
/// run alternate at fixed times with stretches in which one hog computes alone.
fn together(load: Load, scheduling: Scheduling) -> Measured {
    let count = ((load.seconds * 4.0) as u32).max(1);
    let busy = Duration::from_secs_f64(load.seconds) / count;
    let alone = busy / 5;
    // All threads have started before the first stretch begins.
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
            // Each hog needs the core once more to see that its stretch is over.
            sleep_until(begin + busy + alone / 5);
            let from = now();
            work += work_until(begin + busy + alone);
            took += now() - from;
        }
        work as f64 / took.as_secs_f64()
    };
    // These threads inherit the pinning.
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

/// Computes until `end` and returns the number of pieces of work.
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

/// The time of the clock that `sleep_until` uses.
fn now() -> Duration {
    let now = clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn sleep_until(due: Duration) {
    let due = Timespec { tv_sec: due.as_secs() as i64, tv_nsec: due.subsec_nanos().into() };
    // A signal ends the sleep early. With a time in range there is no other error.
    while clock_nanosleep_absolute(ClockId::Monotonic, &due).is_err() {}
}

/// Sets the scheduling of the calling thread.
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
