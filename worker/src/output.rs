//! The output spool: what jobs printed and the server has not yet put on disk.
//!
//! A piece is kept from the moment it is read until an acknowledgement covers it, and sent again after a reconnect, so
//! that a broken connection costs no output. Pieces lie in memory up to a bound for each attempt and one for all;
//! beyond it in files (`spill`), gathered to larger pieces; beyond the bounds of those the oldest unsent pieces make
//! room, which are the middle of what the job prints: its head stays, as it does on the server, and its end. What went
//! is counted.
//! A job that asked for it waits in its write instead (`overflow: block`). Attempts take turns, a piece at a time, so a
//! chatty one cannot hold up the others; one that prints more than is kept of it is sent at a pace (`pace`). What an
//! attempt's output is to become is said first, on every connection.
//!
//! Keeps P7 (bounded) and P8 (what was cut says how many bytes).
//!
//! Not here: the socket (`pipe`), the files (`spill`), the job's own output limit and its gap (the server's).

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use hostler_wire::frame::{
    Chunk, Frame, Logs, OutputAck, OutputEnd, OutputStart, Overflow, Stream,
};
use hostler_wire::limits::CHUNK_BYTES_MAX;
use hostler_wire::{Epoch, Fence, mutation};

use crate::clock::Time;
use crate::pace::Pace;
use crate::spill::{Nameless, Spill, SpillFiles, Spot};

/// Ended attempts whose output is not acknowledged: beyond, the oldest are forgotten.
const OUTPUTS_MAX: usize = 65_536;
/// Small pieces printed within this time share one frame.
const GATHER_MS: u64 = 100;
/// What a piece in memory costs beside its bytes, about.
const PIECE_BYTES: usize = 64;
/// Where memory has no room, this much of a running job's stream is gathered before it goes to a file.
const TAIL_BYTES: usize = 8 << 10;
/// Size of one file.
const SPILL_FILE_BYTES: u64 = 8 << 20;
/// What an attempt may have in files, be its limit ever so small.
const SPILL_LEAST_BYTES: u64 = 1 << 20;
/// The part of an attempt's limit that its head has, which is never dropped (as on the server).
const HEAD_SHARE: u64 = 16;

/// How much unacknowledged output a worker keeps, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolLimits {
    /// In memory, for all attempts.
    pub memory_bytes: usize,
    /// In memory, for one attempt; what its streams are just gathering, under 8 KiB each, may come on top.
    pub attempt_memory_bytes: usize,
    /// In files, for all attempts.
    pub file_bytes: u64,
    /// In files, for one attempt; less while many attempts have something there, so that each has its share of a half. (The
    /// other half is for what is not wanted any more but shares a file with something that is.)
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
pub struct Spool {
    limits: SpoolLimits,
    outputs: HashMap<Fence, Output>,
    /// What becomes of the output of attempts that run, printed or not.
    running: HashMap<Fence, Logs>,
    /// Attempts that run, of which nobody wants to hear.
    unwanted: HashSet<Fence>,
    /// Attempts that have something to send, in the order of their turns.
    ready: VecDeque<Fence>,
    /// Those that have something and are not to go on with it before that time.
    paced: BTreeSet<(Time, Fence)>,
    /// Attempts that have ended, in order; those forgotten meanwhile stand here too.
    ended: VecDeque<Fence>,
    memory_bytes: usize,
    spill: Spill,
    /// Attempts that have something on file.
    spilling: u64,
    /// Room was made since [`made_room`](Self::made_room) was last asked.
    freed: bool,
}

/// One attempt's.
#[derive(Debug, Default)]
struct Output {
    /// What it is to become; none if that was never said, and then the server's own rules hold.
    logs: Option<Logs>,
    start_sent: bool,
    /// While it runs, of one whose middle may be dropped.
    pace: Option<Pace>,
    stdout: Track,
    stderr: Track,
    /// Of its pieces.
    file_bytes: u64,
    memory_bytes: usize,
    dropped_bytes: u64,
    end: Option<OutputEnd>,
    end_sent: bool,
    /// Stands in `Spool::ready` or `Spool::paced`.
    queued: bool,
}

/// One stream's pieces, by offset; the first `sent` of them are on their way.
#[derive(Debug, Default)]
struct Track {
    pieces: VecDeque<Piece>,
    sent: usize,
    /// Where a piece begins that is in memory though there was no room: no more than one may be that.
    over: Option<u64>,
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
    File(Spot),
}

impl Spool {
    /// A spool whose files are in the directory that the limits name.
    pub(crate) fn new(limits: SpoolLimits) -> Self {
        let files = Nameless::new(limits.directory.clone());
        Self::with_files(limits, Box::new(files))
    }

