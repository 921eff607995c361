//! Frame → event, effect → frame or fact; the only file that knows both languages.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;

use bytes::BytesMut;
use hostler_engine::effect::Refusal;
use hostler_engine::event::{Event, Join, Report};
use hostler_engine::{Fact, Span};
use hostler_wire::frame::{
    Ack, Assign, Assignment, Cancel, Frame, Login, Probe, ProbeReply, Recall, RefuseCode, Resumed,
    Stop,
};
use hostler_wire::limits::BATCH_ITEMS_MAX;
use hostler_wire::{Epoch, Fence, SessionId};

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
    foreign: HashMap<SessionId, Foreign>,
}

/// Attempts that a session's worker was given in another history. This one may give out the very same names, to that worker
/// too. What it held when it came is void, so its words after that are about what it was given since, but for the reports
/// it had made by then.
#[derive(Debug)]
struct Foreign {
    held: HashSet<Fence>,
    last_report: u64,
}

impl Starts {
    pub(super) fn new(known: &[(Epoch, [u8; 16])]) -> Self {
        Self {
            known: known.iter().copied().collect(),
            foreign: HashMap::new(),
        }
    }

    /// Keeps what the worker holds of another history.
    fn meet(&mut self, session: SessionId, login: &Login) {
        let epochs: Vec<Epoch> = login
            .epochs
            .iter()
            .filter(|(epoch, nonce)| self.known.get(epoch) != Some(nonce))
            .map(|(epoch, _)| *epoch)
            .collect();
        if epochs.is_empty() {
            return;
        }
        let held = login.held.iter().map(|held| held.fence);
        let foreign = Foreign {
            held: held.filter(|fence| epochs.contains(&fence.epoch)).collect(),
            last_report: login.last_report,
        };
        self.foreign.insert(session, foreign);
    }

    pub(super) fn part(&mut self, session: SessionId) {
        self.foreign.remove(&session);
    }

    /// The fence of something held at the login, as the engine may judge it.
    fn ours(&self, session: SessionId, fence: Fence) -> Fence {
        if self.foreign.is_empty() || !self.is_foreign(session, fence) {
            return fence;
        }
        Fence {
            epoch: NO_EPOCH,
            ..fence
        }
    }

    /// The fence of the report with this number, as the engine may judge it.
    fn reported(&self, session: SessionId, number: u64, fence: Fence) -> Fence {
        match self.foreign.get(&session) {
            Some(foreign) if number <= foreign.last_report => self.ours(session, fence),
            Some(_) | None => fence,
        }
    }

    fn is_foreign(&self, session: SessionId, fence: Fence) -> bool {
        self.foreign
            .get(&session)
            .is_some_and(|foreign| foreign.held.contains(&fence))
    }
}

/// What is void by the names its worker knows. What it holds of another history is void, all of it: to the engine two such
/// attempts may have one name.
fn as_held(void: &[Fence], foreign: &[Fence]) -> Vec<Fence> {
    let names: HashSet<_> = foreign.iter().map(|it| (it.job, it.attempt)).collect();
    let is_foreign = |it: &Fence| it.epoch == NO_EPOCH && names.contains(&(it.job, it.attempt));
    let ours = void.iter().filter(|fence| !is_foreign(fence));
    ours.chain(foreign).copied().collect()
}

/// An assign frame is closed above this: one job at its limit fits, and many small ones do.
const ASSIGN_BYTES_TARGET: usize = 2 << 20;
/// No server start has this number.
const NO_EPOCH: Epoch = Epoch::new(0);

