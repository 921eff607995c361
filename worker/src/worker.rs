//! The worker: one loop round the session, its sockets and its processes.
//!
//! A turn takes what came (bounded from each source: one read a socket, a few from each pipe), hands it to the session,
//! carries out what the session asks for, and ends with one write to each socket. So a thousand no-op jobs cost one
//! read, one decode and one write. Commands are started only once the frame that says so has left for the kernel; the
//! session sees to that.
//!
//! Keeps P7 on its side: whatever is not read here stays in the pipe or the socket of whoever sends it.
//!
//! Not here: any rule about jobs (`session`), how a process is started or ended (`spawn`, `child`).

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hostler_tls::{ClientConfig, ClientFiles, Port, ServerName, Words};
use hostler_wire::allow::Handlers;
use hostler_wire::frame::{
    Command, Frame, Live, Login, LogsMode, Overflow, Probe, ProbeReply, Stream, Task, Work,
};
use hostler_wire::limits::{NAME_BYTES_MAX, RESULT_BYTES_MAX, SLOTS_MAX};
use hostler_wire::result::bounded;
use hostler_wire::token::Token;
use hostler_wire::{Detail, Fence, Outcome};
use mio::event::Event as Ready;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Waker};
use rustix::fs::Mode;
use serde_json::Value;
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};
use slab::Slab;

use crate::cgroup::{Delegated, GroupLimits, Groups};
use crate::child::{Child, Read};
use crate::clock::{Clock, Span, Time};
use crate::handlers::{Completions, Handler, HandlerError, Job, Pool, Registry, Watch, Way};
use crate::kin::Origin;
use crate::link::{Access, AccessFiles, Line, LineError, Link, READ_BYTES, Said, host_of};
use crate::notes::Notes;
use crate::oom::OomKills;
use crate::orphans::Orphans;
use crate::output::{Spool, SpoolLimits};
use crate::pipe::OutputPipe;
use crate::reaper::Reaper;
use crate::session::{self, Effect, Effects, Ending, Event, Exit, Session};
use crate::shim::ResourceLimit;
use crate::signs::Signs;
use crate::spawn::{SpawnError, Spawner, is_kept};
use crate::usage;

const WAKE: mio::Token = mio::Token(0);
const SIGNALS: mio::Token = mio::Token(1);
const CONTROL: mio::Token = mio::Token(2);
const OUTPUT: mio::Token = mio::Token(3);
const NOTES: mio::Token = mio::Token(4);
/// Four names a child from here on: its pidfd, its outputs, its input.
const CHILDREN: usize = 5;

const EVENTS_MAX: usize = 1_024;
/// Reads of one pipe in one turn.
const PIPE_READS: usize = 4;
/// Reads of one pipe after its job's end: as much as the largest pipe holds.
const LAST_READS: usize = 16;
/// Pipes served in one turn, and bytes after which the rest of them have theirs in the next: what is told to us, and what
/// we are to tell, waits for that long.
const PIPES_A_TURN: usize = 64;
const PIPES_TURN_BYTES: usize = 512 << 10;
/// Rounds of starting in one turn: a start that fails at once makes room for the next.
const START_ROUNDS: usize = 64;
/// How long output may go on being sent once all else is settled.
const LAST_OUTPUT: Span = Span::from_ms(2_000);

/// How a worker is set up: plain values, each of which has a sensible default but the servers and the token.
#[derive(Clone, Debug)]
pub struct Config {
    /// Servers' worker ports, `host:port`; one of them is active.
    pub servers: Vec<String>,
    /// The worker token.
    pub token: Token,
    /// The file it is read from again at each login.
    pub token_file: Option<PathBuf>,
    /// Whom to trust, and what to show; none: connections are plain.
    pub tls: Option<Arc<ClientConfig>>,
    /// The files these are read from again at each login.
    pub tls_files: Option<ClientFiles>,
    /// Stable name, unique among workers.
    pub name: String,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Queues it serves.
    pub queues: Vec<String>,
    /// What it says of itself.
    pub labels: Vec<(String, String)>,
    /// Who started it (an autoscaler's allocation), or empty.
    pub allocation: String,
    /// Between TERM and KILL, for jobs that do not say.
    pub kill_grace: Duration,
    /// How long a worker that was told to stop waits for what runs.
    pub drain_timeout: Duration,
    /// Leave after having had nothing to do for so long.
    pub idle_exit: Option<Duration>,
    /// Runs commands. An embedding program usually wants its handlers only.
    pub commands: bool,
    /// Runs these handlers, of those it has.
    pub handlers: Handlers,
    /// TERM and INT mean: drain. An embedding program may have other plans for them.
    pub signals: bool,
    /// Makes this process the reaper of all its descendants, so that none of a job's processes can hide from its end by
    /// losing its parents. Every child nobody else waits for is reaped then, so it is not for a program that starts
    /// processes of its own.
    pub subreaper: bool,
    /// How much unsent output it keeps, and where.
    pub spool: SpoolLimits,
    /// Variables of its own that its jobs see too, beside the usual ones; none that begins with `HOSTLER_`.
    pub inherit_env: Vec<String>,
    /// The mask of permissions its jobs begin with; its own if none. It is the process's, handlers' files included.
    pub umask: Option<u32>,
    /// Gives each command a control group of its own, below this one; needs [`shim`](Self::shim).
    pub groups: Option<Delegated>,
    /// What one command may use of the machine; needs [`groups`](Self::groups).
    pub group_limits: GroupLimits,
    /// Limits of the system for each of a command's processes; needs [`shim`](Self::shim).
    pub resource_limits: Vec<ResourceLimit>,
    /// A program that calls [`shim::exec`](crate::shim::exec) when its first argument is
    /// [`shim::ARGUMENT`](crate::shim::ARGUMENT), with those after it.
    pub shim: Option<PathBuf>,
}

