//! What a connection costs that does nothing: workers that are there and beat, and HTTP clients that keep theirs open.
//!
//! The workers are sockets of this program, with a real handshake each; one worker of the usual kind proves before and
//! after that the server still does its work.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::BytesMut;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Beat, Frame, Login, Role};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use hostler_wire::token::Token;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::check::Book;
use crate::clock::{Moment, eventually, wall_ns};
use crate::environment::Environment;
use crate::latency::one_by_one;
use crate::report::{Figure, Report, us};
use crate::system::{Setup, Source, System};
use crate::watch::Tell;

/// Open many idle connections: memory and CPU of each
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Plan {
    /// Connected workers
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=15_000))]
    pub workers: u32,
    /// Open HTTP connections
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=4_000))]
    pub clients: u32,
    /// Seconds they are left alone while the CPU is looked at
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub seconds: u32,
}

/// Jobs before and after, one by one.
const PROOF_JOBS: u32 = 50;
/// Descriptors beside the connections.
const SPARE: u64 = 256;
/// Longest wait for a word of the handshake.
const PATIENCE: Duration = Duration::from_secs(30);
/// The queue that idle workers serve: nobody submits to it.
const QUEUE: &str = "bench-idle";

/// Measures both.
pub fn measure(source: &Source, plan: &Plan, tell: Tell<'_>) -> Result<Report> {
    allow_descriptors(u64::from(plan.workers) + u64::from(plan.clients) + SPARE)?;
    let system = source.system(&Setup::PLAIN)?;
    let port = system.worker_port().context(
        "connections needs a server of its own, whose memory it can see; leave out --server",
    )?;
    let environment = Environment::of(&system)?;
    let mut book = Book::default();
    let before = one_by_one(&system, PROOF_JOBS, &mut book)?;
    let rss = || system.server_rss().context("no memory figure");
    let rss_before = rss()?;
    let cpu_alone = cpu_while_idle(&system, plan.seconds, &mut Vec::new())?;

    let total = u64::from(plan.workers);
    let mut workers = Vec::new();
    for number in 0..plan.workers {
        workers.push(Worker::join(&port, number)?);
        if number % 256 == 0 {
            beat(&mut workers)?;
            tell("workers connected", u64::from(number), total);
        }
    }
    let rss_workers = rss()?;
    let cpu_workers = cpu_while_idle(&system, plan.seconds, &mut workers)?;
    let after = one_by_one(&system, PROOF_JOBS, &mut book)?;
    drop(workers);

    let rss_between = rss()?;
    let clients = (0..plan.clients)
        .map(|_| keep_open(&system))
        .collect::<Result<Vec<_>>>()?;
    let rss_clients = rss()?;
    drop(clients);
    let checked = book.check(&system)?;

    let each =
        |more: u64, less: u64, of: u32| more.saturating_sub(less) as f64 / f64::from(of) / 1_024.0;
    let cpu = cpu_workers.saturating_sub(cpu_alone).as_secs_f64() * 1e6;
    let per_second = cpu / f64::from(plan.seconds) / f64::from(plan.workers);
    let mut result = Figure::one(
        "submit → result beside them, p50",
        "µs",
        us(&after.ended, 0.5),
    );
    result.reference = "before they came";
    result.references.push(us(&before.ended, 0.5));
    Ok(Report {
        bench: "connections",
        environment,
        settings: json!({
            "workers": plan.workers,
            "clients": plan.clients,
            "seconds": plan.seconds,
        }),
        figures: vec![
            Figure::one(
                "memory of an idle worker",
                "KiB",
                each(rss_workers, rss_before, plan.workers),
            ),
            Figure::one("CPU of an idle worker, a second", "µs", per_second),
            Figure::one(
                "memory of an idle HTTP client",
                "KiB",
                each(rss_clients, rss_between, plan.clients),
            ),
            result,
        ],
        curves: Vec::new(),
        samples: Vec::new(),
        checked,
    })
}

/// A connected worker that does nothing.
struct Worker {
    stream: TcpStream,
}

