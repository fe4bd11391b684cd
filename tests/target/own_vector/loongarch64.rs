//! QEMU's loongarch64 `virt`: one vector for all traps, the core's timer, and `$r21` as per-core
//! register.
//!
//! The vector saves the registers that a call does not preserve, and no more. The compiler saves
//! the others in the functions that use them, and `switch` saves them where the core leaves the
//! stack: both on the same stack. Where the ABI has floating-point registers, the vector saves them
//! if floating point is on, as `switch` does with the ones that it saves.

use core::arch::{asm, global_asm, naked_asm};
use core::mem::{offset_of, size_of};
use core::ptr::with_exposed_provenance_mut;

use crate::kernel::{CPU, Cpu, main, on_fault, on_timer_interrupt};

/// The registers that the vector saves.
#[repr(C, align(16))]
struct Frame {
    ra: usize,
    a: [usize; 8],
    t: [usize; 9],
    /// A later trap overwrites era and prmd.
    era: usize,
    prmd: usize,
    /// Whether floating point was on and the fields below were written: 0 or 1.
    #[cfg(target_feature = "d")]
    fp: usize,
    #[cfg(target_feature = "d")]
    fcsr: usize,
    #[cfg(target_feature = "d")]
    fcc: [u8; 8],
    /// fa0 to fa7 and ft0 to ft15.
    #[cfg(target_feature = "d")]
    f: [u64; 24],
}

/// The numbers of the CSRs.
mod csr {
    pub(super) const CRMD: usize = 0x0;
    pub(super) const PRMD: usize = 0x1;
    pub(super) const EUEN: usize = 0x2;
    pub(super) const ECFG: usize = 0x4;
    pub(super) const ESTAT: usize = 0x5;
    pub(super) const ERA: usize = 0x6;
    pub(super) const BADV: usize = 0x7;
    pub(super) const EENTRY: usize = 0xc;
    pub(super) const CPUID: usize = 0x20;
    /// The first of five registers that the kernel has for itself, which this vector does not need.
    pub(super) const SAVE: usize = 0x30;
    pub(super) const TCFG: usize = 0x41;
    pub(super) const TICLR: usize = 0x44;
    pub(super) const DMW0: usize = 0x180;
    pub(super) const DMW1: usize = 0x181;
}

/// The windows through which the kernel accesses devices and all other memory.
const UNCACHED: usize = 0x8000 << 48;
const CACHED: usize = 0x9000 << 48;
/// CRMD: interrupts are enabled; paging is on.
const IE: usize = 1 << 2;
const PAGING: usize = 0xb0;
/// ECFG and ESTAT: the timer.
const TIMER: usize = 1 << 11;
/// EUEN: floating point is on, where the ABI has it.
const FPE: usize = if cfg!(target_feature = "d") { 1 } else { 0 };
/// How many nanoseconds a tick of `virt`'s clock and timer takes.
const TICK: u64 = 10;

/// The entry. Older versions of QEMU start all cores here; all cores but core 0 stay here.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".text.entry")]
unsafe extern "C" fn _start() -> ! {
    naked_asm!(
        "li.d $t0, {uncached} | 1 << 0",
        "csrwr $t0, {dmw0}",
        "li.d $t0, {cached} | 1 << 4 | 1 << 0",
        "csrwr $t0, {dmw1}",
        // Jumps to the address in the window first, and then enables paging.
        "li.d $t0, {cached}",
        "la.pcrel $t1, 2f",
        "or $t0, $t0, $t1",
        "jr $t0",
        "2:",
        "li.w $t0, {paging}",
        "csrwr $t0, {crmd}",
        "csrwr $zero, {ecfg}",
        "csrrd $t0, {cpuid}",
        "andi $t0, $t0, 0x1ff",
        "3:",
        "beqz $t0, 4f",
        "idle 0",
        "b 3b",
        "4:",
        "li.w $t0, {fpe}",
        "csrwr $t0, {euen}",
        "la.pcrel $t0, __bss_start",
        "la.pcrel $t1, __bss_end",
        "5:",
        "bgeu $t0, $t1, 6f",
        "st.d $zero, $t0, 0",
        "addi.d $t0, $t0, 8",
        "b 5b",
        "6:",
        "la.pcrel $sp, __boot_stack_top",
        "la.pcrel $r21, {cpu}",
        "bl {main}",
        uncached = const UNCACHED,
        cached = const CACHED,
        paging = const PAGING,
        fpe = const FPE,
        dmw0 = const csr::DMW0,
        dmw1 = const csr::DMW1,
        crmd = const csr::CRMD,
        ecfg = const csr::ECFG,
        euen = const csr::EUEN,
        cpuid = const csr::CPUID,
        cpu = sym CPU,
        main = sym main,
    )
}