impl Config {
    /// The defaults: one slot, the queue `default`, the machine's name, handlers only.
    pub fn new(servers: Vec<String>, token: Token) -> Self {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        Self {
            servers,
            token,
            token_file: None,
            tls: None,
            tls_files: None,
            name: if host.is_empty() {
                "worker".to_owned()
            } else {
                host
            },
            slots: 1,
            queues: vec!["default".to_owned()],
            labels: Vec::new(),
            allocation: String::new(),
            kill_grace: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(30),
            idle_exit: None,
            commands: false,
            handlers: Handlers::All,
            signals: true,
            subreaper: false,
            spool: SpoolLimits::default(),
            inherit_env: Vec::new(),
            umask: None,
            groups: None,
            group_limits: GroupLimits::default(),
            resource_limits: Vec::new(),
            shim: None,
        }
    }

    fn check(&self) -> Result<(), WorkerError> {
        let invalid = |what: String| Err(WorkerError::Invalid(what));
        if self.servers.is_empty() {
            return invalid("no server address is given".to_owned());
        }
        if self.tls.is_some() {
            for server in &self.servers {
                if ServerName::try_from(host_of(server)).is_err() {
                    return invalid(format!(
                        "\"{server}\" has no host that a certificate could be for"
                    ));
                }
            }
        }
        if self.slots == 0 || self.slots > SLOTS_MAX {
            return invalid(format!("slots is {}, must be 1 to {SLOTS_MAX}", self.slots));
        }
        if self.queues.is_empty() {
            return invalid("a worker serves at least one queue".to_owned());
        }
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX {
            let bytes = self.name.len();
            return invalid(format!(
                "the worker's name has {bytes} bytes, must have 1 to {NAME_BYTES_MAX}"
            ));
        }
        self.check_of_jobs()
    }

    /// What is to hold for its jobs.
    fn check_of_jobs(&self) -> Result<(), WorkerError> {
        let invalid = |what: String| Err(WorkerError::Invalid(what));
        if let Some(name) = self.inherit_env.iter().find(|name| is_kept(name)) {
            return invalid(format!(
                "jobs do not inherit {name}: what begins with HOSTLER_ is the worker's own"
            ));
        }
        if let Some(umask) = self.umask.filter(|umask| *umask > 0o777) {
            return invalid(format!("the umask is {umask:o}, must be 0 to 777"));
        }
        if self.group_limits.any() && self.groups.is_none() {
            let what = "a limit of a job's memory, processors or processes needs control groups";
            return invalid(what.to_owned());
        }
        if self.shim.is_none() && (self.groups.is_some() || !self.resource_limits.is_empty()) {
            let what = "control groups and limits of the system for jobs need a shim";
            return invalid(what.to_owned());
        }
        let wrong = self.resource_limits.iter().find_map(|it| it.check().err());
        wrong.map_or(Ok(()), invalid)
    }
}

/// Why a worker could not go on.
#[derive(Debug)]
pub enum WorkerError {
    /// A setting is out of its limits.
    Invalid(String),
    /// The server would not have us, or is not ours; a person has to change something.
    Refused(String),
    /// TLS does not come about: certificates, names, or a port that is plain.
    Tls(Words),
    /// Server and worker speak no version of the protocol in common.
    Version(String),
    /// The operating system refused what the loop cannot do without.
    Io(io::Error),
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(what) | Self::Refused(what) | Self::Version(what) => f.write_str(what),
            Self::Tls(words) => f.write_str(&words.what),
            Self::Io(error) => write!(f, "the worker's loop cannot go on: {error}"),
        }
    }
}

impl std::error::Error for WorkerError {}

impl From<io::Error> for WorkerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs a worker for the command line: commands and built-in handlers. Returns when it has drained.
pub fn run(config: Config) -> Result<Exit, WorkerError> {
    Worker {
        config,
        registry: Registry::default(),
        token_error: None,
        tls_error: None,
        stopper: Stopper::default(),
    }
    .run()
}

/// A worker in the making, for programs that bring their own handlers.
///
/// ```no_run
/// use hostler_worker::{Job, Worker};
/// use serde_json::json;
///
/// Worker::connect(["127.0.0.1:7441"])
///     .token("hostler_worker_…")
///     .slots(4)
///     .handler("resize", |job: &Job| {
///         let payload = job.json()?;
///         Ok(json!({"resized": payload["path"]}))
///     })
///     .run()?;
/// # Ok::<(), hostler_worker::WorkerError>(())
/// ```
#[derive(Debug)]
pub struct Worker {
    config: Config,
    registry: Registry,
    token_error: Option<String>,
    tls_error: Option<String>,
    stopper: Stopper,
}

impl Worker {
    /// A worker for whichever of these servers is active.
    pub fn connect<A: Into<String>>(servers: impl IntoIterator<Item = A>) -> Self {
        let token = Token {
            role: "worker".to_owned(),
            id: String::new(),
            secret: [0; 32],
        };
        Self {
            config: Config::new(servers.into_iter().map(Into::into).collect(), token),
            registry: Registry::default(),
            token_error: Some("no token is given".to_owned()),
            tls_error: None,
            stopper: Stopper::default(),
        }
    }

