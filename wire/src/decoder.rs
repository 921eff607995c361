//! Bytes in, frames out; limits are checked before anything is allocated.
//!
//! A header is judged as soon as it is there, its own checksum first, and a length it claims allocates nothing: the buffer
//! grows with the bytes that really come. A body is read once its checksum fits. Byte strings inside a frame (job
//! bodies, pieces of output) are slices of the read buffer, not copies. **They pin it:** a caller that keeps a few
//! bytes for long copies them (`Bytes::copy_from_slice`), or it keeps the whole read they came with. Text, fences and
//! reports are copies anyway.

use bytes::{Buf, BytesMut};

use crate::codec::{DecodeError, HEADER_BYTES, Header, Sum, write_frame};
use crate::frame::{Frame, SKIPPABLE};
use crate::limits::HELLO_FRAME_BYTES_MAX;
use crate::mutation;

/// What is still to come of a frame that nobody reads.
#[derive(Debug)]
struct Skip {
    bytes: usize,
    sum: Sum,
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    frame_bytes_max: usize,
    /// An unknown frame that is passed over: dropped as it comes, never gathered.
    skipping: Option<Skip>,
}

impl Decoder {
    /// For a new connection of a server: nothing larger than a hello is accepted yet. A client, whose first frame may be
    /// a refusal in words, raises that to `HANDSHAKE_FRAME_BYTES_MAX` at once.
    pub fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            frame_bytes_max: HELLO_FRAME_BYTES_MAX,
            skipping: None,
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
            if let Some(mut skip) = self.skipping.take() {
                let passed = self.buffer.split_to(skip.bytes.min(self.buffer.len()));
                skip.sum.add(&passed);
                skip.bytes -= passed.len();
                if skip.bytes > 0 {
                    self.skipping = Some(skip);
                    return Ok(None);
                }
                if !skip.sum.fits() {
                    return Err(DecodeError::damaged("frame"));
                }
            }

            let Some(mut header) = Header::peek(&self.buffer)? else {
                return Ok(None);
            };
            self.judge(&header)?;
            if !Frame::knows(header.kind) {
                self.buffer.advance(HEADER_BYTES);
                self.skipping = Some(Skip {
                    bytes: header.body_bytes,
                    sum: header.sum,
                });
                continue;
            }
            if self.buffer.len() < HEADER_BYTES + header.body_bytes {
                return Ok(None);
            }
            self.buffer.advance(HEADER_BYTES);
            let body = self.buffer.split_to(header.body_bytes).freeze();
            header.sum.add(&body);
            if !header.sum.fits() && !mutation::is("damage passed over") {
                return Err(DecodeError::damaged("frame"));
            }
            return Frame::read_body(header.kind, &body).map(Some);
        }
    }

    fn judge(&self, header: &Header) -> Result<(), DecodeError> {
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
        write_frame(out, self.kind(), 0, |to| self.write_body(to));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::codec::raw_frame;
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
        let header = |body_bytes| raw_frame(0x23, 0, &vec![0; body_bytes]).slice(..HEADER_BYTES);
        assert_eq!(fed(&header(512)).next_frame(), Ok(None));
        assert!(fed(&header(513)).next_frame().is_err());

        let mut raised = fed(&header(513));
        raised.accept_up_to(513);
        assert_eq!(raised.next_frame(), Ok(None));
        assert!(
            fed(b"\x07\0\0\0\x23\0\x47\x2d\0\0\0\0")
                .next_frame()
                .is_err(),
            "shorter than its own header"
        );
    }

    #[test]
    fn an_unknown_kind_is_passed_over_if_it_says_so_and_never_gathered() {
        let unknown = raw_frame(0xee, SKIPPABLE, &[0xab; 100]);
        let mut decoder = fed(&[]);
        for piece in unknown.chunks(10) {
            decoder.buffer().extend_from_slice(piece);
            assert_eq!(decoder.next_frame(), Ok(None));
            assert!(decoder.buffer().len() < HEADER_BYTES);
        }
        ack(9).encode(decoder.buffer());
        assert_eq!(decoder.next_frame(), Ok(Some(ack(9))));

        assert!(
            fed(&raw_frame(0xee, 0, b"")).next_frame().is_err(),
            "not skippable"
        );
        assert!(
            fed(&raw_frame(0xee, SKIPPABLE | 2, b""))
                .next_frame()
                .is_err(),
            "unknown flag"
        );
    }

    /// The check of a header is linear: whether a change shows does not depend on what was changed. So one header stands
    /// for all, and no length that one changed byte makes is ever waited for.
    #[test]
    fn a_changed_byte_anywhere_is_damage_and_never_waited_for() {
        let mut unknown = BytesMut::from(&raw_frame(0xee, SKIPPABLE, b"whatever")[..]);
        let mut assign = BytesMut::new();
        Frame::Assign(crate::frame::Assign {
            seq: 7,
            jobs: vec![],
        })
        .encode(&mut assign);
        for frame in [&mut unknown, &mut assign] {
            for at in 0..frame.len() {
                for change in 1..=255 {
                    frame[at] ^= change;
                    let error = fed(frame).next_frame().unwrap_err();
                    assert!(
                        error.is_damage(),
                        "{error}: byte {at} changed by {change:#x}"
                    );
                    frame[at] ^= change;
                }
            }
            assert!(fed(frame).next_frame().is_ok());
        }
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
