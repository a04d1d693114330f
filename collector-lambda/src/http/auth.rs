//! Authentication: Basic auth against the list of sites, and from which pages a key may be used.

use crate::http::app::App;
use crate::http::problem::{
    AUTH_FAILED, AUTH_MALFORMED, AUTH_REQUIRED, ORIGIN_NOT_ALLOWED, Problem, WRITE_KEY_CANNOT_READ,
};
use crate::sites::basic_auth::credentials;
use crate::sites::{KeyScope, Site};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use std::sync::Arc;
use tracing::Span;

/// From where a browser says that a request comes. Pages cannot set it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A request that may write: its site, and the scope of its key.
pub(crate) struct Writer {
    pub(crate) site: Arc<Site>,
    pub(crate) scope: KeyScope,
}

/// A request that may read: its site.
pub(crate) struct Reader {
    pub(crate) site: Arc<Site>,
}

/// A key that something in front has checked, in a request's extensions. Only code can put it there, no client.
#[derive(Clone, Debug)]
pub struct VerifiedKey {
    /// The site.
    pub username: String,
    /// The scope of the key.
    pub scope: KeyScope,
}

impl FromRequestParts<Arc<App>> for Writer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let (site, scope) = authenticate(parts, app)?;
        check_page(&parts.headers, &site, scope)?;
        Ok(Self { site, scope })
    }
}

impl FromRequestParts<Arc<App>> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        match authenticate(parts, app)? {
            (site, scope @ KeyScope::Secret) => {
                check_page(&parts.headers, &site, scope)?;
                Ok(Self { site })
            }
            (_, KeyScope::Write) => Err(Problem::new(&WRITE_KEY_CANNOT_READ, "Read with the secret key.")),
        }
    }
}

fn authenticate(parts: &Parts, app: &App) -> Result<(Arc<Site>, KeyScope), Problem> {
    let (site, scope) = match verified(parts, app) {
        Some(verified) => verified,
        None => check_key(parts, app)?,
    };
    Span::current().record("site", site.username.as_str());
    app.rate_limits.check_key(&site.username, scope)?;
    Ok((site, scope))
}

/// What was checked in front, as long as there is such a site.
fn verified(parts: &Parts, app: &App) -> Option<(Arc<Site>, KeyScope)> {
    let VerifiedKey { username, scope } = parts.extensions.get::<VerifiedKey>()?;
    Some((app.collector.sites.site(username)?, *scope))
}

fn check_key(parts: &Parts, app: &App) -> Result<(Arc<Site>, KeyScope), Problem> {
    let mut headers = parts.headers.get_all(header::AUTHORIZATION).iter();
    let Some(header) = headers.next() else {
        return Err(Problem::new(&AUTH_REQUIRED, "Send the username and a key by Basic auth."));
    };
    // If the header is sent twice, a proxy in front may have checked the other value.
    let credentials = credentials(header.as_bytes()).filter(|_| headers.next().is_none());
    let (username, key) = credentials.ok_or_else(|| {
        Problem::new(&AUTH_MALFORMED, "Send `Basic`, a space, and base64 of the username, a colon and the key, once.")
    })?;
    let sites = &app.collector.sites;
    let authenticated = sites.authenticate(&username, &key);
    authenticated.ok_or_else(|| Problem::new(&AUTH_FAILED, "No site has this username and this key."))
}

/// Checks that the page which sends the request may use this key.
///
/// The write key is for pages of the site's origins. The secret key is for servers, which send no `Origin`: a browser
/// that remembers it from a sign-in at the collector would add it to requests of other pages.
fn check_page(headers: &HeaderMap, site: &Site, scope: KeyScope) -> Result<(), Problem> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next();
    let allowed = origins.next().is_none()
        && match scope {
            KeyScope::Write => origin.is_some_and(|origin| site.origins.iter().any(|known| known == origin)),
            KeyScope::Secret => match headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes) {
                // `none` is a request of the user, such as an address that was typed in.
                Some(b"same-origin" | b"none") => true,
                Some(_) => false,
                None => origin.is_none_or(|origin| is_own_origin(origin, headers.get(header::HOST))),
            },
        };
    if allowed {
        return Ok(());
    }
    let detail = match scope {
        KeyScope::Write => {
            "Use the write key from a page on one of the site's origins, or use the secret key from a server."
        }
        KeyScope::Secret => "Use the secret key from a server. A page must use the write key.",
    };
    Err(Problem::new(&ORIGIN_NOT_ALLOWED, detail))
}

/// Whether an origin is the collector's own, as far as the `Host` header says.
fn is_own_origin(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let Some((_, own)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else { return false };
    host.is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(own.as_bytes()))
}
