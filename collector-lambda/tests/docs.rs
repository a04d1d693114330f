//! The OpenAPI document is true: every route, problem and limit is in it, and what is answered is described.
#![cfg(feature = "server")]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeSet;
use support::{Collector, batch, uuid};
use tallymark_collector::http::ROUTES;
use tallymark_collector::http::openapi::document;
use tallymark_collector::http::problem::KINDS;

fn codes(operation: &Value) -> BTreeSet<(u16, String)> {
    let responses = operation["responses"].as_object().unwrap().iter();
    let codes = responses.filter_map(|(status, response)| {
        let schema = &response["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"];
        let codes = schema["code"]["enum"].as_array()?;
        let status: u16 = status.parse().unwrap();
        Some(codes.iter().map(move |code| (status, code.as_str().unwrap().to_owned())).collect::<Vec<_>>())
    });
    codes.flatten().collect()
}

#[test]
fn every_route_and_every_problem_is_in_it() {
    let document = document();
    let mut routes = BTreeSet::new();
    let mut described = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            routes.insert((method.as_str(), path.as_str()));
            described.extend(codes(operation));
        }
    }
    assert_eq!(routes, ROUTES.iter().copied().collect());
    // These two are of no operation: there is none at such a path, or by such a method.
    let prose = document["info"]["description"].as_str().unwrap();
    for (status, code) in [(404, "not_found"), (405, "method_not_allowed")] {
        assert!(prose.contains(&format!("{status} `{code}`")));
        described.insert((status, code.into()));
    }
    assert_eq!(described, KINDS.iter().map(|kind| (kind.status, kind.code.to_owned())).collect());
    let all: Vec<_> = KINDS.iter().map(|kind| json!(kind.code)).collect();
    assert_eq!(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"], json!(all));
}

