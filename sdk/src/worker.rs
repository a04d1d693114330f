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
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
                    Some(Command::Stop { patience, done: reply }) => done = Some((patience, reply)),
                    None => {
                        self.shared.state().outbox.flush();
                        end = Some(Instant::now() + DROP_GRACE);
                    }
                },
                () = sleep_until(wake) => {}
            }
        }
        drop(flying);
        self.notice();
        self.end();
        if let Some((patience, done)) = done {
            self.hooks.wait(patience);
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

    /// Tells those who wait what became of their events. `rejected` is of the batch that was just answered.
    fn tell_fates(&self, rejected: &[Rejected]) {
        let mut told = Vec::new();
        let mut state = self.shared.state();
        for (watcher, fate) in state.outbox.take_fates() {
            let Some(then) = state.waiting.remove(&watcher) else { continue };
            let outcome = match fate {
                Err(reason) => Fate::Dropped(reason),
                Ok(index) => match rejected.iter().find(|rejected| rejected.index == index) {
                    Some(Rejected { code, message, .. }) => {
                        Fate::Rejected { code: code.clone(), message: message.clone() }
                    }
                    None => Fate::Delivered,
                },
            };
            told.push((then, outcome));
        }
        drop(state);
        for (then, outcome) in told {
            then(Ok(outcome));
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
    board: Option<Arc<Board>>,
}

/// What hooks have still to be told.
#[derive(Default)]
struct Board {
    news: Mutex<News>,
    changed: Condvar,
}

#[derive(Default)]
struct News {
    losses: Losses,
    errors: Vec<Error>,
    /// How many errors came on top.
    untold: u64,
    /// Whether hooks are being called.
    busy: bool,
    /// Whether nothing more will come.
    over: bool,
}

/// Errors that may wait for a slow hook. What comes on top is logged and counted.
const ERRORS: usize = 256;

thread_local! {
    static IS_HOOK: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is called by a hook.
pub(crate) fn is_hook() -> bool {
    IS_HOOK.get()
}

impl Hooks {
    fn start(on_loss: Option<OnLoss>, on_error: Option<OnError>) -> std::io::Result<Self> {
        if on_loss.is_none() && on_error.is_none() {
            return Ok(Self { board: None });
        }
        let board = Arc::new(Board::default());
        let shared = Arc::clone(&board);
        std::thread::Builder::new().name("tallymark-hooks".into()).spawn(move || {
            IS_HOOK.set(true);
            while let Some(News { losses, mut errors, untold, .. }) = shared.next() {
                if untold > 0 {
                    errors.push(Error::new(Kind::Untold(untold)));
                }
                if let Some(hook) = &on_loss {
                    for reason in Reason::ALL.into_iter().filter(|reason| losses.of(*reason) > 0) {
                        call(|| hook(reason, losses.of(reason)));
                    }
                }
                if let Some(hook) = &on_error {
                    errors.iter().for_each(|error| call(|| hook(error)));
                }
            }
        })?;
        Ok(Self { board: Some(board) })
    }

    fn loss(&self, reason: Reason, events: u64) {
        self.tell(|news| news.losses.add(reason, events));
    }

    fn error(&self, error: Error) {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, cause, "something went wrong");
        self.tell(|news| match news.errors.len() {
            ERRORS.. => news.untold += 1,
            _ => news.errors.push(error),
        });
    }

    fn tell(&self, write: impl FnOnce(&mut News)) {
        if let Some(board) = &self.board {
            write(&mut board.news());
            board.changed.notify_all();
        }
    }

    /// Returns when the hooks know everything, or when the time is over.
    fn wait(&self, patience: Duration) {
        if let Some(board) = &self.board {
            let _ = board.changed.wait_timeout_while(board.news(), patience, |news| news.busy || news.is_any());
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.tell(|news| news.over = true);
    }
}

impl Board {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for news, and takes all there are. `None` when it is over.
    fn next(&self) -> Option<News> {
        let mut news = self.news();
        news.busy = false;
        self.changed.notify_all();
        let quiet = self.changed.wait_while(news, |news| !news.is_any() && !news.over);
        news = quiet.unwrap_or_else(PoisonError::into_inner);
        let next = News { busy: true, over: news.over, ..News::default() };
        let next = std::mem::replace(&mut *news, next);
        next.is_any().then_some(next)
    }
}

impl News {
    fn is_any(&self) -> bool {
        self.losses.total() > 0 || !self.errors.is_empty()
    }
}

fn call(hook: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(hook)).is_err() {
        tracing::error!("a hook panicked");
    }
}
