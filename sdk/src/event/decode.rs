//! Reads events from JSON, as the collector receives them.

use crate::core::id::EventId;
use crate::event::invalid::{InvalidEvent, Problem};
use crate::event::kinds::{ButtonClick, Common, Custom, Event, PageView};
use crate::event::properties::{Properties, not_an_object};
use crate::wire::{WHOLE, Whole};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::borrow::Cow;

impl Event {
    /// Reads an event and validates it. Unknown members are ignored.
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
    ///
    /// # Errors
    ///
    /// If a member has the wrong type, or the event is invalid.
    pub fn decode(json: Value) -> Result<Self, InvalidEvent> {
        let mut members = Members::new(json)?;
        let event_type = members.required("event_type")?;
        members.event(&event_type)
    }

    /// Reads an event from text several times faster than [`Event::decode`], if the text is as clients write it: an
    /// object of known members, each once and of the right type, within the limits.
    ///
    /// `None` does not mean that the event is invalid. Call [`Event::decode`] to find out.
    pub fn decode_fast(json: &str) -> Option<Self> {
        // serde would also read the members from an array.
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

    /// Reads an event whose type is given by something else, such as the route it was posted to.
    ///
    /// # Errors
    ///
    /// As [`decode`](Event::decode).
    pub fn decode_as(event_type: &str, json: Value) -> Result<Self, InvalidEvent> {
        Members::new(json)?.event(event_type)
    }
}

/// The members of all kinds, for [`Event::decode_fast`].
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
                Some(_) => return Err(not_an_object()),
                None => None,
            },
            // `validate` reports a number that is out of range.
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
            _ => return Err(InvalidEvent::new("unknown_event_type", "event_type", Problem::Unknown)),
        };
        event.validate()?;
        Ok(event)
    }

    /// A null member counts as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name).filter(|value| !value.is_null())
    }

    fn required(&mut self, name: &'static str) -> Result<String, InvalidEvent> {
        // An absent member becomes empty, which `validate` reports with the code of the field.
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