#[test]
fn what_it_refers_to_is_in_it() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(reference) = members.get("$ref") {
                    found.insert(reference.as_str().unwrap().strip_prefix('#').unwrap().to_owned());
                }
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let mut found = BTreeSet::new();
    references(document(), &mut found);
    assert!(found.len() > 10);
    for reference in found {
        assert!(document().pointer(&reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn what_is_answered_is_described() {
    let collector = Collector::start(&[]);
    let published: Value = collector.get("/openapi.json").await;
    assert_eq!(&published, document());
    let long = json!({"url": "u".repeat(33_000), "session_id": "s"});
    let key = uuid();
    let post = |path: &str, body: &Value| collector.post(path, body);
    let get = |path: &str| {
        let request = collector.http.get(format!("{}{path}", collector.url));
        request.basic_auth("shop", Some(&collector.secret_key))
    };
    let click = json!({"button_id": "b", "session_id": "s"});
    let send = |key: &str, kind: &str| {
        let request = collector.http.post(format!("{}/v1/batch", collector.url)).basic_auth("shop", Some(key));
        request.header("content-type", kind).body(batch(1).to_string())
    };
    let cases = [
        ("post", "/v1/batch", 200, "", post("/v1/batch", &batch(2))),
        ("post", "/v1/batch", 400, "invalid_batch", post("/v1/batch", &json!({}))),
        ("post", "/v1/batch", 400, "invalid_json", post("/v1/batch", &json!({})).body("{")),
        ("post", "/v1/batch", 413, "too_many_events", post("/v1/batch", &batch(501))),
        ("post", "/v1/batch", 415, "unsupported_media_type", send(&collector.secret_key, "a/b")),
        ("post", "/v1/batch", 401, "auth_failed", send("no", "application/json")),
        ("post", "/web/page_view", 413, "body_too_large", post("/web/page_view", &long)),
        ("post", "/web/page_view", 422, "invalid_event", post("/web/page_view", &json!({"url": "u"}))),
        ("post", "/button/click", 200, "", post("/button/click", &click).header("idempotency-key", &key)),
        (
            "post",
            "/button/click",
            422,
            "id_reused",
            post("/button/click", &json!({"button_id": "c", "session_id": "s"})).header("idempotency-key", &key),
        ),
        ("post", "/track", 422, "invalid_idempotency_key", post("/track", &json!({})).header("idempotency-key", "")),
        ("post", "/track", 200, "", post("/track", &json!({"value": 1}))),
        ("get", "/v1/counts", 422, "invalid_query", get("/v1/counts?event_type=no")),
        ("get", "/v1/counts", 200, "", get("/v1/counts?event_type=custom&interval=day")),
        ("get", "/v1/counts/top", 200, "", get("/v1/counts/top?event_type=custom")),
        ("get", "/v1/counts/top", 422, "invalid_query", get("/v1/counts/top?event_type=custom&limit=1001")),
        ("get", "/web/page_view/count", 422, "invalid_query", get("/web/page_view/count")),
        ("get", "/button/click/count", 200, "", get("/button/click/count?button_id=b")),
        ("get", "/ready", 200, "", get("/ready")),
        ("get", "/health", 200, "", get("/health")),
        ("get", "/v1/limits", 200, "", get("/v1/limits")),
    ];
    for (method, path, status, code, request) in cases {
        let answer = request.header("origin", &collector.url).send().await.unwrap();
        assert_eq!(answer.status(), status, "{path} {code}");
        let body: Value = answer.json().await.unwrap();
        let operation = &document()["paths"][path][method];
        if status == 200 {
            let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"];
            let schema = document().pointer(schema.as_str().unwrap().strip_prefix('#').unwrap()).unwrap();
            for (name, value) in body.as_object().unwrap() {
                assert!(schema["properties"].get(name).is_some(), "{path}: {name} is not described");
                let constant = schema["properties"][name].get("const");
                assert!(constant.is_none_or(|constant| constant == value), "{path}: {name}");
            }
            for name in schema["required"].as_array().unwrap() {
                assert!(body.get(name.as_str().unwrap()).is_some(), "{path}: {name} is missing");
            }
        } else {
            assert_eq!(body["code"], code, "{path}");
            assert!(codes(operation).contains(&(status, code.into())), "{path}: {code} is not described");
        }
    }
}

/// What can be provoked from outside is provoked on every route: it is described there, and nothing else is.
#[tokio::test]
async fn each_problem_is_described_where_it_is_answered_and_nowhere_else() {
    let collector = Collector::start(&[]);
    let secret = |request: reqwest::RequestBuilder| request.basic_auth("shop", Some(&collector.secret_key));
    let write = |request: reqwest::RequestBuilder| request.basic_auth("shop", Some(&collector.write_key));
    // These need broken sinks, slow senders or limits: `router.rs` and `http_limits.rs` have them.
    let elsewhere = ["internal", "unavailable", "not_ready", "request_timeout", "rate_limited"];
    for (method, path) in ROUTES {
        let url = format!("{}{path}", collector.url);
        let verb = || method.to_uppercase().parse::<reqwest::Method>().unwrap();
        let ask = || collector.http.request(verb(), &url);
        let json = || secret(ask()).header("content-type", "application/json");
        let (large, many) = (" ".repeat(600_000), batch(501).to_string());
        let odd = r#"{"session_id":"s","url":"u","button_id":"b","properties":{"a":"#.to_owned();
        let larger = odd + &format!("{:?}", "x".repeat(32_700 - 68)) + "}}";
        let mut requests = vec![
            ask(),
            ask().header("authorization", "Basic ?"),
            ask().basic_auth("shop", Some("wrong")),
            write(ask()),
            json().body("{"),
            json().body("{}"),
            json().body(large),
            json().body(many),
            json().body(larger),
            json().body("{}").header("idempotency-key", ""),
            json().body("{}").header("content-encoding", "gzip"),
            json().body("{}").header("content-encoding", "br"),
            secret(ask()).body("{}").header("content-type", "text/plain"),
            secret(collector.http.request(verb(), format!("{url}?unknown=1"))),
        ];
        for n in 0..2 {
            let id = "019aa2e6-b5d8-7000-8000-000000000000";
            let body = json!({"batch_id": id, "events": [], "n": n, "url": "u", "button_id": "b", "session_id": "s"});
            requests.push(json().body(body.to_string()).header("idempotency-key", id));
        }
        let mut answered = BTreeSet::new();
        for request in requests {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            if status != 200 {
                answered.insert((status, answer.json::<Value>().await.unwrap()["code"].as_str().unwrap().to_owned()));
            }
        }
        let mut described = codes(&document()["paths"][*path][*method]);
        described.retain(|(_, code)| !elsewhere.contains(&code.as_str()));
        assert_eq!(answered, described, "{path}");
    }
    let head = collector.http.head(format!("{}/health", collector.url)).send().await.unwrap();
    assert_eq!(head.status(), 200);
}

#[tokio::test]
async fn the_bounds_of_lost_are_where_it_says() {
    let collector = Collector::start(&[]);
    let lost = &document()["components"]["schemas"]["Batch"]["properties"]["lost"];
    let most = lost["additionalProperties"]["maximum"].as_u64().unwrap();
    let pattern = lost["propertyNames"]["pattern"].as_str().unwrap();
    let longest: usize = pattern.rsplit_once(',').unwrap().1.trim_end_matches("}$").parse().unwrap();
    let reasons = lost["maxProperties"].as_u64().unwrap();
    for (bytes, events, count, status) in [
        (longest, most, 1, 200),
        (longest + 1, 1, 1, 400),
        (1, most + 1, 1, 400),
        (longest, 1, reasons, 200),
        (longest, 1, reasons + 1, 400),
    ] {
        let names = (0..count).map(|n| (format!("{n:a>bytes$}"), json!(events)));
        let body = json!({"batch_id": uuid(), "events": [], "lost": names.collect::<serde_json::Map<_, _>>()});
        let answer = collector.post("/v1/batch", &body).send().await.unwrap();
        assert_eq!(answer.status(), status, "{bytes} bytes, {events} events, {count} reasons");
    }
}

#[tokio::test]
async fn the_page_needs_nothing_else() {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let collector = Collector::start(&[]);
    let answer = collector.http.get(format!("{}/docs", collector.url)).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
    let policy = answer.headers()["content-security-policy"].to_str().unwrap().to_owned();
    let page = answer.text().await.unwrap();
    let (_, style) = page.split_once("<style>").unwrap();
    let style = style.split_once("</style>").unwrap().0;
    let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(style));
    assert!(policy.contains("default-src 'none'") && policy.contains(&format!("'sha256-{hash}'")), "{policy}");
    assert!(!policy.contains("unsafe"));
    assert!(!page.contains("<script") && !page.contains("src=") && !page.contains("//"), "it loads something");
    for (method, path) in ROUTES {
        assert!(page.contains(&format!("<code>{} {path}</code>", method.to_uppercase())), "{path}");
    }
    for kind in KINDS {
        assert!(page.contains(&format!("<code>{}</code>", kind.code)), "{}", kind.code);
    }
}
