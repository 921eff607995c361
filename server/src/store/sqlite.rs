//! The store in SQLite: opening and claiming a file, and the one transaction that a commit is.
//!
//! Append-only where it is hot, each batch in id order, one prepared single-row statement each; parameters that do not
//! change from row to row are bound once. The file is in WAL mode. `synchronous` is FULL while a commit must be on disk
//! before it is answered, and NORMAL else; it is switched between transactions.
//!
//! Keeps P1 and P2 (after `commit` it is there), and the guards of two servers: the lock file (`lock`), and, should
//! somebody remove that, the epoch, checked in each transaction. What SQLite rolled back for want of space, or because the
//! file system is read-only, is `Refused`; after any other failure nobody knows what the disk holds, and the store takes
//! nothing more.
//!
//! Not here: reading for people (`read`), recovery (`load`), the mark (`mark`), the log's way into the file
//! (`checkpoint`), retention (`retention`).

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use hostler_engine::fact::Ended;
use hostler_engine::spec::ClassId;
use hostler_engine::{Time, WallTime, When};
use hostler_wire::{Detail, Epoch, Fence, JobId, JobState, Reason, WorkerId};
use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Statement, ffi};

use crate::clock::Stamp;
use crate::store::checkpoint::{self, Log};
use crate::store::fold::{self, Rows, Share};
use crate::store::lock::Lock;
use crate::store::mark::Mark;
use crate::store::retention::Housekeeping;
use crate::store::seam::{
    Batch, Commit, CommitError, KeyRecord, NewJob, Opening, Read, Store, StoreError, StoreErrorKind,
};
use crate::store::{audit, class, load, read, sql, tokens};

/// The database's name in the data directory.
pub const FILE: &str = "hostler.db";

/// "Hstl": marks a file as ours.
pub(super) const APPLICATION_ID: i32 = 0x4873_746c;
/// The schema this program writes.
pub(super) const SCHEMA: i32 = 3;
pub(super) const PAGE_BYTES: u32 = 16_384;
/// The log's file is cut back to this after a reader has held up a checkpoint.
const WAL_KEEP_BYTES: u32 = 256 << 20;
/// What the writer keeps of the file in memory, as SQLite wants it told: KiB, negative.
pub(super) const CACHE: i32 = -65_536;
/// Nobody else writes to our file; a person's sqlite3 may, for a moment.
const BUSY: std::time::Duration = std::time::Duration::from_millis(100);

/// The store in `DATA_DIR/hostler.db`.
#[derive(Debug)]
pub struct SqliteStore {
    pub(super) db: Connection,
    pub(super) path: PathBuf,
    pub(super) opening: Opening,
    pub(super) mark: Mark,
    pub(super) housekeeping: Housekeeping,
    pub(super) log: Log,
    /// Number of the last row of `assigned` and `started`.
    seq: i64,
    /// Other connections can read the same file.
    is_shared: bool,
    /// `synchronous` is FULL.
    full: bool,
    /// Why nothing more is taken.
    dead: Option<StoreError>,
    /// For a share's blob.
    scratch: Vec<u8>,
    /// The last field, so that it is the last to be dropped.
    _lock: Lock,
}

