//! What is counted: page views, button clicks and custom events, with their limits.

use crate::id::{EventId, Random};
use crate::json::{self, Object};
use crate::limits;
use core::fmt;

/// One event.
///
/// Made from one of its three kinds, or with the shorthands [`Event::page_view`],
/// [`Event::button_click`] and [`Event::custom`]:
///
/// ```
/// use tallymark::{ButtonClick, Event, PageView};
///
/// let view: Event = PageView::new("https://shop.example/").title("Shop").session_id("s1").into();
/// let click: Event = ButtonClick::new("buy").session_id("s1").into();
/// assert!(view.validate().is_ok());
/// assert!(Event::custom("").validate().unwrap_err().code() == "name_missing");
/// # let _ = click;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A page was seen. Counted by `url`.
    PageView(PageView),
    /// A button was pressed. Counted by `button_id`.
    ButtonClick(ButtonClick),
    /// Anything else. Counted by `name`.
    Custom(Custom),
}

/// A page was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct PageView {
    pub(crate) url: String,
    pub(crate) referral_url: Option<String>,
    pub(crate) title: Option<String>,
    pub(crate) common: Common,
}

/// A button was pressed.
#[derive(Clone, Debug, PartialEq)]
pub struct ButtonClick {
    pub(crate) button_id: String,
    pub(crate) common: Common,
}

/// An event of a kind of your own.
#[derive(Clone, Debug, PartialEq)]
pub struct Custom {
    pub(crate) name: String,
    pub(crate) common: Common,
}

/// What every event may carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Common {
    pub(crate) event_id: Option<EventId>,
    pub(crate) occurred_at: Option<u64>,
    pub(crate) session_id: Option<String>,
    pub(crate) anonymous_id: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) useragent: Option<String>,
    pub(crate) ipaddress: Option<String>,
    pub(crate) properties: Option<Properties>,
    pub(crate) weight: Option<u32>,
}

impl PageView {
    /// A view of the page at `url`: not empty, at most 4 KiB.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), referral_url: None, title: None, common: Common::default() }
    }

    /// The page that led here, at most 4 KiB.
    pub fn referral_url(mut self, url: impl Into<String>) -> Self {
        self.referral_url = Some(url.into());
        self
    }

    /// The page's title, at most 1 KiB.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }
}

impl ButtonClick {
    /// A click on the button that the site calls `button_id`: not empty, at most 256 bytes.
    pub fn new(button_id: impl Into<String>) -> Self {
        Self { button_id: button_id.into(), common: Common::default() }
    }
}

impl Custom {
    /// An event called `name`: not empty, at most 128 bytes.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), common: Common::default() }
    }
}

macro_rules! common_setters {
    ($($kind:ident)*) => {$(
        impl $kind {
            /// The visit it belongs to, at most 128 bytes.
            pub fn session_id(mut self, id: impl Into<String>) -> Self {
                self.common.session_id = Some(id.into());
                self
            }

            /// The visitor, where the site knows no name for them; at most 128 bytes.
            pub fn anonymous_id(mut self, id: impl Into<String>) -> Self {
                self.common.anonymous_id = Some(id.into());
                self
            }

            /// The site's own name for the person, at most 128 bytes.
            pub fn user_id(mut self, id: impl Into<String>) -> Self {
                self.common.user_id = Some(id.into());
                self
            }

            /// The visitor's user agent, when a server reports for them; at most 1 KiB.
            pub fn useragent(mut self, useragent: impl Into<String>) -> Self {
                self.common.useragent = Some(useragent.into());
                self
            }

            /// The visitor's IP address, when a server reports for them. The collector stores it only
            /// where the site asks for that.
            pub fn ipaddress(mut self, address: impl Into<String>) -> Self {
                self.common.ipaddress = Some(address.into());
                self
            }

            /// Adds one property. Set twice, the last one holds.
            #[cfg(feature = "json")]
            pub fn property(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
                self.common.properties.get_or_insert_with(Properties::default).insert(name, &value.into());
                self
            }

            /// Replaces all properties.
            pub fn properties(mut self, properties: Properties) -> Self {
                self.common.properties = Some(properties);
                self
            }

            /// How many events this one stands for, when it is a sample; 1 to 1,000,000.
            pub fn weight(mut self, weight: u32) -> Self {
                self.common.weight = Some(weight);
                self
            }

            /// When it happened, in milliseconds since the Unix epoch. Otherwise: when it is tracked.
            pub fn occurred_at(mut self, milliseconds: u64) -> Self {
                self.common.occurred_at = Some(milliseconds);
                self
            }

            /// Its id, when it has one already. An importer that gives the same event the same id can be
            /// run again: the lake is deduplicated by it.
            pub fn event_id(mut self, id: EventId) -> Self {
                self.common.event_id = Some(id);
                self
            }
        }

        impl From<$kind> for Event {
            fn from(kind: $kind) -> Self {
                Self::$kind(kind)
            }
        }
    )*};
}

