//! What stacks cost: entering and leaving them, and what `may` does with them.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;

use corosensei::stack::DefaultStack;
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
    let may: [(_, Shape); 2] =
        [("stackful_yield", may_yield), ("stackful_spawn_join", may_spawn_join)];
    for (bench, shape) in may {
        cells.push(Cell { bench, n: None, implementation: "may", shape });
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

/// The backend of Trapline, as its pool uses it.
struct Trapline {
    memory: NonNull<u8>,
    /// Where the other is, while it is off the core. In the stack's memory, as the pool has it.
    contexts: *mut [Context; 2],
}

impl Trapline {
    const LAYOUT: Layout = Layout::new::<[u128; STACK / size_of::<u128>()]>();
}

/// # Safety
///
/// `contexts` are a coroutine's.
unsafe extern "C" fn leave_for_ever(contexts: *mut ()) -> ! {
    let contexts = contexts.cast::<[Context; 2]>();
    loop {
        // SAFETY: entered by `enter`, which has stored where it is.
        unsafe { Native::switch(&raw mut (*contexts)[1], (*contexts)[0]) };
    }
}

impl Coroutine for Trapline {
    fn new(_: usize) -> Self {
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc(Self::LAYOUT) }).expect("there is memory");
        // SAFETY: the places are at the memory's upper end, and the stack is what is below.
        unsafe {
            let contexts = memory.add(STACK).cast::<[Context; 2]>().sub(1);
            let context =
                Native::prepare(contexts.cast(), leave_for_ever, contexts.as_ptr().cast());
            contexts.write([Context(std::ptr::null_mut()), context]);
            Self { memory, contexts: contexts.as_ptr() }
        }
    }

    #[inline]
    fn enter(&mut self) {
        // SAFETY: the two take turns, so each context is entered once for each time that it was stored. The stack
        // is alive and nobody else's.
        unsafe { Native::switch(&raw mut (*self.contexts)[0], (*self.contexts)[1]) };
    }
}

impl Drop for Trapline {
    fn drop(&mut self) {
        // SAFETY: as it was allocated. The frames on it own nothing.
        unsafe { dealloc(self.memory.as_ptr(), Self::LAYOUT) };
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