// On entry all registers are the interrupted code's, and IE is 0.
global_asm!(
    ".pushsection .text.own_vector, \"ax\"",
    // EENTRY has no lower bits, so the vector is aligned to a page.
    ".balign 4096",
    ".globl own_vector",
    "own_vector:",
    "addi.d $sp, $sp, -{size}",
    "st.d $ra, $sp, {ra}",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  st.d $a\\n, $sp, {a} + 8*\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8",
    "  st.d $t\\n, $sp, {t} + 8*\\n",
    ".endr",
    "csrrd $t0, {csr_era}",
    "st.d $t0, $sp, {era}",
    "csrrd $t0, {csr_prmd}",
    "st.d $t0, $sp, {prmd}",
    #[cfg(target_feature = "d")]
    "csrrd $t0, {csr_euen}
    st.d $t0, $sp, {fp}
    beqz $t0, 2f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23
      fst.d $f\\n, $sp, {f} + 8*\\n
    .endr
    .irp n, 0,1,2,3,4,5,6,7
      movcf2gr $t0, $fcc\\n
      st.b $t0, $sp, {fcc} + \\n
    .endr
    // The rounding mode is the interrupted code's, and comes back with it. Rust code starts with 0.
    movfcsr2gr $t0, $fcsr0
    st.d $t0, $sp, {fcsr}
    movgr2fcsr $fcsr0, $zero
    2:",
    "move $a0, $sp",
    "bl {on_trap}",
    // Other tasks may have run, but this is the stack from before, and the handler's callees have
    // preserved all other registers.
    #[cfg(target_feature = "d")]
    "ld.d $t0, $sp, {fp}
    beqz $t0, 3f
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23
      fld.d $f\\n, $sp, {f} + 8*\\n
    .endr
    .irp n, 0,1,2,3,4,5,6,7
      ld.bu $t0, $sp, {fcc} + \\n
      movgr2cf $fcc\\n, $t0
    .endr
    ld.d $t0, $sp, {fcsr}
    movgr2fcsr $fcsr0, $t0
    3:",
    "ld.d $t0, $sp, {era}",
    "csrwr $t0, {csr_era}",
    "ld.d $t0, $sp, {prmd}",
    "csrwr $t0, {csr_prmd}",
    ".irp n, 0,1,2,3,4,5,6,7,8",
    "  ld.d $t\\n, $sp, {t} + 8*\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7",
    "  ld.d $a\\n, $sp, {a} + 8*\\n",
    ".endr",
    "ld.d $ra, $sp, {ra}",
    "addi.d $sp, $sp, {size}",
    // `ertn` also ends a reservation (`ll`) that another task has made.
    "ertn",
    ".popsection",
    on_trap = sym on_trap,
    size = const size_of::<Frame>(),
    ra = const offset_of!(Frame, ra),
    a = const offset_of!(Frame, a),
    t = const offset_of!(Frame, t),
    era = const offset_of!(Frame, era),
    prmd = const offset_of!(Frame, prmd),
    #[cfg(target_feature = "d")]
    fp = const offset_of!(Frame, fp),
    #[cfg(target_feature = "d")]
    fcsr = const offset_of!(Frame, fcsr),
    #[cfg(target_feature = "d")]
    fcc = const offset_of!(Frame, fcc),
    #[cfg(target_feature = "d")]
    f = const offset_of!(Frame, f),
    csr_era = const csr::ERA,
    csr_prmd = const csr::PRMD,
    #[cfg(target_feature = "d")]
    csr_euen = const csr::EUEN,
);