impl SqliteStore {
    /// Opens or makes the database of that directory, and claims it under a new epoch, which is on disk when this
    /// returns.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_on(dir, None)
    }

    /// The same with files from another layer than the system's, which a test has registered with SQLite.
    #[doc(hidden)]
    pub fn open_on(dir: &Path, files: Option<&str>) -> Result<Self, StoreError> {
        make_dir(dir)?;
        let lock = Lock::take(dir)?;
        let path = dir.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let (db, found) = match files {
            None => Connection::open_with_flags(&path, flags),
            Some(files) => Connection::open_with_flags_and_vfs(&path, flags, files),
        }
        .map_err(Fault::from)
        .and_then(|db| {
            prepare(&db, &path)?;
            let found = claim(&db)?;
            Ok((db, found))
        })
        .map_err(|fault| fault.told(&path, "open"))?;
        Ok(Self {
            db,
            path,
            opening: found.opening,
            mark: found.mark,
            housekeeping: Housekeeping::default(),
            log: Log::default(),
            seq: found.seq,
            is_shared: files.is_none(),
            full: true,
            dead: None,
            scratch: Vec::new(),
            _lock: lock,
        })
    }

    /// Fails later commits for want of space, as a full disk would.
    #[doc(hidden)]
    pub fn limit_pages(&mut self, pages: u32) -> u32 {
        let limit = |db: &Connection| {
            db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| {
                row.get(0)
            })
        };
        limit(&self.db).unwrap_or(0)
    }

    /// Checkpoints after so few pages that a test need not write 64 MiB first.
    #[doc(hidden)]
    pub fn checkpoint_every(&mut self, pages: u32) {
        self.log.checkpoint_pages = pages;
    }

    /// The file, if other connections can read it too: not on a test's own layer.
    pub(super) fn shared_file(&self) -> Option<&Path> {
        self.is_shared.then_some(&*self.path)
    }

    /// Runs `work` in a transaction that checks the epoch. Housekeeping's way to write.
    pub(super) fn within<T>(
        &mut self,
        doing: &str,
        work: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let run = || {
            // Nothing is lost with an unsynced step but the step.
            self.set_synchronous(false)?;
            begin(&self.db, self.opening.epoch)?;
            let done = work(self)?;
            self.db.prepare_cached("COMMIT")?.raw_execute()?;
            Ok(done)
        };
        run().map_err(|fault: Fault| {
            roll_back(&self.db);
            fault.told_of_write(&self.path, doing)
        })
    }

    fn write(&mut self, commit: &Commit<'_>) -> Result<(), Fault> {
        begin(&self.db, commit.epoch)?;
        for class in commit.classes {
            self.db.prepare_cached(sql::CLASS)?.execute((
                class.id.raw(),
                &*class.spec.queue,
                class.spec.retry.max_attempts,
                class::encode(&class.spec),
            ))?;
        }
        insert_jobs(&self.db, &commit.stamp, commit.submissions)?;
        let rows = fold::fold(commit.epoch, commit.facts);
        let seq = self.insert_rows(&commit.stamp, &rows)?;
        for &job in commit.purges {
            self.db.prepare_cached(sql::PURGE)?.execute([job.raw()])?;
        }
        tokens::change(&self.db, commit.tokens)?;
        audit::insert(&self.db, commit.audit)?;
        if let Some(totals) = &commit.totals {
            self.db.prepare_cached(sql::METRICS)?.execute((
                int(commit.stamp.wall.millis()),
                commit.epoch.raw(),
                int(totals.submitted),
                int(totals.succeeded),
                int(totals.failed),
                int(totals.cancelled),
                int(totals.expired),
                int(totals.skipped),
                int(totals.attempts),
                int(totals.commits),
                int(totals.refused),
                int(totals.live),
            ))?;
        }
        self.db.prepare_cached(sql::META_COMMIT)?.execute((
            commit.epoch.raw(),
            int(commit.batch),
            int(commit.stamp.engine.micros()),
            commit.stamp.boot.to_le_bytes(),
            int(commit.stamp.boottime_us),
            int(commit.stamp.wall.millis()),
            int(commit.ids_through.raw()),
        ))?;
        self.db.prepare_cached("COMMIT")?.raw_execute()?;
        self.log.commits = self.log.commits.saturating_add(1);
        self.seq = seq;
        let submitted = commit
            .submissions
            .iter()
            .map(|batch| batch.jobs.len() as u64)
            .sum();
        self.mark.count(submitted, &rows.ends);
        Ok(())
    }

    /// The facts' rows; returns the number of the last share.
    fn insert_rows(&mut self, stamp: &Stamp, rows: &Rows<'_>) -> Result<i64, Fault> {
        let db = &self.db;
        for worker in &rows.workers {
            db.prepare_cached(sql::WORKER)?.execute((
                worker.id.raw(),
                &worker.name,
                worker.instance.cast_signed(),
                int(stamp.wall_of(worker.at).millis()),
            ))?;
        }
        let mut seq = self.seq;
        for (statement, shares) in [
            (sql::ASSIGNED, &rows.assigned),
            (sql::STARTED, &rows.started),
        ] {
            for share in shares {
                seq += 1;
                insert_share(db, statement, seq, share, &mut self.scratch)?;
            }
        }
        for again in &rows.attempts {
            let mut insert = db.prepare_cached(sql::ATTEMPT)?;
            insert.raw_bind_parameter(1, again.fence.job.raw())?;
            insert.raw_bind_parameter(2, again.fence.attempt.raw())?;
            insert.raw_bind_parameter(3, again.fence.epoch.raw())?;
            insert.raw_bind_parameter(4, again.worker.raw())?;
            insert
                .raw_bind_parameter(5, again.started.map(|at| int(stamp.wall_of(at).millis())))?;
            insert.raw_bind_parameter(6, int(stamp.wall_of(again.at).millis()))?;
            insert.raw_bind_parameter(7, again.reason.code())?;
            insert.raw_bind_parameter(8, again.charge as u8)?;
            bind_detail(&mut insert, again.detail.as_deref())?;
            let (us, ms) = split(again.due);
            insert.raw_bind_parameter(20, us)?;
            insert.raw_bind_parameter(21, ms)?;
            insert.raw_execute()?;
        }
        for mark in &rows.marks {
            db.prepare_cached(sql::MARK)?.execute((
                mark.job.raw(),
                int(stamp.wall_of(mark.at).millis()),
                mark.reason.code(),
                mark.note.as_deref(),
            ))?;
        }
        self.mark.keep_up(db, rows)?;
        insert_ends(db, stamp, &rows.ends)?;
        Ok(seq)
    }

    /// What a failed commit means. Only what SQLite rolled back for a reason that may pass leaves the store usable.
    fn judge(&mut self, fault: Fault) -> CommitError {
        if let Fault::Deposed = fault {
            roll_back(&self.db);
            return CommitError::Deposed;
        }
        let error = fault.told_of_write(&self.path, "write");
        let rolled_back = roll_back(&self.db);
        match error.kind {
            StoreErrorKind::Full | StoreErrorKind::Busy | StoreErrorKind::ReadOnly
                if rolled_back =>
            {
                CommitError::Refused(error)
            }
            StoreErrorKind::Full
            | StoreErrorKind::Busy
            | StoreErrorKind::ReadOnly
            | StoreErrorKind::Io
            | StoreErrorKind::Corrupt
            | StoreErrorKind::OtherVersion
            | StoreErrorKind::InUse
            | StoreErrorKind::NoIndex => {
                self.dead = Some(error.clone());
                CommitError::Unknown(error)
            }
        }
    }

    fn set_synchronous(&mut self, full: bool) -> Result<(), Fault> {
        if self.full != full {
            let level = if full { "FULL" } else { "NORMAL" };
            self.db.pragma_update(None, "synchronous", level)?;
            self.full = full;
        }
        Ok(())
    }
}

