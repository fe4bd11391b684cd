//! The future that [`stackful`] makes.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::TypeId;
use core::fmt;
use core::future::Future;
use core::pin::Pin;
use core::ptr;
use core::task::Poll;

use crate::contexted;
use crate::runtime::core::Runtime;
use crate::scope::{Hooks, Scope, ScopeEntry};
use crate::task::error::JoinError;
use crate::task::join::JoinHandle;
use crate::task::panic;
use crate::task::panic::panic_message;

/// A future that runs on a stack of its own and is preempted. Made by [`stackful`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Stackful<F: Future> {
    /// `None` once the future has been moved into a task of its own. Pinned from the first poll on
    /// a stack, which is also the future's first poll at all.
    future: Option<F>,
    /// Whether this `Stackful` is the whole of a task that runs on a stack, possibly with hooks
    /// around it. If so, nothing moves the future any more, even if `F: Unpin`: only the runtime
    /// reaches the task's memory, and hooks give no access to the future inside of them.
    on_stack: bool,
    /// The child task, once the future has been moved into it.
    child: Option<JoinHandle<F::Output>>,
    /// The hooks of the parent, if this is a child: the child's polls run inside of them, too.
    hooks: Vec<Arc<dyn Hooks>>,
}

/// Makes a future that may compute for as long as it likes: when its slice is over, the timer takes
/// the core from it, and the core's other tasks run.
///
/// - **Spawned directly**, also with [`contexted()`](crate::contexted()) around it, it is one task,
///   which is polled on a stack.
/// - **Inside of any other future**, it spawns a child task at its first poll, on the core of its
///   parent. It waits for the child, and aborts the child when it is dropped. The parent stays what
///   it was. For example, a spawned `stackful(f).map(g)` is a plain task: `f` runs in a child on a
///   stack, and `g` runs in the plain parent and is not preempted. To have both preempted, put
///   `stackful` outermost: `stackful(f.map(g))`.
///
/// The task holds a stack only while it is being polled, is preempted, or is inside of
/// [`block_on()`](crate::block_on()).
///
/// The future must be `Send` for the same reason as with [`std::thread::spawn`]: it may be
/// preempted between any two instructions, and other tasks of the core run then.
///
/// [`std::thread::spawn`]: https://doc.rust-lang.org/std/thread/fn.spawn.html
///
/// # Errors
///
/// If there is no memory for the child's task, the parent is polled again and tries again. A task
/// for which there is no stack waits, and [`Config::on_stall`](crate::Config::on_stall) is called.
///
/// # Panics
///
/// - If polled on a core that is not inside of a runtime.
/// - In the parent, if the child panicked, with the child's message.
/// - If the child was ended by a fault, there is no output. Then the parent is aborted. If the
///   parent waits in [`block_on()`](crate::block_on()), it is ended as well. The future of
///   [`Runtime::run_until`] cannot be aborted, and panics.
pub fn stackful<F>(future: F) -> Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    Stackful { future: Some(future), on_stack: false, child: None, hooks: Vec::new() }
}

impl<F> Future for Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut core::task::Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is moved only before its first poll. `child` and the other fields are
        // not structurally pinned.
        let this = unsafe { self.get_unchecked_mut() };
        if !this.on_stack {
            return this.poll_off_stack(context);
        }
        let Some(future) = &mut this.future else { unreachable!("on_stack keeps the future") };
        let mut scope;
        let _inside = if this.hooks.is_empty() {
            None
        } else {
            scope = Scope::new(ScopeEntry::Hooks(&this.hooks));
            Some(scope.begin())
        };
        // SAFETY: with `on_stack` set, the future is never moved again.
        unsafe { Pin::new_unchecked(future) }.poll(context)
    }
}

