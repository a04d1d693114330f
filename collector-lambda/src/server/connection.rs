//! The bytes of one connection: how long it may be silent, and a close that does not lose the last response.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, Sleep, sleep};
use tokio_io_timeout::TimeoutStream;

/// How long the head of a request may take from its first byte, and a new connection until its first head is read.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client may stop reading a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long, and how far, a refused body is read and discarded after the response.
const LINGER_TIMEOUT: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 16 * 1024 * 1024;
/// How many connections may do so at once. Others are closed immediately.
static LINGERING: Semaphore = Semaphore::const_new(128);

/// What a connection is doing. The connection's reader and the service of its requests share it.
#[derive(Debug)]
pub(super) struct State {
    phase: AtomicU8,
    is_unread: AtomicBool,
}

/// The head of a request is arriving.
const HEAD: u8 = 0;
/// A request is being served. The timeouts of bodies are not the connection's.
const SERVING: u8 = 1;
/// The next request may come.
const IDLE: u8 = 2;

impl State {
    /// The head of a request has been read.
    pub(super) fn serving(&self) {
        self.phase.store(SERVING, Ordering::Relaxed);
    }

    /// The response is ready, and whether a part of the request's body was not read.
    pub(super) fn served(&self, is_unread: bool) {
        self.phase.store(IDLE, Ordering::Relaxed);
        self.is_unread.store(is_unread, Ordering::Relaxed);
    }
}

/// A connection for hyper.
pub(super) struct Connection {
    stream: Pin<Box<TimeoutStream<TcpStream>>>,
    state: Arc<State>,
    keep_alive: Duration,
    /// The end of the head, or of being idle.
    deadline: Pin<Box<Sleep>>,
    is_idle: bool,
    linger: Option<Linger>,
}

struct Linger {
    deadline: Pin<Box<Sleep>>,
    left: usize,
    _permit: SemaphorePermit<'static>,
}

impl Connection {
    /// The connection, and its state for [`State::serving`] and [`State::served`].
    pub(super) fn new(stream: TcpStream, keep_alive: Duration) -> (Self, Arc<State>) {
        let state = Arc::new(State { phase: AtomicU8::new(HEAD), is_unread: AtomicBool::new(false) });
        let mut stream = Box::pin(TimeoutStream::new(stream));
        stream.as_mut().set_write_timeout_pinned(Some(WRITE_TIMEOUT));
        let deadline = Box::pin(sleep(HEAD_TIMEOUT));
        let connection = Self { stream, state: Arc::clone(&state), keep_alive, deadline, is_idle: false, linger: None };
        (connection, state)
    }

    fn begin_idle(&mut self) {
        if !self.is_idle {
            self.is_idle = true;
            self.deadline.as_mut().reset(Instant::now() + self.keep_alive);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let phase = this.state.phase.load(Ordering::Relaxed);
        if phase == IDLE {
            this.begin_idle();
        }
        if phase == HEAD && this.deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buffer.filled().len();
        let read = this.stream.as_mut().poll_read(context, buffer);
        match read {
            Poll::Ready(Ok(())) if phase == IDLE && buffer.filled().len() > before => {
                this.state.phase.store(HEAD, Ordering::Relaxed);
                this.is_idle = false;
                this.deadline.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
            }
            // As if the client had closed it.
            Poll::Pending if phase == IDLE => return this.deadline.as_mut().poll(context).map(Ok),
            _ => {}
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // A long response is still being written: it is not idle yet.
        self.is_idle = false;
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_idle = false;
        self.stream.as_mut().poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.as_mut().poll_flush(context))?;
        // After a response hyper may wait for the next request without another read, so the deadline is set here too.
        if self.state.phase.load(Ordering::Relaxed) == IDLE {
            self.begin_idle();
            let _ = self.deadline.as_mut().poll(context);
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the sending side. If the client is still sending a body that was refused, discards some of it: a socket that is
    /// closed with unread bytes resets the connection, and the client would lose the response and send all of it again.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(this.stream.as_mut().poll_shutdown(context))?;
            let permit = LINGERING.try_acquire().ok().filter(|_| this.state.is_unread.load(Ordering::Relaxed));
            let Some(permit) = permit else { return Poll::Ready(Ok(())) };
            let deadline = Box::pin(sleep(LINGER_TIMEOUT));
            this.linger = Some(Linger { deadline, left: LINGER_BYTES, _permit: permit });
        }
        let Some(linger) = &mut this.linger else { return Poll::Ready(Ok(())) };
        let mut scratch = [0; 16 * 1024];
        while linger.deadline.as_mut().poll(context).is_pending() && linger.left > 0 {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(this.stream.as_mut().poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    linger.left = linger.left.saturating_sub(buffer.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
