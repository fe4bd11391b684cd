//! The stacks of a core, and the pool of those that are idle.

use core::cell::Cell;
use core::mem::size_of;
use core::ptr::NonNull;

use crate::platform::backend::{Context, StackMain};
use crate::platform::bound;
use crate::queue::Link;
use crate::scope::ScopeLink;
use crate::sync::local::{AtomicUsize, Ordering};
use crate::time::alarm::protection;

/// The control block of a stack. It lies at the upper end of the stack's memory, and the frames of
/// the stack's code grow down below it.
#[repr(C, align(16))]
pub(crate) struct Stack<T> {
    /// Where the stack's code continues, while it is off the core.
    pub(crate) context: Cell<Context>,
    /// The task of which the stack holds frames, while the task is off the core.
    pub(crate) task: Cell<Link<T>>,
    /// How many nanoseconds a preempted task gets when it is resumed. 0: it began with a whole
    /// slice.
    pub(super) left: Cell<u64>,
    /// Whether the task was preempted and has not been resumed since. Only the loop sets it: if the
    /// code that leaves the stack set it, an interrupt could come before the switch, and leave the
    /// stack first.
    preempted: Cell<bool>,
    /// Whether a preempted task has time left of its slice. If so, it is resumed before the other
    /// tasks of its queue.
    has_left: Cell<bool>,
    /// For how many nanoseconds the task is not preempted when it is resumed, because its last
    /// stretch was too short, or because it was granted this time. 0: it may be preempted at once.
    pub(crate) protected: Cell<u64>,
    /// Whether a preempted poll had asked to be polled again, or to be resumed, after the other
    /// tasks.
    pub(crate) yielded: Cell<bool>,
    /// Whether the poll that runs on the stack was told that one of its children was ended by a
    /// fault.
    pub(crate) lost_child: Cell<bool>,
    /// The innermost scope that the stack's code is inside of, while the code is off the core.
    pub(super) scopes: Cell<ScopeLink>,
    /// The lowest address of the stack's memory, where the [canary](Stack::lost_canary) lies.
    base: NonNull<u8>,
    size: usize,
    /// The next stack in the pool's list of idle stacks.
    next_idle: Cell<StackLink<T>>,
    /// How many stacks the list of idle stacks has from this one on, including this one. Valid
    /// while the stack is idle.
    idle_from_here: Cell<usize>,
    /// The neighbours in the pool's list of all stacks.
    previous: Cell<StackLink<T>>,
    next: Cell<StackLink<T>>,
}

type StackLink<T> = Option<NonNull<Stack<T>>>;

impl<T> Stack<T> {
    /// Returns the addresses of the memory that the platform gave for the stack.
    pub(super) fn memory(&self) -> core::ops::Range<usize> {
        let base = self.base.addr().get();
        base..base + self.size
    }

    /// Notes that the task was preempted. Loop only.
    #[inline]
    pub(crate) fn set_preempted(&self) {
        self.preempted.set(true);
    }

    /// Returns whether the task was preempted and has not been resumed since. Notes that it is
    /// resumed now. Loop only.
    #[inline]
    pub(crate) fn take_preempted(&self) -> bool {
        self.preempted.replace(false)
    }

    /// Returns whether the task was preempted and has not been resumed since.
    pub(crate) fn is_preempted(&self) -> bool {
        self.preempted.get()
    }

    /// Returns whether a preempted task has time left of its slice.
    #[inline]
    pub(crate) fn has_left(&self) -> bool {
        self.has_left.get()
    }

    /// Limits what the task gets when it is resumed to `max` nanoseconds, and protects it from
    /// preemption for that time (within the limits of `protection`).
    pub(crate) fn grant(&self, max: u64) {
        self.left.set(self.left.get().min(max));
        self.protected.set(protection(max));
    }

    /// Notes whether the task has time left of its slice, and how many nanoseconds it gets when it
    /// is resumed.
    #[inline]
    pub(super) fn set_left(&self, (has_left, left): (bool, u64)) {
        self.has_left.set(has_left);
        self.left.set(left);
    }

