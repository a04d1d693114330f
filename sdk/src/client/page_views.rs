//! A tower layer that tracks page views.

use crate::client::async_client::Client;
use crate::core::limits;
use crate::event::PageView;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Request, Response, request, response};
use pin_project_lite::pin_project;
use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Tracks a [`PageView`] for every page that a service answers with.
///
/// A page is an HTML answer to a `GET` with a 2xx status. The URL of the view consists of the scheme, the host and the
/// path with its query as requested; the referrer and the user agent are those of the request. Usernames and passwords
/// in these URLs are left out. A page that a browser prefetches is not a view. The service does not learn whether the
/// user opens the page later.
///
/// A query may contain a secret, such as the token of a mailed link: leave it out with [`url`](TrackPageViews::url).
/// Inside axum's `nest`, the path lacks the prefix of the outer router: put the layer around the outer router, or set
/// the [`url`](TrackPageViews::url).
///
/// A request never fails because of its view: a view that exceeds a limit or does not fit into the queue is logged and
/// dropped. A request does not wait for the network. It waits as long as [`Client::track`] takes, which includes a sync
/// of the disk with [`Durability::Power`](crate::Durability::Power).
///
/// ```
/// # use http::{Request, Response, header};
/// # use tower_layer::Layer;
/// # use tower_service::Service;
/// use tallymark::{Client, TrackPageViews};
///
/// let (client, recording) = Client::recording();
/// let layer = TrackPageViews::new(client)
///     .scheme("https")
///     .session_id(|request| Some(request.headers.get("x-session-id")?.to_str().ok()?.into()));
///
/// // With axum: Router::new().route("/", get(home)).layer(layer)
/// # #[derive(Clone)]
/// # struct Home;
/// # impl Service<Request<()>> for Home {
/// #     type Response = Response<&'static str>;
/// #     type Error = std::convert::Infallible;
/// #     type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
/// #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
/// #         std::task::Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, _: Request<()>) -> Self::Future {
/// #         let page = Response::builder().header(header::CONTENT_TYPE, "text/html").body("<h1>Tea</h1>");
/// #         std::future::ready(Ok(page.unwrap()))
/// #     }
/// # }
/// # let mut service = layer.layer(Home);
/// # let request = Request::get("/tea?cup=2").header("host", "shop.example").header("x-session-id", "s1");
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # runtime.block_on(service.call(request.body(()).unwrap())).unwrap();
/// // After GET /tea?cup=2 of shop.example:
/// assert_eq!(recording.events()[0].key(), "https://shop.example/tea?cup=2");
/// assert_eq!(recording.events()[0].session_id(), Some("s1"));
/// ```
#[derive(Clone)]
pub struct TrackPageViews {
    settings: Arc<Settings>,
}

/// A function of the service that inspects a request or a response.
type Look<P, T> = Arc<dyn Fn(&P) -> T + Send + Sync>;

#[derive(Clone)]
struct Settings {
    client: Client,
    scheme: Option<String>,
    host: Option<String>,
    url: Option<Look<request::Parts, Option<String>>>,
    session_id: Look<request::Parts, Option<String>>,
    requests: Look<request::Parts, bool>,
    responses: Look<response::Parts, bool>,
}

impl TrackPageViews {
    /// A layer that tracks with `client`.
    pub fn new(client: Client) -> Self {
        let settings = Settings {
            client,
            scheme: None,
            host: None,
            url: None,
            session_id: Arc::new(|_| None),
            requests: Arc::new(|_| true),
            responses: Arc::new(is_html),
        };
        Self { settings: Arc::new(settings) }
    }

    /// The scheme that visitors use. Set it to `https` behind a proxy that terminates TLS. Default: the scheme of the
    /// request, or else `http`.
    pub fn scheme(self, scheme: impl Into<String>) -> Self {
        self.set(|settings| settings.scheme = Some(scheme.into()))
    }

    /// The host that visitors use, with a port if there is one. Default: the host of the request, which the sender of
    /// the request can choose. A request without a host is not tracked.
    pub fn host(self, host: impl Into<String>) -> Self {
        self.set(|settings| settings.host = Some(host.into()))
    }

