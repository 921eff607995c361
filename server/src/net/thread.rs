//! The loop of the wire thread.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Duration;

use hostler_engine::{Span, Time};
use hostler_wire::SessionId;
use hostler_wire::frame::{Beat, Frame, Hello, Login, RefuseCode, Refused, Role, Welcome};
use hostler_wire::handshake::{HandshakeError, Identity, ServerHandshake, Verifier};
use hostler_wire::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use mio::{Events, Interest, Token};
use slab::Slab;

use crate::clock::Clock;
use crate::mailbox::AbortOnPanic;
use crate::net::conn::{Conn, Got, READ_BYTES};
use crate::net::listener;
use crate::net::peers::{Failures, Peer};
use crate::net::{Arrived, Inbox, Post};
use crate::output;

pub(super) const WAKE: Token = Token(usize::MAX - 1);
const LISTENER: Token = Token(usize::MAX - 2);
const EVENTS: usize = 1_024;
const POSTS_MAX: usize = 4_096;
/// How long a refused peer may take to hear why.
const LINGER: Span = Span::from_secs(1);
/// No connection is accepted for this long after the system had no descriptor left.
const ACCEPT_PAUSE: Span = Span::from_millis(100);
/// Frames gathered into one batch for dispatch or output at most.
const BATCH_FRAMES_MAX: usize = 4_096;

/// What the thread needs.
pub struct Parts {
    /// Its end of its mailbox.
    pub inbox: Inbox,
    /// The worker port, listening.
    pub listener: TcpListener,
    /// Who we are.
    pub identity: Identity,
    /// The keys of a token id, if there is such a worker token.
    pub verifier: Box<dyn Fn(&str) -> Option<Verifier> + Send>,
    /// Takes what workers say to dispatch, a batch at a time.
    pub arrived: Box<dyn Fn(&mut Vec<Arrived>) + Send>,
    /// Where output goes.
    pub output: output::Handle,
    /// The server's clock.
    pub clock: Clock,
    /// Bounds and times.
    pub settings: Settings,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Bounds and times of the wire thread.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often each side beats.
    pub beat: Span,
    /// How long silence is forgiven.
    pub grace: Span,
    /// Largest result kept with a job.
    pub result_bytes_max: u32,
    /// Connections at once.
    pub connections_max: usize,
    /// Until a connection must have proven itself.
    pub handshake: Span,
    /// Bytes that may wait for one peer.
    pub send_bytes_max: usize,
    /// Bytes of output that may wait for the output thread.
    pub output_pending_bytes_max: usize,
}

/// Starts the thread. A panic in it ends the process.
pub fn spawn(parts: Parts) -> io::Result<JoinHandle<()>> {
    let mut listener = mio::net::TcpListener::from_std(parts.listener.try_clone()?);
    parts
        .inbox
        .poll
        .registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    std::thread::Builder::new()
        .name("wire".into())
        .spawn(move || {
            let _abort = AbortOnPanic;
            Net::new(parts, listener).run();
        })
}

/// Why a connection is given up, for its peer.
struct Refusal(RefuseCode, String);

struct Net {
    parts: Parts,
    /// None once the server stops.
    listener: Option<mio::net::TcpListener>,
    accept_again: Option<Time>,
    conns: Slab<Conn<Peer>>,
    sessions: HashMap<SessionId, usize>,
    /// The session counter, also of pipes.
    last_session: u64,
    pipes: HashMap<u64, usize>,
    /// Connections that must have come further by then, in the order of their deadlines: (when, key, serial).
    deadlines: VecDeque<(Time, usize, u64)>,
    serials: HashMap<usize, u64>,
    next_serial: u64,
    /// Connections with more to read than a turn allows.
    unread: Vec<usize>,
    /// Pipes that wait for the output thread.
    paused: Vec<usize>,
    output_pending: usize,
    dirty: Vec<usize>,
    next_beat: Time,
    failures: Failures,
    arrived: Vec<Arrived>,
    /// One read buffer for all sockets.
    scratch: Vec<u8>,
    stopped: bool,
}

