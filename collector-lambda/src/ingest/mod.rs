//! From a body to a receipt: decode, check each event, commit. The same for every front door.

pub mod checked_batch;
pub mod refusal;
pub mod repair;
pub mod stored_event;

use crate::ingest::checked_batch::{Accepted, CheckedBatch, Fingerprint, Sdk};
use crate::ingest::refusal::{Reason, Refusal};
use crate::ingest::repair::repair;
use crate::ingest::stored_event::Envelope;
use crate::sites::{KeyScope, Site};
use crate::store::query::{DAY, HOUR};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use tallymark::{Batch, BatchId, Custom, Event, EventId, InvalidEvent, Properties, Rejected, limits};

/// A client's clock may be this far off, in milliseconds, before its times are corrected: less is the
/// way through the network.
const CLOCK_TOLERANCE: u64 = 60_000;
/// Times that are meant as seconds: as milliseconds they are in 1970 to 1973, as seconds after 2001. A device whose
/// whole clock is that wrong sends a `sent_at` to match, and its times are corrected before they are compared with this.
const SECONDS: std::ops::Range<u64> = 1_000_000_000..100_000_000_000;
/// The most events that one reason in `lost` may report.
pub(crate) const LOST_EVENTS: u64 = 1_000_000_000;
/// What is counted of that at most, if it comes with the write key: more than any page can queue.
const LOST_EVENTS_OF_A_PAGE: u64 = 10_000;
/// How old an event may be that comes with the write key, in milliseconds: longer than the tracker keeps any.
pub(crate) const PAGE_EVENT_AGE: u64 = 30 * DAY;
pub(crate) const REASON_BYTES: usize = 64;

/// What comes with a body, on whatever route.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival<'a> {
    /// When it arrived, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// When it was sent, by the client's clock.
    pub sent_at: Option<u64>,
    /// The sender's user agent.
    pub useragent: Option<&'a str>,
    /// The sender's address. It is stored only for sites that want it.
    pub address: Option<IpAddr>,
}

/// Reads and checks the body of `POST /v1/batch`.
pub fn prepare_batch(site: &Site, scope: KeyScope, body: &[u8], arrival: Arrival<'_>) -> Result<CheckedBatch, Refusal> {
    // The events are left as text, so that one that cannot be read does not harm its neighbours.
    let repaired;
    let batch: Batch<&RawValue> = match serde_json::from_slice(body) {
        Ok(batch) => batch,
        Err(error) => {
            repaired = repair(body);
            // The first error tells more than that of the repaired text.
            serde_json::from_str(&repaired).map_err(|_| unreadable(&error))?
        }
    };
    if batch.events.len() > limits::BATCH_EVENTS {
        let detail =
            format!("A batch may hold {} events, and this one holds {}.", limits::BATCH_EVENTS, batch.events.len());
        return Err(Refusal::new(Reason::TooManyEvents, detail));
    }
    check_lost(&batch.lost)?;
    let mut lost = batch.lost;
    if scope == KeyScope::Write {
        lost.values_mut().for_each(|events| *events = (*events).min(LOST_EVENTS_OF_A_PAGE));
    }
    let arrival = Arrival { sent_at: arrival.sent_at.or(batch.sent_at), ..arrival };
    let mut prepared = CheckedBatch {
        username: site.username.clone(),
        scope,
        repeatable: true,
        sdk: Sdk::named(batch.sdk.as_deref()),
        batch_id: batch.batch_id,
        fingerprint: Fingerprint::of(&[body]),
        received_at: arrival.received_at,
        events: Vec::with_capacity(batch.events.len()),
        rejected: Vec::new(),
        retry: Vec::new(),
        lost,
    };
    let mut seen = HashSet::with_capacity(batch.events.len());
    let stamp = Stamp::new(site, scope, batch.batch_id, arrival);
    for (index, json) in (0..).zip(batch.events) {
        let (event, named) = decode(json.get());
        let verdict = event.and_then(|event| {
            let event_id = event.event_id().unwrap_or_else(|| event_id(batch.batch_id, index));
            if !seen.insert(event_id) {
                return Err(EventRefusal::Repeated);
            }
            accept(event, event_id, index, &stamp)
        });
        match verdict {
            Ok(event) => prepared.events.push(event),
            Err(refusal) => prepared.rejected.push(refusal.rejected(index, named)),
        }
    }
    Ok(prepared)
}

