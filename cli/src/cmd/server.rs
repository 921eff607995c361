//! `server`: runs the server until it is told to stop.
//!
//! TERM or INT stops it in good order, a second one now: what is on disk is the truth, and the next start goes on
//! from there.

mod kept;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use hostler_server::Config;
use hostler_server::auth::ADMIN_FILE;
use hostler_server::config::Durability;
use hostler_server::server::{Server, StartError};
use hostler_server::store::seam::StoreErrorKind;
use hostler_tls::ServerFiles;
use hostler_wire::allow::{Allow, Handlers, InvalidAllow, Pattern};
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing_subscriber::filter::LevelFilter;

use crate::cmd::server::kept::KeptArgs;
use crate::cmd::worker::handler;
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::{self, Global, ServerFile, Settings};
use crate::signals;
use crate::trace::{self, TraceArgs, TraceFormat};

/// Run the server
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The first start writes admin.token and worker.token into the data directory.
TERM or INT: stop in good order; running jobs stay with their workers. A second one: now.

Examples:
  hostler server --data-dir /var/lib/hostler
  hostler server --tls-cert server.pem --tls-key server.key --listen 0.0.0.0:7440

TLS, on both ports: --tls-cert and --tls-key; `hostler tls init` makes them. HUP reads them and the tokens again.
Addresses that others can reach are not served without it.")]
pub(crate) struct Args {
    /// Where HTTP listens; port 0 takes a free one [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDR", env = "HOSTLER_LISTEN", hide_env = true, value_parser = socket)]
    listen: Option<SocketAddr>,

    /// Where workers connect; port 0 takes a free one [default: 127.0.0.1:7441]
    #[arg(long, value_name = "ADDR", env = "HOSTLER_WORKER_LISTEN", hide_env = true, value_parser = socket)]
    worker_listen: Option<SocketAddr>,

    /// Database, output, tokens [default: $STATE_DIRECTORY, $XDG_STATE_HOME/hostler or ~/.local/state/hostler]
    #[arg(long, value_name = "DIR", env = "HOSTLER_DATA_DIR", hide_env = true)]
    data_dir: Option<PathBuf>,

    /// Names HTTP answers to, beside addresses and localhost
    #[arg(long = "allow-host", alias = "allowed-host", value_name = "NAME")]
    allowed_hosts: Vec<String>,

    /// How long a silent worker keeps its work [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    worker_grace: Option<Duration>,

    /// How long a state answer waits for the worker's word [default: 250ms]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    probe_timeout: Option<Duration>,

    /// How long a stop waits for what is in flight [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    drain_timeout: Option<Duration>,

    /// What accepted means: fsync (on disk) or os (survives a kill, not a power cut) [default: fsync]
    #[arg(long, value_name = "WHAT", value_parser = durability)]
    durability: Option<Durability>,

    #[command(flatten)]
    kept: KeptArgs,
    /// Threads that serve HTTP, 1 to 8 [default: a quarter of the processors, 1 at least]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    http_threads: Option<u8>,

    /// No access tokens on HTTP; on a loopback address only
    #[arg(long)]
    no_auth: bool,

    /// Under TLS: clients and workers must show a certificate of this authority, beside their token
    #[arg(
        long,
        value_name = "FILE",
        env = "HOSTLER_TLS_CLIENT_CA",
        hide_env = true
    )]
    tls_client_ca: Option<PathBuf>,

    /// Serve addresses that others can reach without TLS: they can read access tokens on the way
    #[arg(long)]
    allow_plaintext: bool,

    /// Types of job accepted: command, handler, handler:NAME; NAME may end with * [default: all]
    #[arg(long, value_name = "TYPE", value_delimiter = ',', value_parser = job_type)]
    allow: Vec<String>,

    /// Accept no commands
    #[arg(long, conflicts_with = "allow_commands")]
    no_commands: bool,

    /// Accept commands, beside the handlers of --allow-handler
    #[arg(long)]
    allow_commands: bool,

    /// Accept this handler; repeat for several, NAME may end with *. Nothing else is accepted then, but what is allowed too
    #[arg(long = "allow-handler", value_name = "NAME", value_parser = handler)]
    handlers: Vec<Pattern>,

    /// Jobs of one queue that have not ended; more are refused [default: as many as in all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    queue_jobs_max: Option<u64>,

    /// HTTP requests a second of an access token without a rate of its own [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    token_requests_per_second: Option<u32>,

    /// Jobs submitted a second by such a token [default: any number]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    token_jobs_per_second: Option<u32>,

    #[command(flatten)]
    trace: TraceArgs,
}

