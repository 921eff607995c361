//! `worker`: runs a worker until it is told to stop, or has nothing to do.

mod jobs;

use std::io::{self, Read};
use std::num::NonZero;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use hostler_wire::allow::{Handlers, InvalidAllow, Pattern};
use hostler_worker::{ClientFiles, Exit as End, Stopper, Worker, WorkerError};

use crate::cmd::server::start_trace;
use crate::cmd::spec::pair;
use crate::cmd::worker::jobs::JobArgs;
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::settings::{self, Global, Settings, WorkerFile};
use crate::trace::TraceArgs;

/// Where a server's worker port is if nobody says.
const SERVER: &str = "127.0.0.1:7441";

/// Run a worker
#[derive(Debug, clap::Args)]
#[command(after_help = "\
TERM or INT: take nothing more, give back what has not started, wait for the rest. A second one: now.

Examples:
  hostler worker --slots 8
  hostler worker --server q1:7441,q2:7441 --token-file worker.token --queue video --label gpu=a100
  hostler worker --server q1 --token-file worker.token --tls-ca ca.pem

Under TLS if there is a --tls-ca, or one of the addresses is tls://HOST:PORT (then the system's authorities count).")]
pub(crate) struct Args {
    /// The server's worker port; several addresses are tried in turn [default: 127.0.0.1:7441]
    #[arg(
        long,
        value_name = "HOST:PORT[,…]",
        env = "HOSTLER_WORKER_SERVER",
        hide_env = true
    )]
    server: Option<String>,

    /// Jobs it runs at once [default: one a processor]
    #[arg(long, value_name = "N", env = "HOSTLER_SLOTS", hide_env = true)]
    slots: Option<u32>,

    /// Queue it serves; repeat for several [default: default]
    #[arg(short, long = "queue", value_name = "QUEUE", value_delimiter = ',')]
    queues: Vec<String>,

    /// What it says of itself, for instance gpu=a100
    #[arg(long = "label", value_name = "K=V", value_parser = pair)]
    labels: Vec<(String, String)>,

    /// Its stable name, unique among workers [default: the machine's]
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "HOSTLER_WORKER_NAME",
        hide_env = true
    )]
    name: Option<String>,

    /// Time between TERM and KILL, for jobs that do not say [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    kill_grace: Option<Duration>,

    /// How long a stop waits for running jobs [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    drain_timeout: Option<Duration>,

    /// End after so long without work [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    idle_exit: Option<Duration>,

    #[command(flatten)]
    jobs: JobArgs,
    /// Run no commands, handlers only
    #[arg(long)]
    no_commands: bool,

    /// Run this handler; repeat for several, NAME may end with * [default: all it has]
    #[arg(long = "allow-handler", value_name = "NAME", value_parser = handler)]
    handlers: Vec<Pattern>,

    /// Stop at once when standard input ends: whoever holds its other end is gone.
    #[arg(long, hide = true)]
    exit_with_stdin: bool,

    /// No TLS, whatever else is said: for the worker of a server that has none.
    #[arg(long, hide = true)]
    plain: bool,

    #[command(flatten)]
    trace: TraceArgs,
}

/// Runs it.
pub(crate) fn run(args: Args, global: &Global) -> Result<Exit, Failure> {
    let settings = Settings::merge(&Global {
        server: None, // ours names worker ports, not HTTP
        ..global.clone()
    })?;
    let file = &settings.file.worker;
    start_trace(
        &args.trace,
        &file.log_level,
        &file.log_format,
        settings.verbose,
    )?;
    let tls = ClientFiles {
        ca: settings.tls.ca.clone().or(file.tls_ca.clone()),
        cert: settings.tls.cert.clone().or(file.tls_cert.clone()),
        key: settings.tls.key.clone().or(file.tls_key.clone()),
    };
    let (token, token_file) = token(&settings)?;
    let worker = set_up(&args, file, (&token, token_file), &tls)?;
    if args.exit_with_stdin {
        stop_with_stdin(worker.stopper())?;
    }
    match worker.run() {
        Ok(End::Drained | End::Idle) => Ok(Exit::Done),
        Ok(End::Unacknowledged(reports)) => {
            output::note(format_args!(
                "the server did not acknowledge {reports} reports: those jobs will run again"
            ));
            Ok(Exit::Unsuccessful)
        }
        Err(error) => Err(failure(&error)),
    }
}

fn failure(error: &WorkerError) -> Failure {
    match error {
        WorkerError::Invalid(_) => Failure::usage(error.to_string()),
        WorkerError::Refused(_) => Failure::new(Exit::Forbidden, error.to_string())
            .hint("a worker's token is worker.token in the server's data directory, or one that `hostler token create --role worker` made"),
        WorkerError::Tls(words) => {
            let failure = Failure::new(Exit::Unreachable, error.to_string());
            match words.hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        }
        WorkerError::Version(_) => Failure::new(Exit::Unsuccessful, error.to_string())
            .hint("run releases of server and worker that speak a common version of the protocol"),
        WorkerError::Io(_) => Failure::new(Exit::Unsuccessful, error.to_string()),
    }
}

