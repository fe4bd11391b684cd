//! Cores as threads: their table, their signals, and how they park.
//!
//! # Masking
//!
//! Interrupts are masked without a system call: by a flag. If a signal's handler finds it set, it
//! notes the signal and returns; the code that clears the flag handles the noted signals. A core
//! has three signals: its alarm, a wake from another core, and the software interrupt.
//!
//! While a handler runs, all signals are also blocked in Linux. Otherwise, a second signal could
//! push its frame before the first one's handler has begun: if the second handler left the stack,
//! the first signal would be lost until the stack is resumed, or for ever if the second was one of
//! the program's own and ended the task. `sigreturn` unblocks the signals for a handler that stays
//! on its stack. For one that has left it, the runtime's loop does so: it gives the thread the mask
//! that it had in the beginning.
//!
//! ```text
//!   signal ──► note it ──► masked? ── yes ──► return (which unblocks)
//!   (blocks)                 │ no
//!                            ▼
//!                 mask; handle all notes ◄─────────────────┐
//!                            │                             │ yes: block our signals; one may
//!                            ▼                             │ have been noted
//!                 was the stack left meanwhile? ───────────┘
//!                            │ no: they have been blocked since before the notes were last read
//!                            ▼
//!                 unmask; return (which unblocks)
//! ```
//!
//! Handling ends in `on_timer` or `on_interrupt`, which may leave the stack in the middle of the
//! handler. The runtime's loop then unblocks and unmasks, and the next signal finds an ordinary
//! thread: all that Linux knows of a handler that has not returned is in the frame on its stack.
//! When the stack is resumed, interrupts are masked again and the handler continues.
//!
//! # How many handlers are on one stack
//!
//! At most two. The first was left in the middle and has been resumed; until it has blocked our
//! signals again, one more can come. That one doesn't leave the stack (either it finds the flag
//! set, or the runtime is not yet back in the task), blocks the others, and has ended when they
//! are unblocked. And code that unmasks in a handler does so while they are blocked, until Linux
//! has removed the handler's frame.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};

use trapline::platform::CoreSlot;
use trapline::preempt;

use super::faults::{self, AlternateStack};
use super::task_state::TaskState;
use crate::interrupt;

/// The most cores at a time.
pub(crate) const MAX_CORES: usize = 256;

static CORES: [Core; MAX_CORES] = [const { Core::new() }; MAX_CORES];

/// [`Core::rest`]: the core runs.
const RUNNING: u32 = 0;
/// [`Core::rest`]: it waits in the futex, or is about to.
const PARKED: u32 = 1;
/// [`Core::rest`]: it was woken, or has a signal to handle, and must not wait.
const NOTIFIED: u32 = 2;

/// The signals of a core, as bits.
const ALARM: u32 = 1 << 0;
const WAKE: u32 = 1 << 1;
const SOFT: u32 = 1 << 2;
const SIGNALS: [u32; 3] = [ALARM, WAKE, SOFT];

/// Linux's number of a signal.
///
/// The wake is not a real-time signal: those are queued, and sending one fails when the user's
/// queue is full. A wake must not fail, and need not be queued.
fn number_of(signal: u32) -> c_int {
    match signal {
        ALARM => libc::SIGRTMIN(),
        WAKE => libc::SIGURG,
        _ => libc::SIGRTMIN() + 1,
    }
}

/// A core: the data of a hardware thread.
///
/// Fields that are marked "own" are accessed only by its thread and that thread's signal handlers,
/// by plain loads and stores (relaxed, with compiler fences where handlers must see the order). The
/// others are accessed by all threads. Functions that are marked "own" are called only by the
/// core's thread and its signal handlers.
#[repr(align(128))]
pub(crate) struct Core {
    claimed: AtomicBool,
    pub(crate) slot: CoreSlot,
    /// The thread, or 0.
    thread: AtomicI32,
    /// RUNNING, PARKED or NOTIFIED.
    rest: AtomicU32,
    /// Signals (WAKE and SOFT) that were sent and not yet noted.
    in_flight: AtomicU32,
    /// Own: the alarm's timer.
    timer: AtomicPtr<c_void>,
    /// Own: whether signals are only noted and not handled.
    masked: AtomicBool,
    /// Own: the signals that were noted.
    noted: AtomicU32,
    /// Own: whether a signal is being handled.
    handling: AtomicBool,
    /// Own: how many signal handlers of the program's own run.
    own_handlers: AtomicU32,
    /// Own: whether our signals are blocked for the handler that handles the noted ones. Cleared
    /// when that handler leaves its stack.
    blocked: AtomicBool,
    /// Own: whether the signal that is handled has interrupted code with another signal mask than
    /// the thread had in the beginning, or on the alternate signal stack, such as a signal handler
    /// of the program's own.
    in_foreign: AtomicBool,
    /// Own: the signal mask that the thread had in the beginning.
    signal_mask: AtomicU64,
    /// Own: the start and the end of the thread's alternate signal stack.
    alternate: [AtomicUsize; 2],
}

