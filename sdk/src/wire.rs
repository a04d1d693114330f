//! The wire types that are read with serde: batches and events as the collector gets them, and the
//! receipts it answers with.

use crate::event::{Common, InvalidEvent, Problem};
use crate::id::{BatchId, EventId};
use crate::{ButtonClick, Custom, Event, PageView, Properties};
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A batch as it arrives. Its events are read one by one with [`Event::decode`], so that a bad one does
/// not harm its neighbours. A reader that wants them as something else than a [`Value`], such as raw text,
/// says so with `E`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Batch<E = Value> {
    /// Names the batch: a UUID.
    pub batch_id: BatchId,
    /// When it was sent, by the client's clock, in milliseconds since the Unix epoch.
    #[serde(default, deserialize_with = "whole")]
    pub sent_at: Option<u64>,
    /// Names the client, such as `tallymark-js/0.1.0`.
    #[serde(default)]
    pub sdk: Option<String>,
    /// Events the client has lost since it last said so, by reason.
    #[serde(default, deserialize_with = "wholes")]
    pub lost: BTreeMap<String, u64>,
    /// The events.
    pub events: Vec<E>,
}

/// The collector's word on a batch. A repetition of the batch gets the same receipt, marked as a
/// duplicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The batch it is about.
    pub batch_id: BatchId,
    /// When the batch was first received, in milliseconds since the Unix epoch.
    pub received_at: u64,
    /// Whether the batch had been received before.
    pub duplicate: bool,
    /// How many events were taken.
    pub accepted: u32,
    /// The events refused for good.
    pub rejected: Vec<Rejected>,
    /// Indexes of the events to send again, with their ids, in a new batch.
    pub retry: Vec<u32>,
}

/// An event that was refused for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its place in the batch, from 0.
    pub index: u32,
    /// Its id, if that could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<EventId>,
    /// A stable code, such as `name_too_long`.
    pub code: String,
    /// The same for people.
    pub message: String,
}

impl Event {
    /// Reads an event and checks it against the limits. Unknown members are ignored.
    ///
    /// ```
    /// # use tallymark::Event;
    /// let json = serde_json::json!({"event_type": "button_click", "button_id": "buy"});
    /// assert_eq!(Event::decode(json)?, Event::button_click("buy"));
    ///
    /// let json = serde_json::json!({"event_type": "button_click", "button_id": 7});
    /// assert_eq!(Event::decode(json).unwrap_err().to_string(), "`button_id` must be a string");
    /// # Ok::<(), tallymark::InvalidEvent>(())
    /// ```
    pub fn decode(json: Value) -> Result<Self, InvalidEvent> {
        let mut members = Members::new(json)?;
        let event_type = members.required("event_type")?;
        members.event(&event_type)
    }

    /// Reads an event from its text, several times as fast, if it is as clients write it: an object of known members,
    /// each once and of the right type, within the limits. `None` is no verdict; [`Event::decode`] has it.
    pub fn quick(json: &str) -> Option<Self> {
        // An array would do as well, for serde.
        if !json.starts_with('{') {
            return None;
        }
        let plain: Plain<'_> = serde_json::from_str(json).ok()?;
        let common = Common {
            event_id: plain.event_id,
            occurred_at: plain.occurred_at,
            session_id: plain.session_id,
            anonymous_id: plain.anonymous_id,
            user_id: plain.user_id,
            useragent: plain.useragent,
            ipaddress: plain.ipaddress,
            properties: plain.properties.map(|properties| Properties::new(&properties)).transpose().ok()?,
            weight: plain.weight,
        };
        let event = match &*plain.event_type {
            "page_view" => {
                PageView { url: plain.url?, referral_url: plain.referral_url, title: plain.title, common }.into()
            }
            "button_click" => ButtonClick { button_id: plain.button_id?, common }.into(),
            "custom" => Custom { name: plain.name?, common }.into(),
            _ => return None,
        };
        Event::validate(&event).ok()?;
        Some(event)
    }

    /// Reads an event whose type is known from elsewhere, such as the route it was posted to.
    pub fn decode_as(event_type: &str, json: Value) -> Result<Self, InvalidEvent> {
        Members::new(json)?.event(event_type)
    }
}

const WHOLE: &str = "a whole number, not negative";

