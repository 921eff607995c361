//! What a power cut, a full disk or a failing one leaves of the store: every acknowledged job, never an id twice, and
//! files that `verify` finds sound.
//!
//! The real writer works on a disk in memory that can be hurt (`support/vfs.rs`). A workload of two starts is run once to
//! count what it asks of the disk; then again for each of these operations with that one failing, or with the power
//! going there. What the disk holds then is recovered by a real start on real files.
#![expect(clippy::unwrap_used, reason = "this is a test, helpers and all")]
#![expect(
    clippy::print_stdout,
    reason = "the figures that docs/reliability.md shows"
)]

#[path = "support/desk.rs"]
#[expect(dead_code, reason = "the tests of `verify` need the rest of it")]
mod desk;
#[path = "support/vfs.rs"]
mod vfs;

use std::collections::BTreeSet;

use desk::{Desk, keyed, submission};
use hostler_engine::fact::Charge;
use hostler_server::config::Durability;
use hostler_server::store::seam::{Lookup, Store, StoreError, StoreErrorKind, Submission};
use hostler_server::store::sqlite::SqliteStore;
use hostler_server::store::writer::SubmitError;
use hostler_server::verify;
use hostler_wire::JobState;
use vfs::{Fault, FaultyDisk, Op, Trouble};

/// What the world outside was told.
#[derive(Debug, Default)]
struct Told {
    /// Jobs acknowledged as durable.
    synced: BTreeSet<u64>,
    /// Jobs acknowledged as handed to the operating system.
    unsynced: BTreeSet<u64>,
    /// Ends whose commit was acknowledged.
    ended: BTreeSet<u64>,
    /// Epochs of starts that were ready.
    epochs: Vec<u32>,
    /// Nobody knows whether this is there.
    unknown: bool,
}

/// Two starts of a server, with jobs and facts of every kind. Goes on as long as the disk lets it.
struct Life {
    disk: FaultyDisk,
    dir: tempfile::TempDir,
    durability: Durability,
    told: Told,
}

impl Life {
    fn new(durability: Durability) -> Self {
        Self {
            disk: FaultyDisk::new(),
            dir: tempfile::tempdir().unwrap(),
            durability,
            told: Told::default(),
        }
    }

    fn run(&mut self) {
        for _ in 0..2 {
            if self.start().is_none() {
                return;
            }
        }
    }

    fn open(&self) -> Result<Desk, StoreError> {
        let mut store = SqliteStore::open_on(self.dir.path(), Some(self.disk.name()))?;
        store.move_mark_eagerly();
        store.checkpoint_every(8);
        Desk::open(store, self.durability)
    }

    /// None: the server could not start, or had to end.
    fn start(&mut self) -> Option<()> {
        let mut desk = self.open().ok()?;
        self.told.epochs.push(desk.epoch.raw());
        let first = self.submit(&desk, 3)?;
        self.submit(&desk, 40)?;
        let given = desk.assign(1, &[first, first + 1]);
        desk.tell(given).then_some(())?;
        let facts = vec![
            desk.ended(1, first, JobState::Succeeded),
            desk.again(1, first + 1, Charge::Failure),
        ];
        desk.tell(facts).then_some(())?;
        if self.durability == Durability::Fsync {
            self.told.ended.insert(first);
        }
        let key = format!("key-{}", desk.epoch.raw());
        self.take(&desk, keyed(2, &key))?;
        desk.stop();
        Some(())
    }

    fn submit(&mut self, desk: &Desk, count: usize) -> Option<u64> {
        self.take(desk, submission(count))
    }

    /// Asks until it is accepted: what is refused for want of space may be asked again. None if the server has to end.
    fn take(&mut self, desk: &Desk, mut submission: Submission) -> Option<u64> {
        let sync = self.durability == Durability::Fsync;
        submission.jobs.iter_mut().for_each(|job| job.sync = sync);
        let count = submission.jobs.len() as u64;
        match desk.submit(submission) {
            Ok(accepted) => {
                assert!(!self.told.unknown, "an answer after a fatal error");
                let ids = accepted.first.raw()..accepted.first.raw() + count;
                let told = if sync {
                    &mut self.told.synced
                } else {
                    &mut self.told.unsynced
                };
                let before = told.len() as u64;
                told.extend(ids);
                assert_eq!(told.len() as u64, before + count, "an id came twice");
                Some(accepted.first.raw())
            }
            Err(SubmitError::Refused(error)) => {
                // After an I/O error what was in no commit at all may hear that; the server ends all the same.
                if error.kind == StoreErrorKind::Io {
                    self.told.unknown = true;
                    assert_ends(desk);
                }
                None
            }
            Err(SubmitError::Unknown(_)) => {
                self.told.unknown = true;
                assert_ends(desk);
                None
            }
            Err(
                error @ (SubmitError::KeyReused(_)
                | SubmitError::Busy { .. }
                | SubmitError::QueueFull { .. }),
            ) => {
                panic!("{error:?}")
            }
            Err(SubmitError::Stopping) => None,
        }
    }

