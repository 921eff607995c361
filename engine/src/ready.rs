//! Which ready job goes to which worker.
//!
//! Workers that serve the same are one profile. A profile keeps its workers in line: those with free slots, the most
//! first and of equals the one that holds the least; and behind them those that are full and may be given work ahead.
//! A turn takes the pools that have both a ready job and a worker for it, and gives the best job of all of them to
//! the best worker, until either side runs out. So a turn costs what it gives out, whatever waits and however many
//! workers stand by.
//!
//! Keeps P5: strict (priority, id) order among jobs that may run; work is given ahead of a free slot only where no
//! fitting worker has one, and called back when one has.
//!
//! Not here: what an assignment leads to (`attempt`), when its frame leaves (`commit`).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use hostler_wire::{Attempt, Fence, JobId, JobState, Priority, Reason, mutation};
use slab::Slab;

use crate::commit::Consequence;
use crate::effect::{Effect, Effects};
use crate::engine::Engine;
use crate::fact::{Assigned, Fact};
use crate::job::{Flag, Phase};
use crate::queue::{Pool, key};
use crate::spec::Kind;
use crate::time::Time;
use crate::worker::{Held, Seat};

/// Most attempts asked back from one worker in one turn.
const RECALL_MAX: usize = 256;

/// Workers that serve the same pools.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Sorted, no name twice.
    queues: Vec<String>,
    commands: bool,
    pub(crate) workers: u32,
    pools: BTreeSet<u32>,
    /// In line for a free slot: most free first, then least held.
    free: BTreeSet<(Reverse<u32>, u32, u32)>,
    free_slots: u64,
    /// Full, in line for work ahead: the least burdened first.
    full: BTreeSet<(u64, u32)>,
    /// Those with work ahead, the most first.
    over: BTreeSet<(Reverse<u32>, u32)>,
}

/// Who stands where.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    pub(crate) profiles: Slab<Profile>,
    /// Workers whose seat must be looked at before work is given out.
    pub(crate) moved: Vec<u32>,
    /// Pools with a ready job and a worker with a free slot.
    matched: BTreeSet<u32>,
    /// Pools with a ready job and a class fast enough to be given ahead.
    eager: BTreeSet<u32>,
    /// Profiles with a worker that holds work ahead.
    ahead: BTreeSet<u32>,
    /// Profiles whose next job awaits its body.
    waiting: BTreeSet<u32>,
    /// Workers given something in this turn.
    given: Vec<u32>,
}

/// Which line is served.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    Free,
    Ahead,
}

impl Profile {
    fn serves(&self, pool: &Pool) -> bool {
        (pool.kind == Kind::Handler || self.commands)
            && self
                .queues
                .binary_search_by(|queue| (**queue).cmp(&*pool.queue))
                .is_ok()
    }
}

impl Engine {
    /// The profile of such a worker; the caller counts it in.
    pub(crate) fn profile(&mut self, mut queues: Vec<String>, commands: bool) -> u32 {
        queues.sort();
        queues.dedup();
        let same = |p: &Profile| p.commands == commands && p.queues == queues;
        if let Some((at, _)) = self.ready.profiles.iter().find(|(_, p)| same(p)) {
            return key(at);
        }
        let mut profile = Profile {
            queues,
            commands,
            workers: 0,
            pools: BTreeSet::new(),
            free: BTreeSet::new(),
            free_slots: 0,
            full: BTreeSet::new(),
            over: BTreeSet::new(),
        };
        let entry = self.ready.profiles.vacant_entry();
        let at = key(entry.key());
        for (pool_at, pool) in &mut self.queues.pools {
            if profile.serves(pool) {
                profile.pools.insert(key(pool_at));
                pool.profiles.insert(at);
            }
        }
        entry.insert(profile);
        at
    }

    /// One worker less has this profile.
    pub(crate) fn leave_profile(&mut self, at: u32) {
        let profile = &mut self.ready.profiles[at as usize];
        profile.workers -= 1;
        if profile.workers == 0 {
            let profile = self.ready.profiles.remove(at as usize);
            for pool in profile.pools {
                self.queues.pool(pool).profiles.remove(&at);
            }
        }
    }

