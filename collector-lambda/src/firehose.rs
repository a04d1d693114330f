//! The lake behind a Firehose delivery stream.
//!
//! A call that succeeds may still have failed for some of its records. Only those are sent again, so that
//! their neighbours are not stored twice; an event that Firehose has not named as stored is never taken
//! for stored.

use crate::Error;
use crate::aws::{self, Backoff, CallError};
use crate::batch::{Accepted, Prepared};
use aws_config::SdkConfig;
use aws_sdk_firehose::Client;
use aws_sdk_firehose::operation::put_record_batch::PutRecordBatchError;
use aws_sdk_firehose::primitives::Blob;
use aws_sdk_firehose::types::Record;

/// Records in one call.
const CALL_RECORDS: usize = 500;
/// Bytes of all records in one call.
const CALL_BYTES: usize = 4 * 1024 * 1024;

/// A Firehose delivery stream.
#[derive(Clone, Debug)]
pub struct Firehose {
    client: Client,
    name: String,
}

impl Firehose {
    /// The delivery stream of this name.
    pub fn new(config: &SdkConfig, name: impl Into<String>) -> Self {
        let (retries, timeouts) = aws::limits();
        let config =
            aws_sdk_firehose::config::Builder::from(config).retry_config(retries).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), name: name.into() }
    }

    /// Stores the lines of a batch, each at least once. Returns the indexes of events that may not be
    /// stored: Firehose has refused them until the time was up, or has not answered.
    pub async fn put(&self, batch: &Prepared) -> Result<Vec<u32>, Error> {
        let mut backoff = Backoff::new();
        let mut left: Vec<&Accepted> = batch.events.iter().collect();
        loop {
            let mut failed = Vec::new();
            for events in calls(&left) {
                failed.extend(self.call(events).await?);
            }
            if failed.is_empty() || !backoff.wait().await {
                return Ok(failed.iter().map(|event| event.index).collect());
            }
            left = failed;
        }
    }

    /// Sends the lines of these events once. Returns the events that may not be stored.
    async fn call<'a>(&self, events: &[&'a Accepted]) -> Result<Vec<&'a Accepted>, Error> {
        let records = events.iter().map(|event| record(event)).collect::<Result<_, _>>()?;
        let call = self.client.put_record_batch().delivery_stream_name(&self.name).set_records(Some(records));
        let answer = match call.send().await {
            Ok(answer) => answer,
            Err(error) if aws::is_refusal(&error) => return Err(self.unavailable(error)),
            Err(error) => {
                let cause = crate::error::chain(&self.unavailable(error));
                tracing::warn!(%cause, records = events.len(), "a call to the lake failed");
                return Ok(events.to_vec());
            }
        };
        // The answer has one entry for each record, in order. What it has none for may not be stored.
        let entries = answer.request_responses();
        let is_stored = |at: usize| {
            entries.get(at).is_some_and(|entry| entry.error_code().is_none() && entry.record_id().is_some())
        };
        let failed: Vec<_> =
            events.iter().enumerate().filter(|&(at, _)| !is_stored(at)).map(|(_, &event)| event).collect();
        if !failed.is_empty() {
            let code = entries.iter().find_map(|entry| entry.error_code()).unwrap_or_default();
            tracing::warn!(code, failed = failed.len(), records = events.len(), "the lake did not take all records");
        }
        Ok(failed)
    }

    /// Opens a connection ahead of the first request, and says so if the stream cannot be used.
    pub(crate) async fn warm(&self) {
        if let Err(error) = self.client.describe_delivery_stream().delivery_stream_name(&self.name).send().await {
            let cause = crate::error::chain(&aws::unavailable("The lake", &self.sink(), error));
            tracing::warn!(%cause, "cannot look at the lake");
        }
    }

    fn unavailable(&self, error: CallError<PutRecordBatchError>) -> Error {
        aws::unavailable("The lake", &self.sink(), error)
    }

    fn sink(&self) -> String {
        format!("the delivery stream {}", self.name)
    }
}

fn record(event: &Accepted) -> Result<Record, Error> {
    let mut line = event.line.clone();
    line.push('\n');
    Record::builder()
        .data(Blob::new(line))
        .build()
        .map_err(|error| Error::config("a record cannot be made").because(error))
}

/// Cuts the events so that each piece fits one call.
fn calls<'a, 'b>(mut events: &'b [&'a Accepted]) -> impl Iterator<Item = &'b [&'a Accepted]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |event: &&&Accepted| {
            bytes += event.line.len() + 1;
            bytes <= CALL_BYTES
        };
        // One always goes: a line is far smaller than a call.
        let fitting = events.iter().take(CALL_RECORDS).take_while(fits).count().max(1);
        let (call, rest) = events.split_at_checked(fitting)?;
        events = rest;
        Some(call)
    })
}
