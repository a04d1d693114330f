//! Sending one batch over HTTP, and understanding the answer.

use crate::builder::Builder;
use crate::error::{Error, Kind};
use crate::outbox::{Answer, Attempt};
use crate::wire::Receipt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A receipt is never longer than this.
const RECEIPT_BYTES: usize = 1024 * 1024;

const SENT_AT: HeaderName = HeaderName::from_static("tallymark-sent-at");

/// Sends batches to one collector.
pub(crate) struct Sender {
    http: reqwest::Client,
    url: Url,
    username: String,
    headers: HeaderMap,
    authorization: Mutex<HeaderValue>,
    timeout: Duration,
    #[cfg(feature = "gzip")]
    gzip: gzip::Gzip,
}

/// What came of a send, with everything that an [`Answer`] borrows.
pub(crate) enum Outcome {
    Receipt(Receipt),
    Status(u16, Option<u64>),
    Failed(Error),
}

impl Outcome {
    pub(crate) fn answer(&self) -> Answer<'_> {
        match self {
            Self::Receipt(receipt) => Answer::Receipt {
                accepted: receipt.accepted,
                rejected: u32::try_from(receipt.rejected.len()).unwrap_or(u32::MAX),
                retry: &receipt.retry,
            },
            Self::Status(status, retry_after) => Answer::Status { status: *status, retry_after: *retry_after },
            Self::Failed(_) => Answer::None,
        }
    }
}

impl Sender {
    pub(crate) fn new(builder: &Builder) -> Result<Self, Error> {
        let url = format!("{}/v1/batch", builder.endpoint.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| Error::config("the endpoint is no URL").because(error))?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return Err(Error::config("the endpoint must be an http or https URL without credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            // The path would have become a part of it.
            return Err(Error::config("the endpoint has a query or a fragment"));
        }
        #[cfg(not(feature = "rustls"))]
        if url.scheme() == "https" && builder.http.is_none() {
            return Err(Error::config("https needs the feature `rustls`, or an HTTP client of your own"));
        }
        let http = match &builder.http {
            Some(http) => http.clone(),
            None => reqwest::Client::builder()
                // A redirect would carry the events, and perhaps the key, to somewhere else.
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(concat!("tallymark-rust/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|error| Error::config("the HTTP client cannot be set up").because(error))?,
        };
        let mut headers = builder.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            http,
            url,
            headers,
            authorization: Mutex::new(basic(&builder.username, &builder.key)?),
            username: builder.username.clone(),
            timeout: builder.timeout,
            #[cfg(feature = "gzip")]
            gzip: gzip::Gzip::above(builder.gzip_above),
        })
    }

    /// Uses another key from now on.
    pub(crate) fn set_key(&self, key: &str) -> Result<(), Error> {
        let header = basic(&self.username, key)?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = header;
        Ok(())
    }

    /// The credentials that are used now.
    pub(crate) fn authorization(&self) -> HeaderValue {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) async fn send(&self, attempt: &Attempt, authorization: &HeaderValue) -> Outcome {
        #[cfg(feature = "gzip")]
        if let Some(body) = self.gzip.compressed(&attempt.body) {
            let outcome = self.post(attempt, authorization, body, true).await;
            // Some who do not know gzip say 400. If that is about the batch itself, they say it again.
            let Outcome::Status(refused @ (400 | 415), _) = outcome else { return outcome };
            let plain = self.post(attempt, authorization, attempt.body.clone().into_bytes(), false).await;
            if !matches!(plain, Outcome::Status(status, _) if status == refused) {
                self.gzip.give_up();
            }
            return plain;
        }
        self.post(attempt, authorization, attempt.body.clone().into_bytes(), false).await
    }

    async fn post(&self, attempt: &Attempt, authorization: &HeaderValue, body: Vec<u8>, gzip: bool) -> Outcome {
        let mut headers = self.headers.clone();
        headers.insert(AUTHORIZATION, authorization.clone());
        headers.insert(SENT_AT, wall_clock().into());
        if gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let request = self.http.post(self.url.clone()).headers(headers).timeout(self.timeout).body(body);
        let failed = |error: reqwest::Error| {
            Outcome::Failed(
                Error::new(Kind::Send("a batch could not be sent; it is kept".into())).because(error.without_url()),
            )
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(error),
        };
        if *response.url() != self.url {
            let message = "the HTTP client has followed a redirect; turn redirects off; the batch is kept";
            return Outcome::Failed(Error::new(Kind::Send(message.into())));
        }
        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = response.headers().get(RETRY_AFTER).and_then(retry_after);
            return Outcome::Status(status.as_u16(), retry_after);
        }
        match receipt(response).await {
            // Whatever answers for another batch, or says nothing we know, is not the collector.
            Ok(Some(receipt)) if receipt.batch_id == attempt.batch_id && adds_up(&receipt, attempt.events) => {
                Outcome::Receipt(receipt)
            }
            Ok(_) => {
                Outcome::Failed(Error::new(Kind::Send("what answered is not a collector; the batch is kept".into())))
            }
            Err(error) => failed(error),
        }
    }
}

