//! Checkpoints: pages of the write-ahead log go into the database's file, between commits.
//!
//! SQLite would do it within a commit, and would keep quiet about a sync that fails there. Here it is a step of
//! housekeeping, after the answers have left, and a failed one ends the server like any other failed write.
//!
//! Small commits write the same few pages again and again: then a checkpoint costs little, and the log is kept short. Its
//! file is made that long in the first idle moments: what is written in place, from the first commit on, is synced with one
//! write and one kernel thread less than what makes a file grow. SQLite takes the zeros behind its last page for no page.
//!
//! A reader that holds an old snapshot keeps the log from being used anew, so that it grows. Our readers ask one bounded
//! question at a time; a person's sqlite3 may hold one for hours. That is counted (`log_bytes`) and told.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use hostler_engine::Span;
use rusqlite::{Connection, Row};

use crate::clock::Stamp;
use crate::store::seam::{StoreError, StoreErrorKind};
use crate::store::sql;
use crate::store::sqlite::{Fault, PAGE_BYTES, SqliteStore, begin, roll_back};

/// 64 MiB: fewer checkpoints brought the p99 of a commit from 4.4 to 0.9 ms while they were part of it.
const CHECKPOINT_PAGES: u32 = 4_096;
/// 8 MiB: where commits are small.
const QUIET_PAGES: u32 = 512;
/// What the log has of them when it begins anew, and a little more; with each page go 24 bytes.
const ROOM_BYTES: u64 = (QUIET_PAGES as u64 + QUIET_PAGES as u64 / 4) * (PAGE_BYTES as u64 + 24);
/// How much longer one step makes the log's file. A commit may have to wait for it.
const STEP_BYTES: u64 = 1 << 20;
/// Where the disk has less than so many times that room free, it is left for those who need it.
const ROOMS_FREE: u64 = 64;
/// A commit is small up to so many pages: one job alone makes 2 or 3.
const SMALL_COMMIT_PAGES: u32 = 4;
/// Somebody is told from here on, 256 MiB, and each time it has doubled.
const TELL_PAGES: u32 = 4 * CHECKPOINT_PAGES;
/// Between two tries while a reader or a full disk is in the way, or was.
const PAUSE: Span = Span::from_secs(1);

/// What is known of the log.
#[derive(Debug)]
pub(super) struct Log {
    /// A checkpoint is worth it from here on.
    pub(super) checkpoint_pages: u32,
    pages: u32,
    /// Commits since the last checkpoint.
    pub(super) commits: u32,
    /// Pages already in the file: the log begins anew when these are all and nobody reads it.
    moved: u32,
    /// The last checkpoint has not moved everything.
    stuck: bool,
    next_us: u64,
    /// At this size somebody is told again.
    tell_pages: u32,
    /// Its file is as long as it gets with small commits, or is not to be made longer.
    has_room: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            checkpoint_pages: CHECKPOINT_PAGES,
            pages: 0,
            commits: 0,
            moved: 0,
            stuck: false,
            next_us: 0,
            tell_pages: TELL_PAGES,
            has_room: false,
        }
    }
}

impl Log {
    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.pages) * u64::from(PAGE_BYTES)
    }

    /// The log begins anew with a commit that finds all of it moved and nobody reading it. A reader that was there in that
    /// moment must not cost another 64 MiB: so a long log is moved again and again, a little each time, until it does.
    fn is_worth_it(&self, now_us: u64) -> bool {
        let waiting = self.pages.saturating_sub(self.moved);
        let rested = now_us >= self.next_us;
        let is_quiet = waiting <= self.commits.saturating_mul(SMALL_COMMIT_PAGES);
        let enough = if is_quiet {
            self.checkpoint_pages.min(QUIET_PAGES)
        } else {
            self.checkpoint_pages
        };
        if waiting >= enough && !self.stuck {
            return true;
        }
        rested && waiting > 0 && self.pages >= self.checkpoint_pages
    }
}

/// Pages in the log, and of these in the file.
fn ask(db: &Connection, statement: &str) -> Result<(u32, u32), Fault> {
    let size = |row: &Row<'_>, column: usize| -> rusqlite::Result<u32> {
        // −1 while there is no log.
        Ok(u32::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
    };
    let mut ask = db.prepare_cached(statement)?;
    Ok(ask.query_row([], |row| Ok((size(row, 1)?, size(row, 2)?)))?)
}

/// Before a start adds anything to the log, what is there goes into the file. The start before may have ended because a
/// sync failed: what it wrote is in memory then, is taken for stored, and no later sync of the log puts it on disk. What
/// came after it in the log would go with it when the power goes. Moved, it is written anew, and the log begins anew.
pub(super) fn settle(db: &Connection) -> Result<(), Fault> {
    let (pages, moved) = ask(db, sql::LOG_MOVE)?;
    if moved < pages {
        tracing::warn!(
            "somebody reads an old snapshot of the database: its log cannot begin anew yet"
        );
    }
    Ok(())
}

