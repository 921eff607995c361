//! The walk over jobs: what each table says of one job, put side by side.
//!
//! Five tables are read in id order at once. Who was assigned what lies in `assigned` and `started` in the order it
//! happened; for a window of ids at a time it is summed up in a few bytes a job: how often, the highest attempt, and a
//! sum of mixed attempt numbers that is right only if each number up to the highest was given out once.

use hostler_wire::{JobId, JobState, Reason};
use rusqlite::{Connection, Row, Rows, Statement};

use super::tables::{ENDED, Facts};
use crate::findings::Report;
use crate::store::load::{ShareRow, each_row};
use crate::store::sql;
use crate::store::sqlite::Fault;

/// Ids of which the assignments are known at once: some 24 MiB.
const WINDOW_IDS: i64 = 2 << 20;

/// Looks at every job.
pub(super) fn check(db: &Connection, facts: &Facts, report: &mut Report) -> Result<(), Fault> {
    let mut walk = Walk {
        facts,
        report,
        tally: Tally::default(),
        mixed: mixed_sums(),
    };
    let mut shares = Shares::default();
    // An id may be anything in a file that is wrong: windows lie where there are rows.
    let mut low = Some(0);
    while let Some(from) = low {
        let first_pass = from == 0;
        let next_share = walk.read_shares(db, from, &mut shares, first_pass)?;
        let next_row = walk.read_jobs(db, from, &shares)?;
        low = next_share.into_iter().chain(next_row).min();
    }
    walk.finish();
    Ok(())
}

/// Spreads an attempt's number over 32 bits.
fn mix(number: u16) -> u32 {
    let mut n = u32::from(number).wrapping_mul(0x9e37_79b9);
    n ^= n >> 15;
    n = n.wrapping_mul(0x85eb_ca6b);
    n ^ (n >> 13)
}

/// By the highest attempt: the sum if each came once.
fn mixed_sums() -> Vec<u32> {
    let sums = (0..=u16::MAX).scan(0_u32, |sum, number| {
        if number > 0 {
            *sum = sum.wrapping_add(mix(number));
        }
        Some(*sum)
    });
    sums.collect()
}

/// What `assigned` and `started` say of one job.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    sum: u32,
    count: u16,
    highest: u16,
    started: u16,
}

/// Those of a window of ids.
#[derive(Debug, Default)]
struct Shares {
    low: i64,
    slots: Vec<Slot>,
    /// No row has been dropped by retention: what is not here never was.
    complete: bool,
}

impl Shares {
    fn place(&mut self, job: i64) -> Option<&mut Slot> {
        let at = usize::try_from(job - self.low).ok()?;
        if job - self.low >= WINDOW_IDS {
            return None;
        }
        if at >= self.slots.len() {
            self.slots.resize(at + 1, Slot::default());
        }
        self.slots.get_mut(at)
    }

    fn of(&self, job: i64) -> Slot {
        let at = usize::try_from(job - self.low).ok();
        at.and_then(|at| self.slots.get(at))
            .copied()
            .unwrap_or_default()
    }
}

/// What was counted on the way.
#[derive(Debug, Default)]
struct Tally {
    jobs: u64,
    ends: u64,
    ended: [u64; 5],
    attempts: u64,
    unfinished: u64,
    unfinished_below: u64,
    carried: u64,
}

struct Walk<'a> {
    facts: &'a Facts,
    report: &'a mut Report,
    tally: Tally,
    mixed: Vec<u32>,
}

