//! The core's own interrupt controller (the local APIC), its timer, and the clock.

use core::arch::x86_64::{__cpuid, _rdtsc};
use core::hint::{black_box, spin_loop};
use core::sync::atomic::{AtomicU64, Ordering};

use trapline::arch::x86_64::TIMER_VECTOR;
use trapline::platform::Platform as _;
use x86::instructions::port::Port;
use x86::registers::model_specific::Msr;

use crate::bare::clock::{FRACTION, scale};
use crate::bare::{Machine, fail};

/// The address at which each processor accesses its own.
pub(super) const BASE: usize = 0xfee0_0000;
/// The offsets of its registers.
pub(super) const ID: usize = 0x20;
const TASK_PRIORITY: usize = 0x80;
const END_OF_INTERRUPT: usize = 0xb0;
const SPURIOUS: usize = 0xf0;
const COMMAND: usize = 0x300;
const COMMAND_TO: usize = 0x310;
const TIMER: usize = 0x320;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;

/// `SPURIOUS`: the APIC is on. The vector is that of an interrupt that was withdrawn.
const ON: u32 = 1 << 8;
pub(super) const SPURIOUS_VECTOR: u8 = 255;
/// The vector of the software interrupt, which other cores or the core itself send.
pub(super) const SOFT_VECTOR: u8 = 33;
/// `DIVIDE`: by one.
const BY_ONE: u32 = 0b1011;

/// `COMMAND`: the kind of message, beside a vector.
const ASSERT: u32 = 1 << 14;
pub(super) const NMI: u32 = 0b100 << 8 | ASSERT;
pub(super) const INIT: u32 = 0b101 << 8 | ASSERT;
pub(super) const STARTUP: u32 = 0b110 << 8 | ASSERT;
/// `COMMAND`: the last message is still being sent.
const PENDING: u32 = 1 << 12;

fn read(register: usize) -> u32 {
    // SAFETY: `check` has found the APIC there; reading has no effect.
    unsafe { core::ptr::with_exposed_provenance::<u32>(BASE + register).read_volatile() }
}

fn write(register: usize, value: u32) {
    // SAFETY: `check` has found the APIC there; it accesses no memory.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(BASE + register).write_volatile(value) }
}

/// Ends the machine if its processors have no local APIC at the expected address and mode.
pub(super) fn check() {
    const HAS_APIC: u32 = 1 << 9;
    if __cpuid(1).edx & HAS_APIC == 0 {
        fail(format_args!("the processor has no local APIC"));
    }
    const ENABLED: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 10;
    // SAFETY: a processor with an APIC has the register.
    let base = unsafe { Msr::new(0x1b).read() };
    if base & (ENABLED | X2APIC) != ENABLED || base >> 12 != (BASE >> 12) as u64 {
        fail(format_args!("the local APIC is not where it was expected: its base is {base:#x}"));
    }
}

/// Masks the two legacy interrupt controllers (PICs). Called once.
pub(super) fn mask_legacy() {
    for port in [0x21, 0xa1] {
        // SAFETY: these are the mask registers of the two; no code uses their interrupts.
        unsafe { Port::<u8>::new(port).write(0xff) };
    }
}

/// Turns the calling core's APIC on, with the timer stopped.
pub(crate) fn init_core() {
    write(SPURIOUS, ON | u32::from(SPURIOUS_VECTOR));
    write(TASK_PRIORITY, 0);
    write(DIVIDE, BY_ONE);
    // One-shot.
    write(TIMER, u32::from(TIMER_VECTOR));
    stop_timer();
}

/// The number of the calling core's APIC, to which others send.
pub(super) fn id() -> u32 {
    read(ID) >> 24
}

pub(super) fn end_of_interrupt() {
    write(END_OF_INTERRUPT, 0);
}

/// Ends all interrupts that are in service. For a core on which no interrupted handler will go on.
pub(super) fn end_all_interrupts() {
    /// The first of eight words with one bit per vector, 16 bytes apart.
    const IN_SERVICE: usize = 0x100;
    // Each call ends the one with the highest vector.
    while (0..8).any(|word| read(IN_SERVICE + word * 16) != 0) {
        end_of_interrupt();
    }
}

/// Sends `command` to the core with this number, which may be the calling one. Callable in any
/// context but an NMI's.
pub(super) fn send(command: u32, to: u32) {
    let state = Machine.mask_interrupts();
    while read(COMMAND) & PENDING != 0 {
        spin_loop();
    }
    // Interrupts are masked so that no handler sends between these two.
    write(COMMAND_TO, to << 24);
    write(COMMAND, command);
    // SAFETY: `state` is from the call above.
    unsafe { Machine.restore_interrupts(state) };
}

/// Sends the software interrupt.
pub(super) fn notify(to: u32) {
    send(ASSERT | u32::from(SOFT_VECTOR), to);
}

/// Nanoseconds per tick of the time-stamp counter, and ticks of the core's timer per nanosecond:
/// factors for [`scale`].
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);
static TIMER_TICKS: AtomicU64 = AtomicU64::new(0);

fn time_stamp() -> u64 {
    // SAFETY: every 64-bit processor has the time-stamp counter.
    unsafe { _rdtsc() }
}