    /// Returns the whole URL of the view from the request, instead of scheme, host and path with query. A view without
    /// a URL is not tracked.
    ///
    /// ```
    /// # use tallymark::{Client, TrackPageViews};
    /// # use axum::{Router, response::Html, routing::get};
    /// # use tower_service::Service;
    /// # let (client, recording) = Client::recording();
    /// // Without the query, and with the prefix of the outer router.
    /// let layer = TrackPageViews::new(client)
    ///     .url(|request| Some(format!("https://shop.example/tea{}", request.uri.path())));
    /// let tea = Router::new().route("/green", get(|| async { Html("<h1>Sencha</h1>") })).layer(layer);
    /// let mut shop: Router = Router::new().nest("/tea", tea);
    /// # let request = http::Request::get("/tea/green?token=t").body(axum::body::Body::empty()).unwrap();
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    /// # runtime.block_on(shop.call(request)).unwrap();
    /// // After GET /tea/green?token=t:
    /// assert_eq!(recording.events()[0].key(), "https://shop.example/tea/green");
    /// ```
    ///
    /// axum keeps the URI before routers removed their prefixes in the request's extensions, as `OriginalUri`.
    pub fn url(self, make: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.url = Some(Arc::new(make)))
    }

    /// Returns the session of a request, for example from a cookie or from an extension that another layer has set.
    /// Default: none.
    pub fn session_id(self, find: impl Fn(&request::Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.session_id = Arc::new(find))
    }

    /// Tracks only requests for which `wanted` returns `true`, for example to exclude health checks or visitors who
    /// opted out. Default: all.
    pub fn requests(self, wanted: impl Fn(&request::Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.requests = Arc::new(wanted))
    }

    /// Counts successful responses for which `is_page` returns `true` as pages. Default: those with an HTML content
    /// type.
    pub fn responses(self, is_page: impl Fn(&response::Parts) -> bool + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.responses = Arc::new(is_page))
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
}

impl fmt::Debug for TrackPageViews {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { scheme, host, .. } = &*self.settings;
        f.debug_struct("TrackPageViews").field("scheme", scheme).field("host", host).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for TrackPageViews {
    type Service = Tracked<S>;

    fn layer(&self, inner: S) -> Tracked<S> {
        Tracked { inner, settings: Arc::clone(&self.settings) }
    }
}

/// A service whose page views are tracked; made by [`TrackPageViews`].
#[derive(Clone)]
pub struct Tracked<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S: fmt::Debug> fmt::Debug for Tracked<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B, C> Service<Request<B>> for Tracked<S>
where
    S: Service<Request<B>, Response = Response<C>>,
{
    type Response = Response<C>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (parts, body) = request.into_parts();
        // The inner service consumes the request, so make the view before its response is known.
        let view = self.settings.view(&parts);
        let inner = self.inner.call(Request::from_parts(parts, body));
        ResponseFuture { inner, pending: view.map(|view| (view, Arc::clone(&self.settings))) }
    }
}

pin_project! {
    /// The response of a [`Tracked`] service.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        pending: Option<(PageView, Arc<Settings>)>,
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, C, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<C>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.inner.poll(context));
        Poll::Ready(match (answer, this.pending.take()) {
            (Ok(response), Some((view, settings))) if response.status().is_success() => {
                let (parts, body) = response.into_parts();
                if (settings.responses)(&parts)
                    && let Err(error) = settings.client.track(view)
                {
                    tracing::debug!(%error, "a page view was not tracked");
                }
                Ok(Response::from_parts(parts, body))
            }
            (answer, _) => answer,
        })
    }
}

impl Settings {
    /// The view that a request will be, if its response is a page.
    fn view(&self, parts: &request::Parts) -> Option<PageView> {
        if parts.method != Method::GET || is_prefetch(&parts.headers) || !(self.requests)(parts) {
            return None;
        }
        let mut view = PageView::new(match &self.url {
            Some(make) => make(parts)?,
            None => self.requested(parts)?,
        });
        let referrer = text(&parts.headers, header::REFERER).map(without_userinfo);
        // A referrer that is too long is left out, and the view still counts.
        if let Some(referrer) = referrer.filter(|text| text.len() <= limits::URL_BYTES) {
            view = view.referral_url(referrer);
        }
        if let Some(agent) =
            text(&parts.headers, header::USER_AGENT).filter(|text| text.len() <= limits::USERAGENT_BYTES)
        {
            view = view.useragent(agent);
        }
        match (self.session_id)(parts) {
            Some(id) => Some(view.session_id(id)),
            None => Some(view),
        }
    }

