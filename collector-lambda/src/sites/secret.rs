//! The list of sites in a Secrets Manager secret, kept fresh without holding up requests.
//!
//! A list is used as it is while it is young. Past three quarters of its lifetime a request starts a refresh and does
//! not wait for it. Past its lifetime a request waits for the refresh, but never longer than [`PATIENCE`]: a slow or
//! throttled Secrets Manager costs one request that much every [`RETRY_AFTER`], and the last list stays in use.

use crate::sites::Sites;
use crate::{Error, chain};
use aws_config::SdkConfig;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a list is used without asking for a newer one, unless configured otherwise.
pub const LIFETIME: Duration = Duration::from_secs(20);
/// The longest that a request waits for a refresh.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// The longest that one refresh takes before it counts as failed. Nobody waits for it.
const LIMIT: Duration = Duration::from_secs(4);
/// How soon after an attempt the next may begin, whatever asks for it.
pub const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Where the text of the list is.
pub trait SecretSource: Send + Sync + 'static {
    /// Reads the current value, once.
    fn read(&self) -> impl Future<Output = Result<SecretValue, Error>> + Send;
}

/// A value of the secret.
pub struct SecretValue {
    /// The list of sites, as JSON.
    pub json: String,
    /// Names the value in logs.
    pub version: String,
}

/// A list of sites and the secret that it comes from.
#[derive(Debug)]
pub struct SitesSecret<S> {
    source: S,
    sites: Sites,
    schedule: Mutex<Schedule>,
}

impl<S: SecretSource> SitesSecret<S> {
    /// Keeps `sites` as the secret has them, each list for `lifetime`. Nothing is read yet.
    pub fn new(source: S, sites: Sites, lifetime: Duration) -> Arc<Self> {
        let pause = RETRY_AFTER.min(lifetime);
        let (lifetime, pause) = (millis(lifetime), millis(pause));
        let schedule = Mutex::new(Schedule { lifetime, pause, loaded: None, not_before: 0, version: None });
        Arc::new(Self { source, sites, schedule })
    }

    /// The sites as they are now.
    pub fn sites(&self) -> &Sites {
        &self.sites
    }

    /// Whether a list has ever been read. Until then nobody can be told that a key is wrong.
    pub fn is_loaded(&self) -> bool {
        self.schedule().loaded.is_some()
    }

    /// Reads the list now, however young the last one is.
    pub async fn load(&self) -> Result<(), Error> {
        self.schedule().start(crate::time::now());
        let value = tokio::time::timeout(LIMIT, self.source.read()).await.unwrap_or_else(|_| {
            Err(Error::unavailable(
                format!("Secrets Manager has not answered within {} s", LIMIT.as_secs()),
                RETRY_AFTER,
            ))
        })?;
        // Some editors begin a file with a byte order mark, and commands upload it.
        let replaced = self.sites.replace(value.json.strip_prefix('\u{feff}').unwrap_or(&value.json));
        let mut schedule = self.schedule();
        if replaced.is_ok() {
            schedule.loaded = Some(crate::time::now());
            if schedule.version.as_ref() != Some(&value.version) {
                tracing::info!(version = value.version, "the list of sites is in use");
                schedule.version = Some(value.version);
            }
        }
        replaced
    }

    /// To be called before a request: sees to it that the list is fresh, as far as that can be had within [`PATIENCE`].
    pub async fn refresh(self: &Arc<Self>) {
        let due = self.schedule().due(crate::time::now());
        self.run(due).await;
    }

    /// The same for a request whose username or key is not known: the list is read again even if it is young, unless
    /// that was tried less than [`RETRY_AFTER`] ago. Returns whether it was read.
    pub async fn refresh_for_unknown(self: &Arc<Self>) -> bool {
        let due = self.schedule().due_for_unknown(crate::time::now());
        self.run(due).await
    }

    async fn run(self: &Arc<Self>, due: Due) -> bool {
        if due == Due::No {
            return false;
        }
        let secret = Arc::clone(self);
        let refresh = tokio::spawn(async move {
            let loaded = secret.load().await;
            if let Err(error) = &loaded {
                let cause = chain(error);
                tracing::error!(cause, "the list of sites cannot be used; the previous sites stay in use");
            }
            loaded.is_ok()
        });
        // Dropping the handle leaves the refresh running.
        due == Due::Wait && matches!(tokio::time::timeout(PATIENCE, refresh).await, Ok(Ok(true)))
    }

    fn schedule(&self) -> std::sync::MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to read the list. Times are milliseconds since the Unix epoch: other clocks stand still with a function.
#[derive(Debug)]
struct Schedule {
    lifetime: u64,
    pause: u64,
    loaded: Option<u64>,
    not_before: u64,
    version: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    No,
    /// Start it, and go on with the last list.
    Beside,
    /// Start it, and wait.
    Wait,
}

impl Schedule {
    fn due(&mut self, now: u64) -> Due {
        let age = self.loaded.map(|at| now.saturating_sub(at));
        let due = match age {
            Some(age) if age < self.lifetime / 4 * 3 => return Due::No,
            Some(age) if age < self.lifetime => Due::Beside,
            _ => Due::Wait,
        };
        self.take(now, due)
    }

    fn due_for_unknown(&mut self, now: u64) -> Due {
        self.take(now, Due::Wait)
    }

    /// Moves the time of the next attempt first, so that only one request starts each.
    fn take(&mut self, now: u64, due: Due) -> Due {
        // A clock that was set back must not put it off for longer than it would have been.
        if now < self.not_before && self.not_before - now <= self.pause {
            return Due::No;
        }
        self.start(now);
        due
    }

