//! Sends one batch over HTTP and reads the answer.

use crate::client::clock::{milliseconds, wall_clock};
use crate::client::diagnosis::{environment_proxy, request_error, status_error};
use crate::client::error::{Error, Kind};
#[cfg(feature = "gzip")]
use crate::client::gzip::Gzip;
use crate::client::sender_config::SenderConfig;
use crate::core::outbox::{Answer, Attempt, SDK};
use crate::wire::Receipt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
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
    /// The proxy of the environment that requests go through.
    proxy: Option<String>,
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
    /// A status other than 200, `Retry-After` in milliseconds, and the same in words.
    Status(u16, Option<u64>, Error),
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
            Self::Status(status, retry_after, _) => Answer::Status { status: *status, retry_after: *retry_after },
            Self::Failed(_) => Answer::None,
        }
    }
}

impl Sender {
    pub(super) fn new(config: &SenderConfig) -> Result<Self, Error> {
        let url = format!("{}/v1/batch", config.endpoint.trim_end_matches('/'));
        let url = Url::parse(&url).map_err(|error| {
            Error::config("the endpoint must be a URL such as https://collect.shop.example").with_source(error)
        })?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some() {
            return Err(Error::config("the endpoint must be an http or https URL without credentials"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            // The path of the request would become a part of it.
            return Err(Error::config("the endpoint must not have a query or a fragment"));
        }
        if url.path().ends_with("/v1/batch/v1/batch") {
            return Err(Error::config("the endpoint must not end in /v1/batch, which the client adds"));
        }
        #[cfg(not(feature = "rustls"))]
        if url.scheme() == "https" && config.http.is_none() {
            return Err(Error::config("https needs the feature `rustls`, or an HTTP client of your own"));
        }
        let http = match &config.http {
            Some(http) => http.clone(),
            None => http_client(&url)?,
        };
        // A client of the service's own has its own proxies.
        let proxy = config.http.is_none().then(|| environment_proxy(&url)).flatten();
        let mut headers = config.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            http,
            url,
            proxy,
            headers,
            authorization: Mutex::new(basic(&config.username, &config.key)?),
            username: config.username.clone(),
            timeout: config.timeout,
            #[cfg(feature = "gzip")]
            gzip: Gzip::above(config.gzip_above),
        })
    }

    /// The URL that batches are sent to.
    pub(super) fn endpoint(&self) -> &str {
        self.url.as_str()
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
            // Some servers that do not support gzip answer 400. And gateways that pass compressed bodies on as text
            // damage them, which a collector behind one answers with 408.
            let SendResult::Status(refused @ (400 | 408 | 415), ..) = result else { return result };
            let plain = self.post(attempt, authorization, attempt.body.clone().into_bytes(), false).await;
            let compression_is_at_fault = match &plain {
                // If the batch itself is at fault, it gets the same answer again.
                SendResult::Status(status, ..) => refused != 408 && *status != refused,
                SendResult::Receipt(_) => true,
                SendResult::Failed(_) => refused != 408,
            };
            if compression_is_at_fault {
                let endpoint = self.url.as_str();
                tracing::warn!(endpoint, status = refused, "compressed bodies are not accepted; sending plain ones");
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
        let failed = |error| SendResult::Failed(request_error(&self.url, self.proxy.as_deref(), error));
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return failed(error),
        };
        if *response.url() != self.url {
            let message = format!(
                "the HTTP client followed a redirect from {}: turn its redirects off; the batch is kept and retried",
                self.url
            );
            return SendResult::Failed(Error::new(Kind::Send(message)));
        }
        let status = response.status();
        if status != StatusCode::OK {
            let retry_after = response.headers().get(RETRY_AFTER).and_then(retry_after);
            let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
            let error = status_error(&self.url, status.as_u16(), location);
            return SendResult::Status(status.as_u16(), retry_after, error);
        }
        match receipt(response).await {
            // A receipt for another batch, or text that is not a receipt, is not from a collector.
            Ok(Some(receipt)) if receipt.batch_id == attempt.batch_id && adds_up(&receipt, attempt.events) => {
                SendResult::Receipt(receipt)
            }
            Ok(_) => SendResult::Failed(Error::new(Kind::Send(format!(
                "{} answered 200 without a receipt, so it is not a collector, or a proxy answered; the batch is kept and \
                 retried",
                self.url
            )))),
            Err(error) => failed(error),
        }
    }
}

/// The client's own HTTP client.
fn http_client(url: &Url) -> Result<reqwest::Client, Error> {
    let builder = || {
        reqwest::Client::builder()
            // A redirect would send the events, and perhaps the key, to another server.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(SDK)
    };
    match builder().build() {
        Ok(http) => Ok(http),
        // The system has no root certificates, and they are not needed.
        #[cfg(feature = "rustls")]
        Err(_) if url.scheme() == "http" => builder().tls_certs_only([]).build(),
        #[cfg(feature = "bundled-roots")]
        Err(_) => {
            let bundled = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
            let bundled = bundled.filter_map(|root| reqwest::Certificate::from_der(root).ok());
            builder().tls_certs_only(bundled).build()
        }
        #[cfg(not(feature = "bundled-roots"))]
        Err(error) => Err(error),
    }
    .map_err(|error| {
        let advice = match url.scheme() {
            "https" => {
                "cannot set up https; if the system has no root certificates, install them (the package `ca-certificates` \
                 on Debian and Alpine) or enable the feature `bundled-roots`"
            }
            _ => "cannot set up the HTTP client",
        };
        Error::config(advice).with_source(error)
    })
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
    for (name, value) in [("username", username), ("key", key)] {
        if value.is_empty() {
            return Err(Error::config(format!("the {name} must not be empty")));
        }
    }
    if username.contains(':') {
        return Err(Error::config("the username must not have a colon"));
    }
    // For example the end of the line that the key was read from.
    if username.chars().chain(key.chars()).any(char::is_control) {
        return Err(Error::config("the username and the key must not have control characters, such as a line break"));
    }
    let mut header = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{key}"))))
        .map_err(|error| Error::config("the username or the key cannot be sent in a header").with_source(error))?;
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