/// A login becomes a join.
pub(super) fn join(starts: &mut Starts, session: SessionId, login: Login) -> (Join, Vec<Fence>) {
    starts.meet(session, &login);
    let foreign = login
        .held
        .iter()
        .map(|held| held.fence)
        .filter(|fence| starts.is_foreign(session, *fence))
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
pub(super) fn hear(
    starts: &Starts,
    numbers: &mut Numbers,
    session: SessionId,
    frame: Frame,
) -> Heard {
    let event = match frame {
        Frame::Started(started) => Event::Started {
            session,
            fences: started.fences,
        },
        Frame::Reports(batch) => Event::Reported {
            session,
            first: batch.first,
            reports: batch
                .reports
                .into_iter()
                .zip(batch.first..)
                .map(|(report, number)| Report {
                    fence: starts.reported(session, number, report.fence),
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
            fences: returned.fences,
            draining: returned.draining,
        },
        Frame::Beat(beat) => Event::Heard {
            session,
            assign_seq: numbers.engine_seq(session, beat.assign_seq),
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
        | Frame::OutputStart(_)
        | Frame::OutputEnd(_)
        | Frame::OutputAck(_) => return Heard::Misplaced,
    };
    Heard::Event(event)
}

/// Numbers of assign frames. The engine counts hand-outs; a hand-out too large for one frame leaves in several, so the
/// worker counts more. Beats come back in the worker's numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers(HashMap<SessionId, Count>);

#[derive(Debug, Default)]
struct Count {
    /// Frames beyond the engine's count, in hand-outs the worker has confirmed.
    confirmed_extra: u64,
    /// Hand-outs in several frames that it has not: the first and last frame of each.
    split: VecDeque<(u64, u64)>,
}

impl Numbers {
    pub(super) fn part(&mut self, session: SessionId) {
        self.0.remove(&session);
    }

    /// The numbers of the frames of this hand-out.
    fn frames(&mut self, session: SessionId, engine_seq: u64, frames: u64) -> Range<u64> {
        let count = match self.0.get_mut(&session) {
            Some(count) => count,
            None if frames <= 1 => return engine_seq..engine_seq + frames,
            None => self.0.entry(session).or_default(),
        };
        let pending: u64 = count.split.iter().map(|(first, last)| last - first).sum();
        let first = engine_seq + count.confirmed_extra + pending;
        if frames > 1 {
            count.split.push_back((first, first + frames - 1));
        }
        first..first + frames
    }

    /// The last hand-out wholly received by a worker whose last frame was this.
    fn engine_seq(&mut self, session: SessionId, frame: u64) -> u64 {
        let Some(count) = self.0.get_mut(&session) else {
            return frame;
        };
        while let Some(&(first, last)) = count.split.front() {
            if frame < first {
                break;
            }
            if frame < last {
                return first - 1 - count.confirmed_extra;
            }
            count.confirmed_extra += last - first;
            count.split.pop_front();
        }
        frame.saturating_sub(count.confirmed_extra)
    }
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

    pub(super) fn probe(&mut self, session: SessionId, ask: u64, fences: Vec<Fence>) {
        self.frame(session, &Frame::Probe(Probe { ask, fences }));
    }

    pub(super) fn assign(
        &mut self,
        numbers: &mut Numbers,
        session: SessionId,
        seq: u64,
        fences: &[Fence],
        bodies: &mut Bodies,
    ) {
        let mut frames = vec![Vec::with_capacity(fences.len().min(BATCH_ITEMS_MAX))];
        let mut bytes = 0;
        for &fence in fences {
            let body = bodies
                .take(fence.job)
                .expect("the engine assigns a job only while it knows its body to be in memory");
            let assignment = Assignment { fence, body };
            let size = assignment.encoded_bytes();
            let last = frames.last().map_or(0, Vec::len);
            if last == BATCH_ITEMS_MAX || (last > 0 && bytes + size > ASSIGN_BYTES_TARGET) {
                frames.push(Vec::new());
                bytes = 0;
            }
            bytes += size;
            frames.last_mut().expect("made with one").push(assignment);
        }
        for fence in fences {
            tracing::trace!(job = fence.job.raw(), attempt = %fence.attempt, "assigned");
        }
        let seqs = numbers.frames(session, seq, frames.len() as u64);
        for (seq, jobs) in seqs.zip(frames) {
            self.frame(session, &Frame::Assign(Assign { seq, jobs }));
        }
    }

    pub(super) fn resumed(
        &mut self,
        session: SessionId,
        acked: u64,
        void: &[Fence],
        foreign: &[Fence],
    ) {
        let void = as_held(void, foreign);
        self.frame(session, &Frame::Resumed(Resumed { acked, void }));
    }

    pub(super) fn recall(&mut self, session: SessionId, fences: &[Fence]) {
        for fences in fences.chunks(BATCH_ITEMS_MAX) {
            self.frame(
                session,
                &Frame::Recall(Recall {
                    fences: fences.to_vec(),
                }),
            );
        }
    }

    pub(super) fn cancel(&mut self, session: SessionId, fence: Fence, force: bool) {
        self.frame(session, &Frame::Cancel(Cancel { fence, force }));
    }

    pub(super) fn stop(&mut self, session: SessionId, fences: &[Fence]) {
        for fences in fences.chunks(BATCH_ITEMS_MAX) {
            self.frame(
                session,
                &Frame::Stop(Stop {
                    fences: fences.to_vec(),
                }),
            );
        }
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

#[cfg(test)]
mod tests {
    use hostler_wire::frame::{Held, Returned, Started};
    use hostler_wire::{Attempt, JobId};

    use super::*;

    #[test]
    fn a_hand_out_in_several_frames_is_received_with_its_last() {
        let (mut numbers, session) = (Numbers::default(), SessionId::new(1));
        assert_eq!(numbers.frames(session, 1, 1), 1..2);
        assert_eq!(numbers.frames(session, 2, 3), 2..5);
        assert_eq!(numbers.frames(session, 3, 1), 5..6);
        assert_eq!(numbers.frames(session, 4, 2), 6..8);
        let heard: Vec<u64> = (1..=7)
            .map(|frame| numbers.engine_seq(session, frame))
            .collect();
        assert_eq!(heard, [1, 1, 1, 2, 3, 3, 4]);
        assert_eq!(numbers.frames(session, 5, 1), 8..9);
        assert_eq!(numbers.engine_seq(session, 8), 5);
    }

    #[test]
    fn attempts_of_a_start_we_never_made_are_nobodys() {
        let (ours, theirs) = (Epoch::new(3), Epoch::new(4));
        let session = SessionId::new(1);
        let mut starts = Starts::new(&[(ours, [3; 16]), (theirs, [4; 16])]);
        let fence = |job, epoch| Fence {
            job: JobId::new(job).unwrap(),
            epoch,
            attempt: Attempt::FIRST,
        };
        let (known, foreign) = (fence(1, ours), fence(2, theirs));
        let login = Login {
            // The database is a restored backup: this number has been given out before, to another start.
            epochs: vec![(ours, [3; 16]), (theirs, [9; 16])],
            last_report: 8,
            held: [known, foreign]
                .map(|fence| Held {
                    fence,
                    started: true,
                })
                .to_vec(),
            ..login()
        };
        let (join, void) = join(&mut starts, session, login);
        let nobodys = Fence {
            epoch: NO_EPOCH,
            ..foreign
        };
        assert_eq!(join.held, [(known, true), (nobodys, true)]);
        assert_eq!(void, [foreign]);
        assert_eq!(
            starts.reported(session, 8, foreign),
            nobodys,
            "the report it had made is stale"
        );
        assert_eq!(
            starts.reported(session, 9, foreign),
            foreign,
            "a later one is of an attempt that it was given since, by the same name"
        );
        let other = Fence {
            epoch: Epoch::new(9),
            ..foreign
        };
        assert_eq!(
            as_held(&[nobodys, known, nobodys], &[foreign, other]),
            [known, foreign, other],
            "it is told to stop them, each by its name"
        );
        for frame in [
            Frame::Started(Started {
                fences: vec![foreign],
            }),
            Frame::Returned(Returned {
                fences: vec![foreign],
                draining: false,
            }),
        ] {
            let heard = hear(&starts, &mut Numbers::default(), session, frame);
            assert!(
                matches!(
                    &heard,
                    Heard::Event(Event::Started { fences, .. } | Event::Returned { fences, .. })
                        if *fences == [foreign]
                ),
                "what was void does not start and is not given back: {heard:?}"
            );
        }
        starts.part(session);
        assert_eq!(
            starts.reported(session, 8, foreign),
            foreign,
            "another session's word counts for itself"
        );
    }

    fn login() -> Login {
        Login {
            proof: [0; 32],
            name: "w".to_owned(),
            instance: 1,
            session: None,
            slots: 1,
            commands: true,
            handlers: Vec::new(),
            queues: Vec::new(),
            labels: Vec::new(),
            allocation: String::new(),
            held: Vec::new(),
            last_report: 0,
            epochs: Vec::new(),
        }
    }
}
