//! The README's code is code that compiles: each block of Rust in it is an extract of the file that
//! the comment above the block names.
//!
//! ```text
//! <!-- examples/port/kernel.rs -->
//! ```
//!
//! A line `// ...` in a block says that something is left out. What lies between two such lines
//! stands in the file as it is in the README, but for the indentation and for empty lines.
#![cfg(not(target_os = "none"))]

use std::path::Path;

/// A block of Rust: the line where it begins, the file that it names, and its lines.
struct Block<'a> {
    line: usize,
    file: Option<&'a str>,
    code: Vec<&'a str>,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut before = "";
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line == "```rust" {
            let comment = before.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
            let code = lines.by_ref().map(|(_, line)| line).take_while(|&line| line != "```");
            blocks.push(Block { line: number + 1, file: comment, code: code.collect() });
        }
        before = line;
    }
    blocks
}

/// The lines without the indentation that all of them have, and without empty ones.
fn normal<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let lines: Vec<_> = lines.iter().filter(|line| !line.trim().is_empty()).collect();
    let indentation = lines.iter().map(|line| line.len() - line.trim_start().len()).min();
    lines.iter().map(|line| line[indentation.unwrap_or(0)..].trim_end()).collect()
}

fn contains(source: &str, part: &[&str]) -> bool {
    let part = normal(part);
    let source: Vec<_> = source.lines().filter(|line| !line.trim().is_empty()).collect();
    source.windows(part.len()).any(|window| normal(window) == part)
}

#[test]
fn the_readmes_code_is_an_extract_of_files_that_compile() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(!blocks.is_empty(), "no block of Rust was found");
    for Block { line, file, code } in blocks {
        let file = file.unwrap_or_else(|| panic!("README.md:{line}: the block names no file"));
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        for part in code.split(|line| line.trim() == "// ...") {
            assert!(
                part.iter().all(|line| line.trim().is_empty()) || contains(&source, part),
                "README.md:{line}: this is not in {file}:\n{}",
                part.join("\n")
            );
        }
    }
}

#[test]
fn what_is_no_extract_is_found() {
    let source = "fn a() {\n    b();\n\n    c();\n}\n";
    assert!(contains(source, &["b();", "c();"]));
    assert!(contains(source, &["fn a() {", "    b();"]));
    assert!(!contains(source, &["c();", "b();"]));
    assert!(!contains(source, &["b();", "  c();"]));
}
