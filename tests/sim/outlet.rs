//! A worker's output: the real spool, a model of the loop that reads pipes and of the connection they leave by.
//!
//! What `worker.rs` and `pipe.rs` do: a connection of its own, made when there is something to send, to the session the
//! control connection has; on each welcome the spool begins anew from what was acknowledged. A process whose pipe is
//! full waits in its write.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::BytesMut;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Login, Logs, Overflow, Role, Stream};
use hostler_wire::handshake::ClientHandshake;
use hostler_wire::limits::HANDSHAKE_FRAME_BYTES_MAX;
use hostler_wire::{Epoch, Fence, SessionId};
use hostler_worker::{SpillFiles, Spool, SpoolLimits, Time};

use crate::machine::Around;
use crate::network::{ConnId, End, Held, Piece};
use crate::options::{MS, S};
use crate::printed;

/// From the connect to the welcome.
const HANDSHAKE_TIME: u64 = 10 * S;
const PAUSE_MIN: u64 = 100 * MS;
const PAUSE_MAX: u64 = 5 * S;
/// What a pipe holds before its writer waits.
const PIPE_BYTES: u64 = 4_096;
/// Most bytes of one read.
pub(crate) const READ_BYTES: usize = 1_024;
/// Reads of one pipe in a turn.
const READS: usize = 4;
/// How far the buffer is filled in a turn.
const AHEAD_BYTES: usize = 16 << 10;

pub(crate) const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// A process that prints.
#[derive(Debug)]
pub(crate) struct Printing {
    pub(crate) serial: u64,
    plan: u64,
    logs: Logs,
    /// What it is still to write: stream, bytes.
    pub(crate) script: Vec<(usize, u64)>,
    pub(crate) pause: u64,
    /// Written and not read.
    pipe: [u64; 2],
    read: [u64; 2],
    /// It waits in a write.
    pub(crate) waits: bool,
    /// It was to end by itself meanwhile.
    pub(crate) ends_then: bool,
    /// The worker does not read it: there is no room.
    blocked: bool,
    last_read: Option<u64>,
}

#[derive(Debug)]
struct Line {
    conn: ConnId,
    handshake: Option<Box<ClientHandshake>>,
    ready: bool,
    decoder: Decoder,
    out: BytesMut,
    deadline: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Outlet {
    spool: Spool,
    line: Option<Line>,
    target: Option<SessionId>,
    retry_at: u64,
    pause: u64,
    pub(crate) inbox: Vec<(ConnId, Piece)>,
    pub(crate) printing: BTreeMap<Fence, Printing>,
    /// Attempts whose output is not stored to its end.
    unsettled: BTreeSet<Fence>,
    /// In which history each was given out.
    births: BTreeMap<Fence, u32>,
    /// There is more to be read.
    reads_on: bool,
    /// There is more to be sent.
    sends_on: bool,
}

impl Outlet {
    pub(crate) fn new(limits: SpoolLimits, now: u64, spill_fails: u64) -> Self {
        let files = ModelSpill {
            fails: spill_fails,
            ..ModelSpill::default()
        };
        Self {
            spool: Spool::with_files(limits, Box::new(files)),
            line: None,
            target: None,
            retry_at: now,
            pause: PAUSE_MIN,
            inbox: Vec::new(),
            printing: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            births: BTreeMap::new(),
            reads_on: false,
            sends_on: false,
        }
    }

    pub(crate) fn conn(&self) -> Option<ConnId> {
        self.line.as_ref().map(|line| line.conn)
    }

    /// A control session has begun, or ended.
    pub(crate) fn follow(&mut self, target: Option<SessionId>, around: &mut Around<'_>) {
        self.leave(around);
        self.target = target;
        self.pause = PAUSE_MIN;
        self.retry_at = around.now;
    }

    /// Everything printed is stored, and nobody prints.
    pub(crate) fn is_settled(&self) -> bool {
        self.spool.is_empty() && self.printing.is_empty()
    }

    pub(crate) fn is_sent(&self) -> bool {
        self.spool.is_empty()
    }

