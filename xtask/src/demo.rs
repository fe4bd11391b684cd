//! `cargo xtask demo`: runs `examples/preempt.rs` and shows its results, on the host beside those
//! of the same load on plain threads.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use console::style;
use serde::{Deserialize, Serialize};

use crate::build::{self, Options};
use crate::machine::{Arch, Machine};
use crate::qemu::Guest;
use crate::setup::{self, Consent};
use crate::shell::{self, End};
use crate::threads::{self, Lateness, Load, Measured, Scheduling};
use crate::workspace::Program;

/// The prefix of the line in which the example prints its results.
const MARK: &str = "preempt: ";

/// The example's results.
#[derive(Clone, Debug, Deserialize)]
struct Results {
    hogs: u32,
    seconds: f64,
    activations: u64,
    missed: u64,
    lateness_us: Lateness,
    preemptions: u64,
    hog_share: f64,
    hog_shares: Vec<f64>,
    /// The results of a short run with hogs that are not stackful.
    plain: Plain,
}

#[derive(Clone, Debug, Deserialize)]
struct Plain {
    activations: u64,
    missed: u64,
    lateness_us: Lateness,
}

#[derive(Clone, Debug, Serialize)]
struct Threads {
    default: Measured,
    /// `None` if SCHED_FIFO is not permitted.
    fifo: Option<Measured>,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    arch: &'a str,
    hogs: u32,
    seconds: f64,
    activations: u64,
    missed: u64,
    lateness_us: Lateness,
    preemptions: u64,
    hog_share: f64,
    hog_shares: &'a [f64],
    threads: Option<&'a Threads>,
}

impl<'a> Line<'a> {
    fn new(arch: Arch, results: &'a Results, threads: Option<&'a Threads>) -> Self {
        Self {
            arch: arch.name(),
            hogs: results.hogs,
            seconds: results.seconds,
            activations: results.activations,
            missed: results.missed,
            lateness_us: results.lateness_us,
            preemptions: results.preemptions,
            hog_share: results.hog_share,
            hog_shares: &results.hog_shares,
            threads,
        }
    }
}

pub fn run(archs: &[Arch], load: Load, json: bool, consent: Consent) -> Result<()> {
    setup::ensure(archs, consent)?;
    let program = Program::example("preempt")?;
    let options = Options { release: true, ..Options::default() };
    for &arch in archs {
        let executable = build::build(arch, &program, &options)?;
        let what = format!("{} hogs for {} s", load.hogs, load.seconds);
        let words = vec![format!("hogs={}", load.hogs), format!("seconds={}", load.seconds)];
        let machine = Machine::value_variants().iter().find(|machine| machine.arch() == arch);
        let (results, threads) = match machine {
            None => {
                let cpu = threads::measured_cpu()?;
                // The run takes about two seconds longer than the load. The rest is for a busy
                // machine.
                let limit = Duration::from_secs_f64(60.0 + 3.0 * load.seconds);
                let results = {
                    let _doing = shell::doing(&format!("Trapline: {what}"));
                    threads::pinned(cpu, || {
                        results(|line| shell::lines(&duct::cmd(executable, words), limit, line))
                    })??
                };
                (results, Some(on_threads(load, &what, cpu)?))
            }
            Some(&machine) => {
                let _doing = shell::doing(&format!("Trapline on {} in QEMU: {what}", arch.name()));
                // A guest that counts instructions may take ten seconds and more for one of its
                // own.
                let limit = Duration::from_secs_f64(120.0 + 60.0 * load.seconds);
                let guest =
                    Guest { machine, kernel: executable, smp: 1, icount: true, cpu: None, words };
                (results(|line| guest.lines(limit, line))?, None)
            }
        };
        if json {
            println!("{}", serde_json::to_string(&Line::new(arch, &results, threads.as_ref()))?);
        } else {
            print(arch, &results, threads.as_ref());
        }
    }
    Ok(())
}

/// Finds the results in the lines that `run` passes on.
fn results(run: impl FnOnce(&mut dyn FnMut(&str)) -> Result<End>) -> Result<Results> {
    let (mut found, mut console) = (None, String::new());
    let end = run(&mut |line: &str| match line.strip_prefix(MARK) {
        Some(json) => found = Some(json.to_owned()),
        None => console += &format!("{line}\n"),
    })?;
    match (end, found) {
        (End::Exit(0), Some(json)) => serde_json::from_str(&json)
            .with_context(|| format!("cannot read the example's results: {json}")),
        (End::Exit(0), None) => bail!("the example gave no results\n{}", shell::tail(&console)),
        (End::Exit(code), _) => {
            bail!("the example ended with exit code {code}\n{}", shell::tail(&console))
        }
        (End::TimeUp, _) => {
            bail!("the example was killed at its time limit\n{}", shell::tail(&console))
        }
    }
}