fn unreadable(error: &serde_json::Error) -> Refusal {
    let reason = if error.classify() == Category::Data { Reason::InvalidBatch } else { Reason::InvalidJson };
    Refusal::new(reason, error.to_string())
}

/// Reads and checks the body of a route that takes one event.
///
/// With an idempotency key the batch and the event get ids that follow from it and from the kind of key it came
/// with, so that the same request sent again is the same batch again. `body` is what the event was read from.
pub fn prepare_event(
    site: &Site,
    scope: KeyScope,
    event: Event,
    body: &[u8],
    idempotency_key: Option<&str>,
    arrival: Arrival<'_>,
) -> Result<CheckedBatch, Refusal> {
    let batch_id = match idempotency_key {
        Some(given) => BatchId::from(uuid_of(&[
            b"idempotency-key",
            scope.as_str().as_bytes(),
            event.event_type().as_bytes(),
            given.as_bytes(),
        ])),
        None => BatchId::new(arrival.received_at, &mut || rand::random()),
    };
    let event_id = event.event_id().unwrap_or_else(|| event_id(batch_id, 0));
    let stamp = Stamp::new(site, scope, batch_id, arrival);
    let accepted = accept(event, event_id, 0, &stamp)?;
    Ok(CheckedBatch {
        username: site.username.clone(),
        scope,
        repeatable: idempotency_key.is_some(),
        sdk: Sdk::None,
        batch_id,
        fingerprint: Fingerprint::of(&[body]),
        received_at: arrival.received_at,
        events: vec![accepted],
        rejected: Vec::new(),
        retry: Vec::new(),
        lost: BTreeMap::new(),
    })
}

/// Reads the JSON of a route that takes one event.
pub fn parse_event(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).or_else(|error| {
        let unreadable = |_| Refusal::new(Reason::InvalidEvent, format!("The body is not JSON: {error}"));
        serde_json::from_str(&repair(body)).map_err(unreadable)
    })
}

/// Reads an event of this type, which must name its session.
pub fn session_event(event_type: &str, json: Value) -> Result<Event, Refusal> {
    let event = Event::decode_as(event_type, json)?;
    match event.session_id() {
        Some(id) if !id.is_empty() => Ok(event),
        _ => Err(Refusal::new(Reason::InvalidEvent, "`session_id` is missing or empty (session_id_missing).")),
    }
}

/// Any JSON object as a custom event: all of it becomes the properties. The event is counted by its `name`, or else
/// as `track`.
pub fn custom_event(json: &Value) -> Result<Event, Refusal> {
    let text = |name: &str| {
        let value = json.get(name)?.as_str()?;
        (!value.is_empty() && value.len() <= limits::NAME_BYTES).then(|| value.to_owned())
    };
    let mut event = Custom::new(text("name").unwrap_or_else(|| "track".into()));
    if let Some(id) = text("session_id") {
        event = event.session_id(id);
    }
    if let Some(id) = text("anonymous_id") {
        event = event.anonymous_id(id);
    }
    if let Some(id) = text("user_id") {
        event = event.user_id(id);
    }
    let properties = Properties::new(json)?;
    Ok(event.properties(properties).into())
}

/// Reads an event of a batch, and its id even where the rest of it is wrong.
fn decode(json: &str) -> (Result<Event, EventRefusal>, Option<EventId>) {
    if let Some(event) = Event::decode_fast(json) {
        let named = event.event_id();
        return (Ok(event), named);
    }
    let json: Value = match serde_json::from_str(json) {
        Ok(json) => json,
        Err(error) => match serde_json::from_str(&repair(json.as_bytes())) {
            Ok(json) => json,
            Err(_) => return (Err(EventRefusal::Unreadable(error)), None),
        },
    };
    let named = json.get("event_id").and_then(|id| EventId::parse(id.as_str()?));
    (Event::decode(json).map_err(EventRefusal::Invalid), named)
}

