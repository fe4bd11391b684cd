//! Conversion between a clock's ticks and nanoseconds, for processors whose tick is not a whole
//! number of nanoseconds.

use core::sync::atomic::{AtomicU64, Ordering};

/// Factors for [`scale`] are fixed-point numbers with this many bits of fraction.
pub(crate) const FRACTION: u32 = 32;

/// `value` times `factor`, rounded down.
#[inline]
pub(crate) fn scale(value: u64, factor: &AtomicU64) -> u64 {
    ((u128::from(value) * u128::from(factor.load(Ordering::Relaxed))) >> FRACTION) as u64
}