common_setters!(PageView ButtonClick Custom);

/// A JSON object of the caller's own, kept as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties(String);

impl Default for Properties {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl Properties {
    /// Takes the text that a JSON serialiser made of an object, as `JSON.stringify` does: complete and
    /// without line breaks. Without the feature `json` only that and the outermost braces are checked, and text that is
    /// no JSON costs its whole batch.
    pub fn from_stringified(json: String) -> Result<Self, InvalidEvent> {
        let properties = Self::in_braces(json)?;
        // As the collector reads it, for which a number may be too large. What is too deep has an error of its own.
        #[cfg(feature = "json")]
        if json::depth(&properties.0) <= limits::PROPERTIES_DEPTH {
            serde_json::from_str::<serde_json::Value>(&properties.0).map_err(|_| not_an_object())?;
        }
        Ok(properties)
    }

    fn in_braces(json: String) -> Result<Self, InvalidEvent> {
        let bytes = json.as_bytes();
        if bytes.starts_with(b"{") && bytes.ends_with(b"}") && !bytes.contains(&b'\n') {
            Ok(Self(json))
        } else {
            Err(not_an_object())
        }
    }

    /// The properties as JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn not_an_object() -> InvalidEvent {
    InvalidEvent::new("invalid_properties", "properties", Problem::NotAnObject)
}

#[cfg(feature = "json")]
impl Properties {
    /// Serialises `value`, which must become a JSON object.
    ///
    /// ```
    /// # use tallymark::Properties;
    /// let properties = Properties::new(&serde_json::json!({"value": 100}))?;
    /// assert_eq!(properties.as_str(), r#"{"value":100}"#);
    /// assert!(Properties::new(&"no object").is_err());
    /// # Ok::<(), tallymark::InvalidEvent>(())
    /// ```
    pub fn new<T: serde::Serialize + ?Sized>(value: &T) -> Result<Self, InvalidEvent> {
        Self::in_braces(serde_json::to_string(value).unwrap_or_default())
    }

    fn insert(&mut self, name: &str, value: &serde_json::Value) {
        self.0.pop();
        if !self.0[1..].trim_ascii().is_empty() {
            self.0.push(',');
        }
        json::string(&mut self.0, name);
        self.0.push(':');
        match value {
            serde_json::Value::String(text) => json::string(&mut self.0, text),
            value => self.0.push_str(&value.to_string()),
        }
        self.0.push('}');
    }
}

/// An event in its final form: its id, and the JSON that is stored and sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The event's id.
    pub event_id: EventId,
    /// The event as one JSON object on one line.
    pub json: String,
}

impl Event {
    /// A [`PageView`] of `url`.
    pub fn page_view(url: impl Into<String>) -> Self {
        PageView::new(url).into()
    }

    /// A [`ButtonClick`] on `button_id`.
    pub fn button_click(button_id: impl Into<String>) -> Self {
        ButtonClick::new(button_id).into()
    }

    /// A [`Custom`] event called `name`.
    pub fn custom(name: impl Into<String>) -> Self {
        Custom::new(name).into()
    }