impl Net {
    fn new(parts: Parts, listener: mio::net::TcpListener) -> Self {
        Self {
            next_beat: parts.clock.now() + parts.settings.beat,
            parts,
            listener: Some(listener),
            accept_again: None,
            conns: Slab::new(),
            sessions: HashMap::new(),
            last_session: 0,
            pipes: HashMap::new(),
            deadlines: VecDeque::new(),
            serials: HashMap::new(),
            next_serial: 0,
            unread: Vec::new(),
            paused: Vec::new(),
            output_pending: 0,
            dirty: Vec::new(),
            failures: Failures::default(),
            arrived: Vec::new(),
            scratch: vec![0; READ_BYTES],
            stopped: false,
        }
    }

    fn run(&mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut posts = Vec::new();
        while !self.stopped {
            self.sleep(&mut events);
            let now = self.parts.clock.now();
            for key in std::mem::take(&mut self.unread) {
                self.readable(now, key);
            }
            let mut accepting = self.accept_again.is_some_and(|at| at <= now);
            for event in &events {
                match event.token() {
                    WAKE => {}
                    LISTENER => accepting = true,
                    Token(key) => {
                        if event.is_writable() {
                            self.writable(now, key);
                        }
                        if event.is_readable() || event.is_read_closed() || event.is_error() {
                            self.readable(now, key);
                        }
                    }
                }
            }
            // Last, so that no event of this turn is taken for one of a new connection with an old key.
            if accepting {
                self.accept(now);
            }
            self.parts.inbox.receiver.drain(&mut posts, POSTS_MAX);
            for post in posts.drain(..) {
                self.on_post(now, post);
            }
            self.beat(now);
            self.expire(now);
            self.flush(now);
            if !self.arrived.is_empty() {
                (self.parts.arrived)(&mut self.arrived);
                self.arrived.clear();
            }
        }
    }

    fn sleep(&mut self, events: &mut Events) {
        let inbox = &mut self.parts.inbox;
        inbox.wake.about_to_sleep();
        let now = self.parts.clock.now();
        let due = [
            Some(self.next_beat),
            self.accept_again,
            self.deadlines.front().map(|d| d.0),
        ]
        .into_iter()
        .flatten()
        .min()
        .map_or(Span::ZERO, |at| at.since(now));
        let idle = inbox.receiver.is_empty() && self.unread.is_empty();
        let timeout = if idle {
            Duration::from_micros(due.micros())
        } else {
            Duration::ZERO
        };
        match inbox.poll.poll(events, Some(timeout)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => panic!("polling the worker sockets failed: {error}"),
        }
        inbox.wake.awake();
    }

