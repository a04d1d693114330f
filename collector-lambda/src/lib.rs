//! The Tallymark collector: takes batches of events over HTTP and counts each event exactly once.
//!
//! Every request takes the same path, whichever front door and store are used:
//! authenticate → decode (bounded) → check each event → lake → counters → receipt.
//!
//! - [`http`] is the HTTP surface, which runs under the server and under AWS Lambda.
//! - [`ingest`] turns a request's body into a [`CheckedBatch`](ingest::checked_batch::CheckedBatch).
//! - [`store`] stores and counts it: in the embedded store, or in Firehose and DynamoDB.
//! - [`sites`] are the sites that may send and read, with their keys.

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
