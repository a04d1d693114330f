//! Who is asking: Basic auth against the list of sites.

use crate::http::Collector;
use crate::http::problem::{
    AUTH_FAILED, AUTH_MALFORMED, AUTH_REQUIRED, ORIGIN_NOT_ALLOWED, Problem, WRITE_KEY_CANNOT_READ,
};
use crate::http::rate_limit::RateLimits;
use crate::sites::basic_auth::credentials;
use crate::sites::{KeyScope, Site};
use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use std::sync::Arc;
use tracing::Span;

/// The site that may write with a request, and the kind of key it does so with.
pub(crate) struct Writer {
    pub(crate) site: Arc<Site>,
    pub(crate) key: KeyScope,
}

/// The site that may read with a request.
pub(crate) struct Reader {
    pub(crate) site: Arc<Site>,
}

impl FromRequestParts<Arc<Collector>> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, collector: &Arc<Collector>) -> Result<Self, Problem> {
        let (site, key) = authenticate(parts, collector)?;
        if key == KeyScope::Write {
            let origin = parts.headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
            if origin.is_none_or(|origin| !site.origins.iter().any(|known| known == origin)) {
                return Err(Problem::new(
                    &ORIGIN_NOT_ALLOWED,
                    "Use the write key from a page on one of the site's origins, or use the secret key from a server.",
                ));
            }
        }
        Ok(Self { site, key })
    }
}

impl FromRequestParts<Arc<Collector>> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, collector: &Arc<Collector>) -> Result<Self, Problem> {
        match authenticate(parts, collector)? {
            (site, KeyScope::Secret) => Ok(Self { site }),
            (_, KeyScope::Write) => Err(Problem::new(&WRITE_KEY_CANNOT_READ, "Read with the secret key.")),
        }
    }
}

fn authenticate(parts: &Parts, collector: &Collector) -> Result<(Arc<Site>, KeyScope), Problem> {
    let mut headers = parts.headers.get_all(header::AUTHORIZATION).iter();
    let Some(header) = headers.next() else {
        return Err(Problem::new(&AUTH_REQUIRED, "Send the username and a key by Basic auth."));
    };
    // Of two, something on the way may have believed the other.
    let credentials = credentials(header.as_bytes()).filter(|_| headers.next().is_none());
    let (username, key) = credentials.ok_or_else(|| {
        Problem::new(&AUTH_MALFORMED, "Send `Basic`, a space, and base64 of the username, a colon and the key, once.")
    })?;
    let (site, key) = collector
        .sites
        .authenticate(&username, &key)
        .ok_or_else(|| Problem::new(&AUTH_FAILED, "No site has this username and this key."))?;
    Span::current().record("site", site.username.as_str());
    if let Some(limits) = parts.extensions.get::<Arc<RateLimits>>() {
        limits.check_key(&site.username, key)?;
    }
    Ok((site, key))
}
