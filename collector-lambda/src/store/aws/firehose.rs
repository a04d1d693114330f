//! The lake behind a Firehose delivery stream.
//!
//! A record holds several lines of one batch, each with its newline. Firehose rounds the size of a record up to a
//! multiple of 5 KB when it bills, so a record ends shortly before such a multiple.
//!
//! A call can succeed and report that some of its records failed. Only those are sent again, so that the others are not
//! stored twice. An event counts as stored only if the response says so for its record.

use crate::Error;
use crate::ingest::checked_batch::{Accepted, CheckedBatch};
use crate::store::aws::{self, Backoff, CallError};
use aws_config::SdkConfig;
use aws_sdk_firehose::Client;
use aws_sdk_firehose::error::{BuildError, ProvideErrorMetadata};
use aws_sdk_firehose::operation::put_record_batch::PutRecordBatchError;
use aws_sdk_firehose::primitives::Blob;
use aws_sdk_firehose::types::{DeliveryStreamStatus, Record};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The most records in one call.
const CALL_RECORDS: usize = 500;
/// The most bytes of all records in one call.
const CALL_BYTES: usize = 4 * 1024 * 1024;
/// Firehose bills multiples of this.
const BILLED_BYTES: usize = 5 * 1024;
/// The largest record of more than one line. If a record fails, all its lines are sent again.
const PACKED_BYTES: usize = 12 * BILLED_BYTES;
/// When the client should retry if every record was refused by itself, which is how Firehose throttles.
const THROTTLED: Duration = Duration::from_secs(5);

/// How long the stream counts as ready after it has worked.
const READY_FOR: Duration = Duration::from_secs(30);

/// A Firehose delivery stream.
#[derive(Clone, Debug)]
pub struct Firehose {
    client: Client,
    name: String,
    /// When it took records or was found to be active, in milliseconds since the Unix epoch.
    worked_at: Arc<AtomicU64>,
}

impl Firehose {
    /// The delivery stream of this name.
    pub fn new(config: &SdkConfig, name: impl Into<String>) -> Self {
        let (retries, timeouts) = aws::limits();
        let config =
            aws_sdk_firehose::config::Builder::from(config).retry_config(retries).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), name: name.into(), worked_at: Arc::default() }
    }

    /// Stores the lines of a batch, each at least once. Returns the indexes of events that may not be stored, because
    /// Firehose refused them or did not answer until the time was up. If no event is stored, that is an error.
    pub async fn put(&self, batch: &CheckedBatch) -> Result<Vec<u32>, Error> {
        let mut backoff = Backoff::new();
        let mut left: Vec<&Accepted> = batch.events.iter().collect();
        loop {
            let mut failed = Vec::new();
            let mut last = None;
            for records in calls(&pack(&left)) {
                match self.call(records).await {
                    Ok(records) => failed.extend(records.into_iter().flatten()),
                    Err(error) if aws::is_refusal(&error) => return Err(self.unavailable(error)),
                    Err(error) => {
                        failed.extend(records.iter().copied().flatten());
                        last = Some(error);
                    }
                }
            }
            if failed.is_empty() {
                return Ok(Vec::new());
            }
            let may_retry = match &last {
                Some(error) => backoff.wait_after(error).await,
                None => backoff.wait().await,
            };
            if may_retry {
                left = failed;
            } else if failed.len() < batch.events.len() {
                return Ok(failed.iter().map(|event| event.index).collect());
            } else {
                // Nothing is stored and nothing is counted, so the client can send the same batch again.
                let busy = || Error::unavailable("The lake accepts no events now", THROTTLED);
                return Err(last.map_or_else(busy, |error| self.unavailable(error)));
            }
        }
    }

    /// Sends these records once. Returns those that may not be stored.
    async fn call<'a, 'b>(
        &self,
        records: &[&'b [&'a Accepted]],
    ) -> Result<Vec<&'b [&'a Accepted]>, CallError<PutRecordBatchError>> {
        let data = records
            .iter()
            .map(|lines| record(lines))
            .collect::<Result<_, _>>()
            .map_err(CallError::construction_failure)?;
        let call = self.client.put_record_batch().delivery_stream_name(&self.name).set_records(Some(data));
        let answer = call.send().await.inspect_err(|error| {
            let code = error.code().unwrap_or("no answer");
            tracing::warn!(code, cause = %crate::error::chain(error), records = records.len(), "a call to the lake failed");
        })?;
        // The response has one entry for each record, in order. A record without an entry may not be stored.
        let entries = answer.request_responses();
        let is_stored = |at: usize| {
            entries.get(at).is_some_and(|entry| entry.error_code().is_none() && entry.record_id().is_some())
        };
        let failed: Vec<_> = (0..).zip(records).filter(|&(at, _)| !is_stored(at)).map(|(_, record)| *record).collect();
        if failed.is_empty() {
            self.note_success();
        } else {
            let code = entries.iter().find_map(|entry| entry.error_code()).unwrap_or_default();
            tracing::warn!(code, failed = failed.len(), records = records.len(), "the lake did not store all records");
        }
        Ok(failed)
    }

    /// Whether the stream is active. AWS permits five of these calls a second for the whole account, so none is made while
    /// the stream has worked recently, and a throttled call counts as ready.
    pub(crate) async fn ready(&self) -> Result<(), Error> {
        if crate::time::now().abs_diff(self.worked_at.load(Ordering::Relaxed)) < READY_FOR.as_millis() as u64 {
            return Ok(());
        }
        let call = self.client.describe_delivery_stream().delivery_stream_name(&self.name).send();
        let answer = match call.await {
            Err(error) if is_throttled(&error) => return Ok(()),
            answer => answer.map_err(|error| aws::unavailable("The lake", &self.sink(), error))?,
        };
        let status = answer.delivery_stream_description.map(|stream| stream.delivery_stream_status);
        match status {
            Some(DeliveryStreamStatus::Active) => {
                self.note_success();
                Ok(())
            }
            other => {
                let status = other.as_ref().map_or("unknown", DeliveryStreamStatus::as_str);
                let cause = Error::config(format!("{} is {status}", self.sink()));
                Err(Error::unavailable("The lake cannot be used now", Duration::from_secs(2)).with_source(cause))
            }
        }
    }

    fn note_success(&self) {
        self.worked_at.store(crate::time::now(), Ordering::Relaxed);
    }

    fn unavailable(&self, error: CallError<PutRecordBatchError>) -> Error {
        aws::unavailable("The lake", &self.sink(), error)
    }

    fn sink(&self) -> String {
        format!("the delivery stream {}", self.name)
    }
}

