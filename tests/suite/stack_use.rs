//! How much stack the library takes to move futures and outputs, optimized or not: they can be
//! large, and stacks are small.
//!
//! A part of the stack is filled with a pattern, then the code runs, and the bytes that no longer
//! hold the pattern are those that it took. (Nothing else runs on the stack of a plain task: the
//! alarm is not set, and there is no other core.)

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::future::{Future, poll_fn};
use core::hint::black_box;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use trapline::time::timeout;
use trapline::{
    Hooks, LocalSpawner, StaticTask, TaskBuilder, block_on, contexted, spawn, stackful, task_local,
    try_spawn,
};

use crate::support::*;

/// The size of a future or an output in these tests.
const SIZE: usize = 4 * 1024;
/// How many copies a function may take that returns the future in an error, in addition to its
/// argument: the result, and one copy.
const RESULT: usize = 2;
/// How many copies such a function may take when it does return the future.
const REFUSED: usize = 4;
/// How many bytes of stack may be taken for everything else.
const REST: usize = 3 * 512;
/// How many bytes of stack are filled with the pattern.
const PAINTED: usize = 40 * 1024;
/// How many bytes above them are left out, since the code that fills them uses stack as well.
const GAP: usize = 1024;
const COLOUR: u8 = 0xa5;

/// Returns how many bytes of stack `code` takes, and at least [`GAP`].
#[inline(never)]
fn taken(code: impl FnOnce()) -> usize {
    let here = 0_u8;
    let top = black_box(&raw const here).expose_provenance() - GAP;
    let bottom = core::ptr::with_exposed_provenance_mut::<u8>(black_box(top - PAINTED));
    // SAFETY: the stack is larger than the gap and the painted bytes. The lowest frames in use are
    // this one and that of the function that paints. Together they are smaller than the gap, so no
    // painted byte is in use.
    unsafe { bottom.write_bytes(COLOUR, PAINTED) };
    black_box(bottom);
    apart(code);
    // SAFETY: as above. The bytes were written, and are only read.
    let painted = unsafe { core::slice::from_raw_parts(bottom.cast_const(), PAINTED) };
    let untouched = painted.iter().position(|&byte| black_box(byte) != COLOUR).unwrap_or(PAINTED);
    assert!(untouched > 0, "the code took more stack than was painted");
    GAP + PAINTED - untouched
}

#[inline(never)]
fn apart(code: impl FnOnce()) {
    code();
}

/// Checks that `code` takes no more stack than `usual` and `copies` futures or outputs.
#[track_caller]
fn check(what: &str, usual: impl FnOnce(), copies: usize, code: impl FnOnce()) {
    if cfg!(address_sanitizer) {
        // The sanitizer keeps stack variables elsewhere.
        return;
    }
    let (usual, code) = (taken(usual), taken(code));
    assert!(
        code <= usual + copies * SIZE + REST,
        "{what} takes {code} bytes of stack and the arguments alone {usual}"
    );
}

/// A future that is as large as its output.
struct Large([u8; SIZE]);

#[inline(never)]
fn large() -> Large {
    Large([1; SIZE])
}

impl Future for Large {
    type Output = [u8; SIZE];

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<[u8; SIZE]> {
        Poll::Ready(self.0)
    }
}

