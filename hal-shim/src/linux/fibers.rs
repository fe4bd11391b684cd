//! Switches of which AddressSanitizer is told, in programs that are built with it.
//!
//! When a panic begins, AddressSanitizer forgets what it knows of the frames between here and the
//! stack's end, as they will not return. On a stack that it does not know it cannot, and later takes
//! the variables of other frames there for those of the ones that are gone.
//!
//! Who leaves a stack says where the next one lies, and learns from whoever it comes back to where its
//! own does: the thread's own stack is found out so. AddressSanitizer's search for uses of variables
//! after their function's return is to be off (`detect_stack_use_after_return=0`): it would keep those
//! of a stack that is freed, not knowing.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::{self, NonNull};

use trapline::arch::Native;
use trapline::stackful::{Context, StackMain, StackfulBackend};

unsafe extern "C" {
    fn __sanitizer_start_switch_fiber(save: *mut *mut c_void, bottom: *const c_void, size: usize);
    fn __sanitizer_finish_switch_fiber(
        saved: *mut c_void,
        old_bottom: *mut *const c_void,
        old_size: *mut usize,
    );
    fn __asan_unpoison_memory_region(start: *const c_void, size: usize);
}

/// The native backend, announced.
pub(crate) struct Announced;

/// What a [`Context`] points to: code that is off the core, and its stack.
struct Fiber {
    native: Context,
    bottom: *const c_void,
    size: usize,
}

/// What lies on top of a stack that has not been entered.
#[repr(align(16))]
struct First {
    fiber: Fiber,
    main: StackMain,
    argument: *mut (),
}

thread_local! {
    /// The stack that was allocated last.
    static NEWEST: Cell<(*const c_void, usize)> = const { Cell::new((ptr::null(), 0)) };
    /// The fiber that was left last.
    static LEFT: Cell<*mut Fiber> = const { Cell::new(ptr::null_mut()) };
}

/// A stack that will be prepared next.
pub(crate) fn allocated(base: NonNull<u8>, size: usize) {
    NEWEST.set((base.as_ptr().cast(), size));
}

/// A stack that will be unmapped. What comes to lie there next is not to be taken for its last frames' variables.
pub(crate) fn freed(base: NonNull<u8>, size: usize) {
    // SAFETY: it is still mapped, and nobody uses it.
    unsafe { __asan_unpoison_memory_region(base.as_ptr().cast(), size) };
}

// SAFETY: as `Native`, of which it uses `size_of::<First>()` bytes less of the stack. `switch` writes
// nothing but `*save` and its own frame.
unsafe impl StackfulBackend for Announced {
    const MIN_STACK: usize = Native::MIN_STACK + size_of::<First>();

    unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Context {
        let (bottom, size) = NEWEST.get();
        let distance = top.addr().get() - bottom.addr();
        assert!(distance <= size, "a stack is prepared right after it was allocated");
        // SAFETY: the caller gives `MIN_STACK` bytes below `top`, aligned to 16.
        unsafe {
            let first = top.byte_sub(size_of::<First>()).cast::<First>();
            let native = Native::prepare(first.cast(), begin, first.as_ptr().cast());
            first.write(First { fiber: Fiber { native, bottom, size }, main, argument });
            Context((&raw mut (*first.as_ptr()).fiber).cast())
        }
    }

    unsafe fn switch(save: *mut Context, to: Context) {
        let to = to.0.cast::<Fiber>();
        let mut own = Fiber { native: Context(ptr::null_mut()), bottom: ptr::null(), size: 0 };
        let own = &raw mut own;
        LEFT.set(own);
        // SAFETY: the caller's promise: `save` can be written, and `to` was prepared or saved here, on
        // this thread, so its fiber lies on a stack that is alive. `own` lives in this frame, to which
        // `to`'s code comes back by way of `own`.
        unsafe {
            save.write(Context(own.cast()));
            __sanitizer_start_switch_fiber(ptr::null_mut(), (*to).bottom, (*to).size);
            Native::switch(&raw mut (*own).native, (*to).native);
            arrived();
        }
    }
}

/// # Safety
///
/// The first thing on a stack after a switch to it.
unsafe fn arrived() {
    let left = LEFT.get();
    // SAFETY: what was left last on this thread is off the core, so its frame is there.
    unsafe {
        __sanitizer_finish_switch_fiber(
            ptr::null_mut(),
            &raw mut (*left).bottom,
            &raw mut (*left).size,
        );
    }
}

/// # Safety
///
/// `first` is the prepared stack's, which is entered for the first time.
unsafe extern "C" fn begin(first: *mut ()) -> ! {
    let first = first.cast::<First>().cast_const();
    // SAFETY: the caller's promise; `main` gets what `prepare` was given for it.
    unsafe {
        arrived();
        ((*first).main)((*first).argument)
    }
}
