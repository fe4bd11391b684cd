//! Runs the command line, mostly with errors. No test installs packages: each package manager here
//! is a shell script that takes its place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn xtask(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(words).stdin(Stdio::null()).env_remove("TRAPLINE_STD");
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Makes a folder of shell scripts that becomes the whole `PATH`.
fn programs(name: &str, scripts: &[(&str, &str)]) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    for (program, script) in scripts {
        let file = folder.join(program);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

#[test]
fn help_names_every_command() {
    let output = xtask(&["--help"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for command in ["setup", "demo", "bench", "cost", "qemu", "test", "mutants", "layers", "lint"] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(command)), "{text}");
    }
}

#[test]
fn an_unknown_arch_is_answered_with_the_known_ones() {
    for words in [
        &["qemu", "sparc", "preempt"][..],
        &["demo", "--arch", "sparc"],
        &["cost", "--arch", "sparc"],
        &["test", "--arch", "sparc"],
        &["setup", "--arch", "sparc"],
    ] {
        let output = xtask(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        let error = stderr(&output);
        for part in ["'sparc'", "riscv64", "x86_64", "loongarch64"] {
            assert!(error.contains(part), "{words:?}: {part}: {error}");
        }
    }
}

#[test]
fn an_unknown_example_is_answered_with_the_known_ones() {
    let output = xtask(&["qemu", "riscv64", "nonesuch"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(error.contains("`nonesuch`") && error.contains("preempt"), "{error}");
}

#[test]
fn numbers_and_words_out_of_range_are_refused() {
    for words in [
        &["demo", "--hogs", "0"][..],
        &["demo", "--hogs", "many"],
        &["demo", "--seconds", "0"],
        &["demo", "--seconds", "nan"],
        &["demo", "--seconds", "-1"],
        &["qemu", "riscv64", "preempt", "--smp", "0"],
        &["qemu", "riscv64", "preempt", "--timeout", "soon"],
        &["qemu", "riscv64", "preempt", "--", "hogs"],
        &["qemu", "riscv64", "preempt", "--", "a=b c=d"],
        &["qemu", "riscv64"],
        &["bench", "--bless", "--quick"],
        &["bench", "--bless", "--only", "yield"],
        &["bench", "--bless", "--impl", "tokio"],
        &[],
    ] {
        let output = xtask(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"));
    }
}

#[test]
fn without_qemu_and_a_package_manager_it_says_what_to_do() {
    let path = programs("nothing", &[]);
    for words in [&["setup"][..], &["qemu", "riscv64", "preempt"], &["demo", "--arch", "riscv64"]] {
        let output = xtask(words).env("PATH", &path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        let error = stderr(&output);
        for part in ["qemu-system-riscv64", "by hand", "apt-get install", "no apt-get"] {
            assert!(error.contains(part), "{words:?}: {part}: {error}");
        }
    }
}

#[test]
fn without_permission_to_install_it_says_what_to_do() {
    let denied = "echo 'Could not open lock file (13: Permission denied)' >&2; exit 100";
    // Root calls apt-get and other users call sudo; both refuse.
    let path = programs("denied", &[("apt-get", denied), ("sudo", denied)]);
    let output = xtask(&["setup", "--yes"]).env("PATH", &path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    for part in ["qemu-system-riscv64", "by hand", "apt-get install", "Permission denied"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn an_installation_that_changes_nothing_is_not_believed() {
    let path = programs("liar", &[("apt-get", "exit 0"), ("sudo", "exit 0")]);
    let output = xtask(&["setup", "--yes"]).env("PATH", &path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("still missing"), "{}", stderr(&output));
}

#[test]
fn a_suite_that_cannot_run_has_failed() {
    let path = programs("no-suite", &[]);
    let output = xtask(&["test", "--arch", "riscv64"]).env("PATH", &path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(text.lines().last(), Some("0 passed, 1 failed"), "{text}");
}
