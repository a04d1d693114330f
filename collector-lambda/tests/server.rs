//! The server as a whole: a real process, real requests.
#![cfg(feature = "server")]

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::Duration;
use support::{Collector, ORIGIN, batch, lake_lines, now, uuid};

#[tokio::test]
async fn a_batch_posted_fifty_times_at_once_counts_once() {
    let mut collector = Collector::start(&[]);
    let batch = batch(20);
    let requests: Vec<_> = (0..50).map(|_| tokio::spawn(collector.post("/v1/batch", &batch).send())).collect();
    let mut receipts = Vec::new();
    for request in requests {
        let response = request.await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        receipts.push(response.json::<Value>().await.unwrap());
    }
    assert_eq!(receipts.iter().filter(|receipt| receipt["duplicate"] == false).count(), 1);
    for receipt in &mut receipts {
        receipt["duplicate"] = true.into();
    }
    assert!(receipts.iter().all(|receipt| receipt == &receipts[0]));
    assert_eq!(receipts[0]["accepted"], 20);

    assert_eq!(collector.total("custom").await, 20);
    assert_eq!(collector.get("/v1/counts?event_type=custom&key=n0").await["total"], 4);
    collector.stop();
    let lake = collector.lake();
    assert_eq!(lake.len(), 20);
    assert!(lake.values().all(|times| *times == 1));
}

#[tokio::test]
async fn a_bad_event_does_not_harm_its_neighbours() {
    let mut collector = Collector::start(&[]);
    let good = uuid();
    let body = json!({"batch_id": uuid(), "lost": {"queue_full": 2}, "events": [
        {"event_id": good, "event_type": "page_view", "occurred_at": now(), "session_id": "xyz",
         "url": "https://shop.example/", "referral_url": "https://search.example/", "title": "Shop"},
        {"event_id": uuid(), "event_type": "custom", "name": "n".repeat(129)},
        {"event_type": "purchase"},
        7,
        {"event_id": good, "event_type": "custom", "name": "again"},
        {"event_type": "button_click", "button_id": "no id, no time"},
    ]});
    let receipt: Value = collector.post("/v1/batch", &body).send().await.unwrap().json().await.unwrap();
    assert_eq!(receipt["accepted"], 2);
    assert_eq!(receipt["retry"], json!([]));
    let refused: Vec<_> = receipt["rejected"].as_array().unwrap().iter().map(|r| (&r["index"], &r["code"])).collect();
    let expected = [(1, "name_too_long"), (2, "unknown_event_type"), (3, "invalid_event"), (4, "event_id_repeated")];
    let expected = expected.map(|(index, code)| (json!(index), json!(code)));
    assert_eq!(refused, expected.iter().map(|(index, code)| (index, code)).collect::<Vec<_>>());

    assert_eq!(collector.total("page_view").await, 1);
    assert_eq!(collector.total("button_click").await, 1);
    assert_eq!(collector.total("custom").await, 0);
    assert_eq!(collector.get("/v1/counts?event_type=lost&key=queue_full").await["total"], 2);
    collector.stop();
    let lines = lake_lines(&collector.data_dir());
    assert_eq!(lines.len(), 2);
    let view = lines.iter().find(|line| line["event_type"] == "page_view").unwrap();
    assert_eq!(view["event_id"], good);
    assert_eq!(view["url"], "https://shop.example/");
    assert_eq!(view["username"], "shop");
    assert_eq!(view["batch_id"], body["batch_id"]);
    assert!(view["received_at"].as_u64().unwrap().abs_diff(now()) < 60_000);
    assert!(view.get("ipaddress").is_none());
}

