//! User programs, each in an address space of its own. `async` functions serve them, in two ways.
//!
//! As **threads**: each program has a stackful task, whose code blocks in `block_on` while a system
//! call waits. As **tasks**: each program has a plain task, which awaits. A thread holds a stack
//! while its program waits or is preempted; a task never does. A program cannot tell in which way
//! it runs.
//!
//! ```text
//! cargo xtask qemu riscv64 user --release --icount -- seconds=1
//! ```
//!
//! There are five programs:
//! - `hello` prints, sleeps, and exits with a code.
//! - `compute` computes in integer and floating-point registers, and exits with the result.
//! - `strange` makes a system call that does not exist.
//! - `bad` touches a page that is not mapped, and is ended with a message.
//! - `spin` loops for ever, and is killed when the others have ended.
#![cfg_attr(target_os = "none", no_std, no_main)]

hal_shim::entry!(unsafe program);

#[cfg(not(target_os = "none"))]
fn program() {
    hal_shim::println!("user programs need a machine: cargo xtask qemu riscv64 user");
}

#[cfg(target_os = "none")]
use kernel::program;

#[cfg(target_os = "none")]
#[path = "user"]
mod kernel {
    extern crate alloc;

    #[cfg(target_arch = "loongarch64")]
    #[path = "loongarch64.rs"]
    mod programs;
    #[cfg(target_arch = "riscv64")]
    #[path = "riscv64.rs"]
    mod programs;
    #[cfg(target_arch = "x86_64")]
    #[path = "x86_64.rs"]
    mod programs;

    use alloc::boxed::Box;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use core::fmt;
    use core::sync::atomic::{AtomicBool, Ordering};
    use core::time::Duration;

    use hal_shim::println;
    use hal_shim::user::{Rights, Space};
    use trapline::arch::TrapContext;
    use trapline::time::{now, sleep};
    use trapline::trap::Trap;
    use trapline::{
        Config, Hooks, JoinHandle, Runtime, block_on, contexted, spawn, stackful, yield_now,
    };

    /// The code of a program, in the kernel's image.
    struct Image {
        name: &'static str,
        code: &'static [u8],
    }

    /// Defines functions that return the bytes between two labels of the assembly.
    macro_rules! images {
        ($($name:ident: $begin:literal to $end:literal,)*) => {
            $(fn $name() -> Image {
                // SAFETY: the assembly defines both symbols. Only their addresses are taken.
                unsafe extern "C" {
                    #[link_name = $begin]
                    static BEGIN: u8;
                    #[link_name = $end]
                    static END: u8;
                }
                // SAFETY: the second label is behind the first in one section, and no code writes
                // to it.
                let code = unsafe {
                    let size = (&raw const END).offset_from_unsigned(&raw const BEGIN);
                    core::slice::from_raw_parts(&raw const BEGIN, size)
                };
                Image { name: stringify!($name), code }
            })*
        };
    }

    images! {
        hello: "program_hello" to "program_hello_end",
        compute: "program_compute" to "program_compute_end",
        strange: "program_strange" to "program_strange_end",
        bad: "program_bad" to "program_bad_end",
        spin: "program_spin" to "program_spin_end",
        calls: "program_calls" to "program_calls_end",
        waits: "program_waits" to "program_waits_end",
    }

    /// The address at which a program's code begins, and the one at which its stack ends.
    const CODE: usize = 0x10_0000_0000;
    const STACK_TOP: usize = 0x20_0000_0000;

    /// The system calls.
    mod call {
        pub const EXIT: usize = 0;
        pub const PRINT: usize = 1;
        pub const SLEEP: usize = 2;
        pub const NOTHING: usize = 3;
    }

    /// The result of a call that is refused.
    const REFUSED: usize = usize::MAX;

