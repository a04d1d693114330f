//! The service's own functions, called from a thread of their own. They may be slow, wait for the client or panic, and
//! the worker goes on.

use crate::client::error::{Error, Kind};
use crate::core::loss::{Losses, Reason};
use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(super) type OnLoss = Box<dyn Fn(Reason, u64) + Send>;
pub(super) type OnError = Box<dyn Fn(&Error) + Send>;

/// The most errors that wait for a slow hook. Further ones are logged and counted.
const PENDING_ERRORS: usize = 256;

thread_local! {
    static IS_HOOK: Cell<bool> = const { Cell::new(false) };
}

/// Whether the caller runs in a hook.
pub(super) fn is_hook() -> bool {
    IS_HOOK.get()
}

pub(super) struct Hooks {
    /// `None` if there are no hooks.
    mailbox: Option<Arc<Mailbox>>,
}

/// Passes losses and errors to the thread of the hooks.
#[derive(Default)]
struct Mailbox {
    pending: Mutex<Pending>,
    changed: Condvar,
}

/// What the hooks have not been called for yet.
#[derive(Default)]
struct Pending {
    losses: Losses,
    errors: Vec<Error>,
    /// The number of errors beyond [`PENDING_ERRORS`].
    omitted: u64,
    /// Whether the hooks are being called.
    busy: bool,
    /// Whether the client has ended.
    closed: bool,
}

impl Hooks {
    /// Starts the thread of the hooks, if there are any.
    pub(super) fn start(on_loss: Option<OnLoss>, on_error: Option<OnError>) -> io::Result<Self> {
        if on_loss.is_none() && on_error.is_none() {
            return Ok(Self { mailbox: None });
        }
        let mailbox = Arc::new(Mailbox::default());
        let shared = Arc::clone(&mailbox);
        std::thread::Builder::new().name("tallymark-hooks".into()).spawn(move || {
            IS_HOOK.set(true);
            while let Some(Pending { losses, mut errors, omitted, .. }) = shared.next() {
                if omitted > 0 {
                    errors.push(Error::new(Kind::Omitted(omitted)));
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
        Ok(Self { mailbox: Some(mailbox) })
    }

    pub(super) fn loss(&self, reason: Reason, events: u64) {
        self.update(|pending| pending.losses.add(reason, events));
    }

    pub(super) fn error(&self, error: Error) {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::debug!(%error, cause, "something went wrong");
        self.update(|pending| match pending.errors.len() {
            PENDING_ERRORS.. => pending.omitted += 1,
            _ => pending.errors.push(error),
        });
    }

    fn update(&self, change: impl FnOnce(&mut Pending)) {
        if let Some(mailbox) = &self.mailbox {
            change(&mut mailbox.pending());
            mailbox.changed.notify_all();
        }
    }

    /// Returns when the hooks have been called for everything, or when `patience` is over.
    pub(super) fn wait(&self, patience: Duration) {
        if let Some(mailbox) = &self.mailbox {
            let is_working = |pending: &mut Pending| pending.busy || !pending.is_empty();
            let _ = mailbox.changed.wait_timeout_while(mailbox.pending(), patience, is_working);
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.update(|pending| pending.closed = true);
    }
}

impl Mailbox {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to call hooks for, and takes all of it. Returns `None` when the client has ended.
    fn next(&self) -> Option<Pending> {
        let mut pending = self.pending();
        pending.busy = false;
        self.changed.notify_all();
        let ready = self.changed.wait_while(pending, |pending| pending.is_empty() && !pending.closed);
        pending = ready.unwrap_or_else(PoisonError::into_inner);
        let empty = Pending { busy: true, closed: pending.closed, ..Pending::default() };
        let pending = std::mem::replace(&mut *pending, empty);
        (!pending.is_empty()).then_some(pending)
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.losses.total() == 0 && self.errors.is_empty()
    }
}

fn call(hook: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(hook)).is_err() {
        tracing::error!("a hook panicked");
    }
}