/// What all events of a request have in common.
struct Stamp<'a> {
    arrival: Arrival<'a>,
    scope: KeyScope,
    keep_ipaddress: bool,
    envelope: Envelope,
}

impl<'a> Stamp<'a> {
    fn new(site: &Site, scope: KeyScope, batch_id: BatchId, arrival: Arrival<'a>) -> Self {
        let useragent =
            arrival.useragent.map(|useragent| &useragent[..useragent.floor_char_boundary(limits::USERAGENT_BYTES)]);
        // A server reports the addresses of its visitors. A page is believed only about its own connection.
        let (reported, seen) = (site.store_ip && scope == KeyScope::Secret, site.store_ip && scope == KeyScope::Write);
        let address = arrival.address.filter(|_| seen);
        let envelope = Envelope::new(&site.username, scope, batch_id, arrival.received_at, useragent, address);
        Self { arrival, scope, keep_ipaddress: reported, envelope }
    }
}

fn accept(mut event: Event, event_id: EventId, index: u32, stamp: &Stamp<'_>) -> Result<Accepted, EventRefusal> {
    let occurred_at = corrected(event.occurred_at(), stamp.arrival);
    if let Some(given) = event.occurred_at()
        && SECONDS.contains(&occurred_at)
    {
        return Err(EventRefusal::Seconds(given));
    }
    if stamp.scope == KeyScope::Write && stamp.arrival.received_at.saturating_sub(occurred_at) > PAGE_EVENT_AGE {
        return Err(EventRefusal::TooOld(occurred_at));
    }
    event.stamp(event_id, occurred_at, stamp.keep_ipaddress);
    let json = event.encode(occurred_at, &mut || 0).map_err(EventRefusal::Invalid)?.json;
    let line = stamp.envelope.line(json, event.useragent().is_some());
    Ok(Accepted {
        index,
        event_type: event.event_type(),
        counter_key: event.key().into(),
        hour: occurred_at / HOUR,
        line,
    })
}

/// The time of an event by the collector's clock; never in the future.
fn corrected(occurred_at: Option<u64>, arrival: Arrival<'_>) -> u64 {
    let Arrival { received_at, sent_at, .. } = arrival;
    let Some(occurred_at) = occurred_at else { return received_at };
    match sent_at {
        Some(sent_at) if sent_at.abs_diff(received_at) > CLOCK_TOLERANCE => {
            // The age of the event is right even where the clock is wrong.
            received_at.saturating_sub(sent_at.saturating_sub(occurred_at))
        }
        _ => occurred_at.min(received_at),
    }
}

/// The id of an event that came without one: the same whenever its batch is sent again.
fn event_id(batch_id: BatchId, index: u32) -> EventId {
    EventId::from(uuid_of(&[b"event", batch_id.uuid().as_bytes(), &index.to_le_bytes()]))
}

fn uuid_of(parts: &[&[u8]]) -> uuid::Uuid {
    uuid::Builder::from_custom_bytes(Fingerprint::of(parts).0).into_uuid()
}

fn check_lost(lost: &BTreeMap<String, u64>) -> Result<(), Refusal> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let fine = |(reason, events): (&String, &u64)| {
        !reason.is_empty() && reason.len() <= REASON_BYTES && reason.bytes().all(plain) && *events <= LOST_EVENTS
    };
    if lost.len() > limits::LOST_REASONS || !lost.iter().all(fine) {
        return Err(Refusal::new(
            Reason::InvalidBatch,
            format!(
                "`lost` may hold {} reasons of letters a to z, digits and '_', with a number of events each.",
                limits::LOST_REASONS
            ),
        ));
    }
    Ok(())
}

