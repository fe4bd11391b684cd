//! The sizes of stacks, and the messages and signals that follow an overflow.

use std::future::{Future, poll_fn};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use atomic_waker::AtomicWaker;
use trapline::preempt::PreemptGuard;
use trapline::time::sleep;
use trapline::{
    Config, ConfigError, EnterError, JoinError, Runtime, TaskBuilder, block_on, spawn, stackful,
    yield_now,
};

use crate::support::*;

/// Uses up the stack except for `bytes` bytes, and calls `then` there.
fn with_only(bytes: usize, then: &dyn Fn()) {
    let here = std::hint::black_box([0_u8; 32]);
    let stack = trapline::stackful::current_stack().expect("in a stackful task");
    assert!(stack.contains(&here.as_ptr().addr()));
    if here.as_ptr().addr() - stack.start > bytes {
        with_only(bytes, then);
    } else {
        then();
    }
    std::hint::black_box(here);
}

/// Overflows its stack.
fn recurse(depth: usize) -> usize {
    let here = std::hint::black_box([depth; 32]);
    if here[1] == usize::MAX { 0 } else { recurse(depth + 1) + here[1] }
}

/// Spins with too little stack for a signal, and without any call that needs stack. It ends only
/// with its task.
fn spin() {
    let until = trapline::time::now() + Duration::from_secs(10);
    with_only(900, &|| while std::hint::black_box(true) {});
    assert!(trapline::time::now() < until);
}

/// Causes a fault that is not an overflow.
fn write_wildly() {
    // SAFETY: none: the fault is the purpose, and ends the process or the task.
    unsafe { std::ptr::null_mut::<u8>().write_volatile(1) }
}

/// A thread wakes a task while another task's stack has no space for the signal. Then it wakes one
/// again, with enough space.
fn wakes_end(name: &'static str) {
    static WOKEN: AtomicWaker = AtomicWaker::new();
    static WAKES: AtomicUsize = AtomicUsize::new(0);
    /// Returns a future that waits for wake number `n`.
    fn woken(n: usize) -> impl Future<Output = ()> {
        poll_fn(move |context| {
            WOKEN.register(context.waker());
            if WAKES.load(SeqCst) >= n { Poll::Ready(()) } else { Poll::Pending }
        })
    }
    let wakes_soon = || {
        std::thread::spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            WAKES.fetch_add(1, SeqCst);
            WOKEN.wake();
        })
    };
    // No slice ends.
    let config = Config { slice: Duration::from_secs(1000), ..Config::new() };
    let runtime = hal_shim::test::keep(Runtime::with_config(config));
    let test = async || {
        let waits = spawn(async { woken(1).await });
        let task = TaskBuilder::new().name(name).spawn(stackful(async { spin() })).unwrap();
        wakes_soon();
        assert!(matches!(task.await, Err(JoinError::Abandoned)));
        waits.await.unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let sets = done.clone();
        let waits = spawn(async move {
            woken(2).await;
            sets.store(1, SeqCst);
        });
        // The task is BLOCKED after this.
        yield_now().await;
        yield_now().await;
        wakes_soon();
        spawn(stackful(hog_until(done))).await.unwrap();
        waits.await.unwrap();
        hal_shim::println!("went on");
    };
    // SAFETY: as in `with_runtime`.
    unsafe { hal_shim::isolated(|| runtime.run_until(test()).unwrap()) };
}

/// Lets a slice end where the stack has space for all that happens at its end, for the signal's
/// frame only, or not even for that.
fn end_with_little_room() {
    with_runtime(|runtime| {
        handle(libc::SIGSEGV, libc::SA_ONSTACK, &[], ends_the_task);
        let test = async || {
            for room in (800..9000).step_by(32) {
                let done = Arc::new(AtomicUsize::new(0));
                // The task has little space from now on, or has ended.
                let is_there = Arc::new(AtomicUsize::new(0));
                let (sees, begins) = (done.clone(), is_there.clone());
                let task = spawn(stackful(async move {
                    with_only(room, &|| {
                        begins.store(1, SeqCst);
                        while sees.load(SeqCst) == 0 {}
                    });
                }));
                let begun = is_there.clone();
                let sets = spawn(stackful(async move {
                    // On a busy host, the first slice of the task may end before it is there.
                    while begun.load(SeqCst) == 0 {
                        yield_now().await;
                    }
                    compute_for(Duration::from_millis(3));
                    done.store(1, SeqCst);
                }));
                let ended = task.await;
                is_there.store(1, SeqCst);
                assert!(
                    ended.is_err() || room > 1000,
                    "no fault came though only {room} bytes were left"
                );
                sets.await.unwrap();
                hogs_are_preempted().await;
            }
        };
        runtime.run_until(test()).unwrap();
        hal_shim::println!("went on");
    });
}

