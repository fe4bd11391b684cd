//! `cargo xtask test`: runs the suites and prints their results.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

use crate::build::{self, Cargo, Options};
use crate::machine::{LOONGARCH64_HARD_FLOAT, Machine};
use crate::mutants::{self, Catcher, Mutant};
use crate::qemu::Guest;
use crate::sanitize;
use crate::setup::{self, Consent};
use crate::shell::step;
use crate::tally::{Count, SUITE_LIMIT, Tally, counted, counted_within};
use crate::workspace::Program;

/// A set of tests that `--arch` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Unit, integration and documentation tests on this Linux
    Host,
    /// The model-checked interleavings, and the mutants that they must catch
    Loom,
    /// Many tasks of several cores in random schedules (see shuttle-tests/src/lib.rs)
    Shuttle,
    /// The host's tests with AddressSanitizer, and those without stacks with ThreadSanitizer
    Sanitize,
    /// The test kernels on QEMU's RISC-V machine
    Riscv64,
    /// The test kernels on QEMU's PC
    #[value(name = "x86_64")]
    X86_64,
    /// The test kernels on QEMU's LoongArch machine
    Loongarch64,
}

/// The time limit of models with `--deeper`.
const DEEPER_LIMIT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The time limit of a test kernel.
const KERNEL_LIMIT: Duration = Duration::from_secs(5 * 60);

/// A configuration that each test kernel runs in.
struct Board {
    name: &'static str,
    machines: &'static [Machine],
    smp: u32,
    /// Whether the guest's clock counts instructions, which makes a failure reproducible.
    icount: bool,
    /// The processor; `None` is the machine's usual one.
    cpu: Option<&'static str>,
    /// The target; `None` is the architecture's first one.
    target: Option<&'static str>,
    words: &'static [&'static str],
}

const ONE_CORE: Board = Board {
    name: "1 core",
    machines: &[Machine::Riscv64, Machine::X86_64, Machine::Loongarch64],
    smp: 1,
    icount: true,
    cpu: None,
    target: None,
    words: &[],
};

const BOARDS: [Board; 5] = [
    ONE_CORE,
    // Each core is a thread of the host, so that the cores race.
    Board { name: "4 cores", smp: 4, icount: false, ..ONE_CORE },
    // The firmware sets the timer, which only preemption and sleeping depend on.
    Board {
        name: "1 core without sstc",
        machines: &[Machine::Riscv64],
        cpu: Some("rv64,sstc=false"),
        words: &["filter=stacks"],
        ..ONE_CORE
    },
    // User programs' vector registers are saved by other instructions.
    Board {
        name: "1 core without XSAVE",
        machines: &[Machine::X86_64],
        cpu: Some("qemu64"),
        words: &["filter=users"],
        ..ONE_CORE
    },
    // The kernel's own code uses floating-point registers.
    Board {
        name: "1 core, hard float",
        machines: &[Machine::Loongarch64],
        target: Some(LOONGARCH64_HARD_FLOAT),
        ..ONE_CORE
    },
];

/// The message that QEMU 7.2 prints before it aborts on loongarch64. With `-icount`, it aborts if a
/// translation block ends between the clock read and the `iocsrwr` that causes an interrupt
/// (hal-shim/src/loongarch64/csr.rs). All earlier instructions affect where blocks end.
const NO_IO: &str = "Raised interrupt while not in I/O function";
/// How often a kernel is run if that happens.
const ATTEMPTS: usize = 12;

/// `cargo xtask test`.
pub fn run(suites: &[Suite], deeper: u8, consent: Consent) -> ExitCode {
    let mut counts = Vec::new();
    for &suite in suites {
        counts.push(match suite {
            Suite::Host => ("host", or_failed(host())),
            Suite::Loom => ("loom", or_failed(models(None, deeper))),
            Suite::Shuttle => ("shuttle", or_failed(checked("shuttle", None, 0))),
            Suite::Sanitize => ("addresses", or_failed(sanitize::addresses())),
            Suite::Riscv64 => on_target(Machine::Riscv64, consent),
            Suite::X86_64 => on_target(Machine::X86_64, consent),
            Suite::Loongarch64 => on_target(Machine::Loongarch64, consent),
        });
        if suite == Suite::Loom {
            counts.push(("mutants", or_failed(mutants_of_models())));
        }
        if suite == Suite::Sanitize {
            counts.push(("races", or_failed(sanitize::races())));
        }
    }
    finish(&counts)
}

/// `cargo xtask mutants`.
pub fn run_mutants(only: Option<&str>, consent: Consent) -> Result<ExitCode> {
    let mutants = mutants::list(only)?;
    // A test that fails without an edit would catch any mutant.
    let mut unbroken = Count::default();
    if mutants.iter().any(|mutant| matches!(mutant.catcher, Catcher::Model(_))) {
        let model = only.and(mutants.iter().find_map(|mutant| match &mutant.catcher {
            Catcher::Model(model) => Some(&**model),
            Catcher::Test { .. } => None,
        }));
        unbroken.add(or_failed(models(model, 0)));
    }
    for &machine in Machine::value_variants() {
        if mutants.iter().any(|mutant| is_of(mutant, machine)) {
            setup::ensure(&[machine.arch()], consent)?;
            for suite in Program::test_kernels()?.iter().filter(|it| it.name == mutants::SUITE) {
                unbroken.add(or_failed(kernel(machine, suite, &ONE_CORE)));
            }
        }
    }
    if unbroken.failed > 0 {
        anyhow::bail!("the tests must pass before mutants are tried");
    }
    Ok(finish(&[("mutants", or_failed(mutants::run(&mutants)))]))
}

