//! Which pages of other origins may send requests and read the responses.

use crate::http::app::App;
use crate::http::headers::{IDEMPOTENCY_KEY, REQUEST_ID, SENT_AT};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, header};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
/// The routes that take events.
const EVENT_ROUTES: [&str; 4] = ["/v1/batch", "/web/page_view", "/button/click", "/track"];

/// How often an unknown origin is logged.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// The most unknown origins that are logged in that time, and the longest that is logged whole.
const LOGGED_ORIGINS: usize = 20;
const LOGGED_BYTES: usize = 200;

/// Preflights carry no credentials, so they are answered for the origins of every site. The request itself is then
/// checked against the origins of the key's own site. Keys travel in `Authorization`, so cookies are not allowed.
///
/// On the routes that take events, every origin may read the response, because a page on an unknown origin must be able
/// to read the 403 that says so. Other responses, static files among them, are for known origins only.
pub(crate) fn layer(app: Arc<App>) -> CorsLayer {
    let unknown = UnknownOrigins::default();
    let may_read = move |origin: &HeaderValue, request: &Parts| {
        if origin.to_str().is_ok_and(|origin| app.collector.sites.knows_origin(origin)) {
            return true;
        }
        let takes_events = EVENT_ROUTES.contains(&request.uri.path());
        if takes_events && unknown.is_news(origin) {
            let origin = String::from_utf8_lossy(&origin.as_bytes()[..origin.len().min(LOGGED_BYTES)]);
            tracing::warn!(%origin, "a page on an origin that no site has; add it with `site set --origin`");
        }
        takes_events
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(may_read))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_ENCODING,
            header::CONTENT_TYPE,
            IDEMPOTENCY_KEY,
            SENT_AT,
            REQUEST_ID,
        ])
        .expose_headers([header::RETRY_AFTER, REQUEST_ID])
        .max_age(PREFLIGHT_MAX_AGE)
}

/// The unknown origins that were logged since a moment.
#[derive(Default)]
struct UnknownOrigins(Mutex<Option<(Instant, HashSet<HeaderValue>)>>);

impl UnknownOrigins {
    /// Whether the origin was not logged in the last minute, and may be.
    fn is_news(&self, origin: &HeaderValue) -> bool {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, origins) = match &mut *logged {
            Some((since, origins)) if since.elapsed() < LOG_EVERY => (since, origins),
            stale => {
                let (since, origins) = stale.insert((Instant::now(), HashSet::new()));
                (since, origins)
            }
        };
        origins.len() < LOGGED_ORIGINS && origins.insert(origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_unknown_origin_is_logged_once_a_minute_and_few_in_all() {
        let origins = UnknownOrigins::default();
        let is_news = |origin: &str| origins.is_news(&origin.parse().unwrap());
        assert!(is_news("https://a.example") && is_news("https://b.example"));
        assert!(!is_news("https://a.example"));
        assert_eq!((0..1000).filter(|n| is_news(&format!("https://{n}.example"))).count(), LOGGED_ORIGINS - 2);
        tokio::time::advance(LOG_EVERY).await;
        assert!(is_news("https://a.example") && !is_news("https://a.example"));
    }
}
