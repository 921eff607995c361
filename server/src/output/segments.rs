//! The store of output: one segment that is written to, the sealed ones before it, and what of them is wanted.
//!
//! Pieces go to a batch in memory, [`Segments::commit`] appends and syncs it. Attempts that have something in the
//! segment being written are known in memory; of older ones the indexes know. A full segment is sealed: it gets its
//! index, and ended or idle attempts are forgotten here. A sealed segment goes as a whole, when all in it is dead
//! (purged, or the cut middle of too long an output), or when it is too old, or when there is too much. When most of it is
//! dead, or its jobs that ended well have had their time, it is rewritten (`compact`).
//!
//! This is the seam of output storage: another kind of it has the same functions. Which kind keeps an attempt's output
//! is a number stored with the attempt ([`super::LOCAL_SEGMENTS`] for this one).
//!
//! What an attempt's job asked for its output stands with it in each segment. A streamed attempt that has ended has
//! nothing left but for a short time for its followers, and none after a start: so its going need not be stored.
//!
//! Keeps: what was acknowledged has been synced; nothing is stored twice or out of order; damage is named, never
//! served. What died in a segment before the last start is not remembered as dead: its space comes back by age.
//!
//! Not here: pages (`page`), pipes and readers (`thread`).

mod compact;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::BytesMut;
use hostler_engine::Span;
use hostler_wire::frame::{Chunk, OutputAck, OutputEnd, OutputStart};
use hostler_wire::{Fence, JobId, mutation};

use super::files::{How, OpenFile};
use super::index::{self, Entry, Sealed};
use super::log::{Extent, Keep, Log, Rules, index_of};
use super::record::{
    END_BYTES, HEADER_BYTES, Head, Key, Kind, Place, end_from_bytes, end_to_bytes,
    rules_from_bytes, rules_to_bytes,
};
use super::segment::{self, SEGMENT_HEADER_BYTES, Segment};
use super::{AttemptOutput, LIMIT_BYTES_MIN, Options, Page, Read, ReadError, Retired, page};

/// Most attempts in one segment: what is known of them in memory until it is sealed.
const SEGMENT_ATTEMPTS_MAX: usize = 16_384;

/// What was cut of attempts that were too long: by us, or by workers that had no room.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    pub(super) bytes: u64,
    /// Those of which nothing had been cut before.
    pub(super) attempts: u64,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Segments {
    options: Options,
    keep: Keep,
    sealed: Vec<Sealed>,
    /// No sealed segment has anything of a job above this: new jobs are not looked for in any.
    sealed_top: u64,
    active: Segment,
    batch: BytesMut,
    /// Complete: an attempt that is here is here with all its extents.
    logs: BTreeMap<Key, Log>,
    /// Jobs purged by a record of the active segment.
    purged: BTreeSet<u64>,
    /// Streamed attempts that have ended and are still there for their followers. Others of that kind have nothing.
    lingering: BTreeSet<Key>,
    /// Attempts in the active segment, at most.
    attempts: usize,
    /// Cut by what is in the batch.
    cut: Cut,
    /// A write failed and what it left could not be cut off yet.
    broken: bool,
    /// Damage found, in words; for health and the trace.
    damage: Vec<String>,
}

impl Segments {
    /// Opens or makes the store; reads what is not sealed.
    pub(super) fn open(options: Options, now_ms: u64) -> io::Result<Self> {
        if options.output_bytes_max < LIMIT_BYTES_MIN {
            return Err(io::Error::other(format!(
                "output_bytes_max is {}, the least is {}",
                options.output_bytes_max, LIMIT_BYTES_MIN
            )));
        }
        options.files.make_dir(&options.dir)?;
        let (numbers, indexes) = files_of(&options)?;
        let next = numbers.iter().chain(&indexes).max().map_or(1, |n| n + 1);
        for orphan in indexes.difference(&numbers) {
            options
                .files
                .remove(&index::path_of(&options.dir, *orphan))?;
        }
        // A placeholder until the last segment is known; removed if that one can be written on.
        let active = Segment::create(&*options.files, &options.dir, next, now_ms)?;
        let mut this = Self {
            keep: Keep::new(options.output_bytes_max),
            sealed: Vec::new(),
            sealed_top: 0,
            active,
            batch: BytesMut::new(),
            logs: BTreeMap::new(),
            purged: BTreeSet::new(),
            lingering: BTreeSet::new(),
            attempts: 0,
            cut: Cut::default(),
            broken: false,
            damage: Vec::new(),
            options,
        };
        for number in &numbers {
            this.load(*number, numbers.last() == Some(number), now_ms)?;
        }
        this.drop_over();
        Ok(this)
    }

    fn load(&mut self, number: u32, last: bool, now_ms: u64) -> io::Result<()> {
        let path = segment::path_of(&self.options.dir, number);
        // An index of another length is of the segment before it was rewritten.
        let bytes = self.options.files.open(&path, How::Read)?.length()?;
        let sealed = Sealed::open(&self.options.files, &self.options.dir, number)?;
        if let Some(sealed) = sealed.filter(|sealed| sealed.bytes == bytes) {
            self.sealed_top = self.sealed_top.max(sealed.top());
            self.sealed.push(sealed);
            return Ok(());
        }
        let Some(mut segment) = Segment::open(&*self.options.files, &self.options.dir, number)?
        else {
            if bytes <= u64::from(SEGMENT_HEADER_BYTES) {
                return self.options.files.remove(&path); // its making was cut short: it held nothing
            }
            self.note_damage(format!("{}: the header is not valid", path.display()));
            return Ok(());
        };
        let clean = self.replay(&mut segment)?;
        let fresh = std::mem::replace(&mut self.active, segment);
        if last && clean {
            let path = segment::path_of(&self.options.dir, fresh.number);
            self.options.files.remove(&path)?;
            return self.options.files.sync_dir(&self.options.dir);
        }
        let created = segment::created_ms(&*self.options.files, &self.options.dir, number);
        self.seal(fresh, created.unwrap_or(now_ms).max(1))
    }

    /// Reads a segment that is not sealed; cuts its torn end. Says whether it may be written on.
    fn replay(&mut self, segment: &mut Segment) -> io::Result<bool> {
        let scan = segment.scan(|place, head, data, damaged| {
            self.replay_record(place, head, data, damaged);
        })?;
        let path = segment::path_of(&self.options.dir, segment.number);
        if scan.torn_bytes > 0 {
            tracing::warn!(
                segment = %path.display(), at = scan.good, bytes = scan.torn_bytes,
                "cut off the unsynced end of the output"
            );
            segment.truncate(scan.good)?;
        }
        segment.settle(scan.mark)?;
        for (from, to) in &scan.damage {
            let path = path.display();
            self.note_damage(format!(
                "{path}: bytes {from} to {to} are not what was written"
            ));
        }
        Ok(scan.damage.is_empty())
    }

