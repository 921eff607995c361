//! Rewriting a sealed segment: what is wanted of it goes to a new file, which takes its place.
//!
//! A segment goes as a whole when nothing in it is wanted. One line that is wanted would keep sixty-four mebibytes of a
//! flood's dropped middle, and one failure the output of all the successes round it: so a segment of which little is
//! wanted is rewritten, and so is one whose successes have had their time. Number and age stay, places do not.
//!
//! The new segment and the new index are on disk before either takes its place; an index that does not fit the length of
//! its segment (a crash between the two) is made again at the next start.
//!
//! Not here: when (`thread`), which jobs have had their time (the store's history).

use std::collections::BTreeSet;
use std::io;

use hostler_wire::JobId;

use super::{Segments, live_bytes_of};
use crate::output::Retired;
use crate::output::files::{How, OpenFile};
use crate::output::index::{Entry, Sealed};
use crate::output::log::{Extent, Log};
use crate::output::record::{Head, Kind, Place, end_to_bytes, rules_to_bytes};
use crate::output::segment::{self, Rewrite};

/// Segments are rewritten when no more than one byte in so many is wanted.
const DEAD_SHARE: u64 = 4;

impl Segments {
    /// Rewrites a segment of which little is wanted, if there is one; says how much that was.
    pub(in crate::output) fn compact_one(&mut self) -> io::Result<Option<u64>> {
        let mostly_dead = |sealed: &Sealed| {
            // A small one is not worth it.
            sealed.bytes >= self.options.segment_bytes / 8
                && sealed.live_bytes <= sealed.bytes / DEAD_SHARE
        };
        let Some(place) = self.sealed.iter().position(mostly_dead) else {
            return Ok(None);
        };
        let (number, live_bytes) = (self.sealed[place].number, self.sealed[place].live_bytes);
        let done = self.rewrite(place, &BTreeSet::new(), false);
        if done
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::InvalidData)
            && let Some(sealed) = self.sealed.iter_mut().find(|it| it.number == number)
        {
            sealed.live_bytes = sealed.bytes; // not again until the next start
        }
        done.map(|_freed| Some(live_bytes))
    }

    /// The oldest segment from which jobs that ended well are to go, and why: its age, or because there is too much.
    pub(in crate::output) fn overdue(&self, now_ms: u64) -> Option<(u32, Retired)> {
        let keep_ms = u64::try_from(self.options.keep.as_millis()).unwrap_or(u64::MAX);
        let too_much = self.sealed_bytes() > self.options.total_bytes_max;
        let oldest = self.sealed.iter().find(|sealed| !sealed.trimmed)?;
        let is_old = now_ms.saturating_sub(oldest.sealed_ms) >= keep_ms;
        let why = match (is_old, too_much) {
            (true, _) => Retired::Kept,
            (false, true) => Retired::Total,
            (false, false) => return None,
        };
        Some((oldest.number, why))
    }

    /// Whose output a segment has.
    pub(in crate::output) fn jobs_of(&self, number: u32) -> io::Result<Vec<JobId>> {
        let Some(sealed) = self.sealed.iter().find(|it| it.number == number) else {
            return Ok(Vec::new());
        };
        let entries = sealed.entries()?;
        let wanted = entries.iter().filter(|entry| !entry.is_purge());
        let mut jobs: Vec<JobId> = wanted
            .filter_map(|entry| JobId::new(entry.key.job))
            .collect();
        jobs.dedup();
        Ok(jobs)
    }

    /// Takes these jobs' output out of a segment, for good; says how much less there is on disk.
    pub(in crate::output) fn trim(
        &mut self,
        number: u32,
        unwanted: &BTreeSet<u64>,
    ) -> io::Result<u64> {
        let Some(place) = self.sealed.iter().position(|it| it.number == number) else {
            return Ok(0); // it is gone meanwhile
        };
        // If nothing is to go, or if it fails, the next start asks again.
        self.sealed[place].trimmed = true;
        if unwanted.is_empty() {
            return Ok(0);
        }
        self.rewrite(place, unwanted, true)
    }

    fn rewrite(
        &mut self,
        place: usize,
        unwanted: &BTreeSet<u64>,
        trimmed: bool,
    ) -> io::Result<u64> {
        let (files, dir) = (self.options.files.clone(), self.options.dir.clone());
        let sealed = &self.sealed[place];
        let (number, sealed_ms, before) = (sealed.number, sealed.sealed_ms, sealed.bytes);
        let trimmed = trimmed || sealed.trimmed;
        let source = Source {
            file: files.open(&segment::path_of(&dir, number), How::Read)?,
            number,
        };
        let created_ms = segment::created_ms(&*files, &dir, number).unwrap_or(sealed_ms);
        let mut target = Rewrite::create(&files, &dir, number, created_ms)?;
        let (mut kept, mut damage) = (Vec::new(), Vec::new());
        for entry in sealed.entries()? {
            if unwanted.contains(&entry.key.job) {
                continue;
            }
            let Some(extents) = self.wanted_of(place, &entry)? else {
                continue;
            };
            if extents.is_empty() && entry.end.is_none() && !entry.is_purge() {
                continue;
            }
            kept.push(self.copy(&source, &entry, &extents, &mut target, &mut damage)?);
        }
        if kept.is_empty() {
            drop(target); // removes what it wrote
            self.delete(place)?;
            return Ok(before);
        }
        let bytes = target.complete()?;
        let fresh = Sealed::write(
            (&files, &dir),
            number,
            &kept,
            (sealed_ms, trimmed),
            bytes,
            live_bytes_of(&kept),
            || target.take_place(),
        )?;
        tracing::debug!(
            segment = number,
            before,
            after = bytes,
            "rewrote an output segment"
        );
        self.sealed[place] = fresh;
        for (key, log) in &mut self.logs {
            let found = kept.binary_search_by_key(key, |entry| entry.key);
            log.replace_segment(number, found.map_or(&[], |at| &kept[at].extents));
        }
        damage.into_iter().for_each(|what| self.note_damage(what));
        Ok(before.saturating_sub(bytes))
    }

    /// Bytes of a segment that are still wanted, by all that is known of each attempt in it.
    pub(super) fn wanted_bytes(&self, place: usize) -> io::Result<u64> {
        let mut wanted = Vec::new();
        for entry in self.sealed[place].entries()? {
            if let Some(extents) = self.wanted_of(place, &entry)? {
                wanted.push(Entry { extents, ..entry });
            }
        }
        Ok(live_bytes_of(&wanted))
    }

    /// What is still wanted of an entry's extents; none if the job was purged.
    fn wanted_of(&self, place: usize, entry: &Entry) -> io::Result<Option<Vec<Extent>>> {
        if entry.is_purge() {
            return Ok(Some(Vec::new()));
        }
        let number = self.sealed[place].number;
        let job = JobId::new(entry.key.job).ok_or(io::ErrorKind::InvalidData)?;
        let of_here = |log: &Log| {
            let extents = log.extents.iter().filter(|it| it.segment == number);
            extents.copied().collect()
        };
        if self.purged.contains(&entry.key.job) {
            return Ok(None);
        }
        if let Some(log) = self.logs.get(&entry.key) {
            return Ok(Some(of_here(log)));
        }
        let mut others = self.sealed.iter().filter(|it| it.number != number);
        let data: u64 = entry.extents.iter().map(Extent::data_bytes).sum();
        // Most are whole here, and nothing elsewhere says otherwise.
        let is_whole = entry.end.is_some()
            && data == entry.merged
            && entry.rules.is_none_or(|rules| !rules.streamed)
            && !others.any(|it| it.may_have(job));
        if is_whole {
            return Ok(Some(entry.extents.clone()));
        }
        let logs = self
            .sealed_logs(job)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(logs.map(|logs| logs.get(&entry.key).map_or_else(Vec::new, of_here)))
    }

    /// Copies what is wanted of an entry. What is damaged is left out, and named.
    fn copy(
        &self,
        source: &Source,
        entry: &Entry,
        extents: &[Extent],
        target: &mut Rewrite,
        damage: &mut Vec<String>,
    ) -> io::Result<Entry> {
        let key = entry.key;
        let new = |kind| Head::new(kind, key, 0, 0, 0);
        if entry.is_purge() {
            target.push(new(Kind::Purge), &[])?;
        }
        if let Some(rules) = entry.rules {
            target.push(new(Kind::Rules), &rules_to_bytes(rules))?;
        }
        let keep = self.keep.under(entry.rules);
        let mut log = Log::default();
        let mut after_damage = false;
        for extent in extents {
            after_damage |= extent.after_damage;
            let mut bytes = vec![0; (extent.end - extent.begin) as usize];
            source
                .file
                .read_exact_at(&mut bytes, u64::from(extent.begin))?;
            let mut at = 0;
            while at < bytes.len() {
                let place = Place {
                    segment: source.number,
                    at: extent.begin + u32::try_from(at).map_err(io::Error::other)?,
                };
                let bad = format!("output of job {} at byte {}", key.job, place.at);
                let Some(head) = Head::read(place, &bytes[at..]) else {
                    damage.push(bad);
                    after_damage = true;
                    break;
                };
                let record = &bytes[at..];
                at += head.bytes() as usize;
                let Kind::Chunk(stream) = head.kind else {
                    continue;
                };
                if head.key != key {
                    continue;
                }
                let Some(data) = head.data(record) else {
                    damage.push(bad);
                    after_damage = true;
                    continue;
                };
                let copied = Head::new(head.kind, key, head.offset, head.merged, head.at_ms);
                let (place, head) = target.push(copied, data)?;
                let after_damage = std::mem::take(&mut after_damage);
                log.push((place, &head, stream), after_damage, keep, &mut Vec::new());
            }
        }
        if let Some(end) = &entry.end {
            target.push(new(Kind::End), &end_to_bytes(end))?;
        }
        Ok(Entry {
            extents: log.extents,
            ..entry.clone()
        })
    }
}

/// The segment as it was.
struct Source {
    file: Box<dyn OpenFile>,
    number: u32,
}
