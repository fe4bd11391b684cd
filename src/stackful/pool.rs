//! The stacks of a core.

use core::cell::Cell;
use core::mem::size_of;
use core::ptr::NonNull;

use super::{Context, stack_main};
use crate::Runtime;
use crate::contexted::ScopeLink;
use crate::platform::bound;
use crate::sync::local::{AtomicUsize, Ordering};
use crate::task::Link;
use crate::time::protection;

/// A stack's own account, which lies on top of its memory: the code's frames grow down below it.
#[repr(C, align(16))]
pub(crate) struct Stack {
    /// Where its code goes on.
    pub(super) context: Cell<Context>,
    pub(super) runtime: &'static Runtime,
    /// The task that it holds frames of, while that is off the core.
    pub(super) task: Cell<Link>,
    /// What a preempted task gets when it goes on, in nanoseconds. 0: it began with a slice like all.
    pub(super) left: Cell<u64>,
    /// Whether the task was preempted, and has not gone on since. The loop's: where the stack leaves, an interrupt
    /// may come between that and the leave, and leave first.
    preempted: Cell<bool>,
    /// Something was left of the slice of a preempted task, so it goes on before others of its kind.
    has_left: Cell<bool>,
    /// When it goes on, it is not preempted for so many nanoseconds: its last stretch was too short, or it
    /// was granted them.
    pub(crate) protected: Cell<u64>,
    /// A preempted poll had asked to be polled again, or to go on, after the others.
    pub(crate) yielded: Cell<bool>,
    /// The poll that runs on it was told that a child of its was ended by a fault.
    pub(crate) lost_child: Cell<bool>,
    /// The hooks that its code is inside of, while it is off the core.
    pub(super) scopes: Cell<ScopeLink>,
    /// Where its memory begins, with the [canary](Stack::lost_canary).
    base: NonNull<u8>,
    size: usize,
    next_idle: Cell<StackLink>,
    /// How many stacks are idle from this one on in the list, itself included. Valid while it is
    /// idle.
    idle_from_here: Cell<usize>,
    previous: Cell<StackLink>,
    next: Cell<StackLink>,
}

type StackLink = Option<NonNull<Stack>>;
impl Stack {
    /// What the platform gave for it.
    pub(super) fn memory(&self) -> core::ops::Range<usize> {
        let base = self.base.addr().get();
        base..base + self.size
    }

    /// Notes that the task was preempted. Loop only.
    #[inline]
    pub(crate) fn set_preempted(&self) {
        self.preempted.set(true);
    }

    /// Whether the task was preempted and has not gone on since; it does now. Loop only.
    #[inline]
    pub(crate) fn take_preempted(&self) -> bool {
        self.preempted.replace(false)
    }

    /// Whether the task was preempted and has not gone on since.
    pub(super) fn is_preempted(&self) -> bool {
        self.preempted.get()
    }

    /// Whether a preempted task had something left of its slice.
    #[inline]
    pub(crate) fn has_left(&self) -> bool {
        self.has_left.get()
    }

    /// When it goes on, it gets `most` nanoseconds at most, and is not preempted for that long.
    pub(crate) fn grant(&self, max: u64) {
        self.left.set(self.left.get().min(max));
        self.protected.set(protection(max));
    }

    /// Notes that, and what it gets when it goes on.
    #[inline]
    pub(super) fn set_left(&self, (has_left, left): (bool, u64)) {
        self.has_left.set(has_left);
        self.left.set(left);
    }

    /// Whether code on this stack has overflowed it and no guard caught that: something else may
    /// have been overwritten by then. To be asked whenever the stack is left; it also finds an
    /// overflow by code that has returned since.
    #[inline(always)]
    pub(super) fn lost_canary(&self) -> bool {
        // SAFETY: `Pool::grow` wrote it at the base of the stack's memory, which is aligned to 16. Volatile,
        // since what would change it is no write of the program's that the compiler knows.
        let canary = unsafe { self.base.cast::<usize>().read_volatile() };
        canary != canary_at(self.base)
    }

    /// As [`lost_canary`](Self::lost_canary), and also finds code that is below the stack now, and
    /// whose large frame has skipped the canary.
    #[inline(always)]
    pub(super) fn has_overflowed(&self) -> bool {
        let here = 0u8;
        self.lost_canary() || (&raw const here).addr() <= self.base.as_ptr().addr()
    }
}

