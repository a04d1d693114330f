//! The golden wire fixtures, which the tracker, the collector and the npm package read too.
#![cfg(feature = "json")]

use serde::Deserialize;
use serde_json::Value;
use tallymark::{Batch, Event, EventId, Receipt};

#[derive(Deserialize)]
struct Text {
    case: String,
    json: String,
}

#[test]
fn events_are_written_as_in_the_fixtures() {
    let fixtures: Vec<Text> = serde_json::from_str(include_str!("wire/events.json")).unwrap();
    assert!(!fixtures.is_empty());
    for Text { case, json } in fixtures {
        let event = Event::decode(serde_json::from_str(&json).unwrap()).unwrap();
        let encoded = event.encode(0, &mut || unreachable!()).unwrap();
        assert_eq!(encoded.json, json, "{case}");
    }
}

#[derive(Deserialize)]
struct Invalid {
    case: String,
    code: String,
    event: Value,
}

#[test]
fn invalid_events_get_their_codes() {
    let fixtures: Vec<Invalid> = serde_json::from_str(include_str!("wire/invalid.json")).unwrap();
    for Invalid { case, code, event } in fixtures {
        let error = Event::decode(event).expect_err(&case);
        assert_eq!(error.code(), code, "{case}: {error}");
        assert!(error.to_string().len() < 100, "{case}: the message quotes the input");
    }
}

#[test]
fn receipts_and_batches_are_read() {
    let fixtures: Vec<Text> = serde_json::from_str(include_str!("wire/receipts.json")).unwrap();
    for Text { case, json } in fixtures {
        let receipt: Receipt = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&receipt).unwrap(), json, "{case}");
    }
    let fixtures: Vec<Value> = serde_json::from_str(include_str!("wire/batches.json")).unwrap();
    for fixture in fixtures {
        let batch: Batch = serde_json::from_str(fixture["body"].as_str().unwrap()).unwrap();
        assert_eq!(batch.batch_id.to_string(), fixture["batch_id"]);
        assert_eq!(batch.events.len(), fixture["events"].as_array().unwrap().len());
        for event in batch.events {
            Event::decode(event).unwrap();
        }
    }
}

#[test]
fn a_whole_number_may_be_written_with_a_point_or_an_exponent() {
    let read = |number: &str| -> Option<(Option<u64>, u64, Option<u64>)> {
        let json = format!(
            r#"{{"batch_id":"019aa2e6-b5d8-7000-8000-000000000000","sent_at":{number},"lost":{{"age":{number}}},
            "events":[{{"event_type":"custom","name":"n","occurred_at":{number}}}]}}"#
        );
        let batch: Batch = serde_json::from_str(&json).ok()?;
        Some((batch.sent_at, batch.lost["age"], Event::decode(batch.events[0].clone()).ok()?.occurred_at()))
    };
    for (number, value) in [
        ("7", 7),
        ("7.0", 7),
        ("-0.0", 0),
        ("1.763673600e12", 1_763_673_600_000),
        ("18446744073709551615", u64::MAX),
        ("18446744073709549568.0", 18_446_744_073_709_549_568),
    ] {
        assert_eq!(read(number), Some((Some(value), value, Some(value))), "{number}");
    }
    for number in ["7.5", "-1", "-1.0", "18446744073709551616", "1e300", "1e400", "true", "\"7\"", "[7]"] {
        assert_eq!(read(number), None, "{number}");
    }
}

#[test]
fn an_event_larger_than_the_limit_is_not_encoded() {
    let large = "x".repeat(tallymark::limits::EVENT_BYTES);
    let event: Event = tallymark::Custom::new("large").property("text", large).into();
    let error = event.encode(0, &mut || 0).unwrap_err();
    assert_eq!(error.code(), "event_too_large");
}

#[test]
fn brackets_in_text_are_text() {
    let brackets = format!("\\\"{}", "[".repeat(200));
    let event: Event = tallymark::Custom::new("n").property(&brackets, brackets.as_str()).into();
    event.validate().unwrap();
}

#[test]
fn what_is_written_is_json_whatever_the_text() {
    use proptest::prelude::*;
    proptest!(|(text in "(\\PC|[\\x00-\\x1f\"\\\\]){1,60}")| {
        let event = Event::button_click(text.clone());
        let encoded = event.encode(7, &mut || 3).unwrap();
        prop_assert!(!encoded.json.contains('\n'));
        let value: Value = serde_json::from_str(&encoded.json).unwrap();
        prop_assert_eq!(value["button_id"].as_str(), Some(text.as_str()));
        prop_assert_eq!(Event::decode(value).unwrap().encode(0, &mut || 0).unwrap(), encoded);
    });
}

#[test]
fn ids_sort_by_time_and_carry_it() {
    let early = EventId::new(1_763_673_599_000, &mut || u64::MAX);
    let late = EventId::new(1_763_673_599_001, &mut || 0);
    assert!(early < late);
    assert_eq!(early.uuid().get_version_num(), 7);
    assert!(early.to_string().starts_with("019aa323-6c18-7"), "{early}");
}
