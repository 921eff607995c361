//! The output spool: what jobs printed and the server has not yet put on disk.
//!
//! A piece is kept from the moment it is read until an acknowledgement covers it, and sent again after a reconnect, so
//! that a broken connection costs no output. Pieces lie in memory up to a bound for each attempt and one for all;
//! beyond it in an unlinked file for the attempt; beyond the bounds of that they are dropped and counted, or the job
//! waits in its write if it asked for that (`overflow: block`). Attempts take turns, a piece at a time, so a chatty
//! one cannot hold up the others. What an attempt's output is to become is said first, on every connection.
//!
//! Keeps P7 (bounded) and P8 (what was cut says how many bytes).
//!
//! Not here: the socket (`pipe`), the job's own output limit and its gap (the server's).

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use hostler_wire::Fence;
use hostler_wire::frame::{Chunk, Frame, Logs, OutputAck, OutputEnd, OutputStart, Stream};
use hostler_wire::limits::CHUNK_BYTES_MAX;

/// Ended attempts whose output is not acknowledged: beyond, the oldest are forgotten.
const OUTPUTS_MAX: usize = 65_536;
/// Open spool files.
const FILES_MAX: usize = 256;
/// Small pieces printed within this time share one frame.
const GATHER_MS: u64 = 100;

/// How much unacknowledged output a worker keeps, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// In memory, for all attempts.
    pub memory_bytes: usize,
    /// In memory, for one attempt.
    pub attempt_memory_bytes: usize,
    /// In files, for all attempts.
    pub file_bytes: u64,
    /// In its file, for one attempt.
    pub attempt_file_bytes: u64,
    /// Where the files are made; they have no name and go with the worker.
    pub directory: PathBuf,
}

impl Default for SpoolLimits {
    /// 4 MiB and 256 KiB in memory, 1 GiB and 64 MiB in files, in the system's directory for temporary files.
    fn default() -> Self {
        Self {
            memory_bytes: 4 << 20,
            attempt_memory_bytes: 256 << 10,
            file_bytes: 1 << 30,
            attempt_file_bytes: 64 << 20,
            directory: std::env::temp_dir(),
        }
    }
}

/// All output in hand.
#[derive(Debug)]
pub(crate) struct Spool {
    limits: SpoolLimits,
    outputs: HashMap<Fence, Output>,
    /// What becomes of the output of attempts that run, printed or not.
    running: HashMap<Fence, Logs>,
    /// Attempts that have something to send, in the order of their turns.
    ready: VecDeque<Fence>,
    /// Attempts that have ended, in order; those forgotten meanwhile stand here too.
    ended: VecDeque<Fence>,
    memory_bytes: usize,
    file_bytes: u64,
    files: usize,
    /// Room was made since [`made_room`](Self::made_room) was last asked.
    freed: bool,
}

/// One attempt's.
#[derive(Debug, Default)]
struct Output {
    /// What it is to become; none if that was never said, and then the server's own rules hold.
    logs: Option<Logs>,
    start_sent: bool,
    stdout: Track,
    stderr: Track,
    file: Option<File>,
    file_end: u64,
    file_live_bytes: u64,
    memory_bytes: usize,
    dropped_bytes: u64,
    end: Option<OutputEnd>,
    end_sent: bool,
    /// Stands in `Spool::ready`.
    queued: bool,
}

/// One stream's pieces, by offset; the first `sent` of them are on their way.
#[derive(Debug, Default)]
struct Track {
    pieces: VecDeque<Piece>,
    sent: usize,
}

#[derive(Debug)]
struct Piece {
    offset: u64,
    at_ms: u64,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// More may be added.
    Open(BytesMut),
    Memory(Bytes),
    File {
        at: u64,
        bytes: usize,
    },
}

impl Spool {
    pub(crate) fn new(limits: SpoolLimits) -> Self {
        Self {
            limits,
            outputs: HashMap::new(),
            running: HashMap::new(),
            ready: VecDeque::new(),
            ended: VecDeque::new(),
            memory_bytes: 0,
            file_bytes: 0,
            files: 0,
            freed: false,
        }
    }

