//! Memory faults: the report of an overflow of a stackful task's stack, and the stack that their
//! handlers run on.
//!
//! std reports when a thread overflows the stack that it began on, and knows no other. This handler
//! reports the same for a task's stack. Then, as for any other fault, it calls the handler that was
//! installed before: std's or one of the program's own. A handler that the program installs later
//! replaces this one.
//!
//! An overflow shows in one of two ways: the task accesses the guard, or there is no room for a
//! signal's frame, for which Linux raises a memory fault without an address.

use std::ffi::{c_int, c_void};
use std::fmt::{self, Write};
use std::mem::{MaybeUninit, zeroed};
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;

use super::cores::{self, errno, set_errno};
use super::{platform, write_to};

/// The auxiliary vector's entry for the largest signal frame. Linux has it since 5.14.
const AT_MINSIGSTKSZ: libc::c_ulong = 51;
/// Linux: the kernel sent the signal, without an address.
const SI_KERNEL: c_int = 0x80;
/// The bytes that handlers can use on an alternate stack beside the signal's frame.
const HANDLERS: usize = 64 * 1024;

/// The most bytes that Linux pushes for a signal. 0 if it is unknown.
pub(super) fn signal_frame() -> usize {
    // SAFETY: no conditions.
    unsafe { libc::getauxval(AT_MINSIGSTKSZ) as usize }
}

/// The alternate signal stack of a core, and the one that its thread had before.
pub(super) struct AlternateStack {
    mapping: Range<usize>,
    before: libc::stack_t,
}

impl AlternateStack {
    /// Installs one for the calling thread.
    ///
    /// # Errors
    ///
    /// Linux's error number if there is no memory.
    pub(super) fn install() -> Result<Self, i32> {
        // SAFETY: sysconf has no conditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let size = (signal_frame().max(libc::MINSIGSTKSZ) + HANDLERS).next_multiple_of(page);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, wherever there is room.
        let memory = unsafe { libc::mmap(ptr::null_mut(), page + size, protection, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(errno());
        }
        let mut before = MaybeUninit::uninit();
        // SAFETY: no code uses the mapping yet. Its first page is the guard; the rest becomes the
        // thread's alternate stack, until `remove` restores the one that sigaltstack has written to
        // `before`.
        let before = unsafe {
            let stack = libc::stack_t { ss_sp: memory.byte_add(page), ss_flags: 0, ss_size: size };
            if libc::mprotect(memory, page, libc::PROT_NONE) != 0
                || libc::sigaltstack(&stack, before.as_mut_ptr()) != 0
            {
                let error = errno();
                libc::munmap(memory, page + size);
                return Err(error);
            }
            before.assume_init()
        };
        Ok(Self { mapping: memory.addr()..memory.addr() + page + size, before })
    }

    pub(super) fn range(&self) -> Range<usize> {
        self.mapping.clone()
    }

    /// Removes it from the calling thread, for which `install` has installed it.
    pub(super) fn remove(self) {
        // SAFETY: the thread's earlier stack is restored, so no code uses the mapping, which
        // `install` has made.
        unsafe {
            libc::sigaltstack(&self.before, ptr::null_mut());
            libc::munmap(ptr::without_provenance_mut(self.mapping.start), self.mapping.len());
        }
    }
}

/// The handler that was installed before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes `on_fault` the handler of memory faults. Called once.
pub(super) fn install_handler() {
    // SAFETY: all-zero is a value of this C structure, and sigaction writes it; the handler does
    // only what a signal handler may, and calls the earlier one, under the mask and flags of that
    // one.
    unsafe {
        let mut before = zeroed::<libc::sigaction>();
        if libc::sigaction(libc::SIGSEGV, ptr::null(), &mut before) != 0 {
            return;
        }
        let _ = BEFORE.set(before);
        let mut action = before;
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags =
            libc::SA_SIGINFO | libc::SA_ONSTACK | (before.sa_flags & libc::SA_NODEFER);
        cores::add_our_signals(&mut action.sa_mask);
        libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut());
    }
}

extern "C" fn on_fault(number: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let errno = errno();
    // SAFETY: Linux passes both to a handler with SA_SIGINFO, and so does a handler that calls this
    // one.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let sent = code <= 0;
    let overflow = cores::here().filter(|_| !sent).and_then(|_| {
        let stack = trapline::stackful::current_stack()?;
        let guard = platform::guard_below(&stack);
        let no_room = code == SI_KERNEL && {
            // SAFETY: as above.
            let pointer = unsafe { stack_pointer(context) };
            // A frame below this pointer would have reached into the guard.
            pointer >= guard.start && pointer < guard.end + signal_frame().max(4096) + RED_ZONE
        };
        let overflow = no_room || guard.contains(&address);
        overflow.then(|| {
            say(format_args!(
                "{} overflowed its stack of {} bytes: set Config::stack_size higher",
                Culprit(trapline::current()),
                stack.len(),
            ));
            no_room
        })
    });
    set_errno(errno);
    // SAFETY: the arguments are this handler's own.
    unsafe { call_before(number, info, context) };
    if overflow == Some(true) {
        // No instruction faulted that would be executed again, and the task must not continue.
        die(number);
    }
    set_errno(errno);
}

/// The size of the area below the stack pointer that code on x86_64 may use by the ABI, so that
/// signals skip it.
const RED_ZONE: usize = 128;

/// Calls the handler that was installed before, or does what Linux would do without one.
///
/// # Safety
///
/// The arguments are those of a handler of this signal.
unsafe fn call_before(number: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let (handler, flags) =
        BEFORE.get().map_or((libc::SIG_DFL, 0), |before| (before.sa_sigaction, before.sa_flags));
    // SAFETY: as above.
    let sent = unsafe { (*info).si_code } <= 0;
    match handler {
        libc::SIG_IGN if sent => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            if sent {
                die(number);
            } else {
                // The instruction is executed again, and its fault ends the process.
                set_default(number);
            }
        }
        // SAFETY: it was installed as a handler, and the flag says of which type.
        handler => unsafe {
            if flags & libc::SA_SIGINFO != 0 {
                type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                std::mem::transmute::<usize, Handler>(handler)(number, info, context);
            } else {
                std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(number);
            }
        },
    }
}

fn set_default(number: c_int) {
    // SAFETY: all-zero is the default action.
    unsafe { libc::sigaction(number, &zeroed(), ptr::null_mut()) };
}

/// Ends the process by this signal: now, or when the signal's handler returns.
fn die(number: c_int) {
    set_default(number);
    // SAFETY: no conditions.
    unsafe { libc::raise(number) };
}

/// The stack pointer of the interrupted code.
///
/// # Safety
///
/// `context` is the one that Linux passed to a handler.
#[cfg(target_arch = "x86_64")]
unsafe fn stack_pointer(context: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    }
}

/// The stack pointer is unknown for this architecture: returns an address that is on no stack.
///
/// # Safety
///
/// None.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stack_pointer(_: *mut c_void) -> usize {
    0
}

/// Displays the task that has overflowed its stack.
struct Culprit(Option<trapline::Current>);

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(task) => task.fmt(f),
            None => f.write_str("a stackful task"),
        }
    }
}

/// Prints to the standard error output. Usable in a signal handler: takes no lock and does not
/// allocate.
fn say(message: fmt::Arguments<'_>) {
    struct Unlocked;
    impl Write for Unlocked {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            write_to(libc::STDERR_FILENO, text.as_bytes());
            Ok(())
        }
    }
    let _ = Unlocked.write_fmt(format_args!("hal-shim: {message}\n"));
}