impl Store for SqliteStore {
    fn opening(&self) -> &Opening {
        &self.opening
    }

    fn load(
        &mut self,
        each: &mut dyn FnMut(hostler_engine::event::Restore),
    ) -> Result<(), StoreError> {
        load::load(self, each).map_err(|fault| fault.told(&self.path, "recover from"))
    }

    fn commit(&mut self, commit: &Commit<'_>) -> Result<(), CommitError> {
        if let Some(error) = &self.dead {
            return Err(CommitError::Unknown(error.clone()));
        }
        check(commit);
        let done = self
            .set_synchronous(commit.sync)
            .and_then(|()| self.write(commit));
        done.map_err(|fault| self.judge(fault))
    }

    fn key(&mut self, token: &str, key: &str) -> Result<Option<KeyRecord>, StoreError> {
        let find = || -> Result<Option<KeyRecord>, Fault> {
            let mut find = self.db.prepare_cached(sql::KEY)?;
            let mut rows = find.query((token, key))?;
            let Some(row) = rows.next()? else {
                return Ok(None);
            };
            Ok(Some(KeyRecord {
                token: token.into(),
                key: key.into(),
                body_hash: row.get(0)?,
                first: job_id(row.get(1)?)?,
                count: row.get(2)?,
                at: Time::from_micros(row.get::<_, u64>(3)?.saturating_mul(1_000)),
            }))
        };
        find().map_err(|fault| fault.told(&self.path, "read"))
    }

    fn reader(&self) -> Result<Box<dyn Read>, StoreError> {
        Ok(Box::new(read::SqliteReader::open(&self.path)?))
    }

    fn maintain(&mut self, stamp: &Stamp) -> Result<bool, StoreError> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        self.checkpoint(stamp)?;
        Ok(self.move_mark()? || self.retain(stamp)? || self.make_room()?)
    }

    fn log_bytes(&self) -> u64 {
        self.log.bytes()
    }

    fn close(self: Box<Self>) -> Result<(), StoreError> {
        let Self { db, path, dead, .. } = *self;
        if let Some(error) = dead {
            return Err(error);
        }
        // What was written unsynced is synced by the checkpoint that closing the last connection makes.
        let told = |error: rusqlite::Error| Fault::from(error).told(&path, "close");
        db.execute_batch("PRAGMA synchronous = FULL; PRAGMA optimize;")
            .map_err(told)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
            .map_err(told)?;
        db.close().map_err(|(_, error)| told(error))
    }
}

/// What the caller promises; breaking it would break ours.
fn check(commit: &Commit<'_>) {
    let mut last = 0;
    for batch in commit.submissions {
        assert!(batch.first.raw() > last, "batches come in id order");
        last = batch.first.raw() + (batch.jobs.len() as u64).saturating_sub(1);
    }
    assert!(
        last < commit.ids_through.raw(),
        "ids are promised before they are used"
    );
}

pub(super) fn begin(db: &Connection, epoch: Epoch) -> Result<(), Fault> {
    db.prepare_cached("BEGIN IMMEDIATE")?.raw_execute()?;
    let last: u32 = db
        .prepare_cached(sql::EPOCH_LAST)?
        .query_row([], |row| row.get(0))?;
    if last == epoch.raw() {
        Ok(())
    } else {
        Err(Fault::Deposed)
    }
}

/// Whether no transaction is open any more. SQLite rolls back by itself on some errors, and a second ROLLBACK would
/// hide the first error behind its own.
pub(super) fn roll_back(db: &Connection) -> bool {
    db.is_autocommit() || (db.execute_batch("ROLLBACK").is_ok() && db.is_autocommit())
}

fn insert_jobs(db: &Connection, stamp: &Stamp, batches: &[Batch]) -> Result<(), Fault> {
    if batches.is_empty() {
        return Ok(());
    }
    let mut insert = JobInsert::new(db)?;
    for batch in batches {
        insert.batch(stamp, batch)?;
        if let Some(key) = &batch.key {
            db.prepare_cached(sql::KEY_NEW)?.execute((
                &*key.token,
                &*key.key,
                key.body_hash,
                key.first.raw(),
                key.count,
                int(key.at.micros() / 1_000),
            ))?;
        }
    }
    Ok(())
}

