//! A task: one block of memory, with a header in front and the future, later its output, behind it.
//!
//! The memory comes from the allocator, or is a [`StaticTask`](static_task::StaticTask). Apart from
//! the type of their futures, tasks differ only in their [`Storage`](storage::Storage).
//!
//! # The life of a task
//!
//! ```text
//!                       spawn on its own core (1)
//!         ┌────────────────────────────────────────────────────┐
//!         │ spawn (1)             start (2)                    ▼     complete (7)
//!         └──────────► READY ─────────────────────────────► RUNNING ──────────────► DONE
//!                      ▲   ▲                               ▲ │ │ ▲                  ▲ ▲
//!      wake, abort (5) │   │ pending (4): woken meanwhile  │ │ │ └─ yield (10)      │ │
//!          ┌───────────┘   └───────────────────────────────┼─┘ │    wake, abort (6) │ │
//!          │       wake on its own core (11)               │   │                    │ │
//!       BLOCKED ───────────────────────────────────────────┘   │     abandon (8) ───┘ │
//!          ▲ │     pending (3): not woken meanwhile            │                      │
//!          └─┼─────────────────────────────────────────────────┘                      │
//!            └── shut_down, complete (9) ─────────────────────────────────────────────┘
//! ```
//!
//! The doc comment of each function of [`state::State`] names the edges that the function takes,
//! if any. Edge 10, which does not touch the state word, is
//! [`Runtime::yield_current`](crate::Runtime::yield_current).
//!
//! RUNNING means that the owning core has the task. The core polls the task, or has preempted it in
//! the middle of a poll, or has the task in its own queues after a yield, or after a wake or a
//! spawn in task context of that core. A wake of a RUNNING task sets READY and pushes nothing. So
//! if RUNNING is set and READY is clear when the next poll starts, that start is only a load, and
//! needs no read-modify-write.
//!
//! A task that suspended itself in [`block_on`](crate::block_on) takes edge 3 or 4 like any other
//! task. After edge 2 its stack is resumed: the suspended poll goes on, and no new poll of the
//! future begins.
//!
//! A task is freed when its last reference is dropped after DONE. If the runtime's reference is the
//! only one left when the future is gone, the loop frees the task without setting DONE: no other
//! code could read the flag.
//!
//! # Which code may touch which field, and when
//!
//! 1. `state`: any code that holds a reference, at any time.
//! 2. `vtable`, `runtime`, `kind`: any code that holds a reference. These fields never change after
//!    other code can reach the task.
//! 3. `next`: the code that must push the task (told so by [`state::Wake::Push`] or
//!    [`state::Abort::Push`], or because it dropped the last reference), until the push. From the
//!    push on, the owning core.
//! 4. `siblings`, `stack`: the owning core, in task context with preemption disabled.
//! 5. The future: the owning core, while the task is RUNNING.
//! 6. The output: the owning core until DONE. After that the join handle, if it still exists when
//!    DONE is set; else the owning core.
//! 7. `join_waker`: the join handle, while `JOIN_WAKER` is clear. The code that sets DONE, if it
//!    finds `JOIN_WAKER` set.
//! 8. The memory of a static cell: the code that set the cell's `in_use`, until the task is
//!    published. After that rules 1 to 7 apply, until the last reference is gone. From then on the
//!    code that dropped the last reference, until that code clears `in_use`.

pub(crate) mod by_place;
pub(crate) mod contain;
pub(crate) mod error;
pub(crate) mod header;
pub(crate) mod id;
pub(crate) mod join;
pub(crate) mod local;
pub(crate) mod new;
mod output;
pub(crate) mod panic;
mod raw;
pub(crate) mod state;
pub(crate) mod static_task;
pub(crate) mod storage;
pub(crate) mod waker;
