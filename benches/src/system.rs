//! What is measured: a server with workers from the `hostler` binary, in a directory of its own, on free loopback
//! ports, all of which ends with its value; or a server that runs already, of which less can be seen.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use hostler_tls::{ClientFiles, Port, ServerName};
use hostler_wire::token::Token;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clock::eventually;
use crate::http;

/// How long a start or an orderly stop may take; a start with very many jobs takes longer.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long all jobs may take to end after the last was accepted.
pub(crate) const END_PATIENCE: Duration = Duration::from_secs(600);

/// A server of one's own, as it is started.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Setup {
    /// Workers of the own server
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Slots of each worker
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub slots: u32,
    /// What the own server means by accepted
    #[arg(long, value_enum, value_name = "WHAT", default_value = "fsync")]
    pub durability: Durability,
    /// What the own server demands
    #[arg(long, value_enum, value_name = "WHAT", default_value = "token")]
    pub access: Access,
    /// Its traces have each step of a job, for [`System::assigned_us`].
    #[arg(skip)]
    pub traced: bool,
}

/// What "accepted" means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// On disk.
    Fsync,
    /// With the operating system: survives a kill, not a power cut.
    Os,
}

/// What a server demands of whoever comes. Its worker port always demands a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Access {
    /// Nothing, on HTTP.
    Open,
    /// Access tokens.
    Token,
    /// Access tokens, and TLS on both ports, with certificates made for the run.
    Tls,
}

impl Setup {
    /// One worker of two slots, fsync: what the figures are made with.
    pub const PLAIN: Self = Self {
        workers: 1,
        slots: 2,
        durability: Durability::Fsync,
        access: Access::Token,
        traced: false,
    };

    /// The same, which says what it does with each job.
    pub const TRACED: Self = Self {
        traced: true,
        ..Self::PLAIN
    };

    /// No worker: jobs stay queued.
    pub const IDLE: Self = Self {
        workers: 0,
        ..Self::PLAIN
    };

    /// For people and programs.
    pub fn as_json(&self) -> Value {
        json!({
            "workers": self.workers,
            "slots": self.slots,
            "durability": self.durability.as_str(),
            "access": self.access.as_str(),
        })
    }
}

impl Durability {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Os => "os",
        }
    }
}

impl Access {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Token => "token",
            Self::Tls => "tls",
        }
    }
}

/// Where the server of a run comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A new one for each run, from this binary.
    Own(PathBuf),
    /// This one.
    Running {
        /// `HOST:PORT`.
        address: String,
        /// The access token, if it wants one.
        token: Option<String>,
        /// Whom to trust, if it speaks TLS.
        tls: Option<ClientFiles>,
    },
}

impl Source {
    /// A server, ready and with its workers.
    pub fn system(&self, setup: &Setup) -> Result<System> {
        match self {
            Self::Own(binary) => System::start(binary, setup),
            Self::Running {
                address,
                token,
                tls,
            } => System::running(address, token.clone(), tls.as_ref()),
        }
    }
}

/// A running system.
#[derive(Debug)]
pub struct System {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// What `GET /version` says.
    pub version: String,
    to: http::To,
    token: Option<String>,
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    binary: PathBuf,
    setup: Setup,
    server: Option<Child>,
    workers: Vec<Child>,
    worker_port: SocketAddr,
    dir: TempDir,
}

/// The binary: what was said, else beside this program.
pub fn find_binary(said: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = said {
        ensure!(path.is_file(), "HOSTLER_BIN={} is no file", path.display());
        return Ok(path);
    }
    let here = std::env::current_exe()?;
    for dir in here.ancestors().skip(1).take(2) {
        let path = dir.join("hostler");
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "no hostler binary beside {}; cargo build --release -p hostler-cli",
        here.display()
    )
}