    /// A pool is new.
    pub(crate) fn open_pool(&mut self, at: u32) {
        let pool = self.queues.pool(at);
        for (profile_at, profile) in &mut self.ready.profiles {
            if profile.serves(pool) {
                profile.pools.insert(at);
                pool.profiles.insert(key(profile_at));
                if !profile.free.is_empty() {
                    pool.open.insert(key(profile_at));
                }
            }
        }
    }

    /// A pool is gone.
    pub(crate) fn close_pool(&mut self, at: u32, pool: &Pool) {
        for &profile in &pool.profiles {
            self.ready.profiles[profile as usize].pools.remove(&at);
        }
        self.ready.matched.remove(&at);
        self.ready.eager.remove(&at);
    }

    /// The pool's jobs, workers or speed changed.
    pub(crate) fn match_pool(&mut self, at: u32) {
        let pool = &self.queues.pools[at as usize];
        set(
            &mut self.ready.matched,
            at,
            pool.queued > 0 && !pool.open.is_empty(),
        );
        set(&mut self.ready.eager, at, pool.queued > 0 && pool.fast > 0);
    }

    /// These consecutive jobs, alike and all in phase `Queued`, wait for a slot.
    pub(crate) fn enqueue(&mut self, first: JobId, count: u32) {
        let job = self.jobs.live(first);
        let (priority, cold) = (
            job.priority,
            !job.has(Flag::Resident) && !job.has(Flag::Fetching),
        );
        let place_lost = mutation::is("retry loses its place") && job.attempt > 0;
        let priority = if place_lost {
            Priority::new(-128)
        } else {
            priority
        };
        let at = self.queues.class(job.class).pool;
        let pool = self.queues.pool(at);
        pool.push(priority, first, count);
        if cold {
            pool.cold += u64::from(count);
        }
        if pool.queued == u64::from(count) {
            self.match_pool(at);
        }
    }

    /// A job in phase `Queued` is about to be in another. Its id stays in its lane unless the caller takes it out.
    pub(crate) fn dequeue(&mut self, id: JobId) {
        let job = self.jobs.live(id);
        let cold = !job.has(Flag::Resident) && !job.has(Flag::Fetching);
        let at = self.queues.class(job.class).pool;
        let pool = self.queues.pool(at);
        pool.left(cold);
        if pool.queued == 0 {
            self.match_pool(at);
        }
    }

    /// Whether some worker has a slot with nothing in it, as of the last turn.
    pub(crate) fn has_free_slot(&self) -> bool {
        let mut profiles = self.ready.profiles.iter();
        profiles.any(|(_, profile)| profile.free_slots > 0)
    }

    /// The worker's seat must be looked at again.
    pub(crate) fn moved(&mut self, worker: u32) {
        let w = self.workers.get_mut(worker);
        if !w.moved {
            w.moved = true;
            self.ready.moved.push(worker);
        }
    }

    /// Gives a worker the seat it should have.
    pub(crate) fn seat(&mut self, at: u32, now: Time) {
        let worker = &self.workers.all[at as usize];
        let seat = worker.claim(now, self.config.beat, self.config.prefetch_max);
        let over = if worker.link.is_some() {
            worker.over()
        } else {
            0
        };
        self.put(at, seat, over);
    }

    /// Takes a worker out of every line.
    pub(crate) fn unseat(&mut self, at: u32) {
        self.put(at, Seat::Out, 0);
    }

    fn put(&mut self, at: u32, seat: Seat, over: u32) {
        let worker = &mut self.workers.all[at as usize];
        let Some(profile_at) = worker.profile else {
            return;
        };
        let profile = &mut self.ready.profiles[profile_at as usize];
        if worker.seat_over != over {
            if worker.seat_over > 0 {
                profile.over.remove(&(Reverse(worker.seat_over), at));
            }
            if over > 0 {
                profile.over.insert((Reverse(over), at));
            }
            worker.seat_over = over;
            set(&mut self.ready.ahead, profile_at, !profile.over.is_empty());
        }
        if worker.seat == seat {
            return;
        }
        let was_open = !profile.free.is_empty();
        match worker.seat {
            Seat::Out => {}
            Seat::Free { free, held } => {
                profile.free.remove(&(Reverse(free), held, at));
                profile.free_slots -= u64::from(free);
            }
            Seat::Full { share } => {
                profile.full.remove(&(share, at));
            }
        }
        match seat {
            Seat::Out => {}
            Seat::Free { free, held } => {
                profile.free.insert((Reverse(free), held, at));
                profile.free_slots += u64::from(free);
            }
            Seat::Full { share } => {
                profile.full.insert((share, at));
            }
        }
        worker.seat = seat;
        let is_open = !profile.free.is_empty();
        if was_open != is_open {
            for &pool_at in &profile.pools {
                let pool = &mut self.queues.pools[pool_at as usize];
                set(&mut pool.open, profile_at, is_open);
                set(
                    &mut self.ready.matched,
                    pool_at,
                    pool.queued > 0 && !pool.open.is_empty(),
                );
            }
        }
    }

