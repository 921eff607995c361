//! What a job should be, as flags: shared by `submit`, `run` and `dev`.
//!
//! The flags become the JSON of `POST /jobs`; whether they make sense together is judged by the server's intake, which
//! judges everyone's jobs.

use std::borrow::Cow;
use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostler_wire::api::{CommandRequest, JobRequest, LogsRequest, RetryRequest, Timestamp};
use hostler_wire::limits::BODY_BYTES_MAX;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::value::RawValue;

use crate::duration::{self, millis};
use crate::exit::Failure;

/// What a job should be.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SpecArgs {
    /// Queue it waits in [default: default]
    #[arg(short, long, value_name = "QUEUE")]
    queue: Option<String>,

    /// What you call it
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,

    /// Higher goes first: -128 to 127, or low, mid, high [default: 0]
    #[arg(short, long, value_name = "N", value_parser = priority, allow_hyphen_values = true)]
    priority: Option<i64>,

    /// Environment variable: K=V, or K for the value it has here
    #[arg(short, long = "env", value_name = "K=V", value_parser = environment)]
    env: Vec<(String, String)>,

    /// Directory it runs in, on the worker
    #[arg(short = 'C', long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    cwd: Option<String>,

    /// Longest run of one attempt, e.g. 30m; then its processes are ended
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<Duration>,

    /// Longest silence of one attempt, without output, progress or heartbeat; then it is ended
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    stall: Option<Duration>,

    /// How often it is tried again after a failure [default: 0]
    #[arg(long, value_name = "N")]
    retries: Option<u32>,

    /// Pause before the first retry; it doubles each time [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    backoff: Option<Duration>,

    /// Wait so long before it may start
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with = "at")]
    delay: Option<Duration>,

    /// May start at this time: 2026-11-24T18:00 (local) or with an offset
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    at: Option<Timestamp>,

    /// Give it up if it has not started within this time
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    expires: Option<Duration>,

    /// Give it up if it is not over within this time, retries included
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    deadline: Option<Duration>,

    /// Time between TERM and KILL when it is stopped [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    grace: Option<Duration>,

    /// Label to find it by
    #[arg(long = "label", value_name = "K=V", value_parser = pair)]
    labels: Vec<(String, String)>,

    /// File that becomes its standard input; - is ours
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    stdin: Option<PathBuf>,

    /// Keep nothing of what it prints
    #[arg(long)]
    no_logs: bool,

    /// Workers it may lose before it fails; 0 = it never runs twice [default: 3]
    #[arg(long, value_name = "N")]
    max_losses: Option<u32>,

    /// What accepted means: fsync (on disk) or os (survives a kill, not a power cut)
    #[arg(long, value_name = "WHAT", value_parser = ["fsync", "os"], hide_possible_values = true)]
    durability: Option<String>,
}

impl SpecArgs {
    /// The request for this command.
    pub(crate) fn command(&self, argv: &[String]) -> Result<JobRequest<'static>, Failure> {
        let mut request = self.request()?;
        request.command = Some(CommandRequest::Argv(
            argv.iter().map(|arg| Cow::Owned(arg.clone())).collect(),
        ));
        Ok(request)
    }

    /// The request for this function of a worker.
    pub(crate) fn handler(
        &self,
        handler: &str,
        payload: Option<&str>,
    ) -> Result<JobRequest<'static>, Failure> {
        let mut request = self.request()?;
        request.handler = Some(Cow::Owned(handler.to_owned()));
        request.payload = payload
            .map(|text| RawValue::from_string(text.to_owned()).map(Cow::Owned))
            .transpose()
            .map_err(|error| {
                Failure::usage(format!("the payload is not JSON: {error}"))
                    .hint("text needs quotes of its own: --payload '\"text\"'")
            })?;
        Ok(request)
    }

    fn request(&self) -> Result<JobRequest<'static>, Failure> {
        let (stdin, stdin_b64) = match self.stdin.as_deref().map(read_stdin).transpose()? {
            None => (None, None),
            Some(bytes) => match String::from_utf8(bytes) {
                Ok(text) => (Some(Cow::Owned(text)), None),
                Err(error) => (
                    None,
                    Some(Cow::Owned(hostler_wire::api::base64::encode(
                        error.as_bytes(),
                    ))),
                ),
            },
        };
        let retry = (self.retries.is_some() || self.backoff.is_some()).then(|| RetryRequest {
            max_attempts: self.retries.map(|retries| u64::from(retries) + 1),
            backoff_ms: self.backoff.map(millis),
            ..RetryRequest::default()
        });
        Ok(JobRequest {
            name: owned(&self.name),
            queue: owned(&self.queue),
            priority: self.priority,
            timeout_ms: self.timeout.map(millis),
            stall_ms: self.stall.map(millis),
            retry,
            max_losses: self.max_losses.map(u64::from),
            run_at: self.at,
            delay_ms: self.delay.map(millis),
            expires_ms: self.expires.map(millis),
            deadline_ms: self.deadline.map(millis),
            durability: owned(&self.durability),
            grace_ms: self.grace.map(millis),
            env: owned_pairs(&self.env),
            cwd: owned(&self.cwd),
            stdin,
            stdin_b64,
            labels: owned_pairs(&self.labels),
            logs: self.no_logs.then(|| LogsRequest {
                mode: Some("none".into()),
                ..LogsRequest::default()
            }),
            ..JobRequest::default()
        })
    }
}

