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
//! # What is in it
//!
//! - [`Event`] and its kinds, with the [`limits`] that clients and the collector share.
//! - [`Outbox`], the pure core: it decides when to seal, send, retry, give up and drop, and leaves storage to a
//!   [`Spool`], and time, randomness and the network to a driver.
//! - [`Client`], such a driver over reqwest, with a thread of its own; [`blocking::Client`] for programs without async.
//! - [`DirectorySpool`], which keeps events in files until they are delivered.
//!
//! # Features
//!
//! | feature | default | |
//! |---|---|---|
//! | `client` | yes | the client |
//! | `spool` | yes | the spool in a directory |
//! | `gzip` | | compressed bodies |
//! | `tower` | | [`TrackPageViews`], a layer for axum and other tower services |
//! | `json` | with `client` | the wire types, read and written with serde |
//!
//! Without features the crate is the core alone. It depends on nothing but `uuid` and compiles to
//! `wasm32-unknown-unknown`, where the browser tracker uses it. A default build on Linux brings 97 other crates, 13 of
//! them for TLS; `tower` adds none, `gzip` four.
//!
//! # Delivery
//!
//! A sealed batch has an id and bytes that never change, and the collector counts each id once. So a batch may be sent
//! as often as it takes. Where every event has gone is in [`Stats`], and adds up at every moment:
//! `made + adopted = delivered + rejected + dropped + queued`.
//!
//! Without a spool the queue is in memory, and what is queued when the process is killed is lost. With
//! [`Builder::spool`] it is in files, and the next process to use the directory delivers it; [`Durability`] says what
//! that survives. All that is promised, and the test that shows it, is in [`guarantees`].

#[cfg(feature = "client")]
pub mod blocking;
mod body;
#[cfg(feature = "client")]
mod builder;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "spool")]
pub mod directory;
#[cfg(feature = "client")]
mod error;
mod event;
mod id;
mod json;
#[cfg(feature = "tower")]
mod layer;
pub mod limits;
mod loss;
pub mod outbox;
mod retry;
#[cfg(feature = "client")]
mod sender;
mod spool;
#[cfg(feature = "client")]
mod storage;
#[cfg(feature = "json")]
pub mod wire;
#[cfg(feature = "client")]
mod worker;

#[doc = include_str!("../GUARANTEES.md")]
pub mod guarantees {}

#[cfg(feature = "client")]
pub use builder::Builder;
#[cfg(feature = "client")]
pub use client::{Client, Outcome, Recording, Report};
#[cfg(feature = "spool")]
pub use directory::{DirectorySpool, Durability};
#[cfg(feature = "client")]
pub use error::Error;
pub use event::{ButtonClick, Custom, Encoded, Event, InvalidEvent, PageView, Properties};
pub use id::{BatchId, EventId, Random};
#[cfg(feature = "tower")]
pub use layer::{ResponseFuture, TrackPageViews, Tracked};
pub use loss::{Losses, Reason};
pub use outbox::{Outbox, Stats};
pub use retry::Backoff;
pub use spool::{MemorySpool, Recovered, Segment, Spool};
#[cfg(feature = "json")]
pub use wire::{Batch, Receipt, Rejected};

#[cfg(all(doctest, feature = "client"))]
#[doc = include_str!("../../README.md")]
struct Readme;