    fn start(&mut self, now: u64) {
        self.not_before = now.saturating_add(self.pause);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A secret in Secrets Manager.
#[derive(Debug)]
pub struct SecretsManager {
    client: aws_sdk_secretsmanager::Client,
    id: String,
}

impl SecretsManager {
    /// The secret of this name or ARN.
    pub fn new(aws: &SdkConfig, id: impl Into<String>) -> Self {
        let (retries, timeouts) = crate::store::aws::limits();
        let config =
            aws_sdk_secretsmanager::config::Builder::from(aws).retry_config(retries).timeout_config(timeouts).build();
        Self { client: aws_sdk_secretsmanager::Client::from_conf(config), id: id.into() }
    }
}

impl SecretSource for SecretsManager {
    async fn read(&self) -> Result<SecretValue, Error> {
        let cannot = || format!("cannot read the sites from the secret {}", self.id);
        let call = self.client.get_secret_value().secret_id(&self.id);
        let answer = crate::store::aws::repeat(&mut crate::store::aws::Backoff::new(), || call.clone().send()).await;
        let answer = answer.map_err(|error| {
            let error_of = if crate::store::aws::is_refusal(&error) {
                Error::config(cannot())
            } else {
                Error::unavailable(cannot(), RETRY_AFTER)
            };
            error_of.with_source(error)
        })?;
        let version = answer.version_id.unwrap_or_default();
        let json = match (answer.secret_string, answer.secret_binary) {
            (Some(text), _) => text,
            (None, Some(binary)) => String::from_utf8(binary.into_inner())
                .map_err(|_| Error::config(cannot()).with_source("its SecretBinary is not UTF-8"))?,
            (None, None) => return Err(Error::config(cannot()).with_source("it has no value")),
        };
        Ok(SecretValue { json, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn schedule() -> Schedule {
        Schedule { lifetime: 20_000, pause: 5_000, loaded: None, not_before: 0, version: None }
    }

    #[test]
    fn a_young_list_is_used_and_an_old_one_waited_for() {
        let mut schedule = Schedule { loaded: Some(100_000), ..schedule() };
        assert_eq!(schedule.due(100_000), Due::No);
        assert_eq!(schedule.due(114_999), Due::No);
        assert_eq!(schedule.due(115_000), Due::Beside);
        // One request starts it.
        assert_eq!(schedule.due(115_000), Due::No);
        assert_eq!(schedule.due(119_999), Due::No);
        // It has not arrived: now the next waits, and again not before the pause is over.
        assert_eq!(schedule.due(120_000), Due::Wait);
        assert_eq!(schedule.due(124_999), Due::No);
        assert_eq!(schedule.due(125_000), Due::Wait);
    }

    #[test]
    fn without_a_list_a_request_waits_and_unknown_keys_ask_at_most_every_few_seconds() {
        let mut schedule = schedule();
        assert_eq!(schedule.due(100_000), Due::Wait);
        assert_eq!(schedule.due_for_unknown(104_999), Due::No);
        assert_eq!(schedule.due_for_unknown(105_000), Due::Wait);
        assert_eq!(schedule.due_for_unknown(105_001), Due::No);
    }

    #[test]
    fn a_clock_that_is_set_back_stops_nothing() {
        let mut schedule = Schedule { loaded: Some(900_000), not_before: 905_000, ..schedule() };
        assert_eq!(schedule.due_for_unknown(100_000), Due::Wait);
    }

    /// Answers the given texts in turn, the last one for ever; an empty one never arrives.
    struct Fake {
        reads: AtomicUsize,
        texts: Vec<&'static str>,
    }

    impl SecretSource for Fake {
        async fn read(&self) -> Result<SecretValue, Error> {
            let at = self.reads.fetch_add(1, Ordering::Relaxed).min(self.texts.len() - 1);
            if self.texts[at].is_empty() {
                return std::future::pending().await;
            }
            Ok(SecretValue { json: self.texts[at].into(), version: at.to_string() })
        }
    }

    fn secret(texts: &[&'static str], lifetime: Duration) -> Arc<SitesSecret<Fake>> {
        let source = Fake { reads: AtomicUsize::new(0), texts: texts.into() };
        SitesSecret::new(source, Sites::from_json(r#"{"sites":[]}"#).unwrap(), lifetime)
    }

    const SITE: &str = r#"{"sites":[{"username":"shop","origins":["https://shop.example"],
        "secret_key_sha256":"1111111111111111111111111111111111111111111111111111111111111111",
        "write_key_sha256":"2222222222222222222222222222222222222222222222222222222222222222"}]}"#;

    #[tokio::test(start_paused = true)]
    async fn a_silent_secrets_manager_costs_a_request_a_second_and_the_last_list_stays() {
        let secret = secret(&[SITE, ""], LIFETIME);
        secret.load().await.unwrap();
        // Long ago.
        secret.schedule().loaded = Some(0);
        secret.schedule().not_before = 0;
        let started = tokio::time::Instant::now();
        secret.refresh().await;
        assert_eq!(started.elapsed(), PATIENCE);
        assert!(secret.is_loaded() && secret.sites().knows_origin("https://shop.example"));
        // The next request waits for nothing.
        secret.refresh().await;
        assert_eq!((started.elapsed(), secret.source.reads.load(Ordering::Relaxed)), (PATIENCE, 2));
    }

    #[tokio::test]
    async fn an_unusable_value_leaves_the_list_as_it_was() {
        let secret = secret(&[SITE, "{}", "\u{feff}{\"sites\":[]}"], Duration::ZERO);
        secret.load().await.unwrap();
        assert!(secret.load().await.unwrap_err().is_config());
        assert!(secret.sites().knows_origin("https://shop.example"));
        secret.load().await.expect("a byte order mark is no part of the list");
        assert!(!secret.sites().knows_origin("https://shop.example"));
    }
}
