//! The workspace: its root, its target directory, and its programs, as `cargo metadata` lists them.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// A cargo target (example, test, ...) of a package in the workspace.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    pub name: String,
    /// `["example"]`, `["test"]`, ...
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Program {
    /// Finds the example `name` of the root package.
    pub fn example(name: &str) -> Result<Self> {
        let mut examples = metadata()?.programs("example");
        if let Some(found) = examples.iter().position(|example| example.name == name) {
            return Ok(examples.swap_remove(found));
        }
        let known: Vec<_> = examples.iter().map(|example| &*example.name).collect();
        bail!("no example `{name}`; there is: {}", known.join(", "));
    }

    /// Finds the kernel that counts instructions.
    pub fn cost() -> Result<Self> {
        let benches = metadata()?.programs("bench");
        let cost = benches.into_iter().find(|bench| bench.name == "cost");
        cost.context("the root package has no bench `cost`")
    }

    /// Finds the program that measures on the host.
    pub fn measure() -> Result<Self> {
        let programs = metadata()?.programs_of("benches", "bin");
        let measure = programs.into_iter().find(|program| program.name == "measure");
        measure.context("the package `benches` has no program `measure`")
    }

    /// Lists the test kernels: the programs in `tests/target/`, and the suite, which the host runs
    /// too.
    pub fn test_kernels() -> Result<Vec<Self>> {
        let mut kernels = metadata()?.programs("test");
        kernels.retain(|test| {
            let place = test.src_path.strip_prefix(root().join("tests"));
            place.is_ok_and(|file| file.starts_with("target") || file == Path::new("suite.rs"))
        });
        if kernels.is_empty() {
            bail!("the root package has no test in tests/target/");
        }
        Ok(kernels)
    }

    /// The arguments that select it on cargo's command line.
    pub fn selection(&self) -> [String; 2] {
        let kind = self.kind.first().map_or("bin", |kind| kind);
        [format!("--{kind}"), self.name.clone()]
    }
}

const ROOT_PACKAGE: &str = "trapline";

/// The output of `cargo metadata` for the workspace.
#[derive(Deserialize)]
pub struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    targets: Vec<Program>,
    rust_version: Option<String>,
}

impl Metadata {
    fn package(&self, name: &str) -> Option<&Package> {
        self.packages.iter().find(|package| package.name == name)
    }

    fn programs(&self, kind: &str) -> Vec<Program> {
        self.programs_of(ROOT_PACKAGE, kind)
    }

    fn programs_of(&self, package: &str, kind: &str) -> Vec<Program> {
        let targets = self.package(package).into_iter().flat_map(|package| &package.targets);
        targets.filter(|target| target.kind.iter().any(|k| k == kind)).cloned().collect()
    }

    /// The MSRV that the workspace declares, as `1.95`.
    pub fn rust_version(&self) -> Result<&str> {
        let version =
            self.package(ROOT_PACKAGE).and_then(|package| package.rust_version.as_deref());
        version.context("the root package declares no rust-version")
    }
}

pub fn metadata() -> Result<&'static Metadata> {
    static METADATA: OnceLock<Metadata> = OnceLock::new();
    if let Some(known) = METADATA.get() {
        return Ok(known);
    }
    let arguments = ["metadata", "--no-deps", "--format-version=1"];
    let command = duct::cmd(cargo(), arguments).dir(root());
    let json = command.stderr_capture().read().context("running cargo metadata")?;
    let metadata = serde_json::from_str(&json).context("reading the output of cargo metadata")?;
    Ok(METADATA.get_or_init(|| metadata))
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// The path of `name` in the workspace's target directory.
pub fn target_directory(name: &str) -> Result<String> {
    Ok(metadata()?.target_directory.join(name).display().to_string())
}

/// The cargo that started this program. It is no `Path`, which duct would look for in the working
/// directory.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_example_is_answered_with_the_known_ones() {
        let error = Program::example("nonesuch").unwrap_err().to_string();
        assert!(error.contains("`nonesuch`") && error.contains("preempt"), "{error}");
        assert_eq!(Program::example("preempt").unwrap().selection(), ["--example", "preempt"]);
    }
}
