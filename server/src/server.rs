//! Opens, recovers, spawns in order, stops in reverse; the only file that sees every part.
//!
//! The order of a start: the store (which makes the epoch durable), what was assigned, then the worker port, so that
//! workers can report and be adopted while one scan reads the untouched jobs, then assignments, then HTTP. *Ready* is when
//! all of that is done; the grace of absent workers counts from there.
//!
//! The order of a stop: not ready, and submissions refused, while HTTP still answers and says so; no new assignments and
//! unstarted work recalled; HTTP finishes what it has; what is in flight is committed and acknowledged; then the threads
//! end, the store last. Running jobs stay with their workers. All of it within the drain timeout.

use std::borrow::Cow;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, fs, io};

use hostler_engine::event::Restore;
use hostler_engine::lanes::Lanes;
use hostler_engine::{Engine, Span};
use hostler_tls::{FilesError, Live, ServerFiles};
use hostler_wire::handshake::Identity;
use hostler_wire::{Epoch, JobId, JobState, mutation};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::auth::{Auth, AuthError, TokenChange};
use crate::clock::Clock;
use crate::config::Config;
use crate::dispatch::Message;
use crate::mailbox::{Receiver, Sender, Wake, mailbox};
use crate::metrics::{Commits, Health};
use crate::net::{Post, Visit};
use crate::output::Answer;
use crate::store::depth::LiveJobs;
use crate::store::seam::{AuditEntry, Opening, Store, StoreError};
use crate::store::sqlite::SqliteStore;
use crate::store::writer::Notice;
use crate::{dispatch, http, net, output, store};

/// How often both sides of a worker's connection beat.
const BEAT: Span = Span::from_millis(net::BEAT_MS as u64);
/// Between TERM and KILL where a job does not say; what the worker's default is, too.
const KILL_GRACE: Span = Span::from_secs(10);
/// Most attempts a worker is given ahead of its slots: 8 ms of no-op work.
const PREFETCH_MAX: u32 = 8_192;
/// How many jobs ahead of dispatch bodies are read.
const FETCH_AHEAD: u32 = 4_096;
/// Parts of the store's memory in one message to dispatch.
const RESTORE_BATCH: usize = 4_096;
/// How long a stopping server waits for workers to give back what they have not started: a round trip and a commit.
const SETTLE: Duration = Duration::from_secs(2);
/// How long a server that must end at once leaves HTTP to send the answers that say so.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Tells other processes where the server is; written when it is ready.
const ADDRESSES_FILE: &str = "addresses.json";

/// A running server.
#[derive(Debug)]
pub struct Server {
    http_addr: SocketAddr,
    worker_addr: SocketAddr,
    control: Sender<Control>,
    inbox: Receiver<Control>,
    threads: Threads,
    drain_timeout: Duration,
    addresses: PathBuf,
    reloader: Reloader,
}

/// What may end a server.
#[derive(Debug)]
enum Control {
    /// Somebody asked for it.
    Stop,
    /// Another server owns the store.
    Deposed,
}

/// The threads and how to reach them.
#[derive(Debug)]
struct Threads {
    clock: Clock,
    health: Arc<Health>,
    dispatch: dispatch::Handle,
    writer: store::writer::Handle,
    records: store::reader::Handle,
    bodies: store::reader::Handle,
    net: net::Handle,
    output: output::Handle,
    http: http::Handle,
    /// In the order they are to end.
    joins: Joins,
}

#[derive(Debug)]
struct Joins {
    dispatch: JoinHandle<()>,
    net: JoinHandle<()>,
    output: JoinHandle<()>,
    readers: [JoinHandle<()>; 2],
    writer: JoinHandle<()>,
}

/// Stops a server from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Sender<Control>);

/// Has a server read its files again while it serves: on HUP.
#[derive(Clone, Debug)]
pub struct Reloader {
    tls: Option<Arc<Live>>,
    auth: Arc<Auth>,
    data_dir: PathBuf,
}

impl Reloader {
    /// New connections begin with what the files say now. What is wrong with them is told in the trace and changes nothing.
    pub fn reload(&self) {
        match self.auth.reload(&self.data_dir) {
            Ok(exchanged) => {
                tracing::info!(exchanged, "the files of access tokens were read again")
            }
            Err(error) => tracing::error!(%error, "the old access token stays in use"),
        }
        let Some(tls) = &self.tls else {
            return;
        };
        match tls.reload() {
            Ok(()) => tracing::info!(times = tls.reloads(), "the certificates were read again"),
            Err(error) => {
                let failed = tls.failed_reloads();
                tracing::error!(%error, failed, "the old certificates stay in use");
            }
        }
    }
}

