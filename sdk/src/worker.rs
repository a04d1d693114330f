//! The thread behind a client: does what the outbox says, and tells whoever waits.

use crate::builder::{Builder, OnError, OnLoss};
use crate::client::{Client, Command, Generator, Handle, Outcome as Fate, Shared};
use crate::error::{Error, Kind};
use crate::id::BatchId;
use crate::loss::{Losses, Reason};
use crate::outbox::{Attempt, Mark, Next, Outbox};
use crate::sender::{Outcome, Sender};
use crate::storage::Storage;
use crate::wire::Rejected;
use reqwest::header::HeaderValue;
use std::cell::Cell;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a client whose last handle was dropped goes on delivering what it holds.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// How often a client looks for what others have left.
const ADOPTION: Duration = Duration::from_secs(60);

/// Opens the storage and starts the thread.
pub(crate) fn start(builder: Builder, sender: Sender) -> Result<Client, Error> {
    let Builder { config, on_loss, on_error, .. } = builder;
    #[cfg(feature = "spool")]
    let storage = match &builder.spool {
        Some(path) => Storage::directory(path, builder.durability),
        None => Ok(Storage::memory()),
    };
    #[cfg(not(feature = "spool"))]
    let storage = Ok(Storage::memory());
    let generator =
        || Generator::seeded().map_err(|error| Error::config("the system gives no random numbers").because(error));
    let (ids, random) = (generator()?, generator()?);
    let cannot_start = |error: std::io::Error| Error::config("the client's thread cannot be started").because(error);
    let hooks = Hooks::start(on_loss, on_error).map_err(cannot_start)?;
    let outbox = storage
        .and_then(|storage| Outbox::new(config, storage, random))
        .and_then(|outbox| inherit(outbox, &hooks))
        .map_err(|error| Error::config("the spool cannot be used").because(error))?;
    let adoption = outbox.spool().is_shared().then(|| Instant::now() + ADOPTION);
    let is_heir = outbox.stats().queued > 0;
    let shared = Arc::new(Shared::new(outbox, ids, sender));
    let (commands, receiver) = mpsc::unbounded_channel();

    let worker = Worker {
        shared: Arc::clone(&shared),
        hooks,
        noticed: Losses::default(),
        flushes: Vec::new(),
        adoption,
        is_heir,
    };
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("tallymark".into())
        // The runtime is made there, for to drop one inside another panics, as if the thread could not be started.
        .spawn(move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = ready.send(Ok(()));
                runtime.block_on(worker.run(receiver));
            }
            Err(error) => _ = ready.send(Err(error)),
        })
        .map_err(cannot_start)?;
    started.recv().unwrap_or_else(|gone| Err(std::io::Error::other(gone))).map_err(cannot_start)?;
    Ok(Client::live(Handle::new(shared, commands)))
}

/// Takes over what others have left before.
fn inherit<R: crate::id::Random>(mut outbox: Outbox<Storage, R>, hooks: &Hooks) -> std::io::Result<Outbox<Storage, R>> {
    loop {
        match outbox.adopt() {
            Ok(0) => break,
            Ok(_) => {}
            // That is the service's to set right.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                return Err(error);
            }
            Err(error) => {
                hooks.error(Error::new(Kind::Storage).because(error));
                break;
            }
        }
    }
    Ok(outbox)
}

struct Worker {
    shared: Arc<Shared>,
    hooks: Hooks,
    /// The losses that the hook has been told of.
    noticed: Losses,
    flushes: Vec<Flush>,
    /// When to look for what others have left.
    adoption: Option<Instant>,
    /// Whether there may be more of it, for when there is room.
    is_heir: bool,
}