impl System {
    /// Starts one; ready and with its workers when this returns.
    pub fn start(binary: &Path, setup: &Setup) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("hostler-bench-")
            .tempdir()?;
        let own = Own {
            binary: binary.to_owned(),
            setup: *setup,
            server: None,
            workers: Vec::new(),
            worker_port: free_port()?,
            dir,
        };
        let http = free_port()?;
        let mut to = http::To::from(http);
        if setup.access == Access::Tls {
            let mut made = own.bare("tls", "tls.err")?;
            let made = made.args(["init", "--dir"]).arg(own.tls_dir()).status()?;
            ensure!(made.success(), "`hostler tls init` failed");
            let files = ClientFiles {
                ca: Some(own.tls_dir().join("ca.pem")),
                ..ClientFiles::default()
            };
            to = with_tls(http, &files, &http.ip().to_string())?;
        }
        let mut system = Self {
            http,
            version: String::new(),
            to,
            token: None,
            own: Some(own),
        };
        system.start_server()?;
        let own = system.own.as_mut().context("it is our own")?;
        for number in 1..=setup.workers {
            own.workers.push(own.spawn_worker(number)?);
        }
        let there = eventually(PATIENCE, Duration::from_millis(10), || {
            let workers = system.stats().ok().and_then(|it| it["workers"].as_u64());
            workers >= Some(u64::from(setup.workers))
        });
        ensure!(there, "the workers did not connect");
        Ok(system)
    }

    /// One that runs at `HOST:PORT`. Nothing but a Hostler server is ever loaded.
    pub fn running(
        address: &str,
        token: Option<String>,
        tls: Option<&ClientFiles>,
    ) -> Result<Self> {
        let http = address
            .to_socket_addrs()
            .with_context(|| format!("no such address: {address}"))?
            .next()
            .with_context(|| format!("no such address: {address}"))?;
        let to = match tls {
            Some(files) => {
                let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
                with_tls(http, files, host.trim_matches(['[', ']']))?
            }
            None => http.into(),
        };
        let mut system = Self {
            http,
            version: String::new(),
            to,
            token,
            own: None,
        };
        system.learn_version()?;
        system
            .stats()
            .context("the server does not let this token see its /stats")?;
        Ok(system)
    }

    /// Starts the own server, which does not run, in its directory; returns when it is ready.
    pub fn start_server(&mut self) -> Result<()> {
        let (http, to) = (self.http, self.to());
        let own = self.own.as_mut().context("it is our own")?;
        own.server = Some(own.spawn_server(http)?);
        let ask = http::request("GET", "/readyz", None, b"");
        let is_ready = eventually(PATIENCE, Duration::from_millis(1), || {
            http::once(to.clone(), ask.clone()).is_ok()
        });
        let said = || fs::read_to_string(own.dir.path().join("server.err")).unwrap_or_default();
        ensure!(is_ready, "the server did not become ready: {}", said());
        if own.setup.access != Access::Open {
            let token = fs::read_to_string(own.data_dir().join("admin.token"))?;
            self.token = Some(token.trim().to_owned());
        }
        self.learn_version()
    }

    /// Kills the own server: nothing is tidied up, as after a crash.
    pub fn kill_server(&mut self) -> Result<()> {
        let own = self.own.as_mut().context("only an own server is killed")?;
        let mut server = own.server.take().context("it runs")?;
        server.kill()?;
        server.wait()?;
        Ok(())
    }

    fn learn_version(&mut self) -> Result<()> {
        let answer = http::once(self.to(), http::request("GET", "/version", None, b""))
            .with_context(|| format!("no server answers at {}", self.http))?;
        let version: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let is_ours = version["cluster_id"].is_string() && version["protocol"].is_u64();
        ensure!(
            is_ours,
            "what answers at {} is no Hostler server",
            self.http
        );
        self.version = version["version"].as_str().unwrap_or("unknown").to_owned();
        Ok(())
    }

    /// Whether it was started for this run: nobody else uses it, and its files may be read.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// The token of its administrator.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Where its files are: for references on the same disk. None of a server that was there before.
    pub fn dir(&self) -> Option<&Path> {
        self.own.as_ref().map(|own| own.dir.path())
    }

    /// Its database.
    pub fn database(&self) -> Option<PathBuf> {
        self.own
            .as_ref()
            .map(|own| own.data_dir().join("hostler.db"))
    }

    /// Where workers connect to an own server, and their token.
    pub fn worker_port(&self) -> Option<(SocketAddr, Token)> {
        let own = self.own.as_ref()?;
        let text = fs::read_to_string(own.data_dir().join("worker.token")).ok()?;
        Some((own.worker_port, Token::parse(text.trim()).ok()?))
    }

    /// When each job was assigned, as a traced server of our own says: times of day, in µs.
    pub fn assigned_us(&self) -> Result<Option<HashMap<u64, u64>>> {
        let Some(own) = self.own.as_ref().filter(|own| own.setup.traced) else {
            return Ok(None);
        };
        let mut all = HashMap::new();
        let text = fs::read_to_string(own.dir.path().join("server.err"))?;
        for line in text
            .lines()
            .filter(|line| line.contains("\"message\":\"assigned\""))
        {
            let line: Value = serde_json::from_str(line)?;
            let at = line["timestamp"].as_str().and_then(time_of_day_us);
            if let (Some(job), Some(at)) = (line["job"].as_u64(), at) {
                all.insert(job, at);
            }
        }
        Ok(Some(all))
    }

    /// Where requests go.
    pub fn to(&self) -> http::To {
        self.to.clone()
    }

    /// The same, for who speaks no TLS.
    pub fn plain(&self) -> Result<SocketAddr> {
        ensure!(
            self.to.tls.is_none(),
            "this is measured on plain connections only"
        );
        Ok(self.http)
    }

    /// A request with the token.
    pub fn request(&self, method: &str, path: &str, json: &[u8]) -> Vec<u8> {
        http::request(method, path, self.token(), json)
    }

    /// One request, its answer's body.
    pub fn once(&self, method: &str, path: &str, json: &[u8]) -> Result<Vec<u8>> {
        http::once(self.to(), self.request(method, path, json))
    }

    /// `GET /stats`.
    pub fn stats(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.once("GET", "/stats", b"")?)?)
    }

    /// Waits until no job is under way.
    pub fn all_ended(&self) -> Result<()> {
        let mut failure = None;
        let ended = eventually(END_PATIENCE, Duration::from_millis(5), || {
            match self.stats().and_then(|stats| live_jobs(&stats)) {
                Ok(live) => live == 0,
                Err(error) => {
                    failure = Some(error);
                    true
                }
            }
        });
        if let Some(error) = failure {
            return Err(error.context("the server stopped answering"));
        }
        ensure!(ended, "jobs have not ended after {END_PATIENCE:?}");
        Ok(())
    }

    /// CPU time of the own server so far.
    pub fn server_cpu(&self) -> Option<Duration> {
        cpu_of(self.server_id()?).ok()
    }

    /// Memory of the own server now, bytes.
    pub fn server_rss(&self) -> Option<u64> {
        memory(self.server_id()?, "VmRSS:")
    }

    /// The most memory that the own server and its first worker have taken, MiB.
    pub fn peak_memory_mib(&self) -> Option<[f64; 2]> {
        let worker = self.own.as_ref()?.workers.first()?.id();
        let mib = |pid| Some(memory(pid, "VmHWM:")? as f64 / f64::from(1 << 20));
        Some([mib(self.server_id()?)?, mib(worker)?])
    }

    fn server_id(&self) -> Option<u32> {
        Some(self.own.as_ref()?.server.as_ref()?.id())
    }
}