/// Runs it.
pub(crate) fn run(args: Args, global: &Global) -> Result<Exit, Failure> {
    let settings = Settings::merge(global)?;
    let file = &settings.file.server;
    start_trace(
        &args.trace,
        &file.log_level,
        &file.log_format,
        settings.verbose,
    )?;
    let mut config = config(&args, file)?;
    config.tls = tls(&args, global, file)?;
    let data_dir = config.data_dir.clone();
    let admin_token = data_dir.join(ADMIN_FILE);
    let is_told = !config.no_auth && !admin_token.exists();
    signals::survive_file_limits()?;
    raise_descriptors();
    let server = Server::start(config).map_err(|error| start_failure(&error))?;
    output::note(format_args!(
        "hostler {} server — HTTP {}://{}, workers {}.  Data: {}",
        env!("CARGO_PKG_VERSION"),
        if server.is_tls() { "https" } else { "http" },
        server.http_addr(),
        server.worker_addr(),
        data_dir.display()
    ));
    if is_told {
        let path = admin_token.display();
        output::note(format_args!(
            "the access token that opens HTTP is in {path}"
        ));
    }
    let stopper = server.stopper();
    let reloader = server.reloader();
    signals::each_hup(move || reloader.reload())?;
    signals::each(move |signal, before| {
        if before > 0 {
            output::note("stopping now");
            std::process::exit(Exit::Signal(signal).code().into());
        }
        output::note("stopping; once more: now");
        stopper.stop();
    })?;
    server
        .wait()
        .map_err(|error| Failure::new(Exit::Unsuccessful, error.to_string()))?;
    Ok(Exit::Done)
}

/// Each connection takes a descriptor, and the usual limit is 1,024 of them, for the sake of programs that use `select`.
/// We are none, and start none.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of descriptors could not be raised");
    }
}

/// A start that failed, as the user sees it.
pub(crate) fn start_failure(error: &StartError) -> Failure {
    let failure = Failure::new(
        Exit::Unsuccessful,
        format!("the server cannot start: {error}"),
    );
    match way_out(error) {
        Some(way_out) => failure.hint(way_out),
        None => failure,
    }
}

/// What to do about it, where the message does not say so itself.
fn way_out(error: &StartError) -> Option<&'static str> {
    if let StartError::Plaintext { .. } = error {
        return Some(
            "give --tls-cert and --tls-key (`hostler tls init` makes them), listen on 127.0.0.1 behind a proxy that \
             speaks TLS, or accept it with --allow-plaintext",
        );
    }
    let StartError::Store(error) = error else {
        return None;
    };
    Some(match error.kind {
        StoreErrorKind::Full => "free some space on that disk, then start again",
        StoreErrorKind::Corrupt => {
            "keep a copy of the directory; `hostler verify DATA_DIR` names what is damaged"
        }
        StoreErrorKind::Io | StoreErrorKind::ReadOnly => {
            "the data directory must be a directory that the server's user may write to"
        }
        StoreErrorKind::InUse
        | StoreErrorKind::OtherVersion
        | StoreErrorKind::Busy
        | StoreErrorKind::NoIndex => return None,
    })
}

