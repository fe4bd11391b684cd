//! Which processor is measured on.

use std::sync::LazyLock;
use std::thread;

use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The processors that the program was given, from the last to the first: the first ones have the most of
/// the machine's interrupts.
static GIVEN: LazyLock<Vec<usize>> = LazyLock::new(|| {
    let given = sched_getaffinity(None).expect("a process may ask for its own processors");
    (0..CpuSet::MAX_CPU).rev().filter(|&cpu| given.is_set(cpu)).collect()
});

/// The processor that is measured on.
pub fn measured() -> usize {
    GIVEN[0]
}

/// Another, if the program was given more than one.
pub fn other() -> Option<usize> {
    GIVEN.get(1).copied()
}

/// Calls `f` on a new thread on processor `cpu`, as a core of hal-shim's with nothing left over, and waits for
/// it.
pub fn on<R: Send>(cpu: usize, f: impl FnOnce() -> R + Send) -> R {
    let pinned = || {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).expect("the program was given this processor");
        // Before other programs, where that is permitted: `cross_wake` is about two cores that are both there.
        _ = setpriority_process(None, -20);
        // SAFETY: outside of guards, stackful tasks here only count, yield, wake, spawn and return.
        // They take no lock while another task takes it, keep no reference to a thread-local value,
        // and
        // allocate from `heap`, which doesn't preempt. Nothing else touches signals.
        unsafe { hal_shim::isolated(f) }
    };
    // The core is a thread of its own, which inherits this one's processor.
    thread::scope(|scope| scope.spawn(pinned).join().expect("what is measured does not panic"))
}
