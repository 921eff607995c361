//! A worker as the engine sees it: slots, what it holds, what of its reports is acknowledged, when it was last heard; and
//! the attempts that are out.
//!
//! Not here: sockets, frames, names of hosts; which worker gets what (`ready`).

use std::collections::{BTreeMap, VecDeque};

use hostler_wire::{Attempt, Epoch, Fence, JobId, Reason, SessionId, WorkerId};
use slab::Slab;

use crate::queue::key;
use crate::retry::mix;
use crate::time::{Span, Time};

/// No place in a table: ends a list.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// A worker instance.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) name: String,
    /// A hash of the name, never 0: what jobs remember of a worker they would rather avoid.
    pub(crate) tag: u32,
    pub(crate) instance: u64,
    pub(crate) link: Option<Link>,
    /// The greatest session it had: what comes in a lesser one is older.
    pub(crate) newest: Option<SessionId>,
    pub(crate) slots: u32,
    pub(crate) queues: Vec<String>,
    pub(crate) labels: Vec<(String, String)>,
    /// What it serves; none before its first session.
    pub(crate) profile: Option<u32>,
    pub(crate) heard: Time,
    /// Until then we may have been heard by it: its last session ended.
    pub(crate) left: Time,
    /// An alarm for its lease is set.
    pub(crate) alarmed: bool,
    pub(crate) draining: bool,
    /// It could not start something for want of resources: nothing new before this.
    pub(crate) rests_until: Time,
    /// What it holds, a list through the attempts in the order they were given.
    pub(crate) first: u32,
    pub(crate) last: u32,
    pub(crate) held: u32,
    /// Of that, recalled and not yet answered.
    pub(crate) recalls: u32,
    pub(crate) reports: Reports,
    /// Given in this turn.
    pub(crate) batch: Vec<u32>,
    /// Where `ready` has put it.
    pub(crate) seat: Seat,
    /// How it stands among those with prefetched work; 0 = it does not.
    pub(crate) seat_over: u32,
    /// Its seat must be looked at again.
    pub(crate) moved: bool,
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) session: SessionId,
    /// Assign frames sent in it.
    pub(crate) seq: u64,
    /// Of them, those sent before the last beat.
    seq_at_beat: u64,
    /// Beats in a row that echoed less than that.
    deaf_beats: u32,
}

/// Where a worker stands in line for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// It gets nothing.
    Out,
    /// It has free slots and holds so many attempts.
    Free { free: u32, held: u32 },
    /// Its slots are full; what it holds beyond them, as a share of them.
    Full { share: u64 },
}

/// What is owed to a worker for its reports.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// The highest number taken in.
    pub(crate) seen: u64,
    /// Everything up to here is committed or void.
    pub(crate) acked: u64,
    /// Once this fact is committed, so are the reports up to this number.
    waiting: VecDeque<(u64, u64)>,
}

impl Reports {
    /// A report waits for a fact.
    pub(crate) fn wait(&mut self, fact: u64, number: u64) {
        self.seen = number;
        match self.waiting.back_mut() {
            Some(last) if last.0 == fact => last.1 = number,
            _ => self.waiting.push_back((fact, number)),
        }
    }

    /// Facts up to this one are committed. True if more can be acknowledged now.
    pub(crate) fn committed(&mut self, through: u64) -> bool {
        let before = self.acked;
        while let Some(&(fact, number)) = self.waiting.front()
            && fact <= through
        {
            self.acked = number;
            self.waiting.pop_front();
        }
        self.acked != before
    }
}

impl Link {
    pub(crate) const fn new(session: SessionId) -> Self {
        Self {
            session,
            seq: 0,
            seq_at_beat: 0,
            deaf_beats: 0,
        }
    }

    /// A beat echoed this sequence. True if the worker is deaf: for more than three beats in a row it has not received what
    /// was sent a whole beat before (semantics 22).
    pub(crate) const fn is_deaf_after(&mut self, assign_seq: u64) -> bool {
        if assign_seq < self.seq_at_beat {
            self.deaf_beats += 1;
        } else {
            self.deaf_beats = 0;
        }
        self.seq_at_beat = self.seq;
        self.deaf_beats > 3
    }
}

impl Worker {
    pub(crate) fn new(id: WorkerId, name: String, instance: u64, heard: Time) -> Self {
        Self {
            id,
            tag: tag(&name),
            name,
            instance,
            link: None,
            newest: None,
            slots: 0,
            queues: Vec::new(),
            labels: Vec::new(),
            profile: None,
            heard,
            left: heard,
            alarmed: false,
            draining: false,
            rests_until: Time::ZERO,
            first: NOWHERE,
            last: NOWHERE,
            held: 0,
            recalls: 0,
            reports: Reports::default(),
            batch: Vec::new(),
            seat: Seat::Out,
            seat_over: 0,
            moved: false,
        }
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        self.link.as_ref().map(|link| link.session)
    }

    /// Slots with nothing in them. A slot is held from assignment to the end of the attempt (semantics 27).
    pub(crate) const fn free(&self) -> u32 {
        self.slots.saturating_sub(self.held)
    }