    pub(crate) fn next_turn(&self, now: u64) -> Option<u64> {
        let line = match &self.line {
            None if self.target.is_some() && !self.spool.is_empty() => Some(self.retry_at),
            Some(line) if !line.ready => Some(line.deadline),
            Some(_) => self.spool.next_deadline().map(Time::us),
            None => None,
        };
        let more = self.reads_on || self.sends_on;
        line.into_iter().chain(more.then_some(now)).min()
    }

    /// A process starts whose output is wanted.
    pub(crate) fn begin(
        &mut self,
        (fence, plan, serial, history): (Fence, u64, u64, u32),
        logs: Logs,
        script: Vec<(usize, u64)>,
        pause: u64,
        around: &Around<'_>,
    ) {
        self.spool.begin(fence, logs);
        self.unsettled.insert(fence);
        self.births.insert(fence, history);
        let mut oracle = around.oracle();
        if oracle.history == history {
            oracle.prints.begins(fence, plan, history, logs);
        }
        drop(oracle);
        let printing = Printing {
            serial,
            plan,
            logs,
            script,
            pause,
            pipe: [0; 2],
            read: [0; 2],
            waits: false,
            ends_then: false,
            blocked: false,
            last_read: None,
        };
        self.printing.insert(fence, printing);
    }

    /// A process writes. Says when it will again, if it does and does not wait.
    pub(crate) fn prints(&mut self, fence: Fence, serial: u64) -> Option<u64> {
        let printing = self.printing.get_mut(&fence)?;
        if printing.serial != serial || printing.waits {
            return None;
        }
        let (s, bytes) = printing.script.pop()?;
        printing.pipe[s] += bytes;
        printing.waits = printing.pipe[s] > PIPE_BYTES;
        (!printing.waits && !printing.script.is_empty()).then_some(printing.pause)
    }

    /// Whether a process that is to end by itself cannot, since it waits in a write; then it ends after it.
    pub(crate) fn holds_back(&mut self, fence: Fence) -> bool {
        let printing = self.printing.get_mut(&fence);
        printing.is_some_and(|printing| {
            printing.ends_then |= printing.waits;
            printing.waits
        })
    }

    /// When a process last gave a sign of life by printing; now, if it waits for us.
    pub(crate) fn active_at(&self, fence: Fence, now: u64) -> Option<u64> {
        let printing = self.printing.get(&fence)?;
        if printing.blocked {
            Some(now)
        } else {
            printing.last_read
        }
    }

    /// Reads pipes. Gives the processes that go on writing, or end.
    pub(crate) fn read_pipes(&mut self, around: &Around<'_>) -> Vec<(Fence, u64, bool)> {
        let fences: Vec<Fence> = self.printing.keys().copied().collect();
        let mut go_on = Vec::new();
        self.reads_on = false;
        for fence in fences {
            self.read_pipe(fence, false, around);
            let printing = self.printing.get_mut(&fence).expect("it prints");
            if printing.waits && printing.pipe.iter().all(|bytes| *bytes <= PIPE_BYTES) {
                printing.waits = false;
                go_on.push((fence, printing.serial, printing.ends_then));
            }
            self.reads_on |= printing.pipe != [0, 0] && !printing.blocked;
        }
        go_on
    }

    fn read_pipe(&mut self, fence: Fence, last: bool, around: &Around<'_>) {
        let printing = self.printing.get_mut(&fence).expect("it prints");
        let block = printing.logs.overflow == Overflow::Block;
        printing.blocked = false;
        for (s, stream) in STREAMS.into_iter().enumerate() {
            for _ in 0..if last { usize::MAX } else { READS } {
                if printing.pipe[s] == 0 {
                    break;
                }
                if block && !last && !self.spool.has_room(fence, READ_BYTES) {
                    printing.blocked = true;
                    break;
                }
                let count = usize::try_from(printing.pipe[s])
                    .unwrap_or(READ_BYTES)
                    .min(READ_BYTES);
                let at = printing.read[s];
                let bytes = printed::bytes(printing.plan, fence, stream, at, count);
                printing.pipe[s] -= count as u64;
                printing.read[s] += count as u64;
                printing.last_read = Some(around.now);
                if let Some(printed) = around.oracle().prints.get(fence, self.births[&fence]) {
                    printed.read = printing.read;
                }
                let at_ms = around.now / MS;
                self.spool
                    .push(fence, stream, at, at_ms, &bytes, block && last);
            }
        }
    }

