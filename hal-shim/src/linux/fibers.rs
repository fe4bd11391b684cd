//! A backend that announces stack switches to AddressSanitizer, in programs that are built with it.
//!
//! When a panic begins, AddressSanitizer unpoisons the frames between the current one and the
//! stack's end, as they will not return. It cannot do so on a stack that it does not know, and
//! later reports accesses to new frames there as accesses to variables of the old ones.
//!
//! Code that leaves a stack announces the bounds of the next one. The code that it switches to
//! learns the bounds of the stack that was left and stores them there: so those of the thread's own
//! stack become known. AddressSanitizer's search for uses of variables after their function's
//! return must be off (`detect_stack_use_after_return=0`): it would keep the variables of a freed
//! stack, as it does not know of the freeing.

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

/// The native backend, with its switches announced.
pub(crate) struct Announced;

/// A [`Context`] points to this: code that is off the core, and its stack.
struct Fiber {
    native: Context,
    bottom: *const c_void,
    size: usize,
}

/// The data at the top of a stack that has not been entered.
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

/// Called when a stack has been allocated. It will be prepared next.
pub(crate) fn allocated(base: NonNull<u8>, size: usize) {
    NEWEST.set((base.as_ptr().cast(), size));
}

/// Called when a stack will be unmapped. Unpoisons it, as later memory at the same addresses does
/// not belong to its last frames.
pub(crate) fn freed(base: NonNull<u8>, size: usize) {
    // SAFETY: it is still mapped, and no code uses it.
    unsafe { __asan_unpoison_memory_region(base.as_ptr().cast(), size) };
}

// SAFETY: as `Native`, of which it uses `size_of::<First>()` bytes less of the stack. `switch`
// writes nothing but `*save` and its own frame.
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
        // SAFETY: the caller promises that `save` can be written, and that `to` was prepared or
        // saved by this backend, on this thread, so its fiber is on a live stack. `own` is in this
        // frame, which lives until the code of `to` switches back to it by `own`.
        unsafe {
            save.write(Context(own.cast()));
            __sanitizer_start_switch_fiber(ptr::null_mut(), (*to).bottom, (*to).size);
            Native::switch(&raw mut (*own).native, (*to).native);
            arrived();
        }
    }
}

/// Announces that a switch has arrived.
///
/// # Safety
///
/// Called first on a stack after a switch to it.
unsafe fn arrived() {
    let left = LEFT.get();
    // SAFETY: the fiber that was left last on this thread is off the core, so its frame is live.
    unsafe {
        __sanitizer_finish_switch_fiber(
            ptr::null_mut(),
            &raw mut (*left).bottom,
            &raw mut (*left).size,
        );
    }
}

/// The first function on a new stack.
///
/// # Safety
///
/// `first` is from `prepare`, for this stack, which is entered for the first time.
unsafe extern "C" fn begin(first: *mut ()) -> ! {
    let first = first.cast::<First>().cast_const();
    // SAFETY: the caller's promise; `main` gets the argument that `prepare` was given for it.
    unsafe {
        arrived();
        ((*first).main)((*first).argument)
    }
}