    /// An attempt starts whose output is wanted; [`close`](Self::close) is to follow.
    pub(crate) fn begin(&mut self, fence: Fence, logs: Logs) {
        self.running.insert(fence, logs);
    }

    /// Takes bytes read at `offset` of a stream. `insist`: never drop them (an ended job that chose back-pressure: no
    /// more than its pipes held).
    pub(crate) fn push(
        &mut self,
        fence: Fence,
        stream: Stream,
        offset: u64,
        at_ms: u64,
        bytes: &[u8],
        insist: bool,
    ) {
        let mut offset = offset;
        for part in bytes.chunks(CHUNK_BYTES_MAX) {
            let output = Self::output(&mut self.outputs, &self.running, fence);
            let in_memory =
                insist || Self::fits_memory(&self.limits, output, self.memory_bytes, part.len());
            let data = if in_memory {
                output.memory_bytes += part.len();
                self.memory_bytes += part.len();
                output.track(stream).gather(offset, at_ms, part)
            } else {
                let data = self.spill(fence, part);
                let output = Self::output(&mut self.outputs, &self.running, fence);
                output.dropped_bytes += if data.is_none() { part.len() as u64 } else { 0 };
                data
            };
            if let Some(data) = data {
                let output = Self::output(&mut self.outputs, &self.running, fence);
                output.track(stream).pieces.push_back(Piece {
                    offset,
                    at_ms,
                    data,
                });
            }
            offset += part.len() as u64;
        }
        self.queue(fence);
    }

    /// Whether `bytes` more of this attempt would be kept.
    pub(crate) fn has_room(&self, fence: Fence, bytes: usize) -> bool {
        let none = Output::default();
        let output = self.outputs.get(&fence).unwrap_or(&none);
        Self::fits_memory(&self.limits, output, self.memory_bytes, bytes)
            || self.fits_file(output, bytes as u64)
    }

    /// Whether room was made since this was last asked.
    pub(crate) fn made_room(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// There will be no more of this attempt. One that never printed has no output: its report says so, and neither a
    /// socket nor a sync is spent on it.
    pub(crate) fn close(&mut self, fence: Fence, stdout_bytes: u64, stderr_bytes: u64) {
        if stdout_bytes == 0 && stderr_bytes == 0 {
            self.running.remove(&fence);
            return self.forget(fence);
        }
        let output = Self::output(&mut self.outputs, &self.running, fence);
        let dropped_bytes = output.dropped_bytes;
        output.end = Some(OutputEnd {
            fence,
            stdout_bytes,
            stderr_bytes,
            dropped_bytes,
        });
        self.running.remove(&fence);
        self.queue(fence);
        self.ended.push_back(fence);
        if self.ended.len() > OUTPUTS_MAX {
            let outputs = &self.outputs;
            self.ended.retain(|fence| outputs.contains_key(fence));
        }
        if self.ended.len() > OUTPUTS_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            tracing::warn!(%oldest, limit = OUTPUTS_MAX, "too much unsent output: forgetting the oldest attempt's");
            self.forget(oldest);
        }
    }

    /// Nobody wants it any more.
    pub(crate) fn forget(&mut self, fence: Fence) {
        let Some(output) = self.outputs.remove(&fence) else {
            return;
        };
        self.memory_bytes -= output.memory_bytes;
        self.file_bytes -= output.file_end;
        self.files -= usize::from(output.file.is_some());
        self.freed = true;
    }

    /// Nothing is left to be sent or acknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    /// A new connection: what was not acknowledged is sent again.
    pub(crate) fn rewind(&mut self) {
        let mut fences: Vec<Fence> = self.outputs.keys().copied().collect();
        fences.sort_unstable();
        for output in self.outputs.values_mut() {
            output.stdout.sent = 0;
            output.stderr.sent = 0;
            output.start_sent = false;
            output.end_sent = false;
            output.queued = true;
        }
        self.ready = fences.into();
    }