    /// The power goes, and a server starts on what the disk has kept.
    fn recover(self, seed: u64) -> Recovered {
        self.disk.mend();
        self.disk.cut_power(seed);
        let real = tempfile::tempdir().unwrap();
        self.disk.copy_to(real.path());
        let mut store = SqliteStore::open(real.path()).unwrap();
        let opening = store.opening().clone();
        let mut live = 0;
        store.load(&mut |_| live += 1).unwrap();
        let report = verify(real.path()).unwrap();
        assert!(report.is_sound(), "{:#?}", report.findings);
        let told = &self.told;
        for epoch in &told.epochs {
            assert!(opening.epoch.raw() > *epoch, "epoch {epoch} came again");
        }
        for id in told.synced.iter().chain(&told.unsynced) {
            assert!(opening.next_id.raw() > *id, "id {id} would come again");
        }
        let mut read = store.reader().unwrap();
        let mut there = |id: u64| match read.job(desk::id(id)).unwrap() {
            Lookup::Found(record) => Some(record),
            Lookup::Never | Lookup::Purged => None,
        };
        for id in &told.synced {
            assert!(there(*id).is_some(), "acknowledged job {id} is lost");
        }
        for id in &told.ended {
            let end = there(*id).unwrap().end;
            let state = end.map(|end| end.state);
            assert_eq!(state, Some(JobState::Succeeded), "the end of {id} is lost");
        }
        let kept: BTreeSet<u64> = told
            .unsynced
            .iter()
            .copied()
            .filter(|id| there(*id).is_some_and(|record| !record.sync))
            .collect();
        Recovered {
            told: self.told,
            kept,
        }
    }
}

/// The writer has called for the end of the process.
fn assert_ends(desk: &Desk) {
    let called = desk.fatal.recv_timeout(std::time::Duration::from_secs(10));
    assert!(called.is_ok(), "the writer must end the process");
}

struct Recovered {
    told: Told,
    kept: BTreeSet<u64>,
}

/// What a life without trouble asks of its disk.
fn ops_of_a_life(durability: Durability) -> Vec<Op> {
    let mut life = Life::new(durability);
    life.run();
    assert_eq!(life.told.epochs, [1, 2]);
    life.disk.ops()
}

/// Every operation in turn at full size, else a share of them that shifts with what is tested.
fn places(ops: usize, shift: usize) -> impl Iterator<Item = u64> {
    let step = if full() { 1 } else { 5 };
    (1 + shift % step..=ops).step_by(step).map(|k| k as u64)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the size of the test is the caller's choice"
)]
fn full() -> bool {
    std::env::var("HOSTLER_TESTS_FULL").is_ok_and(|value| value == "1")
}

#[test]
fn the_power_may_go_at_any_moment_and_no_acknowledged_job_is_lost() {
    let ops = ops_of_a_life(Durability::Fsync);
    let mut acknowledged = 0;
    for k in places(ops.len(), 0) {
        let mut life = Life::new(Durability::Fsync);
        // From there on the disk does nothing, as seen from after the cut.
        life.disk.fault(Fault {
            at: k,
            trouble: Trouble::Io,
            lasts: true,
        });
        life.run();
        acknowledged += life.recover(k).told.synced.len();
    }
    println!(
        "{} places, {acknowledged} acknowledged jobs, 0 lost",
        ops.len()
    );
    assert!(acknowledged > 0);
}

#[test]
fn whichever_write_or_sync_fails_nothing_is_acknowledged_after_it_that_is_not_there() {
    let ops = ops_of_a_life(Durability::Fsync);
    let (mut ended, mut acknowledged) = (0, 0);
    for k in places(ops.len(), 1) {
        let mut life = Life::new(Durability::Fsync);
        life.disk.fault(Fault {
            at: k,
            trouble: Trouble::Io,
            lasts: false,
        });
        life.run();
        let recovered = life.recover(k * 31);
        ended += usize::from(recovered.told.unknown);
        acknowledged += recovered.told.synced.len();
    }
    println!(
        "{} places, {ended} servers ended, {acknowledged} acknowledged jobs, 0 lost",
        ops.len()
    );
    assert!(ended > 0, "no fault hit a commit");
}

