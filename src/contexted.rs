//! Hooks around every stretch that a future has the core, and the chain of what a poll is inside of.

use alloc::sync::Arc;
use core::any::TypeId;
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::pin::Pin;
use core::ptr::{self, NonNull};
use core::task::{Context, Poll};

use crate::Runtime;
use crate::fatal::fatal;
use crate::platform::{InInterrupt, bound};
use crate::preempt::PreemptGuard;
use crate::task::undropped;

/// What a future needs around it while it has the core: its address space loaded, its thread set as the
/// current one.
///
/// Both functions are called in task context with preemption off, on the core that runs the future.
/// They must be short, and must neither allocate nor panic: they run at every switch. A panic of them
/// ends the program, also where panics are caught, since it would be unknown what is loaded.
pub trait Hooks: Send + Sync + 'static {
    /// Before the future's code runs: for the first time, after an await, after it was preempted.
    fn enter(&self);

    /// After it has run: it is done or panicked, awaits, was preempted, or was ended by a fault.
    fn leave(&self);
}

/// What a poll is inside of, and inside of which others that is.
pub(crate) struct Scope<'a> {
    inside_of: ScopeEntry<'a>,
    outer: ScopeLink,
}

/// What a future can put around the polls of another.
#[derive(Clone, Copy)]
pub(crate) enum ScopeEntry<'a> {
    /// Hooks, outermost first.
    Hooks(&'a [Arc<dyn Hooks>]),
    /// A task-local value: which one's, and where it is.
    Value { key: *const (), value: *const () },
}

/// A place for a pointer to the innermost scope of a poll; scopes lie on that poll's stack.
pub(crate) type ScopeLink = Option<NonNull<Scope<'static>>>;

/// Runs the entering hooks of a poll that goes on, outermost first.
///
/// # Safety
///
/// The scopes are those of a poll that is in the middle.
pub(crate) unsafe fn enter(innermost: ScopeLink) {
    if let Some(scope) = innermost {
        // SAFETY: a poll's scopes live as long as the poll.
        unsafe {
            enter(scope.as_ref().outer);
            scope.as_ref().enter();
        }
    }
}

/// Runs the leaving hooks of a poll that is interrupted, innermost first.
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
    fn enter(&self) {
        let no_panic = NoPanic;
        for hooks in self.hooks() {
            hooks.enter();
        }
        core::mem::forget(no_panic);
    }

    fn leave(&self) {
        let no_panic = NoPanic;
        for hooks in self.hooks().iter().rev() {
            hooks.leave();
        }
        core::mem::forget(no_panic);
    }

    fn hooks(&self) -> &[Arc<dyn Hooks>] {
        match self.inside_of {
            ScopeEntry::Hooks(hooks) => hooks,
            ScopeEntry::Value { .. } => &[],
        }
    }
}

/// Ends the program when it drops, in a panic of hooks. If that were caught, the task that was to go on would
/// be taken for the one that panicked, and its future dropped though frames are in the middle of it.
struct NoPanic;

impl Drop for NoPanic {
    fn drop(&mut self) {
        fatal("trapline: hooks panicked: they run where nobody can go on after that")
    }
}

/// Runs `code` inside of `surroundings`, of which the runtime knows if the task is preempted there.
pub(crate) fn within<R>(surroundings: ScopeEntry<'_>, code: impl FnOnce() -> R) -> R {
    let mut scope = Scope::new(surroundings);
    let _inside = scope.begin();
    code()
}

impl<'a> Scope<'a> {
    pub(crate) fn new(inside_of: ScopeEntry<'a>) -> Self {
        Self { inside_of, outer: None }
    }

    /// Enters, until what this returns is dropped. The runtime knows of the scope meanwhile.
    #[inline(never)]
    pub(crate) fn begin(&mut self) -> Inside<'_> {
        let _guard = PreemptGuard::new();
        let runtime = Runtime::current();
        self.outer = runtime.and_then(|runtime| runtime.scopes().get());
        self.enter();
        if let Some(runtime) = runtime {
            // The lifetime is forgotten: `Inside` takes the pointer back before the scope goes.
            runtime.scopes().set(Some(NonNull::from(&*self).cast()));
        }
        Inside { scope: self, runtime }
    }
}

/// The running poll is inside of a scope until this is dropped.
pub(crate) struct Inside<'a> {
    scope: &'a Scope<'a>,
    runtime: Option<&'static Runtime>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let _guard = PreemptGuard::new();
        if let Some(runtime) = self.runtime {
            if runtime.scopes().get() != Some(NonNull::from(self.scope).cast()) {
                // Code that is not the runtime's has left its stack in the middle, so frames of a scope are gone.
                fatal(
                    "trapline: scopes of hooks or task-locals ended in another order than they began",
                );
            }
            runtime.scopes().set(self.scope.outer);
        }
        self.scope.leave();
    }
}

