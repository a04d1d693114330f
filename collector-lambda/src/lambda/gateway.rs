//! Translates a front door's event into a request for the router, and the router's response into the format that the
//! front door expects.
//!
//! | front door | query | headers | path |
//! |---|---|---|---|
//! | HTTP API, Function URL (payload 2.0) | as sent | one value each, joined by commas | behind the stage |
//! | REST API (payload 1.0) | decoded | one value each, and all values | as sent |
//! | load balancer | as sent, split into parameters | one value each, or all values: a setting of the target group | as sent |
//!
//! Not `lambda_http`, for three reasons that any client can provoke: it decodes a load balancer's query before it splits
//! it, so that a key with an `&` is never found; it cannot read an event with a non-ASCII header, so that each retry is
//! answered 502; and it panics at a host or query that is not a valid part of a URL.

use crate::http::auth::VerifiedKey;
use crate::http::client_ip::ClientIp;
use crate::sites::KeyScope;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_ENCODING;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What must be percent-encoded in a URL. Front doors decode paths, and do not encode all of it in queries.
const NOT_IN_QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');
const NOT_IN_PATH: &AsciiSet = &NOT_IN_QUERY.add(b'?');

/// How a gzip begins after it was decoded as UTF-8 with replacement characters. An HTTP API and a Function URL do that to
/// every body declared as JSON.
const DAMAGED_GZIP: &str = "\u{1f}\u{fffd}";

/// A body that did not arrive intact. It is answered with an error that makes the client retry.
struct Damaged;

impl http_body::Body for Damaged {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Err("damaged by the front door")))
    }
}

/// An event: a request, or what something else sends, such as a schedule that keeps the function warm.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Event {
    Request(Box<GatewayRequest>),
    Other(Other),
}

/// What is left of an event that is no request.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Other(Value);

impl Other {
    /// Whether it comes from a front door all the same. Then somebody waits for an answer that this is not.
    pub(crate) fn is_from_front_door(&self) -> bool {
        self.0.get("requestContext").is_some_and(|context| !context.is_null())
    }
}

/// The parts of a front door's event that make up a request, for every kind of front door.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayRequest {
    request_context: RequestContext,
    http_method: Option<String>,
    path: Option<String>,
    raw_query_string: Option<String>,
    query_string_parameters: Option<BTreeMap<String, Option<String>>>,
    multi_value_query_string_parameters: Option<BTreeMap<String, Option<Vec<String>>>>,
    headers: Option<BTreeMap<String, Option<String>>>,
    multi_value_headers: Option<BTreeMap<String, Option<Vec<String>>>>,
    body: Option<String>,
    is_base64_encoded: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RequestContext {
    stage: Option<String>,
    /// Only in payload 2.0.
    http: Option<Http>,
    /// Only in payload 1.0.
    identity: Option<Source>,
    /// Only in a load balancer's events.
    elb: Option<IgnoredAny>,
    /// Only behind an authorizer, whose kind decides what is in it.
    authorizer: Option<Value>,
}

#[derive(Deserialize)]
struct Http {
    method: String,
    path: String,
    #[serde(flatten)]
    source: Source,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    source_ip: Option<String>,
}

/// How the front door expects the response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseFormat {
    /// Headers as lists of values, or else joined by commas.
    all_values: bool,
    /// With the status as text too.
    described: bool,
}

impl GatewayRequest {
    pub(crate) fn response_format(&self) -> ResponseFormat {
        let described = self.request_context.elb.is_some();
        // A load balancer expects headers in the form it sends them. API Gateway takes lists only in payload 1.0.
        let all_values = self.request_context.http.is_none() && (!described || self.multi_value_headers.is_some());
        ResponseFormat { all_values, described }
    }

    /// Whose key the Lambda authorizer of an HTTP API has found in the request. A client cannot write it: its own words
    /// are in the headers and the body. Payload 2.0 only, because elsewhere the same member has another meaning.
    pub(crate) fn verified_key(&self) -> Option<VerifiedKey> {
        self.request_context.http.as_ref()?;
        let context = self.request_context.authorizer.as_ref()?.get("lambda")?;
        let scope = context.get("scope")?.as_str()?;
        let scope = [KeyScope::Secret, KeyScope::Write].into_iter().find(|known| known.as_str() == scope)?;
        Some(VerifiedKey { username: context.get("username")?.as_str()?.into(), scope })
    }

