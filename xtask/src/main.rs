//! `cargo xtask`: set-up, demo, benches, tests and checks of Trapline.
//!
//! This file is the command line. The commands are in `setup`, `demo`, `bench`, `cost`, `suites`
//! (`cargo xtask test`), `mutants`, `layers` and `lint`. They use these files:
//!
//! - `build` builds a program for an architecture; `qemu` runs it on a machine; `machine` lists
//!   both.
//! - `workspace` finds the workspace's root and its programs; `shell` runs other programs.
//! - `tally` adds up test results; `sanitize` runs the tests with sanitizers.
//! - `imports` reads which file imports from which, for `layers`; `columns` checks line widths.
//! - `threads` measures the demo's load on Linux threads; `plot` draws the plot of `bench`.

mod bench;
mod build;
mod columns;
mod cost;
mod demo;
mod imports;
mod layers;
mod lint;
mod machine;
mod mutants;
mod plot;
mod qemu;
mod sanitize;
mod setup;
mod shell;
mod suites;
mod tally;
mod threads;
mod workspace;

use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};

use crate::machine::{Arch, Machine};
use crate::suites::Suite;
use crate::workspace::Program;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Set-up, demo, QEMU runner and tests of Trapline")]
struct Cli {
    /// Install missing programs without asking (as with CI=true, or without a terminal)
    #[arg(long, global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find and install the programs that building and running on target needs (QEMU, `core`)
    Setup {
        /// The architecture; may be repeated
        #[arg(long, default_value = "all", value_parser = one_or_all::<Arch>())]
        arch: Vec<Selected<Arch>>,
    },
    /// Run a task that is due every millisecond beside tasks that compute without end
    ///
    /// On the host, the same run measures the same load on plain Linux threads.
    Demo {
        /// The architecture to run on
        #[arg(long, default_value = "host", value_parser = one_or_all::<Arch>())]
        arch: Selected<Arch>,
        /// The number of tasks that compute without end
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        hogs: u32,
        /// The duration in seconds
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Print only one JSON line per architecture on standard output
        #[arg(long)]
        json: bool,
    },
    /// Measure the cost of scheduling on this Linux, beside other runtimes in the same run
    ///
    /// On one core (`cross_wake` on two). The program in benches/ measures; its sources describe
    /// the rows.
    Bench {
        #[command(flatten)]
        selection: bench::Selection,
        /// Print only one JSON line per cell on standard output
        #[arg(long)]
        json: bool,
    },
    /// Count the instructions that scheduling costs on target
    ///
    /// Runs an optimized build in QEMU and counts its instructions, so that each run gives the same
    /// figures. benches/target/cost.rs says where the count of each begins and ends.
    Cost {
        /// The machine
        #[arg(long, default_value = "all", value_parser = one_or_all::<Machine>())]
        arch: Selected<Machine>,
        /// Print only one JSON line per architecture on standard output
        #[arg(long)]
        json: bool,
    },
    /// Build one example, run it in QEMU and exit with its exit code (Ctrl-A X ends QEMU)
    Qemu {
        /// The machine
        arch: Machine,
        /// The example's name
        example: String,
        /// The number of the machine's cores
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
        smp: u32,
        /// Cargo features, separated by commas
        #[arg(long, value_delimiter = ',')]
        features: Vec<String>,
        /// Build with optimization
        #[arg(long)]
        release: bool,
        /// Let the guest's clock count instructions, so that each run is the same
        #[arg(long)]
        icount: bool,
        /// Seconds after which a guest that still runs is killed, which counts as a failure
        #[arg(long, default_value_t = 120)]
        timeout: u64,
        /// Arguments of the example, as `key=value`
        #[arg(last = true, value_parser = key_value)]
        words: Vec<String>,
    },
    /// Run the tests; the last line is `N passed, N failed`
    Test {
        /// The suite; may be repeated
        #[arg(long, default_value = "all", value_parser = one_or_all::<Suite>())]
        arch: Vec<Selected<Suite>>,
        /// Raise the preemption bound of the models that are not checked in full by this much (with
        /// 1 it takes hours)
        #[arg(long, default_value_t = 0)]
        deeper: u8,
    },
    /// Apply each edit of the files mutants.toml, which breaks the code; the named test must fail
    Mutants {
        /// Run only the mutant of this name
        #[arg(long)]
        only: Option<String>,
    },
    /// Print the source files in floors: a file imports only from lower ones or its own circle
    Layers {
        /// Also print which file imports what from which
        #[arg(long)]
        imports: bool,
    },
    /// Check formatting, line widths, circles of imports, clippy, documentation and the MSRV
    Lint,
}

/// The selection that one argument makes: a single value, or all.
#[derive(Clone)]
struct Selected<T>(Vec<T>);

/// Parses the name of a `T`, or `all`.
fn one_or_all<T: ValueEnum + Send + Sync + 'static>() -> impl TypedValueParser<Value = Selected<T>>
{
    let names = T::value_variants().iter().filter_map(T::to_possible_value);
    let all = PossibleValue::new("all").help("All of these");
    PossibleValuesParser::new(names.chain([all])).map(|name| {
        Selected(match T::from_str(&name, false) {
            Ok(one) => vec![one],
            Err(_) => T::value_variants().to_vec(),
        })
    })
}

/// Returns each selected value once.
fn each<T: ValueEnum + PartialEq>(selected: &[Selected<T>]) -> Vec<T> {
    let mut each = T::value_variants().to_vec();
    each.retain(|one| selected.iter().any(|Selected(those)| those.contains(one)));
    each
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number from 0.1 to 3600".to_owned()),
    }
}

fn key_value(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() && !text.contains(char::is_whitespace) => {
            Ok(text.to_owned())
        }
        _ => Err("not of the form key=value, without blanks".to_owned()),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let consent = setup::Consent::from_flag(cli.yes);
    match cli.command {
        Command::Setup { arch } => {
            setup::run(&each(&arch), consent)?;
        }
        Command::Demo { arch, hogs, seconds, json } => {
            demo::run(&arch.0, threads::Load { hogs, seconds }, json, consent)?;
        }
        Command::Bench { selection, json } => bench::run(&selection, json)?,
        Command::Cost { arch, json } => cost::run(&arch.0, json, consent)?,
        Command::Qemu { arch, example, smp, features, release, icount, timeout, words } => {
            let program = Program::example(&example)?;
            setup::ensure(&[arch.arch()], consent)?;
            let options = build::Options { release, features, target: None };
            let kernel = build::build(arch.arch(), &program, &options)?;
            let guest = qemu::Guest { machine: arch, kernel, smp, icount, cpu: None, words };
            return guest.on_terminal(Duration::from_secs(timeout)).map(ExitCode::from);
        }
        Command::Test { arch, deeper } => {
            return Ok(suites::run(&each(&arch), deeper, consent));
        }
        Command::Mutants { only } => return suites::run_mutants(only.as_deref(), consent),
        Command::Layers { imports } => layers::run(imports)?,
        Command::Lint => lint::run(consent)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("{} {error:#}", console::style("error:").red().bold().for_stderr());
        ExitCode::FAILURE
    })
}
