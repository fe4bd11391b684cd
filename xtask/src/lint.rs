//! `cargo xtask lint`: formatting, line widths, circles of imports, clippy, documentation, and the
//! version of the compiler in use.

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::build::Cargo;
use crate::machine::Arch;
use crate::setup::{self, Consent};
use crate::shell::step;
use crate::workspace::{self, Program};
use crate::{columns, layers};

/// A target that has no file in `src/arch/`.
const FOREIGN: &str = "aarch64-unknown-none";
const DENY: [&str; 3] = ["--", "-D", "warnings"];

pub fn run(consent: Consent) -> Result<()> {
    let host = Cargo::host();
    let format = host.command("fmt", &["--all", "--check"]);
    step("rustfmt", &format).context("`cargo fmt --all` formats the files")?;
    msrv(&host)?;
    columns::check()?;
    layers::check()?;
    let hosts = ["--workspace", "--exclude", "loom-tests", "--exclude", "shuttle-tests"];
    let all = [&hosts[..], &["--all-targets"]].concat();
    step("clippy for the host", &host.command("clippy", &[&all[..], &DENY].concat()))?;
    for checker in ["loom", "shuttle"] {
        let cargo = Cargo::host_with(&["--cfg", checker], checker)?;
        let package = format!("{checker}-tests");
        let arguments = [&["--package", &*package, "--all-targets"][..], &DENY].concat();
        step(&format!("clippy for {package}"), &cargo.command("clippy", &arguments))?;
    }

    let mut kernels = Program::test_kernels()?;
    kernels.push(Program::cost()?);
    let kernels: Vec<_> = kernels.iter().flat_map(Program::selection).collect();
    for &arch in Arch::value_variants() {
        setup::ensure(&[arch], consent)?;
        for &target in arch.targets() {
            setup::ensure_clippy(target, consent)?;
            let mut arguments = vec!["--package", "trapline", "--package", "hal-shim", "--lib"];
            arguments.push("--examples");
            arguments.extend(kernels.iter().map(|word| &**word));
            arguments.extend(DENY);
            let command = Cargo::for_target(arch, target)?.command("clippy", &arguments);
            step(&format!("clippy for {target}"), &command)?;
        }
    }

    // On such an architecture a kernel brings the backend.
    setup::ensure_core(FOREIGN)?;
    let foreign = Cargo::for_foreign_target(FOREIGN)?;
    let check = foreign.command("check", &["--package", "trapline", "--lib"]);
    step(&format!("check for {FOREIGN}"), &check)?;

    let documentation = [&hosts[..], &["--no-deps"]].concat();
    let command = host.command("doc", &documentation).env("RUSTDOCFLAGS", "-D warnings");
    step("documentation", &command)?;
    println!("clean");
    Ok(())
}

/// Compares the compiler in use with the declared MSRV. An older one is an error. If they are the
/// same, the other checks cover the MSRV. With a newer one only clippy's `incompatible_msrv` does,
/// and a message says so.
fn msrv(host: &Cargo) -> Result<()> {
    let declared = workspace::metadata()?.rust_version()?;
    let in_use = String::from_utf8(step("MSRV", &host.command("--version", &[]))?.stdout)?;
    let in_use = in_use.trim();
    let minors = setup::minor(declared).zip(setup::minor(in_use));
    let (declared_minor, minor) = minors.context("cannot read a version number")?;
    if minor < declared_minor {
        bail!("this is {in_use}, but Cargo.toml wants rust-version {declared}: update Rust");
    }
    if minor > declared_minor {
        println!(
            "MSRV: declared {declared}, but this is {in_use}: only what clippy knows of older \
             versions is checked here"
        );
    }
    Ok(())
}
