//! The HTTP surface: the same router under the server and under AWS Lambda.

pub(crate) mod access_log;
pub mod auth;
pub mod body;
pub mod client_ip;
mod docs;
#[cfg(feature = "server")]
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod rate_limit;

use crate::http::auth::{Reader, Writer};
use crate::http::client_ip::ClientIp;
use crate::ingest::checked_batch::CheckedBatch;
use crate::store::query::{DAY, HOUR, Hours, Query, SERIES_POINTS, TOP_KEYS};

use crate::http::access_log::{REQUEST_ID, log};
use crate::ingest::refusal::Refusal;
use crate::ingest::{self, Arrival};

use crate::http::body::json_body;
use crate::http::problem::{INVALID_IDEMPOTENCY_KEY, INVALID_QUERY, METHOD_NOT_ALLOWED, NOT_FOUND, NOT_READY, Problem};
use crate::http::rate_limit::RateLimits;
use crate::sites::Sites;
use crate::store::Store;
use axum::extract::{RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tallymark::{Event, Receipt, limits};
use tokio::sync::Mutex;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// When a client sent the request, by its own clock, in milliseconds since the Unix epoch. It travels
/// outside the body, which never changes.
pub const SENT_AT: HeaderName = HeaderName::from_static("tallymark-sent-at");
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
pub(crate) const IDEMPOTENCY_KEY_BYTES: usize = 255;
/// How often `GET /ready` looks at the sinks, however often it is asked, and how long it waits for them.
const CHECK_EVERY: Duration = Duration::from_secs(1);
const CHECK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a failure to store counts, if nothing has been stored since.
const FAILURE_COUNTS: Duration = Duration::from_secs(10);
/// How long a browser may remember a preflight.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// What the routes work with.
#[derive(Debug)]
pub struct Collector {
    /// Who may send and read.
    pub sites: Sites,
    /// What stands behind.
    pub store: Store,
}

type Shared = State<Arc<Collector>>;

/// The router.
pub fn router(collector: Arc<Collector>) -> Router {
    doors(routes().fallback(not_found), collector)
}

/// The router, with the files of a folder wherever it has no route of its own.
#[cfg(feature = "server")]
pub fn router_with_files(collector: Arc<Collector>, folder: &std::path::Path) -> Router {
    use axum::handler::HandlerWithoutStateExt;
    use tower_http::services::ServeDir;
    use tower_http::set_header::SetResponseHeader;

    let missing = not_found.into_service();
    let files = ServeDir::new(folder).call_fallback_on_method_not_allowed(true).fallback(missing);
    // A file may change at any time, so browsers ask each time; unchanged ones cost them no transfer.
    let files = SetResponseHeader::overriding(files, header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    doors(routes().fallback_service(files), collector)
}

/// What every request goes through, in this order. Refusals too carry what a page needs to read them.
fn doors(routes: Router<Arc<Collector>>, collector: Arc<Collector>) -> Router {
    let readiness = Extension(Arc::<Readiness>::default());
    // One layer of them all: between two, axum would box and copy what is within, for each request.
    let doors = (from_fn(log), from_fn(security), cors(Arc::clone(&collector)), from_fn(limit), readiness);
    routes.layer(doors).with_state(collector)
}

/// Before the key is looked at, so that nobody can try keys faster than that.
async fn limit(request: Request, next: Next) -> Result<Response, Problem> {
    if let (Some(limits), Some(address)) =
        (request.extensions().get::<Arc<RateLimits>>(), ClientIp::of(request.extensions()))
    {
        limits.check_address(address)?;
    }
    Ok(next.run(request).await)
}

/// Answers are nobody else's, and what they say they are. There is no policy of what a served page may load:
/// only who wrote it knows.
async fn security(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // As browsers have it without: stricter, a page would no longer know where its visitor came from.
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("strict-origin-when-cross-origin"));
    response
}

macro_rules! routes {
    ($($method:ident $path:literal $handler:path;)*) => {
        /// Every route: its method and its path.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn routes() -> Router<Arc<Collector>> {
            Router::new()$(.route($path, $method($handler)))*.method_not_allowed_fallback(method_not_allowed)
        }
    };
}

routes! {
    post "/v1/batch" batch;
    post "/web/page_view" page_view;
    post "/button/click" button_click;
    post "/track" track;
    get "/web/page_view/count" page_view_count;
    get "/button/click/count" button_click_count;
    get "/v1/counts" counts;
    get "/v1/counts/top" top;
    get "/v1/limits" published_limits;
    get "/health" health;
    get "/ready" ready;
    get "/openapi.json" openapi::answer;
    get "/docs" docs::answer;
}

