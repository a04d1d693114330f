//! Why a request's body does not become a batch. The HTTP surface answers it as a problem.

use tallymark::InvalidEvent;

/// A body that is refused as a whole. The same body is refused again, so there is no point in a retry.
#[derive(Debug)]
pub struct Refusal {
    reason: Reason,
    detail: String,
}

/// What is wrong with the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is not JSON.
    InvalidJson,
    /// It is JSON, but not a batch.
    InvalidBatch,
    /// It holds more events than a batch may.
    TooManyEvents,
    /// The one event that it should hold is not valid.
    InvalidEvent,
    /// The one event that it holds is too large.
    EventTooLarge,
}

impl Refusal {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    /// What is wrong, for programs.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What is wrong, for people: it names the field and the limit.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<InvalidEvent> for Refusal {
    fn from(invalid: InvalidEvent) -> Self {
        let reason = match invalid.code() {
            "event_too_large" => Reason::EventTooLarge,
            _ => Reason::InvalidEvent,
        };
        Self::new(reason, format!("{invalid} ({}).", invalid.code()))
    }
}
