//! The sans-I/O core: decides what happens to events, and does nothing itself.
//!
//! Nothing in this folder does I/O, reads a clock, draws randomness or spawns anything. Drivers pass in the time and
//! random bits: the [client](crate::Client) in a service, the browser tracker in a page, a virtual clock in tests.

pub(crate) mod body;
pub(crate) mod clock;
pub(crate) mod id;
pub mod limits;
pub(crate) mod loss;
pub mod outbox;
pub mod queue;
pub(crate) mod retry;
#[cfg(feature = "client")]
pub(crate) mod settlement;