    /// A spool whose files are those.
    pub fn with_files(limits: SpoolLimits, files: Box<dyn SpillFiles>) -> Self {
        let spill = Spill::new(files, limits.file_bytes, SPILL_FILE_BYTES);
        Self {
            limits,
            outputs: HashMap::new(),
            running: HashMap::new(),
            unwanted: HashSet::new(),
            ready: VecDeque::new(),
            paced: BTreeSet::new(),
            ended: VecDeque::new(),
            memory_bytes: 0,
            spill,
            spilling: 0,
            freed: false,
        }
    }

    /// An attempt starts whose output is wanted; [`close`](Self::close) is to follow.
    pub fn begin(&mut self, fence: Fence, logs: Logs) {
        self.running.insert(fence, logs);
    }

    /// Takes bytes read at `offset` of a stream. `insist`: never drop them (an ended job that chose back-pressure: no
    /// more than its pipes held).
    pub fn push(
        &mut self,
        fence: Fence,
        stream: Stream,
        offset: u64,
        at_ms: u64,
        bytes: &[u8],
        insist: bool,
    ) {
        if self.unwanted.contains(&fence) {
            return;
        }
        let mut offset = offset;
        for part in bytes.chunks(CHUNK_BYTES_MAX) {
            self.push_part(fence, (stream, offset, at_ms), part, insist);
            offset += part.len() as u64;
        }
        self.queue(fence);
    }

    fn push_part(
        &mut self,
        fence: Fence,
        (stream, offset, at_ms): (Stream, u64, u64),
        part: &[u8],
        insist: bool,
    ) {
        let logs = self.running.get(&fence).copied();
        let waits = logs.is_some_and(|logs| logs.overflow == Overflow::Block)
            && !mutation::is("output of a waiting job dropped");
        let mut insist = insist;
        let mut share = true;
        loop {
            let output = self
                .outputs
                .entry(fence)
                .or_insert_with(|| Output::of(logs));
            let fits = |bytes| fits_memory(&self.limits, output, self.memory_bytes, bytes);
            let room = fits(part.len() + PIECE_BYTES) || insist;
            let track = output.track(stream);
            let gathered = track.gather(offset, at_ms, part, room);
            if gathered || room {
                let used = part.len() + if gathered { 0 } else { PIECE_BYTES };
                if !gathered {
                    track.open(offset, at_ms, part);
                }
                output.memory_bytes += used;
                self.memory_bytes += used;
                return;
            }
            // No room in memory: what was gathered goes to a file, and this begins to be gathered, or goes there too.
            let spilled = self.spill_tail(fence, stream, share).and_then(|()| {
                let output = self.outputs.get_mut(&fence).expect("made above");
                let track = output.track(stream);
                if part.len() >= TAIL_BYTES || track.over.is_some() {
                    return self.spill_new(fence, (stream, offset, at_ms), part, share);
                }
                track.open(offset, at_ms, part);
                track.over = Some(offset);
                output.memory_bytes += part.len() + PIECE_BYTES;
                self.memory_bytes += part.len() + PIECE_BYTES;
                Ok(())
            });
            match spilled {
                Ok(()) => return,
                // Its pipes were read because there was room: nothing of it goes, whatever has become of that.
                Err(_) if waits => insist = true,
                Err(NoRoom::Share) if self.drop_oldest(fence) => {}
                // All of it is on its way, which is bounded elsewhere, or its head: the newest is not what goes.
                Err(NoRoom::Share) => share = false,
                Err(NoRoom::Full) => break,
                Err(NoRoom::Failed(error)) => {
                    tracing::warn!(%fence, %error, "output cannot be spooled: dropping it");
                    break;
                }
            }
        }
        if let Some(output) = self.outputs.get_mut(&fence) {
            output.dropped_bytes += part.len() as u64;
        }
    }

    /// Whether `bytes` more of this attempt would be kept.
    pub fn has_room(&self, fence: Fence, bytes: usize) -> bool {
        let none = Output::default();
        let output = self.outputs.get(&fence).unwrap_or(&none);
        fits_memory(&self.limits, output, self.memory_bytes, bytes + PIECE_BYTES)
            || self
                .fits_file(output, bytes + CHUNK_BYTES_MAX, true)
                .is_ok()
    }

    /// Whether room was made since this was last asked.
    pub fn made_room(&mut self) -> bool {
        std::mem::take(&mut self.freed)
    }

