//! `cargo xtask bench`: runs the program `measure` of `benches/` and shows its figures beside
//! Trapline's limits.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::style;
use serde::{Deserialize, Serialize};

use crate::build::{self, Options};
use crate::machine::Arch;
use crate::plot::{self, Curve};
use crate::shell::{self, End};
use crate::workspace::{self, Program};

/// The time limit of the program.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// The program's exit code for invalid arguments.
const REFUSED: u8 = 2;

/// The rows and implementations to be measured.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Selection {
    /// Take fewer and shorter samples: a minute instead of five
    #[arg(long)]
    quick: bool,
    /// Only these rows, separated by commas (an unknown name lists the known ones)
    #[arg(long, value_name = "ROWS", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these implementations, separated by commas (an unknown name lists the known ones)
    #[arg(long = "impl", value_name = "IMPLEMENTATIONS", value_delimiter = ',')]
    implementations: Vec<String>,
    /// Copy the plot of `yield` to benches/yield.svg, which the README shows
    #[arg(long, conflicts_with_all = ["quick", "only", "implementations"])]
    bless: bool,
}

impl Selection {
    /// The arguments of the program.
    fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.quick {
            words.push("--quick".to_owned());
        }
        for (option, names) in [("--only", &self.only), ("--impl", &self.implementations)] {
            if !names.is_empty() {
                words.extend([option.to_owned(), names.join(",")]);
            }
        }
        words
    }

    fn is_all(&self) -> bool {
        self.only.is_empty() && self.implementations.is_empty()
    }
}

/// The figures of one implementation in one row, as the program prints them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Cell {
    #[serde(flatten)]
    promised: Promised,
    /// The quartiles of `ns`.
    spread: Option<[f64; 2]>,
}

/// One line of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Promised {
    bench: String,
    n: Option<u64>,
    #[serde(rename = "impl")]
    implementation: String,
    ns: Option<f64>,
    bytes: Option<f64>,
    allocs: Option<f64>,
}

pub fn run(selection: &Selection, json: bool) -> Result<()> {
    let options = Options { release: true, ..Options::default() };
    let program = build::build(Arch::Host, &Program::measure()?, &options)?;
    let mut cells = Vec::new();
    {
        let doing = shell::doing("measuring");
        let command = duct::cmd(program, selection.words());
        let mut wrong = None;
        let end = shell::lines(&command, LIMIT, |line| match serde_json::from_str::<Cell>(line) {
            Ok(cell) => {
                doing.now(&format!("measured {}", row_name(&cell.promised)));
                cells.push(cell);
            }
            Err(error) => wrong = Some(format!("{error}: {line}")),
        })?;
        match (end, wrong) {
            (End::Exit(0), None) => {}
            (End::Exit(0), Some(wrong)) => bail!("cannot read the program's output: {wrong}"),
            // The program has printed which name it does not know.
            (End::Exit(REFUSED), _) => bail!("nothing was measured"),
            (end, _) => bail!("the program `measure` failed: {end:?}"),
        }
    }
    if cells.is_empty() {
        bail!("none of these implementations has one of these rows");
    }
    if json {
        for cell in &cells {
            println!("{}", serde_json::to_string(&cell.promised)?);
        }
    } else {
        print(&cells);
    }
    if selection.is_all() {
        let path = PathBuf::from(workspace::target_directory("yield.svg")?);
        write_plot(&path, &cells)?;
        if !json {
            println!("\nThe plot of `yield` is in {}.", path.display());
        }
    }
    if selection.bless {
        let path = workspace::root().join("benches/yield.svg");
        write_plot(&path, &cells)?;
        if !json {
            println!("It is also in {}, which the README shows.", path.display());
        }
    }
    Ok(())
}

fn write_plot(path: &Path, cells: &[Cell]) -> Result<()> {
    let plot = plot::svg(&curves(cells));
    std::fs::write(path, plot).with_context(|| format!("writing {}", path.display()))
}

fn row_name(cell: &Promised) -> String {
    match cell.n {
        Some(n) => format!("{} {}", cell.bench, plot::count(n)),
        None => cell.bench.clone(),
    }
}

/// The cost of `yield` over the number of tasks, for each implementation.
fn curves(cells: &[Cell]) -> Vec<Curve<'static>> {
    let cells = || cells.iter().map(|cell| &cell.promised).filter(|cell| cell.bench == "yield");
    let points = |name: &str| {
        let own = cells().filter(|cell| cell.implementation == name);
        own.filter_map(|cell| Some((cell.n? as f64, cell.ns?))).collect()
    };
    let names = COLUMNS.iter().filter(|name| cells().any(|cell| cell.implementation == **name));
    names.map(|name| Curve { name, points: points(name) }).collect()
}

