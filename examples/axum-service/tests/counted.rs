//! The service runs against a real collector, and its pages and presses are counted.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tallymark_collector::http::state::Collector;
use tallymark_collector::http::{self, Options};
use tallymark_collector::server::KEEP_ALIVE;
use tallymark_collector::sites::{self, Sites};
use tallymark_collector::store::Store;
use tallymark_collector::store::embedded::Embedded;
use tallymark_collector::store::query::Query;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_requests_and_its_button_are_counted() {
    let folder = std::env::temp_dir().join(format!("tallymark-axum-service-{}", std::process::id()));
    let sites = folder.join("sites.json");
    let keys = sites::file::add(&sites, "tea", &[], false, |_| Ok(())).unwrap();
    let embedded = Embedded::open(&folder.join("data"), Duration::from_secs(60)).unwrap();
    let store = Store::embedded(embedded);
    let collector = Arc::new(Collector { sites: Sites::from_file(&sites).unwrap(), store });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let router = http::router(Arc::clone(&collector), Options::BARE);
    tokio::spawn(tallymark_collector::server::serve(listener, router, KEEP_ALIVE, std::future::pending()));

    let mut service = Command::new(env!("CARGO_BIN_EXE_axum-service"))
        .env("TALLYMARK_ENDPOINT", &endpoint)
        .env("TALLYMARK_USERNAME", "tea")
        .env("TALLYMARK_KEY", &keys.secret_key)
        .env("LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = BufReader::new(service.stdout.take().unwrap()).lines();
    let url = printed.next().unwrap().unwrap().replace("listening on ", "");

    let http = reqwest::Client::new();
    for _ in 0..3 {
        assert_eq!(http.get(format!("{url}/")).send().await.unwrap().status(), 200);
    }
    assert_eq!(http.get(format!("{url}/nowhere")).send().await.unwrap().status(), 404);
    // Pressing leads back to the page, which is a fourth view.
    assert_eq!(http.post(format!("{url}/press/order")).send().await.unwrap().status(), 200);

    assert!(Command::new("kill").args(["-TERM", &service.id().to_string()]).status().unwrap().success());
    assert!(service.wait().unwrap().success());
    assert_eq!(printed.next().unwrap().unwrap(), "delivered 5 of 5 events");

    let count = |event_type: &str, key: String| {
        let query = Query { username: "tea".into(), event_type: event_type.into(), counter_key: key };
        collector.store.count(query, None)
    };
    assert_eq!(count("page_view", format!("{url}/")).await.unwrap(), 4);
    assert_eq!(count("page_view", String::new()).await.unwrap(), 4);
    assert_eq!(count("button_click", "order".into()).await.unwrap(), 1);
    collector.store.close().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
}