    /// There will be no more of this attempt. One that never printed has no output: its report says so, and neither a
    /// socket nor a sync is spent on it.
    pub fn close(&mut self, fence: Fence, stdout_bytes: u64, stderr_bytes: u64) {
        if self.unwanted.remove(&fence) {
            return;
        }
        if stdout_bytes == 0 && stderr_bytes == 0 {
            self.running.remove(&fence);
            return self.discard(fence);
        }
        self.close_tails(fence);
        let logs = self.running.remove(&fence);
        let output = self
            .outputs
            .entry(fence)
            .or_insert_with(|| Output::of(logs));
        let dropped_bytes = output.dropped_bytes;
        output.end = Some(OutputEnd {
            fence,
            stdout_bytes,
            stderr_bytes,
            dropped_bytes,
        });
        // What is left of it is bounded, and somebody may wait for it.
        if output.pace.take().is_some() {
            self.paced.retain(|(_, paced)| *paced != fence);
            output.queued = self.ready.contains(&fence);
        }
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
            self.discard(oldest);
        }
    }

    /// Nobody wants it any more, nor what is still printed.
    pub fn forget(&mut self, fence: Fence) {
        if self.running.remove(&fence).is_some() {
            self.unwanted.insert(fence);
        }
        self.discard(fence);
    }

    /// The same for every attempt of that start of the server and of later ones.
    pub fn forget_since(&mut self, epoch: Epoch) {
        let all = self.outputs.keys().chain(self.running.keys());
        let fences: Vec<Fence> = all.copied().filter(|fence| fence.epoch >= epoch).collect();
        fences.into_iter().for_each(|fence| self.forget(fence));
    }

    fn discard(&mut self, fence: Fence) {
        let Some(mut output) = self.outputs.remove(&fence) else {
            return;
        };
        self.memory_bytes -= output.memory_bytes;
        self.spilling -= u64::from(output.file_bytes > 0);
        for track in [&mut output.stdout, &mut output.stderr] {
            for piece in track.pieces.drain(..) {
                piece.data.discard(&mut self.spill);
            }
        }
        self.freed = true;
    }

    /// Nothing is left to be sent or acknowledged.
    pub fn is_empty(&self) -> bool {
        self.outputs.is_empty()
    }

    /// A new connection: what was not acknowledged is sent again.
    pub fn rewind(&mut self) {
        if mutation::is("output sent on from where it was sent to") {
            return;
        }
        let mut fences: Vec<Fence> = self.outputs.keys().copied().collect();
        fences.sort_unstable();
        for output in self.outputs.values_mut() {
            output.stdout.sent = 0;
            output.stderr.sent = 0;
            output.start_sent = false;
            output.end_sent = false;
            output.queued = true;
        }
        self.paced.clear();
        self.ready = fences.into();
    }

    /// The next frame to send, each attempt in its turn.
    pub fn next_frame(&mut self, now: Time) -> Option<Frame> {
        while let Some(fence) = self.ready.pop_front() {
            let Some(output) = self.outputs.get_mut(&fence) else {
                continue;
            };
            if let Some(Err(due)) = output.pace.as_mut().map(|pace| pace.ask(now)) {
                self.paced.insert((due, fence));
                continue;
            }
            output.queued = false;
            let frame = output.next_frame(fence, &self.spill);
            if output.has_more() {
                self.queue(fence);
            }
            match frame {
                Ok(Some(frame)) => return Some(frame),
                Ok(None) => {}
                Err(error) => {
                    // A file cannot be read back: what is left of it is lost, which the missing bytes will say.
                    tracing::error!(%fence, %error, "spooled output cannot be read");
                    self.discard(fence);
                }
            }
        }
        None
    }

    /// Time has passed: whoever was to wait until now has its turns again.
    pub fn resume(&mut self, now: Time) {
        while let Some(&(due, fence)) = self.paced.first()
            && due <= now
        {
            self.paced.pop_first();
            self.ready.push_back(fence);
        }
    }

    /// When [`resume`](Self::resume) has something to do.
    pub fn next_deadline(&self) -> Option<Time> {
        self.paced.first().map(|(due, _)| *due)
    }

    /// The server has it on disk up to there.
    pub fn acked(&mut self, ack: &OutputAck) {
        let Some(output) = self.outputs.get_mut(&ack.fence) else {
            return;
        };
        if ack.ended && output.end.is_some() {
            return self.discard(ack.fence);
        }
        for (track, through) in [
            (&mut output.stdout, ack.stdout_through),
            (&mut output.stderr, ack.stderr_through),
        ] {
            let (memory, file) = track.trim(through, &mut self.spill);
            output.memory_bytes -= memory;
            self.memory_bytes -= memory;
            self.spilling -= u64::from(file > 0 && file == output.file_bytes);
            output.file_bytes -= file;
        }
        self.freed = true;
    }

    fn queue(&mut self, fence: Fence) {
        if let Some(output) = self.outputs.get_mut(&fence)
            && !output.queued
        {
            output.queued = true;
            self.ready.push_back(fence);
        }
    }

    /// Whether files have room for so much of this attempt, within its share if that is to be kept to.
    fn fits_file(&self, output: &Output, bytes: usize, share: bool) -> Result<(), NoRoom> {
        let sharing = self.spilling + u64::from(output.file_bytes == 0);
        let of_all = self.limits.file_bytes / 2 / sharing;
        let most = if sharing == 1 {
            self.limits.attempt_file_bytes
        } else {
            self.limits.attempt_file_bytes.min(of_all)
        };
        // More than the server will keep is of no use; a job that waits is to lose nothing.
        let wanted = match output.logs {
            Some(logs) if logs.overflow == Overflow::Drop => {
                logs.limit_bytes.max(SPILL_LEAST_BYTES)
            }
            _ => u64::MAX,
        };
        if share && output.file_bytes + bytes as u64 > most.min(wanted) {
            Err(NoRoom::Share)
        } else if !self.spill.has_room(bytes) {
            Err(NoRoom::Full)
        } else {
            Ok(())
        }
    }

    /// Puts a new piece into a file.
    fn spill_new(
        &mut self,
        fence: Fence,
        (stream, offset, at_ms): (Stream, u64, u64),
        part: &[u8],
        share: bool,
    ) -> Result<(), NoRoom> {
        let output = self.outputs.get(&fence).ok_or(NoRoom::Full)?;
        self.fits_file(output, part.len(), share)?;
        let spot = self.spill.put(part).map_err(NoRoom::Failed)?;
        let output = self.outputs.get_mut(&fence).expect("looked at above");
        self.spilling += u64::from(output.file_bytes == 0);
        output.file_bytes += part.len() as u64;
        output.track(stream).pieces.push_back(Piece {
            offset,
            at_ms,
            data: Data::File(spot),
        });
        Ok(())
    }

    /// Puts what a stream has gathered, if it is not on its way yet, into a file.
    fn spill_tail(&mut self, fence: Fence, stream: Stream, share: bool) -> Result<(), NoRoom> {
        let Some(output) = self.outputs.get_mut(&fence) else {
            return Ok(());
        };
        let Some(tail) = output.track(stream).tail() else {
            return Ok(());
        };
        let bytes = tail.len();
        let output = &self.outputs[&fence];
        self.fits_file(output, bytes, share)?;
        let output = self.outputs.get_mut(&fence).expect("looked at above");
        let tail = output.track(stream).tail().expect("looked at above");
        let spot = self.spill.put(tail).map_err(NoRoom::Failed)?;
        let track = output.track(stream);
        if let Some(piece) = track.pieces.back_mut() {
            piece.data = Data::File(spot);
            let offset = piece.offset;
            track.gone(offset);
        }
        self.spilling += u64::from(output.file_bytes == 0);
        output.file_bytes += bytes as u64;
        output.memory_bytes -= bytes + PIECE_BYTES;
        self.memory_bytes -= bytes + PIECE_BYTES;
        Ok(())
    }

    /// An attempt that has ended gathers nothing more: what it has beyond the bounds of memory goes to a file, or goes.
    fn close_tails(&mut self, fence: Fence) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let over = self.outputs.get(&fence).is_some_and(|output| {
                !fits_memory(&self.limits, output, self.memory_bytes, 0)
                    && output
                        .logs
                        .is_none_or(|logs| logs.overflow == Overflow::Drop)
            });
            while over
                && matches!(self.spill_tail(fence, stream, true), Err(NoRoom::Share))
                && self.drop_oldest(fence)
            {}
        }
    }

    /// Gives up the oldest piece of an attempt that is not on its way, head and last pieces aside; says whether there was
    /// one.
    fn drop_oldest(&mut self, fence: Fence) -> bool {
        let Some(output) = self.outputs.get_mut(&fence) else {
            return false;
        };
        let limit_bytes = output.logs.map_or(0, |logs| logs.limit_bytes);
        let head_bytes = limit_bytes / HEAD_SHARE;
        let burst_bytes = output.pace.as_ref().map_or(0, Pace::burst_bytes);
        let oldest = |stream: Stream, track: &Track| {
            let place = track.droppable(head_bytes, burst_bytes)?;
            Some((track.pieces[place].at_ms, stream, place))
        };
        let out = oldest(Stream::Stdout, &output.stdout);
        let err = oldest(Stream::Stderr, &output.stderr);
        let Some((_, stream, place)) = out.into_iter().chain(err).min_by_key(|it| it.0) else {
            return false;
        };
        let track = output.track(stream);
        let Some(piece) = track.pieces.remove(place) else {
            return false;
        };
        track.over.take_if(|over| *over == piece.offset);
        if !mutation::is("gap in the output not counted") {
            output.dropped_bytes += piece.data.len() as u64;
        }
        let (memory, file) = piece.data.discard(&mut self.spill);
        output.memory_bytes -= memory;
        self.memory_bytes -= memory;
        self.spilling -= u64::from(file > 0 && file == output.file_bytes);
        output.file_bytes -= file;
        true
    }
}

