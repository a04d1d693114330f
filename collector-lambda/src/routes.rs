//! The HTTP surface: the same router under the server and under AWS Lambda.

use crate::auth::{Reader, Writer};
use crate::client::Client;
use crate::counts::{DAY, HOUR, Hours, Query, SERIES_POINTS, TOP_KEYS};
use crate::ingest::{self, Arrival};
use crate::log::{REQUEST_ID, log};
use crate::problem::{INVALID_IDEMPOTENCY_KEY, INVALID_QUERY, METHOD_NOT_ALLOWED, NOT_FOUND, Problem};
use crate::rate::Limits;
use crate::request::json_body;
use crate::site::Sites;
use crate::store::Store;
use axum::extract::{RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tallymark::{Custom, Event, Properties, Receipt, limits};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// When a client sent the request, by its own clock, in milliseconds since the Unix epoch. It travels
/// outside the body, which never changes.
pub const SENT_AT: HeaderName = HeaderName::from_static("tallymark-sent-at");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_KEY_BYTES: usize = 255;
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

/// What every request goes through, the last first. Refusals too carry what a page needs to read them.
fn doors(routes: Router<Arc<Collector>>, collector: Arc<Collector>) -> Router {
    let routes = routes.layer(from_fn(limit)).layer(cors(Arc::clone(&collector)));
    routes.layer(from_fn(security)).layer(from_fn(log)).with_state(collector)
}

/// Before the key is looked at, so that nobody can try keys faster than that.
async fn limit(request: Request, next: Next) -> Result<Response, Problem> {
    if let (Some(limits), Some(address)) = (request.extensions().get::<Arc<Limits>>(), Client::of(request.extensions()))
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

fn routes() -> Router<Arc<Collector>> {
    Router::new()
        .route("/v1/batch", post(batch))
        .route("/web/page_view", post(page_view))
        .route("/button/click", post(button_click))
        .route("/track", post(track))
        .route("/web/page_view/count", get(page_view_count))
        .route("/button/click/count", get(button_click_count))
        .route("/v1/counts", get(counts))
        .route("/v1/counts/top", get(top))
        .route("/v1/limits", get(published_limits))
        .route("/health", get(health))
        .method_not_allowed_fallback(method_not_allowed)
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

async fn batch(State(collector): Shared, writer: Writer, request: Request) -> Result<Json<Receipt>, Problem> {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let body = json_body(&headers, body, limits::BATCH_BYTES).await?;
    let prepared = ingest::prepare_batch(&writer.site, writer.key, &body, arrival(&headers, &extensions))?;
    Ok(Json(collector.store.commit(prepared).await?))
}

async fn page_view(collector: Shared, writer: Writer, request: Request) -> Result<Json<Value>, Problem> {
    single(collector, writer, request, |json| require_session(decode("page_view", json)?)).await
}

async fn button_click(collector: Shared, writer: Writer, request: Request) -> Result<Json<Value>, Problem> {
    single(collector, writer, request, |json| require_session(decode("button_click", json)?)).await
}

async fn track(collector: Shared, writer: Writer, request: Request) -> Result<Json<Value>, Problem> {
    single(collector, writer, request, |json| any_object(&json)).await
}

async fn single(
    State(collector): Shared,
    writer: Writer,
    request: Request,
    read: impl FnOnce(Value) -> Result<Event, Problem>,
) -> Result<Json<Value>, Problem> {
    let (Parts { headers, extensions, .. }, body) = request.into_parts();
    let idempotency_key = idempotency_key(&headers)?;
    let body = json_body(&headers, body, limits::EVENT_BYTES).await?;
    let event = read(ingest::parse_event(&body)?)?;
    let arrival = arrival(&headers, &extensions);
    let prepared = ingest::prepare_event(&writer.site, writer.key, event, &body, idempotency_key, arrival)?;
    collector.store.commit(prepared).await?;
    Ok(Json(json!({"message": "Received"})))
}

fn decode(event_type: &str, json: Value) -> Result<Event, Problem> {
    Event::decode_as(event_type, json).map_err(|invalid| ingest::invalid_event(&invalid))
}

fn require_session(event: Event) -> Result<Event, Problem> {
    match event.session_id() {
        Some(id) if !id.is_empty() => Ok(event),
        _ => {
            Err(Problem::new(&crate::problem::INVALID_EVENT, "`session_id` is missing or empty (session_id_missing)."))
        }
    }
}

/// Any JSON object as a custom event: all of it becomes the properties. What it calls `name` is what it is
/// counted by, or else `track`.
fn any_object(json: &Value) -> Result<Event, Problem> {
    let text = |name: &str| {
        let value = json.get(name)?.as_str()?;
        (!value.is_empty() && value.len() <= limits::NAME_BYTES).then(|| value.to_owned())
    };
    let mut event = Custom::new(text("name").unwrap_or_else(|| "track".into()));
    if let Some(id) = text("session_id") {
        event = event.session_id(id);
    }
    if let Some(id) = text("anonymous_id") {
        event = event.anonymous_id(id);
    }
    if let Some(id) = text("user_id") {
        event = event.user_id(id);
    }
    let properties = Properties::new(json).map_err(|invalid| ingest::invalid_event(&invalid))?;
    Ok(event.properties(properties).into())
}

fn arrival<'a>(headers: &'a HeaderMap, extensions: &Extensions) -> Arrival<'a> {
    Arrival {
        received_at: crate::now(),
        sent_at: text(headers, &SENT_AT).and_then(|time| time.parse().ok()),
        useragent: text(headers, &header::USER_AGENT),
        address: Client::of(extensions),
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
            (from, to) => Some(whole_hours(from.unwrap_or(0), to.unwrap_or_else(crate::now), HOUR)?),
        };
        answer["total"] = collector.store.count(query, hours).await?.into();
        return Ok(Json(answer));
    };
    let (step, span) = match interval {
        Interval::Hour => (HOUR, DAY),
        Interval::Day => (DAY, 30 * DAY),
    };
    let to = asked.to.unwrap_or_else(crate::now);
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
        "page_view" | "button_click" | "custom" | crate::batch::LOST => Ok(()),
        _ => Err(invalid_query("`event_type` must be page_view, button_click, custom or lost.")),
    }
}

/// Parsed only after the key has been checked, so that strangers learn nothing.
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
    Json(json!({
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
    }))
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn not_found() -> Problem {
    Problem::new(&NOT_FOUND, "See the documentation for the routes there are.")
}

async fn method_not_allowed() -> Problem {
    Problem::new(&METHOD_NOT_ALLOWED, "The Allow header names the methods it takes.")
}
