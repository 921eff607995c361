//! The wire thread's loop and the one place where a frame's kind decides what becomes of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use hostler_engine::{Span, Time};
use hostler_tls::{Channel, ChannelError, Live, Port};
use hostler_wire::SessionId;
use hostler_wire::frame::{Beat, Frame, Login, RefuseCode, Refused, Role, Welcome};
use hostler_wire::handshake::{Identity, ServerHandshake};
use hostler_wire::limits::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use super::conn::{Conn, Got, Phase};
use super::listener::{Accepted, accept};
use super::peers::{Peers, Place};
use super::pipe::Gate;
use super::shakes::{Shakes, Turn};
use super::{Arrival, BEAT_MS, Needs, Net, Post, Status, Tell, UNPROVEN, Visit};
use crate::auth::{Auth, Failures};
use crate::clock::Clock;
use crate::config::Limits;
use crate::mailbox::{Receiver, Wake};
use crate::output::{self, PipeId};

/// The waker's token; sockets have their place in the table as theirs.
pub(super) const WAKER: Token = Token(usize::MAX);
const LISTENER: Token = Token(usize::MAX - 1);

/// One read of a socket whose peer is known.
const READ_BYTES: usize = 256 << 10;
/// One read of a stranger's.
const STRANGER_READ_BYTES: usize = 4 << 10;
/// Most bytes of one control connection in one turn; the others come first then.
const CONTROL_TURN_BYTES: usize = 1 << 20;
/// Most bytes of one pipe in one turn.
const PIPE_TURN_BYTES: usize = 256 << 10;
/// Most connections accepted in one turn.
const ACCEPTS_MAX: usize = 64;
/// Most posts handled in one turn.
const POSTS_MAX: usize = 4_096;
/// Asked of the system for what a pipe's peer has sent and we have not read.
const PIPE_UNREAD_BYTES: usize = 1 << 20;
/// Largest body of a pipe's frame: a chunk and its head.
const PIPE_FRAME_BYTES_MAX: usize = CHUNK_BYTES_MAX + 1_024;
/// Most bytes of all unfinished handshakes together: many logins of full size, but no flood of them.
const HANDSHAKES_BYTES_MAX: usize = 64 << 20;
/// Connections that may linger beyond the limit, only to be told that they are too many.
const LINGERING_MAX: usize = 1_024;
/// How long a closing connection may take to hear why.
const LINGER: Span = Span::from_millis(2_000);
/// How long a stranger is safe from having to make room for the next.
const STRANGER_SAFE: Span = Span::from_millis(1_000);
/// After a failed accept (no files, no memory).
const ACCEPT_PAUSE: Span = Span::from_millis(100);
/// How long a stocked worker is not listened to after it has said little.
const PAUSE: Span = Span::from_millis(4);
/// So much at once is not little: it has collected enough by itself.
const LITTLE_BYTES: usize = 1_024;
/// A sign of life is passed on this often, even if no frame is whole.
const SIGN_OF_LIFE: Span = Span::from_millis(1_000);

/// See `net`.
pub(super) struct Wire {
    poll: Poll,
    wake: Arc<Wake>,
    inbox: Receiver<Post>,
    listener: Option<TcpListener>,
    limits: Limits,
    grace: Span,
    clock: Clock,
    identity: Identity,
    auth: Arc<Auth>,
    visits: Box<dyn Fn(Visit) + Send>,
    tell: Tell,
    output: output::Handle,
    tls: Option<Arc<Live>>,
    status: Arc<Status>,

    conns: Slab<Conn>,
    /// How many of them each address has.
    addresses: HashMap<IpAddr, usize>,
    peers: Peers,
    failures: Failures,
    gate: Gate,
    last_serial: u64,
    /// Connections that have not proven themselves, oldest first.
    strangers: BTreeSet<Place>,
    strangers_bytes: usize,
    /// Who may agree on TLS at the moment, and who waits for that.
    shakes: Shakes,
    deadlines: BTreeSet<(Time, Place)>,
    /// Sockets that may have more to read than their turn allowed.
    again: Vec<Place>,
    /// Who is not listened to, and until when; in the order of time.
    paused: VecDeque<(Time, Place)>,
    dirty: Vec<Place>,
    arrivals: Vec<Arrival>,
    room: Box<[u8]>,
    accept_at: Option<Time>,
    /// The last one could not be accepted, and that was told.
    no_room: bool,
    beat_at: Time,
    stopping: bool,
}

