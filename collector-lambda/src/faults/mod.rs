//! A proxy that stands between the collector and local AWS and lets calls go wrong: for tests, and for whoever
//! wants to see how a set-up of his own takes it. `tallymark-faults` is the same as a program; `FAULTS.md` tells
//! how to use it.
//!
//! A [`Plan`] says which calls meet which [`Fault`]: by [`Rule`]s such as `TransactWriteItems#2=after`, and at
//! random, by a seed. What a random call meets depends on the seed, its action and its number among the calls of
//! that action, and not on what else happens at the time.
//!
//! Only calls of AWS's JSON protocol (those with `X-Amz-Target`) meet faults; all else passes. Headers pass as
//! they are, `Host` and the signature with them. Local AWS checks no signatures. AWS itself would refuse such
//! calls, and cannot be reached at all: the proxy speaks no TLS.

use crate::Error;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::ops::AddAssign;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// The largest body of a call or an answer. AWS's own limits are below.
const BODY_BYTES: usize = 16 * 1024 * 1024;
/// Calls at once. Whoever comes on top waits.
const CALLS: usize = 128;
const CONNECTIONS: usize = 512;
/// Actions, and codes of answers, that are told apart in the report.
const NAMES: usize = 64;
/// How much of a read is answered where it is answered in part.
const PART: usize = 3;
/// How long a call is held at most.
const HOLD: Duration = Duration::from_secs(120);
/// How long a connection to AWS is kept for the next call: shorter than AWS keeps it.
const IDLE: Duration = Duration::from_secs(1);

/// What can happen to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// `PutRecordBatch` takes the other records, but not the one of this number, counted from 1; without a
    /// number, it refuses about half of them.
    Fail(Option<usize>),
    /// Refused because there are too many calls: `ServiceUnavailableException`, or `ThrottlingException`.
    Throttle,
    /// DynamoDB refuses it with `ProvisionedThroughputExceededException`.
    Exceeded,
    /// A transaction is cancelled because another is at its item of this number, counted from 1; without a number,
    /// at any.
    Conflict(Option<usize>),
    /// A transaction is cancelled because an item gets too many writes.
    Crowded(Option<usize>),
    /// Refused with `AccessDeniedException`, as it would be however often it came.
    Denied,
    /// Answered 500, without effect.
    Error,
    /// The connection is cut, without effect.
    Cut,
    /// It takes effect and is answered 500.
    After,
    /// It takes effect and the connection is cut.
    AfterCut,
    /// It takes effect and the answer makes no sense.
    Garbage,
    /// It arrives twice, the second time without the token by which AWS knows a repetition, as if minutes had
    /// passed. The answer is that of the second.
    Twice,
    /// The same, with the answer of the first.
    TwiceFirst,
    /// A read is answered in part: a query by three items and where to go on, a batch of keys by the first three.
    Partial,
    /// It takes its time.
    Delay(Duration),
    /// It waits before it is passed on, until [`Proxy::release`].
    Hold,
    /// It takes effect, and the answer waits.
    HoldAfter,
}

