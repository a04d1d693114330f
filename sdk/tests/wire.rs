//! The golden wire fixtures, which the tracker, the collector and the npm package read too.

use serde::Deserialize;
use serde_json::Value;
use tallymark::{Batch, Encoded, Event, EventId, Reason, Receipt};

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
        assert_eq!(Event::decode_fast(&json), Some(event), "{case}: decode_fast reads what clients write");
    }
}

#[test]
fn decode_fast_agrees_with_decode() {
    use proptest::prelude::*;
    use proptest::sample::select;
    let text = vec![r#""x""#, r#""\u0065\n\"""#, r#""https://shop.example/?a=b""#, "null", r#""""#];
    let number = vec!["1763673599000", "7", "1000000", "null"];
    let odd = vec![
        "-0",
        "1.0",
        "1e3",
        "1e999",
        "18446744073709551616",
        "true",
        "[]",
        "{}",
        r#""\ud800""#,
        r#"{"a":1,"a":2}"#,
        "7",
        r#"{ "b" : [1.50, 1e2, "\u0065"] , "a": null }"#,
        r#""0192f3c1-0000-7000-8000-00000000000A""#,
        r#""custom""#,
    ];
    let begun = select(vec![
        r#""page_view","url":"https://shop.example/""#,
        r#""button_click" , "button_id" : "\u0065""#,
        r#""custom","name":"n""#,
        r#""\u0063ustom","name":"\"""#,
        r#""page_view""#,
    ]);
    let member = prop_oneof![
        6 => (select(vec!["url", "button_id", "name", "session_id", "title", "useragent"]), select(text)),
        3 => (select(vec!["occurred_at", "weight"]), select(number)),
        1 => (Just("properties"), select(odd.clone())),
        1 => (Just("event_id"), select(vec![r#""0192f3c1-0000-7000-8000-00000000000A""#, r#""7""#])),
        1 => (select(vec!["event_id", "event_type", "name", "weight", "ipaddress", "more"]), select(odd)),
    ];
    let members = proptest::collection::vec(member, 0..4);
    let (decoded, runs) = (std::cell::Cell::new(0), 4_000);
    let config = ProptestConfig { cases: runs, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(begun in begun, members in members, space in select(vec!["", " ", "\t\n"]), array in 0..20)| {
        let json = match array {
            0 => format!("[null,\"custom\",null,null,null,null,null,null,null,null,\"n\"{}]", ",null".repeat(4)),
            _ => {
                let member = |(name, value): &(&str, &str)| format!(",{space}\"{name}\"{space}:{space}{value}{space}");
                format!("{{\"event_type\":{begun}{}}}", members.iter().map(member).collect::<String>())
            }
        };
        if let Some(event) = Event::decode_fast(&json) {
            decoded.set(decoded.get() + 1);
            prop_assert_eq!(Ok(event), Event::decode(serde_json::from_str(&json).unwrap()));
        }
    });
    assert!(decoded.get() > runs / 20, "only {} of {runs} were decoded", decoded.get());
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
fn any_text_is_written_as_json() {
    use proptest::prelude::*;
    proptest!(|(text in "(\\PC|[\\x00-\\x1f\"\\\\]){1,60}")| {
        let event = Event::button_click(text.clone());
        let encoded = event.encode(7, &mut || 3).unwrap();
        prop_assert!(!encoded.json.contains('\n'));
        let value: Value = serde_json::from_str(&encoded.json).unwrap();
        prop_assert_eq!(value["button_id"].as_str(), Some(text.as_str()));
        let again = Event::decode(value).unwrap().encode(0, &mut || 0).unwrap();
        prop_assert_eq!(again, Encoded { encoded_at: 0, ..encoded });
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

#[test]
fn drop_reasons_have_the_order_and_names_of_the_fixture() {
    let names: Vec<String> = serde_json::from_str(include_str!("wire/reasons.json")).unwrap();
    assert_eq!(Reason::ALL.map(Reason::as_str).as_slice(), names);
}