impl Walk<'_> {
    /// Sums up the shares of a window; returns the next id beyond it that a share names. What each row is in itself is
    /// checked in the first pass.
    fn read_shares(
        &mut self,
        db: &Connection,
        low: i64,
        shares: &mut Shares,
        first_pass: bool,
    ) -> Result<Option<i64>, Fault> {
        shares.low = low;
        shares.slots.clear();
        let mut next = None;
        let mut rows = Sequence::default();
        each_row(db, sql::V_SHARES, [], |row| {
            let seq: i64 = row.get(0)?;
            let is_start: bool = row.get(5)?;
            if first_pass {
                self.check_share(row, seq, is_start, &mut rows)?;
            }
            let share = ShareRow::of(row)?;
            let decoded = share.each(row, |fence| {
                let job = fence.job.raw().cast_signed();
                if let Some(slot) = shares.place(job) {
                    let number = fence.attempt.raw();
                    if is_start {
                        slot.started = slot.started.max(number);
                    } else {
                        slot.count = slot.count.saturating_add(1);
                        slot.highest = slot.highest.max(number);
                        slot.sum = slot.sum.wrapping_add(mix(number));
                    }
                } else if job >= low {
                    next = Some(next.map_or(job, |next: i64| next.min(job)));
                }
            });
            if decoded.is_err() && first_pass {
                let table = if is_start { "started" } else { "assigned" };
                self.report.find(
                    "shares",
                    format_args!("row {seq} of {table} is garbled: no server can start on this"),
                );
            }
            Ok(())
        })?;
        if first_pass {
            shares.complete = rows.first.is_none_or(|first| first == 1) && !rows.has_gap;
            if !shares.complete {
                self.report.skip(
                    "whether attempts were assigned before they ran",
                    "retention has dropped old rows of assigned or started",
                );
            }
        }
        Ok(next)
    }

    fn check_share(
        &mut self,
        row: &Row<'_>,
        seq: i64,
        is_start: bool,
        rows: &mut Sequence,
    ) -> Result<(), Fault> {
        let (epoch, worker): (i64, i64) = (row.get(1)?, row.get(2)?);
        let table = if is_start { "started" } else { "assigned" };
        let (report, facts) = (&mut *self.report, self.facts);
        match rows.last {
            Some(last) if seq == last => report.find(
                "shares",
                format_args!("number {seq} is there in assigned and in started"),
            ),
            Some(last) if seq != last + 1 => {
                rows.has_gap = true;
                if seq - 1 > facts.mark_seq {
                    report.find(
                        "shares",
                        format_args!(
                            "rows {} to {} of assigned and started are missing: a restart would not know who runs what",
                            (last + 1).max(facts.mark_seq + 1),
                            seq - 1
                        ),
                    );
                }
            }
            Some(_) | None => {}
        }
        rows.first.get_or_insert(seq);
        rows.last = Some(seq);
        if !facts.has_epoch(epoch) {
            report.find(
                "epochs",
                format_args!("row {seq} of {table} is of epoch {epoch}, which there never was"),
            );
        }
        if !is_start {
            if epoch < rows.epoch {
                report.find(
                    "epochs",
                    format_args!(
                        "row {seq} of assigned is of epoch {epoch}, after one of epoch {}",
                        rows.epoch
                    ),
                );
            }
            rows.epoch = rows.epoch.max(epoch);
        }
        if !facts.workers.contains(&worker) {
            report.find(
                "workers",
                format_args!("row {seq} of {table} names worker {worker}, which is not there"),
            );
        }
        Ok(())
    }

    /// Walks the window's jobs; returns the next id beyond it that a row has.
    fn read_jobs(
        &mut self,
        db: &Connection,
        low: i64,
        shares: &Shares,
    ) -> Result<Option<i64>, Fault> {
        let high = low.saturating_add(WINDOW_IDS);
        let prepare = |statement: &str| db.prepare(statement);
        let (mut jobs, mut ends) = (prepare(sql::V_JOBS)?, prepare(sql::V_ENDS)?);
        let (mut attempts, mut marks) = (prepare(sql::V_ATTEMPTS)?, prepare(sql::V_MARKS)?);
        let mut carried = prepare(sql::V_CARRIED)?;
        // Ids below 1 are wrong, and are met by the first window.
        let from = if low == 0 { i64::MIN } else { low };
        let mut jobs = Cursor::new(&mut jobs, from, JobRow::of)?;
        let mut ends = Cursor::new(&mut ends, from, EndRow::of)?;
        let mut attempts = Cursor::new(&mut attempts, from, AttemptRow::of)?;
        let mut marks = Cursor::new(&mut marks, from, |row| row.get(1))?;
        let mut carried = Cursor::new(&mut carried, from, CarriedRow::of)?;
        // Shares may name jobs that no table has.
        let mut shared = low.max(1);
        loop {
            let heads = [
                jobs.key(),
                ends.key(),
                attempts.key(),
                marks.key(),
                carried.key(),
            ];
            let row = heads.into_iter().flatten().min();
            let until = row.unwrap_or(high).min(high);
            while shared < until {
                if shares.of(shared).count > 0 || shares.of(shared).started > 0 {
                    self.judge(shared, One::default(), shares);
                }
                shared += 1;
                if shared - low >= shares.slots.len() as i64 {
                    shared = until;
                }
            }
            let Some(id) = row.filter(|id| *id < high) else {
                return Ok(row);
            };
            let mut one = One {
                job: jobs.take(id)?,
                end: ends.take(id)?,
                mark: marks.take(id)?,
                carried: carried.take(id)?,
                ..One::default()
            };
            while ends.take(id)?.is_some() {
                self.job("ends", id, "it has an end in both of the tables of ends");
            }
            while let Some(attempt) = attempts.take(id)? {
                self.fold(id, &attempt, &mut one.folded);
            }
            self.judge(id, one, shares);
            shared = shared.max(id.saturating_add(1));
        }
    }

    fn fold(&mut self, id: i64, row: &AttemptRow, folded: &mut Folded) {
        self.tally.attempts += 1;
        let (facts, number) = (self.facts, row.number);
        if number <= folded.highest {
            self.job("attempts", id, format_args!("attempt {number} ended twice"));
        }
        if row.epoch < folded.epoch {
            let what = "is of an earlier start of the server than the one before it";
            self.job("epochs", id, format_args!("attempt {number} {what}"));
        }
        if !facts.has_epoch(row.epoch) {
            let epoch = row.epoch;
            self.job(
                "epochs",
                id,
                format_args!("attempt {number} is of epoch {epoch}, which there never was"),
            );
        }
        if !facts.workers.contains(&row.worker) {
            let worker = row.worker;
            self.job(
                "workers",
                id,
                format_args!("attempt {number} ran on worker {worker}, which is not there"),
            );
        }
        self.known_reason(id, row.reason);
        match usize::try_from(row.charge) {
            Ok(charge @ 0..=3) => folded.charges[charge] += 1,
            Ok(_) | Err(_) => self.job(
                "codes",
                id,
                format_args!(
                    "attempt {number} is charged as {}, which is no charge",
                    row.charge
                ),
            ),
        }
        if row.two_dues {
            self.job(
                "codes",
                id,
                format_args!("attempt {number} is due twice, on two clocks"),
            );
        }
        folded.highest = folded.highest.max(number);
        folded.epoch = folded.epoch.max(row.epoch);
        folded.ever_started |= row.started;
    }

    /// All that is known of one id.
    fn judge(&mut self, id: i64, one: One, shares: &Shares) {
        let facts = self.facts;
        let slot = shares.of(id);
        let gone = id <= facts.purged_id;
        if id < 1 || JobId::new(id.unsigned_abs()).is_none() {
            self.job("ids", id, "this is no job id");
        } else if id >= facts.ids_through {
            let what = format_args!(
                "ids are promised below {} only: the next start would give it out again",
                facts.ids_through
            );
            self.job("ids", id, what);
        }
        match &one.job {
            Some(job) => self.judge_job(id, job, one.end.is_some()),
            None if gone => {}
            None => self.judge_nobody(id, &one, slot),
        }
        if let Some(end) = &one.end {
            self.tally.ends += 1;
            self.judge_end(id, end, &one.folded, slot, shares.complete);
        } else if one.job.is_some() {
            self.tally.unfinished += 1;
            self.tally.unfinished_below += u64::from(id <= facts.mark_id);
        }
        if one.job.is_some() {
            self.judge_attempts(id, &one.folded, slot, shares.complete);
        }
        if let Some(reason) = one.mark {
            self.known_reason(id, reason);
        }
        self.judge_carried(id, &one, slot);
    }

    fn judge_job(&mut self, id: i64, job: &JobRow, ended: bool) {
        self.tally.jobs += 1;
        if !self.facts.classes.contains(&job.class) {
            let what = format_args!(
                "it is of class {}, which is missing: no server can start on this",
                job.class
            );
            self.job("classes", id, what);
        }
        if i8::try_from(job.priority).is_err() || !matches!(job.sync, 0 | 1) {
            let what = format_args!(
                "priority {} or durability {} is none",
                job.priority, job.sync
            );
            self.job("codes", id, what);
        }
        if job.engine_bytes.is_some_and(|bytes| bytes != 24) {
            self.job("codes", id, "its times on the engine's clock are garbled");
        }
        if job.no_body && !ended {
            self.job(
                "bodies",
                id,
                "it has not ended, and its body is gone: it can never run",
            );
        }
        if job.retry_of.is_some_and(|first| first < 1 || first >= id) {
            self.job("ids", id, "it repeats a job that did not come before it");
        }
    }

    /// Rows of a job that is not there.
    fn judge_nobody(&mut self, id: i64, one: &One, slot: Slot) {
        if one.end.is_some() {
            self.job("ends", id, "it has an end and was never accepted");
        }
        if one.folded.highest > 0 {
            self.job("attempts", id, "it has attempts and was never accepted");
        }
        if one.mark.is_some() {
            self.job("marks", id, "it was told to stop and was never accepted");
        }
        if slot.count > 0 || slot.started > 0 {
            self.job(
                "shares",
                id,
                "it was given to a worker and was never accepted",
            );
        }
    }

    fn judge_end(&mut self, id: i64, end: &EndRow, folded: &Folded, slot: Slot, complete: bool) {
        let state = u8::try_from(end.state).ok().and_then(JobState::from_code);
        let place = state.and_then(|state| ENDED.iter().position(|ended| *ended == state));
        match place {
            Some(place) => self.tally.ended[place] += 1,
            None => self.job(
                "codes",
                id,
                format_args!("it ended as {}, which is no end", end.state),
            ),
        }
        self.known_reason(id, end.reason);
        if end.output_place != i64::from(crate::output::LOCAL_SEGMENTS) {
            let place = end.output_place;
            self.job(
                "codes",
                id,
                format_args!("its output is in store {place}, which is unknown"),
            );
        }
        if end.attempt == 0 {
            return;
        }
        let (number, facts) = (end.attempt, self.facts);
        if number <= folded.highest {
            let what = "and that or a later attempt had ended before";
            self.job(
                "attempts",
                id,
                format_args!("attempt {number} ended it, {what}"),
            );
        }
        if number < i64::from(slot.highest) {
            let highest = slot.highest;
            self.job(
                "attempts",
                id,
                format_args!("attempt {number} ended it, and {highest} had been given out"),
            );
        }
        if complete && number > i64::from(slot.highest) {
            self.job(
                "attempts",
                id,
                format_args!("attempt {number} ended it, and was never given to a worker"),
            );
        }
        if !facts.has_epoch(end.epoch) || end.epoch < folded.epoch {
            let epoch = end.epoch;
            self.job(
                "epochs",
                id,
                format_args!("it ended in epoch {epoch}, which there never was, or was over"),
            );
        }
        if !end
            .worker
            .is_some_and(|worker| facts.workers.contains(&worker))
        {
            self.job("workers", id, "it ended on a worker that is not there");
        }
    }

    fn judge_attempts(&mut self, id: i64, folded: &Folded, slot: Slot, complete: bool) {
        let whole = usize::from(slot.highest);
        let once = slot.count == slot.highest && slot.sum == self.mixed[whole];
        if slot.count > slot.highest || (complete && !once) {
            self.job(
                "attempts",
                id,
                format_args!(
                    "{} attempts were given out and the highest is {}: one came twice, or one is missing",
                    slot.count, slot.highest
                ),
            );
        }
        if complete && folded.highest > i64::from(slot.highest) {
            let number = folded.highest;
            self.job(
                "attempts",
                id,
                format_args!("attempt {number} ended, and was never given to a worker"),
            );
        }
        if complete && slot.started > slot.highest {
            let number = slot.started;
            self.job(
                "attempts",
                id,
                format_args!("attempt {number} started, and was never given to a worker"),
            );
        }
    }

    /// What the mark carries must say what the rows below it say.
    fn judge_carried(&mut self, id: i64, one: &One, slot: Slot) {
        let live = one.job.is_some() && one.end.is_none();
        let below = id <= self.facts.mark_id;
        let Some(carried) = &one.carried else {
            if live && below {
                let what = "it has not ended, lies below the mark and is not carried over it: a restart would forget it";
                self.job("carried", id, what);
            }
            return;
        };
        self.tally.carried += 1;
        if !live || !below {
            let what = "it is carried over the mark, and has ended, lies above it or is not there";
            return self.job("carried", id, what);
        }
        let folded = &one.folded;
        let counts = [carried.failures, carried.losses, carried.later];
        if counts != folded.charges[1..4] || carried.ended != folded.highest {
            let what = "what is carried over the mark of its attempts is not what their rows say";
            self.job("carried", id, what);
        }
        let runs = carried.attempt > carried.ended;
        let ran = carried.run_attempt.is_some();
        if runs != ran
            || carried
                .run_attempt
                .is_some_and(|number| number != carried.attempt)
            || carried.attempt < carried.ended
            || carried.attempt > folded.highest.max(i64::from(slot.highest)) && slot.count > 0
        {
            self.job(
                "carried",
                id,
                "its running attempt is not the last one given out",
            );
        }
        if ran {
            let epoch = carried
                .run_epoch
                .is_some_and(|epoch| self.facts.has_epoch(epoch));
            let worker = carried.run_worker;
            if !epoch || !worker.is_some_and(|worker| self.facts.workers.contains(&worker)) {
                self.job(
                    "carried",
                    id,
                    "it runs in an epoch or on a worker that is not there",
                );
            }
        }
        if folded.ever_started && !carried.ever_started {
            self.job(
                "carried",
                id,
                "an attempt of it started, and what is carried denies it",
            );
        }
        if carried.cancelling.is_some() != one.mark.is_some() {
            let what = "whether it was told to stop is not what its mark says";
            self.job("carried", id, what);
        }
        if let Some(reason) = carried.cancelling {
            self.known_reason(id, reason);
        }
        match (carried.dues, carried.due_reason) {
            (0, None) => {}
            (1, Some(reason)) => self.known_reason(id, reason),
            _ => self.job(
                "carried",
                id,
                "when it is due is not one moment with one reason",
            ),
        }
    }

    fn known_reason(&mut self, id: i64, code: i64) {
        let known = u8::try_from(code).ok().and_then(Reason::from_code);
        if known.is_none() {
            self.job("codes", id, format_args!("{code} is no reason"));
        }
    }

    fn job(&mut self, check: &'static str, id: i64, message: impl std::fmt::Display) {
        match u64::try_from(id) {
            Ok(id) => self.report.find_job(check, id, message),
            Err(_) => self.report.find(check, format_args!("job {id}: {message}")),
        }
    }

    /// The sums.
    fn finish(self) {
        let Self {
            facts,
            report,
            tally,
            ..
        } = self;
        report.count("jobs", tally.jobs);
        report.count("ends", tally.ends);
        report.count("attempts", tally.attempts);
        report.count("unfinished", tally.unfinished);
        report.count("carried", tally.carried);
        if tally.carried != tally.unfinished_below {
            report.find(
                "mark",
                format_args!(
                    "{} jobs below the mark have not ended, and {} are carried over it",
                    tally.unfinished_below, tally.carried
                ),
            );
        }
        if facts.purged_id > 0 {
            return report.skip(
                "whether the counters fit the tables",
                "retention has dropped old jobs",
            );
        }
        let mut fits = |what: &str, counted: u64, there: u64| {
            if counted > there {
                report.find(
                    "counters",
                    format_args!(
                        "{counted} {what} were counted, and {there} are there: some are lost"
                    ),
                );
            }
        };
        fits("jobs accepted", facts.counted.submitted, tally.jobs);
        fits(
            "attempts that ended",
            facts.counted.attempts,
            tally.attempts,
        );
        for (place, state) in ENDED.iter().enumerate() {
            let what = format!("jobs {}", state.name());
            fits(&what, facts.counted.ended[place], tally.ended[place]);
        }
    }
}

