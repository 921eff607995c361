//! One start of the server: the real dispatch and writer, turn by turn, and models of the threads that own sockets and
//! read-only connections.
//!
//! Between dispatch and writer the facts are looked at; between dispatch and the sockets the frames are. Everything
//! else goes the way it goes in the real process.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::BytesMut;
use hostler_engine::lanes::Lanes;
use hostler_engine::{Engine, Fact, Span, Time};
use hostler_server::clock::{Clock, Readings};
use hostler_server::config::{Config, Durability};
use hostler_server::dispatch::{self, Dispatch, Message};
use hostler_server::mailbox::{Receiver, Sender, Wake, mailbox};
use hostler_server::net::{self, Arrival, BEAT_MS, Post};
use hostler_server::output::{self, Answer, Keeper, PipeId, Ways};
use hostler_server::server::{engine_config, recover};
use hostler_server::store::reader::{self, Query};
use hostler_server::store::seam::{Opening, Read, Store};
use hostler_server::store::writer::{self, Notice, Write, Writer};
use hostler_wire::SessionId;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Beat, Frame, RefuseCode, Refused, Role, Welcome};
use hostler_wire::handshake::{Identity, ServerHandshake, Verifier};
use hostler_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use tokio::sync::oneshot;

use crate::disk::ModelStore;
use crate::files::ModelFiles;
use crate::network::ConnId;
use crate::options::Options;
use crate::order;

/// A sign of life is passed on this often, even if no frame is whole.
const SIGN_OF_LIFE: Span = Span::from_millis(1_000);

/// A connection, as the server sees it.
#[derive(Debug)]
struct Line {
    stage: Stage,
    decoder: Decoder,
    heard: Time,
    /// In the order in which they were accepted.
    number: u64,
}

#[derive(Debug)]
enum Stage {
    Hello,
    Login(Box<ServerHandshake>),
    Control(SessionId),
    /// Output, and of which session's worker.
    Pipe(PipeId, SessionId),
}

/// What the wire thread wants done on a connection.
#[derive(Debug)]
pub(crate) enum Said {
    Bytes(ConnId, BytesMut),
    /// It hangs up.
    Close(ConnId),
}

/// See the module.
pub(crate) struct Server {
    pub(crate) opening: Opening,
    /// Which start this is; epochs may come again with a backup.
    pub(crate) life: u32,
    pub(crate) clock: Clock,
    pub(crate) dispatch: Dispatch,
    pub(crate) tell: dispatch::Handle,
    /// Since it is ready.
    pub(crate) writer: Option<Writer>,
    pub(crate) submit: writer::Handle,
    writes: Sender<Write>,
    facts: Receiver<Write>,
    pub(crate) queries: Receiver<Query>,
    pub(crate) reader: Box<dyn Read>,
    pub(crate) posts: Receiver<Post>,
    pub(crate) output: output::Handle,
    pub(crate) keeper: Keeper,
    pipes: BTreeMap<PipeId, ConnId>,
    /// A sync of output is under way.
    pub(crate) storing: bool,
    pub(crate) output_at: Option<u64>,
    /// It was told to stop; dispatch answers when nothing is in flight.
    pub(crate) stopping: Option<oneshot::Receiver<()>>,
    /// Facts that dispatch has given to the writer.
    pub(crate) facts_passed: u64,
    /// Facts on disk when it started.
    pub(crate) facts_before: u64,
    /// It ends.
    pub(crate) stopped: bool,
    /// Dispatch has heard of that.
    pub(crate) gives_nothing: bool,
    /// What dispatch is still to be told of recovery.
    staged: VecDeque<Message>,
    becoming: Option<Box<writer::Parts>>,
    pub(crate) port_open: bool,
    /// The process is about to end by itself.
    pub(crate) doomed: Arc<AtomicBool>,
    lines: BTreeMap<ConnId, Line>,
    pub(crate) sessions: BTreeMap<SessionId, ConnId>,
    accepted: u64,
    identity: Identity,
    grace_ms: u32,
    verifier: Verifier,
    nonce: u64,
    pub(crate) turn_at: Option<u64>,
    pub(crate) gather_at: Option<u64>,
    pub(crate) committing: bool,
    pub(crate) read_at: Option<u64>,
    pub(crate) post_at: Option<u64>,
    pub(crate) turns: u64,
    pub(crate) idle: order::Idle,
    /// The turn after which the engine is looked at.
    pub(crate) check_at: u64,
    spare: Vec<Post>,
}

