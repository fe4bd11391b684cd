//! Where futures and outputs are dropped, and what their drops may do.

use alloc::sync::Arc;
use core::future::pending;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use hal_shim::heap;
use trapline::time::{sleep, timeout};
use trapline::{Config, JoinError, block_on, spawn, stackful, yield_now};

use crate::support::*;

/// A value whose drop computes until a plain task sets `let_on`, so that the drop is preempted, and
/// then blocks in `block_on`.
struct Flush {
    begun: Count,
    let_on: Count,
    flushed: Count,
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.begun.add();
        self.let_on.spin_until(1);
        block_on(sleep(ms(1)));
        self.flushed.add();
    }
}

pub fn drops_of_stackful_tasks_are_preempted_and_may_block() {
    run(async {
        let [begun, let_on, flushed] = [(); 3].map(|()| Count::new());
        let flush =
            || Flush { begun: begun.clone(), let_on: let_on.clone(), flushed: flushed.clone() };
        let waits = || {
            let flush = flush();
            stackful(async move {
                let _flush = flush;
                pending::<()>().await
            })
        };
        let others = [
            // This task drops the value in its last poll, as any task does.
            spawn(stackful({
                let flush = flush();
                async move { drop(flush) }
            })),
            // A plain task drops its child at a timeout.
            spawn({
                let child = waits();
                async move { timeout(ms(1), child).await.unwrap_or(()) }
            }),
        ];
        // This task is aborted while it is BLOCKED.
        let aborted = spawn(waits());
        // This task is aborted in the middle of its poll.
        let computing = Count::new();
        let in_poll = spawn(stackful({
            let (flush, computing, let_on) = (flush(), computing.clone(), let_on.clone());
            async move {
                let _flush = flush;
                computing.add();
                let_on.spin_until(1);
                pending::<()>().await
            }
        }));
        // The handle is dropped at once: the runtime drops the output, or the future if the task
        // has not begun.
        drop(spawn(stackful({
            let flush = flush();
            async move { flush }
        })));
        computing.reaches(1).await;
        aborted.abort();
        in_poll.abort();
        begun.reaches(4).await;
        assert_eq!(flushed.get(), 0);
        let_on.add();
        flushed.reaches(5).await;
        assert!(matches!(aborted.await, Err(JoinError::Aborted)));
        assert!(matches!(in_poll.await, Err(JoinError::Aborted)));
        for other in others {
            other.await.unwrap();
        }
    });
}

pub fn an_abort_in_a_stackful_poll_takes_effect_right_after_it() {
    let trace = Trace::new();
    run(async {
        struct Noted(Trace);
        impl Drop for Noted {
            fn drop(&mut self) {
                self.0.note("drop");
            }
        }
        let ends = Event::new();
        let begun = Count::new();
        let task = spawn(stackful({
            let (noted, trace) = (Noted(trace.clone()), trace.clone());
            let (ends, begun) = (ends.clone(), begun.clone());
            async move {
                let _noted = noted;
                begun.add();
                while !ends.is_set() {}
                trace.note("end of the poll");
                yield_now().await;
                trace.note("next poll");
            }
        }));
        begun.reaches(1).await;
        task.abort();
        ends.set();
        let other = spawn(stackful({
            let trace = trace.clone();
            async move { trace.note("other") }
        }));
        assert!(matches!(task.await, Err(JoinError::Aborted)));
        other.await.unwrap();
    });
    let mut events = trace.events();
    events.retain(|event| *event != "other");
    assert_eq!(
        events,
        [
            "end of the poll", // the poll in which the task was aborted ends
            "drop",            // the abort takes effect before any further poll
        ]
    );
    let all = trace.events();
    let end = all.iter().position(|event| *event == "end of the poll").unwrap();
    assert_eq!(all[end + 1], "drop", "{all:?}");
}

pub fn a_finished_task_needs_no_stack_to_be_freed() {
    static SOFT: AtomicUsize = AtomicUsize::new(0);
    let runtime = configured(Config { task_memory: 0, ..Config::new() });
    run_on(runtime, async {
        // The task's waker outlives the task and is dropped in an interrupt, so the interrupt hands
        // the memory to the loop.
        let waker = Arc::new(spin::Mutex::new(None));
        let kept = waker.clone();
        let task = spawn(stackful(core::future::poll_fn(move |context| {
            *kept.lock() = Some(context.waker().clone());
            core::task::Poll::Ready(())
        })));
        task.await.unwrap();
        // This task holds the only stack.
        let ends = Event::new();
        let holder = spawn(stackful({
            let ends = ends.clone();
            async move { block_on(ends.wait()) }
        }));
        turns(4).await;
        static WAKER: spin::Mutex<Option<core::task::Waker>> = spin::Mutex::new(None);
        *WAKER.lock() = waker.lock().take();
        hal_shim::interrupt::on_soft(|| {
            drop(WAKER.lock().take());
            SOFT.fetch_add(1, SeqCst);
        });
        let with_task = heap::counts().bytes_live;
        hal_shim::interrupt::raise();
        while SOFT.load(SeqCst) == 0 {
            yield_now().await;
        }
        turns(4).await;
        assert!(heap::counts().bytes_live < with_task, "the task was not freed");
        ends.set();
        holder.await.unwrap();
        drop(waker);
    });
    assert_eq!(runtime.stats().stacks, 1, "a stack was made to free a task");
}
