//! The client: drives the outbox with a clock, random numbers, a thread and HTTP.

mod async_client;
pub mod blocking;
mod builder;
mod clock;
mod diagnosis;
mod error;
#[cfg(feature = "gzip")]
mod gzip;
mod handle;
mod hooks;
mod outcome;
#[cfg(feature = "tower")]
mod page_views;
mod random;
mod recording;
mod report;
mod sender;
mod sender_config;
mod shared;
mod storage;
mod worker;

pub use async_client::Client;
pub use builder::Builder;
pub use error::Error;
pub use outcome::Outcome;
#[cfg(feature = "tower")]
pub use page_views::{ResponseFuture, TrackPageViews, Tracked};
pub use recording::Recording;
pub use report::Report;
