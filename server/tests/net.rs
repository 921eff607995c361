//! The wire thread from outside, over real sockets: who comes in, who does not, and that strangers harm nobody.

#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "anything but what is expected fails the test"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostler_engine::Span;
use hostler_server::auth::{Auth, Role as TokenRole, TokenRecord};
use hostler_server::clock::Clock;
use hostler_server::mailbox::{Wake, mailbox};
use hostler_server::net::{self, Arrival, Needs, Post, Visit};
use hostler_server::output::{self, Options, Output};
use hostler_server::{Config, config::Limits};
use hostler_wire::codec::raw_frame;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{
    Beat, Chunk, Frame, Login, OutputEnd, RefuseCode, Refused, Role, Started, Stream,
};
use hostler_wire::handshake::{ClientHandshake, Identity};
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::token::Token;
use hostler_wire::{Attempt, Epoch, Fence, JobId, SessionId};

const PATIENCE: Duration = Duration::from_secs(20);

/// A wire thread and an output thread behind it.
struct Trial {
    address: SocketAddr,
    net: net::Handle,
    output: output::Handle,
    arrivals: Receiver<Arrival>,
    auth: Arc<Auth>,
    visits: Receiver<Visit>,
    threads: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Trial {
    fn start(change: impl FnOnce(&mut Limits)) -> Self {
        Self::start_with(change, None)
    }

    /// With an output thread of the test's own, perhaps.
    fn start_with(change: impl FnOnce(&mut Limits), stand_in: Option<output::Handle>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path().to_path_buf());
        change(&mut config.limits);
        let clock = Clock::resume(None);
        let net = net::open(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let (address, handle) = (net.address(), net.handle());
        let to_net = handle.clone();
        let answers =
            Box::new(move |batch: &mut Vec<_>| to_net.post_all(batch.drain(..).map(Post::from)));
        let ends = Box::new(|_| -> output::PollEnds { Box::new(|| Some(Some(Vec::new()))) });
        let ways = output::Ways {
            answers,
            ends,
            commits: Arc::default(),
        };
        let (output, output_thread) = output::spawn(Options::new(&config), clock, ways).unwrap();
        let to_output = stand_in.unwrap_or_else(|| output.clone());
        let (sender, arrivals) = channel();
        let auth = Arc::new(Auth::new(None, &token()));
        let (visitor, visits) = channel();
        let net_thread = net
            .spawn(Needs {
                config,
                clock,
                identity: Identity {
                    cluster: [1; 16],
                    epoch: Epoch::new(3),
                    epoch_nonce: [2; 16],
                },
                auth: Arc::clone(&auth),
                visits: Box::new(move |visit| drop(visitor.send(visit))),
                tell: Box::new(move |batch| {
                    for arrival in batch.drain(..) {
                        drop(sender.send(arrival)); // the test may be over
                    }
                }),
                output: to_output,
                tls: None,
            })
            .unwrap();
        Self {
            address,
            net: handle,
            output,
            arrivals,
            auth,
            visits,
            threads: vec![net_thread, output_thread],
            _dir: dir,
        }
    }

    fn stop(self) {
        self.net.post(Post::Stop);
        self.output.stop();
        for thread in self.threads {
            thread.join().unwrap();
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// A worker that has joined.
    fn worker(&self, name: &str) -> (Client, SessionId) {
        let mut client = self.client();
        let session = client.join(Role::Control, login(name)).unwrap();
        match self.arrivals.recv_timeout(PATIENCE).unwrap() {
            Arrival::Joined {
                session: told,
                login,
            } => {
                assert_eq!((told, login.name.as_str()), (session, name));
            }
            other => panic!("{other:?}"),
        }
        (client, session)
    }

    /// The next news that is not a mere sign of life.
    fn news(&self) -> Arrival {
        loop {
            match self.arrivals.recv_timeout(PATIENCE).unwrap() {
                Arrival::Frames { frames, .. } if frames.is_empty() => {}
                other => return other,
            }
        }
    }

    fn expect_left(&self, session: SessionId) {
        match self.news() {
            Arrival::Left { session: left } => assert_eq!(left, session),
            other => panic!("{other:?}"),
        }
    }

    /// Shows that this worker is still served.
    fn expect_alive(&self, client: &mut Client, session: SessionId) {
        let frame = Frame::Started(Started {
            fences: vec![fence(1)],
        });
        client.send(&frame);
        match self.news() {
            Arrival::Frames {
                session: from,
                frames,
            } => {
                assert_eq!((from, frames), (session, vec![frame]));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A client's end of a connection.
struct Client {
    stream: TcpStream,
    decoder: Decoder,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        Self { stream, decoder }
    }

    fn send(&mut self, frame: &Frame) {
        self.send_bytes(&encoded(frame));
    }

    fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The next frame but beats; none if the server has closed.
    fn next(&mut self) -> Option<Frame> {
        let mut room = [0; 4_096];
        loop {
            match self.decoder.next_frame().unwrap() {
                Some(Frame::Beat(_)) => continue,
                Some(frame) => return Some(frame),
                None => {}
            }
            match self.stream.read(&mut room) {
                Ok(0) => return None,
                Ok(bytes) => self.decoder.buffer().extend_from_slice(&room[..bytes]),
                Err(error) => {
                    let kind = error.kind();
                    assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "nothing came");
                    return None;
                }
            }
        }
    }

    fn expect_refused(&mut self) -> Refused {
        match self.next() {
            Some(Frame::Refused(refused)) => {
                assert_eq!(self.next(), None);
                refused
            }
            other => panic!("{other:?}"),
        }
    }

    fn join(&mut self, role: Role, login: Login) -> Result<SessionId, Refused> {
        self.join_with(&token(), role, login)
    }

    fn join_with(
        &mut self,
        token: &Token,
        role: Role,
        mut login: Login,
    ) -> Result<SessionId, Refused> {
        let (handshake, hello) = ClientHandshake::new(token, role, [7; 32]);
        self.send(&Frame::Hello(hello));
        let Some(Frame::Challenge(challenge)) = self.next() else {
            panic!("no challenge");
        };
        if handshake.login(&challenge, &mut login).is_err() {
            // A client that goes on though the server could not prove itself.
            login.proof = [9; 32];
        }
        self.send(&Frame::Login(Box::new(login)));
        match self.next() {
            Some(Frame::Welcome(welcome)) => Ok(welcome.session),
            Some(Frame::Refused(refused)) => Err(refused),
            other => panic!("{other:?}"),
        }
    }
}

fn token() -> Token {
    Token {
        role: "worker".into(),
        id: "abcdefgh".into(),
        secret: [5; 32],
    }
}

fn login(name: &str) -> Login {
    Login {
        proof: [0; 32],
        name: name.into(),
        instance: 1,
        session: None,
        slots: 1,
        commands: true,
        handlers: Vec::new(),
        queues: vec!["default".into()],
        labels: Vec::new(),
        allocation: String::new(),
        held: Vec::new(),
        last_report: 0,
        epochs: Vec::new(),
    }
}

fn pipe_login(name: &str, session: SessionId) -> Login {
    Login {
        session: Some(session),
        ..login(name)
    }
}

fn fence(job: u64) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(3),
        attempt: Attempt::FIRST,
    }
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes
}

#[test]
fn a_worker_with_the_token_joins_speaks_and_leaves() {
    let t = Trial::start(|_| {});
    let (mut client, session) = t.worker("w1");
    t.expect_alive(&mut client, session);
    t.net.post(Post::Control {
        session,
        bytes: encoded(&Frame::Ack(hostler_wire::frame::Ack { through: 8 })),
    });
    assert!(matches!(client.next(), Some(Frame::Ack(ack)) if ack.through == 8));
    drop(client);
    t.expect_left(session);
    let (_again, later) = t.worker("w1");
    assert!(later > session);
    t.stop();
}

#[test]
fn a_stocked_worker_that_said_little_is_not_heard_for_a_moment_and_nothing_of_it_is_lost() {
    let t = Trial::start(|_| {});
    let (mut client, session) = t.worker("w1");
    t.net.post(Post::Stocked {
        session,
        stocked: true,
    });
    // It is told of before anything that comes after it.
    t.net.post(Post::Control {
        session,
        bytes: encoded(&Frame::Ack(hostler_wire::frame::Ack { through: 1 })),
    });
    client.next().unwrap();
    let clock = Clock::resume(None);
    for _ in 0..3 {
        let begun = clock.now();
        t.expect_alive(&mut client, session);
        t.expect_alive(&mut client, session);
        let waited = clock.now().since(begun);
        assert!(waited >= Span::from_millis(3), "{waited:?}");
    }
    // What is to be sent to it leaves though it is not listened to.
    t.net.post(Post::Control {
        session,
        bytes: encoded(&Frame::Ack(hostler_wire::frame::Ack { through: 2 })),
    });
    assert!(matches!(client.next(), Some(Frame::Ack(ack)) if ack.through == 2));
    t.expect_alive(&mut client, session);
    t.net.post(Post::Stocked {
        session,
        stocked: false,
    });
    t.expect_alive(&mut client, session);
    drop(client);
    t.expect_left(session);
    t.stop();
}

#[test]
fn the_server_beats_though_nothing_happens() {
    let t = Trial::start(|_| {});
    let (mut client, _) = t.worker("w1");
    let mut room = [0; 64];
    let bytes = client.stream.read(&mut room).unwrap();
    client.decoder.buffer().extend_from_slice(&room[..bytes]);
    assert!(matches!(
        client.decoder.next_frame(),
        Ok(Some(Frame::Beat(_)))
    ));
    t.stop();
}

#[test]
fn a_wrong_secret_and_an_unknown_id_are_refused_alike() {
    let t = Trial::start(|_| {});
    let wrong = Token {
        secret: [6; 32],
        ..token()
    };
    let unknown = Token {
        id: "zzzzzzzz".into(),
        ..token()
    };
    let wrong = t
        .client()
        .join_with(&wrong, Role::Control, login("w"))
        .unwrap_err();
    let unknown = t
        .client()
        .join_with(&unknown, Role::Control, login("w"))
        .unwrap_err();
    assert_eq!(wrong, unknown);
    assert_eq!(wrong.code, RefuseCode::Unauthorised);
    assert_eq!(t.net.status().unauthorised.value(), 2);
    t.stop();
}

#[test]
fn many_wrong_tokens_make_their_address_wait() {
    let t = Trial::start(|_| {});
    let wrong = Token {
        secret: [6; 32],
        ..token()
    };
    // Each second forgives one, so a slow run needs a few more than the twenty allowed.
    let waits = (0..1_000).position(|_| {
        let refused = t.client().join_with(&wrong, Role::Control, login("w"));
        match refused.unwrap_err().code {
            RefuseCode::Unauthorised => false,
            RefuseCode::Busy => true,
            other => panic!("{other:?}"),
        }
    });
    assert!(waits.is_some_and(|tries| tries >= 20), "{waits:?}");
    t.stop();
}

#[test]
fn a_replayed_hello_and_login_are_refused() {
    let t = Trial::start(|_| {});
    let mut client = t.client();
    let (handshake, hello) = ClientHandshake::new(&token(), Role::Control, [7; 32]);
    client.send(&Frame::Hello(hello.clone()));
    let Some(Frame::Challenge(challenge)) = client.next() else {
        panic!("no challenge");
    };
    let mut login = login("w1");
    handshake.login(&challenge, &mut login).unwrap();
    let login = Frame::Login(Box::new(login));
    client.send(&login);
    assert!(matches!(client.next(), Some(Frame::Welcome(_))));

    // Whoever recorded that gets another challenge, which the recorded login does not answer.
    let mut thief = t.client();
    thief.send(&Frame::Hello(hello));
    assert!(matches!(thief.next(), Some(Frame::Challenge(_))));
    thief.send(&login);
    assert_eq!(thief.expect_refused().code, RefuseCode::Unauthorised);
    t.stop();
}

#[test]
fn a_server_that_does_not_know_the_token_is_found_out_before_anything_is_said() {
    let t = Trial::start(|_| {});
    let mut client = t.client();
    let other = Token {
        id: "zzzzzzzz".into(),
        ..token()
    };
    let (handshake, hello) = ClientHandshake::new(&other, Role::Control, [7; 32]);
    client.send(&Frame::Hello(hello));
    let Some(Frame::Challenge(challenge)) = client.next() else {
        panic!("no challenge");
    };
    assert!(handshake.login(&challenge, &mut login("w1")).is_err());
    t.stop();
}

#[test]
fn garbage_lengths_and_frames_before_their_time_end_their_own_connection_only() {
    let t = Trial::start(|_| {});
    let (mut worker, session) = t.worker("w1");
    let early = encoded(&Frame::Started(Started { fences: vec![] }));
    let huge = raw_frame(1, 0, &[0; 513]);
    let garbage = *b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for (bytes, code) in [
        (&early[..], RefuseCode::Invalid),
        (&huge[..12], RefuseCode::Invalid),
        (&garbage, RefuseCode::Damaged),
    ] {
        let mut stranger = t.client();
        stranger.send_bytes(bytes);
        assert_eq!(stranger.expect_refused().code, code);
        t.expect_alive(&mut worker, session);
    }
    t.stop();
}

#[test]
fn a_worker_that_sends_what_is_not_its_to_send_is_refused_and_has_left_once() {
    let t = Trial::start(|_| {});
    for (i, frame) in [
        Frame::Chunk(Chunk {
            fence: fence(1),
            stream: Stream::Stdout,
            offset: 0,
            at_ms: 0,
            data: Bytes::from_static(b"x"),
        }),
        Frame::Ack(hostler_wire::frame::Ack { through: 1 }),
    ]
    .into_iter()
    .enumerate()
    {
        let (mut worker, session) = t.worker(&format!("w{i}"));
        // What came before the offending frame still counts.
        let good = Frame::Beat(Beat {
            assign_seq: 1,
            held: 0,
        });
        worker.send(&good);
        worker.send(&frame);
        let Arrival::Frames { frames, .. } = t.news() else {
            panic!("no frames");
        };
        assert_eq!(frames, [good]);
        t.expect_left(session);
        assert_eq!(worker.expect_refused().code, RefuseCode::Invalid);
    }
    assert!(t.arrivals.try_recv().is_err());
    t.stop();
}

#[test]
fn a_silent_stranger_is_closed_at_the_deadline() {
    let t = Trial::start(|limits| limits.handshake_timeout = Duration::from_millis(100));
    let mut silent = t.client();
    assert_eq!(silent.next(), None);
    let mut halfway = t.client();
    let (_, hello) = ClientHandshake::new(&token(), Role::Control, [7; 32]);
    halfway.send(&Frame::Hello(hello));
    assert!(matches!(halfway.next(), Some(Frame::Challenge(_))));
    assert_eq!(halfway.next(), None);
    t.stop();
}

#[test]
fn a_hello_that_comes_byte_by_byte_is_a_hello() {
    let t = Trial::start(|_| {});
    let mut client = t.client();
    let (_, hello) = ClientHandshake::new(&token(), Role::Control, [7; 32]);
    for byte in encoded(&Frame::Hello(hello)) {
        client.send_bytes(&[byte]);
    }
    assert!(matches!(client.next(), Some(Frame::Challenge(_))));
    t.stop();
}

#[test]
fn a_pipe_needs_a_live_session_of_the_same_worker() {
    let t = Trial::start(|_| {});
    let (_worker, session) = t.worker("w1");
    let unknown = SessionId::new(session.raw() + 1);
    let other_instance = Login {
        instance: 2,
        ..pipe_login("w1", session)
    };
    for login in [
        pipe_login("w1", unknown),
        pipe_login("w2", session),
        other_instance,
    ] {
        let refused = t.client().join(Role::Output, login).unwrap_err();
        assert_eq!(refused.code, RefuseCode::NoSession);
    }
    assert_eq!(
        t.client().join(Role::Output, pipe_login("w1", session)),
        Ok(session)
    );
    t.stop();
}

#[test]
fn output_goes_through_its_pipe_and_is_acknowledged_there() {
    let t = Trial::start(|_| {});
    let (_worker, session) = t.worker("w1");
    let mut pipe = t.client();
    pipe.join(Role::Output, pipe_login("w1", session)).unwrap();
    let size = 3_000_000_u64; // more than a turn takes
    let piece = vec![b'x'; 50_000];
    for offset in (0..size).step_by(piece.len()) {
        pipe.send(&Frame::Chunk(Chunk {
            fence: fence(1),
            stream: Stream::Stdout,
            offset,
            at_ms: 0,
            data: Bytes::from(piece.clone()),
        }));
    }
    pipe.send(&Frame::OutputEnd(OutputEnd {
        fence: fence(1),
        stdout_bytes: size,
        stderr_bytes: 0,
        dropped_bytes: 0,
    }));
    loop {
        match pipe.next() {
            Some(Frame::OutputAck(ack)) if ack.ended => {
                assert_eq!(ack.stdout_through, size);
                break;
            }
            Some(Frame::OutputAck(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    t.stop();
}

#[test]
fn output_that_is_not_taken_stops_its_pipes_and_never_control() {
    let (to_output, held) = mailbox(&Wake::parking());
    let bound = 1 << 20;
    let t = Trial::start_with(
        |limits| limits.output_pending_bytes_max = bound,
        Some(output::Handle::new(to_output)),
    );
    let (mut worker, session) = t.worker("w1");
    let mut pipe = t.client();
    pipe.join(Role::Output, pipe_login("w1", session)).unwrap();
    let size = 32 << 20; // more than all socket buffers hold
    let writer = std::thread::spawn(move || {
        for offset in (0..size).step_by(50_000) {
            pipe.send(&Frame::Chunk(Chunk {
                fence: fence(1),
                stream: Stream::Stdout,
                offset,
                at_ms: 0,
                data: Bytes::from(vec![b'x'; 50_000]),
            }));
        }
        pipe
    });
    let (mut messages, mut taken, mut data) = (Vec::new(), 0, 0);
    while data < size {
        // Nobody takes anything until the gate has closed; control goes on meanwhile.
        while t.net.status().pending_output_bytes.value() < bound as u64 && !writer.is_finished() {
            t.expect_alive(&mut worker, session);
        }
        let pending = t.net.status().pending_output_bytes.value();
        assert!(pending < 2 * bound as u64, "{pending} bytes wait");
        held.drain(&mut messages, usize::MAX);
        for message in messages.drain(..) {
            let Output::Frames {
                pipe,
                frames,
                bytes,
            } = message
            else {
                panic!("{message:?}");
            };
            taken += bytes;
            for frame in frames {
                let Frame::Chunk(chunk) = frame else {
                    panic!("{frame:?}");
                };
                assert_eq!(chunk.offset, data);
                data += chunk.data.len() as u64;
            }
            t.net.post(Post::PipeTaken { pipe, bytes });
        }
    }
    assert!(taken as u64 > data);
    drop(writer.join().unwrap());
    t.stop();
}

#[test]
fn a_pipe_goes_with_its_session_and_a_newer_one_takes_its_place() {
    let t = Trial::start(|_| {});
    let (worker, session) = t.worker("w1");
    let mut first = t.client();
    first.join(Role::Output, pipe_login("w1", session)).unwrap();
    let mut second = t.client();
    second
        .join(Role::Output, pipe_login("w1", session))
        .unwrap();
    assert_eq!(first.next(), None);
    drop(worker);
    assert_eq!(second.next(), None);
    t.stop();
}

#[test]
fn a_pipe_of_another_token_is_not_let_into_a_session() {
    let t = Trial::start(|_| {});
    let (mut worker, session) = t.worker("w1");
    let other = Token {
        id: "otherone".into(),
        secret: [6; 32],
        ..token()
    };
    t.auth.add(TokenRecord::new(&other, TokenRole::Worker));
    let refused = t
        .client()
        .join_with(&other, Role::Output, pipe_login("w1", session));
    assert_eq!(refused.unwrap_err().code, RefuseCode::NoSession);
    t.expect_alive(&mut worker, session);
    t.client()
        .join(Role::Output, pipe_login("w1", session))
        .unwrap();
    t.stop();
}

#[test]
fn a_revoked_token_ends_its_sessions_at_once_and_lets_nobody_in_again() {
    let t = Trial::start(|_| {});
    let (mut other, others) = t.worker("other");
    let revoked = Token {
        id: "revoked0".into(),
        secret: [6; 32],
        ..token()
    };
    t.auth.add(TokenRecord::new(&revoked, TokenRole::Worker));
    let mut worker = t.client();
    let session = worker
        .join_with(&revoked, Role::Control, login("w1"))
        .unwrap();
    assert!(matches!(t.news(), Arrival::Joined { .. }));
    let known = t.auth.get(&revoked.id).unwrap();
    known.revoke(Clock::resume(None).wall());
    t.net.post(Post::TokensChanged);
    let refused = worker.expect_refused();
    assert_eq!(refused.code, RefuseCode::Unauthorised);
    assert!(refused.message.contains("revoked"), "{}", refused.message);
    t.expect_left(session);
    let again = t
        .client()
        .join_with(&revoked, Role::Control, login("w1"))
        .unwrap_err();
    assert_eq!(again.code, RefuseCode::Unauthorised);
    t.expect_alive(&mut other, others);
    let visits: Vec<_> = t.visits.try_iter().collect();
    let told = visits
        .iter()
        .map(|visit| (visit.worker.as_deref(), visit.refused));
    let expected = [(Some("other"), ""), (Some("w1"), ""), (None, net::UNPROVEN)];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    t.stop();
}

#[test]
fn an_expired_token_ends_its_sessions_within_a_beat() {
    let t = Trial::start(|_| {});
    let brief = Token {
        id: "brief000".into(),
        secret: [6; 32],
        ..token()
    };
    let mut record = TokenRecord::new(&brief, TokenRole::Worker);
    let wall = Clock::resume(None).wall().millis();
    record.expires = Some(hostler_engine::WallTime::from_millis(wall + 1_500));
    t.auth.add(record);
    let mut worker = t.client();
    worker
        .join_with(&brief, Role::Control, login("w1"))
        .unwrap();
    assert_eq!(worker.expect_refused().code, RefuseCode::Unauthorised);
    t.stop();
}

#[test]
fn a_worker_that_wants_to_be_more_than_its_token_allows_is_refused_and_told_why() {
    let t = Trial::start(|_| {});
    let scoped = Token {
        id: "scoped00".into(),
        secret: [6; 32],
        ..token()
    };
    let mut record = TokenRecord::new(&scoped, TokenRole::Worker);
    record.queues = vec!["video".into()];
    t.auth.add(record);
    let refused = t.client().join_with(&scoped, Role::Control, login("w1"));
    let refused = refused.unwrap_err();
    assert_eq!(refused.code, RefuseCode::Unauthorised);
    assert!(refused.message.contains("default"), "{}", refused.message);
    let fitting = Login {
        queues: vec!["video".into()],
        ..login("w1")
    };
    let session = t.client().join_with(&scoped, Role::Control, fitting);
    assert!(session.is_ok());
    t.stop();
}

#[test]
fn a_right_token_is_let_in_from_an_address_that_showed_many_wrong_ones() {
    let t = Trial::start(|_| {});
    let wrong = Token {
        secret: [6; 32],
        ..token()
    };
    for _ in 0..30 {
        let refused = t.client().join_with(&wrong, Role::Control, login("w"));
        assert!(refused.is_err());
    }
    let (mut worker, session) = t.worker("w1");
    t.expect_alive(&mut worker, session);
    t.stop();
}

#[test]
fn a_worker_that_never_reads_is_cut_at_the_bound() {
    let t = Trial::start(|limits| limits.worker_send_bytes_max = 1 << 20);
    let (deaf, session) = t.worker("deaf");
    let (mut other, others) = t.worker("other");
    let lump = BytesMut::zeroed(1 << 20);
    // More than any socket buffer holds.
    for _ in 0..64 {
        t.net.post(Post::Control {
            session,
            bytes: lump.clone(),
        });
    }
    t.expect_left(session);
    assert_eq!(t.net.status().cut_off.value(), 1);
    t.expect_alive(&mut other, others);
    drop(deaf);
    t.stop();
}

#[test]
fn a_closed_session_is_told_why_and_posts_to_it_are_nobodys() {
    let t = Trial::start(|_| {});
    let (mut worker, session) = t.worker("w1");
    t.net.post(Post::Close {
        session,
        code: RefuseCode::NameInUse,
        message: "another instance is connected".into(),
    });
    t.net.post(Post::Control {
        session,
        bytes: encoded(&Frame::Ack(hostler_wire::frame::Ack { through: 8 })),
    });
    t.expect_left(session);
    assert_eq!(worker.expect_refused().code, RefuseCode::NameInUse);
    t.stop();
}

#[test]
fn a_thousand_silent_strangers_do_not_keep_a_worker_out() {
    let t = Trial::start(|limits| limits.worker_connections_max = 2_000);
    let _strangers: Vec<TcpStream> = (0..1_000)
        .map(|_| TcpStream::connect(t.address).unwrap())
        .collect();
    let (mut worker, session) = t.worker("w1");
    t.expect_alive(&mut worker, session);
    t.stop();
}

#[test]
fn one_connection_too_many_is_told_so() {
    let t = Trial::start(|limits| limits.worker_connections_max = 2);
    let (mut one, session) = t.worker("w1");
    let _two = t.worker("w2");
    let refused = t.client().expect_refused();
    assert_eq!(refused.code, RefuseCode::Busy);
    assert!(
        refused.message.contains("2 worker connections"),
        "{}",
        refused.message
    );
    t.expect_alive(&mut one, session);
    t.stop();
}

#[test]
fn one_address_cannot_take_every_place() {
    let t = Trial::start(|limits| limits.worker_connections_per_address_max = 2);
    let (mut worker, session) = t.worker("w1");
    let second = t.client();
    let mut third = t.client();
    let refused = third.expect_refused();
    assert_eq!(refused.code, RefuseCode::Busy);
    let limit = "worker_connections_per_address_max";
    assert!(refused.message.contains(limit), "{}", refused.message);
    t.expect_alive(&mut worker, session);
    // Whoever leaves makes room again.
    drop((second, third));
    for _ in 0..2_000 {
        if t.net.status().connections.value() == 1 {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let _another = t.worker("w2");
    t.stop();
}

#[test]
fn when_all_places_are_taken_the_oldest_silent_stranger_makes_room() {
    let t = Trial::start(|limits| limits.worker_connections_max = 2);
    let _worker = t.worker("w1");
    let mut silent = t.client();
    // Until it has had its second, newcomers are told to come again.
    let joined = (0..100_000).any(|_| t.client().join_or_busy("w2"));
    assert!(joined);
    assert_eq!(silent.expect_refused().code, RefuseCode::Busy);
    t.stop();
}

impl Client {
    /// Joins unless there is no place.
    fn join_or_busy(mut self, name: &str) -> bool {
        let (handshake, hello) = ClientHandshake::new(&token(), Role::Control, [7; 32]);
        if self
            .stream
            .write_all(&encoded(&Frame::Hello(hello)))
            .is_err()
        {
            return false;
        }
        let Some(Frame::Challenge(challenge)) = self.next() else {
            return false;
        };
        let mut login = login(name);
        handshake.login(&challenge, &mut login).unwrap();
        self.send(&Frame::Login(Box::new(login)));
        matches!(self.next(), Some(Frame::Welcome(_)))
    }
}

#[test]
fn a_port_that_no_longer_accepts_keeps_its_workers() {
    let t = Trial::start(|_| {});
    let (mut worker, session) = t.worker("w1");
    t.net.post(Post::StopAccepting);
    t.expect_alive(&mut worker, session); // the post before it has been handled by now
    assert!(TcpStream::connect(t.address).is_err());
    t.expect_alive(&mut worker, session);
    t.stop();
}
