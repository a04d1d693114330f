//! Carries calls out, with the faults that the plan has for them.

use crate::faults::call::{Call, items, target, without_token};
use crate::faults::plan::{Fault, Plan};
use crate::faults::report::{Report, add};
use crate::faults::response::{Reply, cancelled, internal, refusal, reply};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// The largest body of a call or a response. AWS's own limits are below.
const BODY_BYTES: usize = 16 * 1024 * 1024;
/// How many items of a read are answered where it is answered in part.
const PART: usize = 3;
/// How long a call is held at most.
const HOLD: Duration = Duration::from_secs(120);

/// What to do with calls that are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Release {
    /// Deliver them, late, whether or not their senders still wait.
    Deliver,
    /// Drop them, and cut their connections.
    Drop,
}

/// A connection that is cut: hyper closes it without an answer.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

#[derive(Debug)]
pub(super) struct State {
    pub(super) to: Uri,
    pub(super) client: Client<HttpConnector, Full<Bytes>>,
    pub(super) places: Semaphore,
    pub(super) progress: Mutex<Progress>,
    /// Items that transactions are writing.
    pub(super) at_items: Mutex<HashSet<String>>,
    /// How many calls are held.
    pub(super) held: watch::Sender<usize>,
    pub(super) release: watch::Sender<Release>,
}

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) plan: Plan,
    pub(super) report: Report,
}

impl State {
    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Reply, Cut> {
        // In a task of its own: a call that has arrived is carried out even if its sender disconnects.
        tokio::spawn(async move {
            let _place = self.places.acquire().await.map_err(|_| Cut)?;
            let (head, body) = request.into_parts();
            let body = Limited::new(body, BODY_BYTES).collect().await.map_err(|_| Cut)?.to_bytes();
            let Some((service, action)) = target(&head.headers) else { return self.pass(&head, body).await };
            let call = Call { is_dynamodb: service.starts_with("DynamoDB"), action: action.into(), head, body };
            self.carry(&call).await
        })
        .await
        .map_err(|_| Cut)?
    }

    async fn carry(&self, call: &Call) -> Result<Reply, Cut> {
        let (fault, mut random) = {
            let mut progress = self.progress();
            add(&mut progress.report.calls, &call.action);
            let of_all = progress.report.total();
            let nth = progress.report.calls.get(&call.action).copied().unwrap_or(of_all);
            progress.plan.choose(call, nth, of_all)
        };
        let Some(fault) = fault else { return self.deliver(call).await };
        self.inject(call, fault);
        match fault {
            Fault::Fail(which) => self.fail(call, which, &mut random).await,
            Fault::Throttle if call.is_dynamodb => Ok(refusal(400, "ThrottlingException", &Value::Null)),
            Fault::Throttle => Ok(refusal(503, "ServiceUnavailableException", &Value::Null)),
            Fault::Exceeded => Ok(refusal(400, "ProvisionedThroughputExceededException", &Value::Null)),
            Fault::Conflict(which) | Fault::Crowded(which) => {
                let items = items(call).len();
                let which = which.unwrap_or_else(|| random.random_range(1..=items.max(1)));
                let is_conflict = matches!(fault, Fault::Conflict(_));
                let code = if is_conflict { "TransactionConflict" } else { "ThrottlingError" };
                Ok(cancelled(code, (1..=items).map(|item| item == which)))
            }
            Fault::Denied => Ok(refusal(400, "AccessDeniedException", &Value::Null)),
            Fault::Error => Ok(internal(call)),
            Fault::Cut => Err(Cut),
            Fault::After => self.deliver(call).await.map(|_| internal(call)),
            Fault::AfterCut => self.deliver(call).await.and(Err(Cut)),
            Fault::Garbage => {
                self.deliver(call).await?;
                Ok(reply(StatusCode::OK, "{\"garbage\": [\u{0}"))
            }
            Fault::Twice | Fault::TwiceFirst => {
                let first = self.deliver(call).await?;
                let second = self.pass(&call.head, without_token(&call.body)).await?;
                Ok(if fault == Fault::Twice { second } else { first })
            }
            Fault::Partial => self.answer_in_part(call).await,
            Fault::Delay(time) => {
                tokio::time::sleep(time).await;
                self.deliver(call).await
            }
            Fault::Hold => self.hold(self.deliver(call)).await,
            Fault::HoldAfter => {
                let answer = self.deliver(call).await;
                self.hold(async { answer }).await
            }
        }
    }

