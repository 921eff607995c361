//! A batch of facts becomes the fewest rows, each table's in the order of its key. Pure.
//!
//! - Ends by job, attempts by (job, number): SQLite then appends to pages instead of jumping between them.
//! - What was assigned to one worker becomes one row, whatever number of facts told of it.
//! - A start whose attempt ended in the same batch needs no row: the end carries when it started.

use hostler_engine::Time;
use hostler_engine::fact::{Again, Cancelling, Ended, Fact, WorkerFact};
use hostler_wire::{Attempt, Epoch, Fence, JobId, WorkerId};

use crate::store::ranges;

/// The rows of one batch.
#[derive(Debug, Default)]
pub(super) struct Rows<'a> {
    pub(super) workers: Vec<&'a WorkerFact>,
    pub(super) assigned: Vec<Share>,
    pub(super) started: Vec<Share>,
    pub(super) attempts: Vec<&'a Again>,
    pub(super) marks: Vec<&'a Cancelling>,
    pub(super) ends: Vec<&'a Ended>,
}

/// Attempts of one worker and one epoch: a row of `assigned` or of `started`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) worker: WorkerId,
    pub(super) epoch: Epoch,
    pub(super) at: Time,
    pub(super) attempts: Vec<(JobId, Attempt)>,
}

impl Share {
    /// Appends the row's blob.
    pub(super) fn encode(&self, into: &mut Vec<u8>) {
        ranges::encode(&self.attempts, into);
    }
}

/// Folds the facts of one batch of this epoch.
pub(super) fn fold(epoch: Epoch, facts: &[Fact]) -> Rows<'_> {
    let mut rows = Rows::default();
    for fact in facts {
        match fact {
            Fact::Worker(worker) => rows.workers.push(worker),
            Fact::Assigned(assigned) => {
                let of = |share: &&mut Share| share.worker == assigned.worker;
                match rows.assigned.iter_mut().find(of) {
                    Some(share) => share.attempts.extend_from_slice(&assigned.attempts),
                    None => rows.assigned.push(Share {
                        worker: assigned.worker,
                        epoch,
                        at: assigned.at,
                        attempts: assigned.attempts.clone(),
                    }),
                }
            }
            Fact::Started(_) => {} // below, when the ends are known
            Fact::Again(again) => rows.attempts.push(again),
            Fact::Cancelling(mark) => rows.marks.push(mark),
            Fact::Ended(ended) => rows.ends.push(ended),
        }
    }
    rows.workers.sort_unstable_by_key(|worker| worker.id);
    rows.attempts.sort_unstable_by_key(|again| again.fence);
    rows.ends.sort_unstable_by_key(|ended| ended.job);
    // The first mark of a job stands: it says what the job will have ended for.
    rows.marks.sort_by_key(|mark| mark.job);
    rows.marks.dedup_by_key(|mark| mark.job);
    for fact in facts {
        if let Fact::Started(started) = fact {
            for &fence in &started.fences {
                if !rows.tells_start_of(fence) {
                    push_start(&mut rows.started, started.worker, started.at, fence);
                }
            }
        }
    }
    for share in rows.assigned.iter_mut().chain(&mut rows.started) {
        share.attempts.sort_unstable();
        share.attempts.dedup();
    }
    rows
}

impl Rows<'_> {
    /// Whether the row of that attempt's end says when it started.
    fn tells_start_of(&self, fence: Fence) -> bool {
        let ended = self
            .ends
            .binary_search_by_key(&fence.job, |ended| ended.job);
        if let Ok(at) = ended
            && self.ends[at].fence == Some(fence)
        {
            return self.ends[at].started.is_some();
        }
        let again = self
            .attempts
            .binary_search_by_key(&fence, |again| again.fence);
        again.is_ok_and(|at| self.attempts[at].started.is_some())
    }
}

