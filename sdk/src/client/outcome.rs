//! The outcome of one event.

use crate::core::loss::Reason;

/// The outcome of one event; see [`Client::track_confirmed`](crate::Client::track_confirmed).
#[must_use = "the event may not have been delivered"]
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The collector has stored and counted the event.
    Delivered,
    /// The collector has rejected the event and will not accept it later.
    Rejected {
        /// A stable code, such as `name_too_long`.
        code: String,
        /// The reason in words.
        message: String,
    },
    /// The client has dropped the event.
    Dropped(Reason),
}