/// Why one event of a batch is rejected.
enum EventRefusal {
    Unreadable(serde_json::Error),
    Invalid(InvalidEvent),
    Repeated,
    /// Its `occurred_at`, which must be in seconds.
    Seconds(u64),
    /// Its `occurred_at`, too long ago for the write key.
    TooOld(u64),
}

impl From<EventRefusal> for Refusal {
    fn from(refusal: EventRefusal) -> Self {
        match refusal {
            EventRefusal::Invalid(invalid) => invalid.into(),
            other => {
                let (code, message) = other.code_and_message();
                Self::new(Reason::InvalidEvent, format!("{message} ({code})."))
            }
        }
    }
}

impl EventRefusal {
    fn rejected(&self, index: u32, event_id: Option<EventId>) -> Rejected {
        let (code, message) = self.code_and_message();
        Rejected { index, event_id, code: code.into(), message }
    }

    fn code_and_message(&self) -> (&'static str, String) {
        match self {
            Self::Unreadable(error) => ("invalid_json", format!("the event cannot be read: {error}")),
            Self::Invalid(invalid) => (invalid.code(), invalid.to_string()),
            Self::Repeated => ("event_id_repeated", "an earlier event of the batch has the same `event_id`".into()),
            Self::Seconds(given) => (
                "occurred_at_in_seconds",
                format!(
                    "`occurred_at` must be milliseconds since the Unix epoch, got {given}, which seems to be seconds"
                ),
            ),
            Self::TooOld(occurred_at) => (
                "occurred_at_too_old",
                format!(
                    "`occurred_at` is {occurred_at}, more than {} days ago; older events need the secret key",
                    PAGE_EVENT_AGE / DAY
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_763_673_600_000;

    fn site() -> Site {
        let hash = "0".repeat(64);
        serde_json::from_value(serde_json::json!({
            "username": "shop", "secret_key_sha256": hash, "write_key_sha256": "1".repeat(64)
        }))
        .unwrap()
    }

    /// The hour of an event that happened and was sent then, or why it is rejected.
    fn hour(occurred_at: u64, sent_at: Option<u64>) -> Result<u64, Rejected> {
        let body = format!(
            r#"{{"batch_id":"019aa2e6-b9c0-7abc-8def-0123456789ab","events":[
                {{"event_type":"custom","name":"n","occurred_at":{occurred_at}}}]}}"#
        );
        let arrival = Arrival { received_at: NOW, sent_at, ..Arrival::default() };
        let batch = prepare_batch(&site(), KeyScope::Secret, body.as_bytes(), arrival).unwrap();
        batch.events.first().map(|event| event.hour).ok_or_else(|| batch.rejected[0].clone())
    }

    #[test]
    fn seconds_instead_of_milliseconds_are_rejected() {
        for sent_at in [None, Some(NOW), Some(NOW + 5 * HOUR)] {
            let rejected = hour(NOW / 1000, sent_at).unwrap_err();
            assert_eq!(rejected.code, "occurred_at_in_seconds");
            let message =
                "`occurred_at` must be milliseconds since the Unix epoch, got 1763673600, which seems to be seconds";
            assert_eq!(rejected.message, message);
        }
        let event = Event::decode(serde_json::json!({"event_type": "custom", "name": "n", "occurred_at": NOW / 1000}));
        let arrival = Arrival { received_at: NOW, ..Arrival::default() };
        let refusal = prepare_event(&site(), KeyScope::Secret, event.unwrap(), b"", None, arrival).unwrap_err();
        assert!(refusal.detail().contains("seems to be seconds (occurred_at_in_seconds)."), "{}", refusal.detail());
    }

    #[test]
    fn a_device_whose_whole_clock_is_wrong_is_corrected() {
        // Its clock began in 1970 when it was switched on, 15 days ago.
        let (sent_at, age) = (15 * 24 * HOUR, 2 * HOUR);
        assert_eq!(hour(sent_at - age, Some(sent_at)).unwrap(), (NOW - age) / HOUR);
        assert_eq!(hour(NOW - age, None).unwrap(), (NOW - age) / HOUR);
    }
}