impl Stopper {
    /// Begins an orderly stop; `Server::wait` returns when it is done.
    pub fn stop(&self) {
        self.0.send(Control::Stop);
    }
}

impl Server {
    /// Opens the data directory, recovers, and serves. Returns when the server is ready.
    pub fn start(mut config: Config) -> Result<Self, StartError> {
        refuse_open_ports(&config)?;
        Auth::check(&config)?;
        let tls = config.tls.clone().map(|files| open_tls(files, &mut config));
        let tls = tls.transpose()?;
        let store = SqliteStore::open(&config.data_dir)?;
        let auth = Arc::new(Auth::open(&config, &store.opening().tokens)?);
        let http_listener = net::listen(config.listen).map_err(|error| StartError::Listen {
            what: "http",
            address: config.listen,
            error,
        })?;
        let address = config.worker_listen;
        let worker_port = net::open(address).map_err(|error| StartError::Listen {
            what: "worker",
            address,
            error,
        })?;
        let (control, inbox) = mailbox(&Wake::parking());
        let addresses = config.data_dir.join(ADDRESSES_FILE);
        let http_addr = http_listener.local_addr().map_err(StartError::Thread)?;
        let worker_addr = worker_port.address();
        let drain_timeout = config.drain_timeout;
        let reloader = Reloader {
            tls: tls.clone(),
            auth: Arc::clone(&auth),
            data_dir: config.data_dir.clone(),
        };
        let parts = (store, auth, tls);
        let threads = start_threads(config, parts, (http_listener, worker_port), &control)?;
        publish(&addresses, http_addr, worker_addr).map_err(StartError::Thread)?;
        tracing::info!(http = %http_addr, workers = %worker_addr, "ready");
        Ok(Self {
            http_addr,
            worker_addr,
            control,
            inbox,
            threads,
            drain_timeout,
            addresses,
            reloader,
        })
    }

    /// Whether its ports speak TLS.
    pub fn is_tls(&self) -> bool {
        self.reloader.tls.is_some()
    }

    /// Something to have its files read again by.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Where HTTP listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where workers connect.
    pub fn worker_addr(&self) -> SocketAddr {
        self.worker_addr
    }

    /// Something to stop it by.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.control.clone())
    }

    /// Waits for the end, and brings it about in order.
    pub fn wait(self) -> Result<(), ServerError> {
        let mut reasons = Vec::new();
        while self.inbox.drain(&mut reasons, 1) == 0 {
            self.inbox.park(None);
        }
        // Nobody is to look for this server any more.
        drop(fs::remove_file(&self.addresses));
        match reasons.pop() {
            Some(Control::Deposed) => {
                // Its threads must write nothing more: the process ends with its caller.
                self.threads.health.set_stopping();
                Err(ServerError::Deposed)
            }
            Some(Control::Stop) | None => {
                self.threads.stop(self.drain_timeout);
                Ok(())
            }
        }
    }
}

impl Threads {
    fn stop(self, within: Duration) {
        self.health.set_stopping();
        self.net.post(Post::StopAccepting);
        let (settled, is_settled) = oneshot::channel();
        self.dispatch.tell(Message::Stopping { settled });
        let begun = self.clock.now();
        wait_for(is_settled, within.min(SETTLE));
        let gone = Duration::from_micros(self.clock.now().since(begun).micros());
        self.http.stop(within.saturating_sub(gone));
        self.http.join();
        // What dispatch has sent to the writer by now is committed before the writer's own stop.
        self.dispatch.tell(Message::Stop);
        join("dispatch", self.joins.dispatch);
        self.net.post(Post::Stop);
        join("wire", self.joins.net);
        self.output.stop();
        join("output", self.joins.output);
        self.records.stop();
        self.bodies.stop();
        for reader in self.joins.readers {
            join("reader", reader);
        }
        self.writer.stop();
        join("writer", self.joins.writer);
    }
}

