//! The text of a batch: how a segment opens, goes on and closes, and how it is taken apart again.
//!
//! Every event has a line of its own, which JSON allows and which makes a segment easy to mend, to
//! count and to divide without parsing:
//!
//! ```text
//! {"batch_id":"0192…","sdk":"tallymark-rust/0.1.0","events":[
//! {"event_id":"0192…","event_type":"page_view",…},
//! {"event_id":"0192…","event_type":"button_click",…}
//! ],"lost":{"queue_full":2}}
//! ```

use crate::id::BatchId;
use crate::json::{Object, number};
use crate::loss::{Losses, Reason};

const BEFORE_ID: &str = "{\"batch_id\":\"";
const ID: usize = 36;

/// More bytes than a closing ever has.
pub(crate) const CLOSING_BYTES: usize = 256;

/// The first line of a new batch.
pub(crate) fn opening(batch: BatchId, sdk: &str) -> String {
    let mut text = String::new();
    let mut object = Object::begin(&mut text);
    object.string("batch_id", batch.encode(&mut [0; 36]));
    object.string("sdk", sdk);
    object.raw("events", "[");
    text
}

/// The text that adds an event.
pub(crate) fn event(json: &str, first: bool) -> String {
    let mut text = String::with_capacity(json.len() + 2);
    text.push_str(if first { "\n" } else { ",\n" });
    text.push_str(json);
    text
}

/// The last line.
pub(crate) fn closing(lost: &Losses) -> String {
    let mut text = String::from("\n]");
    let mut comma = false;
    for reason in Reason::ALL {
        let events = lost.of(reason);
        if events > 0 {
            text.push_str(if comma { ",\"" } else { ",\"lost\":{\"" });
            comma = true;
            text.push_str(reason.as_str());
            text.push_str("\":");
            number(&mut text, events);
        }
    }
    text.push_str(if comma { "}}" } else { "}" });
    text
}

/// Whether the text has its last line.
pub(crate) fn is_closed(text: &str) -> bool {
    // Bytes, here and below: patterns over characters cost the browser build dear.
    lines(text).last().is_some_and(|line| line.as_bytes().starts_with(b"]"))
}

/// The events of a body, in order.
pub(crate) fn events(body: &str) -> impl Iterator<Item = &str> {
    lines(body).skip(1).filter_map(|line| {
        let comma = line.as_bytes().last() == Some(&b',');
        line.as_bytes().starts_with(b"{").then(|| &line[..line.len() - usize::from(comma)])
    })
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    core::iter::from_fn(move || {
        let text = rest?;
        let end = text.bytes().position(|byte| byte == b'\n');
        rest = end.map(|end| &text[end + 1..]);
        Some(&text[..end.unwrap_or(text.len())])
    })
}

/// A complete body with the events of `parent` that `keep` names, as the batch `child`.
pub(crate) fn part(parent: &str, child: BatchId, keep: impl Fn(u32) -> bool, closing: &str) -> (String, u32) {
    let opening = lines(parent).next().unwrap_or_default();
    let mut body = String::with_capacity(parent.len());
    body.push_str(BEFORE_ID);
    body.push_str(child.encode(&mut [0; 36]));
    body.push_str(opening.get(BEFORE_ID.len() + ID..).unwrap_or_default());
    let mut kept = 0;
    for (index, json) in events(parent).enumerate() {
        if keep(index as u32) {
            body.push_str(&event(json, kept == 0));
            kept += 1;
        }
    }
    body.push_str(closing);
    (body, kept)
}

#[cfg(all(test, feature = "json"))]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Fixture {
        batch_id: BatchId,
        sdk: String,
        events: Vec<String>,
        lost: std::collections::BTreeMap<String, u32>,
        body: String,
    }

    #[test]
    fn bodies_are_the_golden_ones_and_come_apart_again() {
        let fixtures: Vec<Fixture> = serde_json::from_str(include_str!("../tests/wire/batches.json")).unwrap();
        for fixture in fixtures {
            let mut text = opening(fixture.batch_id, &fixture.sdk);
            for (at, json) in fixture.events.iter().enumerate() {
                text.push_str(&event(json, at == 0));
                assert!(!is_closed(&text));
            }
            let mut lost = Losses::default();
            for reason in Reason::ALL {
                lost.add(reason, fixture.lost.get(reason.as_str()).copied().unwrap_or_default());
            }
            text.push_str(&closing(&lost));
            assert_eq!(text, fixture.body);
            assert!(is_closed(&text));
            assert_eq!(events(&text).collect::<Vec<_>>(), fixture.events);

            let (whole, kept) = part(&text, fixture.batch_id, |_| true, &closing(&lost));
            assert_eq!((whole, kept as usize), (text.clone(), fixture.events.len()));
            let child = fixture.batch_id.child(1);
            let (last, kept) = part(&text, child, |index| index as usize == fixture.events.len() - 1, "\n]}");
            assert_eq!(kept, 1);
            assert_eq!(last, opening(child, &fixture.sdk) + &event(fixture.events.last().unwrap(), true) + "\n]}");
        }
    }
}
