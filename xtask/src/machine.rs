//! The architectures that a program is built for, and the machines that run it in QEMU.

use clap::ValueEnum;
use serde::Deserialize;

/// An architecture that a program is built for.
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
    /// The name on the command line and in the demo's JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Riscv64 => "riscv64",
            Self::X86_64 => "x86_64",
            Self::Loongarch64 => "loongarch64",
        }
    }

    /// The bare-metal targets, none for the host. Builds take the first one unless told otherwise.
    pub fn targets(self) -> &'static [&'static str] {
        match self {
            Self::Host => &[],
            Self::Riscv64 => &["riscv64gc-unknown-none-elf"],
            Self::X86_64 => &["x86_64-unknown-none"],
            Self::Loongarch64 => &["loongarch64-unknown-none-softfloat", LOONGARCH64_HARD_FLOAT],
        }
    }

    /// The name of QEMU's program for it.
    pub fn qemu(self) -> String {
        format!("qemu-system-{}", self.name())
    }

    /// Flags for rustc, without those for linking.
    pub fn rustc_flags(self) -> &'static [&'static str] {
        match self {
            // QEMU loads an ELF file at the addresses in its headers and does not relocate it.
            Self::X86_64 => &["-Crelocation-model=static"],
            Self::Host | Self::Riscv64 | Self::Loongarch64 => &[],
        }
    }
}

/// The target whose ABI has floating-point registers.
pub const LOONGARCH64_HARD_FLOAT: &str = "loongarch64-unknown-none";

/// A machine that QEMU emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// `virt`, with OpenSBI as its firmware
    Riscv64,
    /// `q35`, without firmware
    #[value(name = "x86_64")]
    X86_64,
    /// `virt`, without firmware
    Loongarch64,
}

impl Machine {
    pub fn arch(self) -> Arch {
        match self {
            Self::Riscv64 => Arch::Riscv64,
            Self::X86_64 => Arch::X86_64,
            Self::Loongarch64 => Arch::Loongarch64,
        }
    }
}
