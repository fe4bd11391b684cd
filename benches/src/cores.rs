//! Selects the processors for measurements.

use std::sync::LazyLock;
use std::thread;

use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that the program may use, from the last to the first, as the first ones take most
/// interrupts of the machine.
static GIVEN: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let given = sched_getaffinity(None).expect("a process may read its own affinity");
    (0..CpuSet::MAX_CPU).rev().filter(|&cpu| given.is_set(cpu)).collect()
});

/// The processor for measurements.
pub fn measured() -> usize {
    GIVEN[0]
}

/// Another processor, if the program may use more than one.
pub fn other() -> Option<usize> {
    GIVEN.get(1).copied()
}

/// Calls `f` on a new thread on processor `cpu`, as a core of hal-shim without state of an earlier
/// run, and waits for it.
pub fn on<R: Send>(cpu: usize, f: impl FnOnce() -> R + Send) -> R {
    let pinned = || {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).expect("the program may use this processor");
        // With priority over other programs, where that is permitted: `cross_wake` needs two cores
        // that run at the same time.
        _ = setpriority_process(None, -20);
        // SAFETY: outside of guards, stackful tasks in this package only count, yield, wake, spawn
        // and return. They take no lock that another task takes, keep no reference to a
        // thread-local value, and allocate from `heap`, in which no task is preempted. No other
        // code here uses signals.
        unsafe { hal_shim::isolated(f) }
    };
    // `isolated` makes the core's own thread, which inherits the processor of this one.
    thread::scope(|scope| scope.spawn(pinned).join().expect("the measured code does not panic"))
}
