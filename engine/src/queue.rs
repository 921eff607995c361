//! What waits for a slot: a pool for each queue and kind of work, and the classes that share them.
//!
//! A pool has a lane for each priority, and a lane is the set of ids that may run, as ranges: a million jobs submitted
//! together are one entry, and a retried job goes back to where its id stands (semantics 5). Ids that have ended meanwhile
//! (cancelled, expired) are left in and passed over when their turn comes.
//!
//! Not here: which worker gets what (`ready`). Caps, weights and pauses will be the pool's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use hostler_wire::{JobId, Priority, mutation};
use slab::Slab;

use crate::job::after;
use crate::spec::{Class, ClassId, Kind};

/// Ids in order. The range being taken from lies beside the others, so that taking an id is an addition.
#[derive(Debug, Default)]
struct Lane {
    front: Option<(JobId, u32)>,
    rest: BTreeMap<JobId, u32>,
}

impl Lane {
    fn push(&mut self, first: JobId, count: u32) {
        match self.front {
            None => self.front = Some((first, count)),
            Some(front) if first < front.0 => {
                self.front = Some((first, count));
                self.rest.insert(front.0, front.1);
            }
            Some((front, length)) => {
                let last = self.rest.last_entry();
                if last.is_none() && front.raw() + u64::from(length) == first.raw() {
                    if let Some(sum) = length.checked_add(count) {
                        self.front = Some((front, sum));
                        return;
                    }
                } else if let Some(mut last) = last
                    && last.key().raw() + u64::from(*last.get()) == first.raw()
                    && let Some(sum) = last.get().checked_add(count)
                {
                    *last.get_mut() = sum;
                    return;
                }
                self.rest.insert(first, count);
            }
        }
    }

    fn pop(&mut self) {
        let Some((first, count)) = self.front else {
            return;
        };
        self.front = match after(first) {
            Some(next) if count > 1 => Some((next, count - 1)),
            Some(_) | None => self.rest.pop_first(),
        };
    }

    fn ranges(&self) -> impl Iterator<Item = (JobId, u32)> {
        self.front
            .into_iter()
            .chain(self.rest.iter().map(|(&first, &count)| (first, count)))
    }
}

/// Jobs that may run and are alike in who can run them.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) queue: Arc<str>,
    pub(crate) kind: Kind,
    /// By urgency, least first; none of them empty.
    lanes: BTreeMap<u8, Lane>,
    /// Jobs in phase `Queued`.
    pub(crate) queued: u64,
    /// Of them, those whose body is neither in memory nor asked for.
    pub(crate) cold: u64,
    /// Jobs taken since bodies were last asked for.
    pub(crate) taken: u32,
    /// Recalled attempts whose answer is awaited.
    pub(crate) recalls: u64,
    /// Classes whose jobs go here.
    classes: u32,
    /// Of them, those fast enough to be prefetched.
    pub(crate) fast: u32,
    /// Profiles that serve it.
    pub(crate) profiles: BTreeSet<u32>,
    /// Of them, those with a worker that has a free slot.
    pub(crate) open: BTreeSet<u32>,
}

impl Pool {
    /// These may run.
    pub(crate) fn push(&mut self, priority: Priority, first: JobId, count: u32) {
        self.lanes
            .entry(priority.lane())
            .or_default()
            .push(first, count);
        self.queued += u64::from(count);
    }

    /// The id whose turn it is. It may belong to a job that has ended: then take it and look again.
    pub(crate) fn head(&self) -> Option<(Priority, JobId)> {
        let (&lane, ids) = if mutation::is("lowest priority first") {
            self.lanes.first_key_value()?
        } else {
            self.lanes.last_key_value()?
        };
        Some((Priority::from_lane(lane), ids.front?.0))
    }

    /// Takes that id away.
    pub(crate) fn pop(&mut self) {
        let lane = if mutation::is("lowest priority first") {
            self.lanes.first_entry()
        } else {
            self.lanes.last_entry()
        };
        let Some(mut lane) = lane else {
            return;
        };
        lane.get_mut().pop();
        if lane.get().front.is_none() {
            lane.remove();
        }
    }

    /// One job less waits here.
    pub(crate) fn left(&mut self, was_cold: bool) {
        self.queued -= 1;
        self.cold -= u64::from(was_cold);
        if self.queued == 0 {
            self.lanes.clear();
        }
    }

