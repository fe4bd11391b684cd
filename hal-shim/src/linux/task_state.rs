//! What the thread has once and each task takes for its own.
//!
//! A signal's handler needs it in part: Linux keeps the floating-point state in the signal's frame, and
//! begins the handler with a fresh one. Code that is left without a signal needs all of it.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

use super::cores::{errno, set_errno};

/// What the calling code has of it, while it is off the core.
pub(super) struct TaskState {
    errno: i32,
    control: FpControl,
}

impl TaskState {
    /// Calls `leave`, in which other tasks may run.
    pub(super) fn around(leave: impl FnOnce()) {
        let own = Self { errno: errno(), control: FpControl::take() };
        leave();
        own.control.put_back();
        set_errno(own.errno);
    }
}

/// How the calling code has floating-point operations rounded, and the exceptions that it has caused. A
/// signal's frame has them, and its handler begins as a program does.
#[cfg(target_arch = "x86_64")]
struct FpControl {
    mxcsr: u32,
    x87: u16,
}

#[cfg(target_arch = "x86_64")]
impl FpControl {
    /// As every program begins.
    const INITIAL: Self = Self { mxcsr: 0x1f80, x87: 0x37f };

    /// Takes them from the caller, which goes on as a program begins.
    fn take() -> Self {
        let mut control = Self { ..Self::INITIAL };
        // SAFETY: it writes to two places that are there for it.
        unsafe {
            asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut control.mxcsr,
                in(reg) &raw mut control.x87, options(nostack, preserves_flags));
        }
        Self::INITIAL.put_back();
        control
    }

    fn put_back(&self) {
        // SAFETY: what a program begins with, or what the calling code itself had.
        unsafe {
            asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &raw const self.mxcsr,
                in(reg) &raw const self.x87, options(nostack, preserves_flags));
        }
    }
}

/// Not known for this architecture.
#[cfg(not(target_arch = "x86_64"))]
struct FpControl;

#[cfg(not(target_arch = "x86_64"))]
impl FpControl {
    fn take() -> Self {
        Self
    }

    fn put_back(&self) {}
}
