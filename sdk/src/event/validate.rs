//! The limits of each field.

use crate::core::limits;
use crate::event::invalid::{InvalidEvent, Problem};
use crate::event::kinds::Event;

impl Event {
    /// Checks each field against its limit, but not the size of the whole event.
    ///
    /// # Errors
    ///
    /// If a field is missing or exceeds its limit.
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
        if common.properties.as_ref().is_some_and(|properties| properties.depth() > limits::PROPERTIES_DEPTH) {
            let too_deep = Problem::TooDeep(limits::PROPERTIES_DEPTH);
            return Err(InvalidEvent::new("properties_too_deep", "properties", too_deep));
        }
        match common.weight {
            Some(weight) if weight == 0 || weight > limits::WEIGHT => {
                Err(InvalidEvent::new("weight_out_of_range", "weight", Problem::OutOfRange(limits::WEIGHT)))
            }
            _ => Ok(()),
        }
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