    /// `page_view`, `button_click` or `custom`, as on the wire.
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::PageView(_) => "page_view",
            Self::ButtonClick(_) => "button_click",
            Self::Custom(_) => "custom",
        }
    }

    /// What it is counted by: its `url`, `button_id` or `name`.
    pub fn key(&self) -> &str {
        match self {
            Self::PageView(view) => &view.url,
            Self::ButtonClick(click) => &click.button_id,
            Self::Custom(custom) => &custom.name,
        }
    }

    /// Its id, if it has one yet.
    pub fn event_id(&self) -> Option<EventId> {
        self.common().event_id
    }

    /// When it happened, if that is known yet.
    pub fn occurred_at(&self) -> Option<u64> {
        self.common().occurred_at
    }

    /// The visit it belongs to.
    pub fn session_id(&self) -> Option<&str> {
        self.common().session_id.as_deref()
    }

    pub(crate) fn common(&self) -> &Common {
        match self {
            Self::PageView(view) => &view.common,
            Self::ButtonClick(click) => &click.common,
            Self::Custom(custom) => &custom.common,
        }
    }

    fn common_mut(&mut self) -> &mut Common {
        match self {
            Self::PageView(view) => &mut view.common,
            Self::ButtonClick(click) => &mut click.common,
            Self::Custom(custom) => &mut custom.common,
        }
    }

    /// Fixes what a collector knows better than the client: the id of an event that came without one,
    /// the time by the collector's clock, and whether an address may stay.
    pub fn observed(&mut self, event_id: EventId, occurred_at: u64, keep_ipaddress: bool) {
        let common = self.common_mut();
        common.event_id = Some(event_id);
        common.occurred_at = Some(occurred_at);
        if !keep_ipaddress {
            common.ipaddress = None;
        }
    }

    /// The user agent that came with the event.
    pub fn useragent(&self) -> Option<&str> {
        self.common().useragent.as_deref()
    }

    /// Checks every field against its limit, but not the size of the whole.
    pub fn validate(&self) -> Result<(), InvalidEvent> {
        match self {
            Self::PageView(view) => {
                URL.required(&view.url)?;
                REFERRAL_URL.optional(view.referral_url.as_deref())?;
                TITLE.optional(view.title.as_deref())?;
            }
            Self::ButtonClick(click) => BUTTON_ID.required(&click.button_id)?,
            Self::Custom(custom) => NAME.required(&custom.name)?,
        }
        let common = self.common();
        SESSION_ID.optional(common.session_id.as_deref())?;
        ANONYMOUS_ID.optional(common.anonymous_id.as_deref())?;
        USER_ID.optional(common.user_id.as_deref())?;
        USERAGENT.optional(common.useragent.as_deref())?;
        IPADDRESS.optional(common.ipaddress.as_deref())?;
        if common.properties.as_ref().is_some_and(|properties| json::depth(&properties.0) > limits::PROPERTIES_DEPTH) {
            return Err(InvalidEvent::new(
                "properties_too_deep",
                "properties",
                Problem::TooDeep(limits::PROPERTIES_DEPTH),
            ));
        }
        match common.weight {
            Some(weight) if weight == 0 || weight > limits::WEIGHT => {
                Err(InvalidEvent::new("weight_out_of_range", "weight", Problem::OutOfRange(limits::WEIGHT as usize)))
            }
            _ => Ok(()),
        }
    }

    /// Checks the event, gives it an id and a time if it has none, and writes it as JSON.
    ///
    /// `now` is in milliseconds since the Unix epoch.
    pub fn encode(&self, now: u64, random: &mut impl Random) -> Result<Encoded, InvalidEvent> {
        self.validate()?;
        let common = self.common();
        let event_id = common.event_id.unwrap_or_else(|| EventId::new(now, random));
        let mut json = String::with_capacity(192 + self.key().len());
        let mut object = Object::begin(&mut json);
        object.string("event_id", event_id.encode(&mut [0; 36]));
        object.string("event_type", self.event_type());
        object.number("occurred_at", common.occurred_at.unwrap_or(now));
        object.optional("session_id", common.session_id.as_deref());
        object.optional("anonymous_id", common.anonymous_id.as_deref());
        object.optional("user_id", common.user_id.as_deref());
        match self {
            Self::PageView(view) => {
                object.string("url", &view.url);
                object.optional("referral_url", view.referral_url.as_deref());
                object.optional("title", view.title.as_deref());
            }
            Self::ButtonClick(click) => object.string("button_id", &click.button_id),
            Self::Custom(custom) => object.string("name", &custom.name),
        }
        object.optional("useragent", common.useragent.as_deref());
        object.optional("ipaddress", common.ipaddress.as_deref());
        if let Some(properties) = &common.properties {
            object.raw("properties", &properties.0);
        }
        if let Some(weight) = common.weight {
            object.number("weight", u64::from(weight));
        }
        object.end();
        if json.len() > limits::EVENT_BYTES {
            return Err(InvalidEvent::new("event_too_large", "event", Problem::TooLong(limits::EVENT_BYTES)));
        }
        Ok(Encoded { event_id, json })
    }
}