#[test]
fn an_overflow_says_whose_before_the_process_dies() {
    use std::os::unix::process::ExitStatusExt;

    const TEST: &str = "stacks::an_overflow_says_whose_before_the_process_dies";
    let overflows = |name, f: fn()| {
        with_runtime(|runtime| {
            runtime
                .run_until(async {
                    // With a second task on the core, the end of the slice preempts.
                    let other = spawn(stackful(async { compute_for(Duration::from_millis(50)) }));
                    let task = TaskBuilder::new().name(name).spawn(stackful(async move { f() }));
                    let ended = task.unwrap().await;
                    assert!(matches!(ended, Err(JoinError::Abandoned)));
                    hal_shim::println!("ended");
                    other.await.unwrap();
                    hogs_are_preempted().await;
                    hal_shim::println!("went on");
                })
                .unwrap();
        });
    };
    let ends = || handle(libc::SIGSEGV, libc::SA_ONSTACK, &[], ends_the_task);
    // Each entry: the case; whether stderr reports an overflow; whether the process dies.
    for (case, says, dies) in [
        ("deep", true, true),
        ("no room for a signal", true, true),
        ("wild", false, true),
        ("ended by one sent", false, false),
        // In the following cases the program has a handler of its own, installed before the
        // overflow or later.
        ("ended", true, false),
        ("ended without room", true, false),
        ("ended by a wake without room", true, false),
        ("ended later", false, false),
        ("ended with little room", false, false),
        ("ended wild", false, false),
    ] {
        match in_child(TEST, case).as_ref().map_err(String::as_str) {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let all = format!("{case}: {output:?}");
                // AddressSanitizer's handler ends the process in its own way.
                let died = match output.status.signal() {
                    Some(signal) => signal == libc::SIGSEGV,
                    None => cfg!(address_sanitizer) && !output.status.success(),
                };
                assert_eq!(died, dies, "{all}");
                let name = format!("\"{case}\" overflowed its stack of ");
                assert_eq!(said.contains(&name), says, "{all}");
                assert_eq!(said.contains("overflowed"), says, "{all}");
                let went_on = String::from_utf8_lossy(&output.stdout).contains("went on");
                assert_eq!(went_on, !dies, "{all}");
            }
            Err("deep") => overflows("deep", || _ = recurse(0)),
            Err("no room for a signal") => overflows("no room for a signal", spin),
            Err("wild") => overflows("wild", write_wildly),
            Err("ended by one sent") => {
                ends();
                // SAFETY: `raise` has no conditions.
                overflows("ended by one sent", || _ = unsafe { libc::raise(libc::SIGSEGV) });
            }
            Err("ended") => {
                ends();
                overflows("ended", || _ = recurse(0));
            }
            Err("ended without room") => {
                ends();
                overflows("ended without room", spin);
            }
            Err("ended by a wake without room") => {
                ends();
                wakes_end("ended by a wake without room");
            }
            Err("ended with little room") => end_with_little_room(),
            Err("ended later") => overflows("ended later", || {
                handle(libc::SIGSEGV, libc::SA_ONSTACK, &[], ends_the_task);
                recurse(0);
            }),
            Err(_) => {
                ends();
                overflows("ended wild", write_wildly);
            }
        }
        if std::env::var_os("TRAPLINE_TEST_CASE").is_some() {
            return;
        }
    }
}

