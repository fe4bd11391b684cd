//! The chain of scopes that a poll is inside of: hooks around its code, and task-local values.

use alloc::sync::Arc;
use core::ptr::NonNull;

use crate::fatal::fatal;

/// Sets up what a future needs while it has the core, such as its address space or the current
/// thread.
///
/// Both functions are called in task context with preemption disabled, on the core that runs the
/// future. They run at every switch, so they must be short. They must neither allocate nor panic. A
/// panic in them ends the program, even where panics are caught, since it would be unknown which
/// state (which address space, say) the core is left with.
pub trait Hooks: Send + Sync + 'static {
    /// Called before the future's code runs: for the first time, after an await, or after a
    /// preemption.
    fn enter(&self);

    /// Called after the future's code has run: it is done or has panicked, it awaits, it was
    /// preempted, or it was ended by a fault.
    fn leave(&self);
}

/// One scope that a poll is inside of, with a link to the scope around it.
pub(crate) struct Scope<'a> {
    pub(crate) inside_of: ScopeEntry<'a>,
    pub(crate) outer: ScopeLink,
}

/// An entry that a future puts around the polls of another future.
#[derive(Clone, Copy)]
pub(crate) enum ScopeEntry<'a> {
    /// Hooks, the outermost first.
    Hooks(&'a [Arc<dyn Hooks>]),
    /// A task-local value: the address of its key, and where the value is.
    Value { key: *const (), value: *const () },
}

/// A link to the innermost scope of a poll. Scopes lie on the stack of their poll.
pub(crate) type ScopeLink = Option<NonNull<Scope<'static>>>;

/// Calls [`Hooks::enter`] of all scopes of a poll that is about to be resumed, the outermost first.
///
/// # Safety
///
/// The scopes are those of a poll that has begun and has not ended.
pub(crate) unsafe fn enter(innermost: ScopeLink) {
    if let Some(scope) = innermost {
        // SAFETY: the scopes of a poll live as long as the poll.
        unsafe {
            enter(scope.as_ref().outer);
            scope.as_ref().enter();
        }
    }
}

/// Calls [`Hooks::leave`] of all scopes of a poll that has just lost the core without returning (it
/// was suspended, preempted or ended by a fault), the innermost first.
///
/// # Safety
///
/// As [`enter`].
pub(crate) unsafe fn leave(innermost: ScopeLink) {
    let mut next = innermost;
    while let Some(scope) = next {
        // SAFETY: as in `enter`.
        unsafe {
            scope.as_ref().leave();
            next = scope.as_ref().outer;
        }
    }
}

impl Scope<'_> {
    pub(crate) fn enter(&self) {
        let no_panic = NoPanic;
        for hooks in self.hooks() {
            hooks.enter();
        }
        core::mem::forget(no_panic);
    }

    pub(crate) fn leave(&self) {
        let no_panic = NoPanic;
        for hooks in self.hooks().iter().rev() {
            hooks.leave();
        }
        core::mem::forget(no_panic);
    }

    pub(crate) fn hooks(&self) -> &[Arc<dyn Hooks>] {
        match self.inside_of {
            ScopeEntry::Hooks(hooks) => hooks,
            ScopeEntry::Value { .. } => &[],
        }
    }
}

/// Ends the program when it is dropped, which happens if hooks panic. If such a panic were caught,
/// the task that was about to be resumed would be taken for the task that panicked. Its future
/// would be dropped although its poll has frames on a stack.
struct NoPanic;

impl Drop for NoPanic {
    fn drop(&mut self) {
        fatal("trapline: hooks panicked: the code around them cannot be resumed after that")
    }
}