    /// The lowest id of each priority, and those that follow it: ended ones among them.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = impl Iterator<Item = JobId>> {
        self.lanes.values().map(|ids| {
            ids.ranges()
                .flat_map(|(first, n)| (0..n.into()).map(move |i| first.plus(i)))
        })
    }

    /// Ids in the order of their turns, ended ones among them.
    pub(crate) fn ids(&self) -> impl Iterator<Item = (Priority, JobId)> {
        self.lanes.iter().rev().flat_map(|(&lane, ids)| {
            let priority = Priority::from_lane(lane);
            let ids = ids
                .ranges()
                .flat_map(|(first, n)| (0..n.into()).map(move |i| first.plus(i)));
            ids.map(move |id| (priority, id))
        })
    }
}

/// Classes without jobs that are remembered for their run time.
const IDLE_CLASSES_MAX: usize = 1_024;
/// Classes below this run time may be prefetched (P5).
const FAST_US: u64 = 50_000;
/// Work ahead is as much as a worker does in this time: a commit, the way there and back, and the pause in which a server
/// that has stocked it does not listen to it.
const AHEAD_US: u64 = 8_000;

/// A class with live jobs, or one that had some lately.
#[derive(Debug)]
pub(crate) struct ClassEntry {
    pub(crate) class: Arc<Class>,
    pub(crate) pool: u32,
    /// Its live jobs.
    pub(crate) jobs: u64,
    /// It stands in the list of idle ones (perhaps with jobs again).
    idle: bool,
    /// Measured run time in microseconds, the last runs weighing most; none before the first.
    run_us: Option<u64>,
}

impl ClassEntry {
    fn is_fast(&self) -> bool {
        self.class.spec.max_losses > 0 && self.run_us.is_some_and(|us| us < FAST_US)
    }

    /// How many attempts beyond its slots a worker may be given: what covers [`AHEAD_US`] of them (P5).
    pub(crate) fn prefetch(&self, slots: u32, max: u32) -> u32 {
        let Some(run_us) = self.run_us.filter(|_| self.is_fast()) else {
            return 0;
        };
        let covers = u64::from(slots) * AHEAD_US / run_us.max(1);
        u32::try_from(covers.max(1)).unwrap_or(u32::MAX).min(max)
    }
}

/// Classes and pools. Both go when nobody needs them.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    classes: Slab<ClassEntry>,
    by_id: BTreeMap<ClassId, u32>,
    idle: VecDeque<u32>,
    pub(crate) pools: Slab<Pool>,
    by_name: BTreeMap<(Arc<str>, bool), u32>,
}

impl Queues {
    pub(crate) fn class(&self, at: u32) -> &ClassEntry {
        &self.classes[at as usize]
    }

    pub(crate) fn pool(&mut self, at: u32) -> &mut Pool {
        &mut self.pools[at as usize]
    }

    /// The place of this class, and its pool if that is new.
    pub(crate) fn intern(&mut self, class: &Arc<Class>) -> (u32, Option<u32>) {
        if let Some(&at) = self.by_id.get(&class.id) {
            return (at, None);
        }
        let name = (class.spec.queue.clone(), class.spec.kind == Kind::Command);
        let (pool, is_new) = match self.by_name.get(&name) {
            Some(&pool) => (pool, false),
            None => {
                let pool = key(self.pools.insert(Pool {
                    queue: class.spec.queue.clone(),
                    kind: class.spec.kind,
                    lanes: BTreeMap::new(),
                    queued: 0,
                    cold: 0,
                    taken: 0,
                    recalls: 0,
                    classes: 0,
                    fast: 0,
                    profiles: BTreeSet::new(),
                    open: BTreeSet::new(),
                }));
                self.by_name.insert(name, pool);
                (pool, true)
            }
        };
        self.pools[pool as usize].classes += 1;
        let entry = ClassEntry {
            class: class.clone(),
            pool,
            jobs: 0,
            idle: false,
            run_us: None,
        };
        let at = key(self.classes.insert(entry));
        self.by_id.insert(class.id, at);
        (at, is_new.then_some(pool))
    }

    /// So many jobs of the class came.
    pub(crate) fn join(&mut self, class: u32, count: u32) {
        self.classes[class as usize].jobs += u64::from(count);
    }

