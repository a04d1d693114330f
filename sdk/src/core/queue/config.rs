//! When a queue seals, sends, retries and drops.

use crate::core::limits;
use crate::core::retry::Backoff;

/// In milliseconds.
const CENTURY: u64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// The settings of a [`Queue`](super::Queue). All times are milliseconds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Seals a batch when it holds this many events. At most [`limits::BATCH_EVENTS`].
    pub batch_events: usize,
    /// Seals a batch before its body gets longer than this. At most [`limits::BATCH_BYTES`].
    pub batch_bytes: usize,
    /// Seals a batch when its first event is this old.
    pub batch_age: u64,
    /// The most batches in flight at the same time. At least 1.
    pub in_flight: usize,
    /// The most bytes in the queue. Beyond that it drops the oldest batch.
    pub queue_bytes: usize,
    /// Drops a batch when it is this old. Keep it below the 30 days for which the collector remembers batches: a batch
    /// that is retried later may be counted twice.
    pub queue_age: u64,
    /// When to retry a failed send.
    pub backoff: Backoff,
    /// How long to wait after a 401 or 403, unless [`resume`](super::Queue::resume) is called.
    pub pause: u64,
}

impl Config {
    /// The defaults of the client.
    pub const DEFAULT: Self = Self {
        batch_events: 100,
        batch_bytes: 256 * 1024,
        batch_age: 5_000,
        in_flight: 4,
        queue_bytes: 64 * 1024 * 1024,
        queue_age: 7 * 24 * 60 * 60 * 1000,
        backoff: Backoff::DEFAULT,
        pause: 5 * 60 * 1000,
    };

    /// The same settings, each within its limits.
    pub(crate) fn clamped(mut self) -> Self {
        self.batch_events = self.batch_events.clamp(1, limits::BATCH_EVENTS);
        self.batch_bytes = self.batch_bytes.min(limits::BATCH_BYTES);
        self.in_flight = self.in_flight.max(1);
        // Cap at a century, so that `Duration::MAX` cannot overflow later sums.
        for time in [&mut self.batch_age, &mut self.backoff.max, &mut self.pause] {
            *time = (*time).min(CENTURY);
        }
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::DEFAULT
    }
}
