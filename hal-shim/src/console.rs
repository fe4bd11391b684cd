//! Formatted printing, without the heap.

use core::fmt::{self, Write};

use trapline::preempt::PreemptGuard;

use crate::machine;

/// Collects the output of one `println!`, so that it reaches the console in one piece.
struct Line {
    bytes: [u8; 256],
    used: usize,
}

impl Line {
    fn flush(&mut self) {
        machine::write(&self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            if self.used == self.bytes.len() {
                self.flush();
            }
            let part = rest.len().min(self.bytes.len() - self.used);
            self.bytes[self.used..self.used + part].copy_from_slice(&rest[..part]);
            self.used += part;
            rest = &rest[part..];
        }
        Ok(())
    }
}

/// `print!` and `println!` call this.
pub fn _print(arguments: fmt::Arguments<'_>) {
    let _guard = PreemptGuard::new();
    let mut line = Line { bytes: [0; 256], used: 0 };
    // `Line` does not fail. If a `Display` of the caller's fails, its text ends there.
    let _ = line.write_fmt(arguments);
    line.flush();
}