    /// One of its jobs is forgotten. Answers with a pool to be forgotten by those who serve it, if that was its last use.
    pub(crate) fn leave(&mut self, class: u32) -> Option<(u32, Pool)> {
        let entry = &mut self.classes[class as usize];
        entry.jobs -= 1;
        if entry.jobs > 0 || entry.idle {
            return None;
        }
        entry.idle = true;
        self.idle.push_back(class);
        if self.idle.len() <= IDLE_CLASSES_MAX {
            return None;
        }
        let oldest = self.idle.pop_front()?;
        let entry = &mut self.classes[oldest as usize];
        entry.idle = false;
        if entry.jobs > 0 {
            return None;
        }
        let entry = self.classes.remove(oldest as usize);
        self.by_id.remove(&entry.class.id);
        let pool = &mut self.pools[entry.pool as usize];
        pool.classes -= 1;
        pool.fast -= u32::from(entry.is_fast());
        if pool.classes > 0 {
            return None;
        }
        let pool = self.pools.remove(entry.pool as usize);
        self.by_name
            .remove(&(pool.queue.clone(), pool.kind == Kind::Command));
        Some((entry.pool, pool))
    }

    /// A started attempt of the class ran so long. True if its pool's appetite for prefetch changed.
    pub(crate) fn ran(&mut self, class: u32, us: u64) -> bool {
        let entry = &mut self.classes[class as usize];
        let was = entry.is_fast();
        entry.run_us = Some(match entry.run_us {
            None => us,
            Some(mean) => mean - mean / 8 + us / 8,
        });
        let is = entry.is_fast();
        let pool = &mut self.pools[entry.pool as usize];
        pool.fast = pool.fast + u32::from(is) - u32::from(was);
        is != was
    }

    pub(crate) fn check_jobs(&self, jobs: &BTreeMap<u32, u64>) {
        for (at, entry) in &self.classes {
            assert_eq!(entry.jobs, jobs.get(&key(at)).copied().unwrap_or(0));
            assert_eq!(entry.idle, self.idle.contains(&key(at)));
            assert!(
                entry.jobs > 0 || entry.idle,
                "a class nobody uses is on its way out"
            );
        }
    }

    pub(crate) fn check(&self) {
        let mut classes: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        for (at, entry) in &self.classes {
            assert_eq!(self.by_id.get(&entry.class.id), Some(&key(at)));
            let sums = classes.entry(entry.pool).or_default();
            sums.0 += 1;
            sums.1 += u32::from(entry.is_fast());
        }
        assert_eq!(self.by_id.len(), self.classes.len());
        assert_eq!(self.by_name.len(), self.pools.len());
        for (at, pool) in &self.pools {
            assert_eq!(classes.get(&key(at)), Some(&(pool.classes, pool.fast)));
            for lane in pool.lanes.values() {
                let ranges: Vec<_> = lane.ranges().collect();
                assert!(!ranges.is_empty(), "an empty lane is dropped");
                assert!(
                    ranges.windows(2).all(|w| w[0].0 < w[1].0),
                    "a lane is in order"
                );
            }
        }
    }
}

/// A place in a slab, as the small number it is kept as.
pub(crate) fn key(at: usize) -> u32 {
    u32::try_from(at).expect("fewer than 2^32 things of a kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(raw: u64) -> JobId {
        JobId::new(raw).unwrap()
    }

    fn drain(lane: &mut Lane) -> Vec<u64> {
        std::iter::from_fn(|| {
            let (first, _) = lane.front?;
            lane.pop();
            Some(first.raw())
        })
        .collect()
    }

    #[test]
    fn ids_leave_a_lane_lowest_first_whatever_the_order_they_came_in() {
        let mut lane = Lane::default();
        for (first, count) in [(10, 3), (20, 2), (22, 1), (5, 1), (15, 2)] {
            lane.push(id(first), count);
        }
        assert_eq!(lane.ranges().count(), 4, "20..22 and 22 are one range");
        lane.pop();
        lane.pop();
        lane.push(id(10), 1);
        assert_eq!(drain(&mut lane), [10, 11, 12, 15, 16, 20, 21, 22]);
    }

    #[test]
    fn an_id_that_comes_back_into_the_middle_of_a_range_waits_for_its_turn() {
        let mut lane = Lane::default();
        lane.push(id(1), 2);
        lane.push(id(4), 6);
        for _ in 0..3 {
            lane.pop();
        }
        lane.push(id(2), 1);
        lane.push(id(1), 1);
        assert_eq!(drain(&mut lane), [1, 2, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_million_jobs_of_a_batch_cost_one_entry() {
        let mut lane = Lane::default();
        for n in 0..1_000 {
            lane.push(id(1 + n * 1_000), 1_000);
        }
        assert_eq!(lane.ranges().count(), 1);
    }
}