    /// The URL of a request.
    fn requested(&self, parts: &request::Parts) -> Option<String> {
        let host = match (&self.host, parts.uri.authority()) {
            (Some(host), _) => host,
            // HTTP/2 has the host in the URI, HTTP/1 in the header.
            (None, Some(authority)) => without_user(authority.as_str()),
            (None, None) => without_user(text(&parts.headers, header::HOST)?),
        };
        let scheme = self.scheme.as_deref().or(parts.uri.scheme_str()).unwrap_or("http");
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        Some(format!("{scheme}://{host}{path}"))
    }
}

/// An authority without the username and password that it may contain.
fn without_user(authority: &str) -> &str {
    authority.rsplit('@').next().unwrap_or(authority)
}

/// A URL without username and password.
fn without_userinfo(url: &str) -> Cow<'_, str> {
    let Some(start) = url.find("//").map(|at| at + 2) else { return url.into() };
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
    match without_user(&url[start..end]) {
        host if host.len() < end - start => format!("{}{host}{}", &url[..start], &url[end..]).into(),
        _ => url.into(),
    }
}

fn is_html(parts: &response::Parts) -> bool {
    let kind = text(&parts.headers, header::CONTENT_TYPE).and_then(|kind| kind.split(';').next()).unwrap_or_default();
    ["text/html", "application/xhtml+xml"].iter().any(|html| kind.trim().eq_ignore_ascii_case(html))
}

