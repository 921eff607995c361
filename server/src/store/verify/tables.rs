//! The tables that are small, or that no job's history depends on: meta, epochs, classes, workers, keys, counters,
//! access tokens and who did what.
//!
//! What the walk over jobs needs of them is gathered on the way.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use hostler_engine::spec::ClassId;
use hostler_wire::{JobId, JobState, Reason};
use rusqlite::{Connection, OptionalExtension, Row};

use crate::findings::Report;
use crate::store::load::each_row;
use crate::store::sqlite::Fault;
use crate::store::{class, sql, tokens};

/// What rows of jobs refer to.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) mark_id: i64,
    pub(super) mark_seq: i64,
    pub(super) purged_id: i64,
    /// Ids below are used or promised.
    pub(super) ids_through: i64,
    /// Epochs are 1 to this one.
    pub(super) last_epoch: i64,
    pub(super) classes: HashSet<i64>,
    pub(super) workers: HashSet<i64>,
    /// What the counters of all starts say at least.
    pub(super) counted: Counted,
}

/// Sums of the last row of counters of each start: no more than what the tables hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    pub(super) submitted: u64,
    pub(super) ended: [u64; 5],
    pub(super) attempts: u64,
}

/// The states in the order of [`Counted::ended`].
pub(super) const ENDED: [JobState; 5] = [
    JobState::Succeeded,
    JobState::Failed,
    JobState::Cancelled,
    JobState::Expired,
    JobState::Skipped,
];

impl Facts {
    pub(super) fn has_epoch(&self, epoch: i64) -> bool {
        (1..=self.last_epoch).contains(&epoch)
    }
}

pub(super) fn check(db: &Connection, report: &mut Report) -> Result<Facts, Fault> {
    let mut facts = Facts::default();
    check_epochs(db, &mut facts, report)?;
    check_meta(db, &mut facts, report)?;
    check_classes(db, &mut facts, report)?;
    each_row(db, sql::V_WORKERS, [], |row| {
        facts.workers.insert(row.get(0)?);
        Ok(())
    })?;
    report.count("workers", facts.workers.len() as u64);
    check_keys(db, &facts, report)?;
    check_metrics(db, &mut facts, report)?;
    check_names(db, report)?;
    check_tokens(db, report)?;
    check_audit(db, &facts, report)?;
    Ok(facts)
}

fn check_epochs(db: &Connection, facts: &mut Facts, report: &mut Report) -> Result<(), Fault> {
    let mut expected = 1;
    each_row(db, sql::V_EPOCHS, [], |row| {
        let (epoch, nonce_bytes): (i64, i64) = (row.get(0)?, row.get(1)?);
        if epoch != expected {
            report.find(
                "epochs",
                format_args!(
                    "epoch {epoch} follows {}: each start adds one",
                    expected - 1
                ),
            );
        }
        if nonce_bytes != 16 {
            report.find(
                "epochs",
                format_args!("the nonce of epoch {epoch} has {nonce_bytes} bytes, not 16"),
            );
        }
        expected = epoch + 1;
        Ok(())
    })?;
    facts.last_epoch = expected - 1;
    report.count("epochs", u64::try_from(facts.last_epoch).unwrap_or(0));
    Ok(())
}

fn check_meta(db: &Connection, facts: &mut Facts, report: &mut Report) -> Result<(), Fault> {
    let row = |row: &Row<'_>| -> rusqlite::Result<[i64; 8]> {
        let mut all = [0; 8];
        for (column, place) in all.iter_mut().enumerate() {
            *place = row.get(column)?;
        }
        Ok(all)
    };
    let Some(meta) = db.query_row(sql::V_META, [], row).optional()? else {
        report.find(
            "meta",
            "the row of meta is missing: no server can start on this",
        );
        return Ok(());
    };
    let [
        cluster_bytes,
        mark_id,
        mark_seq,
        purged_id,
        epoch,
        batch,
        ids_through,
        clocks_missing,
    ] = meta;
    facts.mark_id = mark_id;
    facts.mark_seq = mark_seq;
    facts.purged_id = purged_id;
    facts.ids_through = ids_through;
    if cluster_bytes != 16 {
        report.find(
            "meta",
            format_args!("the cluster's id has {cluster_bytes} bytes, not 16"),
        );
    }
    if epoch > facts.last_epoch {
        let last = facts.last_epoch;
        report.find(
            "epochs",
            format_args!("the last commit is of epoch {epoch}, and the last start was {last}"),
        );
    }
    if ids_through < 1 || JobId::new(ids_through.unsigned_abs()).is_none() {
        report.find(
            "meta",
            format_args!("ids are promised below {ids_through}, which is no job id"),
        );
    }
    if !(0..ids_through.max(1)).contains(&mark_id) || mark_seq < 0 {
        report.find(
            "mark",
            format_args!(
                "the mark ({mark_id}, {mark_seq}) lies beyond the ids promised ({ids_through})"
            ),
        );
    }
    if purged_id < 0 || purged_id > mark_id {
        report.find(
            "mark",
            format_args!("jobs up to {purged_id} are purged, beyond the mark {mark_id}"),
        );
    }
    if !(clocks_missing == 0 || (clocks_missing == 4 && batch == 0)) {
        report.find(
            "meta",
            "the clocks of the last commit are not all there: durations start anew at the next start",
        );
    }
    Ok(())
}

