//! A worker's coming, silence, going and return.
//!
//! A session is a connection; the worker outlives it. One that comes back within the grace keeps what it lists; what
//! it does not list never reached it, and what it lists and we do not know has ended or been superseded. One that
//! stays silent for the whole grace is lost: started attempts are charged, the rest is given back (semantics 3, 19,
//! 20, 22).

use std::collections::BTreeSet;

use hostler_wire::{Fence, Reason, SessionId, WorkerId, mutation};

use crate::commit::Consequence;
use crate::effect::{Effect, Effects, Refusal};
use crate::engine::Engine;
use crate::event::Join;
use crate::fact::{Charge, Fact, WorkerFact};
use crate::retry::Verdict;
use crate::time::{Span, Time, When};
use crate::timers::Alarm;
use crate::worker::Worker;

impl Engine {
    /// Something came from a worker: it is there. None if the session is not (any more) one of ours.
    pub(crate) fn hear(&mut self, now: Time, session: SessionId) -> Option<u32> {
        let at = self.workers.in_session(session)?;
        let worker = self.workers.get_mut(at);
        let was_silent = worker.is_silent(now, self.config.beat);
        worker.heard = now;
        if was_silent {
            self.moved(at);
        }
        Some(at)
    }

    /// We ourselves stood still: that nothing was heard meanwhile says nothing of the workers, so their grace begins anew.
    pub(crate) fn on_awoken(&mut self, now: Time) {
        for at in self.worker_places() {
            self.workers.get_mut(at).heard = now;
            self.moved(at);
        }
    }

    pub(crate) fn on_heard(
        &mut self,
        now: Time,
        session: SessionId,
        assign_seq: u64,
        out: &mut Effects,
    ) {
        let Some(at) = self.hear(now, session) else {
            return;
        };
        let link = &mut self.workers.get_mut(at).link;
        if link
            .as_mut()
            .is_some_and(|link| link.is_deaf_after(assign_seq))
        {
            self.detach(now, at, out);
            out.push(Effect::Refuse {
                session,
                why: Refusal::Deaf,
            });
        }
    }

    pub(crate) fn on_left(&mut self, now: Time, session: SessionId, out: &mut Effects) {
        if let Some(at) = self.workers.in_session(session) {
            self.detach(now, at, out);
        }
    }

    pub(crate) fn on_joined(&mut self, now: Time, join: Join, out: &mut Effects) {
        let session = join.session;
        let known = self.workers.named(&join.name);
        let same = known.filter(|at| self.workers.get(*at).instance == join.instance);
        if let Some(at) = same {
            if self
                .workers
                .get(at)
                .newest
                .is_some_and(|newest| session < newest)
            {
                // A login that was long on its way: what it lists is of then.
                return out.push(Effect::Refuse {
                    session,
                    why: Refusal::Deaf,
                });
            }
            if let Some(old) = self.workers.get(at).session() {
                // It connected anew before we saw the old connection end.
                self.detach(now, at, out);
                out.push(Effect::Refuse {
                    session: old,
                    why: Refusal::Deaf,
                });
            }
            return self.attach(now, at, join, out);
        }
        if self.is_stopping {
            return out.push(Effect::Refuse {
                session,
                why: Refusal::Stopping,
            });
        }
        if let Some(at) = known {
            if self.workers.get(at).link.is_some() {
                return out.push(Effect::Refuse {
                    session,
                    why: Refusal::NameInUse,
                });
            }
            self.lose(now, at, out);
        }
        let id = self.workers.next;
        let (name, instance) = (join.name.clone(), join.instance);
        self.emit(
            Fact::Worker(WorkerFact {
                id,
                name: name.clone(),
                instance,
                at: now,
            }),
            out,
        );
        let at = self.workers.add(Worker::new(id, name, instance, now));
        self.attach(now, at, join, out);
    }

