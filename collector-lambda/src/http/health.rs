//! `GET /health` and `GET /ready`, for load balancers and for operators.

use crate::http::app::Shared;
use crate::http::problem::Problem;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

/// The process answers.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Events can be stored.
pub(crate) async fn ready(State(app): Shared) -> Result<Json<Value>, Problem> {
    app.readiness.check(&app.collector).await?;
    Ok(Json(json!({"status": "ready"})))
}