/// The two statements of a job's row, for plain jobs and for those with a name, a time or the like. Bindings outlive
/// a step, so what all jobs of a batch have in common is bound once: binding was 6 % of the writer's time.
struct JobInsert<'a> {
    plain: rusqlite::CachedStatement<'a>,
    /// The same for neighbours that differ in id and body only.
    run: rusqlite::CachedStatement<'a>,
    full: rusqlite::CachedStatement<'a>,
    /// What `plain` is bound to: class, priority, sync.
    bound: Option<(ClassId, i8, bool)>,
}

impl<'a> JobInsert<'a> {
    fn new(db: &'a Connection) -> Result<Self, Fault> {
        Ok(Self {
            plain: db.prepare_cached(sql::JOB_PLAIN)?,
            run: db.prepare_cached(sql::JOBS_PLAIN)?,
            full: db.prepare_cached(sql::JOB)?,
            bound: None,
        })
    }

    fn batch(&mut self, stamp: &Stamp, batch: &Batch) -> Result<(), Fault> {
        for statement in [&mut self.plain, &mut self.run, &mut self.full] {
            statement.raw_bind_parameter(5, int(stamp.wall_of(batch.at).millis()))?;
            statement.raw_bind_parameter(6, &*batch.by)?;
        }
        let mut id = batch.first.raw();
        for run in batch.jobs.chunk_by(are_plain_and_alike) {
            match run {
                [job] if is_plain(job) => self.plain_job(id, job)?,
                [job] => self.full_job(stamp, id, job)?,
                run => self.plain_run(id, run)?,
            }
            id += run.len() as u64;
        }
        Ok(())
    }

    /// All of them in one statement: its own cost is a fifth of a row's.
    fn plain_run(&mut self, first: u64, run: &[NewJob]) -> Result<(), Fault> {
        bind_common(&mut self.run, common(&run[0]))?;
        let bodies = run.iter().map(|job| Value::Blob(job.body.to_vec()));
        self.run.raw_bind_parameter(1, first.cast_signed() - 1)?;
        self.run
            .raw_bind_parameter(7, Rc::new(bodies.collect::<Vec<_>>()))?;
        self.run.raw_execute()?;
        Ok(())
    }

    fn plain_job(&mut self, id: u64, job: &NewJob) -> Result<(), Fault> {
        let common = common(job);
        if self.bound != Some(common) {
            bind_common(&mut self.plain, common)?;
            self.bound = Some(common);
        }
        self.plain.raw_bind_parameter(1, id.cast_signed())?;
        self.plain.raw_bind_parameter(7, &job.body[..])?;
        self.plain.raw_execute()?;
        Ok(())
    }

    fn full_job(&mut self, stamp: &Stamp, id: u64, job: &NewJob) -> Result<(), Fault> {
        let wall = |when: When| match when {
            When::Engine(at) => int(stamp.wall_of(at).millis()),
            When::Wall(at) => int(at.millis()),
        };
        let insert = &mut self.full;
        bind_common(insert, common(job))?;
        insert.raw_bind_parameter(1, id.cast_signed())?;
        insert.raw_bind_parameter(7, &job.body[..])?;
        insert.raw_bind_parameter(8, job.due.map(wall))?;
        insert.raw_bind_parameter(9, job.expires.map(wall))?;
        insert.raw_bind_parameter(10, job.deadline.map(wall))?;
        insert.raw_bind_parameter(11, engine_times(job))?;
        insert.raw_bind_parameter(12, job.retry_of.map(JobId::raw))?;
        insert.raw_bind_parameter(13, job.name.as_deref())?;
        insert.raw_bind_parameter(14, job.labels.as_deref())?;
        insert.raw_execute()?;
        Ok(())
    }
}

fn are_plain_and_alike(a: &NewJob, b: &NewJob) -> bool {
    common(a) == common(b) && is_plain(a) && is_plain(b)
}

/// What most neighbours have in common: class, priority, sync.
fn common(job: &NewJob) -> (ClassId, i8, bool) {
    (job.class.id, job.priority.raw(), job.sync)
}

fn is_plain(job: &NewJob) -> bool {
    job.due.is_none()
        && job.expires.is_none()
        && job.deadline.is_none()
        && job.retry_of.is_none()
        && job.name.is_none()
        && job.labels.is_none()
}

/// Parameters 2 to 4.
fn bind_common(insert: &mut Statement<'_>, common: (ClassId, i8, bool)) -> Result<(), Fault> {
    insert.raw_bind_parameter(2, common.0.raw())?;
    insert.raw_bind_parameter(3, common.1)?;
    insert.raw_bind_parameter(4, common.2)?;
    Ok(())
}

/// The exact moments of a job that lie on the engine's clock, if any do (`load::engine_time` reads them).
fn engine_times(job: &NewJob) -> Option<[u8; 24]> {
    let exact = |when: Option<When>| match when {
        Some(When::Engine(at)) => Some(at.micros().min(u64::MAX - 1)),
        Some(When::Wall(_)) | None => None,
    };
    let times = [exact(job.due), exact(job.expires), exact(job.deadline)];
    times.iter().any(Option::is_some).then(|| {
        let mut bytes = [0xff; 24];
        for (slot, time) in bytes.chunks_exact_mut(8).zip(times) {
            slot.copy_from_slice(&time.unwrap_or(u64::MAX).to_le_bytes());
        }
        bytes
    })
}