    /// The next frame to send, each attempt in its turn.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        while let Some(fence) = self.ready.pop_front() {
            let Some(output) = self.outputs.get_mut(&fence) else {
                continue;
            };
            output.queued = false;
            let frame = output.next_frame(fence);
            if output.has_more() {
                self.queue(fence);
            }
            match frame {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(error) => {
                    // Its own file cannot be read back: what is left of it is lost, which the missing bytes will say.
                    tracing::error!(%fence, %error, "spooled output cannot be read");
                    self.forget(fence);
                }
            }
        }
        None
    }

    /// The server has it on disk up to there.
    pub(crate) fn acked(&mut self, ack: &OutputAck) {
        let Some(output) = self.outputs.get_mut(&ack.fence) else {
            return;
        };
        if ack.ended && output.end.is_some() {
            return self.forget(ack.fence);
        }
        let mut memory_bytes = 0;
        let mut live_bytes = 0;
        for (track, through) in [
            (&mut output.stdout, ack.stdout_through),
            (&mut output.stderr, ack.stderr_through),
        ] {
            let (memory, file) = track.trim(through);
            memory_bytes += memory;
            live_bytes += file;
        }
        output.memory_bytes -= memory_bytes;
        self.memory_bytes -= memory_bytes;
        output.file_live_bytes -= live_bytes;
        if output.file_live_bytes == 0 && output.file.take().is_some() {
            self.files -= 1;
            self.file_bytes -= std::mem::take(&mut output.file_end);
        }
        self.freed = true;
    }

    /// An attempt's output, made if it is its first.
    fn output<'o>(
        outputs: &'o mut HashMap<Fence, Output>,
        running: &HashMap<Fence, Logs>,
        fence: Fence,
    ) -> &'o mut Output {
        outputs.entry(fence).or_insert_with(|| Output {
            logs: running.get(&fence).copied(),
            ..Output::default()
        })
    }

    fn queue(&mut self, fence: Fence) {
        if let Some(output) = self.outputs.get_mut(&fence)
            && !output.queued
        {
            output.queued = true;
            self.ready.push_back(fence);
        }
    }

    fn fits_memory(limits: &SpoolLimits, output: &Output, used: usize, bytes: usize) -> bool {
        // What came later than a piece on file may lie in memory again: pieces are ordered by offset, not by place.
        output.memory_bytes + bytes <= limits.attempt_memory_bytes
            && used + bytes <= limits.memory_bytes
    }

    fn fits_file(&self, output: &Output, bytes: u64) -> bool {
        output.file_end + bytes <= self.limits.attempt_file_bytes
            && self.file_bytes + bytes <= self.limits.file_bytes
            && (output.file.is_some() || self.files < FILES_MAX)
    }

    fn spill(&mut self, fence: Fence, part: &[u8]) -> Option<Data> {
        let output = self.outputs.get(&fence)?;
        let bytes = part.len() as u64;
        if !self.fits_file(output, bytes) {
            return None;
        }
        let new = if output.file.is_none() {
            unlinked(&self.limits.directory).map(Some)
        } else {
            Ok(None)
        };
        let output = self.outputs.get_mut(&fence)?;
        let at = output.file_end;
        let written = new.and_then(|new| {
            self.files += usize::from(new.is_some());
            let file = match new {
                Some(file) => output.file.insert(file),
                None => output.file.as_mut().expect("made before"),
            };
            file.write_all_at(part, at)
        });
        if let Err(error) = written {
            tracing::warn!(%fence, %error, "output cannot be spooled: dropping it");
            return None;
        }
        output.file_end += bytes;
        output.file_live_bytes += bytes;
        self.file_bytes += bytes;
        Some(Data::File {
            at,
            bytes: part.len(),
        })
    }
}

