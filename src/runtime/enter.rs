//! Entering a runtime: which core may enter, and when that core leaves the runtime.

use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::mem::MaybeUninit;
use core::pin::pin;
use core::ptr;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use crate::config::ConfigError;
use crate::platform::{InInterrupt, Interrupts, PanicPayload, bound};
use crate::runtime::core::{RootPoll, Runtime};
use crate::sync::atomic::Ordering;
use crate::task::by_place::in_place;
use crate::task::panic::panic_message;
use crate::task::state::Wake;

impl Runtime {
    /// Runs the core's tasks for ever.
    ///
    /// # Errors
    ///
    /// See [`EnterError`]. The panic of a task, a waker or a callback is not an error of `enter`:
    /// the task's join handle gives it, or [`Config::on_panic`](crate::Config::on_panic) is called
    /// for it. [`Panicked`](EnterError::Panicked) means a panic of the runtime's own code or of the
    /// platform's code.
    pub fn enter(&'static self) -> Result<Infallible, EnterError> {
        let _entered = self.claim()?;
        loop {
            if let Err(payload) = self.run() {
                return Err(EnterError::Panicked(payload));
            }
        }
    }

    /// Runs the core's tasks until `future` is done. `future` is polled like a plain task of the
    /// core. It may borrow from the caller and need not be `Send`. When `run_until` returns, the
    /// other tasks keep their state until the core enters again.
    ///
    /// # Errors
    ///
    /// Any variant of [`EnterError`]. [`Panicked`](EnterError::Panicked) means that `future`
    /// panicked in a poll; or that, when a poll of it returned, it held a
    /// [`PreemptGuard`](crate::preempt::PreemptGuard) or interrupts were masked. (As with
    /// [`enter`](Self::enter), it may also mean a panic of the runtime's own code or of the
    /// platform's code.) The other tasks keep their state, and the core may enter again.
    ///
    /// # Panics
    ///
    /// If the drop of `future` panics. That drop comes after everything else, and the panic goes to
    /// the caller.
    pub fn run_until<F: Future>(&'static self, future: F) -> Result<F::Output, EnterError> {
        let _entered = self.claim()?;
        let mut future = pin!(future);
        let mut place = MaybeUninit::<F::Output>::uninit();
        let mut output = Output { place: place.as_mut_ptr(), is_there: false };
        let mut poll = |context: &mut Context<'_>| {
            in_place()(future.as_mut().poll(context), |poll: *mut Poll<F::Output>| {
                // SAFETY: `poll` points at the value that the future's `poll` has just returned.
                // That value belongs to this code.
                let Poll::Ready(value) = (unsafe { &*poll }) else { return Poll::Pending };
                // SAFETY: the value is moved once. `place` is empty, since the future is not polled
                // again after it has returned `Ready`.
                unsafe { output.place.copy_from_nonoverlapping(value, 1) };
                output.is_there = true;
                Poll::Ready(())
            })
        };
        {
            let poll: NonNull<RootPoll<'_>> = NonNull::from(&mut poll);
            // SAFETY: only the lifetime changes. The pointer points into the frame of `run_until`.
            // `Reset` removes the pointer from the runtime before that frame is left, also if a
            // panic unwinds.
            let poll: NonNull<RootPoll<'static>> = unsafe { core::mem::transmute(poll) };
            self.local.root.set(Some(poll));
        }
        struct Reset(&'static Runtime);
        impl Drop for Reset {
            fn drop(&mut self) {
                self.0.local.root.set(None);
            }
        }
        let reset = Reset(self);
        if self.root.state.wake() == Wake::Push {
            // SAFETY: the core is inside of the runtime, at home, and the loop does not run yet, so
            // only this code touches the FIFO. The root was BLOCKED until now, so it is in no
            // queue. It lives in the runtime.
            unsafe { self.local.ready.push_back(NonNull::from(&self.root)) };
        }
        let ran = self.run();
        drop(reset);
        match ran {
            Err(payload) => Err(EnterError::Panicked(payload)),
            Ok(()) => output.take(),
        }
    }

    /// Lets the calling core enter this runtime to run tasks, if that is allowed.
    fn claim(&'static self) -> Result<Entered, EnterError> {
        self.config.check().map_err(EnterError::Config)?;
        let entered = self.claim_for_shutdown()?;
        if self.local.closed.get() {
            return Err(EnterError::ShutDown);
        }
        if bound::interrupts() == Interrupts::Masked {
            return Err(EnterError::InterruptsMasked);
        }
        Ok(entered)
    }

