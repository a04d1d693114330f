//! Events: their three kinds, their limits, and their JSON.

mod decode;
mod encode;
mod invalid;
mod kinds;
mod properties;
mod validate;

pub use encode::Encoded;
pub use invalid::InvalidEvent;
pub use kinds::{ButtonClick, Custom, Event, PageView};
pub use properties::Properties;
