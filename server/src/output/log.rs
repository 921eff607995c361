//! What is kept of one attempt's output, and where it lies.
//!
//! An attempt's records lie scattered among those of others. They are remembered in coarse steps: an [`Extent`] is a
//! stretch of a segment, no longer than [`WINDOW_BYTES`], in which records of the attempt are found by walking. Within
//! an extent both streams are without gaps.
//!
//! A job may ask for less than the server's limit, for all, or for nothing after the end: that is its [`Rules`]. They
//! stand in each segment with its output, so that a restart knows them.
//!
//! Keeps semantics 25: of too much output the first sixteenth and the last fifteen are kept. The middle goes in whole
//! extents, so between `limit - limit/16` and `limit` bytes remain, and what is missing is counted exactly:
//! what the job wrote, less what is kept.
//!
//! Not here: files (`segment`, `index`), pages (`page`).

use hostler_wire::frame::{Logs, LogsMode, OutputEnd, Overflow, Stream};

use super::LIMIT_BYTES_MIN;
use super::record::{DATA_BYTES_MAX, END_BYTES, Head, Place};

/// Longest stretch of a segment that is walked to find records of one attempt.
pub(super) const WINDOW_BYTES: u32 = 256 << 10;
/// Most extents of one attempt: a job that writes a line now and then beside very loud ones has many. Its middle goes
/// when there are more.
const EXTENTS_MAX: usize = 65_536;

/// How much of an attempt is kept, and in what steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keep {
    /// Most bytes.
    limit_bytes: u64,
    /// The head that always stays; no extent has more data.
    step_bytes: u64,
}

impl Keep {
    pub(super) fn new(limit_bytes: u64) -> Self {
        assert!(limit_bytes >= LIMIT_BYTES_MIN);
        Self {
            limit_bytes,
            step_bytes: limit_bytes / 16,
        }
    }

    /// The same for an attempt with rules of its own. A limit too small for steps counts as the smallest that is not.
    /// Where nothing is cut the number of extents still has its bound.
    pub(super) fn under(self, rules: Option<Rules>) -> Self {
        match rules.map(|rules| rules.limit_bytes) {
            None => self,
            Some(None) => Self {
                limit_bytes: u64::MAX,
                ..self
            },
            Some(Some(limit)) => Self::new(limit.min(self.limit_bytes).max(LIMIT_BYTES_MIN)),
        }
    }

    /// Most data in one record.
    pub(super) fn record_bytes_max(&self) -> usize {
        usize::try_from(self.step_bytes).map_or(DATA_BYTES_MAX, |step| step.min(DATA_BYTES_MAX))
    }
}

/// What a job asked for, if that is not what every job gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    /// Most bytes kept; none if nothing is to be cut.
    pub limit_bytes: Option<u64>,
    /// Nothing is kept when it has ended and its followers have had their time.
    pub streamed: bool,
}

impl Rules {
    /// None if these are no other than the server's own.
    pub(super) fn of(logs: Logs, all: Keep) -> Option<Self> {
        let limit_bytes = match logs.overflow {
            Overflow::Block => None,
            Overflow::Drop => Some(logs.limit_bytes.min(all.limit_bytes)),
        };
        let streamed = logs.mode == LogsMode::Stream;
        (streamed || limit_bytes != Some(all.limit_bytes)).then_some(Self {
            limit_bytes,
            streamed,
        })
    }
}

/// A stretch of a segment with records of one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub segment: u32,
    /// Where its first record begins.
    pub begin: u32,
    /// Where its last one ends.
    pub end: u32,
    /// What its own records take, without those of others between them.
    pub disk_bytes: u32,
    /// Records before it were lost to damage: reading across is an error.
    pub after_damage: bool,
    /// First offset of each stream; equal to `to` if it has nothing of it.
    pub from: [u64; 2],
    /// Where each stream goes on after it.
    pub to: [u64; 2],
    /// Bytes of both streams before it.
    pub merged: u64,
}

impl Extent {
    /// Bytes of both streams.
    pub(super) fn data_bytes(&self) -> u64 {
        self.stream_bytes(0) + self.stream_bytes(1)
    }