fn is_of(mutant: &Mutant, machine: Machine) -> bool {
    matches!(mutant.catcher, Catcher::Test { machine: its, .. } if its == machine)
}

fn finish(counts: &[(&str, Count)]) -> ExitCode {
    let mut total = Count::default();
    println!();
    for (name, count) in counts {
        println!("{name:<12} {count}");
        total.add(*count);
    }
    println!("{total}");
    if total.failed == 0 && total.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints an error and counts it as one failure.
fn or_failed(result: Result<Count>) -> Count {
    result.unwrap_or_else(|error| {
        eprintln!("{} {error:#}", console::style("error:").red().bold().for_stderr());
        Count::FAILED
    })
}

/// Runs the host's tests without optimization, which checks debug assertions, and with it, which
/// shows races.
fn host() -> Result<Count> {
    let cargo = Cargo::host();
    let mut count = Count::default();
    for (name, arguments) in [
        (
            "the host's tests",
            &[
                "--workspace",
                "--exclude",
                "benches",
                "--exclude",
                "loom-tests",
                "--exclude",
                "shuttle-tests",
            ][..],
        ),
        ("the host's tests, optimized", &["--package", "trapline", "--profile=quick", "--tests"]),
    ] {
        let build = [arguments, &["--no-run"]].concat();
        step(&format!("building {name}"), &cargo.command("test", &build))?;
        let run = [arguments, &["--no-fail-fast"]].concat();
        count.add(counted(name, &cargo.command("test", &run))?);
    }
    Ok(count)
}

/// Runs the mutants that a model must catch. Each of the others needs a kernel to be built, which
/// takes longer.
fn mutants_of_models() -> Result<Count> {
    let mut mutants = mutants::list(None)?;
    mutants.retain(|mutant| matches!(mutant.catcher, Catcher::Model(_)));
    mutants::run(&mutants)
}

/// Runs the models, or those whose name contains `only`, with their preemption bounds raised by
/// `deeper`.
fn models(only: Option<&str>, deeper: u8) -> Result<Count> {
    checked("loom", only, deeper)
}

/// Runs the tests of the model checker `checker`, or those whose name contains `only`.
fn checked(checker: &str, only: Option<&str>, deeper: u8) -> Result<Count> {
    let cargo = Cargo::host_with(&["--cfg", checker], checker)?;
    let cargo = cargo.with_variable("LOOM_DEEPER", deeper.to_string());
    let package = format!("{checker}-tests");
    let arguments = ["--package", &*package, "--profile=quick"];
    let build = [&arguments[..], &["--no-run"]].concat();
    step(&format!("building {package}"), &cargo.command("test", &build))?;
    let run = [&arguments[..], &["--no-fail-fast"], only.as_slice()].concat();
    let limit = if deeper == 0 { SUITE_LIMIT } else { DEEPER_LIMIT };
    counted_within(limit, &package, &cargo.command("test", &run))
}

fn on_target(machine: Machine, consent: Consent) -> (&'static str, Count) {
    (machine.arch().name(), or_failed(kernels(machine, consent)))
}

fn kernels(machine: Machine, consent: Consent) -> Result<Count> {
    setup::ensure(&[machine.arch()], consent)?;
    let mut programs = Program::test_kernels()?;
    if machine == Machine::Riscv64 {
        // It checks what it shows.
        programs.push(Program::example("port")?);
    }
    let mut total = Count::default();
    for program in programs {
        for board in BOARDS.iter().filter(|board| board.machines.contains(&machine)) {
            total.add(or_failed(kernel(machine, &program, board)));
        }
    }
    Ok(total)
}

fn kernel(machine: Machine, program: &Program, board: &Board) -> Result<Count> {
    let Board { name, smp, icount, cpu, target, words, .. } = *board;
    let options = Options { release: true, target, ..Options::default() };
    let kernel = build::build(machine.arch(), program, &options)?;
    let name = format!("{} on {}, {name}", program.name, machine.arch().name());
    println!("\n     Running {name}");
    let mut words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    for attempt in 1.. {
        let mut tally = Tally::default();
        let mut is_qemus = false;
        let guest =
            Guest { machine, kernel: kernel.clone(), smp, icount, cpu, words: words.clone() };
        let end = guest.lines(KERNEL_LIMIT, |line| {
            println!("{line}");
            tally.line(line);
            is_qemus |= icount && line.contains(NO_IO);
        })?;
        if !is_qemus || attempt == ATTEMPTS {
            return Ok(tally.ended(&name, end, KERNEL_LIMIT));
        }
        println!("\nQEMU ended itself, not the kernel: again, with another word for the guest");
        // A word of another length moves all that comes after it by a few instructions.
        words.retain(|word| !word.starts_with("pad="));
        words.push(format!("pad={}", "x".repeat(7 * attempt)));
    }
    unreachable!("the last attempt returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_that_cannot_run_has_failed() {
        assert_eq!(or_failed(Err(anyhow::anyhow!("no QEMU"))), Count::FAILED);
    }
}
