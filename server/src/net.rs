//! The wire thread: one mio loop over all worker sockets. A post office that does not read letters: it accepts, runs
//! the handshake, cuts frames, and passes them on in batches.
//!
//! One turn: what sockets have (control before output, so many bytes each), what other threads post, what time is due;
//! then each socket that has something to send is written to once.
//!
//! A worker with work ahead for a while (`Stocked`) that had little to say is not listened to for 2 ms: its next words
//! come together, and cost one wake-up of each thread and one commit.
//!
//! Strangers are bounded: in number, in time (the handshake's deadline), in bytes (all their buffers together). If all
//! connections are taken, the oldest that has said nothing for a second makes room. Workers that do not read are cut
//! off at a bound. Output waits for the output thread, control never does.
//!
//! Plain and TLS connections go the same way; what differs is each one's channel (`hostler_tls`).
//!
//! Keeps: one [`Arrival::Left`] for each [`Arrival::Joined`], and nothing of that session after it.
//!
//! Not here: what a frame means (`dispatch`), what becomes of output (`output`), what silence means (the engine).

mod conn;
mod listener;
mod peers;
mod pipe;
mod shakes;
mod wire;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::BytesMut;
use hostler_tls::Live;
use hostler_wire::SessionId;
use hostler_wire::frame::{Frame, Login, RefuseCode};
use hostler_wire::handshake::Identity;

use crate::auth::Auth;
use crate::clock::Clock;
use crate::config::Config;
use crate::mailbox::{AbortOnPanic, Receiver, Sender, Wake, mailbox};
use crate::metrics::Counter;
use crate::output::{self, PipeId};

/// How often each side of a session beats (semantics 20).
pub const BEAT_MS: u32 = 2_000;

/// The language of the wire thread's mailbox.
#[derive(Debug)]
pub enum Post {
    /// Encoded frames for a worker.
    Control {
        /// Whom.
        session: SessionId,
        /// What.
        bytes: BytesMut,
    },
    /// A worker has work ahead for a while, or has not any more: if it has, what it says need not be heard at once.
    Stocked {
        /// Which.
        session: SessionId,
        /// It has.
        stocked: bool,
    },
    /// Encoded acknowledgements for an output pipe.
    Pipe {
        /// Which.
        pipe: PipeId,
        /// What.
        bytes: BytesMut,
    },
    /// The output thread has taken in this many bytes from a pipe: it may be read on.
    PipeTaken {
        /// Which.
        pipe: PipeId,
        /// How many.
        bytes: usize,
    },
    /// Output of a pipe could not be stored: close it, its worker will send again.
    PipeRefused {
        /// Which.
        pipe: PipeId,
    },
    /// Tell a worker why, and close.
    Close {
        /// Whom.
        session: SessionId,
        /// Why.
        code: RefuseCode,
        /// In words.
        message: String,
    },
    /// An access token is good for nothing any more: its sessions end.
    TokensChanged,
    /// Accept no new connections (the server stops); the old ones stay.
    StopAccepting,
    /// Close everything, end.
    Stop,
}

impl From<output::Answer> for Post {
    fn from(answer: output::Answer) -> Self {
        match answer {
            output::Answer::Acks { pipe, bytes } => Self::Pipe { pipe, bytes },
            output::Answer::Taken { pipe, bytes } => Self::PipeTaken { pipe, bytes },
            output::Answer::Refuse { pipe } => Self::PipeRefused { pipe },
        }
    }
}

/// What the wire thread has to tell, in order.
#[derive(Debug)]
pub enum Arrival {
    /// A worker has proven who it is.
    Joined {
        /// Its session.
        session: SessionId,
        /// What it said.
        login: Box<Login>,
    },
    /// What a worker says, in order. Any of these is a sign of life; an empty one is nothing else.
    Frames {
        /// Who.
        session: SessionId,
        /// What.
        frames: Vec<Frame>,
    },
    /// The session is over.
    Left {
        /// Whose.
        session: SessionId,
    },
}