    /// Its process has ended: reads what is left, and gives the bytes of each stream.
    pub(crate) fn close(&mut self, fence: Fence, around: &Around<'_>) -> Option<[u64; 2]> {
        if !self.printing.contains_key(&fence) {
            return None;
        }
        self.read_pipe(fence, true, around);
        self.reads_on = false;
        let printing = self.printing.remove(&fence)?;
        let [stdout, stderr] = printing.read;
        self.spool.close(fence, stdout, stderr);
        if stdout + stderr == 0 {
            self.unsettled.remove(&fence);
        }
        if let Some(printed) = around.oracle().prints.get(fence, self.births[&fence]) {
            printed.closed = true;
        }
        Some(printing.read)
    }

    /// Nobody wants it any more.
    pub(crate) fn forget(&mut self, fence: Fence, around: &Around<'_>) {
        self.spool.forget(fence);
        self.unsettled.remove(&fence);
        let Some(history) = self.births.get(&fence) else {
            return;
        };
        if let Some(printed) = around.oracle().prints.get(fence, *history) {
            printed.forgotten = true;
        }
    }

    /// The server has another history since that start of it.
    pub(crate) fn forget_since(&mut self, epoch: Epoch, around: &Around<'_>) {
        self.spool.forget_since(epoch);
        self.unsettle(|fence, _| fence.epoch >= epoch, around);
    }

    /// What was given out in another history than that goes.
    pub(crate) fn forget_of_other_histories(&mut self, history: u32, around: &Around<'_>) {
        let foreign =
            |fence: Fence, born: u32| born != history && !around.oracle().prints.has(fence, born);
        let all: Vec<Fence> = self.births.keys().copied().collect();
        for fence in all {
            if foreign(fence, self.births[&fence]) {
                self.spool.forget(fence);
            }
        }
        self.unsettle(foreign, around);
    }

    fn unsettle(&mut self, goes: impl Fn(Fence, u32) -> bool, around: &Around<'_>) {
        let owed = self.owed();
        let gone: Vec<(Fence, u32)> = owed
            .into_iter()
            .filter(|(fence, born)| goes(*fence, *born))
            .collect();
        for (fence, _) in &gone {
            self.unsettled.remove(fence);
        }
        around.oracle().prints.forgotten(&gone);
    }

    /// The worker dies, and its spool with it. Says which connection it leaves, and what is not stored.
    pub(crate) fn die(self) -> (Option<ConnId>, Vec<(Fence, u32)>) {
        let owed = self.owed();
        (self.line.map(|line| line.conn), owed)
    }

    fn owed(&self) -> Vec<(Fence, u32)> {
        let fences = self.unsettled.iter();
        fences.map(|fence| (*fence, self.births[fence])).collect()
    }

    /// Whether the next turn may have to log in.
    pub(crate) fn wants_login(&self) -> bool {
        !self.inbox.is_empty() && self.line.as_ref().is_some_and(|line| !line.ready)
    }

    /// Takes acknowledgements, gives output.
    pub(crate) fn turn(
        &mut self,
        login: Option<&Login>,
        (at, held): (usize, Held),
        around: &mut Around<'_>,
    ) {
        if let Some(line) = &self.line
            && !line.ready
            && around.now >= line.deadline
        {
            self.lost(around);
        }
        self.dial(at, held, around);
        for (conn, piece) in std::mem::take(&mut self.inbox) {
            if self.conn() != Some(conn) {
                continue;
            }
            match piece {
                Piece::Bytes(bytes) => self.hear(&bytes, login, around),
                Piece::Closed => self.lost(around),
            }
        }
        self.fill(around);
        if self.spool.made_room() {
            self.reads_on |= self.printing.values().any(|printing| printing.blocked);
        }
    }

    fn dial(&mut self, at: usize, held: Held, around: &mut Around<'_>) {
        let idle = self.target.is_none() || self.line.is_some() || self.spool.is_empty();
        if idle || around.now < self.retry_at {
            return;
        }
        let mut nonce = [1; 32];
        nonce[..8].copy_from_slice(&around.rng.next().to_le_bytes());
        let (handshake, hello) = ClientHandshake::new(around.token, Role::Output, nonce);
        let mut decoder = Decoder::new();
        decoder.accept_up_to(HANDSHAKE_FRAME_BYTES_MAX);
        let mut line = Line {
            conn: around.network.open(at, held),
            handshake: Some(Box::new(handshake)),
            ready: false,
            decoder,
            out: BytesMut::new(),
            deadline: around.now + HANDSHAKE_TIME,
        };
        Frame::Hello(hello).encode(&mut line.out);
        self.line = Some(line);
    }

