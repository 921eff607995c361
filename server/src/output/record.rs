//! One record of a segment: a header with two checksums, then the bytes.
//!
//! ```text
//! data length u32 · header crc u32 · data crc u32 · kind u8 · stream u8 · attempt u16 · epoch u32 · job u64
//! · offset u64 · merged u64 · at_ms u64 · data
//! ```
//!
//! All little-endian. The header's checksum also covers where the record stands, so that a record is valid in its own
//! place only; it has a checksum apart from the data's, so that damage inside one job's bytes does not hide the records
//! behind it from other jobs.
//!
//! Not here: files (`segment`), what belongs to an attempt (`log`).

use bytes::BytesMut;
use hostler_wire::frame::{OutputEnd, Stream};
use hostler_wire::{Attempt, Epoch, Fence, JobId};

use super::log::Rules;

/// Bytes before the data.
pub(super) const HEADER_BYTES: usize = 52;
/// Largest data: one chunk of the protocol.
pub(super) const DATA_BYTES_MAX: usize = hostler_wire::limits::CHUNK_BYTES_MAX;
/// What an end's record takes.
pub(super) const END_BYTES: usize = HEADER_BYTES + 24;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of output.
    Chunk(Stream),
    /// Nothing more will come; the data are the totals.
    End,
    /// The job's output is no longer wanted; attempt and epoch are 0.
    Purge,
    /// What the attempt's job asked for; before its first chunk in the segment, if that is not what every job gets.
    Rules,
    /// All before this place has been synced; the data are the segment's nonce.
    Mark,
}

impl Kind {
    fn to_bytes(self) -> (u8, u8) {
        match self {
            Self::Chunk(stream) => (1, stream as u8),
            Self::End => (2, 0),
            Self::Purge => (3, 0),
            Self::Mark => (4, 0),
            Self::Rules => (5, 0),
        }
    }

    fn from_bytes(kind: u8, stream: u8) -> Option<Self> {
        match (kind, stream) {
            (1, 1) => Some(Self::Chunk(Stream::Stdout)),
            (1, 2) => Some(Self::Chunk(Stream::Stderr)),
            (2, 0) => Some(Self::End),
            (3, 0) => Some(Self::Purge),
            (4, 0) => Some(Self::Mark),
            (5, 0) => Some(Self::Rules),
            _ => None,
        }
    }
}

/// Whose a record is: a fence as three plain numbers, so that marks (all 0) and purges (attempt 0) have one too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub job: u64,
    pub epoch: u32,
    pub attempt: u16,
}

impl Key {
    /// The smallest key of a job.
    pub(super) fn first_of(job: JobId) -> Self {
        Self {
            job: job.raw(),
            epoch: 0,
            attempt: 0,
        }
    }

    /// The largest.
    pub(super) fn last_of(job: JobId) -> Self {
        Self {
            job: job.raw(),
            epoch: u32::MAX,
            attempt: u16::MAX,
        }
    }

    /// The fence it stands for, unless it is a mark's or a purge's.
    pub(super) fn fence(self) -> Option<Fence> {
        Some(Fence {
            job: JobId::new(self.job)?,
            epoch: Epoch::new(self.epoch),
            attempt: Attempt::new(self.attempt)?,
        })
    }
}

impl From<Fence> for Key {
    fn from(fence: Fence) -> Self {
        Self {
            job: fence.job.raw(),
            epoch: fence.epoch.raw(),
            attempt: fence.attempt.raw(),
        }
    }
}

/// Where a record begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub segment: u32,
    pub at: u32,
}

/// A record but for its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: Kind,
    pub key: Key,
    /// Where the piece begins in its stream.
    pub offset: u64,
    /// Bytes of both streams the attempt had before it.
    pub merged: u64,
    pub at_ms: u64,
    pub data_bytes: u32,
    data_crc: u32,
}

impl Head {
    pub(super) fn new(kind: Kind, key: Key, offset: u64, merged: u64, at_ms: u64) -> Self {
        Self {
            kind,
            key,
            offset,
            merged,
            at_ms,
            data_bytes: 0,
            data_crc: 0,
        }
    }

    /// Appends the record as it stands at `place`; says how many bytes it takes.
    pub(super) fn write(mut self, place: Place, data: &[u8], out: &mut BytesMut) -> u32 {
        assert!(data.len() <= DATA_BYTES_MAX);
        self.data_bytes = u32::try_from(data.len()).expect("asserted above");
        self.data_crc = crc32fast::hash(data);
        let mut bytes = [0; HEADER_BYTES];
        let (kind, stream) = self.kind.to_bytes();
        bytes[0..4].copy_from_slice(&self.data_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data_crc.to_le_bytes());
        bytes[12] = kind;
        bytes[13] = stream;
        bytes[14..16].copy_from_slice(&self.key.attempt.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.key.epoch.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.key.job.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.offset.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.merged.to_le_bytes());
        bytes[44..52].copy_from_slice(&self.at_ms.to_le_bytes());
        let crc = header_crc(place, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&bytes);
        out.extend_from_slice(data);
        self.bytes()
    }

