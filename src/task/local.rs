//! Values that belong to a part of a task.

use core::cell::UnsafeCell;
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::ptr;
use core::task::{Context, Poll};

use super::undropped;
use crate::contexted::{self, ScopeEntry};

/// The key of values that belong to futures: what code finds under it depends on whose poll it is in.
///
/// Made by [`task_local!`](crate::task_local). The value lies in the future that [`scope`](Self::scope) makes, so
/// this allocates nothing, and tasks without one don't pay for it. Looking a value up takes as long as the
/// scopes are deep, of task-locals and of [`contexted`](crate::contexted()).
///
/// ```
/// # use core::cell::Cell;
/// trapline::task_local! {
///     /// Which request the code works for.
///     static REQUEST: Cell<u32>;
/// }
///
/// async fn handle() {
///     # trapline::yield_now().await;
///     REQUEST.with(|request| assert_eq!(request.get(), 7));
/// }
///
/// # fn on(runtime: &'static trapline::Runtime) {
/// runtime.spawn(REQUEST.scope(Cell::new(7), handle()));
/// assert!(REQUEST.try_with(|_| ()).is_err());
/// # }
/// ```
///
/// A key of one type is none of another, though a value might be of both:
///
/// ```compile_fail,E0308
/// trapline::task_local! {
///     static SHORT: for<'a> fn(&'a str);
/// }
/// let long: &'static trapline::TaskLocal<fn(&'static str)> = &SHORT;
/// ```
pub struct TaskLocal<T: 'static> {
    /// Makes the key's address its own: no two places that may change are ever one.
    _place: UnsafeCell<u8>,
    /// A value is put in as this very type, and comes out as it.
    value: PhantomData<fn(T) -> T>,
}

// SAFETY: nobody looks at the byte, and there is nothing else in it.
unsafe impl<T> Sync for TaskLocal<T> {}

impl<T: 'static> TaskLocal<T> {
    #[doc(hidden)]
    pub const fn new() -> Self {
        Self { _place: UnsafeCell::new(0), value: PhantomData }
    }

    fn key(&'static self) -> *const () {
        ptr::from_ref(self).cast()
    }

    /// Runs `future` with a value under this key: in its polls, over preemption and
    /// [`block_on`](crate::block_on), and in its drop. A scope inside hides the one around it.
    ///
    /// Tasks that `future` spawns don't inherit it, and neither does the task that a
    /// [`stackful`](crate::stackful()) future in it becomes: the parent goes on beside it, and `T` need not be
    /// `Sync`. So write `stackful(KEY.scope(…))`.
    ///
    /// Cancel-safe if `future` is.
    pub fn scope<F: Future>(&'static self, value: T, future: F) -> Scoped<T, F> {
        fn made<T, F>(
            future: ManuallyDrop<F>,
            (key, value): (&'static TaskLocal<T>, T),
        ) -> Scoped<T, F> {
            Scoped { key, value, future }
        }
        undropped(made)(future, (self, value))
    }

    /// Calls `f` with the value of the innermost scope that the caller is in.
    ///
    /// # Panics
    ///
    /// Where [`try_with`](Self::try_with) would return an error.
    #[track_caller]
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Ok(result) => result,
            Err(error) => panic!("{error}"),
        }
    }

    /// Calls `f` with the value of the innermost scope that the caller is in.
    ///
    /// Not in interrupts, which would find the interrupted task's: an error there, if the platform is
    /// certain that it is one.
    ///
    /// # Errors
    ///
    /// The caller is in no scope of this key, or outside of a runtime.
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, NoValue> {
        let value = contexted::value(self.key()).ok_or(NoValue)?;
        // SAFETY: a scope with this key has this type, since a key's address is its own. The value is in a
        // pinned future that is in the middle of a poll, or of its drop, of which this is part; `Scoped`
        // has shared it for so long. That code is one thread in the sense of `Send`: it is interrupted only by
        // other tasks, which have scopes of their own, and by interrupts, which the platform promises don't
        // come here or sees; so `T` need not be `Sync`. `f` cannot keep the reference.
        Ok(f(unsafe { &*value.cast::<T>() }))
    }
}

impl<T> fmt::Debug for TaskLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskLocal").finish_non_exhaustive()
    }
}

/// The caller is in no scope of the [`TaskLocal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoValue;

impl fmt::Display for NoValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task-local value was looked for outside of its scope")
    }
}

impl core::error::Error for NoValue {}

/// A future with a value under a key. Made by [`TaskLocal::scope`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Scoped<T: 'static, F> {
    key: &'static TaskLocal<T>,
    /// Shared while the future is polled or dropped, otherwise nobody's.
    value: T,
    /// Pinned with `self`, and dropped inside of the scope.
    future: ManuallyDrop<F>,
}

/// The parts of a `Scoped` that its future's polls and its drop want.
macro_rules! parts {
    ($scoped:expr) => {{
        let Scoped { key, value, future } = $scoped;
        (ScopeEntry::Value { key: key.key(), value: ptr::from_ref(value).cast() }, future)
    }};
}

impl<T: 'static, F: Future> Future for Scoped<T, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is pinned with `self` and never moved; the others aren't pinned.
        let (value, future) = parts!(unsafe { self.get_unchecked_mut() });
        // SAFETY: as above.
        contexted::within(value, || unsafe { Pin::new_unchecked(&mut **future) }.poll(context))
    }
}

impl<T: 'static, F> Drop for Scoped<T, F> {
    fn drop(&mut self) {
        let (value, future) = parts!(self);
        // SAFETY: dropped once, here, in its place.
        contexted::within(value, || unsafe { ManuallyDrop::drop(future) });
    }
}

impl<T, F: fmt::Debug> fmt::Debug for Scoped<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped").field("future", &*self.future).finish_non_exhaustive()
    }
}

/// Makes keys of task-local values: `task_local! { static KEY: Type; }`
///
/// See [`TaskLocal`].
#[macro_export]
macro_rules! task_local {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $type:ty);+ $(;)?) => {
        $(
            $(#[$attribute])*
            $visibility static $name: $crate::TaskLocal<$type> = $crate::TaskLocal::new();
        )+
    };
}
