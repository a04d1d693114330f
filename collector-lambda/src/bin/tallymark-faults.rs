//! Stands between the collector and local AWS and lets calls go wrong. See [`tallymark_collector::faults`].

use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use tallymark_collector::faults::{Fault, Plan, Proxy, Rule};
use tallymark_collector::{Error, chain, server};
use tracing_subscriber::EnvFilter;

/// Stands between the collector and local AWS (not AWS itself) and lets calls go wrong.
///
/// Point the collector's AWS_ENDPOINT_URL here. When it is ended, with Ctrl-C or SIGTERM, it prints how often each
/// fault was injected; RUST_LOG=info names each.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:4567")]
    listen: String,
    /// Where local AWS is.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4566")]
    to: String,
    /// What chance goes by; a new one each time unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// The share of calls that meet a random fault, from 0 to 1.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Random faults only for this action, such as PutRecordBatch. May be given several times.
    #[arg(long, value_name = "ACTION")]
    only: Vec<String>,
    /// Random calls meet only this fault, such as throttle. May be given several times.
    #[arg(long = "kind", value_name = "FAULT")]
    kinds: Vec<Fault>,
    /// A fault for certain calls, such as 'TransactWriteItems#2=after', 'PutRecordBatch#1..=fail:3' or '*=delay:50'.
    /// May be given several times; the first that is for a call decides.
    #[arg(long = "fault", value_name = "ACTION#NUMBER=FAULT")]
    rules: Vec<Rule>,
    /// Let transactions that are at the same item at once cancel each other, as DynamoDB does.
    #[arg(long)]
    contention: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let filter = EnvFilter::builder().with_default_directive(tracing::Level::WARN.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "tallymark-faults: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<(), Error> {
    let seed = cli.seed.unwrap_or_else(rand::random);
    let kinds = if cli.kinds.is_empty() { Fault::RANDOM.into() } else { cli.kinds };
    let plan = Plan { seed, rate: cli.rate, kinds, only: cli.only, rules: cli.rules, contention: cli.contention };
    let stop = server::stop_signal()?;
    let proxy = Proxy::start(&cli.listen, &cli.to, plan).await?;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "listening on {}, before {}, seed {seed}", proxy.endpoint(), cli.to);
    stop.await;
    let _ = write!(out, "{}", proxy.report());
    Ok(())
}
