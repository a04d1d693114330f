//! The collector as an AWS Lambda function: its configuration, and how requests get from a front door to the router.
//!
//! | variable | meaning |
//! |---|---|
//! | `TALLYMARK_DELIVERY_STREAM` | the Firehose delivery stream that stores the events |
//! | `TALLYMARK_COUNTERS_TABLE` | the DynamoDB table with the counters |
//! | `TALLYMARK_SITES_SECRET` | the name or ARN of the Secrets Manager secret with the list of sites |
//! | `TALLYMARK_SITES_REFRESH_SECONDS` | how often the secret is read again, before a request. Default: 300 |
//! | `TALLYMARK_SITES` | instead of the secret, the list of sites itself, for tests and small deployments |

mod gateway;
mod sites_secret;

pub use sites_secret::SitesSecret;

use crate::Error;
use crate::http::state::Collector;
use crate::http::{Options, router};
use crate::lambda::gateway::{GatewayRequest, GatewayResponse};
use crate::sites::Sites;
use crate::store::Store;
use crate::store::aws::dynamodb::DynamoDb;
use crate::store::aws::firehose::Firehose;
use lambda_runtime::{LambdaEvent, service_fn};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tower_service::Service;

/// How often the list of sites is read again, unless a variable sets it.
const REFRESH: Duration = Duration::from_secs(300);

/// Runs the function until Lambda ends it. If it cannot start, the reason is logged.
pub async fn run() -> ExitCode {
    let (collector, secret) = match collector(|name| std::env::var(name).ok()).await {
        Ok((collector, secret)) => (Arc::new(collector), secret.map(Arc::new)),
        Err(error) => {
            tracing::error!(cause = %crate::error::chain(&error), "the collector cannot start");
            return ExitCode::FAILURE;
        }
    };
    let router = router(Arc::clone(&collector), Options::BARE);
    let handle = service_fn(|event: LambdaEvent<GatewayRequest>| {
        let (collector, secret, mut router) = (Arc::clone(&collector), secret.clone(), router.clone());
        async move {
            // Before the request, because Lambda may freeze the function after it.
            if let Some(secret) = secret {
                secret.refresh(&collector).await;
            }
            let format = event.payload.response_format();
            let request = event.payload.into_request().ok_or("the event is no HTTP request")?;
            let Ok(response) = router.call(request).await;
            Ok::<_, lambda_runtime::Error>(GatewayResponse::new(response, format).await?)
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

/// A collector configured by environment variables, which `variable` looks up, with its connections open; and the
/// secret with its sites, if they come from one.
pub async fn collector(variable: impl Fn(&str) -> Option<String>) -> Result<(Collector, Option<SitesSecret>), Error> {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let required = |name: &str, what: &str| {
        variable(name)
            .ok_or_else(|| Error::config(format!("the variable {name} is not set; set it to the name of {what}")))
    };
    let stream = required("TALLYMARK_DELIVERY_STREAM", "the Firehose delivery stream")?;
    let table = required("TALLYMARK_COUNTERS_TABLE", "the DynamoDB table")?;
    let (secret, json) = (variable("TALLYMARK_SITES_SECRET"), variable("TALLYMARK_SITES"));
    if secret.is_some() == json.is_some() {
        return Err(Error::config(
            "set one of TALLYMARK_SITES_SECRET (the name of a secret in Secrets Manager) and TALLYMARK_SITES, not both",
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
    let store = Store::aws(Firehose::new(&aws, stream), DynamoDb::new(&aws, table));
    let secret = secret.map(|id| SitesSecret::new(&aws, id, every));
    let json = async {
        match (&secret, json) {
            (Some(secret), _) => secret.read().await,
            (None, json) => Ok(json.unwrap_or_default()),
        }
    };
    // Opens the connections while the function starts, so that the first request need not wait for them.
    let (json, ()) = tokio::join!(json, store.warm());
    Ok((Collector { sites: Sites::from_json(&json?)?, store }, secret))
}