thread_local! {
    /// This thread's core.
    static HERE: Cell<Option<&'static Core>> = const { Cell::new(None) };
    /// This thread's alternate signal stack.
    static ALTERNATE: Cell<Option<AlternateStack>> = const { Cell::new(None) };
}

/// The calling thread's core. `None` if it is no core.
#[inline]
pub(crate) fn here() -> Option<&'static Core> {
    HERE.get()
}

/// The core with a number.
pub(crate) fn at(number: usize) -> Option<&'static Core> {
    CORES.get(number)
}

/// The right to make a thread a certain core.
pub(crate) struct Claim(&'static Core);

impl Claim {
    pub(crate) fn take(number: usize) -> Option<Self> {
        let core = CORES.get(number)?;
        // Acquire: sees the stores of the thread that was this core before.
        // Lazily (`then`, not `then_some`): a `Claim` that is created and dropped would release the
        // claim of another thread.
        (!core.claimed.swap(true, Ordering::Acquire)).then(|| Self(core))
    }

    /// Claims any core that is free, the highest first, since programs start cores with low
    /// numbers.
    pub(crate) fn any() -> Option<Self> {
        (0..MAX_CORES).rev().find_map(Self::take)
    }

    pub(crate) fn core(&self) -> &'static Core {
        self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::Release);
    }
}

impl Core {
    const fn new() -> Self {
        Self {
            claimed: AtomicBool::new(false),
            slot: CoreSlot::new(),
            thread: AtomicI32::new(0),
            rest: AtomicU32::new(RUNNING),
            in_flight: AtomicU32::new(0),
            timer: AtomicPtr::new(ptr::null_mut()),
            masked: AtomicBool::new(false),
            noted: AtomicU32::new(0),
            handling: AtomicBool::new(false),
            own_handlers: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
            in_foreign: AtomicBool::new(false),
            signal_mask: AtomicU64::new(0),
            alternate: [const { AtomicUsize::new(0) }; 2],
        }
    }

    pub(crate) fn number(&self) -> usize {
        (ptr::from_ref(self).addr() - CORES.as_ptr().addr()) / size_of::<Core>()
    }

