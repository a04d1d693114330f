//! The server: the router on a TCP port, with limits on what clients may hold, and a graceful shutdown.

mod drain;
pub(crate) mod reload;

use crate::Error;
use crate::http::client_ip::ClientIp;
use axum::Router;
use axum::middleware::from_fn;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tower_http::add_extension::AddExtension;

/// How long the head of a request may take, also on a connection that is kept alive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How large the head of a request may be.
const HEAD_BYTES: usize = 64 * 1024;
/// How long a client may stop reading a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long requests in flight may take after the server was asked to stop.
const GRACE: Duration = Duration::from_secs(25);
/// The most connections at once, if the system allows twice as many open files. Further connections wait.
const CONNECTIONS: u64 = 2048;
/// Open files for anything but connections and the files served on them.
const RESERVED_FILES: u64 = 64;

/// Serves until `stop` resolves, then lets requests in flight finish.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) -> Result<(), Error> {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_BYTES);
    let graceful = GracefulShutdown::new();
    let router = router.layer(from_fn(drain::drain));
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
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let service = AddExtension::new(router.clone(), ClientIp(peer.ip()));
        let service = TowerToHyperService::new(service);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service));
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
