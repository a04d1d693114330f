//! The text of a batch: how it begins, continues and ends, and how it is taken apart.
//!
//! Each event has a line of its own, so that a spool can repair, count and divide a batch without parsing JSON:
//!
//! ```text
//! {"batch_id":"0192…","sdk":"tallymark-rust/0.1.0","events":[
//! {"event_id":"0192…","event_type":"page_view",…},
//! {"event_id":"0192…","event_type":"button_click",…}
//! ],"lost":{"queue_full":2}}
//! ```

use crate::core::id::BatchId;
use crate::core::loss::{Losses, Reason};

const BEFORE_ID: &str = "{\"batch_id\":\"";
const ID_BYTES: usize = 36;

/// More than the length of any closing.
pub(crate) const CLOSING_BYTES: usize = 256;

/// The first line of a new batch. `sdk` needs no escapes in JSON.
pub(crate) fn opening(batch: BatchId, sdk: &str) -> String {
    format!("{BEFORE_ID}{batch}\",\"sdk\":\"{sdk}\",\"events\":[")
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
    let lost: Vec<_> = Reason::ALL
        .into_iter()
        .filter(|reason| lost.of(*reason) > 0)
        .map(|reason| format!("\"{}\":{}", reason.as_str(), lost.of(reason)))
        .collect();
    if lost.is_empty() { "\n]}".into() } else { format!("\n],\"lost\":{{{}}}}}", lost.join(",")) }
}

/// Whether the text has its last line.
pub(crate) fn is_closed(text: &str) -> bool {
    text.split('\n').next_back().is_some_and(|line| line.starts_with(']'))
}

/// The events of a body, in order.
pub(crate) fn events(body: &str) -> impl Iterator<Item = &str> {
    body.split('\n').skip(1).filter(|line| line.starts_with('{')).map(|line| line.strip_suffix(',').unwrap_or(line))
}

/// A complete body with the events of `parent` whose index `keep` accepts, as the batch `child`.
pub(crate) fn part(parent: &str, child: BatchId, keep: impl Fn(u32) -> bool, closing: &str) -> (String, u32) {
    let opening = parent.split('\n').next().unwrap_or_default();
    let mut body = String::with_capacity(parent.len());
    body.push_str(BEFORE_ID);
    body.push_str(child.encode(&mut [0; ID_BYTES]));
    body.push_str(opening.get(BEFORE_ID.len() + ID_BYTES..).unwrap_or_default());
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

#[cfg(test)]
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
        let fixtures: Vec<Fixture> = serde_json::from_str(include_str!("../../tests/wire/batches.json")).unwrap();
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
