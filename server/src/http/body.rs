//! Bodies, both ways: answers whole or in pieces, requests within their size and time.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::http::conn::Busy;
use crate::http::problem::{Code, Refusal};

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Body {
    kind: Kind,
    /// The connection is busy until this body is gone.
    busy: Option<Busy>,
}

#[derive(Debug)]
enum Kind {
    Full(Bytes),
    Pieces {
        receiver: mpsc::Receiver<Result<Bytes, Cut>>,
        /// What is still to come, where that was promised.
        left: Option<u64>,
    },
}

/// A body that ended before it was whole: the connection is cut, so that the client sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut(pub(super) &'static str);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Cut {}

impl Body {
    pub(super) fn full(bytes: impl Into<Bytes>) -> Self {
        Self {
            kind: Kind::Full(bytes.into()),
            busy: None,
        }
    }

    pub(super) fn json<T: Serialize>(value: &T) -> Self {
        // Most answers are that short.
        let mut bytes = Vec::with_capacity(256);
        serde_json::to_writer(&mut bytes, value)
            .expect("answers have string keys and no failing parts");
        Self::full(bytes)
    }

    /// Pieces as they are made: whoever makes them waits for the client to read, and ends them with an empty one.
    pub(super) fn pieces(
        receiver: mpsc::Receiver<Result<Bytes, Cut>>,
        length: Option<u64>,
    ) -> Self {
        Self {
            kind: Kind::Pieces {
                receiver,
                left: length,
            },
            busy: None,
        }
    }

    pub(super) fn hold(&mut self, busy: Busy) {
        self.busy = Some(busy);
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.kind {
            Kind::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Kind::Pieces { receiver, left } => {
                if *left == Some(0) {
                    return Poll::Ready(None);
                }
                match ready!(receiver.poll_recv(cx)) {
                    // Its maker says that it is whole.
                    Some(Ok(piece)) if piece.is_empty() && left.is_none() => Poll::Ready(None),
                    Some(Ok(mut piece)) => {
                        if let Some(left) = left {
                            let most = usize::try_from(*left).unwrap_or(usize::MAX);
                            piece.truncate(most);
                            *left -= piece.len() as u64;
                        }
                        Poll::Ready(Some(Ok(Frame::data(piece))))
                    }
                    Some(Err(cut)) => Poll::Ready(Some(Err(cut))),
                    None => Poll::Ready(Some(Err(Cut("it ended before it was whole")))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.is_empty(),
            Kind::Pieces { left, .. } => *left == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Pieces {
                left: Some(left), ..
            } => SizeHint::with_exact(*left),
            Kind::Pieces { left: None, .. } => SizeHint::default(),
        }
    }
}

/// A request's body: its announced length is judged before a byte of it is read, and it must be there in time.
pub(super) async fn read(
    body: Incoming,
    bytes_max: usize,
    timeout: Duration,
) -> Result<Bytes, Box<Refusal>> {
    let too_large = || {
        Refusal::new(
            Code::BodyTooLarge,
            format!(
                "a request's body may have {bytes_max} bytes; send a batch in several requests"
            ),
        )
    };
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let whole = tokio::time::timeout(timeout, Limited::new(body, bytes_max).collect());
    match whole.await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(Refusal::new(
            Code::MalformedRequest,
            format!("the body broke off: {error}"),
        )),
        Err(_elapsed) => Err(Refusal::new(
            Code::BodyTimeout,
            format!("the body was not there after {} ms", timeout.as_millis()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(body: Body) -> Vec<Result<Bytes, &'static str>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut body = body;
        let mut all = Vec::new();
        while let Some(frame) = runtime.block_on(body.frame()) {
            let broken = frame.is_err();
            all.push(
                frame
                    .map(|frame| frame.into_data().unwrap())
                    .map_err(|cut| cut.0),
            );
            if broken {
                break;
            }
        }
        all
    }

    fn pieces(pieces: &[&'static [u8]], length: Option<u64>) -> Body {
        let (sender, receiver) = mpsc::channel(8);
        for piece in pieces {
            sender.try_send(Ok(Bytes::from_static(piece))).unwrap();
        }
        Body::pieces(receiver, length)
    }

    #[test]
    fn pieces_end_when_their_maker_says_so_and_are_broken_off_otherwise() {
        let whole = frames(pieces(&[b"a", b"b", b""], None));
        assert_eq!(whole, [Ok("a".into()), Ok("b".into())]);
        let broken = frames(pieces(&[b"a"], None));
        assert_eq!(
            broken,
            [Ok("a".into()), Err("it ended before it was whole")]
        );
    }

    #[test]
    fn a_promised_length_is_kept_or_broken_off() {
        let whole = frames(pieces(&[b"abc", b"def"], Some(4)));
        assert_eq!(whole, [Ok("abc".into()), Ok("d".into())]);
        let short = frames(pieces(&[b"abc"], Some(4)));
        assert_eq!(
            short,
            [Ok("abc".into()), Err("it ended before it was whole")]
        );
    }
}
