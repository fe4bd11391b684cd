//! What scheduling costs, in Trapline and elsewhere, side by side in one program.
//!
//! A row is a shape ([`tasks`], [`stacks`]) and how many tasks it has; a [`Cell`] is a row in one implementation
//! ([`runtimes`]). Each measurement is a fresh runtime on a fresh thread that is a core of hal-shim's, whatever
//! the implementation, with the same [`heap`]. There are two front ends: `cargo bench` (criterion, for
//! comparing with the last time) and the program `measure`, which `cargo xtask bench` runs: it takes turns
//! between implementations, so that what disturbs one disturbs all.
//!
//! Quote ratios of one run: absolute times are the machine's.
#![cfg(target_os = "linux")]

pub mod cores;
pub mod heap;
pub mod runtimes;
pub mod stacks;
pub mod tasks;

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// One row in one implementation.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The row's name.
    pub bench: &'static str,
    /// How many tasks are at it, if the row comes with several numbers.
    pub n: Option<usize>,
    /// The implementation: its crate's name, or `floor-…`.
    pub implementation: &'static str,
    shape: Shape,
}

/// Does something at least so often, with so many tasks.
type Shape = fn(n: usize, operations: u64) -> Sample;

impl Cell {
    /// Measures at least so many operations, on the measured core.
    pub fn measure(&self, operations: u64) -> Sample {
        let (shape, n) = (self.shape, self.n.unwrap_or(1));
        cores::on(cores::measured(), move || shape(n, operations))
    }

    /// Whether there is no time to be measured: memory is all that the row is about.
    pub fn is_memory(&self) -> bool {
        self.bench == "idle_bytes"
    }
}

/// What some operations took together.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// How many.
    pub operations: u64,
    /// How long the thread had the processor. (None of what is measured sleeps.)
    pub elapsed: Duration,
    /// What was asked of the heap, if that was [counted](heap::counted).
    pub heap: heap::Counts,
}

impl Sample {
    /// The mean.
    pub fn nanoseconds(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.operations as f64
    }
}

/// A stretch that is being measured, on one thread.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    heap: heap::Counts,
    since: Duration,
}

/// For how long this thread has had a processor. What other programs take in between doesn't count.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

impl Span {
    /// Begins here.
    pub fn begin() -> Self {
        Self { heap: heap::counts(), since: processor_time() }
    }

    /// Ends here, after so many operations.
    pub fn end(self, operations: u64) -> Sample {
        let elapsed = processor_time() - self.since;
        Sample { operations, elapsed, heap: heap::counts() - self.heap }
    }
}

/// All cells, each row's together.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    tasks::add_to(&mut cells);
    stacks::add_to(&mut cells);
    // By row, in the order in which the rows first came.
    let rows: Vec<_> = cells.iter().map(|cell| (cell.bench, cell.n)).collect();
    cells.sort_by_key(|cell| {
        let bench = rows.iter().position(|row| row.0 == cell.bench);
        (bench, cell.n)
    });
    cells
}