#[tokio::test]
async fn the_golden_batches_are_taken_whole() {
    let collector = Collector::start(&[]);
    let fixtures: Vec<Value> = serde_json::from_str(include_str!("../../sdk/tests/wire/batches.json")).unwrap();
    for fixture in &fixtures {
        for duplicate in [false, true] {
            let request = collector.post("/v1/batch", &Value::Null).body(fixture["body"].as_str().unwrap().to_owned());
            let receipt: Value = request.send().await.unwrap().json().await.unwrap();
            assert_eq!(receipt["duplicate"], duplicate);
            assert_eq!(receipt["accepted"], fixture["events"].as_array().unwrap().len());
            assert_eq!(receipt["rejected"], json!([]));
        }
    }
    let invalid: Vec<Value> = serde_json::from_str(include_str!("../../sdk/tests/wire/invalid.json")).unwrap();
    let events: Vec<_> = invalid.iter().map(|fixture| fixture["event"].clone()).collect();
    let body = json!({"batch_id": uuid(), "events": events});
    let receipt: Value = collector.post("/v1/batch", &body).send().await.unwrap().json().await.unwrap();
    let codes: Vec<_> = receipt["rejected"].as_array().unwrap().iter().map(|r| r["code"].clone()).collect();
    assert_eq!(codes, invalid.iter().map(|fixture| fixture["code"].clone()).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_that_cannot_be_read_does_not_harm_its_neighbours() {
    let collector = Collector::start(&[]);
    let deep = "[".repeat(200) + &"]".repeat(200);
    let body = format!(
        r#"{{"batch_id":"{}","events":[{{"event_type":"custom","name":"good"}},{{"event_type":"custom","name":"\ud83d"}},
        {{"event_type":"custom","name":"n","properties":{{"value":1e400}}}},
        {{"event_type":"custom","name":"n","properties":{{"a":{deep}}}}},{{"event_type":"custom","name":"good"}}]}}"#,
        uuid()
    );
    let request = collector.post("/v1/batch", &Value::Null).body(body);
    let receipt: Value = request.send().await.unwrap().json().await.unwrap();
    // The lone surrogate has become U+FFFD.
    assert_eq!(receipt["accepted"], 3, "{receipt}");
    let codes: Vec<_> = receipt["rejected"].as_array().unwrap().iter().map(|r| (&r["index"], &r["code"])).collect();
    let expected = [2, 3].map(|index| (json!(index), json!("invalid_json")));
    assert_eq!(codes, expected.iter().map(|(index, code)| (index, code)).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_id_that_was_used_for_something_else_is_not_answered_as_if_it_had_arrived() {
    let collector = Collector::start(&[]);
    let first = batch(1);
    let mut second = batch(2);
    second["batch_id"] = first["batch_id"].clone();
    for (body, status) in [(&first, 200), (&second, 422), (&first, 200)] {
        assert_eq!(collector.post("/v1/batch", body).send().await.unwrap().status(), status);
    }
    for (name, status) in [("one", 200), ("two", 422), ("one", 200)] {
        let request = collector.post("/track", &json!({"name": name})).header("idempotency-key", "order-7");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status);
        if status == 422 {
            assert_eq!(answer.json::<Value>().await.unwrap()["code"], "id_reused");
        }
    }
    assert_eq!(collector.total("custom").await, 2);
}

#[tokio::test]
async fn the_public_key_cannot_take_the_ids_of_the_secret_one() {
    let mut collector = Collector::start(&[]);
    let from_page = collector
        .http
        .post(format!("{}/track", collector.url))
        .basic_auth("shop", Some(&collector.write_key))
        .header("origin", ORIGIN)
        .header("idempotency-key", "order-7")
        .json(&json!({"name": "junk"}));
    assert_eq!(from_page.send().await.unwrap().status(), 200);
    let charge = collector.post("/track", &json!({"name": "charge"})).header("idempotency-key", "order-7");
    assert_eq!(charge.send().await.unwrap().status(), 200);
    assert_eq!(collector.get("/v1/counts?event_type=custom&key=charge").await["total"], 1);
    assert_eq!(collector.total("custom").await, 2);
    collector.stop();
    assert_eq!(collector.lake().len(), 2, "who tells events apart by their ids finds as many as are counted");
}