    /// Returns whether code on this stack has overflowed it and no guard caught that. Something
    /// else may have been overwritten by then. Must be called whenever the stack is left. It also
    /// detects an overflow by code that has returned since.
    #[inline(always)]
    pub(super) fn lost_canary(&self) -> bool {
        // SAFETY: `Pool::grow` wrote the canary at the base of the stack's memory, which is aligned
        // to 16. The read is volatile, since the compiler knows of no write of the program that
        // would change the canary.
        let canary = unsafe { self.base.cast::<usize>().read_volatile() };
        canary != canary_at(self.base)
    }

    /// As [`lost_canary`](Self::lost_canary). It also detects that the running code is below the
    /// stack now, with a large frame that has skipped the canary.
    #[inline(always)]
    pub(super) fn has_overflowed(&self) -> bool {
        let here = 0u8;
        self.lost_canary() || (&raw const here).addr() <= self.base.as_ptr().addr()
    }
}

/// Returns the canary of a stack that begins at `base`: that address itself. It takes no
/// instruction to compute, is not zero, and differs from the canaries of all other stacks.
#[inline(always)]
fn canary_at(base: NonNull<u8>) -> usize {
    base.addr().get()
}

/// How many bytes of a stack the canary takes. This is a multiple of the stack's alignment.
const CANARY: usize = 16;

/// Returns the minimum size of a stack in bytes, including its control block and its canary.
pub(crate) fn min_size() -> usize {
    bound::min_stack() + size_of::<Stack<()>>() + CANARY
}

/// Returns how many bytes are left out at the upper end of the stack with this number. If all
/// stacks ended at the same offset within their pages, they would share a few sets of the cache.
///
/// (Jeff Bonwick, "The Slab Allocator", USENIX Summer 1994: colouring.)
fn colour(number: usize, size: usize) -> usize {
    /// The size of a cache line.
    const LINE: usize = 64;
    /// At most one `PART`th of a stack is left out.
    const PART: usize = 16;
    let colours = (size / PART).min(size - min_size()) / LINE;
    number % (colours + 1) * LINE
}

