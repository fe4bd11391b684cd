//! Builds a program for an architecture.
//!
//! The host takes plain cargo. On target, `core` and `alloc` come with the toolchain or are built
//! from Debian's sources (see `setup`), and the linker script is `hal-shim`'s.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use duct::Expression;
use serde::Deserialize;

use crate::machine::Arch;
use crate::setup::{self, Std};
use crate::shell;
use crate::workspace::{Program, cargo, root, target_directory};

/// Build options.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub release: bool,
    pub features: Vec<String>,
    /// One of the architecture's targets; `None` is the first one.
    pub target: Option<&'static str>,
}

/// Builds `program` and returns the path of the executable. `setup::ensure` must have run.
pub fn build(arch: Arch, program: &Program, options: &Options) -> Result<PathBuf> {
    let [kind, name] = program.selection();
    let mut arguments = vec!["--message-format=json-render-diagnostics", &*kind, &*name];
    if options.release {
        arguments.push("--release");
    }
    let features = options.features.join(",");
    if !features.is_empty() {
        arguments.extend(["--features", &features]);
    }
    let target = options.target.or(arch.targets().first().copied());
    let (cargo, place) = match target {
        Some(target) => (Cargo::for_target(arch, target)?, target),
        None => (Cargo::host(), "the host"),
    };
    let what = format!("building `{name}` for {place}");
    let output = shell::step(&what, &cargo.command("build", &arguments))?;
    executables(&output.stdout)
        .into_iter()
        .find(|(built, _)| *built == name)
        .map(|(_, path)| path)
        .with_context(|| format!("{what}: cargo names no executable"))
}

/// Reads the names of the built targets and their executables from cargo's messages.
pub fn executables(messages: &[u8]) -> Vec<(String, PathBuf)> {
    #[derive(Deserialize)]
    struct Artifact {
        target: Target,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let messages = messages.split(|&byte| byte == b'\n');
    let artifacts = messages.filter_map(|message| serde_json::from_slice(message).ok());
    artifacts
        .filter_map(|Artifact { target, executable }| Some((target.name, executable?)))
        .collect()
}

/// A way to call cargo: the program, its first arguments and its environment.
pub struct Cargo {
    program: OsString,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Whether it is Debian's, from which the variables of the running toolchain are hidden.
    debian: bool,
}

impl Cargo {
    /// Plain cargo on the host.
    pub fn host() -> Self {
        Self { program: cargo(), arguments: vec![], environment: vec![], debian: false }
    }

    /// Cargo on the host with `flags` for rustc and `directory` as its target directory.
    pub fn host_with(flags: &[&str], directory: &str) -> Result<Self> {
        let mut cargo = Self::host();
        cargo.environment = vec![
            ("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
            ("CARGO_TARGET_DIR", target_directory(directory)?),
        ];
        Ok(cargo)
    }

    /// Cargo for `target`, one of `arch`'s. `setup::ensure` must have run.
    pub fn for_target(arch: Arch, target: &str) -> Result<Self> {
        let script = root().join("hal-shim").join(format!("{}.ld", arch.name()));
        let mut flags = vec![format!("-Clink-arg=-T{}", script.display())];
        flags.extend(arch.rustc_flags().iter().map(|&flag| flag.to_owned()));
        Self::with_flags(arch.name(), target, flags)
    }

    /// Cargo for a `target` that no [`Arch`] has. It can check but not link.
    pub fn for_foreign_target(target: &str) -> Result<Self> {
        Self::with_flags(target, target, vec![])
    }

    fn with_flags(directory: &str, target: &str, mut flags: Vec<String>) -> Result<Self> {
        let arguments = ["--target", target].map(str::to_owned);
        let mut cargo = Self { arguments: arguments.into(), ..Self::host() };
        match setup::find_std(target)? {
            Std::Installed => {
                cargo.environment.push(("CARGO_TARGET_DIR", target_directory(directory)?));
            }
            Std::Source { linker } => {
                flags.push(format!("-Clinker={}", linker.display()));
                flags.push("-Clinker-flavor=ld.lld".to_owned());
                cargo.program = setup::DEBIAN_CARGO.into();
                cargo.debian = true;
                cargo.arguments.extend(
                    [
                        "-Zbuild-std=core,alloc,compiler_builtins",
                        "-Zbuild-std-features=compiler-builtins-mem",
                    ]
                    .map(str::to_owned),
                );
                let directory = target_directory(&format!("{directory}-source"))?;
                let path = std::env::var("PATH").unwrap_or_default();
                cargo.environment.extend([
                    ("CARGO_TARGET_DIR", directory),
                    ("RUSTC", setup::DEBIAN_RUSTC.to_owned()),
                    ("RUSTC_BOOTSTRAP", "1".to_owned()),
                    ("PATH", format!("/usr/bin:{path}")),
                ]);
            }
        }
        cargo.environment.push(("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")));
        Ok(cargo)
    }

    /// Adds a variable to the environment.
    pub fn with_variable(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// Replaces the target directory by `directory` in the workspace's target directory.
    pub fn with_target_directory(mut self, directory: &str) -> Result<Self> {
        self.environment.retain(|(name, _)| *name != "CARGO_TARGET_DIR");
        self.environment.push(("CARGO_TARGET_DIR", target_directory(directory)?));
        Ok(self)
    }

    /// `cargo COMMAND ARGUMENTS`, in the workspace's root.
    pub fn command(&self, command: &str, arguments: &[&str]) -> Expression {
        self.command_in(root(), command, arguments)
    }

    /// `cargo COMMAND ARGUMENTS`, in `directory`.
    pub fn command_in(&self, directory: &Path, command: &str, arguments: &[&str]) -> Expression {
        let before = [command].into_iter().chain(self.arguments.iter().map(|word| &**word));
        let words = before.chain(arguments.iter().copied());
        let mut expression = duct::cmd(&self.program, words).dir(directory);
        if self.debian {
            // rustup's proxy and `cargo run` set these for the processes that they start.
            for name in ["LD_LIBRARY_PATH", "RUSTUP_TOOLCHAIN", "CARGO", "RUSTDOC"] {
                expression = expression.env_remove(name);
            }
        }
        for (name, value) in &self.environment {
            expression = expression.env(name, value);
        }
        expression
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_found_in_cargos_messages() {
        let messages =
            br#"{"reason":"compiler-artifact","target":{"name":"core"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"preempt"},"executable":"/t/preempt"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [("preempt".to_owned(), "/t/preempt".into())]);
    }
}
