//! The transform behind a Firehose that is as strict as the real one.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

mod firehose;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use firehose::{Delivered, deliver};
use proptest::prelude::*;
use serde_json::{Value, json};
use tallymark_collector::ingest::stored_event::StoredEvent;
use tallymark_pipeline::transform::rule::{Verdict, drop_bots_and_mask_titles, rule};
use tallymark_pipeline::transform::{ANSWER_BYTES, Request, Totals, transform};

fn by(rule: impl Fn(&mut StoredEvent<'_>) -> Verdict, records: &[Vec<u8>]) -> (Delivered, Totals) {
    let mut all = Totals::default();
    let delivered = deliver(records, |event| {
        let request: Request = serde_json::from_str(&event.to_string()).unwrap();
        let (answer, totals) = transform(request, &rule);
        all.delivered += totals.delivered;
        all.failed_records += totals.failed_records;
        for (reason, events) in totals.dropped {
            *all.dropped.entry(reason).or_default() += events;
        }
        serde_json::to_value(answer).unwrap()
    });
    (delivered, all)
}

fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the next record's first line begins on a line of its own");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn event(n: u32, title: &str) -> Value {
    json!({"event_id": format!("019aa2e6-b5d8-7000-8000-{n:012x}"), "event_type": "page_view", "occurred_at": 1_763_673_599_000_u64,
        "url": format!("https://shop.example/{n}"), "title": title, "username": "shop", "scope": "write",
        "batch_id": "019aa2e6-b9c0-7abc-8def-0123456789ab", "received_at": 1_763_673_600_123_u64})
}

fn record(events: &[Value]) -> Vec<u8> {
    events.iter().map(|event| format!("{event}\n")).collect::<String>().into_bytes()
}

#[test]
fn what_the_collector_has_stored_is_delivered_byte_for_byte() {
    let records =
        [record(&[event(1, "Tee ☕ \u{1f375}"), event(2, "\"quoted\"\n\u{0}\u{fffe}")]), record(&[event(3, "")])];
    let (delivered, totals) = by(rule, &records);
    assert_eq!(delivered.lake, records.concat());
    assert_eq!((totals.delivered, delivered.errors.len(), delivered.dropped), (3, 0, 0));
    // Numbers of any size and precision are the client's text.
    let line = event(4, "").to_string().replace(
        "\"username\"",
        r#""properties":{"n":1234567890123456789012345678901234567890.10,"e":1E400},"username""#,
    );
    let (delivered, _) = by(rule, &[format!("{line}\n").into_bytes()]);
    assert_eq!(delivered.lake, format!("{line}\n").into_bytes());
}

#[test]
fn odd_but_readable_lines_come_out_in_one_form() {
    let (first, second) = (event(1, "ä"), event(2, "b"));
    let mut members: Vec<_> = first.as_object().unwrap().iter().collect();
    members.reverse();
    let reversed = members.iter().map(|(name, value)| format!("\"{name}\" : {value}")).collect::<Vec<_>>().join(" ,\t");
    let odd = format!("\r\n\n{{ {reversed}, \"session_id\": null }}\r\n  \n{second}");
    let (delivered, totals) = by(rule, &[odd.into_bytes()]);
    assert_eq!((delivered.lake, totals.delivered), (record(&[first, second]), 2));
}

#[test]
fn a_poisoned_record_is_kept_as_it_was_and_harms_no_other() {
    let good = record(&[event(1, "a"), event(2, "b")]);
    let without = |name: &str| {
        let mut event = event(9, "x");
        event.as_object_mut().unwrap().remove(name);
        record(&[event])
    };
    let with = |name: &str, value: Value| {
        let mut event = event(9, "x");
        event[name] = value;
        record(&[event])
    };
    let poisoned = [
        b"not json\n".to_vec(),
        b"{\"event_id\":\n".to_vec(),
        b"[1,2,3]\n".to_vec(),
        b"null".to_vec(),
        vec![0xff, 0xfe, b'\n'],
        [good.clone(), b"{}\n".to_vec()].concat(),
        record(&[event(3, "x")]).strip_suffix(b"}\n").unwrap().to_vec(),
        without("event_id"),
        without("username"),
        without("batch_id"),
        without("received_at"),
        without("url"),
        with("event_id", json!("7")),
        with("occurred_at", json!("yesterday")),
        with("occurred_at", json!(-1)),
        with("scope", json!("admin")),
        with("title", json!({"a": 1})),
        format!("{}\n", event(3, "x").to_string().replacen('{', "{\"username\":\"other\",", 1)).into_bytes(),
        "[".repeat(100_000).into_bytes(),
    ];
    for poison in poisoned {
        let (delivered, totals) = by(rule, &[good.clone(), poison.clone(), good.clone()]);
        let case = String::from_utf8_lossy(&poison[..poison.len().min(300)]).into_owned();
        assert_eq!(delivered.lake, [good.clone(), good.clone()].concat(), "{case}");
        assert_eq!(delivered.errors.len(), 1, "{case}");
        assert_eq!(delivered.errors[0]["rawData"], STANDARD.encode(&poison), "{case}");
        assert_eq!((totals.delivered, totals.failed_records), (4, 1), "{case}");
    }
}