fn config(args: &Args, file: &ServerFile) -> Result<Config, Failure> {
    let said = args.data_dir.as_deref().or(file.data_dir.as_deref());
    let mut config = Config::new(settings::data_dir(said)?);
    let from = |name: &str, error: String| {
        Failure::usage(format!("server.{name} in the configuration: {error}"))
    };
    let pick = |name: &str, flag: Option<Duration>, text: &Option<String>, default: Duration| match (
        flag, text,
    ) {
        (Some(value), _) => Ok(value),
        (None, Some(text)) => duration::parse(text).map_err(|error| from(name, error)),
        (None, None) => Ok(default),
    };
    config.worker_grace = pick(
        "worker_grace",
        args.worker_grace,
        &file.worker_grace,
        config.worker_grace,
    )?;
    if config.worker_grace < Config::WORKER_GRACE_MIN {
        return Err(Failure::usage(format!(
            "a worker grace of {:?} is too short: workers beat every 2 s and need {:?} at least",
            config.worker_grace,
            Config::WORKER_GRACE_MIN
        )));
    }
    config.probe_timeout = pick(
        "probe_timeout",
        args.probe_timeout,
        &file.probe_timeout,
        config.probe_timeout,
    )?;
    config.drain_timeout = pick(
        "drain_timeout",
        args.drain_timeout,
        &file.drain_timeout,
        config.drain_timeout,
    )?;
    if let Some(address) = args.listen {
        config.listen = address;
    } else if let Some(text) = &file.listen {
        config.listen = socket(text).map_err(|error| from("listen", error))?;
    }
    if let Some(address) = args.worker_listen {
        config.worker_listen = address;
    } else if let Some(text) = &file.worker_listen {
        config.worker_listen = socket(text).map_err(|error| from("worker_listen", error))?;
    }
    if let Some(chosen) = args.durability {
        config.durability = chosen;
    } else if let Some(text) = &file.durability {
        config.durability = durability(text).map_err(|error| from("durability", error))?;
    }
    args.kept.apply(file, &mut config.limits)?;
    if let Some(threads) = args.http_threads.or(file.http_threads) {
        config.http_threads = usize::from(threads);
    }
    if config.http_threads == 0 || config.http_threads > Config::HTTP_THREADS_MAX {
        let text = format!(
            "{} HTTP threads: 1 to {} are possible",
            config.http_threads,
            Config::HTTP_THREADS_MAX
        );
        return Err(from("http_threads", text));
    }
    if args.no_auth && !config.listen.ip().is_loopback() {
        return Err(Failure::usage(format!(
            "--no-auth is for loopback addresses only, and {} is none",
            config.listen
        ))
        .hint("leave --no-auth out, or listen on 127.0.0.1"));
    }
    config.no_auth = args.no_auth;
    config.allow_plaintext = args.allow_plaintext;
    config.allowed_hosts = match (&args.allowed_hosts[..], &file.allowed_hosts) {
        ([], Some(hosts)) => hosts.clone(),
        (hosts, _) => hosts.to_vec(),
    };
    config.allow = allow(args, file)?;
    let limits = &mut config.limits;
    limits.queue_jobs_max = args.queue_jobs_max.or(file.queue_jobs_max);
    limits.token_requests_per_second = args
        .token_requests_per_second
        .or(file.token_requests_per_second);
    limits.token_jobs_per_second = args.token_jobs_per_second.or(file.token_jobs_per_second);
    Ok(config)
}

/// The files of TLS, if there is to be any.
fn tls(args: &Args, global: &Global, file: &ServerFile) -> Result<Option<ServerFiles>, Failure> {
    if global.tls_ca.is_some() {
        return Err(
            Failure::usage("--tls-ca (HOSTLER_TLS_CA) is for those who talk to a server")
                .hint("--tls-client-ca FILE makes the server ask its clients for certificates"),
        );
    }
    let cert = global.tls_cert.clone().or(file.tls_cert.clone());
    let key = global.tls_key.clone().or(file.tls_key.clone());
    let client_ca = args.tls_client_ca.clone().or(file.tls_client_ca.clone());
    match (cert, key, client_ca) {
        (None, None, None) => Ok(None),
        (Some(cert), Some(key), client_ca) => Ok(Some(ServerFiles {
            cert,
            key,
            client_ca,
        })),
        (_, _, _) => Err(Failure::usage("TLS needs both --tls-cert and --tls-key")
            .hint("`hostler tls init` makes them")),
    }
}

/// The types of job to be accepted: what was said on the command line together, else what the file says.
fn allow(args: &Args, file: &ServerFile) -> Result<Allow, Failure> {
    let said = !args.allow.is_empty()
        || args.no_commands
        || args.allow_commands
        || !args.handlers.is_empty();
    if !said {
        let words = file.allow.as_deref().unwrap_or_default();
        return Allow::of_words(words).map_err(|error| {
            Failure::usage(format!("server.allow in the configuration: {error}"))
        });
    }
    let mut allow =
        Allow::of_words(&args.allow).map_err(|error| Failure::usage(error.to_string()))?;
    if !args.handlers.is_empty() {
        let mut only = match allow.handlers {
            Handlers::Only(only) => only,
            Handlers::All => Vec::new(),
        };
        only.extend_from_slice(&args.handlers);
        allow.handlers = Handlers::Only(only);
        allow.commands &= !args.allow.is_empty();
    }
    allow.commands = (allow.commands || args.allow_commands) && !args.no_commands;
    Ok(allow)
}

