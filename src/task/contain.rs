//! The containment of user code that is called outside of a poll.

use core::ptr::NonNull;

use crate::platform::{PanicPayload, bound};
use crate::preempt::guard::PreemptGuard;
use crate::task::header::{Header, label};
use crate::task::panic::{TaskPanic, drop_payload, try_drop};

/// Calls `code`, which is user code outside of a poll of `task`. A panic of `code` ends here, and
/// is reported.
///
/// Does not check the preempt count: the loop does so in
/// [`Runtime::catch_user_panic`](crate::Runtime::catch_user_panic), and after a poll
/// [`Runtime::check_guards`](crate::Runtime::check_guards) does.
pub(crate) fn contain(task: NonNull<Header>, code: impl FnOnce()) {
    let mut code = Some(code);
    let caught = bound::catch_unwind(&mut || {
        if let Some(code) = code.take() {
            code();
        }
    });
    if let Err(payload) = caught {
        discard(task, payload);
    }
}

/// Reports a panic of `task`, which the caller keeps alive, and drops the payload. If that drop
/// panics, reports that panic as well.
#[cold]
#[inline(never)]
pub(crate) fn discard(task: NonNull<Header>, payload: PanicPayload) {
    report(task, &payload);
    if let Err(again) = try_drop(payload) {
        report(task, &again);
        drop_payload(again);
    }
}

/// Calls the hook of the task's runtime with a panic of `task`. The caller keeps the task alive.
#[cold]
#[inline(never)]
pub(crate) fn report(task: NonNull<Header>, payload: &PanicPayload) {
    // SAFETY: the caller keeps the task alive.
    let runtime = unsafe { task.as_ref() }.runtime.get();
    let Some(hook) = runtime.and_then(|runtime| runtime.on_panic()) else { return };
    // SAFETY: as above.
    let panic = TaskPanic { task: unsafe { label(task) }, payload };
    let called = bound::catch_unwind(&mut || {
        // The hook may share locks with plain tasks, so it is not preempted in any place where it
        // is called.
        let _guard = PreemptGuard::new();
        hook(&panic);
    });
    if let Err(again) = called {
        drop_payload(again);
    }
}
