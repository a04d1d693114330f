//! How often may be asked: a token bucket for each key and for each client address, in bounded memory.

use crate::http::problem::Problem;
use crate::sites::KeyScope;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What may be asked at once, as seconds of the rate.
const BURST: Duration = Duration::from_secs(1);
/// Buckets that are not full and must be remembered, of each kind. About 4 MB.
const BUCKETS: usize = 65_536;
/// How often full buckets are looked for when there is no room.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The limits of a server. It puts them into each request's extensions, as an `Arc`.
#[derive(Debug)]
pub struct RateLimits {
    keys: Option<Buckets<(String, KeyScope)>>,
    addresses: Option<Buckets<IpAddr>>,
}

impl RateLimits {
    /// So many requests a second for each key and each client address, and as many at once; 0 is no limit.
    pub fn new(per_key: u32, per_address: u32) -> Self {
        Self { keys: Buckets::new(per_key), addresses: Buckets::new(per_address) }
    }

    pub(crate) fn check_key(&self, username: &str, key: KeyScope) -> Result<(), Problem> {
        let Some(buckets) = &self.keys else { return Ok(()) };
        buckets.take((username.into(), key)).map_err(|wait| Problem::rate_limited("with this key", wait))
    }

    pub(crate) fn check_address(&self, address: IpAddr) -> Result<(), Problem> {
        let Some(buckets) = &self.addresses else { return Ok(()) };
        buckets.take(network(address)).map_err(|wait| Problem::rate_limited("from this address", wait))
    }
}

/// Whoever has one IPv6 address has 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
struct Buckets<K> {
    /// What one request takes: the time it takes to come back.
    cost: Duration,
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    /// When each bucket is full again. One that is full need not be remembered.
    full_at: HashMap<K, Instant>,
    swept_at: Instant,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(per_second: u32) -> Option<Self> {
        let cost = Duration::from_secs(1).checked_div(per_second)?;
        Some(Self { cost, state: Mutex::new(State { full_at: HashMap::new(), swept_at: Instant::now() }) })
    }

    /// Takes one, or says how long to wait for it.
    fn take(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.full_at.len() >= BUCKETS {
            if now - state.swept_at >= SWEEP_EVERY {
                state.swept_at = now;
                state.full_at.retain(|_, full_at| *full_at > now);
            }
            if state.full_at.len() >= BUCKETS && !state.full_at.contains_key(&key) {
                return Err(SWEEP_EVERY);
            }
        }
        let full_at = state.full_at.entry(key).or_insert(now);
        let after = (*full_at).max(now) + self.cost;
        match (after - now).checked_sub(BURST) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                *full_at = after;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_rate_and_no_more() {
        let buckets = Buckets::new(10).unwrap();
        for _ in 0..10 {
            buckets.take("a").unwrap();
        }
        assert_eq!(buckets.take("a"), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take("b"), Ok(()), "another's");
        // Who keeps asking is not put off by it.
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(buckets.take("a"), Ok(()));
        let mut taken = 0;
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(10)).await;
            taken += u32::from(buckets.take("a").is_ok());
        }
        assert_eq!(taken, 100, "ten seconds at ten a second");
        assert!(Buckets::<u8>::new(0).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_addresses_takes_bounded_memory() {
        let buckets = Buckets::new(1).unwrap();
        let known = buckets.take(0);
        let taken = (1..2 * BUCKETS).filter(|n| buckets.take(*n).is_ok()).count();
        assert_eq!((known, taken), (Ok(()), BUCKETS - 1));
        assert_eq!(buckets.state.lock().unwrap().full_at.len(), BUCKETS);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(buckets.take(2 * BUCKETS), Ok(()), "there is room again");
        assert_eq!(buckets.state.lock().unwrap().full_at.len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
