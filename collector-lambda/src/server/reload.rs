//! Reloads the sites file when it changes.

use crate::Error;
use crate::error::chain;
use crate::http::state::Collector;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

const EVERY: Duration = Duration::from_secs(2);

/// Checks the file every two seconds, and at SIGHUP. If it is not valid, that is logged and the sites stay as they are.
/// `known` is the text that the collector's sites were read from.
pub(crate) fn watch(
    collector: Arc<Collector>,
    path: PathBuf,
    known: String,
) -> Result<impl Future<Output = ()>, Error> {
    // Registered before the first await: without a handler, the signal ends the process.
    let mut hangup =
        signal(SignalKind::hangup()).map_err(|error| Error::config("cannot listen for signals").with_source(error))?;
    Ok(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Compares the text, because a change may leave size and time as they were.
        let mut last = Ok(known);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = hangup.recv() => {}
            }
            let now = read(&path).await;
            if now == last {
                continue;
            }
            let replaced = now.clone().and_then(|json| collector.sites.replace(&json).map_err(|error| chain(&error)));
            match replaced {
                Ok(()) => tracing::info!("the sites file has changed and was reloaded"),
                Err(cause) => tracing::error!(cause, "the sites file is not valid; the previous sites stay in use"),
            }
            last = now;
        }
    })
}

async fn read(path: &Path) -> Result<String, String> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || crate::sites::file::read(&path).map_err(|error| chain(&error)));
    read.await.unwrap_or_else(|error| Err(error.to_string()))
}
