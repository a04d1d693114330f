//! Commands that look after stored data: `verify`, `reconcile`, `prune`.

pub(crate) mod prune;
pub(crate) mod reconcile;
mod snapshot;
pub(crate) mod verify;
