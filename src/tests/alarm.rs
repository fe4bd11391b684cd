//! What the alarm is set to, and when a slice is over.

use super::platform::{set_now, take_alarm};
use crate::time::alarm::{Alarm, MIN_STRETCH, NEVER, SliceLeft, nanoseconds, protection};

const SLICE: u64 = 1_000_000;

/// Returns what is left of a slice in nanoseconds; `None` if nothing is.
fn left(left: SliceLeft) -> Option<u64> {
    match left {
        SliceLeft::Nanoseconds(left) => Some(left),
        SliceLeft::Nothing => None,
    }
}

#[test]
fn an_alarm_is_set_only_for_an_earlier_time() {
    let alarm = Alarm::new();
    alarm.set_by(NEVER);
    assert_eq!(take_alarm(), None);
    alarm.set_by(500);
    assert_eq!(take_alarm(), Some(500));
    for later in [500, 501, NEVER] {
        alarm.set_by(later);
        assert_eq!(take_alarm(), None);
    }
    alarm.set_by(499);
    assert_eq!(take_alarm(), Some(499));
    // It has fired: what it was set to is not relied on.
    alarm.forget();
    alarm.set_by(500);
    assert_eq!(take_alarm(), Some(500));
}

#[test]
fn a_slice_ends_after_its_length_or_at_the_next_timer() {
    let alarm = Alarm::new();
    set_now(1_000);
    alarm.begin_slice(SLICE, NEVER);
    assert_eq!(take_alarm(), Some(1_000 + SLICE));
    assert_eq!(left(alarm.slice_left(1_000 + SLICE / 2, SLICE)), Some(SLICE / 2));
    assert_eq!(left(alarm.slice_left(1_000 + SLICE, SLICE)), None);
    alarm.forget();
    alarm.begin_slice(SLICE, 2_000);
    assert_eq!(take_alarm(), Some(2_000));
    // A timer is due, and the slice is not over.
    assert_eq!(alarm.look(2_000, SLICE, 2_000).map(left), Some(Some(SLICE - 1_000)));
}

#[test]
fn an_eighth_of_a_slice_counts_as_nothing() {
    let alarm = Alarm::new();
    set_now(0);
    alarm.begin_slice(SLICE, NEVER);
    assert_eq!(left(alarm.slice_left(SLICE - SLICE / 8, SLICE)), None);
    assert_eq!(left(alarm.slice_left(SLICE - SLICE / 8 - 1, SLICE)), Some(SLICE / 8 + 1));
}

#[test]
fn an_alarm_that_comes_too_early_is_set_again() {
    let alarm = Alarm::new();
    set_now(0);
    alarm.begin_slice(SLICE, NEVER);
    take_alarm();
    assert!(alarm.look(SLICE / 2, SLICE, NEVER).is_none());
    assert_eq!(take_alarm(), Some(SLICE));
    assert_eq!(alarm.look(SLICE, SLICE, NEVER).map(left), Some(None));
}

#[test]
fn a_second_task_begins_its_slice_under_the_same_alarm() {
    let alarm = Alarm::new();
    assert!(!alarm.begin_covered());
    set_now(0);
    alarm.begin_slice(SLICE, NEVER);
    take_alarm();
    // The clock isn't read and the alarm not set: the task gets a slice from when the alarm fires.
    set_now(SLICE / 2);
    assert!(alarm.begin_covered());
    assert_eq!(take_alarm(), None);
    assert!(alarm.look(SLICE, SLICE, NEVER).is_none());
    assert_eq!(take_alarm(), Some(2 * SLICE));
    alarm.forget();
    assert!(!alarm.begin_covered());
}

#[test]
fn a_grant_is_a_short_slice_and_protected() {
    let alarm = Alarm::new();
    set_now(0);
    alarm.begin_slice(SLICE, NEVER);
    alarm.grant(2 * MIN_STRETCH);
    assert!(!alarm.begin_covered());
    take_alarm();
    // A timer that is due earlier waits for the end of the protection.
    alarm.begin_slice(SLICE, 1);
    let protected = protection(2 * MIN_STRETCH);
    assert_eq!(take_alarm(), Some(protected));
    assert!(alarm.protects());
    assert!(alarm.stays(protected - 1) && alarm.take_deferred());
    assert_eq!(take_alarm(), Some(protected));
    assert!(!alarm.stays(protected) && !alarm.take_deferred());
    // The grant is for one slice.
    alarm.forget();
    alarm.begin_slice(SLICE, NEVER);
    assert_eq!(take_alarm(), Some(SLICE));
}

#[test]
fn due_timers_are_taken_once() {
    let alarm = Alarm::new();
    assert!(!alarm.is_due());
    alarm.set_due(7);
    assert!(alarm.is_due());
    assert_eq!(alarm.take_due(), 7);
    assert!(!alarm.is_due());
}

#[test]
fn durations_beyond_the_clock_are_never() {
    assert_eq!(nanoseconds(core::time::Duration::from_micros(3)), 3_000);
    assert_eq!(nanoseconds(core::time::Duration::MAX), NEVER);
}
