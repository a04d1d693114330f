//! What the routes and layers work with.

use crate::http::rate_limit::RateLimits;
use crate::http::readiness::Readiness;
use crate::sites::Sites;
use crate::store::Store;
use axum::extract::State;
use std::sync::Arc;

/// A collector: who may send and read, and where events go.
#[derive(Debug)]
pub struct Collector {
    /// The sites and their keys.
    pub sites: Sites,
    /// Where events are stored and counted.
    pub store: Store,
}

/// The state of the router.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) collector: Arc<Collector>,
    pub(crate) rate_limits: RateLimits,
    pub(crate) trusted_proxies: usize,
    pub(crate) readiness: Readiness,
}

/// How a handler takes it.
pub(crate) type Shared = State<Arc<App>>;
