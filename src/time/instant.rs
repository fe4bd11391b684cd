//! Moments of the platform's clock.

use core::time::Duration;

use crate::platform::bound;
use crate::time::alarm::nanoseconds;

/// A moment on the platform's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub(super) u64);

/// Reads the platform's clock. Any context.
pub fn now() -> Instant {
    Instant(bound::now())
}

impl Instant {
    /// Makes the moment `nanoseconds` after the platform's clock began.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Returns the nanoseconds since the platform's clock began.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns how much later this moment is than `earlier`; zero if it is not later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl core::ops::Add<Duration> for Instant {
    type Output = Self;

    /// Saturates: the sum is at most the latest moment that there is.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanoseconds(duration)))
    }
}

impl core::ops::AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}
