//! Bytes in, frames out; limits are checked before anything is allocated.
//!
//! A header is judged as soon as its six bytes are there, and a length it claims allocates nothing: the buffer grows
//! with the bytes that really come. Byte strings inside a frame (job bodies, pieces of output) are slices of the read
//! buffer, not copies. **They pin it:** a caller that keeps a few bytes for long copies them
//! (`Bytes::copy_from_slice`), or it keeps the whole read they came with. Text, fences and reports are copies anyway.

use bytes::{Buf, BytesMut};

use crate::codec::{DecodeError, HEADER_BYTES, Header, write_frame};
use crate::frame::{Frame, SKIPPABLE};
use crate::limits::HELLO_FRAME_BYTES_MAX;

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    frame_bytes_max: usize,
    /// Bytes of an unknown frame still to be passed over: dropped as they come, never gathered.
    skip_bytes: usize,
}

impl Decoder {
    /// For a new connection of a server: nothing larger than a hello is accepted yet. A client, whose first frame may be
    /// a refusal in words, raises that to `HANDSHAKE_FRAME_BYTES_MAX` at once.
    pub fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            frame_bytes_max: HELLO_FRAME_BYTES_MAX,
            skip_bytes: 0,
        }
    }

    /// Changes the largest frame accepted from now on (the handshake raises it step by step).
    pub fn accept_up_to(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Where to append bytes as they arrive. Take out the frames after each read: what lies here is not bounded by the
    /// decoder but by how much its owner reads at once.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame, `None` until more bytes come. After an error the stream is lost: close it.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, DecodeError> {
        loop {
            let skipped = self.skip_bytes.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip_bytes -= skipped;

            let Some(header) = Header::peek(&self.buffer)? else {
                return Ok(None);
            };
            self.judge(header)?;
            if !Frame::knows(header.kind) {
                self.skip_bytes = HEADER_BYTES + header.body_bytes;
                continue;
            }
            if self.buffer.len() < HEADER_BYTES + header.body_bytes {
                return Ok(None);
            }
            self.buffer.advance(HEADER_BYTES);
            let body = self.buffer.split_to(header.body_bytes).freeze();
            return Frame::read_body(header.kind, &body).map(Some);
        }
    }

    fn judge(&self, header: Header) -> Result<(), DecodeError> {
        if header.body_bytes > self.frame_bytes_max {
            return Err(DecodeError::new("frame length", "is above the limit"));
        }
        if header.flags & !SKIPPABLE != 0 {
            return Err(DecodeError::new("frame flags", "has unknown flags"));
        }
        if !Frame::knows(header.kind) && header.flags & SKIPPABLE == 0 {
            return Err(DecodeError::new("frame", "is of an unknown kind"));
        }
        Ok(())
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Frame {
    /// Appends header and body.
    ///
    /// # Panics
    /// If a field or the frame is above its limit in `limits.rs`: every receiver would refuse it, so whoever fills a
    /// frame with words of others (a handler's message, a result) cuts them first.
    pub fn encode(&self, out: &mut BytesMut) {
        write_frame(out, self.kind(), |to| self.write_body(to));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::frame::{Ack, Beat};

    fn ack(through: u64) -> Frame {
        Frame::Ack(Ack { through })
    }

    fn fed(bytes: &[u8]) -> Decoder {
        let mut decoder = Decoder::new();
        decoder.buffer().extend_from_slice(bytes);
        decoder
    }

    #[test]
    fn frames_come_out_whole_however_the_bytes_come_in() {
        let frames = [
            ack(1),
            Frame::Beat(Beat {
                assign_seq: 2,
                held: 3,
            }),
            ack(4),
        ];
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));

        let mut decoder = Decoder::new();
        let mut out = Vec::new();
        for byte in bytes {
            decoder.buffer().extend_from_slice(&[byte]);
            out.extend(decoder.next_frame().unwrap());
        }
        assert_eq!(out, frames);
        assert!(decoder.buffer().is_empty());
    }

    #[test]
    fn a_length_above_the_limit_is_refused_with_the_header() {
        let header = |body_bytes: u32| {
            let [a, b, c, d] = (body_bytes + 2).to_le_bytes();
            [a, b, c, d, 0x23, 0]
        };
        assert_eq!(fed(&header(512)).next_frame(), Ok(None));
        assert!(fed(&header(513)).next_frame().is_err());

        let mut raised = fed(&header(513));
        raised.accept_up_to(513);
        assert_eq!(raised.next_frame(), Ok(None));
        assert!(
            fed(&[1, 0, 0, 0, 0x23, 0]).next_frame().is_err(),
            "shorter than its own header"
        );
    }

    #[test]
    fn an_unknown_kind_is_passed_over_if_it_says_so_and_never_gathered() {
        let mut decoder = fed(&[102, 0, 0, 0, 0xee, SKIPPABLE]);
        for _ in 0..10 {
            decoder.buffer().extend_from_slice(&[0xab; 10]);
            assert_eq!(decoder.next_frame(), Ok(None));
            assert!(decoder.buffer().is_empty());
        }
        ack(9).encode(decoder.buffer());
        assert_eq!(decoder.next_frame(), Ok(Some(ack(9))));

        assert!(
            fed(&[2, 0, 0, 0, 0xee, 0]).next_frame().is_err(),
            "not skippable"
        );
        assert!(
            fed(&[2, 0, 0, 0, 0xee, SKIPPABLE | 2])
                .next_frame()
                .is_err(),
            "unknown flag"
        );
    }

    #[test]
    fn bodies_are_slices_of_what_was_read() {
        use crate::frame::{Assign, Assignment};
        use crate::{Attempt, Epoch, Fence, JobId};

        let fence = Fence {
            job: JobId::MIN,
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        };
        let assignment = Assignment {
            fence,
            body: Bytes::from(vec![7; 400]),
        };
        let mut decoder = Decoder::new();
        Frame::Assign(Assign {
            seq: 1,
            jobs: vec![assignment],
        })
        .encode(decoder.buffer());
        let start = decoder.buffer().as_ptr() as usize;
        let end = start + decoder.buffer().len();

        let Some(Frame::Assign(assign)) = decoder.next_frame().unwrap() else {
            panic!("no assign")
        };
        assert!((start..end).contains(&(assign.jobs[0].body.as_ptr() as usize)));
    }
}
