//! The authorizer of an HTTP API: whose key a request carries.
//!
//! API Gateway keeps an answer for every route of the API, by the `Authorization` header alone. So the answer says only
//! that the key is good, whose it is, and its scope; the collector decides what that scope may do on a route and from
//! an origin. A revoked key is refused once the list of sites has been read again
//! ([`LIFETIME`], 20 s) and API Gateway has forgotten its answer (30 s in
//! the template): within a minute.
//!
//! | variable | what it says |
//! |---|---|
//! | `TALLYMARK_SITES_SECRET` | the Secrets Manager secret that holds the list of sites: its name or ARN |

use serde::Serialize;
use serde_json::Value;
use std::process::ExitCode;
use std::sync::Arc;
use tallymark_collector::chain;
use tallymark_collector::sites::Sites;
use tallymark_collector::sites::basic_auth::credentials;
use tallymark_collector::sites::secret::{LIFETIME, SecretSource, SecretsManager, SitesSecret};

/// The answer of the simple format, payload version 2.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Whether the key is good. Anything but a boolean here would be answered 500, which clients repeat.
    pub is_authorized: bool,
    /// What the collector gets as `requestContext.authorizer.lambda`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<Context>,
}

/// Who sends a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Context {
    /// The site.
    pub username: String,
    /// The scope of its key: `secret` or `write`.
    pub scope: &'static str,
}

impl Answer {
    const DENY: Self = Self { is_authorized: false, context: None };
}

/// Answers a request of API Gateway, whatever it is.
///
/// # Errors
///
/// Only if no list of sites has ever been read: to refuse a good key then would make clients pause for minutes, while
/// an error, which API Gateway answers 500, makes them retry.
pub async fn authorize<S: SecretSource>(secret: &Arc<SitesSecret<S>>, request: &Value) -> Result<Answer, NoSites> {
    let Some((username, key)) = identity(request).and_then(|header| credentials(header.as_bytes())) else {
        return Ok(Answer::DENY);
    };
    secret.refresh().await;
    let answer = || {
        let (site, scope) = secret.sites().authenticate(&username, &key)?;
        let context = Context { username: site.username.clone(), scope: scope.as_str() };
        Some(Answer { is_authorized: true, context: Some(context) })
    };
    if let Some(answer) = answer() {
        return Ok(answer);
    }
    // The key may be newer than the list.
    if secret.refresh_for_unknown().await
        && let Some(answer) = answer()
    {
        return Ok(answer);
    }
    if secret.is_loaded() { Ok(Answer::DENY) } else { Err(NoSites) }
}

/// The one value that API Gateway keeps the answer by. Two headers arrive joined by a comma, which no base64 has.
fn identity(request: &Value) -> Option<&str> {
    match request.get("identitySource")?.as_array()?.as_slice() {
        [header] => header.as_str(),
        _ => None,
    }
}

/// No list of sites could be read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSites;

impl std::fmt::Display for NoSites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "no list of sites could be read from the secret TALLYMARK_SITES_SECRET so far; see the log for the cause",
        )
    }
}

impl std::error::Error for NoSites {}

/// Runs the function for as long as Lambda wants it.
pub async fn run() -> ExitCode {
    let Some(id) = std::env::var("TALLYMARK_SITES_SECRET").ok().filter(|id| !id.is_empty()) else {
        tracing::error!("the variable TALLYMARK_SITES_SECRET is not set; it names the secret with the list of sites");
        return ExitCode::FAILURE;
    };
    let aws = tallymark_collector::store::aws::config().await;
    let secret = SitesSecret::new(SecretsManager::new(&aws, id), Sites::default(), LIFETIME);
    // While the function starts, nobody waits. If it fails, the first request tries again.
    if let Err(error) = secret.load().await {
        tracing::error!(cause = chain(&error), "the list of sites cannot be read");
    }
    crate::function::run(|request: Value| {
        let secret = Arc::clone(&secret);
        async move { Ok(authorize(&secret, &request).await?) }
    })
    .await
}
