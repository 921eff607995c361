//! `dev`: everything on this machine: the server in this process, one worker as a child process, both on loopback.
//!
//! The worker is a process of its own so that the boundary is the real one; it holds the other end of a pipe and ends
//! with us however we end. If it dies it is started again, more slowly each time.
//!
//! With a command: runs it through the whole system, stops everything, ends as the job did.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, thread};

use hostler_server::Config;
use hostler_server::server::{Server, ServerError, Stopper};
use hostler_tls::ClientFiles;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing_subscriber::filter::LevelFilter;

use crate::client::{Address, Client};
use crate::clock::Moment;
use crate::cmd::run::{First, OnInterrupt, race, through};
use crate::cmd::server::start_failure;
use crate::cmd::spec::SpecArgs;
use crate::cmd::{block_on, worker};
use crate::exit::{Exit, Failure};
use crate::output::{self, paint};
use crate::settings::Global;
use crate::signals::Stops;
use crate::trace::{self, TraceArgs};

/// The HTTP port if nobody says.
const PORT: u16 = 7440;
/// Pause before the worker's first new start; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before a new start.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A worker that lived so long died of something else than its start.
const LIVED: Duration = Duration::from_secs(10);
/// Deaths in a row, each soon after the start, until we give up.
const DEATHS_MAX: u32 = 8;
/// How long a stop waits for running jobs.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the worker may take to end, drain and kill grace included; then it is killed.
const WORKER_END_MAX: Duration = Duration::from_secs(20);

/// Everything on this machine: server, one worker, data in ./.hostler
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hostler dev                                   then, in another terminal: hostler run -- echo hello
  hostler dev --ephemeral -- make test          one command through the whole system, nothing kept")]
pub(crate) struct Args {
    /// Jobs the worker runs at once [default: one a processor]
    #[arg(long, value_name = "N")]
    slots: Option<u32>,

    /// HTTP port on 127.0.0.1; workers get the next one [default: 7440]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,

    /// Keep nothing: a directory of its own, removed at the end
    #[arg(long)]
    ephemeral: bool,

    /// Where data is kept
    #[arg(
        long,
        value_name = "DIR",
        default_value = ".hostler",
        conflicts_with = "ephemeral"
    )]
    data_dir: PathBuf,

    #[command(flatten)]
    trace: TraceArgs,

    /// A command to run through the system; then everything stops
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
}

/// Runs it.
pub(crate) fn run(args: Args, global: &Global) -> Result<Exit, Failure> {
    let as_job = !args.command.is_empty();
    start(args, global).map_err(|failure| if as_job { failure.ours() } else { failure })
}

fn start(args: Args, global: &Global) -> Result<Exit, Failure> {
    let level = args.trace.log_level.unwrap_or(match global.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    });
    trace::start(level, args.trace.log_format.unwrap_or_default());
    let (data_dir, _ephemeral) = place(&args)?;
    let (http, workers) = ports(args.port, !args.command.is_empty())?;
    let config = Config {
        listen: http,
        worker_listen: workers,
        no_auth: true,
        ..Config::new(data_dir.clone())
    };
    let server = Server::start(config).map_err(|error| {
        start_failure(&error)
            .hint("if `hostler dev` runs here already, use it: hostler run -- COMMAND")
    })?;
    let slots = args.slots.unwrap_or_else(worker::processors);
    let plan = WorkerPlan {
        server: server.worker_addr(),
        token: data_dir.join("worker.token"),
        slots,
        level,
    };
    let http = server.http_addr();
    let mut everything = Everything::new(server, plan)?;
    if args.command.is_empty() {
        banner(&args, slots, http);
    }
    block_on(everything.run(&args.command, http))?
}

/// Where the data goes. The temporary directory is removed when it is dropped.
fn place(args: &Args) -> Result<(PathBuf, Option<tempfile::TempDir>), Failure> {
    if !args.ephemeral {
        return Ok((args.data_dir.clone(), None));
    }
    let dir = tempfile::Builder::new()
        .prefix("hostler-")
        .tempdir()
        .map_err(|error| {
            Failure::new(
                Exit::Unsuccessful,
                format!("no temporary directory: {error}"),
            )
        })?;
    Ok((dir.path().join("data"), Some(dir)))
}

