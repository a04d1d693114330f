//! What the client can fail with.

use crate::event::InvalidEvent;
use std::error::Error as StdError;
use std::fmt;

/// An error of the [`Client`](crate::Client).
pub struct Error {
    kind: Kind,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Invalid,
    QueueFull,
    Closed,
    Config(String),
}

impl Error {
    pub(crate) fn invalid(invalid: InvalidEvent) -> Self {
        Self { kind: Kind::Invalid, source: Some(invalid.into()) }
    }

    pub(crate) fn queue_full() -> Self {
        Self { kind: Kind::QueueFull, source: None }
    }

    pub(crate) fn closed() -> Self {
        Self { kind: Kind::Closed, source: None }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { kind: Kind::Config(message.into()), source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the event breaks a limit; [`source`](StdError::source) is the [`InvalidEvent`].
    pub fn is_invalid(&self) -> bool {
        self.kind == Kind::Invalid
    }

    /// Whether the event was dropped because the queue is full of batches that are on their way.
    pub fn is_queue_full(&self) -> bool {
        self.kind == Kind::QueueFull
    }

    /// Whether the client has been shut down.
    pub fn is_closed(&self) -> bool {
        self.kind == Kind::Closed
    }

    /// Whether the client cannot be built as asked for.
    pub fn is_config(&self) -> bool {
        matches!(self.kind, Kind::Config(_))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Invalid => f.write_str("the event breaks a limit and was not tracked"),
            Kind::QueueFull => f.write_str("the queue is full, so the event was dropped and counted as lost"),
            Kind::Closed => f.write_str("the client has been shut down, so the event was not tracked"),
            Kind::Config(message) => f.write_str(message),
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