impl<F> Stackful<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    /// Polls off a stack. This is a poll in a parent, which polls the child, or the first poll of a
    /// task that is stackful as a whole.
    fn poll_off_stack(&mut self, context: &mut core::task::Context<'_>) -> Poll<F::Output> {
        let Some(runtime) = Runtime::current() else {
            panic!("stackful() was polled outside of a runtime: spawn it, or await it in a task")
        };
        if self.future.is_some() {
            let whole = (ptr::from_ref(self).cast(), TypeId::of::<Self>());
            if let Some(task) = runtime.task_that_is(whole) {
                // This `Stackful` is the whole task, and this is its first poll, by the loop. All
                // further polls are on a stack.
                self.on_stack = true;
                // SAFETY: the current task is alive. It is being polled, so this is its core.
                unsafe { task.as_ref() }.state.set_stackful();
                runtime.yield_current();
                return Poll::Pending;
            }
            if !self.spawn_child(runtime) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        let Some(child) = &mut self.child else {
            // The child was ended by a fault, and the parent has been aborted.
            return Poll::Pending;
        };
        let error = match child.poll_in_place(context) {
            Poll::Ready(Ok(value)) => return value.into_ready(),
            Poll::Ready(Err(error)) => error,
            Poll::Pending => return Poll::Pending,
        };
        match error {
            JoinError::Panicked(payload) => {
                let message = String::from(panic_message(&payload));
                // Before the panic below, since the drop of the payload may panic too.
                panic::drop_payload(payload);
                panic!("a stackful future panicked: {message}")
            }
            JoinError::Abandoned if runtime.abort_current() => {
                self.child = None;
                Poll::Pending
            }
            // `Aborted`: only this `Stackful` has the child's handle, so a shutdown aborted the
            // child. That shutdown ends the parent too, unless the parent has been moved to another
            // runtime. `Abandoned`: the parent cannot be aborted.
            error => panic!("a stackful future was ended: {error}"),
        }
    }

    /// Moves the future into a child task. Returns `false` if there is no memory or the runtime has
    /// been shut down. The future then stays in `self`.
    #[inline(never)]
    fn spawn_child(&mut self, runtime: &'static Runtime) -> bool {
        let Some(hooks) = contexted::inherited(runtime) else { return false };
        // `spawn_stackful` copies `self` into the child, so `self` gets the field values of the
        // child here. It keeps them until the child has been published or refused.
        self.hooks = hooks;
        self.on_stack = true;
        // SAFETY: `self` is a valid `Stackful` that only this code accesses. On `Ok` the future and
        // the hooks belong to the task, and are overwritten below without a drop.
        match unsafe { runtime.spawn_stackful(self) } {
            Ok(child) => {
                // SAFETY: the fields are `self`'s, and the values that are overwritten have been
                // moved.
                unsafe {
                    ptr::from_mut(&mut self.future).write(None);
                    ptr::from_mut(&mut self.hooks).write(Vec::new());
                }
                self.on_stack = false;
                self.child = Some(child);
                true
            }
            Err(_) => {
                self.on_stack = false;
                // Otherwise the future would be dropped inside of these hooks, which this code is
                // already inside of.
                self.hooks.clear();
                false
            }
        }
    }
}

impl<F: Future> Drop for Stackful<F> {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            child.abort();
        }
        if !self.hooks.is_empty() {
            let future = &mut self.future;
            // Dropped in place, as the future may be pinned.
            contexted::within(ScopeEntry::Hooks(&self.hooks), || *future = None);
        }
    }
}

impl<F: Future> fmt::Debug for Stackful<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stackful").field("child", &self.child).finish_non_exhaustive()
    }
}

impl Runtime {
    /// Aborts the running task because its child was ended by a fault. The abort takes effect after
    /// the poll. `false`: there is no such task, or it is the root, which cannot be aborted.
    pub(crate) fn abort_current(&self) -> bool {
        match self.current_task() {
            Some(task) if !self.is_root(task) => {
                // SAFETY: the task is polled, hence alive. It is RUNNING, so there is nothing to
                // push.
                let _ = unsafe { task.as_ref() }.state.abort();
                if self.is_on_stack() {
                    self.running_stack().lost_child.set(true);
                }
                true
            }
            _ => false,
        }
    }
}
