//! Request rates: a token bucket for each key and for each client address, in bounded memory.

use crate::http::problem::Problem;
use crate::sites::KeyScope;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::{Quota, RateLimiter};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The most buckets of each kind that are not full. About 4 MB.
const BUCKETS: usize = 65_536;
/// How often full buckets are removed when there is no room for another.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The limits of a server.
#[derive(Debug)]
pub struct RateLimits {
    keys: Option<Buckets<(String, KeyScope)>>,
    addresses: Option<Buckets<IpAddr>>,
}

impl RateLimits {
    /// No limits, for a collector behind a front door that has its own.
    pub const OFF: Self = Self { keys: None, addresses: None };

    /// Limits of so many requests a second for each key and for each client address, which may all come at once; 0 is
    /// no limit.
    pub fn new(per_key: u32, per_address: u32) -> Self {
        Self { keys: Buckets::new(per_key), addresses: Buckets::new(per_address) }
    }

    pub(crate) fn check_key(&self, username: &str, scope: KeyScope) -> Result<(), Problem> {
        let Some(buckets) = &self.keys else { return Ok(()) };
        buckets.take(&(username.into(), scope)).map_err(|wait| Problem::rate_limited("with this key", wait))
    }

    pub(crate) fn check_address(&self, address: IpAddr) -> Result<(), Problem> {
        let Some(buckets) = &self.addresses else { return Ok(()) };
        buckets.take(&network(address)).map_err(|wait| Problem::rate_limited("from this address", wait))
    }
}

/// The network that counts as one client: a client that has one IPv6 address usually has all 2^64 of its network.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        address @ IpAddr::V4(_) => address,
    }
}

#[derive(Debug)]
struct Buckets<K: Hash + Eq + Clone> {
    limiter: RateLimiter<K, FullAt<K>, TokioClock, NoOpMiddleware<Nanos>>,
    full_at: FullAt<K>,
    clock: TokioClock,
    swept_at: Mutex<Instant>,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(per_second: u32) -> Option<Self> {
        let quota = Quota::per_second(NonZeroU32::new(per_second)?);
        let (full_at, clock) = (FullAt::default(), TokioClock(Instant::now()));
        let limiter = RateLimiter::new(quota, full_at.clone(), clock.clone());
        Some(Self { limiter, full_at, swept_at: Mutex::new(clock.0), clock })
    }

    /// Takes one token, or returns how long to wait for it.
    fn take(&self, key: &K) -> Result<(), Duration> {
        if !self.has_room_for(key) {
            return Err(SWEEP_EVERY);
        }
        self.limiter.check_key(key).map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    fn has_room_for(&self, key: &K) -> bool {
        let is_full = || {
            let buckets = self.full_at.lock();
            buckets.len() >= BUCKETS && !buckets.contains_key(key)
        };
        if !is_full() {
            return true;
        }
        let mut swept_at = self.swept_at.lock().unwrap_or_else(PoisonError::into_inner);
        if swept_at.elapsed() >= SWEEP_EVERY {
            *swept_at = Instant::now();
            let now = self.clock.now();
            self.full_at.lock().retain(|_, full_at| *full_at > now);
        }
        !is_full()
    }
}

/// When each bucket is full again. A full bucket need not be remembered.
///
/// Not governor's own map, because that cannot be asked whether a key is in it: where there is no room for another
/// bucket, clients that have one must still be served.
#[derive(Debug)]
struct FullAt<K>(Arc<Mutex<HashMap<K, Nanos>>>);

impl<K> FullAt<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Nanos>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for FullAt<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for FullAt<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone> StateStore for FullAt<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut buckets = self.lock();
        let (decision, full_at) = decide(buckets.get(key).copied())?;
        buckets.insert(key.clone(), full_at);
        Ok(decision)
    }
}

/// Time since the start, by the clock of tokio, which tests can set.
#[derive(Clone, Debug)]
struct TokioClock(Instant);

impl Clock for TokioClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_rate_and_no_more() {
        let buckets = Buckets::new(10).unwrap();
        for _ in 0..10 {
            buckets.take(&"a").unwrap();
        }
        assert_eq!(buckets.take(&"a"), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take(&"b"), Ok(()), "another's");
        // Requests that were refused do not postpone the next that is allowed.
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(buckets.take(&"a"), Ok(()));
        let mut taken = 0;
        for _ in 0..1000 {
            tokio::time::advance(Duration::from_millis(10)).await;
            taken += u32::from(buckets.take(&"a").is_ok());
        }
        assert_eq!(taken, 100, "ten seconds at ten a second");
        assert!(Buckets::<u8>::new(0).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_addresses_takes_bounded_memory() {
        let buckets = Buckets::new(1).unwrap();
        let known = buckets.take(&0);
        let taken = (1..2 * BUCKETS).filter(|n| buckets.take(n).is_ok()).count();
        assert_eq!((known, taken), (Ok(()), BUCKETS - 1));
        assert_eq!(buckets.full_at.0.lock().unwrap().len(), BUCKETS);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(buckets.take(&(2 * BUCKETS)), Ok(()), "there is room again");
        assert_eq!(buckets.full_at.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
