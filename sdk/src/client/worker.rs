//! The worker: does what the outbox asks for, and reports to the callers that wait.

use crate::client::clock::SystemClock;
use crate::client::diagnosis::Obstacle;
use crate::client::error::{Error, Kind};
use crate::client::hooks::Hooks;
use crate::client::outcome::Outcome;
use crate::client::random::Generator;
use crate::client::sender::{SendResult, Sender};
use crate::client::shared::{Command, Shared, State};
use crate::client::storage::Storage;
use crate::core::id::BatchId;
use crate::core::loss::{Losses, Reason};
use crate::core::outbox::{Attempt, Mark, Next, Outbox};
use crate::core::settlement::Settlement;
use crate::wire::Rejected;
use reqwest::header::HeaderValue;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How long a client whose last handle was dropped goes on delivering.
const DROP_GRACE: Duration = Duration::from_secs(5);

/// How often a client looks for segments that others have abandoned.
const ADOPTION_INTERVAL: Duration = Duration::from_secs(60);

/// Starts the worker in a thread of its own. Returns the sender of its commands.
pub(super) fn start(shared: Arc<Shared>, hooks: Hooks) -> io::Result<mpsc::UnboundedSender<Command>> {
    let (commands, receiver) = mpsc::unbounded_channel();
    let worker = Worker::new(shared, hooks);
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("tallymark".into())
        // The runtime is created there, because dropping it in another runtime, if the thread could not start, panics.
        .spawn(move || match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let _ = ready.send(Ok(()));
                runtime.block_on(worker.run(receiver));
            }
            Err(error) => _ = ready.send(Err(error)),
        })?;
    started.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)))?;
    Ok(commands)
}

/// Takes over all segments that others have abandoned, before the worker starts.
///
/// # Errors
///
/// If the service has to act: the permissions or the version of a file are wrong.
pub(super) fn adopt_all(
    outbox: &mut Outbox<Storage, Generator>,
    clock: &mut SystemClock,
    hooks: &Hooks,
) -> io::Result<()> {
    loop {
        match outbox.adopt(clock.read()) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
                return Err(error);
            }
            Err(error) => {
                hooks.error(Error::new(Kind::Storage).with_source(error));
                return Ok(());
            }
        }
    }
}

struct Worker {
    shared: Arc<Shared>,
    hooks: Hooks,
    /// The losses that the hook has been called for.
    reported: Losses,
    flushes: Vec<Flush>,
    /// What keeps batches from being delivered, as far as it was logged.
    obstacle: Option<Obstacle>,
    /// When to look for abandoned segments next; `None` if there cannot be any.
    next_adoption: Option<Instant>,
    /// Whether there may be more abandoned segments, to take over when there is room.
    may_adopt: bool,
}

/// A send that has ended.
struct Sent {
    batch: BatchId,
    authorization: HeaderValue,
    result: SendResult,
}

/// A caller that waits until everything before the mark is settled.
struct Flush {
    mark: Mark,
    deadline: Instant,
    /// Whether the client is being shut down.
    is_last: bool,
    reply: Box<dyn FnOnce(bool) + Send>,
}

