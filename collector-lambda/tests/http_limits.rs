//! The server's doors: encodings, keys that change while it runs, limits, what it logs, and what it keeps of
//! visitors.
#![cfg(feature = "server")]

mod support;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::Response;
use serde_json::{Value, json};
use std::io::Write;
use std::process::{Command, Output};
use support::{Collector, Folder, ORIGIN, batch, lake_lines};

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

async fn post_gzip(collector: &Collector, path: &str, body: Vec<u8>) -> Response {
    let request = collector.post(path, &Value::Null).header("content-encoding", "gzip").body(body);
    request.send().await.unwrap()
}

async fn code(response: Response) -> (u16, Value) {
    (response.status().as_u16(), response.json::<Value>().await.unwrap()["code"].take())
}

#[tokio::test]
async fn gzip_is_the_same_as_plain() {
    let collector = Collector::start(&[]);
    let body = batch(20);
    let bytes = body.to_string().into_bytes();
    let first: Value = post_gzip(&collector, "/v1/batch", gzip(&bytes)).await.json().await.unwrap();
    assert_eq!((&first["accepted"], &first["duplicate"]), (&json!(20), &json!(false)));
    // The same again in another encoding is the same batch; so it is in two members.
    let (start, end) = bytes.split_at(100);
    let members = [gzip(start), gzip(end)].concat();
    let plain = collector.post("/v1/batch", &Value::Null).body(bytes).send().await.unwrap();
    for again in [plain, post_gzip(&collector, "/v1/batch", members).await] {
        let again: Value = again.json().await.unwrap();
        assert_eq!((&again["received_at"], &again["duplicate"]), (&first["received_at"], &json!(true)));
    }
    assert_eq!(collector.total("custom").await, 20);
    for (path, body) in [
        ("/track", json!({"name": "charge"})),
        ("/button/click", json!({"button_id": "b", "session_id": "s"})),
        ("/web/page_view", json!({"url": "https://shop.example/", "session_id": "s"})),
    ] {
        assert_eq!(post_gzip(&collector, path, gzip(body.to_string().as_bytes())).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn gzip_that_is_none_or_too_much_is_refused() {
    let collector = Collector::start(&[]);
    let whole = gzip(batch(20).to_string().as_bytes());
    let mut wrong_sum = whole.clone();
    let at = wrong_sum.len() - 5;
    wrong_sum[at] ^= 1;
    let trailing = [&whole[..], b"more"].concat();
    let broken: [&[u8]; 6] = [b"", b"{}", &whole[..5], &whole[..whole.len() / 2], &wrong_sum, &trailing];
    for body in broken {
        let refused = code(post_gzip(&collector, "/v1/batch", body.to_vec()).await).await;
        assert_eq!(refused, (400, json!("invalid_encoding")), "{} bytes", body.len());
    }
    let limit = 512 * 1024;
    let padded = |bytes: usize| {
        let mut body = json!({"batch_id": support::uuid(), "events": []}).to_string();
        body.push_str(&" ".repeat(bytes - body.len()));
        gzip(body.as_bytes())
    };
    assert_eq!(post_gzip(&collector, "/v1/batch", padded(limit)).await.status(), 200);
    for bytes in [limit + 1, 200 << 20] {
        let bomb = padded(bytes);
        assert!(bomb.len() < limit);
        assert_eq!(code(post_gzip(&collector, "/v1/batch", bomb).await).await, (413, json!("body_too_large")));
    }
    let memory = collector.peak_memory();
    assert!(memory < 200 << 20, "it took {memory} bytes");
    let encodings: [&[&str]; 4] = [&["br"], &["gzip, gzip"], &["gzip", "gzip"], &["deflate"]];
    for encodings in encodings {
        let mut request = collector.post("/v1/batch", &batch(1));
        for encoding in encodings {
            request = request.header("content-encoding", *encoding);
        }
        let refused = request.send().await.unwrap();
        assert_eq!(refused.headers()["accept-encoding"], "gzip");
        assert_eq!(code(refused).await, (415, json!("unsupported_encoding")), "{encodings:?}");
    }
    assert_eq!(collector.total("custom").await, 0);
}

fn site(command: &str, collector: &Collector, arguments: &[&str]) -> Output {
    let mut site = Command::new(env!("CARGO_BIN_EXE_tallymark-collector"));
    site.args(["site", command]).args(arguments).arg("--sites").arg(collector.sites()).output().unwrap()
}

fn said(output: &Output, name: &str) -> Option<String> {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(": ")?.to_owned()))
}

async fn status_of(collector: &Collector, username: &str, key: &str) -> u16 {
    let url = format!("{}/v1/counts?event_type=custom", collector.url);
    collector.http.get(url).basic_auth(username, Some(key)).send().await.unwrap().status().as_u16()
}

const IN_USE: &str = "the sites file has changed and was reloaded";

#[tokio::test]
async fn keys_rotate_while_it_runs() {
    let collector = Collector::start(&[]);
    let old = collector.secret_key.clone();
    let status = async |key: &str| status_of(&collector, "shop", key).await;
    // Known before the change, or the first look may be after it.
    assert_eq!(status(&old).await, 200);

    let rotated = site("rotate", &collector, &["shop", "--key", "secret", "--overlap", "24h"]);
    let new = said(&rotated, "secret_key").unwrap();
    assert_eq!(said(&rotated, "write_key"), None);
    let wait = async |key: &str, wanted: u16| {
        for _ in 0..600 {
            if status(key).await == wanted {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the key is not answered {wanted}");
    };
    wait(&new, 200).await;
    assert_eq!(status(&old).await, 200, "both are good");
    let list = String::from_utf8(site("list", &collector, &[]).stdout).unwrap();
    assert!(list.starts_with(&format!("shop  {ORIGIN}  old secret key valid until 20")), "{list}");
    let again = site("rotate", &collector, &["shop"]);
    assert!(!again.status.success() && again.stdout.is_empty());
    assert!(String::from_utf8_lossy(&again.stderr).contains("--finish"), "{again:?}");

    assert!(site("rotate", &collector, &["shop", "--finish"]).status.success());
    wait(&old, 401).await;
    assert_eq!(status(&new).await, 200);

    // A key that has leaked.
    let newest = said(&site("rotate", &collector, &["shop", "--overlap", "0s"]), "secret_key").unwrap();
    wait(&newest, 200).await;
    assert_eq!(status(&new).await, 401);
    let file = std::fs::read_to_string(collector.sites()).unwrap();
    assert!([&old, &new, &newest].iter().all(|key| !file.contains(key.as_str())), "a key is in the file");

    assert!(site("remove", &collector, &["shop"]).status.success());
    wait(&newest, 401).await;
    assert!(!site("remove", &collector, &["shop"]).status.success());
    assert!(!site("rotate", &collector, &["shop"]).status.success());
}

#[tokio::test]
async fn a_site_moves_while_it_runs_and_keeps_its_keys() {
    const NEW: &str = "https://new.example";
    let collector = Collector::start(&[]);
    let status = async |origin: &str| {
        let request = collector.http.post(format!("{}/v1/batch", collector.url)).header("origin", origin);
        let answer = request.basic_auth("shop", Some(&collector.write_key)).json(&batch(1)).send().await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!((status(ORIGIN).await, status(NEW).await), (200, 403));
    assert!(site("set", &collector, &["shop", "--origin", NEW, "--origin", "http://localhost:3000"]).status.success());
    collector.logged(IN_USE, 1).await;
    assert_eq!((status(ORIGIN).await, status(NEW).await), (403, 200));

    let list = || String::from_utf8(site("list", &collector, &[]).stdout).unwrap();
    assert_eq!(list(), format!("shop  {NEW}  http://localhost:3000\n"));
    assert!(site("set", &collector, &["shop", "--store-ip", "true"]).status.success());
    assert_eq!(list(), format!("shop  {NEW}  http://localhost:3000  stores IP addresses\n"), "the origins stay");
    let good = std::fs::read_to_string(collector.sites()).unwrap();
    let refused: [&[&str]; 6] = [
        &["shop"],
        &["nobody", "--store-ip", "true"],
        &["shop", "--origin", "https://SHOP.example"],
        &["shop", "--origin", NEW, "--no-origin"],
        &["shop", "--store-ip"],
        &["shop", "--store-ip", "maybe"],
    ];
    for arguments in refused {
        assert!(!site("set", &collector, arguments).status.success(), "{arguments:?}");
    }
    assert_eq!(std::fs::read_to_string(collector.sites()).unwrap(), good);
    assert!(site("set", &collector, &["shop", "--no-origin", "--store-ip", "false"]).status.success());
    assert_eq!(list(), "shop\n");
    collector.logged(IN_USE, 2).await;
    assert_eq!(status_of(&collector, "shop", &collector.secret_key).await, 200);
}

#[tokio::test]
async fn bodies_on_their_way_take_only_so_much_memory() {
    use base64::Engine;
    let collector = Collector::start(&[]);
    let before = collector.peak_memory();
    let credentials = format!("shop:{}", collector.secret_key);
    let authorization = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials));
    let address = collector.url.strip_prefix("http://").unwrap().to_owned();
    // All but the last byte, so that none is ever whole.
    let size = 512 * 1024;
    let request = format!(
        "POST /v1/batch HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
         content-type: application/json\r\ncontent-length: {size}\r\n\r\n{}",
        " ".repeat(size - 1)
    );
    let request = std::sync::Arc::new(request.into_bytes());
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..400 {
        let (address, request) = (address.clone(), std::sync::Arc::clone(&request));
        senders.spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"}") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
            String::from_utf8(answer).unwrap()
        });
    }
    // 256 of them fit; the others are asked to retry.
    for _ in 256..400 {
        let answer = senders.join_next().await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains(r#""code":"unavailable""#), "{answer}");
        assert!(answer.to_lowercase().contains("\nretry-after: 1\r"), "{answer}");
    }
    let taken = collector.peak_memory() - before;
    // Buffers that have grown leave their smaller selves to the allocator for a while.
    assert!(taken < 512 << 20, "400 bodies took {taken} bytes");
    // Once they are gone, there is room again.
    senders.shutdown().await;
    for _ in 0..600 {
        if collector.post("/v1/batch", &batch(1)).send().await.unwrap().status() == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("there is never room again");
}

#[tokio::test]
async fn an_old_key_ends_by_itself() {
    let collector = Collector::start(&[]);
    let new = said(&site("rotate", &collector, &["shop", "--overlap", "1h"]), "secret_key").unwrap();
    let mut file: Value = serde_json::from_str(&std::fs::read_to_string(collector.sites()).unwrap()).unwrap();
    let until = file["sites"][0]["old_secret_key"]["until"].as_u64().unwrap();
    assert!(until.abs_diff(support::now() + 3_600_000) < 600_000);
    file["sites"][0]["old_secret_key"]["until"] = (support::now() - 1).into();
    let sites = tallymark_collector::sites::Sites::from_json(&file.to_string()).unwrap();
    assert!(sites.authenticate("shop", &collector.secret_key).is_none());
    assert!(sites.authenticate("shop", &new).is_some());
    assert!(sites.authenticate("nobody", &new).is_none());
}

#[tokio::test]
async fn a_broken_sites_file_keeps_the_old_sites() {
    let collector = Collector::start(&[]);
    let good = std::fs::read_to_string(collector.sites()).unwrap();
    let refused = "the sites file is not valid; the previous sites stay in use";
    for (times, broken) in [(1, "{\"sites\":["), (2, "{\"sites\":[{\"username\":\"Shop\"}]}")] {
        std::fs::write(collector.sites(), broken).unwrap();
        collector.signal("-HUP");
        collector.logged(refused, times).await;
        assert_eq!(status_of(&collector, "shop", &collector.secret_key).await, 200);
    }
    std::fs::remove_file(collector.sites()).unwrap();
    collector.logged("cannot read the sites file", 1).await;
    assert_eq!(status_of(&collector, "shop", &collector.secret_key).await, 200);
    std::fs::write(collector.sites(), good).unwrap();
    collector.logged(IN_USE, 1).await;
    assert_eq!(status_of(&collector, "shop", &collector.secret_key).await, 200);
}

#[tokio::test]
async fn requests_beyond_the_rate_get_429_with_a_time_to_retry() {
    for limit in ["--rate-limit-per-key", "--rate-limit-per-address"] {
        let collector = Collector::start(&[limit, "1"]);
        let requests: Vec<_> = (0..30)
            .map(|_| {
                let request = collector.http.post(format!("{}/v1/batch", collector.url)).header("origin", ORIGIN);
                tokio::spawn(request.basic_auth("shop", Some(&collector.write_key)).json(&batch(1)).send())
            })
            .collect();
        let mut accepted = 0;
        let mut refused = 0;
        for request in requests {
            let answer = request.await.unwrap().unwrap();
            if answer.status() == 200 {
                accepted += 1;
                continue;
            }
            refused += 1;
            assert_eq!(answer.headers()["retry-after"], "1");
            assert_eq!(answer.headers()["access-control-allow-origin"], ORIGIN, "a page can read why");
            assert_eq!(code(answer).await, (429, json!("rate_limited")));
        }
        assert!(accepted > 0 && refused > 0, "{limit}: {accepted} and {refused}");
    }
    // Behind a trusted proxy, it is not the proxy that is limited. Where none is trusted, anybody can say this.
    for (trusted, some_refused) in [("1", false), ("0", true)] {
        let collector = Collector::start(&["--rate-limit-per-address", "1", "--trusted-proxies", trusted]);
        let requests: Vec<_> = (0..30)
            .map(|n| {
                let request = collector.post("/v1/batch", &batch(1));
                tokio::spawn(request.header("x-forwarded-for", format!("9.9.9.9, 198.51.100.{n}")).send())
            })
            .collect();
        let mut refused = false;
        for request in requests {
            refused |= request.await.unwrap().unwrap().status() == 429;
        }
        assert_eq!(refused, some_refused, "with {trusted} trusted proxies");
    }
}

#[tokio::test]
async fn a_request_is_one_line_of_the_log() {
    let collector = Collector::start(&[]);
    let sent = batch(3).to_string();
    let request = collector.post("/v1/batch", &Value::Null).body(sent.clone()).header("x-request-id", "page-7.a_B");
    assert_eq!(request.send().await.unwrap().headers()["x-request-id"], "page-7.a_B");
    let mut ids = Vec::new();
    let long = "x".repeat(65);
    for odd in ["", "a b", "{\"a\":1}", &long, "ä"] {
        let request = collector.http.get(format!("{}/nowhere?key=tms_1", collector.url));
        let answer = request.header("x-request-id", odd.as_bytes()).send().await.unwrap();
        ids.push(answer.headers()["x-request-id"].to_str().unwrap().to_owned());
    }
    collector.logged("answered", 6).await;
    let log = collector.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lines: Vec<_> = lines.iter().filter(|line| line["message"] == "answered").collect();
    let first = lines[0];
    assert_eq!((&first["level"], &first["status"]), (&json!("INFO"), &json!(200)));
    assert!(first["ms"].as_f64().unwrap() > 0.0);
    let span = json!({"request_id": "page-7.a_B", "method": "POST", "route": "/v1/batch", "site": "shop",
        "bytes": sent.len(), "name": "request"});
    assert_eq!(first["span"], span);
    for (line, id) in lines[1..].iter().zip(&ids) {
        assert_eq!((&line["span"]["request_id"], id.len()), (&json!(id), 32));
        assert_eq!((&line["span"]["route"], &line["status"]), (&json!("none"), &json!(404)));
    }
    assert!(!log.contains("nowhere") && !log.contains("tms_1"));
}

#[tokio::test]
async fn no_key_body_or_url_is_logged_at_any_level() {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let collector = Collector::start_logging("trace", &[]);
    for key in [&collector.secret_key, &collector.write_key, "a-key-with-a-typo"] {
        let request = collector.http.post(format!("{}/track?url-in-a-query", collector.url));
        let request = request.basic_auth("shop", Some(key)).header("origin", ORIGIN);
        request.json(&json!({"name": "name-in-a-body"})).send().await.unwrap();
    }
    collector.logged("answered", 3).await;
    let log = collector.log();
    for private in
        [&collector.secret_key, &collector.write_key, "a-key-with-a-typo", "name-in-a-body", "url-in-a-query"]
    {
        assert!(!log.contains(private), "{private}");
        assert!(!log.contains(&STANDARD.encode(format!("shop:{private}"))));
    }
}

#[tokio::test]
async fn answers_are_what_they_say_and_nobody_elses() {
    let files = Folder::new();
    std::fs::write(files.0.join("index.html"), "<title>Shop</title>").unwrap();
    let collector = Collector::start(&["--static", files.0.to_str().unwrap()]);
    let cases = [("/", 200, "no-cache"), ("/health", 200, "no-store"), ("/v1/counts", 401, "no-store")];
    for (path, status, cache) in cases {
        let answer = collector.http.get(format!("{}{path}", collector.url)).send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(header("cache-control"), cache, "{path}");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("referrer-policy"), "strict-origin-when-cross-origin");
        assert!(!answer.headers().contains_key("access-control-allow-credentials"));
        assert!(header("vary").contains("origin"), "a cache must not give one origin's answer to another");
    }
}