    fn hear(&mut self, bytes: &BytesMut, login: Option<&Login>, around: &mut Around<'_>) {
        if let Some(line) = &mut self.line {
            line.decoder.buffer().extend_from_slice(bytes);
        }
        while let Some(line) = &mut self.line {
            let frame = match line.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(_) => return self.lost(around),
            };
            if let Frame::Challenge(challenge) = frame {
                let login = login.expect("it was made for that");
                let mut login = Login {
                    session: self.target,
                    ..login.clone()
                };
                let handshake = line.handshake.take().expect("it waits for that");
                let proven = handshake.login(&challenge, &mut login);
                proven.expect("the server is ours");
                Frame::Login(Box::new(login)).encode(&mut line.out);
            } else if let Frame::Welcome(_) = frame {
                line.ready = true;
                self.pause = PAUSE_MIN;
                self.spool.rewind();
                around.oracle().prints.rewound(&self.owed());
            } else if let Frame::OutputAck(ack) = frame {
                if let Some(history) = self.births.get(&ack.fence) {
                    around.oracle().prints.acked(&ack, *history);
                }
                self.spool.acked(&ack);
                if ack.ended {
                    self.unsettled.remove(&ack.fence);
                }
            } else {
                return self.lost(around);
            }
        }
    }

    fn fill(&mut self, around: &mut Around<'_>) {
        self.sends_on = false;
        let Some(line) = &mut self.line else { return };
        if line.ready {
            let time = Time::from_us(around.now);
            self.spool.resume(time);
            while line.out.len() < AHEAD_BYTES
                && let Some(frame) = self.spool.next_frame(time)
            {
                let mut oracle = around.oracle();
                if let Frame::Chunk(chunk) = &frame {
                    oracle.prints.chunk(chunk, self.births[&chunk.fence]);
                } else if let Frame::OutputEnd(end) = &frame {
                    oracle.prints.end(end, self.births[&end.fence]);
                }
                frame.encode(&mut line.out);
            }
            self.sends_on = line.out.len() >= AHEAD_BYTES;
        }
        if !line.out.is_empty() {
            let (conn, bytes) = (line.conn, line.out.split());
            around.send(conn, Piece::Bytes(bytes));
        }
    }

    fn lost(&mut self, around: &mut Around<'_>) {
        self.leave(around);
        let half = self.pause / 2;
        self.retry_at = around.now + half + around.rng.below(half);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn leave(&mut self, around: &mut Around<'_>) {
        let Some(line) = self.line.take() else { return };
        let told_at = around.now + around.rng.between(around.latency);
        if let Some(at) = around.network.close(line.conn, End::Worker, Some(told_at)) {
            around.deliveries.push((line.conn, End::Server, at));
        }
    }
}

/// Files that refuse every so many writes.
#[derive(Debug, Default)]
struct ModelSpill {
    files: BTreeMap<u64, Vec<u8>>,
    /// One write in so many fails; none at 0.
    fails: u64,
    writes: u64,
}

impl SpillFiles for ModelSpill {
    fn make(&mut self, number: u64) -> io::Result<()> {
        self.files.insert(number, Vec::new());
        Ok(())
    }

    fn write(&mut self, number: u64, data: &[u8], at: u64) -> io::Result<()> {
        self.writes += 1;
        if self.fails > 0 && self.writes.is_multiple_of(self.fails) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = self.files.get_mut(&number).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(at).map_err(io::Error::other)?;
        file.resize(file.len().max(at + data.len()), 0);
        file[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn read(&self, number: u64, into: &mut [u8], at: u64) -> io::Result<()> {
        let file = self.files.get(&number).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(at).map_err(io::Error::other)?;
        into.copy_from_slice(
            file.get(at..at + into.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn remove(&mut self, number: u64) {
        self.files.remove(&number);
    }
}