impl Worker {
    fn new(shared: Arc<Shared>, hooks: Hooks) -> Self {
        let state = shared.state();
        let next_adoption = state.outbox.spool().is_shared().then(|| Instant::now() + ADOPTION_INTERVAL);
        // The start has taken over as much as there was room for.
        let may_adopt = state.outbox.stats().queued > 0;
        drop(state);
        Self {
            shared,
            hooks,
            reported: Losses::default(),
            flushes: Vec::new(),
            obstacle: None,
            next_adoption,
            may_adopt,
        }
    }

    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let mut in_flight = JoinSet::new();
        let mut end = None;
        let mut stop = None;
        while stop.is_none() {
            if end.is_none() {
                self.adopt();
            }
            let wake = self.send_all(&mut in_flight);
            self.report(in_flight.is_empty());
            if in_flight.is_empty() && self.flush_if_requested() {
                continue;
            }
            if end.is_some_and(|end| Instant::now() >= end || self.shared.state().outbox.stats().queued == 0) {
                break;
            }
            let adoption = self.next_adoption.filter(|_| end.is_none() && self.flushes.is_empty());
            let wake = self.flushes.iter().map(|flush| flush.deadline).chain(wake).chain(end).chain(adoption).min();
            tokio::select! {
                Some(sent) = in_flight.join_next(), if !in_flight.is_empty() => {
                    // A send is never cancelled, and a panic in it is caught, so there is always a result.
                    if let Ok(sent) = sent {
                        self.answered(sent);
                    }
                }
                command = commands.recv(), if end.is_none() => match command {
                    Some(Command::Poll) => {}
                    Some(Command::Flush { deadline, is_last, reply }) => {
                        let mut state = self.shared.state();
                        let mark = state.outbox.flush();
                        if is_last && state.outbox.stats().paused.is_some() {
                            // The last chance for a key that is valid by now.
                            state.outbox.resume();
                        }
                        drop(state);
                        let deadline = Instant::from_std(deadline);
                        self.flushes.push(Flush { mark, deadline, is_last, reply });
                    }
                    Some(Command::Stop { patience, done }) => stop = Some((patience, done)),
                    None => {
                        self.shared.state().outbox.flush();
                        end = Some(Instant::now() + DROP_GRACE);
                    }
                },
                () = sleep_until(wake) => {}
            }
        }
        drop(in_flight);
        self.report(true);
        self.end();
        if let Some((patience, done)) = stop {
            self.hooks.wait(patience);
            done();
        }
    }

    /// Seals the open batch if a caller waits for an outcome. Returns whether one does.
    fn flush_if_requested(&self) -> bool {
        let mut state = self.shared.state();
        let requested = std::mem::take(&mut state.flush_requested);
        if requested {
            state.outbox.flush();
        }
        requested
    }

    /// Takes over abandoned segments from time to time. Not during a flush, which would wait for them too.
    fn adopt(&mut self) {
        let Some(then) = self.next_adoption.filter(|_| self.flushes.is_empty()) else { return };
        let now = Instant::now();
        let mut state = self.shared.state();
        let State { outbox, clock, .. } = &mut *state;
        let is_idle = outbox.stats().queued == 0;
        if now < then && !(is_idle && self.may_adopt) {
            return;
        }
        let adopted = outbox.adopt(clock.read());
        drop(state);
        self.next_adoption = Some(now + ADOPTION_INTERVAL);
        match adopted {
            // If events are queued, there may have been no room.
            Ok(0) => self.may_adopt &= !is_idle,
            Ok(_) => {
                self.may_adopt = true;
                // A few segments at a time, because threads that track wait.
                self.next_adoption = Some(now);
            }
            Err(error) => {
                self.may_adopt = false;
                self.hooks.error(Error::new(Kind::Storage).with_source(error));
            }
        }
    }

    /// Sends every batch that may be sent now. Returns when there may be more.
    fn send_all(&self, in_flight: &mut JoinSet<Sent>) -> Option<Instant> {
        loop {
            let mut state = self.shared.state();
            let now = state.clock.read().now();
            state.poll_requested = false;
            let next = state.outbox.poll(now);
            drop(state);
            match next {
                Next::Send(attempt) => {
                    let shared = Arc::clone(&self.shared);
                    in_flight.spawn(async move {
                        let authorization = shared.sender.authorization();
                        let result = send(&shared.sender, &attempt, &authorization).await;
                        Sent { batch: attempt.batch_id, authorization, result }
                    });
                }
                Next::WaitUntil(then) => return Some(Instant::now() + Duration::from_millis(then.saturating_sub(now))),
                Next::Idle => return None,
            }
        }
    }

    fn answered(&mut self, Sent { batch, authorization, result }: Sent) {
        let mut state = self.shared.state();
        let now = state.clock.read().now();
        let settled = state.outbox.answer(now, batch, result.answer());
        if matches!(result, SendResult::Status(401 | 403, ..)) && authorization != self.shared.sender.authorization() {
            // The answer is about a key that has been replaced since.
            state.outbox.resume();
        }
        drop(state);
        tracing::debug!(%batch, ?settled, "a batch was answered");
        match result {
            SendResult::Receipt(receipt) => {
                if self.obstacle.take().is_some() {
                    tracing::info!(endpoint = self.shared.sender.endpoint(), "batches are delivered again");
                }
                self.report_outcomes(&receipt.rejected);
                for Rejected { code, message, .. } in receipt.rejected {
                    self.hooks.error(Error::new(Kind::Rejected { code, message }));
                }
            }
            SendResult::Status(status, _, error) => {
                self.log_obstacle(Obstacle::of(status), status, &error);
                self.hooks.error(error);
            }
            SendResult::Failed(error) => {
                self.log_obstacle(Some(Obstacle::Unavailable), 0, &error);
                self.hooks.error(error);
            }
        }
    }

    /// Logs a warning if another obstacle than before keeps batches from being delivered.
    fn log_obstacle(&mut self, obstacle: Option<Obstacle>, status: u16, error: &Error) {
        if obstacle.is_some() && obstacle != self.obstacle {
            self.obstacle = obstacle;
            tracing::warn!(endpoint = self.shared.sender.endpoint(), status, "{error}");
        }
    }

    /// Reports outcomes, flushes, losses and errors of the disk to those who wait for them.
    fn report(&mut self, is_idle: bool) {
        self.report_outcomes(&[]);
        let mut state = self.shared.state();
        let dropped = state.outbox.stats().dropped;
        let disk_error = state.outbox.spool_mut().take_last_error();
        // While the key is wrong, waiting does not help.
        let is_hopeless = is_idle && state.outbox.stats().paused.is_some();
        let now = Instant::now();
        let mut ended = Vec::new();
        for flush in std::mem::take(&mut self.flushes) {
            let settled = state.outbox.is_settled(flush.mark);
            if settled || flush.deadline <= now || (flush.is_last && is_hopeless) {
                ended.push((flush.reply, settled));
            } else {
                self.flushes.push(flush);
            }
        }
        drop(state);
        for (reply, settled) in ended {
            reply(settled);
        }
        for reason in Reason::ALL {
            let events = dropped.of(reason) - self.reported.of(reason);
            if events > 0 {
                tracing::warn!(reason = reason.as_str(), events, "events were dropped");
                self.hooks.loss(reason, events);
            }
        }
        self.reported = dropped;
        if let Some(error) = disk_error {
            self.hooks.error(Error::new(Kind::Storage).with_source(error));
        }
    }

    /// Reports outcomes to the callers that wait for them. `rejected` belongs to the batch that was just answered.
    fn report_outcomes(&self, rejected: &[Rejected]) {
        let mut known = Vec::new();
        let mut state = self.shared.state();
        for (watcher, settlement) in state.outbox.take_settlements() {
            let Some(on_outcome) = state.waiting.remove(&watcher) else { continue };
            let outcome = match settlement {
                Settlement::Dropped(reason) => Outcome::Dropped(reason),
                Settlement::Answered(index) => match rejected.iter().find(|rejected| rejected.index == index) {
                    Some(Rejected { code, message, .. }) => {
                        Outcome::Rejected { code: code.clone(), message: message.clone() }
                    }
                    None => Outcome::Delivered,
                },
            };
            known.push((on_outcome, outcome));
        }
        drop(state);
        for (on_outcome, outcome) in known {
            on_outcome(Ok(outcome));
        }
    }

    /// Leaves the spool to the next client, and ends every wait.
    fn end(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.volatile_at_end = Some(state.volatile());
        let waiting = std::mem::take(&mut state.waiting);
        let storage = std::mem::replace(state.outbox.spool_mut(), Storage::memory());
        drop(state);
        drop((storage, waiting));
        for flush in self.flushes.drain(..) {
            (flush.reply)(false);
        }
    }
}

