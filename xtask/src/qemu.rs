//! Runs a kernel in QEMU.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use duct::Expression;

use crate::machine::Machine;
use crate::shell::{self, End};

impl Machine {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Riscv64 => &["-M", "virt", "-bios", "default", "-m", "256M"],
            Self::X86_64 => &["-M", "q35", "-nodefaults", "-m", "256M", "-device", DEBUG_EXIT],
            // With this device a panic of the guest ends QEMU with 1. The machine has no other way
            // to report a failure.
            Self::Loongarch64 => &[
                "-M",
                "virt",
                "-m",
                "1G",
                "-device",
                "pvpanic-pci",
                "-action",
                "panic=exit-failure",
            ],
        }
    }

    /// The usual processor; on x86_64 the one with all optional features.
    fn cpu(self) -> Option<&'static str> {
        match self {
            Self::X86_64 => Some("max"),
            Self::Riscv64 | Self::Loongarch64 => None,
        }
    }

    /// Computes the guest's exit code from QEMU's and from the number that the guest `said` in a
    /// line `exit code N`.
    fn exit_code(self, qemu: u8, said: Option<u8>) -> u8 {
        match self {
            Self::Riscv64 => qemu,
            // The guest writes its code plus one to the device, which ends QEMU with twice that
            // plus one. Other codes are QEMU's own failure (1) or a triple fault (0), and no
            // success.
            Self::X86_64 if qemu % 2 == 1 && qemu > 1 => qemu / 2 - 1,
            Self::X86_64 => qemu.max(1),
            // The machine has no device that takes a code.
            Self::Loongarch64 => match qemu {
                0 => 0,
                failed => said.filter(|&code| code != 0).unwrap_or(failed),
            },
        }
    }
}

/// The device that the guest writes its exit code to.
const DEBUG_EXIT: &str = "isa-debug-exit,iobase=0xf4,iosize=0x04";

/// A kernel and the machine that it runs on.
pub struct Guest {
    pub machine: Machine,
    pub kernel: PathBuf,
    pub smp: u32,
    /// Whether the guest's clock counts instructions (one is a nanosecond) and skips idle time.
    /// Each run is then the same, whatever load the host has.
    pub icount: bool,
    /// The processor; `None` is the machine's usual one.
    pub cpu: Option<&'static str>,
    /// Arguments of the guest, which `hal_shim::arg` reads.
    pub words: Vec<String>,
}

impl Guest {
    fn command(&self) -> Expression {
        let mut words: Vec<String> =
            self.machine.arguments().iter().map(|&word| word.to_owned()).collect();
        // With `-no-reboot` a reset ends QEMU.
        words.extend(["-display", "none", "-serial", "mon:stdio", "-no-reboot"].map(str::to_owned));
        words.extend(["-smp".to_owned(), self.smp.to_string()]);
        if let Some(cpu) = self.cpu.or(self.machine.cpu()) {
            words.extend(["-cpu", cpu].map(str::to_owned));
        }
        if self.icount {
            words.extend(["-icount", "shift=0,sleep=off"].map(str::to_owned));
        }
        words.extend(["-kernel".to_owned(), self.kernel.display().to_string()]);
        let line = self.words.join(" ");
        match self.machine {
            _ if line.is_empty() => {}
            // Older QEMU passes no command line to this machine's kernel. A single comma would end
            // the value.
            Machine::Loongarch64 => words.extend([
                "-fw_cfg".to_owned(),
                format!("name=opt/trapline/words,string={}", line.replace(',', ",,")),
            ]),
            Machine::Riscv64 | Machine::X86_64 => words.extend(["-append".to_owned(), line]),
        }
        duct::cmd(self.machine.arch().qemu(), words)
    }

    /// Runs it with its console on this terminal and returns its exit code.
    pub fn on_terminal(&self, limit: Duration) -> Result<u8> {
        let stdin = std::io::stdin();
        let mut command = self.command();
        if stdin.is_terminal() {
            command = command.stdin_file(stdin.as_fd().try_clone_to_owned()?);
        }
        match self.run(&command, limit, |line| println!("{line}"))? {
            End::Exit(code) => Ok(code),
            End::TimeUp => bail!(
                "the guest was killed after {} s; `--timeout` allows it more",
                limit.as_secs()
            ),
        }
    }

    /// Runs it and passes each line of its console, and of what QEMU itself says, to `line`.
    pub fn lines(&self, limit: Duration, line: impl FnMut(&str)) -> Result<End> {
        self.run(&self.command().stderr_to_stdout(), limit, line)
    }

    fn run(
        &self,
        command: &Expression,
        limit: Duration,
        mut line: impl FnMut(&str),
    ) -> Result<End> {
        let mut said = None;
        let end = shell::lines(command, limit, |text| {
            said = text.strip_prefix("exit code ").and_then(|code| code.parse().ok()).or(said);
            line(text);
        })?;
        Ok(match end {
            End::Exit(code) => End::Exit(self.machine.exit_code(code, said)),
            End::TimeUp => End::TimeUp,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_guests() {
        assert_eq!(Machine::Riscv64.exit_code(7, None), 7);
        assert_eq!(Machine::X86_64.exit_code(3, None), 0);
        assert_eq!(Machine::X86_64.exit_code(205, None), 101);
        assert_eq!(Machine::Loongarch64.exit_code(0, None), 0);
        assert_eq!(Machine::Loongarch64.exit_code(1, Some(101)), 101);
    }

    #[test]
    fn no_failure_becomes_a_success() {
        // A triple fault, a failure of QEMU itself, and its end by a signal.
        assert_eq!(Machine::X86_64.exit_code(0, None), 1);
        assert_eq!(Machine::X86_64.exit_code(1, None), 1);
        assert_eq!(Machine::X86_64.exit_code(134, None), 134);
        assert_eq!(Machine::Loongarch64.exit_code(1, None), 1);
        assert_eq!(Machine::Loongarch64.exit_code(1, Some(0)), 1);
    }
}
