//! What a seed expands to: a failing one is not understood without this.

use std::fmt;

use hostler_server::config::Durability;
use hostler_worker::SpoolLimits;

use crate::faults::Fault;
use crate::rng::Rng;

pub(crate) const MS: u64 = 1_000;
pub(crate) const S: u64 = 1_000_000;

/// Everything about a run that is decided before it begins. Times are microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// How long work comes in and faults happen; after it everything must come to rest.
    pub(crate) horizon: u64,
    /// Mean time between two requests.
    pub(crate) request_every: u64,
    /// Most jobs in one request.
    pub(crate) batch_max: u64,
    /// Mean time between two cancels; none at 0.
    pub(crate) cancel_every: u64,
    /// How long jobs run, at most.
    pub(crate) run_max: u64,
    pub(crate) workers: usize,
    pub(crate) slots_max: u64,
    pub(crate) durability: Durability,
    /// Of a thousand requests, those that ask for a synced commit.
    pub(crate) synced: u64,
    /// No more work than that.
    pub(crate) jobs_max: u64,
    /// How long a silent worker keeps its work.
    pub(crate) grace: u64,
    /// Bytes of bodies in memory: little makes them stay on disk.
    pub(crate) resident_bytes_max: usize,
    /// One way.
    pub(crate) latency: (u64, u64),
    /// A commit.
    pub(crate) commit: (u64, u64),
    /// From a wake-up to the turn.
    pub(crate) wake: (u64, u64),
    /// Mean time between two faults of a kind; none at 0.
    pub(crate) faults: [u64; Fault::ALL.len()],
    /// Of a thousand commands, those whose output is wanted.
    pub(crate) prints: u64,
    /// Bytes of one write of theirs, at most.
    pub(crate) print_max: u64,
    /// Most bytes kept of an attempt.
    pub(crate) output_bytes_max: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) spool: SpoolLimits,
    /// One write in so many to the spool's files fails; none at 0.
    pub(crate) spill_fails: u64,
    /// Of a thousand classes, those whose jobs must not run twice at once.
    pub(crate) alone: u64,
    /// The engine's invariants are looked at after every so many turns, the sessions' likewise.
    pub(crate) check_every: u64,
    /// The parts' own invariants are looked at too; the order of what is given out always is.
    pub(crate) parts_check: bool,
}