/// Why a piece did not go to a file.
enum NoRoom {
    /// The attempt has its share.
    Share,
    /// All files are full.
    Full,
    Failed(io::Error),
}

fn fits_memory(limits: &SpoolLimits, output: &Output, used: usize, bytes: usize) -> bool {
    // What came later than a piece on file may lie in memory again: pieces are ordered by offset, not by place.
    output.memory_bytes + bytes <= limits.attempt_memory_bytes
        && used + bytes <= limits.memory_bytes
}

impl Output {
    fn of(logs: Option<Logs>) -> Self {
        let may_drop = |logs: &Logs| logs.overflow == Overflow::Drop;
        Self {
            logs,
            pace: logs
                .filter(may_drop)
                .map(|logs| Pace::new(logs.limit_bytes)),
            ..Self::default()
        }
    }

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

    fn next_frame(&mut self, fence: Fence, spill: &Spill) -> io::Result<Option<Frame>> {
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
        let track = self.track(stream);
        let piece = &mut track.pieces[track.sent];
        track.sent += 1;
        let data = piece.data.read(spill)?;
        let (offset, at_ms) = (piece.offset, piece.at_ms);
        if let Some(pace) = &mut self.pace {
            pace.sent(data.len() as u64);
        }
        Ok(Some(Frame::Chunk(Chunk {
            fence,
            stream,
            offset,
            at_ms,
            data,
        })))
    }
}

