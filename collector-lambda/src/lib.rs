//! The Tallymark collector: takes batches of events over HTTP and counts each event exactly once.
//!
//! One path, whatever the front door and whatever stands behind it:
//! authenticate → decode (bounded) → validate each event → lake → counters → receipt.
//!
//! - [`http`] is the HTTP surface; it runs under the server and under AWS Lambda.
//! - [`ingest`] turns a request's body into a [`CheckedBatch`](ingest::checked_batch::CheckedBatch) batch and commits it.
//! - [`http::openapi`] describes it, and `GET /docs` shows that to people.
//! - [`store`] says what stands behind: the embedded store, Firehose, DynamoDB.

#[cfg(feature = "server")]
pub mod cli;
mod error;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(feature = "http")]
pub mod http;
pub mod ingest;
#[cfg(feature = "lambda")]
pub mod lambda;
#[cfg(feature = "server")]
mod maintenance;
#[cfg(feature = "server")]
pub mod server;
pub mod sites;
pub mod store;
pub mod time;

pub use error::{Error, chain};