impl Options {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let horizon = rng.between((20, 400)) * S;
        let mut faults = [0; Fault::ALL.len()];
        // Some runs are peaceful, most have a few kinds of faults, some have all.
        let kinds = rng.pick(&[0, 150, 300, 300, 500, 800]);
        let pace = rng.pick(&[5, 20, 60, 120]) * S;
        for every in &mut faults {
            if rng.chance(kinds) {
                *every = rng.between((pace / 2, pace * 3));
            }
        }
        if faults[Fault::PowerLoss.at()] > 0 {
            // A new boot can be bridged by the wall clock only: one that was moved meanwhile moves the engine's time.
            faults[Fault::WallJump.at()] = 0;
        }
        let durability = rng.pick(&[Durability::Fsync, Durability::Fsync, Durability::Os]);
        let mut options = Self {
            seed,
            horizon,
            request_every: rng.pick(&[20 * MS, 100 * MS, 300 * MS, S]),
            batch_max: rng.pick(&[1, 1, 4, 30, 100]),
            cancel_every: rng.pick(&[0, 200 * MS, S, 5 * S]),
            run_max: rng.pick(&[2 * MS, 200 * MS, 3 * S, 30 * S]),
            workers: usize::try_from(rng.between((1, 5))).expect("few"),
            slots_max: rng.pick(&[1, 2, 4, 16]),
            durability,
            synced: match durability {
                Durability::Fsync => rng.pick(&[1_000, 1_000, 950, 0]),
                Durability::Os => rng.pick(&[0, 0, 50, 500]),
            },
            jobs_max: rng.pick(&[50, 300, 1_000, 2_000]),
            grace: rng.pick(&[7 * S, 30 * S]),
            resident_bytes_max: rng.pick(&[0, 500, 1 << 20, 1 << 20]),
            latency: rng.pick(&[
                (30, 200),
                (100, 3 * MS),
                (MS, 80 * MS),
                (150 * MS, 250 * MS),
            ]),
            commit: rng.pick(&[(50, 300), (MS, 8 * MS), (MS, 200 * MS)]),
            wake: rng.pick(&[(1, 50), (1, 50), (10, 5 * MS)]),
            faults,
            prints: rng.pick(&[0, 100, 300, 900]),
            print_max: rng.pick(&[40, 600, 5_000]),
            output_bytes_max: rng.pick(&[4_096, 20_000, 1 << 20]),
            segment_bytes: rng.pick(&[8 << 10, 64 << 10]),
            spool: SpoolLimits {
                memory_bytes: rng.pick(&[4 << 10, 32 << 10, 1 << 20]),
                attempt_memory_bytes: rng.pick(&[2 << 10, 64 << 10]),
                file_bytes: rng.pick(&[0, 300 << 10, 4 << 20]),
                attempt_file_bytes: rng.pick(&[8 << 10, 200 << 10]),
                directory: std::path::PathBuf::new(),
            },
            spill_fails: rng.pick(&[0, 0, 0, 7]),
            alone: 200,
            check_every: 50,
            parts_check: true,
        };
        if rng.chance(100) {
            options.is_about_leases(&mut rng);
        }
        options
    }

    /// Long jobs that must not run twice at once, on workers that are cut off in every way.
    fn is_about_leases(&mut self, rng: &mut Rng) {
        self.alone = 800;
        self.run_max = 30 * S;
        self.grace = 7 * S;
        self.workers = self.workers.max(2);
        self.slots_max = 4;
        self.jobs_max = 300;
        for (fault, every) in [
            (Fault::Partition, 60),
            (Fault::OneWay, 20),
            (Fault::Cut, 30),
            (Fault::NameInUse, 30),
        ] {
            self.faults[fault.at()] = rng.between((every / 2, every * 2)) * S;
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {} expands to:", self.seed)?;
        let Self {
            seed: _,
            horizon,
            request_every,
            batch_max,
            cancel_every,
            run_max,
            workers,
            slots_max,
            durability,
            synced,
            jobs_max,
            grace,
            resident_bytes_max,
            latency,
            commit,
            wake,
            faults,
            prints,
            print_max,
            output_bytes_max,
            segment_bytes,
            spool,
            spill_fails,
            alone,
            check_every,
            parts_check: _,
        } = self;
        writeln!(
            f,
            "  horizon {} s, a request each {} ms of up to {batch_max} jobs, a cancel each {} ms",
            horizon / S,
            request_every / MS,
            cancel_every / MS
        )?;
        writeln!(
            f,
            "  {workers} workers of up to {slots_max} slots, jobs run up to {} ms, worker grace {} s",
            run_max / MS,
            grace / S
        )?;
        writeln!(
            f,
            "  at most {jobs_max} jobs, durability {durability:?}, {synced} of 1000 requests synced, resident bytes {resident_bytes_max}, {alone} of 1000 classes alone, check each {check_every} turns"
        )?;
        writeln!(
            f,
            "  latency {latency:?} us, commit {commit:?} us, wake-up {wake:?} us"
        )?;
        writeln!(
            f,
            "  {prints} of 1000 commands print up to {print_max} bytes at a time, {output_bytes_max} are kept in segments of \
             {segment_bytes}; one write in {spill_fails} fails of {spool:?}"
        )?;
        for (fault, every) in Fault::ALL.iter().zip(faults) {
            if *every > 0 {
                writeln!(f, "  {fault:?} each {} s", every / S)?;
            }
        }
        Ok(())
    }
}
