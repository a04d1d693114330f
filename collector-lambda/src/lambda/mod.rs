//! The collector as an AWS Lambda function: its configuration, and the way from an event to the router.
//!
//! | variable | what it says |
//! |---|---|
//! | `TALLYMARK_STREAM` | the Firehose delivery stream that takes the lines |
//! | `TALLYMARK_TABLE` | the DynamoDB table that counts |
//! | `TALLYMARK_SITES_SECRET` | the Secrets Manager secret that holds the list of sites: its name or ARN |
//! | `TALLYMARK_SITES_REFRESH_SECONDS` | after how long the secret is read again, before a request: 300 unless set |
//! | `TALLYMARK_SITES` | instead of the secret, the list of sites itself, for tests and small set-ups |

mod gateway;

use crate::Error;
use crate::http::{Collector, router};
use crate::lambda::gateway::{Answer, Event};
use crate::sites::Sites;
use crate::store::aws::Backoff;
use crate::store::aws::dynamodb::DynamoDb;
use crate::store::aws::firehose::Firehose;
use crate::store::{Counters, Lake, Store};
use aws_config::SdkConfig;
use lambda_runtime::{LambdaEvent, service_fn};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tower_service::Service;

/// After how long the list of sites is read again.
const REFRESH: Duration = Duration::from_secs(300);
/// The same where that has failed.
const REFRESH_AFTER_FAILURE: Duration = Duration::from_secs(30);

/// Runs the function for as long as Lambda wants it. What keeps it from starting is logged.
pub async fn run() -> ExitCode {
    let (collector, secret) = match collector(|name| std::env::var(name).ok()).await {
        Ok((collector, secret)) => (Arc::new(collector), secret.map(Arc::new)),
        Err(error) => {
            tracing::error!(cause = %crate::error::chain(&error), "the collector cannot start");
            return ExitCode::FAILURE;
        }
    };
    let router = router(Arc::clone(&collector));
    let handle = service_fn(|event: LambdaEvent<Event>| {
        let (collector, secret, mut router) = (Arc::clone(&collector), secret.clone(), router.clone());
        async move {
            // Before the request: after it, the function may be stopped at any time.
            if let Some(secret) = secret {
                secret.refresh(&collector).await;
            }
            let shape = event.payload.shape();
            let request = event.payload.into_request().ok_or("the event is no HTTP request")?;
            let Ok(response) = router.call(request).await;
            Ok::<_, lambda_runtime::Error>(Answer::new(response, shape).await?)
        }
    });
    match lambda_runtime::run(handle).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the Lambda runtime has failed");
            ExitCode::FAILURE
        }
    }
}

/// A collector set up from variables, as `variable` gives them, with its connections open; and where its sites
/// come from, if they may change.
pub async fn collector(variable: impl Fn(&str) -> Option<String>) -> Result<(Collector, Option<SitesSecret>), Error> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let required = |name: &str, what: &str| {
        variable(name).ok_or_else(|| Error::config(format!("the variable {name} is not set; it names {what}")))
    };
    let stream = required("TALLYMARK_STREAM", "the Firehose delivery stream")?;
    let table = required("TALLYMARK_TABLE", "the DynamoDB table")?;
    let (secret, json) = (variable("TALLYMARK_SITES_SECRET"), variable("TALLYMARK_SITES"));
    if secret.is_some() == json.is_some() {
        return Err(Error::config(
            "set one of the variables TALLYMARK_SITES_SECRET, which names a secret in Secrets Manager, and TALLYMARK_SITES",
        ));
    }
    let every = match variable("TALLYMARK_SITES_REFRESH_SECONDS").map(|seconds| seconds.parse()) {
        None => REFRESH,
        Some(Ok(seconds)) => Duration::from_secs(seconds),
        Some(Err(_)) => {
            return Err(Error::config("the variable TALLYMARK_SITES_REFRESH_SECONDS is not a number of seconds"));
        }
    };
    let aws = aws_config::load_from_env().await;
    let store = Store::new(Lake::Firehose(Firehose::new(&aws, stream)), Counters::DynamoDb(DynamoDb::new(&aws, table)));
    let secret = secret.map(|id| SitesSecret::new(&aws, id, every));
    let json = async {
        match (&secret, json) {
            (Some(secret), _) => secret.read().await,
            (None, json) => Ok(json.unwrap_or_default()),
        }
    };
    // The first request should not wait for connections that can be opened while the function starts.
    let (json, ()) = tokio::join!(json, store.warm());
    Ok((Collector { sites: Sites::from_json(&json?)?, store }, secret))
}

/// The secret that holds the list of sites.
#[derive(Debug)]
pub struct SitesSecret {
    client: aws_sdk_secretsmanager::Client,
    id: String,
    every: Duration,
    /// When to read it again, in milliseconds since the Unix epoch: other clocks stand still with the function.
    due: AtomicU64,
}

impl SitesSecret {
    fn new(aws: &SdkConfig, id: String, every: Duration) -> Self {
        let (retries, timeouts) = crate::store::aws::limits();
        let config =
            aws_sdk_secretsmanager::config::Builder::from(aws).retry_config(retries).timeout_config(timeouts).build();
        let due = AtomicU64::new(after(every));
        Self { client: aws_sdk_secretsmanager::Client::from_conf(config), id, every, due }
    }

    async fn read(&self) -> Result<String, Error> {
        let cannot = || Error::config("cannot read the sites from the secret TALLYMARK_SITES_SECRET");
        let call = self.client.get_secret_value().secret_id(&self.id);
        let secret = crate::store::aws::repeat(&mut Backoff::new(), || call.clone().send()).await;
        secret.map_err(|error| cannot().because(error))?.secret_string.ok_or_else(|| cannot().because("it is not text"))
    }

    /// Reads it again if it is time. What cannot be used is logged, and the sites stay as they were.
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
            tracing::error!(cause, "the list of sites cannot be used; the sites stay as they were");
        }
        let wait = if refreshed.is_ok() { self.every } else { self.every.min(REFRESH_AFTER_FAILURE) };
        self.due.store(after(wait), Ordering::Relaxed);
    }
}

fn after(wait: Duration) -> u64 {
    crate::time::now().saturating_add(wait.as_millis() as u64)
}
