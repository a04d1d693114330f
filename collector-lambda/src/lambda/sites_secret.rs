//! The list of sites in a Secrets Manager secret, read again as time passes.

use crate::Error;
use crate::http::state::Collector;
use crate::store::aws::Backoff;
use aws_config::SdkConfig;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How soon a failed read is retried.
const RETRY_AFTER: Duration = Duration::from_secs(30);

/// The secret that holds the list of sites.
#[derive(Debug)]
pub struct SitesSecret {
    client: aws_sdk_secretsmanager::Client,
    id: String,
    every: Duration,
    /// When to read it again, in milliseconds since the Unix epoch: a monotonic clock stops while the function is frozen.
    due: AtomicU64,
}

impl SitesSecret {
    pub(super) fn new(aws: &SdkConfig, id: String, every: Duration) -> Self {
        let (retries, timeouts) = crate::store::aws::limits();
        let config =
            aws_sdk_secretsmanager::config::Builder::from(aws).retry_config(retries).timeout_config(timeouts).build();
        let due = AtomicU64::new(after(every));
        Self { client: aws_sdk_secretsmanager::Client::from_conf(config), id, every, due }
    }

    pub(super) async fn read(&self) -> Result<String, Error> {
        let cannot = || Error::config("cannot read the sites from the secret TALLYMARK_SITES_SECRET");
        let call = self.client.get_secret_value().secret_id(&self.id);
        let secret = crate::store::aws::repeat(&mut Backoff::new(), || call.clone().send()).await;
        secret
            .map_err(|error| cannot().with_source(error))?
            .secret_string
            .ok_or_else(|| cannot().with_source("it is not text"))
    }

    /// Reads it again if it is time. If the list is not valid, that is logged and the sites stay as they were.
    pub async fn refresh(&self, collector: &Collector) {
        if crate::time::now() < self.due.load(Ordering::Relaxed) {
            return;
        }
        let refreshed = match self.read().await {
            Ok(json) => collector.sites.replace(&json),
            Err(error) => Err(error),
        };
        if let Err(error) = &refreshed {
            let cause = crate::error::chain(error);
            tracing::error!(cause, "the list of sites cannot be used; the previous sites stay in use");
        }
        let wait = if refreshed.is_ok() { self.every } else { self.every.min(RETRY_AFTER) };
        self.due.store(after(wait), Ordering::Relaxed);
    }
}

fn after(wait: Duration) -> u64 {
    crate::time::now().saturating_add(wait.as_millis() as u64)
}
