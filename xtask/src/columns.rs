//! The check of `cargo xtask lint` that lines keep to 100 columns.
//!
//! rustfmt breaks code but neither comments nor string literals, and leaves TOML alone.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The folders that are checked, with all below them. An empty name is the whole workspace.
const FOLDERS: [&str; 1] = [""];
/// In characters, as `max_width` in rustfmt.toml.
const COLUMNS: usize = 100;

/// Fails if a tracked `.rs` file has a line that is too long.
pub fn check() -> Result<()> {
    let list = duct::cmd("git", ["ls-files", "-z", "--", "*.rs"]).dir(workspace::root());
    let list = list.stderr_capture().read().context("asking git for the tracked files")?;
    let mut long = Vec::new();
    for file in list.split('\0').filter(|file| is_checked(file, &FOLDERS)) {
        // A tracked file can have been removed from the working tree.
        let Ok(text) = fs::read_to_string(workspace::root().join(file)) else { continue };
        long.extend(too_long(&text).map(|(line, width)| format!("    {file}:{line}: {width}")));
    }
    if !long.is_empty() {
        bail!("{} lines are longer than {COLUMNS} columns:\n{}", long.len(), long.join("\n"));
    }
    Ok(())
}

fn is_checked(file: &str, folders: &[&str]) -> bool {
    let inside = |folder: &&str| {
        let rest = file.strip_prefix(folder);
        folder.is_empty() || rest.is_some_and(|rest| rest.starts_with('/'))
    };
    !file.is_empty() && folders.iter().any(inside)
}

/// The numbers and widths of the lines that are too long and can be broken.
fn too_long(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !is_unbreakable(line));
    let lines = lines.map(|(line, number)| (number, line.chars().count()));
    lines.filter(|(_, width)| *width > COLUMNS)
}

/// A line with a URL, a row of a table in a doc comment, or a directive of the assembler with a
/// list.
fn is_unbreakable(line: &str) -> bool {
    let is_row = ["//! |", "/// |"].iter().any(|row| line.trim_start().starts_with(row));
    let is_list = [".irp ", ".globl "].iter().any(|name| line.contains(name));
    is_row || is_list || line.contains("http://") || line.contains("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Vec<(usize, usize)> {
        too_long(&format!("short\n{line}\nshort\n")).collect()
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        assert!(found(&"µ".repeat(100)).is_empty());
        assert_eq!(found(&"µ".repeat(101)), [(2, 101)]);
    }

    #[test]
    fn urls_rows_and_lists_may_be_longer() {
        let rest = "x".repeat(100);
        assert!(found(&format!("    \".irp n, {rest}\",")).is_empty());
        assert!(found(&format!("// see https://{rest}")).is_empty());
        assert!(found(&format!("    //! | {rest} |")).is_empty());
        assert!(found(&format!("/// | {rest} |")).is_empty());
        for line in ["// | ", "//! see ", "let s = \"", "/// a | "] {
            assert_eq!(found(&format!("{line}{rest}")).len(), 1, "{line}");
        }
    }

    #[test]
    fn folders_are_whole_names() {
        assert!(is_checked("xtask/src/main.rs", &["xtask"]));
        assert!(is_checked("Cargo.toml", &[""]));
        assert!(!is_checked("xtasks/src/main.rs", &["xtask"]));
        assert!(!is_checked("src/xtask/main.rs", &["xtask"]));
        assert!(!is_checked("", &[""]));
    }
}
