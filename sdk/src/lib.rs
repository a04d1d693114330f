//! Typed events, batched and delivered exactly once to a Tallymark collector.
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example() -> Result<(), tallymark::Error> {
//! use std::time::Duration;
//! use tallymark::{ButtonClick, Client, Custom, PageView};
//!
//! let client = Client::builder("https://collect.shop.example", "shop", "tms_…").build()?;
//! client.track(PageView::new("https://shop.example/").title("Shop").session_id("xyz"))?;
//! client.track(ButtonClick::new("buy").session_id("xyz"))?;
//! client.track(Custom::new("charge").property("value", 100))?;
//! client.shutdown(Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
//!
//! An [`Event`] is a [`PageView`], a [`ButtonClick`], or a [`Custom`] event with properties, which may come from [any
//! type that implements `Serialize`](Properties::new). [`track`](Client::track) validates it against the [`limits`],
//! queues it and returns its id. It never waits for the network, so it can be called from async and sync code and from
//! many threads.
//!
//! The client sends batches in a thread of its own: when a batch is full (100 events), 5 seconds after its first event,
//! or on a [`flush`](Client::flush). Build one client and clone it; clones share the queue. Programs without async use
//! a [`blocking::Client`] from [`build_blocking`](Builder::build_blocking).
//!
//! # Events that outlive the process
//!
//! By default the queue is in memory and ends with the process. With a [spool](Builder::spool) it is in files:
//!
//! ```no_run
//! # #[cfg(all(feature = "client", feature = "spool"))]
//! # fn example() -> Result<(), tallymark::Error> {
//! # use tallymark::{Client, Durability};
//! let client = Client::builder("https://collect.shop.example", "shop", "tms_…")
//!     .spool("/var/lib/shop/events")
//!     .durability(Durability::Process) // the default; `Power` syncs the disk as well
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! Tracked events then survive `kill -9`, and the next client that uses the directory delivers them. Several processes
//! may share a directory. [`Durability`] says what else the events survive.
//!
//! # The outcome of an event
//!
//! [`stats`](Client::stats) accounts for every event, which is enough for most services. An importer needs the outcome
//! of each event:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example(client: tallymark::Client) -> Result<(), tallymark::Error> {
//! use tallymark::{Custom, Outcome};
//!
//! match client.track_confirmed(Custom::new("order").property("number", 17)).await? {
//!     Outcome::Delivered => println!("the collector has stored and counted it"),
//!     Outcome::Rejected { code, message } => println!("rejected: {message} ({code})"),
//!     other => println!("{other:?}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Wait for many outcomes at the same time, as the example `importer` does: their events are sent together.
//!
//! # Shutdown
//!
//! [`shutdown`](Client::shutdown) sends what is queued for as long as you allow, and reports what is left:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example(client: tallymark::Client) {
//! # use std::time::Duration;
//! let report = client.shutdown(Duration::from_secs(10)).await;
//! if !report.is_complete() {
//!     eprintln!("{} for the next process, {} lost", report.on_disk(), report.in_memory());
//! }
//! # }
//! ```
//!
//! # Tests
//!
//! A [recording](Client::recording) client records events instead of sending them, and a [disabled](Client::disabled)
//! client discards them. The code that tracks needs no changes:
//!
//! ```
//! # #[cfg(feature = "client")]
//! # fn example() -> Result<(), tallymark::Error> {
//! use tallymark::{ButtonClick, Client, Error};
//!
//! fn buy(client: &Client) -> Result<(), Error> {
//!     client.track(ButtonClick::new("buy").session_id("xyz"))?;
//!     Ok(())
//! }
//!
//! let (client, recording) = Client::recording();
//! buy(&client)?;
//! assert_eq!(recording.events(), [ButtonClick::new("buy").session_id("xyz").into()]);
//!
//! buy(&Client::disabled())?;
//! # Ok(())
//! # }
//! # #[cfg(feature = "client")]
//! # example().unwrap();
//! ```
//!
//! # Errors in the background
//!
//! If the collector is down or the key is wrong, `track` still succeeds: the client keeps the events and retries. It
//! reports such errors, and each loss with its [`Reason`], to hooks and to `tracing`. Neither ever contains a key:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # fn example() -> Result<(), tallymark::Error> {
//! # use tallymark::Client;
//! let client = Client::builder("https://collect.shop.example", "shop", "tms_…")
//!     .on_error(|error| eprintln!("{error}"))
//!     .on_loss(|reason, events| eprintln!("{events} events lost: {reason:?}"))
//!     .build()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Page views of a web service
//!
//! With the feature `tower`, a layer tracks a [`PageView`] for each page that the service answers with:
//!
//! ```
//! # #[cfg(feature = "tower")]
//! # fn example() -> axum::Router {
//! use axum::{Router, response::Html, routing::get};
//! use tallymark::{Client, TrackPageViews};
//!
//! let client = Client::disabled();
//! Router::new()
//!     .route("/", get(|| async { Html("<h1>Tea</h1>") }))
//!     .layer(TrackPageViews::new(client).scheme("https"))
//! # }
//! ```
//!
//! # Delivery
//!
//! A sealed batch has an id and bytes that never change, and the collector counts each batch id once. So the client can
//! send a batch as often as needed. [`Stats`] accounts for every event at all times: `made + adopted = delivered +
//! rejected + dropped + queued`. See [`guarantees`] for all promises and the tests that prove them, and [`performance`]
//! for the costs.
//!
//! The client drives an [`Outbox`], which does no I/O: it stores batches in a [`Spool`] and leaves time, random numbers
//! and the network to its driver. Inside the outbox a [`queue`] decides when to seal, send, retry, give up and drop.
//! The browser tracker uses the same queue.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `client` | yes | the client |
//! | `rustls` | yes | `https`; without it, `http` only or [your own HTTP client](Builder::http_client) |
//! | `spool` | yes | the spool in a directory |
//! | `gzip` | | compressed bodies |
//! | `tower` | | `TrackPageViews`, a layer for axum and other tower services |
//! | `bundled-roots` | | Mozilla's root certificates, for `https` on machines without any, such as slim containers |
//!
//! Without features the crate is the core: events, wire types, outbox and queue. It depends on `serde`, `serde_json`
//! and `uuid`, does no I/O, and compiles to `wasm32-unknown-unknown`, where the browser tracker uses it.
//!
//! # Supported Rust versions
//!
//! Rust 1.89 or newer. The crate uses file locks, which were stabilised in 1.89, and `uuid` needs the same version.
//! Each change is built with Rust 1.95; for older versions, clippy checks that the standard library has what the crate
//! uses.

#[cfg(feature = "client")]
mod client;
mod core;
mod event;
mod spool;
pub mod wire;

#[doc = include_str!("../GUARANTEES.md")]
pub mod guarantees {}

#[doc = include_str!("../PERFORMANCE.md")]
pub mod performance {}

pub use self::core::id::{BatchId, EventId, Random};
pub use self::core::loss::{Losses, Reason};
pub use self::core::outbox::{Outbox, Stats};
pub use self::core::retry::Backoff;
pub use self::core::{limits, outbox, queue};
#[cfg(feature = "client")]
pub use client::{Builder, Client, Error, Outcome, Recording, Report, blocking};
#[cfg(feature = "tower")]
pub use client::{ResponseFuture, TrackPageViews, Tracked};
pub use event::{ButtonClick, Custom, Encoded, Event, InvalidEvent, PageView, Properties};
#[cfg(feature = "spool")]
pub use spool::{DirectorySpool, Durability};
pub use spool::{MemorySpool, Recovered, Segment, Spool};
pub use wire::{Batch, Receipt, Rejected};

#[cfg(all(doctest, feature = "client", feature = "spool"))]
#[doc = include_str!("../README.md")]
struct Readme;
