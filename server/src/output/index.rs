//! The index of a sealed segment: a file beside it, written once, sorted by job, so that a start reads no segment that
//! is sealed and a question reads a few entries.
//!
//! ```text
//! header · ranges of job ids · entries, by key · extents
//! ```
//!
//! The header and the ranges are read at the start and stay in memory; ranges are up to [`RANGES_MAX`] stretches of ids
//! (a long-running job has one of its own), so that most segments are passed over without a look. Entries are
//! found by binary search in the file. Everything has a checksum.
//!
//! Not here: what an attempt's output is made of (`log`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hostler_wire::JobId;
use hostler_wire::frame::OutputEnd;

use super::files::{Files, How, OpenFile};
use super::log::{Extent, Rules};
use super::record::{Key, limit_from_number, limit_to_number, u32_at, u64_at};

/// Most stretches of job ids kept in memory for a segment.
const RANGES_MAX: usize = 32;
const MAGIC: &[u8; 8] = b"HOSTIDX2";
const HEADER_BYTES: usize = 56;
const ENTRY_BYTES: usize = 88;
const EXTENT_BYTES: usize = 64;
const FLAG_END: u16 = 1;
const FLAG_PURGE: u16 = 2;
const FLAG_RULES: u16 = 4;
const FLAG_STREAMED: u16 = 8;

/// What a segment has of one attempt, or the word that a job was purged (attempt 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: Key,
    pub next: [u64; 2],
    pub merged: u64,
    pub end: Option<OutputEnd>,
    pub rules: Option<Rules>,
    pub extents: Vec<Extent>,
}

impl Entry {
    pub(super) fn is_purge(&self) -> bool {
        self.key.attempt == 0
    }
}

/// A sealed segment.
#[derive(Debug)]
pub(super) struct Sealed {
    pub number: u32,
    /// When it was sealed, wall milliseconds.
    pub sealed_ms: u64,
    /// The size of its file.
    pub bytes: u64,
    /// Of these, bytes of output still wanted. What died before the last start is counted as live.
    pub live_bytes: u64,
    /// The same before anything of the active segment: what to go back to when that one is read anew.
    pub live_bytes_before: u64,
    /// Jobs that had ended well were taken out of it for its age.
    pub trimmed: bool,
    files: Arc<dyn Files>,
    path: PathBuf,
    entries: u32,
    entries_at: u64,
    /// Sorted, apart from each other, both ends included.
    ranges: Vec<(u64, u64)>,
}

impl Sealed {
    /// Writes the index durably. `entries` are sorted by key. `segment` is called when the index is on disk and before it
    /// takes its place.
    pub(super) fn write(
        (files, dir): (&Arc<dyn Files>, &Path),
        number: u32,
        entries: &[Entry],
        (sealed_ms, trimmed): (u64, bool),
        segment_bytes: u64,
        live_bytes: u64,
        segment: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<Self> {
        debug_assert!(entries.windows(2).all(|pair| pair[0].key < pair[1].key));
        let ranges = ranges_of(entries);
        let mut bytes = Vec::with_capacity(HEADER_BYTES + entries.len() * 150);
        let extents: usize = entries.iter().map(|entry| entry.extents.len()).sum();
        let count = |n: usize| u32::try_from(n).map_err(io::Error::other);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&count(entries.len())?.to_le_bytes());
        bytes.extend_from_slice(&count(extents)?.to_le_bytes());
        bytes.extend_from_slice(&count(ranges.len())?.to_le_bytes());
        bytes.extend_from_slice(&sealed_ms.to_le_bytes());
        bytes.extend_from_slice(&segment_bytes.to_le_bytes());
        bytes.extend_from_slice(&live_bytes.to_le_bytes());
        bytes.extend_from_slice(&u32::from(trimmed).to_le_bytes());
        bytes.resize(HEADER_BYTES, 0); // the last four are the checksum
        for (low, high) in &ranges {
            bytes.extend_from_slice(&low.to_le_bytes());
            bytes.extend_from_slice(&high.to_le_bytes());
        }
        let crc = head_crc(&bytes);
        bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());

