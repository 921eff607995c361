//! `verify`: every invariant of a data directory, over its files, by someone who only reads.
//!
//! Tables are walked side by side in the order of job ids, so that memory does not grow with the number of jobs; only
//! what is known of assignments needs room for each job, and ids are taken a window at a time for that. All of it sees
//! one snapshot, so that a server may go on meanwhile (its write-ahead log grows until the walk is over).
//!
//! Keeps P8: a check that could not be made is named. Nothing is written or repaired.
//!
//! Not here: segments of output (`output::verify`), how a finding looks (`findings`).

mod history;
mod tables;

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use crate::findings::Report;
use crate::output;
use crate::store::lock::Lock;
use crate::store::sqlite::{APPLICATION_ID, FILE, Fault, SCHEMA};
use crate::store::{load, sql};

/// Why nothing could be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// There is no such directory.
    NoDirectory(PathBuf),
    /// The directory has no database.
    NoDatabase(PathBuf),
    /// It cannot be opened, in words.
    Unreadable(String),
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDirectory(dir) => write!(f, "{} is no directory", dir.display()),
            Self::NoDatabase(dir) => write!(
                f,
                "{} is no data directory: there is no {FILE} in it",
                dir.display()
            ),
            Self::Unreadable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for VerifyError {}

/// Looks through a data directory, also beside its running server.
pub fn verify(dir: &Path) -> Result<Report, VerifyError> {
    if !dir.is_dir() {
        return Err(VerifyError::NoDirectory(dir.to_owned()));
    }
    let path = dir.join(FILE);
    if !path.is_file() {
        return Err(VerifyError::NoDatabase(dir.to_owned()));
    }
    let mut report = Report {
        data_dir: dir.display().to_string(),
        server: Lock::holder(dir),
        ..Report::default()
    };
    match open(&path, report.server.is_some()) {
        Ok(db) => check_database(&db, &mut report),
        Err(fault) if is_damage(&fault) => {
            report.find("unreadable", fault.told(&path, "open"));
        }
        Err(fault) => {
            return Err(VerifyError::Unreadable(
                fault.told(&path, "open").to_string(),
            ));
        }
    }
    // Asked again: one that started meanwhile changes the files of output under our eyes.
    let serving = report.server.is_some() || Lock::holder(dir).is_some();
    output::verify(&dir.join(output::DIR), serving, &mut report);
    Ok(report)
}

/// A connection that only reads, with its snapshot taken.
fn open(path: &Path, serving: bool) -> Result<Connection, Fault> {
    match look(path) {
        // Without write access to the directory there can be no shared index of the log. If nobody has the database
        // open and no log is left, the file is all there is.
        Err(fault) if !serving && !has_log(path) && !is_damage(&fault) => {
            let plain = path.display().to_string();
            let plain = plain
                .replace('%', "%25")
                .replace('?', "%3f")
                .replace('#', "%23");
            let uri = format!("file:{plain}?immutable=1");
            look(Path::new(&uri)).or(Err(fault))
        }
        done => done,
    }
}

fn look(path: &Path) -> Result<Connection, Fault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(std::time::Duration::from_secs(5))?;
    db.execute_batch(
        "PRAGMA query_only = ON; PRAGMA cache_size = -65536; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY; \
         PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF; BEGIN",
    )?;
    let _tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(db)
}

fn has_log(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

fn is_damage(fault: &Fault) -> bool {
    match fault {
        Fault::Sql(error) => matches!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
        ),
        Fault::Garbled(_) => true,
        Fault::Refused(..) | Fault::Deposed => false,
    }
}

fn check_database(db: &Connection, report: &mut Report) {
    try_to(report, "the pages", |report| check_pages(db, report));
    let known = try_to(report, "the schema", |report| check_schema(db, report));
    if known != Some(true) {
        return report.skip(
            "every check of rows",
            "the schema is not one this program knows",
        );
    }
    let facts = try_to(report, "the small tables", |report| {
        tables::check(db, report)
    });
    match facts {
        Some(facts) => {
            try_to(report, "the jobs", |report| {
                history::check(db, &facts, report)
            });
        }
        None => report.skip("the jobs", "what they refer to cannot be read"),
    }
}

/// Runs a part of the checks; what cannot be read is a finding, and the next part is still made.
fn try_to<T>(
    report: &mut Report,
    what: &str,
    check: impl FnOnce(&mut Report) -> Result<T, Fault>,
) -> Option<T> {
    match check(report) {
        Ok(done) => Some(done),
        Err(fault) => {
            let error = fault.told(Path::new(FILE), "read");
            report.find("unreadable", format_args!("{what}: {error}"));
            None
        }
    }
}

/// SQLite's own look at its pages and indexes.
fn check_pages(db: &Connection, report: &mut Report) -> Result<(), Fault> {
    let mut statement = db.prepare("PRAGMA integrity_check")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let verdict: String = row.get(0)?;
        if verdict != "ok" {
            report.find(
                "integrity",
                format_args!("SQLite says: {verdict}; the file is damaged, restore a backup"),
            );
        }
    }
    Ok(())
}

/// Whether it is a database of ours with a schema we know, and what of that schema is missing.
fn check_schema(db: &Connection, report: &mut Report) -> Result<bool, Fault> {
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if application != APPLICATION_ID {
        report.find(
            "schema",
            format_args!("application id {application:#x}: this is a database of another program"),
        );
        return Ok(false);
    }
    if version != SCHEMA {
        report.find(
            "schema",
            format_args!(
                "schema version {version}, and this program knows {SCHEMA}: verify it with the hostler that wrote it"
            ),
        );
        return Ok(false);
    }
    let ours = Connection::open_in_memory()?;
    for step in sql::SCHEMAS {
        ours.execute_batch(step)?;
    }
    let found = definitions(db)?;
    let mut whole = true;
    for expected in definitions(&ours)? {
        if !found.contains(&expected) {
            let (kind, name, _) = expected;
            whole &= kind != "table";
            report.find(
                "schema",
                format_args!("{kind} {name} is missing, or is not as this version makes it"),
            );
        }
    }
    Ok(whole)
}

type Definition = (String, String, Option<String>);

fn definitions(db: &Connection) -> Result<Vec<Definition>, Fault> {
    let mut all = Vec::new();
    load::each_row(db, sql::V_SCHEMA, [], |row| {
        all.push((row.get(0)?, row.get(1)?, row.get(2)?));
        Ok(())
    })?;
    Ok(all)
}