/// The stacks that exist, and the list of the idle ones, with the most recently used first.
pub(crate) struct Pool<T> {
    all: Cell<StackLink<T>>,
    idle: Cell<StackLink<T>>,
    /// How many stacks there are. Any core may read it.
    total: AtomicUsize,
}

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self { all: Cell::new(None), idle: Cell::new(None), total: AtomicUsize::new(0) }
    }

    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes an idle stack out of the list.
    #[inline]
    pub(crate) fn take(&self) -> Option<NonNull<Stack<T>>> {
        let stack = self.idle.get()?;
        // SAFETY: idle stacks are alive.
        self.idle.set(unsafe { stack.as_ref() }.next_idle.get());
        Some(stack)
    }

    /// Makes a new stack of `size` bytes, if there are fewer than `max` stacks.
    pub(crate) fn grow(
        &self,
        size: usize,
        max: usize,
        main: StackMain,
    ) -> Option<NonNull<Stack<T>>> {
        if self.total() >= max {
            return None;
        }
        let base = bound::allocate_stack(size)?;
        // SAFETY: the platform gave `size` bytes, aligned to 16. `Config::check` demanded that
        // `Stack`, the canary and the backend's minimum fit into them, and `colour` leaves that
        // much. So these and a prepared context have room. No other code uses the memory.
        let stack = unsafe {
            base.cast::<usize>().write(canary_at(base));
            let top = base.add(size - colour(self.total(), size) - size_of::<Stack<T>>());
            let stack = top.cast::<Stack<T>>();
            let context = Context::prepare(top, main, stack.as_ptr().cast());
            stack.write(Stack {
                context: Cell::new(context),
                task: Cell::new(None),
                left: Cell::new(0),
                preempted: Cell::new(false),
                has_left: Cell::new(false),
                protected: Cell::new(0),
                yielded: Cell::new(false),
                lost_child: Cell::new(false),
                scopes: Cell::new(None),
                base,
                size,
                next_idle: Cell::new(None),
                idle_from_here: Cell::new(0),
                previous: Cell::new(None),
                next: Cell::new(self.all.get()),
            });
            stack
        };
        if let Some(second) = self.all.replace(Some(stack)) {
            // SAFETY: stacks in the list are alive.
            unsafe { second.as_ref() }.previous.set(Some(stack));
        }
        self.total.store(self.total() + 1, Ordering::Relaxed);
        Some(stack)
    }

    /// Puts an idle stack into the list, or frees it if `max` other stacks are idle (one, if `max`
    /// is zero).
    ///
    /// # Safety
    ///
    /// `stack` was taken from this pool, holds no frames of a task, and is not the stack that the
    /// caller is on.
    #[inline]
    pub(crate) unsafe fn give(&self, stack: NonNull<Stack<T>>, max: usize) {
        let first = self.idle.get();
        // SAFETY: idle stacks are alive, and `stack` is the caller's.
        unsafe {
            let others = first.map_or(0, |first| first.as_ref().idle_from_here.get());
            if others >= max.max(1) {
                self.free(stack);
                return;
            }
            stack.as_ref().idle_from_here.set(others + 1);
            stack.as_ref().next_idle.set(first);
        }
        self.idle.set(Some(stack));
    }

    /// Frees the idle stacks, and returns how many there were.
    pub(crate) fn trim(&self) -> usize {
        core::iter::from_fn(|| self.take())
            // SAFETY: the stack was idle, and is no longer in the list of idle stacks.
            .map(|stack| unsafe { self.free(stack) })
            .count()
    }

    /// Gives the memory of a stack back to the platform.
    ///
    /// # Safety
    ///
    /// `stack` belongs to this pool, holds no frames, is not in the list of idle stacks, and is not
    /// used again.
    #[cold]
    unsafe fn free(&self, stack: NonNull<Stack<T>>) {
        // SAFETY: the caller's promise. Stacks in the list are alive. `base` and `size` are those
        // of the `allocate_stack` that gave the memory.
        unsafe {
            let Stack { base, size, .. } = *stack.as_ref();
            let (previous, next) = (stack.as_ref().previous.get(), stack.as_ref().next.get());
            match previous {
                Some(previous) => previous.as_ref().next.set(next),
                None => self.all.set(next),
            }
            if let Some(next) = next {
                next.as_ref().previous.set(previous);
            }
            self.total.store(self.total() - 1, Ordering::Relaxed);
            bound::free_stack(base, size);
        }
    }

    /// Frees the idle stacks, and forgets the others, which hold frames that will never run again.
    /// Returns how many of these there are.
    pub(crate) fn free_idle(&self) -> usize {
        self.idle.set(None);
        self.total.store(0, Ordering::Relaxed);
        let mut held = 0;
        let mut rest = self.all.take();
        while let Some(stack) = rest {
            // SAFETY: stacks in the list are alive. No code runs on a stack without a task, and the
            // pool has just forgotten this one. `base` and `size` are those of the `allocate_stack`
            // that gave the memory.
            unsafe {
                let Stack { base, size, .. } = *stack.as_ref();
                rest = stack.as_ref().next.get();
                if stack.as_ref().task.get().is_some() {
                    held += 1;
                } else {
                    bound::free_stack(base, size);
                }
            }
        }
        held
    }

    /// Calls `f` for each stack.
    pub(crate) fn each(&self, mut f: impl FnMut(&Stack<T>)) {
        let mut rest = self.all.get();
        while let Some(stack) = rest {
            // SAFETY: stacks in the list are alive.
            let stack = unsafe { stack.as_ref() };
            f(stack);
            rest = stack.next.get();
        }
    }
}