        let mut first = 0;
        for entry in entries {
            write_entry(entry, first, &mut bytes);
            first += count(entry.extents.len())?;
        }
        for extent in entries.iter().flat_map(|entry| &entry.extents) {
            write_extent(extent, &mut bytes);
        }
        let path = path_of(dir, number);
        let temporary = path.with_extension("tmp");
        let written = files
            .open(&temporary, How::Over)
            .and_then(|file| file.write_all_at(&bytes, 0).and_then(|()| file.sync()))
            .and_then(|()| segment())
            .and_then(|()| files.rename(&temporary, &path))
            .and_then(|()| files.sync_dir(dir));
        if let Err(error) = written {
            drop(files.remove(&temporary));
            return Err(error);
        }
        Ok(Self {
            number,
            sealed_ms,
            bytes: segment_bytes,
            live_bytes,
            live_bytes_before: live_bytes,
            trimmed,
            files: Arc::clone(files),
            path,
            entries: count(entries.len())?,
            entries_at: (HEADER_BYTES + ranges.len() * 16) as u64,
            ranges,
        })
    }

    /// Opens an index; none if there is none, or it is not what was written: then it is made again from the segment.
    pub(super) fn open(
        files: &Arc<dyn Files>,
        dir: &Path,
        number: u32,
    ) -> io::Result<Option<Self>> {
        let path = path_of(dir, number);
        let file = match files.open(&path, How::Read) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = vec![0; HEADER_BYTES];
        let file_bytes = file.length()?;
        if file_bytes < HEADER_BYTES as u64 {
            return Ok(None);
        }
        file.read_exact_at(&mut bytes, 0)?;
        let ranges = u32_at(&bytes, 20) as usize;
        let entries_at = (HEADER_BYTES + ranges * 16) as u64;
        if ranges > RANGES_MAX || file_bytes < entries_at {
            return Ok(None);
        }
        bytes.resize(HEADER_BYTES + ranges * 16, 0);
        file.read_exact_at(&mut bytes[HEADER_BYTES..], HEADER_BYTES as u64)?;
        let (entries, extents) = (u32_at(&bytes, 12), u32_at(&bytes, 16));
        let whole = entries_at
            + u64::from(entries) * ENTRY_BYTES as u64
            + u64::from(extents) * EXTENT_BYTES as u64;
        let valid = &bytes[0..8] == MAGIC
            && u32_at(&bytes, 8) == number
            && u32_at(&bytes, HEADER_BYTES - 4) == head_crc(&bytes)
            && whole == file_bytes;
        if !valid {
            return Ok(None);
        }
        let pairs = bytes[HEADER_BYTES..].chunks_exact(16);
        Ok(Some(Self {
            number,
            sealed_ms: u64_at(&bytes, 24),
            bytes: u64_at(&bytes, 32),
            live_bytes: u64_at(&bytes, 40),
            live_bytes_before: u64_at(&bytes, 40),
            trimmed: u32_at(&bytes, 48) != 0,
            files: Arc::clone(files),
            path,
            entries,
            entries_at,
            ranges: pairs.map(|p| (u64_at(p, 0), u64_at(p, 8))).collect(),
        }))
    }

    /// Whether it may have something of a job.
    pub(super) fn may_have(&self, job: JobId) -> bool {
        let place = self.ranges.partition_point(|(_, high)| *high < job.raw());
        self.ranges
            .get(place)
            .is_some_and(|(low, _)| *low <= job.raw())
    }

    /// The highest job it has anything of.
    pub(super) fn top(&self) -> u64 {
        self.ranges.last().map_or(0, |(_, high)| *high)
    }

    /// All it has of a job, by key. An error of kind `InvalidData` names damage.
    pub(super) fn find(&self, job: JobId) -> io::Result<Vec<Entry>> {
        if !self.may_have(job) {
            return Ok(Vec::new());
        }
        let file = self.files.open(&self.path, How::Read)?;
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if u64_at(&self.entry_bytes(&*file, middle)?, 0) < job.raw() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let mut found = Vec::new();
        for place in low..self.entries {
            let bytes = self.entry_bytes(&*file, place)?;
            if u64_at(&bytes, 0) != job.raw() {
                break;
            }
            found.push(self.read_entry(&*file, &bytes)?);
        }
        Ok(found)
    }

    /// All it has, by key.
    pub(super) fn entries(&self) -> io::Result<Vec<Entry>> {
        let file = self.files.open(&self.path, How::Read)?;
        let entry = |place| self.read_entry(&*file, &self.entry_bytes(&*file, place)?);
        (0..self.entries).map(entry).collect()
    }

    /// Everything it has, entry by entry; an error is of that entry alone.
    pub(super) fn each(&self, mut entry: impl FnMut(io::Result<Entry>)) -> io::Result<()> {
        let file = self.files.open(&self.path, How::Read)?;
        for place in 0..self.entries {
            let bytes = self.entry_bytes(&*file, place);
            entry(bytes.and_then(|bytes| self.read_entry(&*file, &bytes)));
        }
        Ok(())
    }

    fn entry_bytes(&self, file: &dyn OpenFile, place: u32) -> io::Result<[u8; ENTRY_BYTES]> {
        let mut bytes = [0; ENTRY_BYTES];
        let at = self.entries_at + u64::from(place) * ENTRY_BYTES as u64;
        file.read_exact_at(&mut bytes, at)?;
        if u32_at(&bytes, ENTRY_BYTES - 4) == crc32fast::hash(&bytes[..ENTRY_BYTES - 4]) {
            Ok(bytes)
        } else {
            Err(self.damaged(at))
        }
    }

    fn read_entry(&self, file: &dyn OpenFile, bytes: &[u8; ENTRY_BYTES]) -> io::Result<Entry> {
        let key = Key {
            job: u64_at(bytes, 0),
            epoch: u32_at(bytes, 8),
            attempt: u16::from_le_bytes([bytes[12], bytes[13]]),
        };
        let flags = u16::from_le_bytes([bytes[14], bytes[15]]);
        let end = key.fence().filter(|_| flags & FLAG_END != 0);
        let (first, count) = (u32_at(bytes, 72), u32_at(bytes, 76));
        let at = self.entries_at
            + u64::from(self.entries) * ENTRY_BYTES as u64
            + u64::from(first) * EXTENT_BYTES as u64;
        let mut extents = vec![0; count as usize * EXTENT_BYTES];
        file.read_exact_at(&mut extents, at)?;
        if u32_at(bytes, 80) != crc32fast::hash(&extents) {
            return Err(self.damaged(at));
        }
        Ok(Entry {
            key,
            next: [u64_at(bytes, 16), u64_at(bytes, 24)],
            merged: u64_at(bytes, 32),
            end: end.map(|fence| OutputEnd {
                fence,
                stdout_bytes: u64_at(bytes, 40),
                stderr_bytes: u64_at(bytes, 48),
                dropped_bytes: u64_at(bytes, 56),
            }),
            rules: (flags & FLAG_RULES != 0).then(|| Rules {
                limit_bytes: limit_from_number(u64_at(bytes, 64)),
                streamed: flags & FLAG_STREAMED != 0,
            }),
            extents: extents
                .chunks_exact(EXTENT_BYTES)
                .map(|bytes| read_extent(self.number, bytes))
                .collect(),
        })
    }

    fn damaged(&self, at: u64) -> io::Error {
        let path = self.path.display();
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} at byte {at}: a checksum does not fit"),
        )
    }
}

