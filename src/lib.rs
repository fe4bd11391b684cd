//! Trapline: an async runtime for kernels. It preempts tasks that compute.
//!
//! Each core has one [`Runtime`]: a ready queue, one scheduler, one stack. Tasks are stackless
//! futures, polled from the queue. A future that computes for long is wrapped in [`stackful()`]: it
//! then runs on a stack of its own, the timer takes the core from it when its slice is over, and
//! other tasks run.
//!
//! ```ignore
//! // Keeps the core for itself, as in any async runtime.
//! trapline::spawn(async { loop { work() } });
//! // Is preempted: all else on the core still runs.
//! trapline::spawn(stackful(async { loop { work() } }));
//! ```
//!
//! # A first program
//!
//! A kernel implements [`Platform`](platform::Platform) (its clock, its alarm, how a core waits),
//! binds it once with [`bind_platform!`], wraps its allocator in [`NoPreempt`](preempt::NoPreempt),
//! and ends each interrupt with one call:
//!
//! ```no_run
//! # use core::time::Duration;
//! # use trapline::platform::{CoreSlot, Interrupts, Platform};
//! # use trapline::{Runtime, stackful, time};
//! # const CORES: usize = 4;
//! # struct MyKernel;
//! # static SLOTS: [CoreSlot; CORES] = [const { CoreSlot::new() }; CORES];
//! # // SAFETY: never run, only compiled.
//! # unsafe impl Platform for MyKernel {
//! #     type Backend = trapline::arch::Native;
//! #     fn slot(&self) -> &'static CoreSlot { &SLOTS[0] }
//! #     fn core(&self) -> usize { 0 }
//! #     fn now(&self) -> u64 { 0 }
//! #     fn set_alarm(&self, _at: u64) {}
//! #     fn park(&self) {}
//! #     fn wake(&self, _core: usize) {}
//! #     fn mask_interrupts(&self) -> usize { 0 }
//! #     unsafe fn restore_interrupts(&self, _state: usize) {}
//! #     unsafe fn enable_interrupts(&self) {}
//! #     fn interrupts(&self) -> Interrupts { Interrupts::Enabled }
//! # }
//! # fn acknowledge() {}
//! # async fn long_computation() -> u32 { 0 }
//! # async fn send(_: u32) {}
//! static RUNTIMES: [Runtime; CORES] = [const { Runtime::new() }; CORES];
//!
//! trapline::bind_platform!(static KERNEL: MyKernel = MyKernel);
//!
//! fn core_main(core: usize) -> ! {
//!     RUNTIMES[core].spawn(async {
//!         let checksum = stackful(long_computation()).await;
//!         time::sleep(Duration::from_millis(10)).await;
//!         send(checksum).await;
//!     });
//!     match RUNTIMES[core].enter() {
//!         Err(error) => panic!("{error}"),
//!     }
//! }
//!
//! fn timer_interrupt() {
//!     acknowledge();
//!     // SAFETY: last in the handler, all registers saved on this stack, interrupts masked.
//!     unsafe { trapline::preempt::on_timer() }
//! }
//!
//! fn ipi_or_device_interrupt() {
//!     // SAFETY: as above. The interrupt may have woken a task, which preempts the running one.
//!     unsafe { trapline::preempt::on_interrupt() }
//! }
//! ```
//!
//! # The modules
//!
//! | where | what |
//! |---|---|
//! | [`Runtime`], [`spawn`], [`JoinHandle`] | tasks: spawning, running and awaiting them |
//! | [`StaticTask`], [`LocalSpawner`], [`TaskBuilder`] | tasks without an allocator, not `Send`, with names |
//! | [`task_local!`], [`TaskPanic`] | values that belong to a future; panics that no join handle gives |
//! | [`stackful`](mod@stackful), [`block_on`] | futures that compute, and waiting in the middle of one |
//! | [`contexted()`] | hooks around each stretch on the core: an address space, the current thread |
//! | [`preempt`] | when a core may be taken from a task; the functions that a trap handler calls |
//! | [`time`] | the clock, sleeping, and timeouts |
//! | [`platform`] | the interface that a kernel implements |
//! | [`trap`] | traps as values, user programs |
//! | [`arch`] | registers: the switch of each architecture, trap contexts, trap entry |
//!
//! # Guarantees
//!
//! - No wake is lost: wakers may be used in interrupts, on other cores, and after their task and
//!   runtime are gone. They take no lock and call no allocator.
//! - A future is polled and dropped by the core that owns its task, in task context.
//! - A stack is held only while it holds frames, and does not leave its core while it does.
//! - Preemption happens in the code of stackful tasks and in no other code. Under a
//!   [`PreemptGuard`](preempt::PreemptGuard), or with interrupts masked, it does not happen: it is
//!   then [pending](mod@preempt).
//! - Waiting is bounded in time: a task that is woken goes first, and a task that computes or
//!   yields beside it still gets a share of the core.
//! - A panic in user code that the runtime calls (a drop, a waker or a callback) ends neither the
//!   loop nor another task: it is reported to [`Config::on_panic`].
//! - Where no task is preempted, preemption costs nothing: plain tasks cost what they cost in any
//!   stackless runtime.

#![no_std]
// Here, and not for the workspace: in programs, `pub` and `pub(crate)` are the same.
#![warn(missing_debug_implementations, unreachable_pub)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod arch;
mod config;
mod contexted;
mod fatal;
mod freelist;
pub mod platform;
pub mod preempt;
mod queue;
mod ready;
mod runtime;
mod scope;
pub mod stackful;
mod sync;
mod task;
#[cfg(all(test, target_os = "linux", not(loom), not(shuttle)))]
mod tests;
pub mod time;
#[cfg(all(
    any(target_os = "none", doc),
    any(target_arch = "riscv64", target_arch = "x86_64", target_arch = "loongarch64")
))]
pub mod trap;
mod yield_now;

pub use config::{Config, ConfigError, MIN_SLICE, STALL_SLICES};
pub use contexted::{Contexted, contexted};
pub use runtime::{
    Current, EnterError, LocalSpawner, Runtime, Shutdown, SpawnError, SpawnErrorReason, Stats,
    TaskBuilder, current, spawn, try_spawn,
};
pub use scope::Hooks;
pub use stackful::{Stackful, block_on, stackful};
pub use task::error::JoinError;
pub use task::id::TaskId;
pub use task::join::JoinHandle;
pub use task::local::{NoValue, Scoped, TaskLocal};
pub use task::panic::TaskPanic;
pub use task::static_task::StaticTask;
#[doc(hidden)]
pub use task::static_task::TaskSpace;
pub use yield_now::{YieldNow, yield_now};