    fn accept(&mut self, now: Time) {
        self.accept_again = None;
        while let Some(listener) = &self.listener {
            match listener::accept(listener) {
                Ok((socket, peer)) => {
                    self.welcome_stranger(now, Conn::new(socket, peer, Peer::Stranger))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_of_the_peer(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a worker's connection; trying again");
                    self.accept_again = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn welcome_stranger(&mut self, now: Time, mut conn: Conn<Peer>) {
        if self.conns.len() >= self.parts.settings.connections_max {
            conn.push(&refused(
                RefuseCode::Busy,
                "too many connections (worker_connections_max)",
            ));
            conn.flush(now);
            return;
        }
        let entry = self.conns.vacant_entry();
        let key = entry.key();
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registry = self.parts.inbox.poll.registry();
        if let Err(error) = registry.register(conn.socket(), Token(key), interest) {
            tracing::warn!(%error, "cannot watch a worker's connection");
            return;
        }
        entry.insert(conn);
        self.expect(now + self.parts.settings.handshake, key);
        self.readable(now, key);
    }

    /// The connection must have come further by then.
    fn expect(&mut self, by: Time, key: usize) {
        self.next_serial += 1;
        self.serials.insert(key, self.next_serial);
        let at = self.deadlines.partition_point(|(due, ..)| *due <= by);
        self.deadlines.insert(at, (by, key, self.next_serial));
    }

    fn expire(&mut self, now: Time) {
        while let Some(&(due, key, serial)) = self.deadlines.front() {
            if due > now {
                return;
            }
            self.deadlines.pop_front();
            if self.serials.get(&key) == Some(&serial) {
                self.drop_conn(key);
            }
        }
    }

    fn readable(&mut self, now: Time, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        match conn.state {
            Peer::Closing => {
                if conn.discard() == Got::Gone {
                    self.drop_conn(key);
                }
                return;
            }
            Peer::Pipe(_) if self.output_pending > self.parts.settings.output_pending_bytes_max => {
                if !self.paused.contains(&key) {
                    self.paused.push(key);
                }
                return;
            }
            Peer::Stranger | Peer::Challenged(_) | Peer::Worker { .. } | Peer::Pipe(_) => {}
        }
        let (bytes, got) = conn.read(&mut self.scratch);
        let cut = self.take_frames(now, key, bytes);
        match (cut, got) {
            (Err(Refusal(code, message)), _) => self.refuse(now, key, code, &message),
            (Ok(()), Got::Gone) => self.drop_conn(key),
            (Ok(()), Got::More) => self.unread.push(key),
            (Ok(()), Got::All) => {}
        }
    }

    /// Cuts frames out of what was read and passes them on.
    fn take_frames(&mut self, now: Time, key: usize, bytes: usize) -> Result<(), Refusal> {
        let mut batch = Vec::new();
        let mut uncounted = bytes;
        loop {
            let conn = &mut self.conns[key];
            let frame = conn
                .decoder
                .next_frame()
                .map_err(|error| Refusal(RefuseCode::Invalid, error.to_string()));
            match (frame, &conn.state) {
                (Ok(Some(frame)), Peer::Worker { .. } | Peer::Pipe(_)) => {
                    if !may_send(&conn.state, &frame) {
                        self.pass_on(key, batch, uncounted);
                        let message = format!("a {} frame does not belong here", frame.name());
                        return Err(Refusal(RefuseCode::Invalid, message));
                    }
                    batch.push(frame);
                    if batch.len() == BATCH_FRAMES_MAX {
                        self.pass_on(
                            key,
                            std::mem::take(&mut batch),
                            std::mem::take(&mut uncounted),
                        );
                    }
                }
                (Ok(Some(frame)), _) => self.on_handshake(now, key, frame)?,
                (Ok(None), _) => {
                    self.pass_on(key, batch, uncounted);
                    return Ok(());
                }
                (Err(fault), _) => {
                    self.pass_on(key, batch, uncounted);
                    return Err(fault);
                }
            }
        }
    }

    fn pass_on(&mut self, key: usize, frames: Vec<Frame>, bytes: usize) {
        if frames.is_empty() {
            return;
        }
        match self.conns[key].state {
            Peer::Worker { session, .. } => self.arrived.push(Arrived::Frames { session, frames }),
            Peer::Pipe(pipe) => {
                self.output_pending += bytes;
                self.parts.output.frames(pipe, frames, bytes);
            }
            Peer::Stranger | Peer::Challenged(_) | Peer::Closing => {}
        }
    }

    fn on_handshake(&mut self, now: Time, key: usize, frame: Frame) -> Result<(), Refusal> {
        let conn = &mut self.conns[key];
        match (std::mem::replace(&mut conn.state, Peer::Stranger), frame) {
            (Peer::Stranger, Frame::Hello(hello)) => self.challenge(now, key, &hello),
            (Peer::Challenged(handshake), Frame::Login(login)) => {
                self.log_in(now, key, *handshake, login)
            }
            (_, frame) => {
                let message = format!("a {} frame does not belong in a handshake", frame.name());
                Err(Refusal(RefuseCode::Invalid, message))
            }
        }
    }

    fn challenge(&mut self, now: Time, key: usize, hello: &Hello) -> Result<(), Refusal> {
        let conn = &mut self.conns[key];
        if self.failures.too_many(now, conn.peer) {
            let message = "too many wrong proofs from this address; wait ten seconds".to_owned();
            return Err(Refusal(RefuseCode::Busy, message));
        }
        let verifier = (self.parts.verifier)(&hello.token_id);
        let made = ServerHandshake::new(self.parts.identity, hello, verifier.as_ref(), random());
        let (handshake, challenge) = made.map_err(refusal)?;
        conn.push(&Frame::Challenge(challenge));
        conn.state = Peer::Challenged(Box::new(handshake));
        conn.decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
        self.mark(key);
        Ok(())
    }

    fn log_in(
        &mut self,
        now: Time,
        key: usize,
        handshake: ServerHandshake,
        login: Box<Login>,
    ) -> Result<(), Refusal> {
        let role = handshake.role();
        if let Err(error) = handshake.login(&login) {
            let peer = self.conns[key].peer;
            if error.code == RefuseCode::Unauthorised {
                self.failures.add(now, peer);
            }
            tracing::warn!(%peer, worker = login.name, error = error.message, "a worker was refused");
            return Err(refusal(error));
        }
        let session = match role {
            Role::Control => self.join(key, login),
            Role::Output => self.open_pipe(key, &login)?,
        };
        let settings = &self.parts.settings;
        let welcome = Welcome {
            session,
            beat_ms: clipped(settings.beat.millis()),
            grace_ms: clipped(settings.grace.millis()),
            result_bytes_max: settings.result_bytes_max,
        };
        let conn = &mut self.conns[key];
        conn.decoder.accept_up_to(FRAME_BYTES_MAX);
        conn.push(&Frame::Welcome(welcome));
        self.serials.remove(&key);
        self.mark(key);
        Ok(())
    }

    fn join(&mut self, key: usize, login: Box<Login>) -> SessionId {
        self.last_session += 1;
        let session = SessionId::new(self.last_session);
        self.sessions.insert(session, key);
        self.conns[key].state = Peer::Worker {
            session,
            name: login.name.clone(),
            instance: login.instance,
        };
        tracing::info!(
            worker = login.name,
            slots = login.slots,
            "a worker is connected"
        );
        self.arrived.push(Arrived::Joined { session, login });
        session
    }

    fn open_pipe(&mut self, key: usize, login: &Login) -> Result<SessionId, Refusal> {
        let session = login.session.filter(|session| {
            self.sessions.get(session).is_some_and(|&at| {
                matches!(&self.conns[at].state, Peer::Worker { name, instance, .. }
                    if *name == login.name && *instance == login.instance)
            })
        });
        let Some(session) = session else {
            let message = "the control session this pipe names is gone; connect that one first";
            return Err(Refusal(RefuseCode::NoSession, message.to_owned()));
        };
        self.last_session += 1;
        self.pipes.insert(self.last_session, key);
        self.conns[key].state = Peer::Pipe(self.last_session);
        Ok(session)
    }

    fn on_post(&mut self, now: Time, post: Post) {
        match post {
            Post::Control { session, bytes } => {
                if let Some(&key) = self.sessions.get(&session) {
                    self.push_bytes(now, key, bytes);
                }
            }
            Post::Pipe { pipe, bytes } => {
                if let Some(&key) = self.pipes.get(&pipe) {
                    self.push_bytes(now, key, bytes);
                }
            }
            Post::PipeTaken { pipe: _, bytes } => {
                self.output_pending -= bytes;
                if self.output_pending <= self.parts.settings.output_pending_bytes_max / 2 {
                    self.unread.append(&mut self.paused);
                }
            }
            Post::ClosePipe { pipe } => {
                if let Some(&key) = self.pipes.get(&pipe) {
                    self.drop_conn(key);
                }
            }
            Post::Close {
                session,
                code,
                message,
            } => {
                if let Some(&key) = self.sessions.get(&session) {
                    self.refuse(now, key, code, &message);
                }
            }
            Post::StopAccepting => self.stop_accepting(),
            Post::Stop => {
                self.stop_accepting();
                self.flush(now);
                self.stopped = true;
            }
        }
    }

    fn push_bytes(&mut self, now: Time, key: usize, bytes: bytes::BytesMut) {
        let conn = &mut self.conns[key];
        if conn.unsent() + bytes.len() > self.parts.settings.send_bytes_max {
            let ip = conn.peer;
            tracing::warn!(peer = %ip, "a worker does not read (worker_send_bytes_max); closing");
            return self.drop_conn(key);
        }
        conn.push_bytes(bytes);
        // A hand-out is on its way while the next post is looked at.
        if conn.unsent() >= READ_BYTES && !conn.flush(now) {
            return self.drop_conn(key);
        }
        self.mark(key);
    }

    /// The listener's number goes back to the system only when the last clone of it is closed.
    fn stop_accepting(&mut self) {
        if let Some(mut listener) = self.listener.take() {
            // It was registered; a failure would only leave an edge nobody reads.
            drop(self.parts.inbox.poll.registry().deregister(&mut listener));
        }
        self.accept_again = None;
    }

    fn beat(&mut self, now: Time) {
        if now < self.next_beat {
            return;
        }
        self.next_beat = now + self.parts.settings.beat;
        let beat = Frame::Beat(Beat {
            assign_seq: 0,
            held: 0,
        });
        let keys: Vec<usize> = self.sessions.values().copied().collect();
        for key in keys {
            let conn = &mut self.conns[key];
            if conn
                .blocked
                .is_some_and(|since| since + self.parts.settings.grace <= now)
            {
                let ip = conn.peer;
                tracing::warn!(peer = %ip, "a worker has not read for the whole grace; closing");
                self.drop_conn(key);
                continue;
            }
            conn.push(&beat);
            self.mark(key);
        }
    }

    fn mark(&mut self, key: usize) {
        let conn = &mut self.conns[key];
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(key);
        }
    }

    fn writable(&mut self, now: Time, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.unsent() > 0 && !conn.flush(now) {
            self.drop_conn(key);
        }
    }

    fn flush(&mut self, now: Time) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(conn) = self.conns.get_mut(key) else {
                continue;
            };
            if std::mem::take(&mut conn.dirty) && !conn.flush(now) {
                self.drop_conn(key);
            }
        }
    }

    /// Tells the peer why, and lets it go; to dispatch it is gone at once.
    fn refuse(&mut self, now: Time, key: usize, code: RefuseCode, message: &str) {
        self.part(key);
        let conn = &mut self.conns[key];
        conn.state = Peer::Closing;
        conn.push(&refused(code, message));
        if !conn.flush(now) {
            return self.drop_conn(key);
        }
        conn.finish();
        self.expect(now + LINGER, key);
    }

    /// The connection is no session and no pipe any more; whoever must know is told, once.
    fn part(&mut self, key: usize) {
        match std::mem::replace(&mut self.conns[key].state, Peer::Closing) {
            Peer::Worker { session, name, .. } => {
                self.sessions.remove(&session);
                self.arrived.push(Arrived::Left { session });
                tracing::info!(worker = name, "a worker's connection has ended");
            }
            Peer::Pipe(pipe) => {
                self.pipes.remove(&pipe);
                self.parts.output.pipe_closed(pipe);
            }
            Peer::Stranger | Peer::Challenged(_) | Peer::Closing => {}
        }
    }

    fn drop_conn(&mut self, key: usize) {
        if !self.conns.contains(key) {
            return;
        }
        self.part(key);
        let mut conn = self.conns.remove(key);
        self.serials.remove(&key);
        self.paused.retain(|paused| *paused != key);
        self.unread.retain(|unread| *unread != key);
        // Closing the socket takes it out of the poll as well.
        drop(self.parts.inbox.poll.registry().deregister(conn.socket()));
    }
}

/// Whether that frame is one that peer says.
fn may_send(peer: &Peer, frame: &Frame) -> bool {
    match frame {
        Frame::Started(_)
        | Frame::Reports(_)
        | Frame::Returned(_)
        | Frame::Beat(_)
        | Frame::ProbeReply(_) => matches!(peer, Peer::Worker { .. }),
        Frame::Chunk(_) | Frame::OutputEnd(_) => matches!(peer, Peer::Pipe(_)),
        Frame::Hello(_)
        | Frame::Challenge(_)
        | Frame::Login(_)
        | Frame::Welcome(_)
        | Frame::Refused(_)
        | Frame::NotLeader(_)
        | Frame::Resumed(_)
        | Frame::Assign(_)
        | Frame::Recall(_)
        | Frame::Cancel(_)
        | Frame::Stop(_)
        | Frame::Ack(_)
        | Frame::Probe(_)
        | Frame::OutputAck(_) => false,
    }
}

fn refused(code: RefuseCode, message: &str) -> Frame {
    Frame::Refused(Refused {
        code,
        message: message.to_owned(),
    })
}

fn refusal(error: HandshakeError) -> Refusal {
    Refusal(error.code, error.message)
}

/// Errors of `accept` that are about the connection that did not come about.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

fn clipped(ms: u64) -> u32 {
    u32::try_from(ms).unwrap_or(u32::MAX)
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel's random source is always there");
    bytes
}
