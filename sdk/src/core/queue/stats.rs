//! What a queue reports: what to do next, where events have gone, and why one was not stored.

use crate::core::loss::Losses;

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Next<T> {
    /// Send this, report the result, and poll again at once.
    Send(T),
    /// Nothing until this time, in milliseconds since the Unix epoch, or until an event is pushed, a flush is requested
    /// or a result is reported.
    WaitUntil(u64),
    /// Nothing until an event is pushed or a result is reported.
    Idle,
}

/// A point in the stream of events, returned by [`Queue::flush`](super::Queue::flush).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub(super) u32);

/// Why nothing is sent although events are queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pause {
    /// 401: the credentials are missing or wrong.
    Unauthorized,
    /// 403: the key or the page's origin is not allowed.
    Forbidden,
}

/// Where every event has gone. At all times `made + adopted = delivered + rejected + dropped + queued`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Events pushed.
    pub made: u64,
    /// Events taken over from earlier processes or pages.
    pub adopted: u64,
    /// Events that the collector accepted.
    pub delivered: u64,
    /// Events that the collector rejected. It will not accept them later.
    pub rejected: u64,
    /// Events dropped by the client, by reason.
    pub dropped: Losses,
    /// Events still to be delivered.
    pub queued: u64,
    /// Why sending has stopped, if it has.
    pub paused: Option<Pause>,
    /// Failed sends since the last successful one.
    pub failures: u32,
}

impl Stats {
    pub(super) const NONE: Self = Self {
        made: 0,
        adopted: 0,
        delivered: 0,
        rejected: 0,
        dropped: Losses::NONE,
        queued: 0,
        paused: None,
        failures: 0,
    };
}

/// What one result settled, in events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Accepted by the collector.
    pub delivered: u64,
    /// Rejected by the collector.
    pub rejected: u64,
    /// Dropped by the client.
    pub dropped: u64,
}

/// Why an event was not stored.
#[derive(Debug)]
pub enum NotStored<E> {
    /// The queue is full, and every batch in it is in flight.
    Full,
    /// The store failed.
    Failed(E),
}
