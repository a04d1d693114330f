//! What all functions have in common: their log, and the loop that Lambda calls them in.

use lambda_runtime::{LambdaEvent, service_fn};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::process::ExitCode;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Writes one JSON object a line, at the level that the function's logging configuration or `RUST_LOG` asks for.
pub fn init_log() {
    let level = ["AWS_LAMBDA_LOG_LEVEL", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let filter = level.and_then(|level| level.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    // At TRACE the runtime would log whole events, keys and all.
    let filter = filter.with_target("lambda_runtime", LevelFilter::INFO);
    let log = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
    // A log that cannot be written is no reason to fail.
    tracing_subscriber::registry().with(log.log_internal_errors(false)).with(filter).init();
}

/// Answers events with `handle` until Lambda stops the process.
pub async fn run<E, A, F>(handle: impl Fn(E) -> F) -> ExitCode
where
    E: for<'de> Deserialize<'de>,
    A: Serialize,
    F: Future<Output = Result<A, lambda_runtime::Error>>,
{
    match lambda_runtime::run(service_fn(|event: LambdaEvent<E>| handle(event.payload))).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the Lambda runtime has failed");
            ExitCode::FAILURE
        }
    }
}