    /// Makes the calling thread this core. Called by the owner of the claim.
    ///
    /// # Errors
    ///
    /// Linux's error number if there is no timer or no memory.
    pub(crate) fn attach(&'static self) -> Result<(), i32> {
        install_handlers();
        let alternate = AlternateStack::install()?;
        // SAFETY: gettid has no conditions.
        let thread = unsafe { libc::gettid() };
        // SAFETY: all-zero is a value of this C structure.
        let mut event = unsafe { zeroed::<libc::sigevent>() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = number_of(ALARM);
        event.sigev_notify_thread_id = thread;
        let mut timer = MaybeUninit::uninit();
        // SAFETY: both pointers are valid for timer_create, which writes the timer if it succeeds.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()) } != 0
        {
            let error = errno();
            alternate.remove();
            return Err(error);
        }
        let range = alternate.range();
        self.alternate[0].store(range.start, Ordering::Relaxed);
        self.alternate[1].store(range.end, Ordering::Relaxed);
        ALTERNATE.set(Some(alternate));
        // SAFETY: it succeeded.
        self.timer.store(unsafe { timer.assume_init() }, Ordering::Relaxed);
        self.masked.store(false, Ordering::Relaxed);
        self.noted.store(0, Ordering::Relaxed);
        self.handling.store(false, Ordering::Relaxed);
        self.own_handlers.store(0, Ordering::Relaxed);
        self.blocked.store(false, Ordering::Relaxed);
        self.in_foreign.store(false, Ordering::Relaxed);
        self.rest.store(RUNNING, Ordering::Relaxed);
        let mask = unblock_ours() & !bits_of(&our_signals());
        self.signal_mask.store(mask, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        HERE.set(Some(self));
        self.thread.store(thread, Ordering::Relaxed);
        // After the store to `thread`, which it releases: code that sets a bit after this sees the
        // thread, and sends the signal to it. Earlier bits are cleared, as their signals went to
        // the core's last thread.
        self.in_flight.swap(0, Ordering::AcqRel);
        // A wake that came before `thread` was set has stored NOTIFIED and sent no signal.
        self.rest.swap(RUNNING, Ordering::AcqRel);
        Ok(())
    }

    /// Makes the calling thread no core any more. Signals that arrive later find no core, and a
    /// wake for this core does nothing.
    pub(crate) fn detach(&self) {
        HERE.set(None);
        self.thread.store(0, Ordering::Relaxed);
        let timer = self.timer.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: `attach` created it, and only this function deletes it, once.
        unsafe { libc::timer_delete(timer) };
        if let Some(alternate) = ALTERNATE.take() {
            alternate.remove();
        }
    }

    /// Own. Sets the alarm to `at` nanoseconds, or disarms it.
    pub(crate) fn set_alarm(&self, at: Option<u64>) {
        // Zero would disarm it.
        let at = at.map_or(0, |at| at.max(1));
        let none = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: (at / 1_000_000_000) as libc::time_t,
            tv_nsec: (at % 1_000_000_000) as libc::c_long,
        };
        let setting = libc::itimerspec { it_interval: none, it_value: value };
        let timer = self.timer.load(Ordering::Relaxed);
        // It fails only for invalid arguments, and these are valid.
        // SAFETY: the timer is this core's, and lives until the core detaches.
        unsafe { libc::timer_settime(timer, libc::TIMER_ABSTIME, &setting, ptr::null_mut()) };
    }

    /// Own. Masks, and returns whether it was masked before.
    pub(crate) fn mask(&self) -> bool {
        // No read-modify-write is needed: a signal's handler between the two restores the flag.
        let was = self.masked.load(Ordering::Relaxed);
        self.masked.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        was
    }

    /// Own. Unmasks, in task context, and handles the signals that were noted meanwhile.
    pub(crate) fn unmask(&self) {
        loop {
            compiler_fence(Ordering::SeqCst);
            self.masked.store(false, Ordering::Relaxed);
            compiler_fence(Ordering::SeqCst);
            // The handler of a signal that comes now handles all notes itself.
            if self.noted.load(Ordering::Relaxed) == 0 {
                return;
            }
            self.mask();
            // Other tasks may run here, which the code that called this does not expect.
            TaskState::around(|| self.handle_notes());
        }
    }

    /// Own. Whether signals are only noted and not handled.
    #[inline]
    pub(crate) fn is_masked(&self) -> bool {
        self.masked.load(Ordering::Relaxed)
    }

    /// Own. Unmasks like `unmask`, after a handler may have left its stack without doing so.
    pub(crate) fn unmask_after_leaving_handler(&self) {
        self.handling.store(false, Ordering::Relaxed);
        // A handler of the program's own that ended its task doesn't return, nor do the handlers
        // that it has interrupted.
        if self.own_handlers.swap(0, Ordering::Relaxed) != 0 {
            self.note_lost();
        }
        self.blocked.store(false, Ordering::Relaxed);
        // The whole mask, not only our signals: a handler of the program's own that has ended its
        // task leaves its signal blocked, and those of its `sa_mask`.
        set_signal_mask(self.signal_mask.load(Ordering::Relaxed));
        self.unmask();
    }

    /// Own. Notes the signals that may have been lost when a handler of the program's own ended a
    /// task: a signal for whose frame there was no room on the task's stack, or whose handler was
    /// interrupted.
    #[cold]
    fn note_lost(&self) {
        let sent = self.in_flight.load(Ordering::Relaxed);
        for signal in SIGNALS {
            if signal == ALARM || sent & signal != 0 {
                self.note(signal);
            }
        }
    }

    /// Own. Whether the calling code runs on the alternate signal stack, and so in a signal handler
    /// of the program's own.
    fn is_on_alternate(&self) -> bool {
        let here = 0u8;
        let here = (&raw const here).addr();
        let [start, end] = &self.alternate;
        (start.load(Ordering::Relaxed)..end.load(Ordering::Relaxed)).contains(&here)
    }

    /// Own. Whether a signal is being handled.
    pub(crate) fn is_handling(&self) -> bool {
        self.handling.load(Ordering::Relaxed)
    }

    /// Own. Whether a handler runs: of our signals, or one of the program's own.
    #[inline]
    pub(crate) fn is_in_handler(&self) -> bool {
        self.is_handling() || self.own_handlers.load(Ordering::Relaxed) != 0
    }

    /// Own. Calls `f`, which is the body of a signal handler of the program's own.
    pub(crate) fn in_own_handler(&self, f: impl FnOnce()) {
        // No read-modify-write is needed: handlers nest, and each restores the number.
        let outer = self.own_handlers.load(Ordering::Relaxed);
        self.own_handlers.store(outer + 1, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        f();
        compiler_fence(Ordering::SeqCst);
        self.own_handlers.store(outer, Ordering::Relaxed);
    }

    /// Own. Whether the code that our signal has interrupted, or outside of our handlers the
    /// calling code, is no signal handler of the program's own.
    pub(crate) fn may_preempt(&self) -> bool {
        if self.own_handlers.load(Ordering::Relaxed) != 0 {
            false
        } else if self.is_handling() {
            !self.in_foreign.load(Ordering::Relaxed)
        } else {
            signal_mask() & !bits_of(&our_signals()) == self.signal_mask.load(Ordering::Relaxed)
                && !self.is_on_alternate()
        }
    }

    /// Own, called in a handler or masked. Notes a signal.
    fn note(&self, signal: u32) {
        // Acquire: the handling sees what the sender wrote before. Before the note, so that sending
        // from here on causes another signal.
        self.in_flight.fetch_and(!signal, Ordering::AcqRel);
        // A read-modify-write: another signal's handler may run between a load and a store.
        self.noted.fetch_or(signal, Ordering::Relaxed);
        // Ends the parking of this core, if it is parked or about to. A swap, so that code that
        // acquires this also sees what an earlier wake has released.
        self.rest.swap(NOTIFIED, Ordering::AcqRel);
    }

    /// Own, called masked. Handles the noted signals. May leave the stack meanwhile, and returns
    /// masked.
    fn handle_notes(&self) {
        loop {
            let noted = self.noted.swap(0, Ordering::Relaxed);
            if noted == 0 {
                break;
            }
            // Acquire: when the runtime reads its inbox, it sees what was written before a wake. A
            // wake from here on sends another signal.
            self.rest.swap(RUNNING, Ordering::AcqRel);
            self.handling.store(true, Ordering::Relaxed);
            if noted & SOFT != 0 {
                interrupt::handle();
            }
            // Each call may leave the stack, so all that must not be delayed is done before. Both
            // are called, as neither does the other's work.
            // SAFETY: this is a core, in the handler of its signals or where the handling was
            // deferred to, and all that remains is to return, or to end the other interrupt;
            // signals are masked; Linux has saved all registers on the interrupted stack, and the
            // caller errno, or this is an ordinary call; no handler was interrupted, as handlers
            // are masked while they handle, and one of the program's own makes `may_preempt`
            // false.
            unsafe {
                if noted & ALARM != 0 {
                    preempt::on_timer();
                }
                if noted & (WAKE | SOFT) != 0 {
                    self.handling.store(true, Ordering::Relaxed);
                    preempt::on_interrupt();
                }
            }
            self.handling.store(false, Ordering::Relaxed);
            // For notes that are handled later without a signal.
            self.in_foreign.store(false, Ordering::Relaxed);
        }
    }

    /// Own, called masked. Waits for a signal or a wake, and returns masked.
    pub(crate) fn park(&self) {
        // Notes are handled when the caller unmasks.
        if self.noted.load(Ordering::Relaxed) == 0
            && self
                .rest
                .compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            // A signal or a wake that comes before Linux reads the value has changed it, and the
            // call returns at once. A signal during the wait changes the value too, so that the
            // restarted call doesn't wait again.
            futex(&self.rest, libc::FUTEX_WAIT, PARKED);
        }
        // Acquire: the caller sees what was written before the wake.
        self.rest.swap(RUNNING, Ordering::AcqRel);
    }

    /// Wakes this core if it is parked, else sends it a signal. Callable by any thread, in any
    /// context.
    pub(crate) fn wake(&self) {
        // Release: when the core reads the value, it sees what was written before.
        match self.rest.swap(NOTIFIED, Ordering::AcqRel) {
            PARKED => futex(&self.rest, libc::FUTEX_WAKE, 1),
            RUNNING => self.send(WAKE),
            // The signal of an earlier wake has been sent, or its note has not been handled yet.
            _ => {}
        }
    }

    /// Sends WAKE or SOFT, unless it was sent and has not been noted yet.
    fn send(&self, signal: u32) {
        // Acquire: sees the thread that `attach` wrote before it cleared the bits.
        if self.in_flight.fetch_or(signal, Ordering::AcqRel) & signal != 0 {
            return;
        }
        let thread = self.thread.load(Ordering::Relaxed);
        if thread != 0 {
            let errno = errno();
            // SAFETY: a system call without pointers. If the number is another thread's by now,
            // that is no core, and its handler does nothing, or it is a core, and has a spurious
            // wake.
            let sent = unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, number_of(signal))
            };
            set_errno(errno);
            if sent != 0 {
                // The thread has just ended, or there was no room in the queue for SOFT: no signal
                // was sent.
                self.in_flight.fetch_and(!signal, Ordering::AcqRel);
            }
        }
    }
}