impl Output {
    fn track(&mut self, stream: Stream) -> &mut Track {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn has_more(&self) -> bool {
        self.stdout.unsent().is_some()
            || self.stderr.unsent().is_some()
            || (self.end.is_some() && !self.end_sent)
    }

    fn next_frame(&mut self, fence: Fence) -> io::Result<Option<Frame>> {
        if let Some(logs) = self.logs
            && !self.start_sent
            && self.has_more()
        {
            self.start_sent = true;
            return Ok(Some(Frame::OutputStart(OutputStart { fence, logs })));
        }
        // The older piece first, so that the two streams come out about as they went in.
        let at = |track: &Track| track.unsent().map(|piece| piece.at_ms);
        let stream = match (at(&self.stdout), at(&self.stderr)) {
            (Some(out), Some(err)) if err < out => Stream::Stderr,
            (Some(_), _) => Stream::Stdout,
            (None, Some(_)) => Stream::Stderr,
            (None, None) => {
                if self.end_sent {
                    return Ok(None);
                }
                self.end_sent = self.end.is_some();
                return Ok(self.end.map(Frame::OutputEnd));
            }
        };
        let file = self.file.take();
        let track = self.track(stream);
        let piece = &mut track.pieces[track.sent];
        track.sent += 1;
        let chunk = piece.data.read(file.as_ref()).map(|data| {
            Frame::Chunk(Chunk {
                fence,
                stream,
                offset: piece.offset,
                at_ms: piece.at_ms,
                data,
            })
        });
        self.file = file;
        chunk.map(Some)
    }
}

impl Track {
    fn unsent(&self) -> Option<&Piece> {
        self.pieces.get(self.sent)
    }

    /// Adds to the last piece if that is still open and not too old, else gives back what a new piece is to hold.
    fn gather(&mut self, offset: u64, at_ms: u64, part: &[u8]) -> Option<Data> {
        if self.sent < self.pieces.len()
            && let Some(Piece {
                offset: start,
                at_ms: since,
                data: Data::Open(open),
            }) = self.pieces.back_mut()
            && *start + open.len() as u64 == offset
            && open.len() + part.len() <= CHUNK_BYTES_MAX
            && at_ms.saturating_sub(*since) <= GATHER_MS
        {
            open.extend_from_slice(part);
            return None;
        }
        Some(Data::Open(BytesMut::from(part)))
    }

    /// Forgets what lies before `through`. Returns the bytes freed in memory and on file.
    fn trim(&mut self, through: u64) -> (usize, u64) {
        let (mut memory, mut file) = (0, 0);
        while let Some(piece) = self.pieces.front_mut() {
            let bytes = piece.data.len();
            let covered = through.saturating_sub(piece.offset).min(bytes as u64);
            if covered < bytes as u64 {
                // Part of it: only what was sent can have been acknowledged, and that is not open any more.
                let covered = usize::try_from(covered).expect("no more than its length");
                piece.offset += covered as u64;
                match piece.data.skip(covered) {
                    Place::Memory => memory += covered,
                    Place::File => file += covered as u64,
                }
                break;
            }
            match piece.data {
                Data::Open(_) | Data::Memory(_) => memory += bytes,
                Data::File { .. } => file += bytes as u64,
            }
            self.pieces.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
        (memory, file)
    }
}

/// Where bytes lie.
enum Place {
    Memory,
    File,
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::Open(open) => open.len(),
            Self::Memory(bytes) => bytes.len(),
            Self::File { bytes, .. } => *bytes,
        }
    }

    fn skip(&mut self, n: usize) -> Place {
        match self {
            Self::Open(open) => drop(open.split_to(n)),
            Self::Memory(bytes) => drop(bytes.split_to(n)),
            Self::File { at, bytes } => {
                *at += n as u64;
                *bytes -= n;
                return Place::File;
            }
        }
        Place::Memory
    }

    /// The bytes, for sending; from here on nothing is added.
    fn read(&mut self, file: Option<&File>) -> io::Result<Bytes> {
        match self {
            Self::Open(open) => {
                let bytes = std::mem::take(open).freeze();
                *self = Self::Memory(bytes.clone());
                Ok(bytes)
            }
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::File { at, bytes } => {
                let mut data = BytesMut::zeroed(*bytes);
                file.ok_or(io::ErrorKind::NotFound)?
                    .read_exact_at(&mut data, *at)?;
                Ok(data.freeze())
            }
        }
    }
}