    fn replay_record(&mut self, place: Place, head: &Head, data: &[u8], damaged: bool) {
        match head.kind {
            Kind::Mark => {}
            Kind::Purge => {
                if let Some(job) = JobId::new(head.key.job) {
                    self.forget(job);
                    self.purged.insert(head.key.job);
                }
            }
            Kind::Chunk(stream) => {
                let Some(log) = self.log_mut(head.key) else {
                    return;
                };
                // Bytes of this attempt were in the damaged stretch if its own count has a hole.
                let hole = damaged && head.merged > log.merged;
                let mut dropped = Vec::new();
                self.with_log(head.key, |log, keep| {
                    log.push((place, head, stream), hole, keep, &mut dropped);
                });
                self.bury(&dropped);
            }
            Kind::Rules => {
                if let Some(rules) = rules_from_bytes(data)
                    && let Some(log) = self.log_mut(head.key)
                {
                    log.rules_in = place.segment;
                    self.set_rules(head.key, rules, place.segment);
                }
            }
            Kind::End => {
                if let Some(end) = end_from_bytes(head.key, data) {
                    self.log_mut(head.key);
                    self.with_log(head.key, |log, _| {
                        log.end = Some((place.segment, end));
                        log.touched = place.segment;
                    });
                }
            }
        }
    }

    /// Takes in what an attempt's output is to become. What was said first holds.
    pub(super) fn start(&mut self, start: &OutputStart) {
        let key = Key::from(start.fence);
        if let Some(rules) = Rules::of(start.logs, self.keep)
            && let Some(log) = self.log_mut(key)
            && log.rules.is_none()
        {
            self.set_rules(key, rules, self.active.number);
        }
    }

    /// Takes in a piece. What is there already is skipped; a gap is what the worker had to drop, and counts as cut.
    pub(super) fn append(&mut self, chunk: &Chunk) {
        let mut key = Key::from(chunk.fence);
        if mutation::is("output of attempts not told apart") {
            key.attempt = 1;
        }
        let s = index_of(chunk.stream);
        let Some(log) = self.log_mut(key) else {
            return; // purged: nobody wants it
        };
        if log.end.is_some() {
            return;
        }
        let cut_before = log.cut_bytes();
        let skip = log.next[s].saturating_sub(chunk.offset);
        let skip = if mutation::is("repeated output stored twice") {
            0
        } else {
            usize::try_from(skip).unwrap_or(usize::MAX)
        };
        let Some(data) = chunk.data.get(skip..).filter(|data| !data.is_empty()) else {
            return;
        };
        let (mut offset, mut merged) = (chunk.offset + skip as u64, log.merged);
        let rules = log.rules;
        self.write_rules(key);
        let mut dropped = Vec::new();
        for piece in data.chunks(self.keep.under(rules).record_bytes_max()) {
            let kind = Kind::Chunk(chunk.stream);
            let place = self.begin_record();
            let head = Head::new(kind, key, offset, merged, chunk.at_ms);
            let at = self.batch.len();
            head.write(place, piece, &mut self.batch);
            let head = Head::read(place, &self.batch[at..]).expect("just written");
            self.with_log(key, |log, keep| {
                log.push((place, &head, chunk.stream), false, keep, &mut dropped);
            });
            offset += piece.len() as u64;
            merged += piece.len() as u64;
        }
        self.bury(&dropped);
        self.count_cut(key, cut_before);
    }

    /// Takes in an end.
    pub(super) fn end(&mut self, end: &OutputEnd) {
        let key = Key::from(end.fence);
        let Some(log) = self.log_mut(key).filter(|log| log.end.is_none()) else {
            return;
        };
        let cut_before = log.cut_bytes();
        self.write_rules(key);
        let place = self.begin_record();
        let head = Head::new(Kind::End, key, 0, 0, 0);
        head.write(place, &end_to_bytes(end), &mut self.batch);
        self.with_log(key, |log, _| {
            log.end = Some((place.segment, *end));
            log.touched = place.segment;
        });
        self.count_cut(key, cut_before);
        if self.logs.get(&key).is_some_and(Log::is_over) {
            self.lingering.insert(key);
        }
    }

    /// Whether an attempt's output is over and waits for [`Segments::let_go`].
    pub(super) fn lingers(&self, fence: Fence) -> bool {
        self.lingering.contains(&fence.into())
    }

    /// How long that waits.
    pub(super) fn linger(&self) -> Span {
        Span::from_millis(u64::try_from(self.options.linger.as_millis()).unwrap_or(u64::MAX))
    }

    /// The followers of a streamed attempt that has ended have had their time: nothing of it is kept.
    pub(super) fn let_go(&mut self, fence: Fence) {
        let key = Key::from(fence);
        let over = self.log(key).map(Cow::into_owned);
        if self.lingering.remove(&key)
            && let Some(mut over) = over.filter(Log::is_over)
        {
            // In a sealed segment it is dead from now on; in the active one it will not be in the index.
            self.with_log(key, |log, _| drop(log.drop_all()));
            self.bury(&over.drop_all());
            self.delete_dead();
        }
    }

    /// Marks a job's output as gone, whatever comes later.
    pub(super) fn purge(&mut self, job: JobId) {
        if self.is_purged(job) {
            return;
        }
        let place = self.begin_record();
        let head = Head::new(Kind::Purge, Key::first_of(job), 0, 0, 0);
        head.write(place, &[], &mut self.batch);
        self.attempts += 1;
        self.forget(job);
        self.purged.insert(job.raw());
    }

    /// Bytes waiting for the commit.
    pub(super) fn batch_bytes(&self) -> usize {
        self.batch.len()
    }

    /// What was cut since this was asked. To be asked after a commit: what is not stored comes again.
    pub(super) fn take_cut(&mut self) -> Cut {
        std::mem::take(&mut self.cut)
    }

    /// Something of an attempt was taken in, of which so much had been cut before.
    fn count_cut(&mut self, key: Key, before: u64) {
        let now = self.logs.get(&key).map_or(before, Log::cut_bytes);
        self.cut.bytes += now.saturating_sub(before);
        self.cut.attempts += u64::from(before == 0 && now > 0);
    }