/// Under `-icount`, the time-stamp counter counts instructions.
#[inline]
pub(crate) fn instructions() -> u64 {
    time_stamp()
}

/// Nanoseconds, rounded down.
pub(super) fn now() -> u64 {
    scale(time_stamp(), &NANOSECONDS)
}

pub(super) fn stop_timer() {
    write(INITIAL_COUNT, 0);
}

/// Makes the timer fire `delay` nanoseconds from now, rounded up. It fires earlier if it cannot
/// count that far.
pub(super) fn start_timer(delay: u64) {
    let ticks = scale(delay, &TIMER_TICKS).saturating_add(1);
    write(INITIAL_COUNT, ticks.min(u32::MAX.into()) as u32);
}

/// Finds out how fast the time-stamp counter and the timer tick, by the one clock of a PC whose
/// frequency is known: channel 2 of the interval timer. Called once, on core 0.
pub(super) fn calibrate() {
    write(INITIAL_COUNT, u32::MAX);
    start_interval_timer();
    let mut before = Speed::measure();
    loop {
        let speed = Speed::measure();
        // If the host stops the guest for long, the interval timer may wrap unnoticed; then two
        // measurements differ.
        if speed.is_near(&before) {
            NANOSECONDS.store(speed.nanoseconds, Ordering::Relaxed);
            TIMER_TICKS.store(speed.timer_ticks, Ordering::Relaxed);
            break;
        }
        before = speed;
    }
    stop_timer();
}

/// Measured values for [`NANOSECONDS`] and [`TIMER_TICKS`].
struct Speed {
    nanoseconds: u64,
    timer_ticks: u64,
}

impl Speed {
    fn measure() -> Self {
        /// Ticks of the interval timer in a second.
        const FREQUENCY: u64 = 1_193_182;
        /// For how many of these ticks the three clocks are compared: 5 ms.
        const SPAN: u16 = (FREQUENCY / 200) as u16;

        let first = Sample::take();
        let last = loop {
            // A sample takes far longer on the host than in the guest, so few are taken.
            for n in 0..10_000 {
                black_box(n);
            }
            let sample = Sample::take();
            if sample.interval == first.interval {
                fail(format_args!("the machine has no interval timer that counts"));
            }
            if first.interval.wrapping_sub(sample.interval) >= SPAN {
                break sample;
            }
        };
        // The interval timer and the APIC's timer count down.
        let interval = u64::from(first.interval.wrapping_sub(last.interval));
        let timer = first.timer.wrapping_sub(last.timer);
        let stamp = last.stamp - first.stamp;
        if timer == 0 || stamp == 0 {
            fail(format_args!("the processor's timer or its time-stamp counter stands still"));
        }
        let nanoseconds = interval * 1_000_000_000 / FREQUENCY;
        Self {
            nanoseconds: (nanoseconds << FRACTION) / stamp,
            timer_ticks: (u64::from(timer) << FRACTION).div_ceil(nanoseconds),
        }
    }

    /// Whether both values differ by less than a thousandth.
    fn is_near(&self, other: &Self) -> bool {
        let near = |a: u64, b: u64| a.abs_diff(b) < a / 1000;
        near(self.nanoseconds, other.nanoseconds) && near(self.timer_ticks, other.timer_ticks)
    }
}

/// The ports of the interval timer.
const INTERVAL_COUNT: u16 = 0x42;
const INTERVAL_COMMAND: u16 = 0x43;
const INTERVAL_GATE: u16 = 0x61;

/// Makes channel 2 count down from 65536 repeatedly, with the speaker that it drives turned off.
fn start_interval_timer() {
    // SAFETY: no other code uses the channel, and it causes no interrupts.
    unsafe {
        let mut gate = Port::<u8>::new(INTERVAL_GATE);
        let speaker = gate.read();
        gate.write(speaker & !0b10 | 0b01);
        // Channel 2, both bytes, mode 2: a count that repeats.
        Port::<u8>::new(INTERVAL_COMMAND).write(0b1011_0100);
        Port::<u8>::new(INTERVAL_COUNT).write(0);
        Port::<u8>::new(INTERVAL_COUNT).write(0);
    }
}

/// The values of the three clocks at the same moment.
struct Sample {
    stamp: u64,
    timer: u32,
    interval: u16,
}

impl Sample {
    /// Takes the best of several samples: one during which the host stops the guest is worthless.
    fn take() -> Self {
        let samples = (0..16).map(|_| {
            let stamp = time_stamp();
            let timer = read(CURRENT_COUNT);
            // SAFETY: latches the channel's count and reads it, the low byte first. No other code
            // uses the channel.
            let interval = unsafe {
                Port::<u8>::new(INTERVAL_COMMAND).write(0b1000_0000);
                let mut count = Port::<u8>::new(INTERVAL_COUNT);
                let low = count.read();
                u16::from_le_bytes([low, count.read()])
            };
            (time_stamp() - stamp, Self { stamp, timer, interval })
        });
        match samples.min_by_key(|(took, _)| *took) {
            Some((_, sample)) => sample,
            None => unreachable!("there are 16"),
        }
    }
}