    /// A session begins: compares what the worker holds with what we think it holds.
    fn attach(&mut self, now: Time, at: u32, join: Join, out: &mut Effects) {
        let session = join.session;
        let profile = self.profile(join.queues.clone(), join.commands);
        self.unseat(at);
        self.ready.profiles[profile as usize].workers += 1;
        let worker = self.workers.get_mut(at);
        let former = worker.profile.replace(profile);
        worker.slots = join.slots;
        worker.queues = join.queues;
        worker.labels = join.labels;
        worker.draining = false;
        worker.rests_until = Time::ZERO;
        worker.heard = now;
        worker.newest = Some(session);
        let id = worker.id;
        if let Some(former) = former {
            self.leave_profile(former);
        }
        self.workers.link(at, session);
        self.watch_lease(at);
        self.moved(at);

        let void = self.compare(now, at, &join.held, out);
        // Whoever hears that an attempt is void forgets it for ever: it must be so on disk, too (P2, P4).
        let fact = if void.is_empty() {
            self.committed
        } else {
            self.emitted
        };
        let resumed = Consequence::Resumed {
            at,
            worker: id,
            session,
            void,
        };
        self.after(fact, resumed, out);
    }

    /// Tells the worker what its session begins with, if it is still there.
    pub(crate) fn resume(
        &mut self,
        at: u32,
        worker: WorkerId,
        session: SessionId,
        void: Vec<Fence>,
        out: &mut Effects,
    ) {
        let same = self.workers.same(at, worker);
        let Some(worker) = same.filter(|worker| worker.session() == Some(session)) else {
            return;
        };
        out.push(Effect::Resumed {
            session,
            worker: worker.id,
            acked: worker.reports.acked,
            void,
        });
        self.resend(at, session, out);
    }

    /// Adopts what the worker lists, gives back what it does not, and answers with what is void of its list.
    fn compare(
        &mut self,
        now: Time,
        at: u32,
        list: &[(Fence, bool)],
        out: &mut Effects,
    ) -> Vec<Fence> {
        let id = self.workers.get(at).id;
        // Ended by its own report, which must be kept until that is committed (P4).
        let unsettled: BTreeSet<Fence> = (self.pending.iter())
            .filter_map(|(_, what)| what.settles(id))
            .collect();
        let (mut void, mut starts) = (Vec::new(), Vec::new());
        for &(fence, started) in list {
            match self.current(fence, at) {
                Some(place) => {
                    self.workers.held[place as usize].listed = true;
                    if started && self.start(now, place) {
                        starts.push(fence);
                    }
                    self.watch(now, place);
                }
                None if unsettled.contains(&fence) => {}
                None => void.push(fence),
            }
        }
        self.record_starts(now, at, starts, out);
        for place in self.places(at) {
            if !std::mem::take(&mut self.workers.held[place as usize].listed) {
                self.missing(now, place, out);
            }
        }
        void
    }

    /// The worker does not know this attempt. Had it started, a job that may run once only must not run again.
    fn missing(&mut self, now: Time, place: u32, out: &mut Effects) {
        let held = &self.workers.held[place as usize];
        let class = self.jobs.live(held.job).class;
        if held.started.is_some() && self.queues.class(class).class.spec.max_losses == 0 {
            self.lose_attempt(now, place, out);
        } else {
            self.give_back(now, place, Reason::Returned, out);
        }
    }

    /// Says again what the worker may have missed.
    fn resend(&mut self, at: u32, session: SessionId, out: &mut Effects) {
        for (_, held) in self.workers.holds(at) {
            if let Some(cancel) = held.cancel.filter(|cancel| cancel.committed) {
                let (fence, force) = (held.fence(), cancel.force);
                out.push(Effect::Cancel {
                    session,
                    fence,
                    force,
                });
            }
        }
        if self.is_stopping {
            self.recall_unstarted(at, session, out);
        }
    }

    /// Asks for everything back that has not started.
    pub(crate) fn recall_unstarted(&mut self, at: u32, session: SessionId, out: &mut Effects) {
        let unstarted = self.workers.holds(at).filter(|(_, held)| {
            held.sent && held.started.is_none() && !held.recalled && held.cancel.is_none()
        });
        let chosen = unstarted.map(|(place, _)| place).collect();
        self.recall(at, session, chosen, out);
    }