    /// The worker token, as it stands in `worker.token`. What is wrong with it, [`run`](Self::run) says.
    #[must_use]
    pub fn token(mut self, text: &str) -> Self {
        match Token::parse(text.trim()) {
            Ok(token) => {
                self.config.token = token;
                self.token_error = None;
            }
            Err(error) => self.token_error = Some(format!("the token is not valid: {error}")),
        }
        self
    }

    /// The file that the token came from. It is read again at each login, so that a token can be exchanged without
    /// stopping the worker; while it holds none, the last one stays.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.token_file = Some(path.into());
        self
    }

    /// Connects under TLS: whom to trust, and the certificate to show if the server wants one. The files are read again
    /// at each login.
    #[must_use]
    pub fn tls(mut self, files: &ClientFiles) -> Self {
        self.config.tls_files = Some(files.clone());
        match files.load(Port::Worker) {
            Ok(config) => self.config.tls = Some(config),
            Err(error) => self.tls_error = Some(error.to_string()),
        }
        self
    }

    /// Its stable name; the machine's, by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Jobs it runs at once; 1 by default.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.config.slots = slots;
        self
    }

    /// Queues it serves, in place of `default`.
    #[must_use]
    pub fn queues<Q: Into<String>>(mut self, queues: impl IntoIterator<Item = Q>) -> Self {
        self.config.queues = queues.into_iter().map(Into::into).collect();
        self
    }

    /// The one queue it serves, in place of `default`.
    #[must_use]
    pub fn queue(self, queue: impl Into<String>) -> Self {
        self.queues([queue])
    }

    /// Something it says of itself.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.labels.push((key.into(), value.into()));
        self
    }

    /// Runs commands too.
    #[must_use]
    pub fn commands(mut self) -> Self {
        self.config.commands = true;
        self
    }

    /// Leaves TERM and INT to the program around it; [`stopper`](Self::stopper) then ends it.
    #[must_use]
    pub fn without_signals(mut self) -> Self {
        self.config.signals = false;
        self
    }

    /// Any other setting.
    #[must_use]
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// A function that jobs can ask for by this name.
    #[must_use]
    pub fn handler<F>(mut self, name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(&Job) -> Result<Value, HandlerError> + Send + Sync + 'static,
    {
        self.registry.add(name.into(), handler);
        self
    }

    /// The same, for what is more than a function.
    #[must_use]
    pub fn handler_type(mut self, name: impl Into<String>, handler: impl Handler) -> Self {
        self.registry.add(name.into(), handler);
        self
    }

    /// Ends the worker from elsewhere.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Runs until it was told to stop and has drained.
    pub fn run(self) -> Result<Exit, WorkerError> {
        if let Some(error) = self.token_error.or(self.tls_error) {
            return Err(WorkerError::Invalid(error));
        }
        self.config.check()?;
        let mut registry = self.registry;
        registry.allow(self.config.handlers.clone());
        Loop::new(self.config, registry, &self.stopper)?.run()
    }
}

/// Tells a worker to stop: once in peace, twice now.
#[derive(Clone, Debug, Default)]
pub struct Stopper {
    shared: Arc<Stop>,
}

#[derive(Debug, Default)]
struct Stop {
    times: AtomicU32,
    waker: std::sync::OnceLock<Arc<Waker>>,
}

impl Stopper {
    /// What TERM does: starts nothing more, gives back what has not started, waits for the rest. Again: at once.
    pub fn stop(&self) {
        self.shared.times.fetch_add(1, Ordering::Release);
        if let Some(waker) = self.shared.waker.get() {
            // The loop is gone if this fails.
            drop(waker.wake());
        }
    }
}

/// Something that runs.
enum Running {
    Process(usize),
    Handler(Arc<Watch>),
}

struct Loop {
    config: Config,
    instance: u64,
    clock: Clock,
    now: Time,
    poll: Poll,
    stopper: Stopper,
    signals: Signals,
    session: Session,
    effects: Effects,
    access: Access,
    link: Link,
    said: Vec<Said>,
    welcomed: bool,
    /// Addresses that refused us for good before any welcomed us.
    refusals: usize,
    result_bytes_max: usize,
    pipe: OutputPipe,
    spool: Spool,
    registry: Registry,
    pool: Pool,
    spawner: Spawner,
    reaper: Reaper,
    oom_kills: OomKills,
    /// What an earlier run of this worker left running, until it has ended.
    orphans: Option<Orphans>,
    /// What commands say of their progress; none if there are no commands, or no place for it.
    notes: Option<Notes>,
    running: HashMap<Fence, Running>,
    children: Slab<(Child, Keep)>,
    /// Pipes that may have something to read.
    readable: VecDeque<(usize, Stream)>,
    /// Pipes not read because their job waits for room in the spool.
    blocked: Vec<(usize, Stream)>,
    /// Children whose main process has ended.
    ending: BTreeSet<usize>,
    buffer: Box<[u8]>,
    /// How it ends, and until when output may still be sent.
    leaving: Option<(Exit, Time)>,
}

/// What becomes of a child's output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    Drop,
    Block,
}

