//! Tasks whose futures are not `Send`.

use alloc::rc::Rc;
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::task::{Context, Poll};

use hal_shim::interrupt;
use trapline::{
    JoinError, JoinHandle, LocalSpawner, Scoped, SpawnErrorReason, Stackful, block_on, spawn,
    stackful, yield_now,
};

use crate::support::*;

/// A trait with one implementation for all types and a second one for types that are `Send`. For a
/// type that is `Send`, the compiler cannot choose between the two, so naming the implementation is
/// a compile error.
trait UnlessSend<Which> {
    fn compiles() {}
}
impl<T> UnlessSend<()> for T {}
impl<T: Send> UnlessSend<u8> for T {}

/// The same for `Sync`.
trait UnlessSync<Which> {
    fn compiles() {}
}
impl<T> UnlessSync<()> for T {}
impl<T: Sync> UnlessSync<u8> for T {}

const _: fn() = <LocalSpawner as UnlessSend<_>>::compiles;
const _: fn() = <LocalSpawner as UnlessSync<_>>::compiles;
const _: fn() = <JoinHandle<Rc<()>> as UnlessSend<_>>::compiles;
const _: fn() = <Scoped<Rc<()>, core::future::Ready<()>> as UnlessSend<_>>::compiles;

/// Returns the spawner of the core's runtime.
fn spawner() -> LocalSpawner {
    LocalSpawner::current().expect("no spawner in a plain task")
}