#[test]
fn a_failed_sync_is_never_tried_again() {
    let ops = ops_of_a_life(Durability::Fsync);
    // The log is in use from its first index on. Before, an empty file is made, which SQLite tries twice.
    let syncs = (1_u64..)
        .zip(&ops)
        .skip_while(|(_, op)| **op != Op::Map)
        .filter(|(_, op)| **op == Op::Sync);
    let syncs: Vec<u64> = syncs.map(|(k, _)| k).collect();
    assert!(syncs.len() > 10, "{syncs:?}");
    for k in syncs {
        let mut life = Life::new(Durability::Fsync);
        life.disk.fault(Fault {
            at: k,
            trouble: Trouble::Io,
            lasts: false,
        });
        life.run();
        // Until the next start, which begins with what the disk holds.
        let asked = life.disk.ops();
        // How writes fall into commits is a matter of timing: this life may have been the shorter one.
        let since = asked.get(usize::try_from(k).unwrap()..).unwrap_or_default();
        let after = since.iter().take_while(|op| **op != Op::Open);
        let after: Vec<&Op> = after.collect();
        assert!(
            !after.contains(&&Op::Sync),
            "sync {k} failed, and the server synced again: {after:?}"
        );
        life.recover(k);
    }
}

#[test]
fn what_is_acknowledged_after_a_failed_sync_and_a_new_start_outlives_the_power() {
    let ops = ops_of_a_life(Durability::Fsync);
    let mut acknowledged = 0;
    for (k, _) in (1..).zip(&ops).filter(|(_, op)| **op == Op::Sync) {
        let mut life = Life::new(Durability::Fsync);
        life.disk.fault(Fault {
            at: k,
            trouble: Trouble::Io,
            lasts: false,
        });
        life.run();
        // Memory still has what the disk did not take, and shows it to the next start.
        life.disk.mend();
        life.told.unknown = false;
        if let Ok(desk) = life.open() {
            life.told.epochs.push(desk.epoch.raw());
            life.submit(&desk, 3);
            life.disk.cut_power(k * 13);
        }
        acknowledged += life.recover(k * 17).told.synced.len();
    }
    println!("{acknowledged} acknowledged jobs, 0 lost");
    assert!(acknowledged > 0);
}

#[test]
fn a_full_disk_refuses_and_a_server_with_space_again_goes_on_by_itself() {
    refuses_and_goes_on(Trouble::Full, StoreErrorKind::Full);
}

#[test]
fn a_read_only_file_system_refuses_and_a_server_that_may_write_again_goes_on_by_itself() {
    refuses_and_goes_on(Trouble::ReadOnly, StoreErrorKind::ReadOnly);
}

fn refuses_and_goes_on(trouble: Trouble, kind: StoreErrorKind) {
    let ops = ops_of_a_life(Durability::Fsync);
    let mut refused = 0;
    for k in places(ops.len(), 2) {
        let life = Life::new(Durability::Fsync);
        let Ok(desk) = life.open() else {
            panic!("an empty disk has space");
        };
        let first = desk.accept(3);
        life.disk.fault(Fault {
            at: k,
            trouble,
            lasts: true,
        });
        let mut told = BTreeSet::from_iter(first..first + 3);
        let mut was_refused = false;
        for _ in 0..4 {
            match desk.submit(submission(30)) {
                Ok(accepted) => told.extend(accepted.first.raw()..accepted.first.raw() + 30),
                Err(SubmitError::Refused(error)) => {
                    assert_eq!(error.kind, kind, "{error}");
                    assert!(desk.health.trouble().is_some(), "health says why");
                    was_refused = true;
                }
                // The log's index could not grow: nobody knows what that left.
                Err(SubmitError::Unknown(error)) => {
                    assert_eq!(error.kind, StoreErrorKind::Io, "{error}");
                    break;
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        if was_refused && desk.fatal.try_recv().is_err() {
            refused += 1;
            life.disk.mend();
            told.insert(desk.accept(1));
            assert_eq!(desk.health.trouble(), None, "health is green again");
        }
        desk.stop();
        let recovered = Life {
            told: Told {
                synced: told,
                ..Told::default()
            },
            ..life
        };
        recovered.recover(k);
    }
    println!("{refused} disks took nothing ({trouble:?}) and took jobs again after");
    assert!(refused > 0);
}

#[test]
fn with_durability_os_a_power_cut_takes_only_an_unsynced_end_and_the_record_says_which_it_was() {
    let ops = ops_of_a_life(Durability::Os);
    let (mut told, mut lost) = (0, 0);
    for k in places(ops.len(), 3) {
        let mut life = Life::new(Durability::Os);
        life.disk.fault(Fault {
            at: k,
            trouble: Trouble::Io,
            lasts: true,
        });
        life.run();
        let recovered = life.recover(k);
        // What is kept is a beginning of what was told: no hole in it.
        let kept: Vec<u64> = recovered.kept.iter().copied().collect();
        let beginning: Vec<u64> = recovered
            .told
            .unsynced
            .iter()
            .copied()
            .take(kept.len())
            .collect();
        assert_eq!(kept, beginning, "place {k}");
        told += recovered.told.unsynced.len();
        lost += recovered.told.unsynced.len() - kept.len();
    }
    println!("{told} jobs were handed to the system, {lost} lost with the power");
    assert!(lost > 0, "no cut ever took anything: it is no power cut");
}