/// How the wire thread tells dispatch. Leaves nothing behind in the vector.
pub type Tell = Box<dyn FnMut(&mut Vec<Arrival>) + Send>;

/// Why a visitor was refused: it did not prove its token.
pub const UNPROVEN: &str = "unauthorised";

/// Somebody showed a token on the worker port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visit {
    /// The token's id, proven or not.
    pub token: Box<str>,
    /// From where.
    pub from: IpAddr,
    /// Who it says it is; what an unproven one says is not repeated.
    pub worker: Option<Box<str>>,
    /// Why it was refused; empty if it was not.
    pub refused: &'static str,
}

/// What others may see of the wire thread at any time.
#[derive(Debug, Default)]
pub struct Status {
    /// Open connections, of any kind.
    pub connections: Counter,
    /// Workers joined.
    pub sessions: Counter,
    /// Connections accepted since the start.
    pub accepted: Counter,
    /// Connections told to go, for any reason.
    pub refused: Counter,
    /// Of these, for a wrong token.
    pub unauthorised: Counter,
    /// Connections that did not come to speak TLS with us: for what they said, or in time.
    pub tls_failed: Counter,
    /// Connections closed because they had not proven themselves in time.
    pub timed_out: Counter,
    /// Workers cut off because they did not read.
    pub cut_off: Counter,
    /// Frames from workers.
    pub frames: Counter,
    /// Bytes of output that wait for the output thread.
    pub pending_output_bytes: Counter,
    /// Times that an output socket was left unread because so much waited.
    pub held_pipes: Counter,
}

/// The worker port, open but not served yet: connections wait.
pub struct Net {
    listener: mio::net::TcpListener,
    address: SocketAddr,
    poll: mio::Poll,
    wake: Arc<Wake>,
    inbox: Receiver<Post>,
    handle: Handle,
}

/// What the wire thread works with.
pub struct Needs {
    /// Limits and times.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// Who we are.
    pub identity: Identity,
    /// Who may come.
    pub auth: Arc<Auth>,
    /// Is told who came.
    pub visits: Box<dyn Fn(Visit) + Send>,
    /// Where control frames go.
    pub tell: Tell,
    /// Where output goes.
    pub output: output::Handle,
    /// What connections begin with; none: they are plain.
    pub tls: Option<Arc<Live>>,
}

/// Opens a port for many clients at once, as HTTP needs one too.
pub fn listen(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    listener::open(address)
}

/// Opens the worker port.
pub fn open(address: SocketAddr) -> io::Result<Net> {
    let listener = mio::net::TcpListener::from_std(listener::open(address)?);
    let address = listener.local_addr()?;
    let poll = mio::Poll::new()?;
    let wake = Wake::poll(mio::Waker::new(poll.registry(), wire::WAKER)?);
    let (sender, inbox) = mailbox(&wake);
    Ok(Net {
        listener,
        address,
        poll,
        wake,
        inbox,
        handle: Handle::new(sender),
    })
}

impl Net {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The other threads' end.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Starts serving.
    pub fn spawn(self, needs: Needs) -> io::Result<JoinHandle<()>> {
        let wire = wire::Wire::new(self, needs)?;
        std::thread::Builder::new()
            .name("net".into())
            .spawn(move || {
                let _abort = AbortOnPanic;
                wire.run();
            })
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Net")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Needs").finish_non_exhaustive()
    }
}

/// The other threads' end of the wire thread.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Post>,
    status: Arc<Status>,
}

impl Handle {
    /// A handle on that mailbox.
    pub fn new(sender: Sender<Post>) -> Self {
        Self {
            sender,
            status: Arc::default(),
        }
    }

    /// What may be seen without asking.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Sends one thing.
    pub fn post(&self, post: Post) {
        self.sender.send(post);
    }

    /// The same, but wakes nobody: for what is seen early enough with the next post.
    pub fn push(&self, post: Post) {
        self.sender.push(post);
    }

    /// Sends several with one wake-up.
    pub fn post_all(&self, posts: impl IntoIterator<Item = Post>) {
        self.sender.send_all(posts);
    }
}
