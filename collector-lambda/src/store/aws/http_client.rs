//! The HTTP client beneath all AWS clients. It replaces its connections once calls go unanswered.
//!
//! A call that takes too long is cancelled. Over HTTP/1.1 that closes its connection; over HTTP/2 it ends one stream, and
//! a connection that has gone silent stays in use for every later call, until the process ends. HTTP/1.1 alone cannot be
//! asked for, and neither can pings. So after some calls in a row without an answer, later ones get new connections.

use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Calls in a row without an answer. One may be bad luck, or a caller who hung up.
const UNANSWERED: u32 = 2;

/// The client of this process.
pub(crate) fn shared() -> SharedHttpClient {
    let tls = || Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc)).build_https();
    SharedHttpClient::new(Renewing::new(tls))
}

#[derive(Clone, Debug)]
struct Renewing {
    build: fn() -> SharedHttpClient,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    client: SharedHttpClient,
    /// Tells calls of an older client from those of this one.
    generation: u64,
    unanswered: u32,
}

impl Renewing {
    fn new(build: fn() -> SharedHttpClient) -> Self {
        let state = State { client: build(), generation: 0, unanswered: 0 };
        Self { build, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, generation: u64, is_answered: bool) {
        let mut state = self.state();
        if state.generation != generation {
            return;
        }
        state.unanswered = if is_answered { 0 } else { state.unanswered + 1 };
        if state.unanswered >= UNANSWERED {
            tracing::warn!(
                calls = state.unanswered,
                "AWS has not answered these calls; later ones get new connections"
            );
            *state = State { client: (self.build)(), generation: generation + 1, unanswered: 0 };
        }
    }
}

impl HttpClient for Renewing {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let (settings, components) = (settings.clone(), components.clone());
        SharedHttpConnector::new(Connector { client: self.clone(), settings, components })
    }
}

#[derive(Debug)]
struct Connector {
    client: Renewing,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (connector, generation) = {
            let state = self.client.state();
            (state.client.http_connector(&self.settings, &self.components), state.generation)
        };
        let client = self.client.clone();
        HttpConnectorFuture::new(async move {
            let mut call = Call { client, generation, is_answered: false };
            let answer = connector.call(request).await;
            call.is_answered = answer.is_ok();
            answer
        })
    }
}

/// A call under way. A cancelled one is dropped.
struct Call {
    client: Renewing,
    generation: u64,
    is_answered: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.client.note(self.generation, self.is_answered);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_replaced_after_calls_in_a_row_without_an_answer() {
        let client = Renewing::new(|| Builder::new().build_http());
        let call = |generation, is_answered| {
            drop(Call { client: client.clone(), generation, is_answered });
            client.state().generation
        };
        // One is answered in between.
        assert_eq!([call(0, false), call(0, true), call(0, false)], [0, 0, 0]);
        assert_eq!(call(0, false), 1, "two in a row");
        // What was called before says nothing of the new connections.
        assert_eq!([call(0, false), call(0, false), call(1, false)], [1, 1, 1]);
        assert_eq!(call(1, false), 2);
    }
}
