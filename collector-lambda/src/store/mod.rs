//! What stands behind the collector, and in which order it is used.
//!
//! With the embedded store, one SQLite transaction holds the batch's marker with its receipt, the
//! counters, and the lines on their way to the lake, so that no crash can come between them. With any
//! other pair the lake goes first and takes each event at least once (`event_id` tells repetitions
//! apart); then the counters commit marker, receipt and counts in one transaction.

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "server")]
pub mod embedded;
pub mod query;

use crate::Error;
use crate::ingest::checked_batch::CheckedBatch;
#[cfg(feature = "aws")]
use crate::store::aws::dynamodb::DynamoDb;
#[cfg(feature = "aws")]
use crate::store::aws::firehose::Firehose;
#[cfg(feature = "server")]
use crate::store::embedded::{Embedded, Keep};
use crate::store::query::{Hours, Query};
use tallymark::Receipt;

/// Where the lines of events go.
#[derive(Debug)]
pub enum Lake {
    /// Files below the data directory.
    #[cfg(feature = "server")]
    Directory(Embedded),
    /// A Firehose delivery stream.
    #[cfg(feature = "aws")]
    Firehose(Firehose),
}

/// Where events are counted and batches remembered.
#[derive(Debug)]
pub enum Counters {
    /// The SQLite database in the data directory.
    #[cfg(feature = "server")]
    Sqlite(Embedded),
    /// A DynamoDB table.
    #[cfg(feature = "aws")]
    DynamoDb(DynamoDb),
}

/// A lake and counters that belong together.
#[derive(Debug)]
pub struct Store {
    lake: Lake,
    counters: Counters,
}

impl Store {
    /// A store of these two.
    pub fn new(lake: Lake, counters: Counters) -> Self {
        Self { lake, counters }
    }

    /// Stores and counts the batch, unless it has been already, and answers the receipt either way.
    pub async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error> {
        match (&self.lake, &self.counters) {
            #[cfg(feature = "server")]
            (Lake::Directory(embedded), Counters::Sqlite(_)) => embedded.commit(batch, Keep::LinesAndCounts).await,
            #[cfg(feature = "aws")]
            (lake, counters) => {
                if let Some(receipt) = counters.known(&batch).await? {
                    return Ok(receipt);
                }
                let retry = lake.put(&batch).await?;
                counters.commit(CheckedBatch { retry, ..batch }).await
            }
        }
    }

    /// How often a counter was counted, over all time or over some hours.
    pub async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        match &self.counters {
            #[cfg(feature = "server")]
            Counters::Sqlite(embedded) => embedded.count(query, hours).await,
            #[cfg(feature = "aws")]
            Counters::DynamoDb(table) => table.count(&query, hours).await,
        }
    }

    /// The same hour by hour, without the hours that have none.
    pub async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        match &self.counters {
            #[cfg(feature = "server")]
            Counters::Sqlite(embedded) => embedded.series(query, hours).await,
            #[cfg(feature = "aws")]
            Counters::DynamoDb(table) => table.series(&query, hours).await,
        }
    }

    /// The keys counted most, with their counts, most first. The query's key does not matter.
    pub async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        match &self.counters {
            #[cfg(feature = "server")]
            Counters::Sqlite(embedded) => embedded.top(query, limit).await,
            #[cfg(feature = "aws")]
            Counters::DynamoDb(table) => table.top(&query, limit).await,
        }
    }

    /// Whether events can be stored and counted now, as far as can be told without storing any.
    pub async fn ready(&self) -> Result<(), Error> {
        match (&self.lake, &self.counters) {
            #[cfg(feature = "server")]
            (Lake::Directory(embedded), Counters::Sqlite(_)) => embedded.ready().await,
            #[cfg(feature = "aws")]
            (lake, counters) => {
                let (lake, counters) = tokio::join!(lake.ready(), counters.ready());
                lake.and(counters)
            }
        }
    }

    /// Opens connections ahead of the first request, and logs what cannot be used.
    #[cfg(feature = "aws")]
    pub async fn warm(&self) {
        if let Err(error) = self.ready().await {
            tracing::warn!(cause = %crate::error::chain(&error), "the sinks cannot be used yet");
        }
    }

    /// Brings everything that has been accepted to its place, and takes no more.
    pub async fn close(&self) -> Result<(), Error> {
        #[cfg(feature = "server")]
        match (&self.lake, &self.counters) {
            (Lake::Directory(embedded), _) => embedded.close().await?,
            #[cfg(feature = "aws")]
            (_, Counters::Sqlite(embedded)) => embedded.close().await?,
            #[cfg(feature = "aws")]
            _ => {}
        }
        Ok(())
    }
}

#[cfg(feature = "aws")]
impl Lake {
    /// Stores the lines. Returns the indexes of events that could not be stored this time.
    async fn put(&self, batch: &CheckedBatch) -> Result<Vec<u32>, Error> {
        match self {
            #[cfg(feature = "server")]
            Self::Directory(embedded) => {
                embedded.commit(batch.clone(), Keep::Lines).await?;
                Ok(Vec::new())
            }
            Self::Firehose(stream) => stream.put(batch).await,
        }
    }

    async fn ready(&self) -> Result<(), Error> {
        match self {
            #[cfg(feature = "server")]
            Self::Directory(embedded) => embedded.ready().await,
            Self::Firehose(stream) => stream.ready().await,
        }
    }
}

#[cfg(feature = "aws")]
impl Counters {
    /// The receipt of a batch that has been counted already.
    async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        match self {
            #[cfg(feature = "server")]
            Self::Sqlite(embedded) => embedded.known(batch).await,
            Self::DynamoDb(table) => table.known(batch).await,
        }
    }

    async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error> {
        match self {
            #[cfg(feature = "server")]
            Self::Sqlite(embedded) => embedded.commit(batch, Keep::Counts).await,
            Self::DynamoDb(table) => table.commit(&batch).await,
        }
    }

    async fn ready(&self) -> Result<(), Error> {
        match self {
            #[cfg(feature = "server")]
            Self::Sqlite(embedded) => embedded.ready().await,
            Self::DynamoDb(table) => table.ready().await,
        }
    }
}