impl Worker {
    fn join((address, token): &(SocketAddr, Token), number: u32) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut nonce = [0; 32];
        nonce[..8].copy_from_slice(&wall_ns().to_le_bytes());
        nonce[8..12].copy_from_slice(&number.to_le_bytes());
        let (handshake, hello) = ClientHandshake::new(token, Role::Control, nonce);
        say(&mut stream, &Frame::Hello(hello))?;
        let mut decoder = Decoder::new();
        decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
        let Frame::Challenge(challenge) = hear(&mut stream, &mut decoder)? else {
            bail!("the server did not answer with a challenge");
        };
        let mut login = Login {
            proof: [0; 32],
            name: format!("idle-{number}"),
            instance: wall_ns(),
            session: None,
            slots: 1,
            commands: false,
            handlers: Vec::new(),
            queues: vec![QUEUE.to_owned()],
            labels: Vec::new(),
            allocation: String::new(),
            held: Vec::new(),
            last_report: 0,
            epochs: Vec::new(),
        };
        handshake
            .login(&challenge, &mut login)
            .map_err(|error| anyhow::anyhow!("the handshake failed: {error:?}"))?;
        say(&mut stream, &Frame::Login(Box::new(login)))?;
        decoder.accept_up_to(FRAME_BYTES_MAX);
        let heard = hear(&mut stream, &mut decoder)?;
        let is_welcome = matches!(heard, Frame::Welcome(_));
        ensure!(is_welcome, "no welcome, but {heard:?}");
        stream.set_nonblocking(true)?;
        Ok(Self { stream })
    }

    /// Still here; and takes what the server said meanwhile.
    fn beat(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes)?;
        let mut piece = [0; 4_096];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => bail!("the server closed the connection of an idle worker"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn say(stream: &mut TcpStream, frame: &Frame) -> Result<()> {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    Ok(stream.write_all(&out)?)
}

fn hear(stream: &mut TcpStream, decoder: &mut Decoder) -> Result<Frame> {
    let mut piece = [0; 4_096];
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(frame);
        }
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "the server closed the connection");
        decoder.buffer().extend_from_slice(&piece[..count]);
    }
}

/// All of them beat once.
fn beat(workers: &mut [Worker]) -> Result<()> {
    let mut bytes = BytesMut::new();
    Frame::Beat(Beat {
        assign_seq: 0,
        held: 0,
    })
    .encode(&mut bytes);
    for worker in workers {
        worker.beat(&bytes)?;
    }
    Ok(())
}

/// CPU time of the server in so many seconds, in which the workers beat every two.
fn cpu_while_idle(system: &System, seconds: u32, workers: &mut [Worker]) -> Result<Duration> {
    let cpu = || system.server_cpu().context("no CPU figure");
    let before = cpu()?;
    let begun = Moment::now();
    let end = Duration::from_secs(u64::from(seconds));
    let mut due: VecDeque<Duration> = (0..seconds.div_ceil(2))
        .map(|beat| Duration::from_secs(u64::from(beat) * 2))
        .collect();
    while begun.elapsed() < end {
        if due.front().is_some_and(|due| *due <= begun.elapsed()) {
            due.pop_front();
            beat(workers)?;
        }
        let until = due.front().copied().unwrap_or(end).min(end);
        let pause = until.saturating_sub(begun.elapsed());
        eventually(pause, pause.max(Duration::from_millis(1)), || false);
    }
    Ok(cpu()?.saturating_sub(before))
}

/// An HTTP connection that has been used once.
fn keep_open(system: &System) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(system.plain()?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&system.request("GET", "/healthz", b""))?;
    let mut piece = [0; 4_096];
    let count = stream.read(&mut piece)?;
    let head = piece[..count].starts_with(b"HTTP/1.1 200 ");
    ensure!(head, "no more than this many HTTP connections are taken");
    Ok(stream)
}

/// This process and the server it starts may open so many descriptors.
fn allow_descriptors(wanted: u64) -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    ensure!(
        limit.maximum.is_none_or(|maximum| maximum >= wanted),
        "{wanted} descriptors are needed and {} are allowed (ulimit -Hn); open fewer connections",
        limit.maximum.unwrap_or(0)
    );
    limit.current = Some(wanted);
    setrlimit(Resource::Nofile, limit).context("the limit of descriptors cannot be raised")
}
