//! Stopping a job on somebody's word, or because its time is up.
//!
//! The engine decides first: from that moment a waiting job is not given out any more and a running one is cancelling. Then
//! comes the commit, then the answer and the word to the worker (semantics 9).

use hostler_wire::{Detail, JobId, JobState, Reason};

use crate::commit::Consequence;
use crate::effect::{CancelAnswer, Effect, Effects};
use crate::engine::Engine;
use crate::event::AskId;
use crate::fact::{Cancelling, Fact};
use crate::job::Phase;
use crate::time::Time;
use crate::worker::Cancel;

impl Engine {
    pub(crate) fn on_cancel(
        &mut self,
        now: Time,
        ask: AskId,
        id: JobId,
        force: bool,
        note: Option<Box<str>>,
        out: &mut Effects,
    ) {
        let phase = self.jobs.get(id).map_or(Phase::Absent, |job| job.phase());
        let (state, reason) = (JobState::Cancelled, Reason::CancelledByUser);
        match phase {
            Phase::Absent => {
                out.push(Effect::Answer {
                    ask,
                    answer: CancelAnswer::Unknown,
                });
            }
            Phase::Ending(_) => self.asks.entry(id).or_default().push(ask),
            Phase::Scheduled(_) | Phase::Queued => {
                self.end_with(now, id, state, reason, words(note), out);
                self.answer_cancelled(ask, out);
            }
            Phase::Running(place) if !self.workers.held[place as usize].sent => {
                self.withdraw(now, place, state, reason, words(note), out);
                self.answer_cancelled(ask, out);
            }
            Phase::Running(place) => {
                self.begin_cancel(now, place, reason, note, Some((ask, force)), out);
            }
            Phase::Cancelling(place) => self.cancel_again(place, ask, force, out),
        }
    }

    fn answer_cancelled(&mut self, ask: AskId, out: &mut Effects) {
        let answer = Consequence::Answer {
            ask,
            answer: CancelAnswer::Cancelled,
        };
        self.after(self.emitted, answer, out);
    }

    /// A running attempt whose frame may have left is to end.
    pub(crate) fn begin_cancel(
        &mut self,
        now: Time,
        place: u32,
        reason: Reason,
        note: Option<Box<str>>,
        asked: Option<(AskId, bool)>,
        out: &mut Effects,
    ) {
        let force = asked.is_some_and(|(_, force)| force);
        let held = &mut self.workers.held[place as usize];
        held.cancel = Some(Cancel {
            reason,
            force,
            committed: false,
        });
        let fence = held.fence();
        self.jobs.turn(fence.job, Phase::Cancelling(place));
        let fact = Fact::Cancelling(Cancelling {
            job: fence.job,
            at: now,
            reason,
            note,
        });
        let fact = self.emit(fact, out);
        let ask = asked.map(|(ask, _)| ask);
        self.after(fact, Consequence::Cancel { fence, force, ask }, out);
    }

    /// It is cancelling already: that is the answer, once it is durable. Force is passed on.
    fn cancel_again(&mut self, place: u32, ask: AskId, force: bool, out: &mut Effects) {
        let held = &mut self.workers.held[place as usize];
        let fence = held.fence();
        let cancel = held.cancel.as_mut().expect("its job is cancelling");
        cancel.force |= force;
        // If it is committed, nothing emitted since has to be waited for.
        let fact = if cancel.committed {
            self.committed
        } else {
            self.emitted
        };
        self.after(
            fact,
            Consequence::Cancel {
                fence,
                force,
                ask: Some(ask),
            },
            out,
        );
    }

    /// An attempt that has not left for its worker ends with its job, and never leaves.
    pub(crate) fn withdraw(
        &mut self,
        now: Time,
        place: u32,
        state: JobState,
        reason: Reason,
        detail: Option<Box<Detail>>,
        out: &mut Effects,
    ) {
        let (mut closed, _) = self.close(place);
        closed.detail = detail;
        self.end(now, closed.fence.job, state, reason, closed, out);
    }
}

/// What the person said, where the end itself must carry it.
fn words(note: Option<Box<str>>) -> Option<Box<Detail>> {
    note.map(|note| {
        Box::new(Detail {
            message: note.into(),
            ..Detail::default()
        })
    })
}
