//! The kinds of events: page views, button clicks and custom events.

use crate::core::id::EventId;
use crate::event::properties::Properties;

/// One event.
///
/// Made from a [`PageView`], a [`ButtonClick`] or a [`Custom`], or with the shorthands [`Event::page_view`],
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
    /// A page was viewed. Counted by `url`.
    PageView(PageView),
    /// A button was clicked. Counted by `button_id`.
    ButtonClick(ButtonClick),
    /// Anything else. Counted by `name`.
    Custom(Custom),
}

/// A page was viewed.
#[derive(Clone, Debug, PartialEq)]
pub struct PageView {
    pub(crate) url: String,
    pub(crate) referral_url: Option<String>,
    pub(crate) title: Option<String>,
    pub(crate) common: Common,
}

/// A button was clicked.
#[derive(Clone, Debug, PartialEq)]
pub struct ButtonClick {
    pub(crate) button_id: String,
    pub(crate) common: Common,
}

/// An event with a name and properties of your choice.
#[derive(Clone, Debug, PartialEq)]
pub struct Custom {
    pub(crate) name: String,
    pub(crate) common: Common,
}

/// The fields that every event may have.
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

    /// The URL of the page that linked here, at most 4 KiB.
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
    /// A click on the button `button_id`: not empty, at most 256 bytes.
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
            /// The session that the event belongs to, at most 128 bytes.
            pub fn session_id(mut self, id: impl Into<String>) -> Self {
                self.common.session_id = Some(id.into());
                self
            }

            /// An id of the visitor that does not identify the person, at most 128 bytes.
            pub fn anonymous_id(mut self, id: impl Into<String>) -> Self {
                self.common.anonymous_id = Some(id.into());
                self
            }

            /// The site's own id of the person, at most 128 bytes.
            pub fn user_id(mut self, id: impl Into<String>) -> Self {
                self.common.user_id = Some(id.into());
                self
            }

            /// The visitor's user agent, for events sent by a server; at most 1 KiB.
            pub fn useragent(mut self, useragent: impl Into<String>) -> Self {
                self.common.useragent = Some(useragent.into());
                self
            }

            /// The visitor's IP address, for events sent by a server; at most 45 bytes. The collector stores it
            /// only if the site is set up for that.
            pub fn ipaddress(mut self, address: impl Into<String>) -> Self {
                self.common.ipaddress = Some(address.into());
                self
            }

            /// Adds one property. If a name is set twice, the last value wins.
            pub fn property(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
                self.common.properties.get_or_insert_with(Properties::default).insert(name, value.into());
                self
            }

            /// Replaces all properties.
            pub fn properties(mut self, properties: Properties) -> Self {
                self.common.properties = Some(properties);
                self
            }

            /// The number of events that a sampled event stands for, from 1 to 1,000,000.
            pub fn weight(mut self, weight: u32) -> Self {
                self.common.weight = Some(weight);
                self
            }

            /// When the event happened, in milliseconds since the Unix epoch. Default: when it is tracked.
            pub fn occurred_at(mut self, milliseconds: u64) -> Self {
                self.common.occurred_at = Some(milliseconds);
                self
            }

            /// The id of an event that already has one. Default: a new id. An importer that gives the same event the
            /// same id can run again, because the lake is deduplicated by event id.
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

    /// The event type on the wire: `page_view`, `button_click` or `custom`.
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::PageView(_) => "page_view",
            Self::ButtonClick(_) => "button_click",
            Self::Custom(_) => "custom",
        }
    }

    /// The key that the event is counted by: its `url`, `button_id` or `name`.
    pub fn key(&self) -> &str {
        match self {
            Self::PageView(view) => &view.url,
            Self::ButtonClick(click) => &click.button_id,
            Self::Custom(custom) => &custom.name,
        }
    }

    /// The event's id, if it has one yet.
    pub fn event_id(&self) -> Option<EventId> {
        self.common().event_id
    }

    /// When the event happened, in milliseconds since the Unix epoch, if it has a time yet.
    pub fn occurred_at(&self) -> Option<u64> {
        self.common().occurred_at
    }

    /// The session that the event belongs to.
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

    /// Sets what the collector decides: the id of an event that came without one, the time by the collector's clock,
    /// and whether to keep the IP address.
    pub fn stamp(&mut self, event_id: EventId, occurred_at: u64, keep_ipaddress: bool) {
        let common = self.common_mut();
        common.event_id = Some(event_id);
        common.occurred_at = Some(occurred_at);
        if !keep_ipaddress {
            common.ipaddress = None;
        }
    }

    /// The visitor's user agent.
    pub fn useragent(&self) -> Option<&str> {
        self.common().useragent.as_deref()
    }
}
