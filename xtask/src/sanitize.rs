//! The host's tests with the compiler's sanitizers.
//!
//! Both are the compiler's unstable options. `RUSTC_BOOTSTRAP` lets the stable one take them, and it
//! comes with their runtimes, so that nothing is to be installed. std comes compiled without them.

use std::path::PathBuf;

use anyhow::{Result, bail};
use duct::cmd;

use crate::build::Cargo;
use crate::shell::step;
use crate::tally::{Count, counted};
use crate::workspace;

/// Build scripts and procedural macros are built for the host without `--target`: nothing is sanitized in them.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The tests of plain tasks, as the suite's word `filter` selects them.
///
/// ThreadSanitizer does not know our switches; and it puts a signal off until the thread calls a
/// function that it intercepts, so that nobody would be preempted, and a core that waits for its alarm
/// would wait for ever. Nor can it be had with libtest, whose channels were compiled without it.
const STACKLESS: [&str; 7] = [
    "^tasks::",
    "smp::wakes_back_and_forth",
    "smp::parked_core_is_woken",
    "smp::two_cores_cannot_enter_one_runtime",
    "smp::tasks_of_two_cores_meet",
    "errors::nested_runtimes",
    "errors::nothing_runs_after_a_shutdown",
];

/// AddressSanitizer and LeakSanitizer over all of the host's tests.
pub fn addresses() -> Result<Count> {
    // Of the switches it is told (`hal_shim::linux::fibers`), but not of a stack's end.
    let cargo = cargo("address", &["--cfg", "address_sanitizer"])?
        .with_variable("ASAN_OPTIONS", "detect_stack_use_after_return=0".to_owned())
        .with_variable("LSAN_OPTIONS", suppressions("leaks.supp"));
    let what =
        ["--package", "trapline", "--package", "hal-shim", "--lib", "--tests", "--profile=quick"];
    let build = [&what[..], &["--no-run"]].concat();
    step("building the tests with AddressSanitizer", &cargo.command("test", &build))?;
    let run = [&what[..], &["--no-fail-fast"]].concat();
    counted("AddressSanitizer", &cargo.command("test", &run))
}

/// ThreadSanitizer over the tests of plain tasks.
pub fn races() -> Result<Count> {
    let cargo = cargo("thread", &["-Cunsafe-allow-abi-mismatch=sanitizer"])?
        .with_variable("TSAN_OPTIONS", suppressions("races.supp"));
    let what = ["--package", "trapline", "--test", "suite", "--profile=quick"];
    let build = [&what[..], &["--no-run"]].concat();
    step("building the tests with ThreadSanitizer", &cargo.command("test", &build))?;
    let mut count = Count::default();
    for filter in STACKLESS {
        let filter = format!("filter={filter}");
        let run = [&what[..], &["--", &filter]].concat();
        count.add(counted("ThreadSanitizer", &cargo.command("test", &run))?);
    }
    Ok(count)
}

/// Cargo with a sanitizer, which must be there.
fn cargo(sanitizer: &str, flags: &[&str]) -> Result<Cargo> {
    let libraries = cmd!("rustc", "--print", "target-libdir", "--target", TARGET).read()?;
    let runtime = match sanitizer {
        "address" => "_rt.asan.a",
        _ => "_rt.tsan.a",
    };
    let found = PathBuf::from(&libraries).read_dir().into_iter().flatten().flatten();
    if !found.into_iter().any(|file| file.file_name().to_string_lossy().ends_with(runtime)) {
        bail!(
            "this compiler comes without its sanitizers (no *{runtime} in {libraries}): \
             use a toolchain of rustup's for {TARGET}, stable or nightly"
        );
    }
    let flag = format!("-Zsanitizer={sanitizer}");
    let directory = format!("sanitize-{sanitizer}");
    let cargo = Cargo::host_with(&[&[&*flag], flags].concat(), &directory)?;
    Ok(cargo
        .with_variable("RUSTC_BOOTSTRAP", "1".to_owned())
        .with_variable("CARGO_BUILD_TARGET", TARGET.to_owned()))
}

/// The option that names a list in `tests/`.
fn suppressions(list: &str) -> String {
    format!(
        "suppressions={}:print_suppressions=0",
        workspace::root().join("tests").join(list).display()
    )
}
