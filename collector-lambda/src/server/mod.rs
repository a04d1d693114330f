//! The server: the router on a TCP port, with limits on what clients may hold, and a graceful shutdown.

mod connection;
mod drain;
pub(crate) mod reload;

use crate::Error;
use crate::http::client_ip::ClientIp;
use crate::server::connection::Connection;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// How long a connection may be idle between requests, unless it is set: longer than the 60 s of common load balancers, which
/// would otherwise send requests on connections that are just being closed.
pub const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// How large the head of a request may be.
const HEAD_BYTES: usize = 64 * 1024;
/// How long requests in flight may take after the server was asked to stop.
const GRACE: Duration = Duration::from_secs(25);
/// The most connections at once, if the system allows twice as many open files. Further connections wait.
const CONNECTIONS: u64 = 2048;
/// Open files for anything but connections and the files served on them.
const RESERVED_FILES: u64 = 64;

/// Serves until `stop` resolves, then lets requests in flight finish. Connections may be idle for `keep_alive` between
/// requests.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    keep_alive: Duration,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut http = http1::Builder::new();
    // Connections have timeouts of their own, because hyper has one for slow heads and idle connections alike.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_BYTES);
    let graceful = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(connections()));
    let mut accepting = true;
    tokio::pin!(stop);
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, stream, peer) = tokio::select! {
            (permit, accepted) = next => match accepted {
                Ok((stream, peer)) => (permit, stream, peer),
                Err(error) => {
                    // Probably out of open files: give other connections time to end.
                    if std::mem::replace(&mut accepting, false) {
                        tracing::warn!(%error, "cannot accept connections");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        accepting = true;
        let _ = stream.set_nodelay(true);
        let (connection, state) = Connection::new(stream, keep_alive);
        let router = router.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            state.serving();
            let (router, state, mut request) = (router.clone(), Arc::clone(&state), request.map(Body::new));
            request.extensions_mut().insert(ClientIp(peer.ip()));
            async move {
                let (response, is_unread) = drain::respond(router, request).await;
                state.served(is_unread);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(connection), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(GRACE, graceful.shutdown()).await.is_err() {
        tracing::warn!("some requests did not finish in time and were not answered");
    }
    Ok(())
}

/// As many as the system allows. Each connection may need a second open file, for what it is served.
fn connections() -> usize {
    let files = rlimit::increase_nofile_limit(RESERVED_FILES + 2 * CONNECTIONS).unwrap_or(1024);
    (files.saturating_sub(RESERVED_FILES) / 2).clamp(1, CONNECTIONS) as usize
}

/// Resolves at SIGTERM or Ctrl-C.
pub fn stop_signal() -> Result<impl Future<Output = ()>, Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|error| Error::config("cannot listen for signals").with_source(error));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
