//! The interface by which a kernel tells the runtime about its cores.
//!
//! A kernel implements [`Platform`] once and binds it once for the whole program with
//! [`bind_platform!`](crate::bind_platform). From then on [`spawn`](crate::spawn),
//! [`stackful`](crate::stackful()), every waker and every timer find the platform by themselves, so
//! no type carries a platform parameter.
//!
//! A program that uses Trapline and binds no platform does not link: the linker names the missing
//! `__trapline_bind_platform_…` symbols.

use alloc::boxed::Box;
use core::any::Any;
use core::ptr::NonNull;

pub(crate) mod backend;
pub(crate) mod bound;
pub(crate) mod slot;

pub use slot::CoreSlot;

use backend::StackfulBackend;

/// Whether the calling code runs in an interrupt: the answer to [`Platform::in_interrupt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InInterrupt {
    /// Certainly not: this is task context, and wakes may take the fast path into the ready queue.
    No,
    /// Certainly: an interrupt handler or a signal handler is running.
    Yes,
    /// The platform cannot tell. Always safe.
    Unknown,
}

/// Whether the calling code may be interrupted: the answer to [`Platform::interrupts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// Certainly: this core takes interrupts between any two instructions of the caller.
    Enabled,
    /// Certainly not: the caller has masked interrupts, or is a handler in which they are masked.
    Masked,
    /// The platform cannot tell. Always safe.
    Unknown,
}

/// The payload of a caught panic.
pub type PanicPayload = Box<dyn Any + Send + 'static>;