fn check_classes(db: &Connection, facts: &mut Facts, report: &mut Report) -> Result<(), Fault> {
    each_row(db, sql::V_CLASSES, [], |row| {
        let id: i64 = row.get(0)?;
        let (queue, attempts, text): (String, i64, String) =
            (row.get(1)?, row.get(2)?, row.get(3)?);
        facts.classes.insert(id);
        let number = u32::try_from(id).unwrap_or(u32::MAX);
        match class::decode(ClassId::new(number), &text) {
            Err(error) => report.find(
                "classes",
                format_args!("class {id} cannot be read ({error}): no server can start on this"),
            ),
            Ok(class)
                if *class.spec.queue != *queue
                    || i64::from(class.spec.retry.max_attempts) != attempts =>
            {
                report.find(
                    "classes",
                    format_args!("class {id}: its columns do not say what its spec says"),
                );
            }
            Ok(_) => {}
        }
        Ok(())
    })?;
    report.count("classes", facts.classes.len() as u64);
    Ok(())
}

fn check_keys(db: &Connection, facts: &Facts, report: &mut Report) -> Result<(), Fault> {
    let mut jobs_in = db.prepare(sql::V_JOBS_FROM_TO)?;
    let mut keys = 0;
    each_row(db, sql::V_KEYS, [], |row| {
        keys += 1;
        let (n, hash_bytes): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (first, count): (i64, i64) = (row.get(2)?, row.get(3)?);
        if hash_bytes != 32 {
            report.find(
                "keys",
                format_args!("the hash of key {n} has {hash_bytes} bytes, not 32"),
            );
        }
        let last = first.saturating_add(count - 1);
        if first < 1 || count < 1 || last >= facts.ids_through {
            report.find(
                "keys",
                format_args!(
                    "key {n} stands for jobs {first} to {last}, which were never given out"
                ),
            );
        } else if first > facts.purged_id {
            let there: i64 = jobs_in.query_row((first, last), |row| row.get(0))?;
            if there != count {
                report.find(
                    "keys",
                    format_args!(
                        "key {n} stands for jobs {first} to {last}, and {} of them are missing: a repeated \
                         request would be answered with jobs that are not there",
                        count - there
                    ),
                );
            }
        }
        Ok(())
    })?;
    report.count("keys", keys);
    Ok(())
}

/// Counters only grow within a start, and the number of living jobs follows from the others.
fn check_metrics(db: &Connection, facts: &mut Facts, report: &mut Report) -> Result<(), Fault> {
    let mut last: BTreeMap<i64, [i64; 10]> = BTreeMap::new();
    each_row(db, sql::V_METRICS, [], |row| {
        let epoch: i64 = row.get(0)?;
        let mut now = [0_i64; 10];
        for (column, place) in now.iter_mut().enumerate() {
            *place = row.get(column + 1)?;
        }
        let before = last.insert(epoch, now);
        if !facts.has_epoch(epoch) {
            report.find(
                "counters",
                format_args!("counters of epoch {epoch}, which there never was"),
            );
        }
        if let Some(before) = before
            && before[..9].iter().zip(&now[..9]).any(|(a, b)| a > b)
        {
            report.find(
                "counters",
                format_args!(
                    "a counter of epoch {epoch} shrinks after commit {}",
                    before[0]
                ),
            );
        }
        let at_start = |row: &[i64; 10]| row[9] - row[1] + row[2..7].iter().sum::<i64>();
        if let Some(before) = before
            && at_start(&before) != at_start(&now)
        {
            report.find(
                "counters",
                format_args!(
                    "epoch {epoch}, commit {}: the count of living jobs does not follow from those accepted and ended",
                    now[0]
                ),
            );
        }
        Ok(())
    })?;
    let sum = |column: usize| -> u64 {
        let of = |row: &[i64; 10]| u64::try_from(row[column]).unwrap_or(0);
        last.values().map(of).sum()
    };
    facts.counted = Counted {
        submitted: sum(1),
        ended: [sum(2), sum(3), sum(4), sum(5), sum(6)],
        attempts: sum(7),
    };
    Ok(())
}

