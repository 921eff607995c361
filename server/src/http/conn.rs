//! One connection's socket: what hyper does not watch over itself.
//!
//! A head must be whole soon after its first byte; an answer must be taken in by its reader; a request that is no HTTP
//! gets a problem as its answer instead of an empty one; and a connection that is closed with unread input is closed
//! slowly, so that the answer is not lost with it (the kernel resets a socket that is dropped unread).
//!
//! Not here: the time between requests and the number of headers (hyper's), bodies (`body`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::http::problem::{self, Code};
use crate::http::stream::Stream;

/// Answers up to this size are written in one piece.
const GATHERED_BYTES_MAX: usize = 1_024;

/// What the connection and its requests tell each other.
#[derive(Debug, Default)]
pub(super) struct Conn {
    /// Requests begun so far.
    requests: AtomicU64,
    /// An answer is being made or sent.
    busy: AtomicBool,
    /// Input was left unread on purpose.
    linger: AtomicBool,
}

/// An answer is being made or sent as long as this lives.
#[derive(Debug)]
pub(super) struct Busy(Arc<Conn>);

impl Conn {
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.busy.store(true, Ordering::Relaxed);
        Busy(Arc::clone(self))
    }

    pub(super) fn linger(&self) {
        self.linger.store(true, Ordering::Relaxed);
    }

    pub(super) fn lingers(&self) -> bool {
        self.linger.load(Ordering::Relaxed)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// A connection's socket under watch.
#[derive(Debug)]
pub(super) struct Socket {
    stream: Stream,
    conn: Arc<Conn>,
    head_timeout: Duration,
    write_timeout: Duration,
    /// How many requests had begun when the first bytes of the next one came.
    head_after: Option<u64>,
    head_deadline: Option<Pin<Box<Sleep>>>,
    write_deadline: Option<Pin<Box<Sleep>>>,
    /// Our own answer in the place of hyper's empty one, and how much of it is sent.
    instead: Option<(Vec<u8>, usize)>,
    /// What that said.
    told: Option<Code>,
}

impl Socket {
    pub(super) fn new(
        stream: Stream,
        conn: Arc<Conn>,
        head_timeout: Duration,
        write_timeout: Duration,
    ) -> Self {
        Self {
            stream,
            conn,
            head_timeout,
            write_timeout,
            head_after: None,
            head_deadline: None,
            write_deadline: None,
            instead: None,
            told: None,
        }
    }

    /// What was answered in hyper's place, if anything was.
    pub(super) fn told(&self) -> Option<Code> {
        self.told
    }

    /// Ends the connection without losing what was sent: says so, and reads away what still comes for a while.
    pub(super) async fn close_slowly(mut self) {
        const LINGER: Duration = Duration::from_secs(1);
        const BYTES_MAX: usize = 64 << 20;
        let stream = &mut self.stream;
        let drained = async {
            std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await?;
            let mut scratch = vec![0; 64 << 10];
            let mut gone = 0;
            while gone < BYTES_MAX {
                let mut buffer = ReadBuf::new(&mut scratch);
                std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buffer))
                    .await?;
                match buffer.filled().len() {
                    0 => break,
                    n => gone += n,
                }
            }
            io::Result::Ok(())
        };
        // Whatever came of it, the connection ends here.
        drop(tokio::time::timeout(LINGER, drained).await);
    }

    /// Says something, or nothing, and ends the connection slowly.
    pub(super) async fn close_with(mut self, answer: &[u8]) {
        // A few hundred bytes always fit into a fresh socket's buffer.
        let stream = &mut self.stream;
        let write = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, answer));
        if answer.is_empty() || write.await.is_ok() {
            self.close_slowly().await;
        }
    }

    /// Ends the connection: TLS says so, or its end would look like a cut.
    pub(super) async fn close(mut self) {
        const LINGER: Duration = Duration::from_secs(1);
        if self.stream.is_tls() {
            let stream = &mut self.stream;
            let said = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx));
            // Whoever does not take it in is gone already.
            drop(tokio::time::timeout(LINGER, said).await);
        }
    }

    /// The bytes of a request are here and hyper still waits for the rest of its head.
    fn in_head(&self) -> bool {
        self.head_after == Some(self.conn.requests.load(Ordering::Relaxed))
            && !self.conn.busy.load(Ordering::Relaxed)
    }

    /// Writes our answer where hyper is about to write an empty one; ready when all of it is out.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<()>>> {
        let (answer, sent) = self.instead.as_mut()?;
        while *sent < answer.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &answer[*sent..]) {
                Poll::Ready(Ok(n)) => *sent += n,
                Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                Poll::Pending => return Some(Poll::Pending),
            }
        }
        self.instead = None;
        Some(Poll::Ready(Ok(())))
    }

    /// Recognises hyper's answer to what is no HTTP: ours all carry a request id.
    fn recognise(&mut self, bytes: &[u8]) {
        if self.instead.is_some() || self.conn.busy.load(Ordering::Relaxed) {
            return;
        }
        let Some(rest) = bytes.strip_prefix(b"HTTP/1.1 4") else {
            return;
        };
        if contains(bytes, b"x-request-id") {
            return;
        }
        let (code, detail) = match rest.get(..2) {
            Some(b"14") => (Code::UriTooLong, "the request's first line is too long"),
            Some(b"31") => (
                Code::HeadersTooLarge,
                "a request may have 100 headers and 64 KiB of them",
            ),
            _ => (
                Code::MalformedRequest,
                "what came is no HTTP/1.1 request, or contradicts itself about its length",
            ),
        };
        self.instead = Some((problem::raw(code, detail), 0));
        self.told = Some(code);
        self.conn.linger();
    }

    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.write_deadline = None;
            return poll;
        }
        let timeout = self.write_timeout;
        let deadline = self
            .write_deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A short answer in one piece: copying it costs less than a write of several.