/// Numbers of shares as they come.
#[derive(Debug, Default)]
struct Sequence {
    first: Option<i64>,
    last: Option<i64>,
    has_gap: bool,
    epoch: i64,
}

/// What the tables say of one id.
#[derive(Debug, Default)]
struct One {
    job: Option<JobRow>,
    end: Option<EndRow>,
    mark: Option<i64>,
    carried: Option<CarriedRow>,
    folded: Folded,
}

/// Its rows of `attempts`.
#[derive(Debug, Default)]
struct Folded {
    highest: i64,
    epoch: i64,
    /// By charge: returned, failed, lost, later.
    charges: [i64; 4],
    ever_started: bool,
}

#[derive(Debug)]
struct JobRow {
    class: i64,
    priority: i64,
    sync: i64,
    no_body: bool,
    engine_bytes: Option<i64>,
    retry_of: Option<i64>,
}

impl JobRow {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            class: row.get(1)?,
            priority: row.get(2)?,
            sync: row.get(3)?,
            no_body: row.get(4)?,
            engine_bytes: row.get(5)?,
            retry_of: row.get(6)?,
        })
    }
}

#[derive(Debug)]
struct EndRow {
    state: i64,
    reason: i64,
    attempt: i64,
    epoch: i64,
    worker: Option<i64>,
    output_place: i64,
}