fn owned(text: &Option<String>) -> Option<Cow<'static, str>> {
    text.clone().map(Cow::Owned)
}

fn owned_pairs(pairs: &[(String, String)]) -> Vec<(Cow<'static, str>, Cow<'static, str>)> {
    pairs
        .iter()
        .map(|(key, value)| (Cow::Owned(key.clone()), Cow::Owned(value.clone())))
        .collect()
}

fn read_stdin(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let limit = BODY_BYTES_MAX as u64 + 1;
    let read = if path == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    if bytes.len() > BODY_BYTES_MAX {
        return Err(Failure::usage(format!(
            "{} is larger than the {} a job may carry",
            path.display(),
            crate::output::detail::bytes(BODY_BYTES_MAX as u64)
        ))
        .hint("put it where the worker can read it and name the place"));
    }
    Ok(bytes)
}

fn priority(text: &str) -> Result<i64, String> {
    match text {
        "low" => Ok(-50),
        "mid" => Ok(0),
        "high" => Ok(50),
        text => text.parse::<i8>().map(i64::from).or(Err(
            "a priority is a number from -128 to 127, or low, mid, high".into(),
        )),
    }
}

/// `K=V`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write K=V".into()),
    }
}

fn environment(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return pair(text);
    }
    match env::var_os(text).map(std::ffi::OsString::into_string) {
        Some(Ok(value)) => Ok((text.to_owned(), value)),
        Some(Err(_)) => Err(format!("the value of {text} here is not text")),
        None => Err(format!("{text} is not set here; write {text}=VALUE")),
    }
}

/// A time with an offset, or a local one.
pub(crate) fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wrong = "write 2026-11-24T18:00 (local time) or 2026-11-24T18:00:00Z";
    let local: DateTime = text.parse().or(Err(wrong))?;
    let zoned = TimeZone::system()
        .to_timestamp(local)
        .or(Err("that local time is not on the calendar"))?;
    let ms = u64::try_from(zoned.as_millisecond()).or(Err("that is before 1970"))?;
    Ok(Timestamp::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        spec: SpecArgs,
    }

    fn json(flags: &[&str]) -> String {
        let flags = [&["x"], flags].concat();
        let spec = Flags::try_parse_from(flags).unwrap().spec;
        serde_json::to_string(&spec.command(&["a".into(), "b c".into()]).unwrap()).unwrap()
    }

    #[test]
    fn without_flags_only_the_command_is_said() {
        assert_eq!(json(&[]), r#"{"command":["a","b c"]}"#);
    }

    #[test]
    fn each_flag_becomes_its_field() {
        let text = json(&[
            "-q",
            "video",
            "-n",
            "encode",
            "-p",
            "-5",
            "-e",
            "A=b=c",
            "-C",
            "/srv",
            "--timeout",
            "30m",
            "--retries",
            "3",
            "--backoff",
            "2s",
            "--delay",
            "1s",
            "--expires",
            "1h",
            "--deadline",
            "2h",
            "--grace",
            "5s",
            "--label",
            "team=x",
            "--no-logs",
            "--max-losses",
            "0",
            "--durability",
            "os",
        ]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "command": ["a", "b c"], "queue": "video", "name": "encode", "priority": -5,
                "env": {"A": "b=c"}, "cwd": "/srv", "timeout_ms": 1_800_000,
                "retry": {"max_attempts": 4, "backoff_ms": 2_000}, "delay_ms": 1_000,
                "expires_ms": 3_600_000, "deadline_ms": 7_200_000, "grace_ms": 5_000,
                "labels": {"team": "x"}, "logs": {"mode": "none"}, "max_losses": 0,
                "durability": "os",
            })
        );
    }

    #[test]
    fn bytes_that_are_no_text_travel_as_base_64() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(json(&["--stdin", path.to_str().unwrap()]).contains(r#""stdin_b64":"//4=""#));
        std::fs::write(&path, "text\n").unwrap();
        assert!(json(&["--stdin", path.to_str().unwrap()]).contains(r#""stdin":"text\n""#));
    }

    #[test]
    fn a_time_may_be_local_or_carry_its_offset() {
        assert_eq!(
            moment("2026-11-24T10:00:00+01:00").unwrap().to_string(),
            "2026-11-24T09:00:00.000Z"
        );
        assert!(moment("2026-11-24T10:00").is_ok());
        assert!(moment("tomorrow").is_err());
    }

    #[test]
    fn what_a_flag_cannot_be_is_refused() {
        for flags in [
            &["-p", "128"][..],
            &["-p", "urgent"],
            &["--timeout", "30"],
            &["-e", "=x"],
            &["--retries", "-1"],
            &["--delay", "1s", "--at", "2026-11-24T18:00"],
            &["--durability", "maybe"],
        ] {
            let flags = [&["x"], flags].concat();
            assert!(Flags::try_parse_from(&flags).is_err(), "{flags:?}");
        }
    }
}
