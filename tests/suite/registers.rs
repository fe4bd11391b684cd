//! Registers survive preemption and suspension. Two tasks fill every register with a pattern each
//! and check it again and again, while they preempt each other a hundred thousand times. Two
//! further tasks check the registers that a callee preserves, while they suspend themselves.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::time::Duration;

use trapline::time::sleep;
use trapline::{Config, block_on, spawn, stackful, yield_now};

use crate::support::*;

#[cfg(target_arch = "loongarch64")]
#[path = "registers/loongarch64.rs"]
mod arch;
#[cfg(target_arch = "riscv64")]
#[path = "registers/riscv64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "registers/x86_64.rs"]
mod arch;

/// How many preemptions the test waits for; the argument `preemptions=N` sets another number.
fn preemptions() -> u64 {
    hal_shim::arg("preemptions").and_then(|n| n.parse().ok()).unwrap_or(100_000)
}

/// The values that the registers must hold, and the flag that ends the check. The assembly reads
/// this struct.
#[repr(C, align(16))]
struct Patterns {
    integer: [u64; 32],
    /// Two words for each vector register. The second is not used for a scalar register.
    float: [[u64; 2]; 32],
    stop: &'static AtomicUsize,
    /// How many times all registers were found unchanged.
    rounds: u64,
}

impl Patterns {
    fn new(seed: u64, stop: &'static AtomicUsize) -> Self {
        let word = |n: u64| seed.wrapping_add(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self {
            integer: core::array::from_fn(|n| word(n as u64)),
            float: core::array::from_fn(|n| [word(100 + n as u64), word(200 + n as u64)]),
            stop,
            rounds: 0,
        }
    }
}

pub fn survive_a_hundred_thousand_preemptions() {
    static STOP: AtomicUsize = AtomicUsize::new(0);
    STOP.store(0, SeqCst);
    let runtime = configured(Config { slice: Duration::from_micros(20), ..Config::new() });
    let wanted = preemptions();
    run_on(runtime, async {
        let tasks: Vec<_> = [1, 0xffff_0000_ffff]
            .map(|seed| {
                spawn(stackful(async move {
                    let mut patterns = Patterns::new(seed, &STOP);
                    // SAFETY: the function fills and checks registers, and restores those that its
                    // caller wants preserved.
                    let wrong = unsafe { arch::fill_and_check(&mut patterns) };
                    (wrong, patterns.rounds)
                }))
            })
            .into_iter()
            .collect();
        while runtime.stats().preemptions < wanted {
            sleep(ms(10)).await;
            if tasks.iter().any(|task| task.is_finished()) {
                break;
            }
        }
        STOP.store(1, SeqCst);
        for task in tasks {
            let (wrong, rounds) = task.await.unwrap();
            assert_eq!(wrong, 0, "a register was changed: its number + 1 (from 101: vector)");
            assert!(rounds > wanted / 4, "the task completed only {rounds} rounds");
        }
    });
    assert!(runtime.stats().preemptions >= wanted);
}

pub fn survive_a_thousand_suspensions() {
    static STOP: AtomicUsize = AtomicUsize::new(0);
    const ROUNDS: u64 = 1000;

    extern "C" fn suspend() {
        block_on(yield_now());
    }
    let task = |seed| async move {
        let patterns = Patterns::new(seed, &STOP);
        for _ in 0..ROUNDS {
            // SAFETY: the function fills registers, calls `suspend`, checks the registers, and
            // restores those that its caller wants preserved.
            let wrong = unsafe { arch::fill_and_call(&patterns, suspend) };
            assert_eq!(wrong, 0, "a register was changed: its number + 1 (from 101: vector)");
        }
    };
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    run_on(runtime, async {
        let tasks = [1, 0xffff_0000_ffff].map(|seed| spawn(stackful(task(seed))));
        for task in tasks {
            task.await.unwrap();
        }
    });
}