unsafe extern "C" {
    /// The vector above, which is code.
    static own_vector: [u8; 0];
}

extern "C" fn on_trap(frame: &mut Frame) {
    const FP_DISABLED: usize = 0xf;
    let estat = read::<{ csr::ESTAT }>();
    match estat >> 16 & 0x3f {
        // An interrupt. Only the timer is enabled.
        0 => {}
        // Trapline's switch leaves floating point off for code that has not used it yet, and
        // switches the registers of code that has.
        // SAFETY: the registers hold no values that any code needs.
        FP_DISABLED if FPE != 0 => return unsafe { write::<{ csr::EUEN }>(FPE) },
        _ => on_fault(estat, frame.era, read::<{ csr::BADV }>()),
    }
    // The interrupt for which `wait_enabled` waits has come: if the core is before its `idle`, the
    // return skips the `idle`.
    let waiting = wait_enabled as *const () as usize;
    if (waiting..waiting + WAIT).contains(&frame.era) {
        frame.era = waiting + WAIT;
    }
    // SAFETY: the write acknowledges the interrupt.
    unsafe { write::<{ csr::TICLR }>(1) };
    on_timer_interrupt();
}

/// Reads a CSR.
fn read<const CSR: usize>() -> usize {
    let value;
    // SAFETY: it only reads.
    unsafe { asm!("csrrd {}, {}", out(reg) value, const CSR, options(nostack)) };
    value
}

/// Writes a CSR.
///
/// # Safety
///
/// The kernel must be able to go on with that value.
unsafe fn write<const CSR: usize>(value: usize) {
    // SAFETY: the caller promises that the kernel can go on with the value. The general register
    // gets the old value.
    unsafe { asm!("csrwr {}, {}", inout(reg) value => _, const CSR, options(nostack)) };
}

/// Sets IE to `enable`, and returns the old IE.
///
/// # Safety
///
/// `enable` is `IE`, and interrupts may come now, or it is 0.
unsafe fn exchange(enable: usize) -> usize {
    let old: usize;
    // SAFETY: if `enable` is `IE`, the caller promises that interrupts may come. The block is a
    // compiler barrier.
    unsafe {
        asm!(
            "csrxchg {}, {}, {}",
            inout(reg) enable => old,
            in(reg) IE,
            const csr::CRMD,
            options(nostack),
        )
    };
    old & IE
}

/// Installs the vector and enables the timer's interrupt.
pub fn init() {
    // SAFETY: interrupts are masked, and the vector handles all traps.
    unsafe {
        write::<{ csr::EENTRY }>((&raw const own_vector).addr());
        write::<{ csr::TICLR }>(1);
        write::<{ csr::ECFG }>(TIMER);
        write::<{ csr::SAVE }>(0x7361_7665_3000);
        write::<{ csr::SAVE + 1 }>(0x7361_7665_3100);
        write::<{ csr::SAVE + 2 }>(0x7361_7665_3200);
        write::<{ csr::SAVE + 3 }>(0x7361_7665_3300);
        write::<{ csr::SAVE + 4 }>(0x7361_7665_3400);
    }
}

/// Returns the per-core register.
pub fn cpu() -> *const Cpu {
    let cpu;
    // SAFETY: it only reads.
    unsafe { asm!("move {}, $r21", out(reg) cpu, options(nomem, nostack, preserves_flags)) };
    cpu
}

/// Returns the nanoseconds of the clock.
pub fn now() -> u64 {
    let ticks: u64;
    // SAFETY: it only reads.
    unsafe { asm!("rdtime.d {}, $zero", out(reg) ticks, options(nomem, nostack)) };
    ticks * TICK
}