/// The canary of a stack that begins at `base`: its own address. That takes no instruction to make, is not
/// zero, and is not what another stack has.
#[inline(always)]
fn canary_at(base: NonNull<u8>) -> usize {
    base.addr().get()
}

/// How many bytes of a stack the canary takes; a multiple of the stack's alignment.
const CANARY: usize = 16;

/// The least size of a stack in bytes, with its account and its canary.
pub(crate) fn min_size() -> usize {
    bound::min_stack() + size_of::<Stack>() + CANARY
}

/// How many bytes at the upper end of the stack with this number are left out. Stacks that all ended at
/// the same offset within their pages would share a few sets of the cache.
///
/// (Jeff Bonwick, "The Slab Allocator", USENIX Summer 1994: colouring.)
fn colour(number: usize, size: usize) -> usize {
    const LINE: usize = 64;
    /// No more than this part of a stack.
    const PART: usize = 16;
    let colours = (size / PART).min(size - min_size()) / LINE;
    number % (colours + 1) * LINE
}

/// The stacks that exist, and of them the idle ones, hottest first.
#[derive(Debug)]
pub(crate) struct Pool {
    all: Cell<StackLink>,
    idle: Cell<StackLink>,
    /// How many stacks there are. Any core may ask.
    total: AtomicUsize,
}

impl Pool {
    pub(crate) const fn new() -> Self {
        Self { all: Cell::new(None), idle: Cell::new(None), total: AtomicUsize::new(0) }
    }

    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// An idle stack.
    #[inline]
    pub(crate) fn take(&self) -> Option<NonNull<Stack>> {
        let stack = self.idle.get()?;
        // SAFETY: idle stacks are alive.
        self.idle.set(unsafe { stack.as_ref() }.next_idle.get());
        Some(stack)
    }

    /// A new stack of `size` bytes, as long as there are fewer than `most`.
    pub(crate) fn grow(
        &self,
        runtime: &'static Runtime,
        size: usize,
        max: usize,
    ) -> Option<NonNull<Stack>> {
        if self.total() >= max {
            return None;
        }
        let base = bound::allocate_stack(size)?;
        // SAFETY: the platform gave `size` bytes, aligned to 16, and `Config::check` demanded that
        // `Stack`, the canary and the backend's least fit, of which `colour` leaves as much. So these and a
        // prepared context have room, and nobody else uses it.
        let stack = unsafe {
            base.cast::<usize>().write(canary_at(base));
            let top = base.add(size - colour(self.total(), size) - size_of::<Stack>());
            let stack = top.cast::<Stack>();
            let context = Context::prepare(top, stack_main, stack.as_ptr().cast());
            stack.write(Stack {
                context: Cell::new(context),
                runtime,
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

    /// Takes an idle stack back, and frees it if `most` others are idle (one, if `most` is zero).
    ///
    /// # Safety
    ///
    /// `stack` was taken from this pool, holds no frames of a task's, and is not the one that the
    /// caller is on.
    #[inline]
    pub(crate) unsafe fn give(&self, stack: NonNull<Stack>, max: usize) {
        let first = self.idle.get();
        // SAFETY: idle stacks are alive, and this one is the caller's.
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

    /// Frees the idle stacks. Returns how many they were.
    pub(crate) fn trim(&self) -> usize {
        core::iter::from_fn(|| self.take())
            // SAFETY: it was idle, and is in that list no more.
            .map(|stack| unsafe { self.free(stack) })
            .count()
    }

    /// # Safety
    ///
    /// `stack` is of this pool, holds no frames, is not in the idle list, and is not used again.
    #[cold]
    unsafe fn free(&self, stack: NonNull<Stack>) {
        // SAFETY: the caller's; stacks in the list are alive. Base and size are what the platform was asked for.
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

    /// Frees the idle stacks and forgets the others, which hold frames that will never run again.
    /// Returns how many those are.
    pub(crate) fn free_idle(&self) -> usize {
        self.idle.set(None);
        self.total.store(0, Ordering::Relaxed);
        let mut held = 0;
        let mut rest = self.all.take();
        while let Some(stack) = rest {
            // SAFETY: stacks in the list are alive. Without a task, nothing runs on it, and the
            // pool has just forgotten it. Base and size are what the platform was asked for.
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
    pub(crate) fn each(&self, mut f: impl FnMut(&Stack)) {
        let mut rest = self.all.get();
        while let Some(stack) = rest {
            // SAFETY: stacks in the list are alive.
            let stack = unsafe { stack.as_ref() };
            f(stack);
            rest = stack.next.get();
        }
    }
}
