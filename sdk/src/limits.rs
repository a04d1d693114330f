//! The limits that clients and the collector share. The collector publishes them at `GET /v1/limits`.
//! Lengths are bytes of UTF-8.

/// Events in one batch.
pub const BATCH_EVENTS: usize = 500;
/// Bytes of one batch body, decoded.
pub const BATCH_BYTES: usize = 512 * 1024;
/// Bytes of one event as JSON.
pub const EVENT_BYTES: usize = 32 * 1024;
/// Bytes of `url` and of `referral_url`.
pub const URL_BYTES: usize = 4 * 1024;
/// Bytes of `title`.
pub const TITLE_BYTES: usize = 1024;
/// Bytes of `button_id`.
pub const BUTTON_ID_BYTES: usize = 256;
/// Bytes of `name`, `session_id`, `anonymous_id` and `user_id`.
pub const NAME_BYTES: usize = 128;
/// Bytes of `useragent`.
pub const USERAGENT_BYTES: usize = 1024;
/// Bytes of `ipaddress`: the longest IPv6 text form.
pub const IPADDRESS_BYTES: usize = 45;
/// How deep `properties` may be nested. JSON readers stop somewhere, and one that stops inside a batch
/// cannot read its neighbours either.
pub const PROPERTIES_DEPTH: usize = 100;
/// How many events one sampled event may stand for.
pub const WEIGHT: u32 = 1_000_000;
/// Reasons in a batch's `lost`.
pub const LOST_REASONS: usize = 16;
