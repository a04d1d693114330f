//! Errors of the collector itself. Errors of a request are in `http::problem`.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The longest time that a client is asked to wait before a retry.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// An error of the collector.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The lake or the counters cannot be used now.
    Unavailable { retry_after: Duration },
    /// The id belongs to a different batch or event.
    IdConflict,
    /// The configuration is wrong: a file, an option or a key.
    Config,
    /// A defect of the collector.
    Internal,
}

impl Error {
    pub(crate) fn unavailable(what: impl Into<String>, retry_after: Duration) -> Self {
        Self { kind: Kind::Unavailable { retry_after }, message: what.into(), source: None }
    }

    pub(crate) fn id_conflict() -> Self {
        let message = "A different batch or event was received before under the same id";
        Self { kind: Kind::IdConflict, message: message.into(), source: None }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { kind: Kind::Config, message: message.into(), source: None }
    }

    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only the embedded store has threads"))]
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { kind: Kind::Internal, message: message.into(), source: None }
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether the lake or the counters could not be used. The same request may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.kind, Kind::Unavailable { .. })
    }

    /// Whether the id belongs to a different batch or event, received before.
    pub fn is_id_conflict(&self) -> bool {
        self.kind == Kind::IdConflict
    }

    /// Whether the configuration is wrong and must be changed.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// Whether it is a defect of the collector, after which the process should end.
    pub fn is_internal(&self) -> bool {
        self.kind == Kind::Internal
    }

    /// How long to wait before a retry, if one may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            Kind::Unavailable { retry_after } => Some(retry_after),
            Kind::IdConflict | Kind::Config | Kind::Internal => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// An error and its causes, on one line.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