/// Preflights carry no credentials, so they are answered for the origins of any site; which site's key
/// may be used from where is decided when the request itself comes. Keys travel in a header of their own, so
/// browsers need not be allowed to send cookies, and are not.
fn cors(collector: Arc<Collector>) -> CorsLayer {
    let known = move |origin: &HeaderValue, _: &axum::http::request::Parts| {
        origin.to_str().is_ok_and(|origin| collector.sites.knows_origin(origin))
    };
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(known))
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

/// What became of events, in the extensions of the answer that says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events that could be told apart in the body.
    pub received: u64,
    /// Of these, the ones stored and counted.
    pub accepted: u64,
    /// The ones refused for good.
    pub rejected: u64,
    /// The ones that the client is to send again.
    pub retry: u64,
    /// Whether all this had been answered before.
    pub duplicate: bool,
}

impl Outcome {
    fn of(received: usize, answer: Result<&Receipt, &Problem>) -> Self {
        let received = received as u64;
        match answer {
            Ok(receipt) => Self {
                received,
                accepted: receipt.accepted.into(),
                rejected: receipt.rejected.len() as u64,
                retry: receipt.retry.len() as u64,
                duplicate: receipt.duplicate,
            },
            // As clients take it: they keep what the collector could not do, and nothing else.
            Err(problem) if problem.is_ours() => Self { received, retry: received, ..Self::default() },
            Err(_) => Self { received, rejected: received, ..Self::default() },
        }
    }
}

/// An answer, and what it says of events.
type Answer<T> = (Extension<Outcome>, Result<Json<T>, Problem>);

async fn commit(collector: &Collector, extensions: &Extensions, prepared: CheckedBatch) -> Answer<Receipt> {
    let received = prepared.events.len() + prepared.rejected.len();
    let answer = collector.store.commit(prepared).await.map_err(Problem::from);
    if let Some(readiness) = extensions.get::<Arc<Readiness>>() {
        readiness.note(answer.as_ref().err());
    }
    (Extension(Outcome::of(received, answer.as_ref())), answer.map(Json))
}

async fn batch(State(collector): Shared, writer: Writer, request: Request) -> Result<Answer<Receipt>, Problem> {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let body = json_body(&headers, body, limits::BATCH_BYTES).await?;
    let prepared = ingest::prepare_batch(&writer.site, writer.key, &body, arrival(&headers, &extensions))?;
    // Its room is another's while this one waits for the disk.
    drop(body);
    Ok(commit(&collector, &extensions, prepared).await)
}

async fn page_view(collector: Shared, writer: Writer, request: Request) -> Result<Answer<Value>, Problem> {
    single(collector, writer, request, |json| ingest::session_event("page_view", json)).await
}

async fn button_click(collector: Shared, writer: Writer, request: Request) -> Result<Answer<Value>, Problem> {
    single(collector, writer, request, |json| ingest::session_event("button_click", json)).await
}

async fn track(collector: Shared, writer: Writer, request: Request) -> Result<Answer<Value>, Problem> {
    single(collector, writer, request, |json| ingest::custom_event(&json)).await
}

async fn single(
    State(collector): Shared,
    writer: Writer,
    request: Request,
    read: impl FnOnce(Value) -> Result<Event, Refusal>,
) -> Result<Answer<Value>, Problem> {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let idempotency_key = idempotency_key(&headers)?;
    let body = json_body(&headers, body, limits::EVENT_BYTES).await?;
    let arrival = arrival(&headers, &extensions);
    let prepared = ingest::parse_event(&body)
        .and_then(read)
        .and_then(|event| ingest::prepare_event(&writer.site, writer.key, event, &body, idempotency_key, arrival));
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(refusal) => {
            let problem = Problem::from(refusal);
            return Ok((Extension(Outcome::of(1, Err(&problem))), Err(problem)));
        }
    };
    drop(body);
    let (outcome, answer) = commit(&collector, &extensions, prepared).await;
    Ok((outcome, answer.map(|_| Json(json!({"message": "Received"})))))
}

