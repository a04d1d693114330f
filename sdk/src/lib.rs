//! Typed events, batched and delivered exactly once to a Tallymark collector.

mod body;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod error;
mod event;
mod id;
mod json;
pub mod limits;
mod loss;
pub mod outbox;
mod retry;
mod spool;
#[cfg(feature = "json")]
pub mod wire;

#[cfg(feature = "client")]
pub use client::{Builder, Client, Report};
#[cfg(feature = "client")]
pub use error::Error;
pub use event::{ButtonClick, Custom, Encoded, Event, InvalidEvent, PageView, Properties};
pub use id::{BatchId, EventId, Random};
pub use loss::{Losses, Reason};
pub use outbox::{Outbox, Stats};
pub use retry::Backoff;
pub use spool::{MemorySpool, Segment, Spool};
#[cfg(feature = "json")]
pub use wire::{Batch, Receipt, Rejected};
