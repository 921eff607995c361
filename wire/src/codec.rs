//! Integers, bounded byte strings and lists; the only file that counts offsets.
//!
//! A `Reader` walks one frame's body and checks each limit before it allocates: a byte string against its limit and
//! against the bytes that are left, a list against its limit and against the bytes its shortest items would take. So
//! what a decoder holds is at most a small multiple of the bytes that really came. A `Writer` appends; it asserts the
//! same limits, since a frame above them would be refused by every receiver.
//!
//! An encoding is unique: what decodes encodes to the same bytes again. The handshake's proofs rest on that.
//!
//! A header carries two checksums: a short one of itself, so that a length is not waited for unless it was meant, and one
//! of itself and the body, so that no byte is believed that was not said. Both are against accidents; against people
//! there is TLS.
//!
//! Not here: what the fields mean. Each conversation in `frame/` writes and reads its own.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::limits::FRAME_BYTES_MAX;
use crate::{Attempt, Epoch, Fence, JobId, SessionId};

/// Bytes that are not what the protocol says. Names what was read and which limit or rule it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// The frame or field being read.
    pub what: &'static str,
    /// The rule it broke.
    pub why: &'static str,
}

/// The rule about checksums: a frame that breaks it was not said like that.
const DAMAGED: &str = "does not match its checksum";

impl DecodeError {
    pub(crate) const fn new(what: &'static str, why: &'static str) -> Self {
        Self { what, why }
    }

    pub(crate) const fn damaged(what: &'static str) -> Self {
        Self::new(what, DAMAGED)
    }