fn arrival<'a>(headers: &'a HeaderMap, extensions: &Extensions) -> Arrival<'a> {
    Arrival {
        received_at: crate::time::now(),
        sent_at: text(headers, &SENT_AT).and_then(|time| time.parse().ok()),
        useragent: text(headers, &header::USER_AGENT),
        address: ClientIp::of(extensions),
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    if !headers.contains_key(IDEMPOTENCY_KEY) {
        return Ok(None);
    }
    match text(headers, &IDEMPOTENCY_KEY) {
        Some(key) if !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES => Ok(Some(key)),
        _ => Err(Problem::new(
            &INVALID_IDEMPOTENCY_KEY,
            format!("An Idempotency-Key has 1 to {IDEMPOTENCY_KEY_BYTES} visible ASCII characters."),
        )),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UrlQuery {
    url: String,
}

async fn page_view_count(
    State(collector): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let UrlQuery { url } = query(raw)?;
    count_of(&collector, &site.username, "page_view", url).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ButtonQuery {
    button_id: String,
}

async fn button_click_count(
    State(collector): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let ButtonQuery { button_id } = query(raw)?;
    count_of(&collector, &site.username, "button_click", button_id).await
}

async fn count_of(
    collector: &Collector,
    username: &str,
    event_type: &str,
    key: String,
) -> Result<Json<Value>, Problem> {
    if key.is_empty() {
        // An empty key would be the total of the type, which nobody asked for.
        return Ok(Json(json!({"count": 0})));
    }
    let query = Query { username: username.into(), event_type: event_type.into(), key };
    Ok(Json(json!({"count": collector.store.count(query, None).await?})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CountsQuery {
    event_type: String,
    key: Option<String>,
    from: Option<u64>,
    to: Option<u64>,
    interval: Option<Interval>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Interval {
    Hour,
    Day,
}

async fn counts(
    State(collector): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let asked: CountsQuery = query(raw)?;
    check_event_type(&asked.event_type)?;
    let query = Query {
        username: site.username.clone(),
        event_type: asked.event_type.clone(),
        key: asked.key.clone().unwrap_or_default(),
    };
    let mut answer = json!({"event_type": asked.event_type});
    if let Some(key) = &asked.key {
        answer["key"] = key.as_str().into();
    }
    let Some(interval) = asked.interval else {
        let hours = match (asked.from, asked.to) {
            (None, None) => None,
            (from, to) => Some(whole_hours(from.unwrap_or(0), to.unwrap_or_else(crate::time::now), HOUR)?),
        };
        answer["total"] = collector.store.count(query, hours).await?.into();
        return Ok(Json(answer));
    };
    let (step, span) = match interval {
        Interval::Hour => (HOUR, DAY),
        Interval::Day => (DAY, 30 * DAY),
    };
    let to = asked.to.unwrap_or_else(crate::time::now);
    let hours = whole_hours(asked.from.unwrap_or_else(|| to.saturating_sub(span)), to, step)?;
    let steps = (hours.end - hours.start) / (step / HOUR);
    if steps > SERIES_POINTS {
        return Err(invalid_query(format!("The series would have {steps} points, and may have {SERIES_POINTS}.")));
    }
    let first = hours.start / (step / HOUR);
    let mut points = vec![0; steps as usize];
    for (hour, count) in collector.store.series(query, hours).await? {
        points[(hour / (step / HOUR) - first) as usize] += count;
    }
    answer["total"] = points.iter().sum::<u64>().into();
    answer["series"] = (0..)
        .zip(points)
        .map(|(at, count): (u64, u64)| json!({"start": (first + at) * step, "count": count}))
        .collect();
    Ok(Json(answer))
}

/// The hours that the steps from `from` up to `to` cover, both rounded outwards to whole steps.
fn whole_hours(from: u64, to: u64, step: u64) -> Result<Hours, Problem> {
    if from >= to || to > i64::MAX as u64 {
        return Err(invalid_query("`from` must be before `to`; both are milliseconds since the Unix epoch."));
    }
    let hours = step / HOUR;
    Ok(from / step * hours..to.div_ceil(step) * hours)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopQuery {
    event_type: String,
    #[serde(default = "default_top")]
    limit: u32,
}

fn default_top() -> u32 {
    10
}

async fn top(
    State(collector): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let TopQuery { event_type, limit } = query(raw)?;
    check_event_type(&event_type)?;
    if !(1..=TOP_KEYS).contains(&limit) {
        return Err(invalid_query(format!("`limit` must be from 1 to {TOP_KEYS}.")));
    }
    let query = Query { username: site.username.clone(), event_type: event_type.clone(), key: String::new() };
    let top = collector.store.top(query, limit).await?;
    let top: Vec<_> = top.into_iter().map(|(key, count)| json!({"key": key, "count": count})).collect();
    Ok(Json(json!({"event_type": event_type, "top": top})))
}

fn check_event_type(event_type: &str) -> Result<(), Problem> {
    match event_type {
        "page_view" | "button_click" | "custom" | crate::ingest::checked_batch::LOST => Ok(()),
        _ => Err(invalid_query("`event_type` must be page_view, button_click, custom or lost.")),
    }
}

/// Parsed only after the key has been checked, so that strangers learn nothing. A parameter that is not known is
/// refused: a misspelt `from` would give a number that is right for another question.
fn query<T: DeserializeOwned>(raw: Option<String>) -> Result<T, Problem> {
    let uri = format!("/?{}", raw.unwrap_or_default());
    let uri = uri.parse().map_err(|_| invalid_query("The query cannot be read."))?;
    axum::extract::Query::try_from_uri(&uri).map(|axum::extract::Query(query)| query).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        invalid_query(cause.unwrap_or_else(|| error.to_string()))
    })
}

fn invalid_query(detail: impl Into<String>) -> Problem {
    Problem::new(&INVALID_QUERY, detail)
}

async fn published_limits() -> Json<Value> {
    Json(limits_json())
}

pub(crate) fn limits_json() -> Value {
    json!({
        "batch_events": limits::BATCH_EVENTS,
        "batch_bytes": limits::BATCH_BYTES,
        "event_bytes": limits::EVENT_BYTES,
        "url_bytes": limits::URL_BYTES,
        "referral_url_bytes": limits::URL_BYTES,
        "title_bytes": limits::TITLE_BYTES,
        "button_id_bytes": limits::BUTTON_ID_BYTES,
        "name_bytes": limits::NAME_BYTES,
        "session_id_bytes": limits::NAME_BYTES,
        "anonymous_id_bytes": limits::NAME_BYTES,
        "user_id_bytes": limits::NAME_BYTES,
        "useragent_bytes": limits::USERAGENT_BYTES,
        "ipaddress_bytes": limits::IPADDRESS_BYTES,
        "properties_depth": limits::PROPERTIES_DEPTH,
        "weight": limits::WEIGHT,
    })
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn ready(State(collector): Shared, readiness: Extension<Arc<Readiness>>) -> Result<Json<Value>, Problem> {
    readiness.check(&collector.store).await?;
    Ok(Json(json!({"status": "ready"})))
}

/// Whether the sinks can be used: what the store says of itself, and how storing went of late.
#[derive(Debug, Default)]
struct Readiness {
    /// When storing failed, unless it has gone well since.
    failed_at: AtomicU64,
    checked: Mutex<Checked>,
}

#[derive(Debug, Default)]
struct Checked {
    at: u64,
    is_ready: bool,
}

impl Readiness {
    fn note(&self, problem: Option<&Problem>) {
        match problem {
            None => self.failed_at.store(0, Ordering::Relaxed),
            Some(problem) if problem.is_ours() => self.failed_at.store(crate::time::now(), Ordering::Relaxed),
            Some(_) => {}
        }
    }

    async fn check(&self, store: &Store) -> Result<(), Problem> {
        let not_ready = |why| Problem::new(&NOT_READY, why).with_header(header::RETRY_AFTER, "1");
        // Whoever keeps events away because of this must not be kept away for good.
        if crate::time::now().abs_diff(self.failed_at.load(Ordering::Relaxed)) < FAILURE_COUNTS.as_millis() as u64 {
            return Err(not_ready("Events could not be stored of late."));
        }
        let mut checked = self.checked.lock().await;
        if crate::time::now().abs_diff(checked.at) >= CHECK_EVERY.as_millis() as u64 {
            // Before the answer, so that who hangs up and comes again cannot make the sinks work either.
            *checked = Checked { at: crate::time::now(), is_ready: false };
            match tokio::time::timeout(CHECK_PATIENCE, store.ready()).await {
                Ok(Ok(())) => checked.is_ready = true,
                Ok(Err(error)) => tracing::warn!(cause = %crate::error::chain(&error), "not ready"),
                Err(_) => tracing::warn!(cause = "the sinks do not answer", "not ready"),
            }
        }
        if checked.is_ready { Ok(()) } else { Err(not_ready("Events cannot be stored, or counters not be read.")) }
    }
}

async fn not_found() -> Problem {
    Problem::new(&NOT_FOUND, "See the documentation for the routes there are.")
}

async fn method_not_allowed() -> Problem {
    Problem::new(&METHOD_NOT_ALLOWED, "The Allow header names the methods it takes.")
}
