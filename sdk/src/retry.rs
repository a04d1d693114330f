//! When to try again.

use crate::id::Random;

/// Exponential backoff with full jitter: a random share of a ceiling that doubles with each failure.
///
/// Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling after the first failure.
    pub base: u64,
    /// The highest the ceiling gets. A server's `Retry-After` is clamped to this too.
    pub max: u64,
}

impl Backoff {
    /// How long to wait after so many failures in a row. A `Retry-After` is the least that is waited;
    /// the jitter comes on top, so that not everybody comes back at once.
    pub(crate) fn delay(&self, failures: u32, retry_after: Option<u64>, random: &mut impl Random) -> u64 {
        let doublings = failures.saturating_sub(1).min(32);
        let ceiling = self.base.max(1).saturating_mul(1 << doublings).min(self.max.max(1));
        let jitter = random.random() % ceiling + 1;
        (retry_after.unwrap_or(0).min(self.max) + jitter).min(self.longest())
    }

    /// No wait is longer. If a clock says otherwise, the clock was moved.
    pub(crate) fn longest(&self) -> u64 {
        self.max.saturating_mul(2)
    }
}