    /// Lets the calling core enter this runtime to run tasks or to shut it down. The first core
    /// that enters becomes the owning core.
    pub(super) fn claim_for_shutdown(&'static self) -> Result<Entered, EnterError> {
        let slot = bound::slot();
        if Runtime::current().is_some() {
            return Err(EnterError::Nested);
        }
        // An interrupt handler must not enter: it may have interrupted this function or `trim`
        // halfway.
        if bound::in_interrupt() == InInterrupt::Yes {
            return Err(EnterError::InInterrupt);
        }
        let Some(core) = bound::core().checked_add(1) else { return Err(EnterError::NoCore) };
        // Acquire and release: a runtime that was built on one core may be entered on another.
        match self.owner.compare_exchange(0, core, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: this is the first entry, and no code has a waker of the root task before its
            // first poll.
            Ok(_) => unsafe { self.root.set_runtime(self) },
            Err(owner) if owner == core => {}
            Err(owner) => return Err(EnterError::OtherCore { owner: owner - 1 }),
        }
        self.preempt_count.void_guards();
        // The alarm may have fired while the core was not inside of the runtime. So the timers are
        // marked as due, and the loop looks at them first.
        self.alarm.set_due(bound::now());
        self.preempt_count.set_need_resched();
        slot.set_runtime(ptr::from_ref(self).cast());
        Ok(Entered)
    }
}

/// The output of the future that [`Runtime::run_until`] waits for.
struct Output<T> {
    place: *mut T,
    /// The output is at `place`, and is dropped with this value.
    is_there: bool,
}

impl<T> Output<T> {
    /// Returns the output. This is not a part of `run_until`, since in an unoptimized build it
    /// reserves stack space for another `T`.
    fn take(mut self) -> Result<T, EnterError> {
        assert!(self.is_there, "run_until left its loop before its future was done");
        self.is_there = false;
        // SAFETY: the output was at `place`, and it is moved once, since `is_there` is now false.
        Ok(unsafe { self.place.read() })
    }
}

impl<T> Drop for Output<T> {
    fn drop(&mut self) {
        if self.is_there {
            // SAFETY: the output is at `place`, and it is dropped once.
            unsafe { self.place.drop_in_place() }
        }
    }
}

/// A guard: the core is inside of its runtime until the guard drops.
pub(super) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        bound::slot().set_runtime(ptr::null());
    }
}

/// The reason why a runtime was not entered, or was left.
#[derive(Debug)]
#[non_exhaustive]
pub enum EnterError {
    /// The calling core is inside of a runtime already.
    Nested,
    /// Another core entered this runtime first. The runtime belongs to that core until the
    /// shutdown, since the frames on its stacks do.
    OtherCore {
        /// The number of that core.
        owner: usize,
    },
    /// The platform says that the caller is not a core: its number is `usize::MAX`.
    NoCore,
    /// The runtime has been shut down.
    ShutDown,
    /// The call was made in an interrupt, and the platform is certain of that.
    InInterrupt,
    /// Interrupts are masked. No task would be preempted, and no alarm would come: enable
    /// interrupts first.
    InterruptsMasked,
    /// The runtime's [`Config`](crate::Config) is not valid.
    Config(ConfigError),
    /// The future of [`run_until`](Runtime::run_until) panicked; or code of the runtime or the
    /// platform panicked, outside of any task. Only platforms that can catch a panic return this.
    Panicked(PanicPayload),
}

impl fmt::Display for EnterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nested => f.write_str("this core is inside of a runtime already"),
            Self::OtherCore { owner } => write!(f, "the runtime belongs to core {owner}"),
            Self::NoCore => f.write_str("the caller is not a core of the platform"),
            Self::ShutDown => f.write_str("the runtime has been shut down"),
            Self::InInterrupt => f.write_str("a runtime is entered and shut down in task context"),
            Self::InterruptsMasked => f.write_str("interrupts are masked: enable them first"),
            Self::Config(error) => error.fmt(f),
            Self::Panicked(payload) => write!(f, "panicked: {}", panic_message(payload)),
        }
    }
}

impl core::error::Error for EnterError {}