async fn receipt(mut response: reqwest::Response) -> Result<Option<Receipt>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > RECEIPT_BYTES {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(serde_json::from_slice(&body).ok())
}

/// Whether it says one thing, and one only, of each of so many events.
fn adds_up(receipt: &Receipt, events: u32) -> bool {
    let rejected = receipt.rejected.iter().map(|rejected| rejected.index);
    let named: HashSet<u32> = rejected.chain(receipt.retry.iter().copied()).filter(|index| *index < events).collect();
    let all = receipt.rejected.len() + receipt.retry.len();
    named.len() == all && u64::from(receipt.accepted) + all as u64 == u64::from(events)
}

fn basic(username: &str, key: &str) -> Result<HeaderValue, Error> {
    if username.contains(':') {
        return Err(Error::config("a username has no colon"));
    }
    // The end of the line, say, that the key was read from.
    if username.chars().chain(key.chars()).any(char::is_control) {
        return Err(Error::config("a username and a key have no control characters"));
    }
    let mut header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{key}"))))
        .map_err(|error| Error::config("the username or the key cannot be sent").because(error))?;
    header.set_sensitive(true);
    Ok(header)
}

/// A `Retry-After` in milliseconds from now: seconds, or an HTTP date.
fn retry_after(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(seconds.saturating_mul(1000));
    }
    let then = httpdate::parse_http_date(text).ok()?;
    Some(milliseconds(then.duration_since(SystemTime::now()).unwrap_or_default()))
}

pub(crate) fn wall_clock() -> u64 {
    milliseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

pub(crate) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(feature = "gzip")]
mod gzip {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Compresses bodies above a size, until somebody on the way turns out not to take them.
    pub(super) struct Gzip {
        above: AtomicUsize,
    }

    impl Gzip {
        pub(super) fn above(bytes: Option<usize>) -> Self {
            Self { above: AtomicUsize::new(bytes.unwrap_or(usize::MAX)) }
        }

        pub(super) fn compressed(&self, body: &str) -> Option<Vec<u8>> {
            if body.len() <= self.above.load(Ordering::Relaxed) {
                return None;
            }
            let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
            encoder.write_all(body.as_bytes()).ok()?;
            encoder.finish().ok()
        }

        pub(super) fn give_up(&self) {
            self.above.store(usize::MAX, Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(feature = "rustls")))]
mod tests {
    use crate::Client;

    #[test]
    fn https_without_tls_is_refused_at_once() {
        let builder = || Client::builder("https://collect.shop.example", "shop", "key");
        assert!(builder().build().unwrap_err().is_config());
        builder().http_client(reqwest::Client::new()).build().unwrap();
    }
}
