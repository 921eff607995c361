//! Frame → event, effect → frame or fact; the only file that knows both languages.

use std::collections::HashMap;

use bytes::BytesMut;
use hostler_engine::effect::Refusal;
use hostler_engine::event::{Event, Join, Report};
use hostler_engine::{Fact, Span};
use hostler_wire::frame::{
    Ack, Assign, Assignment, Cancel, Frame, Login, ProbeReply, Recall, RefuseCode, Resumed, Stop,
};
use hostler_wire::{Epoch, Fence, SessionId, WorkerId};

use crate::dispatch::bodies::Bodies;

/// What a worker's frame turns into.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something for the engine.
    Event(Event),
    /// An answer for whoever probes.
    Probed(ProbeReply),
    /// Nothing a worker may send here; the wire thread should have refused it.
    Misplaced,
}

/// Starts of the server, with the random bytes made at each. An attempt given out by a start we never made (the database
/// is a restored backup, and the worker remembers more than we do) is nobody's: it counts as given out in epoch 0.
#[derive(Debug)]
pub(super) struct Starts {
    known: HashMap<Epoch, [u8; 16]>,
    /// Epochs that a session's worker learnt from another history.
    foreign: HashMap<SessionId, Vec<Epoch>>,
}

impl Starts {
    pub(super) fn new(known: &[(Epoch, [u8; 16])]) -> Self {
        Self {
            known: known.iter().copied().collect(),
            foreign: HashMap::new(),
        }
    }

    /// Keeps what of the login's epochs is not ours.
    fn meet(&mut self, session: SessionId, login: &Login) {
        let foreign: Vec<Epoch> = login
            .epochs
            .iter()
            .filter(|(epoch, nonce)| self.known.get(epoch) != Some(nonce))
            .map(|(epoch, _)| *epoch)
            .collect();
        if !foreign.is_empty() {
            self.foreign.insert(session, foreign);
        }
    }

    pub(super) fn part(&mut self, session: SessionId) {
        self.foreign.remove(&session);
    }

    /// The fence as the engine may judge it.
    fn ours(&self, session: SessionId, fence: Fence) -> Fence {
        if self.foreign.is_empty() || !self.is_foreign(session, fence.epoch) {
            return fence;
        }
        Fence {
            epoch: NO_EPOCH,
            ..fence
        }
    }

    fn is_foreign(&self, session: SessionId, epoch: Epoch) -> bool {
        self.foreign
            .get(&session)
            .is_some_and(|foreign| foreign.contains(&epoch))
    }

    /// The fence as its worker knows it: `void` lists come back in the engine's words.
    fn theirs(&self, session: SessionId, fence: Fence, held: &[Fence]) -> Fence {
        if fence.epoch != NO_EPOCH || !self.foreign.contains_key(&session) {
            return fence;
        }
        held.iter()
            .copied()
            .find(|theirs| theirs.job == fence.job && theirs.attempt == fence.attempt)
            .unwrap_or(fence)
    }
}

/// No server start has this number.
const NO_EPOCH: Epoch = Epoch::new(0);

/// A login becomes a join.
pub(super) fn join(starts: &mut Starts, session: SessionId, login: Login) -> (Join, Vec<Fence>) {
    starts.meet(session, &login);
    let foreign = login
        .held
        .iter()
        .map(|held| held.fence)
        .filter(|fence| starts.is_foreign(session, fence.epoch))
        .collect();
    let held = login
        .held
        .iter()
        .map(|held| (starts.ours(session, held.fence), held.started))
        .collect();
    let join = Join {
        session,
        name: login.name,
        instance: login.instance,
        slots: login.slots,
        commands: login.commands,
        queues: login.queues,
        labels: login.labels,
        held,
        last_report: login.last_report,
    };
    (join, foreign)
}

