//! The collector on one machine.

use clap::Parser;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;
use tallymark_collector::cli::Cli;
use tracing_subscriber::EnvFilter;

/// Requests allocate many small pieces, which are often freed by another thread. mimalloc is faster at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit status after a defect of the collector: EX_SOFTWARE of sysexits.h.
const INTERNAL: u8 = 70;
/// How long blocking work may take after everything else has ended.
const LAST_WORK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::INFO.into()).from_env_lossy();
    // One JSON object a line. Failing to write the log must not stop the collector.
    let log = tracing_subscriber::fmt().json().flatten_event(true).with_span_list(false).log_internal_errors(false);
    log.with_env_filter(filter).with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let result = runtime.block_on(cli.run());
    runtime.shutdown_timeout(LAST_WORK);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_internal() => {
            failed(&error);
            ExitCode::from(INTERNAL)
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "tallymark-collector: {}", tallymark_collector::chain(error));
    ExitCode::FAILURE
}