/// The implementations in the order of the table's columns.
const COLUMNS: [&str; 12] = [
    TRAPLINE,
    "trapline-static",
    FLOOR,
    EMBASSY,
    "async-task",
    "async-executor",
    "tokio",
    "edge-executor",
    "futures",
    "corosensei",
    "generator",
    "may",
];

const TRAPLINE: &str = "trapline";
const FLOOR: &str = "floor-boxed";
const EMBASSY: &str = "embassy-executor";

fn is_peer(name: &str) -> bool {
    !name.starts_with("trapline") && !name.starts_with("floor")
}

/// embassy-executor's tasks have neither an allocation nor a reference count.
fn is_peer_that_allocates(name: &str) -> bool {
    is_peer(name) && name != EMBASSY
}

/// A limit for a figure of Trapline.
#[derive(Clone, Copy, Debug)]
enum Goal {
    /// At most this many times the figure of this implementation.
    Times(f64, &'static str),
    /// At most this many times the best figure of the implementations that the function selects.
    TimesBest(f64, fn(&str) -> bool),
    /// At most this figure.
    Absolute(f64),
}

/// The ratio by which two runs of the same code differ.
const NOT_SLOWER: f64 = 1.03;

/// The implementation that is judged in a row, and its limits.
fn goals(bench: &str, n: Option<u64>) -> (&'static str, Vec<Goal>) {
    use Goal::{Absolute, Times, TimesBest};
    let goals = match bench {
        "spawn" => vec![Times(1.2, FLOOR), TimesBest(1.0, is_peer_that_allocates)],
        "spawn_static" => return ("trapline-static", vec![Times(NOT_SLOWER, EMBASSY)]),
        "spawn_join" => vec![Times(1.0, "async-task")],
        "yield" if n <= Some(10_000) => vec![Times(1.15, FLOOR), TimesBest(1.0, is_peer)],
        "yield" => vec![Times(1.15, FLOOR), TimesBest(1.0, is_peer_that_allocates)],
        "hop" | "hop_atomic_waker" => vec![Times(1.3, FLOOR), TimesBest(1.0, is_peer)],
        "redundant_wake" | "waker_clone" => {
            vec![Times(NOT_SLOWER, FLOOR), TimesBest(NOT_SLOWER, is_peer_that_allocates)]
        }
        "cross_wake" => vec![TimesBest(NOT_SLOWER, is_peer)],
        "idle_bytes" => vec![Absolute(128.0)],
        "switch" => vec![Absolute(4.5)],
        "switch_1000" => vec![Times(NOT_SLOWER, "corosensei")],
        "stackful_yield" => vec![Absolute(20.0)],
        "stackful_spawn_join" => vec![Absolute(80.0)],
        _ => vec![],
    };
    (TRAPLINE, goals)
}

/// A row of the table.
struct Row<'a> {
    name: String,
    /// A figure for each implementation that has one.
    figures: Vec<(&'a str, f64)>,
    ours: &'a str,
    goals: Vec<Goal>,
}

/// The result of comparing a row's figure with its limits.
#[derive(Debug, PartialEq)]
struct Verdict {
    text: String,
    reached: bool,
}

impl<'a> Row<'a> {
    fn of(cells: &'a [Cell], figure: impl Fn(&Cell) -> Option<f64>) -> Self {
        let first = &cells[0].promised;
        let (ours, goals) = goals(&first.bench, first.n);
        let figures = cells
            .iter()
            .filter_map(|cell| Some((&*cell.promised.implementation, figure(cell)?)))
            .collect();
        Self { name: row_name(first), figures, ours, goals }
    }

    fn figure(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.0 == name).map(|figure| figure.1)
    }

    /// Judges the limit that is the hardest to keep.
    fn verdict(&self) -> Option<Verdict> {
        let ours = self.figure(self.ours)?;
        let against = |limit: f64, (name, other): (&str, f64)| {
            let times = ours / other;
            (times / limit, format!("{times:.2} × {name} (≤ {limit})"))
        };
        let judged = self.goals.iter().filter_map(|goal| match *goal {
            Goal::Times(limit, name) => Some(against(limit, (name, self.figure(name)?))),
            Goal::TimesBest(limit, those) => {
                let others = self.figures.iter().copied().filter(|(name, _)| those(name));
                Some(against(limit, others.min_by(|one, other| one.1.total_cmp(&other.1))?))
            }
            Goal::Absolute(limit) => Some((ours / limit, format!("{} (≤ {limit})", digits(ours)))),
        });
        let (part, text) = judged.max_by(|one, other| one.0.total_cmp(&other.0))?;
        Some(Verdict { text, reached: part <= 1.0 })
    }
}

