//! The shapes that measure the cost of stacks: switches, and the coroutines of `may`.

use std::cell::UnsafeCell;
use std::ptr::NonNull;

use corosensei::stack::{DefaultStack, Stack as _};
use generator::{Gn, LocalGenerator};
use trapline::arch::Native;
use trapline::stackful::{Context, StackfulBackend as _};

use crate::{Cell, Sample, Shape, Span};

/// The size of each stack in bytes.
const STACK: usize = 64 * 1024;

/// Adds the cells of stacks.
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

/// Code on a stack that repeatedly leaves it.
trait Coroutine {
    /// Makes the `index`th of many.
    fn new(index: usize) -> Self;

    /// Enters the stack and returns when its code leaves it.
    fn enter(&mut self);
}

/// Enters `n` stacks in turn. All of them hold frames.
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

/// Trapline's backend, on stacks like corosensei's.
///
/// This is the bare switch. Unlike the others it passes no values and catches no panics, and it has
/// none of the runtime's slices. Like those of the runtime's pool, its stacks end at different
/// offsets within their pages (colouring), so that many of them do not compete for a few cache
/// sets.
struct Trapline {
    _memory: DefaultStack,
    /// The place of its context while it is off the core: on top of the stack, as in the pool.
    context: *mut Context,
}

/// The state that the runtime has once per core. A switch then does not wait for loads from a stack
/// that was off the core for long.
struct Core {
    /// The context of the code that entered the stack on the core.
    outside: UnsafeCell<Context>,
    /// The place for the context of the stack on the core.
    running: UnsafeCell<*mut Context>,
}

// SAFETY: only the code that is on the core uses it, and one thread at a time measures rows.
unsafe impl Sync for Core {}

static CORE: Core = Core {
    outside: UnsafeCell::new(Context(std::ptr::null_mut())),
    running: UnsafeCell::new(std::ptr::null_mut()),
};

impl Trapline {
    /// The distance between the ends of stacks within a page; `COLOURS` is the number of different
    /// ends.
    const COLOUR: usize = 64;
    const COLOURS: usize = STACK / 16 / Self::COLOUR;
    /// The size of the upper end of a stack that holds its context. The pool keeps its other data
    /// about the stack there too.
    const ACCOUNT: usize = 128;
}

/// # Safety
///
/// Only `enter` may enter it.
unsafe extern "C" fn leave_for_ever(_: *mut ()) -> ! {
    loop {
        // SAFETY: `enter` has stored its own context and the place for this one.
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
        // SAFETY: only this value uses the stack. The part below `top` is for frames and the part
        // above for the context; both are multiples of 16 bytes and large enough.
        unsafe { context.write(Native::prepare(top, leave_for_ever, std::ptr::null_mut())) };
        Self { _memory: memory, context }
    }

    #[inline]
    fn enter(&mut self) {
        // SAFETY: this code and the stack's alternate, so that each context is entered once for
        // each time that it was stored. The stack is alive, and only this value uses it.
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

/// Runs `main` as a coroutine of `may` on one thread and returns its result.
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
