//! State that a thread has once, but that each task uses as its own.
//!
//! A signal's handler saves and restores only a part of it: Linux keeps the floating-point state in
//! the signal's frame, and begins the handler with a fresh one. If a task is left without a signal,
//! all of it must be saved.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

use super::cores::{errno, set_errno};

/// The state of a task while it is off the core.
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

/// The rounding mode of floating point, and the exceptions that are masked and that were caused. A
/// signal's frame has them, and its handler begins with the initial values.
#[cfg(target_arch = "x86_64")]
struct FpControl {
    mxcsr: u32,
    x87: u16,
}

#[cfg(target_arch = "x86_64")]
impl FpControl {
    /// The values with which every program begins.
    const INITIAL: Self = Self { mxcsr: 0x1f80, x87: 0x37f };

    /// Returns the caller's values, and sets the initial ones.
    fn take() -> Self {
        let mut control = Self { ..Self::INITIAL };
        // SAFETY: the instructions write to two fields of `control`.
        unsafe {
            asm!("stmxcsr [{}]", "fnstcw [{}]", in(reg) &raw mut control.mxcsr,
                in(reg) &raw mut control.x87, options(nostack, preserves_flags));
        }
        Self::INITIAL.put_back();
        control
    }

    fn put_back(&self) {
        // SAFETY: the values are the initial ones, or those that the calling code itself had.
        unsafe {
            asm!("ldmxcsr [{}]", "fldcw [{}]", in(reg) &raw const self.mxcsr,
                in(reg) &raw const self.x87, options(nostack, preserves_flags));
        }
    }
}

/// Nothing is saved for this architecture.
#[cfg(not(target_arch = "x86_64"))]
struct FpControl;

#[cfg(not(target_arch = "x86_64"))]
impl FpControl {
    fn take() -> Self {
        Self
    }

    fn put_back(&self) {}
}
