//! Whether events can be stored now: what the store reports, and how recent commits went.

use crate::http::problem::{NOT_READY, Problem};
use crate::store::Store;
use axum::http::header;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// How often the store is checked at most, however often `GET /ready` is called.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// How long a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a failed commit makes the collector unready, if no later one succeeds. It ends, because a load balancer
/// that sends no more events would otherwise never see a commit succeed.
const FAILURE_LASTS: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Readiness {
    /// When a commit failed last, in milliseconds since the Unix epoch; 0 if a later one succeeded.
    failed_at: AtomicU64,
    last_check: Mutex<Check>,
}

#[derive(Debug, Default)]
struct Check {
    at: u64,
    is_ready: bool,
}

impl Readiness {
    /// Notes how a commit went.
    pub(crate) fn note(&self, problem: Option<&Problem>) {
        match problem {
            None => self.failed_at.store(0, Ordering::Relaxed),
            Some(problem) if problem.is_server_error() => self.failed_at.store(crate::time::now(), Ordering::Relaxed),
            Some(_) => {}
        }
    }

    /// Succeeds if events can be stored.
    pub(crate) async fn check(&self, store: &Store) -> Result<(), Problem> {
        let not_ready = |why| Problem::new(&NOT_READY, why).with_header(header::RETRY_AFTER, "1");
        if crate::time::now().abs_diff(self.failed_at.load(Ordering::Relaxed)) < FAILURE_LASTS.as_millis() as u64 {
            return Err(not_ready("Recent events could not be stored."));
        }
        let mut check = self.last_check.lock().await;
        if crate::time::now().abs_diff(check.at) >= CHECK_EVERY.as_millis() as u64 {
            // Stamped before the check, so that callers who hang up and retry cannot load the store either.
            *check = Check { at: crate::time::now(), is_ready: false };
            match tokio::time::timeout(CHECK_TIMEOUT, store.ready()).await {
                Ok(Ok(())) => check.is_ready = true,
                Ok(Err(error)) => tracing::warn!(cause = %crate::error::chain(&error), "not ready"),
                Err(_) => tracing::warn!(cause = "the store does not answer", "not ready"),
            }
        }
        if check.is_ready { Ok(()) } else { Err(not_ready("Events cannot be stored, or counters cannot be read.")) }
    }
}
