//! `cargo xtask layers`: the files of `src/` in floors, and the circles among their imports.
//!
//! A file stands one floor above the highest file that it imports from. Files that import from each
//! other in a circle share a floor. `cargo xtask lint` fails if a circle is larger than is allowed.

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
    /// The number of files in its largest circle may be at most this. 1: there is no circle.
    largest: usize,
}

const CHECKED: [Checked; 2] = [
    // To be lowered whenever the circle gets smaller.
    Checked { root: "src/lib.rs", largest: 24 },
    Checked { root: "xtask/src/main.rs", largest: 1 },
];

/// `cargo xtask layers`.
pub fn run(imports: bool) -> Result<()> {
    for Checked { root, largest } in CHECKED {
        let floors = Floors::of(Imports::of_crate(&workspace::root().join(root))?);
        println!("{root}: {}\n", floors.summary(largest));
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

/// Prints each circle, and fails if one is larger than is allowed.
pub fn check() -> Result<()> {
    let mut wrong = Vec::new();
    for Checked { root, largest } in CHECKED {
        let floors = Floors::of(Imports::of_crate(&workspace::root().join(root))?);
        println!("layers of {root}: {}", floors.summary(largest));
        for circle in floors.circles() {
            println!("    {}", floors.names(circle));
            if circle.len() > largest {
                wrong.push(format!("{} files of {root} import in a circle", circle.len()));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}; `cargo xtask layers --imports` shows the imports", wrong.join("; "));
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

    fn summary(&self, largest: usize) -> String {
        let files = self.imports.files.len();
        match self.circles().map(<[usize]>::len).max() {
            None => format!("{files} files, no circle"),
            Some(found) => {
                format!("{files} files, the largest circle has {found} (allowed: {largest})")
            }
        }
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
        assert_eq!(floors.summary(1), "4 files, no circle");
    }

    #[test]
    fn a_circle_is_one_floor() {
        let pairs = [(0, 1), (1, 2), (2, 3), (3, 1), (3, 4)];
        let floors = floors(&["lib", "c", "b", "a", "low"], &pairs);
        assert_eq!(floors.lines(), ["  2  lib", "  1  [a, b, c]", "  0  low"]);
        assert_eq!(floors.circles().collect::<Vec<_>>(), [&[1, 2, 3]]);
        assert_eq!(floors.summary(3), "5 files, the largest circle has 3 (allowed: 3)");
        assert_eq!(floors.import_lines()[0], "* a -> c: crate::X");
        assert_eq!(floors.import_lines().last().unwrap(), "  lib -> c: crate::X");
    }

    #[test]
    fn the_allowed_circles_are_not_exceeded() {
        check().unwrap();
    }
}
