//! A proxy between the collector and local AWS that makes calls fail, for tests. `tallymark-faults` is the same as a
//! program; `FAULTS.md` says how to use it.
//!
//! A [`Plan`] says which calls meet which [`Fault`]: by [`Rule`]s such as `TransactWriteItems#2=after`, and at
//! random, by a seed. What a random call meets depends on the seed, its action and its number among the calls of
//! that action, and on nothing else.
//!
//! Only calls of AWS's JSON protocol (those with `X-Amz-Target`) meet faults; everything else passes. Headers pass as
//! they are, `Host` and the signature with them. Local AWS checks no signatures. AWS itself would refuse such
//! calls, and cannot be reached at all: the proxy speaks no TLS.

mod call;
mod inject;
mod plan;
mod report;
mod response;

pub use inject::Release;
pub use plan::{Fault, Plan, Rule};
pub use report::Report;

use crate::Error;
use crate::faults::inject::{Progress, State};
use axum::http::Uri;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Calls at once. More wait.
const CALLS: usize = 128;
const CONNECTIONS: usize = 512;
/// How long a connection to AWS is kept for the next call: shorter than AWS keeps it.
const IDLE: Duration = Duration::from_secs(1);

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

    /// Releases all calls that are held, and waits until they have ended.
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
