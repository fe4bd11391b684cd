//! What stacks cost: entering and leaving them, and what `may` does with them.

use std::cell::UnsafeCell;
use std::ptr::NonNull;

use corosensei::stack::{DefaultStack, Stack as _};
use generator::{Gn, LocalGenerator};
use trapline::arch::Native;
use trapline::stackful::{Context, StackfulBackend as _};

use crate::{Cell, Sample, Shape, Span};

/// How large each stack is, in bytes.
const STACK: usize = 64 * 1024;

/// The cells of stacks.
pub(crate) fn add_to(cells: &mut Vec<Cell>) {
    let rows: [(_, [(_, Shape); 3]); 2] = [
        (
            "switch",
            [
                ("trapline", |_, operations| switch::<Trapline>(1, operations)),
                ("corosensei", |_, operations| switch::<Corosensei>(1, operations)),
                ("generator", |_, operations| switch::<Generator>(1, operations)),
            ],
        ),
        (
            "switch_1000",
            [
                ("trapline", |_, operations| switch::<Trapline>(1000, operations)),
                ("corosensei", |_, operations| switch::<Corosensei>(1000, operations)),
                ("generator", |_, operations| switch::<Generator>(1000, operations)),
            ],
        ),
    ];
    for (bench, implementations) in rows {
        for (implementation, shape) in implementations {
            cells.push(Cell { bench, n: None, implementation, shape });
        }
    }
    let may: [(_, _, Shape); 2] =
        [("stackful_yield", Some(1), may_yield), ("stackful_spawn_join", None, may_spawn_join)];
    for (bench, n, shape) in may {
        cells.push(Cell { bench, n, implementation: "may", shape });
    }
}

/// Code on a stack that leaves it again and again.
trait Coroutine {
    /// The `index`th of many.
    fn new(index: usize) -> Self;

    /// Enters the stack until it is left.
    fn enter(&mut self);
}

/// Enters `n` stacks in turn, all of which hold frames.
fn switch<C: Coroutine>(n: usize, operations: u64) -> Sample {
    let mut coroutines: Vec<C> = (0..n).map(C::new).collect();
    coroutines.iter_mut().for_each(C::enter);
    let rounds = operations.div_ceil(n as u64);
    let span = Span::begin();
    for _ in 0..rounds {
        coroutines.iter_mut().for_each(C::enter);
    }
    span.end(rounds * n as u64)
}

/// The backend of Trapline, on stacks like corosensei's.
///
/// This is the bare switch: without the values that the others pass and the panics that they catch, and without
/// the slices that the runtime gives. That the stacks end at different offsets within their pages, as those of the
/// runtime's pool, so that many don't share a few sets of the cache (colouring), is ours too.
struct Trapline {
    _memory: DefaultStack,
    /// Where it is, while it is off the core: on top of the stack, as in the pool.
    context: *mut Context,
}

/// What the runtime has once a core: nothing waits for what is loaded from a stack that was long off the core.
struct Core {
    /// Whoever entered the stack that is on the core.
    outside: UnsafeCell<Context>,
    /// Where that stack's context goes.
    running: UnsafeCell<*mut Context>,
}

// SAFETY: it is whose that is on the core, and rows are measured by one thread at a time.
unsafe impl Sync for Core {}

static CORE: Core = Core {
    outside: UnsafeCell::new(Context(std::ptr::null_mut())),
    running: UnsafeCell::new(std::ptr::null_mut()),
};

impl Trapline {
    /// How far apart, and how many different, the ends of stacks are.
    const COLOUR: usize = 64;
    const COLOURS: usize = STACK / 16 / Self::COLOUR;
    /// How much of a stack's upper end is kept for its context, and whatever else the pool keeps of it there.
    const ACCOUNT: usize = 128;
}

/// # Safety
///
/// It is entered by `enter` alone.
unsafe extern "C" fn leave_for_ever(_: *mut ()) -> ! {
    loop {
        // SAFETY: `enter` has stored where it is, and where this shall be.
        unsafe { Native::switch(*CORE.running.get(), *CORE.outside.get()) };
    }
}

impl Coroutine for Trapline {
    fn new(index: usize) -> Self {
        let memory = DefaultStack::new(STACK).expect("there is memory");
        let end = memory.base().get() - index % Self::COLOURS * Self::COLOUR;
        let top = std::ptr::with_exposed_provenance_mut(end - Self::ACCOUNT);
        let top = NonNull::new(top).expect("a stack's end");
        let context = top.cast::<Context>().as_ptr();
        // SAFETY: nobody else uses the stack. What is below `top` is for its frames, and what is above for the
        // context; both are multiples of 16 bytes and large enough.
        unsafe { context.write(Native::prepare(top, leave_for_ever, std::ptr::null_mut())) };
        Self { _memory: memory, context }
    }

    #[inline]
    fn enter(&mut self) {
        // SAFETY: the two take turns, so each context is entered once for each time that it was stored. The stack
        // is alive and nobody else's.
        unsafe {
            *CORE.running.get() = self.context;
            Native::switch(CORE.outside.get(), *self.context);
        }
    }
}

/// corosensei's, on its own stacks.
struct Corosensei(corosensei::Coroutine<(), (), ()>);

impl Coroutine for Corosensei {
    fn new(_: usize) -> Self {
        let stack = DefaultStack::new(STACK).expect("there is memory");
        Self(corosensei::Coroutine::with_stack(stack, |yielder, ()| {
            loop {
                yielder.suspend(());
            }
        }))
    }

    #[inline]
    fn enter(&mut self) {
        self.0.resume(());
    }
}

/// generator's, on its own stacks.
struct Generator(LocalGenerator<'static, (), ()>);

impl Coroutine for Generator {
    fn new(_: usize) -> Self {
        let words = STACK / size_of::<usize>();
        Self(Gn::new_scoped_opt_local(words, |mut scope| {
            loop {
                scope.yield_with(());
            }
        }))
    }

    #[inline]
    fn enter(&mut self) {
        self.0.resume();
    }
}

/// What `main` returns, which runs as a coroutine of `may`'s on one thread.
fn in_may<T: Send + 'static>(main: impl FnOnce() -> T + Send + 'static) -> T {
    may::config().set_workers(1).set_worker_pin(false);
    // SAFETY: coroutines here use no thread-local values and little of their stacks.
    let main = unsafe { may::coroutine::spawn(main) };
    main.join().expect("it does not panic")
}

fn may_yield(_: usize, operations: u64) -> Sample {
    in_may(move || {
        let span = Span::begin();
        for _ in 0..operations {
            may::coroutine::yield_now();
        }
        span.end(operations)
    })
}

fn may_spawn_join(_: usize, operations: u64) -> Sample {
    in_may(move || {
        let span = Span::begin();
        for _ in 0..operations {
            // SAFETY: as above.
            let other = unsafe { may::coroutine::spawn(|| ()) };
            other.join().expect("it does not panic");
        }
        span.end(operations)
    })
}
