//! After a run: what the server says, what lies in the database, and what the jobs wrote down themselves, compared with
//! what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use hostler_tests::{Cluster, Effects, Start};
use serde_json::Value;

use super::load::{Cancel, Entry, Kind, Load};

/// What was found; anything wrong is a panic.
pub(crate) struct Verdict {
    states: BTreeMap<String, usize>,
    starts: usize,
    rerun: usize,
    attempts: u64,
    ends_watched: usize,
}

/// Compares, on the running server.
///
/// # Panics
/// If anything disagrees.
#[track_caller]
pub(crate) fn of(cluster: &Cluster, load: &Load, effects: &Effects) -> Verdict {
    let ends_watched = load
        .entries()
        .values()
        .filter(|it| it.seen.is_some())
        .count();
    let listed = list(cluster);
    for (id, view) in &listed {
        assert!(view["finished_at"].is_string(), "not ended: {view}");
        // What was acknowledged, and nothing else.
        assert!(
            load.entries_contain(*id),
            "nobody was told of job {id}: {view}"
        );
        load.saw_end(*id, view);
    }
    let entries = load.entries();
    let missing: Vec<&u64> = entries
        .keys()
        .filter(|id| !listed.contains_key(id))
        .collect();
    assert!(missing.is_empty(), "acknowledged and lost: {missing:?}");
    for (id, entry) in &entries {
        if let Some(wrong) = entry.judge(&listed[id]) {
            panic!("job {id} ({entry:?}): {wrong}: {}", listed[id]);
        }
    }
    compare_database(cluster, &listed);
    let starts = effects.starts();
    compare_starts(&starts, &entries, &listed);
    let recorded = cluster.database().attempt_numbers();
    for start in &starts {
        // An attempt a worker was given has an end of its own, whatever became of the job.
        assert!(
            recorded.contains(&(start.job, start.attempt)),
            "it ran and no attempt is recorded: {start:?}, {}",
            listed[&start.job]
        );
    }
    let mut states = BTreeMap::new();
    for view in listed.values() {
        *states
            .entry(view["state"].as_str().unwrap().to_owned())
            .or_default() += 1;
    }
    let jobs: BTreeSet<u64> = starts.iter().map(|start| start.job).collect();
    Verdict {
        states,
        starts: starts.len(),
        rerun: starts.len() - jobs.len(),
        attempts: listed.values().map(attempt).sum(),
        ends_watched,
    }
}

/// What the files say with nobody using them.
#[track_caller]
pub(crate) fn of_files(cluster: &Cluster) {
    cluster.database().check();
}

/// Every job, as the server lists them.
fn list(cluster: &Cluster) -> BTreeMap<u64, Value> {
    let mut client = cluster.client();
    let mut all = BTreeMap::new();
    let mut path = "/jobs?limit=1000".to_owned();
    loop {
        let page = client.get(&path).expect(200).json();
        for view in page["jobs"].as_array().unwrap() {
            let before = all.insert(view["id"].as_u64().unwrap(), view.clone());
            assert!(before.is_none(), "listed twice: {view}");
        }
        let Some(cursor) = page["next_cursor"].as_str() else {
            return all;
        };
        path = format!("/jobs?limit=1000&cursor={cursor}");
    }
}

fn compare_database(cluster: &Cluster, listed: &BTreeMap<u64, Value>) {
    let database = cluster.database();
    database.check();
    let mut rows = 0;
    for (id, view) in listed {
        let (state, reason, attempts) = database.job(*id).expect("a listed job has a row");
        rows += 1;
        let shown = view["reason"].as_str().unwrap_or("none");
        assert_eq!(
            (view["state"].as_str(), shown, attempt(view)),
            (Some(&*state), &*reason, u64::try_from(attempts).unwrap()),
            "the database disagrees with {view}"
        );
    }
    let count = |sql: &str| usize::try_from(database.number(sql)).unwrap();
    assert_eq!(count("SELECT count(*) FROM job"), rows);
    let unfinished = "SELECT count(*) FROM job WHERE state = 'unfinished'";
    assert_eq!(count(unfinished), 0, "unfinished");
    let twice = "SELECT count(*) FROM (SELECT 1 FROM keys GROUP BY token, key HAVING count(*) > 1)";
    assert_eq!(count(twice), 0, "keys remembered twice");
}

/// What ran was accepted, each attempt once, in the order of its fences; what succeeded has run.
fn compare_starts(starts: &[Start], entries: &BTreeMap<u64, Entry>, listed: &BTreeMap<u64, Value>) {
    let mut attempts: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
    for start in starts {
        assert!(
            entries.contains_key(&start.job),
            "it ran and was never accepted: {start:?}"
        );
        let of_job = attempts.entry(start.job).or_default();
        let before = of_job.insert(start.attempt, start.fence);
        assert_eq!(before, None, "an attempt started twice: {start:?}");
    }
    for (job, started) in &attempts {
        let (entry, view) = (&entries[job], &listed[job]);
        let fences: Vec<u64> = started.values().copied().collect();
        assert!(
            fences.is_sorted_by(|a, b| a < b),
            "fences of job {job} do not rise: {started:?}"
        );
        let last = started.keys().last().copied().unwrap_or(0);
        assert!(
            last <= attempt(view) || view["state"] == "cancelled",
            "attempt {last} of job {job} started after its end: {view}"
        );
        if entry.kind == Kind::Once {
            assert_eq!(started.len(), 1, "job {job} runs once at most: {started:?}");
        }
    }
    for (job, entry) in entries {
        let view = &listed[job];
        let has_run = attempts
            .get(job)
            .is_some_and(|started| started.contains_key(&attempt(view)));
        if view["state"] == "succeeded" && entry.kind.leaves_lines() {
            assert!(has_run, "it succeeded and never ran: {view}");
        }
        if view["state"] == "cancelled" {
            assert!(entry.cancel.is_some(), "nobody cancelled it: {view}");
        }
        if entry.cancel == Some(Cancel::Cancelled) {
            assert_eq!(view["state"], "cancelled", "{view}");
        }
    }
}

fn attempt(view: &Value) -> u64 {
    view["attempt"].as_u64().unwrap_or(0)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ended: {:?}; {} attempts assigned, {} starts written down, {} of them not the first of their job (retries too); {} ends watched, 0 changed, 0 lost, 0 twice",
            self.states, self.attempts, self.starts, self.rerun, self.ends_watched
        )
    }
}