/// A file that only we know, gone with us.
fn unlinked(directory: &std::path::Path) -> io::Result<File> {
    let name = format!(
        ".hostler-output-{:016x}",
        getrandom::u64().map_err(io::Error::other)?
    );
    let path = directory.join(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a spool gives two kinds of frames"
)]
#[expect(clippy::cast_possible_truncation, reason = "below 251")]
mod tests {
    use hostler_wire::frame::{LogsMode, Overflow};
    use hostler_wire::{Attempt, Epoch, JobId};
    use proptest::prelude::*;

    use super::*;

    fn fence(job: u64) -> Fence {
        Fence {
            job: JobId::new(job).unwrap(),
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        }
    }

    fn spool(memory: usize, file: u64) -> Spool {
        Spool::new(SpoolLimits {
            memory_bytes: memory,
            attempt_memory_bytes: memory,
            file_bytes: file,
            attempt_file_bytes: file,
            ..SpoolLimits::default()
        })
    }

    fn ack(job: u64, stdout: u64, ended: bool) -> OutputAck {
        OutputAck {
            fence: fence(job),
            stdout_through: stdout,
            stderr_through: 0,
            ended,
        }
    }

    /// Sends everything there is; returns standard output as a server would have put it together, gaps as `_`.
    fn sent(spool: &mut Spool) -> (String, Option<OutputEnd>) {
        let (mut text, mut end) = (Vec::new(), None);
        while let Some(frame) = spool.next_frame() {
            match frame {
                Frame::Chunk(chunk) => {
                    let start = usize::try_from(chunk.offset).unwrap();
                    if text.len() < start + chunk.data.len() {
                        text.resize(start + chunk.data.len(), b'_');
                    }
                    text[start..start + chunk.data.len()].copy_from_slice(&chunk.data);
                }
                Frame::OutputEnd(output_end) => end = Some(output_end),
                frame => unreachable!("{frame:?}"),
            }
        }
        (String::from_utf8(text).unwrap(), end)
    }

    #[test]
    fn output_that_was_not_acknowledged_is_sent_again_and_then_forgotten() {
        let mut spool = spool(1_000, 0);
        spool.push(fence(1), Stream::Stdout, 0, 0, b"hello ", false);
        assert_eq!(sent(&mut spool), ("hello ".to_owned(), None));
        spool.push(fence(1), Stream::Stdout, 6, 0, b"world", false);
        spool.close(fence(1), 11, 0);
        let end = OutputEnd {
            fence: fence(1),
            stdout_bytes: 11,
            stderr_bytes: 0,
            dropped_bytes: 0,
        };
        assert_eq!(sent(&mut spool), ("______world".to_owned(), Some(end)));
        spool.acked(&ack(1, 3, false));
        spool.rewind();
        assert_eq!(sent(&mut spool), ("___lo world".to_owned(), Some(end)));
        spool.acked(&ack(1, 11, true));
        assert!(spool.is_empty());
        assert_eq!(spool.memory_bytes, 0);
    }

    #[test]
    fn beyond_memory_it_lies_in_a_file_and_beyond_that_it_is_dropped_and_counted() {
        let mut spool = spool(4, 4);
        for (offset, part) in [(0, b"aaaa"), (4, b"bbbb"), (8, b"cccc")] {
            spool.push(fence(1), Stream::Stdout, offset, 0, part, false);
        }
        assert!(!spool.has_room(fence(1), 1));
        spool.close(fence(1), 12, 0);
        let (text, end) = sent(&mut spool);
        assert_eq!(text, "aaaabbbb");
        assert_eq!(end.unwrap().dropped_bytes, 4);
        spool.acked(&ack(1, 8, false));
        assert!(spool.made_room() && spool.has_room(fence(1), 4));
        assert_eq!(
            (spool.memory_bytes, spool.file_bytes, spool.files),
            (0, 0, 0)
        );
    }

