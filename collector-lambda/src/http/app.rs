//! The state that every route and layer gets: the collector, and what the router adds to it.

use crate::http::rate_limit::RateLimits;
use crate::http::readiness::Readiness;
use crate::http::state::Collector;
use axum::extract::State;
use std::sync::Arc;

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
