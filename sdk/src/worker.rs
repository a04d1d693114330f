//! The thread behind a client: does what the outbox says, and tells whoever waits.

use crate::builder::{Builder, OnError, OnLoss};
use crate::client::{Client, Clock, Command, Handle, Outcome as Fate, Random, Shared};
use crate::error::{Error, Kind};
use crate::loss::{Losses, Reason};
use crate::outbox::{Attempt, Mark, Next, Outbox};
use crate::sender::{Outcome, Sender};
use crate::storage::Storage;
use crate::wire::Rejected;
use reqwest::header::HeaderValue;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a client whose last handle was dropped goes on delivering what it holds.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// Opens the storage and starts the thread.
pub(crate) fn start(builder: Builder, sender: Sender) -> Result<Client, Error> {
    let Builder { config, on_loss, on_error, .. } = builder;
    #[cfg(feature = "spool")]
    let storage = match &builder.spool {
        Some((path, durability)) => Storage::directory(path, *durability),
        None => Ok(Storage::memory()),
    };
    #[cfg(not(feature = "spool"))]
    let storage = Ok(Storage::memory());
    let random: Random = rand::random::<u64>;
    let outbox = storage
        .and_then(|storage| Outbox::new(config, storage, random))
        .map_err(|error| Error::config("the spool cannot be used").because(error))?;
    let shared = Arc::new(Shared::new(outbox, sender, Clock::start()));
    let (commands, receiver) = mpsc::unbounded_channel();

    let cannot_start = |error: std::io::Error| Error::config("the client's thread cannot be started").because(error);
    let hooks = Hooks::start(on_loss, on_error).map_err(cannot_start)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let worker = Worker { shared: Arc::clone(&shared), hooks, noticed: Losses::default(), flushes: Vec::new() };
    std::thread::Builder::new()
        .name("tallymark".into())
        .spawn(move || runtime.block_on(worker.run(receiver)))
        .map_err(cannot_start)?;
    Ok(Client::live(Handle { shared, commands }))
}

struct Worker {
    shared: Arc<Shared>,
    hooks: Hooks,
    /// The losses that the hook has been told of.
    noticed: Losses,
    flushes: Vec<Flush>,
}

/// A send that is over.
struct Sent {
    attempt: Attempt,
    authorization: HeaderValue,
    outcome: Outcome,
}

/// Somebody waits for everything before the mark to be settled.
struct Flush {
    mark: Mark,
    deadline: Instant,
    reply: Box<dyn FnOnce(bool) + Send>,
}

