//! Traps as values: user programs and their faults, traps in traps, overflowed stacks.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::{Future as _, poll_fn};
use core::pin::pin;
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use core::task::Poll;
use core::time::Duration;

use hal_shim::user::{MapError, Rights, Space};
use hal_shim::{heap, interrupt, trap};
use trapline::arch::TrapContext;
use trapline::time::{now, sleep};
use trapline::trap::{Access, Trap};
use trapline::{
    Config, Hooks, JoinError, Runtime, block_on, contexted, preempt, spawn, stackful, yield_now,
};

use crate::support::*;

#[cfg(target_arch = "loongarch64")]
#[path = "users/loongarch64.rs"]
pub(crate) mod arch;
#[cfg(target_arch = "riscv64")]
#[path = "users/riscv64.rs"]
pub(crate) mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "users/x86_64.rs"]
pub(crate) mod arch;

#[cfg(target_arch = "riscv64")]
pub use arch::a_programs_rounding_is_not_the_kernels;
#[cfg(target_arch = "x86_64")]
pub use arch::{
    a_program_has_no_segments_of_its_own, a_programs_flags_are_not_the_kernels,
    an_nmi_finds_the_core_where_gs_is_a_programs, nmis_meet_system_calls,
};

/// An address in the programs' code.
#[repr(C)]
pub struct Label {
    byte: u8,
}

