//! The collector on one machine.

use clap::Parser;
use std::process::ExitCode;
use tallymark_collector::cli::Cli;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            let mut text = String::new();
            while let Some(error) = cause {
                text.push_str(if text.is_empty() { "" } else { ": " });
                text.push_str(&error.to_string());
                cause = error.source();
            }
            eprintln!("tallymark-collector: {text}");
            ExitCode::FAILURE
        }
    }
}