    fn inject(&self, call: &Call, fault: Fault) {
        tracing::info!(action = call.action, %fault, "injected");
        add(&mut self.progress().report.injected, &format!("{} {}", call.action, fault.name()));
    }

    /// Does the rest of a call once it is released.
    async fn hold(&self, rest: impl Future<Output = Result<Reply, Cut>>) -> Result<Reply, Cut> {
        let mut release = self.release.subscribe();
        self.held.send_modify(|held| *held += 1);
        let how = match tokio::time::timeout(HOLD, release.changed()).await {
            Ok(Ok(())) => *release.borrow(),
            _ => Release::Drop,
        };
        let result = match how {
            Release::Deliver => rest.await,
            Release::Drop => Err(Cut),
        };
        self.held.send_modify(|held| *held -= 1);
        result
    }

    /// Passes a call on, unless another transaction is writing one of its items.
    async fn deliver(&self, call: &Call) -> Result<Reply, Cut> {
        let contends = call.action == "TransactWriteItems" && self.progress().plan.contention;
        let items = if contends { items(call) } else { Vec::new() };
        let _claim = match ItemClaim::enter(self, &items) {
            Ok(claim) => claim,
            Err(conflicts) => {
                self.inject(call, Fault::Conflict(None));
                return Ok(cancelled("TransactionConflict", conflicts.into_iter()));
            }
        };
        let answer = self.pass(&call.head, call.body.clone()).await?;
        if !answer.status().is_success() {
            let code = answer.headers().get("x-amzn-errortype").and_then(|code| code.to_str().ok());
            let code = code.map_or_else(|| answer.status().as_u16().to_string(), Into::into);
            add(&mut self.progress().report.refused, &format!("{} {code}", call.action));
        }
        Ok(answer)
    }

    /// Lets records fail, and passes the others on.
    async fn fail(&self, call: &Call, which: Option<usize>, random: &mut StdRng) -> Result<Reply, Cut> {
        let mut body: Value = serde_json::from_slice(&call.body).map_err(|_| Cut)?;
        let records = body["Records"].as_array().cloned().unwrap_or_default();
        let one = random.random_range(0..records.len().max(1));
        let mut fails = |at| which.map_or_else(|| at == one || random.random(), |which| at + 1 == which);
        let failed: Vec<bool> = (0..records.len()).map(&mut fails).collect();
        let others: Vec<_> = records.into_iter().zip(&failed).filter(|(_, failed)| !**failed).collect();
        let mut taken = Vec::new();
        if !others.is_empty() {
            body["Records"] = others.into_iter().map(|(record, _)| record).collect();
            match self.ask(call, &body).await? {
                Ok(body) => taken = body["RequestResponses"].as_array().cloned().unwrap_or_default(),
                Err(refusal) => return Ok(refusal),
            }
        }
        let mut taken = taken.into_iter();
        let refused = json!({"ErrorCode": "ServiceUnavailableException", "ErrorMessage": "Slow down."});
        let entries: Vec<_> = failed
            .iter()
            .map(|failed| if *failed { refused.clone() } else { taken.next().unwrap_or_else(|| refused.clone()) })
            .collect();
        let failed = entries.iter().filter(|entry| entry.get("ErrorCode").is_some()).count();
        let body = json!({"FailedPutCount": failed, "Encrypted": false, "RequestResponses": entries});
        Ok(reply(StatusCode::OK, body.to_string()))
    }

