//! Many tasks on several cores, in random schedules: models that are too large for loom.
//!
//! In a schedule, shuttle lets the threads take turns at every access to an atomic, as a generator
//! of random numbers decides. The tasks choose their operations in the same way. All accesses are
//! sequentially consistent: loom checks the orderings. These tests exist only with `--cfg shuttle`.
//!
//! The schedules are the same ones each time, unless the environment says otherwise:
//!
//! - `SHUTTLE_ITERATIONS`: the number of schedules;
//! - `SHUTTLE_RANDOM_SEED`: the seed of the first one;
//! - `SHUTTLE_SCHEDULE`: only this one, as a failure prints it.

#![cfg(all(test, shuttle))]

mod meet;
mod platform;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, Runner};

const SEED: u64 = 1;

/// Returns the number of schedules, and prints it with the seed.
fn iterations(unless_told: usize) -> usize {
    let told = std::env::var("SHUTTLE_ITERATIONS");
    let iterations = told.map_or(unless_told, |n| n.parse().expect("SHUTTLE_ITERATIONS"));
    println!("{iterations} schedules from seed {SEED}, unless SHUTTLE_RANDOM_SEED is set");
    iterations
}

/// Runs the model in the schedules of `scheduler`, or in the one that the environment names.
fn run(scheduler: impl Scheduler + 'static) {
    let mut config = Config::new();
    config.stack_size = 256 * 1024;
    // The warnings are about the environment variables above.
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

/// Any thread may go on at any time.
#[test]
fn at_random() {
    run(RandomScheduler::new_from_seed(SEED, iterations(10_000)));
}

/// A thread goes on as long as it can, except at three moments: few errors need more preemptions.
#[test]
fn with_few_preemptions() {
    run(PctScheduler::new_from_seed(SEED, 3, iterations(10_000)));
}