impl SqliteStore {
    /// One checkpoint, if it is worth it.
    pub(super) fn checkpoint(&mut self, stamp: &Stamp) -> Result<(), StoreError> {
        self.ask_log(sql::LOG_LOOK)
            .map_err(|fault| fault.told(&self.path, "look at the log of"))?;
        if !self.log.is_worth_it(stamp.engine.micros()) {
            return Ok(());
        }
        let done = self.ask_log(sql::LOG_MOVE);
        let held_up = self.log.moved < self.log.pages;
        self.log.stuck = held_up || done.is_err();
        self.log.commits = 0;
        self.log.next_us = (stamp.engine + PAUSE).micros();
        self.tell_log(held_up);
        done.map_err(|fault| fault.told_of_write(&self.path, "checkpoint"))
    }

    /// Makes the log's file a step longer, if it is too short. True if there may be more to do.
    pub(super) fn make_room(&mut self) -> Result<bool, StoreError> {
        let Some(path) = self.shared_file().filter(|_| !self.log.has_room) else {
            return Ok(false);
        };
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        // Within a transaction nobody else makes it longer. If somebody else writes just now, the next look will do; if
        // somebody else owns the database, the next commit says so.
        if begin(&self.db, self.opening.epoch).is_err() {
            roll_back(&self.db);
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).open(log);
        let step = file.map_or(Ok(false), lengthen);
        roll_back(&self.db);
        self.log.has_room = !matches!(step, Ok(true));
        step.map_err(|error| StoreError {
            kind: StoreErrorKind::Io,
            message: format!("cannot sync the log of {}: {error}", self.path.display()),
        })
    }

    fn ask_log(&mut self, statement: &str) -> Result<(), Fault> {
        (self.log.pages, self.log.moved) = ask(&self.db, statement)?;
        Ok(())
    }

    fn tell_log(&mut self, held_up: bool) {
        let log = &mut self.log;
        if held_up && log.pages >= log.tell_pages {
            tracing::warn!(
                log_bytes = log.bytes(),
                "the database's log grows: somebody has held one snapshot of it for long; end old sqlite3 sessions, \
                 backups and checks of it"
            );
            log.tell_pages = log.pages.saturating_mul(2);
        } else if !held_up && log.tell_pages > TELL_PAGES {
            tracing::info!("the database's log is no longer held up");
            log.tell_pages = TELL_PAGES;
        }
    }
}

/// One step. False if there is none to make. Only a sync that fails is an error: whose bytes it lost nobody knows.
fn lengthen(log: File) -> io::Result<bool> {
    let (Ok(about), Ok(disk)) = (log.metadata(), rustix::fs::fstatvfs(&log)) else {
        return Ok(false);
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let missing = missing(about.len(), free).min(STEP_BYTES);
    let zeros = vec![0; usize::try_from(missing).unwrap_or_default()];
    if zeros.is_empty() || log.write_all_at(&zeros, about.len()).is_err() {
        return Ok(false);
    }
    log.sync_data().map(|()| true)
}

/// How much longer a log of that length should be, with so much free on its disk.
fn missing(length: u64, free: u64) -> u64 {
    let is_scarce = free / ROOMS_FREE < ROOM_BYTES;
    if is_scarce {
        0
    } else {
        ROOM_BYTES.saturating_sub(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_small_commits_is_kept_short() {
        let log = |pages, commits| Log {
            pages,
            commits,
            ..Log::default()
        };
        assert!(!log(QUIET_PAGES - 1, QUIET_PAGES).is_worth_it(0));
        assert!(log(QUIET_PAGES, QUIET_PAGES / 3).is_worth_it(0));
        let few = QUIET_PAGES / 8;
        assert!(!log(QUIET_PAGES, few).is_worth_it(0));
        assert!(!log(CHECKPOINT_PAGES - 1, few).is_worth_it(0));
        assert!(log(CHECKPOINT_PAGES, few).is_worth_it(0));
    }

    #[test]
    fn a_log_is_given_room_once_and_only_where_there_is_plenty() {
        let plenty = ROOMS_FREE * ROOM_BYTES;
        assert_eq!(missing(0, plenty), ROOM_BYTES);
        assert_eq!(missing(ROOM_BYTES - 10, plenty), 10);
        assert_eq!(missing(ROOM_BYTES + 10, plenty), 0);
        assert_eq!(missing(0, plenty - 1), 0);
        let pages = ROOM_BYTES / (u64::from(PAGE_BYTES) + 24);
        assert!(
            pages > u64::from(QUIET_PAGES),
            "it begins anew before it grows"
        );
    }
}
