//! Futures with hooks, which run whenever the future gets the core and whenever it gives the core
//! up; and the functions by which a poll enters and leaves a [scope](crate::scope).

use alloc::sync::Arc;
use core::any::TypeId;
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::{self, ManuallyDrop};
use core::pin::Pin;
use core::ptr::{self, NonNull};
use core::task::{Context, Poll};

use crate::fatal::fatal;
use crate::platform::{InInterrupt, bound};
use crate::preempt::guard::PreemptGuard;
use crate::runtime::core::Runtime;
use crate::scope::{Hooks, Scope, ScopeEntry};
use crate::task::by_place::undropped;

/// Runs `code` inside of `entry`. Meanwhile the runtime has a pointer to the scope, so that it can
/// call the hooks if the task is suspended or preempted in `code`.
pub(crate) fn within<R>(entry: ScopeEntry<'_>, code: impl FnOnce() -> R) -> R {
    let mut scope = Scope::new(entry);
    let _inside = scope.begin();
    code()
}

impl<'a> Scope<'a> {
    pub(crate) fn new(inside_of: ScopeEntry<'a>) -> Self {
        Self { inside_of, outer: None }
    }

    /// Enters the scope. The drop of the returned value leaves it. Meanwhile the runtime has a
    /// pointer to the scope.
    #[inline(never)]
    pub(crate) fn begin(&mut self) -> Inside<'_> {
        let _guard = PreemptGuard::new();
        let runtime = Runtime::current();
        self.outer = runtime.and_then(|runtime| runtime.scopes().get());
        self.enter();
        if let Some(runtime) = runtime {
            // The lifetime is erased. `Inside` removes the pointer before the scope is gone.
            runtime.scopes().set(Some(NonNull::from(&*self).cast()));
        }
        Inside { scope: self, runtime }
    }
}

/// The running poll is inside of a scope until this value is dropped.
pub(crate) struct Inside<'a> {
    scope: &'a Scope<'a>,
    runtime: Option<&'static Runtime>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let _guard = PreemptGuard::new();
        if let Some(runtime) = self.runtime {
            if runtime.scopes().get() != Some(NonNull::from(self.scope).cast()) {
                // Code that is not the runtime's has left stack frames without returning from them
                // (as `longjmp` does), so the frame of a scope is gone.
                fatal(
                    "trapline: scopes of hooks or task-locals ended in another order than they \
                     began",
                );
            }
            runtime.scopes().set(self.scope.outer);
        }
        self.scope.leave();
    }
}

/// Returns all hooks of the running poll, the outermost first; `None` if there is no memory for the
/// list.
pub(crate) fn inherited(runtime: &Runtime) -> Option<alloc::vec::Vec<Arc<dyn Hooks>>> {
    let _guard = PreemptGuard::new();
    let mut all = alloc::vec::Vec::new();
    let mut next = runtime.scopes().get();
    while let Some(scope) = next {
        // SAFETY: these are the scopes of the poll that calls this, so they are alive.
        let scope = unsafe { scope.as_ref() };
        all.try_reserve(scope.hooks().len()).ok()?;
        all.extend(scope.hooks().iter().rev().cloned());
        next = scope.outer;
    }
    all.reverse();
    Some(all)
}

/// Returns the address of the innermost value of `key` among the scopes of the running poll, if
/// there is one. The value stays there until the poll returns to the code around that scope, so it
/// outlives the caller's frame.
///
/// Returns `None` in an interrupt, if the platform is certain that it is one.
pub(crate) fn value(key: *const ()) -> Option<*const ()> {
    if bound::in_interrupt() == InInterrupt::Yes {
        return None;
    }
    let _guard = PreemptGuard::new();
    let mut next = Runtime::current()?.scopes().get();
    while let Some(scope) = next {
        // SAFETY: these are the scopes of the poll that calls this, so they are alive.
        let scope = unsafe { scope.as_ref() };
        match scope.inside_of {
            ScopeEntry::Value { key: found, value } if found == key => return Some(value),
            _ => next = scope.outer,
        }
    }
    None
}

/// A future with hooks around each stretch in which it has the core. Made by [`contexted`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Contexted<F> {
    hooks: [Arc<dyn Hooks>; 1],
    /// Pinned with `self`, and dropped inside of the hooks.
    future: ManuallyDrop<F>,
}

/// Runs `hooks` around each stretch in which `future` has the core: around each poll and around its
/// drop, even after a panic. In a stackful task, the hooks also run around preemption and
/// [`block_on`](crate::block_on).
///
/// Hooks nest: those of an inner future are entered after those of the outer one, and left before
/// them. A [`stackful`](crate::stackful()) future inside inherits all hooks that it is inside of.
/// When `contexted(stackful(f), hooks)` is spawned, it is one task, on a stack. Tasks that `future`
/// spawns inherit nothing.
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
        // SAFETY: `future` is pinned with `self` and never moved. `hooks` is not pinned.
        let this = unsafe { self.get_unchecked_mut() };
        let whole = (ptr::from_ref(this).cast(), type_of::<Self>());
        // SAFETY: as above.
        let future = unsafe { Pin::new_unchecked(&mut *this.future) };
        within(ScopeEntry::Hooks(&this.hooks), || {
            // If this is the whole future of the task, apart from hooks around it, and `future` is
            // a stackful one, the whole task becomes stackful. So the runtime is told that `future`
            // is all that the task has inside of its hooks.
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

/// Returns the id of a type without its lifetimes: types that differ only in lifetimes have one id.
///
/// So equal ids say that two values have the same layout and the same functions, but not that one
/// may stand for the other. Two values with equal ids in one place are one value.
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
    // SAFETY: only the lifetime bound of the trait object changes. Its one function reads no value,
    // and is compiled once for all lifetimes, like every function.
    let typed = unsafe { mem::transmute::<&(dyn Typed + '_), &(dyn Typed + 'static)>(typed) };
    typed.id()
}

impl<F> Drop for Contexted<F> {
    fn drop(&mut self) {
        let future = &mut self.future;
        // SAFETY: the future is dropped once, here, in its place.
        within(ScopeEntry::Hooks(&self.hooks), || unsafe { ManuallyDrop::drop(future) });
    }
}

impl<F: fmt::Debug> fmt::Debug for Contexted<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contexted").field("future", &*self.future).finish_non_exhaustive()
    }
}
