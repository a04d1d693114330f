//! What can go wrong in the collector itself, as opposed to in a request (see [`crate::http::problem`]).

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// The longest that a client is asked to stay away.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A failure of the collector.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A sink cannot be used now.
    Unavailable { retry_after: Duration },
    /// An id was used before, for something else.
    Reused,
    /// The set-up is wrong: a file, an option, a key.
    Config,
    /// A defect of the collector.
    Internal,
}

impl Error {
    pub(crate) fn unavailable(what: impl Into<String>, retry_after: Duration) -> Self {
        Self { kind: Kind::Unavailable { retry_after }, message: what.into(), source: None }
    }

    pub(crate) fn reused() -> Self {
        let message = "Something else was sent before under the same id";
        Self { kind: Kind::Reused, message: message.into(), source: None }
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { kind: Kind::Config, message: message.into(), source: None }
    }

    #[cfg_attr(not(feature = "server"), expect(dead_code, reason = "only the embedded store has threads"))]
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self { kind: Kind::Internal, message: message.into(), source: None }
    }

    pub(crate) fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Whether a sink could not be used; the same request may succeed later.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.kind, Kind::Unavailable { .. })
    }

    /// Whether an id was used before, for something else.
    pub fn is_reused(&self) -> bool {
        self.kind == Kind::Reused
    }

    /// Whether the set-up is wrong, so that nothing will help but changing it.
    pub fn is_config(&self) -> bool {
        self.kind == Kind::Config
    }

    /// Whether it is a defect of the collector, after which the process should end.
    pub fn is_internal(&self) -> bool {
        self.kind == Kind::Internal
    }

    /// When it is worth trying again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.kind {
            Kind::Unavailable { retry_after } => Some(retry_after),
            Kind::Reused | Kind::Config | Kind::Internal => None,
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

/// An error and all that caused it, on one line.
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