impl Loop {
    fn new(config: Config, registry: Registry, stopper: &Stopper) -> Result<Self, WorkerError> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
        // Only the first run of a stopper's worker is stopped by it; there is only one.
        drop(stopper.shared.waker.set(Arc::clone(&waker)));
        let signals = Signals::watch(&poll, config.signals)?;
        let notes = listen_for_notes(&poll, &config);
        let clock = Clock::start();
        let session = Session::new(
            session::Config {
                slots: config.slots,
                kill_grace: config.kill_grace.into(),
                drain_timeout: config.drain_timeout.into(),
                idle_exit: config.idle_exit.map(Span::from),
                inline: registry.inline(),
            },
            clock.now(),
        );
        Ok(Self {
            instance: getrandom::u64().map_err(io::Error::other)?,
            now: clock.now(),
            clock,
            poll,
            stopper: stopper.clone(),
            signals,
            session,
            effects: Vec::new(),
            access: Access {
                token: config.token.clone(),
                tls: config.tls.clone(),
                files: AccessFiles {
                    token: config.token_file.clone(),
                    tls: config.tls_files.clone(),
                },
            },
            link: Link::new(config.servers.clone(), Arc::clone(&waker)),
            said: Vec::new(),
            welcomed: false,
            refusals: 0,
            result_bytes_max: 0,
            pipe: OutputPipe::new(),
            spool: Spool::new(config.spool.clone()),
            registry,
            pool: Pool::new(Arc::new(Completions::new(waker)), clock),
            reaper: Reaper::new(config.subreaper),
            oom_kills: OomKills::find(),
            orphans: None,
            spawner: spawner(&config, notes.as_ref())?,
            notes,
            running: HashMap::new(),
            children: Slab::new(),
            readable: VecDeque::new(),
            blocked: Vec::new(),
            ending: BTreeSet::new(),
            buffer: vec![0; READ_BYTES].into(),
            leaving: None,
            config,
        })
    }

    fn run(mut self) -> Result<Exit, WorkerError> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        loop {
            self.link
                .dial(self.now, &mut self.access, self.poll.registry(), CONTROL);
            self.pipe.dial(
                self.now,
                &self.access,
                self.poll.registry(),
                OUTPUT,
                &self.spool,
            );
            let timeout = self.timeout();
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error.into());
            }
            self.now = self.clock.now();
            for event in &events {
                self.notice(event);
            }
            self.take_stops();
            if self.listen()? {
                // What was assigned starts before anybody's output is looked at.
                self.finish_turn()?;
            }
            self.take_completions();
            self.read_pipes();
            self.look_after_orphans();
            self.take_notes();
            self.look_after_ending();
            if self
                .session
                .next_deadline()
                .is_some_and(|due| due <= self.now)
            {
                self.tell_signs();
                self.tell(Event::Tick);
            }
            self.finish_turn()?;
            self.move_output();
            if let Some(exit) = self.may_leave() {
                return Ok(exit);
            }
        }
    }

    /// How long nothing is to be done unless something happens.
    fn timeout(&self) -> Option<Duration> {
        let control = self.link.line.as_ref().is_some_and(Line::wants_turn);
        if control || self.pipe.wants_turn() || !self.readable.is_empty() {
            return Some(Duration::ZERO);
        }
        let children = self
            .ending
            .iter()
            .filter_map(|&key| self.children[key].0.next_deadline());
        let due = children
            .chain(self.session.next_deadline())
            .chain(self.link.next_deadline())
            .chain(self.pipe.next_deadline(&self.spool))
            .chain(self.reaper.next_deadline())
            .chain(self.orphans.as_ref().map(Orphans::next_deadline))
            .chain(self.notes.as_ref().and_then(Notes::next_deadline))
            .chain(self.leaving.map(|(_, until)| until))
            .min()?;
        // A span of whole microseconds; the poll itself rounds up to whole milliseconds.
        Some(Duration::from(due - self.clock.now()))
    }

    fn notice(&mut self, event: &Ready) {
        match event.token() {
            WAKE | SIGNALS => {} // looked at in each turn
            CONTROL => {
                if let Some(line) = &mut self.link.line {
                    line.notice(event);
                }
            }
            OUTPUT => self.pipe.notice(event),
            NOTES => {
                if let Some(notes) = &mut self.notes {
                    notes.ready = true;
                }
            }
            mio::Token(name) => {
                let (key, part) = ((name - CHILDREN) / 4, (name - CHILDREN) % 4);
                // An event may be left over from a child that is gone; another's finds nothing to do and says so.
                let Some((child, _)) = self.children.get_mut(key) else {
                    return;
                };
                match part {
                    0 => {
                        child.notice_exit(self.now);
                        if child.exited() {
                            self.ending.insert(key);
                        }
                    }
                    1 => self.queue_pipe(key, Stream::Stdout),
                    2 => self.queue_pipe(key, Stream::Stderr),
                    _ => child.feed(),
                }
            }
        }
    }

    /// One event for the session, and what follows from it.
    fn tell(&mut self, event: Event) {
        self.session.handle(self.now, event, &mut self.effects);
        self.carry_out();
    }

    /// Before the session ends silent attempts, it hears of signs of life it does not know of.
    fn tell_signs(&mut self) {
        for fence in self.session.suspects(self.now) {
            let at = match self.running.get(&fence) {
                // It may be waiting in a write that we do not read.
                Some(&Running::Process(key)) if self.blocked.iter().any(|(k, _)| *k == key) => {
                    self.now
                }
                Some(&Running::Process(key)) => self.children[key].0.signs.active,
                Some(Running::Handler(watch)) => watch.signs().active,
                None => continue,
            };
            self.tell(Event::Active { fence, at });
        }
    }

    /// Signals, and whoever holds a stopper.
    fn take_stops(&mut self) {
        let mut bytes = [0; 16];
        let mut times = self.stopper.shared.times.swap(0, Ordering::AcqRel);
        while let Ok(n @ 1..) = self.signals.socket.read(&mut bytes) {
            times += u32::try_from(n).expect("no more than the buffer");
        }
        for _ in 0..times {
            self.tell(Event::Drain);
        }
    }

    /// Takes what the server says; tells whether it said anything.
    fn listen(&mut self) -> Result<bool, WorkerError> {
        let Some(line) = &mut self.link.line else {
            return Ok(false);
        };
        let login = || login(&self.config, self.instance, &self.registry, &self.session);
        let heard = line.turn(self.now, &mut self.buffer, login, &mut self.said);
        let mut said = std::mem::take(&mut self.said);
        let anything = !said.is_empty();
        for said in said.drain(..) {
            if self.link.line.is_none() {
                break; // the session has left this connection
            }
            match said {
                Said::Welcome(welcome, challenge) => {
                    self.spawner.origin = Origin::ours(challenge.cluster, self.instance);
                    if !self.welcomed && self.config.commands {
                        self.end_orphans();
                    }
                    self.welcomed = true;
                    self.link.welcomed();
                    let result_bytes_max = usize::try_from(welcome.result_bytes_max);
                    self.result_bytes_max = result_bytes_max
                        .unwrap_or(RESULT_BYTES_MAX)
                        .min(RESULT_BYTES_MAX);
                    let peer = self.link.line.as_ref().map(|line| line.peer.clone());
                    let server = peer.as_ref().map(|peer| peer.address);
                    self.pipe.follow(peer.map(|peer| (peer, welcome.session)));
                    tracing::info!(?server, epoch = %challenge.epoch, "connected");
                    self.tell(Event::Connected {
                        beat: Span::from_ms(welcome.beat_ms.into()),
                        lease: Span::from_ms(welcome.grace_ms.into()),
                        epoch: (challenge.epoch, challenge.epoch_nonce),
                    });
                }
                Said::Frame(Frame::Refused(refused)) => {
                    self.disconnect(&LineError::Refused(refused))
                }
                Said::Frame(Frame::NotLeader(other)) => {
                    self.disconnect(&LineError::NotLeader(other))
                }
                Said::Frame(frame) => {
                    if matches!(frame, Frame::Resumed(_)) {
                        self.link.resumed();
                    }
                    self.tell(Event::Received(frame));
                }
            }
        }
        self.said = said;
        match heard {
            Ok(true) => self.tell(Event::Heard),
            Ok(false) => {}
            Err(why) if why.is_final() && !self.welcomed => {
                // One of several may be no server of ours: the others are asked before a person is.
                self.refusals += 1;
                if self.refusals >= self.config.servers.len() {
                    if let LineError::Tls(words) = why {
                        return Err(WorkerError::Tls(words));
                    }
                    let kind = if why.is_of_version() {
                        WorkerError::Version
                    } else {
                        WorkerError::Refused
                    };
                    return Err(kind(why.to_string()));
                }
                self.disconnect(&why);
            }
            Err(why) => self.disconnect(&why),
        }
        Ok(anything)
    }

    /// The cluster is known now, and so is what an earlier run of this worker left running for it.
    fn end_orphans(&mut self) {
        let (name, grace) = (self.config.name.clone(), self.config.kill_grace.into());
        self.orphans = Orphans::find(name, self.spawner.origin, self.now, grace);
    }

    fn disconnect(&mut self, why: &LineError) {
        if self.link.line.is_some() {
            self.link.lost(self.now, why);
            self.pipe.follow(None);
            self.tell(Event::Disconnected);
        }
    }

    fn take_completions(&mut self) {
        while let Some(completion) = self.pool.done() {
            let fence = completion.fence;
            self.running.remove(&fence);
            let ending = completion.into_ending(self.result_bytes_max);
            self.tell(Event::Ended { fence, ending });
        }
    }

    /// What is to be told leaves; what waited for that starts.
    fn finish_turn(&mut self) -> Result<(), WorkerError> {
        for _ in 0..START_ROUNDS {
            self.session.flush(self.now, &mut self.effects);
            self.carry_out();
            let Some(line) = &mut self.link.line else {
                return Ok(());
            };
            if let Err(why) = line.flush() {
                self.disconnect(&why);
                continue;
            }
            if !line.is_flushed() || !self.session.awaits_write() {
                return Ok(());
            }
            self.tell(Event::Written);
        }
        // There is more to start: the next turn comes at once.
        self.stopper
            .shared
            .waker
            .get()
            .map_or(Ok(()), |waker| waker.wake())?;
        Ok(())
    }

    fn move_output(&mut self) {
        let login = || login(&self.config, self.instance, &self.registry, &self.session);
        self.pipe
            .turn(self.now, &mut self.buffer, login, &mut self.spool);
        if self.spool.made_room() {
            self.readable.extend(self.blocked.drain(..));
        }
    }

    fn may_leave(&self) -> Option<Exit> {
        let (exit, until) = self.leaving?;
        let told = self.link.line.as_ref().is_none_or(Line::is_flushed);
        (self.now >= until || (told && self.spool.is_empty())).then_some(exit)
    }

    fn carry_out(&mut self) {
        while !self.effects.is_empty() {
            // Carrying one out may add more, which follow in their turn.
            let mut effects = std::mem::take(&mut self.effects);
            for effect in effects.drain(..) {
                self.carry_out_one(effect);
            }
            if self.effects.is_empty() {
                self.effects = effects;
            }
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::Send(frame) => {
                if let Some(line) = &mut self.link.line {
                    line.send(&frame);
                }
            }
            Effect::Start { fence, work } => self.start(fence, work),
            Effect::End { fence, force } => self.end(fence, force),
            Effect::Forget(fence) => self.spool.forget(fence),
            Effect::ForgetSince(epoch) => self.spool.forget_since(epoch),
            Effect::Answer(probe) => self.answer(&probe),
            Effect::Reconnect(why) => {
                tracing::warn!(why, "leaving this connection");
                // The session knows already.
                self.link.lost(self.now, &LineError::Closed);
                self.pipe.follow(None);
            }
            Effect::Exit(exit) => self.leaving = Some((exit, self.now + LAST_OUTPUT)),
        }
    }

    fn start(&mut self, fence: Fence, work: Work) {
        tracing::trace!(job = fence.job.raw(), attempt = %fence.attempt, "starting");
        let keep = match (work.logs.mode, work.logs.overflow) {
            (LogsMode::None, _) => Keep::Nothing,
            (LogsMode::Keep | LogsMode::Stream, Overflow::Drop) => Keep::Drop,
            (LogsMode::Keep | LogsMode::Stream, Overflow::Block) => Keep::Block,
        };
        let ending = match work.task {
            Task::Command(command) => {
                let ending = self.start_command(fence, command, keep);
                if ending.is_none() && keep != Keep::Nothing {
                    self.spool.begin(fence, work.logs);
                }
                ending
            }
            Task::Handler(handler) => self.start_handler(fence, &handler.name, handler.payload),
        };
        if let Some(ending) = ending {
            self.session
                .handle(self.now, Event::Ended { fence, ending }, &mut self.effects);
        }
    }

    /// Starts a process, or says how that ended.
    fn start_command(&mut self, fence: Fence, command: Command, keep: Keep) -> Option<Ending> {
        if !self.config.commands {
            let message = "this worker runs handlers only".to_owned();
            return Some(failed_to_start(libc::EPERM, message));
        }
        let job = fence.job.raw();
        if self
            .orphans
            .as_ref()
            .is_some_and(|orphans| orphans.holds(job))
        {
            let message = "an earlier attempt, whose worker was killed, is still being ended here";
            return Some(Ending::NoRoom {
                message: message.to_owned(),
            });
        }
        let oom_kills = self.oom_kills.count();
        let spawned = match self.spawner.spawn(fence, &command, keep != Keep::Nothing) {
            Ok(spawned) => spawned,
            Err(SpawnError::Failed { errno, message }) => {
                return Some(failed_to_start(errno, message));
            }
            Err(SpawnError::NoRoom { message }) => return Some(Ending::NoRoom { message }),
        };
        self.reaper.started(spawned.pid);
        let key = self.children.insert((
            Child::new(
                fence,
                spawned,
                command.stdin.as_deref().map(Bytes::copy_from_slice),
                oom_kills,
                self.now,
            ),
            keep,
        ));
        if let Err(error) = self.register(key) {
            let (mut child, _) = self.children.remove(key);
            child.abandon(self.reaper.place());
            child.reap(&mut self.reaper);
            return Some(Ending::NoRoom {
                message: format!("cannot watch the process: {error}"),
            });
        }
        self.running.insert(fence, Running::Process(key));
        None
    }

    fn register(&mut self, key: usize) -> io::Result<()> {
        let name = |part| mio::Token(CHILDREN + 4 * key + part);
        let (child, _) = &mut self.children[key];
        let registry = self.poll.registry();
        let register = |fd: BorrowedFd<'_>, part, interest| {
            registry.register(&mut SourceFd(&fd.as_raw_fd()), name(part), interest)
        };
        register(
            std::os::fd::AsFd::as_fd(&child.pidfd),
            0,
            Interest::READABLE,
        )?;
        for (part, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
            if let Some(pipe) = child.pipe(stream) {
                register(pipe, part, Interest::READABLE)?;
            }
        }
        if let Some(feed) = &child.stdin {
            register(std::os::fd::AsFd::as_fd(&feed.pipe), 3, Interest::WRITABLE)?;
        }
        child.feed();
        Ok(())
    }

    /// Runs it at once, or hands it to a thread.
    fn start_handler(&mut self, fence: Fence, name: &str, payload: Bytes) -> Option<Ending> {
        let done = |detail| Ending::Done {
            outcome: Outcome::Succeeded,
            detail,
            told: false,
        };
        match self.registry.find(name) {
            None => Some(Ending::Done {
                outcome: Outcome::NoSuchHandler,
                detail: Some(Box::new(Detail {
                    message: format!("this worker does not run the handler {name}"),
                    ..Detail::default()
                })),
                told: false,
            }),
            Some(Way::Noop) => Some(done(None)),
            Some(Way::Echo) if payload.is_empty() => Some(done(None)),
            Some(Way::Echo) => {
                let result = bounded(payload.to_vec(), self.result_bytes_max);
                Some(done(Some(Box::new(Detail {
                    result,
                    ..Detail::default()
                }))))
            }
            // A copy: the payload is a piece of all that was read with it, which a long attempt must not pin.
            Some(Way::Thread(handler)) => {
                match self
                    .pool
                    .run(fence, Bytes::copy_from_slice(&payload), handler)
                {
                    Ok(watch) => {
                        self.running.insert(fence, Running::Handler(watch));
                        None
                    }
                    Err(error) => Some(Ending::NoRoom {
                        message: format!("no thread for the handler: {error}"),
                    }),
                }
            }
        }
    }

    fn end(&mut self, fence: Fence, force: bool) {
        match self.running.get(&fence) {
            Some(Running::Handler(watch)) => watch.cancel(),
            Some(&Running::Process(key)) => {
                let (child, _) = &mut self.children[key];
                child.end(self.now, force, self.reaper.place());
                if child.exited() {
                    self.ending.insert(key);
                }
            }
            None => {}
        }
    }

    /// A pipe has something to read. It stands in line once, however often the poll says so.
    fn queue_pipe(&mut self, key: usize, stream: Stream) {
        if let Some((child, _)) = self.children.get_mut(key)
            && !std::mem::replace(child.queued(stream), true)
        {
            self.readable.push_back((key, stream));
        }
    }

    fn read_pipes(&mut self) {
        let mut bytes = 0;
        for _ in 0..self.readable.len().min(PIPES_A_TURN) {
            if bytes < PIPES_TURN_BYTES
                && let Some((key, stream)) = self.readable.pop_front()
            {
                bytes += self.read_pipe(key, stream, false);
            }
        }
    }

    /// Takes what commands say of their progress, and answers them.
    fn take_notes(&mut self) {
        let Some(notes) = &mut self.notes else {
            return;
        };
        for note in notes.take(self.now) {
            let child = match self.running.get(&note.fence) {
                Some(&Running::Process(key)) => Some(&mut self.children[key].0),
                Some(Running::Handler(_)) | None => None,
            };
            let taken = match child {
                None => Err("no such attempt runs here"),
                Some(child) if !note.is_from(child.pid, child.marks()) => {
                    Err("it comes from a process that is not the attempt's")
                }
                Some(child) => {
                    child
                        .signs
                        .say(self.now, note.progress, note.text.as_deref());
                    Ok(())
                }
            };
            notes.reply(&note, taken);
        }
    }

    /// Reads a pipe a few times, and tells how many bytes came. `last`: the job is over, so its pipes are read whatever the
    /// room.
    fn read_pipe(&mut self, key: usize, stream: Stream, last: bool) -> usize {
        let Some((child, keep)) = self.children.get_mut(key) else {
            return 0;
        };
        let mut bytes_read = 0;
        let insist = *keep == Keep::Block && (last || child.exited());
        let offset = |child: &Child| match stream {
            Stream::Stdout => child.bytes().0,
            Stream::Stderr => child.bytes().1,
        };
        for _ in 0..if last { LAST_READS } else { PIPE_READS } {
            if *keep == Keep::Block
                && !insist
                && !self.spool.has_room(child.fence, READ_BYTES / PIPE_READS)
            {
                self.blocked.push((key, stream));
                return bytes_read;
            }
            let at = offset(child);
            match child.read(stream, &mut self.buffer[..READ_BYTES / PIPE_READS]) {
                Read::Bytes(n) => {
                    bytes_read += n;
                    child.signs.printed(self.now);
                    let bytes = &self.buffer[..n];
                    self.spool
                        .push(child.fence, stream, at, Clock::wall_ms(), bytes, insist);
                }
                Read::Later | Read::End => {
                    // One that stands in line still finds out for itself.
                    if !last {
                        *child.queued(stream) = false;
                    }
                    return bytes_read;
                }
            }
        }
        if !last {
            self.readable.push_back((key, stream));
        }
        bytes_read
    }

    /// Processes of ours that are nobody's main process.
    fn look_after_orphans(&mut self) {
        let due = self
            .reaper
            .next_deadline()
            .is_some_and(|due| due <= self.now);
        if due || !self.ending.is_empty() {
            self.reaper.look(self.now);
            if let Some(groups) = self.spawner.groups.as_mut().filter(|it| it.any_left()) {
                groups.clear();
            }
        }
        if self
            .orphans
            .as_mut()
            .is_some_and(|orphans| orphans.are_over(self.now))
        {
            self.orphans = None;
        }
    }

    /// Ends of main processes: reads on, and reports when all that is waited for has come.
    fn look_after_ending(&mut self) {
        let keys: Vec<usize> = self.ending.iter().copied().collect();
        for key in keys {
            for stream in [Stream::Stdout, Stream::Stderr] {
                self.read_pipe(key, stream, true);
            }
            if self.children[key].0.is_over(self.now, &self.reaper) {
                self.bury(key);
            }
        }
    }

    fn bury(&mut self, key: usize) {
        // A group that has just gone may have said something since its pipes were last read.
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.read_pipe(key, stream, true);
        }
        self.ending.remove(&key);
        let (mut child, keep) = self.children.remove(key);
        self.readable.retain(|&(k, _)| k != key);
        self.blocked.retain(|&(k, _)| k != key);
        self.running.remove(&child.fence);
        let (mut outcome, detail, told) = child.reap(&mut self.reaper);
        if let (Some(groups), Some(group)) = (&mut self.spawner.groups, child.group.take()) {
            groups.bury(group);
        }
        let killed = outcome == (Outcome::Signalled { signal: 9 });
        if killed && !told && self.oom_kills.claim(child.oom_kills) {
            outcome = Outcome::OutOfMemory;
        }
        if keep != Keep::Nothing {
            let (stdout, stderr) = child.bytes();
            self.spool.close(child.fence, stdout, stderr);
        }
        let ending = Ending::Done {
            outcome,
            detail: Some(Box::new(detail)),
            told,
        };
        self.tell(Event::Ended {
            fence: child.fence,
            ending,
        });
    }

    /// Says how the attempts are doing; never asks them.
    fn answer(&mut self, probe: &Probe) {
        let groups: Vec<u32> = probe
            .fences
            .iter()
            .filter_map(|fence| self.group_of(*fence))
            .collect();
        let usage = if groups.is_empty() {
            HashMap::new()
        } else {
            usage::groups(&groups)
        };
        let mut lives = Vec::new();
        for &fence in &probe.fences {
            let Some(started) = self.session.started(fence) else {
                continue;
            };
            let mut live = Live {
                fence: Some(fence),
                started,
                ..Live::default()
            };
            match self.running.get(&fence) {
                Some(&Running::Process(key)) => {
                    let (child, _) = &self.children[key];
                    live.pid = child.pid.as_raw_nonzero().get().unsigned_abs();
                    let used = usage.get(&live.pid).copied().unwrap_or_default();
                    live.processes = used.processes;
                    live.cpu_ms = used.cpu_ms;
                    live.rss_bytes = used.rss_bytes;
                    if let Some(group) = &child.group {
                        // Whoever left the process group is counted as well.
                        let all = group.used();
                        live.processes = all.processes;
                        live.cpu_ms = all.user_ms + all.system_ms;
                        live.rss_bytes = all.memory_bytes.unwrap_or(used.rss_bytes);
                    }
                    (live.stdout_bytes, live.stderr_bytes) = child.bytes();
                    tell(&mut live, &child.signs, self.now);
                }
                Some(Running::Handler(watch)) => tell(&mut live, &watch.signs(), self.now),
                None => {}
            }
            lives.push(live);
        }
        let reply = ProbeReply {
            ask: probe.ask,
            lives,
        };
        self.effects.push(Effect::Send(Frame::ProbeReply(reply)));
    }

    fn group_of(&self, fence: Fence) -> Option<u32> {
        match self.running.get(&fence)? {
            Running::Process(key) => Some(
                self.children[*key]
                    .0
                    .pid
                    .as_raw_nonzero()
                    .get()
                    .unsigned_abs(),
            ),
            Running::Handler(_) => None,
        }
    }
}