/// All hooks of the running poll, outermost first; `None` if there is no memory for the list.
pub(crate) fn inherited(runtime: &Runtime) -> Option<alloc::vec::Vec<Arc<dyn Hooks>>> {
    let _guard = PreemptGuard::new();
    let mut all = alloc::vec::Vec::new();
    let mut next = runtime.scopes().get();
    while let Some(scope) = next {
        // SAFETY: the scopes of the poll that calls.
        let scope = unsafe { scope.as_ref() };
        all.try_reserve(scope.hooks().len()).ok()?;
        all.extend(scope.hooks().iter().rev().cloned());
        next = scope.outer;
    }
    all.reverse();
    Some(all)
}

/// Where the running poll has the innermost value of `key`, if it is inside of one. That stays there for as
/// long as the poll doesn't return to what is around it, so for the caller's own frame.
///
/// `None` in an interrupt, if the platform is certain that it is one.
pub(crate) fn value(key: *const ()) -> Option<*const ()> {
    if bound::in_interrupt() == InInterrupt::Yes {
        return None;
    }
    let _guard = PreemptGuard::new();
    let mut next = Runtime::current()?.scopes().get();
    while let Some(scope) = next {
        // SAFETY: the scopes of the poll that calls.
        let scope = unsafe { scope.as_ref() };
        match scope.inside_of {
            ScopeEntry::Value { key: found, value } if found == key => return Some(value),
            _ => next = scope.outer,
        }
    }
    None
}

/// A future with hooks around every stretch that it has the core. Made by [`contexted`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Contexted<F> {
    hooks: [Arc<dyn Hooks>; 1],
    /// Pinned with `self`, and dropped inside of the hooks.
    future: ManuallyDrop<F>,
}

/// Runs `hooks` around every stretch that `future` has the core: around each poll; in a stackful task
/// also around preemption and [`block_on`](crate::block_on); and around its drop, also after a panic.
///
/// They nest: hooks of a future inside are entered after those of the one outside, and left before.
/// A [`stackful`](crate::stackful()) future inside inherits all hooks that it is inside of. Spawned,
/// `contexted(stackful(f), hooks)` is one task, on a stack. Tasks that `future` spawns inherit nothing.
///
/// ```
/// # use std::sync::Arc;
/// # struct Process;
/// # impl Process { fn load_address_space(&self) {} fn unload_address_space(&self) {} }
/// # async fn program() {}
/// impl trapline::Hooks for Process {
///     fn enter(&self) {
///         self.load_address_space();
///     }
///
///     fn leave(&self) {
///         self.unload_address_space();
///     }
/// }
///
/// # fn process() -> Arc<Process> { Arc::new(Process) }
/// let task = trapline::contexted(trapline::stackful(program()), process());
/// # drop(task);
/// ```
///
/// Cancel-safe if `future` is.
pub fn contexted<F: Future, H: Hooks>(future: F, hooks: Arc<H>) -> Contexted<F> {
    fn made<F>(future: ManuallyDrop<F>, hooks: Arc<dyn Hooks>) -> Contexted<F> {
        Contexted { hooks: [hooks], future }
    }
    undropped(made)(future, hooks)
}

impl<F: Future> Future for Contexted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is pinned with `self` and never moved; `hooks` isn't pinned.
        let this = unsafe { self.get_unchecked_mut() };
        let whole = (ptr::from_ref(this).cast(), type_of::<Self>());
        // SAFETY: as above.
        let future = unsafe { Pin::new_unchecked(&mut *this.future) };
        within(ScopeEntry::Hooks(&this.hooks), || {
            // A stackful future that is all that is inside makes the whole task stackful.
            let _inside = match Runtime::current() {
                Some(runtime)
                    if !runtime.is_on_stack() && runtime.task_that_is(whole).is_some() =>
                {
                    let inside = (ptr::from_ref(&*future).cast(), type_of::<F>());
                    Some(runtime.inside_of_hooks(inside))
                }
                _ => None,
            };
            future.poll(context)
        })
    }
}

/// The type, whatever its lifetimes: equal for types that differ in those alone.
///
/// So it says that two values have one layout and one set of functions, and not that the one may stand for
/// the other. Two that are equal and lie in one place are one value.
fn type_of<T>() -> TypeId {
    trait Typed {
        fn id(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T> Typed for PhantomData<T> {
        fn id(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let nothing = PhantomData::<T>;
    let typed: &(dyn Typed + '_) = &nothing;
    // SAFETY: only the lifetime bound of the trait object changes. The one function of it looks at no value;
    // it is compiled once for all lifetimes, as every function.
    let typed = unsafe { mem::transmute::<&(dyn Typed + '_), &(dyn Typed + 'static)>(typed) };
    typed.id()
}

impl<F> Drop for Contexted<F> {
    fn drop(&mut self) {
        let future = &mut self.future;
        // SAFETY: dropped once, here, in its place.
        within(ScopeEntry::Hooks(&self.hooks), || unsafe { ManuallyDrop::drop(future) });
    }
}

impl<F: fmt::Debug> fmt::Debug for Contexted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contexted").field("future", &*self.future).finish_non_exhaustive()
    }
}
