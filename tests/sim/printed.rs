//! What model processes printed, and what of it must be there.
//!
//! Every byte follows from its job's plan, its attempt and its place, so that a byte of another attempt, stream or place
//! is a wrong one. Gaps are counted from what left the worker, not from what anybody says of them.

use std::collections::{BTreeMap, BTreeSet};

use hostler_server::output::Page;
use hostler_wire::frame::{Chunk, Logs, LogsMode, OutputAck, OutputEnd, Overflow, Stream};
use hostler_wire::{Attempt, Epoch, Fence, JobId};

use crate::rng::mix;

/// One attempt's.
#[derive(Clone, Debug)]
pub(crate) struct Printed {
    pub(crate) plan: u64,
    /// In which history it was given out.
    history: u32,
    pub(crate) logs: Logs,
    /// Bytes its worker read, each stream.
    pub(crate) read: [u64; 2],
    /// The worker read it to its end.
    pub(crate) closed: bool,
    /// Nobody wanted it any more: its worker died, or was told that the attempt is void.
    pub(crate) forgotten: bool,
    /// What ever left the worker, in stretches without overlap.
    sent: [BTreeMap<u64, u64>; 2],
    /// A backup came back meanwhile: what was stored and acknowledged before may be gone, and is not sent again.
    restored: bool,
    /// Some of it was to be sent again: what was given up then may have arrived before.
    rewound: bool,
    /// The end that left the worker.
    end: Option<OutputEnd>,
    /// How far its worker was told that it is stored.
    acked: [u64; 2],
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Prints {
    pub(crate) of: BTreeMap<Fence, Printed>,
    /// Attempts that a backup which came back knew nothing of. What they printed may stand there, and is shown as that of
    /// a namesake of a later start until this one prints.
    unknown: BTreeSet<(JobId, Attempt)>,
    /// Bytes printed and compared, for the figures.
    pub(crate) bytes: u64,
}

pub(crate) fn index_of(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

/// These bytes of a stream.
pub(crate) fn bytes(plan: u64, fence: Fence, stream: Stream, offset: u64, count: usize) -> Vec<u8> {
    let word = |n: u64| {
        mix(plan << 24
            ^ u64::from(fence.attempt.raw()) << 2
            ^ n << 40
            ^ n.rotate_right(30)
            ^ index_of(stream) as u64)
        .to_le_bytes()
    };
    let first = offset / 8;
    let skip = usize::try_from(offset % 8).expect("below eight");
    let words = (first..).take((skip + count).div_ceil(8));
    let mut all: Vec<u8> = words.flat_map(word).collect();
    all.drain(..skip);
    all.truncate(count);
    all
}

impl Prints {
    pub(crate) fn begins(&mut self, fence: Fence, plan: u64, history: u32, logs: Logs) {
        let printed = Printed {
            plan,
            history,
            logs,
            read: [0; 2],
            closed: false,
            forgotten: false,
            sent: Default::default(),
            restored: false,
            rewound: false,
            end: None,
            acked: [0; 2],
        };
        self.of.insert(fence, printed);
    }

    /// What is known of an attempt that was given out in that history; none if it is not this one's.
    pub(crate) fn get(&mut self, fence: Fence, history: u32) -> Option<&mut Printed> {
        let printed = self.of.get_mut(&fence)?;
        (printed.history == history).then_some(printed)
    }

    /// Whether it is of this history.
    pub(crate) fn has(&self, fence: Fence, history: u32) -> bool {
        let printed = self.of.get(&fence);
        printed.is_some_and(|printed| printed.history == history)
    }

    /// A backup came back: of what is still known an end may be missing, the rest is of another history.
    pub(crate) fn restore(&mut self, is_known: impl Fn(&Fence) -> bool) {
        self.of.retain(|fence, printed| {
            printed.forgotten = true;
            printed.acked = [0; 2];
            printed.restored = true;
            let known = is_known(fence);
            if !known {
                self.unknown.insert((fence.job, fence.attempt));
            }
            known
        });
    }

    /// Whether what is shown of it may be a namesake's.
    pub(crate) fn may_be_anothers(&self, fence: Fence) -> bool {
        self.unknown.contains(&(fence.job, fence.attempt))
    }

    /// Their worker dies, or nobody wants them.
    pub(crate) fn forgotten(&mut self, fences: &[(Fence, u32)]) {
        for (fence, history) in fences {
            if let Some(printed) = self.get(*fence, *history) {
                printed.forgotten = true;
            }
        }
    }

    /// A piece leaves its worker.
    pub(crate) fn chunk(&mut self, chunk: &Chunk, history: u32) {
        let fence = chunk.fence;
        let Some(printed) = self.get(fence, history) else {
            return; // of another history
        };
        let s = index_of(chunk.stream);
        let to = chunk.offset + chunk.data.len() as u64;
        assert!(
            to <= printed.read[s],
            "{fence:?} sends up to {to}, {} were printed",
            printed.read[s]
        );
        // What has long been acknowledged may be let go, never what has not.
        let sent = &mut printed.sent[s];
        let (mut from, mut until) = (chunk.offset, to);
        while let Some((&begin, &end)) = sent.range(..=until).next_back()
            && end >= from
        {
            from = from.min(begin);
            until = until.max(end);
            sent.remove(&begin);
        }
        sent.insert(from, until);
    }

    /// Their worker begins anew from what was acknowledged.
    pub(crate) fn rewound(&mut self, fences: &[(Fence, u32)]) {
        for (fence, history) in fences {
            if let Some(printed) = self.get(*fence, *history) {
                printed.rewound = true;
            }
        }
    }

    /// The end leaves its worker: it says how much was given up there.
    pub(crate) fn end(&mut self, end: &OutputEnd, history: u32) {
        let Some(printed) = self.get(end.fence, history) else {
            return;
        };
        assert!(printed.closed, "{:?} ended before it was over", end.fence);
        assert_eq!(
            [end.stdout_bytes, end.stderr_bytes],
            printed.read,
            "{:?} says how much it printed",
            end.fence
        );
        printed.end = Some(*end);
        let missing = printed.total() - printed.ever_sent();
        assert!(
            end.dropped_bytes == missing || (printed.rewound && end.dropped_bytes > missing),
            "{:?}: the worker gave up {missing} bytes and says {}",
            end.fence,
            end.dropped_bytes
        );
        assert!(
            end.dropped_bytes == 0 || printed.logs.overflow == Overflow::Drop,
            "{:?} was to wait for room, and {missing} bytes were given up",
            end.fence
        );
    }

    /// A worker is told what is stored.
    pub(crate) fn acked(&mut self, ack: &OutputAck, history: u32) {
        let Some(printed) = self.get(ack.fence, history) else {
            return;
        };
        if printed.restored {
            return;
        }
        for (acked, through) in printed
            .acked
            .iter_mut()
            .zip([ack.stdout_through, ack.stderr_through])
        {
            *acked = (*acked).max(through);
        }
    }

    /// What somebody was given to read; says where each stream goes on. `seen`: how far they had read.
    pub(crate) fn served(&mut self, fence: Fence, page: &Page, seen: &mut [u64; 2]) -> u64 {
        let mut missing = 0;
        for piece in &page.pieces {
            let Some(printed) = self.of.get(&fence) else {
                panic!("{fence:?} is served and never printed");
            };
            let s = index_of(piece.stream);
            assert!(
                piece.offset >= seen[s],
                "{fence:?}: {:?} from {} comes after {}: bytes twice",
                piece.stream,
                piece.offset,
                seen[s]
            );
            missing += piece.offset - seen[s];
            let right = bytes(
                printed.plan,
                fence,
                piece.stream,
                piece.offset,
                piece.data.len(),
            );
            assert!(
                right == piece.data,
                "{fence:?}: {:?} from {} is not what was printed",
                piece.stream,
                piece.offset
            );
            self.bytes += right.len() as u64;
            seen[s] = piece.offset + piece.data.len() as u64;
        }
        missing
    }

    /// The last attempt of a job that keeps its output and was read to its end, and how much of each stream its worker knows
    /// to be stored.
    pub(crate) fn last_of(&self, job: JobId) -> Option<(Fence, [u64; 2])> {
        let first = Fence {
            job,
            epoch: Epoch::new(0),
            attempt: Attempt::FIRST,
        };
        let all = self.of.range(first..);
        let (fence, printed) = all
            .take_while(|(fence, _)| fence.job == job)
            .max_by_key(|(fence, _)| (fence.attempt, fence.epoch))?;
        let kept = printed.logs.mode == LogsMode::Keep && printed.closed && !printed.restored;
        kept.then_some((*fence, printed.acked))
    }

    /// What somebody read of a stream who had just been told of the end.
    pub(crate) fn seen_at_the_end(
        &self,
        (fence, s): (Fence, usize),
        acked: u64,
        page: &Page,
        limit_bytes: u64,
    ) {
        /// Less than any page may hold.
        const WHOLE: u64 = 60_000;
        let Some(printed) = self.of.get(&fence).filter(|printed| !printed.restored) else {
            return;
        };
        // An acknowledged end covers what its worker gave up after the last piece.
        let sent = printed.sent[s].last_key_value().map_or(0, |(_, to)| *to);
        let acked = acked.min(sent);
        assert!(
            page.stored >= acked,
            "{fence:?} was over, {acked} bytes of stream {s} were acknowledged and {} can be read",
            page.stored
        );
        let wanted = printed.acked_of(s, acked);
        if printed.ever_sent() <= printed.limit(limit_bytes) && wanted < WHOLE {
            let read: usize = page.pieces.iter().map(|piece| piece.data.len()).sum();
            assert!(
                read as u64 >= wanted,
                "{fence:?} was over, {wanted} bytes of stream {s} were stored and {read} are read"
            );
        }
    }

    /// All there is of an attempt, at the end: bytes of each stream that are there, as [`Prints::served`] saw them.
    pub(crate) fn at_rest(&self, fence: Fence, kept: &Kept, limit_bytes: u64) {
        let printed = &self.of[&fence];
        let total = printed.total();
        let stored: u64 = kept
            .stored
            .iter()
            .flatten()
            .map(|(from, to)| to - from)
            .sum();
        let limit = printed.limit(limit_bytes);
        let whole = printed.closed && !printed.forgotten;
        let sent = printed.ever_sent();
        if whole && total > 0 {
            let end = kept.ended;
            assert!(end.is_some(), "{fence:?} has ended, its output has not");
            let dropped = end.map_or(0, |end| end.dropped_bytes);
            assert_eq!(
                stored + kept.cut,
                total,
                "{fence:?} printed {total} bytes: {stored} are there, {} are said to be missing",
                kept.cut
            );
            if sent <= limit {
                assert!(
                    stored >= total - dropped,
                    "{fence:?}: of {total} bytes {dropped} were given up, {stored} are there, {limit} may be kept"
                );
            }
        }
        // An acknowledged byte is there, unless it was too much.
        let acked = printed.acked_bytes();
        let floor = if sent <= limit {
            acked
        } else {
            acked.min(limit - limit / 8)
        };
        assert!(
            stored >= floor || (printed.forgotten && sent > limit),
            "{fence:?}: {acked} bytes were acknowledged, {stored} are there"
        );
        assert!(
            stored <= limit.max(4_096),
            "{fence:?}: {stored} bytes are kept, {limit} may be"
        );
        // The head stays, and so does the end.
        if whole && total > 0 && sent > limit {
            for s in 0..2 {
                let last = printed.sent[s].last_key_value().map(|(_, to)| *to);
                let got = kept.stored[s].last().map(|(_, to)| *to);
                assert!(
                    got == last || kept.stored[1 - s].last().is_some(),
                    "{fence:?}: the end of stream {s} is not there"
                );
            }
        }
    }
}

/// What is there of an attempt.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) stored: [Vec<(u64, u64)>; 2],
    pub(crate) ended: Option<OutputEnd>,
    pub(crate) cut: u64,
}

impl Printed {
    pub(crate) fn total(&self) -> u64 {
        self.read[0] + self.read[1]
    }

    fn ever_sent(&self) -> u64 {
        let all = self.sent.iter().flatten();
        all.map(|(from, to)| to - from).sum()
    }

    /// Of what was acknowledged, what had been sent.
    fn acked_bytes(&self) -> u64 {
        self.acked_of(0, self.acked[0]) + self.acked_of(1, self.acked[1])
    }

    fn acked_of(&self, s: usize, acked: u64) -> u64 {
        let all = self.sent[s].iter();
        all.map(|(from, to)| (*to).min(acked).saturating_sub(*from))
            .sum()
    }

    /// How much of it is kept.
    fn limit(&self, limit_bytes: u64) -> u64 {
        match self.logs.overflow {
            Overflow::Block => u64::MAX,
            Overflow::Drop => self.logs.limit_bytes.min(limit_bytes).max(4_096),
        }
    }
}
