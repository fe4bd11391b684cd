//! `cargo xtask setup`: finds the programs that building and running on target needs, and installs
//! missing ones.
//!
//! `core` and `alloc` for a bare-metal target come, in this order of preference, from the toolchain
//! in use, from Debian's compiler and sources if they are installed, from `rustup target add`, and
//! from Debian's packages. With `TRAPLINE_STD=source` only Debian's are taken.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::cmd;

use crate::machine::Arch;
use crate::{shell, workspace};

/// Debian's compiler and cargo. `PATH` may find others first.
pub const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
pub const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// The sources of Debian's `core`, of the compiler's version.
const DEBIAN_LIBRARY: &str = "/usr/lib/rustlib/src/rust/library/Cargo.lock";
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Whether packages may be installed without a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    Given,
    Ask,
}

impl Consent {
    /// Consent is given by `--yes`, in CI, and where no terminal can answer.
    pub fn from_flag(yes: bool) -> Self {
        let ci = std::env::var("CI").is_ok_and(|ci| !ci.is_empty() && ci != "false");
        if yes || ci || !std::io::stdin().is_terminal() { Self::Given } else { Self::Ask }
    }
}

/// The origin of `core` and `alloc` for a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Std {
    /// They come with the toolchain in use.
    Installed,
    /// Debian's compiler builds them from source.
    Source { linker: PathBuf },
}

/// Missing programs, and the packages and targets that bring them.
#[derive(Default)]
struct Missing {
    /// Descriptions for the error message.
    what: Vec<String>,
    packages: Vec<&'static str>,
    targets: Vec<&'static str>,
}

impl Missing {
    fn add(&mut self, what: String, packages: &[&'static str]) {
        self.what.push(what);
        for &package in packages {
            if !self.packages.contains(&package) {
                self.packages.push(package);
            }
        }
    }

    fn look(archs: &[Arch]) -> Result<Self> {
        let mut missing = Self::default();
        for &arch in archs {
            for &target in arch.targets() {
                if look_for_std(target).is_none() {
                    missing.targets.push(target);
                    missing.add(format!("`core` for {target}"), &DEBIAN_PACKAGES);
                    if linker().is_none() {
                        missing.add("a linker for ELF".to_owned(), &["lld"]);
                    }
                }
            }
            let Some(package) = qemu_package(arch) else { continue };
            let qemu = arch.qemu();
            if find_in_path(&qemu).is_none() {
                missing.add(qemu, &[package]);
            }
        }
        Ok(missing)
    }
}

/// `cargo xtask setup`.
pub fn run(archs: &[Arch], consent: Consent) -> Result<()> {
    ensure(archs, consent)?;
    for &arch in archs {
        if arch.targets().is_empty() {
            println!("{}: nothing to set up", arch.name());
        }
        for &target in arch.targets() {
            let qemu = find_in_path(&arch.qemu()).unwrap_or_default();
            let std = match find_std(target)? {
                Std::Installed => "the toolchain's".to_owned(),
                Std::Source { linker } => {
                    format!("built by {DEBIAN_RUSTC}, linked by {}", linker.display())
                }
            };
            println!("{target}: ready; `core` is {std}; {}", qemu.display());
        }
    }
    Ok(())
}

/// Ensures that programs for `archs` can be built and run, and installs missing packages.
pub fn ensure(archs: &[Arch], consent: Consent) -> Result<()> {
    let mut missing = Missing::look(archs)?;
    if !missing.targets.is_empty() && !source_wanted() && rustup_adds(&missing.targets) {
        missing = Missing::look(archs)?;
    }
    if missing.packages.is_empty() {
        return Ok(());
    }
    install(&missing.packages, consent).with_context(|| {
        let mut help = format!("missing: {}", missing.what.join(", "));
        help += "\nTo install it by hand, then try again:";
        help += &format!("\n    apt-get update && {}", apt_install(&missing.packages).join(" "));
        for target in &missing.targets {
            help += &format!("\nor, where rustup works, for `core`: rustup target add {target}");
        }
        help + "\nThe installation failed"
    })?;
    let missing = Missing::look(archs)?;
    if !missing.packages.is_empty() {
        bail!("still missing after the installation: {}", missing.what.join(", "));
    }
    Ok(())
}

/// Ensures that there is a `core` for `target`, on which no program is run.
pub fn ensure_core(target: &'static str) -> Result<()> {
    if look_for_std(target).is_none() && !source_wanted() {
        rustup_adds(&[target]);
    }
    find_std(target).map(drop)
}

/// Ensures that the compiler that builds for `target` has clippy.
pub fn ensure_clippy(target: &str, consent: Consent) -> Result<()> {
    if matches!(find_std(target)?, Std::Source { .. })
        && !Path::new("/usr/bin/cargo-clippy").exists()
    {
        install(&["rust-web-clippy"], consent)?;
    }
    Ok(())
}

/// Finds the `core` for `target`. Without one this is an error; [`ensure`] installs it.
pub fn find_std(target: &str) -> Result<Std> {
    look_for_std(target).with_context(|| format!("no `core` for {target}: run `cargo xtask setup`"))
}

fn look_for_std(target: &str) -> Option<Std> {
    let installed = || {
        let libraries = sysroot()?.join("lib/rustlib").join(target).join("lib");
        libraries.is_dir().then_some(Std::Installed)
    };
    let source = || {
        let complete = [DEBIAN_RUSTC, DEBIAN_CARGO, DEBIAN_LIBRARY]
            .iter()
            .all(|file| Path::new(file).exists());
        (complete && new_enough(DEBIAN_RUSTC)).then(linker)?.map(|linker| Std::Source { linker })
    };
    if source_wanted() { source() } else { installed().or_else(source) }
}

fn source_wanted() -> bool {
    std::env::var("TRAPLINE_STD").is_ok_and(|std| std == "source")
}

/// Whether the compiler `rustc` is at least the declared MSRV.
fn new_enough(rustc: &str) -> bool {
    let version = cmd!(rustc, "--version").env_remove("LD_LIBRARY_PATH").stderr_null().read();
    let wanted = workspace::metadata().and_then(|metadata| metadata.rust_version());
    match (version, wanted) {
        (Ok(version), Ok(wanted)) => minor(&version) >= minor(wanted),
        _ => false,
    }
}

/// The minor version: 95 for `rustc 1.95.0 (f2d3ce0bd 2026-03-21)` and for `1.95`.
pub fn minor(version: &str) -> Option<u32> {
    let number = version.split_whitespace().find(|word| word.starts_with("1."))?;
    number.split('.').nth(1)?.parse().ok()
}

/// The sysroot of the toolchain in use.
fn sysroot() -> Option<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    cmd!(rustc, "--print", "sysroot").stderr_null().read().ok().map(PathBuf::from)
}