impl Drop for Loop {
    /// Nobody would look after them: whatever still runs is killed with all its processes.
    fn drop(&mut self) {
        for (_, (child, _)) in &mut self.children {
            child.abandon(self.reaper.place());
            child.reap(&mut self.reaper);
        }
        for running in self.running.values() {
            if let Running::Handler(watch) = running {
                watch.cancel();
            }
        }
    }
}

fn spawner(config: &Config, notes: Option<&Notes>) -> Result<Spawner, WorkerError> {
    if let Some(umask) = config.umask {
        rustix::process::umask(Mode::from_bits_truncate(umask));
    }
    let groups = config.groups.as_ref();
    let groups = groups.map(|place| Groups::open(place, config.group_limits.clone()));
    let groups = groups.transpose().map_err(WorkerError::Invalid)?;
    Ok(Spawner::new(config.name.clone())
        .with_progress(notes.map(|notes| notes.path().to_owned()))
        .with_environment(&config.inherit_env)
        .with_shim(config.shim.clone(), config.resource_limits.clone(), groups))
}

/// A worker does well without: its commands cannot tell their progress then, and do not find the variable.
fn listen_for_notes(poll: &Poll, config: &Config) -> Option<Notes> {
    if !config.commands {
        return None;
    }
    let listen = || -> io::Result<Notes> {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
        let notes = Notes::listen(&parent.map_or_else(std::env::temp_dir, Into::into))?;
        let fd = notes.fd().as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), NOTES, Interest::READABLE)?;
        Ok(notes)
    };
    listen()
        .inspect_err(|error| tracing::warn!(%error, "commands cannot tell their progress"))
        .ok()
}