impl Fault {
    /// All that random calls meet unless a plan says otherwise: all but holds.
    pub const RANDOM: [Self; 15] = [
        Self::Fail(None),
        Self::Throttle,
        Self::Exceeded,
        Self::Conflict(None),
        Self::Crowded(None),
        Self::Denied,
        Self::Error,
        Self::Cut,
        Self::After,
        Self::AfterCut,
        Self::Garbage,
        Self::Twice,
        Self::TwiceFirst,
        Self::Partial,
        Self::Delay(Duration::from_millis(20)),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Fail(_) => "fail",
            Self::Throttle => "throttle",
            Self::Exceeded => "exceeded",
            Self::Conflict(_) => "conflict",
            Self::Crowded(_) => "crowded",
            Self::Denied => "denied",
            Self::Error => "error",
            Self::Cut => "cut",
            Self::After => "after",
            Self::AfterCut => "after-cut",
            Self::Garbage => "garbage",
            Self::Twice => "twice",
            Self::TwiceFirst => "twice-first",
            Self::Partial => "partial",
            Self::Delay(_) => "delay",
            Self::Hold => "hold",
            Self::HoldAfter => "hold-after",
        }
    }

    /// Whether AWS could do that to a call.
    fn can_meet(self, call: &Call) -> bool {
        match self {
            Self::Fail(_) => call.action == "PutRecordBatch",
            Self::Conflict(_) | Self::Crowded(_) => call.action == "TransactWriteItems",
            Self::Exceeded => call.is_dynamodb,
            Self::Partial => ["Query", "BatchGetItem"].contains(&call.action.as_str()),
            _ => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Fail(Some(number)) | Self::Conflict(Some(number)) | Self::Crowded(Some(number)) => {
                write!(f, ":{number}")
            }
            Self::Delay(time) => write!(f, ":{}", time.as_millis()),
            _ => Ok(()),
        }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, number) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let number = number.map(|number| number.parse::<u32>().map_err(|_| format!("{number:?} is no number")));
        match (name, number.transpose()?) {
            ("fail", Some(record)) => Ok(Self::Fail(Some(record as usize))),
            ("conflict", Some(item)) => Ok(Self::Conflict(Some(item as usize))),
            ("crowded", Some(item)) => Ok(Self::Crowded(Some(item as usize))),
            ("delay", Some(milliseconds)) => Ok(Self::Delay(Duration::from_millis(milliseconds.into()))),
            ("hold", None) => Ok(Self::Hold),
            ("hold-after", None) => Ok(Self::HoldAfter),
            (name, None) => Self::RANDOM.into_iter().find(|fault| fault.name() == name).ok_or_else(|| {
                let names: Vec<_> = Self::RANDOM.iter().map(|fault| fault.name()).collect();
                format!("there is no fault {name:?}; there are {}, hold and hold-after", names.join(", "))
            }),
            (name, Some(_)) => Err(format!("{name:?} takes no number")),
        }
    }
}

/// Lets certain calls meet a fault. Written `ACTION#NUMBER=FAULT`, such as `TransactWriteItems#2=after`: the second
/// such call. With `*` for the action, all calls are counted together; with `#2..`, all from the second on are
/// meant, and without a number, all.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    action: Option<String>,
    first: u64,
    last: u64,
    fault: Fault,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (calls, fault) = text.split_once('=').ok_or("a rule is ACTION#NUMBER=FAULT")?;
        let (action, number) = calls.split_once('#').unwrap_or((calls, "1.."));
        let parse = |number: &str| match number.parse() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{number:?} is no number of a call; the first is 1")),
        };
        let (first, last) = match number.strip_suffix("..") {
            Some(first) => (parse(first)?, u64::MAX),
            None => (parse(number)?, parse(number)?),
        };
        Ok(Self { action: (action != "*").then(|| action.into()), first, last, fault: fault.parse()? })
    }
}

/// Which calls meet which faults.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What chance goes by.
    pub seed: u64,
    /// The share of calls, of those that no rule is for, that meet a random fault: 0 to 1.
    pub rate: f64,
    /// The faults that random calls meet.
    pub kinds: Vec<Fault>,
    /// The actions that meet random faults; all if empty.
    pub only: Vec<String>,
    /// The first that is for a call decides.
    pub rules: Vec<Rule>,
    /// Whether transactions that are at the same item at once cancel each other, as in DynamoDB. Local AWS does
    /// one after the other.
    pub contention: bool,
}

impl Default for Plan {
    /// All calls pass.
    fn default() -> Self {
        Self { seed: 0, rate: 0.0, kinds: Fault::RANDOM.into(), only: Vec::new(), rules: Vec::new(), contention: false }
    }
}

impl Plan {
    /// What a call meets, the `nth` of its action and the `of_all`th of all, and what chance has left to say.
    fn fate(&self, call: &Call, nth: u64, of_all: u64) -> (Option<Fault>, StdRng) {
        let mut seed = Sha256::new();
        seed.update(self.seed.to_le_bytes());
        seed.update(nth.to_le_bytes());
        seed.update(&call.action);
        let mut random = StdRng::from_seed(seed.finalize().into());
        let is_for = |rule: &&Rule| match &rule.action {
            Some(action) => *action == call.action && (rule.first..=rule.last).contains(&nth),
            None => (rule.first..=rule.last).contains(&of_all),
        };
        if let Some(rule) = self.rules.iter().find(is_for) {
            return (Some(rule.fault).filter(|fault| fault.can_meet(call)), random);
        }
        let kinds: Vec<_> = self.kinds.iter().filter(|fault| fault.can_meet(call)).collect();
        let is_meant = self.only.is_empty() || self.only.contains(&call.action);
        if !is_meant || kinds.is_empty() || random.random::<f64>() >= self.rate {
            return (None, random);
        }
        (Some(*kinds[random.random_range(0..kinds.len())]), random)
    }
}