impl Server {
    /// Opens the disk, and tells dispatch the first part of what it remembers.
    pub(crate) fn start(
        mut store: ModelStore,
        files: &ModelFiles,
        options: &Options,
        readings: &'static Readings,
        verifier: Verifier,
    ) -> Option<Self> {
        let opening = store.opening().clone();
        let clock = Clock::resume_given(readings, opening.stamp);
        let config = config(options);
        let (post_sender, posts) = mailbox(&Wake::parking());
        let net = net::Handle::new(post_sender);
        let (output, keeper) = open_output(files, options, clock, &net)?;
        let wake = Wake::parking();
        let (messages, message_inbox) = mailbox(&wake);
        let (asks, ask_inbox) = mailbox(&wake);
        let tell = dispatch::Handle::new(messages, asks.clone());
        let (writes, write_inbox) = mailbox(&Wake::parking());
        let (fact_sender, facts) = mailbox(&Wake::parking());
        let (query_sender, queries) = mailbox(&Wake::parking());
        let submit = writer::Handle::new(writes.clone(), config.limits.intake_bytes_max);
        let lanes = Arc::new(Lanes::new());
        let resident_bytes = Arc::<AtomicUsize>::default();
        let idle = Arc::<AtomicBool>::default();
        let parts = dispatch::Parts {
            wake,
            messages: message_inbox,
            asks: ask_inbox,
            lanes: Arc::clone(&lanes),
            resident_bytes: Arc::clone(&resident_bytes),
            idle: Arc::clone(&idle),
            writer: writer::Handle::new(fact_sender, usize::MAX),
            reader: reader::Handle::new(query_sender),
            net,
            clock,
            epochs: opening.epochs.clone(),
            probe_timeout: Span::from_millis(250),
        };
        let engine = Engine::new(engine_config(&config, &opening));
        let dispatch = Dispatch::new(parts, engine);

        let (stage, staged) = mailbox(&Wake::parking());
        let stage = dispatch::Handle::new(stage, asks);
        let (mut history, mut scan) = (Vec::new(), Vec::new());
        let live = recover(&mut store, &stage, &mut || {
            staged.drain(&mut history, usize::MAX);
        });
        let live = live.expect("the model disk can be read");
        staged.drain(&mut scan, usize::MAX);
        tell.tell_all(history);

        let doomed = Arc::<AtomicBool>::default();
        let reader = store.reader().expect("the model disk can be read");
        let notify = {
            let (tell, doomed) = (tell.clone(), Arc::clone(&doomed));
            move |notice| match notice {
                Notice::Arrived => {}
                Notice::Owed => tell.tell(Message::Owed),
                Notice::Committed { through } => tell.tell(Message::Committed { through }),
                Notice::Deposed => {
                    tell.tell(Message::Deposed);
                    doomed.store(true, Ordering::Relaxed);
                }
            }
        };
        let fatal = {
            let doomed = Arc::clone(&doomed);
            move |_| doomed.store(true, Ordering::Relaxed)
        };
        let becoming = writer::Parts {
            store: Box::new(store),
            inbox: write_inbox,
            handle: submit.clone(),
            lanes,
            resident_bytes,
            idle,
            notify: Box::new(notify),
            fatal: Box::new(fatal),
            health: Arc::default(),
            counters: Arc::default(),
            clock,
            live,
            durability: options.durability,
            limits: config.limits,
        };
        Some(Self {
            identity: Identity {
                cluster: opening.cluster,
                epoch: opening.epoch,
                epoch_nonce: opening.epoch_nonce,
            },
            opening,
            life: 0,
            clock,
            dispatch,
            tell,
            writer: None,
            submit,
            writes,
            facts,
            queries,
            reader,
            posts,
            output,
            keeper,
            pipes: BTreeMap::new(),
            storing: false,
            output_at: None,
            stopping: None,
            facts_passed: 0,
            facts_before: 0,
            stopped: false,
            gives_nothing: false,
            staged: scan.into(),
            becoming: Some(Box::new(becoming)),
            port_open: false,
            doomed,
            lines: BTreeMap::new(),
            sessions: BTreeMap::new(),
            accepted: 0,
            grace_ms: u32::try_from(options.grace / 1_000).expect("seconds"),
            verifier,
            nonce: 0,
            turn_at: None,
            gather_at: None,
            committing: false,
            read_at: None,
            post_at: None,
            turns: 0,
            idle: order::Idle::default(),
            check_at: options.check_every,
            spare: Vec::new(),
        })
    }

