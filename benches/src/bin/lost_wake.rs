//! Counts lost wakes, to show that a wake must write even if the task is woken already.
//!
//! Some runtimes first read the state by a plain load and return if the task is READY. That load
//! does not order the waker's data before it: the data may still be in the core's store buffer when
//! the task's core takes the task and polls it, and the poll misses the data. No other wake
//! follows. This happens on x86 too.
//!
//! maitake's `wake_by_ref`, which is `load-first` below, does this, and tokio's did (1.47.1 loses a
//! wake in a few hundred rounds here; 1.54.1, which writes, loses none).
//!
//! One core runs a task that waits for a number. In each round the other core wakes it, waits for a
//! random time, stores the next number and wakes it again, often just when the task is about to be
//! polled for the first wake. The wake is lost if the task has not seen the number after a thousand
//! turns of its core's loop. The task is then woken once more.
//!
//! Run it as `lost_wake [ROUNDS]` on two idle cores. `load-first` and `always-write` are an
//! executor of one task with each way to wake.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

hal_shim::entry!(unsafe program);

/// A value on its own cache line, as a store is slow to a line that the other core has just read.
#[derive(Default)]
#[repr(align(128))]
struct Shared<T>(T);

/// The state that the two cores share in the rounds of one implementation.
#[derive(Default)]
struct Game {
    /// The number that the task waits for.
    number: Shared<AtomicUsize>,
    /// The last number that it has seen.
    seen: Shared<AtomicUsize>,
    /// The number of turns of the loop of the task's core.
    turns: Shared<AtomicUsize>,
    over: AtomicBool,
    waker: OnceLock<Waker>,
}

impl Game {
    /// Polls the task.
    fn poll(&self, context: &Context<'_>) -> Poll<()> {
        self.waker.get_or_init(|| context.waker().clone());
        // Relaxed, as the wake must make the number visible.
        self.seen.0.store(self.number.0.load(Relaxed), Relaxed);
        if self.over.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Counts a turn of the loop of the task's core, which never waits. Returns whether it goes on.
    fn turn(&self) -> bool {
        // Release: a core that reads a later turn also reads what the task had seen before it.
        self.turns.0.fetch_add(1, Release);
        !self.over.load(Relaxed)
    }

    /// Runs the rounds of the other core and returns the number of lost wakes.
    fn play(&self, rounds: usize) -> usize {
        pin(0);
        while self.waker.get().is_none() {
            std::hint::spin_loop();
        }
        let waker = self.waker.get().expect("the loop has seen it");
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut lost = 0;
        for number in 1..=rounds {
            waker.wake_by_ref();
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            for step in 0..(random >> 33) % (1 << ((random >> 60) % 12)) {
                std::hint::black_box(step);
            }
            self.number.0.store(number, Relaxed);
            waker.wake_by_ref();
            let mut enough = self.turns.0.load(Relaxed) + 1_000;
            while self.seen.0.load(Relaxed) != number {
                if self.turns.0.load(Acquire) > enough && self.seen.0.load(Relaxed) != number {
                    lost += 1;
                    waker.wake_by_ref();
                    enough = usize::MAX;
                }
                std::hint::spin_loop();
            }
        }
        self.over.store(true, Relaxed);
        waker.wake_by_ref();
        lost
    }
}

/// Runs a game's task on its own core until the game is over.
type Player = fn(&'static Game);

fn pin(core: usize) {
    // SAFETY: all-zero is a valid empty set, to which one core is added.
    let result = unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    assert_eq!(result, 0, "this needs two cores");
}

/// The state of a task, with a queue that holds only this task.
struct One {
    state: AtomicUsize,
    queued: AtomicBool,
    load_first: bool,
}

const READY: usize = 1;
const RUNNING: usize = 2;

impl One {
    fn run(load_first: bool, game: &Game) {
        let one = Arc::new(Self { state: READY.into(), queued: true.into(), load_first });
        let waker = Waker::from(one.clone());
        let context = Context::from_waker(&waker);
        while game.turn() {
            if !one.queued.load(Relaxed) || !one.queued.swap(false, Acquire) {
                continue;
            }
            one.state.fetch_add(RUNNING - READY, AcqRel);
            let _ = game.poll(&context);
            if one.state.fetch_sub(RUNNING, AcqRel) & READY != 0 {
                one.queued.store(true, Relaxed);
            }
        }
    }
}

impl Wake for One {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.load_first && self.state.load(Acquire) & READY != 0 {
            return;
        }
        if self.state.fetch_or(READY, AcqRel) & (READY | RUNNING) == 0 {
            self.queued.swap(true, AcqRel);
        }
    }
}

fn trapline(game: &'static Game) {
    // SAFETY: no task here is stackful.
    unsafe {
        hal_shim::isolated(|| {
            let runtime: &'static trapline::Runtime = Box::leak(Box::new(trapline::Runtime::new()));
            let task = runtime.spawn(poll_fn(|context| game.poll(context)));
            let mut beside = pin!(async {
                while game.turn() {
                    trapline::yield_now().await;
                }
                task.await
            });
            let ended = runtime.run_until(poll_fn(|context| beside.as_mut().poll(context)));
            ended.expect("a free core").expect("a task that ends");
        });
    }
}

fn tokio(game: &'static Game) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let task = tokio::spawn(poll_fn(|context| game.poll(context)));
        while game.turn() {
            tokio::task::yield_now().await;
        }
        task.await.expect("a task that ends");
    });
}

fn program() {
    let rounds = std::env::args().nth(1).map_or(5_000_000, |n| n.parse().expect("ROUNDS"));
    let players: [(_, Player); 4] = [
        ("load-first", |game| One::run(true, game)),
        ("always-write", |game| One::run(false, game)),
        ("tokio", tokio),
        ("trapline", trapline),
    ];
    for (name, player) in players {
        let game: &'static Game = Box::leak(Box::default());
        let player = thread::spawn(move || {
            pin(1);
            player(game);
        });
        let lost = thread::spawn(move || game.play(rounds)).join().expect("the rounds");
        player.join().expect("the player");
        println!("{name:<12} {rounds} rounds, {lost} wakes lost");
    }
}
