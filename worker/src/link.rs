//! The control connection: finding a server, proving who we are, and passing frames.
//!
//! A [`Line`] is one connection of either role, from a connect that does not block to an orderly stream of frames; it
//! does the handshake and nothing more. A [`Link`] keeps a line to one of the configured addresses: each in turn, those
//! a server names in `NotLeader` first, with a pause that doubles after each round (100 ms to 5 s, half of it random,
//! so that a restarted server does not meet all workers at once). Names are looked up on a thread of their own, since
//! that may take seconds.
//!
//! A server that cannot prove that it knows our token is told nothing. Token and certificates that came from files are
//! read again for each control connection, so that they can be exchanged while we run.
//!
//! Not here: what frames mean (`session`), the output connection's life (`pipe`).

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use crossbeam::channel::{Receiver, bounded};
use hostler_tls::{
    Channel, ChannelError, ClientConfig, ClientFiles, Port, ServerName, Words, explain,
};
use hostler_wire::codec::DecodeError;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Challenge, Frame, Login, NotLeader, RefuseCode, Refused, Role, Welcome};
use hostler_wire::handshake::{ClientHandshake, HandshakeError};
use hostler_wire::limits::{ADDRESSES_MAX, FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use hostler_wire::token::Token;
use mio::net::TcpStream;
use mio::{Interest, Registry, Waker};

use crate::clock::{Span, Time};

/// From the connect to the welcome.
const HANDSHAKE_TIME: Span = Span::from_ms(10_000);
/// One read; also about what one turn takes from one connection.
pub(crate) const READ_BYTES: usize = 256 << 10;
/// While this much waits to be written, nothing more is read: whoever does not listen is not asked either (P7).
const OUT_BYTES_HIGH: usize = 4 << 20;

/// Asked of the system for what it keeps of the output that is on its way.
const UNSENT_BYTES: usize = 512 << 10;

/// An output connection that waits for acknowledgements says nothing: after so long the system asks whether there is
/// still somebody, so often, and leaves no bytes unconfirmed for longer than that takes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

/// A token has a line; what is longer is another file.
const TOKEN_FILE_BYTES_MAX: u64 = 4 << 10;

const PAUSE_MIN: Span = Span::from_ms(100);
const PAUSE_MAX: Span = Span::from_ms(5_000);

/// Why a connection ended.
#[derive(Debug)]
pub(crate) enum LineError {
    /// The network's own words.
    Io(io::Error),
    /// The other side closed it.
    Closed,
    /// TLS does not come about.
    Tls(Words),
    /// Bytes that are no frames.
    Decode(DecodeError),
    /// The server is not ours, or our own login is out of its limits.
    Handshake(HandshakeError),
    /// The server will not have us.
    Refused(Refused),
    /// Another server is active.
    NotLeader(NotLeader),
    /// No welcome in time.
    Late,
    /// A frame at the wrong moment.
    Unexpected,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Closed => f.write_str("the server closed the connection"),
            Self::Tls(words) => f.write_str(&words.what),
            Self::Decode(error) => write!(f, "the server sent what is no frame: {error}"),
            Self::Handshake(error) => error.fmt(f),
            Self::Refused(refused) => write!(f, "refused: {}", refused.message),
            Self::NotLeader(_) => f.write_str("another server is active"),
            Self::Late => write!(f, "no welcome within {HANDSHAKE_TIME}"),
            Self::Unexpected => f.write_str("the server sent a frame out of its turn"),
        }
    }
}

impl From<io::Error> for LineError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ChannelError> for LineError {
    fn from(error: ChannelError) -> Self {
        match error {
            ChannelError::Io(error) => Self::Io(error),
            ChannelError::Tls(error) => Self::Tls(explain(&error)),
            ChannelError::NotTls => Self::Unexpected,
            ChannelError::Truncated => Self::Closed,
        }
    }
}

impl LineError {
    /// Whether the two sides cannot understand each other, however well they may know each other.
    pub(crate) fn is_of_version(&self) -> bool {
        match self {
            Self::Handshake(error) => error.code == RefuseCode::Version,
            Self::Refused(refused) => refused.code == RefuseCode::Version,
            Self::Io(_)
            | Self::Closed
            | Self::Tls(_)
            | Self::Decode(_)
            | Self::NotLeader(_)
            | Self::Late
            | Self::Unexpected => false,
        }
    }

