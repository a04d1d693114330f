//! What is behind the collector: where lines are stored and events counted.
//!
//! With the embedded store, one SQLite transaction holds the batch's marker with its receipt, the counters, and the
//! lines that wait for the lake, so that no crash can come between them. Any other pair of lake and counters is
//! separate: see `separate.rs`.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "server")]
pub mod embedded;
pub mod query;
#[cfg(feature = "aws")]
mod separate;

use crate::Error;
use crate::ingest::checked_batch::CheckedBatch;
#[cfg(feature = "aws")]
use crate::store::aws::{dynamodb::DynamoDb, firehose::Firehose};
#[cfg(feature = "server")]
use crate::store::embedded::Embedded;
use crate::store::query::{Hours, Query};
#[cfg(feature = "aws")]
use crate::store::separate::Separate;
use tallymark::Receipt;

/// A lake and counters that belong together.
#[derive(Debug)]
pub struct Store(Backend);

#[derive(Debug)]
enum Backend {
    #[cfg(feature = "server")]
    Embedded(Embedded),
    #[cfg(feature = "aws")]
    Aws(Separate<Firehose, DynamoDb>),
    #[cfg(all(feature = "aws", feature = "server"))]
    DirectoryAndDynamoDb(Separate<Embedded, DynamoDb>),
    #[cfg(all(feature = "aws", feature = "server"))]
    FirehoseAndSqlite(Separate<Firehose, Embedded>),
}

/// Does the same with whichever backend it is.
macro_rules! each {
    ($store:expr, $backend:ident => $does:expr) => {
        match &$store.0 {
            #[cfg(feature = "server")]
            Backend::Embedded($backend) => $does,
            #[cfg(feature = "aws")]
            Backend::Aws($backend) => $does,
            #[cfg(all(feature = "aws", feature = "server"))]
            Backend::DirectoryAndDynamoDb($backend) => $does,
            #[cfg(all(feature = "aws", feature = "server"))]
            Backend::FirehoseAndSqlite($backend) => $does,
        }
    };
}

impl Store {
    /// Everything on one machine: the directory lake and the SQLite counters of one data directory.
    #[cfg(feature = "server")]
    pub fn embedded(embedded: Embedded) -> Self {
        Self(Backend::Embedded(embedded))
    }

    /// A Firehose delivery stream as the lake, and a DynamoDB table that counts.
    #[cfg(feature = "aws")]
    pub fn aws(lake: Firehose, counters: DynamoDb) -> Self {
        Self(Backend::Aws(Separate { lake, counters }))
    }

    /// The directory lake, and a DynamoDB table that counts.
    #[cfg(all(feature = "aws", feature = "server"))]
    pub fn directory_and_dynamodb(lake: Embedded, counters: DynamoDb) -> Self {
        Self(Backend::DirectoryAndDynamoDb(Separate { lake, counters }))
    }

    /// A Firehose delivery stream as the lake, and SQLite counters.
    #[cfg(all(feature = "aws", feature = "server"))]
    pub fn firehose_and_sqlite(lake: Firehose, counters: Embedded) -> Self {
        Self(Backend::FirehoseAndSqlite(Separate { lake, counters }))
    }

    /// Stores and counts the batch, unless that was done before, and answers its receipt either way.
    pub async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error> {
        match &self.0 {
            #[cfg(feature = "server")]
            Backend::Embedded(embedded) => embedded.commit(batch, embedded::Keep::LinesAndCounts).await,
            #[cfg(feature = "aws")]
            Backend::Aws(separate) => separate.commit(batch).await,
            #[cfg(all(feature = "aws", feature = "server"))]
            Backend::DirectoryAndDynamoDb(separate) => separate.commit(batch).await,
            #[cfg(all(feature = "aws", feature = "server"))]
            Backend::FirehoseAndSqlite(separate) => separate.commit(batch).await,
        }
    }

    /// How often a counter was counted, over all time or over some hours.
    pub async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        each!(self, backend => backend.count(query, hours).await)
    }

    /// The counts of each hour that has any, with the hour, in order.
    pub async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        each!(self, backend => backend.series(query, hours).await)
    }

    /// The keys counted most, with their counts, most first. The query's own key is ignored.
    pub async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        each!(self, backend => backend.top(query, limit).await)
    }

    /// Whether events can be stored and counted now, as far as can be told without storing any.
    pub async fn ready(&self) -> Result<(), Error> {
        each!(self, backend => backend.ready().await)
    }

    /// Opens connections ahead of the first request, and logs what cannot be used.
    #[cfg(feature = "aws")]
    pub async fn warm(&self) {
        if let Err(error) = self.ready().await {
            tracing::warn!(cause = %crate::error::chain(&error), "the store cannot be used yet");
        }
    }

    /// The data directory, where one is part of this store.
    #[cfg(feature = "server")]
    pub fn data_directory(&self) -> Option<&Embedded> {
        match &self.0 {
            Backend::Embedded(embedded) => Some(embedded),
            #[cfg(feature = "aws")]
            Backend::Aws(_) => None,
            #[cfg(feature = "aws")]
            Backend::DirectoryAndDynamoDb(separate) => Some(&separate.lake),
            #[cfg(feature = "aws")]
            Backend::FirehoseAndSqlite(separate) => Some(&separate.counters),
        }
    }

    /// Moves everything that was accepted to its place, and accepts no more.
    #[cfg(feature = "server")]
    pub async fn close(&self) -> Result<(), Error> {
        match self.data_directory() {
            Some(embedded) => embedded.close().await,
            None => Ok(()),
        }
    }

    /// Resolves once the store is of no use any more, with the reason: the process should end then. See
    /// [`Embedded::failed`].
    #[cfg(feature = "server")]
    pub async fn failed(&self) -> Error {
        match self.data_directory() {
            Some(embedded) => embedded.failed().await,
            None => std::future::pending().await,
        }
    }
}
