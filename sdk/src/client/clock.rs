//! The clocks of the client.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock, in milliseconds since the Unix epoch.
pub(super) fn wall_clock() -> u64 {
    milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The outbox's clock: it starts at the wall clock's time and never jumps.
pub(super) struct Clock {
    wall: u64,
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { wall: wall_clock(), start: Instant::now() }
    }

    pub(super) fn now(&self) -> u64 {
        self.wall + milliseconds(self.start.elapsed())
    }
}