#[test]
fn odd_requests_are_answered_entry_by_entry() {
    let of = |records: Value| {
        let request: Request = serde_json::from_value(json!({"records": records})).unwrap();
        serde_json::to_value(transform(request, rule).0).unwrap()["records"].clone()
    };
    assert_eq!(of(json!([])), json!([]));
    let odd = json!([{"recordId": "1", "data": null}, {"recordId": "2"}, {"recordId": "3", "data": "%"}, {"recordId": "4", "data": ""}]);
    let failed = |id: &str| json!({"recordId": id, "result": "ProcessingFailed"});
    assert_eq!(of(odd), json!([failed("1"), failed("2"), failed("3"), {"recordId": "4", "result": "Dropped"}]));
}

#[test]
fn the_example_rule_drops_and_masks_and_says_how_often() {
    let mut bot = event(1, "a");
    bot["useragent"] = "Examplebot/2.1 (+https://bot.example)".into();
    let mut private = event(2, "Orders of J. Doe");
    private["url"] = "https://shop.example/account/7".into();
    let (delivered, totals) =
        by(drop_bots_and_mask_titles, &[record(&[bot.clone(), private, event(3, "c")]), record(&[bot])]);
    let lines = lines(&delivered.lake);
    assert_eq!(lines.iter().map(|line| &line["title"]).collect::<Vec<_>>(), ["***", "c"]);
    assert_eq!(delivered.dropped, 1, "a record of which nothing is left");
    let metrics = totals.metrics("Tallymark/test", "transform", 1_795_186_586_123);
    assert_eq!(
        (&metrics["Delivered"], &metrics["Dropped"], &metrics["FailedRecords"]),
        (&json!(2), &json!(2), &json!(0))
    );
    assert_eq!(metrics["dropped_by_reason"], json!({"bot": 2}));
    // As the embedded metric format has it: each metric is a member beside `_aws`, each dimension too.
    let declared = &metrics["_aws"]["CloudWatchMetrics"][0];
    for metric in declared["Metrics"].as_array().unwrap() {
        assert!(metrics[metric["Name"].as_str().unwrap()].is_u64(), "{metrics}");
    }
    assert!(metrics[declared["Dimensions"][0][0].as_str().unwrap()].is_string(), "{metrics}");
}

#[test]
fn an_answer_stays_below_what_lambda_carries_however_much_a_rule_adds() {
    let grow = |event: &mut StoredEvent<'_>| {
        event.title = Some("☕".repeat(20_000).into());
        Verdict::Keep
    };
    let records: Vec<_> = (0..150).map(|n| record(&[event(n, "")])).collect();
    let mut largest = 0;
    let delivered = deliver(&records, |event| {
        let request: Request = serde_json::from_value(event).unwrap();
        let answer = serde_json::to_value(transform(request, grow).0).unwrap();
        largest = largest.max(answer.to_string().len());
        answer
    });
    assert!(largest > ANSWER_BYTES * 9 / 10 && largest <= ANSWER_BYTES, "{largest}");
    // What has no room is not lost.
    assert_eq!(lines(&delivered.lake).len() + delivered.errors.len(), records.len());
    assert!(!delivered.errors.is_empty());

    // Without growth, a full buffer of anything comes back whole, escapes and many small records included.
    let small: Vec<_> = (0..3_200).map(|n| record(&[event(n, "\u{1}\u{1}\u{1}")])).collect();
    assert!(by(rule, &small).0.errors.is_empty());
}

fn any_event() -> impl Strategy<Value = Value> {
    (any::<u32>(), any::<String>(), proptest::option::of(any::<String>()), any::<f64>(), 1..=1_000_000_u32).prop_map(
        |(n, title, session, number, weight)| {
            let mut event = event(n, &title);
            if let Some(session) = session {
                event["session_id"] = session.into();
            }
            event["properties"] = json!({"number": number, "deep": [{"title": title}]});
            event["weight"] = weight.into();
            event
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn events_are_delivered_once_each_in_order(batches in proptest::collection::vec(proptest::collection::vec(any_event(), 1..6), 0..12)) {
        let records: Vec<_> = batches.iter().map(|events| record(events)).collect();
        let (delivered, totals) = by(rule, &records);
        let events = batches.concat();
        prop_assert_eq!(lines(&delivered.lake), events.clone());
        prop_assert_eq!(totals.delivered, events.len() as u64);
        prop_assert!(delivered.errors.is_empty());
    }

    #[test]
    fn any_bytes_are_either_delivered_dropped_or_kept(records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
        let (delivered, totals) = by(rule, &records);
        prop_assert_eq!(delivered.errors.len() as u64, totals.failed_records);
        prop_assert_eq!(lines(&delivered.lake).len() as u64, totals.delivered);
    }
}
