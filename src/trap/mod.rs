//! Traps as values, and user mode.
//!
//! If a kernel lets Trapline have the trap vector
//! ([`arch::install_trap_entry`](crate::arch::install_trap_entry)), it gets every trap as a
//! [`TrapContext`]. A trap comes about in one of two ways:
//!
//! ```text
//!   kernel code is interrupted                       a user program is interrupted
//!
//!   |  interrupted frames   |                        |  the caller of run     |   kernel stack
//!   +-----------------------+                        +------------------------+
//!   |  TrapContext          |                        |  its callee-saved regs |
//!   +-----------------------+                        +------------------------+
//!   |  dispatch -> handler  |                        TrapContext: wherever its owner keeps it
//!   +-----------------------+
//!
//!   the handler is called; when it returns,          `run` returns, and says why
//!   the interrupted code goes on
//! ```
//!
//! Traps nest as deep as the stacks allow. The entry reads all information of a trap once, and
//! stores it on the interrupted stack or in the context that was run. A core has no "current trap".
//!
//! Interrupts come to the handler in both cases, so a kernel acknowledges them in one place. When a
//! user program is interrupted, the handler runs on the stack of the task that called `run`, and
//! ends in [`preempt::on_timer`](crate::preempt::on_timer) as always. So the time that a user
//! program takes counts against the slice of its task. A stackful task is preempted at that place,
//! inside of `run`. A plain task is not preempted: it gets [`Trap::Timer`] from `run`, and yields.

pub(crate) mod cause;
pub(crate) mod handler;
mod run;

use crate::arch::TrapContext;

pub use cause::{Access, Syscall, Trap};

/// A function that handles a trap.
///
/// It runs with interrupts masked, on the interrupted stack. If a user program was interrupted
/// (`context.is_user()`), it runs on the stack of the caller of [`TrapContext::run`]; of the traps
/// of user programs, it gets interrupts only. What is in the context when the handler returns is
/// restored. The handler returns with interrupts masked. The handler of an interrupt acknowledges
/// the interrupt first. It may end with a call of [`preempt::on_timer`](crate::preempt::on_timer)
/// or [`preempt::on_interrupt`](crate::preempt::on_interrupt), which may give the core to other
/// tasks and return much later.
///
/// An overflow of a kernel stack is handled on the core's emergency stack
/// (`context.is_overflow()`). The handler must not return from an overflow, since the interrupted
/// code cannot continue. It ends the machine, or the task by
/// [`preempt::end_task`](crate::preempt::end_task).
///
/// The entry checks the stack before it pushes. A trap that finds less room than a context and
/// [`HANDLER_STACK`](crate::arch::HANDLER_STACK) bytes is an overflow too. So a handler of an
/// interrupt that uses no more than that does not run out of stack while it holds a lock or after
/// it has acknowledged the interrupt.
///
/// After such an overflow, on riscv64 and loongarch64, the interrupt is still pending. On x86_64
/// the processor has already delivered it: a handler that ends the task tells the interrupt
/// controller that all interrupts in service have ended (EOI). `end_task` sets the alarm again. For
/// an interrupt of a device, the kernel asks the devices for its reason.
pub type TrapHandler = fn(&mut TrapContext);