/// Access tokens travel readable on plain HTTP, and what jobs do on both ports.
fn refuse_open_ports(config: &Config) -> Result<(), StartError> {
    if config.tls.is_some() {
        return Ok(());
    }
    for (what, address) in [("http", config.listen), ("worker", config.worker_listen)] {
        if address.ip().is_loopback() {
            continue;
        }
        if !config.allow_plaintext {
            return Err(StartError::Plaintext { what, address });
        }
        tracing::warn!(
            port = what,
            %address,
            "without TLS: whoever can listen on the way reads access tokens and jobs, and can use them"
        );
    }
    Ok(())
}

fn open_tls(files: ServerFiles, config: &mut Config) -> Result<Arc<Live>, StartError> {
    let configs = files.load().map_err(StartError::Tls)?;
    if let Some(why) = &configs.outdated {
        tracing::warn!(file = %files.cert.display(), %why, "no client accepts this certificate");
    }
    if configs.key_is_open {
        tracing::warn!(file = %files.key.display(), "others than its owner may read this key");
    }
    // No page of another site can be at a name that we have a certificate for.
    config.allowed_hosts.extend(configs.names.iter().cloned());
    Ok(Arc::new(Live::new(files, configs)))
}

fn start_threads(
    config: Config,
    (mut store, auth, tls): (SqliteStore, Arc<Auth>, Option<Arc<Live>>),
    (http_listener, worker_port): (TcpListener, net::Net),
    control: &Sender<Control>,
) -> Result<Threads, StartError> {
    let opening = store.opening().clone();
    let clock = Clock::resume(opening.stamp);
    let health = Arc::<Health>::default();
    let lanes = Arc::new(Lanes::new());
    let resident_bytes = Arc::<AtomicUsize>::default();
    let idle = Arc::<AtomicBool>::default();

    // Every mailbox first: each thread is born knowing the others.
    let dispatch_wake = Wake::parking();
    let (messages, message_inbox) = mailbox(&dispatch_wake);
    let (asks, ask_inbox) = mailbox(&dispatch_wake);
    let dispatch = dispatch::Handle::new(messages, asks);
    let (writes, writer_inbox) = mailbox(&Wake::parking());
    let writer = store::writer::Handle::new(writes, config.limits.intake_bytes_max);
    let (records, record_reader) = reader("records", &store, &dispatch)?;
    let (bodies, body_reader) = reader("bodies", &store, &dispatch)?;
    let net = worker_port.handle();
    let counters = Arc::<store::writer::Counters>::default();
    let commits = Arc::clone(&counters.under_way);
    let (output, output_thread) = start_output(&config, clock, &net, &records, commits)?;

    let dispatch_parts = dispatch::Parts {
        wake: Arc::clone(&dispatch_wake),
        messages: message_inbox,
        asks: ask_inbox,
        lanes: Arc::clone(&lanes),
        resident_bytes: Arc::clone(&resident_bytes),
        idle: Arc::clone(&idle),
        writer: writer.clone(),
        reader: bodies.clone(),
        net: net.clone(),
        clock,
        epochs: opening.epochs.clone(),
        probe_timeout: span(config.probe_timeout),
    };
    let engine = Engine::new(engine_config(&config, &opening));
    let dispatch_thread = dispatch::spawn(dispatch_parts, engine).map_err(StartError::Thread)?;

    // History, then the worker port, then the scan: dispatch's mailbox keeps that order.
    let needs = net::Needs {
        config: config.clone(),
        clock,
        identity: Identity {
            cluster: opening.cluster,
            epoch: opening.epoch,
            epoch_nonce: opening.epoch_nonce,
        },
        auth: Arc::clone(&auth),
        visits: visits(&auth, &writer, clock),
        tell: {
            let dispatch = dispatch.clone();
            Box::new(move |batch| dispatch.tell_all(batch.drain(..).map(Message::Worker)))
        },
        output: output.clone(),
        tls: tls.clone(),
    };
    let (mut port, mut opened) = (Some((worker_port, needs)), None);
    let live = recover(&mut store, &dispatch, &mut || {
        opened = port.take().map(|(port, needs)| port.spawn(needs));
    })?;
    let net_thread = opened
        .expect("recovery opens the port")
        .map_err(StartError::Thread)?;

    let writer_parts = store::writer::Parts {
        store: Box::new(store),
        inbox: writer_inbox,
        handle: writer.clone(),
        lanes,
        resident_bytes,
        idle,
        notify: notify(&dispatch, dispatch_wake, control),
        fatal: Box::new(|error| {
            // The next start finds out what the disk holds. Its submitters have been told; HTTP gets a moment to say so.
            tracing::error!(%error, "the outcome of a commit is unknown; ending to recover from disk");
            std::thread::park_timeout(LAST_WORDS);
            std::process::abort();
        }),
        health: Arc::clone(&health),
        counters: Arc::clone(&counters),
        clock,
        live,
        durability: config.durability,
        limits: config.limits.clone(),
    };
    let writer_thread = store::writer::spawn(writer_parts).map_err(StartError::Thread)?;

    let http_threads = config.http_threads;
    let http_parts = http::Parts {
        writer: writer.clone(),
        reader: records.clone(),
        dispatch: dispatch.clone(),
        net: net.clone(),
        output: output.clone(),
        auth,
        counters,
        counts: Arc::default(),
        health: Arc::clone(&health),
        clock,
        config: Arc::new(config),
        cluster: opening.cluster,
        epoch: opening.epoch,
        tls,
    };
    let http = http::spawn(http_listener, http_parts, http_threads).map_err(StartError::Thread)?;
    health.set_ready();
    let joins = Joins {
        dispatch: dispatch_thread,
        net: net_thread,
        output: output_thread,
        readers: [record_reader, body_reader],
        writer: writer_thread,
    };
    Ok(Threads {
        clock,
        health,
        dispatch,
        writer,
        records,
        bodies,
        net,
        output,
        http,
        joins,
    })
}