/// Whether a browser prefetches the page. Older browsers send `Purpose`.
fn is_prefetch(headers: &HeaderMap) -> bool {
    ["sec-purpose", "purpose"].iter().any(|name| {
        let value = headers.get(*name).and_then(|value| value.to_str().ok());
        value.is_some_and(|purpose| purpose.contains("prefetch"))
    })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::recording::Recording;
    use crate::event::Event;
    use std::future::{Ready, ready};

    /// Answers with this status and content type.
    #[derive(Clone)]
    struct Site(u16, &'static str);

    impl Service<Request<()>> for Site {
        type Response = Response<&'static str>;
        type Error = &'static str;
        type Future = Ready<Result<Self::Response, Self::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            if request.uri().path() == "/fails" {
                return ready(Err("failed"));
            }
            let response = Response::builder().status(self.0).header("content-type", self.1).body("the body");
            ready(Ok(response.unwrap()))
        }
    }

    const PAGE: Site = Site(200, "text/html; charset=utf-8");

    fn ask(
        layer: &TrackPageViews,
        site: Site,
        request: request::Builder,
    ) -> Result<Response<&'static str>, &'static str> {
        let answer = layer.layer(site).call(request.body(()).unwrap());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(answer)
    }

    fn get(uri: &str) -> request::Builder {
        Request::get(uri).header("host", "shop.example")
    }

    fn layer() -> (TrackPageViews, Recording) {
        let (client, recording) = Client::recording();
        (TrackPageViews::new(client), recording)
    }

    fn urls(recording: &Recording) -> Vec<String> {
        recording.events().iter().map(|event| event.key().to_owned()).collect()
    }

    #[test]
    fn a_page_is_a_view_with_the_fields_of_its_request() {
        let (layer, recording) = layer();
        let layer = layer.session_id(|request| request.extensions.get::<&str>().map(|id| (*id).into()));
        let request = get("/tea?cup=2").header("referer", "https://search.example/").header("user-agent", "Lynx");
        let answer = ask(&layer, PAGE, request.extension("s1")).unwrap();
        assert_eq!((answer.status().as_u16(), *answer.body()), (200, "the body"));
        let view = PageView::new("http://shop.example/tea?cup=2")
            .referral_url("https://search.example/")
            .useragent("Lynx")
            .session_id("s1");
        assert_eq!(recording.events(), [Event::from(view)]);
    }

    #[test]
    fn the_url_is_the_one_that_visitors_use() {
        let (layer, recording) = layer();
        ask(&layer, PAGE, Request::get("https://two.example:444/a")).unwrap();
        ask(&layer.clone().scheme("https"), PAGE, get("/b")).unwrap();
        ask(&layer.clone().scheme("https").host("www.shop.example"), PAGE, get("/c")).unwrap();
        // Without a host.
        ask(&layer, PAGE, Request::get("/d")).unwrap();
        let expected = ["https://two.example:444/a", "https://shop.example/b", "https://www.shop.example/c"];
        assert_eq!(urls(&recording), expected);
    }

    #[test]
    fn a_url_has_no_username_and_password() {
        let (layer, recording) = layer();
        ask(&layer, PAGE, Request::get("http://anna:hunter2@shop.example/a@b")).unwrap();
        ask(&layer, PAGE, Request::get("/").header("host", "anna:hunter/2@@shop.example:81")).unwrap();
        for referrer in [
            "https://anna:hunter2@shop.example?to=a@b",
            "//anna@hunter2@shop.example",
            "https://shop.example/@anna//b@c",
        ] {
            ask(&layer, PAGE, get("/").header("referer", referrer)).unwrap();
        }
        let views = [
            PageView::new("http://shop.example/a@b"),
            PageView::new("http://shop.example:81/"),
            PageView::new("http://shop.example/").referral_url("https://shop.example?to=a@b"),
            PageView::new("http://shop.example/").referral_url("//shop.example"),
            PageView::new("http://shop.example/").referral_url("https://shop.example/@anna//b@c"),
        ];
        assert_eq!(recording.events(), views.map(Event::from));
    }

    #[test]
    fn a_url_can_be_made_from_the_request() {
        let (layer, recording) = layer();
        let layer = layer.host("other.example").url(|request| {
            let mounted = request.extensions.get::<&str>()?;
            Some(format!("https://shop.example{mounted}{}", request.uri.path()))
        });
        ask(&layer, PAGE, get("/green?token=t").extension("/tea")).unwrap();
        // Without a URL there is no view.
        ask(&layer, PAGE, get("/green?token=t")).unwrap();
        assert_eq!(urls(&recording), ["https://shop.example/tea/green"]);
    }

    #[test]
    fn only_pages_are_views() {
        let (layer, recording) = layer();
        for site in
            [Site(200, "application/json"), Site(404, "text/html"), Site(304, "text/html"), Site(500, "text/html")]
        {
            ask(&layer, site, get("/")).unwrap();
        }
        ask(&layer, PAGE, Request::post("/").header("host", "shop.example")).unwrap();
        ask(&layer, PAGE, Request::head("/").header("host", "shop.example")).unwrap();
        ask(&layer, PAGE, get("/").header("sec-purpose", "prefetch;prerender")).unwrap();
        assert_eq!(ask(&layer, PAGE, get("/fails")).unwrap_err(), "failed");
        assert!(recording.events().is_empty());
        ask(&layer, Site(203, "Application/XHTML+XML"), get("/")).unwrap();
        assert_eq!(urls(&recording), ["http://shop.example/"]);
    }

    #[test]
    fn the_service_chooses_requests_and_responses() {
        let (layer, recording) = layer();
        let layer = layer
            .requests(|request| request.uri.path() != "/health")
            .responses(|response| response.headers["content-type"] == "application/json");
        for (site, path) in
            [(Site(200, "application/json"), "/api"), (Site(200, "application/json"), "/health"), (PAGE, "/")]
        {
            ask(&layer, site, get(path)).unwrap();
        }
        assert_eq!(urls(&recording), ["http://shop.example/api"]);
    }

    #[test]
    fn a_view_that_cannot_be_tracked_does_not_fail_its_request() {
        let (layer, recording) = layer();
        let long = "x".repeat(limits::URL_BYTES);
        assert_eq!(ask(&layer, PAGE, get(&format!("/{long}"))).unwrap().status(), 200);
        let bad_session = layer.clone().session_id(|_| Some("s".repeat(limits::NAME_BYTES + 1)));
        assert_eq!(ask(&bad_session, PAGE, get("/")).unwrap().status(), 200);
        assert!(recording.events().is_empty());
        // A header over its limit is left out, and the view counts.
        ask(&layer, PAGE, get("/").header("referer", format!("http://{long}")).header("user-agent", &long)).unwrap();
        assert_eq!(recording.events(), [Event::page_view("http://shop.example/")]);
    }
}