fn insert_share(
    db: &Connection,
    statement: &str,
    seq: i64,
    share: &Share,
    scratch: &mut Vec<u8>,
) -> Result<(), Fault> {
    scratch.clear();
    share.encode(scratch);
    db.prepare_cached(statement)?.execute((
        seq,
        share.epoch.raw(),
        share.worker.raw(),
        int(share.at.micros()),
        &scratch[..],
    ))?;
    Ok(())
}

/// Most small jobs succeed and have no more to tell: those have rows of their own, and neighbours that differ in nothing
/// but the id are one statement.
fn insert_ends(db: &Connection, stamp: &Stamp, ends: &[&Ended]) -> Result<(), Fault> {
    /// From so many on a statement for all of them costs less than one for each.
    const MANY: usize = 3;
    if ends.is_empty() {
        return Ok(());
    }
    let ms = |at: Time| int(stamp.wall_of(at).millis());
    let mut full = db.prepare_cached(sql::END)?;
    let mut one = db.prepare_cached(sql::DONE)?;
    let mut many = db.prepare_cached(sql::DONE_FROM_TO)?;
    let alike = |a: &&Ended, b: &&Ended| a.job.raw() + 1 == b.job.raw() && ended_alike(stamp, a, b);
    for run in ends.chunk_by(alike) {
        let Some((fence, worker)) = done(run[0]) else {
            for end in run {
                bind_end(&mut full, stamp, end)?;
                bind_detail(&mut full, end.detail.as_deref())?;
                full.raw_execute()?;
            }
            continue;
        };
        let insert = if run.len() < MANY {
            &mut one
        } else {
            &mut many
        };
        insert.raw_bind_parameter(2, fence.attempt.raw())?;
        insert.raw_bind_parameter(3, fence.epoch.raw())?;
        insert.raw_bind_parameter(4, worker.raw())?;
        insert.raw_bind_parameter(5, run[0].started.map(ms))?;
        insert.raw_bind_parameter(6, ms(run[0].at))?;
        if let Some(last) = run.last().filter(|_| run.len() >= MANY) {
            insert.raw_bind_parameter(1, run[0].job.raw().cast_signed())?;
            insert.raw_bind_parameter(7, last.job.raw().cast_signed())?;
            insert.raw_execute()?;
            continue;
        }
        for end in run {
            insert.raw_bind_parameter(1, end.job.raw().cast_signed())?;
            insert.raw_execute()?;
        }
    }
    Ok(())
}

/// Which attempt of whom a row of `done` names; none if that table has no room for all there is to tell.
fn done(end: &Ended) -> Option<(Fence, WorkerId)> {
    let (fence, worker) = end.fence.zip(end.worker)?;
    let silent = (end.state, end.reason) == (JobState::Succeeded, Reason::None);
    (silent && end.detail.is_none()).then_some((fence, worker))
}

/// Whether the rows of two ends without details differ in nothing but the id.
fn ended_alike(stamp: &Stamp, a: &Ended, b: &Ended) -> bool {
    let fence = |end: &Ended| end.fence.map(|fence| (fence.attempt, fence.epoch));
    let ms = |at: Time| stamp.wall_of(at).millis();
    let same_time = |a: Time, b: Time| a == b || ms(a) == ms(b);
    let same_start = match (a.started, b.started) {
        (Some(a), Some(b)) => same_time(a, b),
        (a, b) => a == b,
    };
    fence(a) == fence(b)
        && (a.worker, a.reason, a.state) == (b.worker, b.reason, b.state)
        && same_start
        && same_time(a.at, b.at)
        && a.detail.is_none()
        && b.detail.is_none()
}

/// Parameters 1 to 8.
fn bind_end(insert: &mut Statement<'_>, stamp: &Stamp, end: &Ended) -> Result<(), Fault> {
    let ms = |at: Time| int(stamp.wall_of(at).millis());
    insert.raw_bind_parameter(1, end.job.raw().cast_signed())?;
    insert.raw_bind_parameter(2, end.fence.map_or(0, |fence| fence.attempt.raw()))?;
    insert.raw_bind_parameter(3, end.fence.map_or(0, |fence| fence.epoch.raw()))?;
    insert.raw_bind_parameter(4, end.worker.map(|worker| worker.raw()))?;
    insert.raw_bind_parameter(5, end.started.map(ms))?;
    insert.raw_bind_parameter(6, ms(end.at))?;
    insert.raw_bind_parameter(7, end.reason.code())?;
    insert.raw_bind_parameter(8, end.state.code())?;
    Ok(())
}