    /// The next step of a start: the port opens, then part after part of the scan, at last it is ready. False after that.
    pub(crate) fn recover_on(&mut self) -> bool {
        if !self.port_open {
            self.port_open = true;
            return true;
        }
        if let Some(message) = self.staged.pop_front() {
            self.tell.tell(message);
        }
        if self.staged.is_empty()
            && let Some(parts) = self.becoming.take()
        {
            self.writer = Some(Writer::new(*parts));
        }
        self.writer.is_none()
    }

    /// Whether it hears what comes there: a stopping one lets nobody new in.
    pub(crate) fn takes(&self, conn: ConnId) -> bool {
        self.port_open && (self.stopping.is_none() || self.lines.contains_key(&conn))
    }

    /// What dispatch has just given to the writer.
    pub(crate) fn pass_facts(&mut self, look: &mut dyn FnMut(&[Fact])) {
        let mut writes = Vec::new();
        if self.facts.drain(&mut writes, usize::MAX) == 0 {
            return;
        }
        for write in writes {
            if let Write::Facts { facts, .. } = &write {
                self.facts_passed += facts.len() as u64;
                look(facts);
            }
            self.writes.send(write);
        }
    }

    /// Something came on a connection.
    pub(crate) fn hear(&mut self, conn: ConnId, bytes: &BytesMut, out: &mut Vec<Said>) -> u64 {
        let now = self.clock.now();
        let accepted = &mut self.accepted;
        let line = self.lines.entry(conn).or_insert_with(|| {
            *accepted += 1;
            Line {
                stage: Stage::Hello,
                decoder: Decoder::new(),
                heard: now,
                number: *accepted,
            }
        });
        line.decoder.buffer().extend_from_slice(bytes);
        let mut frames = Vec::new();
        let (mut count, weight) = (0, bytes.len());
        let mut damaged = false;
        loop {
            let Some(line) = self.lines.get_mut(&conn) else {
                return count;
            };
            let frame = match line.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => {
                    damaged = true;
                    break;
                }
            };
            count += 1;
            if let Stage::Control(_) | Stage::Pipe(..) = line.stage {
                frames.push(frame);
            } else {
                self.greet(conn, frame, now, out);
            }
        }
        self.pass_on(conn, frames, weight, now);
        if damaged {
            self.part(conn, out);
            out.push(Said::Close(conn));
        }
        count
    }

    /// What a connection said goes to whom it concerns.
    fn pass_on(&mut self, conn: ConnId, frames: Vec<Frame>, weight: usize, now: Time) {
        let line = self.lines.get_mut(&conn).expect("looked at just now");
        if let Stage::Pipe(pipe, _) = line.stage {
            if !frames.is_empty() {
                self.output.frames(pipe, frames, weight);
            }
        } else if let Stage::Control(session) = line.stage
            && (!frames.is_empty() || now.since(line.heard) >= SIGN_OF_LIFE)
        {
            line.heard = now;
            let arrival = Arrival::Frames { session, frames };
            self.tell.tell(Message::Worker(arrival));
        }
    }

    fn greet(&mut self, conn: ConnId, frame: Frame, now: Time, out: &mut Vec<Said>) {
        let line = self.lines.get_mut(&conn).expect("it has just spoken");
        match (std::mem::replace(&mut line.stage, Stage::Hello), frame) {
            (Stage::Hello, Frame::Hello(hello)) => {
                self.nonce += 1;
                let mut random = [7; 32];
                random[..8].copy_from_slice(&self.nonce.to_le_bytes());
                let begun =
                    ServerHandshake::new(self.identity, &hello, Some(&self.verifier), random);
                let (handshake, challenge) = begun.expect("the worker is ours");
                line.stage = Stage::Login(Box::new(handshake));
                line.decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
                out.push(Said::Bytes(conn, encoded(&Frame::Challenge(challenge))));
            }
            (Stage::Login(handshake), Frame::Login(login)) if handshake.role() == Role::Output => {
                handshake.login(&login).expect("the worker is ours");
                self.open_pipe(conn, login.session, out);
            }
            (Stage::Login(handshake), Frame::Login(login)) => {
                handshake.login(&login).expect("the worker is ours");
                let session = SessionId::new(line.number);
                line.stage = Stage::Control(session);
                line.heard = now;
                line.decoder.accept_up_to(FRAME_BYTES_MAX);
                self.sessions.insert(session, conn);
                let welcome = Frame::Welcome(self.welcome(session));
                out.push(Said::Bytes(conn, encoded(&welcome)));
                let arrival = Arrival::Joined { session, login };
                self.tell.tell(Message::Worker(arrival));
            }
            (_, frame) => panic!("{} before its time", frame.name()),
        }
    }

    /// A worker has one pipe: the newer one, and while its session lasts.
    fn open_pipe(&mut self, conn: ConnId, session: Option<SessionId>, out: &mut Vec<Said>) {
        let session = session.filter(|session| self.sessions.contains_key(session));
        let Some(session) = session else {
            let refused = Frame::Refused(Refused {
                code: RefuseCode::NoSession,
                message: "it has ended".to_owned(),
            });
            self.lines.remove(&conn);
            out.push(Said::Bytes(conn, encoded(&refused)));
            return out.push(Said::Close(conn));
        };
        self.close_pipe_of(session, out);
        let line = self.lines.get_mut(&conn).expect("it has just spoken");
        let pipe = line.number;
        line.stage = Stage::Pipe(pipe, session);
        line.decoder.accept_up_to(FRAME_BYTES_MAX);
        self.pipes.insert(pipe, conn);
        let welcome = Frame::Welcome(self.welcome(session));
        out.push(Said::Bytes(conn, encoded(&welcome)));
    }

    fn close_pipe_of(&mut self, session: SessionId, out: &mut Vec<Said>) {
        let is_its = |line: &Line| matches!(line.stage, Stage::Pipe(_, of) if of == session);
        let conns: Vec<ConnId> = self
            .lines
            .iter()
            .filter(|(_, line)| is_its(line))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            self.part(conn, out);
            out.push(Said::Close(conn));
        }
    }

    fn welcome(&self, session: SessionId) -> Welcome {
        Welcome {
            session,
            beat_ms: BEAT_MS,
            grace_ms: self.grace_ms,
            result_bytes_max: 256 << 10,
        }
    }

    /// A connection is gone.
    pub(crate) fn part(&mut self, conn: ConnId, out: &mut Vec<Said>) {
        let Some(line) = self.lines.remove(&conn) else {
            return;
        };
        match line.stage {
            Stage::Control(session) => {
                self.sessions.remove(&session);
                self.tell.tell(Message::Worker(Arrival::Left { session }));
                self.close_pipe_of(session, out);
            }
            Stage::Pipe(pipe, _) => {
                self.pipes.remove(&pipe);
                self.output.pipe_closed(pipe);
            }
            Stage::Hello | Stage::Login(_) => {}
        }
    }

    /// What dispatch wants sent.
    pub(crate) fn post(&mut self, out: &mut Vec<Said>) {
        let mut posts = std::mem::take(&mut self.spare);
        self.posts.drain(&mut posts, usize::MAX);
        // Dispatch gathers by session in a table without an order; a run must have one.
        posts.sort_by_key(|post| match post {
            Post::Control { session, .. } | Post::Close { session, .. } => session.raw(),
            Post::Stocked { .. }
            | Post::Pipe { .. }
            | Post::PipeTaken { .. }
            | Post::PipeRefused { .. }
            | Post::TokensChanged
            | Post::StopAccepting
            | Post::Stop => 0,
        });
        for post in posts.drain(..) {
            match post {
                Post::Control { session, bytes } => {
                    if let Some(conn) = self.sessions.get(&session) {
                        out.push(Said::Bytes(*conn, bytes));
                    }
                }
                Post::Close {
                    session,
                    code,
                    message,
                } => {
                    if let Some(&conn) = self.sessions.get(&session) {
                        let refused = Frame::Refused(Refused { code, message });
                        out.push(Said::Bytes(conn, encoded(&refused)));
                        out.push(Said::Close(conn));
                        self.part(conn, out);
                    }
                }
                Post::Pipe { pipe, bytes } => {
                    if let Some(conn) = self.pipes.get(&pipe) {
                        out.push(Said::Bytes(*conn, bytes));
                    }
                }
                Post::PipeRefused { pipe } => {
                    if let Some(&conn) = self.pipes.get(&pipe) {
                        self.part(conn, out);
                        out.push(Said::Close(conn));
                    }
                }
                Post::Stocked { .. }
                | Post::PipeTaken { .. }
                | Post::TokensChanged
                | Post::StopAccepting
                | Post::Stop => {}
            }
        }
        self.spare = posts;
    }

    /// Beats to all workers.
    pub(crate) fn beat(&self, out: &mut Vec<Said>) {
        let beat = encoded(&Frame::Beat(Beat {
            assign_seq: 0,
            held: 0,
        }));
        out.extend(
            self.sessions
                .values()
                .map(|conn| Said::Bytes(*conn, beat.clone())),
        );
    }

    /// Nothing is under way inside it.
    pub(crate) fn is_idle(&self) -> bool {
        let writes = self.writer.as_ref().is_some_and(Writer::has_something);
        let stores = self.storing || self.keeper.has_something();
        !(self.committing || writes || stores || self.dispatch.has_something())
    }

    /// Reads what dispatch asked for.
    pub(crate) fn read(&mut self) {
        let mut queries = Vec::new();
        self.queries.drain(&mut queries, usize::MAX);
        for query in queries {
            if let Query::Bodies { jobs } = query {
                let bodies = self.reader.bodies(&jobs);
                let bodies = bodies.expect("the bodies of live jobs are on disk");
                self.tell.tell(Message::Fetched { bodies });
            }
        }
    }
}