fn print(cells: &[Cell]) {
    let mut rows = Vec::new();
    let same_row = |one: &Cell, next: &Cell| {
        (&one.promised.bench, one.promised.n) == (&next.promised.bench, next.promised.n)
    };
    for cells in cells.chunk_by(same_row) {
        match cells[0].promised.ns {
            Some(_) => rows.push(Row::of(cells, |cell| cell.promised.ns)),
            None => {
                rows.push(Row::of(cells, |cell| cell.promised.bytes));
                rows.push(Row {
                    name: "  allocations".to_owned(),
                    goals: vec![Goal::Absolute(1.0)],
                    ..Row::of(cells, |cell| cell.promised.allocs)
                });
            }
        }
    }
    let title = "Cost of scheduling in nanoseconds (idle_bytes: in bytes), medians of one run";
    println!("\n{}\n", style(title).bold());
    for line in table(&rows) {
        println!("{line}");
    }
    println!(
        "\nLast column: the limit that is the hardest to keep. `floor-boxed` is the least that\n\
         tasks cost with `malloc` and the textbook's protocol; benches/src/runtimes/floor.rs says\n\
         what it leaves out."
    );
    if let Some(spread) = spread(cells) {
        println!("{spread}");
    }
}

/// Formats the table. Rows about stacks form a table with its own columns.
fn table(rows: &[Row<'_>]) -> Vec<String> {
    let is_about_stacks = |row: &Row<'_>| !row.figures.iter().any(|(name, _)| TASKS.contains(name));
    let (stacks, tasks): (Vec<_>, Vec<_>) = rows.iter().partition(|row| is_about_stacks(row));
    let mut lines = Vec::new();
    for rows in [tasks, stacks].into_iter().filter(|rows| !rows.is_empty()) {
        let present: BTreeSet<_> =
            rows.iter().flat_map(|row| row.figures.iter().map(|(name, _)| *name)).collect();
        let columns: Vec<_> = COLUMNS.into_iter().filter(|name| present.contains(name)).collect();
        if !lines.is_empty() {
            lines.push(String::new());
        }
        // A name of several words takes two lines.
        let names: Vec<_> =
            columns.iter().map(|name| name.rsplit_once('-').unwrap_or(("", name))).collect();
        let name_width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(20);
        let width = 1 + names.iter().map(|name| name.1.len()).max().unwrap_or(0);
        if names.iter().any(|name| !name.0.is_empty()) {
            let words = names.iter().map(|name| format!("{:>width$}", name.0));
            lines.push(
                style(format!("{:<name_width$}{}", "", words.collect::<String>()))
                    .dim()
                    .to_string(),
            );
        }
        let words = names.iter().map(|name| format!("{:>width$}", name.1));
        lines.push(
            style(format!("{:<name_width$}{}", "", words.collect::<String>())).dim().to_string(),
        );
        for row in rows {
            let figures = columns.iter().map(|name| {
                let figure = row.figure(name).map_or(String::new(), digits);
                let padded = style(format!("{figure:>width$}"));
                (if *name == row.ours { padded.bold() } else { padded }).to_string()
            });
            let verdict = row.verdict().map_or(String::new(), |Verdict { text, reached }| {
                let mark = if reached { style("ok    ").green() } else { style("missed").red() };
                format!("{mark} {text}")
            });
            let line =
                format!("{:<name_width$}{}  {verdict}", row.name, figures.collect::<String>());
            lines.push(line.trim_end().to_owned());
        }
    }
    lines
}

/// A row in which one of these has a figure is not about stacks.
const TASKS: [&str; 3] = [FLOOR, EMBASSY, "async-task"];

/// Formats a figure with three digits, but without decimals from 100 on.
fn digits(figure: f64) -> String {
    match figure {
        _ if figure < 10.0 => format!("{figure:.2}"),
        _ if figure < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

/// Describes how far the samples spread.
fn spread(cells: &[Cell]) -> Option<String> {
    let mut spreads: Vec<_> = cells
        .iter()
        .filter_map(|cell| {
            let (ns, [lower, upper]) = (cell.promised.ns?, cell.spread?);
            Some((50.0 * (upper - lower) / ns, &cell.promised))
        })
        .collect();
    spreads.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (typical, _) = spreads.get(spreads.len() / 2)?;
    let (worst, cell) = spreads.last()?;
    Some(format!(
        "Half of a figure's samples lie within ± {typical:.1} % \
         (median; at worst ± {worst:.0} %: {}, {}).",
        row_name(cell),
        cell.implementation
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(bench: &str, n: Option<u64>, implementation: &str, ns: f64) -> Cell {
        let promised = Promised {
            bench: bench.to_owned(),
            n,
            implementation: implementation.to_owned(),
            ns: Some(ns),
            bytes: None,
            allocs: Some(0.0),
        };
        Cell { promised, spread: Some([ns * 0.9, ns * 1.1]) }
    }

    fn verdict(bench: &str, n: Option<u64>, figures: &[(&str, f64)]) -> (String, bool) {
        let cells: Vec<_> = figures.iter().map(|&(name, ns)| cell(bench, n, name, ns)).collect();
        let verdict = Row::of(&cells, |cell| cell.promised.ns).verdict().unwrap();
        (verdict.text, verdict.reached)
    }

    #[test]
    fn json_has_the_promised_shape() {
        let printed = concat!(
            r#"{"bench":"yield","n":10,"impl":"tokio","ns":21.5,"spread":[21.0,22.0],"#,
            r#""bytes":null,"allocs":0.0}"#
        );
        let cell: Cell = serde_json::from_str(printed).unwrap();
        assert_eq!(
            serde_json::to_string(&cell.promised).unwrap(),
            r#"{"bench":"yield","n":10,"impl":"tokio","ns":21.5,"bytes":null,"allocs":0.0}"#
        );
    }

    #[test]
    fn the_hardest_goal_decides() {
        let floor = ("floor-boxed", 10.0);
        let judged = verdict("yield", Some(100), &[("trapline", 11.0), floor, ("tokio", 20.0)]);
        assert_eq!(judged, ("1.10 × floor-boxed (≤ 1.15)".to_owned(), true));
        let judged = verdict("yield", Some(100), &[("trapline", 11.0), floor, ("tokio", 10.5)]);
        assert_eq!(judged, ("1.05 × tokio (≤ 1)".to_owned(), false));
        // embassy-executor is a peer up to 10 000 tasks.
        let figures = [("trapline", 11.0), floor, ("embassy-executor", 9.0)];
        assert!(!verdict("yield", Some(10_000), &figures).1);
        assert!(verdict("yield", Some(100_000), &figures).1);
        assert_eq!(verdict("switch", None, &[("trapline", 4.75)]), ("4.75 (≤ 4.5)".into(), false));
        // Without the figure to compare with there is no verdict.
        let alone = [cell("spawn_join", None, "trapline", 1.0)];
        assert_eq!(Row::of(&alone, |cell| cell.promised.ns).verdict(), None);
    }

    #[test]
    fn every_row_of_the_table_is_as_wide_as_its_columns() {
        let cells = [
            cell("yield", Some(1_000_000), "trapline", 7.25),
            cell("yield", Some(1_000_000), "floor-boxed", 123.0),
            cell("switch", None, "trapline", 4.0),
            cell("switch", None, "corosensei", 2.5),
        ];
        let rows = [&cells[..2], &cells[2..]].map(|row| Row::of(row, |cell| cell.promised.ns));
        let lines: Vec<_> =
            table(&rows).iter().map(|line| console::strip_ansi_codes(line).into_owned()).collect();
        assert_eq!(
            lines,
            [
                "                                 floor",
                "                     trapline    boxed",
                "yield 1 000 000          7.25      123  ok     0.06 × floor-boxed (≤ 1.15)",
                "",
                "                       trapline corosensei",
                "switch                     4.00       2.50  ok     4.00 (≤ 4.5)",
            ]
        );
    }

    #[test]
    fn a_long_name_moves_the_columns_of_its_table() {
        let cells = [
            cell("turn_plain", None, "trapline", 21.0),
            cell("spawn_join_in_stackful", None, "trapline", 117.0),
        ];
        let rows = [&cells[..1], &cells[1..]].map(|row| Row::of(row, |cell| cell.promised.ns));
        let lines: Vec<_> =
            table(&rows).iter().map(|line| console::strip_ansi_codes(line).into_owned()).collect();
        assert_eq!(
            lines,
            [
                "                       trapline",
                "turn_plain                 21.0",
                "spawn_join_in_stackful      117",
            ]
        );
    }

    #[test]
    fn the_spread_names_the_worst() {
        let mut cells: Vec<_> = (1..=3).map(|n| cell("yield", Some(n), "tokio", 20.0)).collect();
        cells[1].spread = Some([10.0, 30.0]);
        let spread = spread(&cells).unwrap();
        assert!(spread.contains("± 10.0 % (median; at worst ± 50 %: yield 2, tokio)"), "{spread}");
    }

    #[test]
    fn the_words_for_the_program() {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        assert!(Selection::default().words().is_empty());
        let selection = Selection {
            quick: true,
            only: list(&["yield", "hop"]),
            implementations: list(&["tokio"]),
            bless: false,
        };
        let words = ["--quick", "--only", "yield,hop", "--impl", "tokio"];
        assert_eq!(selection.words(), words);
        assert!(!selection.is_all());
    }
}
