//! A lake and counters that know nothing of each other.
//!
//! The lake goes first and stores each event at least once; `event_id` tells repetitions apart. Then the counters commit
//! marker, receipt and counts in one transaction.

use crate::Error;
use crate::ingest::checked_batch::CheckedBatch;
use crate::store::aws::dynamodb::DynamoDb;
use crate::store::aws::firehose::Firehose;
#[cfg(feature = "server")]
use crate::store::embedded::{Embedded, Keep};
use crate::store::query::{Hours, Query};
use tallymark::Receipt;

/// Where the lines of events go.
pub(crate) trait Lake {
    /// Stores the lines. Returns the indexes of events that could not be stored this time.
    async fn put(&self, batch: &CheckedBatch) -> Result<Vec<u32>, Error>;
    async fn ready(&self) -> Result<(), Error>;
}

/// Where events are counted and batches remembered.
pub(crate) trait Counters {
    /// The receipt of a batch that was counted before.
    async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error>;
    async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error>;
    async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error>;
    async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error>;
    async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error>;
    async fn ready(&self) -> Result<(), Error>;
}

#[derive(Debug)]
pub(crate) struct Separate<L, C> {
    pub(crate) lake: L,
    pub(crate) counters: C,
}

impl<L: Lake, C: Counters> Separate<L, C> {
    pub(crate) async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error> {
        if batch.repeatable
            && let Some(receipt) = self.counters.known(&batch).await?
        {
            return Ok(receipt);
        }
        let retry = self.lake.put(&batch).await?;
        self.counters.commit(CheckedBatch { retry, ..batch }).await
    }

    pub(crate) async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        self.counters.count(query, hours).await
    }

    pub(crate) async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        self.counters.series(query, hours).await
    }

    pub(crate) async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        self.counters.top(query, limit).await
    }

    pub(crate) async fn ready(&self) -> Result<(), Error> {
        let (lake, counters) = tokio::join!(self.lake.ready(), self.counters.ready());
        lake.and(counters)
    }
}

impl Lake for Firehose {
    async fn put(&self, batch: &CheckedBatch) -> Result<Vec<u32>, Error> {
        self.put(batch).await
    }

    async fn ready(&self) -> Result<(), Error> {
        self.ready().await
    }
}

impl Counters for DynamoDb {
    async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        self.known(batch).await
    }

    async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error> {
        self.commit(&batch).await
    }

    async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        self.count(&query, hours).await
    }

    async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        self.series(&query, hours).await
    }

    async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        self.top(&query, limit).await
    }

    async fn ready(&self) -> Result<(), Error> {
        self.ready().await
    }
}

/// The directory lake, where something else counts.
#[cfg(feature = "server")]
impl Lake for Embedded {
    async fn put(&self, batch: &CheckedBatch) -> Result<Vec<u32>, Error> {
        self.commit(batch.clone(), Keep::Lines).await?;
        Ok(Vec::new())
    }

    async fn ready(&self) -> Result<(), Error> {
        self.ready().await
    }
}

/// The SQLite counters, where the lake is elsewhere.
#[cfg(feature = "server")]
impl Counters for Embedded {
    async fn known(&self, batch: &CheckedBatch) -> Result<Option<Receipt>, Error> {
        self.known(batch).await
    }

    async fn commit(&self, batch: CheckedBatch) -> Result<Receipt, Error> {
        self.commit(batch, Keep::Counts).await
    }

    async fn count(&self, query: Query, hours: Option<Hours>) -> Result<u64, Error> {
        self.count(query, hours).await
    }

    async fn series(&self, query: Query, hours: Hours) -> Result<Vec<(u64, u64)>, Error> {
        self.series(query, hours).await
    }

    async fn top(&self, query: Query, limit: u32) -> Result<Vec<(String, u64)>, Error> {
        self.top(query, limit).await
    }

    async fn ready(&self) -> Result<(), Error> {
        self.ready().await
    }
}