fn is_throttled<E: ProvideErrorMetadata>(error: &CallError<E>) -> bool {
    error.code().is_some_and(|code| code.contains("Throttl") || code.contains("LimitExceeded"))
}

fn record(events: &[&Accepted]) -> Result<Record, BuildError> {
    let mut lines = String::with_capacity(bytes(events));
    for event in events {
        lines.push_str(&event.line);
        lines.push('\n');
    }
    Record::builder().data(Blob::new(lines)).build()
}

/// How large a record of these lines is.
fn bytes(events: &[&Accepted]) -> usize {
    events.iter().map(|event| event.line.len() + 1).sum()
}

/// Groups the events into records that fill most of what Firehose bills for them.
fn pack<'a, 'b>(events: &'b [&'a Accepted]) -> Vec<&'b [&'a Accepted]> {
    let mut records = Vec::new();
    let (mut start, mut bytes) = (0, 0_usize);
    for (at, event) in events.iter().enumerate() {
        let line = event.line.len() + 1;
        let billed = bytes.next_multiple_of(BILLED_BYTES);
        let is_well_filled = bytes * 20 >= billed * 19;
        if at > start && (bytes + line > billed && is_well_filled || bytes + line > PACKED_BYTES) {
            records.push(&events[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += line;
    }
    if start < events.len() {
        records.push(&events[start..]);
    }
    records
}

/// Groups the records into calls.
fn calls<'a, 'b, 'c>(mut records: &'c [&'b [&'a Accepted]]) -> impl Iterator<Item = &'c [&'b [&'a Accepted]]> {
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |record: &&&[&Accepted]| {
            sum += bytes(record);
            sum <= CALL_BYTES
        };
        // At least one: a record is far smaller than a call.
        let fitting = records.iter().take(CALL_RECORDS).take_while(fits).count().max(1);
        let (call, rest) = records.split_at_checked(fitting)?;
        records = rest;
        Some(call)
    })
}
