//! Tells an HTTP API whose key a request carries. See [`tallymark_pipeline::authorizer`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tallymark_pipeline::function::init_log();
    tallymark_pipeline::authorizer::run().await
}