/// The functions that the runtime asks of a kernel. Bound by
/// [`bind_platform!`](crate::bind_platform).
///
/// A *core* is the thing that runs one [`Runtime`](crate::Runtime): a hardware thread in a kernel,
/// a thread of the process when hosted.
///
/// # Safety
///
/// The runtime's soundness rests on the following promises. An implementation keeps all of them:
///
/// - [`slot`](Self::slot) and [`core`](Self::core) answer for the core that calls them. The answer
///   is always the same for one core and different for two, and any context may call them. A caller
///   that is no core, such as another thread of a hosted program, gets the number `usize::MAX`, and
///   a slot with which no runtime is ever entered.
/// - A core is one thread in the sense of `Send`. If the core's number is passed on to another
///   thread, a runtime that was entered under that number is neither entered nor shut down again
///   while it has stacks that hold frames, or unfinished tasks of a
///   [`LocalSpawner`](crate::LocalSpawner).
/// - [`now`](Self::now) never goes backwards, on a core and between cores, and may be called in any
///   context.
/// - An alarm that fires ends in a call of [`preempt::on_timer`](crate::preempt::on_timer) on the
///   core that set the alarm, in interrupt context, after the interrupt has been acknowledged.
/// - After [`mask_interrupts`](Self::mask_interrupts) no handler that may call into Trapline runs
///   on this core until [`restore_interrupts`](Self::restore_interrupts) is given the value that
///   `mask_interrupts` returned. Pairs nest.
/// - [`park`](Self::park) is called with interrupts masked and returns with interrupts masked. If a
///   [`wake`](Self::wake) for this core, or an interrupt, comes at any time after the masking,
///   `park` returns. (Mind the interrupts that cannot be masked: an NMI between x86_64's `sti` and
///   `hlt` lets an interrupt in before the `hlt`, and the `hlt` then sleeps although that interrupt
///   has come.)
/// - [`wake`](Self::wake) may be called in any context, takes no lock and allocates nothing. It
///   makes the present or next `park` of that core return. On a core that is not parked it causes
///   an interrupt whose handler calls [`preempt::on_interrupt`](crate::preempt::on_interrupt) or
///   `on_timer`. Several calls may have the effect of one. What was written before `wake` is seen
///   after the `park` or in the handler.
/// - [`in_interrupt`](Self::in_interrupt) never says [`No`](InInterrupt::No) in a handler.
/// - [`interrupts`](Self::interrupts) never says [`Enabled`](Interrupts::Enabled) where interrupts
///   are masked, and never says so in an interrupt handler that has not enabled them itself.
/// - [`may_preempt`](Self::may_preempt) says `false` wherever the interrupted code (in task
///   context, the calling code) must not be preempted or suspended: while that code panics, and
///   while the kernel's own preempt count is not zero.
/// - [`may_end`](Self::may_end) says `false` wherever the interrupted code must not be ended: it
///   would never run again.
/// - [`allocate_stack`](Self::allocate_stack) gives writable memory of the requested size, aligned
///   to 16, that no other code uses until [`free_stack`](Self::free_stack) gets that memory back.
/// - Code that runs on a stackful stack touches the kernel's per-core or thread-local data only
///   under a [`PreemptGuard`](crate::preempt::PreemptGuard). `Send` cannot express that, so the
///   kernel promises it.
/// - An interrupt handler uses no [`TaskLocal`](crate::TaskLocal), whose value would be that of the
///   interrupted task, unless [`in_interrupt`](Self::in_interrupt) says [`Yes`](InInterrupt::Yes)
///   there.
/// - If an interrupt handler enables interrupts again before it ends, it holds an
///   [`InterruptGuard`](crate::preempt::InterruptGuard) while they are enabled.
pub unsafe trait Platform: Sync + 'static {
    /// How this architecture switches stacks: one of [`arch`](crate::arch), or the kernel's own
    /// backend.
    type Backend: StackfulBackend;

    /// Returns the calling core's slot.
    fn slot(&self) -> &'static CoreSlot;

    /// Returns the calling core's number; `usize::MAX` for a caller that is no core.
    fn core(&self) -> usize;

    /// Returns the monotonic time in nanoseconds since any fixed moment.
    fn now(&self) -> u64;

    /// Sets this core's one alarm to `at` (absolute, in nanoseconds of [`now`](Self::now)), in
    /// place of the time that was set before. A time that has passed fires at once or, where
    /// interrupts are masked, as soon as they are enabled. `u64::MAX` means no alarm.
    ///
    /// **A periodic tick is enough.** If the handler of each tick calls
    /// [`on_timer`](crate::preempt::on_timer), this function may do nothing: slices and timers then
    /// end with the first tick after their time.
    ///
    /// Called with preemption disabled, in task context and in interrupt handlers.
    fn set_alarm(&self, at: u64);

    /// Waits until there is an interrupt to be handled or a [`wake`](Self::wake) for this core. The
    /// function may return early. The interrupt that ended the wait is handled before the function
    /// returns, or as soon as interrupts are restored.
    fn park(&self);

    /// Wakes core number `core` if it is parked, and interrupts it if it is not. That core has
    /// entered a runtime or [`block_on`](crate::block_on). `core` may be the calling core (the
    /// caller is an interrupt then).
    ///
    /// On a platform with a single core this function may do nothing: all code that wakes a task
    /// runs on that core, and an interrupt ends [`park`](Self::park) by itself. An interrupt that
    /// wakes a task then preempts the running task only if the interrupt's handler ends in
    /// [`on_interrupt`](crate::preempt::on_interrupt) or `on_timer`.
    fn wake(&self, core: usize);

    /// Masks this core's interrupts and returns the value that restores them.
    fn mask_interrupts(&self) -> usize;

    /// Restores the state of interrupts that [`mask_interrupts`](Self::mask_interrupts) returned.
    ///
    /// # Safety
    ///
    /// `state` comes from this core's latest `mask_interrupts` that has not been paired yet.
    unsafe fn restore_interrupts(&self, state: usize);

    /// Enables interrupts on this core, in whatever way they were masked before, and makes
    /// [`in_interrupt`](Self::in_interrupt) say that this is task context. The runtime calls this
    /// function in two situations:
    ///
    /// - A trap handler has given the core to the loop. The interrupted task's own state comes back
    ///   when the task is resumed and the handler returns.
    /// - Code of a task or of the kernel has returned to the runtime and left interrupts masked,
    ///   which is a bug of that code.
    ///
    /// # Safety
    ///
    /// Only the runtime calls this function, and only in these situations.
    unsafe fn enable_interrupts(&self);

    /// Returns whether interrupts are enabled on this core. Any context.
    ///
    /// Override this function. The runtime calls it after each poll, and on most processors it is
    /// one instruction. With the default, [`Unknown`](Interrupts::Unknown), two things are lost:
    /// the runtime does not notice a task that leaves interrupts masked; and a preemption that is
    /// pending when a guard is dropped is not taken at the drop, but only when one more alarm
    /// fires.
    #[inline]
    fn interrupts(&self) -> Interrupts {
        Interrupts::Unknown
    }

    /// Returns whether the caller is an interrupt handler. Answer [`No`](InInterrupt::No) only if
    /// certain.
    fn in_interrupt(&self) -> InInterrupt {
        InInterrupt::Unknown
    }

    /// Returns whether the code that was just interrupted may be preempted: other tasks get the
    /// core, and the code is resumed later. Called in `on_timer` and `on_interrupt`. Also called in
    /// task context, about the calling code: before a pending preemption is taken, and in
    /// [`block_on`](crate::block_on), which panics if the answer is `false`.
    ///
    /// A kernel that has a preempt count of its own, say in its spin locks, answers whether that
    /// count is zero. A preemption that is due while the answer is `false` is pending. It is taken
    /// when the kernel calls [`preempt::point`](crate::preempt::point), which the kernel should do
    /// when its count gets to zero. Without that call it is taken when [an alarm makes the runtime
    /// ask again](crate::preempt): at most 10 ms or one slice, whichever is longer, after the last
    /// `false`.
    fn may_preempt(&self) -> bool {
        true
    }

    /// Calls `leave` once. `leave` gives the core to other tasks, and returns when the calling task
    /// is resumed. The runtime calls this function where a stackful task drops a guard (or calls
    /// [`preempt::point`](crate::preempt::point)) while a preemption is pending.
    ///
    /// The task's code does not expect a switch at that point. So data that belong to that code,
    /// but lie in one place for all code of the core (a C library's `errno`), must be saved before
    /// `leave` and restored after it. (An interrupt handler must do the same by itself, since this
    /// function is not called there.) The default saves nothing.
    fn preserving(&self, leave: &mut dyn FnMut()) {
        leave();
    }

    /// Returns whether the code that a fault has interrupted may be ended, so that it never runs
    /// again. Called in [`end_task`](crate::preempt::end_task), which returns if the answer is
    /// `false`. The answer must be `false` while that code panics, since the panic would never end,
    /// and while that code holds something that its core cannot go on without, such as a lock.
    ///
    /// The default is the answer of [`may_preempt`](Self::may_preempt).
    fn may_end(&self) -> bool {
        self.may_preempt()
    }

    /// Runs `body`. Where the platform can unwind, catches a panic of `body` and returns the
    /// panic's payload.
    ///
    /// The default catches nothing: where panics abort, no panic comes back to this function. In
    /// that case the kernel's panic handler tells which task panicked:
    ///
    /// ```ignore
    /// #[panic_handler]
    /// fn panic(info: &PanicInfo<'_>) -> ! {
    ///     mask_interrupts();                           // first, so that it is not preempted here
    ///     match trapline::current() {
    ///         Some(task) => print!("{task}: {info}"),  // its id, and its name if it has one
    ///         None => print!("{info}"),
    ///     }
    ///     halt()
    /// }
    /// ```
    fn catch_unwind(&self, body: &mut dyn FnMut()) -> Result<(), PanicPayload> {
        body();
        Ok(())
    }

    /// Returns the minimum size of a stack in bytes, without the part that the runtime itself keeps
    /// on it. A platform whose traps need more stack than the backend's `MIN_STACK` allows for adds
    /// the difference here. (An example is Linux, where the size of a signal frame depends on the
    /// processor.)
    fn min_stack(&self) -> usize {
        Self::Backend::MIN_STACK
    }

    /// Allocates memory for a stack of `size` bytes (a multiple of 16), aligned to 16. Returns
    /// `None` if there is none: tasks then wait, and [`Config::on_stall`](crate::Config::on_stall)
    /// is called. The default takes the memory from the global allocator, without a guard.
    ///
    /// A kernel that has paging puts a guard below the stack: addresses that are not mapped, so
    /// that a task which overflows its stack faults. **A guard of one page is not enough where
    /// there are no stack probes.** A function with a large frame lowers the stack pointer by all
    /// of the frame at once, and its first access may lie anywhere in the frame. Where the compiler
    /// does not touch each page on the way (Rust's bare riscv64 and loongarch64 targets have no
    /// stack probes), a frame that is larger than the guard reaches over the guard into the memory
    /// below, probably another stack. So a guard is at least as large as the largest frame in the
    /// kernel: 64 KiB is a good size, and takes address space but no memory. On x86_64, whose
    /// targets have stack probes, a page is enough.
    ///
    /// With a guard or without, the runtime keeps a word (a canary) at the lowest address of the
    /// stack and checks it whenever the stack is left. If the canary was overwritten, the program
    /// ends with a message that names the task.
    ///
    /// Called in task context of the core that will use the stack, with preemption disabled;
    /// [`leave_boot_stack`](crate::stackful::leave_boot_stack) calls it outside of a runtime.
    fn allocate_stack(&self, size: usize) -> Option<NonNull<u8>> {
        let layout = core::alloc::Layout::from_size_align(size, 16).ok()?;
        // SAFETY: `Config` refuses a stack size of zero before anything is allocated.
        NonNull::new(unsafe { alloc::alloc::alloc(layout) })
    }

    /// Takes back the memory of a stack. Called in task context of the core that used the stack,
    /// with preemption disabled.
    ///
    /// # Safety
    ///
    /// `base` and `size` belong to one [`allocate_stack`](Self::allocate_stack). They are given
    /// back once, and no code runs on the stack or points into it.
    unsafe fn free_stack(&self, base: NonNull<u8>, size: usize) {
        // SAFETY: the caller promises a pair of `allocate_stack`, which checked this layout.
        unsafe {
            let layout = core::alloc::Layout::from_size_align_unchecked(size, 16);
            alloc::alloc::dealloc(base.as_ptr(), layout);
        }
    }
}

