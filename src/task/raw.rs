//! A task as it lies in memory, with its future, and the functions of its vtable. The numbered
//! rules are in [`task`](super).

use alloc::alloc::Layout;
use core::any::TypeId;
use core::future::Future;
use core::mem::ManuallyDrop;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use crate::freelist::FreeList;
use crate::sync::UnsafeCell;
use crate::task::by_place::in_place;
use crate::task::contain;
use crate::task::error::JoinError;
use crate::task::header::{Header, Vtable};
use crate::task::output::Outcome;
use crate::task::storage::Storage;

/// A task as it is laid out in memory.
#[repr(C)]
pub(super) struct Task<F: Future, K> {
    pub(super) body: Body<F>,
    pub(super) kind: K,
}

/// The part of a task that does not depend on its [`Storage`].
#[repr(C)]
pub(super) struct Body<F: Future> {
    pub(super) header: Header,
    pub(super) stage: UnsafeCell<Stage<F>>,
}

/// The future, and later in the same place its output. The state word says which of them is there.
pub(super) union Stage<F: Future> {
    pub(super) future: ManuallyDrop<F>,
    pub(super) output: ManuallyDrop<Outcome<F::Output>>,
}

impl<F, K> Task<F, K>
where
    F: Future + 'static,
    F::Output: 'static,
    K: Storage,
{
    pub(super) const VTABLE: Vtable = Self::vtable(false);
    pub(super) const LOCAL_VTABLE: Vtable = Self::vtable(true);

    const fn vtable(local: bool) -> Vtable {
        Vtable {
            poll: Body::<F>::poll,
            fail: Body::<F>::fail,
            output: Body::<F>::output,
            drop_output: Body::<F>::drop_output,
            value_needs_drop: core::mem::needs_drop::<F::Output>(),
            free: Self::free,
            freed_anywhere: K::FREED_ANYWHERE,
            layout: Layout::new::<Self>(),
            future: Body::<F>::future,
            future_type: TypeId::of::<F>(),
            local,
            name: Self::name,
        }
    }

    unsafe fn free(task: NonNull<Header>, free_list: Option<&FreeList>) {
        let memory = task.cast::<u8>();
        let task = task.cast::<Self>().as_ptr();
        // SAFETY: by the contract of `Vtable::free` no code can reach the task, and its storage
        // knows where the memory came from. The future and the output have been dropped already, so
        // the drop of the body runs no destructor but those that loom's cells have.
        unsafe {
            let kind = core::ptr::read(&raw const (*task).kind);
            core::ptr::drop_in_place(&raw mut (*task).body);
            kind.free(memory, Layout::new::<Self>(), free_list);
        }
    }

    unsafe fn name(task: NonNull<Header>) -> Option<&'static str> {
        // SAFETY: `task` is of this type and alive, and its storage never changes (rule 2).
        unsafe { (*task.cast::<Self>().as_ptr()).kind.name() }
    }
}

impl<F> Body<F>
where
    F: Future + 'static,
    F::Output: 'static,
{
    /// Returns the cell of the future and the output.
    ///
    /// # Safety
    ///
    /// `task` is of this type and allocated.
    unsafe fn stage<'a>(task: NonNull<Header>) -> &'a UnsafeCell<Stage<F>> {
        // SAFETY: the caller promises the type, and uses the borrow only within its own call.
        unsafe { &(*task.cast::<Self>().as_ptr()).stage }
    }

    unsafe fn poll(task: NonNull<Header>, context: &mut Context<'_>) -> Poll<()> {
        in_place()(
            // SAFETY: by the contract of `Vtable::poll` the future is there and this code's (rule
            // 5). It is never moved, so the pin holds.
            unsafe {
                Self::stage(task)
                    .with_mut(|stage| Pin::new_unchecked(&mut *(*stage).future).poll(context))
            },
            |poll: *mut Poll<F::Output>| {
                // SAFETY: the poll has just returned this value, which is this function's.
                let Poll::Ready(output) = (unsafe { &*poll }) else { return Poll::Pending };
                // The future is dropped before the output takes its place. If that drop panics,
                // `Store` stores the output all the same.
                let store = Store {
                    task,
                    // SAFETY: the future has been dropped, and `Store` moves the output once.
                    put: || unsafe { Outcome::put(Self::outcome(task), output) },
                };
                // SAFETY: the future is there and this code's, as for the poll above. It is dropped
                // once, since the task is not polled after `Ready`.
                unsafe { Self::drop_future(task) };
                store.store();
                Poll::Ready(())
            },
        )
    }

    unsafe fn fail(task: NonNull<Header>, error: JoinError) {
        let mut error = Some(error);
        let store = Store {
            task,
            put: || {
                if let Some(error) = error.take() {
                    // SAFETY: the future has been dropped, so its place is free for the output.
                    unsafe { Outcome::put_error(Self::outcome(task), error) }
                }
            },
        };
        // SAFETY: by `Vtable::fail` the future is there and this code's. It is dropped once.
        unsafe { Self::drop_future(task) };
        store.store();
    }

    /// Drops the future.
    ///
    /// # Safety
    ///
    /// As for [`stage`](Self::stage). The future is there, is the caller's (rule 5), and is not
    /// used again.
    unsafe fn drop_future(task: NonNull<Header>) {
        // SAFETY: the caller's promise.
        unsafe { Self::stage(task).with_mut(|stage| ManuallyDrop::drop(&mut (*stage).future)) }
    }

    /// Returns the address of the output.
    ///
    /// # Safety
    ///
    /// As for [`stage`](Self::stage), and the caller may touch that memory (rules 5 and 6).
    unsafe fn outcome(task: NonNull<Header>) -> *mut Outcome<F::Output> {
        // SAFETY: the caller promises the type, and that it may touch the memory.
        unsafe { Self::stage(task).with_mut(|stage| (&raw mut (*stage).output).cast()) }
    }

    unsafe fn output(task: NonNull<Header>) -> *mut () {
        // SAFETY: the contract of `Vtable::output`.
        unsafe { Self::outcome(task).cast() }
    }

    unsafe fn drop_output(task: NonNull<Header>) {
        // SAFETY: the contract of `Vtable::drop_output`: the output is there and this code's. The
        // task is alive, and the value is dropped once.
        unsafe {
            match Outcome::take(Self::outcome(task)) {
                Ok(value) => core::ptr::drop_in_place(value.cast_mut()),
                // The drop of the payload may panic too.
                Err(JoinError::Panicked(payload)) => contain::discard(task, payload),
                Err(JoinError::Aborted | JoinError::Abandoned) => {}
            }
        }
    }

    unsafe fn future(task: NonNull<Header>) -> *const () {
        // SAFETY: `task` is of this type and allocated, and only an address is computed.
        unsafe { (&raw const (*Self::stage(task).address()).future).cast() }
    }
}

/// An output that is to be stored in the place of a future. It is stored even if the drop of that
/// future panics: then by the drop of the `Store`.
struct Store<P: FnMut()> {
    task: NonNull<Header>,
    /// Stores the output. Called once, when the future has been dropped or its drop unwinds. After
    /// that call, `put` is not used again.
    put: P,
}

impl<P: FnMut()> Store<P> {
    /// Stores the output after the future's drop has returned.
    fn store(self) {
        (ManuallyDrop::new(self).put)();
    }
}

impl<P: FnMut()> Drop for Store<P> {
    /// Stores the output while the future's drop unwinds.
    fn drop(&mut self) {
        (self.put)();
        // SAFETY: the task is RUNNING, which keeps it allocated.
        unsafe { self.task.as_ref() }.state.set_stored();
    }
}