/// What a worker says, in the engine's words.
pub(super) fn hear(starts: &Starts, session: SessionId, frame: Frame) -> Heard {
    let ours = |fences: Vec<Fence>| -> Vec<Fence> {
        fences
            .into_iter()
            .map(|fence| starts.ours(session, fence))
            .collect()
    };
    let event = match frame {
        Frame::Started(started) => Event::Started {
            session,
            fences: ours(started.fences),
        },
        Frame::Reports(batch) => Event::Reported {
            session,
            first: batch.first,
            reports: batch
                .reports
                .into_iter()
                .map(|report| Report {
                    fence: starts.ours(session, report.fence),
                    outcome: report.outcome,
                    cancelled: report.cancelled,
                    started: report.started,
                    ran: Span::from_micros(report.run_us),
                    detail: report.detail,
                })
                .collect(),
        },
        Frame::Returned(returned) => Event::Returned {
            session,
            fences: ours(returned.fences),
            draining: returned.draining,
        },
        Frame::Beat(beat) => Event::Heard {
            session,
            assign_seq: beat.assign_seq,
        },
        Frame::ProbeReply(reply) => return Heard::Probed(reply),
        Frame::Hello(_)
        | Frame::Challenge(_)
        | Frame::Login(_)
        | Frame::Welcome(_)
        | Frame::Refused(_)
        | Frame::NotLeader(_)
        | Frame::Resumed(_)
        | Frame::Assign(_)
        | Frame::Recall(_)
        | Frame::Cancel(_)
        | Frame::Stop(_)
        | Frame::Ack(_)
        | Frame::Probe(_)
        | Frame::Chunk(_)
        | Frame::OutputEnd(_)
        | Frame::OutputAck(_) => return Heard::Misplaced,
    };
    Heard::Event(event)
}

/// What leaves in one turn, gathered by destination so that each gets one push and one wake-up.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// For the writer, in the engine's order.
    pub(super) facts: Vec<Fact>,
    /// For each worker, encoded.
    pub(super) frames: HashMap<SessionId, BytesMut>,
    /// Sessions to end.
    pub(super) closing: Vec<(SessionId, RefuseCode, String)>,
}

impl Outgoing {
    fn frame(&mut self, session: SessionId, frame: &Frame) {
        frame.encode(self.frames.entry(session).or_default());
    }

    pub(super) fn probe(&mut self, session: SessionId, ask: u64, fence: Fence) {
        let probe = hostler_wire::frame::Probe {
            ask,
            fences: vec![fence],
        };
        self.frame(session, &Frame::Probe(probe));
    }

    pub(super) fn assign(
        &mut self,
        session: SessionId,
        seq: u64,
        fences: &[Fence],
        bodies: &mut Bodies,
    ) {
        let jobs = fences
            .iter()
            .map(|&fence| {
                let body = bodies.take(fence.job).expect(
                    "the engine assigns a job only while it knows its body to be in memory",
                );
                Assignment { fence, body }
            })
            .collect();
        self.frame(session, &Frame::Assign(Assign { seq, jobs }));
    }

    pub(super) fn resumed(
        &mut self,
        starts: &Starts,
        session: SessionId,
        _worker: WorkerId,
        acked: u64,
        void: &[Fence],
        foreign: &[Fence],
    ) {
        let void = void
            .iter()
            .map(|&fence| starts.theirs(session, fence, foreign))
            .collect();
        self.frame(session, &Frame::Resumed(Resumed { acked, void }));
    }

    pub(super) fn recall(&mut self, session: SessionId, fences: Vec<Fence>) {
        self.frame(session, &Frame::Recall(Recall { fences }));
    }

    pub(super) fn cancel(&mut self, session: SessionId, fence: Fence, force: bool) {
        self.frame(session, &Frame::Cancel(Cancel { fence, force }));
    }

    pub(super) fn stop(&mut self, session: SessionId, fences: Vec<Fence>) {
        self.frame(session, &Frame::Stop(Stop { fences }));
    }

    pub(super) fn ack(&mut self, session: SessionId, through: u64) {
        self.frame(session, &Frame::Ack(Ack { through }));
    }

    pub(super) fn refuse(&mut self, session: SessionId, why: Refusal) {
        let (code, message) = match why {
            Refusal::NameInUse => (
                RefuseCode::NameInUse,
                "another worker of this name is connected; give this one its own with --name",
            ),
            Refusal::Deaf => (
                RefuseCode::Invalid,
                "this connection no longer receives what is sent; connect anew",
            ),
            Refusal::Stopping => (RefuseCode::Stopping, "the server is stopping"),
        };
        self.closing.push((session, code, message.to_owned()));
    }
}
