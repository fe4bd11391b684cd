//! Measures the cost of scheduling in Trapline and in other runtimes, side by side in one program.
//!
//! A row is a shape ([`tasks`], [`stacks`]) and a number of tasks; a [`Cell`] is a row in one
//! implementation ([`runtimes`]). Each measurement takes a new runtime on a new thread, which is a
//! core of hal-shim for every implementation, and the same [`heap`]. There are two front ends:
//! `cargo bench` (criterion, which compares with its last run), and the program `measure`, which
//! `cargo xtask bench` runs. `measure` alternates between implementations, so that a disturbance
//! affects all of them.
//!
//! Quote ratios from one run, as absolute times depend on the machine.
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
    /// The number of tasks, if the row is measured with several numbers.
    pub n: Option<usize>,
    /// The implementation: the name of its crate, or `floor-…`.
    pub implementation: &'static str,
    shape: Shape,
}

/// Runs at least `operations` operations with `n` tasks.
type Shape = fn(n: usize, operations: u64) -> Sample;

impl Cell {
    /// Measures at least `operations` operations on the measured core.
    pub fn measure(&self, operations: u64) -> Sample {
        let (shape, n) = (self.shape, self.n.unwrap_or(1));
        cores::on(cores::measured(), move || shape(n, operations))
    }

    /// Whether the row measures memory and no time.
    pub fn is_memory(&self) -> bool {
        self.bench == "idle_bytes"
    }
}

/// The time and memory that some operations took together.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// The number of operations.
    pub operations: u64,
    /// The processor time of the thread. (No measured code sleeps.)
    pub elapsed: Duration,
    /// The use of the heap, if it was [counted](heap::counted).
    pub heap: heap::Counts,
}

impl Sample {
    /// The mean time of an operation.
    pub fn nanoseconds(&self) -> f64 {
        self.elapsed.as_nanos() as f64 / self.operations as f64
    }
}

/// A measurement that has begun, on one thread.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    heap: heap::Counts,
    since: Duration,
}

/// The processor time of this thread, which does not include the time of other programs.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

impl Span {
    /// Begins a measurement.
    pub fn begin() -> Self {
        Self { heap: heap::counts(), since: processor_time() }
    }

    /// Ends the measurement after `operations` operations.
    pub fn end(self, operations: u64) -> Sample {
        let elapsed = processor_time() - self.since;
        Sample { operations, elapsed, heap: heap::counts() - self.heap }
    }
}

/// Lists all cells; the cells of a row are adjacent.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    tasks::add_to(&mut cells);
    stacks::add_to(&mut cells);
    // Sorted by row, in the order in which the rows first occur.
    let rows: Vec<_> = cells.iter().map(|cell| (cell.bench, cell.n)).collect();
    cells.sort_by_key(|cell| {
        let bench = rows.iter().position(|row| row.0 == cell.bench);
        (bench, cell.n)
    });
    cells
}