    /// The session is over, the worker's lease runs on. What was not sent is given back at once: it never leaves.
    fn detach(&mut self, now: Time, at: u32, out: &mut Effects) {
        self.workers.unlink(at);
        self.workers.get_mut(at).left = now;
        self.moved(at);
        self.withdraw_unsent(now, at, out);
        for place in self.places(at) {
            self.answered(place);
        }
    }

    /// Takes back what was given but has not left yet.
    pub(crate) fn withdraw_unsent(&mut self, now: Time, at: u32, out: &mut Effects) {
        for place in self.places(at) {
            if !self.workers.held[place as usize].sent {
                self.give_back(now, place, Reason::Returned, out);
            }
        }
    }

    fn places(&self, at: u32) -> Vec<u32> {
        self.workers.holds(at).map(|(place, _)| place).collect()
    }

    /// Sets the alarm that looks after a worker's lease; there is one at a time.
    pub(crate) fn watch_lease(&mut self, at: u32) {
        let worker = self.workers.get_mut(at);
        if self.is_ready && !worker.alarmed {
            worker.alarmed = true;
            let (end, alarm) = (
                worker.heard + self.config.worker_grace,
                Alarm::Lease(worker.id),
            );
            self.timers.set(When::Engine(end), alarm);
        }
    }

    pub(crate) fn on_lease(&mut self, now: Time, worker: WorkerId, out: &mut Effects) {
        let Some(at) = self.workers.numbered(worker) else {
            return;
        };
        let worker = self.workers.get_mut(at);
        worker.alarmed = false;
        if mutation::is("worker never lost") {
            return;
        }
        if worker.heard + self.config.worker_grace <= now {
            self.lose(now, at, out);
        } else {
            self.watch_lease(at);
        }
    }

    /// The worker is gone for good. If it speaks again it is a new one, and what it then reports is stale by its
    /// fences.
    fn lose(&mut self, now: Time, at: u32, out: &mut Effects) {
        for place in self.places(at) {
            if self.workers.held[place as usize].sent {
                self.lose_attempt(now, place, out);
            } else {
                self.give_back(now, place, Reason::Returned, out);
            }
        }
        if let Some(session) = self.workers.get(at).session() {
            // A connection that only looks alive: it must not be left hanging, deaf for ever.
            out.push(Effect::Refuse {
                session,
                why: Refusal::Deaf,
            });
        }
        self.unseat(at);
        let worker = self.workers.remove(at);
        if let Some(profile) = worker.profile {
            self.leave_profile(profile);
        }
        self.pointless(usize::from(worker.alarmed));
    }

    /// A loss is charged to what had started, or to what must not run twice; the rest was merely waiting there
    /// (semantics 3).
    fn lose_attempt(&mut self, now: Time, place: u32, out: &mut Effects) {
        let held = &self.workers.held[place as usize];
        let worker = self.workers.get(held.worker);
        // A connection that looks alive to us may carry our words, and none of its.
        let hears_us = worker.session().is_some() && !mutation::is("one way taken for both");
        let spoken = if hears_us { now } else { worker.left };
        let (heard, tag) = (worker.heard.max(spoken), worker.tag);
        let job = self.jobs.live(held.job);
        job.avoid = tag;
        let spec = &self.queues.class(job.class).class.spec;
        let has_started = held.started.is_some()
            || spec.max_losses == 0
            || mutation::is("loss charged though not started");
        let reason = Reason::WorkerLost;
        let delay = if spec.stop_on_partition && !mutation::is("given out again too early") {
            let grace = spec.grace.unwrap_or(self.config.kill_grace);
            let end = heard + self.config.worker_grace + grace + self.config.beat.times(2);
            end.since(now)
        } else {
            Span::ZERO
        };
        let verdict = if !has_started {
            Verdict::Again {
                charge: Charge::Return,
                reason,
                delay,
            }
        } else if job.losses >= spec.max_losses && !mutation::is("losses without end") {
            Verdict::Done(hostler_wire::JobState::Failed, reason)
        } else {
            Verdict::Again {
                charge: Charge::Loss,
                reason,
                delay,
            }
        };
        let closed = self.close(place);
        self.settle(now, closed, verdict, true, out);
    }
}