/// Tells dispatch what the store remembers, and lets workers in once the history is told; the scan of the untouched jobs
/// goes on behind them. Answers with the numbers of unfinished jobs.
pub fn recover(
    store: &mut dyn Store,
    dispatch: &dispatch::Handle,
    open_port: &mut dyn FnMut(),
) -> Result<LiveJobs, StoreError> {
    let mut is_open = false;
    let mut live = LiveJobs::default();
    let mut batch = Vec::with_capacity(RESTORE_BATCH);
    store.load(&mut |part| {
        let is_scan = matches!(part, Restore::Run(_));
        match &part {
            Restore::Job(job) => live.add(job.class.id, 1),
            Restore::Run(run) => live.add(run.class.id, u64::from(run.count)),
            Restore::Worker { .. } | Restore::Workers { .. } => {}
        }
        if batch.len() >= RESTORE_BATCH || (is_scan && !is_open) {
            dispatch.tell(Message::Restored(std::mem::take(&mut batch)));
        }
        if is_scan && !is_open {
            is_open = true;
            open_port();
        }
        batch.push(part);
    })?;
    dispatch.tell(Message::Restored(batch));
    if !is_open {
        open_port();
    }
    dispatch.tell(Message::Ready);
    Ok(live)
}

fn notify(
    dispatch: &dispatch::Handle,
    wake: Arc<Wake>,
    control: &Sender<Control>,
) -> Box<dyn Fn(Notice) + Send> {
    let (dispatch, control) = (dispatch.clone(), control.clone());
    Box::new(move |notice| match notice {
        Notice::Arrived => wake.wake(),
        Notice::Owed => dispatch.tell(Message::Owed),
        Notice::Committed { through } => dispatch.tell(Message::Committed { through }),
        Notice::Deposed => {
            dispatch.tell(Message::Deposed);
            control.send(Control::Deposed);
        }
    })
}

/// What the worker port tells of who came, for the writer.
fn visits(
    auth: &Arc<Auth>,
    writer: &store::writer::Handle,
    clock: Clock,
) -> Box<dyn Fn(Visit) + Send> {
    let (auth, writer) = (Arc::clone(auth), writer.clone());
    Box::new(move |visit| {
        let at = clock.wall();
        // The id of a token that was not proven is a stranger's word.
        let proven = visit.refused != net::UNPROVEN;
        let known = auth.get(&visit.token).filter(|_| proven);
        if let Some(known) = known.as_ref().filter(|_| visit.refused.is_empty())
            && known.touch(at)
        {
            let id = Arc::clone(&known.id);
            writer.used(TokenChange::Used { id, at });
        }
        writer.note(AuditEntry {
            at,
            token: known.map_or_else(|| Arc::from(""), |known| Arc::clone(&known.id)),
            from: Some(visit.from),
            action: Cow::Borrowed("worker_login"),
            object: visit.worker,
            jobs: None,
            requests: 1,
            status: 0,
            code: Cow::Borrowed(visit.refused),
        });
    })
}