/// The file of an index.
pub(super) fn path_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}.idx"))
}

fn write_entry(entry: &Entry, first: u32, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let end = entry.end;
    let flag = |is: bool, flag: u16| if is { flag } else { 0 };
    let rules = entry.rules;
    let flags = flag(end.is_some(), FLAG_END)
        | flag(entry.is_purge(), FLAG_PURGE)
        | flag(rules.is_some(), FLAG_RULES)
        | flag(rules.is_some_and(|rules| rules.streamed), FLAG_STREAMED);
    let limit = rules.map_or(0, |rules| limit_to_number(rules.limit_bytes));
    bytes.extend_from_slice(&entry.key.job.to_le_bytes());
    bytes.extend_from_slice(&entry.key.epoch.to_le_bytes());
    bytes.extend_from_slice(&entry.key.attempt.to_le_bytes());
    bytes.extend_from_slice(&flags.to_le_bytes());
    let totals = end.map_or([0; 3], |end| {
        [end.stdout_bytes, end.stderr_bytes, end.dropped_bytes]
    });
    let numbers = entry.next.iter().chain([&entry.merged]).chain(&totals);
    for number in numbers.chain([&limit]) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let mut extents = Vec::with_capacity(entry.extents.len() * EXTENT_BYTES);
    entry
        .extents
        .iter()
        .for_each(|extent| write_extent(extent, &mut extents));
    let count = u32::try_from(entry.extents.len()).expect("bounded by EXTENTS_MAX");
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&count.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&extents).to_le_bytes());
    let crc = crc32fast::hash(&bytes[start..]);
    bytes.extend_from_slice(&crc.to_le_bytes());
    debug_assert_eq!(bytes.len() - start, ENTRY_BYTES);
}