/// Where to listen. Nobody needs to find a server that lives for one command: it takes what is free.
fn ports(said: Option<u16>, for_one_command: bool) -> Result<(SocketAddr, SocketAddr), Failure> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let free = |port| TcpListener::bind(at(port)).is_ok();
    let port = said.unwrap_or(PORT);
    let http = if port == 0 || free(port) {
        port
    } else if for_one_command && said.is_none() {
        0
    } else {
        return Err(Failure::new(
            Exit::Unsuccessful,
            format!("port {port} on 127.0.0.1 is taken"),
        )
        .hint("use what runs there (hostler run -- COMMAND), or take another: --port PORT"));
    };
    let next = http.checked_add(1).filter(|next| http != 0 && free(*next));
    Ok((at(http), at(next.unwrap_or(0))))
}

fn banner(args: &Args, slots: u32, http: SocketAddr) {
    let data = if args.ephemeral {
        "Data: discarded at the end".to_owned()
    } else {
        let dir = &args.data_dir;
        let here = if dir.is_relative() { "./" } else { "" };
        format!(
            "Data: {here}{} (kept; --ephemeral to discard)",
            dir.display()
        )
    };
    let elsewhere = if http.port() == PORT {
        String::new()
    } else {
        format!("--server http://{http} ")
    };
    output::note(format_args!(
        "{} — server, 1 worker ({slots} slots).  {data}",
        paint::bold(concat!("hostler ", env!("CARGO_PKG_VERSION"), " dev"))
    ));
    output::note(format_args!("  HTTP       http://{http}"));
    output::note(format_args!(
        "  Try        hostler {elsewhere}run -- echo hello"
    ));
}

/// Server and worker together.
#[derive(Debug)]
struct Everything {
    stopper: Stopper,
    /// How the server ended.
    ended: mpsc::Receiver<Result<(), ServerError>>,
    worker: Supervised,
}

impl Everything {
    fn new(server: Server, plan: WorkerPlan) -> Result<Self, Failure> {
        let stopper = server.stopper();
        let (sender, ended) = mpsc::channel(1);
        thread::Builder::new()
            .name("server".into())
            .spawn(move || {
                // Nobody is there to hear it only if we are ending anyway.
                let (Ok(()) | Err(_)) = sender.blocking_send(server.wait());
            })?;
        Ok(Self {
            stopper,
            ended,
            worker: Supervised::start(plan)?,
        })
    }

    /// Runs until the command has ended, or until told to stop; stops everything, whatever happened.
    async fn run(&mut self, command: &[String], http: SocketAddr) -> Result<Exit, Failure> {
        let mut stops = Stops::listen()?;
        let result = self.work(command, http, &mut stops).await;
        self.worker.stop(&mut stops).await;
        self.stopper.stop();
        let ended = self.ended.recv().await;
        match (result, ended) {
            (Ok(_), Some(Err(error))) => Err(server_failure(&error)),
            (result, _) => result,
        }
    }

    async fn work(
        &mut self,
        command: &[String],
        http: SocketAddr,
        stops: &mut Stops,
    ) -> Result<Exit, Failure> {
        let work = std::pin::pin!(async {
            if command.is_empty() {
                stops.next().await;
                output::note("stopping; once more: now");
                return Ok(Exit::Done);
            }
            let request = SpecArgs::default().command(command)?;
            let mut client = Client::new(
                vec![Address::of_socket(http)],
                None,
                &ClientFiles::default(),
            )?;
            through(&mut client, &request, OnInterrupt::Cancel, stops).await
        });
        let ended = &mut self.ended;
        let worker = &mut self.worker;
        let trouble = async {
            let dying = std::pin::pin!(worker.keep());
            match race(dying, ended.recv()).await {
                First::Left(failure) => failure,
                First::Right(Some(Err(error))) => server_failure(&error),
                First::Right(_) => Failure::new(Exit::Unsuccessful, "the server stopped by itself"),
            }
        };
        match race(work, trouble).await {
            First::Left(result) => result,
            First::Right(failure) => Err(failure),
        }
    }
}

fn server_failure(error: &ServerError) -> Failure {
    Failure::new(
        Exit::Unsuccessful,
        format!("the server cannot go on: {error}"),
    )
}

/// How the worker is started.
#[derive(Debug)]
struct WorkerPlan {
    server: SocketAddr,
    token: PathBuf,
    slots: u32,
    level: LevelFilter,
}

/// The worker process, started again when it dies.
#[derive(Debug)]
struct Supervised {
    plan: WorkerPlan,
    child: Worker,
}

