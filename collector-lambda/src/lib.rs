//! The Tallymark collector: takes batches of events over HTTP and counts each event exactly once.
//!
//! One path, whatever the front door and whatever stands behind it:
//! authenticate → decode (bounded) → validate each event → lake → counters → receipt.
//!
//! - [`routes`] is the HTTP surface; it runs under the server and under AWS Lambda.
//! - [`ingest`] turns a request's body into a [`Prepared`](batch::Prepared) batch and commits it.
//! - [`openapi`] describes it, and `GET /docs` shows that to people.
//! - [`store`] says what stands behind: the embedded store, Firehose, DynamoDB.

pub mod auth;
#[cfg(feature = "aws")]
mod aws;
pub mod batch;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
#[cfg(feature = "server")]
mod compare;
pub mod counts;
#[cfg(feature = "server")]
mod database;
mod docs;
#[cfg(feature = "server")]
mod drain;
#[cfg(feature = "aws")]
pub mod dynamodb;
#[cfg(feature = "server")]
pub mod embedded;
mod error;
#[cfg(feature = "lambda")]
mod event;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(feature = "aws")]
pub mod firehose;
pub mod ingest;
#[cfg(feature = "server")]
pub mod lake;
#[cfg(feature = "lambda")]
pub mod lambda;
mod log;
#[cfg(feature = "server")]
pub mod metrics;
pub mod openapi;
pub mod problem;
pub mod rate;
#[cfg(feature = "server")]
mod reconcile;
#[cfg(feature = "s3")]
mod reconcile_aws;
#[cfg(feature = "server")]
mod reload;
pub mod request;
#[cfg(feature = "server")]
mod retention;
pub mod routes;
#[cfg(feature = "server")]
pub mod server;
pub mod site;
pub mod store;

pub use error::{Error, chain};

/// Now, in milliseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
