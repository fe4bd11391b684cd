//! Many tasks of several cores, in schedules at random: what is too large for loom.
//!
//! Shuttle lets the threads of a schedule take turns at every access to an atomic, as a generator of random
//! numbers says; so do the tasks choose what they do. All accesses are sequentially consistent: orderings
//! are loom's to check. Only with `--cfg shuttle`.
//!
//! Unless told otherwise by the environment, the schedules are the same ones each time:
//!
//! - `SHUTTLE_ITERATIONS`: how many;
//! - `SHUTTLE_RANDOM_SEED`: what the first begins with;
//! - `SHUTTLE_SCHEDULE`: only this one, as a failure prints it.

#![cfg(all(test, shuttle))]

mod meet;
mod platform;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, Runner};

const SEED: u64 = 1;

fn iterations(unless_told: usize) -> usize {
    let told = std::env::var("SHUTTLE_ITERATIONS");
    let iterations = told.map_or(unless_told, |n| n.parse().expect("SHUTTLE_ITERATIONS"));
    println!("{iterations} schedules from seed {SEED}, unless SHUTTLE_RANDOM_SEED is set");
    iterations
}

fn run(scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    // Of what is said above.
    config.silence_warnings = true;
    let schedule = || {
        platform::reset();
        meet::meet();
    };
    match std::env::var("SHUTTLE_SCHEDULE") {
        Ok(failed) => Runner::new(ReplayScheduler::new_from_encoded(&failed), config).run(schedule),
        Err(_) => Runner::new(scheduler, config).run(schedule),
    };
}

/// Any thread goes on at any time.
#[test]
fn at_random() {
    run(RandomScheduler::new_from_seed(SEED, iterations(10_000)));
}

/// A thread goes on as long as it can, but for three moments: what goes wrong rarely takes more.
#[test]
fn with_few_preemptions() {
    run(PctScheduler::new_from_seed(SEED, 3, iterations(10_000)));
}