#[tokio::test]
async fn a_wrong_clock_is_corrected() {
    let mut collector = Collector::start(&[]);
    let behind = now() - 3 * 86_400_000;
    let event = json!({"event_type": "custom", "name": "n", "occurred_at": behind - 5_000});
    let body = json!({"batch_id": uuid(), "events": [event]});
    collector.post("/v1/batch", &body).header("tallymark-sent-at", behind).send().await.unwrap();
    let ahead = json!({"batch_id": uuid(), "events": [{"event_type": "custom", "name": "n", "occurred_at": u64::MAX}]});
    collector.post("/v1/batch", &ahead).send().await.unwrap();
    collector.stop();
    for line in lake_lines(&collector.data_dir()) {
        let age = line["received_at"].as_u64().unwrap() - line["occurred_at"].as_u64().unwrap();
        assert!(age == 5_000 || age == 0, "{age}");
    }
}

#[tokio::test]
async fn single_events_are_counted_and_safe_to_repeat() {
    let mut collector = Collector::start(&[]);
    for _ in 0..3 {
        let body = json!({"button_id": "abc", "session_id": "xyz"});
        let response =
            collector.post("/button/click", &body).header("idempotency-key", "order-7").send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.json::<Value>().await.unwrap(), json!({"message": "Received"}));
    }
    assert_eq!(collector.get("/button/click/count?button_id=abc").await, json!({"count": 1}));
    collector.post("/button/click", &json!({"button_id": "abc", "session_id": "xyz"})).send().await.unwrap();
    assert_eq!(collector.get("/button/click/count?button_id=abc").await, json!({"count": 2}));
    assert_eq!(collector.get("/button/click/count?button_id=never").await, json!({"count": 0}));

    let view = json!({"url": "https://shop.example/a?b=c&d", "session_id": "xyz", "ipaddress": "192.0.2.1"});
    collector.post("/web/page_view", &view).send().await.unwrap();
    let count = collector.get("/web/page_view/count?url=https%3A%2F%2Fshop.example%2Fa%3Fb%3Dc%26d").await;
    assert_eq!(count, json!({"count": 1}));

    for body in [json!({}), json!({"name": "charge", "value": 100, "session_id": "s"}), json!({"name": 7})] {
        let response = collector.post("/track", &body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{body}");
    }
    assert_eq!(collector.total("custom").await, 3);
    assert_eq!(
        collector.get("/v1/counts/top?event_type=custom").await["top"],
        json!([{"key": "track", "count": 2}, {"key": "charge", "count": 1}])
    );
    collector.stop();
    let lines = lake_lines(&collector.data_dir());
    assert_eq!(lines.len(), 6);
    let charge = lines.iter().find(|line| line["name"] == "charge").unwrap();
    assert_eq!(charge["properties"], json!({"name": "charge", "value": 100, "session_id": "s"}));
    assert_eq!(charge["session_id"], "s");
    assert!(lines.iter().all(|line| line.get("ipaddress").is_none()), "an address was stored without being asked for");
}

#[tokio::test]
async fn series_have_a_point_for_every_step() {
    let collector = Collector::start(&[]);
    let (hour, day) = (3_600_000, 86_400_000);
    let today = now() / day * day;
    let events: Vec<_> = [today - 2 * day, today - 2 * day + hour, today - hour]
        .iter()
        .map(|at| json!({"event_type": "custom", "name": "n", "occurred_at": at}))
        .collect();
    collector.post("/v1/batch", &json!({"batch_id": uuid(), "events": events})).send().await.unwrap();
    let query = format!("/v1/counts?event_type=custom&key=n&from={}&to={today}&interval=day", today - 3 * day);
    let counts = collector.get(&query).await;
    assert_eq!(counts["total"], 3);
    assert_eq!(
        counts["series"],
        json!([{"start": today - 3 * day, "count": 0}, {"start": today - 2 * day, "count": 2}, {"start": today - day, "count": 1}])
    );
    let query = format!("/v1/counts?event_type=custom&from={}&to={today}&interval=hour", today - 2 * hour);
    assert_eq!(
        collector.get(&query).await["series"],
        json!([{"start": today - 2 * hour, "count": 0}, {"start": today - hour, "count": 1}])
    );
    let query = format!("/v1/counts?event_type=custom&from={}&to={}", today - 2 * day, today - day);
    assert_eq!(collector.get(&query).await, json!({"event_type": "custom", "total": 2}));
}

