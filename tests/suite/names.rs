//! Tasks that have names.

use alloc::format;

use hal_shim::heap;
use trapline::{LocalSpawner, TaskBuilder, spawn, stackful, yield_now};

use crate::support::*;

pub fn handle_and_task_know_the_name() {
    assert_eq!(
        TaskBuilder::new().spawn(async {}).map(|_| ()).unwrap_err().reason,
        trapline::SpawnErrorReason::NoRuntime
    );
    let runtime = runtime();
    let early = TaskBuilder::new().name("early").spawn_on(runtime, async {}).unwrap();
    assert_eq!(early.name(), Some("early"));
    run_on(runtime, async {
        assert_eq!(trapline::current().unwrap().name(), Some("run_until"));
        let task = TaskBuilder::new().name("net rx").spawn(async {
            yield_now().await;
            trapline::current().unwrap()
        });
        let task = task.unwrap();
        assert_eq!(task.name(), Some("net rx"));
        let id = task.id().unwrap();
        assert_eq!(
            format!("{task:?}"),
            format!("JoinHandle {{ task: Some({id} \"net rx\"), finished: false }}")
        );
        let current = task.await.unwrap();
        assert_eq!((current.id(), current.name()), (id, Some("net rx")));
        assert_eq!(format!("{current}"), format!("{id} \"net rx\""));
        let spawner = LocalSpawner::current().unwrap();
        let local = TaskBuilder::new()
            .name("local")
            .spawn_local(spawner, async { trapline::current().unwrap().name() });
        assert_eq!(local.unwrap().await.unwrap(), Some("local"));
        let unnamed = spawn(async { trapline::current().unwrap() });
        assert_eq!(unnamed.name(), None);
        let current = unnamed.await.unwrap();
        assert_eq!(current.name(), None);
        assert_eq!(format!("{current}"), format!("{}", current.id()));
        early.await.unwrap();
    });
}

/// A name takes two words in the task's memory and no allocation of its own.
pub fn a_name_costs_two_words() {
    let runtime = runtime();
    let bytes = |spawn: &dyn Fn()| {
        let before = heap::counts();
        spawn();
        let after = heap::counts();
        assert_eq!(after.allocations, before.allocations + 1);
        after.bytes_live - before.bytes_live
    };
    let plain = bytes(&|| drop(runtime.spawn(async {})));
    let named = bytes(&|| drop(TaskBuilder::new().name("x").spawn_on(runtime, async {})));
    assert_eq!(named, plain + 2 * size_of::<usize>());
    runtime.shutdown().unwrap();
}

pub fn a_named_stackful_future_is_one_task() {
    run(async {
        let future = stackful(async { trapline::current().unwrap() });
        let task = TaskBuilder::new().name("hog").spawn(future).unwrap();
        let id = task.id().unwrap();
        let current = task.await.unwrap();
        assert_eq!((current.id(), current.name(), current.is_stackful()), (id, Some("hog"), true));
    });
}