fn tell(live: &mut Live, signs: &Signs, now: Time) {
    let since = |at: Time| -> u64 { (now - at).us() / 1_000 };
    live.output_age_ms = signs.output_at.map(&since);
    live.quiet_ms = since(signs.active);
    live.progress = signs.progress;
    live.note.clone_from(&signs.note);
}

fn failed_to_start(errno: i32, message: String) -> Ending {
    let detail = Some(Box::new(Detail {
        message,
        ..Detail::default()
    }));
    Ending::Done {
        outcome: Outcome::SpawnFailed { errno },
        detail,
        told: false,
    }
}

fn login(config: &Config, instance: u64, registry: &Registry, session: &Session) -> Login {
    let session::Resume {
        held,
        last_report,
        epochs,
    } = session.resume();
    Login {
        proof: [0; 32],
        name: config.name.clone(),
        instance,
        session: None,
        slots: config.slots,
        commands: config.commands,
        handlers: registry.names(),
        queues: config.queues.clone(),
        labels: config.labels.clone(),
        allocation: config.allocation.clone(),
        held,
        last_report,
        epochs,
    }
}

/// A socket that a byte comes to for each TERM and INT, for as long as this lives.
struct Signals {
    socket: UnixStream,
    handlers: Vec<SigId>,
}

impl Signals {
    fn watch(poll: &Poll, wanted: bool) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let mut signals = Self {
            socket,
            handlers: Vec::new(),
        };
        if wanted {
            let fd = signals.socket.as_raw_fd();
            poll.registry()
                .register(&mut SourceFd(&fd), SIGNALS, Interest::READABLE)?;
            for signal in [SIGTERM, SIGINT] {
                let handler = signal_hook::low_level::pipe::register(signal, theirs.try_clone()?)?;
                signals.handlers.push(handler);
            }
        }
        Ok(signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for handler in self.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }
}