impl Track {
    fn unsent(&self) -> Option<&Piece> {
        self.pieces.get(self.sent)
    }

    /// What was gathered and is not on its way.
    fn tail(&self) -> Option<&BytesMut> {
        match self.pieces.back() {
            Some(Piece {
                data: Data::Open(open),
                ..
            }) if self.sent < self.pieces.len() => Some(open),
            _ => None,
        }
    }

    /// Adds to the last piece if that is still open. Where memory has room it must not be too old, where not, not too
    /// large.
    fn gather(&mut self, offset: u64, at_ms: u64, part: &[u8], room: bool) -> bool {
        if self.tail().is_none() {
            return false;
        }
        if let Some(Piece {
            offset: start,
            at_ms: since,
            data: Data::Open(open),
        }) = self.pieces.back_mut()
            && *start + open.len() as u64 == offset
            && open.len() + part.len() <= if room { CHUNK_BYTES_MAX } else { TAIL_BYTES }
            && (!room || at_ms.saturating_sub(*since) <= GATHER_MS)
        {
            open.extend_from_slice(part);
            return true;
        }
        false
    }

    /// Begins a piece.
    fn open(&mut self, offset: u64, at_ms: u64, part: &[u8]) {
        self.pieces.push_back(Piece {
            offset,
            at_ms,
            data: Data::Open(BytesMut::from(part)),
        });
    }

    /// A piece is not in memory any more.
    fn gone(&mut self, offset: u64) {
        self.over.take_if(|over| *over <= offset);
    }

    /// The oldest piece that is neither on its way or to follow without a gap, nor of the head, nor the last.
    fn droppable(&self, head_bytes: u64, burst_bytes: u64) -> Option<usize> {
        let head = self
            .pieces
            .partition_point(|piece| piece.offset < head_bytes);
        let mut place = head.max(self.sent);
        let mut burst_bytes = burst_bytes;
        while burst_bytes > 0
            && let Some(piece) = self.pieces.get(place)
        {
            burst_bytes = burst_bytes.saturating_sub(piece.data.len() as u64);
            place += 1;
        }
        (place + 1 < self.pieces.len()).then_some(place)
    }

