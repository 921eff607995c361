//! The wire thread under TLS, over real sockets: what is different there, and that nothing else is.

#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "anything but what is expected fails the test"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use hostler_server::auth::Auth;
use hostler_server::clock::Clock;
use hostler_server::net::{self, Arrival, Needs, Post};
use hostler_server::output::{self, Options};
use hostler_server::{Config, config::Limits};
use hostler_tls::{Channel, ChannelError, ClientFiles, Live, Port, ServerFiles, ServerName};
use hostler_wire::SessionId;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Login, Probe, RefuseCode, Role};
use hostler_wire::handshake::{ClientHandshake, Identity};
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::token::Token;

const PATIENCE: Duration = Duration::from_secs(20);

/// A wire thread whose port speaks TLS.
struct Trial {
    address: SocketAddr,
    net: net::Handle,
    output: output::Handle,
    arrivals: Receiver<Arrival>,
    threads: Vec<JoinHandle<()>>,
    dir: tempfile::TempDir,
}

impl Trial {
    fn start(change: impl FnOnce(&mut Limits)) -> Self {
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
        let (sender, arrivals) = channel();
        let needs = Needs {
            config,
            clock,
            identity: Identity {
                cluster: [1; 16],
                epoch: hostler_wire::Epoch::new(3),
                epoch_nonce: [2; 16],
            },
            auth: Arc::new(Auth::new(None, &token())),
            visits: Box::new(drop),
            tell: Box::new(move |batch| {
                for arrival in batch.drain(..) {
                    drop(sender.send(arrival)); // the test may be over
                }
            }),
            output: output.clone(),
            tls: Some(certificate(dir.path())),
        };
        let net_thread = net.spawn(needs).unwrap();
        Self {
            address,
            net: handle,
            output,
            arrivals,
            threads: vec![net_thread, output_thread],
            dir,
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
        let files = ClientFiles {
            ca: Some(self.dir.path().join("server.pem")),
            ..ClientFiles::default()
        };
        let name = ServerName::try_from("localhost").unwrap();
        let config = files.load(Port::Worker).unwrap();
        Client::new(self.address, Channel::client(config, name).unwrap())
    }

    /// A worker that has joined.
    fn worker(&self, name: &str) -> (Client, SessionId) {
        let mut client = self.client();
        let session = client.join(name).unwrap();
        match self.arrivals.recv_timeout(PATIENCE).unwrap() {
            Arrival::Joined { login, .. } => assert_eq!(login.name, name),
            other => panic!("{other:?}"),
        }
        (client, session)
    }

    fn expect_left(&self, session: SessionId) {
        loop {
            match self.arrivals.recv_timeout(PATIENCE).unwrap() {
                Arrival::Frames { .. } => {}
                Arrival::Left { session: left } => return assert_eq!(left, session),
                other => panic!("{other:?}"),
            }
        }
    }

    /// One that begins with TLS and does not go on.
    fn half_open(&self) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream
            .write_all(&[22, 3, 1, 1, 0, 1, 0, 0, 252, 3, 3])
            .unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// A client's end of a connection, on a socket that blocks.
struct Client {
    stream: TcpStream,
    channel: Channel,
    decoder: Decoder,
}

impl Client {
    fn new(address: SocketAddr, channel: Channel) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut decoder = Decoder::new();
        decoder.accept_up_to(FRAME_BYTES_MAX);
        Self {
            stream,
            channel,
            decoder,
        }
    }

    /// Writes until all of it has left, which takes answers while TLS begins.
    fn send(&mut self, frame: &Frame) {
        let mut out = encoded(frame);
        loop {
            self.channel.write(&mut self.stream, &mut out).unwrap();
            if out.is_empty() && !self.channel.wants_write() {
                return;
            }
            self.read().unwrap();
        }
    }

    fn read(&mut self) -> Result<usize, ChannelError> {
        let mut room = [0; 4_096];
        let into = self.decoder.buffer();
        let taken = self.channel.read(&mut self.stream, &mut room, into)?;
        Ok(taken.wire)
    }

    /// The next frame but beats; none after an orderly end.
    fn next(&mut self) -> Result<Option<Frame>, ChannelError> {
        loop {
            match self.decoder.next_frame().unwrap() {
                Some(Frame::Beat(_)) => {}
                Some(frame) => return Ok(Some(frame)),
                None if self.read()? == 0 => return Ok(None),
                None => {}
            }
        }
    }

    fn join(&mut self, name: &str) -> Result<SessionId, RefuseCode> {
        let (mut handshake, hello) = ClientHandshake::new(&token(), Role::Control, [7; 32]);
        self.send(&Frame::Hello(hello));
        let challenge = match self.next() {
            Ok(Some(Frame::Challenge(challenge))) => challenge,
            Ok(Some(Frame::Refused(refused))) => return Err(refused.code),
            other => panic!("{other:?}"),
        };
        handshake.bind(self.channel.binding().unwrap());
        let mut login = login(name);
        handshake.login(&challenge, &mut login).unwrap();
        self.send(&Frame::Login(Box::new(login)));
        match self.next() {
            Ok(Some(Frame::Welcome(welcome))) => Ok(welcome.session),
            other => panic!("{other:?}"),
        }
    }
}

/// One that vouches for itself.
fn certificate(dir: &Path) -> Arc<Live> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = ServerFiles {
        cert: dir.join("server.pem"),
        key: dir.join("server.key"),
        client_ca: None,
    };
    fs::write(&files.cert, made.cert.pem()).unwrap();
    fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let configs = files.load().unwrap();
    Arc::new(Live::new(files, configs))
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

fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes
}