fn start_output(
    config: &Config,
    clock: Clock,
    net: &net::Handle,
    records: &store::reader::Handle,
    commits: Arc<Commits>,
) -> Result<(output::Handle, JoinHandle<()>), StartError> {
    let net = net.clone();
    let answers = Box::new(move |answers: &mut Vec<Answer>| {
        net.post_all(answers.drain(..).map(Post::from));
    });
    let records = records.clone();
    let ends = Box::new(move |jobs: Vec<JobId>| -> output::PollEnds {
        let mut answer = records.ends(jobs);
        Box::new(move || match answer.try_recv() {
            Ok(Ok(ends)) => {
                let not_failed = ends.iter().filter(|end| end.1 != JobState::Failed);
                Some(Some(not_failed.map(|end| end.0).collect()))
            }
            Ok(Err(_)) | Err(TryRecvError::Closed) => Some(None),
            Err(TryRecvError::Empty) => None,
        })
    });
    let ways = output::Ways {
        answers,
        ends,
        commits,
    };
    output::spawn(output::Options::new(config), clock, ways).map_err(StartError::Thread)
}

fn reader(
    name: &str,
    store: &SqliteStore,
    dispatch: &dispatch::Handle,
) -> Result<(store::reader::Handle, JoinHandle<()>), StartError> {
    let (queries, inbox) = mailbox(&Wake::parking());
    let dispatch = dispatch.clone();
    let parts = store::reader::Parts {
        store: store.reader()?,
        inbox,
        fetched: Box::new(move |bodies| dispatch.tell(Message::Fetched { bodies })),
        fatal: Box::new(|error| {
            tracing::error!(%error, "the bodies of live jobs cannot be read; ending");
            std::process::abort();
        }),
    };
    let thread = store::reader::spawn(name, parts).map_err(StartError::Thread)?;
    Ok((store::reader::Handle::new(queries), thread))
}

/// What the engine is told at this start.
pub fn engine_config(config: &Config, opening: &Opening) -> hostler_engine::Config {
    hostler_engine::Config {
        epoch: if mutation::is("every start is the first") {
            Epoch::new(1)
        } else {
            opening.epoch
        },
        cluster: opening.cluster,
        worker_grace: span(config.worker_grace),
        beat: BEAT,
        kill_grace: KILL_GRACE,
        prefetch_max: PREFETCH_MAX,
        fetch_ahead: FETCH_AHEAD,
    }
}

fn span(duration: Duration) -> Span {
    Span::from_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
}

/// Written beside and renamed, so that a reader finds all of it or none.
fn publish(file: &Path, http: SocketAddr, workers: SocketAddr) -> io::Result<()> {
    let text = serde_json::json!({
        "http": http.to_string(),
        "workers": workers.to_string(),
        "pid": std::process::id(),
    });
    let new = file.with_extension("new");
    fs::write(&new, text.to_string())?;
    fs::rename(&new, file)
}

fn wait_for(signal: oneshot::Receiver<()>, within: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    if let Ok(runtime) = runtime {
        let waited = runtime.block_on(async { tokio::time::timeout(within, signal).await });
        if waited.is_err() {
            tracing::warn!("some work given to workers was not returned in time; it stays theirs");
        }
    }
}

fn join(name: &str, thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!(name, "a thread panicked");
    }
}

/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// The store.
    Store(StoreError),
    /// The access tokens.
    Auth(AuthError),
    /// TLS's files.
    Tls(FilesError),
    /// A plain port on an address that others can reach.
    Plaintext {
        /// Which: `http` or `worker`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
    },
    /// A port.
    Listen {
        /// Which: `http` or `worker`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The system refused a thread, a file or the like.
    Thread(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Auth(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Plaintext { what, address } => write!(
                f,
                "the {what} port {address} can be reached from elsewhere, and without TLS access tokens and jobs \
                 can be read on the way"
            ),
            Self::Listen {
                what,
                address,
                error,
            } => {
                write!(f, "cannot open the {what} port {address}: {error}")
            }
            Self::Thread(error) => write!(f, "the system refused what the server needs: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<AuthError> for StartError {
    fn from(error: AuthError) -> Self {
        Self::Auth(error)
    }
}

/// Why a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerError {
    /// Another server has taken over the data directory.
    Deposed,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deposed => f.write_str("another server has taken over this data directory"),
        }
    }
}

impl std::error::Error for ServerError {}