impl Worker {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut flying = JoinSet::new();
        let mut hurry = false;
        let mut end = None;
        let mut done = None;
        while done.is_none() {
            let wake = self.send_all(&mut flying);
            self.notice();
            if hurry && flying.is_empty() {
                hurry = false;
                self.shared.state().outbox.flush();
                continue;
            }
            if end.is_some_and(|end| Instant::now() >= end || self.shared.state().outbox.stats().queued == 0) {
                break;
            }
            let wake = self.flushes.iter().map(|flush| flush.deadline).chain(wake).chain(end).min();
            tokio::select! {
                Some(sent) = flying.join_next(), if !flying.is_empty() => {
                    // A send is never cancelled and does not panic, so there is always an outcome.
                    if let Ok(sent) = sent {
                        self.answered(sent);
                    }
                }
                command = commands.recv(), if end.is_none() => match command {
                    Some(Command::Poll) => {}
                    Some(Command::Hurry) => hurry = true,
                    Some(Command::Flush { deadline, reply }) => {
                        let mark = self.shared.state().outbox.flush();
                        self.flushes.push(Flush { mark, deadline, reply });
                    }
                    Some(Command::Stop { done: reply }) => done = Some(reply),
                    None => {
                        self.shared.state().outbox.flush();
                        end = Some(Instant::now() + DROP_GRACE);
                    }
                },
                () = sleep_until(wake) => {}
            }
        }
        drop(flying);
        self.end();
        if let Some(done) = done {
            done();
        }
    }

    /// Sends whatever may be sent now. Returns when there may be more.
    fn send_all(&self, flying: &mut JoinSet<Sent>) -> Option<Instant> {
        loop {
            let now = self.shared.clock.now();
            let next = self.shared.state().outbox.poll(now);
            match next {
                Next::Send(attempt) => {
                    let shared = Arc::clone(&self.shared);
                    flying.spawn(async move {
                        let authorization = shared.sender.authorization();
                        let outcome = shared.sender.send(&attempt, &authorization).await;
                        Sent { attempt, authorization, outcome }
                    });
                }
                Next::WaitUntil(then) => return Some(Instant::now() + Duration::from_millis(then.saturating_sub(now))),
                Next::Idle => return None,
            }
        }
    }

    fn answered(&mut self, Sent { attempt, authorization, outcome }: Sent) {
        let batch = attempt.batch_id;
        let mut state = self.shared.state();
        let settled = state.outbox.answer(self.shared.clock.now(), batch, outcome.answer());
        if matches!(outcome, Outcome::Status(401 | 403, _)) && authorization != self.shared.sender.authorization() {
            // That was about a key that has been replaced in the meantime.
            state.outbox.resume();
        }
        drop(state);
        tracing::debug!(%batch, ?settled, "a batch was answered");
        match outcome {
            Outcome::Receipt(receipt) => {
                self.tell_fates(&receipt.rejected);
                for Rejected { code, message, .. } in receipt.rejected {
                    self.hooks.error(Error::new(Kind::Rejected { code, message }));
                }
            }
            Outcome::Status(401, _) => self.hooks.error(Error::new(Kind::Unauthorized)),
            Outcome::Status(403, _) => self.hooks.error(Error::new(Kind::Forbidden)),
            Outcome::Status(status, _) => {
                self.hooks.error(Error::new(Kind::Send(format!("the collector has answered {status} to a batch"))));
            }
            Outcome::Failed(error) => self.hooks.error(error),
        }
    }

    /// Tells everybody who waits what has come about.
    fn notice(&mut self) {
        self.tell_fates(&[]);
        let mut state = self.shared.state();
        let dropped = state.outbox.stats().dropped;
        let trouble = state.outbox.spool_mut().take_trouble();
        let now = Instant::now();
        let mut told = Vec::new();
        for flush in std::mem::take(&mut self.flushes) {
            let settled = state.outbox.is_settled(flush.mark);
            if settled || flush.deadline <= now {
                told.push((flush.reply, settled));
            } else {
                self.flushes.push(flush);
            }
        }
        drop(state);
        for (reply, settled) in told {
            reply(settled);
        }
        for reason in Reason::ALL {
            let events = dropped.of(reason) - self.noticed.of(reason);
            if events > 0 {
                tracing::warn!(reason = reason.as_str(), events, "events were dropped");
                self.hooks.loss(reason, events);
            }
        }
        self.noticed = dropped;
        if let Some(error) = trouble {
            self.hooks.error(Error::new(Kind::Storage).because(error));
        }
    }

    fn tell_fates(&self, rejected: &[Rejected]) {
        let mut told = Vec::new();
        let mut state = self.shared.state();
        for (event, reason) in state.outbox.take_fates() {
            if let Some(then) = state.waiting.remove(&event) {
                let refused = rejected.iter().find(|rejected| rejected.event_id == Some(event));
                let fate = match (reason, refused) {
                    (Some(reason), _) => Fate::Dropped(reason),
                    (None, Some(Rejected { code, message, .. })) => {
                        Fate::Rejected { code: code.clone(), message: message.clone() }
                    }
                    (None, None) => Fate::Delivered,
                };
                told.push((then, fate));
            }
        }
        if state.waiting.is_empty() {
            state.outbox.note_fates(false);
        }
        drop(state);
        for (then, fate) in told {
            then(Ok(fate));
        }
    }

    /// Leaves the spool to the next client, and those who wait without an answer.
    fn end(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.forgotten = Some(state.outbox.spool().volatile());
        let waiting = std::mem::take(&mut state.waiting);
        let storage = std::mem::replace(state.outbox.spool_mut(), Storage::memory());
        drop(state);
        drop((storage, waiting));
        for flush in self.flushes.drain(..) {
            (flush.reply)(false);
        }
    }
}

async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// The service's own functions, called from a thread of their own: they may take their time, wait for the
/// client or panic, and the worker goes on.
struct Hooks {
    queue: Option<std::sync::mpsc::SyncSender<News>>,
}

enum News {
    Loss(Reason, u64),
    Error(Error),
}

/// News that may wait for a slow hook. What comes on top is only logged.
const NEWS: usize = 256;

impl Hooks {
    fn start(on_loss: Option<OnLoss>, on_error: Option<OnError>) -> std::io::Result<Self> {
        if on_loss.is_none() && on_error.is_none() {
            return Ok(Self { queue: None });
        }
        let (queue, news) = std::sync::mpsc::sync_channel(NEWS);
        std::thread::Builder::new().name("tallymark-hooks".into()).spawn(move || {
            for news in news {
                let called = catch_unwind(AssertUnwindSafe(|| match (&news, &on_loss, &on_error) {
                    (News::Loss(reason, events), Some(hook), _) => hook(*reason, *events),
                    (News::Error(error), _, Some(hook)) => hook(error),
                    _ => {}
                }));
                if called.is_err() {
                    tracing::error!("a hook panicked");
                }
            }
        })?;
        Ok(Self { queue: Some(queue) })
    }

    fn loss(&self, reason: Reason, events: u64) {
        self.tell(News::Loss(reason, events));
    }

    fn error(&self, error: Error) {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, cause, "something went wrong");
        self.tell(News::Error(error));
    }

    fn tell(&self, news: News) {
        if let Some(queue) = &self.queue {
            let _ = queue.try_send(news);
        }
    }
}
