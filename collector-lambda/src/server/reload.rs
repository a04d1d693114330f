//! The sites file, read again whenever it changes.

use crate::Error;
use crate::error::chain;
use crate::http::Collector;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

const EVERY: Duration = Duration::from_secs(2);

/// Looks every two seconds, and at SIGHUP at once. What cannot be used is logged, and the sites stay. `known` is
/// what was in the file when the collector's sites were read from it.
pub(crate) fn watch(
    collector: Arc<Collector>,
    path: PathBuf,
    known: String,
) -> Result<impl Future<Output = ()>, Error> {
    // From here on; without a handler, the signal would end the process.
    let mut hangup =
        signal(SignalKind::hangup()).map_err(|error| Error::config("cannot listen for signals").because(error))?;
    Ok(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The text itself tells a change; times and sizes may stay as they were.
        let mut last = Ok(known);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = hangup.recv() => {}
            }
            let now = look(&path).await;
            if now == last {
                continue;
            }
            let replaced = now.clone().and_then(|json| collector.sites.replace(&json).map_err(|error| chain(&error)));
            match replaced {
                Ok(()) => tracing::info!("the sites file has changed and is in use"),
                Err(cause) => tracing::error!(cause, "the sites file cannot be used; the sites stay as they were"),
            }
            last = now;
        }
    })
}

async fn look(path: &Path) -> Result<String, String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || crate::sites::read(&path).map_err(|error| chain(&error)));
    read.await.unwrap_or_else(|error| Err(error.to_string()))
}