    async fn answer_in_part(&self, call: &Call) -> Result<Reply, Cut> {
        let mut body: Value = serde_json::from_slice(&call.body).map_err(|_| Cut)?;
        if call.action == "Query" {
            body["Limit"] = PART.into();
            return self.pass(&call.head, body.to_string().into()).await;
        }
        let mut left = serde_json::Map::new();
        for (table, asked) in body["RequestItems"].as_object_mut().into_iter().flatten() {
            let mut rest = asked.clone();
            let Some(keys) = asked["Keys"].as_array_mut() else { continue };
            rest["Keys"] = keys.split_off(keys.len().min(PART)).into();
            if rest["Keys"].as_array().is_some_and(|keys| !keys.is_empty()) {
                left.insert(table.clone(), rest);
            }
        }
        match self.ask(call, &body).await? {
            Ok(mut body) => {
                body["UnprocessedKeys"] = left.into();
                Ok(reply(StatusCode::OK, body.to_string()))
            }
            Err(refusal) => Ok(refusal),
        }
    }

    /// Asks AWS the same with another body, and reads the answer unless it is a refusal.
    async fn ask(&self, call: &Call, body: &Value) -> Result<Result<Value, Reply>, Cut> {
        let answer = self.pass(&call.head, body.to_string().into()).await?;
        if !answer.status().is_success() {
            return Ok(Err(answer));
        }
        let body = answer.into_body().collect().await.map_err(|_| Cut)?.to_bytes();
        serde_json::from_slice(&body).map(Ok).map_err(|_| Cut)
    }

    /// Asks AWS.
    async fn pass(&self, head: &Parts, body: Bytes) -> Result<Reply, Cut> {
        let mut uri = head.uri.clone().into_parts();
        (uri.scheme, uri.authority) = (self.to.scheme().cloned(), self.to.authority().cloned());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = head.method.clone();
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Cut)?;
        *request.headers_mut() = end_to_end(head.headers.clone());
        let unreachable = |error: &dyn std::error::Error| {
            tracing::warn!(cause = %crate::error::chain(error), "AWS does not answer");
            Cut
        };
        let (head, body) = self.client.request(request).await.map_err(|error| unreachable(&error))?.into_parts();
        let body = Limited::new(body, BODY_BYTES).collect().await.map_err(|error| unreachable(&*error))?.to_bytes();
        let mut answer = Response::new(Full::new(body));
        *answer.status_mut() = head.status;
        *answer.headers_mut() = end_to_end(head.headers);
        Ok(answer)
    }
}

/// The items that a transaction is writing, until this is dropped.
struct ItemClaim<'a> {
    state: &'a State,
    items: &'a [String],
}

impl<'a> ItemClaim<'a> {
    /// Fails with which of them other transactions are writing.
    fn enter(state: &'a State, items: &'a [String]) -> Result<Self, Vec<bool>> {
        let mut taken = state.at_items.lock().unwrap_or_else(PoisonError::into_inner);
        let conflicts: Vec<_> = items.iter().map(|item| taken.contains(item)).collect();
        if conflicts.contains(&true) {
            return Err(conflicts);
        }
        taken.extend(items.iter().cloned());
        Ok(Self { state, items })
    }
}

impl Drop for ItemClaim<'_> {
    fn drop(&mut self) {
        let mut taken = self.state.at_items.lock().unwrap_or_else(PoisonError::into_inner);
        for item in self.items {
            taken.remove(item);
        }
    }
}

/// The headers that are not about the connection.
fn end_to_end(mut headers: HeaderMap) -> HeaderMap {
    const HOPS: [HeaderName; 3] = [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH];
    for name in HOPS.iter().chain([&HeaderName::from_static("keep-alive")]) {
        headers.remove(name);
    }
    headers
}