    /// Attempts held beyond the slots.
    pub(crate) const fn over(&self) -> u32 {
        self.held.saturating_sub(self.slots)
    }

    pub(crate) fn is_silent(&self, now: Time, beat: Span) -> bool {
        now.since(self.heard) > beat.times(3)
    }

    /// The seat it should have.
    pub(crate) fn claim(&self, now: Time, beat: Span, prefetch_max: u32) -> Seat {
        let out = self.link.is_none()
            || self.draining
            || now < self.rests_until
            || self.is_silent(now, beat);
        if out {
            Seat::Out
        } else if self.free() > 0 {
            Seat::Free {
                free: self.free(),
                held: self.held,
            }
        } else if self.over() < prefetch_max {
            let share = (u64::from(self.over()) << 32) / u64::from(self.slots.max(1));
            Seat::Full { share }
        } else {
            Seat::Out
        }
    }
}

/// What jobs remember of a worker's name.
fn tag(name: &str) -> u32 {
    let hash = name
        .bytes()
        .fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
    u32::try_from(hash >> 32).expect("32 of its bits").max(1)
}

/// An attempt that is out.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) job: JobId,
    epoch: Epoch,
    attempt: Attempt,
    pub(crate) worker: u32,
    prev: u32,
    next: u32,
    pub(crate) started: Option<Time>,
    /// The fact of its assignment; 0 while the turn that gives it out lasts, or if that was before this start.
    pub(crate) assigned: u64,
    /// It may have left for the worker.
    pub(crate) sent: bool,
    /// Its worker was asked to give it back. Not asked twice in a session.
    pub(crate) recalled: bool,
    /// The worker has listed it on coming back.
    pub(crate) listed: bool,
    /// An alarm is set for its overrun.
    pub(crate) alarmed: bool,
    pub(crate) cancel: Option<Cancel>,
}

/// A running attempt was told to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cancel {
    pub(crate) reason: Reason,
    pub(crate) force: bool,
    /// The fact is committed: the worker may be told.
    pub(crate) committed: bool,
}

impl Held {
    pub(crate) fn new(fence: Fence, worker: u32) -> Self {
        Self {
            job: fence.job,
            epoch: fence.epoch,
            attempt: fence.attempt,
            worker,
            prev: NOWHERE,
            next: NOWHERE,
            started: None,
            assigned: 0,
            sent: false,
            recalled: false,
            listed: false,
            alarmed: false,
            cancel: None,
        }
    }

    pub(crate) const fn fence(&self) -> Fence {
        Fence {
            job: self.job,
            epoch: self.epoch,
            attempt: self.attempt,
        }
    }

    /// Its recall may still be answered.
    pub(crate) const fn is_awaited(&self) -> bool {
        self.recalled && self.started.is_none()
    }
}

/// Workers and the attempts they hold.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) all: Slab<Worker>,
    pub(crate) held: Slab<Held>,
    by_name: BTreeMap<String, u32>,
    by_id: BTreeMap<WorkerId, u32>,
    by_session: BTreeMap<SessionId, u32>,
    /// The next number to give out.
    pub(crate) next: WorkerId,
}

impl Workers {
    pub(crate) const fn new() -> Self {
        Self {
            all: Slab::new(),
            held: Slab::new(),
            by_name: BTreeMap::new(),
            by_id: BTreeMap::new(),
            by_session: BTreeMap::new(),
            next: WorkerId::new(1),
        }
    }

    pub(crate) fn get(&self, at: u32) -> &Worker {
        &self.all[at as usize]
    }

    pub(crate) fn get_mut(&mut self, at: u32) -> &mut Worker {
        &mut self.all[at as usize]
    }

    /// The worker at that place, if it is still the same one.
    pub(crate) fn same(&mut self, at: u32, id: WorkerId) -> Option<&mut Worker> {
        self.all
            .get_mut(at as usize)
            .filter(|worker| worker.id == id)
    }

