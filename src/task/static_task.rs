//! Tasks in static cells: they need no allocator. A cell can be used for a new task when the
//! previous task in it is gone.
//!
//! ```text
//!           ControlBlock::take                the last reference goes: Static::free
//!   FREE ──────────────────► IN USE ───────────────────────────────────────────► FREE
//!           by the spawning code │       in any context, on any core
//!                                │
//!                                └─ refused by its runtime: publish, which frees ► FREE
//! ```
//!
//! Between these steps a task in a cell has [the life of a task](super) like any other.

use core::alloc::Layout;
use core::cell;
use core::convert::Infallible;
use core::fmt;
use core::future::Future;
use core::mem::MaybeUninit;
use core::pin::Pin;
use core::ptr::NonNull;
use core::task::{Context, Poll};

use crate::freelist::FreeList;
use crate::preempt::guard::PreemptGuard;
use crate::ready;
use crate::runtime::core::Runtime;
use crate::runtime::spawn::{LocalSpawner, SpawnError, SpawnErrorReason, Spawned, here, or_error};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{UnsafeCell, const_fn};
use crate::task::by_place::in_place;
use crate::task::join::JoinHandle;
use crate::task::new::Unspawned;
use crate::task::raw::{Stage, Task};
use crate::task::storage::Storage;

/// Memory for one task at a time, in a `static`: spawning in it calls no allocator.
///
/// The cell is free again when its task has finished and the last reference to the task is gone.
/// The references are those of the join handle, of the runtime, and of every waker.
///
/// **An old waker keeps the cell in use.** Some types keep a waker after they have woken it, until
/// they are given another: the `AtomicWaker` of embassy-sync does, that of the crate atomic-waker
/// does not. To free the cell, register another task's waker in such a type, or
/// [`Waker::noop`](core::task::Waker::noop).
///
/// A task that was abandoned (by a fault, or by a shutdown that found frames of it on a stack)
/// keeps its cell for ever, since those frames may point into the cell.
///
/// `F` is the future's type. The type of an async function's future has no name, so
/// [`static_task!`](crate::static_task) makes the cell for such futures.
///
/// ```
/// # use trapline::{Runtime, SpawnErrorReason, StaticTask, time::Sleep};
/// static ALARM: StaticTask<Sleep> = StaticTask::named("alarm");
///
/// # fn on(runtime: &'static Runtime) {
/// # use core::time::Duration;
/// # use trapline::time::sleep;
/// let first = ALARM.spawn_on(runtime, sleep(Duration::from_secs(60)));
/// let second = ALARM.spawn_on(runtime, sleep(Duration::from_secs(60)));
/// assert_eq!(second.unwrap_err().reason, SpawnErrorReason::InUse);
/// # }
/// ```
pub struct StaticTask<F: Future> {
    account: ControlBlock,
    /// The memory of the task. Rule 8 in [`task`](super) says which code may touch it.
    memory: cell::UnsafeCell<MaybeUninit<Task<F, Static>>>,
}

// SAFETY: through a shared reference, a cell only gives its memory to one task after the other,
// which its control block ensures. The future that is put in is `Send`; or a `LocalSpawner` spawns
// it, and it stays on its core.
unsafe impl<F: Future> Sync for StaticTask<F> {}

/// The part of a cell that does not depend on the future's type. The task in the cell points at it.
struct ControlBlock {
    /// Whether the memory belongs to a task, or is about to.
    in_use: AtomicBool,
    name: Option<&'static str>,
    /// Stands for `memory` in the loom models. Loom does not track `memory` itself, but checks that
    /// the last access to this cell for one task happens before the first one for the next task.
    turn: UnsafeCell<()>,
}

/// The storage of a task in a static cell.
struct Static(&'static ControlBlock);

impl Storage for Static {
    /// `free` calls no allocator, so any code that drops the last reference frees the cell at once.
    /// The cell does not wait until its runtime takes the task from the inbox.
    const FREED_ANYWHERE: bool = true;

    fn name(&self) -> Option<&'static str> {
        self.0.name
    }

    unsafe fn free(self, _memory: NonNull<u8>, _layout: Layout, _free_list: Option<&FreeList>) {
        self.0.turn.with_mut(|_| ());
        // Release pairs with the acquire in `take`: all that was done to this task happens before
        // the next task is written in its place.
        self.0.in_use.store(false, Ordering::Release);
    }
}

impl ControlBlock {
    /// Takes the memory for a new task. Returns `None` if it belongs to another task.
    fn take(&'static self) -> Option<Static> {
        // Acquire pairs with the release in `free`.
        self.in_use.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).ok()?;
        self.turn.with_mut(|_| ());
        Some(Static(self))
    }
}

