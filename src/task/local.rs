//! Task-local values: values that belong to a future, and that the code in its polls finds by a
//! key.

use core::cell::UnsafeCell;
use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::ptr;
use core::task::{Context, Poll};

use crate::contexted;
use crate::scope::ScopeEntry;
use crate::task::by_place::undropped;

/// The key of a task-local value. The value that code finds under a key depends on the future in
/// whose poll that code runs.
///
/// Made by [`task_local!`](crate::task_local). The value lies in the future that
/// [`scope`](Self::scope) makes, so a task-local allocates nothing, and tasks without one do not
/// pay for it. Finding a value takes time in proportion to the number of scopes around the caller,
/// those of task-locals and those of [`contexted`](crate::contexted()).
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
/// Keys of different types are different types, even if one value could be of both:
///
/// ```compile_fail,E0308
/// trapline::task_local! {
///     static SHORT: for<'a> fn(&'a str);
/// }
/// let long: &'static trapline::TaskLocal<fn(&'static str)> = &SHORT;
/// ```
pub struct TaskLocal<T: 'static> {
    /// Gives the key an address of its own: no two places that may change share an address.
    _place: UnsafeCell<u8>,
    /// Makes the key invariant in `T`: a value comes out as the very type as which it was put in.
    value: PhantomData<fn(T) -> T>,
}

// SAFETY: no code accesses the byte, and the key has no other data.
unsafe impl<T> Sync for TaskLocal<T> {}

impl<T: 'static> TaskLocal<T> {
    #[doc(hidden)]
    pub const fn new() -> Self {
        Self { _place: UnsafeCell::new(0), value: PhantomData }
    }

    /// Returns the address that identifies this key.
    fn key(&'static self) -> *const () {
        ptr::from_ref(self).cast()
    }

    /// Runs `future` with `value` under this key: in the polls of `future`, over preemption and
    /// [`block_on`](crate::block_on), and in its drop. A scope inside of another scope of the same
    /// key hides the outer value.
    ///
    /// Tasks that `future` spawns do not inherit the value. Neither does the task that a
    /// [`stackful`](crate::stackful()) future inside of `future` becomes: the parent goes on beside
    /// that task, and `T` need not be `Sync`. So write `stackful(KEY.scope(…))`.
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
    /// If [`try_with`](Self::try_with) would return an error.
    #[track_caller]
    pub fn with<R>(&'static self, f: impl FnOnce(&T) -> R) -> R {
        match self.try_with(f) {
            Ok(result) => result,
            Err(error) => panic!("{error}"),
        }
    }

    /// Calls `f` with the value of the innermost scope that the caller is in.
    ///
    /// Not for interrupts, which would find the interrupted task's value: if the platform is
    /// certain that the caller is an interrupt, the function returns an error.
    ///
    /// # Errors
    ///
    /// The caller is in no scope of this key, or outside of a runtime.
    pub fn try_with<R>(&'static self, f: impl FnOnce(&T) -> R) -> Result<R, NoValue> {
        let value = contexted::value(self.key()).ok_or(NoValue)?;
        // SAFETY: the type is right: a scope of this key has a value of this key's type, since no
        // other key has this address. The value is alive: it lies in a pinned future that is in the
        // middle of a poll or of its drop, of which this call is a part, and `f` cannot keep the
        // reference. The value is shared: `Scoped` borrows it for that poll or drop. `T` need not
        // be `Sync`, since the code of that poll is one thread in the sense of `Send`: it is
        // interrupted only by other tasks, which have scopes of their own, and by interrupts. The
        // platform promises that an interrupt either does not call this or is seen by
        // `contexted::value`.
        Ok(f(unsafe { &*value.cast::<T>() }))
    }
}

impl<T> fmt::Debug for TaskLocal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskLocal").finish_non_exhaustive()
    }
}

/// The error of code that is in no scope of the [`TaskLocal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoValue;

impl fmt::Display for NoValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a task-local value was asked for outside of its scope")
    }
}

impl core::error::Error for NoValue {}

/// A future with a value under a key. Made by [`TaskLocal::scope`].
#[must_use = "futures do nothing unless awaited or spawned"]
pub struct Scoped<T: 'static, F> {
    key: &'static TaskLocal<T>,
    /// Borrowed shared while the future is polled or dropped, and not accessed otherwise.
    value: T,
    /// Pinned with `self`, and dropped inside of the scope.
    future: ManuallyDrop<F>,
}

/// Borrows the parts of a `Scoped` that a poll or the drop of its future needs: the scope entry and
/// the future.
macro_rules! parts {
    ($scoped:expr) => {{
        let Scoped { key, value, future } = $scoped;
        (ScopeEntry::Value { key: key.key(), value: ptr::from_ref(value).cast() }, future)
    }};
}

impl<T: 'static, F: Future> Future for Scoped<T, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        // SAFETY: `future` is pinned with `self` and never moved. The other fields are not pinned.
        let (value, future) = parts!(unsafe { self.get_unchecked_mut() });
        // SAFETY: as above.
        contexted::within(value, || unsafe { Pin::new_unchecked(&mut **future) }.poll(context))
    }
}

impl<T: 'static, F> Drop for Scoped<T, F> {
    fn drop(&mut self) {
        let (value, future) = parts!(self);
        // SAFETY: the future is dropped once, here, in its place.
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
