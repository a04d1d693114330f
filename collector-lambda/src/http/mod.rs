//! The HTTP surface: the same router under the server and under AWS Lambda. All routes and all layers are put together
//! in this file.

mod access_log;
mod app;
pub mod auth;
pub mod body;
pub mod client_ip;
mod cors;
mod counts;
mod docs;
pub(crate) mod events;
pub mod headers;
mod health;
mod limits;
#[cfg(feature = "server")]
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod rate_limit;
mod readiness;
pub mod state;

use crate::http::access_log::log;
use crate::http::app::App;
use crate::http::client_ip::ClientIp;
#[cfg(feature = "server")]
use crate::http::metrics::Metrics;
use crate::http::problem::{METHOD_NOT_ALLOWED, NOT_FOUND, Problem};
use crate::http::rate_limit::RateLimits;
use crate::http::readiness::Readiness;
use crate::http::state::Collector;
use axum::Router;
use axum::extract::{Request, State};
#[cfg(feature = "server")]
use axum::http::HeaderName;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
#[cfg(feature = "server")]
use std::path::PathBuf;
use std::sync::Arc;

/// What differs between the places where the router runs.
#[derive(Debug)]
pub struct Options {
    /// How many requests clients may make.
    pub rate_limits: RateLimits,
    /// How many proxies in front append to `X-Forwarded-For`. With 0 the header is ignored.
    pub trusted_proxies: usize,
    /// Where responses are counted.
    #[cfg(feature = "server")]
    pub metrics: Option<Arc<Metrics>>,
    /// A folder of files to serve at every path that is no route.
    #[cfg(feature = "server")]
    pub static_files: Option<PathBuf>,
}

impl Options {
    /// No limits, proxies, metrics or files: for a front door that provides them, as AWS has, and for tests.
    pub const BARE: Self = Self {
        rate_limits: RateLimits::OFF,
        trusted_proxies: 0,
        #[cfg(feature = "server")]
        metrics: None,
        #[cfg(feature = "server")]
        static_files: None,
    };
}

/// The router. For a client's address to be known, whatever runs it must put [`ClientIp`] into each request's
/// extensions.
pub fn router(collector: Arc<Collector>, options: Options) -> Router {
    let Options { rate_limits, trusted_proxies, .. } = options;
    let app = Arc::new(App { collector, rate_limits, trusted_proxies, readiness: Readiness::default() });
    let routes = routes();
    #[cfg(feature = "server")]
    let routes = match &options.static_files {
        Some(folder) => with_files(routes, folder),
        None => routes,
    };
    // One layer, outermost first: axum boxes and clones what is inside of each `layer` for each request. Refusals too
    // pass through what is outside of them, or pages could not read them.
    let layers = (
        from_fn_with_state(Arc::clone(&app), find_client),
        from_fn(log),
        from_fn(secure),
        cors::layer(Arc::clone(&app)),
        from_fn_with_state(Arc::clone(&app), limit_address),
    );
    let router = routes.layer(layers).with_state(app);
    #[cfg(feature = "server")]
    let router = match options.metrics {
        Some(metrics) => router.layer(from_fn_with_state(metrics, metrics::count)),
        None => router,
    };
    router
}

macro_rules! routes {
    ($($method:ident $path:literal $handler:path;)*) => {
        /// Every route: its method and its path.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn routes() -> Router<Arc<App>> {
            Router::new()
                $(.route($path, $method($handler)))*
                .fallback(not_found)
                .method_not_allowed_fallback(method_not_allowed)
        }
    };
}

routes! {
    post "/v1/batch" events::batch;
    post "/web/page_view" events::page_view;
    post "/button/click" events::button_click;
    post "/track" events::track;
    get "/web/page_view/count" counts::page_view_count;
    get "/button/click/count" counts::button_click_count;
    get "/v1/counts" counts::counts;
    get "/v1/counts/top" counts::top;
    get "/v1/limits" limits::answer;
    get "/health" health::health;
    get "/ready" health::ready;
    get "/openapi.json" openapi::answer;
    get "/docs" docs::answer;
}

async fn not_found() -> Problem {
    Problem::new(&NOT_FOUND, "GET /docs lists the routes.")
}

async fn method_not_allowed() -> Problem {
    Problem::new(&METHOD_NOT_ALLOWED, "Use one of the methods in the Allow header.")
}

#[cfg(feature = "server")]
fn with_files(routes: Router<Arc<App>>, folder: &std::path::Path) -> Router<Arc<App>> {
    use axum::handler::HandlerWithoutStateExt;
    use tower_http::services::ServeDir;
    use tower_http::set_header::SetResponseHeader;

    let missing = not_found.into_service();
    // `/about` is `about.html`, or `about/index.html` after a redirect to `/about/`.
    let files = ServeDir::new(folder).html_as_default_extension(true);
    let files = files.call_fallback_on_method_not_allowed(true).fallback(missing);
    // A file may change at any time, so browsers revalidate; an unchanged file is not transferred again.
    let files = SetResponseHeader::overriding(files, header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // The tracker is loaded by pages of other origins, also by those that isolate themselves with COEP.
    let policy = HeaderName::from_static("cross-origin-resource-policy");
    routes.fallback_service(SetResponseHeader::overriding(files, policy, HeaderValue::from_static("cross-origin")))
}

/// Replaces the peer's address by the client's, where proxies are trusted.
async fn find_client(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    if let Some(peer) = request.extensions().get::<ClientIp>().copied() {
        let client = peer.behind(app.trusted_proxies, request.headers());
        request.extensions_mut().insert(client);
    }
    next.run(request).await
}

/// Limits requests by address before the key is checked, which also limits how fast keys can be guessed.
async fn limit_address(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, Problem> {
    if let Some(address) = ClientIp::of(request.extensions()) {
        app.rate_limits.check_address(address)?;
    }
    Ok(next.run(request).await)
}

/// Keeps responses out of caches, and their types from being guessed. There is no policy for what a served page may
/// load, because only its author knows that.
async fn secure(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // The browsers' default. A stricter policy would take the referrer from the page views of served pages.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("strict-origin-when-cross-origin"));
    response
}