fn write_extent(extent: &Extent, bytes: &mut Vec<u8>) {
    for number in [
        extent.begin,
        extent.end,
        extent.disk_bytes,
        u32::from(extent.after_damage),
    ] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for number in extent
        .from
        .iter()
        .chain(&extent.to)
        .chain([&extent.merged, &0])
    {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
}

fn read_extent(segment: u32, bytes: &[u8]) -> Extent {
    Extent {
        segment,
        begin: u32_at(bytes, 0),
        end: u32_at(bytes, 4),
        disk_bytes: u32_at(bytes, 8),
        after_damage: u32_at(bytes, 12) != 0,
        from: [u64_at(bytes, 16), u64_at(bytes, 24)],
        to: [u64_at(bytes, 32), u64_at(bytes, 40)],
        merged: u64_at(bytes, 48),
    }
}

/// The checksum of header and ranges, but for itself.
fn head_crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..HEADER_BYTES - 4]);
    hasher.update(&bytes[HEADER_BYTES..]);
    hasher.finalize()
}

/// Few stretches that cover all jobs: split at the widest gaps.
fn ranges_of(entries: &[Entry]) -> Vec<(u64, u64)> {
    let jobs = entries.iter().map(|entry| entry.key.job);
    let mut gaps: Vec<(u64, usize)> = jobs
        .clone()
        .zip(jobs.clone().skip(1))
        .enumerate()
        .map(|(i, (a, b))| (b - a, i + 1))
        .filter(|(gap, _)| *gap > 1)
        .collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    gaps.truncate(RANGES_MAX - 1);
    let mut starts: Vec<usize> = gaps.into_iter().map(|(_, start)| start).collect();
    starts.sort_unstable();
    if !entries.is_empty() {
        starts.insert(0, 0);
    }
    let ends = starts.iter().skip(1).copied().chain([entries.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(start, end)| (entries[*start].key.job, entries[end - 1].key.job))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::files::SystemFiles;

    fn entry(job: u64) -> Entry {
        let key = Key {
            job,
            epoch: 1,
            attempt: 1,
        };
        Entry {
            key,
            next: [job, 0],
            merged: job,
            end: Some(OutputEnd {
                fence: key.fence().unwrap(),
                stdout_bytes: job,
                stderr_bytes: 0,
                dropped_bytes: 0,
            }),
            rules: job.is_multiple_of(2).then_some(Rules {
                limit_bytes: job.is_multiple_of(4).then_some(job),
                streamed: job.is_multiple_of(8),
            }),
            extents: vec![Extent {
                segment: 1,
                begin: 40,
                end: 99,
                disk_bytes: 59,
                after_damage: false,
                from: [0, 0],
                to: [job, 0],
                merged: 0,
            }],
        }
    }

    #[test]
    fn every_entry_is_found_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let jobs: Vec<u64> = (1..200).map(|n| n * n).collect();
        let entries: Vec<Entry> = jobs.iter().map(|job| entry(*job)).collect();
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        let there = (&files, dir.path());
        Sealed::write(there, 1, &entries, (5, true), 1_000, 900, || Ok(())).unwrap();
        let sealed = Sealed::open(&files, dir.path(), 1).unwrap().unwrap();
        for job in 1..40_000 {
            let found = sealed.find(JobId::new(job).unwrap()).unwrap();
            let expected = if jobs.contains(&job) {
                vec![entry(job)]
            } else {
                vec![]
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_flipped_bit_is_named_or_the_index_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let files: Arc<dyn Files> = Arc::new(SystemFiles);
        Sealed::write(
            (&files, dir.path()),
            1,
            &[entry(3), entry(9)],
            (5, false),
            1_000,
            900,
            || Ok(()),
        )
        .unwrap();
        let path = path_of(dir.path(), 1);
        let good = std::fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            if let Some(sealed) = Sealed::open(&files, dir.path(), 1).unwrap() {
                let found = [3, 9].map(|job| sealed.find(JobId::new(job).unwrap()));
                assert!(found.iter().any(Result::is_err), "bit {bit}");
            }
        }
    }
}