/// A word for a type of job.
fn job_type(text: &str) -> Result<String, InvalidAllow> {
    Allow::of_words([text]).map(|_| text.to_owned())
}

/// Starts the trace as flags and file say.
pub(crate) fn start_trace(
    args: &TraceArgs,
    level: &Option<String>,
    format: &Option<String>,
    verbose: u8,
) -> Result<(), Failure> {
    let wrong =
        |what: &str| Failure::usage(format!("{what} in the configuration has no such value"));
    let level = match (args.log_level, level) {
        (Some(level), _) => level,
        (None, Some(text)) => text.parse().or(Err(wrong("log_level")))?,
        (None, None) => match verbose {
            0 => LevelFilter::INFO,
            1 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        },
    };
    let format = match (args.log_format, format) {
        (Some(format), _) => format,
        (None, Some(text)) => {
            clap::ValueEnum::from_str(text, false).or(Err(wrong("log_format")))?
        }
        (None, None) => TraceFormat::Auto,
    };
    trace::start(level, format);
    Ok(())
}

/// An address to listen on: `127.0.0.1:7440`, `[::1]:0`, `localhost:7440`.
fn socket(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("\"{text}\" is no address to listen on: write 127.0.0.1:7440");
    text.to_socket_addrs()
        .or(Err(wrong()))?
        .next()
        .ok_or_else(wrong)
}

fn durability(text: &str) -> Result<Durability, String> {
    match text {
        "fsync" => Ok(Durability::Fsync),
        "os" => Ok(Durability::Os),
        _ => Err(format!("\"{text}\": durability is fsync or os")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        args: Args,
    }

    fn args(flags: &[&str]) -> Args {
        let flags = [&["x", "--data-dir", "/d"], flags].concat();
        Flags::try_parse_from(flags).unwrap().args
    }

    #[test]
    fn flags_and_file_become_the_servers_configuration() {
        let file = ServerFile {
            listen: Some("127.0.0.1:1".into()),
            worker_grace: Some("5s".into()),
            probe_timeout: Some("1s".into()),
            ..ServerFile::default()
        };
        let flags = [
            "--listen",
            "127.0.0.1:2",
            "--worker-grace",
            "7s",
            "--allow",
            "handlers",
        ];
        let config = config(&args(&flags), &file).unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.worker_grace, Duration::from_secs(7));
        assert_eq!(config.probe_timeout, Duration::from_secs(1));
        assert!(!config.allow.commands && config.allow.handler("any"));
    }

    #[test]
    fn what_is_allowed_is_what_was_said_and_nothing_else() {
        let allowed = |flags: &[&str]| {
            let allow = config(&args(flags), &ServerFile::default()).unwrap().allow;
            [allow.commands, allow.handler("resize"), allow.handler("x")]
        };
        assert_eq!(allowed(&[]), [true, true, true]);
        assert_eq!(allowed(&["--no-commands"]), [false, true, true]);
        assert_eq!(allowed(&["--allow-handler", "res*"]), [false, true, false]);
        let both = ["--allow-commands", "--allow-handler", "resize"];
        assert_eq!(allowed(&both), [true, true, false]);
        assert_eq!(allowed(&["--allow", "command"]), [true, false, false]);
        let both = ["--allow", "command", "--allow-handler", "x"];
        assert_eq!(allowed(&both), [true, false, true]);
        let file = ServerFile {
            allow: Some(vec!["handler:x".into()]),
            ..ServerFile::default()
        };
        let allow = config(&args(&[]), &file).unwrap().allow;
        assert!(!allow.commands && allow.handler("x") && !allow.handler("y"));
    }

    #[test]
    fn a_grace_that_would_give_up_workers_between_two_beats_is_refused() {
        let config = |grace| config(&args(&["--worker-grace", grace]), &ServerFile::default());
        assert_eq!(config("3900ms").unwrap_err().exit(), Exit::Usage);
        assert!(config("4s").is_ok());
    }

    #[test]
    fn no_tokens_are_for_loopback_only() {
        let open = args(&["--no-auth", "--listen", "0.0.0.0:1"]);
        let failure = config(&open, &ServerFile::default()).unwrap_err();
        assert_eq!(failure.exit(), Exit::Usage);
        let closed = args(&["--no-auth", "--listen", "127.0.0.1:1"]);
        assert!(config(&closed, &ServerFile::default()).unwrap().no_auth);
    }
}