struct Refused {
    method: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, String)>,
    body: String,
    status: u16,
    code: &'static str,
}

#[tokio::test]
async fn every_mistake_has_its_problem() {
    let collector = Collector::start(&[]);
    let basic = |username: &str, key: &str| {
        use base64::Engine;
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{username}:{key}")))
    };
    let secret = ("authorization", basic("shop", &collector.secret_key));
    let write = ("authorization", basic("shop", &collector.write_key));
    let json = ("content-type", "application/json".to_owned());
    let refused = |method, path, headers: &[&(&'static str, String)], body: &str, status, code| Refused {
        method,
        path,
        headers: headers.iter().map(|&header| header.clone()).collect(),
        body: body.into(),
        status,
        code,
    };
    let whole = serde_json::to_string(&batch(1)).unwrap();
    let long = |field: &str, length: usize| {
        json!({"session_id": "s", "button_id": "b", field: "x".repeat(length)}).to_string()
    };
    let many = json!({"batch_id": uuid(), "events": vec![json!(1); 501]}).to_string();
    let deep = format!(r#"{{"name":"n","a":{}1{}}}"#, "[".repeat(2_000), "]".repeat(2_000));
    let cases = [
        refused("POST", "/v1/batch", &[&json], &whole, 401, "auth_required"),
        refused("POST", "/v1/batch", &[&json, &("authorization", "Basic ???".into())], &whole, 401, "auth_malformed"),
        refused(
            "POST",
            "/v1/batch",
            &[&json, &("authorization", "Bearer tms_1".into())],
            &whole,
            401,
            "auth_malformed",
        ),
        refused("POST", "/v1/batch", &[&json, &("authorization", basic("shop", "wrong"))], &whole, 401, "auth_failed"),
        refused(
            "POST",
            "/v1/batch",
            &[&json, &("authorization", basic("nobody", "wrong"))],
            &whole,
            401,
            "auth_failed",
        ),
        refused("POST", "/v1/batch", &[&json, &write], &whole, 403, "origin_not_allowed"),
        refused(
            "POST",
            "/v1/batch",
            &[&json, &write, &("origin", "https://evil.example".into())],
            &whole,
            403,
            "origin_not_allowed",
        ),
        refused(
            "GET",
            "/v1/counts?event_type=custom",
            &[&write, &("origin", ORIGIN.into())],
            "",
            403,
            "write_key_cannot_read",
        ),
        refused("GET", "/button/click/count?button_id=abc", &[], "", 401, "auth_required"),
        refused("POST", "/v1/batch", &[&json, &secret], "{\"batch_id\":", 400, "invalid_json"),
        refused("POST", "/v1/batch", &[&json, &secret], "[]", 400, "invalid_batch"),
        refused("POST", "/v1/batch", &[&json, &secret], r#"{"batch_id":"7","events":[]}"#, 400, "invalid_batch"),
        refused("POST", "/v1/batch", &[&json, &secret], &many, 413, "too_many_events"),
        refused("POST", "/v1/batch", &[&json, &secret], &"x".repeat(512 * 1024 + 1), 413, "body_too_large"),
        refused(
            "POST",
            "/v1/batch",
            &[&("content-type", "text/plain".into()), &secret],
            &whole,
            415,
            "unsupported_media_type",
        ),
        refused(
            "POST",
            "/v1/batch",
            &[&json, &secret, &("content-encoding", "br".into())],
            &whole,
            415,
            "unsupported_encoding",
        ),
        refused("POST", "/button/click", &[&json, &secret], "no json", 422, "invalid_event"),
        refused("POST", "/button/click", &[&json, &secret], r#"{"session_id":"s"}"#, 422, "invalid_event"),
        refused("POST", "/button/click", &[&json, &secret], r#"{"button_id":"b"}"#, 422, "invalid_event"),
        refused(
            "POST",
            "/button/click",
            &[&json, &secret],
            r#"{"button_id":7,"session_id":"s"}"#,
            422,
            "invalid_event",
        ),
        refused("POST", "/button/click", &[&json, &secret], &long("button_id", 257), 422, "invalid_event"),
        refused(
            "POST",
            "/button/click",
            &[&json, &secret, &("idempotency-key", "x".repeat(256))],
            r#"{}"#,
            422,
            "invalid_idempotency_key",
        ),
        refused("POST", "/web/page_view", &[&json, &secret], r#"{"session_id":"s"}"#, 422, "invalid_event"),
        refused("POST", "/track", &[&json, &secret], "[]", 422, "invalid_event"),
        refused("POST", "/track", &[&json, &secret], &deep, 422, "invalid_event"),
        refused("POST", "/track", &[&json, &secret], &long("x", 32 * 1024 - 60), 413, "event_too_large"),
        refused("POST", "/track", &[&json, &secret], &long("x", 40 * 1024), 413, "body_too_large"),
        refused("GET", "/v1/counts", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/v1/counts?event_type=purchase", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/v1/counts?event_type=custom&from=2&to=1", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/v1/counts?event_type=custom&from=0&interval=hour", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/v1/counts?event_type=custom&from=yesterday", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/v1/counts/top?event_type=custom&limit=0", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/button/click/count", &[&secret], "", 422, "invalid_query"),
        refused("GET", "/nowhere", &[], "", 404, "not_found"),
        refused("DELETE", "/v1/batch", &[&secret], "", 405, "method_not_allowed"),
    ];
    for Refused { method, path, headers, body, status, code } in cases {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = collector.http.request(method, format!("{}{path}", collector.url)).body(body);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{path} should be {code}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        if status == 401 {
            assert!(response.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic realm="));
        }
        if status == 405 {
            assert_eq!(response.headers()["allow"], "POST");
        }
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], code, "{path}: {problem}");
        assert_eq!(problem["status"], status);
        assert!(!problem["detail"].as_str().unwrap().is_empty());
    }
    for event_type in ["custom", "button_click", "page_view"] {
        assert_eq!(collector.total(event_type).await, 0);
    }
}

#[tokio::test]
async fn times_in_queries_are_dates_too() {
    let collector = Collector::start(&[]);
    assert_eq!(collector.post("/track", &json!({"name": "n"})).send().await.unwrap().status(), 200);
    let total =
        async |query: &str| collector.get(&format!("/v1/counts?event_type=custom&{query}")).await["total"].clone();
    assert_eq!(total("from=2020-01-01").await, 1);
    assert_eq!(total("from=2020-01-01&to=2020-02-01T00:00:00%2B01:00").await, 0);
    let url = format!("{}/v1/counts?event_type=custom&from=2026-13-01", collector.url);
    let problem = collector.http.get(url).basic_auth("shop", Some(&collector.secret_key)).send().await.unwrap();
    let detail = problem.json::<Value>().await.unwrap()["detail"].as_str().unwrap().to_owned();
    for part in ["from", "2026-13-01", "milliseconds", "RFC 3339"] {
        assert!(detail.contains(part), "{detail}");
    }
}

#[tokio::test]
async fn pages_of_the_sites_origins_may_send_and_others_may_not() {
    let collector = Collector::start(&[]);
    let preflight = |origin: &'static str| {
        collector
            .http
            .request(reqwest::Method::OPTIONS, format!("{}/v1/batch", collector.url))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type,tallymark-sent-at")
            .send()
    };
    let answer = preflight(ORIGIN).await.unwrap();
    assert!(answer.status().is_success());
    let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("access-control-allow-origin"), ORIGIN);
    assert!(header("access-control-allow-methods").contains("POST"));
    for name in ["authorization", "content-type", "tallymark-sent-at"] {
        assert!(header("access-control-allow-headers").contains(name));
    }
    assert_eq!(header("access-control-max-age"), "7200");
    assert!(header("vary").contains("origin"));
    // A page on an unknown origin may ask, so that it can read that it is not allowed to.
    let unknown = "https://unknown.example";
    for _ in 0..3 {
        assert_eq!(preflight(unknown).await.unwrap().headers()["access-control-allow-origin"], unknown);
        let request = collector.http.post(format!("{}/v1/batch", collector.url)).header("origin", unknown);
        let refused = request.basic_auth("shop", Some(&collector.write_key)).json(&batch(1)).send().await.unwrap();
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["access-control-allow-origin"]),
            (403, &unknown.parse().unwrap())
        );
        assert_eq!(refused.json::<Value>().await.unwrap()["code"], "origin_not_allowed");
    }
    let warnings = collector.log().matches("an origin that no site has").count();
    assert_eq!((warnings, collector.log().contains(unknown)), (1, true));
    // What else there is stays for known origins.
    for path in ["/health", "/v1/counts?event_type=custom", "/nowhere"] {
        let request = collector.http.get(format!("{}{path}", collector.url)).header("origin", unknown);
        let answer = request.basic_auth("shop", Some(&collector.secret_key)).send().await.unwrap();
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{path}");
    }

    // Errors too can be read by the page, or it could not tell why.
    for (origin, body, status) in [(ORIGIN, batch(1), 200), (ORIGIN, json!([]), 400)] {
        let request = collector.http.post(format!("{}/v1/batch", collector.url)).header("origin", origin);
        let answer = request.basic_auth("shop", Some(&collector.write_key)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["access-control-allow-origin"], origin);
    }
}

#[tokio::test]
async fn a_sender_that_is_refused_early_gets_to_know_it() {
    let collector = Collector::start(&[]);
    let large = vec![b'x'; 900 * 1024];
    for _ in 0..60 {
        let post = |key: &str| {
            let request = collector.http.post(format!("{}/v1/batch", collector.url)).basic_auth("shop", Some(key));
            request.header("content-type", "application/json").body(large.clone()).send()
        };
        assert_eq!(post("wrong").await.unwrap().status(), 401);
        assert_eq!(post(&collector.secret_key).await.unwrap().status(), 413);
    }
}

#[tokio::test]
async fn what_declares_itself_too_large_is_refused_before_it_is_read() {
    let collector = Collector::start(&[]);
    let answer = tokio::task::spawn_blocking({
        let address = collector.url.strip_prefix("http://").unwrap().to_owned();
        let request = collector.post("/v1/batch", &json!({})).build().unwrap();
        let authorization = request.headers()["authorization"].to_str().unwrap().to_owned();
        move || {
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            write!(
                stream,
                "POST /v1/batch HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
                 content-type: application/json\r\ncontent-length: 10000000000\r\n\r\n"
            )
            .unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        }
    });
    assert_eq!(answer.await.unwrap(), "HTTP/1.1 413");
}

#[tokio::test]
async fn files_are_served_beside_the_routes() {
    let files = support::Folder::new();
    std::fs::write(files.0.join("index.html"), "<title>Shop</title>").unwrap();
    std::fs::write(files.0.join("tallymark.wasm"), "wasm").unwrap();
    std::fs::create_dir(files.0.join("blog")).unwrap();
    for (file, text) in [("about.html", "about"), ("blog/index.html", "blog"), ("blog/first.html", "first")] {
        std::fs::write(files.0.join(file), text).unwrap();
    }
    let collector = Collector::start(&["--static", files.0.to_str().unwrap()]);
    let get = |path: &str| collector.http.get(format!("{}{path}", collector.url)).send();
    let page = get("/").await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html");
    assert_eq!(page.headers()["cache-control"], "no-cache");
    let page_policy = page.headers()["cross-origin-resource-policy"].clone();
    assert_eq!(page.text().await.unwrap(), "<title>Shop</title>");
    assert_eq!(get("/tallymark.wasm").await.unwrap().headers()["content-type"], "application/wasm");
    assert_eq!(get("/health").await.unwrap().json::<Value>().await.unwrap(), json!({"status": "ok"}));
    assert_eq!(page_policy, "cross-origin");
    for (path, text) in [("/about", "about"), ("/blog", "blog"), ("/blog/", "blog"), ("/blog/first", "first")] {
        let page = get(path).await.unwrap();
        assert_eq!(page.headers()["cross-origin-resource-policy"], "cross-origin", "{path}");
        assert_eq!((page.status().as_u16(), page.text().await.unwrap().as_str()), (200, text), "{path}");
    }
    for path in ["/nowhere", "/../sites.json", "/%2e%2e/sites.json"] {
        let missing = get(path).await.unwrap();
        assert_eq!(missing.status(), 404);
        assert_eq!(missing.json::<Value>().await.unwrap()["code"], "not_found");
    }
}

fn add_site(sites: &std::path::Path, name: &str, origin: &str) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_tallymark-collector"))
        .args(["site", "add", name, "--origin", origin, "--sites"])
        .arg(sites)
        .output()
        .unwrap()
}

