//! The transform between Firehose and the lake: checks, normalises and filters events.
//!
//! A record holds several events, one a line. Each line is read as a [`StoredEvent`], handed to [`rule::rule`], and
//! written again in one canonical form: members in the order of the type, no spaces, no nulls, one newline at its end.
//!
//! | result | when | where it goes |
//! |---|---|---|
//! | `Ok` | every line could be read, and one at least is kept | the lake |
//! | `Dropped` | the rule has removed every line, or there was none | nowhere; the metric `Dropped` counts it |
//! | `ProcessingFailed` | a line cannot be read | the record as it was, under the bucket's error prefix |
//!
//! A record that has one unreadable line fails as a whole: Firehose keeps what it failed to transform by record, and the
//! readable lines must not be in the lake and under the error prefix both. The collector writes no such line; other
//! producers may. To be replayed, the lines are separated first (see the README in `deploy/`).
//!
//! What the rule drops stays counted, so `reconcile` reports it as a difference between counters and lake.

pub mod rule;

use crate::transform::rule::Verdict;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use tallymark_collector::ingest::stored_event::StoredEvent;

/// The longest answer in bytes. Lambda refuses one beyond 6 MB, which Firehose takes for missing records.
pub const ANSWER_BYTES: usize = 5_900_000;
/// What an entry of the answer takes beside its id and its data.
const ENTRY_BYTES: usize = 64;

/// A batch of records, as Firehose sends it.
#[derive(Debug, Deserialize)]
pub struct Request {
    /// The records.
    #[serde(default)]
    pub records: Vec<RecordIn>,
}

/// A record, as Firehose sends it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordIn {
    /// Ties the answer to the record.
    pub record_id: String,
    /// Base64 of the lines.
    #[serde(default)]
    pub data: Option<String>,
}

/// The answer to a batch: one entry for each record, in order.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The entries.
    pub records: Vec<RecordOut>,
}

/// What became of a record.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordOut {
    /// The record's id.
    pub record_id: String,
    /// `Ok`, `Dropped` or `ProcessingFailed`.
    pub result: RecordResult,
    /// Base64 of the lines to deliver, if any are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// Firehose's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RecordResult {
    /// Deliver the data.
    Ok,
    /// Deliver nothing; that is intended.
    Dropped,
    /// Keep the source record under the error prefix.
    ProcessingFailed,
}

/// What a batch came to, for the metrics.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events delivered.
    pub delivered: u64,
    /// Events that the rule has removed, by its reasons.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Records that could not be read.
    pub failed_records: u64,
}

/// Transforms a batch by a rule.
pub fn transform(request: Request, rule: impl Fn(&mut StoredEvent<'_>) -> Verdict) -> (Answer, Totals) {
    let mut totals = Totals::default();
    let mut room = ANSWER_BYTES;
    for record in &request.records {
        // An id is escaped as JSON; Firehose's own need no escape.
        room = room.saturating_sub(ENTRY_BYTES + record.record_id.len());
    }
    let mut records = Vec::with_capacity(request.records.len());
    for RecordIn { record_id, data } in request.records {
        let mut of_record = Totals::default();
        let lines = lines_of(data.as_deref(), &rule, &mut of_record).and_then(|lines| {
            let data = STANDARD.encode(lines);
            room = room.checked_sub(data.len()).ok_or(Unreadable::TooLarge)?;
            Ok(data)
        });
        let (result, data) = match lines {
            Ok(data) => {
                totals.delivered += of_record.delivered;
                for (reason, events) in of_record.dropped {
                    *totals.dropped.entry(reason).or_default() += events;
                }
                if data.is_empty() { (RecordResult::Dropped, None) } else { (RecordResult::Ok, Some(data)) }
            }
            Err(cause) => {
                // Where it is, not what: an event is nobody's business in a log.
                tracing::error!(
                    record_id,
                    ?cause,
                    "a record could not be transformed; Firehose keeps it under errors/"
                );
                totals.failed_records += 1;
                (RecordResult::ProcessingFailed, None)
            }
        };
        records.push(RecordOut { record_id, result, data });
    }
    (Answer { records }, totals)
}

/// Why a record fails. Lines count from 1.
#[derive(Debug)]
#[expect(dead_code, reason = "for the log, by Debug")]
enum Unreadable {
    NoData,
    NotBase64,
    NotUtf8,
    NotJson { line: usize, column: usize },
    NotAnEvent { line: usize, column: usize },
    NoCounterKey { line: usize },
    CannotBeWritten { line: usize },
    TooLarge,
}

fn lines_of(
    data: Option<&str>,
    rule: &impl Fn(&mut StoredEvent<'_>) -> Verdict,
    totals: &mut Totals,
) -> Result<Vec<u8>, Unreadable> {
    let data = STANDARD.decode(data.ok_or(Unreadable::NoData)?).map_err(|_| Unreadable::NotBase64)?;
    let text = std::str::from_utf8(&data).map_err(|_| Unreadable::NotUtf8)?;
    let mut lines = Vec::with_capacity(data.len() + 1);
    for (line, json) in (1..).zip(text.split('\n')).filter(|(_, json)| !json.trim().is_empty()) {
        let mut event: StoredEvent<'_> = serde_json::from_str(json).map_err(|error| {
            let column = error.column();
            if error.is_data() { Unreadable::NotAnEvent { line, column } } else { Unreadable::NotJson { line, column } }
        })?;
        // Types that this version does not know are a newer collector's to check.
        if matches!(&*event.event_type, "page_view" | "button_click" | "custom") && event.counter_key().is_none() {
            return Err(Unreadable::NoCounterKey { line });
        }
        match rule(&mut event) {
            Verdict::Keep => {
                serde_json::to_writer(&mut lines, &event).map_err(|_| Unreadable::CannotBeWritten { line })?;
                lines.push(b'\n');
                totals.delivered += 1;
            }
            Verdict::Drop(reason) => *totals.dropped.entry(reason).or_default() += 1,
        }
    }
    Ok(lines)
}

impl Totals {
    /// A line of the log that CloudWatch makes metrics of (the embedded metric format).
    pub fn metrics(&self, namespace: &str, function: &str, now: u64) -> Value {
        let metric = |name: &str| json!({"Name": name, "Unit": "Count"});
        json!({
            "_aws": {
                "Timestamp": now,
                "CloudWatchMetrics": [{
                    "Namespace": namespace,
                    "Dimensions": [["FunctionName"]],
                    "Metrics": [metric("Delivered"), metric("Dropped"), metric("FailedRecords")],
                }],
            },
            "FunctionName": function,
            "Delivered": self.delivered,
            "Dropped": self.dropped.values().sum::<u64>(),
            "FailedRecords": self.failed_records,
            "dropped_by_reason": self.dropped,
        })
    }
}

/// Runs the function for as long as Lambda wants it.
pub async fn run() -> ExitCode {
    let variable = |name: &str, otherwise: &str| std::env::var(name).unwrap_or_else(|_| otherwise.into());
    let namespace = variable("TALLYMARK_METRICS_NAMESPACE", "Tallymark");
    let function = variable("AWS_LAMBDA_FUNCTION_NAME", "transform");
    crate::function::run(|request: Request| {
        let (answer, totals) = transform(request, rule::rule);
        // A log that cannot be written is no reason to fail.
        let _ =
            writeln!(std::io::stdout(), "{}", totals.metrics(&namespace, &function, tallymark_collector::time::now()));
        std::future::ready(Ok(answer))
    })
    .await
}