    /// Forgets what lies before `through`. Returns the bytes freed in memory and on file.
    fn trim(&mut self, through: u64, spill: &mut Spill) -> (usize, u64) {
        let (mut memory, mut file) = (0, 0);
        while let Some(piece) = self.pieces.front_mut() {
            let bytes = piece.data.len();
            let covered = through.saturating_sub(piece.offset).min(bytes as u64);
            let covered = usize::try_from(covered).expect("no more than its length");
            if covered < bytes {
                // Part of it: only what was sent can have been acknowledged, and that is not open any more.
                piece.offset += covered as u64;
                match &mut piece.data {
                    Data::Open(open) => drop(open.split_to(covered)),
                    Data::Memory(bytes) => drop(bytes.split_to(covered)),
                    Data::File(spot) => {
                        spill.free(spot, covered);
                        file += covered as u64;
                        break;
                    }
                }
                memory += covered;
                break;
            }
            if let Some(piece) = self.pieces.pop_front() {
                self.gone(piece.offset);
                let freed = piece.data.discard(spill);
                memory += freed.0;
                file += freed.1;
            }
            self.sent = self.sent.saturating_sub(1);
        }
        (memory, file)
    }
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::Open(open) => open.len(),
            Self::Memory(bytes) => bytes.len(),
            Self::File(spot) => spot.bytes,
        }
    }

    /// Gives up the bytes. Returns what that frees in memory and on file.
    fn discard(self, spill: &mut Spill) -> (usize, u64) {
        let bytes = self.len();
        if let Self::File(mut spot) = self {
            spill.free(&mut spot, bytes);
            return (0, bytes as u64);
        }
        (bytes + PIECE_BYTES, 0)
    }

    /// The bytes, for sending; from here on nothing is added.
    fn read(&mut self, spill: &Spill) -> io::Result<Bytes> {
        match self {
            Self::Open(open) => {
                let bytes = std::mem::take(open).freeze();
                *self = Self::Memory(bytes.clone());
                Ok(bytes)
            }
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::File(spot) => {
                let mut data = BytesMut::zeroed(spot.bytes);
                spill.read(spot, &mut data)?;
                Ok(data.freeze())
            }
        }
    }
}