/// Parameters 9 to 19. The message is NULL only if there is no detail at all.
fn bind_detail(insert: &mut Statement<'_>, detail: Option<&Detail>) -> Result<(), Fault> {
    let usage = detail.and_then(|detail| detail.usage);
    insert.raw_bind_parameter(9, detail.and_then(|detail| detail.exit_code))?;
    insert.raw_bind_parameter(10, detail.and_then(|detail| detail.signal))?;
    insert.raw_bind_parameter(11, usage.map(|usage| int(usage.user_ms)))?;
    insert.raw_bind_parameter(12, usage.map(|usage| int(usage.system_ms)))?;
    insert.raw_bind_parameter(13, usage.map(|usage| int(usage.peak_rss_bytes)))?;
    insert.raw_bind_parameter(14, usage.map(|usage| int(usage.stdout_bytes)))?;
    insert.raw_bind_parameter(15, usage.map(|usage| int(usage.stderr_bytes)))?;
    insert.raw_bind_parameter(16, detail.map(|detail| &*detail.message))?;
    insert.raw_bind_parameter(
        17,
        detail
            .map(|detail| &detail.result[..])
            .filter(|bytes| !bytes.is_empty()),
    )?;
    insert.raw_bind_parameter(
        18,
        detail
            .map(|detail| &detail.stderr_tail[..])
            .filter(|bytes| !bytes.is_empty()),
    )?;
    insert.raw_bind_parameter(19, usage.map(|usage| int(usage.wall_ms)))?;
    Ok(())
}

/// A moment in two columns, of which one is NULL: the engine's microseconds, the wall's milliseconds.
pub(super) fn split(when: Option<When>) -> (Option<i64>, Option<i64>) {
    match when {
        Some(When::Engine(at)) => (Some(int(at.micros())), None),
        Some(When::Wall(at)) => (None, Some(int(at.millis()))),
        None => (None, None),
    }
}

/// The other way.
pub(super) fn joined(us: Option<u64>, ms: Option<u64>) -> Option<When> {
    us.map(|us| When::Engine(Time::from_micros(us)))
        .or(ms.map(|ms| When::Wall(WallTime::from_millis(ms))))
}

/// As SQLite's integer. What does not fit is a moment 292,000 years on, or a worker's figure that no machine reaches.
pub(super) fn int(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// An id from a row.
pub(super) fn job_id(raw: u64) -> Result<JobId, Fault> {
    JobId::new(raw).ok_or_else(|| Fault::Garbled(format!("{raw} is no job id")))
}

/// A state from a row.
pub(super) fn state(code: u8) -> Result<JobState, Fault> {
    JobState::from_code(code).ok_or_else(|| Fault::Garbled(format!("{code} is no state")))
}

/// A reason from a row.
pub(super) fn reason(code: u8) -> Result<Reason, Fault> {
    Reason::from_code(code).ok_or_else(|| Fault::Garbled(format!("{code} is no reason")))
}

/// What can go wrong in here.
#[derive(Debug)]
pub(super) enum Fault {
    Sql(rusqlite::Error),
    /// A row holds what we never write.
    Garbled(String),
    /// The file cannot be used, and why.
    Refused(StoreErrorKind, String),
    /// A later epoch is in the file.
    Deposed,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl Fault {
    /// The system refused something.
    pub(super) fn system(doing: &str, error: &std::io::Error) -> Self {
        let what = format!("cannot be used: the system cannot {doing}: {error}");
        Self::Refused(StoreErrorKind::Io, what)
    }

    /// In words, for those outside.
    pub(super) fn told(self, path: &Path, doing: &str) -> StoreError {
        let path = path.display();
        let (kind, message) = match self {
            Self::Sql(error) => {
                let kind = kind_of(&error);
                let way_out = match kind {
                    StoreErrorKind::Full => "; free some space, the server goes on by itself",
                    StoreErrorKind::Corrupt => {
                        "; the file is damaged: keep it, and restore a backup or salvage it with sqlite3's .recover"
                    }
                    StoreErrorKind::ReadOnly => "; check the permissions of file and directory",
                    StoreErrorKind::Busy => "; somebody else holds a lock on it",
                    StoreErrorKind::Io
                    | StoreErrorKind::OtherVersion
                    | StoreErrorKind::InUse
                    | StoreErrorKind::NoIndex => "",
                };
                (kind, format!("cannot {doing} {path}: {error}{way_out}"))
            }
            Self::Garbled(what) => (
                StoreErrorKind::Corrupt,
                format!("cannot {doing} {path}: {what}; the file is damaged, restore a backup"),
            ),
            Self::Refused(kind, what) => (kind, format!("{path} {what}")),
            Self::Deposed => (
                StoreErrorKind::InUse,
                format!("another server has taken over {path}"),
            ),
        };
        StoreError { kind, message }
    }

    /// The same of a write. One that the file system did not begin, because it is read-only, has done nothing: SQLite
    /// tells it like any other that failed, so the file system is asked. A sync that fails there is another matter.
    pub(super) fn told_of_write(self, path: &Path, doing: &str) -> StoreError {
        let not_written = match &self {
            Self::Sql(rusqlite::Error::SqliteFailure(error, _)) => {
                matches!(
                    error.extended_code,
                    ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_TRUNCATE
                )
            }
            Self::Sql(_) | Self::Garbled(_) | Self::Refused(..) | Self::Deposed => false,
        };
        let mut error = self.told(path, doing);
        if not_written && is_read_only(path) {
            error.kind = StoreErrorKind::ReadOnly;
            error.message.push_str(
                ": its file system is read-only; make it writable again, the server goes on by itself",
            );
        }
        error
    }
}

/// Whether nothing can be made beside that file because its file system takes no writes.
fn is_read_only(path: &Path) -> bool {
    let probe = path.with_extension("probe");
    match File::create(&probe) {
        Ok(_) => {
            drop(std::fs::remove_file(probe));
            false
        }
        Err(error) => error.kind() == std::io::ErrorKind::ReadOnlyFilesystem,
    }
}

fn kind_of(error: &rusqlite::Error) -> StoreErrorKind {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreErrorKind::Full,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreErrorKind::Busy,
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreErrorKind::ReadOnly,
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory) => {
            StoreErrorKind::Io
        }
        // Whatever else a statement of ours can meet (a doubled key, a value of another type, a missing table) says
        // that the file is not what we wrote.
        _ => StoreErrorKind::Corrupt,
    }
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .and_then(|()| File::open(parent)?.sync_all())
        .map_err(|error| StoreError {
            kind: StoreErrorKind::Io,
            message: format!("cannot make the data directory {}: {error}", dir.display()),
        })
}