pub(crate) fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes
}

/// None if its files cannot be opened now.
fn open_output(
    files: &ModelFiles,
    options: &Options,
    clock: Clock,
    net: &net::Handle,
) -> Option<(output::Handle, Keeper)> {
    let years = std::time::Duration::from_secs(100 * 365 * 86_400);
    let opened = output::Options {
        dir: "output".into(),
        files: Arc::new(files.clone()),
        output_bytes_max: options.output_bytes_max,
        segment_bytes: options.segment_bytes,
        keep: years,
        keep_failed: years,
        total_bytes_max: 1 << 40,
        linger: std::time::Duration::from_secs(10),
    };
    let net = net.clone();
    let answers = Box::new(move |answers: &mut Vec<Answer>| {
        net.post_all(answers.drain(..).map(Post::from));
    });
    let ends = Box::new(|_| -> output::PollEnds { Box::new(|| Some(None)) });
    // Its keeper steps back for commits in a wait of its own: here none is under way in a turn.
    let commits = Arc::default();
    let ways = Ways {
        answers,
        ends,
        commits,
    };
    output::open(opened, clock, ways).ok()
}

fn config(options: &Options) -> Config {
    let mut config = Config::new("model".into());
    config.worker_grace = std::time::Duration::from_micros(options.grace);
    config.durability = match options.durability {
        Durability::Fsync => Durability::Fsync,
        Durability::Os => Durability::Os,
    };
    config.limits.resident_bytes_max = options.resident_bytes_max;
    config
}