#[cfg(test)]
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "a spool gives two kinds of frames"
)]
#[expect(clippy::cast_possible_truncation, reason = "below 251")]
mod tests {
    use hostler_wire::frame::LogsMode;
    use hostler_wire::{Attempt, JobId};
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
        while let Some(frame) = spool.next_frame(Time::default()) {
            match frame {
                Frame::Chunk(chunk) => {
                    let start = usize::try_from(chunk.offset).unwrap();
                    if text.len() < start + chunk.data.len() {
                        text.resize(start + chunk.data.len(), b'_');
                    }
                    text[start..start + chunk.data.len()].copy_from_slice(&chunk.data);
                }
                Frame::OutputEnd(output_end) => end = Some(output_end),
                Frame::OutputStart(_) => {}
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

    /// Of a job whose head is so many bytes.
    fn logs(head_bytes: u64) -> Logs {
        Logs {
            mode: LogsMode::Keep,
            limit_bytes: head_bytes * HEAD_SHARE,
            overflow: Overflow::Drop,
        }
    }

    fn is_empty(spool: &Spool) -> bool {
        (spool.memory_bytes, spool.spilling, spool.spill.bytes()) == (0, 0, 0)
    }

    #[test]
    fn beyond_memory_it_lies_in_files_and_beyond_those_the_middle_goes_and_is_counted() {
        const K: usize = TAIL_BYTES;
        let mut spool = Spool::new(SpoolLimits {
            memory_bytes: 2 * (K + PIECE_BYTES),
            attempt_file_bytes: 4 * K as u64,
            ..SpoolLimits::default()
        });
        spool.begin(fence(1), logs(2 * K as u64));
        for n in 0..20 {
            let letter = b'a' + u8::try_from(n).unwrap();
            let offset = (n * K) as u64;
            spool.push(
                fence(1),
                Stream::Stdout,
                offset,
                offset,
                &[letter; K],
                false,
            );
        }
        assert!(!spool.has_room(fence(1), 1));
        spool.close(fence(1), 20 * K as u64, 0);
        let (text, end) = sent(&mut spool);
        let letters: String = text
            .as_bytes()
            .chunks(K)
            .map(|part| part[0] as char)
            .collect();
        // The head is the first two; with what memory has room for there are five or six.
        assert!(
            letters.starts_with("ab_") && letters.ends_with("_rst"),
            "{letters}"
        );
        let dropped = letters.matches('_').count() * K;
        assert_eq!(end.unwrap().dropped_bytes, dropped as u64);
        spool.acked(&ack(1, 18 * K as u64, false));
        assert!(spool.made_room() && spool.has_room(fence(1), K));
        spool.acked(&ack(1, 20 * K as u64, true));
        assert!(is_empty(&spool));
    }

    #[test]
    fn of_a_job_that_waits_for_room_nothing_is_dropped() {
        let mut spool = spool(70_000, 300_000);
        let logs = Logs {
            overflow: Overflow::Block,
            ..logs(1_000)
        };
        spool.begin(fence(1), logs);
        let (mut offset, mut sent, mut waits) = (0, 0, 0);
        for n in 0..2_000 {
            // As pipes give it: now full, now not.
            let bytes = n * 7_919 % CHUNK_BYTES_MAX + 1;
            while !spool.has_room(fence(1), CHUNK_BYTES_MAX) {
                waits += 1;
                if let Some(Frame::Chunk(chunk)) = spool.next_frame(Time::default()) {
                    assert_eq!(chunk.offset, sent, "a gap");
                    sent += chunk.data.len() as u64;
                    spool.acked(&ack(1, sent, false));
                }
            }
            spool.push(
                fence(1),
                Stream::Stdout,
                offset,
                n as u64,
                &vec![1; bytes],
                false,
            );
            offset += bytes as u64;
            assert!(spool.memory_bytes <= 70_000 + CHUNK_BYTES_MAX);
        }
        assert!(waits > 100);
        spool.close(fence(1), offset, 0);
        assert_eq!(spool.outputs[&fence(1)].dropped_bytes, 0);
    }

    #[test]
    fn while_all_is_on_its_way_the_newest_is_kept_beyond_the_share() {
        const K: u64 = CHUNK_BYTES_MAX as u64;
        let mut spool = Spool::new(SpoolLimits {
            memory_bytes: 100_000,
            ..SpoolLimits::default()
        });
        spool.begin(fence(1), logs(1_000));
        for n in 0..40 {
            spool.push(
                fence(1),
                Stream::Stdout,
                n * K,
                n,
                &vec![b'x'; CHUNK_BYTES_MAX],
                false,
            );
            // Slowly enough to be no flood.
            while spool.next_frame(Time::from_us(n * 1_000_000)).is_some() {}
        }
        spool.push(fence(1), Stream::Stdout, 40 * K, 41, b"the end", false);
        spool.close(fence(1), 40 * K + 7, 0);
        let (text, end) = sent(&mut spool);
        assert!(text.ends_with("the end"));
        assert_eq!(end.unwrap().dropped_bytes, 0);
    }

    #[test]
    fn of_a_flood_its_limit_a_second_is_sent_in_stretches_and_its_end_is_whole() {
        const K: u64 = CHUNK_BYTES_MAX as u64;
        let mut spool = Spool::new(SpoolLimits::default());
        let limit = 64 * K;
        spool.begin(fence(1), logs(limit / HEAD_SHARE));
        // 320 MiB in five seconds; what is sent is acknowledged at once.
        let (mut sent, mut stretches, mut next) = (0, 0, 0);
        let pieces = 5_000;
        for n in 0..pieces {
            let piece = vec![b'x'; CHUNK_BYTES_MAX];
            spool.push(fence(1), Stream::Stdout, n * K, n, &piece, false);
            let now = Time::from_us((n + 1) * 1_000);
            spool.resume(now);
            while let Some(frame) = spool.next_frame(now) {
                if let Frame::Chunk(chunk) = frame {
                    stretches += u64::from(chunk.offset != next);
                    next = chunk.offset + K;
                    sent += K;
                    spool.acked(&ack(1, next, false));
                }
            }
            assert!(spool.next_deadline().is_none_or(|due| due > now));
        }
        assert!((5 * limit..=6 * limit).contains(&sent), "{sent}");
        // Bursts of four pieces, sixteen a second.
        assert!(stretches <= 5 * 16 + 1, "{stretches}");
        spool.close(fence(1), pieces * K, 0);
        let mut rest = Vec::new();
        while let Some(frame) = spool.next_frame(Time::from_us(pieces * 1_000)) {
            match frame {
                Frame::Chunk(chunk) => rest.push(chunk.offset),
                Frame::OutputEnd(end) => {
                    assert_eq!(end.dropped_bytes, pieces * K - sent - rest.len() as u64 * K)
                }
                frame => unreachable!("{frame:?}"),
            }
        }
        let whole = rest.iter().rev().zip((0..pieces).rev());
        let whole = whole.take_while(|(offset, n)| **offset == n * K).count();
        assert!(whole as u64 * K >= limit / 16 * 14, "{whole}");
    }

    #[test]
    fn many_small_pieces_cost_no_more_than_the_bounds() {
        let memory = 64 << 10;
        let mut spool = spool(memory, 1 << 20);
        let lines = 100_000;
        for n in 0..lines {
            // Each at its own time, as of a job that prints now and then while the server is away.
            spool.push(
                fence(1),
                Stream::Stdout,
                n * 10,
                n * 1_000,
                b"123456789\n",
                false,
            );
        }
        let pieces = spool.outputs[&fence(1)].stdout.pieces.len();
        assert!(
            pieces <= memory / PIECE_BYTES + (1 << 20) / TAIL_BYTES + 2,
            "{pieces}"
        );
        assert!(spool.memory_bytes <= memory + TAIL_BYTES + PIECE_BYTES);
        spool.close(fence(1), lines * 10, 0);
        let (text, end) = sent(&mut spool);
        assert_eq!(end.unwrap().dropped_bytes, 0);
        assert_eq!(text, "123456789\n".repeat(100_000));
    }

    #[test]
    fn many_that_are_chatty_while_the_server_is_away_each_keep_head_and_end() {
        const K: u64 = CHUNK_BYTES_MAX as u64;
        let mut spool = Spool::new(SpoolLimits {
            memory_bytes: 0,
            file_bytes: 128 << 20,
            attempt_file_bytes: 64 << 20,
            ..SpoolLimits::default()
        });
        let (jobs, pieces) = (20, 300);
        (1..=jobs).for_each(|job| spool.begin(fence(job), logs(4 * K)));
        for piece in 0..pieces {
            for job in 1..=jobs {
                let data = vec![b'a'; CHUNK_BYTES_MAX];
                spool.push(fence(job), Stream::Stdout, piece * K, piece, &data, false);
            }
        }
        assert!(spool.spill.bytes() <= 128 << 20);
        let mut offsets: HashMap<Fence, Vec<u64>> = HashMap::new();
        while let Some(frame) = spool.next_frame(Time::default()) {
            if let Frame::Chunk(chunk) = frame {
                offsets
                    .entry(chunk.fence)
                    .or_default()
                    .push(chunk.offset / K);
            }
        }
        for job in 1..=jobs {
            let offsets = &offsets[&fence(job)];
            assert_eq!((offsets[0], offsets.last()), (0, Some(&(pieces - 1))));
            // About a twentieth of a half each.
            assert!(offsets.len() >= 50, "{}", offsets.len());
            spool.forget(fence(job));
        }
        assert!(is_empty(&spool));
    }

    #[test]
    fn what_ended_attempts_have_beyond_memory_is_on_file() {
        let mut spool = spool(1_000, 1 << 20);
        for job in 1..=200 {
            spool.push(fence(job), Stream::Stdout, 0, 0, &[b'x'; 100], false);
            spool.close(fence(job), 100, 0);
        }
        assert!(spool.memory_bytes <= 1_000, "{}", spool.memory_bytes);
        let mut bytes = 0;
        while let Some(frame) = spool.next_frame(Time::default()) {
            if let Frame::Chunk(chunk) = frame {
                bytes += chunk.data.len();
            }
        }
        assert_eq!(bytes, 200 * 100);
    }

    #[test]
    fn what_nobody_wants_is_not_sent_though_it_is_still_printed() {
        let mut spool = spool(1_000, 0);
        let other = Fence {
            epoch: Epoch::new(2),
            ..fence(2)
        };
        for fence in [fence(1), other] {
            spool.begin(fence, logs(100));
            spool.push(fence, Stream::Stdout, 0, 0, b"before", false);
        }
        spool.forget_since(Epoch::new(2));
        spool.push(other, Stream::Stdout, 6, 0, b"after", false);
        assert_eq!(sent(&mut spool), ("before".to_owned(), None));
        spool.close(other, 11, 0);
        assert_eq!(sent(&mut spool).1, None);
        // A namesake is another attempt.
        spool.begin(other, logs(100));
        spool.push(other, Stream::Stdout, 0, 0, b"its own", false);
        spool.close(other, 7, 0);
        assert!(sent(&mut spool).1.is_some());
        spool.forget(other);
        spool.forget(fence(1));
        assert!(is_empty(&spool));
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
        let turns: Vec<u64> = std::iter::from_fn(|| spool.next_frame(Time::default()))
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
            std::iter::from_fn(|| spool.next_frame(Time::default()).map(|frame| frame.name()))
                .collect()
        };
        spool.push(fence(1), Stream::Stdout, 0, 0, b"hello ", false);
        let fence = fence(1);
        let start = spool.next_frame(Time::default());
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
        assert!(spool.next_frame(Time::default()).is_some());
        assert!(spool.next_frame(Time::default()).is_none());
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
                    let Some(Frame::Chunk(chunk)) = spool.next_frame(Time::default()) else { return };
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
            assert!(is_empty(&spool));
        }
    }
}