/// The worker token that somebody said, or the one of a server on this machine; and the file it is in.
fn token(settings: &Settings) -> Result<(String, Option<PathBuf>), Failure> {
    let configured = settings.file.worker.token_file.as_deref();
    if let Some(said) = settings.token_said(configured)? {
        return Ok(said);
    }
    let data_dir = settings::data_dir(settings.file.server.data_dir.as_deref())?;
    let path = data_dir.join("worker.token");
    let token = settings::read_token(&path).map_err(|failure| {
        failure.hint(
            "set HOSTLER_TOKEN or give --token-file: worker.token in the server's data directory",
        )
    })?;
    Ok((token, Some(path)))
}

fn set_up(
    args: &Args,
    file: &WorkerFile,
    (token, token_file): (&str, Option<PathBuf>),
    tls: &ClientFiles,
) -> Result<Worker, Failure> {
    let said = args.server.as_deref().or(file.server.as_deref());
    let (servers, is_tls) = servers(said.unwrap_or(SERVER))?;
    let from_file = |name: &str, text: &Option<String>| {
        text.as_deref()
            .map(duration::parse)
            .transpose()
            .map_err(|error| Failure::usage(format!("worker.{name} in the configuration: {error}")))
    };
    let kill_grace = args.kill_grace.map_or_else(
        || from_file("kill_grace", &file.kill_grace),
        |it| Ok(Some(it)),
    )?;
    let drain = args.drain_timeout.map_or_else(
        || from_file("drain_timeout", &file.drain_timeout),
        |it| Ok(Some(it)),
    )?;
    let idle = args.idle_exit.map_or_else(
        || from_file("idle_exit", &file.idle_exit),
        |it| Ok(Some(it)),
    )?;
    let jobs = args.jobs.settings(file)?;
    let mut worker = Worker::connect(servers).token(token);
    if !args.plain && (is_tls || tls.is_some()) {
        worker = worker.tls(tls);
    }
    if !(args.no_commands || file.no_commands) {
        worker = worker.commands();
    }
    worker = worker.slots(args.slots.or(file.slots).unwrap_or_else(processors));
    if let Some(name) = args.name.as_ref().or(file.name.as_ref()) {
        worker = worker.name(name);
    }
    let queues = match (&args.queues[..], &file.queues) {
        ([], Some(queues)) => queues.clone(),
        (queues, _) => queues.to_vec(),
    };
    if !queues.is_empty() {
        worker = worker.queues(queues);
    }
    for (key, value) in &args.labels {
        worker = worker.label(key, value);
    }
    let handlers = match (&args.handlers[..], &file.allow_handlers) {
        ([], None) => Handlers::All,
        ([], Some(names)) => {
            let patterns = names
                .iter()
                .map(|name| handler(name))
                .collect::<Result<Vec<_>, _>>();
            let wrong = |error: InvalidAllow| {
                Failure::usage(format!(
                    "worker.allow_handlers in the configuration: {error}"
                ))
            };
            Handlers::Only(patterns.map_err(wrong)?)
        }
        (patterns, _) => Handlers::Only(patterns.to_vec()),
    };
    Ok(worker.configure(|config| {
        config.handlers = handlers;
        config.token_file = token_file;
        config.kill_grace = kill_grace.unwrap_or(config.kill_grace);
        config.drain_timeout = drain.unwrap_or(config.drain_timeout);
        config.idle_exit = idle.or(config.idle_exit);
        config.subreaper = true;
        jobs.apply(config);
    }))
}

/// The name of a handler, or the beginning of names.
pub(crate) fn handler(text: &str) -> Result<Pattern, InvalidAllow> {
    Pattern::new(text)
}

/// One job a processor, if nobody says otherwise.
pub(crate) fn processors() -> u32 {
    let count = thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The worker ports in a list, and whether they speak TLS: one `tls://` says so for all.
fn servers(list: &str) -> Result<(Vec<String>, bool), Failure> {
    let mut is_tls = false;
    let servers = list.split(',').map(|server| {
        let bare = server.trim().strip_prefix("tls://");
        is_tls |= bare.is_some();
        with_port(bare.unwrap_or(server.trim()))
    });
    Ok((servers.collect::<Result<_, _>>()?, is_tls))
}

fn with_port(server: &str) -> Result<String, Failure> {
    if server.contains("://") || server.is_empty() {
        return Err(Failure::usage(format!(
            "\"{server}\" is no worker port: write HOST:7441, or tls://HOST:7441"
        )));
    }
    let has_port = server.rsplit_once(':').is_some_and(|(host, port)| {
        port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
    });
    Ok(if has_port {
        server.to_owned()
    } else {
        format!("{server}:7441")
    })
}

/// Watches standard input on a thread of its own: its end means that whoever started us is gone, however it went.
fn stop_with_stdin(stopper: Stopper) -> Result<(), Failure> {
    thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut byte = [0];
        while matches!(io::stdin().lock().read(&mut byte), Ok(1..)) {}
        // Nobody is left to wait for: no drain.
        stopper.stop();
        stopper.stop();
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_port_has_a_default_number_and_no_scheme_but_tls() {
        assert_eq!(with_port("q1").unwrap(), "q1:7441");
        assert_eq!(with_port("q1:9").unwrap(), "q1:9");
        assert_eq!(with_port("[::1]").unwrap(), "[::1]:7441");
        assert_eq!(with_port("[::1]:9").unwrap(), "[::1]:9");
        let (list, is_tls) = servers("q1, tls://q2:9").unwrap();
        assert_eq!(list, ["q1:7441", "q2:9"]);
        assert!(is_tls && !servers("q1").unwrap().1);
        assert!(with_port("http://q1").is_err());
        assert!(with_port("").is_err());
    }
}
