//! The collector as an AWS Lambda function: its configuration, and how requests get from a front door to the router.
//!
//! | variable | meaning |
//! |---|---|
//! | `TALLYMARK_DELIVERY_STREAM` | the Firehose delivery stream that stores the events |
//! | `TALLYMARK_COUNTERS_TABLE` | the DynamoDB table with the counters |
//! | `TALLYMARK_SITES_SECRET` | the name or ARN of the Secrets Manager secret with the list of sites |
//! | `TALLYMARK_SITES_REFRESH_SECONDS` | how long a list of sites from the secret is used. Default: 20 |
//! | `TALLYMARK_SITES` | instead of the secret, the list of sites itself, for tests and small deployments |
//! | `TALLYMARK_TRUST_AUTHORIZER` | `true`: believe the context of an HTTP API's Lambda authorizer. Only for a function that nothing but this API may invoke |
//! | `TALLYMARK_CORS` | `off`: the front door writes the CORS headers of every response. Default: `on` |

mod gateway;

use crate::Error;
use crate::http::events::IngestCounts;
use crate::http::problem::{Problem, UNAVAILABLE};
use crate::http::state::Collector;
use crate::http::{Options, router};
use crate::lambda::gateway::{Event, GatewayRequest, GatewayResponse};
use crate::sites::Sites;
use crate::sites::secret::{LIFETIME, SecretsManager, SitesSecret};
use crate::store::Store;
use crate::store::aws::dynamodb::DynamoDb;
use crate::store::aws::firehose::Firehose;
use axum::Router;
use axum::http::header::{self, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS};
use axum::response::{IntoResponse, Response};
use lambda_runtime::{LambdaEvent, service_fn};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tower_service::Service;

/// How long before its deadline an invocation is answered at the latest, so that the answer still gets out.
const MARGIN: Duration = Duration::from_millis(300);

/// Runs the function until Lambda ends it. If it cannot start, the reason is logged.
pub async fn run() -> ExitCode {
    let function = match function(|name| std::env::var(name).ok()).await {
        Ok(function) => function,
        Err(error) => {
            tracing::error!(cause = %crate::error::chain(&error), "the collector cannot start");
            return ExitCode::FAILURE;
        }
    };
    let handle = service_fn(|event: LambdaEvent<Event>| {
        let function = function.clone();
        async move { function.invoke(event.payload, event.context.deadline).await }
    });
    match lambda_runtime::run(handle).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the Lambda runtime has failed");
            ExitCode::FAILURE
        }
    }
}

/// A collector, and what only a function has.
#[derive(Clone)]
struct Function {
    collector: Arc<Collector>,
    router: Router,
    secret: Option<Arc<SitesSecret<SecretsManager>>>,
    trusts_authorizer: bool,
    writes_cors: bool,
}

impl Function {
    /// Answers an event before `deadline`, in milliseconds since the Unix epoch.
    async fn invoke(&self, event: Event, deadline: u64) -> Result<Value, lambda_runtime::Error> {
        match event {
            Event::Request(request) => Ok(serde_json::to_value(self.answer(*request, deadline).await?)?),
            Event::Other(other) if other.is_from_front_door() => Err("the event is no HTTP request".into()),
            Event::Other(_) => Ok(json!({"ignored": "the event is no HTTP request"})),
        }
    }

    async fn answer(&self, event: GatewayRequest, deadline: u64) -> Result<GatewayResponse, lambda_runtime::Error> {
        let format = event.response_format();
        let verified = event.verified_key().filter(|_| self.trusts_authorizer);
        let mut request = event.into_request().ok_or("the event is no HTTP request")?;
        let time = Duration::from_millis(deadline.saturating_sub(crate::time::now())).saturating_sub(MARGIN);
        let answer = async {
            if let Some(secret) = &self.secret {
                // Before the request, because Lambda may freeze the function after it.
                secret.refresh().await;
                if let Some(verified) = &verified
                    && self.collector.sites.site(&verified.username).is_none()
                {
                    // The authorizer has read a newer list.
                    secret.refresh_for_unknown().await;
                }
                if !secret.is_loaded() {
                    return unavailable("The list of sites cannot be read now.");
                }
            }
            if let Some(verified) = verified {
                request.extensions_mut().insert(verified);
            }
            let Ok(response) = self.router.clone().call(request).await;
            response
        };
        let mut response = tokio::time::timeout(time, answer).await.unwrap_or_else(|_| {
            tracing::error!("the function's time is up before the events are stored; the client is to retry");
            unavailable("The time for this request is up.")
        });
        log_counts(&response);
        if !self.writes_cors {
            // Of two values, browsers believe neither.
            for name in [ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS] {
                response.headers_mut().remove(name);
            }
        }
        Ok(GatewayResponse::new(response, format).await?)
    }
}

fn unavailable(why: &str) -> Response {
    let problem = Problem::new(&UNAVAILABLE, format!("{why} Send the same again."));
    problem.with_header(header::RETRY_AFTER, "2").into_response()
}

/// For metrics made of the log. `unaccounted` is 0, or there is a defect that an alarm should tell of.
fn log_counts(response: &Response) {
    if let Some(IngestCounts { received, accepted, rejected, deferred, .. }) = response.extensions().get() {
        let unaccounted = received.abs_diff(accepted + rejected + deferred);
        tracing::info!(received, accepted, rejected, deferred, unaccounted, "ingested");
    }
}

/// A function configured by environment variables, which `variable` looks up, with its connections open.
async fn function(variable: impl Fn(&str) -> Option<String>) -> Result<Function, Error> {
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
        None => LIFETIME,
        Some(Ok(seconds)) => Duration::from_secs(seconds),
        Some(Err(_)) => {
            return Err(Error::config("the variable TALLYMARK_SITES_REFRESH_SECONDS is not a number of seconds"));
        }
    };
    let trusts_authorizer =
        one_of("TALLYMARK_TRUST_AUTHORIZER", variable("TALLYMARK_TRUST_AUTHORIZER"), ["false", "true"])?;
    let writes_cors = !one_of("TALLYMARK_CORS", variable("TALLYMARK_CORS"), ["on", "off"])?;
    let aws = crate::store::aws::config().await;
    let store = Store::aws(Firehose::new(&aws, stream), DynamoDb::new(&aws, table));
    let sites = Sites::default();
    let secret = secret.map(|id| SitesSecret::new(SecretsManager::new(&aws, id), sites.clone(), every));
    let load = async {
        match (&secret, json) {
            (Some(secret), _) => secret.load().await,
            (None, json) => sites.replace(&json.unwrap_or_default()),
        }
    };
    // Opens the connections while the function starts, so that the first request need not wait for them.
    let (loaded, ()) = tokio::join!(load, store.warm());
    match loaded {
        // A slow Secrets Manager must not keep the function from starting: the requests try again.
        Err(error) if error.is_unavailable() => {
            tracing::error!(cause = %crate::error::chain(&error), "the list of sites cannot be read yet");
        }
        loaded => loaded?,
    }
    let collector = Arc::new(Collector { sites, store });
    let router = router(Arc::clone(&collector), Options::BARE);
    Ok(Function { collector, router, secret, trusts_authorizer, writes_cors })
}

/// Whether a variable has the second of two values. Without one, it has the first.
fn one_of(name: &str, value: Option<String>, [first, second]: [&str; 2]) -> Result<bool, Error> {
    match value {
        None => Ok(false),
        Some(value) if value == first => Ok(false),
        Some(value) if value == second => Ok(true),
        Some(value) => Err(Error::config(format!("the variable {name} is {value:?}; it may be {first} or {second}"))),
    }
}