/// A send that is over.
struct Sent {
    batch: BatchId,
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
        let mut end = None;
        let mut done = None;
        while done.is_none() {
            if end.is_none() {
                self.adopt();
            }
            let wake = self.send_all(&mut flying);
            self.notice();
            if flying.is_empty() && self.hurry() {
                continue;
            }
            if end.is_some_and(|end| Instant::now() >= end || self.shared.state().outbox.stats().queued == 0) {
                break;
            }
            let adoption = self.adoption.filter(|_| end.is_none() && self.flushes.is_empty());
            let wake = self.flushes.iter().map(|flush| flush.deadline).chain(wake).chain(end).chain(adoption).min();
            tokio::select! {
                Some(sent) = flying.join_next(), if !flying.is_empty() => {
                    // A send is never cancelled, and a panic in it is caught, so there is always an outcome.
                    if let Ok(sent) = sent {
                        self.answered(sent);
                    }
                }
                command = commands.recv(), if end.is_none() => match command {
                    Some(Command::Poll) => {}
                    Some(Command::Flush { deadline, reply }) => {
                        let mark = self.shared.state().outbox.flush();
                        let deadline = Instant::from_std(deadline);
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

    /// Seals what is open, if somebody waits for it. Returns whether somebody does.
    fn hurry(&self) -> bool {
        let mut state = self.shared.state();
        let hurry = std::mem::take(&mut state.hurry);
        if hurry {
            state.outbox.flush();
        }
        hurry
    }

    /// Now and then takes over what others have left. Not while somebody waits for a flush, who would wait for that
    /// as well.
    fn adopt(&mut self) {
        let Some(then) = self.adoption.filter(|_| self.flushes.is_empty()) else { return };
        let now = Instant::now();
        let mut state = self.shared.state();
        let is_idle = state.outbox.stats().queued == 0;
        if now < then && !(is_idle && self.is_heir) {
            return;
        }
        let adopted = state.outbox.adopt();
        drop(state);
        self.adoption = Some(now + ADOPTION);
        match adopted {
            // If it is not idle, there may have been no room.
            Ok(0) => self.is_heir &= !is_idle,
            Ok(_) => {
                self.is_heir = true;
                // Only so much at a time, for whoever tracks waits for it.
                self.adoption = Some(now);
            }
            Err(error) => {
                self.is_heir = false;
                self.hooks.error(Error::new(Kind::Storage).because(error));
            }
        }
    }

    /// Sends whatever may be sent now. Returns when there may be more.
    fn send_all(&self, flying: &mut JoinSet<Sent>) -> Option<Instant> {
        loop {
            let now = self.shared.clock.now();
            let mut state = self.shared.state();
            state.asked = false;
            let next = state.outbox.poll(now);
            drop(state);
            match next {
                Next::Send(attempt) => {
                    let shared = Arc::clone(&self.shared);
                    flying.spawn(async move {
                        let authorization = shared.sender.authorization();
                        let outcome = send(&shared.sender, &attempt, &authorization).await;
                        Sent { batch: attempt.batch_id, authorization, outcome }
                    });
                }
                Next::WaitUntil(then) => return Some(Instant::now() + Duration::from_millis(then.saturating_sub(now))),
                Next::Idle => return None,
            }
        }
    }

    fn answered(&mut self, Sent { batch, authorization, outcome }: Sent) {
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
        state.forgotten = Some(state.volatile());
        let waiting = std::mem::take(&mut state.waiting);
        let storage = std::mem::replace(state.outbox.spool_mut(), Storage::memory());
        drop(state);
        drop((storage, waiting));
        for flush in self.flushes.drain(..) {
            (flush.reply)(false);
        }
    }
}

/// Sends, by way of code that may be the service's own, such as a resolver. If that panics, no answer has come.
async fn send(sender: &Sender, attempt: &Attempt, authorization: &HeaderValue) -> Outcome {
    let mut sending = pin!(sender.send(attempt, authorization));
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| sending.as_mut().poll(context))).unwrap_or_else(|_| {
            let message = "a send panicked; the batch is kept";
            Poll::Ready(Outcome::Failed(Error::new(Kind::Send(message.into()))))
        })
    })
    .await
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

#[cfg(all(test, feature = "spool"))]
mod tests {
    use super::*;
    use crate::{Durability, Event};

    #[tokio::test(start_paused = true)]
    async fn what_another_leaves_is_taken_over_within_about_a_minute() {
        let folder = std::env::temp_dir().join(format!("tallymark-heir-{:016x}", rand::random::<u64>()));
        let open = || {
            let storage = Storage::directory(&folder, Durability::Process).unwrap();
            Outbox::new(crate::outbox::Config::default(), storage, Generator::seeded().unwrap()).unwrap()
        };
        let mut other = open();
        let sender = Sender::new(&Client::builder("http://127.0.0.1:9", "shop", "key")).unwrap();
        let shared = Arc::new(Shared::new(open(), Generator::seeded().unwrap(), sender));
        let worker = Worker {
            shared: Arc::clone(&shared),
            hooks: Hooks::start(None, None).unwrap(),
            noticed: Losses::default(),
            flushes: Vec::new(),
            adoption: Some(Instant::now()),
            is_heir: true,
        };
        let (commands, receiver) = mpsc::unbounded_channel();
        let running = tokio::spawn(worker.run(receiver));
        let adopted = || shared.state().outbox.stats().adopted;
        tokio::time::sleep(ADOPTION / 2).await;
        other.push(crate::sender::wall_clock(), &Event::custom("left")).unwrap();
        drop(other);
        assert_eq!(adopted(), 0);
        tokio::time::sleep(ADOPTION).await;
        assert_eq!(adopted(), 1);
        drop(commands);
        running.await.unwrap();
        let _ = std::fs::remove_dir_all(folder);
    }
}
