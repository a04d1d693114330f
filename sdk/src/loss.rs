//! What was not delivered, and why. Nothing disappears without being counted here.

/// Why events were dropped by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The queue had reached its cap; the oldest events went first.
    QueueFull,
    /// Older than the queue's age limit.
    Expired,
    /// The collector said that it can never take them (400, 415, 422 and other final answers).
    Refused,
    /// A single event that the collector finds too large (413).
    TooLarge,
    /// The storage failed to keep or to return them.
    Storage,
    /// They broke a limit. Only where whoever made them is not told otherwise: in the browser.
    Invalid,
}

impl Reason {
    /// Every reason there is.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses([u64; Reason::ALL.len()]);

impl Losses {
    /// None at all.
    pub(crate) const NONE: Self = Self([0; Reason::ALL.len()]);

    /// How many were lost for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// How many were lost in all.
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
