//! Other cores push into the inbox, while the owning core takes from it.

use std::sync::{Arc, Mutex};

use trapline::platform::InInterrupt::Unknown;

use crate::harness::{Signal, bounded, runtime};

/// Two cores spawn two tasks each. All tasks are polled, and the tasks of one core in the order in
/// which it spawned them.
#[test]
fn push_against_drain() {
    // Without the bound this takes hours: four pushes and any number of takes access one word.
    bounded(2, Unknown, || {
        let runtime = runtime();
        let signal = Signal::default();
        let order = Arc::new(Mutex::new(Vec::new()));
        let spawners: Vec<_> = (0..2)
            .map(|core| {
                let (signal, order) = (signal.clone(), order.clone());
                loom::thread::spawn(move || {
                    [0, 1].map(|number| {
                        let (signal, order) = (signal.clone(), order.clone());
                        runtime.spawn(async move {
                            order.lock().unwrap().push((core, number));
                            signal.fire();
                        })
                    })
                })
            })
            .collect();
        runtime.run_until(signal.wait(4)).unwrap();
        for spawner in spawners {
            drop(spawner.join().unwrap());
        }
        runtime.shutdown().unwrap();
        let order = order.lock().unwrap();
        assert_eq!(order.len(), 4);
        for core in 0..2 {
            let numbers = order.iter().filter(|polled| polled.0 == core).map(|polled| polled.1);
            assert!(
                numbers.eq([0, 1]),
                "core {core}: the tasks were polled in the order {order:?}"
            );
        }
    });
}
