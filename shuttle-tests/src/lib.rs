//! Many tasks of several cores, in schedules at random: what is too large for loom.
//!
//! Shuttle lets the threads of a schedule take turns at every access to an atomic, as a generator of random
//! numbers says; so do the tasks choose what they do. Each schedule has a seed, which a failure prints.
//! All accesses are sequentially consistent: orderings are loom's to check. Only with `--cfg shuttle`.
//!
//! The environment says what is to be tried: `SHUTTLE_ITERATIONS` schedules, the first of which has the
//! seed `SHUTTLE_RANDOM_SEED`. Unless told, they are the same ones each time.

#![cfg(all(test, shuttle))]

mod meet;
mod platform;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

/// A failed test says the seed of the failed schedule itself.
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
    Runner::new(scheduler, config).run(|| {
        platform::reset();
        meet::meet();
    });
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