/// A worker process.
#[derive(Debug)]
struct Worker {
    /// Names the process even after it is gone, so that no other can be meant.
    pidfd: OwnedFd,
    /// Its end is how the worker notices ours.
    _stdin: Option<ChildStdin>,
    ended: Ended,
    since: Moment,
}

impl Supervised {
    fn start(plan: WorkerPlan) -> Result<Self, Failure> {
        let child = Worker::spawn(&plan)?;
        Ok(Self { plan, child })
    }

    /// Starts the worker again whenever it dies; returns when there is no point in that.
    async fn keep(&mut self) -> Failure {
        let mut deaths = 0;
        let mut pause = PAUSE;
        loop {
            let how = self.child.ended.recv().await;
            if self.child.since.elapsed() >= LIVED {
                (deaths, pause) = (0, PAUSE);
            }
            deaths += 1;
            let how = match how {
                Some(Ok(status)) => status.to_string(),
                Some(Err(error)) => error.to_string(),
                None => "it was stopped".to_owned(),
            };
            if deaths >= DEATHS_MAX {
                return Failure::new(
                    Exit::Unsuccessful,
                    format!("the worker died {deaths} times in a row, last with: {how}"),
                );
            }
            output::note(paint::yellow(&format!(
                "the worker died ({how}); starting it again"
            )));
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            match Worker::spawn(&self.plan) {
                Ok(child) => self.child = child,
                Err(failure) => return failure,
            }
        }
    }

    /// TERM, and at the user's wish once more; KILL if it does not end; gone when this returns.
    async fn stop(&mut self, stops: &mut Stops) {
        let Worker { pidfd, ended, .. } = &mut self.child;
        send(pidfd, Signal::TERM);
        if !ends(pidfd, ended, stops).await {
            send(pidfd, Signal::KILL);
            ended.recv().await;
        }
    }
}

/// Waits for the worker's end, passing on what the user says meanwhile; false if it takes too long.
async fn ends(pidfd: &OwnedFd, ended: &mut Ended, stops: &mut Stops) -> bool {
    let mut end = std::pin::pin!(timeout(WORKER_END_MAX, ended.recv()));
    loop {
        match race(end.as_mut(), stops.next()).await {
            First::Left(in_time) => return in_time.is_ok(),
            First::Right(_) => send(pidfd, Signal::TERM),
        }
    }
}

/// Brings the end of a process.
type Ended = mpsc::Receiver<std::io::Result<ExitStatus>>;

impl Worker {
    fn spawn(plan: &WorkerPlan) -> Result<Self, Failure> {
        let cannot = |error: &dyn std::fmt::Display| {
            Failure::new(
                Exit::Unsuccessful,
                format!("the worker cannot be started: {error}"),
            )
        };
        let program = env::current_exe().map_err(|error| cannot(&error))?;
        let mut child = command(&program, plan)
            .spawn()
            .map_err(|error| cannot(&error))?;
        let stdin = child.stdin.take();
        let pid = Pid::from_child(&child);
        // Nobody has waited for it yet, so its number is still its own.
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| cannot(&error))?;
        let (sender, ended) = mpsc::channel(1);
        thread::Builder::new()
            .name("worker".into())
            .spawn(move || drop(sender.blocking_send(child.wait())))?;
        Ok(Self {
            pidfd,
            _stdin: stdin,
            ended,
            since: Moment::now(),
        })
    }
}

/// Sends a signal; to a process that is gone it means nothing.
fn send(pidfd: &OwnedFd, signal: Signal) {
    let (Ok(()) | Err(_)) = pidfd_send_signal(pidfd, signal);
}

/// The worker's command line. It gets a process group of its own: Ctrl-C is ours to pass on, in good order.
fn command(program: &Path, plan: &WorkerPlan) -> Command {
    let mut command = Command::new(program);
    command
        .args(["worker", "--name", "local", "--exit-with-stdin", "--plain"])
        .args(["--server", &plan.server.to_string()])
        .args(["--slots", &plan.slots.to_string()])
        .args(["--log-level", &plan.level.to_string()])
        .args(["--drain-timeout", &format!("{}s", DRAIN.as_secs())])
        .arg("--token-file")
        .arg(&plan.token)
        .env_remove("HOSTLER_TOKEN")
        .env_remove("HOSTLER_CONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_an_error_unless_the_server_lives_for_one_command() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(ports(Some(port), false).is_err());
        assert!(ports(Some(port), true).is_err());
        let (http, _) = ports(Some(0), true).unwrap();
        assert_eq!(http.port(), 0);
    }
}
