//! Helpers that several of these modules use.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use trapline::time::sleep;
use trapline::{JoinError, Runtime, spawn, stackful};

/// Runs `test` on a core of its own, with a new runtime.
pub fn with_runtime(test: impl FnOnce(&'static Runtime) + Send) {
    let runtime = hal_shim::test::keep(Runtime::new());
    // SAFETY: these tests use no standard streams, thread-locals or locks in stackful tasks.
    unsafe { hal_shim::isolated(|| test(runtime)) }
}

/// Spins for `duration`, during which slices may end.
pub fn compute_for(duration: Duration) {
    let until = trapline::time::now() + duration;
    while trapline::time::now() < until {}
}

/// Returns the message of the panic that an error reports.
pub fn message(error: JoinError) -> String {
    match error {
        JoinError::Panicked(payload) => payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|text| text.to_string()))
            .expect("a message"),
        other => panic!("{other}"),
    }
}

pub struct CountDrop(pub Arc<AtomicUsize>);
impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Computes until another task sets `done`, for at most 10 seconds.
pub async fn hog_until(done: Arc<AtomicUsize>) {
    let until = trapline::time::now() + Duration::from_secs(10);
    while done.load(SeqCst) == 0 {
        assert!(trapline::time::now() < until, "no other task ran beside the hog");
    }
}

/// Checks that hogs are preempted on this core: when only a slice ends, and when a timer is due.
pub async fn hogs_are_preempted() {
    let done = Arc::new(AtomicUsize::new(0));
    let hog = spawn(stackful(hog_until(done.clone())));
    let sets = spawn(stackful(async move { done.store(1, SeqCst) }));
    hog.await.unwrap();
    sets.await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let hog = spawn(stackful(hog_until(done.clone())));
    sleep(Duration::from_millis(3)).await;
    done.store(1, SeqCst);
    hog.await.unwrap();
}

/// Installs `handler` for `signal`. While it runs, `blocks` are blocked, and so is `signal` itself
/// unless `flags` say otherwise.
pub fn handle(
    signal: libc::c_int,
    flags: libc::c_int,
    blocks: &[libc::c_int],
    handler: extern "C" fn(libc::c_int),
) {
    // SAFETY: all-zero is a valid value of this C structure. The handlers in these tests only do
    // what a handler may do.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = flags;
        for &blocked in blocks {
            libc::sigaddset(&mut action.sa_mask, blocked);
        }
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

pub extern "C" fn ends_the_task(_: libc::c_int) {
    // SAFETY: as in the handler of a fault: the task does not go on, and no lock is held.
    hal_shim::interrupt::in_signal_handler(|| unsafe { trapline::preempt::end_task() });
}

/// Runs this test as `case` in a process of its own, and returns its output. In that process,
/// returns the name of the case as an error.
pub fn in_child(test: &str, case: &str) -> Result<std::process::Output, String> {
    const CASE: &str = "TRAPLINE_TEST_CASE";
    if let Ok(case) = std::env::var(CASE) {
        return Err(case);
    }
    Ok(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CASE, case)
        .output()
        .unwrap())
}