    /// Whether trying again is pointless for a worker that never got in: a person has to change something.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Handshake(_) => true,
            Self::Tls(words) => words.is_final,
            Self::Refused(refused) => match refused.code {
                RefuseCode::Version | RefuseCode::Unauthorised | RefuseCode::Invalid => true,
                RefuseCode::NameInUse
                | RefuseCode::Busy
                | RefuseCode::Stopping
                | RefuseCode::NoSession
                | RefuseCode::Damaged => false,
            },
            Self::Io(_)
            | Self::Closed
            | Self::Decode(_)
            | Self::NotLeader(_)
            | Self::Late
            | Self::Unexpected => false,
        }
    }
}

/// What opens a server's door.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) token: Token,
    /// None: connections are plain.
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) files: AccessFiles,
}

/// Where it came from, if from files.
#[derive(Clone, Debug, Default)]
pub(crate) struct AccessFiles {
    pub(crate) token: Option<PathBuf>,
    pub(crate) tls: Option<ClientFiles>,
}

impl Access {
    /// Takes what the files hold now. What cannot be read, or is half written, changes nothing. The system's
    /// authorities are not read again: that takes as long as many handshakes.
    fn refresh(&mut self) {
        if let Some(path) = &self.files.token {
            match token_in(path) {
                Ok(token) if token == self.token => {}
                Ok(token) => {
                    tracing::info!(path = %path.display(), id = token.id, "the file holds another token");
                    self.token = token;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the token is not read again");
                }
            }
        }
        if let Some(files) = self.files.tls.as_ref().filter(|files| files.ca.is_some()) {
            match files.load(Port::Worker) {
                Ok(config) => self.tls = Some(config),
                Err(error) => tracing::warn!(%error, "the certificates are not read again"),
            }
        }
    }
}

fn token_in(path: &Path) -> io::Result<Token> {
    let mut text = String::new();
    File::open(path)?
        .take(TOKEN_FILE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Token::parse(text.trim()).map_err(io::Error::other)
}

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// As it was written in the address: what a certificate must be for.
    pub(crate) host: String,
}

/// The host of `host:port`, without the brackets of an IPv6 address.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let inner = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Line {
    stream: TcpStream,
    channel: Channel,
    pub(crate) peer: Peer,
    stage: Stage,
    deadline: Time,
    decoder: Decoder,
    pub(crate) out: BytesMut,
    readable: bool,
    writable: bool,
}

#[derive(Debug)]
enum Stage {
    Connecting(Box<ClientHandshake>, Frame),
    Greeting(Box<ClientHandshake>),
    /// Waits for the welcome; the challenge said which epoch this is.
    LoggingIn(Box<Challenge>),
    Ready,
    /// Between two of the others, within one function.
    Moving,
}

/// What a line has to say.
#[derive(Debug)]
pub(crate) enum Said {
    /// The handshake is done.
    Welcome(Welcome, Box<Challenge>),
    Frame(Frame),
}

