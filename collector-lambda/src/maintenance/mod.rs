//! Commands that look after stored data: `verify`, `reconcile`, `retention`.

pub(crate) mod prune;
pub(crate) mod reconcile;