    /// The request, with the client's address in its extensions; `None` if no front door could have sent it.
    pub(crate) fn into_request(self) -> Option<Request> {
        let RequestContext { stage, http, identity, elb, .. } = self.request_context;
        let mut headers = headers(all(self.multi_value_headers, self.headers));
        let parameters = all(self.multi_value_query_string_parameters, self.query_string_parameters);
        let (method, path, query, address) = match http {
            Some(Http { method, path, source }) => {
                let path = without_stage(&path, stage.as_deref()).to_owned();
                (method, path, self.raw_query_string.unwrap_or_default(), source.source_ip)
            }
            None if elb.is_some() => {
                // The load balancer appends its peer's address.
                let last = headers.get_all("x-forwarded-for").iter().next_back();
                let last = last.and_then(|header| header.to_str().ok()?.rsplit(',').next().map(str::to_owned));
                (self.http_method?, self.path?, query(parameters, |text| text), last)
            }
            None => {
                let encoded = |text: String| utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string();
                let address = identity.and_then(|identity| identity.source_ip);
                (self.http_method?, self.path?, query(parameters, encoded), address)
            }
        };
        let body = match self.body.unwrap_or_default() {
            body if self.is_base64_encoded == Some(true) => Body::from(STANDARD.decode(body).ok()?),
            body if body.starts_with(DAMAGED_GZIP) => {
                tracing::error!(
                    "the front door has damaged a gzip body; clients behind it must not compress their requests"
                );
                Body::new(Damaged)
            }
            body => {
                // A gzip is no text. A REST API has inflated this one and left its header.
                if is_gzip(&headers) {
                    headers.remove(CONTENT_ENCODING);
                }
                Body::from(body)
            }
        };
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(method.as_bytes()).ok()?;
        *request.uri_mut() = uri(&path, &query)?;
        *request.headers_mut() = headers;
        if let Some(address) = address.and_then(|text| crate::http::client_ip::address(text.trim())) {
            request.extensions_mut().insert(ClientIp(address));
        }
        Some(request)
    }
}

fn is_gzip(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter().map(HeaderValue::as_bytes);
    let gzip = |encoding: &[u8]| encoding.eq_ignore_ascii_case(b"gzip") || encoding.eq_ignore_ascii_case(b"x-gzip");
    encodings.next().is_some_and(gzip) && encodings.next().is_none()
}

/// All values if the front door sends them, or else one value each.
fn all(
    many: Option<BTreeMap<String, Option<Vec<String>>>>,
    one: Option<BTreeMap<String, Option<String>>>,
) -> Vec<(String, String)> {
    match many {
        Some(many) => {
            let each = |(name, values): (String, Option<Vec<String>>)| {
                values.into_iter().flatten().map(move |value| (name.clone(), value))
            };
            many.into_iter().flat_map(each).collect()
        }
        None => one.into_iter().flatten().filter_map(|(name, value)| Some((name, value?))).collect(),
    }
}

fn headers(all: Vec<(String, String)>) -> HeaderMap {
    let header = |(name, value): (String, String)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value.as_bytes()).ok()?))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in all.into_iter().filter_map(header) {
        headers.append(name, value);
    }
    headers
}

fn query(parameters: Vec<(String, String)>, written: impl Fn(String) -> String) -> String {
    let each = parameters.into_iter().map(|(name, value)| format!("{}={}", written(name), written(value)));
    each.collect::<Vec<_>>().join("&")
}

fn uri(path: &str, query: &str) -> Option<Uri> {
    let path = utf8_percent_encode(path, NOT_IN_PATH).to_string();
    let query = utf8_percent_encode(query, NOT_IN_QUERY);
    let text = if path.starts_with('/') { format!("{path}?{query}") } else { format!("/{path}?{query}") };
    text.parse::<PathAndQuery>().ok().map(Uri::from)
}

/// An HTTP API puts the name of its stage before the path, except for the default stage.
fn without_stage<'a>(path: &'a str, stage: Option<&str>) -> &'a str {
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    match rest {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// What the front door turns into an HTTP response.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GatewayResponse {
    status_code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_description: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    multi_value_headers: BTreeMap<String, Vec<String>>,
    body: String,
    is_base64_encoded: bool,
}

impl GatewayResponse {
    pub(crate) async fn new(response: Response, format: ResponseFormat) -> Result<Self, axum::Error> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for (name, value) in &parts.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            all.entry(name.as_str().to_owned()).or_default().push(value);
        }
        let (headers, multi_value_headers) = if format.all_values {
            (BTreeMap::new(), all)
        } else {
            (all.into_iter().map(|(name, values)| (name, values.join(", "))).collect(), BTreeMap::new())
        };
        let (body, is_base64_encoded) = match std::str::from_utf8(&body) {
            Ok(text) => (text.to_owned(), false),
            Err(_) => (STANDARD.encode(&body), true),
        };
        Ok(Self {
            status_code: parts.status.as_u16(),
            status_description: format.described.then(|| parts.status.to_string()),
            headers,
            multi_value_headers,
            body,
            is_base64_encoded,
        })
    }
}