/// Has SQLite plan a statement once and for all. Else it may look at a parameter's value while it plans, and plans anew
/// each time another one is bound: it did so for a job's record and its attempts, each time they were asked for.
pub(super) fn steady_plans(db: &Connection) -> Result<(), Fault> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

/// Sets the connection up, and the file too if it is new. Refuses one that is not ours, or newer than we are.
fn prepare(db: &Connection, path: &Path) -> Result<(), Fault> {
    db.busy_timeout(BUSY)?;
    // A connection that goes because of a failure syncs nothing on its way out: nobody knows what the disk holds.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    db.set_prepared_statement_cache_capacity(64);
    steady_plans(db)?;
    rusqlite::vtab::array::load_module(db)?;
    rusqlite::vtab::series::load_module(db)?;
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let fresh = application == 0 && version == 0 && tables == 0;
    if !fresh && application != APPLICATION_ID {
        let what = format!(
            "is a database of another program (application id {application:#x}); give the server another data directory"
        );
        return Err(Fault::Refused(StoreErrorKind::Corrupt, what));
    }
    if version > SCHEMA {
        let what = format!(
            "has schema version {version}, and this program knows versions up to {SCHEMA}; run a newer hostler"
        );
        return Err(Fault::Refused(StoreErrorKind::OtherVersion, what));
    }
    if !fresh && version < 1 {
        let what = format!(
            "says schema version {version}, which this program never wrote; it works with versions 1 to {SCHEMA}, give \
             the server another data directory"
        );
        return Err(Fault::Refused(StoreErrorKind::OtherVersion, what));
    }
    if !fresh && let Some(table) = other_form(db, version)? {
        let what = format!(
            "says schema version {version}, but its table {table} is not this program's of that version; go on with the \
             hostler that made it, or give this one another data directory"
        );
        return Err(Fault::Refused(StoreErrorKind::OtherVersion, what));
    }
    if fresh {
        db.pragma_update(None, "page_size", PAGE_BYTES)?;
    }
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        let what = format!(
            "cannot use a write-ahead log here (journal mode {mode}); use a local file system"
        );
        return Err(Fault::Refused(StoreErrorKind::Io, what));
    }
    db.execute_batch(&format!(
        "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; \
         PRAGMA journal_size_limit = {WAL_KEEP_BYTES}; PRAGMA cache_size = {CACHE}; PRAGMA temp_store = MEMORY; \
         PRAGMA mmap_size = 0; PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;"
    ))?;
    checkpoint::settle(db)?;
    if fresh {
        tracing::info!(path = %path.display(), "new database");
        let mut cluster = [0; 16];
        random(&mut cluster)?;
        db.execute_batch("BEGIN IMMEDIATE")?;
        raise(db, 0)?;
        db.execute(sql::META_NEW, [cluster])?;
        db.pragma_update(None, "application_id", APPLICATION_ID)?;
        db.execute_batch("COMMIT")?;
    } else if version < SCHEMA {
        tracing::info!(path = %path.display(), from = version, to = SCHEMA, "the database's schema is brought up to date");
        db.execute_batch("BEGIN IMMEDIATE")?;
        raise(db, version)?;
        db.execute_batch("COMMIT")?;
    }
    Ok(())
}