/// Sets the timer to fire at `at`: at once if that time has passed, not at all at `u64::MAX`.
pub fn set_timer(at: u64) {
    const ON: u64 = 1;
    let config = match at {
        u64::MAX => 0,
        // The timer counts in steps of four ticks. One tick is added, since `now` is in the middle
        // of a tick.
        at => (at.saturating_sub(now()) / TICK + 1).next_multiple_of(4) | ON,
    };
    // SAFETY: the timer's vector is installed. An interrupt from before is void, and is cleared
    // before the timer may fire again.
    unsafe {
        write::<{ csr::TICLR }>(1);
        write::<{ csr::TCFG }>(config as usize);
    }
}

/// Waits for an interrupt, which is handled within this call. Interrupts are masked before and
/// after.
pub fn wait() {
    // SAFETY: the caller expects interrupts, and `enable` is `IE`.
    unsafe { wait_enabled(IE) };
    mask();
}

/// Enables interrupts and waits. Only an enabled interrupt ends an `idle`, and one may come just
/// before the `idle`, which [`on_trap`] then skips.
#[unsafe(naked)]
unsafe extern "C" fn wait_enabled(enable: usize) {
    naked_asm!("csrxchg $a0, $a0, {crmd}", "idle 0", "ret", crmd = const csr::CRMD)
}

/// The size of `wait_enabled` up to its `ret`.
const WAIT: usize = 2 * size_of::<u32>();

/// Masks interrupts, and returns whether they were enabled.
pub fn mask() -> usize {
    // SAFETY: masking interrupts does not endanger memory.
    unsafe { exchange(0) }
}

/// Enables interrupts if `state` says so.
///
/// # Safety
///
/// `state` must be what `mask` returned.
pub unsafe fn restore(state: usize) {
    // SAFETY: the caller promises that `state` comes from the `mask` with which this pairs.
    unsafe { exchange(state) };
}

/// Enables interrupts.
///
/// # Safety
///
/// Interrupts may come now.
pub unsafe fn enable() {
    // SAFETY: the caller promises that interrupts may come.
    unsafe { exchange(IE) };
}

pub fn put(byte: u8) {
    // SAFETY: this is the UART's data register. QEMU's UART is always ready.
    unsafe { with_exposed_provenance_mut::<u8>(UNCACHED | 0x1fe0_01e0).write_volatile(byte) };
}

/// Ends QEMU: switches the machine off for a success, or reports a panic of the guest.
pub fn exit(code: u8) -> ! {
    /// The configuration registers of the first PCI devices; the vendor and device number of
    /// pvpanic; an address for its only register.
    const PCI: usize = UNCACHED | 0x2000_0000;
    const PVPANIC: u32 = 0x0011_1b36;
    const PLACE: usize = 0x4000_0000;
    let register = |address| with_exposed_provenance_mut::<u32>(address);
    for config in (0..32).map(|device| PCI + (device << 15)) {
        // SAFETY: where there is no device, a read gives all ones. No other code uses the bus.
        unsafe {
            if code != 0 && register(config).read_volatile() == PVPANIC {
                register(config + 0x10).write_volatile(PLACE as u32);
                register(config + 0x4).write_volatile(1 << 1);
                with_exposed_provenance_mut::<u8>(UNCACHED | PLACE).write_volatile(1);
            }
        }
    }
    loop {
        // SAFETY: the device is for this.
        unsafe { with_exposed_provenance_mut::<u8>(UNCACHED | 0x100e_001c).write_volatile(0x34) };
    }
}

/// Returns the registers that belong to the kernel: EENTRY, the five SAVEs, ECFG, `$r21`.
pub fn system_registers() -> [usize; 8] {
    [
        read::<{ csr::EENTRY }>(),
        read::<{ csr::SAVE }>(),
        read::<{ csr::SAVE + 1 }>(),
        read::<{ csr::SAVE + 2 }>(),
        read::<{ csr::SAVE + 3 }>(),
        read::<{ csr::SAVE + 4 }>(),
        read::<{ csr::ECFG }>(),
        cpu().addr(),
    ]
}

