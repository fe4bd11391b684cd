//! Traps as values, and user mode.
//!
//! If a kernel lets Trapline have the trap vector ([`arch::install_trap_entry`]), it gets every
//! trap as a [`TrapContext`]. A trap comes about in one of two ways:
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

use core::sync::atomic::{AtomicPtr, Ordering};

use crate::arch;
use crate::arch::TrapContext;
use crate::config::MIN_SLICE;
use crate::platform::bound;
use crate::time::alarm::nanoseconds;

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

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets the handler for the traps of all cores.
pub(crate) fn set_handler(handler: TrapHandler) {
    // Release: the handler sees what the caller of this function has prepared for it.
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Calls the kernel's handler. An architecture's trap entry calls this for a trap in kernel mode.
pub(crate) extern "C" fn dispatch(context: &mut TrapContext) {
    // Acquire pairs with the release in `set_handler`.
    let handler = HANDLER.load(Ordering::Acquire);
    // SAFETY: traps lead here only after `install_trap_entry` has called `set_handler`, and no
    // other code writes `HANDLER`.
    let handler = unsafe { core::mem::transmute::<*mut (), TrapHandler>(handler) };
    handler(context);
}

impl TrapContext {
    /// Runs the user program of this context until its next trap, and returns that trap.
    ///
    /// An interrupt has been handled by then, by the kernel's [`TrapHandler`]. In a stackful task,
    /// other tasks may have had the core in that handler, so `Timer` needs no answer but the next
    /// `run`. In a plain task, no other task has run: yield on `Timer` and on `Interrupt`. If the
    /// time of a plain task was up before it called `run`, it gets `Timer` at once.
    ///
    /// This function loads no address space: [`contexted`](crate::contexted()) keeps the right one
    /// loaded across awaits and preemption.
    ///
    /// # Safety
    ///
    /// - This core's traps come to the entry of
    ///   [`install_trap_entry`](crate::arch::install_trap_entry).
    /// - It is called in task context or outside of a runtime, not in a handler of an interrupt.
    /// - The loaded address space lets user mode reach only what this program may access, and keeps
    ///   the kernel's part as it is.
    pub unsafe fn run(&mut self) -> Trap {
        // A pending preemption is taken here, rather than by an alarm in the middle of the program.
        crate::preempt::point();
        // The handler of an interrupt of the program runs on this stack.
        arch::touch_stack::<{ arch::HANDLER_STACK }>();
        let interrupts = bound::mask_interrupts();
        let trap = if begin_user_slice() {
            // SAFETY: interrupts are masked, and the caller promises the rest.
            unsafe { self.enter_user() };
            let trap = self.trap();
            if matches!(trap, Trap::Timer | Trap::Interrupt(_)) {
                dispatch(self);
            }
            trap
        } else {
            Trap::Timer
        };
        // SAFETY: `interrupts` is what `mask_interrupts` returned. A handler that gave the core to
        // other tasks meanwhile has returned with interrupts masked.
        unsafe { bound::restore_interrupts(interrupts) };
        trap
    }
}

/// Makes sure that a run in user mode ends with the slice. Returns `false` if the slice has already
/// ended.
fn begin_user_slice() -> bool {
    let Some(runtime) = Runtime::current() else { return true };
    if runtime.is_on_stack() {
        // The slice of the task that runs on the stack has already begun.
        return true;
    }
    if runtime.preempt_count().is_pending() {
        // The preemption is reported only once, so that a task that ignores `Timer` makes progress.
        runtime.preempt_count().clear_pending();
        return false;
    }
    // Wakes by other cores must interrupt the program, as they interrupt a stackful task. If the
    // inbox is not empty, the program gets the shortest slice.
    let slice =
        if runtime.inbox().announce_stackful() { runtime.slice() } else { nanoseconds(MIN_SLICE) };
    let next_timer = runtime.timers().next();
    if runtime.alarm().begin_covered() {
        // The loop does not look at a plain task's own timers before the task's poll is over.
        runtime.alarm().set_by(next_timer);
    } else {
        runtime.alarm().begin_slice(slice, next_timer);
    }
    true
}