    /// Whether the bytes changed on their way: saying the same again may well do.
    pub fn is_damage(&self) -> bool {
        self.why == DAMAGED
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for DecodeError {}

/// Something with a layout of its own.
pub(crate) trait Wire: Sized {
    /// Bytes of its shortest form: bounds how many may follow a count.
    const BYTES_MIN: usize;

    fn write(&self, to: &mut Writer<'_>);

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

/// Walks a body from its first byte to its last.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    body: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(what: &'static str, body: &'a Bytes) -> Self {
        Self { what, body, at: 0 }
    }

    /// The error for a broken rule of the frame as a whole.
    pub(crate) const fn error(&self, why: &'static str) -> DecodeError {
        DecodeError::new(self.what, why)
    }

    /// Every byte must have been read.
    pub(crate) fn finish(self) -> Result<(), DecodeError> {
        if self.left() == 0 {
            Ok(())
        } else {
            Err(self.error("has bytes after its end"))
        }
    }

    fn left(&self) -> usize {
        self.body.len() - self.at
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some(array) = self.body[self.at..].first_chunk::<N>() else {
            return Err(self.error("ends too early"));
        };
        self.at += N;
        Ok(*array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn f32(&mut self) -> Result<f32, DecodeError> {
        self.array().map(f32::from_le_bytes)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::new(what, "is neither 0 nor 1")),
        }
    }

    /// A byte of which only the bits of `known` may be set.
    pub(crate) fn flags(&mut self, what: &'static str, known: u8) -> Result<u8, DecodeError> {
        let flags = self.u8()?;
        if flags & !known == 0 {
            Ok(flags)
        } else {
            Err(DecodeError::new(what, "has unknown flags"))
        }
    }

    /// What `read` reads, if a flag said that it is there.
    pub(crate) fn optional<T>(
        &mut self,
        present: bool,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if present {
            read(self).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A byte that `of` knows.
    pub(crate) fn code<T>(
        &mut self,
        what: &'static str,
        of: impl FnOnce(u8) -> Option<T>,
    ) -> Result<T, DecodeError> {
        of(self.u8()?).ok_or(DecodeError::new(what, "is an unknown number"))
    }

    /// Bytes with a 16-bit length. They stay in the memory of the frame.
    pub(crate) fn short_bytes(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<Bytes, DecodeError> {
        let len = self.u16()?;
        self.cut(what, usize::from(len), limit)
            .map(|range| self.body.slice(range))
    }

    /// Bytes with a 32-bit length. They stay in the memory of the frame.
    pub(crate) fn long_bytes(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<Bytes, DecodeError> {
        let len = self.u32()? as usize;
        self.cut(what, len, limit)
            .map(|range| self.body.slice(range))
    }

    /// UTF-8 with a 16-bit length.
    pub(crate) fn short_text(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<String, DecodeError> {
        let len = self.u16()?;
        self.text(what, usize::from(len), limit)
    }

    /// UTF-8 with a 32-bit length.
    pub(crate) fn long_text(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<String, DecodeError> {
        let len = self.u32()? as usize;
        self.text(what, len, limit)
    }

    fn text(
        &mut self,
        what: &'static str,
        len: usize,
        limit: usize,
    ) -> Result<String, DecodeError> {
        let range = self.cut(what, len, limit)?;
        match std::str::from_utf8(&self.body[range]) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(DecodeError::new(what, "is not UTF-8")),
        }
    }

    fn cut(
        &mut self,
        what: &'static str,
        len: usize,
        limit: usize,
    ) -> Result<std::ops::Range<usize>, DecodeError> {
        if len > limit {
            return Err(DecodeError::new(what, "is longer than its limit"));
        }
        if len > self.left() {
            return Err(DecodeError::new(what, "ends too early"));
        }
        let start = self.at;
        self.at += len;
        Ok(start..self.at)
    }

    /// A 32-bit count and so many items with a layout of their own.
    pub(crate) fn list<T: Wire>(
        &mut self,
        what: &'static str,
        limit: usize,
    ) -> Result<Vec<T>, DecodeError> {
        self.list_of(what, limit, T::BYTES_MIN, T::read)
    }

    /// A 32-bit count and so many items of at least `item_bytes_min` each.
    pub(crate) fn list_of<T>(
        &mut self,
        what: &'static str,
        limit: usize,
        item_bytes_min: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.u32()? as usize;
        if count > limit {
            return Err(DecodeError::new(what, "has more items than its limit"));
        }
        if count > self.left() / item_bytes_min {
            return Err(DecodeError::new(what, "ends too early"));
        }
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
}

/// Appends to a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    out: &'a mut BytesMut,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(out: &'a mut BytesMut) -> Self {
        Self { out }
    }

    /// Room for what is about to be written: one growth instead of several.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.out.reserve(bytes);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.put_slice(bytes);
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.out.put_u8(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.out.put_u16_le(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.out.put_u32_le(value);
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.out.put_u64_le(value);
    }

    pub(crate) fn i32(&mut self, value: i32) {
        self.out.put_i32_le(value);
    }

    pub(crate) fn f32(&mut self, value: f32) {
        self.out.put_f32_le(value);
    }

    pub(crate) fn bool(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    pub(crate) fn short_bytes(&mut self, what: &'static str, bytes: &[u8], limit: usize) {
        assert!(
            bytes.len() <= limit,
            "{what} has {} bytes, the limit is {limit}",
            bytes.len()
        );
        self.u16(u16::try_from(bytes.len()).expect("short limits are below 64 KiB"));
        self.raw(bytes);
    }

    pub(crate) fn long_bytes(&mut self, what: &'static str, bytes: &[u8], limit: usize) {
        assert!(
            bytes.len() <= limit,
            "{what} has {} bytes, the limit is {limit}",
            bytes.len()
        );
        self.u32(u32::try_from(bytes.len()).expect("limits are below 4 GiB"));
        self.raw(bytes);
    }

    pub(crate) fn list<T: Wire>(&mut self, what: &'static str, items: &[T], limit: usize) {
        self.reserve(4 + items.len() * T::BYTES_MIN);
        self.list_of(what, items, limit, T::write);
    }

    pub(crate) fn list_of<T>(
        &mut self,
        what: &'static str,
        items: &[T],
        limit: usize,
        mut item: impl FnMut(&T, &mut Self),
    ) {
        assert!(
            items.len() <= limit,
            "{what} has {} items, the limit is {limit}",
            items.len()
        );
        self.u32(u32::try_from(items.len()).expect("limits are below 2^32"));
        for each in items {
            item(each, self);
        }
    }
}

/// `bit` if `on`, for a byte of flags.
pub(crate) const fn flag(on: bool, bit: u8) -> u8 {
    if on { bit } else { 0 }
}

/// Bytes before a frame's body: length, kind, flags, and the two checksums.
pub(crate) const HEADER_BYTES: usize = 12;

/// Bytes of the header that its length counts.
const COUNTED_HEADER_BYTES: usize = 8;

/// What a frame's first bytes say.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) body_bytes: usize,
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) sum: Sum,
}

/// Compares a frame's bytes, as they come, with the checksum in its header.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    hasher: crc32fast::Hasher,
    expected: u32,
}

impl Sum {
    pub(crate) fn add(&mut self, body: &[u8]) {
        self.hasher.update(body);
    }

    /// All of the body has been added. A fuzzer cannot guess checksums, so for one they always fit.
    pub(crate) fn fits(self) -> bool {
        cfg!(fuzzing) || self.hasher.finalize() == self.expected
    }
}

impl Header {
    /// Reads it off the front of `bytes`, or `None` until all of it is there.
    pub(crate) fn peek(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        let Some(&[a, b, c, d, kind, flags, check_a, check_b, e, f, g, h]) =
            bytes.first_chunk::<HEADER_BYTES>()
        else {
            return Ok(None);
        };
        let (hasher, check) = start_sum([a, b, c, d, kind, flags]);
        if check != [check_a, check_b] && !cfg!(fuzzing) {
            return Err(DecodeError::damaged("frame header"));
        }
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        match length.checked_sub(COUNTED_HEADER_BYTES) {
            Some(body_bytes) => Ok(Some(Self {
                body_bytes,
                kind,
                flags,
                sum: Sum {
                    hasher,
                    expected: u32::from_le_bytes([e, f, g, h]),
                },
            })),
            None => Err(DecodeError::new(
                "frame length",
                "does not cover the rest of the header",
            )),
        }
    }
}

/// The sum of a header's first six bytes, to go on with over the body, and the short checksum that is made of it.
fn start_sum(head: [u8; 6]) -> (crc32fast::Hasher, [u8; 2]) {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&head);
    let [low, high, ..] = hasher.clone().finalize().to_le_bytes();
    (hasher, [low, high])
}

/// A frame of any kind, flags and body, also one that nobody may send: what receivers are tested with.
pub fn raw_frame(kind: u8, flags: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    write_frame(&mut out, kind, flags, |to| to.raw(body));
    out.freeze()
}

/// Appends a frame: its header, then what `body` writes, then length and checksums in their places.
pub(crate) fn write_frame(
    out: &mut BytesMut,
    kind: u8,
    flags: u8,
    body: impl FnOnce(&mut Writer<'_>),
) {
    let start = out.len();
    out.put_slice(&[0; HEADER_BYTES]);
    body(&mut Writer::new(out));
    let (header, body) = out[start..].split_at_mut(HEADER_BYTES);
    assert!(
        body.len() <= FRAME_BYTES_MAX,
        "a frame has {} bytes, the limit is {FRAME_BYTES_MAX}",
        body.len()
    );
    let length =
        u32::try_from(body.len() + COUNTED_HEADER_BYTES).expect("the limit is below 4 GiB");
    let [a, b, c, d] = length.to_le_bytes();
    let head = [a, b, c, d, kind, flags];
    let (mut hasher, check) = start_sum(head);
    hasher.update(body);
    header[..6].copy_from_slice(&head);
    header[6..8].copy_from_slice(&check);
    header[8..].copy_from_slice(&hasher.finalize().to_le_bytes());
}

/// What `value` takes on the wire, without a header.
pub(crate) fn body_of(value: &impl Wire) -> Bytes {
    let mut out = BytesMut::new();
    value.write(&mut Writer::new(&mut out));
    out.freeze()
}

impl<T: Wire> Wire for Box<T> {
    const BYTES_MIN: usize = T::BYTES_MIN;

    fn write(&self, to: &mut Writer<'_>) {
        T::write(self, to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        T::read(from).map(Box::new)
    }
}

impl Wire for Fence {
    const BYTES_MIN: usize = 14;

    fn write(&self, to: &mut Writer<'_>) {
        // One copy of 14 bytes instead of three: fences are most of what is said.
        let mut bytes = [0; Self::BYTES_MIN];
        bytes[..8].copy_from_slice(&self.job.raw().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.epoch.raw().to_le_bytes());
        bytes[12..].copy_from_slice(&self.attempt.raw().to_le_bytes());
        to.raw(&bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let job = from.u64()?;
        let epoch = from.u32()?;
        let attempt = from.u16()?;
        Ok(Self {
            job: JobId::new(job).ok_or(DecodeError::new("fence", "has a job outside 1..2^53"))?,
            epoch: Epoch::new(epoch),
            attempt: Attempt::new(attempt).ok_or(DecodeError::new("fence", "has attempt 0"))?,
        })
    }
}

impl Wire for Epoch {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        to.u32(self.raw());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.u32().map(Self::new)
    }
}

impl Wire for SessionId {
    const BYTES_MIN: usize = 8;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.raw());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        from.u64().map(Self::new)
    }
}

/// The byte of each variant, both ways.
macro_rules! coded {
    ($name:ident, $what:literal { $($variant:ident = $code:literal),+ $(,)? }) => {
        impl $crate::codec::Wire for $name {
            const BYTES_MIN: usize = 1;

            fn write(&self, to: &mut $crate::codec::Writer<'_>) {
                to.u8(match self { $(Self::$variant => $code),+ });
            }

            fn read(
                from: &mut $crate::codec::Reader<'_>,
            ) -> Result<Self, $crate::codec::DecodeError> {
                from.code($what, |code| match code { $($code => Some(Self::$variant),)+ _ => None })
            }
        }
    };
}

pub(crate) use coded;

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &'static [u8]) -> Bytes {
        Bytes::from_static(bytes)
    }

    #[test]
    fn a_count_is_believed_only_as_far_as_the_bytes_that_came() {
        let body = reader(&[0xff, 0xff, 0, 0, 1, 2, 3]);
        let error = Reader::new("test", &body)
            .list::<Fence>("fences", 1 << 20)
            .unwrap_err();
        assert_eq!(error, DecodeError::new("fences", "ends too early"));
    }

    #[test]
    fn a_count_above_its_limit_is_refused_whatever_follows() {
        let body = Bytes::from(vec![1; 4096]);
        let error = Reader::new("test", &body)
            .list::<Epoch>("epochs", 3)
            .unwrap_err();
        assert_eq!(
            error,
            DecodeError::new("epochs", "has more items than its limit")
        );
    }

    #[test]
    fn text_must_be_utf8_within_its_limit_and_within_the_body() {
        let read = |bytes: &'static [u8], limit| {
            Reader::new("test", &reader(bytes))
                .short_text("name", limit)
                .map_err(|error| error.why)
        };
        assert_eq!(read(b"\x02\0hi", 2), Ok("hi".to_owned()));
        assert_eq!(read(b"\x02\0hi", 1), Err("is longer than its limit"));
        assert_eq!(read(b"\x03\0hi", 9), Err("ends too early"));
        assert_eq!(read(b"\x02\0\xc3\x28", 9), Err("is not UTF-8"));
        assert_eq!(read(b"\x02", 9), Err("ends too early"));
    }

    #[test]
    fn a_fence_names_a_job_and_an_attempt() {
        let read = |job: u64, attempt: u16| {
            let mut bytes = job.to_le_bytes().to_vec();
            bytes.extend([7, 0, 0, 0]);
            bytes.extend(attempt.to_le_bytes());
            Fence::read(&mut Reader::new("test", &Bytes::from(bytes))).is_ok()
        };
        assert!(read(1, 1));
        assert!(!read(0, 1));
        assert!(!read(1, 0));
        assert!(!read(1 << 53, 1));
    }

    #[test]
    fn a_flag_or_a_number_without_a_meaning_is_refused() {
        let body = reader(&[0b101, 2]);
        assert_eq!(Reader::new("test", &body).flags("flags", 0b111), Ok(0b101));
        assert!(Reader::new("test", &body).flags("flags", 0b001).is_err());
        assert!(Reader::new("test", &reader(&[2])).bool("bool").is_err());
        let code = Reader::new("test", &body).code("code", |code| (code == 1).then_some(()));
        assert_eq!(code, Err(DecodeError::new("code", "is an unknown number")));
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let body = reader(&[1, 2]);
        let mut from = Reader::new("test", &body);
        assert_eq!(from.u8(), Ok(1));
        assert_eq!(
            from.finish(),
            Err(DecodeError::new("test", "has bytes after its end"))
        );
    }
}
