//! Stands between Firehose and the lake. See [`tallymark_pipeline::transform`].

use std::process::ExitCode;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tallymark_pipeline::function::init_log();
    tallymark_pipeline::transform::run().await
}
