//! Where and how batches are sent.

use reqwest::header::HeaderMap;
use std::time::Duration;

/// The settings of a [`Sender`](crate::client::sender::Sender).
pub(super) struct SenderConfig {
    pub(super) endpoint: String,
    pub(super) username: String,
    pub(super) key: String,
    /// The most time that one request may take.
    pub(super) timeout: Duration,
    /// The service's own HTTP client.
    pub(super) http: Option<reqwest::Client>,
    pub(super) headers: HeaderMap,
    /// Compresses bodies longer than this.
    #[cfg(feature = "gzip")]
    pub(super) gzip_above: Option<usize>,
}