/// What happened since the plan came into force.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Calls, by action.
    pub calls: BTreeMap<String, u64>,
    /// Faults injected, by action and fault, such as `TransactWriteItems after`. What [`Plan::contention`] cancels is
    /// a `conflict`.
    pub injected: BTreeMap<String, u64>,
    /// Calls that AWS itself refused, by action and code, such as `TransactWriteItems TransactionCanceledException`.
    pub refused: BTreeMap<String, u64>,
}

impl Report {
    /// All calls together.
    pub fn total(&self) -> u64 {
        self.calls.values().sum()
    }

    /// All faults together.
    pub fn faults(&self) -> u64 {
        self.injected.values().sum()
    }
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        let Self { calls, injected, refused } = self;
        for (sums, counts) in [(calls, other.calls), (injected, other.injected), (refused, other.refused)] {
            for (name, n) in counts {
                *sums.entry(name).or_default() += n;
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} calls, {} faults", self.total(), self.faults())?;
        for (what, counts) in [("calls", &self.calls), ("injected", &self.injected), ("refused", &self.refused)] {
            for (name, n) in counts {
                writeln!(f, "{what:>8} {n:>7}  {name}")?;
            }
        }
        Ok(())
    }
}

/// What becomes of calls that are held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Release {
    /// They go on, late, whether or not somebody still waits for the answer.
    Deliver,
    /// They are gone, and their connections with them.
    Drop,
}

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens at an address, such as `127.0.0.1:0`, for calls to pass on to AWS at `to`, such as
    /// `http://127.0.0.1:4566`.
    pub async fn start(listen: &str, to: &str, plan: Plan) -> Result<Self, Error> {
        let to: Uri = to.parse().map_err(|error| Error::config("that is no URL").with_source(error))?;
        if to.scheme_str() != Some("http") || to.authority().is_none() {
            return Err(Error::config("local AWS is at an http:// URL"));
        }
        let cannot_listen = |error| Error::config(format!("cannot listen on {listen}")).with_source(error);
        let listener = TcpListener::bind(listen).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let client =
            Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build_http();
        let state = Arc::new(State {
            to,
            client,
            places: Semaphore::new(CALLS),
            progress: Mutex::new(Progress { plan, report: Report::default() }),
            at_items: Mutex::default(),
            held: watch::Sender::new(0),
            release: watch::Sender::new(Release::Deliver),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    /// Where it listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Follows another plan from here on, and says what has happened under the last. Calls are counted from the
    /// start again.
    pub fn follow(&self, plan: Plan) -> Report {
        std::mem::replace(&mut *self.state.progress(), Progress { plan, report: Report::default() }).report
    }

    /// What has happened under this plan.
    pub fn report(&self) -> Report {
        self.state.progress().report.clone()
    }

    /// Waits until a call is held.
    pub async fn held(&self) {
        // It cannot fail: the sender lives as long as `self`.
        let _ = self.state.held.subscribe().wait_for(|held| *held > 0).await;
    }

    /// Lets go of all calls that are held, and waits until they have met their end.
    pub async fn release(&self, how: Release) {
        self.state.release.send_replace(how);
        let _ = self.state.held.subscribe().wait_for(|held| *held == 0).await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.state.release.send_replace(Release::Drop);
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Out of open files, most likely: give the others time to end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        let service = service_fn(move |request| Arc::clone(&state).handle(request));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// A connection that is cut: hyper closes it without an answer.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is cut")
    }
}

impl std::error::Error for Cut {}

type Answer = Response<Full<Bytes>>;

/// A call to AWS.
struct Call {
    head: Parts,
    body: Bytes,
    action: String,
    is_dynamodb: bool,
}

#[derive(Debug)]
struct State {
    to: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    places: Semaphore,
    progress: Mutex<Progress>,
    /// Items that transactions are at.
    at_items: Mutex<HashSet<String>>,
    /// How many calls are held.
    held: watch::Sender<usize>,
    release: watch::Sender<Release>,
}

#[derive(Debug)]
struct Progress {
    plan: Plan,
    report: Report,
}

impl State {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, Cut> {
        // What has arrived goes its way, though whoever sent it may be gone meanwhile.
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

    async fn carry(&self, call: &Call) -> Result<Answer, Cut> {
        let (fault, mut random) = {
            let mut progress = self.progress();
            add(&mut progress.report.calls, &call.action);
            let of_all = progress.report.total();
            let nth = progress.report.calls.get(&call.action).copied().unwrap_or(of_all);
            progress.plan.fate(call, nth, of_all)
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
                Ok(answer(StatusCode::OK, "{\"garbage\": [\u{0}"))
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
    async fn hold(&self, rest: impl Future<Output = Result<Answer, Cut>>) -> Result<Answer, Cut> {
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

    /// Passes a call on, unless another transaction is at one of its items.
    async fn deliver(&self, call: &Call) -> Result<Answer, Cut> {
        let contends = call.action == "TransactWriteItems" && self.progress().plan.contention;
        let items = if contends { items(call) } else { Vec::new() };
        let _at_items = match AtItems::enter(self, &items) {
            Ok(entered) => entered,
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
    async fn fail(&self, call: &Call, which: Option<usize>, random: &mut StdRng) -> Result<Answer, Cut> {
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
        Ok(answer(StatusCode::OK, body.to_string()))
    }

    async fn answer_in_part(&self, call: &Call) -> Result<Answer, Cut> {
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
                Ok(answer(StatusCode::OK, body.to_string()))
            }
            Err(refusal) => Ok(refusal),
        }
    }

    /// Asks AWS the same with another body, and reads the answer unless it is a refusal.
    async fn ask(&self, call: &Call, body: &Value) -> Result<Result<Value, Answer>, Cut> {
        let answer = self.pass(&call.head, body.to_string().into()).await?;
        if !answer.status().is_success() {
            return Ok(Err(answer));
        }
        let body = answer.into_body().collect().await.map_err(|_| Cut)?.to_bytes();
        serde_json::from_slice(&body).map(Ok).map_err(|_| Cut)
    }

    /// Asks AWS.
    async fn pass(&self, head: &Parts, body: Bytes) -> Result<Answer, Cut> {
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

/// A transaction is at its items until this is dropped.
struct AtItems<'a> {
    state: &'a State,
    items: &'a [String],
}

impl<'a> AtItems<'a> {
    /// Or at which of them others are.
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

impl Drop for AtItems<'_> {
    fn drop(&mut self) {
        let mut taken = self.state.at_items.lock().unwrap_or_else(PoisonError::into_inner);
        for item in self.items {
            taken.remove(item);
        }
    }
}

/// Counts, without end to what a peer may make it remember.
fn add(counts: &mut BTreeMap<String, u64>, name: &str) {
    if counts.contains_key(name) || counts.len() < NAMES {
        *counts.entry(name.into()).or_default() += 1;
    } else {
        *counts.entry("others".into()).or_default() += 1;
    }
}

/// The service and the action of a call.
fn target(headers: &HeaderMap) -> Option<(&str, &str)> {
    headers.get("x-amz-target")?.to_str().ok()?.split_once('.')
}

/// The items that a transaction is at. A new item is known by its keys as they are named in Tallymark's tables.
fn items(call: &Call) -> Vec<String> {
    let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
    let item = |action: &Value| {
        let action = action.as_object()?.values().next()?;
        let key = action.get("Key").unwrap_or(&action["Item"]);
        Some(json!([action["TableName"], key["pk"], key["sk"]]).to_string())
    };
    body["TransactItems"].as_array().into_iter().flatten().filter_map(item).collect()
}

fn without_token(body: &Bytes) -> Bytes {
    let Ok(Value::Object(mut call)) = serde_json::from_slice(body) else { return body.clone() };
    match call.remove("ClientRequestToken") {
        Some(_) => Value::Object(call).to_string().into(),
        None => body.clone(),
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

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let json = header::HeaderValue::from_static("application/x-amz-json-1.1");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

fn refusal(status: u16, code: &'static str, more: &Value) -> Answer {
    let mut body = json!({"__type": format!("com.amazonaws#{code}"), "message": "injected"});
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    let mut answer = answer(StatusCode::from_u16(status).unwrap_or_default(), body.to_string());
    answer.headers_mut().insert("x-amzn-errortype", header::HeaderValue::from_static(code));
    answer
}

fn internal(call: &Call) -> Answer {
    refusal(500, if call.is_dynamodb { "InternalServerError" } else { "InternalFailure" }, &Value::Null)
}

/// A transaction that is cancelled because of some of its items.
fn cancelled(code: &str, items: impl Iterator<Item = bool>) -> Answer {
    let reason =
        |is_cause| if is_cause { json!({"Code": code, "Message": "injected"}) } else { json!({"Code": "None"}) };
    let reasons: Vec<_> = items.map(reason).collect();
    refusal(400, "TransactionCanceledException", &json!({"CancellationReasons": reasons}))
}
