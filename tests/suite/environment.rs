//! A task's own settings (the rounding mode, the right to access users' pages, the direction of
//! copies) do not reach other code, and are still set when the task goes on.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
#[cfg(target_os = "none")]
use hal_shim::trap;
use trapline::time::sleep;
use trapline::{Config, spawn, stackful};
#[cfg(all(target_os = "none", not(target_arch = "loongarch64")))]
use trapline::{block_on, preempt::PreemptGuard, time::now, yield_now};

use crate::support::*;

#[cfg(target_arch = "loongarch64")]
#[path = "environment/loongarch64.rs"]
mod arch;
#[cfg(target_arch = "riscv64")]
#[path = "environment/riscv64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "environment/x86_64.rs"]
mod arch;

#[cfg(all(target_os = "none", target_arch = "loongarch64"))]
pub use arch::a_withdrawn_interrupt_is_nothing;
#[cfg(all(target_os = "none", target_arch = "x86_64"))]
pub use arch::an_nmi_starts_clean_and_leaves_the_faulting_address;

pub fn what_a_preempted_task_has_set_is_nobody_elses() {
    static STOP: AtomicUsize = AtomicUsize::new(0);
    STOP.store(0, SeqCst);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    run_on(runtime, async {
        // SAFETY: `hold` accesses only `STOP`, and restores all that it sets.
        let holder = spawn(stackful(async { unsafe { arch::hold(&STOP) } }));
        let other = spawn(stackful(async {
            let mut seen = 0;
            while STOP.load(SeqCst) == 0 {
                seen |= arch::seen();
            }
            seen
        }));
        let (mut seen, mut slept) = (0, 0);
        while slept < 20 || runtime.stats().preemptions < 20 {
            sleep(ms(1)).await;
            slept += 1;
            seen |= arch::seen();
        }
        STOP.store(1, SeqCst);
        assert_eq!(seen, 0, "a plain task sees the setting");
        assert_eq!(other.await.unwrap(), 0, "another stackful task sees the setting");
        assert_eq!(holder.await.unwrap(), 0, "the setting was lost");
        assert_eq!(arch::seen(), 0);
    });
}

#[cfg(target_os = "none")]
pub fn what_interrupted_code_has_set_is_not_the_handlers() {
    static SEEN: AtomicUsize = AtomicUsize::new(0);
    SEEN.store(0, SeqCst);
    trap::on_fault(|_| {
        SEEN.fetch_or(arch::seen(), SeqCst);
        true
    });
    // SAFETY: the handler above answers the breakpoint of `hold_over_breakpoint`.
    let lost = unsafe { arch::hold_over_breakpoint() };
    trap::reset();
    assert_eq!(SEEN.load(SeqCst), 0, "the handler sees the setting");
    assert_eq!(lost, 0, "the setting was lost");
    assert_eq!(arch::seen(), 0);
}

#[cfg(all(target_os = "none", not(target_arch = "loongarch64")))]
pub fn a_right_is_kept_by_the_task_that_leaves() {
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    static STOP: AtomicUsize = AtomicUsize::new(0);
    STOP.store(0, SeqCst);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    run_on(runtime, async {
        let other = spawn(stackful(async {
            let mut seen = 0;
            while STOP.load(SeqCst) == 0 {
                seen |= arch::seen();
                LEFT.fetch_add(1, SeqCst);
            }
            seen
        }));
        let holder = spawn(stackful(async {
            for _ in 0..5 {
                arch::set_right();
                let before = LEFT.load(SeqCst);
                block_on(async {
                    while LEFT.load(SeqCst) == before {
                        yield_now().await;
                    }
                });
                assert!(arch::has_right(), "block_on lost the right");
                // A slice that ends under a guard leaves a preemption pending, which comes when the
                // guard drops.
                let guard = PreemptGuard::new();
                let until = now() + ms(3);
                while now() < until {}
                let before = runtime.stats().preemptions;
                drop(guard);
                assert_ne!(runtime.stats().preemptions, before, "the core was not left");
                assert!(arch::has_right(), "the guard's drop lost the right");
                arch::clear_right();
            }
        }));
        let mut seen = 0;
        while !holder.is_finished() {
            sleep(ms(1)).await;
            seen |= arch::seen();
        }
        holder.await.unwrap();
        STOP.store(1, SeqCst);
        assert_eq!(seen, 0, "a plain task sees the right");
        assert_eq!(other.await.unwrap(), 0, "another stackful task sees the right");
    });
}
