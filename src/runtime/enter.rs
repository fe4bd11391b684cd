//! Entering a runtime: whose it is, and until when.

use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::mem::MaybeUninit;
use core::pin::pin;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use super::{RootPoll, Runtime};
use crate::config::ConfigError;
use crate::platform::{InInterrupt, Interrupts, PanicPayload, bound};
use crate::sync::atomic::Ordering;
use crate::task::in_place;
use crate::task::join::panic_message;
use crate::task::state::Wake;

impl Runtime {
    /// Runs the core's tasks for ever.
    ///
    /// # Errors
    ///
    /// See [`EnterError`]. The panic of a task, a waker or a callback is not an error of `enter`: the
    /// task's join handle has it, or [`Config::on_panic`](crate::Config::on_panic).
    /// [`Panicked`](EnterError::Panicked) would be a panic of the runtime's own code, or of the platform's.
    pub fn enter(&'static self) -> Result<Infallible, EnterError> {
        let _entered = self.claim()?;
        loop {
            if let Err(payload) = self.run() {
                return Err(EnterError::Panicked(payload));
            }
        }
    }

    /// Runs the core's tasks until `future` is done, which is polled among them as a plain task. It
    /// may borrow from the caller and need not be `Send`. The other tasks stay as they are until the
    /// core enters again.
    ///
    /// # Errors
    ///
    /// Each of [`EnterError`]. [`Panicked`](EnterError::Panicked) means that `future` panicked in a
    /// poll; or, when a poll returned, held a [`PreemptGuard`](crate::preempt::PreemptGuard) or had
    /// interrupts masked. (As for [`enter`](Self::enter), it could also be a panic of the runtime's own
    /// code or of the platform's.) The other tasks stay, and the core may enter again.
    ///
    /// # Panics
    ///
    /// If the drop of `future` panics, which comes last: the caller gets that panic.
    pub fn run_until<F: Future>(&'static self, future: F) -> Result<F::Output, EnterError> {
        let _entered = self.claim()?;
        let mut future = pin!(future);
        let mut place = MaybeUninit::<F::Output>::uninit();
        let mut output = Output { place: place.as_mut_ptr(), is_there: false };
        let mut poll = |context: &mut Context<'_>| {
            in_place()(future.as_mut().poll(context), |poll: *mut Poll<F::Output>| {
                // SAFETY: what has just been returned, and is ours.
                let Poll::Ready(value) = (unsafe { &*poll }) else { return Poll::Pending };
                // SAFETY: it is moved once, and the place is empty: it is not polled after Ready.
                unsafe { output.place.copy_from_nonoverlapping(value, 1) };
                output.is_there = true;
                Poll::Ready(())
            })
        };
        {
            let poll: NonNull<RootPoll<'_>> = NonNull::from(&mut poll);
            // SAFETY: only the lifetime changes. `Reset` takes the pointer back before the frame
            // that it points into is left, in whichever way.
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
            // SAFETY: the loop's own, and BLOCKED until now. It lives in the runtime.
            unsafe { self.local.ready.push_back(NonNull::from(&self.root)) };
        }
        let ran = self.run();
        drop(reset);
        match ran {
            Err(payload) => Err(EnterError::Panicked(payload)),
            Ok(()) => output.take(),
        }
    }

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

    pub(super) fn claim_for_shutdown(&'static self) -> Result<Entered, EnterError> {
        let slot = bound::slot();
        if slot.runtime().is_some() {
            return Err(EnterError::Nested);
        }
        // It may have come halfway through this, or through a `trim`.
        if bound::in_interrupt() == InInterrupt::Yes {
            return Err(EnterError::InInterrupt);
        }
        let Some(core) = bound::core().checked_add(1) else { return Err(EnterError::NoCore) };
        // Acquire and release: a runtime that was built up on one core may be entered on another.
        match self.owner.compare_exchange(0, core, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: the first time, and nobody has a waker of the root task before it is polled.
            Ok(_) => unsafe { self.root.set_runtime(self) },
            Err(owner) if owner == core => {}
            Err(owner) => return Err(EnterError::OtherCore { owner: owner - 1 }),
        }
        self.preempt_count.void_guards();
        // The alarm may have fired while the core was not inside: look at the timers.
        self.alarm.set_due(bound::now());
        self.preempt_count.set_need_resched();
        slot.set_runtime(Some(self));
        Ok(Entered)
    }
}

/// The output of the future that [`Runtime::run_until`] waits for.
struct Output<T> {
    place: *mut T,
    /// And is dropped with this.
    is_there: bool,
}

impl<T> Output<T> {
    /// In a function of its own, as in an unoptimized build it has room for another `T` on the stack.
    fn take(mut self) -> Result<T, EnterError> {
        assert!(self.is_there, "run_until left its loop before its future was done");
        self.is_there = false;
        // SAFETY: it was there, and is moved once.
        Ok(unsafe { self.place.read() })
    }
}

impl<T> Drop for Output<T> {
    fn drop(&mut self) {
        if self.is_there {
            // SAFETY: it is, and is dropped once.
            unsafe { self.place.drop_in_place() }
        }
    }
}

/// The core is inside of its runtime until this drops.
pub(super) struct Entered;

impl Drop for Entered {
    fn drop(&mut self) {
        bound::slot().set_runtime(None);
    }
}

/// Why a runtime was not entered, or was left.
#[derive(Debug)]
#[non_exhaustive]
pub enum EnterError {
    /// The calling core is inside of a runtime already.
    Nested,
    /// Another core entered this runtime first. It is that core's until the end, since its stacks'
    /// frames are.
    OtherCore {
        /// The number of that core.
        owner: usize,
    },
    /// The platform says that the caller is no core: its number is `usize::MAX`.
    NoCore,
    /// The runtime has been shut down.
    ShutDown,
    /// Called in an interrupt, and the platform is certain that it is one.
    InInterrupt,
    /// Interrupts are masked. Nothing would be preempted, and no alarm would be taken: enable them first.
    InterruptsMasked,
    /// The runtime's [`Config`](crate::Config) is not valid.
    Config(ConfigError),
    /// The future of [`run_until`](Runtime::run_until) panicked; or code of the runtime or the platform
    /// did, outside of any task. Comes only from platforms that can catch a panic.
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
