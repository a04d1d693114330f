//! Whether events can be stored now: what the store reports, and how recent commits went.

use crate::http::problem::{NOT_READY, Problem};
use crate::http::state::Collector;
use axum::http::header;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// For how long the result of a check is used, however often `GET /ready` is called.
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
    /// The last check: `None` while it is running.
    check: Mutex<Option<watch::Receiver<Option<Check>>>>,
}

#[derive(Clone, Copy, Debug)]
struct Check {
    ended: Instant,
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
    pub(crate) async fn check(&self, collector: &Arc<Collector>) -> Result<(), Problem> {
        let not_ready = |why| Problem::new(&NOT_READY, why).with_header(header::RETRY_AFTER, "1");
        if crate::time::now().abs_diff(self.failed_at.load(Ordering::Relaxed)) < FAILURE_LASTS.as_millis() as u64 {
            return Err(not_ready("Recent events could not be stored."));
        }
        let collector = Arc::clone(collector);
        let is_ready = self.result(async move {
            let result = tokio::time::timeout(CHECK_TIMEOUT, collector.store.ready()).await;
            match &result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(cause = %crate::error::chain(error), "not ready"),
                Err(_) => tracing::warn!(cause = "the store does not answer", "not ready"),
            }
            matches!(result, Ok(Ok(())))
        });
        let is_ready = is_ready.await;
        if is_ready { Ok(()) } else { Err(not_ready("Events cannot be stored.")) }
    }

    /// The result of the check that is running or has just ended, or else of this one. So there is one at a time, however
    /// many callers wait for it, and those who hang up do not make another begin.
    async fn result(&self, check: impl Future<Output = bool> + Send + 'static) -> bool {
        let mut result = {
            let mut current = self.check.lock().unwrap_or_else(PoisonError::into_inner);
            let usable = current.as_ref().filter(|result| match *result.borrow() {
                Some(check) => check.ended.elapsed() < CHECK_EVERY,
                // Running, unless it has panicked.
                None => result.has_changed().is_ok(),
            });
            match usable {
                Some(result) => result.clone(),
                None => current.insert(start(check)).clone(),
            }
        };
        result.wait_for(Option::is_some).await.is_ok_and(|check| check.is_some_and(|check| check.is_ready))
    }
}

/// Runs the check in a task of its own, which does not end with the caller.
fn start(check: impl Future<Output = bool> + Send + 'static) -> watch::Receiver<Option<Check>> {
    let (done, result) = watch::channel(None);
    tokio::spawn(async move {
        let is_ready = check.await;
        done.send_replace(Some(Check { ended: Instant::now(), is_ready }));
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(start_paused = true)]
    async fn all_callers_share_one_check() {
        let readiness = Arc::new(Readiness::default());
        let checks = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let (readiness, checks) = (Arc::clone(&readiness), Arc::clone(&checks));
            tokio::spawn(async move {
                let check = async move {
                    checks.fetch_add(1, Ordering::Relaxed);
                    // Longer than the result of a check is used.
                    tokio::time::sleep(CHECK_EVERY * 2).await;
                    true
                };
                readiness.result(check).await
            })
        };
        for round in 1..=3 {
            let impatient: Vec<_> = (0..50).map(|_| ask()).collect();
            tokio::time::sleep(CHECK_EVERY).await;
            impatient.iter().for_each(tokio::task::JoinHandle::abort);
            let patient: Vec<_> = (0..50).map(|_| ask()).collect();
            for caller in patient {
                assert!(caller.await.unwrap());
            }
            assert!(ask().await.unwrap(), "the result is used for a while");
            assert_eq!(checks.load(Ordering::Relaxed), round);
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }
}