/// A whole number, also one written as `1.0` or `1e3`: there are languages that have no other.
struct Whole(u64);

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WholeVisitor)
    }
}

struct WholeVisitor;

impl Visitor<'_> for WholeVisitor {
    type Value = Whole;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(WHOLE)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Whole, E> {
        Ok(Whole(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Whole, E> {
        const END: f64 = 18_446_744_073_709_551_616.0;
        if number.fract() == 0.0 && (0.0..END).contains(&number) {
            return Ok(Whole(number as u64));
        }
        Err(E::invalid_value(Unexpected::Float(number), &self))
    }
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<Whole>::deserialize(deserializer)?.map(|Whole(number)| number))
}

fn wholes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, u64>, D::Error> {
    let wholes = BTreeMap::<String, Whole>::deserialize(deserializer)?;
    Ok(wholes.into_iter().map(|(name, Whole(number))| (name, number)).collect())
}

/// The members of all types, for [`Event::quick`]. What another type has is ignored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plain<'a> {
    event_id: Option<EventId>,
    #[serde(borrow)]
    event_type: Cow<'a, str>,
    occurred_at: Option<u64>,
    session_id: Option<String>,
    anonymous_id: Option<String>,
    user_id: Option<String>,
    url: Option<String>,
    referral_url: Option<String>,
    title: Option<String>,
    button_id: Option<String>,
    name: Option<String>,
    useragent: Option<String>,
    ipaddress: Option<String>,
    properties: Option<Map<String, Value>>,
    weight: Option<u32>,
}

struct Members(Map<String, Value>);

impl Members {
    fn new(json: Value) -> Result<Self, InvalidEvent> {
        match json {
            Value::Object(members) => Ok(Self(members)),
            _ => Err(InvalidEvent::new("invalid_event", "event", Problem::NotAnObject)),
        }
    }

    fn event(mut self, event_type: &str) -> Result<Event, InvalidEvent> {
        let event_id = match self.string("event_id")? {
            Some(id) => {
                let uuid = EventId::parse(&id);
                Some(uuid.ok_or(InvalidEvent::new("invalid_event", "event_id", Problem::NotA("a UUID")))?)
            }
            None => None,
        };
        let common = Common {
            event_id,
            occurred_at: self.number("occurred_at")?,
            session_id: self.string("session_id")?,
            anonymous_id: self.string("anonymous_id")?,
            user_id: self.string("user_id")?,
            useragent: self.string("useragent")?,
            ipaddress: self.string("ipaddress")?,
            properties: match self.take("properties") {
                Some(Value::Object(properties)) => Some(Properties::new(&properties)?),
                Some(_) => {
                    return Err(InvalidEvent::new("invalid_properties", "properties", Problem::NotAnObject));
                }
                None => None,
            },
            // Out of range is for `validate` to say.
            weight: self.number("weight")?.map(|weight| u32::try_from(weight).unwrap_or(u32::MAX)),
        };
        let event = match event_type {
            "page_view" => Event::PageView(PageView {
                url: self.required("url")?,
                referral_url: self.string("referral_url")?,
                title: self.string("title")?,
                common,
            }),
            "button_click" => Event::ButtonClick(ButtonClick { button_id: self.required("button_id")?, common }),
            "custom" => Event::Custom(Custom { name: self.required("name")?, common }),
            _ => {
                return Err(InvalidEvent::new("unknown_event_type", "event_type", Problem::Unknown));
            }
        };
        event.validate()?;
        Ok(event)
    }

    /// An absent member and a null one are the same.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn required(&mut self, name: &'static str) -> Result<String, InvalidEvent> {
        // An absent one becomes empty, which `validate` reports with the code of the field.
        Ok(self.string(name)?.unwrap_or_default())
    }

    fn string(&mut self, name: &'static str) -> Result<Option<String>, InvalidEvent> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(InvalidEvent::new("invalid_event", name, Problem::NotA("a string"))),
        }
    }

    fn number(&mut self, name: &'static str) -> Result<Option<u64>, InvalidEvent> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match Whole::deserialize(value) {
                Ok(Whole(number)) => Ok(Some(number)),
                Err(_) => Err(InvalidEvent::new("invalid_event", name, Problem::NotA(WHOLE))),
            },
        }
    }
}
