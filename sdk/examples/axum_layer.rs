//! A web service whose page views are tracked by a layer. It requests a few of its own pages and then ends;
//! `examples/axum-service` is a service that keeps running.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… \
//!   cargo run -p tallymark --features tower --example axum_layer
//! ```

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use std::error::Error;
use std::time::Duration;
use tallymark::{Client, TrackPageViews};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?).build()?;

    let layer = TrackPageViews::new(client.clone())
        // As behind a proxy, which hides the scheme and the host from the service.
        .scheme("https")
        .host("shop.example")
        .session_id(|request| Some(request.headers.get("x-session-id")?.to_str().ok()?.into()));
    let app = Router::new()
        .route("/", get(|| async { Html("<h1>Tea</h1>") }))
        .route("/health", get(|| async { "no page, so no view" }))
        .layer(layer);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });

    let visitor = reqwest::Client::new();
    for path in ["", "?cup=2", "health", "nowhere"] {
        let answer = visitor.get(format!("http://{address}/{path}")).header("x-session-id", "s1").send().await?;
        println!("/{path} {}", answer.status());
    }

    let report = client.shutdown(Duration::from_secs(10)).await;
    println!("delivered {} of {} events", report.stats.delivered, report.stats.made);
    if report.is_complete() { Ok(()) } else { Err("some events could not be delivered".into()) }
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}
