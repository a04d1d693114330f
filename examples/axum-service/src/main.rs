//! A small web service that tracks its own requests and a button.
//!
//! ```sh
//! TALLYMARK_ENDPOINT=http://127.0.0.1:8787 TALLYMARK_USERNAME=shop TALLYMARK_KEY=tms_… cargo run -p axum-service
//! ```
//!
//! Then open <http://127.0.0.1:3000/> and press the button. `LISTEN` changes the address.

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{self, Next};
use axum::response::{Html, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use std::error::Error;
use std::time::Duration;
use tallymark::{ButtonClick, Client, PageView};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let client = Client::builder(setting("ENDPOINT")?, setting("USERNAME")?, setting("KEY")?).build()?;

    let app = Router::new()
        .route("/", get(home))
        .route("/press/{button}", post(press))
        .route_layer(middleware::from_fn_with_state(client.clone(), track_page_views))
        .with_state(client.clone());

    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".into());
    let listener = tokio::net::TcpListener::bind(listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).with_graceful_shutdown(stop_signal()).await?;

    // What is still in memory is delivered before the process ends, or the report says what is not.
    let report = client.shutdown(Duration::from_secs(10)).await;
    println!("delivered {} of {} events", report.stats.delivered, report.stats.made);
    if report.is_complete() { Ok(()) } else { Err("some events could not be delivered".into()) }
}

fn setting(name: &str) -> Result<String, String> {
    let name = format!("TALLYMARK_{name}");
    std::env::var(&name).map_err(|_| format!("set {name}"))
}

/// The visit a request belongs to. A real service would take it from its own session.
#[derive(Clone)]
struct Session(String);

/// Tracks every page that is answered with success. `track` does not wait, so a request costs no more.
async fn track_page_views(State(client): State<Client>, mut request: Request, next: Next) -> Response {
    let session = text(request.headers(), "x-session-id").unwrap_or("anonymous").to_owned();
    request.extensions_mut().insert(Session(session.clone()));
    let view = (request.method() == Method::GET).then(|| {
        let host = text(request.headers(), header::HOST.as_str()).unwrap_or("localhost");
        let mut view = PageView::new(format!("http://{host}{}", request.uri())).session_id(session);
        if let Some(referrer) = text(request.headers(), header::REFERER.as_str()) {
            view = view.referral_url(referrer);
        }
        if let Some(useragent) = text(request.headers(), header::USER_AGENT.as_str()) {
            view = view.useragent(useragent);
        }
        view
    });
    let response = next.run(request).await;
    if let (Some(view), true) = (view, response.status().is_success()) {
        // An event that breaks a limit, or a full queue, is no reason to fail a request.
        if let Err(error) = client.track(view) {
            eprintln!("not tracked: {error}");
        }
    }
    response
}

async fn home() -> Html<&'static str> {
    Html(
        r#"<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Tea</title>
        <h1>Tea</h1><form method="post" action="/press/order"><button>Order a cup</button></form></html>"#,
    )
}

async fn press(
    State(client): State<Client>,
    Extension(Session(session)): Extension<Session>,
    Path(button): Path<String>,
) -> Result<Redirect, String> {
    client.track(ButtonClick::new(button).session_id(session)).map_err(|error| error.to_string())?;
    Ok(Redirect::to("/"))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
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
