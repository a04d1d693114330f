//! The limits that clients and the collector share. The collector publishes them at `GET /v1/limits`.
//!
//! Lengths are bytes of UTF-8.

/// The most events in a batch.
pub const BATCH_EVENTS: usize = 500;
/// The longest batch body, uncompressed.
pub const BATCH_BYTES: usize = 512 * 1024;
/// The longest event, as JSON.
pub const EVENT_BYTES: usize = 32 * 1024;
/// The longest `url` and `referral_url`.
pub const URL_BYTES: usize = 4 * 1024;
/// The longest `title`.
pub const TITLE_BYTES: usize = 1024;
/// The longest `button_id`.
pub const BUTTON_ID_BYTES: usize = 256;
/// The longest `name`, `session_id`, `anonymous_id` and `user_id`.
pub const NAME_BYTES: usize = 128;
/// The longest `useragent`.
pub const USERAGENT_BYTES: usize = 1024;
/// The longest `ipaddress`: the longest text form of an IPv6 address.
pub const IPADDRESS_BYTES: usize = 45;
/// How deep `properties` may be nested. JSON parsers have a depth limit, and one that stops inside a batch cannot read
/// the other events either.
pub const PROPERTIES_DEPTH: usize = 100;
/// The most events that one sampled event may stand for.
pub const WEIGHT: u32 = 1_000_000;
/// The most reasons in a batch's `lost`.
pub const LOST_REASONS: usize = 16;