    /// The end of a turn: ready jobs to free slots, then work ahead, then what was given ahead back to where a slot
    /// is free.
    pub(crate) fn give_out(&mut self, now: Time, out: &mut Effects) {
        for at in std::mem::take(&mut self.ready.moved) {
            if let Some(worker) = self.workers.all.get_mut(at as usize)
                && worker.moved
            {
                worker.moved = false;
                self.seat(at, now);
            }
        }
        self.serve(Line::Free, now, out);
        self.serve(Line::Ahead, now, out);
        self.record_assignments(now, out);
        self.call_back(now, out);
    }

    fn serve(&mut self, line: Line, now: Time, out: &mut Effects) {
        let is_unserved = |pool: &Pool| pool.queued > 0 && pool.profiles.is_empty();
        if mutation::is("what nobody serves holds others up")
            && self.queues.pools.iter().any(|(_, pool)| is_unserved(pool))
        {
            return;
        }
        let pools: Vec<u32> = match line {
            Line::Free => self.ready.matched.iter().copied().collect(),
            Line::Ahead if self.config.prefetch_max > 0 => {
                let closed = |at: &&u32| self.queues.pools[**at as usize].open.is_empty();
                self.ready.eager.iter().filter(closed).copied().collect()
            }
            Line::Ahead => return,
        };
        self.ready.waiting.clear();
        let mut heads = BinaryHeap::new();
        for at in pools {
            heads.extend(self.head(at, now, out));
        }
        while let Some((priority, Reverse(id), pool)) = heads.pop() {
            if self.awaits_body(pool, id, out) {
                // Whoever could run it waits with it: nothing later goes first, whatever its queue (P5).
                let waiting = self.queues.pools[pool as usize].profiles.iter();
                self.ready.waiting.extend(waiting);
                continue;
            }
            let next = match line {
                Line::Free => self.fill_free(pool, id, heads.peek().copied(), now, out),
                Line::Ahead => self.give_ahead(pool, id, heads.peek().copied(), now, out),
            };
            debug_assert!(next.is_none_or(|n| (n.0, n.1) <= (priority, Reverse(id))));
            heads.extend(next);
        }
    }

    /// Gives the pool's first jobs to the best worker, for as long as both stay the best. Answers with the pool's
    /// next job.
    fn fill_free(
        &mut self,
        pool: u32,
        mut id: JobId,
        other: Option<Head>,
        now: Time,
        out: &mut Effects,
    ) -> Option<Head> {
        let avoid = self.jobs.live(id).avoid;
        let (at, rival) = self.best_free(pool, avoid, now)?;
        let mut next;
        loop {
            self.assign(pool, id, at);
            next = self.head(pool, now, out);
            let Some(head) = next else { break };
            let worker = self.workers.get(at);
            let place = (Reverse(worker.free()), worker.held, at);
            let job = self.jobs.live(head.1.0);
            let goes_on = other.is_none_or(|other| head > other)
                && worker.free() > 0
                && rival.is_none_or(|rival| place < rival)
                && job.has(Flag::Resident)
                && (job.avoid == 0 || job.avoid != worker.tag);
            if !goes_on {
                break;
            }
            id = head.1.0;
        }
        self.seat(at, now);
        next
    }

