//! Measures the rows and prints a JSON line for each cell. `cargo xtask bench` runs it and shows
//! the figures.
//!
//! In a row the implementations alternate: each is measured once, then each again, so that a
//! disturbance of the machine affects all of them. A figure is the median of the samples; the
//! quartiles show how far they spread. Bytes and allocations are counted in a separate run, which
//! is not timed.

#[cfg(target_os = "linux")]
mod measure {
    use std::time::{Duration, Instant};

    use benches::{Cell, heap};
    use clap::Parser;
    use clap::builder::PossibleValuesParser;
    use serde::Serialize;

    #[derive(Parser)]
    #[command(about = "Measure the cost of scheduling as JSON lines, for `cargo xtask bench`")]
    struct Options {
        /// Take fewer and shorter samples
        #[arg(long)]
        quick: bool,
        /// Only these rows
        #[arg(
            long,
            value_name = "ROWS",
            value_delimiter = ',',
            value_parser = names(|cell| cell.bench)
        )]
        only: Vec<String>,
        /// Only these implementations
        #[arg(
            long = "impl",
            value_name = "IMPLEMENTATIONS",
            value_delimiter = ',',
            value_parser = names(|cell| cell.implementation)
        )]
        implementations: Vec<String>,
    }

    /// Parses a name that one of the cells has.
    fn names(of: impl Fn(&Cell) -> &'static str) -> PossibleValuesParser {
        let mut names = Vec::new();
        for name in benches::cells().iter().map(of) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.into()
    }

    /// The number and length of samples.
    struct Care {
        /// The length of a sample, unless one round of the cell's tasks takes longer.
        sample: Duration,
        /// The least and the greatest number of samples of a cell.
        samples: (usize, usize),
        /// The time for a cell, unless the least number of samples takes longer.
        cell: Duration,
    }

    const QUICK: Care = Care {
        sample: Duration::from_millis(4),
        samples: (5, 25),
        cell: Duration::from_millis(200),
    };
    const FULL: Care = Care {
        sample: Duration::from_millis(20),
        samples: (9, 51),
        cell: Duration::from_millis(1500),
    };

    #[derive(Serialize)]
    struct Line {
        bench: &'static str,
        n: Option<usize>,
        #[serde(rename = "impl")]
        implementation: &'static str,
        ns: Option<f64>,
        /// The quartiles of `ns`.
        spread: Option<[f64; 2]>,
        bytes: Option<f64>,
        allocs: Option<f64>,
    }

    pub fn main() {
        let Options { quick, only, implementations } = Options::parse();
        let care = if quick { QUICK } else { FULL };
        let wanted = |names: &[String], name| names.is_empty() || names.iter().any(|n| n == name);
        let mut cells = benches::cells();
        cells.retain(|cell| {
            wanted(&only, cell.bench) && wanted(&implementations, cell.implementation)
        });
        for row in cells.chunk_by(|one, next| (one.bench, one.n) == (next.bench, next.n)) {
            for line in measure(row, &care) {
                println!(
                    "{}",
                    serde_json::to_string(&line)
                        .expect("strings and numbers can be written as JSON")
                );
            }
        }
    }

    /// Measures a row.
    fn measure(row: &[Cell], care: &Care) -> Vec<Line> {
        let mut samples = vec![Vec::new(); row.len()];
        if !row[0].is_memory() {
            let operations: Vec<_> = row.iter().map(|cell| operations(cell, care)).collect();
            let (least, most) = care.samples;
            let enough = Instant::now() + care.cell * row.len() as u32;
            for round in 0..most {
                if round >= least && Instant::now() > enough {
                    break;
                }
                for ((cell, &operations), samples) in row.iter().zip(&operations).zip(&mut samples)
                {
                    samples.push(cell.measure(operations).nanoseconds());
                }
            }
        }
        row.iter().zip(samples).map(|(cell, samples)| line(cell, samples)).collect()
    }

    /// Finds the number of operations that take as long as a sample should.
    fn operations(cell: &Cell, care: &Care) -> u64 {
        let mut operations = 100;
        loop {
            let sample = cell.measure(operations);
            let nanoseconds = sample.nanoseconds().max(0.1);
            let enough = (care.sample.as_nanos() as f64 / nanoseconds) as u64;
            // The first operations are slower than later ones.
            if sample.operations >= enough / 2 {
                return enough.max(sample.operations);
            }
            operations = enough.min(sample.operations * 10);
        }
    }

    fn line(cell: &Cell, mut samples: Vec<f64>) -> Line {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |quarter: usize| samples[(samples.len() - 1) * quarter / 4];
        let timed = !samples.is_empty();
        // So many that a rare event (a queue that grows) has little weight.
        let counted = heap::counted(|| cell.measure(10_000));
        let each = |count: f64| (count / counted.operations as f64 * 1000.0).round() / 1000.0;
        Line {
            bench: cell.bench,
            n: cell.n,
            implementation: cell.implementation,
            ns: timed.then(|| at(2)),
            spread: timed.then(|| [at(1), at(3)]),
            bytes: cell.is_memory().then(|| each(counted.heap.bytes as f64).round()),
            allocs: Some(each(counted.heap.allocations as f64)),
        }
    }
}

#[cfg(target_os = "linux")]
fn main() {
    measure::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {}
