//! Adds up the test results that programs print.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use duct::Expression;

use crate::shell::{self, End};

/// The time limit of a suite.
pub const SUITE_LIMIT: Duration = Duration::from_secs(20 * 60);

/// The numbers of passed and failed tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub passed: u64,
    pub failed: u64,
}

impl Count {
    pub const PASSED: Self = Self { passed: 1, failed: 0 };
    pub const FAILED: Self = Self { passed: 0, failed: 1 };

    /// Parses the line that closes a program's tests: hal-shim's (`2 passed, 0 failed`) or
    /// libtest's (`test result: ok. 2 passed; 0 failed; 0 ignored; ...`).
    pub fn of_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let libtest = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "));
        let (passed, rest) = match libtest {
            Some((_, counts)) => counts.split_once(" passed; ")?,
            None => line.split_once(" passed, ")?,
        };
        let failed = match libtest {
            Some(_) => rest.split_once(" failed;")?.0,
            None => rest.strip_suffix(" failed")?,
        };
        Some(Self { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Adds up the results among a program's lines. A bad end counts as a failure too.
#[derive(Default)]
pub struct Tally {
    lines: u64,
    count: Count,
}

impl Tally {
    pub fn line(&mut self, line: &str) {
        if let Some(count) = Count::of_line(line) {
            self.lines += 1;
            self.count.add(count);
        }
    }

    pub fn count(&self) -> Count {
        self.count
    }

    /// The final count, with one failure at least if the program did not end well.
    pub fn ended(mut self, name: &str, end: End, limit: Duration) -> Count {
        let trouble = match end {
            End::TimeUp => Some(format!("was killed after {} s", limit.as_secs())),
            End::Exit(0) if self.lines == 0 => Some("ended without a line of results".to_owned()),
            End::Exit(0) => None,
            End::Exit(code) => Some(format!("ended with exit code {code}")),
        };
        if let Some(trouble) = trouble {
            eprintln!("{name}: {trouble}");
            self.count.failed = self.count.failed.max(1);
        }
        self.count
    }
}

/// Runs a program that prints test results, passes its output on and returns the count.
pub fn counted(name: &str, command: &Expression) -> Result<Count> {
    counted_within(SUITE_LIMIT, name, command)
}

pub fn counted_within(limit: Duration, name: &str, command: &Expression) -> Result<Count> {
    let mut tally = Tally::default();
    let end = shell::lines(command, limit, |line| {
        println!("{line}");
        tally.line(line);
    })?;
    Ok(tally.ended(name, end, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);

    fn tally(lines: &[&str], end: End) -> Count {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.line(line));
        tally.ended("a test", end, LIMIT)
    }

    #[test]
    fn both_closing_lines_are_read() {
        let ours = Count { passed: 12, failed: 3 };
        assert_eq!(Count::of_line("12 passed, 3 failed"), Some(ours));
        assert_eq!(Count::of_line("  12 passed, 3 failed\r"), Some(ours));
        let libtest = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 \
                       filtered out; finished in 0.00s";
        assert_eq!(Count::of_line(libtest), Some(ours));
    }

    #[test]
    fn other_lines_are_not_counted() {
        for line in [
            "",
            "test result: ok.",
            "test result: ok. many passed; 0 failed; 0 ignored",
            "12 passed",
            "12 passed, 3 failed, perhaps",
            "we say: 12 passed, 3 failed",
            "-1 passed, 0 failed",
            "passed, failed",
        ] {
            assert_eq!(Count::of_line(line), None, "{line}");
        }
    }

    #[test]
    fn counts_are_read_as_they_are_written() {
        let count = Count { passed: 7, failed: 2 };
        assert_eq!(Count::of_line(&count.to_string()), Some(count));
    }

    #[test]
    fn no_failure_stays_uncounted() {
        let good = "3 passed, 0 failed";
        assert_eq!(tally(&[good, good], End::Exit(0)), Count { passed: 6, failed: 0 });
        // It reports success and then fails.
        assert_eq!(tally(&[good], End::Exit(1)), Count { passed: 3, failed: 1 });
        assert_eq!(tally(&[good], End::TimeUp), Count { passed: 3, failed: 1 });
        // It exits with 0 and without results, as after a reset of the machine.
        assert_eq!(tally(&[], End::Exit(0)), Count { passed: 0, failed: 1 });
        // A reported failure is counted once, whatever the exit code.
        assert_eq!(tally(&["1 passed, 2 failed"], End::Exit(1)), Count { passed: 1, failed: 2 });
        assert_eq!(tally(&["1 passed, 2 failed"], End::Exit(0)), Count { passed: 1, failed: 2 });
    }
}