impl Line {
    pub(crate) fn connect(
        peer: Peer,
        role: Role,
        access: &Access,
        registry: &Registry,
        name: mio::Token,
        now: Time,
    ) -> io::Result<Self> {
        let channel = match &access.tls {
            None => Channel::plain(),
            Some(config) => {
                let host = ServerName::try_from(peer.host.clone()).map_err(io::Error::other)?;
                Channel::client(Arc::clone(config), host).map_err(io::Error::other)?
            }
        };
        let mut stream = TcpStream::connect(peer.address)?;
        if role == Role::Output {
            // What a chatty job has sent stands before what a quiet one prints next.
            socket2::SockRef::from(&stream).set_send_buffer_size(UNSENT_BYTES)?;
        }
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let (handshake, hello) = ClientHandshake::new(&access.token, role, nonce);
        registry.register(&mut stream, name, Interest::READABLE | Interest::WRITABLE)?;
        let mut decoder = Decoder::new();
        decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
        Ok(Self {
            stream,
            channel,
            peer,
            stage: Stage::Connecting(Box::new(handshake), Frame::Hello(hello)),
            deadline: now + HANDSHAKE_TIME,
            decoder,
            out: BytesMut::new(),
            readable: false,
            writable: false,
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.stage, Stage::Ready)
    }

    /// Until when the handshake must be done, while it is not.
    pub(crate) fn deadline(&self) -> Option<Time> {
        (!self.is_ready()).then_some(self.deadline)
    }

    /// The poll says that something can be done.
    pub(crate) fn notice(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
    }

    /// There is something to read, and room to answer.
    pub(crate) fn wants_turn(&self) -> bool {
        self.readable && self.out.len() < OUT_BYTES_HIGH
    }

    /// Reads once, a bounded amount, and passes on what was said. Returns whether any byte came.
    pub(crate) fn turn(
        &mut self,
        now: Time,
        buffer: &mut [u8],
        login: impl FnOnce() -> Login,
        said: &mut Vec<Said>,
    ) -> Result<bool, LineError> {
        if !self.is_ready() && now >= self.deadline {
            return Err(LineError::Late);
        }
        self.finish_connect()?;
        if !self.wants_turn() {
            return Ok(false);
        }
        let into = self.decoder.buffer();
        match self.channel.read(&mut self.stream, buffer, into) {
            Ok(taken) if taken.wire == 0 => return Err(LineError::Closed),
            Ok(_) => {}
            Err(error) if error.is_blocked() => {
                self.readable = false;
                return Ok(false);
            }
            Err(error) => {
                // The alert that tells the server why; it need not arrive.
                drop(self.flush());
                return Err(error.into());
            }
        }
        let mut login = Some(login);
        while let Some(frame) = self.decoder.next_frame().map_err(LineError::Decode)? {
            if self.is_ready() {
                said.push(Said::Frame(frame));
            } else {
                self.shake(frame, &mut login, said)?;
            }
        }
        Ok(true)
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    /// Writes what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), LineError> {
        if self.writable && !self.is_flushed() {
            let sent = self.channel.write(&mut self.stream, &mut self.out)?;
            self.writable &= !sent.blocked;
        }
        Ok(())
    }

    /// Everything has left for the kernel.
    pub(crate) fn is_flushed(&self) -> bool {
        self.out.is_empty() && !self.channel.wants_write()
    }

    /// The socket is connected once it is writable and has no error to tell.
    fn finish_connect(&mut self) -> Result<(), LineError> {
        if !self.writable || !matches!(self.stage, Stage::Connecting(..)) {
            return Ok(());
        }
        if let Some(error) = self.stream.take_error()? {
            return Err(error.into());
        }
        if let Err(error) = self.stream.peer_addr() {
            return if error.kind() == io::ErrorKind::NotConnected {
                Ok(())
            } else {
                Err(error.into())
            };
        }
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_tcp_nodelay(true)?;
        watch(&socket)?;
        if let Stage::Connecting(handshake, hello) =
            std::mem::replace(&mut self.stage, Stage::Moving)
        {
            self.send(&hello);
            self.stage = Stage::Greeting(handshake);
        }
        self.flush()
    }

    fn shake(
        &mut self,
        frame: Frame,
        login: &mut Option<impl FnOnce() -> Login>,
        said: &mut Vec<Said>,
    ) -> Result<(), LineError> {
        match (std::mem::replace(&mut self.stage, Stage::Moving), frame) {
            (Stage::Greeting(mut handshake), Frame::Challenge(challenge)) => {
                if self.channel.is_tls() {
                    handshake.bind(self.channel.binding().ok_or(LineError::Unexpected)?);
                }
                let mut login = login.take().ok_or(LineError::Unexpected)?();
                handshake
                    .login(&challenge, &mut login)
                    .map_err(LineError::Handshake)?;
                self.send(&Frame::Login(Box::new(login)));
                self.stage = Stage::LoggingIn(Box::new(challenge));
                self.flush()
            }
            (Stage::LoggingIn(challenge), Frame::Welcome(welcome)) => {
                self.decoder.accept_up_to(FRAME_BYTES_MAX);
                self.stage = Stage::Ready;
                said.push(Said::Welcome(welcome, challenge));
                Ok(())
            }
            (_, Frame::Refused(refused)) => Err(LineError::Refused(refused)),
            (_, Frame::NotLeader(not_leader)) => Err(LineError::NotLeader(not_leader)),
            (_, _) => Err(LineError::Unexpected),
        }
    }
}

/// Has the system notice when the other end is gone without a word.
fn watch(socket: &socket2::Socket) -> io::Result<()> {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE)
        .with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(KEEPALIVE * (KEEPALIVE_RETRIES + 1)))
}

