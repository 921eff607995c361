//! What follows once a fact is durable: frames, answers, acknowledgements, the forgetting of ended jobs.
//!
//! Facts are numbered as they are emitted and committed in that order, so what follows them waits in one line and
//! leaves in order (P1, P2, P4). Each consequence is judged again when its time comes: an assignment that was
//! withdrawn meanwhile does not leave, a cancel that came too late is answered with the end.

use hostler_wire::{Fence, JobId, JobState, Reason, SessionId, WorkerId, limits, mutation};

use crate::effect::{CancelAnswer, Effect, Effects};
use crate::engine::Engine;
use crate::event::AskId;
use crate::fact::Fact;
use crate::job::{Flag, Phase};

/// What waits for a fact. `at` is a worker's place, `worker` proves that it is still the same one.
#[derive(Debug)]
pub(crate) enum Consequence {
    /// A session is accepted: what made its worker's attempts void is durable by then.
    Resumed {
        at: u32,
        worker: WorkerId,
        session: SessionId,
        void: Vec<Fence>,
    },
    /// Send assignments, if they still stand.
    Assign {
        at: u32,
        session: SessionId,
        fact: u64,
        held: Vec<u32>,
    },
    /// An attempt is settled: its report can be acknowledged.
    Settled {
        at: u32,
        worker: WorkerId,
        fence: Fence,
    },
    /// A report that changes nothing can be acknowledged.
    Void { at: u32, worker: WorkerId },
    /// A job is over.
    Ended {
        job: JobId,
        state: JobState,
        reason: Reason,
    },
    /// A running attempt may be told to end, and whoever asked for that may be told so.
    Cancel {
        fence: Fence,
        force: bool,
        ask: Option<AskId>,
    },
    /// An attempt is void: its worker is told to end it.
    Stop {
        at: u32,
        worker: WorkerId,
        fence: Fence,
    },
    /// A cancel is answered.
    Answer { ask: AskId, answer: CancelAnswer },
}

impl Consequence {
    /// The attempt whose report that worker is waiting to have acknowledged.
    pub(crate) fn settles(&self, by: WorkerId) -> Option<Fence> {
        if let Self::Settled { worker, fence, .. } = self
            && *worker == by
        {
            Some(*fence)
        } else {
            None
        }
    }
}

impl Engine {
    /// Makes something durable; answers with its number.
    pub(crate) fn emit(&mut self, fact: Fact, out: &mut Effects) -> u64 {
        self.emitted += 1;
        out.push(Effect::Persist(fact));
        self.emitted
    }

    /// This follows once that fact is committed; at once if it is.
    pub(crate) fn after(&mut self, fact: u64, what: Consequence, out: &mut Effects) {
        let early = mutation::is("acknowledged before its commit")
            && matches!(what, Consequence::Settled { .. });
        if fact <= self.committed || early {
            self.release(what, out);
        } else {
            self.pending.push_back((fact, what));
        }
    }

    pub(crate) fn on_committed(&mut self, through: u64, out: &mut Effects) {
        assert!(
            through <= self.emitted,
            "only what was emitted can be committed"
        );
        self.committed = self.committed.max(through);
        while let Some((fact, _)) = self.pending.front()
            && *fact <= self.committed
            && let Some((_, what)) = self.pending.pop_front()
        {
            self.release(what, out);
        }
        self.acknowledge(out);
    }

    /// Tells the workers of reports that have become committed or void.
    pub(crate) fn acknowledge(&mut self, out: &mut Effects) {
        for (at, worker) in std::mem::take(&mut self.ack_due) {
            let Some(worker) = self.workers.same(at, worker) else {
                continue;
            };
            if worker.reports.committed(self.committed)
                && let Some(session) = worker.session()
            {
                out.push(Effect::Ack {
                    session,
                    through: worker.reports.acked,
                });
            }
        }
    }

    fn release(&mut self, what: Consequence, out: &mut Effects) {
        match what {
            Consequence::Resumed {
                at,
                worker,
                session,
                void,
            } => self.resume(at, worker, session, void, out),
            Consequence::Assign {
                at,
                session,
                fact,
                held,
            } => {
                self.send(at, session, fact, &held, out);
            }
            Consequence::Settled { at, worker, .. } | Consequence::Void { at, worker } => {
                if self.ack_due.last() != Some(&(at, worker)) {
                    self.ack_due.push((at, worker));
                }
            }
            Consequence::Ended { job, state, reason } => {
                self.forget(job);
                out.push(Effect::Finished { job, state, reason });
                for ask in self.asks.remove(&job).unwrap_or_default() {
                    out.push(Effect::Answer {
                        ask,
                        answer: CancelAnswer::Finished { state },
                    });
                }
            }
            Consequence::Cancel { fence, force, ask } => self.tell(fence, force, ask, out),
            Consequence::Stop { at, worker, fence } => {
                if let Some(session) = self.workers.same(at, worker).and_then(|w| w.session()) {
                    out.push(Effect::Stop {
                        session,
                        fences: vec![fence],
                    });
                }
            }
            Consequence::Answer { ask, answer } => out.push(Effect::Answer { ask, answer }),
        }
    }

    /// Sends what still stands of a turn's assignments.
    fn send(&mut self, at: u32, session: SessionId, fact: u64, batch: &[u32], out: &mut Effects) {
        let mut fences = Vec::with_capacity(batch.len());
        for &place in batch {
            // Its place may hold another attempt by now; that one is of another fact.
            if let Some(held) = self.workers.held.get_mut(place as usize)
                && held.assigned == fact
                && !held.sent
            {
                held.sent = true;
                let fence = held.fence();
                fences.push(fence);
                // The body leaves memory with the frame; another attempt fetches it again.
                self.jobs.live(fence.job).unset(Flag::Resident);
            }
        }
        if fences.is_empty() {
            return;
        }
        let worker = self.workers.get_mut(at);
        let link = worker.link.as_mut().filter(|link| link.session == session);
        let link = link.expect("what was not sent is taken back when its session ends");
        while !fences.is_empty() {
            let rest = fences.split_off(fences.len().min(limits::BATCH_ITEMS_MAX));
            link.seq += 1;
            out.push(Effect::Assign {
                session,
                seq: link.seq,
                fences,
            });
            fences = rest;
        }
    }

    /// Tells a running attempt to end. If its job has ended meanwhile, the asker hears that instead, once it is
    /// committed.
    fn tell(&mut self, fence: Fence, force: bool, ask: Option<AskId>, out: &mut Effects) {
        let Some(job) = self.jobs.get(fence.job) else {
            unreachable!("a job is forgotten after what was emitted before its end");
        };
        let Phase::Cancelling(place) = job.phase() else {
            if let Some(ask) = ask {
                self.asks.entry(fence.job).or_default().push(ask);
            }
            return;
        };
        if let Some(ask) = ask {
            out.push(Effect::Answer {
                ask,
                answer: CancelAnswer::Cancelling,
            });
        }
        let held = &mut self.workers.held[place as usize];
        let cancel = held.cancel.as_mut().expect("its job is cancelling");
        let is_news = !cancel.committed || force;
        cancel.committed = true;
        if !is_news {
            return;
        }
        if let Some(session) = self.workers.all[held.worker as usize].session()
            && !mutation::is("cancel forgotten")
        {
            out.push(Effect::Cancel {
                session,
                fence,
                force,
            });
        }
    }
}