impl<F: Future + 'static> StaticTask<F> {
    const_fn! {
        /// Makes an empty cell, whose tasks have no name.
        pub fn new() -> Self {
            Self::with_name(None)
        }
    }

    const_fn! {
        /// Makes an empty cell, whose tasks have this name.
        pub fn named(name: &'static str) -> Self {
            Self::with_name(Some(name))
        }
    }

    const_fn! {
        fn with_name(name: Option<&'static str>) -> Self {
            Self {
                account: ControlBlock {
                    in_use: AtomicBool::new(false),
                    name,
                    turn: UnsafeCell::new(()),
                },
                memory: cell::UnsafeCell::new(MaybeUninit::uninit()),
            }
        }
    }

    /// Spawns a task in this cell, on this core's runtime. Any context. In an interrupt, spawn only
    /// if the output may be dropped there, since the join handle is probably dropped there.
    ///
    /// The future may be of any type that fits; one that does not fit is an error at compile time.
    ///
    /// # Errors
    ///
    /// The cell is in use, the runtime has been shut down, or the calling core is not inside of a
    /// runtime. The error contains the future.
    pub fn spawn<G>(&'static self, future: G) -> Result<JoinHandle<G::Output>, SpawnError<G>>
    where
        G: Future + Send + 'static,
        G::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds say that the future and its output are `Send`.
            or_error(|future| unsafe { self.spawn_in(here()?, future, false) }),
        )
    }

    /// Spawns a task in this cell, on any runtime. Any core, any context. Otherwise like
    /// [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// The cell is in use, or the runtime has been shut down. The error contains the future.
    pub fn spawn_on<G>(
        &'static self,
        runtime: &'static Runtime,
        future: G,
    ) -> Result<JoinHandle<G::Output>, SpawnError<G>>
    where
        G: Future + Send + 'static,
        G::Output: Send + 'static,
    {
        in_place()(
            future,
            // SAFETY: the bounds say that the future and its output are `Send`.
            or_error(|future| unsafe { self.spawn_in(runtime, future, false) }),
        )
    }

    /// Spawns a task in this cell whose future need not be `Send`. Otherwise like
    /// [`spawn`](Self::spawn).
    ///
    /// # Errors
    ///
    /// The cell is in use, the runtime has been shut down, or the caller is not [where local tasks
    /// are spawned](LocalSpawner::current). The error contains the future.
    pub fn spawn_local<G>(
        &'static self,
        spawner: LocalSpawner,
        future: G,
    ) -> Result<JoinHandle<G::Output>, SpawnError<G>>
    where
        G: Future + 'static,
        G::Output: 'static,
    {
        in_place()(
            future,
            or_error(|future| {
                let runtime = spawner.runtime().ok_or(SpawnErrorReason::NotLocal)?;
                // SAFETY: `LocalSpawner::runtime` has given this code the runtime, so it may spawn
                // local tasks.
                unsafe { self.spawn_in(runtime, future, true) }
            }),
        )
    }

    /// Spawns a task in this cell.
    ///
    /// # Safety
    ///
    /// The future and its output are `Send`; or the task is `local`, and the caller is in a plain
    /// task on the core of `runtime`. `future` points at a future that may be read. It belongs to
    /// the task if this returns `Ok`, and to the caller if not.
    unsafe fn spawn_in<G>(
        &'static self,
        runtime: &'static Runtime,
        future: *const G,
        local: bool,
    ) -> Spawned<G>
    where
        G: Future + 'static,
        G::Output: 'static,
    {
        const {
            assert!(
                size_of::<Task<G, Static>>() <= size_of::<Task<F, Static>>()
                    && align_of::<Task<G, Static>>() <= align_of::<Task<F, Static>>(),
                "this future does not fit into this StaticTask"
            );
        }
        let Some(kind) = self.account.take() else {
            return Err(SpawnErrorReason::InUse);
        };
        let new = Unspawned { runtime, future, kind, local, stackful: false };
        // The caller may be a stackful task, which could be preempted before the task is published.
        let _guard = PreemptGuard::new();
        let origin = ready::origin(runtime);
        // SAFETY: by the assertion above, the memory is large and aligned enough. It is this code's
        // (rule 8) until the storage frees it. The caller promises the future.
        let task = unsafe { new.write(NonNull::from(&self.memory).cast(), origin) };
        // SAFETY: the task is a new one of this runtime, with a future of this type, and `origin`
        // is the caller's context. The caller promises the rest.
        unsafe { runtime.publish::<G>(task, origin) }
    }
}

impl<F: Future + 'static> Default for StaticTask<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Future> fmt::Debug for StaticTask<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticTask")
            .field("name", &self.account.name)
            .field("in_use", &self.account.in_use)
            .finish_non_exhaustive()
    }
}