/// Raises the software interrupt on this core.
pub(crate) fn raise() {
    if let Some(core) = here() {
        core.send(SOFT);
    }
}

fn futex(word: &AtomicU32, operation: c_int, value: u32) {
    let errno = errno();
    // SAFETY: the word lives in a static. There is no timeout.
    unsafe {
        let operation = operation | libc::FUTEX_PRIVATE_FLAG;
        let forever = ptr::null::<libc::timespec>();
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, forever);
    }
    set_errno(errno);
}

/// The entry of our three signals, which clears AC. Linux enters it with the interrupted code's AC,
/// under which unaligned accesses are faults. (It has cleared DF.) `sigreturn` restores AC.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "C" fn signal_entry(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    core::arch::naked_asm!(
        ".cfi_startproc",
        "pushfq",
        ".cfi_adjust_cfa_offset 8",
        "and dword ptr [rsp], {others}",
        "popfq",
        ".cfi_adjust_cfa_offset -8",
        "jmp {on_signal}",
        ".cfi_endproc",
        others = const !(1_i32 << 18),
        on_signal = sym on_signal,
    )
}

#[cfg(not(target_arch = "x86_64"))]
use self::on_signal as signal_entry;

/// The handler of our three signals.
extern "C" fn on_signal(number: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // The interrupted code may be about to read it, and other tasks run before this returns.
    let errno = errno();
    // Without a core, the signal was sent to one that this thread no longer is, and has no effect.
    if let Some(core) = here() {
        if let Some(signal) = SIGNALS.into_iter().find(|&signal| number_of(signal) == number) {
            core.note(signal);
        }
        // SAFETY: Linux passes the context to a handler that was installed with SA_SIGINFO.
        let interrupted_mask = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_sigmask };
        if bits_of(interrupted_mask) & !bits_of(&our_signals())
            != core.signal_mask.load(Ordering::Relaxed)
            || core.is_on_alternate()
        {
            core.in_foreign.store(true, Ordering::Relaxed);
        }
        // While the core masks signals, the handler only notes this one. If the runtime's code in
        // an earlier signal's handler masks them, this frame lies in the stack that the earlier
        // signal has touched. If a task's own code masks them, nothing changes here that an
        // overflow could leave half done.
        if !core.masked.load(Ordering::Relaxed) {
            touch_stack();
        }
        if !core.mask() {
            loop {
                core.blocked.store(true, Ordering::Relaxed);
                core.handle_notes();
                if core.blocked.swap(false, Ordering::Relaxed) {
                    break;
                }
                block(&while_handling());
            }
            core.masked.store(false, Ordering::Relaxed);
        }
    }
    set_errno(errno);
}

