//! Traps as values, and user mode.
//!
//! A kernel that lets Trapline have the trap vector ([`arch::install_trap_entry`])
//! gets every trap as a [`TrapContext`]. There are two ways for one to come about:
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
//! They nest as deep as stacks go, since all that a trap tells is read once, by the entry, and lies on the
//! stack that was interrupted or in the context that was run. A core has no "current trap".
//!
//! Interrupts come to the handler in both cases, so a kernel acknowledges them in one place. In
//! user mode the handler runs on the stack of the task that called `run`, and ends in
//! [`preempt::on_timer`](crate::preempt::on_timer) as always: so the time that a user program takes counts
//! against the slice of its task. A stackful task is preempted right there, inside of `run`. A plain
//! one is not; it sees [`Trap::Timer`], and yields.

use core::sync::atomic::{AtomicPtr, Ordering};

use crate::arch::{self, TrapContext};
use crate::config::MIN_SLICE;
use crate::platform::bound;
use crate::time::nanoseconds;

/// Why a trap was taken. One enum for all architectures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// The core's alarm.
    Timer,
    /// Another interrupt, with the architecture's number for it: riscv64 the code of `scause`, x86_64
    /// the vector, loongarch64 the line (of several that are pending, the one that comes first).
    Interrupt(usize),
    /// A system call: see `TrapContext::syscall`. The program counter is behind the instruction.
    Syscall,
    /// An access that the address space forbids.
    PageFault {
        /// The address.
        addr: usize,
        /// What was tried there.
        access: Access,
    },
    /// A breakpoint instruction. The program counter is behind it.
    Breakpoint,
    /// An instruction that doesn't exist, or (where the machine tells) is not for user mode.
    IllegalInstruction,
    /// Anything else, raw: riscv64 `scause`, x86_64 the vector and from bit 8 on the error code, loongarch64
    /// `ESTAT` without the pending lines.
    Other(usize),
}

/// What an access wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To load.
    Read,
    /// To store.
    Write,
    /// To fetch an instruction.
    Execute,
}

/// What a user program asks for in a [`Trap::Syscall`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// riscv64, loongarch64: a7; x86_64: rax. It is the program's, so it can be anything.
    pub number: usize,
    /// riscv64, loongarch64: a0 to a5; x86_64: rdi, rsi, rdx, r10, r8, r9.
    pub arguments: [usize; 6],
}

/// What handles a trap.
///
/// It runs with interrupts masked on the interrupted stack, or on that of the caller of
/// [`TrapContext::run`] when a user program was interrupted (`context.is_user()`; of those it gets
/// interrupts only). What is in the context when it returns is restored; it returns with interrupts
/// masked. A handler of an interrupt acknowledges it first, and may end with a call of
/// [`preempt::on_timer`](crate::preempt::on_timer) or
/// [`preempt::on_interrupt`](crate::preempt::on_interrupt), which may give the core to other tasks and
/// return much later.
///
/// An overflow of a kernel stack is handled on the core's emergency stack (`context.is_overflow()`).
/// The handler must not return from it, since what it interrupted cannot go on: it ends the machine,
/// or the task by [`preempt::end_task`](crate::preempt::end_task).
///
/// A trap that finds less room than a context and [`HANDLER_STACK`](crate::arch::HANDLER_STACK) bytes is
/// an overflow too: the entry looks before it pushes. So the handler of an interrupt that uses no more
/// than that does not run out of stack with a lock held or the interrupt acknowledged. On riscv64 and
/// loongarch64 the interrupt is still pending then. On x86_64 the processor has handed it over: a
/// handler that ends the task tells the interrupt controller that all interrupts in service have ended
/// (EOI). `end_task` sets the alarm again. What a device's interrupt was about, the kernel asks the
/// devices.
pub type TrapHandler = fn(&mut TrapContext);

static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Makes traps of all cores end in `handler`.
pub(crate) fn set_handler(handler: TrapHandler) {
    // Release: what the caller prepared for its handler is there before the handler.
    HANDLER.store(handler as *mut (), Ordering::Release);
}

/// Calls the kernel's handler. What an architecture's entry calls for a trap in kernel mode.
pub(crate) extern "C" fn dispatch(context: &mut TrapContext) {
    // Acquire pairs with the release in `set_handler`.
    let handler = HANDLER.load(Ordering::Acquire);
    // SAFETY: traps lead here only after `install_trap_entry` has called `set_handler`, and nobody else
    // writes HANDLER.
    let handler = unsafe { core::mem::transmute::<*mut (), TrapHandler>(handler) };
    handler(context);
}

impl TrapContext {
    /// Runs the user program of this context until its next trap, and says what that was.
    ///
    /// An interrupt has been handled by then, by the kernel's [`TrapHandler`]. In a stackful task, other
    /// tasks may have had the core in that handler, so `Timer` needs no answer but the next `run`. In a
    /// plain task no other task has run: yield on `Timer` and on `Interrupt`. If the time of a plain
    /// task was up before it called `run`, it gets `Timer` at once.
    ///
    /// It loads no address space: [`contexted`](crate::contexted()) keeps the right one loaded around
    /// awaits and preemption.
    ///
    /// # Safety
    ///
    /// - This core's traps come to [`install_trap_entry`](crate::arch::install_trap_entry)'s entry.
    /// - It is called in task context or outside of a runtime, not in a handler of an interrupt.
    /// - The address space that is loaded lets user mode reach only what this program may touch, and keeps
    ///   the kernel's part as it is.
    pub unsafe fn run(&mut self) -> Trap {
        // What is pending is paid here rather than by an alarm in the middle of the program.
        crate::preempt::point();
        // What interrupts the program is handled on this stack.
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
        // SAFETY: what `mask_interrupts` returned. A handler that left the core meanwhile came
        // back with them masked.
        unsafe { bound::restore_interrupts(interrupts) };
        trap
    }
}

/// Sees to it that a stay in user mode ends with the slice. `false`: the slice has ended already.
fn begin_user_slice() -> bool {
    let Some(runtime) = bound::slot().runtime() else { return true };
    if runtime.is_on_stack() {
        // The slice of the task that is on the stack.
        return true;
    }
    if runtime.preempt_count().is_pending() {
        // It is told once, so that who doesn't want to know makes progress.
        runtime.preempt_count().clear_pending();
        return false;
    }
    // Wakes by other cores shall interrupt the program, as they do a stackful task.
    let slice =
        if runtime.inbox().announce_stackful() { runtime.slice() } else { nanoseconds(MIN_SLICE) };
    let next_timer = runtime.timers().next();
    if runtime.alarm().begin_covered() {
        // A plain task's own timers are not looked at before its poll is over.
        runtime.alarm().set_by(next_timer);
    } else {
        runtime.alarm().begin_slice(slice, next_timer);
    }
    true
}
