//! `progress`: a command that runs under Hostler says how far it is.
//!
//! Talks to the worker beneath it through the socket named in its environment, never to a server; and waits for the
//! worker's answer, because that looks who is asking.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure};

/// How long the worker is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// From within a job: say how far it is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Shown by `hostler status` and `hostler list`. It is a sign of life too (submit --stall); without arguments it is
nothing else. Under `set -e` write `hostler progress … || true`: a job should not fail for it.

Examples:
  hostler progress 0.4 \"frame 400/1000\"
  hostler progress 40%
  hostler progress")]
pub(crate) struct Args {
    /// How far: 0 to 1, or 0% to 100%
    #[arg(value_name = "SHARE", value_parser = share)]
    share: Option<f64>,

    /// What it is about; beyond 256 bytes it is cut
    #[arg(value_name = "NOTE")]
    note: Option<String>,

    #[arg(long, env = "HOSTLER_PROGRESS", hide = true)]
    socket: Option<PathBuf>,

    #[arg(long, env = "HOSTLER_JOB_ID", hide = true)]
    job: Option<u64>,

    #[arg(long, env = "HOSTLER_FENCE", hide = true)]
    fence: Option<u64>,
}

#[derive(Serialize)]
struct Word<'a> {
    job: u64,
    fence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    #[serde(default)]
    why: String,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let (Some(socket), Some(job), Some(fence)) = (&args.socket, args.job, args.fence) else {
        return Err(
            Failure::usage("this is no job of a worker that takes progress")
                .hint("`hostler progress` is for commands that Hostler runs"),
        );
    };
    let note = args.note.as_deref().map(short);
    let word = Word {
        job,
        fence,
        progress: args.share,
        note,
    };
    let word = serde_json::to_vec(&word).expect("numbers and text always become JSON");
    let answer = exchange(socket, &word).map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            format!("the worker did not take it: {error}"),
        )
    })?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            format!("the worker's answer makes no sense: {error}"),
        )
    })?;
    if answer.ok {
        Ok(Exit::Done)
    } else {
        let why = answer.why;
        Err(Failure::new(
            Exit::Unknown,
            format!("the worker refused it: {why}"),
        ))
    }
}

fn exchange(path: &std::path::Path, word: &[u8]) -> io::Result<Vec<u8>> {
    // A name of our own, that the answer finds us.
    let number = getrandom::u64().map_err(io::Error::other)?;
    let name = format!("hostler-progress-{number:016x}");
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(word, path)?;
    let mut answer = vec![0; 4_096];
    let length = socket.recv(&mut answer).map_err(|error| {
        if error.kind() == io::ErrorKind::WouldBlock {
            io::Error::other("no answer within a second")
        } else {
            error
        }
    })?;
    answer.truncate(length);
    Ok(answer)
}

/// What the worker would cut anyway need not be sent.
fn short(note: &str) -> &str {
    &note[..note.floor_char_boundary(1_024)]
}

fn share(text: &str) -> Result<f64, String> {
    let (number, whole) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    number
        .trim()
        .parse::<f64>()
        .ok()
        .map(|number| number / whole)
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| "write 0 to 1, or 0% to 100%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_part_of_one_or_of_a_hundred() {
        assert_eq!(share("0.4"), Ok(0.4));
        assert_eq!(share("40%"), Ok(0.4));
        assert_eq!(share("1"), Ok(1.0));
        for wrong in ["40", "-0.1", "101%", "NaN", "half", ""] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        assert_eq!(short("short"), "short");
        assert!(short(&"é".repeat(2_000)).len() <= 1_024);
    }
}