pub fn what_is_not_send_is_shared() {
    run(async {
        let shared = Rc::new(Cell::new(0));
        let mut tasks = alloc::vec![];
        for _ in 0..10 {
            let own = shared.clone();
            tasks.push(spawner().spawn(async move {
                for _ in 0..10 {
                    let before = own.get();
                    own.set(before + 1);
                    yield_now().await;
                }
                // A local task spawns a local task as well.
                let inner = own.clone();
                spawner().spawn(async move { inner.set(inner.get() + 1) }).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((shared.get(), Rc::strong_count(&shared)), (110, 1));
    });
}

pub fn output_that_is_not_send() {
    run(async {
        let kept = Rc::new(1);
        let output = kept.clone();
        let task = spawner().spawn(async move { output });
        assert_eq!(*task.await.unwrap(), 1);
        assert_eq!(Rc::strong_count(&kept), 1);
        // The output of a detached task is dropped by the runtime.
        let output = kept.clone();
        drop(spawner().spawn(async move { output }));
        assert_eq!(Rc::strong_count(&kept), 2);
        turns(2).await;
        assert_eq!(Rc::strong_count(&kept), 1);
    });
}

pub fn no_spawner_outside_of_plain_tasks() {
    assert!(LocalSpawner::current().is_none());
    run(async {
        assert!(LocalSpawner::current().is_some(), "no spawner in the future of run_until");
        assert!(spawn(async { LocalSpawner::current().is_some() }).await.unwrap());
        assert!(spawn(stackful(async { LocalSpawner::current().is_none() })).await.unwrap());
        // In an interrupt there is no spawner, if the platform reports the interrupt for certain.
        static FOUND: AtomicUsize = AtomicUsize::new(0);
        FOUND.store(0, SeqCst);
        interrupt::on_soft(|| {
            FOUND.store(1 + usize::from(LocalSpawner::current().is_some()), SeqCst);
        });
        interrupt::raise();
        assert_eq!(FOUND.load(SeqCst), 1);
    });
}

pub fn a_spawner_that_left_its_runtime_refuses() {
    let (first, second) = (runtime(), runtime());
    let left = run_on(first, async { spawner() });
    let future = Rc::new(1);
    let spawned = future.clone();
    let error = left.try_spawn(async move { *spawned }).expect_err("outside of any runtime");
    assert_eq!(error.reason, SpawnErrorReason::NotLocal);
    run_on(second, async {
        let error = left.try_spawn(error.future).expect_err("another runtime's");
        assert_eq!(error.reason, SpawnErrorReason::NotLocal);
        assert_eq!(Rc::strong_count(&future), 2);
        assert_eq!(spawner().spawn(error.future).await.unwrap(), 1);
    });
    // Moves a spawner to a stackful task, as a thread-local could.
    struct Smuggled(LocalSpawner);
    // SAFETY: not sound in general; here the value stays on its core.
    unsafe impl Send for Smuggled {}
    run_on(first, async {
        let smuggled = Smuggled(spawner());
        let refused = spawn(stackful(async move {
            let Smuggled(spawner) = { smuggled };
            spawner.try_spawn(async {}).is_err()
        }));
        assert!(refused.await.unwrap());
    });
}

/// A wrapper of the same size as the stackful future in it. The wrapper is not `Send`, so it must
/// not be preempted.
struct Wrapper<F: Future> {
    inside: Stackful<F>,
    not_send: core::marker::PhantomData<Rc<()>>,
}

/// How many polls of wrappers happened on a stack.
static ON_STACK: AtomicUsize = AtomicUsize::new(0);

impl<F> Future for Wrapper<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if trapline::current().is_some_and(|current| current.is_stackful()) {
            ON_STACK.fetch_add(1, SeqCst);
        }
        // SAFETY: `inside` is pinned because `self` is.
        unsafe { self.map_unchecked_mut(|this| &mut this.inside) }.poll(context)
    }
}

pub fn a_local_wrapper_around_stackful_stays_off_the_stack() {
    let wrapped = || {
        let inside = stackful(async { trapline::current().unwrap() });
        Wrapper { inside, not_send: core::marker::PhantomData }
    };
    assert_eq!(size_of_val(&wrapped()), size_of_val(&wrapped().inside));
    ON_STACK.store(0, SeqCst);
    run(async {
        let task = spawner().spawn(wrapped());
        let parent = task.id().unwrap();
        let child = task.await.unwrap();
        assert!(child.is_stackful());
        assert_ne!(child.id(), parent);
        // A bare stackful future that is spawned locally also runs in a child, and so does a
        // wrapper inside of hooks.
        let task = spawner().spawn(stackful(async { trapline::current().unwrap().id() }));
        let parent = task.id().unwrap();
        assert_ne!(task.await.unwrap(), parent);
        struct Nothing;
        impl trapline::Hooks for Nothing {
            fn enter(&self) {}
            fn leave(&self) {}
        }
        let hooks = alloc::sync::Arc::new(Nothing);
        let task = spawner().spawn(trapline::contexted(wrapped(), hooks));
        let parent = task.id().unwrap();
        assert_ne!(task.await.unwrap().id(), parent);
    });
    assert_eq!(ON_STACK.load(SeqCst), 0);
}

pub fn a_shutdown_drops_it_on_its_core() {
    let runtime = runtime();
    let shared = Rc::new(());
    let mut handle = None;
    run_on(runtime, async {
        let own = shared.clone();
        handle = Some(spawner().spawn(async move {
            let _own = own;
            never().await
        }));
    });
    assert_eq!(Rc::strong_count(&shared), 2);
    if hal_shim::cores() > 1 {
        static REFUSED: AtomicUsize = AtomicUsize::new(0);
        static RUNTIME: spin::Mutex<Option<&'static trapline::Runtime>> = spin::Mutex::new(None);
        *RUNTIME.lock() = Some(runtime);
        REFUSED.store(0, SeqCst);
        hal_shim::start_core(1, || {
            let runtime = RUNTIME.lock().take().expect("a runtime");
            let refused = matches!(runtime.shutdown(), Err(trapline::EnterError::OtherCore { .. }));
            REFUSED.store(1 + usize::from(refused), SeqCst);
        })
        .unwrap();
        while REFUSED.load(SeqCst) == 0 {
            core::hint::spin_loop();
        }
        assert_eq!(REFUSED.load(SeqCst), 2);
    }
    assert_eq!(Rc::strong_count(&shared), 2);
    assert_eq!(runtime.shutdown().unwrap().dropped, 1);
    assert_eq!(Rc::strong_count(&shared), 1);
    assert!(matches!(block_on(handle.unwrap()), Err(JoinError::Aborted)));
}

pub fn handle_and_waker_on_another_core() {
    if hal_shim::cores() < 2 {
        return;
    }
    type Sent = (trapline::JoinHandle<()>, core::task::Waker);
    static SENT: spin::Mutex<Option<Sent>> = spin::Mutex::new(None);
    static DONE: AtomicUsize = AtomicUsize::new(0);
    /// A value that must be dropped on the core that made it.
    struct Here(usize, #[expect(dead_code, reason = "it makes this not Send")] Rc<()>);
    impl Drop for Here {
        fn drop(&mut self) {
            assert_eq!(self.0, hal_shim::this_core());
        }
    }
    DONE.store(0, SeqCst);
    run(async {
        let shared = Rc::new(());
        let here = Here(hal_shim::this_core(), shared.clone());
        let (sender, receiver) = crate::tasks::waker_channel();
        let polls = Count::new();
        let counts = polls.clone();
        let task = spawner().spawn(async move {
            let here = here;
            poll_fn(|context| {
                counts.add();
                sender.send(context.waker().clone());
                Poll::<()>::Pending
            })
            .await;
            drop(here);
        });
        turns(2).await;
        *SENT.lock() = Some((task, receiver.take()));
        hal_shim::start_core(1, || {
            let (task, waker) = SENT.lock().take().expect("what was sent");
            waker.wake();
            task.abort();
            assert!(matches!(block_on(task), Err(JoinError::Aborted)));
            DONE.store(1, SeqCst);
        })
        .unwrap();
        while DONE.load(SeqCst) == 0 {
            trapline::time::sleep(ms(1)).await;
        }
        drop(receiver);
        assert_eq!(Rc::strong_count(&shared), 1);
    });
}
