//! The collector as an AWS Lambda function behind an HTTP API, a REST API, a Function URL or a load
//! balancer. See [`tallymark_collector::lambda`] for the variables it reads.

use std::process::ExitCode;
use tallymark_collector::lambda;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    log();
    lambda::run().await
}

/// One JSON object a line, at the level that the function's logging configuration or `RUST_LOG` asks for.
fn log() {
    let level = ["AWS_LAMBDA_LOG_LEVEL", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let filter = level.and_then(|level| level.parse().ok());
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    // At TRACE the runtime would log whole events with their keys.
    let filter = filter.with_target("lambda_runtime", LevelFilter::INFO);
    // Failing to write the log must not stop the function.
    let log = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
    tracing_subscriber::registry().with(log.log_internal_errors(false)).with(filter).init();
}
