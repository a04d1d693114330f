//! A small web service that tracks its own requests and a button.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… cargo run -p axum-service
//! ```
//!
//! Then open <http://127.0.0.1:3000/> and press the button. `LISTEN` changes the address.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use std::error::Error;
use std::time::Duration;
use tallymark::{ButtonClick, Client, TrackPageViews};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?).build()?;

    let app = Router::new()
        .route("/", get(home))
        .route("/press/{button}", post(press))
        .layer(TrackPageViews::new(client.clone()).session_id(|request| Some(session(&request.headers))))
        .with_state(client.clone());

    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(stop_signal()).await?;

    // Deliver what is still in memory before the process ends.
    let report = client.shutdown(Duration::from_secs(10)).await;
    println!("delivered {} of {} events", report.stats.delivered, report.stats.made);
    if report.is_complete() { Ok(()) } else { Err("some events could not be delivered".into()) }
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}

/// The session of a request. A real service would use its own.
fn session(headers: &HeaderMap) -> String {
    headers.get("x-session-id").and_then(|id| id.to_str().ok()).unwrap_or("anonymous").into()
}

async fn home() -> Html<&'static str> {
    Html(
        r#"<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Tea</title>
        <h1>Tea</h1><form method="post" action="/press/order"><button>Order a cup</button></form></html>"#,
    )
}

async fn press(
    State(client): State<Client>,
    Path(button): Path<String>,
    headers: HeaderMap,
) -> Result<Redirect, String> {
    client.track(ButtonClick::new(button).session_id(session(&headers))).map_err(|error| error.to_string())?;
    Ok(Redirect::to("/"))
}

async fn stop_signal() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => drop(terminate.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminated => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