fn gathered<'r>(
    bufs: &[io::IoSlice<'_>],
    room: &'r mut [u8; GATHERED_BYTES_MAX],
) -> Option<&'r [u8]> {
    let mut len = 0;
    for buf in bufs {
        room.get_mut(len..len + buf.len())?.copy_from_slice(buf);
        len += buf.len();
    }
    Some(&room[..len])
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes
        .windows(word.len())
        .any(|window| window.eq_ignore_ascii_case(word))
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        match poll {
            Poll::Ready(_) => {
                let begun = self.conn.requests.load(Ordering::Relaxed);
                let idle = !self.conn.busy.load(Ordering::Relaxed);
                if idle && buf.filled().len() > before && self.head_after != Some(begun) {
                    self.head_after = Some(begun);
                    self.head_deadline = None;
                }
            }
            Poll::Pending if self.in_head() => {
                let timeout = self.head_timeout;
                let deadline = self
                    .head_deadline
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                if deadline.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
            Poll::Pending => self.head_deadline = None,
        }
        poll
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.recognise(buf);
        let poll = match self.poll_instead(cx) {
            Some(poll) => poll.map_ok(|()| buf.len()),
            None => Pin::new(&mut self.stream).poll_write(cx, buf),
        };
        self.watch_write(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            self.recognise(first);
            if let Some(poll) = self.poll_instead(cx) {
                let poll = poll.map_ok(|()| first.len());
                return self.watch_write(cx, poll);
            }
        }
        let poll = match gathered(bufs, &mut [0; GATHERED_BYTES_MAX]) {
            Some(bytes) => Pin::new(&mut self.stream).poll_write(cx, bytes),
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
        };
        self.watch_write(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_answer_is_written_in_one_piece_and_a_long_one_as_it_is() {
        let (head, body) = ([b'h'; 500], [b'b'; 524]);
        let mut room = [0; GATHERED_BYTES_MAX];
        let bufs = [io::IoSlice::new(&head), io::IoSlice::new(&body)];
        assert_eq!(
            gathered(&bufs, &mut room),
            Some(&*[&head[..], &body].concat())
        );
        let more = [bufs[0], bufs[1], io::IoSlice::new(b"x")];
        assert_eq!(gathered(&more, &mut room), None);
    }
}