struct Field {
    name: &'static str,
    bytes: usize,
    too_long: &'static str,
    missing: &'static str,
}

macro_rules! fields {
    ($($constant:ident $name:literal $bytes:ident;)*) => {$(
        const $constant: Field = Field {
            name: $name,
            bytes: limits::$bytes,
            too_long: concat!($name, "_too_long"),
            missing: concat!($name, "_missing"),
        };
    )*};
}

fields! {
    URL "url" URL_BYTES;
    REFERRAL_URL "referral_url" URL_BYTES;
    TITLE "title" TITLE_BYTES;
    BUTTON_ID "button_id" BUTTON_ID_BYTES;
    NAME "name" NAME_BYTES;
    SESSION_ID "session_id" NAME_BYTES;
    ANONYMOUS_ID "anonymous_id" NAME_BYTES;
    USER_ID "user_id" NAME_BYTES;
    USERAGENT "useragent" USERAGENT_BYTES;
    IPADDRESS "ipaddress" IPADDRESS_BYTES;
}

impl Field {
    fn required(&self, value: &str) -> Result<(), InvalidEvent> {
        if value.is_empty() {
            return Err(InvalidEvent::new(self.missing, self.name, Problem::Missing));
        }
        self.optional(Some(value))
    }

    fn optional(&self, value: Option<&str>) -> Result<(), InvalidEvent> {
        match value {
            Some(value) if value.len() > self.bytes => {
                Err(InvalidEvent::new(self.too_long, self.name, Problem::TooLong(self.bytes)))
            }
            _ => Ok(()),
        }
    }
}

/// Why an event cannot be accepted: which field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidEvent {
    code: &'static str,
    field: &'static str,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Missing,
    TooLong(usize),
    OutOfRange(usize),
    TooDeep(usize),
    NotAnObject,
    #[cfg(feature = "json")]
    NotA(&'static str),
    #[cfg(feature = "json")]
    Unknown,
}

impl InvalidEvent {
    pub(crate) fn new(code: &'static str, field: &'static str, problem: Problem) -> Self {
        Self { code, field, problem }
    }

    /// A stable code such as `name_too_long`; the same that a receipt's `rejected` gives.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The field it is about.
    pub fn field(&self) -> &'static str {
        self.field
    }
}

impl fmt::Display for InvalidEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = self.field;
        match self.problem {
            Problem::Missing => write!(f, "`{field}` is missing or empty"),
            Problem::TooLong(bytes) => write!(f, "`{field}` is longer than {bytes} bytes"),
            Problem::OutOfRange(most) => write!(f, "`{field}` must be from 1 to {most}"),
            Problem::TooDeep(levels) => write!(f, "`{field}` is nested deeper than {levels} levels"),
            Problem::NotAnObject => write!(f, "`{field}` must be a JSON object"),
            #[cfg(feature = "json")]
            Problem::NotA(what) => write!(f, "`{field}` must be {what}"),
            #[cfg(feature = "json")]
            Problem::Unknown => write!(f, "`{field}` must be page_view, button_click or custom"),
        }
    }
}

impl core::error::Error for InvalidEvent {}