/// Finds a linker for ELF: the toolchain's own, or LLVM's.
fn linker() -> Option<PathBuf> {
    let hosts = sysroot().and_then(|sysroot| sysroot.join("lib/rustlib").read_dir().ok());
    let mut own =
        hosts.into_iter().flatten().flatten().map(|host| host.path().join("bin/rust-lld"));
    own.find(|lld| lld.exists()).or_else(|| find_in_path("ld.lld"))
}

/// Finds the program `name` in `PATH`.
fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The Debian package of QEMU for `arch`. Newer releases have a separate one for RISC-V.
fn qemu_package(arch: Arch) -> Option<&'static str> {
    let known = |package| {
        let show = cmd!("apt-cache", "show", package).stdout_null().stderr_null().unchecked().run();
        show.is_ok_and(|show| show.status.success())
    };
    match arch {
        Arch::Host => None,
        Arch::X86_64 => Some("qemu-system-x86"),
        Arch::Riscv64 if known("qemu-system-riscv") => Some("qemu-system-riscv"),
        Arch::Riscv64 | Arch::Loongarch64 => Some("qemu-system-misc"),
    }
}

/// Tries to add `targets` to the toolchain in use by rustup; returns whether it succeeded.
fn rustup_adds(targets: &[&str]) -> bool {
    if find_in_path("rustup").is_none() {
        return false;
    }
    let words = ["target", "add"].iter().chain(targets);
    let added = shell::step("rustup target add", &duct::cmd("rustup", words));
    if let Err(error) = &added {
        eprintln!("{error:#}\nTrying Debian's sources instead.");
    }
    added.is_ok()
}

fn apt_install(packages: &[&str]) -> Vec<String> {
    let words = ["apt-get", "install", "-y", "--no-install-recommends"];
    words.iter().chain(packages).map(|&word| word.to_owned()).collect()
}

fn install(packages: &[&str], consent: Consent) -> Result<()> {
    if find_in_path("apt-get").is_none() {
        bail!("there is no apt-get here; another package manager has these by similar names");
    }
    let command = apt_install(packages);
    // Without a terminal sudo must not wait for a password.
    let sudo: &[&str] = match (rustix::process::geteuid().is_root(), consent) {
        (true, _) => &[],
        (false, Consent::Ask) => &["sudo"],
        (false, Consent::Given) if std::io::stdin().is_terminal() => &["sudo"],
        (false, Consent::Given) => &["sudo", "-n"],
    };
    let with_sudo = |words: &[String]| {
        sudo.iter().map(|&word| word.to_owned()).chain(words.iter().cloned()).collect::<Vec<_>>()
    };
    if consent == Consent::Ask {
        eprint!("Run `{}`? [Y/n] ", with_sudo(&command).join(" "));
        std::io::stderr().flush()?;
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer)?;
        if read == 0 || !matches!(answer.trim().to_lowercase().as_str(), "" | "y" | "yes") {
            bail!("the installation was declined");
        }
    }
    let update = ["apt-get", "update"].map(str::to_owned);
    for words in [&update[..], &command] {
        let words = with_sudo(words);
        let command = duct::cmd(&words[0], &words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
        shell::step(&words.join(" "), &command)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_minor_number() {
        assert_eq!(minor("rustc 1.95.0 (f2d3ce0bd 2026-03-21)"), Some(95));
        assert_eq!(minor("1.95"), Some(95));
        assert_eq!(minor("rustc"), None);
        assert!(minor("rustc 1.100.0") > minor("1.95"));
    }

    #[test]
    fn a_package_is_installed_once() {
        let mut missing = Missing::default();
        missing.add("one".to_owned(), &["lld", "qemu"]);
        missing.add("two".to_owned(), &["lld"]);
        assert_eq!(missing.packages, ["lld", "qemu"]);
        assert_eq!(missing.what, ["one", "two"]);
    }
}
