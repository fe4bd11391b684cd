//! Stackful futures: futures that compute for a long time. They run on stacks of their own and can
//! be preempted.
//!
//! A stackful future is a task like any other: it has one state word, one waker and one place in
//! the ready queue. The difference is where it is polled: on a stack from the core's pool. A stack
//! is always in one of four states. In each state it has exactly one owner: the pool (idle), the
//! loop (polling), or a task (suspended, preempted). RUNNING and BLOCKED are task states (see
//! `crate::task`).
//!
//! ```text
//!       idle               polling             suspended            preempted
//! ┌───────────────┐   ┌───────────────┐   ┌───────────────┐   ┌───────────────┐
//! │ Stack         │   │ Stack         │   │ Stack         │   │ Stack         │
//! │ stack_main    │   │ stack_main    │   │ stack_main    │   │ stack_main    │
//! │ turn_on       │   │ turn_on       │   │ turn_on       │   │ turn_on       │
//! │ go_home       │   │ the poll      │   │ the poll      │   │ the poll      │
//! │ saved context │   │               │   │ block_on      │   │ trap context  │
//! └───────────────┘   └───────────────┘   │ saved context │   │ trap handler  │
//!  the stack is       the core runs on    └───────────────┘   │ on_timer      │
//!  in the pool        this stack          the task is BLOCKED │ saved context │
//!                                         or queued, like any └───────────────┘
//!                                         other task          the task is RUNNING, in
//!                                                             a queue of `Stacks`
//! ```
//!
//! A suspended or preempted stack *holds frames* of its task. It belongs to that task and to the
//! core that runs the task. (A task that is preempted in task context, for example when it drops a
//! guard, has no trap context on its stack.)
//!
//! # Home, and the loop on a stack
//!
//! *Home* is the stack of the code that entered the runtime; the word also stands for the part of
//! the loop that runs there. At home, plain tasks are polled, the core parks, and tasks of which a
//! stack holds frames are resumed. The core gets from home to a stack by one context switch. On the
//! stack, `turn_on` is the loop: after each poll, `turn_on` chooses the next stackful task and
//! polls it by a plain call, so tasks that are not preempted cost no switch. For everything else
//! the core goes home. Home then chooses again, from the same queues.
//!
//! ```text
//!   home: Runtime::run                             a stack: Runtime::turn_on
//!  ┌─────────────────────┐  leave_home: poll     ┌─────────────────────────────┐
//!  │ choose              │ ────────────────────► │ poll ◄─────────────────┐    │
//!  │ poll a plain task   │                       │ next_on_stack: choose ─┘    │
//!  │ park                │ ◄──────────────────── │ go_home: anything else      │
//!  │                     │                       ├─────────────────────────────┤
//!  │                     │ ◄──────────────────── │ leave_stack: preempted,     │
//!  │                     │  leave_home: resume   │ or suspended                │
//!  │                     │ ────────────────────► │                             │
//!  └─────────────────────┘                       └─────────────────────────────┘
//! ```
//!
//! # Rules
//!
//! 1. Preemption is enabled only while the core is on a pooled stack. At that time home's context
//!    is saved, so the core can switch to home.
//! 2. When the core leaves home, no frame of a task is left on home's stack. No plain task is
//!    polled on a pooled stack.
//! 3. The frames that call a poll (`stack_main` and `turn_on`) keep only the runtime, the stack and
//!    the task across the poll. They read everything else after the poll, because the core may have
//!    run other code meanwhile.
//! 4. `Stacks::running` is the stack that the core is on. Home clears it as soon as the core comes
//!    home.
//! 5. `Header::stack` and `Stack::task` are set while the stack holds frames of the task and the
//!    core is elsewhere. Home sets them after the core has left the stack, and clears them before
//!    the core enters the stack.
//! 6. Only home puts a stack into the pool, and only home takes a stack from the pool in order to
//!    enter it. So no code runs on a stack that is in the pool.
//! 7. The first switch to a stack calls `stack_main`. Each further switch to that stack is a return
//!    into the frame that left it, in `turn_on` or in the task's code. So the frames on a stack do
//!    not grow with the number of switches to it.
//! 8. A task may be preempted after its poll has returned, until `turn_on` disables preemption.
//!    Until then, the value that the poll returned lies on the task's stack.

mod aging;
mod block_on;
mod boot;
pub(crate) mod future;
pub(crate) mod on_stack;
pub(crate) mod pool;
mod slice;
pub(crate) mod stacks;
pub(crate) mod stall;
pub(crate) mod switch;

pub use crate::platform::backend::{Context, StackMain, StackfulBackend};
pub use block_on::block_on;
pub use boot::{BootStackError, leave_boot_stack};
pub use future::{Stackful, stackful};
pub use stall::{Holds, Stall, StalledTask};
pub use switch::current_stack;
