//! The clocks of the client.

use crate::core::clock::Clock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock, in milliseconds since the Unix epoch.
pub(super) fn wall_clock() -> u64 {
    milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The outbox's clock, read from the system's clocks.
#[derive(Clone)]
pub(super) struct SystemClock {
    clock: Clock,
    /// When the monotonic clock was 0.
    start: Instant,
}

impl SystemClock {
    pub(super) fn start() -> Self {
        Self { clock: Clock::start(wall_clock(), 0), start: Instant::now() }
    }

    /// The outbox's clock, after a reading of both clocks.
    pub(super) fn read(&mut self) -> &Clock {
        self.clock.advance(wall_clock(), milliseconds(self.start.elapsed()));
        &self.clock
    }
}