    /// Reads a header; none if the bytes are not what was written at that place.
    pub(super) fn read(place: Place, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        if u32_at(bytes, 4) != header_crc(place, bytes) {
            return None;
        }
        let head = Self {
            kind: Kind::from_bytes(bytes[12], bytes[13])?,
            key: Key {
                job: u64_at(bytes, 20),
                epoch: u32_at(bytes, 16),
                attempt: u16::from_le_bytes([bytes[14], bytes[15]]),
            },
            offset: u64_at(bytes, 28),
            merged: u64_at(bytes, 36),
            at_ms: u64_at(bytes, 44),
            data_bytes: u32_at(bytes, 0),
            data_crc: u32_at(bytes, 8),
        };
        (head.data_bytes as usize <= DATA_BYTES_MAX).then_some(head)
    }

    /// Its size on disk.
    pub(super) fn bytes(&self) -> u32 {
        self.data_bytes + u32::try_from(HEADER_BYTES).expect("a small constant")
    }

    /// The data behind it, if they are there and are what was written.
    pub(super) fn data<'a>(&self, record: &'a [u8]) -> Option<&'a [u8]> {
        let data = record.get(HEADER_BYTES..self.bytes() as usize)?;
        (crc32fast::hash(data) == self.data_crc).then_some(data)
    }
}

/// An end's totals as data.
pub(super) fn end_to_bytes(end: &OutputEnd) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0..8].copy_from_slice(&end.stdout_bytes.to_le_bytes());
    bytes[8..16].copy_from_slice(&end.stderr_bytes.to_le_bytes());
    bytes[16..24].copy_from_slice(&end.dropped_bytes.to_le_bytes());
    bytes
}

/// And back.
pub(super) fn end_from_bytes(key: Key, bytes: &[u8]) -> Option<OutputEnd> {
    (bytes.len() == 24).then_some(OutputEnd {
        fence: key.fence()?,
        stdout_bytes: u64_at(bytes, 0),
        stderr_bytes: u64_at(bytes, 8),
        dropped_bytes: u64_at(bytes, 16),
    })
}

/// An attempt's rules as data.
pub(super) fn rules_to_bytes(rules: Rules) -> [u8; 9] {
    let mut bytes = [0; 9];
    bytes[0..8].copy_from_slice(&limit_to_number(rules.limit_bytes).to_le_bytes());
    bytes[8] = u8::from(rules.streamed);
    bytes
}

/// And back.
pub(super) fn rules_from_bytes(bytes: &[u8]) -> Option<Rules> {
    (bytes.len() == 9).then(|| Rules {
        limit_bytes: limit_from_number(u64_at(bytes, 0)),
        streamed: bytes[8] != 0,
    })
}

/// A limit in a file: no limit is the largest number.
pub(super) fn limit_to_number(limit_bytes: Option<u64>) -> u64 {
    limit_bytes.unwrap_or(u64::MAX)
}

/// And back.
pub(super) fn limit_from_number(number: u64) -> Option<u64> {
    (number != u64::MAX).then_some(number)
}

/// A little-endian number. The caller knows that the bytes are there.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("a record of fixed size"))
}

/// A little-endian number. The caller knows that the bytes are there.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("a record of fixed size"))
}

fn header_crc(place: Place, bytes: &[u8; HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.segment.to_le_bytes());
    hasher.update(&place.at.to_le_bytes());
    hasher.update(&bytes[0..4]);
    hasher.update(&bytes[8..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_valid_in_its_own_place_only_and_any_flipped_bit_shows() {
        let place = Place {
            segment: 3,
            at: 4_096,
        };
        let key = Key {
            job: 7,
            epoch: 2,
            attempt: 1,
        };
        let mut bytes = BytesMut::new();
        let head = Head::new(Kind::Chunk(Stream::Stderr), key, 10, 20, 30);
        assert_eq!(
            head.write(place, b"hello", &mut bytes) as usize,
            bytes.len()
        );

        let read = Head::read(place, &bytes).unwrap();
        assert_eq!((read.kind, read.key, read.offset), (head.kind, key, 10));
        assert_eq!(read.data(&bytes), Some(&b"hello"[..]));
        assert!(Head::read(Place { at: 4_097, ..place }, &bytes).is_none());
        assert!(
            Head::read(
                Place {
                    segment: 4,
                    ..place
                },
                &bytes
            )
            .is_none()
        );

        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            let whole =
                Head::read(place, &bad).and_then(|head| head.data(&bad).map(<[u8]>::to_vec));
            assert_eq!(whole, None, "bit {bit}");
        }
    }
}
