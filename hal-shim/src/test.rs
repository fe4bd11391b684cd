//! A test harness for test kernels and the host alike (`harness = false`).
//!
//! ```no_run
//! # fn two_and_two() {}
//! hal_shim::entry!(unsafe program);
//!
//! fn program() {
//!     hal_shim::test::run(&[&[("two_and_two", two_and_two)]])
//! }
//! ```

use alloc::boxed::Box;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::{arg, exit, machine, print, println};

/// Keeps a value that a test made for as long as the program runs. A leak checker finds it, and all
/// that it owns, to be reachable.
pub fn keep<T: Sync + 'static>(thing: T) -> &'static T {
    struct Kept<T> {
        thing: T,
        before: AtomicPtr<()>,
    }
    static LAST: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
    let kept = Box::leak(Box::new(Kept { thing, before: AtomicPtr::default() }));
    let before = LAST.swap((&raw mut *kept).cast(), Ordering::Relaxed);
    kept.before.store(before, Ordering::Relaxed);
    &kept.thing
}

/// A test: its name, and a function that panics if the test fails.
pub type Test = (&'static str, fn());

/// Runs tests one after the other and ends the program: with exit code 0 if all passed, else 1.
///
/// Prints `test NAME ... ok` for each, and as the last line `N passed, N failed`. Words of the
/// command line:
///
/// - `filter=TEXT` runs the tests whose name contains it, `filter=^TEXT` those whose name begins
///   with it;
/// - `limit=SECONDS` is how long one test may take (on Linux only; default 60).
///
/// On Linux each test runs on a core of its own ([`isolated`](crate::isolated)). If it panics, it
/// has failed, and the next test runs; if it exceeds its limit, the run ends with exit code 1. On
/// machines where panics cannot be caught, the first panic ends the run with 101.
pub fn run(tests: &[&[Test]]) -> ! {
    let filter = arg("filter").unwrap_or("");
    let (mut passed, mut failed) = (0, 0);
    let wanted = |name: &str| match filter.strip_prefix('^') {
        Some(beginning) => name.starts_with(beginning),
        None => name.contains(filter),
    };
    for (name, test) in tests.iter().copied().flatten().filter(|(name, _)| wanted(name)) {
        print!("test {name} ... ");
        if machine::passes(name, *test) {
            println!("ok");
            passed += 1;
        } else {
            println!("FAILED");
            failed += 1;
        }
    }
    println!("{passed} passed, {failed} failed");
    exit(if failed == 0 { 0 } else { 1 })
}
