//! Sends one batch over HTTP and reads the answer.

use crate::client::clock::{milliseconds, wall_clock};
use crate::client::error::{Error, Kind};
#[cfg(feature = "gzip")]
use crate::client::gzip::Gzip;
use crate::client::sender_config::SenderConfig;
use crate::core::outbox::{Answer, Attempt, SDK};
use crate::wire::Receipt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{StatusCode, Url};
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// More than the length of any receipt.
const RECEIPT_BYTES: usize = 1024 * 1024;

const SENT_AT: HeaderName = HeaderName::from_static("tallymark-sent-at");

/// Sends batches to one collector.
pub(super) struct Sender {
    http: reqwest::Client,
    url: Url,
    username: String,
    headers: HeaderMap,
    authorization: Mutex<HeaderValue>,
    timeout: Duration,
    #[cfg(feature = "gzip")]
    gzip: Gzip,
}

/// The result of a send, with everything that an [`Answer`] borrows.
pub(super) enum SendResult {
    Receipt(Receipt),
    Status(u16, Option<u64>),
    Failed(Error),
}

impl SendResult {
    pub(super) fn answer(&self) -> Answer<'_> {
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
    pub(super) fn new(config: &SenderConfig) -> Result<Self, Error> {
        let url = format!("{}/v1/batch", config.endpoint.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| Error::config("the endpoint is no URL").with_source(error))?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return Err(Error::config("the endpoint must be an http or https URL without credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            // The path of the request would become a part of it.
            return Err(Error::config("the endpoint has a query or a fragment"));
        }
        #[cfg(not(feature = "rustls"))]
        if url.scheme() == "https" && config.http.is_none() {
            return Err(Error::config("https needs the feature `rustls`, or an HTTP client of your own"));
        }
        let http = match &config.http {
            Some(http) => http.clone(),
            None => reqwest::Client::builder()
                // A redirect would send the events, and perhaps the key, to another server.
                .redirect(reqwest::redirect::Policy::none())
                .user_agent(SDK)
                .build()
                .map_err(|error| Error::config("the HTTP client cannot be set up").with_source(error))?,
        };
        let mut headers = config.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            http,
            url,
            headers,
            authorization: Mutex::new(basic(&config.username, &config.key)?),
            username: config.username.clone(),
            timeout: config.timeout,
            #[cfg(feature = "gzip")]
            gzip: Gzip::above(config.gzip_above),
        })
    }

    /// Replaces the key.
    pub(super) fn set_key(&self, key: &str) -> Result<(), Error> {
        let header = basic(&self.username, key)?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = header;
        Ok(())
    }

    /// The current credentials.
    pub(super) fn authorization(&self) -> HeaderValue {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn send(&self, attempt: &Attempt, authorization: &HeaderValue) -> SendResult {
        #[cfg(feature = "gzip")]
        if let Some(body) = self.gzip.compress(&attempt.body) {
            let result = self.post(attempt, authorization, body, true).await;
            // Some servers that do not support gzip answer 400. If the batch itself is at fault, the plain one gets the
            // same answer.
            let SendResult::Status(refused @ (400 | 415), _) = result else { return result };
            let plain = self.post(attempt, authorization, attempt.body.clone().into_bytes(), false).await;
            if !matches!(plain, SendResult::Status(status, _) if status == refused) {
                self.gzip.disable();
            }
            return plain;
        }
        self.post(attempt, authorization, attempt.body.clone().into_bytes(), false).await
    }

    async fn post(&self, attempt: &Attempt, authorization: &HeaderValue, body: Vec<u8>, gzip: bool) -> SendResult {
        let mut headers = self.headers.clone();
        headers.insert(AUTHORIZATION, authorization.clone());
        headers.insert(SENT_AT, wall_clock().into());
        if gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        let request = self.http.post(self.url.clone()).headers(headers).timeout(self.timeout).body(body);
        let failed = |error: reqwest::Error| {
            SendResult::Failed(
                Error::new(Kind::Send("a batch could not be sent; it is kept".into())).with_source(error.without_url()),
            )
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(error),
        };
        if *response.url() != self.url {
            let message = "the HTTP client has followed a redirect; turn redirects off; the batch is kept";
            return SendResult::Failed(Error::new(Kind::Send(message.into())));
        }
        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = response.headers().get(RETRY_AFTER).and_then(retry_after);
            return SendResult::Status(status.as_u16(), retry_after);
        }
        match receipt(response).await {
            // A receipt for another batch, or text that is not a receipt, is not from a collector.
            Ok(Some(receipt)) if receipt.batch_id == attempt.batch_id && adds_up(&receipt, attempt.events) => {
                SendResult::Receipt(receipt)
            }
            Ok(_) => {
                SendResult::Failed(Error::new(Kind::Send("what answered is not a collector; the batch is kept".into())))
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

/// Whether the receipt settles each of the `events` exactly once.
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
    // For example the end of the line that the key was read from.
    if username.chars().chain(key.chars()).any(char::is_control) {
        return Err(Error::config("a username and a key have no control characters"));
    }
    let mut header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{key}"))))
        .map_err(|error| Error::config("the username or the key cannot be sent").with_source(error))?;
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

#[cfg(all(test, not(feature = "rustls")))]
mod tests {
    use crate::client::async_client::Client;

    #[test]
    fn https_without_tls_is_refused_at_once() {
        let builder = || Client::builder("https://collect.shop.example", "shop", "key");
        assert!(builder().build().unwrap_err().is_config());
        builder().http_client(reqwest::Client::new()).build().unwrap();
    }
}