#[tokio::test]
async fn addresses_and_user_agents_are_kept_as_the_site_wants_it() {
    for stores in [false, true] {
        let mut collector = Collector::start(&["--trusted-proxies", "1"]);
        let more: &[&str] = if stores { &["--store-ip"] } else { &[] };
        let added = site("add", &collector, &[&["cafe", "--origin", ORIGIN], more].concat());
        let (secret, write) = (said(&added, "secret_key").unwrap(), said(&added, "write_key").unwrap());
        let list = String::from_utf8(site("list", &collector, &[]).stdout).unwrap();
        assert_eq!(list.contains("stores IP addresses"), stores, "{list}");
        collector.logged(IN_USE, 1).await;
        let send = async |key: &str, event: Value| {
            let request = collector.http.post(format!("{}/v1/batch", collector.url)).basic_auth("cafe", Some(key));
            let request = request.header("x-forwarded-for", "10.0.0.1, 198.51.100.7");
            let request = if key == write { request.header("origin", ORIGIN) } else { request };
            let body = json!({"batch_id": support::uuid(), "events": [event]});
            let answer = request.header("user-agent", "u".repeat(2000)).json(&body).send().await.unwrap();
            assert_eq!(answer.json::<Value>().await.unwrap()["accepted"], 1);
        };
        send(&write, json!({"event_type": "custom", "name": "page", "ipaddress": "203.0.113.9"})).await;
        send(&secret, json!({"event_type": "custom", "name": "server", "ipaddress": "203.0.113.9"})).await;
        send(&secret, json!({"event_type": "custom", "name": "silent", "useragent": "Lynx"})).await;
        collector.stop();
        let lines = lake_lines(&collector.data_dir());
        let of = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap();
        let address = |name: &str| of(name).get("ipaddress").and_then(Value::as_str);
        assert_eq!(address("page"), stores.then_some("198.51.100.7"), "what a page says is anybody's to say");
        assert_eq!(address("server"), stores.then_some("203.0.113.9"));
        assert_eq!(address("silent"), None, "a server's own address is no visitor's");
        assert_eq!(of("page")["useragent"].as_str().unwrap().len(), 1024);
        assert_eq!(of("silent")["useragent"], "Lynx");
    }
}

#[tokio::test]
async fn metrics_are_on_a_listener_of_their_own() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let collector = Collector::start(&["--metrics-listen", &address]);
    assert_eq!(collector.post("/v1/batch", &batch(3)).send().await.unwrap().status(), 200);
    let metrics = reqwest::get(format!("http://{address}/metrics")).await.unwrap().text().await.unwrap();
    assert!(metrics.lines().any(|line| line == "tallymark_events_received_total 3"), "{metrics}");
    assert!(metrics.lines().any(|line| line.starts_with("tallymark_events_") && line.ends_with(" 3")), "{metrics}");
    let public = collector.post("/metrics", &batch(1)).send().await.unwrap();
    assert_ne!(public.status(), 200, "not where everybody can read them");
}