impl Own {
    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn tls_dir(&self) -> PathBuf {
        self.dir.path().join("tls")
    }

    fn spawn_server(&self, http: SocketAddr) -> Result<Child> {
        let mut command = self.command("server", "server.err")?;
        match self.setup.access {
            Access::Open => drop(command.arg("--no-auth")),
            Access::Token => {}
            Access::Tls => {
                let dir = self.tls_dir();
                command.arg("--tls-cert").arg(dir.join("server.pem"));
                command.arg("--tls-key").arg(dir.join("server.key"));
            }
        }
        command
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen", &http.to_string()])
            .args(["--worker-listen", &self.worker_port.to_string()])
            .args(["--durability", self.setup.durability.as_str()])
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))
    }

    fn spawn_worker(&self, number: u32) -> Result<Child> {
        let mut command = self.command("worker", &format!("worker-{number}.err"))?;
        if self.setup.access == Access::Tls {
            command.arg("--tls-ca").arg(self.tls_dir().join("ca.pem"));
        }
        command
            .args(["--name", &format!("bench-{number}"), "--token-file"])
            .arg(self.data_dir().join("worker.token"))
            .args(["--server", &self.worker_port.to_string()])
            .args(["--slots", &self.setup.slots.to_string()])
            .spawn()
            .context("cannot start a worker")
    }

    /// `hostler WHAT` with nothing of its caller's settings.
    fn command(&self, what: &str, trace: &str) -> Result<Command> {
        let level = if self.setup.traced { "trace" } else { "warn" };
        let mut command = self.bare(what, trace)?;
        command.args(["--log-level", level]);
        Ok(command)
    }

    fn bare(&self, what: &str, trace: &str) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command
            .arg(what)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.dir.path().join(trace))?);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"HOSTLER_") {
                command.env_remove(name);
            }
        }
        Ok(command)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().chain(&mut self.server) {
            end(child);
        }
    }
}

/// TERM, and KILL if that does not do it.
pub(crate) fn end(child: &mut Child) {
    let (Ok(()) | Err(_)) = kill_process(Pid::from_child(child), Signal::TERM);
    let ended = eventually(PATIENCE, Duration::from_millis(5), || {
        !matches!(child.try_wait(), Ok(None))
    });
    if !ended {
        drop(child.kill());
        drop(child.wait());
    }
}

fn with_tls(addr: SocketAddr, files: &ClientFiles, host: &str) -> Result<http::To> {
    let config = files.load(Port::Http).map_err(|error| anyhow!("{error}"))?;
    let name = ServerName::try_from(host.to_owned())?;
    Ok(http::To {
        addr,
        tls: Some((config, name)),
    })
}

fn live_jobs(stats: &Value) -> Result<u64> {
    ["scheduled", "queued", "running", "cancelling"]
        .iter()
        .map(|state| {
            stats[state]
                .as_u64()
                .with_context(|| format!("no {state} in {stats}"))
        })
        .sum()
}

/// CPU time of a process: its living threads, to the nanosecond.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration> {
    let mut ns = 0u64;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        ns += first.unwrap_or(0u64);
    }
    Ok(Duration::from_nanos(ns))
}

/// A line of a process's status, in bytes.
fn memory(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

pub(crate) fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// The time of day, in µs, of `2026-01-31T12:34:56.123456Z`.
fn time_of_day_us(timestamp: &str) -> Option<u64> {
    let time = timestamp.split_once('T')?.1.trim_end_matches('Z');
    let (seconds, fraction) = time.split_once('.')?;
    let seconds = seconds
        .split(':')
        .try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    Some(seconds * 1_000_000 + fraction.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder;

    #[test]
    fn what_is_no_hostler_server_is_not_loaded() {
        let stranger = responder::start().unwrap();
        let error = System::running(&stranger.to_string(), None, None).unwrap_err();
        assert!(error.to_string().contains("no Hostler server"), "{error}");
    }
}
