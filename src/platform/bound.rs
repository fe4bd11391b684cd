//! The bound platform, as the rest of the crate calls it.

use core::ptr::NonNull;

use crate::platform::backend::{Context, StackMain};
use crate::platform::slot::CoreSlot;
use crate::platform::{InInterrupt, Interrupts, PanicPayload};

// A linker prints these names in its "undefined symbol" message, so the names say what to do.
unsafe extern "Rust" {
    pub(crate) safe fn __trapline_bind_platform_slot() -> &'static CoreSlot;
    pub(crate) safe fn __trapline_bind_platform_core() -> usize;
    pub(crate) safe fn __trapline_bind_platform_now() -> u64;
    pub(crate) safe fn __trapline_bind_platform_set_alarm(at: u64);
    pub(crate) safe fn __trapline_bind_platform_park();
    pub(crate) safe fn __trapline_bind_platform_wake(core: usize);
    pub(crate) safe fn __trapline_bind_platform_mask_interrupts() -> usize;
    pub(crate) unsafe fn __trapline_bind_platform_restore_interrupts(state: usize);
    pub(crate) unsafe fn __trapline_bind_platform_enable_interrupts();
    pub(crate) safe fn __trapline_bind_platform_in_interrupt() -> InInterrupt;
    pub(crate) safe fn __trapline_bind_platform_interrupts() -> Interrupts;
    pub(crate) safe fn __trapline_bind_platform_may_preempt() -> bool;
    pub(crate) safe fn __trapline_bind_platform_preserving(leave: &mut dyn FnMut());
    pub(crate) safe fn __trapline_bind_platform_may_end() -> bool;
    pub(crate) safe fn __trapline_bind_platform_catch_unwind(
        body: &mut dyn FnMut(),
    ) -> Result<(), PanicPayload>;
    pub(crate) safe fn __trapline_bind_platform_allocate_stack(size: usize) -> Option<NonNull<u8>>;
    pub(crate) unsafe fn __trapline_bind_platform_free_stack(base: NonNull<u8>, size: usize);
    pub(crate) safe fn __trapline_bind_platform_min_stack() -> usize;
    pub(crate) unsafe fn __trapline_bind_platform_prepare(
        top: NonNull<u8>,
        main: StackMain,
        argument: *mut (),
    ) -> Context;
    pub(crate) unsafe fn __trapline_bind_platform_switch(save: *mut Context, to: Context);
}

pub(crate) use {
    __trapline_bind_platform_allocate_stack as allocate_stack,
    __trapline_bind_platform_catch_unwind as catch_unwind, __trapline_bind_platform_core as core,
    __trapline_bind_platform_enable_interrupts as enable_interrupts,
    __trapline_bind_platform_free_stack as free_stack,
    __trapline_bind_platform_in_interrupt as in_interrupt,
    __trapline_bind_platform_interrupts as interrupts,
    __trapline_bind_platform_mask_interrupts as mask_interrupts,
    __trapline_bind_platform_may_end as may_end,
    __trapline_bind_platform_may_preempt as may_preempt,
    __trapline_bind_platform_min_stack as min_stack, __trapline_bind_platform_now as now,
    __trapline_bind_platform_park as park, __trapline_bind_platform_prepare as prepare,
    __trapline_bind_platform_preserving as preserving,
    __trapline_bind_platform_restore_interrupts as restore_interrupts,
    __trapline_bind_platform_set_alarm as set_alarm, __trapline_bind_platform_slot as slot,
    __trapline_bind_platform_switch as switch, __trapline_bind_platform_wake as wake,
};

impl Context {
    /// Prepares a stack with the platform's backend.
    ///
    /// # Safety
    ///
    /// As [`StackfulBackend::prepare`](crate::platform::backend::StackfulBackend::prepare).
    pub(crate) unsafe fn prepare(top: NonNull<u8>, main: StackMain, argument: *mut ()) -> Self {
        // SAFETY: the caller's promise is the same.
        unsafe { prepare(top, main, argument) }
    }

    /// Switches stacks with the platform's backend.
    ///
    /// # Safety
    ///
    /// As [`StackfulBackend::switch`](crate::platform::backend::StackfulBackend::switch).
    pub(crate) unsafe fn switch(save: *mut Self, to: Self) {
        // SAFETY: the caller's promise is the same.
        unsafe { switch(save, to) }
    }
}