/// A growing pause between attempts, half of it random.
#[derive(Debug)]
pub(crate) struct BackOff {
    pause: Span,
}

impl BackOff {
    pub(crate) fn new() -> Self {
        Self { pause: PAUSE_MIN }
    }

    pub(crate) fn reset(&mut self) {
        self.pause = PAUSE_MIN;
    }

    pub(crate) fn next(&mut self) -> Span {
        let half = self.pause.us() / 2;
        self.pause = self.pause.times(2).min(PAUSE_MAX);
        // Without a random number the pause is merely the same for everyone.
        Span::from_us(half + getrandom::u64().unwrap_or(half) % half.max(1))
    }
}

/// A line to whichever server is active.
pub(crate) struct Link {
    addresses: Vec<String>,
    /// Of `addresses`, the one to try next.
    next: usize,
    /// Addresses a server has named, to be tried before ours.
    named: VecDeque<String>,
    /// What the address being tried stands for.
    candidates: VecDeque<SocketAddr>,
    /// The host in it.
    host: String,
    lookup: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
    waker: Arc<Waker>,
    back_off: BackOff,
    retry_at: Time,
    pub(crate) line: Option<Line>,
}

impl Link {
    pub(crate) fn new(addresses: Vec<String>, waker: Arc<Waker>) -> Self {
        Self {
            addresses,
            next: 0,
            named: VecDeque::new(),
            candidates: VecDeque::new(),
            host: String::new(),
            lookup: None,
            waker,
            back_off: BackOff::new(),
            retry_at: Time::default(),
            line: None,
        }
    }

    /// Makes a connection if there is none and its time has come. Its role is always control.
    pub(crate) fn dial(
        &mut self,
        now: Time,
        access: &mut Access,
        registry: &Registry,
        name: mio::Token,
    ) {
        if self.line.is_some() {
            return;
        }
        if let Some(lookup) = &self.lookup {
            let Ok(found) = lookup.try_recv() else { return };
            self.lookup = None;
            match found {
                Ok(found) => self.candidates = found.into(),
                Err(error) => self.lost(now, &LineError::Io(error)),
            }
        }
        if now < self.retry_at {
            return;
        }
        let Some(address) = self.candidates.pop_front() else {
            return self.look_up(now);
        };
        let host = self.host.clone();
        access.refresh();
        match Line::connect(
            Peer { address, host },
            Role::Control,
            access,
            registry,
            name,
            now,
        ) {
            Ok(line) => self.line = Some(line),
            Err(error) => self.lost(now, &LineError::Io(error)),
        }
    }

    /// The line is gone, or could not be made.
    pub(crate) fn lost(&mut self, now: Time, why: &LineError) {
        let was_ready = self.line.as_ref().is_some_and(Line::is_ready);
        let address = self.line.take().map(|line| line.peer.address);
        tracing::info!(server = ?address, %why, "no connection to the server");
        if let LineError::NotLeader(NotLeader { addresses }) = why {
            self.named = addresses.iter().take(ADDRESSES_MAX).cloned().collect();
            self.candidates.clear();
        }
        let round_over = self.candidates.is_empty() && self.named.is_empty() && self.next == 0;
        // Two servers that name each other, or one that breaks each session, would be asked without a pause otherwise.
        if round_over || was_ready || matches!(why, LineError::NotLeader(_)) {
            self.retry_at = now + self.back_off.next();
        }
    }

    /// A session has begun: what comes next is not another try of the same. (A welcome alone may yet be followed by a
    /// refusal, again and again.)
    pub(crate) fn resumed(&mut self) {
        self.back_off.reset();
    }

