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
use hostler_server::server::{engine_config, recover};
use hostler_server::store::reader::{self, Query};
use hostler_server::store::seam::{Opening, Read, Store};
use hostler_server::store::writer::{self, Notice, Write, Writer};
use hostler_wire::SessionId;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Beat, Frame, Refused, Role, Welcome};
use hostler_wire::handshake::{Identity, ServerHandshake, Verifier};
use hostler_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};

use crate::disk::ModelStore;
use crate::network::ConnId;
use crate::options::Options;

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
    /// The turn after which the engine is looked at.
    pub(crate) check_at: u64,
    spare: Vec<Post>,
}

impl Server {
    /// Opens the disk, and tells dispatch the first part of what it remembers.
    pub(crate) fn start(
        mut store: ModelStore,
        options: &Options,
        readings: &'static Readings,
        verifier: Verifier,
    ) -> Self {
        let opening = store.opening().clone();
        let clock = Clock::resume_given(readings, opening.stamp);
        let config = config(options);
        let wake = Wake::parking();
        let (messages, message_inbox) = mailbox(&wake);
        let (asks, ask_inbox) = mailbox(&wake);
        let tell = dispatch::Handle::new(messages, asks.clone());
        let (writes, write_inbox) = mailbox(&Wake::parking());
        let (fact_sender, facts) = mailbox(&Wake::parking());
        let (query_sender, queries) = mailbox(&Wake::parking());
        let (post_sender, posts) = mailbox(&Wake::parking());
        let submit = writer::Handle::new(writes.clone(), config.limits.intake_bytes_max);
        let lanes = Arc::new(Lanes::new());
        let resident_bytes = Arc::<AtomicUsize>::default();
        let parts = dispatch::Parts {
            wake,
            messages: message_inbox,
            asks: ask_inbox,
            lanes: Arc::clone(&lanes),
            resident_bytes: Arc::clone(&resident_bytes),
            writer: writer::Handle::new(fact_sender, usize::MAX),
            reader: reader::Handle::new(query_sender),
            net: net::Handle::new(post_sender),
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
            notify: Box::new(notify),
            fatal: Box::new(fatal),
            health: Arc::default(),
            counters: Arc::default(),
            clock,
            live,
            durability: options.durability,
            limits: config.limits,
        };
        Self {
            identity: Identity {
                cluster: opening.cluster,
                epoch: opening.epoch,
                epoch_nonce: opening.epoch_nonce,
            },
            opening,
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
            check_at: options.check_every,
            spare: Vec::new(),
        }
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

    /// What dispatch has just given to the writer.
    pub(crate) fn pass_facts(&self, look: &mut dyn FnMut(&[Fact])) {
        let mut writes = Vec::new();
        if self.facts.drain(&mut writes, usize::MAX) == 0 {
            return;
        }
        for write in writes {
            if let Write::Facts { facts, .. } = &write {
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
        let mut count = 0;
        loop {
            let Some(line) = self.lines.get_mut(&conn) else {
                return count;
            };
            let frame = line.decoder.next_frame();
            let Some(frame) = frame.expect("whole bytes in order are frames") else {
                break;
            };
            count += 1;
            if let Stage::Control(_) = line.stage {
                frames.push(frame);
            } else {
                self.greet(conn, frame, now, out);
            }
        }
        let line = self.lines.get_mut(&conn).expect("looked at just now");
        if let Stage::Control(session) = line.stage
            && (!frames.is_empty() || now.since(line.heard) >= SIGN_OF_LIFE)
        {
            line.heard = now;
            let arrival = Arrival::Frames { session, frames };
            self.tell.tell(Message::Worker(arrival));
        }
        count
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
            (Stage::Login(handshake), Frame::Login(login)) => {
                assert_eq!(handshake.role(), Role::Control);
                handshake.login(&login).expect("the worker is ours");
                let session = SessionId::new(line.number);
                line.stage = Stage::Control(session);
                line.heard = now;
                line.decoder.accept_up_to(FRAME_BYTES_MAX);
                self.sessions.insert(session, conn);
                let welcome = Frame::Welcome(Welcome {
                    session,
                    beat_ms: BEAT_MS,
                    grace_ms: self.grace_ms,
                    result_bytes_max: 256 << 10,
                });
                out.push(Said::Bytes(conn, encoded(&welcome)));
                let arrival = Arrival::Joined { session, login };
                self.tell.tell(Message::Worker(arrival));
            }
            (_, frame) => panic!("{} before its time", frame.name()),
        }
    }

    /// A connection is gone.
    pub(crate) fn part(&mut self, conn: ConnId) {
        if let Some(line) = self.lines.remove(&conn)
            && let Stage::Control(session) = line.stage
        {
            self.sessions.remove(&session);
            self.tell.tell(Message::Worker(Arrival::Left { session }));
        }
    }

    /// What dispatch wants sent.
    pub(crate) fn post(&mut self, out: &mut Vec<Said>) {
        let mut posts = std::mem::take(&mut self.spare);
        self.posts.drain(&mut posts, usize::MAX);
        // Dispatch gathers by session in a table without an order; a run must have one.
        posts.sort_by_key(|post| match post {
            Post::Control { session, .. } | Post::Close { session, .. } => session.raw(),
            Post::Pipe { .. }
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
                        self.part(conn);
                    }
                }
                Post::Pipe { .. }
                | Post::PipeTaken { .. }
                | Post::PipeRefused { .. }
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
        !(self.committing || writes || self.dispatch.has_something())
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
