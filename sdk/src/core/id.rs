//! Event and batch ids: UUIDv7, made from a time and random bits that the caller provides.

use core::fmt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A source of random bits. The core makes none of its own.
///
/// Any `FnMut() -> u64` is one. The uniqueness of ids depends on it, so use a generator seeded by the operating system
/// or the browser.
pub trait Random {
    /// The next 64 random bits.
    fn random(&mut self) -> u64;
}

impl<F: FnMut() -> u64> Random for F {
    fn random(&mut self) -> u64 {
        self()
    }
}

fn v7(now: u64, random: &mut impl Random) -> Uuid {
    let mut bits = [0; 10];
    bits[..8].copy_from_slice(&random.random().to_le_bytes());
    bits[8..].copy_from_slice(&random.random().to_le_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(now, &bits).into_uuid()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id for the time `now`, in milliseconds since the Unix epoch.
            pub fn new(now: u64, random: &mut impl Random) -> Self {
                Self(v7(now, random))
            }

            /// The id as 36 characters, lower case: `0192f3c1-…`.
            pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
                self.0.hyphenated().encode_lower(buffer)
            }

            /// Parses an id: a UUID of any version. Returns `None` for any other text.
            pub fn parse(text: &str) -> Option<Self> {
                Uuid::try_parse(text).ok().map(Self)
            }

            /// The id as a UUID.
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// Identifies one event: on the wire, in the lake, and wherever events are deduplicated.
    EventId
}

id! {
    /// Identifies one sealed batch, whose body never changes. The collector counts each batch id once.
    BatchId
}

impl BatchId {
    /// The id of a part of this batch: 0 for the events that the collector asks for again, 1 and 2 for its halves.
    ///
    /// It is derived from the id of the whole, so that a client that finds both after a crash recognises the part. The
    /// part keeps the time of the whole.
    pub(crate) fn child(self, number: u8) -> Self {
        let (high, low) = self.0.as_u64_pair();
        let low = mix(low ^ mix(high ^ (u64::from(number) + 1)));
        let mut bits = [0; 10];
        bits[..8].copy_from_slice(&low.to_le_bytes());
        bits[8..].copy_from_slice(&mix(low).to_le_bytes()[..2]);
        Self(uuid::Builder::from_unix_timestamp_millis(self.made_at(), &bits).into_uuid())
    }

    /// When the id was made, in milliseconds since the Unix epoch.
    pub(crate) fn made_at(self) -> u64 {
        self.0.as_u64_pair().0 >> 16
    }
}

/// The ids that are parts of another of them, as a crash may leave them.
pub(crate) fn parts(ids: impl Iterator<Item = BatchId>, is_there: impl Fn(BatchId) -> bool) -> Vec<BatchId> {
    ids.flat_map(|whole| (0..=2).map(move |number| whole.child(number))).filter(|part| is_there(*part)).collect()
}

/// The finaliser of SplitMix64: every input bit affects every output bit.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