    /// The server has welcomed us.
    pub(crate) fn welcomed(&mut self) {
        self.named.clear();
        self.candidates.clear();
        // The one that works is the first to be tried when the connection breaks.
        self.next = self.next.checked_sub(1).unwrap_or(self.addresses.len() - 1);
    }

    /// When [`dial`](Self::dial) or the line itself wants another turn.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        match &self.line {
            Some(line) => line.deadline(),
            None if self.lookup.is_some() => None,
            None => Some(self.retry_at),
        }
    }

    fn look_up(&mut self, now: Time) {
        let address = self.named.pop_front().unwrap_or_else(|| {
            let address = self.addresses[self.next].clone();
            self.next = (self.next + 1) % self.addresses.len();
            address
        });
        host_of(&address).clone_into(&mut self.host);
        if let Ok(peer) = address.parse() {
            self.candidates.push_back(peer);
            return;
        }
        let (sender, receiver) = bounded(1);
        let waker = Arc::clone(&self.waker);
        let thread = std::thread::Builder::new()
            .name("lookup".to_owned())
            .spawn(move || {
                let found = address.to_socket_addrs().map(Iterator::collect);
                // Both fail only if the worker has ended meanwhile.
                drop(sender.send(found));
                drop(waker.wake());
            });
        match thread {
            Ok(_) => self.lookup = Some(receiver),
            Err(error) => self.lost(now, &LineError::Io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_bound_and_is_half_random() {
        let mut back_off = BackOff::new();
        for full in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            let pause = back_off.next();
            assert!(
                pause >= Span::from_ms(full / 2) && pause <= Span::from_ms(full),
                "{pause}"
            );
        }
        back_off.reset();
        assert!(back_off.next() <= PAUSE_MIN);
    }

    #[test]
    fn a_certificate_is_for_the_host_of_an_address() {
        assert_eq!(host_of("q1.example:7441"), "q1.example");
        assert_eq!(host_of("10.0.0.1:7441"), "10.0.0.1");
        assert_eq!(host_of("[fd00::3]:7441"), "fd00::3");
    }

    #[test]
    fn a_connection_whose_other_end_is_gone_without_a_word_is_given_up_within_a_minute() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = socket2::SockRef::from(&stream);
        watch(&socket).unwrap();
        let minute = Duration::from_secs(60);
        assert!(socket.keepalive().unwrap());
        let asks = socket.tcp_keepalive_retries().unwrap();
        let last = socket.tcp_keepalive_interval().unwrap() * asks;
        assert!(socket.tcp_keepalive_time().unwrap() + last <= minute);
        assert!(socket.tcp_user_timeout().unwrap().unwrap() <= minute);
    }

    #[test]
    fn a_token_is_what_its_file_holds_now_and_stays_while_that_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.token");
        let [old, new] = ["A", "B"].map(|id| Token {
            role: "worker".to_owned(),
            id: id.repeat(8),
            secret: [7; 32],
        });
        let mut access = Access {
            token: old.clone(),
            tls: None,
            files: AccessFiles {
                token: Some(path.clone()),
                tls: None,
            },
        };
        let text = new.to_string();
        for half in ["", "hostler_worker_", &text[..text.len() - 1]] {
            std::fs::write(&path, half).unwrap();
            access.refresh();
            assert_eq!(access.token, old, "{half}");
        }
        std::fs::write(&path, format!("{text}\n")).unwrap();
        access.refresh();
        assert_eq!(access.token, new);
        std::fs::remove_file(&path).unwrap();
        access.refresh();
        assert_eq!(access.token, new);
    }

    #[test]
    fn a_welcome_that_is_followed_by_a_refusal_does_not_shorten_the_pause() {
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let mut link = Link::new(vec!["127.0.0.1:1".to_owned()], waker);
        let refused = LineError::Refused(Refused {
            code: RefuseCode::NameInUse,
            message: "another worker of this name is connected".to_owned(),
        });
        let now = Time::default();
        for _ in 0..8 {
            link.welcomed();
            link.lost(now, &refused);
        }
        assert!(link.retry_at >= now + Span::from_ms(2_500));
        link.resumed();
        link.lost(now, &refused);
        assert!(link.retry_at <= now + PAUSE_MIN);
    }
}