fn push_start(shares: &mut Vec<Share>, worker: WorkerId, at: Time, fence: Fence) {
    let of =
        |share: &&mut Share| (share.worker, share.epoch, share.at) == (worker, fence.epoch, at);
    // From the back: the starts of one fact mostly go to one row, the last made.
    match shares.iter_mut().rev().find(of) {
        Some(share) => share.attempts.push((fence.job, fence.attempt)),
        None => shares.push(Share {
            worker,
            epoch: fence.epoch,
            at,
            attempts: vec![(fence.job, fence.attempt)],
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use hostler_engine::fact::{Assigned, Charge, Started};
    use hostler_engine::spec::ClassId;
    use hostler_wire::{JobState, Reason};
    use proptest::prelude::*;

    const EPOCH: Epoch = Epoch::new(3);

    fn job(raw: u64) -> JobId {
        JobId::new(raw).unwrap()
    }

    fn fence(raw: u64, attempt: u16) -> Fence {
        Fence {
            job: job(raw),
            epoch: EPOCH,
            attempt: Attempt::new(attempt).unwrap(),
        }
    }

    fn assigned(worker: u32, jobs: &[u64]) -> Fact {
        Fact::Assigned(Assigned {
            worker: WorkerId::new(worker),
            at: Time::ZERO,
            attempts: jobs.iter().map(|&raw| (job(raw), Attempt::FIRST)).collect(),
        })
    }

    fn started(worker: u32, fences: &[Fence]) -> Fact {
        Fact::Started(Started {
            worker: WorkerId::new(worker),
            at: Time::from_micros(5),
            fences: fences.to_vec(),
        })
    }

    fn ended(raw: u64, started: Option<Time>) -> Fact {
        Fact::Ended(Ended {
            job: job(raw),
            class: ClassId::new(1),
            state: JobState::Succeeded,
            reason: Reason::None,
            fence: Some(fence(raw, 1)),
            worker: Some(WorkerId::new(1)),
            started,
            at: Time::from_micros(9),
            detail: None,
        })
    }

    fn again(raw: u64, attempt: u16) -> Fact {
        Fact::Again(Again {
            fence: fence(raw, attempt),
            worker: WorkerId::new(1),
            reason: Reason::ExitCode,
            charge: Charge::Failure,
            started: Some(Time::ZERO),
            at: Time::ZERO,
            due: None,
            detail: None,
        })
    }

    fn jobs_of(share: &Share) -> Vec<u64> {
        share.attempts.iter().map(|(job, _)| job.raw()).collect()
    }

    #[test]
    fn one_worker_one_row_of_assigned_in_id_order() {
        let facts = [assigned(1, &[7, 3]), assigned(2, &[4]), assigned(1, &[5])];
        let rows = fold(EPOCH, &facts);
        assert_eq!(rows.assigned.len(), 2);
        assert_eq!(jobs_of(&rows.assigned[0]), [3, 5, 7]);
        assert_eq!(jobs_of(&rows.assigned[1]), [4]);
    }

    #[test]
    fn ends_are_in_id_order_whatever_order_they_came_in() {
        let facts = [
            ended(9, None),
            ended(2, None),
            ended(5, None),
            again(8, 2),
            again(8, 1),
        ];
        let rows = fold(EPOCH, &facts);
        assert_eq!(
            rows.ends.iter().map(|e| e.job.raw()).collect::<Vec<_>>(),
            [2, 5, 9]
        );
        let numbers: Vec<_> = rows
            .attempts
            .iter()
            .map(|a| a.fence.attempt.raw())
            .collect();
        assert_eq!(numbers, [1, 2]);
    }

    #[test]
    fn a_start_is_written_only_if_no_end_in_the_batch_tells_of_it() {
        let (when, all) = (
            Some(Time::from_micros(5)),
            [fence(1, 1), fence(2, 1), fence(3, 1), fence(4, 1)],
        );
        let facts = [
            started(1, &all),
            ended(1, when),
            again(2, 1),
            ended(3, None),
        ];
        let rows = fold(EPOCH, &facts);
        assert_eq!(rows.started.len(), 1);
        assert_eq!(jobs_of(&rows.started[0]), [3, 4]);
    }

    #[test]
    fn starts_under_fences_of_an_older_epoch_keep_it() {
        let old = Fence {
            epoch: Epoch::new(2),
            ..fence(2, 1)
        };
        let facts = [started(1, &[fence(1, 1), old, fence(3, 1)])];
        let rows = fold(EPOCH, &facts);
        let of: Vec<_> = rows
            .started
            .iter()
            .map(|s| (s.epoch.raw(), jobs_of(s)))
            .collect();
        assert_eq!(of, [(3, vec![1, 3]), (2, vec![2])]);
    }

    /// Facts as a turn of the engine may make them: a job ends once, an attempt once.
    fn facts() -> impl Strategy<Value = Vec<Fact>> {
        let time = |told: bool| told.then_some(Time::from_micros(5));
        let fact = (0..4_u8, 1..4_u32, 1..9_u64, 1..4_u16, proptest::bool::ANY).prop_map(
            move |(kind, worker, raw, attempt, told)| match kind {
                0 => assigned(worker, &[raw, raw + 1]),
                1 => started(worker, &[fence(raw, attempt), fence(raw + 1, attempt)]),
                2 => ended(raw, time(told)),
                _ => again(raw, attempt + 1),
            },
        );
        proptest::collection::vec(fact, 0..40).prop_map(|mut facts| {
            let mut seen = BTreeSet::new();
            facts.retain(|fact| match fact {
                Fact::Ended(ended) => seen.insert((ended.job.raw(), 0)),
                Fact::Again(again) => {
                    seen.insert((again.fence.job.raw(), again.fence.attempt.raw()))
                }
                Fact::Worker(_) | Fact::Assigned(_) | Fact::Started(_) | Fact::Cancelling(_) => {
                    true
                }
            });
            facts
        })
    }

    proptest! {
        #[test]
        fn a_batch_says_what_its_facts_said_one_by_one(facts in facts()) {
            let rows = fold(EPOCH, &facts);

            let (mut given, mut begun) = (BTreeSet::new(), BTreeSet::new());
            for fact in &facts {
                match fact {
                    Fact::Assigned(it) => given.extend(it.attempts.iter().map(|&one| (it.worker, one))),
                    Fact::Started(it) => {
                        let told = |fence: &Fence| facts.iter().any(|fact| {
                            matches!(fact, Fact::Ended(end) if end.fence == Some(*fence) && end.started.is_some())
                                || matches!(fact, Fact::Again(end) if end.fence == *fence && end.started.is_some())
                        });
                        let untold = it.fences.iter().filter(|fence| !told(fence));
                        begun.extend(untold.map(|fence| (it.worker, (fence.job, fence.attempt))));
                    }
                    Fact::Worker(_) | Fact::Again(_) | Fact::Ended(_) | Fact::Cancelling(_) => {}
                }
            }
            let flat = |shares: &[Share]| -> BTreeSet<_> {
                let of = |share: &Share| share.attempts.iter().map(|&one| (share.worker, one)).collect::<Vec<_>>();
                shares.iter().flat_map(of).collect()
            };
            prop_assert_eq!(flat(&rows.assigned), given);
            prop_assert_eq!(flat(&rows.started), begun);

            // One row a worker, each in the order of its key, nothing left out.
            let workers: BTreeSet<_> = rows.assigned.iter().map(|share| share.worker).collect();
            prop_assert_eq!(workers.len(), rows.assigned.len());
            let both = rows.assigned.iter().chain(&rows.started);
            prop_assert!(both.into_iter().all(|share| share.attempts.is_sorted()));
            prop_assert!(rows.ends.is_sorted_by_key(|end| end.job));
            prop_assert!(rows.attempts.is_sorted_by_key(|end| end.fence));
            let ends = facts.iter().filter(|fact| matches!(fact, Fact::Ended(_) | Fact::Again(_)));
            prop_assert_eq!(rows.ends.len() + rows.attempts.len(), ends.count());
        }
    }
}
