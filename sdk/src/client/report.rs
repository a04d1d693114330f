//! The report of a flush or a shutdown.

use crate::core::outbox::{Pause, Stats};
use std::fmt;

/// What a client has done with its events; returned by [`Client::flush`](crate::Client::flush) and
/// [`Client::shutdown`](crate::Client::shutdown).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Where every event has gone.
    pub stats: Stats,
    complete: bool,
    volatile: u64,
}

impl Report {
    /// `volatile` is the number of queued events that end with the process.
    pub(super) fn new(stats: Stats, complete: bool, volatile: u64) -> Self {
        Self { stats, complete, volatile }
    }

    /// Whether every event tracked before is delivered, rejected or dropped.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The queued events that are in the spool's directory. After a shutdown, the next client that uses the directory
    /// delivers them.
    pub fn on_disk(&self) -> u64 {
        self.stats.queued - self.in_memory()
    }

    /// The queued events that are in memory. After a shutdown they are lost.
    pub fn in_memory(&self) -> u64 {
        self.volatile.min(self.stats.queued)
    }
}

/// For example `3 events delivered, 2 left in memory; the collector does not know the username and key (401)`.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { delivered, rejected, dropped, paused, failures, queued, .. } = self.stats;
        write!(f, "{delivered} events delivered")?;
        let others = [
            (rejected, "rejected"),
            (dropped.total(), "dropped"),
            (self.on_disk(), "left on disk"),
            (self.in_memory(), "left in memory"),
        ];
        for (events, what) in others.into_iter().filter(|(events, _)| *events > 0) {
            write!(f, ", {events} {what}")?;
        }
        match paused {
            Some(Pause::Unauthorized) => f.write_str("; the collector does not know the username and key (401)"),
            Some(Pause::Forbidden) => f.write_str("; the collector does not allow this with the key (403)"),
            None if queued > 0 && failures > 0 => write!(f, "; the last sends failed ({failures})"),
            None => Ok(()),
        }
    }
}
