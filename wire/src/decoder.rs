//! Bytes in, frames out; limits are checked before anything is allocated.

use bytes::BytesMut;

use crate::codec::DecodeError;
use crate::frame::Frame;

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    frame_bytes_max: usize,
}

impl Decoder {
    /// For a new connection: nothing larger than a hello is accepted yet.
    pub fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            frame_bytes_max: crate::limits::HELLO_FRAME_BYTES_MAX,
        }
    }

    /// Changes the largest frame accepted from now on (the handshake raises it step by step).
    pub fn accept_up_to(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Where to append bytes as they arrive.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, `None` until more bytes come. After an error the stream is lost: close it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        todo!("{}", self.frame_bytes_max)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Frame {
    /// Appends header and body.
    pub fn encode(&self, _out: &mut BytesMut) {
        todo!()
    }
}

impl crate::frame::Work {
    /// The body as it is stored and sent.
    pub fn encode(&self) -> bytes::Bytes {
        todo!()
    }

    /// Reads a body back.
    pub fn decode(_body: bytes::Bytes) -> Result<Self, DecodeError> {
        todo!()
    }
}