fn on_threads(load: Load, what: &str, cpu: usize) -> Result<Threads> {
    let measure = |name: &str, scheduling| {
        let _doing = shell::doing(&format!("Linux threads, {name}: {what}"));
        threads::measure(load, scheduling, cpu)
    };
    let default = measure("default scheduling", Scheduling::Default)?;
    let default = default.context("Linux refuses its default scheduling")?;
    Ok(Threads { default, fifo: measure("SCHED_FIFO", Scheduling::Fifo)? })
}

/// A row of the table.
struct Row {
    name: &'static str,
    lateness: Lateness,
    missed: String,
    hog_share: Option<f64>,
}

fn print(arch: Arch, results: &Results, threads: Option<&Threads>) {
    let missed = |missed: u64, of: u64| format!("{missed} of {of}");
    let mut rows = vec![
        Row {
            name: "plain hogs (a moment)",
            lateness: results.plain.lateness_us,
            missed: missed(results.plain.missed, results.plain.activations),
            hog_share: None,
        },
        Row {
            name: "stackful hogs",
            lateness: results.lateness_us,
            missed: missed(results.missed, results.activations),
            hog_share: Some(results.hog_share),
        },
    ];
    let mut thread_row = |name, measured: &Measured| {
        rows.push(Row {
            name,
            lateness: measured.lateness_us,
            missed: missed(measured.missed, results.activations),
            hog_share: Some(measured.hog_share),
        });
    };
    if let Some(threads) = threads {
        thread_row("Linux threads", &threads.default);
        if let Some(fifo) = &threads.fifo {
            thread_row("Linux threads, FIFO", fifo);
        }
    }
    let width = console::Term::stdout().size_checked().map_or(100, |(_, columns)| columns.into());
    let title = format!(
        "A task due every millisecond beside {} hogs, on one core for {} s ({})",
        results.hogs,
        results.seconds,
        arch.name()
    );
    println!("\n{}\n", style(title).bold());
    for line in table(&rows, width) {
        println!("{line}");
    }
    let spread = results
        .hog_shares
        .iter()
        .fold((1.0_f64, 0.0_f64), |(least, most), &share| (least.min(share), most.max(share)));
    println!(
        "\n{} preemptions; each hog got {:.1} % to {:.1} % of the hogs' time.",
        results.preemptions,
        100.0 * spread.0,
        100.0 * spread.1
    );
    if threads.is_some_and(|threads| threads.fifo.is_none()) {
        println!("SCHED_FIFO is not permitted here (it needs root or CAP_SYS_NICE).");
    }
    println!(
        "Bars: p99 on a logarithmic scale. `hogs`: their work as a share of what one does alone."
    );
}

