//! Memory faults: which of them are overflows of a stackful task's stack, and the stack that their handlers
//! run on.
//!
//! std says so when a thread overflows the stack that it began on, and knows no other. Here the same is said for
//! a task's stack. Whatever handled the signal before, std's handler or one of the program's own, is called
//! then, as it is for any other fault. One that the program installs later takes this one's place.
//!
//! An overflow is seen in one of two ways: the task touches the guard, or a signal finds no room for its
//! frame, and Linux makes a memory fault without an address of it.

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
/// Linux: the kernel sent the signal, and it is about no address.
const SI_KERNEL: c_int = 0x80;
/// What handlers have on an alternate stack beside the signal's frame.
const HANDLERS: usize = 64 * 1024;

/// How many bytes Linux pushes for a signal, at most. 0 if it does not say.
pub(super) fn signal_frame() -> usize {
    // SAFETY: no conditions.
    unsafe { libc::getauxval(AT_MINSIGSTKSZ) as usize }
}

/// The alternate signal stack of a core, and what its thread had in its place.
pub(super) struct AlternateStack {
    mapping: Range<usize>,
    before: libc::stack_t,
}

impl AlternateStack {
    /// Gives the calling thread one.
    ///
    /// # Errors
    ///
    /// What Linux says when there is no memory.
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
        // SAFETY: the first page of a mapping that nobody uses yet is its guard; the rest becomes the thread's
        // alternate stack, until `remove` puts back what sigaltstack has written to `before`.
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

    /// Takes it from the calling thread, which `install` has given it to.
    pub(super) fn remove(self) {
        // SAFETY: what the thread had before is put back, so nothing uses the mapping, which is `install`'s.
        unsafe {
            libc::sigaltstack(&self.before, ptr::null_mut());
            libc::munmap(ptr::without_provenance_mut(self.mapping.start), self.mapping.len());
        }
    }
}

/// What handled the signal before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Makes `on_fault` the handler of memory faults. Called once.
pub(super) fn install_handler() {
    // SAFETY: all-zero is a value of this C structure, and sigaction writes it; the handler does only what a
    // signal handler may, and calls the one that was there before, under the mask and flags of that one.
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
    // SAFETY: Linux gives a handler with SA_SIGINFO both, and so does a handler that calls this one.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    let sent = code <= 0;
    let overflow = cores::here().filter(|_| !sent).and_then(|_| {
        let stack = trapline::stackful::current_stack()?;
        let guard = platform::guard_below(&stack);
        let no_room = code == SI_KERNEL && {
            // SAFETY: as above.
            let pointer = unsafe { stack_pointer(context) };
            // From there the frame would have reached down into the guard.
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
        // Nothing is at fault that would be tried again, and the task must not go on.
        die(number);
    }
    set_errno(errno);
}

/// Below the stack pointer, the ABI of x86_64 gives so much to the code, and signals leave it out.
const RED_ZONE: usize = 128;

/// Calls the handler that was there before, or does what Linux would without one.
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
                // The instruction is tried again, and ends the process there.
                set_default(number);
            }
        }
        // SAFETY: it was installed as a handler, whose type the flag tells.
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

/// Ends the process by this signal, at the latest when its handler returns.
fn die(number: c_int) {
    set_default(number);
    // SAFETY: no conditions.
    unsafe { libc::raise(number) };
}

/// Of the interrupted code.
///
/// # Safety
///
/// `context` is what Linux gave to a handler.
#[cfg(target_arch = "x86_64")]
unsafe fn stack_pointer(context: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    }
}

/// Unknown, and none that lies on a stack.
///
/// # Safety
///
/// None.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn stack_pointer(_: *mut c_void) -> usize {
    0
}

/// What the task is called.
struct Culprit(Option<trapline::Current>);

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(task) => task.fmt(f),
            None => f.write_str("a stackful task"),
        }
    }
}

/// Prints to the standard error output, in a signal handler: without a lock, without the heap.
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
