//! The kinds of tasks: plain, stackful, in a static cell, not `Send`, with a name, with a value of
//! its own.
//!
//! ```text
//! cargo run --example tasks                       on Linux
//! cargo xtask qemu riscv64 tasks                  on a RISC-V machine in QEMU
//! ```
#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

use alloc::rc::Rc;
use core::cell::Cell;
use core::hint::black_box;
use core::time::Duration;

use hal_shim::println;
use trapline::time::{sleep, timeout};
use trapline::{
    LocalSpawner, Runtime, SpawnErrorReason, TaskBuilder, current, spawn, stackful, static_task,
    task_local,
};

// `unsafe` promises that stackful tasks stick to what hosted code may do.
hal_shim::entry!(unsafe program);

static RUNTIME: Runtime = Runtime::new();

fn program() {
    let ran = RUNTIME.run_until(async {
        computing().await;
        in_a_static_cell().await;
        on_one_core().await;
        with_a_name().await;
        with_a_value().await;
    });
    if let Err(error) = ran {
        println!("{error}");
        hal_shim::exit(1);
    }
}

/// The difference. (Not called here: the first one would keep the core for ever.)
#[expect(dead_code)]
#[rustfmt::skip]
fn two_hogs() {
    trapline::spawn(async { loop { work() } });            // keeps the core for itself
    trapline::spawn(stackful(async { loop { work() } }));  // is preempted: the others run
}

fn work() {
    black_box(());
}

/// Computes for a while, and never awaits.
fn derive_key() -> u64 {
    (0..1_000_000).map(black_box).sum()
}

async fn ask(key: u64) -> u64 {
    sleep(Duration::from_millis(2)).await;
    key / 1_000_000
}

async fn computing() {
    spawn(async {
        let key = stackful(async { derive_key() }).await; // a child task, which is preempted
        let answer = timeout(Duration::from_secs(1), ask(key)).await; // without a stack
        println!("computed: {answer:?}");
    })
    .await
    .expect("it is not aborted");
}

static_task!(static BLINK: blink); // the cell is as large as the function's future

async fn blink(times: u32) {
    for _ in 0..times {
        sleep(Duration::from_millis(1)).await;
    }
    println!("blinked {times} times");
}

async fn in_a_static_cell() {
    let first = BLINK.spawn(blink(3)).expect("the cell is free");
    let second = BLINK.spawn(blink(4)); // the error gives the future back
    assert_eq!(second.unwrap_err().reason, SpawnErrorReason::InUse);
    first.await.expect("it is not aborted");
}

async fn on_one_core() {
    let shared = Rc::new(Cell::new(0));
    let copy = shared.clone();
    let spawner = LocalSpawner::current().expect("this is a plain task");
    let task = spawner.spawn(async move { copy.set(copy.get() + 1) }); // need not be `Send`
    task.await.expect("it is not aborted");
    println!("counted to {}", shared.get());
}

async fn with_a_name() {
    let receive = async { println!("this is {:?}", current().and_then(|task| task.name())) };
    let task = TaskBuilder::new().name("net rx").spawn(receive); // messages and panics name it
    task.expect("there is memory").await.expect("it is not aborted");
}

task_local! { static REQUEST: Cell<u32>; }

async fn with_a_value() {
    let serve = async { println!("serves request {}", REQUEST.with(Cell::get)) };
    let task = spawn(REQUEST.scope(Cell::new(7), serve)); // nothing is allocated for the value
    task.await.expect("it is not aborted");
}