/// The bytes of stack that [`preempt::on_timer`] needs, in a build without optimization.
const HANDLER: usize = 4096;

/// Makes an overflow of a task's stack a fault of the task before the handler has changed anything:
/// reads the lowest byte that the handler may need, which is in the guard if there is no room.
#[inline(always)]
fn touch_stack() {
    let here = 0u8;
    let here = ptr::from_ref(&here);
    if trapline::stackful::current_stack().is_some_and(|stack| stack.contains(&here.addr())) {
        // A second signal may come while the runtime's code runs in this handler, masked.
        let depth = HANDLER + faults::signal_frame();
        // SAFETY: the address is in the task's stack, or in the guard below, where the access ends
        // the task or the process.
        unsafe { here.wrapping_sub(depth).read_volatile() };
    }
}

fn install_handlers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for signal in SIGNALS {
            // SAFETY: all-zero is a value of this C structure.
            let mut action = unsafe { zeroed::<libc::sigaction>() };
            action.sa_sigaction = signal_entry as *const () as usize;
            action.sa_mask = while_handling();
            // No SA_ONSTACK: the handler's frame must be on the stack of the interrupted code.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            // SAFETY: the handler does only what a signal handler may, and switches tasks, for
            // which the program has promised not to do what hosted code must not do.
            let result = unsafe { libc::sigaction(number_of(signal), &action, ptr::null_mut()) };
            assert_eq!(result, 0, "real-time signals can have handlers");
        }
        faults::install_handler();
    });
}