/// Binds a [`Platform`] for the whole program, once: `bind_platform!(static NAME: Type = value);`
///
/// ```ignore
/// trapline::bind_platform!(static PLATFORM: MyKernel = MyKernel::new());
/// ```
///
/// The macro defines the functions that the runtime was compiled against. So the linker resolves
/// each call to the kernel's code, and link-time optimization can inline that code.
#[macro_export]
macro_rules! bind_platform {
    (static $name:ident: $type:ty = $value:expr) => {
        static $name: $type = $value;

        const _: () = {
            use $crate::platform::Platform as _;
            use $crate::stackful::StackfulBackend as _;
            type Backend = <$type as $crate::platform::Platform>::Backend;

            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_slot() -> &'static $crate::platform::CoreSlot {
                $name.slot()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_core() -> usize {
                $name.core()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_now() -> u64 {
                $name.now()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_set_alarm(at: u64) {
                $name.set_alarm(at)
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_park() {
                $name.park()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_wake(core: usize) {
                $name.wake(core)
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_mask_interrupts() -> usize {
                $name.mask_interrupts()
            }
            #[unsafe(no_mangle)]
            unsafe fn __trapline_bind_platform_restore_interrupts(state: usize) {
                // SAFETY: the runtime upholds the contract of the trait's function.
                unsafe { $name.restore_interrupts(state) }
            }
            #[unsafe(no_mangle)]
            unsafe fn __trapline_bind_platform_enable_interrupts() {
                // SAFETY: the runtime upholds the contract of the trait's function.
                unsafe { $name.enable_interrupts() }
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_in_interrupt() -> $crate::platform::InInterrupt {
                $name.in_interrupt()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_interrupts() -> $crate::platform::Interrupts {
                $name.interrupts()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_may_preempt() -> bool {
                $name.may_preempt()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_preserving(leave: &mut dyn FnMut()) {
                $name.preserving(leave)
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_may_end() -> bool {
                $name.may_end()
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_catch_unwind(
                body: &mut dyn FnMut(),
            ) -> ::core::result::Result<(), $crate::platform::PanicPayload> {
                $name.catch_unwind(body)
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_allocate_stack(
                size: usize,
            ) -> ::core::option::Option<::core::ptr::NonNull<u8>> {
                $name.allocate_stack(size)
            }
            #[unsafe(no_mangle)]
            unsafe fn __trapline_bind_platform_free_stack(
                base: ::core::ptr::NonNull<u8>,
                size: usize,
            ) {
                // SAFETY: the runtime upholds the contract of the trait's function.
                unsafe { $name.free_stack(base, size) }
            }
            #[unsafe(no_mangle)]
            fn __trapline_bind_platform_min_stack() -> usize {
                $name.min_stack()
            }
            #[unsafe(no_mangle)]
            unsafe fn __trapline_bind_platform_prepare(
                top: ::core::ptr::NonNull<u8>,
                main: $crate::stackful::StackMain,
                argument: *mut (),
            ) -> $crate::stackful::Context {
                // SAFETY: `Context::prepare` (in `platform::bound`) upholds the contract of the
                // trait's function.
                unsafe { Backend::prepare(top, main, argument) }
            }
            #[unsafe(no_mangle)]
            unsafe fn __trapline_bind_platform_switch(
                save: *mut $crate::stackful::Context,
                to: $crate::stackful::Context,
            ) {
                // SAFETY: `Context::switch` (in `platform::bound`) upholds the contract of the
                // trait's function.
                unsafe { Backend::switch(save, to) }
            }
        };
    };
}