    /// Gives the pool's first jobs to the least burdened full worker, for as long as it stays that, they stay the first
    /// of all, and their class allows it. Answers with the pool's next job.
    fn give_ahead(
        &mut self,
        pool: u32,
        mut id: JobId,
        other: Option<Head>,
        now: Time,
        out: &mut Effects,
    ) -> Option<Head> {
        // A worker that a silent one hid may have got a free slot in this turn's eyes: then nothing is given ahead.
        if !self.queues.pool(pool).open.is_empty() {
            return None;
        }
        let (at, rival) = self.best_full(pool, now)?;
        let mut next;
        loop {
            let class = self.queues.class(self.jobs.live(id).class);
            let worker = self.workers.get(at);
            if worker.over() >= class.prefetch(worker.slots, self.config.prefetch_max) {
                next = None;
                break;
            }
            self.assign(pool, id, at);
            next = self.head(pool, now, out);
            let Some(head) = next else { break };
            let worker = self.workers.get(at);
            let seat = worker.claim(now, self.config.beat, self.config.prefetch_max);
            let goes_on = other.is_none_or(|other| head > other)
                && matches!(seat, Seat::Full { share } if rival.is_none_or(|rival| (share, at) < rival))
                && self.jobs.live(head.1.0).has(Flag::Resident);
            if !goes_on {
                break;
            }
            id = head.1.0;
        }
        self.seat(at, now);
        next
    }

    /// The pool's first job that may run. Passes over those that have ended.
    fn head(&mut self, pool_at: u32, now: Time, out: &mut Effects) -> Option<Head> {
        loop {
            let (priority, id) = self.queues.pool(pool_at).head()?;
            match self.jobs.get(id) {
                Some(job) if job.phase() == Phase::Queued => {
                    if job.attempt < u16::MAX {
                        return Some((priority, Reverse(id), pool_at));
                    }
                    let (state, reason) = (JobState::Failed, Reason::TooManyAttempts);
                    self.end_with(now, id, state, reason, None, out);
                }
                Some(_) | None => {}
            }
            self.queues.pool(pool_at).pop();
        }
    }

