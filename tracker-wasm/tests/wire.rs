//! What the browser's engine makes of the events in the golden fixtures: the same text, byte for byte.
#![cfg(target_arch = "wasm32")]
#![expect(clippy::unwrap_used, reason = "Clippy knows #[test] only")]

use serde_json::Value;
use tallymark::{ButtonClick, Custom, Event, EventId, InvalidEvent, PageView, Properties};
use tallymark_tracker::Tracker;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};

wasm_bindgen_test_configure!(run_in_browser);

/// The event that the fixture's fields describe.
fn event(fields: &Value) -> Result<Event, InvalidEvent> {
    let text = |name: &str| fields[name].as_str().map(str::to_owned);
    let required = |name: &str| text(name).unwrap_or_default();
    macro_rules! with_texts {
        ($event:ident: $($name:ident)*) => {
            $(if let Some(value) = text(stringify!($name)) {
                $event = $event.$name(value);
            })*
        };
    }
    macro_rules! with_common {
        ($event:expr) => {{
            let mut event = $event;
            if let Some(id) = text("event_id") {
                event = event.event_id(EventId::parse(&id).unwrap());
            }
            if let Some(at) = fields["occurred_at"].as_u64() {
                event = event.occurred_at(at);
            }
            with_texts!(event: session_id anonymous_id user_id useragent ipaddress);
            if !fields["properties"].is_null() {
                event = event.properties(Properties::from_stringified(fields["properties"].to_string())?);
            }
            if let Some(weight) = fields["weight"].as_u64() {
                event = event.weight(weight as u32);
            }
            event.into()
        }};
    }
    Ok(match fields["event_type"].as_str() {
        Some("page_view") => {
            let mut view = PageView::new(required("url"));
            with_texts!(view: referral_url title);
            with_common!(view)
        }
        Some("button_click") => with_common!(ButtonClick::new(required("button_id"))),
        _ => with_common!(Custom::new(required("name"))),
    })
}

fn cases(fixtures: &str) -> Vec<Value> {
    let cases: Vec<Value> = serde_json::from_str(fixtures).unwrap();
    assert!(!cases.is_empty());
    cases
}

#[wasm_bindgen_test]
fn events_encode_to_the_golden_text() {
    for case in cases(include_str!("../../sdk/tests/wire/events.json")) {
        let golden = case["json"].as_str().unwrap();
        let event = event(&serde_json::from_str(golden).unwrap()).unwrap();
        assert_eq!(event.encode(0, &mut || 0).unwrap().json, golden, "{}", case["case"]);
    }
}

#[wasm_bindgen_test]
fn events_beyond_a_limit_are_refused_with_the_golden_code() {
    let mut tried = 0;
    for case in cases(include_str!("../../sdk/tests/wire/invalid.json")) {
        let fields = &case["event"];
        // The other cases have a type or a form that cannot be made here in the first place.
        let makes_sense = fields.as_object().is_some_and(|fields| {
            fields.iter().all(|(name, value)| match name.as_str() {
                "occurred_at" | "weight" => value.is_u64(),
                "properties" => value.is_object(),
                "event_type" => ["page_view", "button_click", "custom"].iter().any(|kind| value == kind),
                "event_id" => value.as_str().is_some_and(|id| EventId::parse(id).is_some()),
                _ => value.is_string(),
            }) && fields.contains_key("event_type")
        });
        if makes_sense {
            tried += 1;
            let code = event(fields).and_then(|event| event.encode(0, &mut || 0)).unwrap_err().code();
            assert_eq!(code, case["code"], "{}", case["case"]);
        }
    }
    assert!(tried >= 10, "{tried}");
}

#[wasm_bindgen_test]
fn the_browser_seeds_the_ids() {
    let now = 1_763_673_600_000.0;
    let sent: Vec<String> = (0..2)
        .map(|_| {
            let mut tracker = Tracker::new(String::new(), 0.0);
            assert!(tracker.push(1, now, "buy".into(), String::new(), String::new(), String::new()));
            tracker.flush();
            assert_eq!(tracker.poll(now), 0.0);
            let body: Value = serde_json::from_str(&tracker.text(1)).unwrap();
            assert_eq!(body["events"][0]["session_id"], tracker.text(0));
            body["events"][0]["event_id"].to_string() + &body["batch_id"].to_string() + &tracker.text(0)
        })
        .collect();
    assert_ne!(sent[0], sent[1]);
}
