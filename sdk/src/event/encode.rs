//! Writes an event as the JSON that is stored and sent.

use crate::core::id::{EventId, Random};
use crate::core::limits;
use crate::event::invalid::{InvalidEvent, Problem};
use crate::event::kinds::Event;
use crate::event::properties::not_an_object;
use serde::Serialize;
use serde_json::value::RawValue;

/// An event in its final form: its id, and the JSON that is stored and sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The event's id.
    pub event_id: EventId,
    /// The event as one JSON object on one line.
    pub json: String,
    /// When it was encoded, in milliseconds since the Unix epoch. The id of a batch has the time of its first event.
    pub encoded_at: u64,
}

/// The members of all kinds, in the order of the wire.
#[derive(Serialize)]
struct Members<'a> {
    event_id: EventId,
    event_type: &'a str,
    occurred_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    anonymous_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    referral_url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    button_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    useragent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipaddress: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
}

impl Event {
    /// Validates the event, gives it an id and a time if it has none, and writes it as JSON.
    ///
    /// `now` is in milliseconds since the Unix epoch.
    ///
    /// # Errors
    ///
    /// If the event exceeds a limit.
    pub fn encode(&self, now: u64, random: &mut impl Random) -> Result<Encoded, InvalidEvent> {
        self.validate()?;
        let common = self.common();
        let properties = common.properties.as_ref().map(|properties| serde_json::from_str(properties.as_str()));
        let (view, button_id, name) = match self {
            Self::PageView(view) => (Some(view), None, None),
            Self::ButtonClick(click) => (None, Some(&*click.button_id), None),
            Self::Custom(custom) => (None, None, Some(&*custom.name)),
        };
        let members = Members {
            event_id: common.event_id.unwrap_or_else(|| EventId::new(now, random)),
            event_type: self.event_type(),
            occurred_at: common.occurred_at.unwrap_or(now),
            session_id: common.session_id.as_deref(),
            anonymous_id: common.anonymous_id.as_deref(),
            user_id: common.user_id.as_deref(),
            url: view.map(|view| &*view.url),
            referral_url: view.and_then(|view| view.referral_url.as_deref()),
            title: view.and_then(|view| view.title.as_deref()),
            button_id,
            name,
            useragent: common.useragent.as_deref(),
            ipaddress: common.ipaddress.as_deref(),
            properties: properties.transpose().map_err(|_| not_an_object())?,
            weight: common.weight,
        };
        // Only the text of the properties could fail, and that was parsed above.
        let json = serde_json::to_string(&members).map_err(|_| not_an_object())?;
        if json.len() > limits::EVENT_BYTES {
            return Err(InvalidEvent::new("event_too_large", "event", Problem::TooLong(limits::EVENT_BYTES)));
        }
        Ok(Encoded { event_id: members.event_id, json, encoded_at: now })
    }
}
