//! The error of the client.

use crate::event::InvalidEvent;
use std::error::Error as StdError;
use std::fmt;

/// An error of the [`Client`](crate::Client).
///
/// Its text names the cause and what to do, and never contains a key.
pub struct Error {
    kind: Kind,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    Invalid,
    QueueFull,
    Storage,
    Closed,
    Config(String),
    Credentials(String),
    Rejected {
        code: String,
        message: String,
    },
    /// The whole text, with the cause and what happens to the batch.
    Send(String),
    /// This many errors were not passed to the hook.
    Omitted(u64),
}

impl Error {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, source: None }
    }

    pub(super) fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config(message.into()))
    }

    pub(super) fn closed() -> Self {
        Self::new(Kind::Closed)
    }

    pub(super) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the event exceeds a limit. [`source`](StdError::source) is the [`InvalidEvent`].
    pub fn is_invalid(&self) -> bool {
        self.kind == Kind::Invalid
    }

    /// Whether the event was dropped because the queue is full and every batch in it is in flight.
    pub fn is_queue_full(&self) -> bool {
        self.kind == Kind::QueueFull
    }

    /// Whether the spool failed. [`source`](StdError::source) says how.
    pub fn is_storage(&self) -> bool {
        self.kind == Kind::Storage
    }

    /// Whether the client was shut down, or belongs to the process that this one was forked from.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Closed
    }

    /// Whether a setting of the client is wrong.
    pub fn is_config(&self) -> bool {
        matches!(self.kind, Kind::Config(_))
    }

    /// Whether the collector refuses the credentials. Sending pauses and events are kept; see
    /// [`Client::set_key`](crate::Client::set_key).
    pub fn is_credentials(&self) -> bool {
        matches!(self.kind, Kind::Credentials(_))
    }

    /// Whether the collector has rejected an event and will not accept it later.
    pub fn is_rejected(&self) -> bool {
        matches!(self.kind, Kind::Rejected { .. })
    }

    /// Whether a batch was not delivered. The text says whether it is kept and retried, divided or dropped.
    pub fn is_send(&self) -> bool {
        matches!(self.kind, Kind::Send(_))
    }
}

impl From<InvalidEvent> for Error {
    fn from(invalid: InvalidEvent) -> Self {
        Self::new(Kind::Invalid).with_source(invalid)
    }
}

/// The last cause in the chain of an error: the one that says what really happened.
pub(super) fn root_cause<'a>(error: &'a (dyn StdError + 'static)) -> &'a (dyn StdError + 'static) {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Invalid => "the event was not tracked",
            Kind::QueueFull => {
                "the event was dropped and counted as lost: the queue is full, and every batch in it is in flight"
            }
            Kind::Storage => "the spool failed",
            Kind::Closed => "the event was not tracked: the client was shut down, or built before a fork",
            Kind::Config(message) | Kind::Credentials(message) => message,
            Kind::Send(message) => return f.write_str(message),
            Kind::Omitted(errors) => return write!(f, "{errors} more errors came while `on_error` was busy"),
            Kind::Rejected { code, message } => {
                return write!(f, "the collector has rejected an event: {message} ({code})");
            }
        })?;
        match self.source() {
            Some(source) => write!(f, ": {}", root_cause(source)),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.kind).field("source", &self.source).finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