impl EndRow {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            state: row.get(1)?,
            reason: row.get(2)?,
            attempt: row.get(3)?,
            epoch: row.get(4)?,
            worker: row.get(5)?,
            output_place: row.get(6)?,
        })
    }
}

#[derive(Debug)]
struct AttemptRow {
    number: i64,
    epoch: i64,
    worker: i64,
    reason: i64,
    charge: i64,
    started: bool,
    two_dues: bool,
}

impl AttemptRow {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            number: row.get(1)?,
            epoch: row.get(2)?,
            worker: row.get(3)?,
            reason: row.get(4)?,
            charge: row.get(5)?,
            started: row.get(6)?,
            two_dues: row.get(7)?,
        })
    }
}

#[derive(Debug)]
struct CarriedRow {
    attempt: i64,
    ended: i64,
    failures: i64,
    losses: i64,
    later: i64,
    ever_started: bool,
    run_attempt: Option<i64>,
    run_epoch: Option<i64>,
    run_worker: Option<i64>,
    dues: u8,
    due_reason: Option<i64>,
    cancelling: Option<i64>,
}

impl CarriedRow {
    fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        let due =
            |column: usize| -> rusqlite::Result<u8> { Ok(row.get::<_, bool>(column)?.into()) };
        Ok(Self {
            attempt: row.get(1)?,
            ended: row.get(2)?,
            failures: row.get(3)?,
            losses: row.get(4)?,
            later: row.get(5)?,
            ever_started: row.get(6)?,
            run_attempt: row.get(7)?,
            run_epoch: row.get(8)?,
            run_worker: row.get(9)?,
            dues: due(10)? + due(11)?,
            due_reason: row.get(12)?,
            cancelling: row.get(13)?,
        })
    }
}

/// A table in the order of its first column, one row ahead.
struct Cursor<'s, T> {
    rows: Rows<'s>,
    read: fn(&Row<'_>) -> rusqlite::Result<T>,
    head: Option<(i64, T)>,
}

impl<'s, T> Cursor<'s, T> {
    fn new(
        statement: &'s mut Statement<'_>,
        from: i64,
        read: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Self, Fault> {
        let mut cursor = Self {
            rows: statement.query([from])?,
            read,
            head: None,
        };
        cursor.advance()?;
        Ok(cursor)
    }

    fn key(&self) -> Option<i64> {
        self.head.as_ref().map(|(key, _)| *key)
    }

    /// The next row, if it is of that id.
    fn take(&mut self, id: i64) -> Result<Option<T>, Fault> {
        if self.key() != Some(id) {
            return Ok(None);
        }
        let (_, row) = self.head.take().expect("it has a key");
        self.advance()?;
        Ok(Some(row))
    }

    fn advance(&mut self) -> Result<(), Fault> {
        self.head = match self.rows.next()? {
            Some(row) => Some((row.get(0)?, (self.read)(row)?)),
            None => None,
        };
        Ok(())
    }
}