/// A table of that version that is missing in the file, or is there in another form, or one of a later version that is
/// there already: then another build of this program made it.
fn other_form(db: &Connection, version: i32) -> Result<Option<&'static str>, Fault> {
    let versions = usize::try_from(version).unwrap_or_default();
    let steps = || sql::SCHEMAS.iter().take(versions);
    let later = || sql::SCHEMAS.iter().skip(versions);
    let mut find =
        db.prepare("SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1")?;
    let mut found = |name: &str| -> Result<Option<String>, Fault> {
        Ok(find.query_row([name], |row| row.get(0)).optional()?)
    };
    for name in steps().flat_map(|step| tables_of(step)) {
        if found(name)?.is_none_or(|found| !steps().any(|step| step.contains(&found))) {
            return Ok(Some(name));
        }
    }
    for name in later().flat_map(|step| tables_of(step)) {
        if found(name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The tables that a step of the schema makes.
fn tables_of(step: &'static str) -> impl Iterator<Item = &'static str> {
    step.lines().filter_map(|line| {
        let rest = line.strip_prefix("CREATE TABLE ")?;
        rest.split(' ').next()
    })
}

/// Makes the schema this program knows from that version of it, within a transaction.
fn raise(db: &Connection, version: i32) -> Result<(), Fault> {
    let done = usize::try_from(version)
        .map_err(|_negative| Fault::Garbled(format!("{version} is no schema version")))?;
    for step in &sql::SCHEMAS[done..] {
        db.execute_batch(step)?;
    }
    db.pragma_update(None, "user_version", SCHEMA)?;
    Ok(())
}

/// What opening found.
struct Found {
    opening: Opening,
    mark: Mark,
    seq: i64,
}

/// Inserts this start's epoch, synced (the connection begins with FULL), and reads what the opening tells.
fn claim(db: &Connection) -> Result<Found, Fault> {
    let mut nonce = [0; 16];
    random(&mut nonce)?;
    db.execute_batch("BEGIN IMMEDIATE")?;
    let last: Option<u32> = db.query_row(sql::EPOCH_LAST, [], |row| row.get(0))?;
    let epoch = last.unwrap_or(0).checked_add(1);
    let epoch = epoch.ok_or_else(|| Fault::Garbled("epochs are exhausted".into()))?;
    db.execute(sql::EPOCH_NEW, (epoch, nonce))?;
    for state in JobState::ALL {
        db.execute(sql::STATE_NAME, (state.code(), state.name()))?;
    }
    for reason in Reason::ALL {
        db.execute(sql::REASON_NAME, (reason.code(), reason.name()))?;
    }
    db.execute_batch("COMMIT")?;
    read_opening(db, Epoch::new(epoch), nonce)
}

fn read_opening(db: &Connection, epoch: Epoch, epoch_nonce: [u8; 16]) -> Result<Found, Fault> {
    let mut statement = db.prepare(sql::META)?;
    let mut rows = statement.query([])?;
    let row = rows
        .next()?
        .ok_or_else(|| Fault::Garbled("the row of meta is missing".into()))?;
    let mark = Mark::at(row.get(1)?, row.get(2)?);
    let boot: Option<[u8; 16]> = row.get(7)?;
    let stamp = match (row.get(6)?, boot, row.get(8)?, row.get(9)?) {
        (Some(engine), Some(boot), Some(boottime_us), Some(wall)) => Some(Stamp {
            engine: Time::from_micros(engine),
            boot: u128::from_le_bytes(boot),
            boottime_us,
            wall: WallTime::from_millis(wall),
        }),
        _ => None,
    };
    let batch: u64 = row.get(5)?;
    let last = (batch > 0).then_some((Epoch::new(row.get(4)?), batch));
    let oldest: Option<u32> = db.query_row(sql::EPOCH_OLDEST, [mark.seq()], |row| row.get(0))?;
    let oldest = oldest.unwrap_or(epoch.raw()).min(epoch.raw());
    let epochs = db
        .prepare(sql::EPOCHS_FROM)?
        .query_map([oldest], |row| Ok((Epoch::new(row.get(0)?), row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let opening = Opening {
        cluster: row.get(0)?,
        epoch,
        epoch_nonce,
        epochs,
        next_id: job_id(row.get(10)?)?,
        classes: read_classes(db)?,
        stamp,
        last,
        tokens: tokens::read(db)?,
    };
    let seq = db.query_row(sql::SEQ_LAST, [], |row| row.get(0))?;
    // Shares that retention dropped lie below the mark.
    let seq = mark.seq().max(seq);
    Ok(Found { opening, mark, seq })
}

/// Every class known.
pub(super) fn read_classes(db: &Connection) -> Result<Vec<Arc<hostler_engine::Class>>, Fault> {
    let mut statement = db.prepare(sql::CLASSES)?;
    let mut rows = statement.query([])?;
    let mut classes = Vec::new();
    while let Some(row) = rows.next()? {
        let id = ClassId::new(row.get(0)?);
        let text = row.get_ref(1)?.as_str().map_err(rusqlite::Error::from)?;
        let class = class::decode(id, text)
            .map_err(|error| Fault::Garbled(format!("class {}: {error}", id.raw())))?;
        classes.push(class);
    }
    Ok(classes)
}

fn random(bytes: &mut [u8]) -> Result<(), Fault> {
    getrandom::fill(bytes).map_err(|error| {
        Fault::Refused(
            StoreErrorKind::Io,
            format!("needs random bytes, and the kernel gives none: {error}"),
        )
    })
}

/// A row that is there or not.
pub(super) fn exists(
    statement: &mut Statement<'_>,
    params: impl rusqlite::Params,
) -> Result<bool, Fault> {
    Ok(statement
        .query_row(params, |_| Ok(()))
        .optional()?
        .is_some())
}
