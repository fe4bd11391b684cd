//! How one program is built for an architecture.
//!
//! On the host that is plain cargo. On target, `core` and `alloc` come with the toolchain or are
//! built from Debian's sources (see `setup`), and the linker script is `hal-shim`'s.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use duct::Expression;
use serde::Deserialize;

use crate::setup::{self, Std};
use crate::shell;

/// Where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// This Linux
    Host,
    /// QEMU's RISC-V machine `virt`
    Riscv64,
    /// QEMU's PC `q35`
    #[value(name = "x86_64")]
    X86_64,
    /// QEMU's LoongArch machine `virt`
    Loongarch64,
}

impl Arch {
    /// As the command line and the demo's JSON say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Riscv64 => "riscv64",
            Self::X86_64 => "x86_64",
            Self::Loongarch64 => "loongarch64",
        }
    }

    /// The bare-metal targets, if it is bare metal; the usual one first.
    pub fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Host => &[],
            Self::Riscv64 => &["riscv64gc-unknown-none-elf"],
            Self::X86_64 => &["x86_64-unknown-none"],
            Self::Loongarch64 => &["loongarch64-unknown-none-softfloat", LOONGARCH64_HARD_FLOAT],
        }
    }

    /// Flags for rustc, beside those that say how to link.
    fn rustc_flags(self) -> &'static [&'static str] {
        match self {
            // QEMU loads an ELF where the ELF says, and relocates nothing.
            Self::X86_64 => &["-Crelocation-model=static"],
            Self::Host | Self::Riscv64 | Self::Loongarch64 => &[],
        }
    }
}

/// The target whose ABI has floating-point registers.
pub const LOONGARCH64_HARD_FLOAT: &str = "loongarch64-unknown-none";

/// A target of a package in the workspace: of the root package, where nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Program {
    pub name: String,
    /// `["example"]`, `["test"]`, ...
    kind: Vec<String>,
    src_path: PathBuf,
}

impl Program {
    /// The example called `name`.
    pub fn example(name: &str) -> Result<Self> {
        let mut examples = metadata()?.programs("example");
        if let Some(found) = examples.iter().position(|example| example.name == name) {
            return Ok(examples.swap_remove(found));
        }
        let known: Vec<_> = examples.iter().map(|example| &*example.name).collect();
        bail!("no example `{name}`; there is: {}", known.join(", "));
    }

    /// The kernel that counts instructions.
    pub fn cost() -> Result<Self> {
        let benches = metadata()?.programs("bench");
        let cost = benches.into_iter().find(|bench| bench.name == "cost");
        cost.context("the root package has no bench `cost`")
    }

    /// The program that measures on the host.
    pub fn measure() -> Result<Self> {
        let programs = metadata()?.programs_of("benches", "bin");
        let measure = programs.into_iter().find(|program| program.name == "measure");
        measure.context("the package `benches` has no program `measure`")
    }

    /// The test kernels: the programs in `tests/target/`, and the suite that the host runs too.
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

    /// The words that select it on cargo's command line.
    pub fn selection(&self) -> [String; 2] {
        let kind = self.kind.first().map_or("bin", |kind| kind);
        [format!("--{kind}"), self.name.clone()]
    }
}

const ROOT_PACKAGE: &str = "trapline";

/// With what a program is built.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub release: bool,
    pub features: Vec<String>,
    /// One of the architecture's targets, if not the usual one.
    pub target: Option<&'static str>,
}

/// Builds `program` and returns the executable. The set-up must be done.
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

/// The executables, with their targets' names, in cargo's messages.
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

/// How cargo is called: which one, with what before and in its environment.
pub struct Cargo {
    program: OsString,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Debian's own, which must see nothing of the toolchain that runs us.
    debian: bool,
}

impl Cargo {
    /// Plain cargo on the host.
    pub fn host() -> Self {
        Self { program: cargo(), arguments: vec![], environment: vec![], debian: false }
    }

    /// Cargo on the host with `flags` for rustc, in a target directory of its own.
    pub fn host_with(flags: &[&str], directory: &str) -> Result<Self> {
        let mut cargo = Self::host();
        cargo.environment = vec![
            ("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")),
            ("CARGO_TARGET_DIR", target_directory(directory)?),
        ];
        Ok(cargo)
    }

    /// Cargo as `target`, one of `arch`'s, needs it. The set-up must be done.
    pub fn for_target(arch: Arch, target: &str) -> Result<Self> {
        let script = root().join("hal-shim").join(format!("{}.ld", arch.name()));
        let mut flags = vec![format!("-Clink-arg=-T{}", script.display())];
        flags.extend(arch.rustc_flags().iter().map(|&flag| flag.to_owned()));
        Self::with_flags(arch.name(), target, flags)
    }

    /// Cargo as a `target` needs it that no machine here has: to check, not to link.
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

    /// The same, with one variable more in its environment.
    pub fn with_variable(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }

    /// The same, with its results in `directory` of the workspace's target directory.
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
            // rustup's proxy and `cargo run` set these for what they start.
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

/// What `cargo metadata` says about the workspace.
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

    /// The oldest compiler that the workspace claims to work with, as `1.95`.
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
    let json = command.stderr_capture().read().context("cargo metadata")?;
    let metadata = serde_json::from_str(&json).context("what cargo metadata says")?;
    Ok(METADATA.get_or_init(|| metadata))
}

/// The workspace's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// `name` in the workspace's target directory.
pub fn target_directory(name: &str) -> Result<String> {
    Ok(metadata()?.target_directory.join(name).display().to_string())
}

/// The cargo that runs us. (No `Path`: duct would look for it in the working directory.)
fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
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

    #[test]
    fn an_unknown_example_is_answered_with_the_known_ones() {
        let error = Program::example("nonesuch").unwrap_err().to_string();
        assert!(error.contains("`nonesuch`") && error.contains("preempt"), "{error}");
        assert_eq!(Program::example("preempt").unwrap().selection(), ["--example", "preempt"]);
    }
}
