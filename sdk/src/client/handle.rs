//! The connection of a client to its worker.

use crate::client::clock::wall_clock;
use crate::client::error::{Error, Kind};
use crate::client::shared::{Command, OnOutcome, Shared};
use crate::core::id::EventId;
use crate::core::outbox::PushError;
use crate::event::Event;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Shared by the clones of a client. The worker holds only [`Shared`], so it notices when they are gone.
pub(super) struct Handle {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    /// The process that has the worker.
    process: u32,
}

impl Handle {
    pub(super) fn new(shared: Arc<Shared>, commands: mpsc::UnboundedSender<Command>) -> Self {
        Self { shared, commands, process: std::process::id() }
    }

    /// Whether this is the process that built the client. A forked process has a copy without the worker, in which a
    /// lock may be held forever, and whose files belong to the other process.
    pub(super) fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    pub(super) fn shared(&self) -> Option<&Shared> {
        self.is_here().then_some(&self.shared)
    }

    /// Stores an event. If `on_outcome` is given, the event is sent soon.
    pub(super) fn push(&self, event: &Event, on_outcome: Option<OnOutcome>) -> Result<EventId, Error> {
        let shared = self.shared().ok_or_else(Error::closed)?;
        let encoded = event.encode(wall_clock(), &mut || shared.ids.next())?;
        let mut state = shared.state();
        if state.closed {
            return Err(Error::closed());
        }
        let pushed = state.push(&encoded, on_outcome);
        let poll = !state.poll_requested && (state.flush_requested || state.outbox.needs_poll());
        state.poll_requested |= poll;
        #[cfg(feature = "spool")]
        let unsynced = pushed.as_ref().ok().and_then(|()| state.outbox.spool().unsynced());
        drop(state);
        if poll {
            self.command(Command::Poll);
        }
        #[cfg(feature = "spool")]
        if let Some(unsynced) = unsynced {
            unsynced.wait().map_err(|error| Error::new(Kind::Storage).with_source(error))?;
        }
        pushed.map_err(|error| match error {
            PushError::Invalid(invalid) => invalid.into(),
            PushError::QueueFull => Error::new(Kind::QueueFull),
            PushError::Storage(error) => Error::new(Kind::Storage).with_source(error),
        })?;
        Ok(encoded.event_id)
    }

    pub(super) fn command(&self, command: Command) {
        // After a shutdown there is no worker. A caller that waits for a reply notices that the sender is gone.
        let _ = self.commands.send(command);
    }

    /// This handle as a process sees it that was forked from this one.
    #[cfg(test)]
    pub(super) fn forked(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), commands: self.commands.clone(), process: self.process ^ 1 }
    }
}
