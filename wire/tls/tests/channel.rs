//! Channels over sockets in memory that take and give as little, as much and as late as a test likes.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use hostler_tls::{
    Channel, ChannelError, ClientFiles, Live, Port, ServerFiles, ServerName, explain,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// One direction of a socket that does not block.
struct Wire {
    bytes: VecDeque<u8>,
    /// Most it holds.
    room: usize,
    /// Most it takes or gives in one call.
    once: usize,
    ended: bool,
    writes: usize,
}

impl Wire {
    fn new(room: usize, once: usize) -> Self {
        Self {
            bytes: VecDeque::new(),
            room,
            once,
            ended: false,
            writes: 0,
        }
    }
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.bytes.len().min(buf.len()).min(self.once);
        if n == 0 && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        for (to, from) in buf.iter_mut().zip(self.bytes.drain(..n)) {
            *to = from;
        }
        Ok(n)
    }
}

impl Write for Wire {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(self.room - self.bytes.len()).min(self.once);
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.writes += 1;
        self.bytes.extend(&buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One side of a connection.
struct End {
    channel: Channel,
    out: BytesMut,
    heard: BytesMut,
}

impl End {
    fn new(channel: Channel) -> Self {
        Self {
            channel,
            out: BytesMut::new(),
            heard: BytesMut::new(),
        }
    }

    fn read_all(&mut self, from: &mut Wire) -> Result<usize, ChannelError> {
        let (mut room, mut wire) = (vec![0; 64 << 10], 0);
        loop {
            match self.channel.read(from, &mut room, &mut self.heard) {
                Ok(taken) if taken.wire == 0 => return Ok(wire),
                Ok(taken) => wire += taken.wire,
                Err(error) if error.is_blocked() => return Ok(wire),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Two ends and what lies between them.
struct Pair {
    client: End,
    server: End,
    up: Wire,
    down: Wire,
}

impl Pair {
    fn new(client: Channel, server: Channel, room: usize, once: usize) -> Self {
        Self {
            client: End::new(client),
            server: End::new(server),
            up: Wire::new(room, once),
            down: Wire::new(room, once),
        }
    }

    /// Lets both go on until nothing moves. Says what ended the client, and what the server.
    fn run(&mut self) -> (Option<ChannelError>, Option<ChannelError>) {
        let (mut ours, mut theirs) = (None, None);
        loop {
            let up = turn(&mut self.client, &mut self.up, &mut self.down, &mut ours);
            let down = turn(&mut self.server, &mut self.down, &mut self.up, &mut theirs);
            if up + down == 0 {
                return (ours, theirs);
            }
        }
    }
}

/// One end writes, reads and writes; says how many bytes moved.
fn turn(end: &mut End, to: &mut Wire, from: &mut Wire, ended: &mut Option<ChannelError>) -> usize {
    let mut moved = end.channel.write(to, &mut end.out).unwrap().wire;
    match end.read_all(from) {
        Ok(wire) => moved += wire,
        Err(what) => *ended = Some(what),
    }
    moved + end.channel.write(to, &mut end.out).unwrap().wire
}

/// Files of an authority, made for each test.
struct Files {
    dir: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Files {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(params, key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let files = Self { dir, authority };
        files.make("server", ExtendedKeyUsagePurpose::ServerAuth, |_| {});
        files.make("worker", ExtendedKeyUsagePurpose::ClientAuth, |_| {});
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A certificate for `NAME.example`.
    fn make(
        &self,
        name: &str,
        usage: ExtendedKeyUsagePurpose,
        change: impl FnOnce(&mut CertificateParams),
    ) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([format!("{name}.example")]).unwrap();
        params.extended_key_usages = vec![usage];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn server_files(&self, client_ca: Option<&Path>) -> ServerFiles {
        ServerFiles {
            cert: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: client_ca.map(Path::to_owned),
        }
    }

    fn server(&self, client_ca: Option<&Path>) -> Channel {
        let configs = self.server_files(client_ca).load().unwrap();
        Channel::server(configs.worker).unwrap()
    }

    fn client(&self, with_certificate: bool) -> Channel {
        self.client_for(Port::Worker, with_certificate, "server.example")
    }

    fn client_for(&self, port: Port, with_certificate: bool, name: &'static str) -> Channel {
        let own = |name: &str| with_certificate.then(|| self.path(name));
        let files = ClientFiles {
            ca: Some(self.path("ca.pem")),
            cert: own("worker.pem"),
            key: own("worker.key"),
        };
        let name = ServerName::try_from(name).unwrap();
        Channel::client(files.load(port).unwrap(), name).unwrap()
    }
}

fn words(error: Option<ChannelError>) -> (String, &'static str) {
    match error {
        Some(ChannelError::Tls(error)) => {
            let words = explain(&error);
            assert!(words.is_final, "{words:?}");
            (words.what, words.hint.unwrap())
        }
        other => panic!("no error of TLS: {other:?}"),
    }
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(bytes)
    .collect()
}

#[test]
fn a_byte_at_a_time_is_enough_to_agree_and_to_talk() {
    let files = Files::new();
    let mut pair = Pair::new(files.client(false), files.server(None), 1, 1);
    pair.client.out.extend_from_slice(b"hello");
    pair.server.out.extend_from_slice(b"welcome");
    assert!(!pair.server.channel.is_handshaking() && !pair.server.channel.is_open());
    let (ours, theirs) = pair.run();
    assert!(ours.is_none() && theirs.is_none(), "{ours:?} {theirs:?}");
    assert_eq!(&pair.server.heard[..], b"hello");
    assert_eq!(&pair.client.heard[..], b"welcome");
    assert!(pair.client.channel.is_open() && pair.server.channel.is_open());
}

#[test]
fn bursts_both_ways_arrive_whole_through_a_narrow_socket() {
    let files = Files::new();
    for once in [64 << 10, 1_000] {
        let mut pair = Pair::new(files.client(false), files.server(None), 64 << 10, once);
        let (up, down) = (noise(3 << 20), noise(2 << 20));
        pair.client.out.extend_from_slice(&up);
        pair.server.out.extend_from_slice(&down);
        let (ours, theirs) = pair.run();
        assert!(ours.is_none() && theirs.is_none(), "{ours:?} {theirs:?}");
        assert!(pair.server.heard == up && pair.client.heard == down);
        assert!(!pair.client.channel.wants_write() && pair.client.out.is_empty());
    }
}

#[test]
fn what_a_peer_does_not_read_waits_in_its_owners_buffer() {
    let files = Files::new();
    let mut pair = Pair::new(files.client(false), files.server(None), 100_000, 100_000);
    pair.run();
    let whole = 10 << 20;
    pair.server.out.resize(whole, 7);
    let sent = pair
        .server
        .channel
        .write(&mut pair.down, &mut pair.server.out);
    assert!(sent.unwrap().blocked);
    let taken = whole - pair.server.out.len();
    assert!(
        taken <= 100_000 + (256 << 10) + (32 << 10),
        "{taken} bytes were taken"
    );
    // A second try takes nothing more.
    let again = pair
        .server
        .channel
        .write(&mut pair.down, &mut pair.server.out);
    assert_eq!(again.unwrap().wire, 0);
    assert_eq!(whole - pair.server.out.len(), taken);
    pair.run();
    assert_eq!(pair.client.heard.len(), whole);
}

#[test]
fn a_plain_channel_gives_the_owners_own_bytes_in_one_write() {
    struct Sink(Vec<(usize, usize)>);
    impl Write for Sink {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.push((buf.as_ptr().addr(), buf.len()));
            Ok(buf.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut out = BytesMut::from(&noise(1 << 20)[..]);
    let same = (out.as_ptr().addr(), out.len());
    let mut sink = Sink(Vec::new());
    let sent = Channel::plain().write(&mut sink, &mut out).unwrap();
    assert_eq!(sink.0, [same]);
    assert_eq!((sent.wire, out.len()), (1 << 20, 0));

    let mut pair = Pair::new(Channel::plain(), Channel::plain(), 10, 3);
    pair.client.out.extend_from_slice(b"as it is");
    pair.run();
    assert_eq!(&pair.server.heard[..], b"as it is");
    assert_eq!(pair.server.channel.binding(), None);
}

#[test]
fn an_end_that_was_not_announced_is_a_cut() {
    let files = Files::new();
    let mut pair = Pair::new(files.client(false), files.server(None), 1 << 20, 1 << 20);
    pair.client.out.extend_from_slice(b"half of a fr");
    pair.run();
    pair.up.ended = true;
    assert!(matches!(pair.run().1, Some(ChannelError::Truncated)));
    assert_eq!(&pair.server.heard[..], b"half of a fr");

    let mut pair = Pair::new(files.client(false), files.server(None), 1 << 20, 1 << 20);
    pair.run();
    pair.client.out.extend_from_slice(b"bye");
    pair.client
        .channel
        .write(&mut pair.up, &mut pair.client.out)
        .unwrap();
    pair.client.channel.close();
    pair.client
        .channel
        .write(&mut pair.up, &mut pair.client.out)
        .unwrap();
    pair.up.ended = true;
    let (_, theirs) = pair.run();
    assert!(theirs.is_none(), "{theirs:?}");
    assert_eq!(&pair.server.heard[..], b"bye");
}

#[test]
fn a_record_that_was_changed_on_the_way_ends_the_connection() {
    let files = Files::new();
    let mut pair = Pair::new(files.client(false), files.server(None), 1 << 20, 1 << 20);
    pair.run();
    pair.client.out.extend_from_slice(b"run this");
    pair.client
        .channel
        .write(&mut pair.up, &mut pair.client.out)
        .unwrap();
    *pair.up.bytes.back_mut().unwrap() ^= 1;
    let (ours, theirs) = pair.run();
    assert!(matches!(theirs, Some(ChannelError::Tls(_))), "{theirs:?}");
    assert!(
        matches!(ours, Some(ChannelError::Tls(_))),
        "it is told: {ours:?}"
    );
    assert!(pair.server.heard.is_empty());
    // Nothing is said to it any more.
    pair.server.out.extend_from_slice(b"assign");
    pair.run();
    assert!(pair.client.heard.is_empty());
}

#[test]
fn whoever_does_not_speak_tls_is_recognised_by_the_first_byte() {
    let files = Files::new();
    let mut pair = Pair::new(Channel::plain(), files.server(None), 1 << 10, 1 << 10);
    pair.client.out.extend_from_slice(&[61, 0, 0, 0, 1, 0]);
    let (_, theirs) = pair.run();
    assert!(matches!(theirs, Some(ChannelError::NotTls)), "{theirs:?}");
    pair.server.channel.give_up_tls();
    pair.server.out.extend_from_slice(b"this is a TLS port");
    pair.run();
    assert_eq!(&pair.client.heard[..], b"this is a TLS port");
}

#[test]
fn a_server_that_does_not_speak_tls_is_named_as_such() {
    let files = Files::new();
    let mut pair = Pair::new(files.client(false), Channel::plain(), 1 << 20, 1 << 20);
    pair.server
        .out
        .extend_from_slice(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let (what, hint) = words(pair.run().0);
    assert!(what.contains("does not speak TLS"), "{what}");
    assert!(hint.contains("--tls-cert"), "{hint}");
}

#[test]
fn each_session_has_a_binding_of_its_own_that_both_ends_see() {
    let files = Files::new();
    let mut bindings = Vec::new();
    for _ in 0..2 {
        let mut pair = Pair::new(files.client(false), files.server(None), 1 << 20, 1 << 20);
        assert_eq!(pair.client.channel.binding(), None);
        pair.run();
        let binding = pair.client.channel.binding().unwrap();
        assert_eq!(pair.server.channel.binding(), Some(binding));
        bindings.push(binding);
    }
    assert_ne!(bindings[0], bindings[1]);
}

#[test]
fn a_client_without_a_certificate_is_told_that_one_is_wanted() {
    let files = Files::new();
    let ca = files.path("ca.pem");
    let mut pair = Pair::new(
        files.client(false),
        files.server(Some(&ca)),
        1 << 20,
        1 << 20,
    );
    let (ours, theirs) = pair.run();
    assert!(matches!(theirs, Some(ChannelError::Tls(_))), "{theirs:?}");
    let (what, hint) = words(ours);
    assert!(what.contains("wants to see a certificate"), "{what}");
    assert!(hint.contains("--tls-key"), "{hint}");

    let mut pair = Pair::new(
        files.client(true),
        files.server(Some(&ca)),
        1 << 20,
        1 << 20,
    );
    pair.client.out.extend_from_slice(b"hello");
    pair.run();
    assert_eq!(&pair.server.heard[..], b"hello");
    assert_eq!(pair.server.channel.peer_names(), ["worker.example"]);
}

#[test]
fn certificates_of_another_authority_are_refused_on_both_sides() {
    let (files, other) = (Files::new(), Files::new());
    let mut pair = Pair::new(other.client(false), files.server(None), 1 << 20, 1 << 20);
    let (what, hint) = words(pair.run().0);
    assert!(what.contains("authority"), "{what}");
    assert!(hint.contains("--tls-ca"), "{hint}");

    fs::copy(files.path("ca.pem"), other.path("ca.pem")).unwrap();
    let ca = files.path("ca.pem");
    let mut pair = Pair::new(
        other.client(true),
        files.server(Some(&ca)),
        1 << 20,
        1 << 20,
    );
    let (ours, theirs) = pair.run();
    assert!(matches!(theirs, Some(ChannelError::Tls(_))), "{theirs:?}");
    let (what, _) = words(ours);
    assert!(what.contains("authority of our certificate"), "{what}");
}

#[test]
fn a_certificate_opens_only_what_it_was_made_for() {
    let files = Files::new();
    // A stolen worker's certificate cannot pose as the server.
    for ending in ["pem", "key"] {
        let (from, to) = (
            files.path(&format!("worker.{ending}")),
            files.path(&format!("server.{ending}")),
        );
        fs::copy(from, to).unwrap();
    }
    let client = files.client_for(Port::Worker, false, "worker.example");
    let (ours, _) = Pair::new(client, files.server(None), 1 << 20, 1 << 20).run();
    assert!(matches!(ours, Some(ChannelError::Tls(_))), "{ours:?}");
}

#[test]
fn a_wrong_name_is_told_with_the_names_there_are() {
    let files = Files::new();
    let client = files.client_for(Port::Worker, false, "other.example");
    let (what, hint) = words(
        Pair::new(client, files.server(None), 1 << 20, 1 << 20)
            .run()
            .0,
    );
    assert_eq!(
        what,
        "the server's certificate is for server.example, not for other.example"
    );
    assert!(hint.contains("--host"), "{hint}");
}

#[test]
fn an_expired_certificate_is_told_with_its_age() {
    let files = Files::new();
    files.make("server", ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let loaded = files.server_files(None).load().unwrap();
    let outdated = loaded.outdated.unwrap();
    assert!(
        outdated.starts_with("the certificate expired "),
        "{outdated}"
    );
    let mut pair = Pair::new(files.client(false), files.server(None), 1 << 20, 1 << 20);
    let (what, _) = words(pair.run().0);
    assert!(
        what.starts_with("the server's certificate expired "),
        "{what}"
    );
    assert!(what.ends_with(" days ago"), "{what}");
}

#[test]
fn the_two_ports_do_not_take_each_other_for_themselves() {
    let files = Files::new();
    let client = files.client_for(Port::Http, false, "server.example");
    let (what, hint) = words(
        Pair::new(client, files.server(None), 1 << 20, 1 << 20)
            .run()
            .0,
    );
    assert!(what.contains("another protocol"), "{what}");
    assert!(hint.contains("7441"), "{hint}");
}

#[test]
fn files_that_are_no_use_are_named() {
    let files = Files::new();
    let of = |files: &ServerFiles| files.load().unwrap_err().to_string();
    let good = files.server_files(None);
    let mut wrong = good.clone();
    wrong.key = files.path("worker.key");
    let error = of(&wrong);
    assert!(
        error.contains("worker.key: the key is not the certificate's"),
        "{error}"
    );
    wrong.key = files.path("server.pem");
    let error = of(&wrong);
    assert!(
        error.contains("server.pem: it holds no private key"),
        "{error}"
    );
    wrong = good.clone();
    wrong.cert = files.path("server.key");
    let error = of(&wrong);
    assert!(
        error.contains("server.key: it holds no certificate"),
        "{error}"
    );
    wrong.cert = files.path("nowhere.pem");
    let error = of(&wrong);
    assert!(error.contains("nowhere.pem: "), "{error}");
    wrong = good;
    wrong.client_ca = Some(files.path("server.key"));
    let error = of(&wrong);
    assert!(error.contains("server.key: "), "{error}");
    let half = ClientFiles {
        cert: Some(files.path("worker.pem")),
        ca: Some(files.path("ca.pem")),
        key: None,
    };
    let error = half.load(Port::Http).unwrap_err().to_string();
    assert!(error.contains("needs its key"), "{error}");
}

#[test]
fn a_reload_counts_for_new_connections_and_a_failed_one_for_none() {
    let files = Files::new();
    let of = files.server_files(None);
    let live = Live::new(of.clone(), of.load().unwrap());
    let names = |live: &Live, name: &'static str| {
        let client = files.client_for(Port::Worker, false, name);
        let server = Channel::server(live.config(Port::Worker)).unwrap();
        Pair::new(client, server, 1 << 20, 1 << 20)
            .run()
            .0
            .is_none()
    };
    let old = Channel::server(live.config(Port::Worker)).unwrap();
    assert!(names(&live, "server.example"));

    let good = fs::read(&of.cert).unwrap();
    fs::write(&of.cert, "no certificate").unwrap();
    live.reload().unwrap_err();
    files.make("server", ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    live.reload().unwrap_err();
    fs::write(&of.cert, good).unwrap();
    let error = live.reload().unwrap_err(); // the key is another's by now
    assert!(error.to_string().contains("server.key"), "{error}");
    assert!(names(&live, "server.example"));
    assert_eq!((live.reloads(), live.failed_reloads()), (0, 3));

    files.make("new", ExtendedKeyUsagePurpose::ServerAuth, |_| {});
    fs::copy(files.path("new.pem"), &of.cert).unwrap();
    fs::copy(files.path("new.key"), &of.key).unwrap();
    live.reload().unwrap();
    assert!(names(&live, "new.example") && !names(&live, "server.example"));
    assert_eq!(live.reloads(), 1);
    // One that has begun goes on with what it began with.
    let mut pair = Pair::new(files.client(false), old, 1 << 20, 1 << 20);
    assert!(pair.run().0.is_none());
    assert!(pair.client.channel.is_open());
}

#[test]
fn a_new_list_of_authorities_counts_for_sessions_that_would_be_resumed() {
    let (files, other) = (Files::new(), Files::new());
    let ca = files.path("clients.pem");
    fs::copy(files.path("ca.pem"), &ca).unwrap();
    let of = files.server_files(Some(&ca));
    let live = Live::new(of.clone(), of.load().unwrap());
    let client = ClientFiles {
        ca: Some(files.path("ca.pem")),
        cert: Some(files.path("worker.pem")),
        key: Some(files.path("worker.key")),
    };
    // One configuration, so that the second connection would resume the first one's session.
    let client = client.load(Port::Worker).unwrap();
    let join = || {
        let name = ServerName::try_from("server.example").unwrap();
        let ours = Channel::client(Arc::clone(&client), name).unwrap();
        let theirs = Channel::server(live.config(Port::Worker)).unwrap();
        Pair::new(ours, theirs, 1 << 20, 1 << 20).run().1
    };
    assert!(join().is_none() && join().is_none());
    fs::copy(other.path("ca.pem"), &ca).unwrap();
    live.reload().unwrap();
    assert!(join().is_some(), "it is not let in on its old session");
}
