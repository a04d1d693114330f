//! A collector, for the routes and for whatever runs them.

use crate::sites::Sites;
use crate::store::Store;

/// A collector: who may send and read, and where events go.
#[derive(Debug)]
pub struct Collector {
    /// The sites and their keys.
    pub sites: Sites,
    /// Where events are stored and counted.
    pub store: Store,
}