#[test]
fn a_worker_joins_under_tls_and_the_servers_stop_is_an_orderly_end() {
    let t = Trial::start(|_| {});
    let (mut client, session) = t.worker("w1");
    let probe = Frame::Probe(Probe {
        ask: 8,
        fences: Vec::new(),
    });
    t.net.post(Post::Control {
        session,
        bytes: encoded(&probe),
    });
    assert_eq!(client.next().unwrap(), Some(probe));
    t.stop();
    assert_eq!(client.next().unwrap(), None);
}

#[test]
fn a_worker_that_goes_without_a_word_has_left() {
    let t = Trial::start(|_| {});
    let (client, session) = t.worker("w1");
    client.stream.shutdown(Shutdown::Write).unwrap();
    t.expect_left(session);
    t.stop();
}

#[test]
fn a_worker_that_does_not_read_is_cut_off_at_the_bound() {
    let bound = 1 << 20;
    let t = Trial::start(|limits| limits.worker_send_bytes_max = bound);
    let (_client, session) = t.worker("w1");
    let piece = BytesMut::from(&vec![0; 64 << 10][..]);
    // Far more than both sockets hold: the rest waits in the server, and is bounded there.
    for _ in 0..1_000 {
        let bytes = piece.clone();
        t.net.post(Post::Control { session, bytes });
    }
    t.expect_left(session);
    assert_eq!(t.net.status().cut_off.value(), 1);
    t.stop();
}

#[test]
fn half_done_handshakes_make_room_for_a_worker_that_means_it() {
    let t = Trial::start(|limits| limits.tls_handshakes_max = 2);
    let mut silent: Vec<_> = (0..2).map(|_| t.half_open()).collect();
    let (mut other, session) = t.worker("w1");
    t.net.post(Post::Close {
        session,
        code: RefuseCode::Stopping,
        message: "enough".into(),
    });
    assert!(matches!(other.next().unwrap(), Some(Frame::Refused(_))));
    // One of the two had to go.
    let mut rest = Vec::new();
    drop(silent.remove(0).read_to_end(&mut rest));
    t.stop();
}

#[test]
fn a_handshake_that_is_not_done_in_time_is_closed() {
    let t = Trial::start(|limits| limits.handshake_timeout = Duration::from_millis(200));
    let mut stream = t.half_open();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(t.net.status().tls_failed.value(), 1);
    // Nor has it helped one that agreed on TLS and then said nothing.
    let mut client = t.client();
    let half_of_a_hello = BytesMut::from(&[61, 0][..]);
    let mut out = half_of_a_hello;
    while !client.channel.is_open() || !out.is_empty() {
        client.channel.write(&mut client.stream, &mut out).unwrap();
        if !client.channel.is_open() {
            client.read().unwrap();
        }
    }
    while !matches!(client.read(), Ok(0) | Err(_)) {}
    assert_eq!(t.net.status().tls_failed.value(), 1);
    t.stop();
}

#[test]
fn plain_frames_are_answered_in_plain_and_what_is_no_tls_is_counted() {
    let t = Trial::start(|_| {});
    let mut client = Client::new(t.address, Channel::plain());
    assert_eq!(client.join("w1"), Err(RefuseCode::Invalid));
    assert_eq!(client.next().unwrap(), None);
    assert_eq!(t.net.status().tls_failed.value(), 1);
    t.stop();
}