    pub(super) fn stream_bytes(&self, stream: usize) -> u64 {
        self.to[stream] - self.from[stream]
    }
}

/// One attempt's output.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// What is kept, oldest first.
    pub extents: Vec<Extent>,
    /// Where each stream goes on.
    pub next: [u64; 2],
    /// Bytes of both streams taken in, kept or not.
    pub merged: u64,
    /// The end, and the segment that has its record.
    pub end: Option<(u32, OutputEnd)>,
    /// The newest segment with anything of this attempt.
    pub touched: u32,
    /// What its job asked for.
    pub rules: Option<Rules>,
    /// The newest segment with a record of the rules.
    pub rules_in: u32,
    kept: [u64; 2],
}

/// The index of a stream in the pairs above.
pub(super) fn index_of(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl Log {
    /// Takes in a chunk's record that stands at `place`. Extents that are no longer kept go to `dropped`.
    pub(super) fn push(
        &mut self,
        (place, head, stream): (Place, &Head, Stream),
        after_damage: bool,
        keep: Keep,
        dropped: &mut Vec<Extent>,
    ) {
        let s = index_of(stream);
        let (begin, end) = (place.at, place.at + head.bytes());
        let data_bytes = u64::from(head.data_bytes);
        let goes_on = !after_damage
            && head.merged == self.merged
            && self.extents.last().is_some_and(|last| {
                last.segment == place.segment
                    && (last.merged < keep.step_bytes) == (head.merged < keep.step_bytes)
                    && end - last.begin <= WINDOW_BYTES
                    && last.data_bytes() + data_bytes <= keep.step_bytes
                    && (last.stream_bytes(s) == 0 || last.to[s] == head.offset)
            });
        if !goes_on {
            self.extents.push(Extent {
                segment: place.segment,
                begin,
                end,
                disk_bytes: 0,
                after_damage,
                from: self.next,
                to: self.next,
                merged: head.merged,
            });
        }
        let last = self.extents.last_mut().expect("pushed if there was none");
        if last.stream_bytes(s) == 0 {
            last.from[s] = head.offset;
        }
        last.to[s] = head.offset + data_bytes;
        last.end = end;
        last.disk_bytes += head.bytes();
        self.next[s] = head.offset + data_bytes;
        self.merged = head.merged + data_bytes;
        self.kept[s] += data_bytes;
        self.touched = place.segment;
        self.cut_middle(keep, dropped);
    }

    /// Takes in an extent of an older segment, in order.
    pub(super) fn push_extent(&mut self, extent: Extent, keep: Keep) {
        for s in 0..2 {
            self.kept[s] += extent.stream_bytes(s);
            if extent.stream_bytes(s) > 0 {
                self.next[s] = self.next[s].max(extent.to[s]);
            }
        }
        self.merged = self.merged.max(extent.merged + extent.data_bytes());
        self.extents.push(extent);
        // These were dropped before, and their segments' dead bytes counted then.
        self.cut_middle(keep, &mut Vec::new());
    }

    /// Keeps nothing of it, but for how much it was.
    pub(super) fn drop_all(&mut self) -> Vec<Extent> {
        self.kept = [0, 0];
        std::mem::take(&mut self.extents)
    }

    /// It has ended and was to be kept no longer than that.
    pub(super) fn is_over(&self) -> bool {
        self.end.is_some() && self.rules.is_some_and(|rules| rules.streamed)
    }

    pub(super) fn cut_middle(&mut self, keep: Keep, dropped: &mut Vec<Extent>) {
        while self.kept[0] + self.kept[1] > keep.limit_bytes || self.extents.len() > EXTENTS_MAX {
            let middle = self
                .extents
                .partition_point(|extent| extent.merged < keep.step_bytes);
            if middle + 1 >= self.extents.len() {
                return; // only head and the newest are left
            }
            let extent = self.extents.remove(middle);
            for s in 0..2 {
                self.kept[s] -= extent.stream_bytes(s);
            }
            dropped.push(extent);
        }
    }

    /// Its extents there are gone, with their segment.
    pub(super) fn forget_segment(&mut self, segment: u32) {
        let kept = &mut self.kept;
        self.extents.retain(|extent| {
            let stays = extent.segment != segment;
            if !stays {
                for (s, kept) in kept.iter_mut().enumerate() {
                    *kept -= extent.stream_bytes(s);
                }
            }
            stays
        });
    }

    /// Its extents there have been rewritten.
    pub(super) fn replace_segment(&mut self, segment: u32, extents: &[Extent]) {
        let Some(place) = self.extents.iter().position(|it| it.segment == segment) else {
            return;
        };
        self.forget_segment(segment);
        for extent in extents {
            for (s, kept) in self.kept.iter_mut().enumerate() {
                *kept += extent.stream_bytes(s);
            }
        }
        self.extents.splice(place..place, extents.iter().copied());
    }

    /// Bytes of a stream that the job wrote and that are not kept: lost to the limit, to the worker's spool, or to age.
    pub(super) fn cut(&self, stream: Stream) -> u64 {
        let s = index_of(stream);
        let total = self.end.map_or(0, |(_, end)| match stream {
            Stream::Stdout => end.stdout_bytes,
            Stream::Stderr => end.stderr_bytes,
        });
        total.max(self.next[s]).saturating_sub(self.kept[s])
    }

    /// The same of both streams.
    pub(super) fn cut_bytes(&self) -> u64 {
        self.cut(Stream::Stdout) + self.cut(Stream::Stderr)
    }

    /// What it takes of a segment, all its records together.
    pub(super) fn disk_bytes(&self, segment: u32) -> u64 {
        let extents = self.extents.iter().filter(|e| e.segment == segment);
        let chunks: u64 = extents.map(|extent| u64::from(extent.disk_bytes)).sum();
        chunks
            + self
                .end
                .filter(|(at, _)| *at == segment)
                .map_or(0, |_| END_BYTES as u64)
    }

    /// Every segment with something of it that counts as live.
    pub(super) fn segments(&self) -> Vec<u32> {
        let ends = self.end.iter().map(|(segment, _)| *segment);
        let mut all: Vec<u32> = self.extents.iter().map(|e| e.segment).chain(ends).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::record::{Key, Kind};
    use bytes::BytesMut;

    /// Pushes one record of `len` bytes of standard output at `at`.
    fn push(log: &mut Log, at: &mut u32, len: usize, keep: Keep) {
        let place = Place {
            segment: 1,
            at: *at,
        };
        let kind = Kind::Chunk(Stream::Stdout);
        let head = Head::new(kind, Key::default(), log.next[0], log.merged, 0);
        let mut bytes = BytesMut::new();
        *at += head.write(place, &vec![0; len], &mut bytes);
        let head = Head::read(place, &bytes).unwrap();
        log.push((place, &head, Stream::Stdout), false, keep, &mut Vec::new());
    }

    #[test]
    fn of_too_much_the_head_and_the_tail_stay_and_the_cut_is_exact() {
        let keep = Keep::new(16_000);
        let (mut log, mut at) = (Log::default(), 40);
        for _ in 0..1_000 {
            push(&mut log, &mut at, 100, keep);
        }
        let kept: u64 = log.extents.iter().map(Extent::data_bytes).sum();
        assert!(kept <= 16_000 && kept > 15_000, "{kept}");
        assert_eq!(log.cut(Stream::Stdout), 100_000 - kept);
        assert_eq!(log.extents[0].from[0], 0);
        assert_eq!(log.extents[0].to[0], 1_000);
        assert_eq!(log.extents.last().unwrap().to[0], 100_000);
        // One gap only, between head and tail.
        let gaps = log
            .extents
            .windows(2)
            .filter(|w| w[0].to[0] != w[1].from[0]);
        assert_eq!(gaps.count(), 1);
    }

    #[test]
    fn what_fits_is_kept_whole() {
        let keep = Keep::new(16_000);
        let (mut log, mut at) = (Log::default(), 40);
        for _ in 0..160 {
            push(&mut log, &mut at, 100, keep);
        }
        assert_eq!(log.cut(Stream::Stdout), 0);
    }
}