/// Makes a [`StaticTask`] for the future of a function, whose type has no name:
/// `static_task!(static CELL: function);`
///
/// The compiler computes size and alignment. The tasks are named after the function. The function
/// may have up to eight arguments, and no generic ones.
///
/// ```
/// # struct Led;
/// async fn blink(led: Led, times: u32) {
///     // …
/// }
///
/// trapline::static_task!(static BLINK: blink);
///
/// # fn on(runtime: &'static trapline::Runtime, led: Led) {
/// let spawned = BLINK.spawn_on(runtime, blink(led, 3));
/// # drop(spawned);
/// # }
/// ```
///
/// A future that does not fit does not compile:
///
/// ```compile_fail,E0080
/// async fn small() {}
/// trapline::static_task!(static SMALL: small);
///
/// let large = [0; 100];
/// let _ = SMALL.spawn(async move {
///     trapline::yield_now().await;
///     core::hint::black_box(large);
/// });
/// ```
///
/// Nor does a future that needs a larger alignment:
///
/// ```compile_fail,E0080
/// async fn large() {
///     let large = [0_u8; 1000];
///     trapline::yield_now().await;
///     core::hint::black_box(large);
/// }
/// trapline::static_task!(static LARGE: large);
///
/// #[repr(align(64))]
/// struct Line(u8);
///
/// let line = Line(0);
/// let _ = LARGE.spawn(async move {
///     trapline::yield_now().await;
///     core::hint::black_box(&line);
/// });
/// ```
#[macro_export]
macro_rules! static_task {
    ($(#[$attribute:meta])* $visibility:vis static $name:ident: $function:path $(;)?) => {
        $(#[$attribute])*
        $visibility static $name: $crate::StaticTask<$crate::TaskSpace<
            { $crate::TaskSpace::<0, 1>::size_for(&$function) },
            { $crate::TaskSpace::<0, 1>::align_for(&$function) },
        >> = $crate::StaticTask::named(::core::stringify!($function));
    };
}

/// A type with the size and the alignment of a future whose own type has no name. It stands for
/// that future in a [`StaticTask`]. There are no values of this type.
///
/// [`static_task!`](crate::static_task) names this type.
#[repr(C)]
pub struct TaskSpace<const SIZE: usize, const ALIGN: usize>
where
    Self: Aligned,
{
    aligned: [<Self as Aligned>::To; 0],
    bytes: [u8; SIZE],
}

impl<const SIZE: usize, const ALIGN: usize> TaskSpace<SIZE, ALIGN>
where
    Self: Aligned,
{
    /// Returns the size of the place that a task has for the future that `function` returns, and
    /// for that future's output.
    #[doc(hidden)]
    pub const fn size_for<F: Returns<A>, A>(_function: &F) -> usize {
        size_of::<Stage<F::Future>>()
    }

    /// Returns the alignment of that place.
    #[doc(hidden)]
    pub const fn align_for<F: Returns<A>, A>(_function: &F) -> usize {
        align_of::<Stage<F::Future>>()
    }
}

impl<const SIZE: usize, const ALIGN: usize> Future for TaskSpace<SIZE, ALIGN>
where
    Self: Aligned,
{
    type Output = Infallible;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Infallible> {
        Poll::Pending
    }
}

impl<const SIZE: usize, const ALIGN: usize> fmt::Debug for TaskSpace<SIZE, ALIGN>
where
    Self: Aligned,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSpace").finish_non_exhaustive()
    }
}

/// A function with the arguments `A` that returns a future.
#[doc(hidden)]
pub trait Returns<A> {
    type Future: Future;
}

macro_rules! returns {
    ($($argument:ident)*) => {
        impl<F, R, $($argument),*> Returns<($($argument,)*)> for F
        where
            F: Fn($($argument),*) -> R,
            R: Future,
        {
            type Future = R;
        }
    };
}

returns!();
returns!(A1);
returns!(A1 A2);
returns!(A1 A2 A3);
returns!(A1 A2 A3 A4);
returns!(A1 A2 A3 A4 A5);
returns!(A1 A2 A3 A4 A5 A6);
returns!(A1 A2 A3 A4 A5 A6 A7);
returns!(A1 A2 A3 A4 A5 A6 A7 A8);

/// Maps an alignment to a type `To` that has this alignment. This is needed since `repr(align)`
/// takes no const parameter.
#[doc(hidden)]
pub trait Aligned {
    type To;
}

macro_rules! aligned {
    ($($align:literal)*) => {
        $(const _: () = {
            #[derive(Debug)]
            #[repr(align($align))]
            pub struct To;
            impl<const SIZE: usize> Aligned for TaskSpace<SIZE, $align> {
                type To = To;
            }
        };)*
    };
}

aligned!(1 2 4 8 16 32 64 128 256 512 1024 2048 4096);