/// Makes the setting that code may make for itself, where the ABI has floating point: the rounding
/// mode "up". Counts `rounds` down to zero, checks the setting, and restores the usual one. Returns
/// 0 if it was not lost.
///
/// # Safety
///
/// There are no conditions: the function only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold_own(rounds: usize) -> usize {
    naked_asm!(
        #[cfg(target_feature = "d")]
        "li.w $t0, {up}
        movgr2fcsr $fcsr0, $t0",
        "2:",
        "addi.d $a0, $a0, -1",
        "bnez $a0, 2b",
        #[cfg(target_feature = "d")]
        "movfcsr2gr $a0, $fcsr0
        movgr2fcsr $fcsr0, $zero
        xor $a0, $a0, $t0",
        "ret",
        #[cfg(target_feature = "d")]
        up = const 2 << 8,
    )
}

/// Returns whether another rounding mode is set now than the one that Rust code expects.
pub fn sees_others_own() -> bool {
    #[cfg(target_feature = "d")]
    {
        let control: usize;
        // SAFETY: it only reads.
        unsafe { asm!("movfcsr2gr {}, $fcsr0", out(reg) control, options(nostack)) };
        control >> 8 & 0b11 != 0
    }
    #[cfg(not(target_feature = "d"))]
    false
}

/// The registers that a function must preserve.
#[repr(C, align(16))]
struct Saved {
    ra: usize,
    /// $r22 to $r31.
    s: [usize; 10],
    #[cfg(target_feature = "d")]
    fs: [u64; 8],
}

/// Fills all registers with `seed` + 1, `seed` + 2 and so on, counts `rounds` down to zero, and
/// checks the registers. Returns 0 if no register has changed.
///
/// # Safety
///
/// There are no conditions: the function only counts.
#[unsafe(naked)]
pub unsafe extern "C" fn hold(seed: usize, rounds: usize) -> usize {
    naked_asm!(
        "addi.d $sp, $sp, -{size}",
        "st.d $ra, $sp, {ra}",
        ".irp n, 22,23,24,25,26,27,28,29,30,31",
        "  st.d $r\\n, $sp, {s} + 8*(\\n - 22)",
        ".endr",
        // a0: the value; a1: the counter. All registers but sp, tp and $r21 are filled.
        #[cfg(target_feature = "d")]
        ".irp n, 0,1,2,3,4,5,6,7
          fst.d $fs\\n, $sp, {fs} + 8*\\n
        .endr
        .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
          addi.d $a0, $a0, 1
          movgr2fr.d $f\\n, $a0
        .endr",
        ".irp n, 1,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,22,23,24,25,26,27,28,29,30,31",
        "  addi.d $a0, $a0, 1",
        "  move $r\\n, $a0",
        ".endr",
        "2:",
        "addi.d $a1, $a1, -1",
        "bnez $a1, 2b",
        // a1: the bits that differ. The registers are checked in the opposite order.
        ".irp n, 31,30,29,28,27,26,25,24,23,22,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,1",
        "  xor $r\\n, $r\\n, $a0",
        "  or $a1, $a1, $r\\n",
        "  addi.d $a0, $a0, -1",
        ".endr",
        #[cfg(target_feature = "d")]
        ".irp n, 31,30,29,28,27,26,25,24,23,22,21,20,19,18,17,16,15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0
          movfr2gr.d $t0, $f\\n
          xor $t0, $t0, $a0
          or $a1, $a1, $t0
          addi.d $a0, $a0, -1
        .endr
        .irp n, 0,1,2,3,4,5,6,7
          fld.d $fs\\n, $sp, {fs} + 8*\\n
        .endr",
        "move $a0, $a1",
        ".irp n, 22,23,24,25,26,27,28,29,30,31",
        "  ld.d $r\\n, $sp, {s} + 8*(\\n - 22)",
        ".endr",
        "ld.d $ra, $sp, {ra}",
        "addi.d $sp, $sp, {size}",
        "ret",
        size = const size_of::<Saved>(),
        ra = const offset_of!(Saved, ra),
        s = const offset_of!(Saved, s),
        #[cfg(target_feature = "d")]
        fs = const offset_of!(Saved, fs),
    )
}