/// Formats the table. No line is wider than `width`, unless that leaves no room for the figures.
fn table(rows: &[Row], width: usize) -> Vec<String> {
    let head = format!(
        "{:<22}{:>8} {:>8} {:>8} {:>8}  {:>13} {:>7}",
        "late by", "p50", "p99", "p99.9", "max", "missed", "hogs"
    );
    let room = width.saturating_sub(head.len() + 3).min(40);
    let highest = rows.iter().map(|row| row.lateness.p99).fold(0.0, f64::max);
    let mut lines = vec![style(head).dim().to_string()];
    for row in rows {
        let Lateness { p50, p99, p999, max } = row.lateness;
        let share =
            row.hog_share.map_or("–".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let text = format!(
            "{:<22}{:>8} {:>8} {:>8} {:>8}  {:>13} {:>7}",
            row.name,
            time(p50),
            time(p99),
            time(p999),
            time(max),
            row.missed,
            share
        );
        // The scale is the decimal logarithm and begins at 0.1 µs.
        let scale = |us: f64| (us.max(0.1) * 10.0).log10();
        let length = (room as f64 * scale(p99) / scale(highest).max(1e-9)).round() as usize;
        let bar = style("█".repeat(length.min(room)));
        let bar = if p99 >= 1000.0 { bar.red() } else { bar.green() };
        lines.push(format!("{text}  {bar}").trim_end().to_owned());
    }
    lines
}

/// Formats microseconds with three digits and a unit.
fn time(us: f64) -> String {
    let (value, unit) = match us {
        _ if us < 1000.0 => (us, "µs"),
        _ if us < 1e6 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    match value {
        _ if value < 10.0 => format!("{value:.2} {unit}"),
        _ if value < 100.0 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = concat!(
        r#"{"hogs":2,"seconds":0.5,"activations":500,"missed":1,"#,
        r#""lateness_us":{"p50":4.5,"p99":9.0,"p999":20.0,"max":1200.0},"#,
        r#""preemptions":900,"hog_share":0.99,"hog_shares":[0.5,0.5],"#,
        r#""plain":{"activations":200,"missed":199,"#,
        r#""lateness_us":{"p50":1.0,"p99":2.0,"p999":3.0,"max":4.0}}}"#
    );

    fn printed(lines: &[&str], end: End) -> Result<Results> {
        results(|line| {
            lines.iter().for_each(|text| line(text));
            Ok(end)
        })
    }

    fn good() -> Results {
        printed(&["for people", &format!("{MARK}{PRINTED}"), "more"], End::Exit(0)).unwrap()
    }

    fn keys(value: &serde_json::Value) -> Vec<&str> {
        let mut keys: Vec<_> = value.as_object().unwrap().keys().map(|key| &**key).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn json_has_the_promised_shape() {
        let results = good();
        let measured = Measured { lateness_us: results.lateness_us, hog_share: 0.9, missed: 3 };
        let threads = Threads { default: measured.clone(), fifo: None };
        let line = serde_json::to_string(&Line::new(Arch::Host, &results, Some(&threads))).unwrap();
        assert!(!line.contains('\n') && line.starts_with(r#"{"arch":"host","hogs":2,"#), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            keys(&value),
            [
                "activations",
                "arch",
                "hog_share",
                "hog_shares",
                "hogs",
                "lateness_us",
                "missed",
                "preemptions",
                "seconds",
                "threads"
            ]
        );
        assert_eq!(keys(&value["lateness_us"]), ["max", "p50", "p99", "p999"]);
        assert_eq!(keys(&value["threads"]), ["default", "fifo"]);
        assert_eq!(keys(&value["threads"]["default"]), ["hog_share", "lateness_us"]);
        assert!(value["threads"]["fifo"].is_null());

        let threads = Threads { default: measured.clone(), fifo: Some(measured) };
        let value = serde_json::to_value(Line::new(Arch::Host, &results, Some(&threads))).unwrap();
        assert_eq!(keys(&value["threads"]["fifo"]), ["hog_share", "lateness_us"]);
        let value = serde_json::to_value(Line::new(Arch::Riscv64, &results, None)).unwrap();
        assert!(value["threads"].is_null() && value["arch"] == "riscv64");
    }

    #[test]
    fn a_run_without_results_says_why() {
        let error = |lines: &[&str], end| format!("{:#}", printed(lines, end).unwrap_err());
        let marked = format!("{MARK}{PRINTED}");
        assert!(error(&["boom"], End::Exit(0)).contains("no results\n    boom"));
        assert!(error(&["boom", &marked], End::Exit(101)).contains("exit code 101\n    boom"));
        assert!(error(&["boom"], End::TimeUp).contains("time limit\n    boom"));
        assert!(error(&["preempt: {}"], End::Exit(0)).contains("the example's results: {}"));
    }

    #[test]
    fn times_have_three_digits() {
        let all = [0.0, 4.25, 42.0, 999.0, 1000.0, 12_345.0, 2e6].map(time);
        assert_eq!(
            all,
            ["0.00 µs", "4.25 µs", "42.0 µs", "999 µs", "1.00 ms", "12.3 ms", "2.00 s"]
        );
    }

    #[test]
    fn the_table_fits() {
        let results = good();
        let row = |late: f64| Row {
            name: "Linux threads, FIFO",
            lateness: Lateness { p99: late, ..results.lateness_us },
            missed: "5000 of 5000".to_owned(),
            hog_share: Some(1.0),
        };
        for width in [0, 80, 100, 200] {
            for line in table(&[row(5.0), row(200_000.0), row(0.0)], width) {
                let columns = console::measure_text_width(&line);
                assert!(columns <= width.max(80), "{columns} of {width}: {line}");
            }
        }
    }
}
