//! The wire thread: one mio loop over all worker sockets. A post office that does not read letters: it accepts, runs the
//! handshake, cuts frames, and passes them on in batches, a message a socket and turn.
//!
//! What it promises: a stranger costs little and not for long (small frames, a deadline, a bound on connections); every
//! session that was told of as joined is told of once as left; output never delays control (pipes wait while the output
//! thread is behind, control sockets do not); a peer that does not read is cut off before it costs memory.
//!
//! Not here: what a frame means (`dispatch`), what becomes of output (`output`), what silence means (the engine's).

mod conn;
mod listener;
mod peers;
mod thread;

use bytes::BytesMut;
use hostler_wire::SessionId;
use hostler_wire::frame::{Frame, Login, RefuseCode};

pub use listener::listen;
pub use thread::{Parts, Settings, spawn};

use crate::mailbox::{Receiver, Sender, Wake, mailbox};
use crate::output::PipeId;

/// What the wire thread tells of workers.
#[derive(Debug)]
pub enum Arrived {
    /// A worker has proven who it is.
    Joined {
        /// Its session.
        session: SessionId,
        /// What it said.
        login: Box<Login>,
    },
    /// What a worker says, in order.
    Frames {
        /// Who.
        session: SessionId,
        /// What.
        frames: Vec<Frame>,
    },
    /// The socket is gone.
    Left {
        /// Whose.
        session: SessionId,
    },
}

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
    /// Close a pipe: its worker connects anew and sends again what is not acknowledged.
    ClosePipe {
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
    /// Accept no new connections (the server stops); the old ones stay.
    StopAccepting,
    /// Close everything, end.
    Stop,
}

/// The other threads' end of the wire thread.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Post>,
}

/// Its own end, before it runs.
#[derive(Debug)]
pub struct Inbox {
    poll: mio::Poll,
    wake: std::sync::Arc<Wake>,
    receiver: Receiver<Post>,
}

/// Both ends.
pub fn open() -> std::io::Result<(Handle, Inbox)> {
    let poll = mio::Poll::new()?;
    let wake = Wake::poll(mio::Waker::new(poll.registry(), thread::WAKE)?);
    let (sender, receiver) = mailbox(&wake);
    Ok((
        Handle { sender },
        Inbox {
            poll,
            wake,
            receiver,
        },
    ))
}

impl Handle {
    /// A handle on that mailbox.
    pub fn new(sender: Sender<Post>) -> Self {
        Self { sender }
    }

    /// Sends one thing.
    pub fn post(&self, post: Post) {
        self.sender.send(post);
    }

    /// Sends several with one wake-up.
    pub fn post_all(&self, posts: impl IntoIterator<Item = Post>) {
        self.sender.send_all(posts);
    }
}
