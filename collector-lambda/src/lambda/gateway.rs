//! What a front door hands to the Lambda, as a request for the router; and the router's answer, as that front door
//! wants it.
//!
//! | front door | query | headers | path |
//! |---|---|---|---|
//! | HTTP API, Function URL (payload 2.0) | as it came | once each, values joined by commas | after the stage |
//! | REST API (payload 1.0) | decoded | once each, and all | as it came |
//! | load balancer | as it came, taken apart | once each, or all: a setting of the target group | as it came |
//!
//! Not by `lambda_http`: it decodes a load balancer's query before it takes it apart, so that a key with an `&` is
//! never found; it cannot read an event with a header beyond ASCII, which is then answered 502 for ever; and it
//! panics at a host or a query that is no part of a URL. Strangers can send all these.

use crate::http::client_ip::ClientIp;
use axum::body::Body;
use axum::extract::Request;
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
use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};

/// What no URL may hold as it is. Front doors decode paths, and let some of it through in queries.
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

/// How a gzip begins once somebody has taken it for text, and replaced what is none. An HTTP API and a Function URL do
/// so with whatever is declared as JSON.
const DAMAGED_GZIP: &str = "\u{1f}\u{fffd}";

/// A body that has not arrived whole: its sender is not to blame, and must not take it for refused.
struct Damaged;

impl http_body::Body for Damaged {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(Some(Err("damaged on the way")))
    }
}

/// The parts of an event that a request is made of, whichever front door it comes from.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Event {
    request_context: Origin,
    http_method: Option<String>,
    path: Option<String>,
    raw_query_string: Option<String>,
    query_string_parameters: Option<BTreeMap<String, String>>,
    multi_value_query_string_parameters: Option<BTreeMap<String, Vec<String>>>,
    headers: Option<BTreeMap<String, String>>,
    multi_value_headers: Option<BTreeMap<String, Vec<String>>>,
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Origin {
    stage: Option<String>,
    /// In payload 2.0 alone.
    http: Option<Http>,
    /// In payload 1.0 alone.
    identity: Option<Source>,
    /// In a load balancer's events alone.
    elb: Option<IgnoredAny>,
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

/// How the answer is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Every header with all of its values, or else joined.
    all_values: bool,
    /// The status in words too.
    described: bool,
}

impl Event {
    pub(crate) fn shape(&self) -> Shape {
        let described = self.request_context.elb.is_some();
        // A load balancer wants headers as it sends them. API Gateway takes all values in payload 1.0 alone.
        let all_values = self.request_context.http.is_none() && (!described || self.multi_value_headers.is_some());
        Shape { all_values, described }
    }

    /// The request, with the address of the client in its extensions. `None` is for what no front door sends.
    pub(crate) fn into_request(self) -> Option<Request> {
        let Origin { stage, http, identity, elb } = self.request_context;
        let headers = headers(all(self.multi_value_headers, self.headers));
        let parameters = all(self.multi_value_query_string_parameters, self.query_string_parameters);
        let (method, path, query, address) = match http {
            Some(Http { method, path, source }) => {
                let path = without_stage(&path, stage.as_deref()).to_owned();
                (method, path, self.raw_query_string.unwrap_or_default(), source.source_ip)
            }
            None if elb.is_some() => {
                // It appends whom it got the request from.
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
            body if self.is_base64_encoded => Body::from(STANDARD.decode(body).ok()?),
            body if body.starts_with(DAMAGED_GZIP) => {
                tracing::error!("the front door has damaged a gzip body; clients behind it must not compress");
                Body::new(Damaged)
            }
            body => Body::from(body),
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

/// All values if the front door sends them, or else the one of each.
fn all(many: Option<BTreeMap<String, Vec<String>>>, one: Option<BTreeMap<String, String>>) -> Vec<(String, String)> {
    match many {
        Some(many) => {
            let each =
                |(name, values): (String, Vec<String>)| values.into_iter().map(move |value| (name.clone(), value));
            many.into_iter().flat_map(each).collect()
        }
        None => one.unwrap_or_default().into_iter().collect(),
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

/// An HTTP API puts the name of its stage before the path, unless that is the default one.
fn without_stage<'a>(path: &'a str, stage: Option<&str>) -> &'a str {
    let rest = stage.and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage));
    match rest {
        Some("") => "/",
        Some(rest) if rest.starts_with('/') => rest,
        _ => path,
    }
}

/// What a front door makes a response of.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
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

impl Answer {
    pub(crate) async fn new(response: Response, shape: Shape) -> Result<Self, axum::Error> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for (name, value) in &parts.headers {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            all.entry(name.as_str().to_owned()).or_default().push(value);
        }
        let (headers, multi_value_headers) = if shape.all_values {
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
            status_description: shape.described.then(|| parts.status.to_string()),
            headers,
            multi_value_headers,
            body,
            is_base64_encoded,
        })
    }
}
