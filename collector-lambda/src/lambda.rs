//! The collector as an AWS Lambda function: its configuration, and the way from an event to the router.
//!
//! | variable | what it says |
//! |---|---|
//! | `TALLYMARK_STREAM` | the Firehose delivery stream that takes the lines |
//! | `TALLYMARK_TABLE` | the DynamoDB table that counts |
//! | `TALLYMARK_SITES_SECRET` | the Secrets Manager secret that holds the list of sites: its name or ARN |
//! | `TALLYMARK_SITES` | instead of the secret, the list of sites itself, for tests and small set-ups |

use crate::Error;
use crate::dynamodb::DynamoDb;
use crate::firehose::Firehose;
use crate::routes::{self, Collector};
use crate::site::Sites;
use crate::store::{Counters, Lake, Store};
use aws_config::SdkConfig;
use axum::http::Uri;
use lambda_http::request::RequestContext;
use lambda_http::tower::Service;
use lambda_http::{Request, RequestExt, service_fn};
use std::process::ExitCode;
use std::sync::Arc;

/// Runs the function for as long as Lambda wants it. What keeps it from starting is logged.
pub async fn run() -> ExitCode {
    let collector = match collector(|name| std::env::var(name).ok()).await {
        Ok(collector) => collector,
        Err(error) => {
            tracing::error!(cause = %crate::error::chain(&error), "the collector cannot start");
            return ExitCode::FAILURE;
        }
    };
    let router = routes::router(Arc::new(collector));
    let handle = service_fn(|request: Request| router.clone().call(without_stage(request)));
    match lambda_http::run(handle).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the Lambda runtime has failed");
            ExitCode::FAILURE
        }
    }
}

/// A collector set up from variables, as `variable` gives them, with its connections open.
pub async fn collector(variable: impl Fn(&str) -> Option<String>) -> Result<Collector, Error> {
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
    let aws = aws_config::load_from_env().await;
    let store = Store::new(Lake::Firehose(Firehose::new(&aws, stream)), Counters::DynamoDb(DynamoDb::new(&aws, table)));
    // The first request should not wait for connections that can be opened while the function starts.
    let (json, ()) = tokio::join!(sites(&aws, secret, json), store.warm());
    Ok(Collector { sites: Sites::from_json(&json?)?, store })
}

async fn sites(aws: &SdkConfig, secret: Option<String>, json: Option<String>) -> Result<String, Error> {
    if let Some(json) = json {
        return Ok(json);
    }
    let cannot = || Error::config("cannot read the sites from the secret TALLYMARK_SITES_SECRET");
    let client = aws_sdk_secretsmanager::Client::new(aws);
    let secret =
        client.get_secret_value().set_secret_id(secret).send().await.map_err(|error| cannot().because(error))?;
    secret.secret_string.ok_or_else(|| cannot().because("it is not text"))
}

/// The request with the path that its sender meant. API Gateway puts the name of a stage before it, in
/// some events and not in others, and `lambda_http` in all of them.
pub fn without_stage(mut request: Request) -> Request {
    let (stage, path) = match request.request_context_ref() {
        Some(RequestContext::ApiGatewayV1(context)) => (&context.stage, &context.path),
        Some(RequestContext::ApiGatewayV2(context)) => (&context.stage, &context.http.path),
        _ => return request,
    };
    // The path as the gateway got it tells a stage from a route of the same name.
    let path = path.as_deref().unwrap_or_else(|| request.raw_http_path());
    let staged = stage.as_ref().and_then(|stage| path.strip_prefix('/')?.strip_prefix(stage.as_str()));
    let path = staged.filter(|path| path.starts_with('/')).unwrap_or(path);
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    // What is no URI is no route either, and stays as it is.
    if let Ok(uri) = format!("{path}{query}").parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}
