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
//! An [`Event`] is a [`PageView`], a [`ButtonClick`], or a [`Custom`] one with properties, also
//! [those of a type of yours](Properties::new). [`track`](Client::track) checks it against the [`limits`], queues it and
//! returns its id. It never waits for the network, so it may be called from anywhere, async or not, by many threads.
//!
//! A thread of the client's own sends batches: when one is full (100 events), 5 seconds after its first event, or on a
//! [`flush`](Client::flush). Make one client and clone it; clones share the queue. A program without async takes a
//! [`blocking::Client`] from [`build_blocking`](Builder::build_blocking).
//!
//! # Events that outlive the process
//!
//! So far the queue is in memory, and gone when the process is killed. With a [spool](Builder::spool) it is in files:
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
//! What was tracked then survives `kill -9`, and the next client that is built on the directory delivers it. Several
//! processes may share one. What else it survives is said at [`Durability`].
//!
//! # What became of an event
//!
//! Mostly it is enough that [`stats`](Client::stats) accounts for every event. An importer wants to know of each:
//!
//! ```no_run
//! # #[cfg(feature = "client")]
//! # async fn example(client: tallymark::Client) -> Result<(), tallymark::Error> {
//! use tallymark::{Custom, Outcome};
//!
//! match client.track_confirmed(Custom::new("order").property("number", 17)).await? {
//!     Outcome::Delivered => println!("the collector has stored and counted it"),
//!     Outcome::Rejected { code, message } => println!("refused for good: {message} ({code})"),
//!     other => println!("{other:?}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Ask for many at once, as the example `importer` does; they travel together.
//!
//! # The end
//!
//! [`shutdown`](Client::shutdown) sends what is queued, for as long as it is given, and tells what is left:
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
//! A [recording](Client::recording) client only notes what it is told, and a [disabled](Client::disabled) one forgets
//! it. To the code that tracks, both are clients like any other:
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
//! # When something goes wrong
//!
//! A collector that is down, or a wrong key, fails no `track`: the client keeps the events and tries again. What goes
//! wrong in the background, and each loss with its [`Reason`], is told to hooks, and to `tracing`, never with a key in
//! it:
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
//! With the feature `tower`, a layer tracks a [`PageView`] for each page that is served:
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
//! A sealed batch has an id and bytes that never change, and the collector counts each id once. So a batch may be sent
//! as often as it takes. Where every event has gone is in [`Stats`], and adds up at every moment:
//! `made + adopted = delivered + rejected + dropped + queued`. All that is promised, and the test that shows it, is in
//! [`guarantees`]; what it costs is in [`performance`].
//!
//! Under the client is the [`Outbox`], a pure core: it leaves storage to a [`Spool`], and time, randomness and the network
//! to a driver. Its decisions, when to seal, send, retry, give up and drop, are those of a [`queue`] that does not even
//! know what is in a batch; the browser tracker is made of the same one.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `client` | yes | the client |
//! | `rustls` | yes | `https`; without it, plain `http` or [a reqwest client of yours](Builder::http_client) |
//! | `spool` | yes | the spool in a directory |
//! | `gzip` | | compressed bodies |
//! | `tower` | | [`TrackPageViews`], a layer for axum and other tower services |
//!
//! Without features the crate is the core alone. It depends on nothing but `uuid` and compiles to
//! `wasm32-unknown-unknown`, where the browser tracker uses it. A default build on Linux brings 96 other crates, 13 of
//! them for `rustls`; `tower` adds none, `gzip` four.
//!
//! Core and client are built and tested with Rust 1.95, and nothing older is promised.

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
