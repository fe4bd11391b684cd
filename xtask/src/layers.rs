//! `cargo xtask layers`: prints the source files in floors, with the circles among their imports.
//!
//! A file is one floor above the highest file that it imports from. Files that import from each
//! other in a circle share a floor. `cargo xtask lint` fails if there are more or larger circles
//! than `CHECKED` allows.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use crate::imports::Imports;
use crate::workspace;

/// A crate that is checked.
struct Checked {
    /// Its root file, from the workspace's root.
    root: &'static str,
    /// The allowed number of circles.
    circles: usize,
    /// The allowed number of files in a circle.
    largest: usize,
}

const CHECKED: [Checked; 2] = [
    // `Header` and `Runtime` know each other.
    Checked { root: "src/lib.rs", circles: 1, largest: 2 },
    Checked { root: "xtask/src/main.rs", circles: 0, largest: 0 },
];

/// `cargo xtask layers`.
pub fn run(imports: bool) -> Result<()> {
    for Checked { root, .. } in CHECKED {
        let floors = Floors::of(Imports::of_crate(&workspace::root().join(root))?);
        println!("{root}: {}\n", floors.summary());
        floors.lines().iter().for_each(|line| println!("{line}"));
        if imports {
            println!();
            floors.import_lines().iter().for_each(|line| println!("{line}"));
        }
        println!();
    }
    println!("A file imports only from lower floors, or from its own [circle].");
    if !imports {
        println!("`cargo xtask layers --imports` lists what each file imports from which.");
    }
    Ok(())
}

/// Prints each circle, and fails if there are too many or one is too large.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for checked in CHECKED {
        let root = checked.root;
        let floors = Floors::of(Imports::of_crate(&workspace::root().join(root))?);
        println!("layers of {root}: {}", floors.summary());
        for circle in floors.circles() {
            println!("    [{}]", floors.names(circle));
        }
        if let Some(problem) = floors.problem(&checked) {
            wrong.push(format!("{root}: {problem}"));
        }
    }
    if !wrong.is_empty() {
        bail!("{}\n`cargo xtask layers --imports` shows the imports", wrong.join("\n"));
    }
    Ok(())
}

/// The files of a crate in floors.
struct Floors {
    imports: Imports,
    /// The circles, and each other file alone; a group comes after all that it imports from.
    groups: Vec<Group>,
}

struct Group {
    files: Vec<usize>,
    floor: usize,
}

impl Floors {
    fn of(imports: Imports) -> Self {
        let mut graph = DiGraph::<(), ()>::new();
        let nodes: Vec<NodeIndex> = imports.files.iter().map(|_| graph.add_node(())).collect();
        for &(from, to) in imports.pairs.keys() {
            graph.add_edge(nodes[from], nodes[to], ());
        }
        let mut floor_of = vec![0; imports.files.len()];
        let mut groups = Vec::new();
        // petgraph returns a component after those that it leads to.
        for component in tarjan_scc(&graph) {
            let files: BTreeSet<usize> = component.iter().map(|node| node.index()).collect();
            let below = imports
                .pairs
                .keys()
                .filter(|(from, to)| files.contains(from) && !files.contains(to));
            let floor = below.map(|&(_, to)| floor_of[to] + 1).max().unwrap_or(0);
            files.iter().for_each(|&file| floor_of[file] = floor);
            groups.push(Group { files: files.into_iter().collect(), floor });
        }
        Self { imports, groups }
    }

    fn circles(&self) -> impl Iterator<Item = &[usize]> {
        self.groups.iter().map(|group| &group.files[..]).filter(|files| files.len() > 1)
    }

    fn largest(&self) -> usize {
        self.circles().map(<[usize]>::len).max().unwrap_or(0)
    }

    fn summary(&self) -> String {
        let files = self.imports.files.len();
        match self.circles().count() {
            0 => format!("{files} files, no circle"),
            1 => format!("{files} files, a circle of {}", self.largest()),
            circles => format!("{files} files, {circles} circles of at most {}", self.largest()),
        }
    }

    fn problem(&self, allowed: &Checked) -> Option<String> {
        let (circles, largest) = (self.circles().count(), self.largest());
        if circles > allowed.circles {
            return Some(format!("{circles} circles of imports (allowed: {})", allowed.circles));
        }
        let message = format!("{largest} files import in a circle (allowed: {})", allowed.largest);
        (largest > allowed.largest).then_some(message)
    }