macro_rules! labels {
    ($($name:ident = $symbol:literal,)*) => {
        // SAFETY: the architecture's assembly defines the symbols. Only their addresses are taken.
        unsafe extern "C" {
            $(#[link_name = $symbol] safe static $name: Label;)*
        }
    };
}

labels! {
    CODE = "user_code",
    CODE_END = "user_code_end",
    CALL = "user_call",
    SPIN = "user_spin",
    SPIN_A_WHILE = "user_spin_a_while",
    LOAD = "user_load",
    STORE = "user_store",
    JUMP = "user_jump",
    PUSH = "user_push",
    BREAKPOINT = "user_breakpoint",
    SHORT_BREAKPOINT = "user_short_breakpoint",
    ILLEGAL = "user_illegal",
    PRIVILEGED = "user_privileged",
    OTHER = "user_other",
    POISON = "user_poison",
    COMPUTE = "user_compute",
    REGISTERS = "user_registers",
    THREAD_POINTER = "user_thread_pointer",
}

fn address(label: &Label) -> usize {
    core::ptr::from_ref(label).addr()
}

/// The addresses of the programs' code, stack and data.
const CODE_AT: usize = 0x10_0000_0000;
const STACK_AT: usize = 0x20_0000_0000;
const DATA_AT: usize = 0x3f_0000_0000;
/// An address at which nothing is mapped.
const NOWHERE: usize = 0x30_0000_0000;

/// An address space that maps all programs.
struct Process {
    space: Space,
}

impl Process {
    fn new() -> Arc<Self> {
        let size = address(&CODE_END) - address(&CODE);
        // SAFETY: the assembly defines all bytes from the first label to the second.
        let code = unsafe { core::slice::from_raw_parts((&raw const CODE).cast::<u8>(), size) };
        let mut space = Space::new().unwrap();
        let executable = Rights { write: false, execute: true };
        let writable = Rights { write: true, execute: false };
        space.map(CODE_AT, size.div_ceil(Space::PAGE), executable).unwrap();
        space.map(STACK_AT, 1, writable).unwrap();
        space.map(DATA_AT, 1, writable).unwrap();
        space.write(CODE_AT, code).unwrap();
        Arc::new(Self { space })
    }

    /// Writes the first word of the program's data. The program may be running.
    fn set_data(&self, value: u64) {
        self.space.write(DATA_AT, &value.to_le_bytes()).unwrap();
    }
}

impl Hooks for Process {
    fn enter(&self) {
        // SAFETY: the owner of the hooks keeps the space alive until `leave`.
        unsafe { self.space.load() };
    }

    fn leave(&self) {
        Space::unload();
    }
}

/// Returns the context of a program that begins at `label`.
fn program(label: &Label, arguments: [usize; 6]) -> TrapContext {
    let entry = CODE_AT + address(label) - address(&CODE);
    TrapContext::user(entry, STACK_AT + Space::PAGE).with_arguments(arguments)
}

/// Runs a program until its next trap.
fn run_user(context: &mut TrapContext) -> Trap {
    // SAFETY: `hal-shim` has installed the trap entry, this is task context, and a process's space
    // is loaded.
    unsafe { context.run() }
}

/// Runs `label` in a new space, outside of a runtime, until the first trap that is not an
/// interrupt.
fn first_trap(label: &Label, argument: usize) -> (Trap, TrapContext) {
    let process = Process::new();
    let mut context = program(label, [argument, 0, 0, 0, 0, 0]);
    process.enter();
    let trap = next_trap(&mut context);
    process.leave();
    (trap, context)
}

/// Runs a program until its next trap that is not an interrupt.
fn next_trap(context: &mut TrapContext) -> Trap {
    loop {
        match run_user(context) {
            Trap::Timer | Trap::Interrupt(_) => {}
            trap => return trap,
        }
    }
}

pub fn first_entry_passes_arguments() {
    let process = Process::new();
    let mut context = program(&CALL, [11, 12, 13, 14, 15, 16]);
    process.enter();
    assert_eq!(next_trap(&mut context), Trap::Syscall);
    let call = context.syscall();
    assert_eq!((call.number, call.arguments), (0, [11, 12, 13, 14, 15, 16]));
    assert_eq!(context.sp(), STACK_AT + Space::PAGE);
    // The result of the first call is the number of the next one; the other registers are
    // unchanged.
    context.set_result(usize::MAX);
    assert_eq!(next_trap(&mut context), Trap::Syscall);
    process.leave();
    let call = context.syscall();
    assert_eq!(call.number, usize::MAX);
    assert_eq!(call.arguments[1..], [12, 13, 14, 15, 16]);
}

pub fn faults_are_values() {
    let fault = |addr, access| Trap::PageFault { addr, access };
    assert_eq!(first_trap(&LOAD, NOWHERE).0, fault(NOWHERE, Access::Read));
    assert_eq!(first_trap(&STORE, NOWHERE + 8).0, fault(NOWHERE + 8, Access::Write));
    assert_eq!(first_trap(&JUMP, NOWHERE + 16).0, fault(NOWHERE + 16, Access::Execute));
    assert_eq!(
        first_trap(&STORE, CODE_AT).0,
        fault(CODE_AT, Access::Write),
        "a write to read-only memory"
    );
    if arch::HAS_NO_EXECUTE {
        let trap = first_trap(&JUMP, DATA_AT).0;
        assert_eq!(
            trap,
            fault(DATA_AT, Access::Execute),
            "a jump to memory that is not executable"
        );
    }
    assert_eq!(first_trap(&LOAD, DATA_AT).0, Trap::Syscall);
    assert_eq!(first_trap(&ILLEGAL, 0).0, Trap::IllegalInstruction);
}

pub fn a_program_cannot_reach_the_kernel() {
    static SECRET: AtomicUsize = AtomicUsize::new(42);
    let secret = (&raw const SECRET).addr();
    let kernel = a_program_cannot_reach_the_kernel as *const () as usize;
    for (label, address) in
        [(&LOAD, secret), (&STORE, secret), (&JUMP, kernel), (&LOAD, usize::MAX - 7)]
    {
        let (trap, context) = first_trap(label, address);
        assert!(matches!(trap, Trap::PageFault { .. } | Trap::Other(_)), "{trap:x?}");
        assert!(context.is_user());
    }
    assert_eq!(SECRET.load(SeqCst), 42);
    let (trap, _) = first_trap(&PRIVILEGED, 0);
    assert!(matches!(trap, Trap::IllegalInstruction | Trap::Other(_)), "{trap:x?}");
}

pub fn a_bad_entry_or_stack_is_the_programs_fault() {
    let process = Process::new();
    process.enter();
    for stack in [0, 8, usize::MAX, STACK_AT - 4096, 1 << 63] {
        let mut context = program(&PUSH, [0; 6]);
        context.set_sp(stack);
        let trap = next_trap(&mut context);
        assert!(matches!(trap, Trap::PageFault { .. } | Trap::Other(_)), "{stack:x}: {trap:x?}");
    }
    // This stack pointer is not aligned, but its memory is mapped.
    let mut context = program(&PUSH, [0; 6]);
    context.set_sp(STACK_AT + 24);
    assert_eq!(next_trap(&mut context), Trap::Syscall);
    for entry in [0, NOWHERE, 1 << 47, 1 << 63, usize::MAX & !15] {
        let mut context = TrapContext::user(entry, STACK_AT + Space::PAGE);
        let trap = next_trap(&mut context);
        assert!(matches!(trap, Trap::PageFault { .. } | Trap::Other(_)), "{entry:x}: {trap:x?}");
        assert!(context.is_user());
    }
    process.leave();
}

pub fn a_cause_that_has_no_name_is_raw() {
    assert_eq!(first_trap(&OTHER, 0).0, Trap::Other(arch::OTHER));
}

pub fn after_a_breakpoint_the_program_goes_on_behind_it() {
    let process = Process::new();
    process.enter();
    for label in [&BREAKPOINT, &SHORT_BREAKPOINT] {
        let mut context = program(label, [0; 6]);
        let length = if core::ptr::eq(label, &SHORT_BREAKPOINT) && arch::HAS_SHORT_BREAKPOINT {
            2..=2
        } else {
            1..=4
        };
        let before = context.pc();
        assert_eq!(next_trap(&mut context), Trap::Breakpoint);
        assert!(length.contains(&(context.pc() - before)), "{}", context.pc() - before);
        assert_eq!(next_trap(&mut context), Trap::Syscall);
        assert_eq!(context.syscall().number, 77);
    }
    process.leave();
}

/// The kernel's per-core register and pointers survive a program that overwrites them.
pub fn what_is_the_kernels_survives_a_program_that_overwrites_it() {
    let process = Process::new();
    let core = hal_shim::this_core();
    process.enter();
    let mut context = program(&POISON, [0; 6]);
    for _ in 0..100 {
        assert_eq!(next_trap(&mut context), Trap::Syscall);
        assert_eq!(hal_shim::this_core(), core);
    }
    process.leave();
}

pub fn pages_are_checked() {
    let mut space = Space::new().unwrap();
    let rights = Rights::default();
    assert_eq!(space.map(0, 1, rights), Err(MapError::NotUser));
    assert_eq!(space.map(CODE_AT + 1, 1, rights), Err(MapError::Unaligned));
    assert_eq!(space.map(CODE_AT, usize::MAX, rights), Err(MapError::NotUser));
    assert_eq!(space.map(CODE_AT, 1, rights), Ok(()));
    assert_eq!(space.map(CODE_AT, 1, rights), Err(MapError::Taken));
    assert_eq!(space.write(CODE_AT + Space::PAGE - 1, &[1, 2]), None);
    let mut byte = [0];
    assert_eq!(space.read(CODE_AT + Space::PAGE - 1, &mut byte), Some(()));
    assert_eq!(byte, [1]);
}

pub fn spaces_give_their_pages_back() {
    let before = hal_shim::heap::counts().bytes_live;
    drop(Process::new());
    assert_eq!(hal_shim::heap::counts().bytes_live, before);
}

/// Runs `hog`, and sleeps beside it at least 50 times and until `enough` returns true.
fn beside(
    runtime: &'static Runtime,
    hog: impl Future<Output = ()> + Send + 'static,
    enough: impl Fn() -> bool,
) {
    run_on(runtime, async {
        let hog = spawn(hog);
        let mut slept = 0;
        while slept < 50 || !enough() {
            sleep(ms(1)).await;
            slept += 1;
        }
        hog.abort();
    });
}

pub fn a_stackful_tasks_endless_program_starves_nobody() {
    static TIMERS: AtomicUsize = AtomicUsize::new(0);
    TIMERS.store(0, SeqCst);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    let hog = stackful(async {
        let mut context = program(&SPIN, [0; 6]);
        loop {
            match run_user(&mut context) {
                Trap::Timer => TIMERS.fetch_add(1, SeqCst),
                trap => panic!("{trap:x?}"),
            };
        }
    });
    // The task is preempted inside of `run`, each time that `run` returns the timer's trap.
    beside(runtime, contexted(hog, process), || {
        TIMERS.load(SeqCst) >= 45 && runtime.stats().preemptions >= 45
    });
}

pub fn a_plain_tasks_endless_program_starves_nobody() {
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    let own = Count::new();
    let count = own.clone();
    let hog = async move {
        let mut context = program(&SPIN, [0; 6]);
        loop {
            assert!(matches!(run_user(&mut context), Trap::Timer));
            count.add();
            yield_now().await;
        }
    };
    beside(runtime, contexted(hog, process), || own.get() >= 45);
    assert_eq!(runtime.stats().preemptions, 0);

    // No task sleeps here: the end of the slice takes the core back from the program.
    let process = Process::new();
    let other = Count::new();
    let yields = other.clone();
    run_on(runtime, async {
        let busy = spawn(async move {
            loop {
                yields.add();
                yield_now().await;
            }
        });
        let mut context = program(&SPIN, [0; 6]);
        let user = async {
            for _ in 0..5 {
                assert_eq!(run_user(&mut context), Trap::Timer);
                yield_now().await;
            }
        };
        contexted(user, process).await;
        busy.abort();
    });
    assert!(other.get() >= 4, "{}", other.get());
}

/// In one poll, a plain task starts a timer and runs a program. The timer fires on time, as it does
/// on a stack, though the alarm was set for a whole slice when the poll began.
pub fn a_plain_tasks_own_timer_ends_its_stay() {
    let runtime = configured(Config { slice: ms(1000), ..Config::new() });
    let process = Process::new();
    run_on(runtime, async {
        // The stackful task leaves the core before its slice is over, and the alarm of that slice
        // stays set.
        spawn(stackful(turns(3))).await.unwrap();
        let user = async {
            let mut context = program(&SPIN, [0; 6]);
            let mut timer = pin!(sleep(ms(1)));
            let began = now();
            poll_fn(|context_of_poll| {
                assert!(timer.as_mut().poll(context_of_poll).is_pending());
                assert_eq!(run_user(&mut context), Trap::Timer);
                Poll::Ready(())
            })
            .await;
            assert!(now().saturating_since(began) < ms(500));
        };
        contexted(user, process).await;
    });
}

pub fn a_plain_task_whose_time_is_up_is_told_once() {
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    run_on(runtime, async {
        let user = async {
            let mut context = program(&CALL, [0; 6]);
            // Stays in the kernel until the alarm has fired there. (On a busy host the alarm may
            // come later, or may come while the program runs.)
            loop {
                assert_eq!(next_trap(&mut context), Trap::Syscall);
                let before = context.pc();
                let until = trapline::time::now() + ms(3);
                while trapline::time::now() < until {}
                if run_user(&mut context) == Trap::Timer && context.pc() == before {
                    break;
                }
            }
            // Now the program is entered, unless the host takes a whole slice for that as well.
            assert!((0..10).any(|_| run_user(&mut context) == Trap::Syscall));
        };
        contexted(user, process).await;
    });
}

pub fn calls_do_not_keep_the_timer_away() {
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    let hog = stackful(async {
        let mut context = program(&CALL, [0; 6]);
        loop {
            match run_user(&mut context) {
                Trap::Syscall => context.set_result(0),
                Trap::Timer => {}
                trap => panic!("{trap:x?}"),
            }
        }
    });
    beside(runtime, contexted(hog, process), || runtime.stats().preemptions >= 45);
}

/// A stackful task is preempted while it serves its program's system call.
pub fn the_kernel_part_is_preempted() {
    static KERNEL_TURNS: AtomicUsize = AtomicUsize::new(0);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    let hog = stackful(async {
        let mut context = program(&CALL, [0, 21, 22, 23, 24, 25]);
        loop {
            match next_trap(&mut context) {
                Trap::Syscall => {
                    let until = trapline::time::now() + ms(2);
                    while trapline::time::now() < until {}
                    // The program's context is unchanged, and its own space is loaded.
                    assert_eq!(context.syscall().arguments[1..], [21, 22, 23, 24, 25]);
                    KERNEL_TURNS.fetch_add(1, SeqCst);
                }
                trap => panic!("{trap:x?}"),
            }
        }
    });
    beside(runtime, contexted(hog, process), || {
        KERNEL_TURNS.load(SeqCst) >= 5 && runtime.stats().preemptions >= 45
    });
}

pub fn a_program_without_interrupts_is_not_interrupted() {
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    run_on(
        runtime,
        contexted(
            async {
                // This takes far longer than a slice.
                let mut context = program(&SPIN_A_WHILE, [3_000_000, 0, 0, 0, 0, 0]);
                context = context.with_interrupts(false);
                assert_eq!(run_user(&mut context), Trap::Syscall);
                let mut context = program(&SPIN_A_WHILE, [3_000_000, 0, 0, 0, 0, 0]);
                let mut timers = 0;
                while run_user(&mut context) != Trap::Syscall {
                    timers += 1;
                }
                assert!(timers > 0);
            },
            process,
        ),
    );
}

pub fn an_interrupt_in_user_mode_is_a_value() {
    static HANDLED: AtomicUsize = AtomicUsize::new(0);
    HANDLED.store(0, SeqCst);
    interrupt::on_soft(|| {
        HANDLED.fetch_add(1, SeqCst);
    });
    let process = Process::new();
    process.enter();
    let mut context = program(&SPIN, [0; 6]);
    for round in 1..=100 {
        // The interrupt is pending when the program is entered.
        let trap = interrupt::masked(|| {
            interrupt::raise();
            run_user(&mut context)
        });
        assert!(matches!(trap, Trap::Interrupt(_)), "{trap:x?}");
        assert_eq!(HANDLED.load(SeqCst), round, "the kernel's handler was not called exactly once");
    }
    process.leave();
    interrupt::on_soft(|| ());
}

/// A nested interrupt does not preempt the interrupt handler that it interrupted.
pub fn an_interrupted_handler_is_not_left() {
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    static RUNTIME: spin::Once<&'static Runtime> = spin::Once::new();
    fn preemptions() -> u64 {
        RUNTIME.get().map_or(0, |runtime| runtime.stats().preemptions)
    }
    let runtime = *RUNTIME.call_once(|| configured(Config { slice: ms(1), ..Config::new() }));
    interrupt::on_soft(|| {
        let before = preemptions();
        interrupt::nested(|| {
            // The alarm fires here, unless the host is busy.
            let until = trapline::time::now() + ms(3);
            while trapline::time::now() < until {}
        });
        LEFT.fetch_add((preemptions() - before) as usize, SeqCst);
    });
    run_on(runtime, async {
        spawn(stackful(async {
            // The preemption that became pending in the handler comes at the handler's end, so the
            // task is preempted right after it.
            let mut preempted = 0;
            while preempted < 20 {
                let before = preemptions();
                interrupt::raise();
                preempted += preemptions() - before;
            }
        }))
        .await
        .unwrap();
    });
    interrupt::on_soft(|| ());
    assert_eq!(LEFT.load(SeqCst), 0);
}

pub fn runs_nest() {
    let (outer, inner) = (Process::new(), Process::new());
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let hooks = outer.clone();
    let task = stackful(async move {
        let mut first = program(&CALL, [0, 31, 32, 33, 34, 35]);
        for _ in 0..100 {
            assert_eq!(next_trap(&mut first), Trap::Syscall);
            // While the first program's call is served, another program runs in another space.
            let other = async {
                let mut second = program(&CALL, [0, 41, 42, 43, 44, 45]);
                for _ in 0..3 {
                    assert_eq!(next_trap(&mut second), Trap::Syscall);
                    assert_eq!(second.syscall().arguments[1..], [41, 42, 43, 44, 45]);
                }
                let mut spins = program(&SPIN, [0; 6]);
                assert_eq!(run_user(&mut spins), Trap::Timer);
            };
            trapline::block_on(contexted(other, inner.clone()));
            // The inner hooks have unloaded the inner space. To load the outer one again is the
            // kernel's task.
            outer.enter();
            assert_eq!(first.syscall().arguments[1..], [31, 32, 33, 34, 35]);
        }
    });
    run_on(runtime, contexted(task, hooks));
}

/// The faulting addresses that the handlers of nested traps saw, the outermost first.
static ADDRESSES: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
/// How many handlers are running.
static DEPTH: AtomicUsize = AtomicUsize::new(0);

/// Answers probes. The handlers of the first two traps provoke the next deeper trap, and the third
/// runs a program.
fn nest(context: &mut TrapContext) -> bool {
    let core = hal_shim::this_core();
    let depth = DEPTH.fetch_add(1, SeqCst);
    let before = context.trap();
    match depth {
        0 => {
            assert_eq!(before, Trap::Breakpoint);
            // SAFETY: this handler answers the fault of the probe.
            assert_eq!(unsafe { arch::probe(NOWHERE + 1) }, 1);
        }
        1 => {
            // SAFETY: as above.
            assert_eq!(unsafe { arch::probe(NOWHERE + 2) }, 2);
        }
        _ => {
            // Runs a program, and takes its trap, while the outer program's context is loaded.
            let mut user = program(&LOAD, [NOWHERE + 3, 0, 0, 0, 0, 0]);
            let expected = Trap::PageFault { addr: NOWHERE + 3, access: Access::Read };
            assert_eq!(next_trap(&mut user), expected);
        }
    }
    // The deeper traps have changed nothing in this context.
    assert_eq!(context.trap(), before);
    if let Trap::PageFault { addr, .. } = before {
        ADDRESSES[depth].store(addr, SeqCst);
        arch::skip_probe(context, depth);
    }
    arch::poison_core_register(context);
    assert_eq!(hal_shim::this_core(), core);
    DEPTH.fetch_sub(1, SeqCst);
    true
}

pub fn traps_nest_three_deep_while_a_program_is_loaded() {
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let process = Process::new();
    trap::on_fault(nest);
    run_on(
        runtime,
        contexted(
            stackful(async {
                let mut context = program(&CALL, [0, 51, 52, 53, 54, 55]);
                for _ in 0..200 {
                    assert_eq!(next_trap(&mut context), Trap::Syscall);
                    arch::breakpoint();
                    assert_eq!(context.syscall().arguments[1..], [51, 52, 53, 54, 55]);
                }
            }),
            process,
        ),
    );
    trap::reset();
    assert_eq!(ADDRESSES[1].load(SeqCst), NOWHERE + 1);
    assert_eq!(ADDRESSES[2].load(SeqCst), NOWHERE + 2);
    assert_eq!(DEPTH.load(SeqCst), 0);
}

pub fn preemptions_meet_programs_and_kernel_parts() {
    // With the shortest slices, they end in user mode, on the way to it and back, and in the kernel
    // part.
    let runtime = configured(Config { slice: Duration::from_micros(13), ..Config::new() });
    static STOP: AtomicUsize = AtomicUsize::new(0);
    STOP.store(0, SeqCst);
    run_on(runtime, async {
        let tasks: Vec<_> = (1..=3)
            .map(|me| {
                let arguments = [0, me, me * 3, me * 5, me * 7, me * 11];
                spawn(contexted(
                    stackful(async move {
                        let mut context = program(&CALL, arguments);
                        let mut calls = 0;
                        while STOP.load(SeqCst) == 0 {
                            assert_eq!(next_trap(&mut context), Trap::Syscall);
                            assert_eq!(context.syscall().arguments[1..], arguments[1..]);
                            calls += 1;
                        }
                        calls
                    }),
                    Process::new(),
                ))
            })
            .collect();
        while runtime.stats().preemptions < 5000 {
            sleep(ms(1)).await;
        }
        STOP.store(1, SeqCst);
        for task in tasks {
            assert!(task.await.unwrap() > 100);
        }
    });
}

pub fn floating_point_costs_nothing_when_it_is_not_used() {
    let (trap, context) = first_trap(&CALL, 0);
    assert_eq!(trap, Trap::Syscall);
    assert!(!arch::has_computed(&context));
}

pub fn floating_point_of_one_program_is_not_anothers() {
    let process = Process::new();
    process.enter();
    let value = 0x1234_5678_9abc_def0;
    let mut writer = program(&COMPUTE, [value, 1, 0, 0, 0, 0]);
    let mut reader = program(&COMPUTE, [value, 0, 0, 0, 0, 0]);
    for _ in 0..10 {
        assert_eq!(next_trap(&mut writer), Trap::Syscall);
        assert_eq!(writer.syscall().arguments[2], value);
        assert_eq!(next_trap(&mut reader), Trap::Syscall);
        assert_eq!(reader.syscall().arguments[2], 0, "the program sees another program's register");
    }
    assert!(arch::has_computed(&writer) && arch::has_computed(&reader));
    // A copy of a context is a separate program.
    let mut copy = writer.clone();
    assert_eq!(next_trap(&mut copy), Trap::Syscall);
    assert_eq!(copy.syscall().arguments[2], value);
    process.leave();
}

/// How many preemptions the test waits for; the argument `preemptions=N` sets another number.
fn preemptions() -> u64 {
    hal_shim::arg("preemptions").and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

pub fn registers_of_programs_survive_preemption() {
    let runtime = configured(Config { slice: Duration::from_micros(20), ..Config::new() });
    run_on(runtime, async {
        let programs: Vec<_> = [0x1111_2222_3333_4401_usize, 0x0fed_cba9_8765_4302]
            .map(|seed| {
                let process = Process::new();
                let user = stackful(async move {
                    let mut context = program(&REGISTERS, [DATA_AT, seed, 0, 0, 0, 0]);
                    assert_eq!(next_trap(&mut context), Trap::Syscall);
                    context.syscall().number
                });
                (spawn(contexted(user, process.clone())), process)
            })
            .into_iter()
            .collect();
        while runtime.stats().preemptions < preemptions()
            && !programs.iter().any(|(task, _)| task.is_finished())
        {
            sleep(ms(10)).await;
        }
        for (task, process) in programs {
            process.set_data(1);
            assert_eq!(task.await.unwrap(), 0, "a register was changed");
        }
    });
    assert!(runtime.stats().preemptions >= preemptions());
}

pub fn programs_have_their_own_thread_pointers() {
    let process = Process::new();
    let words = [DATA_AT, DATA_AT + 8];
    for word in words {
        // Each word holds its own address.
        process.space.write(word, &word.to_le_bytes()).unwrap();
    }
    process.enter();
    let mut programs = words.map(|word| {
        let mut context = program(&THREAD_POINTER, [0; 6]);
        context.set_thread_pointer(word);
        context
    });
    for _ in 0..3 {
        for (context, word) in programs.iter_mut().zip(words) {
            assert_eq!(next_trap(context), Trap::Syscall);
            assert_eq!(context.syscall().arguments[2], word);
        }
    }
    process.leave();
}

/// How many faults have ended a task.
static FAULTS: AtomicUsize = AtomicUsize::new(0);

/// Ends the task that caused the fault.
fn end(context: &mut TrapContext) -> bool {
    FAULTS.fetch_add(1, SeqCst);
    assert!(context.is_overflow());
    assert!(!context.is_user());
    assert!(arch::had_interrupts(context), "the context does not say that interrupts were enabled");
    // SAFETY: this is the handler of a fault, called with interrupts masked in task context, and it
    // holds no lock and no guard.
    unsafe { preempt::end_task() };
    false
}

pub fn an_overflowed_stack_ends_its_task_only() {
    FAULTS.store(0, SeqCst);
    trap::on_fault(end);
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    LOADED.store(0, SeqCst);
    static LOADED: AtomicUsize = AtomicUsize::new(0);
    struct Loads;
    impl Hooks for Loads {
        fn enter(&self) {
            LOADED.fetch_add(1, SeqCst);
        }

        fn leave(&self) {
            LOADED.fetch_sub(1, SeqCst);
        }
    }
    let drops = Count::new();
    run_on(runtime, async {
        let count = Count::new();
        let counts = count.clone();
        let other = spawn(stackful(async move {
            loop {
                counts.add();
            }
        }));
        for _ in 0..3 {
            let dropped = drops.on_drop();
            let task = stackful(async move {
                let _dropped = dropped;
                // SAFETY: the function does not return, since the fault handler ends this task.
                unsafe { arch::overflow() };
            });
            let task = spawn(contexted(task, Arc::new(Loads)));
            assert!(matches!(task.await, Err(JoinError::Abandoned)));
            let dropped = drops.on_drop();
            // This task is a child. Its parent is aborted, since it gets no output.
            let child = stackful(async move {
                let _dropped = dropped;
                // SAFETY: as above.
                unsafe { arch::lose_stack() };
            });
            let parent = spawn(async move {
                let () = child.await;
                unreachable!("the child never ends")
            });
            let parent: Result<(), _> = parent.await;
            assert!(matches!(parent, Err(JoinError::Aborted)));
        }
        let before = count.get();
        sleep(ms(5)).await;
        assert!(count.get() > before, "the other task did not go on");
        other.abort();
    });
    trap::reset();
    assert_eq!(FAULTS.load(SeqCst), 6);
    assert_eq!(runtime.stats().ended, 6);
    assert_eq!(LOADED.load(SeqCst), 0, "a hook was not left");
    assert_eq!(drops.get(), 0, "a value was dropped to which leaked frames may point");
}

/// Answers the fault of a probe; ends the task for an overflow.
fn find_or_end(context: &mut TrapContext) -> bool {
    if !context.is_overflow() {
        arch::skip_probe(context, NO_STACK);
        return true;
    }
    end(context)
}

/// The result of a probe that reaches the guard: no byte has this value.
const NO_STACK: usize = 256;

/// Returns the lowest address of the caller's stack.
fn end_of_stack() -> usize {
    let mut page = arch::stack_pointer() & !4095;
    // SAFETY: `find_or_end` answers the fault.
    while unsafe { arch::probe(page - 4096) } != NO_STACK {
        page -= 4096;
    }
    page
}

/// Ends the loops of [`arch::spin_at`].
static STOP: AtomicUsize = AtomicUsize::new(0);
/// Is 1 while the software interrupt's handler runs: a task must not be ended then.
static LOCKED: AtomicUsize = AtomicUsize::new(0);

pub fn an_interrupt_that_finds_little_stack_ends_its_task_only() {
    FAULTS.store(0, SeqCst);
    LOCKED.store(0, SeqCst);
    trap::on_fault(find_or_end);
    interrupt::on_soft(|| {
        LOCKED.store(1, SeqCst);
        let mut frame = [0_u8; 256];
        core::hint::black_box(&mut frame);
        LOCKED.store(0, SeqCst);
    });
    let runtime = configured(Config { slice: ms(1), ..Config::new() });
    let (mut ended, mut preempted) = (0, 0);
    run_on(runtime, async {
        // The last task has enough stack.
        for room in (16..3100).step_by(112).chain([8000]) {
            for soft in [false, true] {
                STOP.store(0, SeqCst);
                let task = spawn(stackful(async move {
                    let sp = end_of_stack() + room;
                    if !soft {
                        // SAFETY: the code needs little stack, and returns with the stack pointer
                        // that it was called with.
                        return unsafe { arch::spin_at(sp, &STOP) };
                    }
                    interrupt::masked(|| {
                        interrupt::raise();
                        // SAFETY: as above. The interrupt arrives when the function enables
                        // interrupts.
                        unsafe { arch::spin_at(sp, &STOP) }
                    });
                }));
                for _ in 0..3 {
                    sleep(ms(1)).await;
                }
                STOP.store(1, SeqCst);
                match task.await {
                    Ok(()) => preempted += 1,
                    Err(JoinError::Abandoned) => ended += 1,
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(LOCKED.load(SeqCst), 0, "with {room} bytes, a handler was ended");
            }
        }
    });
    interrupt::on_soft(|| ());
    trap::reset();
    assert!(preempted >= 2, "{preempted}");
    assert!(ended >= 30, "{ended}");
    assert_eq!(FAULTS.load(SeqCst), ended);
    assert_eq!(runtime.stats().ended, ended as u64);
}

pub fn a_leave_that_finds_little_stack_ends_its_task_only() {
    FAULTS.store(0, SeqCst);
    trap::on_fault(find_or_end);
    extern "C" fn leave() {
        trapline::block_on(yield_now());
    }
    // No slice ends, so no interrupt arrives.
    let runtime = configured(Config { slice: LONG, ..Config::new() });
    let mut ended = 0;
    run_on(runtime, async {
        for room in (0..3100).step_by(112).chain([8000]) {
            let task = spawn(stackful(async move {
                let sp = end_of_stack() + room;
                // SAFETY: the stack may be too small for the call; then the fault handler ends the
                // task.
                unsafe { arch::call_at(sp, leave) };
            }));
            match task.await {
                Ok(()) => assert!(room > 500, "a task left the core with too little stack"),
                Err(JoinError::Abandoned) => ended += 1,
                Err(error) => panic!("{error}"),
            }
        }
    });
    trap::reset();
    assert!(ended >= 5, "{ended}");
    assert_eq!(FAULTS.load(SeqCst), ended);
}

pub fn who_waits_for_a_task_that_a_fault_ended_is_ended() {
    FAULTS.store(0, SeqCst);
    trap::on_fault(end);
    // SAFETY: the function does not return, since the fault handler ends the task.
    let faults = || stackful(async { unsafe { arch::overflow() } });
    let runtime = runtime();
    run_on(runtime, async {
        // The parent waits in `block_on`, so the only way out of its frames is to end it too.
        let blocks = spawn(stackful(async move { trapline::block_on(faults()) }));
        assert!(matches!(blocks.await, Err(JoinError::Abandoned)));
        // The parent polls the child again before its own poll returns.
        let mut child = alloc::boxed::Box::pin(faults());
        let polls_again = spawn(core::future::poll_fn(move |context| {
            let _ = child.as_mut().poll(context);
            child.as_mut().poll(context)
        }));
        assert!(matches!(polls_again.await, Err(JoinError::Aborted)));
        // The parent is stackful and awaits: its future is dropped.
        let drops = Count::new();
        let dropped = drops.on_drop();
        let awaits = spawn(stackful(async move {
            let _dropped = dropped;
            faults().await
        }));
        assert!(matches!(awaits.await, Err(JoinError::Aborted)));
        assert_eq!(drops.get(), 1);
    });
    trap::reset();
    assert_eq!(FAULTS.load(SeqCst), 3);
    // The three tasks that overflowed and the one that waited in `block_on` were ended.
    assert_eq!(runtime.stats().ended, 4);
}

pub fn cores_have_left_their_boot_stacks() {
    static OUTSIDE: AtomicUsize = AtomicUsize::new(0);
    fn check() {
        if !hal_shim::boot_stack().contains(&arch::stack_pointer()) {
            OUTSIDE.fetch_add(1, SeqCst);
        }
    }
    OUTSIDE.store(0, SeqCst);
    check();
    for core in 1..hal_shim::cores() {
        while hal_shim::start_core(core, check) == Err(hal_shim::StartError::Running) {
            core::hint::spin_loop();
        }
    }
    let until = trapline::time::now() + Duration::from_secs(20);
    while OUTSIDE.load(SeqCst) < hal_shim::cores() && trapline::time::now() < until {
        core::hint::spin_loop();
    }
    assert_eq!(OUTSIDE.load(SeqCst), hal_shim::cores());
}

/// Keeps values on its stack over a sleep, and returns how many of them have changed.
#[inline(never)]
fn keeps_values() -> usize {
    let mut values = [7_u64; 1024];
    core::hint::black_box(&mut values);
    block_on(sleep(ms(10)));
    core::hint::black_box(&mut values);
    values.iter().filter(|&&value| value != 7).count()
}

/// Has a frame of `N` bytes, and writes the lowest ones first.
#[inline(never)]
fn has_a_large_frame<const N: usize>() -> u8 {
    let mut buffer = [0_u8; N];
    core::hint::black_box(&mut buffer);
    buffer[N / 2]
}

pub fn a_large_frame_ends_its_task_only() {
    FAULTS.store(0, SeqCst);
    trap::on_fault(end);
    let runtime = configured(Config { stack_size: 16 * 1024, ..Config::new() });
    run_on(runtime, async {
        let neighbours: [_; 8] =
            core::array::from_fn(|_| spawn(stackful(async { keeps_values() })));
        sleep(ms(3)).await;
        // The frames are larger than the stack, and end within the guard.
        let large = [
            spawn(stackful(async { has_a_large_frame::<17_000>() })),
            spawn(stackful(async { has_a_large_frame::<20_000>() })),
            spawn(stackful(async { has_a_large_frame::<30_000>() })),
            spawn(stackful(async { has_a_large_frame::<40_000>() })),
            spawn(stackful(async { has_a_large_frame::<70_000>() })),
        ];
        for task in large {
            assert!(matches!(task.await, Err(JoinError::Abandoned)));
        }
        for neighbour in neighbours {
            assert_eq!(neighbour.await.unwrap(), 0, "values on a neighbour's stack were changed");
        }
    });
    trap::reset();
    assert_eq!((FAULTS.load(SeqCst), runtime.stats().ended), (5, 5));
}

/// The result of a probe of an unmapped address: no byte has this value.
const UNMAPPED: usize = 1 << 8;

/// Returns how many bytes below the caller's stack are unmapped, up to the size of a guard.
fn guard_below() -> usize {
    fn answer(context: &mut TrapContext) -> bool {
        arch::skip_probe(context, UNMAPPED);
        true
    }
    const STEP: usize = 4096;
    trap::on_fault(answer);
    // SAFETY: `answer` answers the fault.
    let is_mapped = |address| unsafe { arch::probe(address) } != UNMAPPED;
    let mut page = arch::stack_pointer() & !(STEP - 1);
    while is_mapped(page) {
        page -= STEP;
    }
    let guard = (0..).take_while(|n| n * STEP < 64 * 1024 && !is_mapped(page - n * STEP)).count();
    trap::reset();
    guard * STEP
}

pub fn a_wide_guard_is_below_each_stack() {
    assert_eq!(guard_below(), 64 * 1024, "the guard below the core's own stack");
    // Makes many stacks of several sizes, which lie side by side in memory.
    for stack_size in [12 * 1024, 16 * 1024, 40 * 1024] {
        let runtime = configured(Config { stack_size, ..Config::new() });
        run_on(runtime, async {
            let event = Arc::new(AtomicUsize::new(0));
            let tasks: Vec<_> = (0..50)
                .map(|_| {
                    let all = event.clone();
                    spawn(stackful(async move {
                        // Waits until all tasks hold a stack at the same time.
                        all.fetch_add(1, SeqCst);
                        while all.load(SeqCst) < 50 {
                            block_on(sleep(ms(1)));
                        }
                        let _guard = preempt::PreemptGuard::new();
                        guard_below()
                    }))
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap(), 64 * 1024);
            }
        });
    }
}

/// A stall for want of memory ends when there is memory again.
pub fn memory_that_comes_back_ends_a_stall() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    TOLD.store(0, SeqCst);
    let runtime = configured(Config {
        slice: Duration::from_micros(100),
        on_stall: Some(|stall| {
            assert!(stall.is_out_of_memory());
            if TOLD.fetch_add(1, SeqCst) == 2 {
                heap::fail_after(None);
            }
        }),
        ..Config::new()
    });
    run_on(runtime, async {
        let task = spawn(stackful(async { 9 }));
        heap::fail_after(Some(0));
        // No other task runs on the core.
        assert_eq!(task.await.unwrap(), 9);
    });
    assert_eq!((TOLD.load(SeqCst), runtime.stats().failed_growths), (3, 1));
}
