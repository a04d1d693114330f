//! The JSON object that a caller attaches to an event, kept as text.

use crate::core::limits;
use crate::event::invalid::{InvalidEvent, Problem};
use serde::Serialize;
use serde_json::Value;

/// A JSON object of the caller's own, kept as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties(String);

impl Default for Properties {
    fn default() -> Self {
        Self("{}".into())
    }
}

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
    ///
    /// # Errors
    ///
    /// If `value` does not serialise to a JSON object.
    pub fn new<T: Serialize + ?Sized>(value: &T) -> Result<Self, InvalidEvent> {
        Self::in_braces(serde_json::to_string(value).unwrap_or_default())
    }

    /// Takes the text of a JSON object as a serialiser such as `JSON.stringify` writes it: without line breaks.
    ///
    /// # Errors
    ///
    /// If the text is not a JSON object, or has a line break.
    pub fn from_stringified(json: String) -> Result<Self, InvalidEvent> {
        let properties = Self::in_braces(json)?;
        // Parse it as the collector does, which finds numbers that are too large. Validation of the event reports
        // text that is nested too deep.
        if properties.depth() <= limits::PROPERTIES_DEPTH {
            serde_json::from_str::<Value>(&properties.0).map_err(|_| not_an_object())?;
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

    pub(super) fn insert(&mut self, name: &str, value: Value) {
        let member = Value::Object([(name.to_owned(), value)].into_iter().collect()).to_string();
        self.0.pop();
        if !self.0[1..].trim_ascii().is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&member[1..]);
    }

    /// How deep the arrays and objects are nested.
    pub(super) fn depth(&self) -> usize {
        let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
        for byte in self.0.bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = !quoted,
                b'{' | b'[' if !quoted => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        deepest
    }
}

pub(super) fn not_an_object() -> InvalidEvent {
    InvalidEvent::new("invalid_properties", "properties", Problem::NotAnObject)
}
