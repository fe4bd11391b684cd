//! The order in which timers fire.

use core::ptr::NonNull;
use core::task::Waker;
use std::vec::Vec;

use crate::time::alarm::NEVER;
use crate::time::list::{Node, Timers};

/// Puts a timer into the list for each deadline.
fn inserted(timers: &Timers, nodes: &mut [Node]) -> Vec<NonNull<Node>> {
    nodes
        .iter_mut()
        .map(|node| {
            let node = NonNull::from(node);
            // SAFETY: the node is in no list, and outlives the list's use. This is task context.
            assert!(unsafe { timers.insert(node, &mut Some(Waker::noop().clone())) });
            node
        })
        .collect()
}

/// Fires all timers that are due at `now`, and returns which nodes have fired.
fn fired(timers: &Timers, nodes: &[NonNull<Node>], now: u64) -> Vec<usize> {
    // SAFETY: this is the place of the loop.
    while let Some(waker) = unsafe { timers.pop_due(now) } {
        assert!(waker.is_some());
    }
    let has_fired = |node: &NonNull<Node>| {
        // SAFETY: the node is in this list or in none, and alive.
        unsafe { timers.renew(*node, &mut Some(Waker::noop().clone())) }.fired
    };
    (0..nodes.len()).filter(|&index| has_fired(&nodes[index])).collect()
}

#[test]
fn timers_fire_at_their_deadlines_and_never_before() {
    let timers = Timers::new();
    let mut nodes = [30, 10, 20, 10].map(Node::new);
    assert_eq!(timers.next(), NEVER);
    let nodes = inserted(&timers, &mut nodes);
    assert_eq!(timers.next(), 10);
    assert_eq!(fired(&timers, &nodes, 9), []);
    assert_eq!(fired(&timers, &nodes, 10), [1, 3]);
    assert_eq!(timers.next(), 20);
    assert_eq!(fired(&timers, &nodes, 100), [0, 1, 2, 3]);
    assert_eq!(timers.next(), NEVER);
}

#[test]
fn a_timer_that_is_taken_out_does_not_fire() {
    let timers = Timers::new();
    let mut nodes = [10, 20, 30].map(Node::new);
    let nodes = inserted(&timers, &mut nodes);
    for (index, next) in [(1, 10), (0, 30), (2, NEVER)] {
        // SAFETY: the node is in this list, and this is task context.
        assert!(!unsafe { timers.remove(nodes[index]) }.fired);
        assert_eq!(timers.next(), next);
    }
    assert_eq!(fired(&timers, &nodes, 100), []);
    // Out of the list already: nothing happens.
    // SAFETY: as above.
    assert!(!unsafe { timers.remove(nodes[0]) }.fired);
}

#[test]
fn a_closed_list_gives_all_wakers_and_takes_no_timer() {
    let timers = Timers::new();
    let mut nodes = [10, 20].map(Node::new);
    let nodes = inserted(&timers, &mut nodes);
    let mut wakers = 0;
    // SAFETY: this is task context.
    while let Some(waker) = unsafe { timers.close() } {
        wakers += usize::from(waker.is_some());
    }
    assert_eq!((wakers, timers.next()), (2, NEVER));
    // They were not due.
    assert_eq!(fired(&timers, &nodes, 100), []);
    let mut late = Node::new(30);
    let mut waker = Some(Waker::noop().clone());
    // SAFETY: the node is in no list.
    assert!(!unsafe { timers.insert(NonNull::from(&mut late), &mut waker) });
    assert!(waker.is_some());
}