    /// Puts the batch on disk. After an error nothing of it is stored, and nothing of it may be acknowledged.
    pub(super) fn commit(&mut self, now_ms: u64) -> io::Result<()> {
        if self.broken {
            self.recover()?;
        }
        if self.overgrown() && !self.batch.is_empty() {
            // Sealing it has failed for long: nothing more goes in, the batch's places are no longer good.
            self.broken = true;
            self.recover()?;
            self.roll(now_ms)?;
            return Err(io::Error::other("the output segment could not be sealed"));
        }
        if !self.batch.is_empty() {
            let batch = std::mem::take(&mut self.batch);
            if let Err(error) = self.active.commit(&batch) {
                self.broken = true;
                if let Err(again) = self.recover() {
                    tracing::error!(error = %again, "what a failed write left could not be cut off yet");
                }
                return Err(error);
            }
        }
        let number = self.active.number;
        let many = self.attempts >= SEGMENT_ATTEMPTS_MAX;
        if self.active.length() > SEGMENT_HEADER_BYTES
            && (many || u64::from(self.active.length()) >= self.options.segment_bytes)
        {
            self.roll(now_ms)?;
        } else if many {
            self.logs.retain(|_, log| log.touched == number); // repeats of what is long stored
            self.attempts = self.logs.len();
        }
        self.delete_dead();
        Ok(())
    }

    /// Nothing may be taken in until [`Segments::recover`] has succeeded.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether the disk takes something again, asked while nobody sends any output that would show it.
    pub(super) fn try_space(&self, bytes: usize) -> io::Result<()> {
        segment::try_space(&*self.options.files, &self.options.dir, bytes)
    }

    fn overgrown(&self) -> bool {
        u64::from(self.active.length()) >= 2 * self.options.segment_bytes
    }

    /// Cuts off what a failed commit left, and reads anew what is really there.
    pub(super) fn recover(&mut self) -> io::Result<()> {
        self.batch.clear();
        self.cut = Cut::default();
        if !self.broken {
            return Ok(());
        }
        self.active.rewind()?;
        // What was said of attempts that have printed nothing stands nowhere else.
        let said = self
            .logs
            .iter()
            .filter_map(|(k, log)| Some((*k, log.rules?)));
        let said: Vec<(Key, Rules)> = said.collect();
        self.logs.clear();
        self.purged.clear();
        self.attempts = 0;
        // What the active segment made of them is counted again.
        for sealed in &mut self.sealed {
            sealed.live_bytes = sealed.live_bytes_before;
        }
        let number = self.active.number;
        let mut segment = Segment::open(&*self.options.files, &self.options.dir, number)?
            .ok_or_else(|| io::Error::other("the segment's header is not valid"))?;
        self.replay(&mut segment)?;
        self.active = segment;
        for (key, rules) in said {
            if self.log_mut(key).is_some_and(|log| log.rules.is_none()) {
                self.set_rules(key, rules, number);
            }
        }
        self.drop_over();
        self.broken = false;
        Ok(())
    }

    /// Leaves a mark that all is on disk: what is damaged after this is known to be damage.
    pub(super) fn close(&mut self, now_ms: u64) -> io::Result<()> {
        if self.active.length() > SEGMENT_HEADER_BYTES && self.batch.is_empty() && !self.broken {
            self.active.write_mark(&mut self.batch);
        }
        self.commit(now_ms)
    }

    /// How far an attempt's output is stored. To be told to the worker after the commit only.
    pub(super) fn ack(&self, fence: Fence) -> OutputAck {
        let log = self.log(fence.into());
        let end = log.as_ref().and_then(|log| log.end);
        let next = log.as_ref().map_or([0, 0], |log| log.next);
        OutputAck {
            fence,
            stdout_through: next[0].max(end.map_or(0, |(_, end)| end.stdout_bytes)),
            stderr_through: next[1].max(end.map_or(0, |(_, end)| end.stderr_bytes)),
            ended: end.is_some(),
        }
    }

    /// Whether a job's output was purged.
    pub(super) fn is_purged(&self, job: JobId) -> bool {
        self.purged.contains(&job.raw())
            || self.sealed_for(job).any(|sealed| {
                let found = sealed.find(job);
                found.is_ok_and(|found| found.iter().any(Entry::is_purge))
            })
    }

    /// A page of output.
    pub(super) fn read(&self, read: &Read) -> Result<Page, ReadError> {
        let logs = self.logs_of(read.job)?;
        let wanted = logs
            .iter()
            .filter(|(key, _)| read.attempt.is_none_or(|attempt| key.attempt == attempt))
            .max_by_key(|(key, _)| (key.epoch, key.attempt));
        let Some((key, log)) = wanted else {
            return Ok(Page {
                next: read.from,
                ..Page::default()
            });
        };
        let mut log = Cow::Borrowed(&**log);
        if mutation::is("newest output not shown") && log.end.is_none() {
            log.to_mut().extents.pop();
        }
        page::read(*key, &log, read, |number| self.file_of(number))
    }

    /// Which attempts of a job have output.
    pub(super) fn attempts(&self, job: JobId) -> Result<Vec<AttemptOutput>, ReadError> {
        let logs = self.logs_of(job)?;
        Ok(logs
            .iter()
            .filter_map(|(key, log)| {
                let fence = key.fence()?;
                Some(AttemptOutput {
                    attempt: fence.attempt.raw(),
                    epoch: fence.epoch,
                    stdout_bytes: log.next[0],
                    stderr_bytes: log.next[1],
                    ended: log.end.is_some(),
                })
            })
            .collect())
    }

    fn sealed_bytes(&self) -> u64 {
        self.sealed.iter().map(|sealed| sealed.bytes).sum()
    }

    /// Deletes the oldest segment if it is too old, or if there is too much; says why, and how much that was. Jobs that
    /// ended well have gone from it before, unless output comes faster than that.
    pub(super) fn retire_one(&mut self, now_ms: u64) -> io::Result<Option<(Retired, u64)>> {
        let total = self.sealed_bytes();
        let most = self.options.total_bytes_max;
        let trimmed = self.sealed.iter().all(|sealed| sealed.trimmed);
        let too_much = total > most && (trimmed || total > most.saturating_add(most / 16));
        let keep_ms = u64::try_from(self.options.keep_failed.as_millis()).unwrap_or(u64::MAX);
        let open = |number| {
            let mut open = self.logs.values().filter(|log| log.end.is_none());
            open.any(|log| log.extents.iter().any(|extent| extent.segment == number))
        };
        let Some(oldest) = self
            .sealed
            .iter()
            .position(|sealed| too_much || !open(sealed.number))
        else {
            return Ok(None);
        };
        let sealed = &self.sealed[oldest];
        let bytes = sealed.bytes;
        let is_old = now_ms.saturating_sub(sealed.sealed_ms) >= keep_ms;
        let why = match (is_old, too_much) {
            (true, _) => Retired::KeptFailed,
            (false, true) => Retired::Total,
            (false, false) => return Ok(None),
        };
        if why == Retired::Total {
            tracing::warn!(
                segment = sealed.number,
                stored_bytes = total,
                limit = self.options.total_bytes_max,
                "output is above its limit: the oldest goes before its time"
            );
        }
        self.delete(oldest)?;
        Ok(Some((why, bytes)))
    }