    fn names(&self, files: &[usize]) -> String {
        let mut names: Vec<_> = files.iter().map(|&file| &*self.imports.files[file]).collect();
        names.sort_unstable();
        names.join(", ")
    }

    /// One line for each floor, the highest first.
    fn lines(&self) -> Vec<String> {
        let highest = self.groups.iter().map(|group| group.floor).max().unwrap_or(0);
        let line = |floor| {
            let groups = self.groups.iter().filter(|group| group.floor == floor);
            let mut names: Vec<_> = groups
                .map(|group| match group.files.len() {
                    1 => self.names(&group.files),
                    _ => format!("[{}]", self.names(&group.files)),
                })
                .collect();
            names.sort_unstable();
            format!("{floor:>3}  {}", names.join(", "))
        };
        (0..=highest).rev().map(line).collect()
    }

    /// For each file, a line for each file that it imports from; `*` marks the imports in a circle.
    fn import_lines(&self) -> Vec<String> {
        let Imports { files, pairs } = &self.imports;
        let in_circle =
            |from, to| self.circles().any(|circle| circle.contains(from) && circle.contains(to));
        let mut lines: Vec<_> = pairs
            .iter()
            .map(|((from, to), paths)| {
                let mark = if in_circle(from, to) { '*' } else { ' ' };
                let paths: Vec<_> = paths.iter().map(|path| &**path).collect();
                format!("{mark} {} -> {}: {}", files[*from], files[*to], paths.join(", "))
            })
            .collect();
        lines.sort_unstable_by(|one, other| one[2..].cmp(&other[2..]));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floors(files: &[&str], pairs: &[(usize, usize)]) -> Floors {
        let pairs = pairs.iter().map(|&pair| (pair, ["crate::X".to_owned()].into())).collect();
        let files = files.iter().map(|&file| file.to_owned()).collect();
        Floors::of(Imports { files, pairs })
    }

    #[test]
    fn a_file_stands_above_all_that_it_imports() {
        let floors = floors(&["lib", "a", "b", "c"], &[(0, 1), (0, 3), (1, 2), (2, 3)]);
        assert_eq!(floors.lines(), ["  3  lib", "  2  a", "  1  b", "  0  c"]);
        assert_eq!(floors.circles().count(), 0);
        assert_eq!(floors.summary(), "4 files, no circle");
        let allowed = Checked { root: "", circles: 0, largest: 0 };
        assert_eq!(floors.problem(&allowed), None);
    }

    #[test]
    fn a_circle_is_one_floor() {
        let pairs = [(0, 1), (1, 2), (2, 3), (3, 1), (3, 4)];
        let floors = floors(&["lib", "c", "b", "a", "low"], &pairs);
        assert_eq!(floors.lines(), ["  2  lib", "  1  [a, b, c]", "  0  low"]);
        assert_eq!(floors.circles().collect::<Vec<_>>(), [&[1, 2, 3]]);
        assert_eq!(floors.summary(), "5 files, a circle of 3");
        assert_eq!(floors.import_lines()[0], "* a -> c: crate::X");
        assert_eq!(floors.import_lines().last().unwrap(), "  lib -> c: crate::X");
    }

    #[test]
    fn more_or_larger_circles_than_allowed_are_a_problem() {
        let floors = floors(&["a", "b", "c", "d", "e"], &[(0, 1), (1, 0), (2, 3), (3, 4), (4, 2)]);
        assert_eq!(floors.summary(), "5 files, 2 circles of at most 3");
        let problem = |circles, largest| floors.problem(&Checked { root: "", circles, largest });
        assert_eq!(problem(2, 3), None);
        assert_eq!(problem(1, 3).unwrap(), "2 circles of imports (allowed: 1)");
        assert_eq!(problem(2, 2).unwrap(), "3 files import in a circle (allowed: 2)");
    }

    #[test]
    fn the_files_of_xtask_are_read() {
        let imports = Imports::of_crate(&workspace::root().join("xtask/src/main.rs")).unwrap();
        let lines = Floors::of(imports).import_lines();
        let line = "  layers -> imports: crate::imports::Imports";
        assert!(lines.iter().any(|found| found == line), "{lines:#?}");
    }
}
