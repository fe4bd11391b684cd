//! Why a trap came, and what a system call asks for.

/// The reason for a trap. One enum for all architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The core's alarm.
    Timer,
    /// Another interrupt, with the architecture's number for it: on riscv64 the code of `scause`,
    /// on x86_64 the vector, on loongarch64 the line (if several are pending, the one that comes
    /// first).
    Interrupt(usize),
    /// A system call: see `TrapContext::syscall`. The program counter is behind the instruction.
    Syscall,
    /// An access that the address space forbids.
    PageFault {
        /// The address that was accessed.
        addr: usize,
        /// The kind of access.
        access: Access,
    },
    /// A breakpoint instruction. The program counter is behind it.
    Breakpoint,
    /// An instruction that does not exist, or that is not for user mode (where the machine tells
    /// that).
    IllegalInstruction,
    /// Any other trap, as a raw value: on riscv64 `scause`; on x86_64 the vector, with the error
    /// code from bit 8 on; on loongarch64 `ESTAT` without the pending lines.
    Other(usize),
}

/// The kind of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// A user program's request in a [`Trap::Syscall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// riscv64, loongarch64: a7; x86_64: rax. The program chooses it, so it can be anything.
    pub number: usize,
    /// riscv64, loongarch64: a0 to a5; x86_64: rdi, rsi, rdx, r10, r8, r9.
    pub arguments: [usize; 6],
}
