//! `verify`: looks through a data directory, offline or beside its server. It talks to no server, it reads the files.

use std::path::PathBuf;

use hostler_server::{Report, VerifyError};

use crate::exit::{Exit, Failure};
use crate::output::{self, json, paint, plain};
use crate::settings::{self, Global, Settings};

/// Check a data directory's files against every promise
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads only, and may run beside a server: then the output that is being written is left out, and the
database's log grows until the check is over. Ends with 0 if all is sound, with 1 if something is not,
with 3 if there is no data directory.

Examples:
  hostler verify /var/lib/hostler
  hostler verify -o json .hostler")]
pub(crate) struct Args {
    /// The data directory [default: the server's]
    #[arg(value_name = "DATA_DIR", env = "HOSTLER_DATA_DIR", hide_env = true)]
    data_dir: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(args: &Args, global: &Global) -> Result<Exit, Failure> {
    let settings = Settings::merge(global)?;
    let said = args
        .data_dir
        .as_deref()
        .or(settings.file.server.data_dir.as_deref());
    let dir = settings::data_dir(said)?;
    let report = hostler_server::verify(&dir).map_err(failure)?;
    if settings.form.is_json() {
        json::value(settings.form, &report)?;
    } else {
        output::line(text(&report))?;
    }
    Ok(if report.is_sound() {
        Exit::Done
    } else {
        Exit::Unsuccessful
    })
}

fn failure(error: VerifyError) -> Failure {
    let text = error.to_string();
    match error {
        VerifyError::NoDirectory(_) | VerifyError::NoDatabase(_) => {
            Failure::new(Exit::Unknown, text).hint(
                "name the directory that the server was started with: hostler verify DATA_DIR",
            )
        }
        VerifyError::Unreadable(_) => {
            Failure::new(Exit::Unsuccessful, text).hint("run it as the user the server runs as")
        }
    }
}

/// A line for each thing found, and what it comes to.
fn text(report: &Report) -> String {
    let mut lines = vec![format!("Data directory {}", plain(&report.data_dir))];
    if let Some(server) = &report.server {
        lines.push(format!("A server runs on it ({})", plain(server)));
    }
    let counts = report.counts.iter();
    let counts: Vec<String> = counts.map(|(what, n)| format!("{what} {n}")).collect();
    lines.push(paint::dim(&counts.join(" · ")));
    for finding in &report.findings {
        let finding = plain(&finding.to_string());
        lines.push(format!("{} {finding}", paint::red("✗")));
    }
    for (check, n) in &report.omitted {
        lines.push(format!("{} {check}: and {n} more", paint::red("✗")));
    }
    for skipped in &report.skipped {
        lines.push(format!(
            "{} not checked: {}: {}",
            paint::yellow("○"),
            plain(&skipped.what),
            plain(&skipped.why)
        ));
    }
    lines.push(match report.total() {
        0 => paint::green("✓ sound: every invariant holds"),
        1 => paint::red("1 finding"),
        n => paint::red(&format!("{n} findings")),
    });
    lines.join("\n")
}