    /// The worker with the most free slots of all that serve the pool, other than the one to be avoided if possible;
    /// and the place in line of the next best.
    fn best_free(&mut self, pool: u32, avoid: u32, now: Time) -> Option<(u32, Option<InLine>)> {
        'again: loop {
            let mut line: Vec<InLine> = Vec::new();
            let open = &self.queues.pools[pool as usize].open;
            for &profile in open.difference(&self.ready.waiting) {
                for &place in self.ready.profiles[profile as usize].free.iter().take(3) {
                    if self.workers.get(place.2).is_silent(now, self.config.beat) {
                        self.seat(place.2, now);
                        continue 'again;
                    }
                    line.push(place);
                }
            }
            line.sort_unstable();
            let avoided = |place: &InLine| avoid != 0 && self.workers.get(place.2).tag == avoid;
            let first = line.iter().position(|place| !avoided(place)).unwrap_or(0);
            let best = line.get(first)?.2;
            let rival = line.iter().find(|place| place.2 != best && !avoided(place));
            return Some((best, rival.copied()));
        }
    }

    /// The least burdened full worker of all that serve the pool, and the place in line of the next.
    fn best_full(&mut self, pool: u32, now: Time) -> Option<(u32, Option<(u64, u32)>)> {
        loop {
            let profiles = &self.queues.pools[pool as usize].profiles;
            let (mut best, mut rival) = (None::<(u64, u32)>, None::<(u64, u32)>);
            for &profile in profiles.difference(&self.ready.waiting) {
                for &place in self.ready.profiles[profile as usize].full.iter().take(2) {
                    if best.is_none_or(|best| place < best) {
                        rival = best.replace(place);
                    } else if rival.is_none_or(|rival| place < rival) {
                        rival = Some(place);
                    }
                }
            }
            let (_, at) = best?;
            if !self.workers.get(at).is_silent(now, self.config.beat) {
                return Some((at, rival));
            }
            self.seat(at, now);
        }
    }

    /// The pool's first job goes to a worker.
    fn assign(&mut self, pool: u32, id: JobId, at: u32) {
        self.dequeue(id);
        let p = self.queues.pool(pool);
        p.pop();
        p.taken = p.taken.saturating_add(1);
        let job = self.jobs.live(id);
        job.attempt += 1;
        let attempt = Attempt::new(job.attempt).expect("one more than some number is not zero");
        let fence = Fence {
            job: id,
            epoch: self.config.epoch,
            attempt,
        };
        let held = self.workers.give(Held::new(fence, at));
        self.jobs.turn(id, Phase::Running(held));
        let worker = self.workers.get_mut(at);
        if worker.batch.is_empty() {
            self.ready.given.push(at);
        }
        worker.batch.push(held);
    }

    /// One fact for each worker that was given something; its frame follows the commit (P2).
    fn record_assignments(&mut self, now: Time, out: &mut Effects) {
        for at in std::mem::take(&mut self.ready.given) {
            let worker = self.workers.get_mut(at);
            let (id, session) = (worker.id, worker.session());
            let session = session.expect("only a connected worker is given something");
            let batch = std::mem::take(&mut worker.batch);
            let fact_number = self.emitted + 1;
            let mut attempts = Vec::with_capacity(batch.len());
            for &held in &batch {
                let held = &mut self.workers.held[held as usize];
                held.assigned = fact_number;
                attempts.push((held.job, held.fence().attempt));
            }
            let early = mutation::is("assigned before its commit").then_some(0);
            let fact = self.emit(
                Fact::Assigned(Assigned {
                    worker: id,
                    at: now,
                    attempts,
                }),
                out,
            );
            self.after(
                early.unwrap_or(fact),
                Consequence::Assign {
                    at,
                    session,
                    fact,
                    held: batch,
                },
                out,
            );
        }
    }

    /// Whether the pool must wait for this job's body. Asks for the bodies that will be wanted next, none of them
    /// twice.
    fn awaits_body(&mut self, pool_at: u32, head: JobId, out: &mut Effects) -> bool {
        let pool = &self.queues.pools[pool_at as usize];
        let job = *self.jobs.live(head);
        let resident = job.has(Flag::Resident);
        let unasked = !resident && !job.has(Flag::Fetching);
        let ahead = self.config.fetch_ahead.max(1);
        if pool.cold > 0 && (unasked || pool.taken >= ahead.div_ceil(2)) {
            let mut wanted = Vec::new();
            let turns = pool.ids().filter(|(_, id)| {
                self.jobs
                    .get(*id)
                    .is_some_and(|job| job.phase() == Phase::Queued)
            });
            for (_, id) in turns.take(ahead as usize) {
                let job = self.jobs.get(id).expect("just seen");
                if !job.has(Flag::Resident) && !job.has(Flag::Fetching) {
                    wanted.push(id);
                }
            }
            for &id in &wanted {
                self.jobs.live(id).set(Flag::Fetching);
            }
            let pool = self.queues.pool(pool_at);
            pool.cold -= wanted.len() as u64;
            pool.taken = 0;
            if !wanted.is_empty() {
                out.push(Effect::Fetch { jobs: wanted });
            }
        }
        !resident
    }

    /// A fitting worker has a free slot and nothing is ready for it, while another holds work ahead: ask for that
    /// back, from the end, as much as fits.
    fn call_back(&mut self, now: Time, out: &mut Effects) {
        for profile in self.ready.ahead.iter().copied().collect::<Vec<_>>() {
            let profile = &self.ready.profiles[profile as usize];
            let idle = profile.pools.iter().any(|&pool| self.room(pool) > 0);
            if !idle {
                continue;
            }
            for at in profile.over.iter().map(|(_, at)| *at).collect::<Vec<_>>() {
                self.recall_from(at, now, out);
            }
        }
    }

    /// How many recalled attempts the pool has free slots for that nothing else will fill.
    fn room(&self, pool: u32) -> u64 {
        let pool = &self.queues.pools[pool as usize];
        if pool.queued > 0 || pool.open.is_empty() {
            return 0;
        }
        let free = |at: &u32| self.ready.profiles[*at as usize].free_slots;
        pool.open
            .iter()
            .map(free)
            .sum::<u64>()
            .saturating_sub(pool.recalls)
    }

    fn recall_from(&mut self, at: u32, now: Time, out: &mut Effects) {
        let worker = self.workers.get(at);
        let over = worker.over().saturating_sub(worker.recalls) as usize;
        if over == 0 || worker.is_silent(now, self.config.beat) {
            return;
        }
        let Some(session) = worker.session() else {
            return;
        };
        let mut chosen = Vec::new();
        let mut rooms: Vec<(u32, u64)> = Vec::new();
        for (place, held) in self.workers.holds_backwards(at).take(RECALL_MAX) {
            if chosen.len() == over {
                break;
            }
            if !held.sent || held.recalled || held.started.is_some() || held.cancel.is_some() {
                continue;
            }
            let Some(job) = self.jobs.get(held.job) else {
                continue;
            };
            let pool = self.queues.class(job.class).pool;
            let room = match rooms.iter_mut().find(|(at, _)| *at == pool) {
                Some((_, room)) => room,
                None => {
                    rooms.push((pool, self.room(pool)));
                    &mut rooms.last_mut().expect("just pushed").1
                }
            };
            if *room > 0 {
                *room -= 1;
                chosen.push(place);
            }
        }
        self.recall(at, session, chosen, out);
    }

    /// Asks for unstarted attempts back.
    pub(crate) fn recall(
        &mut self,
        at: u32,
        session: hostler_wire::SessionId,
        chosen: Vec<u32>,
        out: &mut Effects,
    ) {
        for batch in chosen.chunks(hostler_wire::limits::BATCH_ITEMS_MAX) {
            let mut fences = Vec::with_capacity(batch.len());
            for &place in batch {
                let held = &mut self.workers.held[place as usize];
                held.recalled = true;
                self.workers.all[at as usize].recalls += 1;
                fences.push(held.fence());
                let class = self.jobs.live(held.job).class;
                let pool = self.queues.class(class).pool;
                self.queues.pool(pool).recalls += 1;
            }
            out.push(Effect::Recall { session, fences });
        }
    }

    pub(crate) fn check_ready(&self, now: Time) {
        for (at, profile) in &self.ready.profiles {
            let at = key(at);
            assert!(profile.workers > 0);
            for (pool_at, pool) in &self.queues.pools {
                let serves = profile.serves(pool);
                assert_eq!(pool.profiles.contains(&at), serves);
                assert_eq!(profile.pools.contains(&key(pool_at)), serves);
                assert_eq!(pool.open.contains(&at), serves && !profile.free.is_empty());
            }
            let slots: u64 = profile
                .free
                .iter()
                .map(|(free, _, _)| u64::from(free.0))
                .sum();
            assert_eq!(profile.free_slots, slots);
            assert_eq!(self.ready.ahead.contains(&at), !profile.over.is_empty());
        }
        let (mut seated, mut over) = (0, 0);
        for (at, worker) in &self.workers.all {
            let at = key(at);
            assert!(
                worker.batch.is_empty(),
                "a turn's gifts are recorded before it ends"
            );
            let Some(profile) = worker.profile else {
                assert!(worker.seat == Seat::Out && worker.seat_over == 0);
                continue;
            };
            let profile = &self.ready.profiles[profile as usize];
            match worker.seat {
                Seat::Out => {}
                Seat::Free { free, held } => {
                    assert!(profile.free.contains(&(Reverse(free), held, at)));
                    seated += 1;
                }
                Seat::Full { share } => {
                    assert!(profile.full.contains(&(share, at)));
                    seated += 1;
                }
            }
            if worker.seat_over > 0 {
                assert!(profile.over.contains(&(Reverse(worker.seat_over), at)));
                over += 1;
            }
            if !worker.moved {
                let silent = worker.is_silent(now, self.config.beat);
                let claim = worker.claim(now, self.config.beat, self.config.prefetch_max);
                assert!(
                    silent || worker.seat == claim,
                    "{:?} sits where it should",
                    worker.name
                );
            }
        }
        let profiles = self.ready.profiles.iter();
        let lines = profiles.map(|(_, p)| (p.free.len() + p.full.len(), p.over.len()));
        let sums = lines.fold((0, 0), |sums, line| (sums.0 + line.0, sums.1 + line.1));
        assert_eq!(
            sums,
            (seated, over),
            "nobody stands in line who has no seat"
        );
        for (at, pool) in &self.queues.pools {
            let at = key(at);
            let matched = pool.queued > 0 && !pool.open.is_empty();
            assert_eq!(self.ready.matched.contains(&at), matched);
            assert_eq!(
                self.ready.eager.contains(&at),
                pool.queued > 0 && pool.fast > 0
            );
        }
    }
}

/// A pool's first job: the greatest of them goes first.
type Head = (Priority, Reverse<JobId>, u32);

/// A worker's place in line: the least of them goes first.
type InLine = (Reverse<u32>, u32, u32);

fn set(set: &mut BTreeSet<u32>, at: u32, is_in: bool) {
    if is_in {
        set.insert(at);
    } else {
        set.remove(&at);
    }
}