fn our_signals() -> libc::sigset_t {
    // SAFETY: all-zero is a value of this C structure, and the empty set.
    let mut ours = unsafe { zeroed() };
    add_our_signals(&mut ours);
    ours
}

pub(super) fn add_our_signals(set: &mut libc::sigset_t) {
    for signal in SIGNALS {
        // SAFETY: the number is valid.
        unsafe { libc::sigaddset(set, number_of(signal)) };
    }
}

/// The signals that are blocked while a handler of ours runs: all, so that a handler of the
/// program's own which ends the task doesn't also end the handling of an alarm. All but those
/// that report a fault, which cannot be deferred.
fn while_handling() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set, and the numbers are valid.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigdelset(set.as_mut_ptr(), fault);
        }
        set.assume_init()
    }
}

/// Blocks these signals for this thread, in addition.
fn block(set: &libc::sigset_t) {
    // SAFETY: the arguments are valid.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set, ptr::null_mut()) };
}

/// Unblocks our signals for this thread and returns the mask that it had before.
fn unblock_ours() -> u64 {
    let mut before = MaybeUninit::uninit();
    // SAFETY: the arguments are valid, so pthread_sigmask initializes `before`.
    unsafe {
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &our_signals(), before.as_mut_ptr());
        bits_of(before.assume_init_ref())
    }
}

/// Sets the signals that this thread blocks.
fn set_signal_mask(bits: u64) {
    // SAFETY: all-zero is a value of this C structure, which has at least 64 bits, as `bits_of`
    // checks; the arguments are valid.
    unsafe {
        let mut set = zeroed::<libc::sigset_t>();
        ptr::from_mut(&mut set).cast::<u64>().write_unaligned(bits);
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, ptr::null_mut());
    }
}

/// The signals that this thread blocks.
fn signal_mask() -> u64 {
    let mut mask = MaybeUninit::uninit();
    // SAFETY: the arguments are valid, so pthread_sigmask initializes `mask` and changes nothing.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
        bits_of(mask.assume_init_ref())
    }
}

/// The bits of Linux's 64 signals in a set, which is larger in the C library.
fn bits_of(set: &libc::sigset_t) -> u64 {
    const { assert!(size_of::<libc::sigset_t>() >= size_of::<u64>()) };
    // SAFETY: the set is at least as large, and consists of plain bits.
    unsafe { ptr::from_ref(set).cast::<u64>().read_unaligned() }
}

pub(crate) fn errno() -> c_int {
    // SAFETY: a thread's errno can be read any time.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(value: c_int) {
    // SAFETY: a thread's errno can be written any time.
    unsafe { *libc::__errno_location() = value }
}
