//! The table itself: its client, and single attempts at a transaction.

use crate::Error;
use crate::store::aws::{self, Backoff, CallError};
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::TransactWriteItem;
use std::collections::HashMap;
use std::error::Error as StdError;
use std::sync::{Arc, Mutex};

/// A DynamoDB table of counters and markers.
#[derive(Clone, Debug)]
pub struct DynamoDb {
    pub(crate) client: Client,
    pub(crate) table: String,
    /// How many shards there are for certain, by username and type.
    pub(super) shards: Arc<Mutex<HashMap<(String, String), u64>>>,
}

impl DynamoDb {
    /// The table of this name.
    pub fn new(config: &SdkConfig, table: impl Into<String>) -> Self {
        Self::with(aws::limits(), config, table)
    }

    /// The same for a command, which may take its time.
    #[cfg(feature = "s3")]
    pub(crate) fn patient(config: &SdkConfig, table: &str) -> Self {
        Self::with(aws::patience(), config, table)
    }

    fn with((retries, timeouts): (RetryConfig, TimeoutConfig), config: &SdkConfig, table: impl Into<String>) -> Self {
        let config =
            aws_sdk_dynamodb::config::Builder::from(config).retry_config(retries).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), table: table.into(), shards: Arc::default() }
    }

    /// Tries a transaction once. The first item is the only one with a condition. If it is worth another attempt, this
    /// waits before it returns; it is an error if it is not, or if the time is up.
    pub(crate) async fn try_transaction(
        &self,
        items: Vec<TransactWriteItem>,
        backoff: &mut Backoff,
    ) -> Result<Attempt, Error> {
        let Err(error) = self.client.transact_write_items().set_transact_items(Some(items)).send().await else {
            return Ok(Attempt::Done);
        };
        // One reason for each item, in order.
        let reasons = cancellation_reasons(&error);
        if reasons.first() == Some(&"ConditionalCheckFailed") {
            return Ok(Attempt::ConditionFailed);
        }
        let is_final = aws::is_refusal(&error) || reasons.contains(&"ValidationError");
        let contended = reasons.iter().skip(1).map(|reason| is_contended(reason)).collect();
        if is_final || !backoff.wait_after(&error).await {
            return Err(self.unavailable(error));
        }
        Ok(Attempt::Retry { contended })
    }

    pub(crate) fn unavailable<E>(&self, error: CallError<E>) -> Error
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        aws::unavailable("The counters", &format!("the table {}", self.table), error)
    }
}

/// What became of an attempt at a transaction.
pub(crate) enum Attempt {
    Done,
    /// The condition of the first item does not hold.
    ConditionFailed,
    /// Which of the other items, in order, others wrote at the same time.
    Retry {
        contended: Vec<bool>,
    },
}

/// Whether others wrote an item at the same time, so that it should be spread over more shards.
fn is_contended(reason: &str) -> bool {
    matches!(reason, "TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded")
}

fn cancellation_reasons(error: &CallError<TransactWriteItemsError>) -> Vec<&str> {
    match error.as_service_error() {
        Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
            cancelled.cancellation_reasons().iter().map(|reason| reason.code().unwrap_or_default()).collect()
        }
        _ => Vec::new(),
    }
}
