//! Events that were not delivered, counted by reason.

use core::fmt;

/// Why the client dropped events.
///
/// The names on the wire are listed in `sdk/tests/wire/reasons.json`, which tests in Rust and TypeScript compare with
/// their own lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The queue was full. The oldest events are dropped first.
    QueueFull,
    /// The events were older than the queue's age limit.
    Expired,
    /// The collector refused the whole batch (400, 415 or 422).
    Refused,
    /// The collector refused a single event as too large (413).
    TooLarge,
    /// The storage could not keep or return the events.
    Storage,
    /// The events exceeded a limit. Used by the browser tracker only; the Rust client returns an error instead.
    Invalid,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::Expired, Self::Refused, Self::TooLarge, Self::Storage, Self::Invalid];

    /// The name on the wire, such as `queue_full`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Storage => "storage",
            Self::Invalid => "invalid",
        }
    }
}

/// A number of events for each [`Reason`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses([u64; Reason::ALL.len()]);

impl fmt::Debug for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = Reason::ALL.into_iter().filter(|reason| self.of(*reason) > 0);
        f.debug_map().entries(lost.map(|reason| (reason.as_str(), self.of(reason)))).finish()
    }
}

impl Losses {
    /// No losses.
    pub(crate) const NONE: Self = Self([0; Reason::ALL.len()]);

    /// The events lost for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// The events lost for any reason.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    pub(crate) fn add(&mut self, reason: Reason, events: impl Into<u64>) {
        self.0[reason as usize] += events.into();
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, more) in self.0.iter_mut().zip(other.0) {
            *mine += more;
        }
    }
}
