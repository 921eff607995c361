//! The wire thread: one mio loop over all worker sockets. A post office that does not read letters: it accepts, runs
//! the handshake, cuts frames, and passes them on in batches.
//!
//! Not here: what a frame means (`dispatch`), what becomes of output (`output`).

use bytes::BytesMut;
use hostler_wire::SessionId;
use hostler_wire::frame::RefuseCode;

use crate::mailbox::Sender;
use crate::output::PipeId;

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