    /// How a program ended.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum End {
        Exit(usize),
        /// The fault and the address of the instruction.
        Fault(Trap, usize),
        /// The kernel has killed it.
        Killed,
    }

    impl fmt::Display for End {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Exit(code) => write!(f, "exited with {code}"),
                Self::Fault(trap, pc) => write!(f, "was ended: {trap:x?} at {pc:#x}"),
                Self::Killed => f.write_str("was killed"),
            }
        }
    }

    /// A program that is loaded.
    struct Process {
        name: &'static str,
        space: Space,
        is_killed: AtomicBool,
    }

    impl Process {
        /// Loads a program. `None` if there is no memory.
        fn load(image: &Image) -> Option<Arc<Self>> {
            let mut space = Space::new()?;
            let executable = Rights { write: false, execute: true };
            space.map(CODE, image.code.len().div_ceil(Space::PAGE), executable).ok()?;
            let writable = Rights { write: true, execute: false };
            space.map(STACK_TOP - Space::PAGE, 1, writable).ok()?;
            space.write(CODE, image.code)?;
            Some(Arc::new(Self { name: image.name, space, is_killed: AtomicBool::new(false) }))
        }

        /// Ends the program at its next trap, at the latest when its slice is over.
        fn kill(&self) {
            self.is_killed.store(true, Ordering::Relaxed);
        }

        fn is_killed(&self) -> bool {
            self.is_killed.load(Ordering::Relaxed)
        }

        /// Returns the context in which the program starts, with one argument.
        fn start(argument: usize) -> TrapContext {
            TrapContext::user(CODE, STACK_TOP).with_arguments([argument, 0, 0, 0, 0, 0])
        }

        /// Serves one system call. Returns how the program ends, if the call was an exit.
        async fn serve(&self, context: &mut TrapContext) -> Option<End> {
            let request = context.syscall();
            let [first, second, ..] = request.arguments;
            let result = match request.number {
                call::EXIT => return Some(End::Exit(first)),
                call::PRINT => self.print(first, second).unwrap_or(REFUSED),
                call::SLEEP => {
                    sleep(Duration::from_micros(first as u64)).await;
                    0
                }
                call::NOTHING => 0,
                _ => REFUSED,
            };
            context.set_result(result);
            None
        }

        /// Prints a text of the program. Returns `None` if its memory is not mapped, it is too
        /// long, or it is not UTF-8.
        fn print(&self, address: usize, length: usize) -> Option<usize> {
            let mut text = [0; 80];
            let text = text.get_mut(..length)?;
            self.space.read(address, text)?;
            println!("  {}: {}", self.name, core::str::from_utf8(text).ok()?);
            Some(length)
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

    /// Runs the program until its next trap.
    fn run(context: &mut TrapContext) -> Trap {
        // SAFETY: `hal-shim` has installed the trap entry, and this is task context. The process's
        // hooks are entered, so its address space is loaded.
        unsafe { context.run() }
    }

    /// Runs a program as a thread: in a stackful task, which is preempted inside of `run` when its
    /// slice is over, and blocks while a system call waits.
    fn thread(process: Arc<Process>, argument: usize) -> JoinHandle<End> {
        let own = process.clone();
        let body = stackful(async move {
            let mut context = Process::start(argument);
            loop {
                match run(&mut context) {
                    _ if own.is_killed() => return End::Killed,
                    Trap::Timer | Trap::Interrupt(_) => {}
                    Trap::Syscall => {
                        if let Some(end) = block_on(own.serve(&mut context)) {
                            return end;
                        }
                    }
                    fault => return End::Fault(fault, context.pc()),
                }
            }
        });
        spawn(contexted(body, process))
    }

    /// Runs a program as a plain task, which yields when its time is up, and awaits while a system
    /// call waits.
    fn task(process: Arc<Process>, argument: usize) -> JoinHandle<End> {
        let own = process.clone();
        let body = async move {
            let mut context = Process::start(argument);
            loop {
                match run(&mut context) {
                    _ if own.is_killed() => return End::Killed,
                    Trap::Timer | Trap::Interrupt(_) => yield_now().await,
                    Trap::Syscall => {
                        if let Some(end) = own.serve(&mut context).await {
                            return end;
                        }
                    }
                    fault => return End::Fault(fault, context.pc()),
                }
            }
        };
        spawn(contexted(body, process))
    }

    /// `thread` or `task`.
    type Start = fn(Arc<Process>, usize) -> JoinHandle<End>;

    pub fn program() {
        let length = Duration::from_secs(argument("seconds", 1)) / 2;
        let slice = Duration::from_micros(argument("slice_us", 100));
        for (name, start) in [("threads", thread as Start), ("tasks", task as Start)] {
            let config = Config { slice, ..Config::new() };
            let runtime: &'static Runtime = Box::leak(Box::new(Runtime::with_config(config)));
            println!("as {name}:");
            let ran = runtime.run_until(async {
                measure(start).await;
                show(start).await;
                work(start, length).await;
            });
            if let Err(error) = ran {
                println!("{error}");
                hal_shim::exit(1);
            }
            let stats = runtime.stats();
            println!("  {} preemptions, {} stacks", stats.preemptions, stats.stacks);
        }
    }

    fn load(image: &Image) -> Arc<Process> {
        match Process::load(image) {
            Some(process) => process,
            None => {
                println!("no memory for {}", image.name);
                hal_shim::exit(1)
            }
        }
    }

    /// Waits until a program has ended.
    async fn ended(task: JoinHandle<End>) -> End {
        match task.await {
            Ok(end) => end,
            Err(error) => panic!("a program's task is lost: {error}"),
        }
    }

    /// Runs each program once, beside the one that loops for ever.
    async fn show(start: Start) {
        let endless = load(&spin());
        let spins = start(endless.clone(), 0);
        let others: Vec<_> = [hello(), compute(), strange(), bad()]
            .map(|image| (image.name, start(load(&image), ROUNDS)))
            .into();
        for (name, task) in others {
            let end = ended(task).await;
            println!("  {name} {end}");
            let is_right = match name {
                "hello" => end == End::Exit(42),
                "compute" => end == End::Exit(computed(ROUNDS)),
                "strange" => end == End::Exit(REFUSED),
                _ => matches!(end, End::Fault(Trap::PageFault { .. }, _)),
            };
            assert!(is_right, "{name} did not end as it should");
        }
        assert!(!spins.is_finished());
        endless.kill();
        println!("  spin {}", ended(spins).await);
    }

    /// How many rounds of `compute` a program does.
    const ROUNDS: usize = 20_000;

    /// Returns the exit code of `compute` if no register of it was overwritten.
    fn computed(rounds: usize) -> usize {
        let mut x = 0x9e37_79b9_7f4a_7c15_usize;
        for _ in 0..rounds {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
        }
        // The program also counts its rounds in floating point.
        x ^ rounds
    }

    /// Runs programs that compute, four at a time and one after another, until the time is over.
    async fn work(start: Start, length: Duration) {
        let until = now() + length;
        let workers: Vec<_> = (0..4)
            .map(|_| {
                spawn(async move {
                    let mut programs = 0;
                    while now() < until {
                        let end = ended(start(load(&compute()), ROUNDS)).await;
                        assert_eq!(end, End::Exit(computed(ROUNDS)), "a register was changed");
                        programs += 1;
                    }
                    programs
                })
            })
            .collect();
        let mut programs = 0;
        for worker in workers {
            match worker.await {
                Ok(ended) => programs += ended,
                Err(error) => panic!("a worker is lost: {error}"),
            }
        }
        println!("  {programs} programs computed, all with the right result");
    }

    /// Measures the time of a system call, the memory of a program that waits in one, and the time
    /// of a whole program.
    async fn measure(start: Start) {
        const CALLS: usize = 10_000;
        const WAITING: usize = 20;
        let process = load(&calls());
        let begin = now();
        ended(start(process, CALLS)).await;
        let call = now().saturating_since(begin).as_nanos() as usize / CALLS;

        // The processes are loaded before the memory is measured: they need the same in both ways.
        let processes: Vec<_> = (0..WAITING).map(|_| load(&waits())).collect();
        let before = hal_shim::heap::counts().bytes_live;
        let waiting: Vec<_> = processes.into_iter().map(|process| start(process, 20_000)).collect();
        sleep(Duration::from_millis(10)).await;
        let bytes = hal_shim::heap::counts().bytes_live.saturating_sub(before) / WAITING;
        for program in waiting {
            ended(program).await;
        }
        let begin = now();
        for _ in 0..WAITING {
            ended(start(load(&waits()), 0)).await;
        }
        let whole = now().saturating_since(begin).as_micros() as usize / WAITING;
        println!("  a call that does nothing: {call} ns; a program that waits: {bytes} bytes");
        println!("  a program from being loaded to its end: {whole} us");
    }

    /// Returns the value of the word `name=value` of the command line. A value that is not a number
    /// ends the program.
    fn argument(name: &str, default: u64) -> u64 {
        let Some(text) = hal_shim::arg(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            println!("{name}={text}: not a number");
            hal_shim::exit(2)
        })
    }
}
