//! Runs the host's tests with the compiler's sanitizers.
//!
//! The sanitizers are unstable options, which a stable compiler accepts under `RUSTC_BOOTSTRAP`.
//! Their runtimes come with the compiler, so that no installation is needed. The precompiled std is
//! not instrumented.

use std::path::PathBuf;

use anyhow::{Result, bail};
use duct::cmd;

use crate::build::Cargo;
use crate::shell::step;
use crate::tally::{Count, counted};
use crate::workspace;

/// The host, as an explicit target: build scripts and procedural macros, which are built without
/// `--target`, are then not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Values of the suite's `filter` that select the tests of plain tasks.
///
/// ThreadSanitizer does not know Trapline's stack switches. It also delays a signal until the
/// thread calls a function that it intercepts, so that no task would be preempted and a core that
/// waits for its alarm would hang. libtest cannot run under it, as its channels are not
/// instrumented.
const STACKLESS: [&str; 7] = [
    "^tasks::",
    "smp::wakes_back_and_forth",
    "smp::parked_core_is_woken",
    "smp::two_cores_cannot_enter_one_runtime",
    "smp::tasks_of_two_cores_meet",
    "errors::nested_runtimes",
    "errors::nothing_runs_after_a_shutdown",
];

/// Runs all of the host's tests with AddressSanitizer and LeakSanitizer.
pub fn addresses() -> Result<Count> {
    // `hal_shim::linux::fibers` reports stack switches to it, but not the end of a stack.
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

/// Runs the tests of plain tasks with ThreadSanitizer.
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

/// Cargo with a sanitizer; an error if the compiler comes without it.
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
             use a stable or nightly rustup toolchain for {TARGET}"
        );
    }
    let flag = format!("-Zsanitizer={sanitizer}");
    let directory = format!("sanitize-{sanitizer}");
    let cargo = Cargo::host_with(&[&[&*flag], flags].concat(), &directory)?;
    Ok(cargo
        .with_variable("RUSTC_BOOTSTRAP", "1".to_owned())
        .with_variable("CARGO_BUILD_TARGET", TARGET.to_owned()))
}

/// The sanitizer option for a list of suppressions in `tests/`.
fn suppressions(list: &str) -> String {
    format!(
        "suppressions={}:print_suppressions=0",
        workspace::root().join("tests").join(list).display()
    )
}
