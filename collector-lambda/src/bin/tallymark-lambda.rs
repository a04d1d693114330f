//! The collector as an AWS Lambda function behind an HTTP API, a REST API, a Function URL or a load
//! balancer. See [`tallymark_collector::lambda`] for the variables it reads.

use std::process::ExitCode;
use tallymark_collector::lambda;
use tracing_subscriber::EnvFilter;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    log();
    lambda::run().await
}

/// One JSON object a line, at the level that the function's logging configuration or `RUST_LOG` asks for.
fn log() {
    let level = ["AWS_LAMBDA_LOG_LEVEL", "RUST_LOG"].into_iter().find_map(|name| std::env::var(name).ok());
    let filter =
        EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).parse_lossy(level.unwrap_or_default());
    // At TRACE the runtime would log whole events, keys and all.
    let filter = match "lambda_runtime=info".parse() {
        Ok(quiet) => filter.add_directive(quiet),
        Err(_) => filter,
    };
    // A log that cannot be written is no reason to fail.
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_current_span(false).log_internal_errors(false);
    log.with_env_filter(filter).init();
}