    pub(crate) fn named(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn numbered(&self, id: WorkerId) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    pub(crate) fn in_session(&self, session: SessionId) -> Option<u32> {
        self.by_session.get(&session).copied()
    }

    pub(crate) fn add(&mut self, worker: Worker) -> u32 {
        let (name, id) = (worker.name.clone(), worker.id);
        self.next = self.next.max(WorkerId::new(id.raw() + 1));
        let at = key(self.all.insert(worker));
        self.by_name.insert(name, at);
        self.by_id.insert(id, at);
        at
    }

    pub(crate) fn remove(&mut self, at: u32) -> Worker {
        self.unlink(at);
        let worker = self.all.remove(at as usize);
        assert!(
            worker.held == 0,
            "what a worker held is given to others before it is forgotten"
        );
        self.by_name.remove(&worker.name);
        self.by_id.remove(&worker.id);
        worker
    }

    pub(crate) fn link(&mut self, at: u32, session: SessionId) {
        self.by_session.insert(session, at);
        self.all[at as usize].link = Some(Link::new(session));
    }

    pub(crate) fn unlink(&mut self, at: u32) -> Option<SessionId> {
        let link = self.all[at as usize].link.take()?;
        self.by_session.remove(&link.session);
        Some(link.session)
    }

    /// The worker is given an attempt, behind all it holds.
    pub(crate) fn give(&mut self, held: Held) -> u32 {
        let worker = &mut self.all[held.worker as usize];
        let prev = worker.last;
        let at = key(self.held.insert(Held { prev, ..held }));
        worker.held += 1;
        worker.last = at;
        if prev == NOWHERE {
            worker.first = at;
        } else {
            self.held[prev as usize].next = at;
        }
        at
    }

    /// The attempt is not out any more.
    pub(crate) fn take(&mut self, at: u32) -> Held {
        let held = self.held.remove(at as usize);
        let worker = &mut self.all[held.worker as usize];
        worker.held -= 1;
        worker.recalls -= u32::from(held.is_awaited());
        if held.next == NOWHERE {
            worker.last = held.prev;
        }
        if held.prev == NOWHERE {
            worker.first = held.next;
        } else {
            self.held[held.prev as usize].next = held.next;
        }
        if held.next != NOWHERE {
            self.held[held.next as usize].prev = held.prev;
        }
        held
    }

    /// What a worker holds, in the order it was given.
    pub(crate) fn holds(&self, at: u32) -> impl Iterator<Item = (u32, &Held)> {
        self.walk(self.all[at as usize].first, |held| held.next)
    }

    /// The same from its end.
    pub(crate) fn holds_backwards(&self, at: u32) -> impl Iterator<Item = (u32, &Held)> {
        self.walk(self.all[at as usize].last, |held| held.prev)
    }

    fn walk(&self, mut at: u32, step: fn(&Held) -> u32) -> impl Iterator<Item = (u32, &Held)> {
        std::iter::from_fn(move || {
            let here = at;
            let held = self.held.get(here as usize)?;
            at = step(held);
            Some((here, held))
        })
    }

    pub(crate) fn check(&self) {
        assert_eq!(self.by_name.len(), self.all.len());
        assert_eq!(self.by_id.len(), self.all.len());
        let mut held = 0;
        let mut links = 0;
        for (at, worker) in &self.all {
            let at = key(at);
            assert_eq!(self.by_name.get(&worker.name), Some(&at));
            assert_eq!(self.by_id.get(&worker.id), Some(&at));
            assert!(worker.id < self.next);
            if let Some(link) = &worker.link {
                assert_eq!(self.by_session.get(&link.session), Some(&at));
                links += 1;
            }
            let list: Vec<_> = self.holds(at).collect();
            assert_eq!(
                list.len(),
                worker.held as usize,
                "the list is what the count says"
            );
            assert!(list.iter().all(|(_, held)| held.worker == at));
            let mut back: Vec<_> = self.holds_backwards(at).map(|(at, _)| at).collect();
            back.reverse();
            assert!(list.iter().map(|(at, _)| *at).eq(back));
            let awaited = list.iter().filter(|(_, held)| held.is_awaited()).count();
            assert_eq!(awaited, worker.recalls as usize);
            held += list.len();
        }
        assert_eq!(
            held,
            self.held.len(),
            "every attempt that is out is held by a worker"
        );
        assert_eq!(links, self.by_session.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(raw: u64, worker: u32) -> Held {
        let job = JobId::new(raw).unwrap();
        Held::new(
            Fence {
                job,
                epoch: Epoch::new(1),
                attempt: Attempt::FIRST,
            },
            worker,
        )
    }

    #[test]
    fn what_a_worker_holds_keeps_its_order_whatever_is_taken_out() {
        let mut workers = Workers::new();
        let w = workers.add(Worker::new(WorkerId::new(1), "w".into(), 1, Time::ZERO));
        let at: Vec<_> = (1..=5).map(|raw| workers.give(held(raw, w))).collect();
        for out in [2, 0, 4] {
            workers.take(at[out]);
            workers.check();
        }
        let left: Vec<_> = workers.holds(w).map(|(_, held)| held.job.raw()).collect();
        assert_eq!(left, [2, 4]);
    }

    #[test]
    fn an_ack_covers_reports_up_to_the_first_that_still_waits() {
        let mut reports = Reports::default();
        for (fact, number) in [(10, 1), (10, 2), (12, 3), (12, 4), (15, 5)] {
            reports.wait(fact, number);
        }
        assert!(!reports.committed(9));
        assert!(reports.committed(11) && reports.acked == 2);
        assert!(reports.committed(12) && reports.acked == 4);
        assert!(reports.committed(99) && reports.acked == 5 && reports.seen == 5);
    }

    #[test]
    fn a_worker_that_echoes_old_sequences_for_four_beats_is_deaf() {
        let mut link = Link::new(SessionId::new(1));
        link.seq = 3;
        assert!(
            !link.is_deaf_after(0),
            "what was sent within a beat may be on its way"
        );
        for _ in 0..3 {
            assert!(!link.is_deaf_after(2));
        }
        assert!(link.is_deaf_after(2));
        assert!(!link.is_deaf_after(3));
    }
}
