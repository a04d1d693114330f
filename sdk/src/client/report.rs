//! The report of a flush or a shutdown.

use crate::core::outbox::Stats;

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
