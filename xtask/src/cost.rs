//! `cargo xtask cost`: runs `benches/target/cost.rs`, which counts instructions, and shows its
//! figures beside Trapline's limits.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use console::style;
use serde::{Deserialize, Serialize};

use crate::build::{self, Options};
use crate::machine::Machine;
use crate::qemu::Guest;
use crate::setup::{self, Consent};
use crate::shell::{self, End};
use crate::workspace::Program;

/// The prefix of the line in which the kernel prints its figures.
const MARK: &str = "cost: ";

/// The time limit of the kernel.
const LIMIT: Duration = Duration::from_secs(5 * 60);

/// Numbers of instructions; `benches/target/cost.rs` describes each.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Figures {
    #[serde(flatten)]
    promised: Promised,
    plain_poll: u64,
    switch: u64,
}

/// The figures that `--json` prints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Promised {
    suspend_resume: u64,
    preempt_to_poll: u64,
    resume_preempted: u64,
    wake_to_poll: u64,
    spawn_to_poll: u64,
    irq_entry: u64,
    stackful_poll_extra: u64,
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    arch: &'a str,
    #[serde(flatten)]
    promised: &'a Promised,
}

pub fn run(machines: &[Machine], json: bool, consent: Consent) -> Result<()> {
    let archs: Vec<_> = machines.iter().map(|machine| machine.arch()).collect();
    setup::ensure(&archs, consent)?;
    let program = Program::cost()?;
    for &machine in machines {
        let arch = machine.arch();
        let options = Options { release: true, ..Options::default() };
        let kernel = build::build(arch, &program, &options)?;
        let figures = {
            let _doing = shell::doing(&format!("counting on {}", arch.name()));
            let guest =
                Guest { machine, kernel, smp: 1, icount: true, cpu: None, words: Vec::new() };
            figures(|line| guest.lines(LIMIT, line)).with_context(|| arch.name())?
        };
        if json {
            let line = Line { arch: arch.name(), promised: &figures.promised };
            println!("{}", serde_json::to_string(&line)?);
        } else {
            print(machine, &figures);
        }
    }
    Ok(())
}

/// Finds the figures in the lines that `run` passes on.
fn figures(run: impl FnOnce(&mut dyn FnMut(&str)) -> Result<End>) -> Result<Figures> {
    let (mut found, mut console) = (None, String::new());
    let end = run(&mut |line: &str| match line.strip_prefix(MARK) {
        Some(json) => found = Some(json.to_owned()),
        None => console += &format!("{line}\n"),
    })?;
    match (end, found) {
        (End::Exit(0), Some(json)) => serde_json::from_str(&json)
            .with_context(|| format!("cannot read the kernel's figures: {json}")),
        (end, _) => bail!("the kernel gave no figures: {end:?}\n{}", shell::tail(&console)),
    }
}

/// The instructions that hand-written assembly needs at least, measured once on the same machines.
struct Floors {
    /// A switch to another stack and back, with the callee-saved registers.
    switch: u64,
    /// From a trap to the first instruction of a Rust handler, with all registers saved.
    entry: u64,
}

impl Floors {
    fn of(machine: Machine) -> Self {
        match machine {
            Machine::Riscv64 => Self { switch: 58, entry: 43 },
            Machine::X86_64 => Self { switch: 30, entry: 21 },
            Machine::Loongarch64 => Self { switch: 50, entry: 41 },
        }
    }
}

/// A row of the table.
struct Row {
    what: &'static str,
    figure: u64,
    floor: Option<u64>,
    /// The most that the figure should be.
    limit: Option<u64>,
}

fn rows(machine: Machine, figures: &Figures) -> [Row; 9] {
    let Figures { promised, plain_poll, switch } = figures;
    let floors = Floors::of(machine);
    let row = |what, figure| Row { what, figure, floor: None, limit: None };
    let preemption = if machine == Machine::X86_64 { 150 } else { 200 };
    [
        Row { limit: Some(100), ..row("wake, to the poll", promised.wake_to_poll) },
        row("spawn, to the poll", promised.spawn_to_poll),
        row("poll of a plain task", *plain_poll),
        Row {
            limit: Some(40),
            ..row("poll of a stackful task, more", promised.stackful_poll_extra)
        },
        Row { floor: Some(floors.switch), ..row("switch of stacks, and back", *switch) },
        Row {
            floor: Some(floors.switch),
            limit: Some(2 * floors.switch),
            ..row("block_on, away and back", promised.suspend_resume)
        },
        Row { floor: Some(floors.entry), ..row("interrupt, to its handler", promised.irq_entry) },
        Row {
            floor: Some(floors.entry),
            limit: Some(preemption),
            ..row("timer, to the sleeper's poll", promised.preempt_to_poll)
        },
        row("from there to the preempted task", promised.resume_preempted),
    ]
}

fn print(machine: Machine, figures: &Figures) {
    println!("\n{}\n", style(format!("Instructions on {}", machine.arch().name())).bold());
    let head = format!("{:<34}{:>7} {:>7} {:>7}", "", "counted", "floor", "limit");
    println!("{}", style(head).dim());
    for Row { what, figure, floor, limit } in rows(machine, figures) {
        let or_dash = |number: Option<u64>| number.map_or("–".to_owned(), |n| n.to_string());
        let counted = style(format!("{figure:>7}"));
        let counted = match limit {
            Some(limit) if figure > limit => counted.red(),
            Some(_) => counted.green(),
            None => counted,
        };
        println!("{what:<34}{counted} {:>7} {:>7}", or_dash(floor), or_dash(limit));
    }
    println!("\nFloor: the least that assembly alone needs. Limit: the most that it should be.");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = concat!(
        r#"cost: {"suspend_resume":1,"preempt_to_poll":2,"resume_preempted":3,"#,
        r#""wake_to_poll":4,"spawn_to_poll":5,"irq_entry":6,"stackful_poll_extra":7,"#,
        r#""plain_poll":8,"switch":9}"#
    );

    fn printed(lines: &[&str], end: End) -> Result<Figures> {
        figures(|line| {
            lines.iter().for_each(|text| line(text));
            Ok(end)
        })
    }

    #[test]
    fn json_has_the_promised_shape() {
        let Figures { promised, .. } = printed(&["for people", PRINTED], End::Exit(0)).unwrap();
        let line = serde_json::to_string(&Line { arch: "riscv64", promised: &promised }).unwrap();
        assert_eq!(
            line,
            concat!(
                r#"{"arch":"riscv64","suspend_resume":1,"preempt_to_poll":2,"#,
                r#""resume_preempted":3,"wake_to_poll":4,"spawn_to_poll":5,"irq_entry":6,"#,
                r#""stackful_poll_extra":7}"#
            )
        );
    }

    #[test]
    fn a_run_without_figures_says_why() {
        let error = |lines: &[&str], end| format!("{:#}", printed(lines, end).unwrap_err());
        assert!(error(&["boom"], End::Exit(0)).contains("no figures: Exit(0)\n    boom"));
        assert!(error(&["boom", PRINTED], End::Exit(101)).contains("Exit(101)\n    boom"));
        assert!(error(&["boom", PRINTED], End::TimeUp).contains("TimeUp\n    boom"));
        assert!(error(&["cost: {}"], End::Exit(0)).contains("the kernel's figures: {}"));
    }
}