/// A large future that is never ready.
struct Blocked(#[expect(dead_code)] [u8; SIZE]);

#[inline(never)]
fn blocked() -> Blocked {
    Blocked([1; SIZE])
}

impl Future for Blocked {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

/// Takes a value and drops it.
#[inline(never)]
fn nothing_of<T>(value: T) {
    black_box(&raw const value);
}

struct Nothing;

impl Hooks for Nothing {
    fn enter(&self) {}
    fn leave(&self) {}
}

/// A spawn takes two futures on the stack: its argument and one copy.
pub fn a_spawn_copies_its_future_once() {
    static CELL: StaticTask<Blocked> = StaticTask::new();
    static LOCAL: StaticTask<Blocked> = StaticTask::new();
    static FULL: StaticTask<Blocked> = StaticTask::new();
    static STACKFUL: StaticTask<trapline::Stackful<Blocked>> = StaticTask::new();
    let runtime = runtime();
    let usual = || nothing_of(blocked());
    let refused = |what: &str, code: fn()| check(what, usual, REFUSED, code);
    refused("spawning outside of a runtime", || {
        assert!(try_spawn(blocked()).is_err());
    });
    run_on(runtime, async {
        let spawner = LocalSpawner::current().unwrap();
        let builder = TaskBuilder::new().name("large");
        check("spawn", usual, 1, || drop(spawn(blocked())));
        check("try_spawn", usual, RESULT, || assert!(try_spawn(blocked()).is_ok()));
        check("Runtime::spawn", usual, 1, || drop(runtime.spawn(blocked())));
        check("Runtime::try_spawn", usual, RESULT, || {
            assert!(runtime.try_spawn(blocked()).is_ok())
        });
        check("LocalSpawner::spawn", usual, 1, || drop(spawner.spawn(blocked())));
        check("LocalSpawner::try_spawn", usual, RESULT, || {
            assert!(spawner.try_spawn(blocked()).is_ok())
        });
        check("TaskBuilder::spawn", usual, RESULT, || assert!(builder.spawn(blocked()).is_ok()));
        check("spawn_on", usual, RESULT, || assert!(builder.spawn_on(runtime, blocked()).is_ok()));
        check("spawn_local", usual, RESULT, || {
            assert!(builder.spawn_local(spawner, blocked()).is_ok())
        });
        check("StaticTask::spawn", usual, RESULT, || assert!(CELL.spawn(blocked()).is_ok()));
        check("StaticTask::spawn_on", usual, RESULT, || {
            assert!(FULL.spawn_on(runtime, blocked()).is_ok())
        });
        check("StaticTask::spawn_local", usual, RESULT, || {
            assert!(LOCAL.spawn_local(spawner, blocked()).is_ok())
        });
        refused("a StaticTask that is full", || assert!(FULL.spawn(blocked()).is_err()));
        // `stackful` and `contexted` return the future that they are given, so `usual` already has
        // two.
        let usual = || nothing_of(stackful(blocked()));
        check("spawn(stackful)", usual, 1, || drop(spawn(stackful(blocked()))));
        check("StaticTask::spawn(stackful)", usual, RESULT, || {
            assert!(STACKFUL.spawn(stackful(blocked())).is_ok())
        });
        let hooks = || Arc::new(Nothing);
        let usual = || nothing_of(contexted(stackful(blocked()), hooks()));
        check("spawn(contexted)", usual, 1, || {
            drop(spawn(contexted(stackful(blocked()), hooks())));
        });
    });
    let dropped = runtime.shutdown().unwrap().dropped;
    assert!(dropped >= 15 || cfg!(address_sanitizer), "{dropped} were spawned");
    refused_after_a_shutdown(runtime);
}

fn refused_after_a_shutdown(runtime: &'static trapline::Runtime) {
    let usual = || nothing_of(blocked());
    check("Runtime::spawn, refused", usual, 1, || drop(runtime.spawn(blocked())));
    check("Runtime::try_spawn, refused", usual, REFUSED, || {
        assert!(runtime.try_spawn(blocked()).is_err());
    });
}

pub fn wrapping_copies_once() {
    task_local! {
        static KEY: u8;
    }
    let usual = || nothing_of(blocked());
    // Each wrapper takes what it returns, and one copy.
    check("stackful", usual, 2, || nothing_of(stackful(blocked())));
    check("contexted", usual, 2, || nothing_of(contexted(blocked(), Arc::new(Nothing))));
    check("a task-local scope", usual, 2, || nothing_of(KEY.scope(1, blocked())));
    check("timeout", usual, 2, || nothing_of(timeout(ms(1), blocked())));
}

pub fn a_child_is_spawned_with_one_copy() {
    run(async {
        let mut parent = Box::pin(stackful(blocked()));
        poll_fn(|context| {
            check(
                "a child's spawn",
                || (),
                1,
                || {
                    assert!(parent.as_mut().poll(context).is_pending());
                },
            );
            Poll::Ready(())
        })
        .await;
    });
}

#[inline(never)]
fn ready() -> Poll<Result<[u8; SIZE], ()>> {
    Poll::Ready(Ok([1; SIZE]))
}

pub fn a_join_copies_the_output_twice_at_most() {
    run(async {
        let mut tasks = [spawn(large()), TaskBuilder::new().name("large").spawn(large()).unwrap()];
        let mut child = pin!(stackful(large()));
        poll_fn(|context| {
            assert!(child.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        let mut aborted = spawn(async {
            never().await;
            [1_u8; SIZE]
        });
        aborted.abort();
        trapline::time::sleep(ms(20)).await;
        poll_fn(|context| {
            let usual = || {
                assert!(ready().is_ready());
            };
            for task in &mut tasks {
                check("a join", usual, 1, || {
                    assert!(Pin::new(&mut *task).poll(context).is_ready())
                });
            }
            check("a join with what was aborted", usual, 1, || {
                assert!(Pin::new(&mut aborted).poll(context).is_ready());
            });
            check("a join with a child", usual, 1, || {
                assert!(child.as_mut().poll(context).is_ready());
            });
            Poll::Ready(())
        })
        .await;
    });
}

/// A future that notes at which stack address it is polled, and gives an output of `OUTPUT` bytes.
struct Where<const OUTPUT: usize>(Count);

impl<const OUTPUT: usize> Future for Where<OUTPUT> {
    type Output = [u8; OUTPUT];

    #[inline(never)]
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<[u8; OUTPUT]> {
        let here = 0_u8;
        self.0.raise_to(usize::MAX - (&raw const here).addr());
        Poll::Ready([1; OUTPUT])
    }
}

/// Returns how much deeper on the stack the poll of a large output is than that of a small one.
fn deeper(poll: impl Fn(Where<8>), poll_large: impl Fn(Where<SIZE>)) -> usize {
    let (small, large) = (Count::new(), Count::new());
    poll(Where(small.clone()));
    poll_large(Where(large.clone()));
    large.get().saturating_sub(small.get())
}

#[track_caller]
fn check_output(what: &str, deeper: usize) {
    if !cfg!(address_sanitizer) {
        // One output is on the stack in the poll itself.
        let limit = 3 * SIZE + REST;
        assert!(deeper <= limit, "{what} is {deeper} bytes deeper for a large output");
    }
}

pub fn a_poll_copies_the_output_twice_at_most() {
    let runtime = runtime();
    fn spawned<const OUTPUT: usize>(runtime: &'static trapline::Runtime, polled: Where<OUTPUT>) {
        runtime.spawn(polled);
        run_on(runtime, turns(2));
    }
    let task = deeper(|small| spawned(runtime, small), |large| spawned(runtime, large));
    check_output("a task's poll", task);
    fn waited<const OUTPUT: usize>(polled: Where<OUTPUT>) {
        assert_eq!(block_on(polled).len(), OUTPUT);
    }
    // `waited` gets the output as a returned value, which is one more copy.
    let outside = deeper(waited, waited);
    check_output("block_on outside of a runtime", outside.saturating_sub(SIZE));
    fn run_until<const OUTPUT: usize>(runtime: &'static trapline::Runtime, polled: Where<OUTPUT>) {
        assert!(runtime.run_until(polled).is_ok());
    }
    let root = deeper(|small| run_until(runtime, small), |large| run_until(runtime, large));
    check_output("run_until", root.saturating_sub(SIZE));
}

pub fn run_until_and_block_on_copy_their_future_once() {
    let runtime = runtime();
    // The bound is the stack that a small future takes, the argument, and one copy.
    check(
        "run_until",
        || assert!(runtime.run_until(async {}).is_ok()),
        2,
        || {
            assert!(runtime.run_until(finished()).is_ok());
        },
    );
    check("block_on", || block_on(async {}), 2, || block_on(finished()));
}

/// A large future that is ready.
struct Finished(#[expect(dead_code)] [u8; SIZE]);

#[inline(never)]
fn finished() -> Finished {
    Finished([1; SIZE])
}

impl Future for Finished {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}
