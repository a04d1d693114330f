//! How long to wait before a retry.

use crate::core::id::Random;

/// Exponential backoff with full jitter: a random delay below a ceiling that doubles with each failure.
///
/// Times are milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The ceiling after the first failure.
    pub base: u64,
    /// The highest ceiling. A server's `Retry-After` is capped at this too.
    pub max: u64,
}

impl Backoff {
    /// The default of both clients: at most half a second after the first failure, at most 5 minutes later on.
    pub const DEFAULT: Self = Self { base: 500, max: 5 * 60 * 1000 };

    /// The delay after this many failures in a row: at least `retry_after`, plus the jitter, so that clients do not
    /// return all at once.
    pub(crate) fn delay(&self, failures: u32, retry_after: Option<u64>, random: &mut impl Random) -> u64 {
        let doublings = failures.saturating_sub(1).min(32);
        let ceiling = (self.base.max(1).min(u64::MAX >> doublings) << doublings).min(self.max.max(1));
        let jitter = random.random() % ceiling + 1;
        (retry_after.unwrap_or(0).min(self.max) + jitter).min(self.longest())
    }

    /// The longest possible delay. A longer wait means that the clock was set.
    pub(crate) fn longest(&self) -> u64 {
        self.max.saturating_add(self.max)
    }
}
