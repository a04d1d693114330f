//! What the stores on AWS share: time limits, retries, and the error when a call fails.
//!
//! The SDK's own retries are off, because only the caller knows what to send in a retry: to Firehose the failed records
//! alone, to DynamoDB perhaps another shard.

pub mod dynamodb;
pub mod firehose;
mod http_client;

use crate::Error;
use crate::error::LONGEST_WAIT;
use aws_config::SdkConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use rand::RngExt;
use std::error::Error as StdError;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// For how long a request tries one store. The last attempt may begin at the end of this time.
const BUDGET: Duration = Duration::from_secs(4);
/// The time limit of one attempt, including the connection.
const ATTEMPT: Duration = Duration::from_secs(2);
/// The time limit of one attempt of a command, where no client waits.
#[cfg(feature = "s3")]
const PATIENT_ATTEMPT: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(1);
const FIRST_CEILING: Duration = Duration::from_millis(40);
const LAST_CEILING: Duration = Duration::from_secs(1);

/// What the SDK reports as a failed call.
pub(crate) type CallError<E> = SdkError<E, HttpResponse>;

/// The configuration of all AWS clients, from the environment.
pub async fn config() -> SdkConfig {
    aws_config::from_env().http_client(http_client::shared()).load().await
}

/// For requests: one attempt a call, with a short time limit.
pub(crate) fn limits() -> (RetryConfig, TimeoutConfig) {
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT).operation_attempt_timeout(ATTEMPT).build();
    (RetryConfig::disabled(), timeouts)
}

/// For commands: the SDK's retries, and time for a slow page of a scan.
#[cfg(feature = "s3")]
pub(crate) fn patience() -> (RetryConfig, TimeoutConfig) {
    let timeouts = TimeoutConfig::builder().connect_timeout(ATTEMPT).operation_attempt_timeout(PATIENT_ATTEMPT).build();
    (RetryConfig::standard().with_max_attempts(8), timeouts)
}

/// Full-jitter backoff within a time budget.
#[derive(Debug)]
pub(crate) struct Backoff {
    deadline: Instant,
    ceiling: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { deadline: Instant::now() + BUDGET, ceiling: FIRST_CEILING }
    }

    /// After a success, the next wait is short again. The time budget stays.
    pub(crate) fn relax(&mut self) {
        self.ceiling = FIRST_CEILING;
    }

    /// Waits before another attempt. Returns `false` if there is no time for one.
    pub(crate) async fn wait(&mut self) -> bool {
        self.wait_at_least(Duration::ZERO).await
    }

    /// The same after a failed call, for at least as long as its response asks.
    pub(crate) async fn wait_after<E>(&mut self, error: &CallError<E>) -> bool {
        self.wait_at_least(asked_wait(error).unwrap_or_default()).await
    }

    async fn wait_at_least(&mut self, least: Duration) -> bool {
        let until = Instant::now() + least.max(self.ceiling.mul_f64(rand::rng().random()));
        if until >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(until).await;
        self.ceiling = (self.ceiling * 2).min(LAST_CEILING);
        true
    }
}

/// Calls until it succeeds, is refused, or the time is up. Only for calls that may take effect twice.
pub(crate) async fn repeat<T, E, F>(backoff: &mut Backoff, call: impl Fn() -> F) -> Result<T, CallError<E>>
where
    E: ProvideErrorMetadata,
    F: Future<Output = Result<T, CallError<E>>>,
{
    loop {
        match call().await {
            Err(error) if !is_refusal(&error) && backoff.wait_after(&error).await => {}
            result => return result,
        }
    }
}

/// Whether a retry would fail in the same way.
pub(crate) fn is_refusal<E: ProvideErrorMetadata>(error: &CallError<E>) -> bool {
    matches!(
        error.code(),
        Some(
            "ResourceNotFoundException"
                | "AccessDeniedException"
                | "UnrecognizedClientException"
                | "InvalidSignatureException"
                | "IncompleteSignatureException"
                | "MissingAuthenticationTokenException"
                | "ExpiredTokenException"
                | "OptInRequired"
                | "ValidationException"
                | "InvalidArgumentException"
                | "InvalidSourceException"
                | "InvalidKMSResourceException"
                | "SerializationException"
        )
    )
}

/// How long a response asks to wait, if it does: `retry-after` in seconds, or `x-amz-retry-after` in milliseconds.
fn asked_wait<E>(error: &CallError<E>) -> Option<Duration> {
    let headers = error.raw_response()?.headers();
    let said = |name: &str| headers.get(name)?.trim().parse::<u64>().ok();
    said("x-amz-retry-after").map(Duration::from_millis).or_else(|| said("retry-after").map(Duration::from_secs))
}

/// When a client should retry after this failure: as the response asks, or else by the kind of failure.
fn retry_after<E: ProvideErrorMetadata>(error: &CallError<E>) -> Duration {
    let asked = asked_wait(error).map(|asked| asked.clamp(Duration::from_secs(1), LONGEST_WAIT));
    asked.unwrap_or_else(|| {
        // An operator must act; a conflict on the same items; the service is overloaded; anything else.
        Duration::from_secs(match error.code() {
            _ if is_refusal(error) => 30,
            Some("TransactionCanceledException" | "TransactionConflictException") => 1,
            Some(code) if code.contains("Throttl") || code.contains("Exceeded") || code.contains("Unavailable") => 5,
            _ => 2,
        })
    })
}

/// The error when a call to `sink` (such as "the table x") has failed and is not retried. The name of the sink and the
/// cause are for the log, not for the client.
pub(crate) fn unavailable<E>(what: &str, sink: &str, error: CallError<E>) -> Error
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let after = retry_after(&error);
    let code = error.code().unwrap_or("no answer");
    let cause = Error::config(format!("{sink} cannot be used ({code})")).with_source(error);
    Error::unavailable(format!("{what} cannot be used now"), after).with_source(cause)
}
