//! The command line: `serve`, `site`, and the commands that maintain a data directory.

mod maintenance;
mod serve;
mod site;

use crate::Error;
use clap::{Parser, Subcommand};
use std::io::Write;

/// Collects page views, button clicks and custom events, and counts each exactly once.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the collector.
    ///
    /// It logs to stderr, one JSON object a line. If stderr is a pipe, something must read it: the collector waits
    /// rather than lose log lines.
    Serve(serve::Serve),
    /// Manage the sites that may send and read.
    #[command(subcommand)]
    Site(site::Command),
    /// Check that the database and the lake's files are intact. Exit status 1 if one is not.
    ///
    /// A collector may be running.
    Verify(maintenance::Verify),
    /// Compare the counters with the distinct events that are stored, and print each difference. Exit status 1 if
    /// there is one that was not repaired.
    ///
    /// With `--data-dir` one moment is compared. A collector may be running, unless `--repair` is given. With `--lake`
    /// and `--counters` collectors may always be running: a difference is reported only if events in flight cannot
    /// explain it. The whole table is read twice, and each object once.
    ///
    /// Temporary files of about 100 bytes an event are written to the folder in SQLITE_TMPDIR, or to /var/tmp.
    Reconcile(maintenance::Reconcile),
    /// Remove old files of the lake, and compress those of past days. The counters stay.
    ///
    /// Days are days of receipt, in UTC. A collector may be running.
    Prune(maintenance::Prune),
}

impl Cli {
    /// Runs the command.
    pub async fn run(self) -> Result<(), Error> {
        match self.command {
            Command::Serve(command) => command.run().await,
            Command::Site(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Reconcile(command) => command.run().await,
            Command::Prune(command) => command.run(),
        }
    }
}

/// Prints a line. A closed stdout is no reason to fail.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
