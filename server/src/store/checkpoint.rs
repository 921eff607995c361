//! Checkpoints: pages of the write-ahead log go into the database's file, between commits.
//!
//! SQLite would do it within a commit, and would keep quiet about a sync that fails there. Here it is a step of
//! housekeeping, after the answers have left, and a failed one ends the server like any other failed write.
//!
//! Small commits write the same few pages again and again: then a checkpoint costs little, and the log is kept short. Once
//! it begins anew it is written in place, and a sync of what is in place waits for one write and one kernel thread less
//! than a sync of a file that grows.
//!
//! A reader that holds an old snapshot keeps the log from being used anew, so that it grows. Our readers ask one bounded
//! question at a time; a person's sqlite3 may hold one for hours. That is counted (`log_bytes`) and told.

use hostler_engine::Span;
use rusqlite::{Connection, Row};

use crate::clock::Stamp;
use crate::store::seam::StoreError;
use crate::store::sql;
use crate::store::sqlite::{Fault, PAGE_BYTES, SqliteStore};

/// 64 MiB: fewer checkpoints brought the p99 of a commit from 4.4 to 0.9 ms while they were part of it.
const CHECKPOINT_PAGES: u32 = 4_096;
/// 16 MiB: where commits are small.
const QUIET_PAGES: u32 = 1_024;
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
}