/// Runs `serve` where it should refuse to.
fn refused_serve(data_dir: &std::path::Path, sites: &std::path::Path, more: &[&str]) -> String {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_tallymark-collector"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .arg("--sites")
        .arg(sites)
        .args(more)
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn sites_added_at_once_are_all_there() {
    let folder = support::Folder::new();
    let sites = folder.0.join("sites.json");
    std::thread::scope(|scope| {
        for n in 0..20 {
            let sites = &sites;
            scope.spawn(move || {
                let name = format!("site-{n}");
                let output = add_site(sites, &name, "https://shop.example");
                assert!(output.status.success(), "{output:?}");
            });
        }
    });
    let file: Value = serde_json::from_str(&std::fs::read_to_string(&sites).unwrap()).unwrap();
    assert_eq!(file["sites"].as_array().unwrap().len(), 20);
    assert!(!file.to_string().contains("tms_"), "a key is in the file");
}

#[test]
fn a_site_that_could_never_work_is_refused() {
    let folder = support::Folder::new();
    let sites = folder.0.join("sites.json");
    let cases = [
        ("Shop", "https://shop.example"),
        ("../shop", "https://shop.example"),
        ("shop", "https://SHOP.example"),
        ("shop", "https://shop.example/"),
        ("shop", "https://shop.example:443"),
        ("shop", "http://shop.example:80"),
        ("shop", "https://shop.example."),
        ("shop", "https://shop.example\n"),
        ("shop", "https://:80"),
        ("shop", "https://a:b:c"),
        ("shop", "https://user@shop.example"),
        ("shop", "*"),
        ("shop", "https://*.shop.example"),
        ("shop", "shop.example"),
        ("shop", "https://shop.example/cart"),
        ("shop", "ftp://shop.example"),
        ("shop", "capacitor://"),
        ("shop", "NULL"),
    ];
    for (name, origin) in cases {
        let output = add_site(&sites, name, origin);
        assert!(!output.status.success(), "{name} {origin}");
        assert!(output.stdout.is_empty());
        assert!(!sites.exists());
    }
    for (origin, wrong) in [
        ("https://*.shop.example", "wildcards"),
        ("https://shop.example/", "without `/` and path"),
        ("shop.example", "no scheme"),
        ("https://shop.example:443", "default port"),
    ] {
        let said = String::from_utf8(add_site(&sites, "shop", origin).stderr).unwrap();
        assert!(said.contains(origin) && said.contains(wrong), "{said}");
    }
    for origin in [
        "https://shop.example",
        "http://localhost:8080",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
        "null",
        "capacitor://localhost",
        "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
    ] {
        let name = origin.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let output = add_site(&sites, &name, origin);
        assert!(output.status.success(), "{origin}: {output:?}");
    }
}

#[test]
fn the_data_directory_is_never_served() {
    let folder = support::Folder::new();
    let sites = folder.0.join("sites.json");
    std::fs::write(&sites, r#"{"sites":[]}"#).unwrap();
    let error = refused_serve(&folder.0.join("data"), &sites, &["--static", folder.0.to_str().unwrap()]);
    assert!(error.contains("would be served to everybody"), "{error}");
}

#[tokio::test]
async fn two_collectors_cannot_share_a_data_directory() {
    let collector = Collector::start(&[]);
    let data_dir = collector.data_dir();
    let error = refused_serve(&data_dir, &data_dir.with_file_name("sites.json"), &[]);
    assert!(error.contains("another collector is using the data directory"), "{error}");
}