    /// Damage found so far.
    pub(super) fn damage(&self) -> &[String] {
        &self.damage
    }

    /// Bytes in all segments.
    pub(super) fn stored_bytes(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|sealed| sealed.bytes).sum();
        sealed + u64::from(self.active.length())
    }

    #[cfg(test)]
    pub(super) fn fail_next_write(&mut self) {
        self.active.fail_next = true;
    }

    /// Where the next record will stand. Each batch but a segment's first begins with a mark.
    fn begin_record(&mut self) -> Place {
        if self.batch.is_empty() && self.active.length() > SEGMENT_HEADER_BYTES {
            self.active.write_mark(&mut self.batch);
        }
        let batched = u32::try_from(self.batch.len()).expect("the thread commits in time");
        Place {
            segment: self.active.number,
            at: self.active.length() + batched,
        }
    }

    /// An attempt's log, loaded if it is an old one, made if it is new; none if its job was purged.
    fn log_mut(&mut self, key: Key) -> Option<&mut Log> {
        if !self.logs.contains_key(&key) {
            let job = JobId::new(key.job)?;
            let mut old = match self.sealed_logs(job) {
                Ok(Some(logs)) => logs,
                Ok(None) => return None,
                Err(error) => {
                    // Its earlier part is lost, which its cut count will say; the rest need not be.
                    tracing::error!(%job, ?error, "the index of earlier output is damaged");
                    BTreeMap::new()
                }
            };
            self.logs.insert(key, old.remove(&key).unwrap_or_default());
            self.attempts += 1;
        }
        self.logs.get_mut(&key)
    }

    fn with_log(&mut self, key: Key, change: impl FnOnce(&mut Log, Keep)) {
        if let Some(log) = self.logs.get_mut(&key) {
            let keep = self.keep.under(log.rules);
            change(log, keep);
        }
    }

    fn set_rules(&mut self, key: Key, rules: Rules, segment: u32) {
        let mut dropped = Vec::new();
        if let Some(log) = self.logs.get_mut(&key) {
            log.rules = Some(rules);
            log.touched = log.touched.max(segment);
            log.cut_middle(self.keep.under(log.rules), &mut dropped);
        }
        self.bury(&dropped);
    }

    /// Each segment says for itself what is to become of an attempt, ahead of what it has of it.
    fn write_rules(&mut self, key: Key) {
        let number = self.active.number;
        let Some(log) = self.logs.get_mut(&key).filter(|log| log.rules_in != number) else {
            return;
        };
        let rules = log.rules;
        let Some(rules) = rules.filter(|_| !mutation::is("limit of output forgotten at a start"))
        else {
            return;
        };
        log.rules_in = number;
        let place = self.begin_record();
        let head = Head::new(Kind::Rules, key, 0, 0, 0);
        head.write(place, &rules_to_bytes(rules), &mut self.batch);
    }

    /// After a start: nobody follows any more what has ended.
    fn drop_over(&mut self) {
        let lingering = &self.lingering;
        let logs = self.logs.iter_mut();
        let over = logs.filter(|(key, log)| log.is_over() && !lingering.contains(key));
        let dropped: Vec<Extent> = over.flat_map(|(_, log)| log.drop_all()).collect();
        self.bury(&dropped);
    }

    fn log(&self, key: Key) -> Option<Cow<'_, Log>> {
        if let Some(log) = self.logs.get(&key) {
            return Some(Cow::Borrowed(log));
        }
        let old = self.sealed_logs(JobId::new(key.job)?).ok()??;
        old.get(&key).cloned().map(Cow::Owned)
    }

    /// Everything known of a job, by key.
    fn logs_of(&self, job: JobId) -> Result<BTreeMap<Key, Cow<'_, Log>>, ReadError> {
        let Some(old) = self.sealed_logs(job)? else {
            return Ok(BTreeMap::new());
        };
        let mut logs: BTreeMap<Key, Cow<'_, Log>> = old
            .into_iter()
            .filter(|(_, log)| log.merged > 0 || log.end.is_some())
            .map(|(key, log)| (key, Cow::Owned(log)))
            .collect();
        let known = self.logs.range(Key::first_of(job)..=Key::last_of(job));
        // An attempt of which nothing was stored (a repeat of something purged, say) is no attempt with output.
        let known = known.filter(|(_, log)| log.merged > 0 || log.end.is_some());
        logs.extend(known.map(|(key, log)| (*key, Cow::Borrowed(log))));
        Ok(logs)
    }

    /// Sealed segments that may have something of a job.
    fn sealed_for(&self, job: JobId) -> impl Iterator<Item = &Sealed> {
        let all = if job.raw() > self.sealed_top {
            &[]
        } else {
            &self.sealed[..]
        };
        all.iter().filter(move |sealed| sealed.may_have(job))
    }

    /// What sealed segments have of a job; none if it was purged.
    fn sealed_logs(&self, job: JobId) -> Result<Option<BTreeMap<Key, Log>>, ReadError> {
        if self.purged.contains(&job.raw()) {
            return Ok(None);
        }
        let mut logs: BTreeMap<Key, Log> = BTreeMap::new();
        for sealed in self.sealed_for(job) {
            for entry in sealed.find(job)? {
                if entry.is_purge() {
                    return Ok(None);
                }
                let log = logs.entry(entry.key).or_default();
                log.rules = entry.rules.or(log.rules);
                for extent in &entry.extents {
                    log.push_extent(*extent, self.keep.under(log.rules));
                }
                log.next = entry.next;
                log.merged = entry.merged;
                log.end = entry.end.map(|end| (sealed.number, end)).or(log.end);
                log.touched = sealed.number;
            }
        }
        for (key, log) in &mut logs {
            if log.is_over() && !self.lingering.contains(key) {
                drop(log.drop_all());
            }
        }
        Ok(Some(logs))
    }

    /// Drops a job's logs, and counts what they had as dead.
    fn forget(&mut self, job: JobId) {
        let mut logs = self.sealed_logs(job).ok().flatten().unwrap_or_default();
        let range = Key::first_of(job)..=Key::last_of(job);
        let known: Vec<Key> = self.logs.range(range).map(|(key, _)| *key).collect();
        for key in known {
            logs.extend(self.logs.remove(&key).map(|log| (key, log)));
        }
        for log in logs.values() {
            for segment in log.segments() {
                self.bury_bytes(segment, log.disk_bytes(segment));
            }
        }
    }

    /// Counts them as dead. What holds nothing else goes after the next commit: before it what takes its place is not
    /// stored.
    fn bury(&mut self, dropped: &[Extent]) {
        for extent in dropped {
            self.bury_bytes(extent.segment, u64::from(extent.disk_bytes));
        }
    }

    fn bury_bytes(&mut self, segment: u32, bytes: u64) {
        let place = self
            .sealed
            .partition_point(|sealed| sealed.number < segment);
        if let Some(sealed) = self.sealed.get_mut(place).filter(|s| s.number == segment) {
            sealed.live_bytes = sealed.live_bytes.saturating_sub(bytes);
        }
    }

    /// The count of what is dead only says where to look: of an attempt found through indexes it cannot know what was
    /// counted before.
    fn delete_dead(&mut self) {
        if self.broken {
            return; // what was counted may not be stored
        }
        while let Some(dead) = self.sealed.iter().position(|sealed| sealed.live_bytes == 0) {
            let wanted = if mutation::is("dead by count alone") {
                Ok(0)
            } else {
                self.wanted_bytes(dead)
            };
            let sealed = &mut self.sealed[dead];
            match wanted {
                Ok(0) => {
                    if let Err(error) = self.delete(dead) {
                        tracing::error!(%error, "a dead output segment could not be deleted");
                        return;
                    }
                }
                Ok(bytes) => sealed.live_bytes = bytes,
                Err(error) => {
                    tracing::error!(segment = sealed.number, %error, "whether an output segment is wanted cannot be told: it stays");
                    sealed.live_bytes = sealed.bytes; // until it is too old, or the next start
                }
            }
        }
    }

    fn delete(&mut self, place: usize) -> io::Result<()> {
        let number = self.sealed[place].number;
        // The index first goes with its segment: an index alone is removed at the next start, and a segment alone
        // would be read as if it had not been sealed.
        let files = &self.options.files;
        match files.remove(&segment::path_of(&self.options.dir, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match files.remove(&index::path_of(&self.options.dir, number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.sealed.remove(place);
        for log in self.logs.values_mut() {
            log.forget_segment(number);
        }
        Ok(())
    }

    /// Seals the active segment and begins another. If that fails, the old one grows on for a while.
    fn roll(&mut self, now_ms: u64) -> io::Result<()> {
        let rolled = Segment::create(
            &*self.options.files,
            &self.options.dir,
            self.active.number + 1,
            now_ms,
        )
        .and_then(|fresh| self.seal(fresh, now_ms));
        match rolled {
            Ok(()) => Ok(()),
            Err(error) => {
                let fresh = segment::path_of(&self.options.dir, self.active.number + 1);
                drop(self.options.files.remove(&fresh));
                if self.overgrown() {
                    return Err(error);
                }
                tracing::error!(%error, "the output segment could not be sealed yet");
                Ok(())
            }
        }
    }

    fn seal(&mut self, fresh: Segment, now_ms: u64) -> io::Result<()> {
        let number = self.active.number;
        let attempts = self.logs.iter().filter(|(_, log)| log.touched == number);
        let mut entries: Vec<Entry> = attempts
            .map(|(key, log)| entry_of(*key, log, number))
            .collect();
        entries.extend(self.purged.iter().map(|job| purge_of(*job)));
        entries.sort_unstable_by_key(|entry| entry.key);
        let sealed = Sealed::write(
            (&self.options.files, &self.options.dir),
            number,
            &entries,
            (now_ms, false),
            u64::from(self.active.length()),
            live_bytes_of(&entries),
            || Ok(()),
        )?;
        self.sealed_top = self.sealed_top.max(sealed.top());
        self.sealed.push(sealed);
        for sealed in &mut self.sealed {
            sealed.live_bytes_before = sealed.live_bytes;
        }
        self.active = fresh;
        self.purged.clear();
        self.attempts = 0;
        // Attempts that go on are likely to go on; the others are found through the index.
        self.logs
            .retain(|_, log| log.end.is_none() && log.touched == number);
        self.delete_dead();
        Ok(())
    }

    fn file_of(&self, number: u32) -> io::Result<Box<dyn OpenFile>> {
        if number == self.active.number {
            self.active.file().again()
        } else {
            let path = segment::path_of(&self.options.dir, number);
            self.options.files.open(&path, How::Read)
        }
    }

    fn note_damage(&mut self, what: String) {
        tracing::error!(%what, "output is damaged");
        self.damage.push(what);
    }
}

/// What a segment has of an attempt.
fn entry_of(key: Key, log: &Log, segment: u32) -> Entry {
    let extents = log
        .extents
        .iter()
        .filter(|extent| extent.segment == segment);
    Entry {
        key,
        next: log.next,
        merged: log.merged,
        end: log.end.filter(|(at, _)| *at == segment).map(|(_, end)| end),
        rules: log.rules,
        extents: extents.copied().collect(),
    }
}

/// What entries stand for in their segment.
fn live_bytes_of(entries: &[Entry]) -> u64 {
    let live = |entry: &Entry| {
        let extents = entry.extents.iter().map(|e| u64::from(e.disk_bytes));
        let end = entry.end.map_or(0, |_| END_BYTES as u64);
        let purge = if entry.is_purge() {
            HEADER_BYTES as u64
        } else {
            0
        };
        extents.sum::<u64>() + end + purge
    };
    entries.iter().map(live).sum()
}

fn purge_of(job: u64) -> Entry {
    Entry {
        key: Key {
            job,
            ..Key::default()
        },
        next: [0, 0],
        merged: 0,
        end: None,
        rules: None,
        extents: Vec::new(),
    }
}

/// The numbers of the segments and of the indexes that are there.
fn files_of(options: &Options) -> io::Result<(BTreeSet<u32>, BTreeSet<u32>)> {
    let (mut segments, mut indexes) = (BTreeSet::new(), BTreeSet::new());
    for path in options.files.list(&options.dir)? {
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| stem.parse::<u32>().ok());
        match (number, path.extension().and_then(|e| e.to_str())) {
            (Some(number), Some("seg")) => drop(segments.insert(number)),
            (Some(number), Some("idx")) => drop(indexes.insert(number)),
            (Some(_), Some("tmp" | "new")) => options.files.remove(&path)?,
            _ => {}
        }
    }
    Ok((segments, indexes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::files::SystemFiles;
    use bytes::Bytes;
    use hostler_wire::frame::{Logs, LogsMode, Overflow, Stream};
    use hostler_wire::{Attempt, Epoch};
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    fn options(dir: &Path) -> Options {
        Options {
            dir: dir.to_path_buf(),
            files: Arc::new(SystemFiles),
            output_bytes_max: 1 << 20,
            segment_bytes: 1 << 20,
            keep: Duration::from_secs(10),
            keep_failed: Duration::from_secs(100),
            total_bytes_max: 1 << 40,
            linger: Duration::from_secs(100),
        }
    }

    fn open(dir: &Path) -> Segments {
        Segments::open(options(dir), 1).unwrap()
    }

    fn fence(job: u64) -> Fence {
        Fence {
            job: JobId::new(job).unwrap(),
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        }
    }

    fn chunk(job: u64, offset: u64, data: &[u8]) -> Chunk {
        Chunk {
            fence: fence(job),
            stream: Stream::Stdout,
            offset,
            at_ms: 0,
            data: Bytes::copy_from_slice(data),
        }
    }

    fn text(segments: &Segments, job: u64) -> Result<Vec<u8>, ReadError> {
        let page = segments.read(&Read {
            job: JobId::new(job).unwrap(),
            attempt: None,
            stream: None,
            from: 0,
            max: 1 << 20,
            wait: false,
            newer: None,
        })?;
        Ok(page
            .pieces
            .iter()
            .flat_map(|piece| piece.data.to_vec())
            .collect())
    }

    /// Whatever was acknowledged is there after a power cut, whichever pieces of the rest are.
    fn expect_after_power_cuts(dir: &Path, acked: &BTreeMap<u64, u64>, seeds: u64) {
        for seed in 0..seeds {
            let left = super::super::shadow::cut_power(dir, seed);
            let segments = open(left.path());
            for (job, bytes) in acked {
                let through = segments.ack(fence(*job)).stdout_through;
                assert!(
                    through >= *bytes,
                    "of {bytes} acknowledged bytes of job {job} {through} are left (seed {seed})"
                );
                let text = text(&segments, *job).unwrap();
                assert!(text.len() as u64 >= *bytes && text.iter().all(|byte| *byte == 7));
            }
        }
    }

    #[test]
    fn what_was_acknowledged_survives_a_power_cut_at_any_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        let mut acked = BTreeMap::new();
        for turn in 0..60_u64 {
            let job = 1 + turn % 7;
            let offset = acked.get(&job).copied().unwrap_or(0);
            segments.append(&chunk(job, offset, &[7; 50_000]));
            segments.commit(1).unwrap();
            acked.insert(job, segments.ack(fence(job)).stdout_through);
            expect_after_power_cuts(dir.path(), &acked, 2);
            if turn % 20 == 19 {
                drop(segments);
                segments = open(dir.path());
            }
        }
        assert!(segments.sealed.len() >= 2, "no segment was sealed");
    }

    #[test]
    fn what_a_killed_server_had_written_and_not_synced_is_synced_before_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        segments.append(&chunk(1, 0, &[7; 900]));
        segments.commit(1).unwrap();
        let path = segment::path_of(dir.path(), segments.active.number);
        let before = std::fs::read(&path).unwrap();
        segments.append(&chunk(1, 900, &[7; 900]));
        segments.commit(1).unwrap();
        drop(segments);
        // The same bytes once more, as a server leaves them that is killed between its write and its sync.
        let after = std::fs::read(&path).unwrap();
        std::fs::write(&path, &before).unwrap();
        super::super::shadow::file_synced(&File::open(&path).unwrap());
        std::fs::write(&path, &after).unwrap();

        let mut segments = open(dir.path());
        // Its worker sends again what was never acknowledged, and it is found to be there already.
        segments.append(&chunk(1, 900, &[7; 900]));
        segments.commit(1).unwrap();
        let through = segments.ack(fence(1)).stdout_through;
        assert_eq!(through, 1_800);
        expect_after_power_cuts(dir.path(), &BTreeMap::from([(1, through)]), 20);
    }

    /// Three jobs, each with its own sync.
    fn written(dir: &Path) -> PathBuf {
        let mut segments = open(dir);
        for job in 1..=3 {
            segments.append(&chunk(job, 0, b"0123456789"));
            segments.commit(1).unwrap();
        }
        segment::path_of(dir, segments.active.number)
    }

    #[test]
    fn a_torn_end_is_cut_off_and_what_came_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let mut segments = open(dir.path());
        assert!(segments.damage().is_empty());
        assert_eq!(segments.ack(fence(2)).stdout_through, 10);
        assert_eq!(segments.ack(fence(3)).stdout_through, 0);
        segments.append(&chunk(3, 0, b"0123456789"));
        segments.commit(1).unwrap();
        for segments in [segments, open(dir.path())] {
            for job in 1..=3 {
                assert_eq!(text(&segments, job).unwrap(), b"0123456789");
            }
        }
    }

    #[test]
    fn damage_to_what_was_synced_is_named_and_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let good = std::fs::read(&path).unwrap();
        // Every byte of the first two jobs' batches, and the mark between them.
        for at in SEGMENT_HEADER_BYTES as usize..good.len() - 2 * HEADER_BYTES - 26 {
            let dir = tempfile::tempdir().unwrap();
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(segment::path_of(dir.path(), 1), &bad).unwrap();
            let segments = open(dir.path());
            assert_eq!(segments.damage().len(), 1, "byte {at}");
            for job in 1..=3 {
                let text = text(&segments, job).unwrap();
                assert!(text.is_empty() || text == b"0123456789", "byte {at}");
            }
            assert_eq!(text(&segments, 3).unwrap(), b"0123456789");
        }
    }

    #[test]
    fn a_hole_in_an_attempt_is_an_error_not_a_shorter_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = {
            let mut segments = open(dir.path());
            for part in 0..3 {
                segments.append(&chunk(1, part * 10, b"0123456789"));
                segments.commit(1).unwrap();
            }
            segment::path_of(dir.path(), 1)
        };
        let mut bad = std::fs::read(&path).unwrap();
        let second = 40 + (HEADER_BYTES + 10) + (HEADER_BYTES + 16) + HEADER_BYTES;
        bad[second] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let segments = open(dir.path());
        let mut read = Read {
            job: JobId::new(1).unwrap(),
            attempt: None,
            stream: None,
            from: 0,
            max: 100,
            wait: false,
            newer: None,
        };
        let page = segments.read(&read).unwrap();
        assert_eq!(page.next, 10);
        read.from = 10;
        assert!(matches!(segments.read(&read), Err(ReadError::Corrupt(_))));
    }

    #[test]
    fn a_bit_flipped_after_the_start_is_detected_at_the_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path());
        let segments = open(dir.path());
        let mut bad = std::fs::read(&path).unwrap();
        bad[40 + HEADER_BYTES + 2] ^= 1; // in the first job's data
        std::fs::write(&path, &bad).unwrap();
        assert!(matches!(text(&segments, 1), Err(ReadError::Corrupt(_))));
        assert_eq!(text(&segments, 2).unwrap(), b"0123456789");
    }

    #[test]
    fn after_a_failed_write_nothing_of_it_is_acknowledged_and_it_can_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        segments.append(&chunk(1, 0, b"first "));
        segments.commit(1).unwrap();
        segments.append(&chunk(1, 6, b"second"));
        segments.append(&chunk(2, 0, b"other"));
        segments.fail_next_write();
        assert!(segments.commit(1).is_err());
        assert!(!segments.is_broken());
        assert_eq!(segments.ack(fence(1)).stdout_through, 6);
        assert_eq!(segments.ack(fence(2)).stdout_through, 0);
        segments.append(&chunk(1, 0, b"first second"));
        segments.commit(1).unwrap();
        for segments in [segments, open(dir.path())] {
            assert_eq!(text(&segments, 1).unwrap(), b"first second");
            assert!(text(&segments, 2).unwrap().is_empty());
        }
    }

    #[test]
    fn what_was_said_of_an_attempt_outlives_a_failed_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        segments.start(&OutputStart {
            fence: fence(1),
            logs: Logs {
                mode: LogsMode::Keep,
                limit_bytes: 16_000,
                overflow: Overflow::Drop,
            },
        });
        segments.append(&chunk(2, 0, b"of another"));
        segments.fail_next_write();
        assert!(segments.commit(1).is_err());
        segments.append(&chunk(1, 0, &[7; 60_000]));
        segments.commit(1).unwrap();
        for segments in [segments, open(dir.path())] {
            assert!(text(&segments, 1).unwrap().len() <= 16_000);
        }
    }

    #[test]
    fn however_often_writes_fail_a_segment_of_which_others_need_something_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        let logs = Logs {
            mode: LogsMode::Keep,
            limit_bytes: LIMIT_BYTES_MIN,
            overflow: Overflow::Drop,
        };
        let fence = fence(1);
        segments.start(&OutputStart { fence, logs });
        for part in 0..4 {
            segments.append(&chunk(1, part * 1_000, &[7; 1_000]));
        }
        segments.append(&chunk(2, 0, b"needed"));
        segments.commit(1).unwrap();
        segments.roll(1).unwrap();
        // The first one's tail of that segment is not wanted any more, and never was, each time it is read anew.
        segments.append(&chunk(1, 4_000, &[7; 10_000]));
        segments.commit(1).unwrap();
        for part in 0..10 {
            segments.append(&chunk(1, 14_000 + part, &[7]));
            segments.fail_next_write();
            assert!(segments.commit(1).is_err());
            segments.commit(1).unwrap();
        }
        for segments in [segments, open(dir.path())] {
            assert_eq!(text(&segments, 2).unwrap(), b"needed");
        }
    }

    #[test]
    fn a_segment_with_the_end_of_another_attempt_outlives_a_streamed_one_that_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        segments.append(&chunk(2, 0, b"needed"));
        segments.commit(1).unwrap();
        segments.roll(1).unwrap();

        // Of a streamed attempt, as many extents of 256 bytes as are kept, the last one shorter; and the other's end.
        let logs = Logs {
            mode: LogsMode::Stream,
            limit_bytes: LIMIT_BYTES_MIN,
            overflow: Overflow::Drop,
        };
        let fence_1 = fence(1);
        segments.start(&OutputStart {
            fence: fence_1,
            logs,
        });
        segments.append(&chunk(1, 0, &[7; 15 * 256 + 100]));
        let end = |job, stdout_bytes| OutputEnd {
            fence: fence(job),
            stdout_bytes,
            stderr_bytes: 0,
            dropped_bytes: 0,
        };
        segments.end(&end(2, 6));
        segments.commit(1).unwrap();
        segments.roll(1).unwrap();

        // All of that but its head is cut, and some of what cuts it. Read from the indexes alone, the short one seems kept.
        segments.append(&chunk(1, 15 * 256 + 100, &[7; 16 * 256 + 10]));
        segments.end(&end(1, 31 * 256 + 110));
        segments.commit(1).unwrap();
        segments.roll(1).unwrap();
        segments.let_go(fence_1);
        for segments in [segments, open(dir.path())] {
            let attempts = segments.attempts(fence(2).job).unwrap();
            assert!(attempts[0].ended, "{attempts:?}");
            assert_eq!(text(&segments, 2).unwrap(), b"needed");
        }
    }

    #[test]
    fn what_streamed_attempts_had_counts_as_dead_when_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        segments.start(&OutputStart {
            fence: fence(1),
            logs: Logs {
                mode: LogsMode::Stream,
                limit_bytes: 1 << 20,
                overflow: Overflow::Block,
            },
        });
        for part in 0..100 {
            segments.append(&chunk(1, part * 60_000, &[7; 60_000]));
            segments.commit(1).unwrap();
        }
        segments.end(&OutputEnd {
            fence: fence(1),
            stdout_bytes: 6_000_000,
            stderr_bytes: 0,
            dropped_bytes: 0,
        });
        segments.commit(1).unwrap();
        assert!(segments.sealed.len() >= 5 && segments.lingers(fence(1)));
        segments.let_go(fence(1));
        assert!(segments.sealed.is_empty() && !segments.lingers(fence(1)));
        assert!(text(&segments, 1).unwrap().is_empty());
    }

    #[test]
    fn a_lost_index_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        for job in 1..=40 {
            segments.append(&chunk(job, 0, &[7; 60_000]));
            segments.commit(1).unwrap();
        }
        assert!(segments.sealed.len() >= 2);
        std::fs::remove_file(index::path_of(dir.path(), 1)).unwrap();
        std::fs::write(index::path_of(dir.path(), 2), b"nonsense").unwrap();
        let segments = open(dir.path());
        for job in 1..=40 {
            assert_eq!(text(&segments, job).unwrap(), [7; 60_000]);
        }
    }

    #[test]
    fn old_segments_go_by_age_and_by_size_the_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = open(dir.path());
        for job in 1..=60 {
            segments.append(&chunk(job, 0, &[7; 60_000]));
            segments.end(&OutputEnd {
                fence: fence(job),
                stdout_bytes: 60_000,
                stderr_bytes: 0,
                dropped_bytes: 0,
            });
            segments.commit(1_000).unwrap();
        }
        assert_eq!(segments.retire_one(100_999).unwrap(), None);
        let (why, bytes) = segments.retire_one(101_000).unwrap().unwrap();
        assert!(why == Retired::KeptFailed && bytes > 0, "{why:?} {bytes}");
        assert!(text(&segments, 1).unwrap().is_empty());
        assert_eq!(text(&segments, 60).unwrap(), [7; 60_000]);
        segments.options.total_bytes_max = 100;
        while let Some((why, _)) = segments.retire_one(2_000).unwrap() {
            assert_eq!(why, Retired::Total);
        }
        assert!(segments.sealed.is_empty());
    }

    /// Sealed segments with one line each of many jobs among the flood of one, whose end is still to come.
    fn flooded(dir: &Path) -> Segments {
        let mut options = options(dir);
        options.output_bytes_max = 100_000;
        let mut segments = Segments::open(options, 1).unwrap();
        for n in 0..100 {
            segments.append(&chunk(1, n * 60_000, &[7; 60_000]));
            segments.append(&chunk(2 + n, 0, b"a line"));
            segments.end(&OutputEnd {
                fence: fence(2 + n),
                stdout_bytes: 6,
                stderr_bytes: 0,
                dropped_bytes: 0,
            });
            segments.commit(1_000).unwrap();
        }
        assert!(segments.sealed.len() >= 5);
        segments
    }

    /// What [`flooded`] leaves to be read.
    fn expect_flooded(segments: &Segments, lines: impl Fn(u64) -> bool) {
        for job in 2..102 {
            let expected: &[u8] = if lines(job) { b"a line" } else { b"" };
            assert_eq!(text(segments, job).unwrap(), expected, "job {job}");
        }
        let flood = text(segments, 1).unwrap();
        assert!(flood.len() > 80_000 && flood.len() <= 100_000);
        let cut = segments
            .read(&Read {
                job: JobId::MIN,
                attempt: None,
                stream: None,
                from: 0,
                max: 1,
                wait: false,
                newer: None,
            })
            .unwrap()
            .cut;
        assert_eq!(cut + flood.len() as u64, 6_000_000);
    }

    #[test]
    fn of_a_segment_that_is_mostly_dead_what_is_wanted_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = flooded(dir.path());
        let before = segments.stored_bytes();
        while segments.compact_one().unwrap().is_some() {}
        assert!(
            segments.stored_bytes() < before / 4,
            "{}",
            segments.stored_bytes()
        );
        expect_flooded(&segments, |_| true);
        // The flood goes on where it was.
        segments.append(&chunk(1, 6_000_000, b"more"));
        segments.commit(1).unwrap();
        assert!(text(&segments, 1).unwrap().ends_with(b"more"));
        drop(segments);
        let mut options = options(dir.path());
        options.output_bytes_max = 100_000;
        let segments = Segments::open(options, 1).unwrap();
        assert!(segments.damage().is_empty());
        for job in 2..102 {
            assert_eq!(text(&segments, job).unwrap(), b"a line");
        }
        assert!(text(&segments, 1).unwrap().ends_with(b"more"));
    }

    #[test]
    fn a_rewritten_segment_whose_index_is_lost_or_older_is_read_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = flooded(dir.path());
        let index = index::path_of(dir.path(), 1);
        let older = std::fs::read(&index).unwrap();
        while segments.compact_one().unwrap().is_some() {}
        drop(segments);
        std::fs::write(&index, older).unwrap(); // a crash between the two renames
        std::fs::remove_file(index::path_of(dir.path(), 2)).unwrap();
        let mut options = options(dir.path());
        options.output_bytes_max = 100_000;
        let segments = Segments::open(options, 1).unwrap();
        assert!(segments.damage().is_empty());
        expect_flooded(&segments, |_| true);
    }

    #[test]
    fn jobs_that_ended_well_go_after_their_time_and_the_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = flooded(dir.path());
        assert_eq!(segments.overdue(10_999), None);
        let failed = |job: u64| job.is_multiple_of(10);
        let mut trimmed = BTreeSet::new();
        while let Some((number, why)) = segments.overdue(11_000) {
            assert_eq!(why, Retired::Kept);
            let jobs = segments.jobs_of(number).unwrap();
            let jobs = jobs.into_iter().map(JobId::raw);
            // The first still runs.
            let unwanted: BTreeSet<u64> = jobs.filter(|job| *job > 1 && !failed(*job)).collect();
            segments.trim(number, &unwanted).unwrap();
            trimmed.extend(unwanted);
        }
        assert!(trimmed.len() > 60);
        expect_flooded(&segments, |job| !trimmed.contains(&job));
        drop(segments);
        let mut options = options(dir.path());
        options.output_bytes_max = 100_000;
        let segments = Segments::open(options, 1).unwrap();
        expect_flooded(&segments, |job| !trimmed.contains(&job));
        assert_eq!(segments.overdue(11_000), None, "it knows what it has done");
    }

    #[test]
    fn a_purged_job_stays_purged_when_its_segments_are_rewritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = flooded(dir.path());
        segments.purge(JobId::new(5).unwrap());
        segments.purge(JobId::new(1).unwrap());
        segments.commit(1).unwrap();
        while segments.compact_one().unwrap().is_some() {}
        for _ in 0..2 {
            for job in [1, 5] {
                assert!(segments.is_purged(JobId::new(job).unwrap()));
                assert!(text(&segments, job).unwrap().is_empty());
            }
            assert_eq!(text(&segments, 6).unwrap(), b"a line");
            segments = open(dir.path());
        }
    }

    #[test]
    fn damage_found_while_rewriting_is_named_and_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut segments = flooded(dir.path());
        // In the line of the second job, the first beside the flood.
        let path = segment::path_of(dir.path(), 1);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(6).position(|w| w == b"a line").unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        while segments.compact_one().unwrap().is_some() {}
        assert_eq!(segments.damage().len(), 1);
        assert_ne!(text(&segments, 2).ok(), Some(b"` line".to_vec()));
        assert_eq!(text(&segments, 3).unwrap(), b"a line");
    }
}