impl Wire {
    pub(super) fn new(net: Net, needs: Needs) -> std::io::Result<Self> {
        let now = needs.clock.now();
        let mut listener = net.listener;
        net.poll
            .registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let grace = u64::try_from(needs.config.worker_grace.as_millis()).unwrap_or(u64::MAX);
        Ok(Self {
            poll: net.poll,
            wake: net.wake,
            inbox: net.inbox,
            listener: Some(listener),
            gate: Gate::new(needs.config.limits.output_pending_bytes_max),
            shakes: Shakes::new(needs.config.limits.tls_handshakes_max),
            limits: needs.config.limits,
            grace: Span::from_millis(grace),
            clock: needs.clock,
            identity: needs.identity,
            auth: needs.auth,
            visits: needs.visits,
            tell: needs.tell,
            output: needs.output,
            tls: needs.tls,
            status: net.handle.status,
            conns: Slab::new(),
            addresses: HashMap::new(),
            peers: Peers::default(),
            failures: Failures::default(),
            last_serial: 0,
            strangers: BTreeSet::new(),
            strangers_bytes: 0,
            deadlines: BTreeSet::new(),
            again: Vec::new(),
            paused: VecDeque::new(),
            dirty: Vec::new(),
            arrivals: Vec::new(),
            room: vec![0; READ_BYTES].into_boxed_slice(),
            accept_at: Some(now),
            no_room: false,
            beat_at: now,
            stopping: false,
        })
    }

