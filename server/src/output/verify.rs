//! Output's part of `verify`: every checksum of every segment, the order of offsets in it, and each index against its
//! segment. One segment is in memory at a time.
//!
//! Not findings: the torn end of a segment that is not sealed (nothing of it was acknowledged; the next start cuts it
//! off), and what a crash leaves between two files (an index without its segment, a file that was being made).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::files::{Files, How, SystemFiles};
use super::index::{Entry, Sealed};
use super::log::{Extent, index_of};
use super::record::{Key, Kind};
use super::segment::{self, SEGMENT_HEADER_BYTES, Segment};
use crate::findings::Report;

/// Looks through a directory of segments. Beside a running server the segments it still writes are left out.
pub fn verify(dir: &Path, serving: bool, report: &mut Report) {
    verify_in(
        &(Arc::new(SystemFiles) as Arc<dyn Files>),
        dir,
        serving,
        report,
    );
}

/// The same, wherever the files are.
pub(super) fn verify_in(files: &Arc<dyn Files>, dir: &Path, serving: bool, report: &mut Report) {
    let numbers = match numbers_of(&**files, dir) {
        Ok(numbers) => numbers,
        // A server that has never started to the end has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return report.find("output", format_args!("{}: {error}", dir.display())),
    };
    for number in numbers {
        match verify_segment(files, dir, number, serving, report) {
            Ok(()) => {}
            // Retention of the running server has taken it.
            Err(error) if serving && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let path = segment::path_of(dir, number);
                report.find("output", format_args!("{}: {error}", path.display()));
            }
        }
    }
}

fn numbers_of(files: &dyn Files, dir: &Path) -> io::Result<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for path in files.list(dir)? {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| stem.parse::<u32>().ok());
        if path.extension().is_some_and(|ending| ending == "seg") {
            numbers.extend(number);
        }
    }
    Ok(numbers)
}

fn verify_segment(
    files: &Arc<dyn Files>,
    dir: &Path,
    number: u32,
    serving: bool,
    report: &mut Report,
) -> io::Result<()> {
    let path = segment::path_of(dir, number);
    let index_there = files
        .open(&super::index::path_of(dir, number), How::Read)
        .is_ok();
    if serving && !index_there {
        report.skip(path.display(), "the running server writes to it");
        return Ok(());
    }
    let sealed = Sealed::open(files, dir, number)?;
    if index_there && sealed.is_none() {
        report.find(
            "output_index",
            format_args!(
                "the index of {} is not what was written; the next start makes it again",
                path.display()
            ),
        );
    }
    let Some(segment) = Segment::look(&**files, dir, number)? else {
        if files.open(&path, How::Read)?.length()? > u64::from(SEGMENT_HEADER_BYTES) {
            report.find(
                "output",
                format_args!(
                    "{}: the header is not valid, its output is lost",
                    path.display()
                ),
            );
        }
        return Ok(());
    };
    let mut look = Look::default();
    let scan = segment.scan(|place, head, _, damaged| {
        look.record(place.at, head.bytes(), (head.kind, head.key), damaged);
        if let Kind::Chunk(stream) = head.kind {
            look.chunk(
                head.key,
                index_of(stream),
                head.offset,
                head.merged,
                head.data_bytes,
            );
        }
    })?;
    report.count("segments", 1);
    report.count("output_bytes", u64::from(segment.length()));
    report.count("output_records", look.records);
    for (from, to) in &scan.damage {
        report.find(
            "output",
            format_args!(
                "{}: bytes {from} to {to} are not what was written; output that lay there is lost",
                path.display()
            ),
        );
    }
    for (key, at) in &look.disorder {
        report.find_job(
            "output",
            key.job,
            format_args!(
                "{} at byte {at}: output of attempt {} is there twice, or out of order",
                path.display(),
                key.attempt
            ),
        );
    }
    let Some(sealed) = sealed else {
        return Ok(());
    };
    if scan.torn_bytes > 0 || sealed.bytes != u64::from(segment.length()) {
        report.find(
            "output",
            format_args!(
                "{}: it was sealed with {} bytes and has {}, of which {} at the end are no records",
                path.display(),
                sealed.bytes,
                segment.length(),
                scan.torn_bytes
            ),
        );
    }
    sealed.each(|entry| match entry {
        Ok(entry) if look.agrees(&entry) => {}
        Ok(entry) => report.find_job(
            "output_index",
            entry.key.job,
            format_args!(
                "the index of {} does not say of attempt {} what the segment has",
                path.display(),
                entry.key.attempt
            ),
        ),
        Err(error) => report.find("output_index", error),
    })
}

/// What is known of a segment after its scan.
#[derive(Debug, Default)]
struct Look {
    records: u64,
    /// Damage was passed: what is missing may be in it.
    damaged: bool,
    /// Where each attempt's chunks begin, and their size.
    chunks: BTreeMap<Key, Vec<(u32, u32)>>,
    ended: BTreeSet<Key>,
    purged: BTreeSet<u64>,
    /// Where each stream goes on, and both together.
    next: BTreeMap<Key, ([u64; 2], u64)>,
    disorder: Vec<(Key, u32)>,
    at: u32,
}

impl Look {
    fn record(&mut self, at: u32, bytes: u32, (kind, key): (Kind, Key), damaged: bool) {
        self.records += 1;
        self.damaged |= damaged;
        self.at = at;
        match kind {
            Kind::Chunk(_) => self.chunks.entry(key).or_default().push((at, bytes)),
            Kind::End => drop(self.ended.insert(key)),
            Kind::Purge => drop(self.purged.insert(key.job)),
            Kind::Rules | Kind::Mark => {}
        }
    }

    fn chunk(&mut self, key: Key, stream: usize, offset: u64, merged: u64, bytes: u32) {
        let known = self.next.get(&key).copied();
        let (mut next, both) = known.unwrap_or(([0, 0], merged));
        // A gap in a stream is what the worker had to drop; of both together there is none but by damage.
        if offset < next[stream] || merged < both || (merged > both && !self.damaged) {
            self.disorder.push((key, self.at));
        }
        next[stream] = offset + u64::from(bytes);
        self.next.insert(key, (next, merged + u64::from(bytes)));
    }

    /// Whether an index's entry is borne out.
    fn agrees(&self, entry: &Entry) -> bool {
        if entry.is_purge() {
            return self.purged.contains(&entry.key.job);
        }
        let none = Vec::new();
        let chunks = self.chunks.get(&entry.key).unwrap_or(&none);
        let of = |extent: &Extent| -> (u32, u32, u32) {
            let from = chunks.partition_point(|(at, _)| *at < extent.begin);
            let to = chunks.partition_point(|(at, _)| *at < extent.end);
            let inside = chunks.get(from..to).unwrap_or_default();
            let bytes = inside.iter().map(|(_, bytes)| bytes).sum();
            let begin = inside.first().map_or(0, |(at, _)| *at);
            let end = inside.last().map_or(0, |(at, bytes)| at + bytes);
            (begin, end, bytes)
        };
        let borne_out = |e: &Extent| of(e) == (e.begin, e.end, e.disk_bytes);
        entry.end.is_none_or(|_| self.ended.contains(&entry.key))
            && entry.extents.iter().all(borne_out)
    }
}
