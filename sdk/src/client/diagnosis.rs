//! Says in words why a batch was not delivered, and what to do.

use crate::client::error::{Error, Kind, root_cause};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

/// What keeps batches from being delivered. The client logs a warning when it changes, and not for each send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    Credentials(u16),
    /// The endpoint is not that of a collector.
    Misdirected,
    /// Nothing answers, or not now.
    Unavailable,
}

impl Obstacle {
    /// The obstacle that a status shows. `None` for the statuses that are about one batch.
    pub(super) fn of(status: u16) -> Option<Self> {
        match status {
            400 | 413 | 415 | 422 => None,
            401 | 403 => Some(Self::Credentials(status)),
            300..400 | 404 | 405 => Some(Self::Misdirected),
            _ => Some(Self::Unavailable),
        }
    }
}

/// The error for an answer that is not a receipt. `location` is where a redirect leads to.
pub(super) fn status_error(url: &Url, status: u16, location: Option<&str>) -> Error {
    let kept = "the batch is kept and retried";
    Error::new(match status {
        401 => Kind::Credentials(format!(
            "{url} answered 401: the collector does not know the username and key; events are kept; check both, or \
             replace the key with `set_key`"
        )),
        403 => Kind::Credentials(format!(
            "{url} answered 403: the collector does not allow this with the key; events are kept; use the secret key of \
             the site"
        )),
        300..400 => Kind::Send(match location.and_then(|location| endpoint_of(url, location)) {
            Some(endpoint) => format!("{url} answered {status}: set the endpoint to {endpoint}; {kept}"),
            None => format!("{url} answered {status}, a redirect, which is not followed: correct the endpoint; {kept}"),
        }),
        404 | 405 => Kind::Send(format!(
            "{url} answered {status}: there is no collector at this path; check the path of the endpoint; {kept}"
        )),
        413 => Kind::Send(format!(
            "{url} answered 413: the batch is too large; it is divided, or dropped if it is a single event"
        )),
        400 | 415 | 422 => Kind::Send(format!("{url} answered {status}: the batch was refused and is dropped")),
        _ => Kind::Send(format!("{url} answered {status}; {kept}")),
    })
}

/// The endpoint for which a redirect to `location` would not be needed.
fn endpoint_of(url: &Url, location: &str) -> Option<String> {
    let mut target = url.join(location).ok()?;
    // Whatever the redirect carries besides the address may be a secret.
    target.set_username("").ok()?;
    target.set_password(None).ok()?;
    target.set_query(None);
    target.set_fragment(None);
    let endpoint = target.as_str().strip_suffix("/v1/batch")?.to_owned();
    Some(endpoint)
}

/// The error for a request without an answer.
pub(super) fn request_error(url: &Url, proxy: Option<&str>, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let through = proxy.map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default();
    let text = format!("a batch could not be sent to {url}{through}: {}; it is kept and retried", root_cause(&error));
    Error::new(Kind::Send(text)).with_source(error)
}

/// The proxy that the environment sets for this URL, without its credentials.
pub(super) fn environment_proxy(url: &Url) -> Option<String> {
    let proxy = Matcher::from_env().intercept(&url.as_str().parse().ok()?)?;
    let uri = proxy.uri();
    let authority = uri.authority()?.as_str();
    Some(format!("{}://{}", uri.scheme_str()?, authority.rsplit('@').next().unwrap_or(authority)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_names_the_endpoint_to_use() {
        let url = Url::parse("http://collect.shop.example/base/v1/batch").unwrap();
        for (location, endpoint) in [
            ("https://collect.shop.example/base/v1/batch", Some("https://collect.shop.example/base")),
            ("/v1/batch?token=t", Some("http://collect.shop.example")),
            ("https://user:secret@other.example/v1/batch#x", Some("https://other.example")),
            ("https://login.example/", None),
            ("http://[", None),
        ] {
            assert_eq!(endpoint_of(&url, location).as_deref(), endpoint, "{location}");
        }
    }
}
