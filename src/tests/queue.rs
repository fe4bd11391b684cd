//! The order of the FIFO, and what a push into the inbox returns.

use core::ptr::NonNull;
use std::vec::Vec;

use crate::queue::{Closed, Fifo, Inbox, Link, Linked, Push};
use crate::sync::UnsafeCell;

#[repr(align(8))]
struct Item {
    number: usize,
    link: UnsafeCell<Link<Self>>,
}

// SAFETY: the queues alone use `link`, and the alignment is 8.
unsafe impl Linked for Item {
    fn link(&self) -> &UnsafeCell<Link<Self>> {
        &self.link
    }
}

fn items() -> [Item; 5] {
    [0, 1, 2, 3, 4].map(|number| Item { number, link: UnsafeCell::new(None) })
}

/// Takes all items out, and returns their numbers in order.
fn drain(fifo: &Fifo<Item>) -> Vec<usize> {
    let mut numbers = Vec::new();
    while let Some(item) = fifo.pop() {
        // SAFETY: the items of a test outlive its queues.
        numbers.push(unsafe { item.as_ref() }.number);
    }
    numbers
}

#[test]
fn a_fifo_keeps_the_order() {
    let items = items();
    let [a, b, c, d, _] = items.each_ref().map(NonNull::from);
    let fifo = Fifo::new();
    assert!(fifo.is_empty() && fifo.first().is_none() && fifo.pop().is_none());
    // SAFETY: each item is in no queue when it is pushed.
    unsafe {
        fifo.push_back(b);
        fifo.push_back(c);
        fifo.push_front(a);
        fifo.push_back(d);
    }
    assert!(fifo.first() == Some(a) && fifo.is_last(d) && !fifo.is_last(c));
    let mut seen = Vec::new();
    // SAFETY: as in `drain`.
    fifo.each(|item| seen.push(unsafe { item.as_ref() }.number));
    assert_eq!((seen, drain(&fifo)), ([0, 1, 2, 3].to_vec(), [0, 1, 2, 3].to_vec()));
    // The tail of an empty FIFO has no meaning: the next push begins anew.
    // SAFETY: as above.
    unsafe {
        fifo.push_back(c);
        fifo.push_back(a);
    }
    assert_eq!(drain(&fifo), [2, 0]);
}

#[test]
fn a_push_to_the_front_of_an_empty_fifo_is_its_end_too() {
    let items = items();
    let [a, b, ..] = items.each_ref().map(NonNull::from);
    let fifo = Fifo::new();
    // SAFETY: each item is in no queue when it is pushed.
    unsafe {
        fifo.push_front(a);
        fifo.push_back(b);
    }
    assert_eq!(drain(&fifo), [0, 1]);
}

#[test]
fn rotating_puts_one_last_and_takes_the_first() {
    let items = items();
    let [a, b, c, ..] = items.each_ref().map(NonNull::from);
    let fifo = Fifo::new();
    // SAFETY: each item is in no queue when it is pushed.
    unsafe {
        // Nothing else waits: the item itself is the first.
        assert_eq!(fifo.rotate(a), a);
        assert!(fifo.is_empty());
        fifo.push_back(b);
        assert_eq!(fifo.rotate(a), b);
        assert_eq!(fifo.rotate(c), a);
    }
    assert_eq!(drain(&fifo), [2]);
}

#[test]
fn an_inbox_gives_back_in_the_order_of_the_pushes() {
    let items = items();
    let [a, b, c, d, e] = items.each_ref().map(NonNull::from);
    let (inbox, fifo) = (Inbox::new(), Fifo::new());
    assert!(inbox.is_empty());
    // SAFETY: each item is in no queue when it is pushed.
    unsafe {
        fifo.push_back(a);
        assert!(!inbox.push(b, Push::Urgent));
        assert!(!inbox.push(c, Push::Local));
        assert!(!inbox.push(d, Push::Reap));
    }
    assert!(!inbox.is_empty());
    inbox.take(&fifo, false);
    assert!(inbox.is_empty());
    // An inbox that is empty adds nothing.
    inbox.take(&fifo, false);
    // SAFETY: as above.
    unsafe { fifo.push_back(e) };
    assert_eq!(drain(&fifo), [0, 1, 2, 3, 4]);
}

#[test]
fn a_push_says_whether_the_core_must_be_notified() {
    // For each announcement: which pushes notify the core.
    let parked = [(Push::Urgent, true), (Push::Local, true), (Push::Reap, false)];
    let on_stack = [(Push::Urgent, true), (Push::Local, false), (Push::Reap, false)];
    for (announce, pushes) in [
        (Inbox::announce_park as fn(&Inbox<Item>) -> bool, parked),
        (Inbox::announce_stackful, on_stack),
    ] {
        for (push, notifies) in pushes {
            let items = items();
            let [a, b, ..] = items.each_ref().map(NonNull::from);
            let inbox = Inbox::new();
            assert!(announce(&inbox));
            // SAFETY: each item is in no queue when it is pushed.
            unsafe {
                assert_eq!(inbox.push(a, push), notifies, "{push:?}");
                // The core is notified once.
                assert!(!notifies || !inbox.push(b, push), "{push:?}");
            }
            // What was pushed since keeps the core from parking or entering a stack unseen.
            assert!(!announce(&inbox), "{push:?}");
        }
    }
}

#[test]
fn a_closed_inbox_refuses_new_tasks_only() {
    let items = items();
    let [a, b, c, ..] = items.each_ref().map(NonNull::from);
    let (inbox, fifo) = (Inbox::new(), Fifo::new());
    // SAFETY: each item is in no queue when it is pushed.
    unsafe {
        assert!(matches!(inbox.push_new(a, Push::Urgent), Ok(false)));
        inbox.close(&fifo);
        assert!(matches!(inbox.push_new(b, Push::Urgent), Err(Closed)));
        assert!(!inbox.push(c, Push::Urgent));
        // It stays closed when the core announces that it parks.
        inbox.take(&fifo, true);
        assert!(inbox.announce_park());
        assert!(matches!(inbox.push_new(b, Push::Urgent), Err(Closed)));
    }
    assert_eq!(drain(&fifo), [0, 2]);
}