    #[test]
    fn attempts_take_turns() {
        let mut spool = spool(1 << 20, 0);
        spool.push(
            fence(1),
            Stream::Stdout,
            0,
            0,
            &[b'x'; 3 * CHUNK_BYTES_MAX],
            false,
        );
        spool.push(fence(2), Stream::Stdout, 0, 0, b"short", false);
        let turns: Vec<u64> = std::iter::from_fn(|| spool.next_frame())
            .map(|frame| match frame {
                Frame::Chunk(chunk) => chunk.fence.job.raw(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(turns, [1, 2, 1, 1]);
    }

    #[test]
    fn what_output_is_to_become_is_said_before_anything_of_it_on_each_connection() {
        let logs = Logs {
            mode: LogsMode::Stream,
            limit_bytes: 5_000,
            overflow: Overflow::Drop,
        };
        let mut spool = spool(1_000, 0);
        spool.begin(fence(1), logs);
        assert!(
            spool.is_empty(),
            "nothing is printed, so nobody need be told"
        );
        let names = |spool: &mut Spool| -> Vec<&str> {
            std::iter::from_fn(|| spool.next_frame().map(|frame| frame.name())).collect()
        };
        spool.push(fence(1), Stream::Stdout, 0, 0, b"hello ", false);
        let fence = fence(1);
        let start = spool.next_frame();
        assert_eq!(start, Some(Frame::OutputStart(OutputStart { fence, logs })));
        assert_eq!(names(&mut spool), ["chunk"]);
        spool.push(fence, Stream::Stdout, 6, 0, b"world", false);
        assert_eq!(names(&mut spool), ["chunk"]);
        spool.acked(&ack(1, 11, false));
        spool.rewind();
        assert_eq!(names(&mut spool), [""; 0], "nothing is left to be said");
        spool.close(fence, 11, 0);
        assert_eq!(names(&mut spool), ["output_start", "output_end"]);
        spool.rewind();
        assert_eq!(names(&mut spool), ["output_start", "output_end"]);
        assert!(spool.running.is_empty());
    }

    #[test]
    fn small_pieces_share_a_frame() {
        let mut spool = spool(1_000, 0);
        for (offset, byte) in (0..100).zip(b'0'..) {
            spool.push(
                fence(1),
                Stream::Stdout,
                offset,
                5,
                &[byte.min(b'z')],
                false,
            );
        }
        assert!(spool.next_frame().is_some());
        assert!(spool.next_frame().is_none());
    }

    proptest! {
        #[test]
        fn whatever_is_acknowledged_and_when_the_server_ends_up_with_every_byte(
            steps in prop::collection::vec((1..2_000usize, 0..4u8, any::<prop::sample::Index>()), 1..60)
        ) {
            let mut spool = spool(3_000, 1 << 20);
            let (mut written, mut stored) = (Vec::new(), Vec::<u8>::new());
            let receive = |spool: &mut Spool, most: usize, stored: &mut Vec<u8>| {
                for _ in 0..most {
                    let Some(Frame::Chunk(chunk)) = spool.next_frame() else { return };
                    let start = usize::try_from(chunk.offset).unwrap();
                    assert!(start <= stored.len(), "no gap");
                    stored.truncate(start);
                    stored.extend_from_slice(&chunk.data);
                }
            };
            let mut acked = 0;
            for (n, (bytes, kind, at)) in steps.into_iter().enumerate() {
                let part: Vec<u8> = (0..bytes).map(|i| ((i + n) % 251) as u8).collect();
                spool.push(fence(1), Stream::Stdout, written.len() as u64, n as u64, &part, false);
                written.extend_from_slice(&part);
                match kind {
                    0 => receive(&mut spool, 2, &mut stored),
                    1 => {
                        receive(&mut spool, 9, &mut stored);
                        acked = acked.max(at.index(stored.len() + 1));
                        spool.acked(&ack(1, acked as u64, false));
                    }
                    2 => {
                        stored.truncate(acked);
                        spool.rewind();
                    }
                    _ => {}
                }
            }
            receive(&mut spool, usize::MAX, &mut stored);
            assert_eq!(stored, written);
            spool.acked(&ack(1, written.len() as u64, false));
            assert_eq!((spool.memory_bytes, spool.file_bytes, spool.files), (0, 0, 0));
        }
    }
}