/// Sends a batch. If the service's own code in it panics, such as a resolver, no answer has come.
async fn send(sender: &Sender, attempt: &Attempt, authorization: &HeaderValue) -> SendResult {
    let mut sending = pin!(sender.send(attempt, authorization));
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| sending.as_mut().poll(context))).unwrap_or_else(|_| {
            let message = "a send panicked, perhaps in a resolver of the HTTP client; the batch is kept and retried";
            Poll::Ready(SendResult::Failed(Error::new(Kind::Send(message.into()))))
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

#[cfg(all(test, feature = "spool"))]
mod tests {
    use super::*;
    use crate::client::builder::Builder;
    use crate::client::clock::wall_clock;
    use crate::core::outbox::Config;
    use crate::event::Event;
    use crate::spool::Durability;

    #[tokio::test(start_paused = true)]
    async fn abandoned_segments_are_taken_over_within_about_a_minute() {
        let folder = std::env::temp_dir().join(format!("tallymark-adopt-{:016x}", rand::random::<u64>()));
        let open = || {
            let storage = Storage::directory(&folder, Durability::Process).unwrap();
            Outbox::new(SystemClock::start().read(), Config::default(), storage, Generator::seeded().unwrap()).unwrap()
        };
        let mut other = open();
        let builder = Builder::new("http://127.0.0.1:9".into(), "shop".into(), "key".into());
        let sender = Sender::new(builder.sender()).unwrap();
        let shared = Arc::new(Shared::new(open(), SystemClock::start(), Generator::seeded().unwrap(), sender));
        let mut worker = Worker::new(Arc::clone(&shared), Hooks::start(None, None).unwrap());
        worker.next_adoption = Some(Instant::now());
        worker.may_adopt = true;
        let (commands, receiver) = mpsc::unbounded_channel();
        let running = tokio::spawn(worker.run(receiver));
        let adopted = || shared.state().outbox.stats().adopted;
        tokio::time::sleep(ADOPTION_INTERVAL / 2).await;
        other.push(wall_clock(), &Event::custom("left")).unwrap();
        drop(other);
        assert_eq!(adopted(), 0);
        tokio::time::sleep(ADOPTION_INTERVAL).await;
        assert_eq!(adopted(), 1);
        drop(commands);
        running.await.unwrap();
        let _ = std::fs::remove_dir_all(folder);
    }
}
