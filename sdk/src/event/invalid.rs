//! Why an event is invalid.

use core::fmt;

/// An event that exceeds a limit or lacks a required field, and that no collector accepts.
///
/// The text names the field and the limit, never the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidEvent {
    code: &'static str,
    field: &'static str,
    problem: Problem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    Missing,
    TooLong(usize),
    OutOfRange(u32),
    TooDeep(usize),
    NotAnObject,
    NotA(&'static str),
    Unknown,
}

impl InvalidEvent {
    pub(super) fn new(code: &'static str, field: &'static str, problem: Problem) -> Self {
        Self { code, field, problem }
    }

    /// A stable code such as `name_too_long`, the same as in a receipt's `rejected`.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The field that is invalid, or `event` for the event as a whole.
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
            Problem::NotA(what) => write!(f, "`{field}` must be {what}"),
            Problem::Unknown => write!(f, "`{field}` must be page_view, button_click or custom"),
        }
    }
}

impl core::error::Error for InvalidEvent {}