/// The processor's registers determine the size of a signal's frame, for which a stack must have
/// space.
#[test]
fn the_min_stack_grows_with_linuxs_signal_frames() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    const TEST: &str = "stacks::the_min_stack_grows_with_linuxs_signal_frames";
    let Err(_) = in_child(TEST, "grows") else {
        let output = in_child(TEST, "grows").unwrap();
        assert!(output.status.success(), "{output:?}");
        return;
    };
    let least = || {
        let config = Config { stack_size: 16, ..Config::new() };
        let runtime = hal_shim::test::keep(Runtime::with_config(config));
        // SAFETY: as in `with_runtime`.
        match unsafe { hal_shim::isolated(|| runtime.run_until(async {}).unwrap_err()) } {
            EnterError::Config(ConfigError::StackTooSmall { least }) => least,
            other => panic!("{other}"),
        }
    };
    let before = least();
    // The auxiliary vector lies behind the environment. It consists of pairs, and AT_MINSIGSTKSZ is
    // the key of one.
    // SAFETY: no code in this process has changed the environment, and none reads the vector
    // meanwhile.
    let entry = unsafe {
        let mut rest = environ;
        while !rest.read().is_null() {
            rest = rest.add(1);
        }
        let mut entry = rest.add(1).cast::<[usize; 2]>();
        while (*entry)[0] != 51 {
            assert_ne!((*entry)[0], 0, "Linux does not report AT_MINSIGSTKSZ");
            entry = entry.add(1);
        }
        entry
    };
    // SAFETY: as above.
    let told = unsafe { entry.replace([51, 4096 + 10_000]) };
    let after = least();
    // std reads the vector again later, so the entry is restored.
    // SAFETY: as above.
    unsafe { entry.write(told) };
    assert_eq!(after, before + 20_000);
}

/// Overwrites the lowest word of a stack, as an overflow does that no guard catches. The program
/// ends when the core leaves the stack, in whatever way, and names the task.
#[test]
fn a_broken_canary_names_the_task() {
    const CHILD: &str = "TRAPLINE_TEST_CANARY";
    const NAME: &str = "stacks::a_broken_canary_names_the_task";
    /// Returns the start of the mapping in which the caller's stack lies.
    fn lowest_word() -> *mut usize {
        let local = 0_u8;
        let here = (&raw const local).addr();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = maps.lines().find_map(|line| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            let [start, end] = [start, end].map(|at| usize::from_str_radix(at, 16).unwrap());
            (start..end).contains(&here).then_some(start)
        });
        std::ptr::with_exposed_provenance_mut(start.unwrap())
    }
    let Some(how) = std::env::var_os(CHILD) else {
        for how in ["ends", "awaits", "suspends", "preempted", "intact"] {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", NAME, "--nocapture"])
                .env(CHILD, how)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stderr);
            assert_eq!(child.status.success(), how == "intact", "{how}: {said}");
            let names = said.contains("\"culprit\" overflowed its stack: set Config::stack_size");
            assert_eq!(names, how != "intact", "{how}: {said}");
            assert!(!said.contains("it went on"), "{how}: {said}");
        }
        return;
    };
    let how = how.into_string().unwrap();
    with_runtime(move |runtime| {
        let culprit = async move {
            let word = {
                let _guard = PreemptGuard::new();
                lowest_word()
            };
            if how != "intact" {
                // SAFETY: none: the canary is there to detect this.
                unsafe { word.write(0) };
            }
            match how.as_str() {
                "ends" | "intact" => {}
                "awaits" => yield_now().await,
                "suspends" => block_on(sleep(Duration::from_millis(1))),
                _ => compute_for(Duration::from_millis(100)),
            }
        };
        runtime
            .run_until(async move {
                let culprit =
                    TaskBuilder::new().name("culprit").spawn(stackful(culprit)).expect("memory");
                let neighbour = spawn(stackful(async { compute_for(Duration::from_millis(5)) }));
                let is_intact = culprit.await.is_ok();
                neighbour.await.unwrap();
                if std::env::var_os(CHILD).unwrap() != "intact" {
                    eprintln!("it went on: {is_intact}");
                }
            })
            .unwrap();
    });
}

/// Home is the stack of the code that entered the runtime. A plain task may use all of it, whatever
/// stackful tasks do at the same time.
#[test]
fn a_plain_task_has_all_of_the_home_stack() {
    fn deep(bytes: usize) -> usize {
        let here = std::hint::black_box([1_u8; 1024]);
        if bytes > here.len() { deep(bytes - here.len()) + usize::from(here[7]) } else { 0 }
    }
    with_runtime(|runtime| {
        let test = async {
            let done = Arc::new(AtomicUsize::new(0));
            let hog = spawn(stackful(hog_until(done.clone())));
            let seen = done.clone();
            let yields = spawn(stackful(async move {
                while seen.load(SeqCst) == 0 {
                    yield_now().await;
                }
            }));
            let plain = spawn(async {
                for _ in 0..20 {
                    // This is more than a pooled stack has.
                    assert_eq!(deep(160 * 1024), 159);
                    sleep(Duration::from_micros(300)).await;
                }
            });
            plain.await.unwrap();
            done.store(1, SeqCst);
            hog.await.unwrap();
            yields.await.unwrap();
        };
        runtime.run_until(test).unwrap();
    });
}