/// The names that people's queries show, in both of the tables of names.
fn check_names(db: &Connection, report: &mut Report) -> Result<(), Fault> {
    let states = JobState::ALL
        .iter()
        .map(|s| (i64::from(s.code()), s.name()));
    let reasons = Reason::ALL
        .iter()
        .map(|r| (i64::from(r.code()) + 1_000, r.name()));
    let known: BTreeMap<i64, &str> = states.chain(reasons).collect();
    let mut found = BTreeMap::new();
    each_row(db, sql::V_NAMES, [], |row| {
        found.insert(row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
        Ok(())
    })?;
    for (code, name) in known {
        if found.get(&code).map(String::as_str) != Some(name) {
            report.find(
                "names",
                format_args!("{name} has no name, or another one, in the tables of names"),
            );
        }
    }
    Ok(())
}

/// Whether each token can be read as what it is for, and its times are times. No key is told.
fn check_tokens(db: &Connection, report: &mut Report) -> Result<(), Fault> {
    // As the server reads them: one row of nonsense keeps it from starting.
    match tokens::read(db) {
        Ok(_) => {}
        Err(Fault::Garbled(what)) => report.find(
            "tokens",
            format_args!("{what}: no server can start on this"),
        ),
        // A key of another length, or a text that is none.
        Err(Fault::Sql(error)) => report.find(
            "tokens",
            format_args!("{error}: no server can start on this"),
        ),
        Err(fault) => return Err(fault),
    }
    let mut count = 0;
    each_row(db, sql::V_TOKENS, [], |row| {
        count += 1;
        let id: String = row.get(0)?;
        if id.len() != 8 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            let id = id.escape_debug();
            report.find(
                "tokens",
                format_args!("\"{id}\" is no token's id: eight letters and digits"),
            );
            return Ok(());
        }
        let mut times = [None; 3];
        let mut keys = [None; 3];
        for n in 0..3 {
            times[n] = row.get::<_, Option<i64>>(n + 1)?;
            keys[n] = row.get::<_, Option<i64>>(n + 4)?;
        }
        if keys.iter().flatten().any(|bytes| *bytes != 32) {
            report.find(
                "tokens",
                format_args!("token {id}: what it is checked by has not 32 bytes"),
            );
        }
        let [created, expires, _] = times;
        let before = |at: Option<i64>| at.is_some_and(|at| at < 0);
        if times.into_iter().any(before) || expires.is_some_and(|at| Some(at) <= created) {
            report.find(
                "tokens",
                format_args!("token {id}: its times are none, or it expired before it was made"),
            );
        }
        Ok(())
    })?;
    report.count("tokens", count);
    Ok(())
}

/// Each entry stands for requests, says what was done, and speaks only of jobs there were.
fn check_audit(db: &Connection, facts: &Facts, report: &mut Report) -> Result<(), Fault> {
    let mut entries = 0;
    each_row(db, sql::V_AUDIT, [], |row| {
        entries += 1;
        let (n, at): (i64, i64) = (row.get(0)?, row.get(1)?);
        let (token, peer): (String, Option<String>) = (row.get(2)?, row.get(3)?);
        let action: String = row.get(4)?;
        let (first, count): (Option<i64>, Option<i64>) = (row.get(5)?, row.get(6)?);
        let (requests, status): (i64, Option<i64>) = (row.get(7)?, row.get(8)?);
        let code: Option<String> = row.get(9)?;
        let peer_fits = peer.is_none_or(|peer| peer.parse::<IpAddr>().is_ok());
        let token_fits = token.is_empty() || token.len() == 8;
        let status_fits = status.is_none_or(|status| (100..600).contains(&status));
        let refused = status.is_some_and(|status| status >= 400);
        if n < 1 || at < 0 || requests < 1 || action.is_empty() || !token_fits || !peer_fits {
            report.find(
                "audit",
                format_args!("entry {n} does not say who did what, when, from where"),
            );
        }
        if !status_fits || (refused && code.is_none()) {
            report.find(
                "audit",
                format_args!("entry {n} does not say what came of it"),
            );
        }
        let jobs_fit = match (first, count) {
            (None, None) => true,
            (Some(first), Some(count)) => {
                first >= 1 && count >= 1 && first.saturating_add(count - 1) < facts.ids_through
            }
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !jobs_fit {
            report.find(
                "audit",
                format_args!("entry {n} speaks of jobs that were never given out"),
            );
        }
        Ok(())
    })?;
    report.count("audit", entries);
    Ok(())
}
