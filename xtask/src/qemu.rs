//! Running a program in QEMU.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use duct::Expression;

use crate::build::Arch;
use crate::shell::{self, End};

/// A machine that QEMU plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Machine {
    /// `virt`, with OpenSBI as its firmware
    Riscv64,
}

impl Machine {
    pub fn arch(self) -> Arch {
        match self {
            Self::Riscv64 => Arch::Riscv64,
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Riscv64 => &["-M", "virt", "-bios", "default", "-m", "256M"],
        }
    }
}

/// QEMU's program for `arch`.
pub fn binary(arch: Arch) -> String {
    format!("qemu-system-{}", arch.name())
}

/// A kernel on its machine.
pub struct Guest {
    pub machine: Machine,
    pub kernel: PathBuf,
    pub smp: u32,
    /// Whether the guest's clock counts instructions (one is a nanosecond) and skips idle time:
    /// whatever the host is doing, the same run again.
    pub icount: bool,
    /// The processor, if not the machine's usual one.
    pub cpu: Option<&'static str>,
    /// Handed to the guest: `hal_shim::arg` finds them.
    pub words: Vec<String>,
}

impl Guest {
    fn command(&self) -> Expression {
        let mut words: Vec<String> =
            self.machine.arguments().iter().map(|&word| word.to_owned()).collect();
        // `-no-reboot`: a guest that resets itself has ended.
        words.extend(["-nographic", "-no-reboot", "-smp"].map(str::to_owned));
        words.push(self.smp.to_string());
        if let Some(cpu) = self.cpu {
            words.extend(["-cpu", cpu].map(str::to_owned));
        }
        if self.icount {
            words.extend(["-icount", "shift=0,sleep=off"].map(str::to_owned));
        }
        words.extend(["-kernel".to_owned(), self.kernel.display().to_string()]);
        if !self.words.is_empty() {
            words.extend(["-append".to_owned(), self.words.join(" ")]);
        }
        duct::cmd(binary(self.machine.arch()), words)
    }

    /// Runs it with its console on our terminal and returns its exit code.
    pub fn on_terminal(&self, limit: Duration) -> Result<u8> {
        let mut command = self.command().unchecked();
        if !std::io::stdin().is_terminal() {
            command = command.stdin_null();
        }
        let running = command.start().with_context(|| format!("cannot start {command:?}"))?;
        match running.wait_timeout(limit)? {
            Some(output) => Ok(shell::exit_code(output.status)),
            None => {
                running.kill()?;
                anyhow::bail!(
                    "the guest had not ended after {} s and was ended; `--timeout` gives it longer",
                    limit.as_secs()
                );
            }
        }
    }

    /// Runs it and hands over its console line by line.
    pub fn lines(&self, limit: Duration, line: impl FnMut(&str)) -> Result<End> {
        shell::lines(&self.command(), limit, line)
    }
}