    /// Runs until `Post::Stop`.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut posts = Vec::new();
        let mut ready = Vec::new();
        while !self.stopping {
            self.sleep(&mut events);
            let now = self.clock.now();
            self.sort(&events, &mut ready);
            for place in ready.drain(..) {
                self.on_ready(place, now);
            }
            self.inbox.drain(&mut posts, POSTS_MAX);
            for post in posts.drain(..) {
                self.on_post(post, now);
            }
            self.on_time(now);
            self.flush_dirty(now);
            self.tell();
        }
        self.close_all();
    }

    fn sleep(&mut self, events: &mut Events) {
        let due = [
            Some(self.beat_at),
            self.accept_at,
            self.shakes.next_deadline(),
            self.paused.front().map(|(at, _)| *at),
        ]
        .into_iter()
        .chain([self.deadlines.first().map(|(at, _)| *at)])
        .flatten()
        .min();
        self.wake.about_to_sleep();
        let timeout = if self.again.is_empty() && self.inbox.is_empty() {
            due.map(|at| Duration::from_micros(at.since(self.clock.now()).micros()))
        } else {
            Some(Duration::ZERO)
        };
        if let Err(error) = self.poll.poll(events, timeout)
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            panic!("the poll of all sockets failed: {error}");
        }
        self.wake.awake();
    }

    /// What is to be looked at in this turn: strangers and control connections before pipes.
    fn sort(&mut self, events: &Events, ready: &mut Vec<Place>) {
        ready.append(&mut self.again);
        for event in events {
            match event.token() {
                WAKER => {}
                LISTENER => self.accept_at = Some(Time::ZERO),
                Token(key) => ready.extend(self.place(key)),
            }
        }
        let is_pipe = |place: &Place| {
            let conn = self.conns.get(place.key);
            conn.is_some_and(|conn| matches!(conn.phase, Phase::Pipe(_)))
        };
        ready.sort_by_key(|place| (is_pipe(place), *place));
        ready.dedup();
    }

    fn place(&self, key: usize) -> Option<Place> {
        let serial = self.conns.get(key)?.serial;
        Some(Place { serial, key })
    }

    /// The connection at a place, if it is still the one that was meant.
    fn conn(&mut self, place: Place) -> Option<&mut Conn> {
        let conn = self.conns.get_mut(place.key);
        conn.filter(|conn| conn.serial == place.serial)
    }

    fn on_ready(&mut self, place: Place, now: Time) {
        let Some(conn) = self.conn(place) else {
            return;
        };
        if conn.has_to_send() && !conn.dirty {
            conn.dirty = true;
            self.dirty.push(place);
        }
        if self.may_read(place, now) {
            self.read(place, now);
        }
    }

    /// Reads a socket until it has no more, or its turn is over.
    fn read(&mut self, place: Place, now: Time) {
        let mut turn_bytes = 0;
        loop {
            let Some(conn) = self
                .conns
                .get_mut(place.key)
                .filter(|c| c.serial == place.serial)
            else {
                return;
            };
            let (once, most) = match conn.phase {
                Phase::Hello | Phase::Login(_) | Phase::Closing => {
                    (STRANGER_READ_BYTES, READ_BYTES)
                }
                Phase::Control(_) => (READ_BYTES, CONTROL_TURN_BYTES),
                Phase::Pipe(_) if !self.gate.is_open() => {
                    self.status.held_pipes.add(1);
                    return self.gate.hold(place);
                }
                Phase::Pipe(_) => (PIPE_TURN_BYTES, PIPE_TURN_BYTES),
            };
            if turn_bytes >= most {
                return self.again.push(place);
            }
            match conn.read(&mut self.room[..once]) {
                Got::Bytes { wire, plain } => {
                    turn_bytes += wire;
                    if conn.channel.is_tls() {
                        self.go_on_with_tls(place);
                    }
                    if plain > 0 {
                        self.take_frames(place, plain, now);
                    }
                }
                Got::Blocked => return self.pause_if_stocked(place, turn_bytes, now),
                Got::Gone => return self.drop_conn(place),
                Got::Refused(error) => return self.refuse_tls(place, &error, now),
            }
        }
    }

    /// A stocked worker that has said little may collect more before it is heard again.
    fn pause_if_stocked(&mut self, place: Place, turn_bytes: usize, now: Time) {
        let registry = self.poll.registry();
        let conn = self.conns.get_mut(place.key);
        let conn = conn.filter(|conn| conn.serial == place.serial && conn.stocked);
        let Some(conn) = conn else { return };
        if !(1..LITTLE_BYTES).contains(&turn_bytes) {
            return;
        }
        match conn.pause(registry) {
            Ok(()) => self.paused.push_back((now + PAUSE, place)),
            Err(_) => self.drop_conn(place),
        }
    }

    /// Listens to it again.
    fn resume(&mut self, place: Place) {
        let registry = self.poll.registry();
        let conn = self.conns.get_mut(place.key);
        let conn = conn.filter(|conn| conn.serial == place.serial);
        if conn.is_some_and(|conn| conn.resume(registry).is_err()) {
            self.drop_conn(place);
        }
    }

    /// Whether a connection is to be read now. One that begins with TLS waits for its turn.
    fn may_read(&mut self, place: Place, now: Time) -> bool {
        let Some(conn) = self.conn(place) else {
            return false;
        };
        if !conn.channel.is_tls() || conn.channel.is_open() || matches!(conn.phase, Phase::Closing)
        {
            return true;
        }
        match self.shakes.begin(place, now) {
            Turn::Now => true,
            Turn::InPlaceOf(old) => {
                self.status.tls_failed.add(1);
                let message = "TLS took too long while others waited for it".into();
                self.refuse(old, RefuseCode::Busy, message, now);
                true
            }
            Turn::Later => false,
        }
    }

    /// What TLS has to say leaves with this turn; whoever has agreed on it makes room for the next.
    fn go_on_with_tls(&mut self, place: Place) {
        let Some(conn) = self.conn(place) else {
            return;
        };
        let is_stranger = matches!(conn.phase, Phase::Hello);
        let (is_open, wants_write) = (conn.channel.is_open(), conn.channel.wants_write());
        if is_stranger && is_open {
            self.shakes.end(place);
        }
        if wants_write {
            self.send_with(place, |_| {});
        }
    }

    /// The peer does not speak TLS as we do, or at all. Its alert leaves; who speaks plainly is answered so.
    fn refuse_tls(&mut self, place: Place, error: &ChannelError, now: Time) {
        self.status.tls_failed.add(1);
        let mut message = error.to_string();
        if matches!(error, ChannelError::NotTls)
            && let Some(conn) = self.conn(place)
        {
            conn.channel.give_up_tls();
            message =
                "this port speaks TLS: give the worker --tls-ca FILE, or tls://HOST:PORT".into();
        }
        self.refuse(place, RefuseCode::Invalid, message, now);
    }

    /// Takes out the frames that are whole by now.
    fn take_frames(&mut self, place: Place, bytes: usize, now: Time) {
        let mut frames = Vec::new();
        let mut wrong = None;
        if let Some(conn) = self.conn(place)
            && matches!(conn.phase, Phase::Closing)
        {
            // It has been told why; what it still says is not listened to.
            return conn.decoder.buffer().clear();
        }
        while let Some(conn) = self.conn(place) {
            let frame = match conn.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => {
                    let damaged = error.is_damage();
                    let code = if damaged {
                        RefuseCode::Damaged
                    } else {
                        RefuseCode::Invalid
                    };
                    wrong = Some((code, error.to_string()));
                    break;
                }
            };
            match &conn.phase {
                Phase::Hello | Phase::Login(_) => self.greet(place, frame, now),
                Phase::Control(_) if is_control(&frame) => frames.push(frame),
                Phase::Pipe(_) if is_output(&frame) => frames.push(frame),
                Phase::Control(_) | Phase::Pipe(_) => {
                    let why = "a frame that is not this side's to send here";
                    wrong = Some((RefuseCode::Invalid, why.into()));
                    break;
                }
                Phase::Closing => break,
            }
        }
        self.status.frames.add(frames.len() as u64);
        self.pass_on(place, frames, bytes, now);
        if let Some((code, why)) = wrong {
            self.refuse(place, code, why, now);
        }
        self.count_stranger(place, now);
    }

    /// Passes on what a known peer said.
    fn pass_on(&mut self, place: Place, frames: Vec<Frame>, bytes: usize, now: Time) {
        let Some(conn) = self.conn(place) else {
            return;
        };
        match conn.phase {
            Phase::Control(session) => {
                if !frames.is_empty() || now.since(conn.heard) >= SIGN_OF_LIFE {
                    conn.heard = now;
                    self.arrivals.push(Arrival::Frames { session, frames });
                }
            }
            Phase::Pipe(pipe) => {
                // Bytes of a frame that is not whole are counted now and given back with the rest of it.
                self.gate.passed(bytes);
                self.status
                    .pending_output_bytes
                    .set(self.gate.pending_bytes() as u64);
                self.output.frames(pipe, frames, bytes);
            }
            Phase::Hello | Phase::Login(_) | Phase::Closing => {}
        }
    }

    /// The handshake's next step.
    fn greet(&mut self, place: Place, frame: Frame, now: Time) {
        let Some(conn) = self.conn(place) else {
            return;
        };
        let address = conn.peer.ip();
        match (std::mem::replace(&mut conn.phase, Phase::Hello), frame) {
            (Phase::Hello, Frame::Hello(hello)) => {
                let mut random = [0; 32];
                getrandom::fill(&mut random).expect("the kernel has random bytes");
                let verifier = self.auth.verifier(&hello.token_id, self.clock.wall());
                let tls = self.conn(place).and_then(|conn| conn.channel.binding());
                let (identity, verifier) = (self.identity, verifier.as_ref());
                match ServerHandshake::bound(identity, &hello, verifier, random, tls) {
                    Ok((handshake, challenge)) => {
                        let conn = self.conn(place).expect("it was there above");
                        conn.phase = Phase::Login(Box::new(handshake));
                        conn.token_id = hello.token_id.into();
                        conn.decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
                        self.send(place, &Frame::Challenge(challenge));
                    }
                    Err(error) => self.refuse(place, error.code, error.message, now),
                }
            }
            (Phase::Login(handshake), Frame::Login(login)) => {
                let role = handshake.role();
                match handshake.login(&login) {
                    Ok(()) => self.admit(place, role, login, now),
                    Err(error) if error.code == RefuseCode::Unauthorised => {
                        self.status.unauthorised.add(1);
                        if self.failures.add(address, now) {
                            tracing::warn!(peer = %address, "a worker's token was wrong");
                            self.visit(place, None, UNPROVEN);
                            self.refuse(place, error.code, error.message, now);
                        } else {
                            let message =
                                "too many wrong tokens from this address, try again later";
                            self.refuse(place, RefuseCode::Busy, message.into(), now);
                        }
                    }
                    Err(error) => self.refuse(place, error.code, error.message, now),
                }
            }
            _ => {
                let message = "a frame before its time".into();
                self.refuse(place, RefuseCode::Invalid, message, now);
            }
        }
    }

    /// The peer has proven its token. Whether that is good for what it wants to be is another question.
    fn admit(&mut self, place: Place, role: Role, login: Box<Login>, now: Time) {
        let wall = self.clock.wall();
        let Some(conn) = self.conn(place) else {
            return;
        };
        let token_id = conn.token_id.clone();
        let admitted = match role {
            Role::Control => self.auth.admits(&token_id, &login, wall),
            // What it may do was asked of its session.
            Role::Output => Ok(()),
        };
        let name = || Some(login.name.as_str().into());
        match admitted {
            Ok(()) => {
                if role == Role::Control {
                    self.visit(place, name(), "");
                }
                self.welcome(place, role, login, now);
            }
            Err(why) => {
                self.visit(place, name(), "not_admitted");
                self.refuse(place, RefuseCode::Unauthorised, why, now);
            }
        }
    }

    /// Tells who came.
    fn visit(&self, place: Place, worker: Option<Box<str>>, refused: &'static str) {
        if let Some(conn) = self.conns.get(place.key) {
            (self.visits)(Visit {
                token: conn.token_id.clone(),
                from: conn.peer.ip(),
                worker,
                refused,
            });
        }
    }

    /// Ends the sessions whose tokens are good for nothing any more.
    fn expel(&mut self, now: Time) {
        let wall = self.clock.wall();
        let auth = &self.auth;
        let gone: Vec<Place> = self
            .peers
            .sessions
            .values()
            .filter(|peer| !auth.holds(&peer.token_id, wall))
            .map(|peer| peer.place)
            .collect();
        for place in gone {
            let message = "the access token was revoked, or has expired";
            self.refuse(place, RefuseCode::Unauthorised, message.into(), now);
        }
    }

    /// The peer may be what it says it is.
    fn welcome(&mut self, place: Place, role: Role, login: Box<Login>, now: Time) {
        let Some(token_id) = self.conn(place).map(|conn| conn.token_id.clone()) else {
            return;
        };
        let (session, phase, frame_bytes_max) = match role {
            Role::Control => {
                let session = self.peers.join(place, &token_id, &login);
                (session, Phase::Control(session), FRAME_BYTES_MAX)
            }
            Role::Output => {
                let (Some(session), Some((pipe, old))) = (
                    login.session,
                    self.peers.open_pipe(place, &token_id, &login),
                ) else {
                    let message = "the session this pipe names is not this worker's, or has ended";
                    return self.refuse(place, RefuseCode::NoSession, message.into(), now);
                };
                if let Some(old) = old.and_then(|old| self.peers.pipe(old)) {
                    self.drop_conn(old); // a worker has one pipe: the newer one
                }
                (session, Phase::Pipe(pipe), PIPE_FRAME_BYTES_MAX)
            }
        };
        self.forget_stranger(place);
        self.set_deadline(place, None);
        let conn = self.conn(place).expect("it has just said something");
        conn.phase = phase;
        conn.heard = now;
        conn.decoder.accept_up_to(frame_bytes_max);
        if role == Role::Output {
            conn.bound_unread(PIPE_UNREAD_BYTES);
        }
        self.send(
            place,
            &Frame::Welcome(Welcome {
                session,
                beat_ms: BEAT_MS,
                grace_ms: u32::try_from(self.grace.millis()).unwrap_or(u32::MAX),
                result_bytes_max: u32::try_from(self.limits.result_bytes_max).unwrap_or(u32::MAX),
            }),
        );
        if role == Role::Control {
            let certificate = self.conn(place).map(|conn| conn.channel.peer_names());
            let certificate = certificate.filter(|names| !names.is_empty());
            if let Some(names) = certificate {
                tracing::info!(worker = %login.name, certificate = %names.join(","), "a worker with a certificate");
            }
            self.arrivals.push(Arrival::Joined { session, login });
            self.status.sessions.set(self.peers.sessions.len() as u64);
        }
    }

    fn on_post(&mut self, post: Post, now: Time) {
        match post {
            Post::Control { session, bytes } => {
                if let Some(place) = self.peers.session(session) {
                    self.send_bytes(place, bytes);
                }
            }
            Post::Stocked { session, stocked } => {
                let place = self.peers.session(session);
                if let Some(conn) = place.and_then(|place| self.conn(place)) {
                    conn.stocked = stocked;
                }
                if let Some(place) = place.filter(|_| !stocked) {
                    self.resume(place);
                }
            }
            Post::Pipe { pipe, bytes } => {
                if let Some(place) = self.peers.pipe(pipe) {
                    self.send_bytes(place, bytes);
                }
            }
            Post::PipeTaken { bytes, .. } => {
                self.again.append(&mut self.gate.taken(bytes));
                self.status
                    .pending_output_bytes
                    .set(self.gate.pending_bytes() as u64);
            }
            Post::PipeRefused { pipe } => {
                if let Some(place) = self.peers.pipe(pipe) {
                    let message = "output cannot be stored at the moment, send it again later";
                    self.refuse(place, RefuseCode::Busy, message.into(), now);
                }
            }
            Post::Close {
                session,
                code,
                message,
            } => {
                if let Some(place) = self.peers.session(session) {
                    self.refuse(place, code, message, now);
                }
            }
            Post::TokensChanged => self.expel(now),
            Post::StopAccepting => {
                if let Some(mut listener) = self.listener.take() {
                    drop(self.poll.registry().deregister(&mut listener));
                }
            }
            Post::Stop => self.stopping = true,
        }
    }

    fn on_time(&mut self, now: Time) {
        if self.accept_at.is_some_and(|at| at <= now) {
            self.accept(now);
        }
        while let Some((at, place)) = self.deadlines.first().copied()
            && at <= now
        {
            let conn = self.conn(place);
            if conn.is_some_and(|conn| !conn.channel.is_open()) {
                self.status.tls_failed.add(1);
            }
            if self.strangers.contains(&place) {
                self.status.timed_out.add(1);
            }
            self.drop_conn(place);
            self.deadlines.remove(&(at, place));
        }
        while let Some((at, place)) = self.paused.front().copied()
            && at <= now
        {
            self.paused.pop_front();
            self.resume(place);
        }
        if let Some(place) = self.shakes.next(now) {
            self.again.push(place);
        }
        if self.beat_at <= now {
            self.beat_at = now + Span::from_millis(u64::from(BEAT_MS));
            self.expel(now);
            self.beat(now);
        }
    }

    /// Beats to all workers, and cuts off those that take nothing.
    fn beat(&mut self, now: Time) {
        let beat = Frame::Beat(Beat {
            assign_seq: 0,
            held: 0,
        });
        let sessions: Vec<Place> = self
            .peers
            .sessions
            .values()
            .map(|peer| peer.place)
            .collect();
        for place in sessions {
            self.send(place, &beat);
        }
        let stuck = |conn: &Conn| {
            conn.stuck_since
                .is_some_and(|since| now.since(since) > self.grace)
        };
        let stuck: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, conn)| stuck(conn))
            .map(|(key, _)| key)
            .collect();
        for place in stuck
            .into_iter()
            .filter_map(|key| self.place(key))
            .collect::<Vec<_>>()
        {
            self.cut_off(place, "it has taken nothing for the grace time");
        }
    }

    fn accept(&mut self, now: Time) {
        self.accept_at = None;
        for _ in 0..ACCEPTS_MAX {
            let Some(listener) = &self.listener else {
                return;
            };
            match accept(listener) {
                Accepted::Connection(stream, peer) => {
                    self.no_room = false;
                    self.status.accepted.add(1);
                    self.take_connection(stream, peer, now);
                }
                Accepted::Nobody => return,
                Accepted::Later(error) => {
                    if !std::mem::replace(&mut self.no_room, true) {
                        tracing::warn!(%error, "connections from workers cannot be accepted at the moment");
                    }
                    self.accept_at = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
        self.accept_at = Some(now);
    }

    fn take_connection(
        &mut self,
        stream: mio::net::TcpStream,
        peer: std::net::SocketAddr,
        now: Time,
    ) {
        let crowd = self.addresses.entry(peer.ip()).or_default();
        *crowd += 1;
        let crowded = *crowd > self.limits.worker_connections_per_address_max;
        let mut full = self.conns.len() >= self.limits.worker_connections_max;
        if full
            && !crowded
            && let Some(oldest) = self.safe_to_drop(now)
        {
            self.refuse(
                oldest,
                RefuseCode::Busy,
                "another connection needed the place".into(),
                now,
            );
            full = false;
        }
        if self.conns.len() >= self.limits.worker_connections_max + LINGERING_MAX {
            self.status.refused.add(1);
            self.forget_address(peer.ip());
            return; // closed by dropping it
        }
        self.last_serial += 1;
        let serial = self.last_serial;
        let channel = match &self.tls {
            None => Channel::plain(),
            Some(live) => match Channel::server(live.config(Port::Worker)) {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::warn!(%peer, %error, "TLS cannot begin");
                    return self.forget_address(peer.ip());
                }
            },
        };
        let entry = self.conns.vacant_entry();
        let key = entry.key();
        let conn = entry.insert(Conn::new(stream, peer, serial, Token(key), channel, now));
        let place = Place { serial, key };
        if let Err(error) = conn.register(self.poll.registry()) {
            tracing::warn!(%peer, %error, "a connection could not be watched");
            self.conns.remove(key);
            self.forget_address(peer.ip());
            return;
        }
        self.status.connections.set(self.conns.len() as u64);
        self.strangers.insert(place);
        let timeout = u64::try_from(self.limits.handshake_timeout.as_micros()).unwrap_or(u64::MAX);
        self.set_deadline(place, Some(now + Span::from_micros(timeout)));
        if crowded {
            let limit = self.limits.worker_connections_per_address_max;
            let message = format!(
                "the server has {limit} worker connections from this address, which is its limit \
                 (worker_connections_per_address_max)"
            );
            self.refuse(place, RefuseCode::Busy, message, now);
        } else if full {
            let limit = self.limits.worker_connections_max;
            let message = format!("the server has {limit} worker connections, which is its limit");
            self.refuse(place, RefuseCode::Busy, message, now);
        }
    }

    /// A connection from there is gone.
    fn forget_address(&mut self, address: IpAddr) {
        if let Entry::Occupied(mut crowd) = self.addresses.entry(address) {
            *crowd.get_mut() -= 1;
            if *crowd.get() == 0 {
                crowd.remove();
            }
        }
    }

    /// The oldest stranger, if it has had its chance.
    fn safe_to_drop(&self, now: Time) -> Option<Place> {
        let oldest = *self.strangers.first()?;
        let conn = self.conns.get(oldest.key)?;
        (now.since(conn.heard) >= STRANGER_SAFE).then_some(oldest)
    }

    /// Counts what a stranger makes us hold.
    fn count_stranger(&mut self, place: Place, now: Time) {
        if !self.strangers.contains(&place) {
            return;
        }
        let Some(conn) = self.conn(place) else {
            return;
        };
        let (before, bytes) = (conn.counted_bytes, conn.decoder.buffer().len());
        conn.counted_bytes = bytes;
        self.strangers_bytes = self.strangers_bytes + bytes - before;
        if self.strangers_bytes > HANDSHAKES_BYTES_MAX {
            let message = "too many logins at once, try again later";
            self.refuse(place, RefuseCode::Busy, message.into(), now);
        }
    }

    fn forget_stranger(&mut self, place: Place) {
        if self.strangers.remove(&place)
            && let Some(conn) = self.conn(place)
        {
            let counted = std::mem::take(&mut conn.counted_bytes);
            self.strangers_bytes -= counted;
        }
    }

    fn set_deadline(&mut self, place: Place, deadline: Option<Time>) {
        let Some(conn) = self.conn(place) else {
            return;
        };
        let old = std::mem::replace(&mut conn.deadline, deadline);
        if let Some(old) = old {
            self.deadlines.remove(&(old, place));
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, place));
        }
    }

    fn send(&mut self, place: Place, frame: &Frame) {
        self.send_with(place, |conn| conn.send(frame));
    }

    fn send_bytes(&mut self, place: Place, bytes: BytesMut) {
        self.send_with(place, |conn| conn.send_bytes(bytes));
    }

    fn send_with(&mut self, place: Place, append: impl FnOnce(&mut Conn)) {
        let Some(conn) = self.conn(place) else {
            return;
        };
        append(conn);
        if !conn.dirty {
            conn.dirty = true;
            self.dirty.push(place);
        }
    }

    /// Writes to each socket that has something, once.
    fn flush_dirty(&mut self, now: Time) {
        for place in std::mem::take(&mut self.dirty) {
            let conn = self.conns.get_mut(place.key);
            let Some(conn) = conn.filter(|conn| conn.serial == place.serial) else {
                continue;
            };
            conn.dirty = false;
            if conn.flush(self.poll.registry(), now).is_err() {
                self.drop_conn(place);
            } else if conn.waiting_bytes() > self.limits.worker_send_bytes_max {
                self.cut_off(place, "too much waits to be sent to it");
            }
        }
    }

    fn tell(&mut self) {
        if !self.arrivals.is_empty() {
            (self.tell)(&mut self.arrivals);
            self.arrivals.clear();
        }
    }

    /// Ends a connection that does not read: it could not be told why.
    fn cut_off(&mut self, place: Place, why: &str) {
        if let Some(conn) = self.conn(place) {
            tracing::warn!(peer = %conn.peer, waiting_bytes = conn.waiting_bytes(), "a worker was cut off: {why}");
            self.status.cut_off.add(1);
            self.drop_conn(place);
        }
    }

    /// Tells a peer why, and closes once it has heard it, or after a while.
    fn refuse(&mut self, place: Place, code: RefuseCode, message: String, now: Time) {
        self.part(place);
        let Some(conn) = self.conn(place) else {
            return;
        };
        tracing::info!(peer = %conn.peer, ?code, %message, "a connection from a worker was refused");
        self.status.refused.add(1);
        self.send(place, &Frame::Refused(Refused { code, message }));
        self.set_deadline(place, Some(now + LINGER));
    }

    /// Closes at once.
    fn drop_conn(&mut self, place: Place) {
        self.part(place);
        self.set_deadline(place, None);
        if self.conn(place).is_some() {
            let mut conn = self.conns.remove(place.key);
            conn.deregister(self.poll.registry());
            self.forget_address(conn.peer.ip());
            self.status.connections.set(self.conns.len() as u64);
        }
    }

    /// The peer is nobody from now on.
    fn part(&mut self, place: Place) {
        self.forget_stranger(place);
        self.shakes.end(place);
        let Some(conn) = self.conn(place) else {
            return;
        };
        match std::mem::replace(&mut conn.phase, Phase::Closing) {
            Phase::Control(session) => self.part_session(session),
            Phase::Pipe(pipe) => self.part_pipe(pipe),
            Phase::Hello | Phase::Login(_) | Phase::Closing => {}
        }
    }

    fn part_session(&mut self, session: SessionId) {
        let pipe = self.peers.leave(session);
        self.arrivals.push(Arrival::Left { session });
        self.status.sessions.set(self.peers.sessions.len() as u64);
        // Its pipe was let in by this session; what it has not had acknowledged goes through the next.
        if let Some(place) = pipe.and_then(|pipe| self.peers.pipe(pipe)) {
            self.drop_conn(place);
        }
    }

    fn part_pipe(&mut self, pipe: PipeId) {
        self.peers.close_pipe(pipe);
        self.output.pipe_closed(pipe);
    }

    /// The end: what the sockets take at once still goes out.
    fn close_all(&mut self) {
        let now = self.clock.now();
        self.flush_dirty(now);
        let secure = self
            .conns
            .iter_mut()
            .filter(|(_, conn)| conn.channel.is_tls());
        for (_, conn) in secure {
            conn.channel.close();
            // Whoever does not take it finds the connection cut, which is as good.
            drop(conn.flush(self.poll.registry(), now));
        }
        let keys: Vec<usize> = self.conns.iter().map(|(key, _)| key).collect();
        for place in keys
            .into_iter()
            .filter_map(|key| self.place(key))
            .collect::<Vec<_>>()
        {
            self.drop_conn(place);
        }
        self.tell();
    }
}

/// Whether a worker may say this on its control connection.
fn is_control(frame: &Frame) -> bool {
    matches!(
        frame,
        Frame::Started(_)
            | Frame::Reports(_)
            | Frame::Returned(_)
            | Frame::Beat(_)
            | Frame::ProbeReply(_)
    )
}

/// Whether it may say this on its output pipe.
fn is_output(frame: &Frame) -> bool {
    matches!(
        frame,
        Frame::OutputStart(_) | Frame::Chunk(_) | Frame::OutputEnd(_)
    )
}
