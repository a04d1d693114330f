//! What can be asked of the counters.

/// Milliseconds in an hour, the finest step of a series.
pub const HOUR: u64 = 3_600_000;
/// Milliseconds in a day.
pub const DAY: u64 = 24 * HOUR;
/// The most points a series has.
pub const SERIES_POINTS: u64 = 2_000;
/// The most keys that `top` answers.
pub const TOP_KEYS: u32 = 1_000;

/// Which counter, and of which hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The site.
    pub username: String,
    /// `page_view`, `button_click`, `custom` or `lost`.
    pub event_type: String,
    /// The key; empty for the total of the type.
    pub counter_key: String,
}

/// Hours since the Unix epoch: from the first, up to and without the last.
pub type Hours = std::ops::Range<u64>;
