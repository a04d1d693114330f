//! A stand-in for Firehose's side of a transform, with the strictness that local AWS lacks: batches by size, answers
//! checked entry by entry as documented, records that fail kept as they were, objects made by concatenation.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// What a synchronous invocation may answer.
pub(crate) const LAMBDA_ANSWER_BYTES: usize = 6 * 1024 * 1024;
/// `BufferSizeInMBs` of the template.
const BUFFER_BYTES: usize = 1024 * 1024;

/// What came of the records.
#[derive(Debug, Default)]
pub(crate) struct Delivered {
    /// The bytes of the lake's objects.
    pub(crate) lake: Vec<u8>,
    /// The lines of the objects under `errors/processing-failed/`.
    pub(crate) errors: Vec<Value>,
    /// Records that the transform has dropped.
    pub(crate) dropped: usize,
    pub(crate) invocations: usize,
}

/// Sends records through `invoke`, as Firehose does.
pub(crate) fn deliver(records: &[Vec<u8>], mut invoke: impl FnMut(Value) -> Value) -> Delivered {
    let mut delivered = Delivered::default();
    let mut at = 0;
    while at < records.len() {
        let mut bytes = 0;
        let fits = |record: &&Vec<u8>| {
            bytes += record.len();
            bytes <= BUFFER_BYTES
        };
        let batch = &records[at..at + records[at..].iter().take_while(fits).count().max(1)];
        at += batch.len();
        delivered.invocations += 1;
        let ids: Vec<_> = (0..batch.len()).map(|n| format!("{:056}{n:04}", delivered.invocations)).collect();
        let records: Vec<_> = ids
            .iter()
            .zip(batch)
            .map(|(id, data)| json!({"recordId": id, "approximateArrivalTimestamp": 1_795_186_586_123_u64, "data": STANDARD.encode(data)}))
            .collect();
        let answer = invoke(json!({
            "invocationId": "0c1d2e3f-0000-4000-8000-000000000000",
            "deliveryStreamArn": "arn:aws:firehose:eu-central-1:123456789012:deliverystream/events",
            "region": "eu-central-1",
            "records": records,
        }));
        let all_failed = answer.to_string().len() > LAMBDA_ANSWER_BYTES;
        let mut answers = BTreeMap::<&str, &Value>::new();
        let mut repeated = BTreeSet::new();
        for entry in answer["records"].as_array().unwrap() {
            let id = entry["recordId"].as_str().unwrap();
            if answers.insert(id, entry).is_some() {
                repeated.insert(id);
            }
        }
        for (id, data) in ids.iter().zip(batch) {
            let entry = answers.get(id.as_str()).filter(|_| !all_failed && !repeated.contains(id.as_str()));
            let outcome = entry.map(|entry| (entry["result"].as_str().unwrap_or_default(), entry["data"].as_str()));
            match outcome {
                Some(("Ok", Some(data))) => delivered.lake.extend(STANDARD.decode(data).unwrap()),
                Some(("Dropped", _)) => delivered.dropped += 1,
                _ => delivered
                    .errors
                    .push(json!({"errorCode": "Lambda.FunctionError", "rawData": STANDARD.encode(data)})),
            }
        }
    }
    delivered
}
