//! `cargo xtask`: everything that is done with Trapline beside compiling it.
//!
//! This file is the command line. How a program is built is in `build`, how it runs in QEMU in
//! `qemu`; `setup`, `demo`, `bench`, `cost`, `suites`, `mutants` and `lint` are the commands; `sanitize`
//! is one of the suites.

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
    /// Install what is missing without asking (so does CI=true, and so does no terminal)
    #[arg(long, global = true)]
    yes: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find what is missing for building and running on target (QEMU, `core`), and install it
    Setup {
        /// For which architecture; may be repeated
        #[arg(long, default_value = "all", value_parser = one_or_all::<Arch>())]
        arch: Vec<Selected<Arch>>,
    },
    /// A task that is due every millisecond, beside tasks that compute without end
    ///
    /// On the host it is compared, in the same run, with the same load on plain Linux threads.
    Demo {
        /// Where to run it
        #[arg(long, default_value = "host", value_parser = one_or_all::<Arch>())]
        arch: Selected<Arch>,
        /// How many tasks compute without end
        #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        hogs: u32,
        /// For how long, in seconds
        #[arg(long, default_value_t = 5.0, value_parser = seconds)]
        seconds: f64,
        /// Print only one JSON line an architecture on standard output
        #[arg(long)]
        json: bool,
    },
    /// What scheduling costs on this Linux, beside other runtimes in the same run
    ///
    /// On one core (`cross_wake` on two). The program in benches/ measures; its sources say what each row is.
    Bench {
        #[command(flatten)]
        selection: bench::Selection,
        /// Print only one JSON line a cell on standard output
        #[arg(long)]
        json: bool,
    },
    /// What scheduling costs on target, in counted instructions
    ///
    /// An optimized build in QEMU, where every instruction counts one: the same figures in every run.
    /// benches/target/cost.rs says from where to where each is counted.
    Cost {
        /// The machine
        #[arg(long, default_value = "all", value_parser = one_or_all::<Machine>())]
        arch: Selected<Machine>,
        /// Print only one JSON line an architecture on standard output
        #[arg(long)]
        json: bool,
    },
    /// Build one example and run it in QEMU; its exit code becomes ours (Ctrl-A X ends QEMU)
    Qemu {
        /// The machine
        arch: Machine,
        /// The example's name
        example: String,
        /// How many cores the machine has
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=8))]
        smp: u32,
        /// Features to build with, separated by commas
        #[arg(long, value_delimiter = ',')]
        features: Vec<String>,
        /// Build with optimization
        #[arg(long)]
        release: bool,
        /// Let the guest's clock count instructions: the same in every run
        #[arg(long)]
        icount: bool,
        /// Seconds after which a guest that has not ended is ended, and has failed
        #[arg(long, default_value_t = 120)]
        timeout: u64,
        /// Words for the example, as `key=value`
        #[arg(last = true, value_parser = key_value)]
        words: Vec<String>,
    },
    /// Run the tests; the last line is `N passed, N failed`
    Test {
        /// Which suite; may be repeated
        #[arg(long, default_value = "all", value_parser = one_or_all::<Suite>())]
        arch: Vec<Selected<Suite>>,
        /// Let the models that are not checked in full go on for this many preemptions more than
        /// usually (with 1 it takes hours)
        #[arg(long, default_value_t = 0)]
        deeper: u8,
    },
    /// Break the code on purpose, as the files mutants.toml say: each time a named test must fail
    Mutants {
        /// Only the mutant of this name
        #[arg(long)]
        only: Option<String>,
    },
    /// Print the files of src/ in floors: each imports only from below, or in its [circle]
    Layers {
        /// Print also which file imports what from which
        #[arg(long)]
        imports: bool,
    },
    /// Formatting, clippy and documentation, on the host and for the targets, and the MSRV
    Lint,
}

/// What one word selects: a single one, or all.
#[derive(Clone)]
struct Selected<T>(Vec<T>);

/// Reads the name of a `T`, or `all`.
fn one_or_all<T: ValueEnum + Send + Sync + 'static>() -> impl TypedValueParser<Value = Selected<T>>
{
    let names = T::value_variants().iter().filter_map(T::to_possible_value);
    let all = PossibleValue::new("all").help("Each of these");
    PossibleValuesParser::new(names.chain([all])).map(|name| {
        Selected(match T::from_str(&name, false) {
            Ok(one) => vec![one],
            Err(_) => T::value_variants().to_vec(),
        })
    })
}

/// Each that was selected, once.
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
