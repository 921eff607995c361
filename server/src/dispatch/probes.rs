//! One probe, many askers, one deadline.
//!
//! A question about a running attempt goes down its worker's socket once, however many ask meanwhile, and questions of one
//! turn about attempts of one worker go in one frame; all get the same answer, and none later than the fixed wait after
//! the first asked (R33).
//!
//! Not here: what an answer means (`engine`, `http`).

use std::collections::{BTreeMap, HashMap, VecDeque};

use hostler_engine::{Span, Time};
use hostler_wire::frame::{Live, ProbeReply};
use hostler_wire::limits::PROBE_ITEMS_MAX;
use hostler_wire::{Fence, JobId, SessionId};
use tokio::sync::oneshot;

use crate::dispatch::{JobStatus, LiveStatus};

/// Who wants to know.
#[derive(Debug)]
pub(super) enum Asker {
    /// Someone about one job: the record as it was, and where the answer goes.
    Job(Box<JobStatus>, oneshot::Sender<Option<Box<JobStatus>>>),
    /// One of a list: the list's number.
    List(u64),
    /// The engine.
    Engine,
}

/// Names a list of jobs that someone asks about at once.
type ListId = u64;

/// Live parts, by job.
pub(super) type Lives = Vec<(JobId, LiveStatus)>;

/// Probes under way.
#[derive(Debug)]
pub(super) struct Probes {
    wait: Span,
    next_ask: u64,
    by_fence: HashMap<Fence, Probe>,
    /// Not yet sent: what is asked in one turn leaves together.
    unsent: BTreeMap<SessionId, Vec<Fence>>,
    /// In the order sent; all wait equally long, so this is also the order of their deadlines.
    sent: VecDeque<Sent>,
    lists: HashMap<ListId, List>,
    next_list: ListId,
}

/// A question about one attempt.
#[derive(Debug)]
struct Probe {
    since: Time,
    askers: Vec<Asker>,
    /// When the worker had last been heard as the first asked.
    heard: Time,
}

/// A frame of questions.
#[derive(Debug)]
struct Sent {
    ask: u64,
    until: Time,
    fences: Vec<Fence>,
}

/// What is known of a list so far.
#[derive(Debug)]
struct List {
    lives: Lives,
    awaited: usize,
    reply: oneshot::Sender<Lives>,
}

/// What the engine asked about: how long the attempt has been silent.
pub(super) type Looked = (Fence, Span);

impl Probes {
    pub(super) fn new(wait: Span) -> Self {
        Self {
            wait,
            next_ask: 1,
            by_fence: HashMap::new(),
            unsent: BTreeMap::new(),
            sent: VecDeque::new(),
            lists: HashMap::new(),
            next_list: 0,
        }
    }

    /// Adds an asker about an attempt that the worker of this session holds.
    pub(super) fn ask(
        &mut self,
        now: Time,
        session: SessionId,
        fence: Fence,
        heard: Time,
        asker: Asker,
    ) {
        if let Some(probe) = self.by_fence.get_mut(&fence) {
            return probe.askers.push(asker);
        }
        let probe = Probe {
            since: now,
            askers: vec![asker],
            heard,
        };
        self.by_fence.insert(fence, probe);
        self.unsent.entry(session).or_default().push(fence);
    }

    /// Asks about several at once; what is known of others already is told with the answer.
    pub(super) fn ask_list(
        &mut self,
        now: Time,
        members: &[(SessionId, Fence, Time)],
        known: Lives,
        reply: oneshot::Sender<Lives>,
    ) {
        self.next_list += 1;
        let id = self.next_list;
        let list = List {
            lives: known,
            awaited: members.len(),
            reply,
        };
        self.lists.insert(id, list);
        for &(session, fence, heard) in members {
            self.ask(now, session, fence, heard, Asker::List(id));
        }
        self.settle_list(id);
    }

    /// The frames to be sent now, at most one a worker but for very long lists.
    pub(super) fn take_unsent(&mut self, now: Time) -> Vec<(SessionId, u64, Vec<Fence>)> {
        let mut frames = Vec::new();
        for (session, fences) in std::mem::take(&mut self.unsent) {
            for fences in fences.chunks(PROBE_ITEMS_MAX) {
                let ask = self.next_ask;
                self.next_ask += 1;
                self.sent.push_back(Sent {
                    ask,
                    until: now + self.wait,
                    fences: fences.to_vec(),
                });
                frames.push((session, ask, fences.to_vec()));
            }
        }
        frames
    }

    /// A worker answered. What it leaves out it does not hold.
    pub(super) fn reply(&mut self, now: Time, reply: ProbeReply) -> Vec<Looked> {
        let Some(at) = self.sent.iter().position(|sent| sent.ask == reply.ask) else {
            return Vec::new(); // too late: its askers have been told so
        };
        let sent = self.sent.remove(at).expect("it stands there");
        let mut lives: HashMap<Fence, Live> = reply
            .lives
            .into_iter()
            .filter_map(|live| Some((live.fence?, live)))
            .collect();
        let mut looked = Vec::new();
        for fence in sent.fences {
            let Some(probe) = self.by_fence.remove(&fence) else {
                continue;
            };
            let waited = now.since(probe.since);
            let status = match lives.remove(&fence) {
                Some(live) => {
                    if probe.askers.iter().any(|it| matches!(it, Asker::Engine)) {
                        looked.push((fence, Span::from_millis(live.quiet_ms)));
                    }
                    LiveStatus::Seen {
                        probed_us: waited.micros(),
                        live: Box::new(live),
                    }
                }
                None => LiveStatus::Unseen {
                    why: "not_held",
                    waited_ms: waited.millis(),
                    last_heard_ms: 0,
                },
            };
            self.answer(fence, probe.askers, &status);
        }
        looked
    }

    /// Answers whoever has waited long enough.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.until <= now) {
            for fence in sent.fences {
                if let Some(probe) = self.by_fence.remove(&fence) {
                    let status = LiveStatus::Unseen {
                        why: "timeout",
                        waited_ms: now.since(probe.since).millis(),
                        last_heard_ms: now.since(probe.heard).millis(),
                    };
                    self.answer(fence, probe.askers, &status);
                }
            }
        }
    }

    /// Frames of questions so far.
    pub(super) fn sent_count(&self) -> u64 {
        self.next_ask - 1
    }

    /// When `expire` has something to do.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.sent.front().map(|sent| sent.until)
    }

    fn answer(&mut self, fence: Fence, askers: Vec<Asker>, live: &LiveStatus) {
        for asker in askers {
            match asker {
                Asker::Job(mut status, reply) => {
                    status.live = Some(live.clone());
                    // Nobody waits any more: the question was withdrawn.
                    drop(reply.send(Some(status)));
                }
                Asker::List(id) => {
                    if let Some(list) = self.lists.get_mut(&id) {
                        list.lives.push((fence.job, live.clone()));
                        list.awaited -= 1;
                    }
                    self.settle_list(id);
                }
                Asker::Engine => {}
            }
        }
    }

    fn settle_list(&mut self, id: ListId) {
        if self.lists.get(&id).is_some_and(|list| list.awaited == 0)
            && let Some(list) = self.lists.remove(&id)
        {
            drop(list.reply.send(list.lives));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hostler_wire::{Attempt, Epoch, JobId, JobState, Priority, Reason};

    use super::*;

    const WAIT: Span = Span::from_millis(250);

    fn at(ms: u64) -> Time {
        Time::ZERO + Span::from_millis(ms)
    }

    fn fence(job: u64) -> Fence {
        Fence {
            job: JobId::new(job).unwrap(),
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        }
    }

    const SESSION: SessionId = SessionId::new(3);

    fn asker() -> (Asker, oneshot::Receiver<Option<Box<JobStatus>>>) {
        let status = JobStatus {
            id: JobId::new(7).unwrap(),
            state: JobState::Running,
            reason: Reason::None,
            due: None,
            queue: Arc::from("default"),
            priority: Priority::NORMAL,
            attempt: 1,
            failures: 0,
            max_attempts: 1,
            worker: Some("w".into()),
            worker_connected: true,
            started: None,
            live: None,
        };
        let (reply, receiver) = oneshot::channel();
        (Asker::Job(Box::new(status), reply), receiver)
    }

    fn live(mut receiver: oneshot::Receiver<Option<Box<JobStatus>>>) -> LiveStatus {
        receiver.try_recv().unwrap().unwrap().live.unwrap()
    }

    fn found(fence: Fence, pid: u32) -> Live {
        Live {
            fence: Some(fence),
            pid,
            quiet_ms: 40,
            ..Live::default()
        }
    }

    #[test]
    fn fifty_askers_share_one_probe_and_its_answer() {
        let mut probes = Probes::new(WAIT);
        let mut receivers = Vec::new();
        for ms in 0..50 {
            let (asker, receiver) = asker();
            probes.ask(at(ms / 25), SESSION, fence(7), at(0), asker);
            receivers.push(receiver);
        }
        let sent = probes.take_unsent(at(2));
        assert_eq!(sent, [(SESSION, 1, vec![fence(7)])]);
        assert_eq!(probes.take_unsent(at(2)), []);
        let lives = vec![found(fence(7), 31_337)];
        assert_eq!(probes.reply(at(3), ProbeReply { ask: 1, lives }), []);
        for receiver in receivers {
            let LiveStatus::Seen {
                probed_us: 3_000,
                live,
            } = live(receiver)
            else {
                panic!()
            };
            assert_eq!(live.pid, 31_337);
        }
        assert_eq!((probes.next_deadline(), probes.sent_count()), (None, 1));
    }

    #[test]
    fn a_list_makes_one_frame_a_worker_and_has_one_answer() {
        let mut probes = Probes::new(WAIT);
        let other = SessionId::new(4);
        let members: Vec<_> = (1..=100)
            .map(|job| {
                let session = if job % 2 == 0 { SESSION } else { other };
                (session, fence(job), at(0))
            })
            .collect();
        let away = LiveStatus::Unseen {
            why: "disconnected",
            waited_ms: 0,
            last_heard_ms: 9,
        };
        let (reply, mut receiver) = oneshot::channel();
        let known = vec![(JobId::new(101).unwrap(), away)];
        probes.ask_list(at(0), &members, known, reply);
        let frames = probes.take_unsent(at(0));
        let sizes: Vec<_> = frames.iter().map(|(_, _, all)| all.len()).collect();
        assert_eq!(sizes, [50, 50]);
        // One worker answers, but for one attempt; the other does not.
        let (_, ask, fences) = &frames[0];
        let lives = fences[1..].iter().map(|fence| found(*fence, 1)).collect();
        probes.reply(at(5), ProbeReply { ask: *ask, lives });
        assert!(receiver.try_recv().is_err());
        probes.expire(at(250));
        let lives = receiver.try_recv().unwrap();
        let count = |wanted: fn(&LiveStatus) -> bool| {
            let fits = lives.iter().filter(|(_, live)| wanted(live));
            fits.count()
        };
        assert_eq!(lives.len(), 101);
        assert_eq!(count(|live| matches!(live, LiveStatus::Seen { .. })), 49);
        for (why, wanted) in [("not_held", 1), ("timeout", 50), ("disconnected", 1)] {
            let told = lives.iter().filter(
                |(_, live)| matches!(live, LiveStatus::Unseen { why: told, .. } if *told == why),
            );
            assert_eq!(told.count(), wanted, "{why}");
        }
    }

    #[test]
    fn a_list_of_what_is_on_no_worker_is_answered_at_once() {
        let mut probes = Probes::new(WAIT);
        let (reply, mut receiver) = oneshot::channel();
        probes.ask_list(at(0), &[], Vec::new(), reply);
        assert!(receiver.try_recv().unwrap().is_empty());
    }

    #[test]
    fn no_frame_asks_about_more_than_an_answer_can_hold() {
        let mut probes = Probes::new(WAIT);
        let members: Vec<_> = (1..=1_500)
            .map(|job| (SESSION, fence(job), at(0)))
            .collect();
        let (reply, _receiver) = oneshot::channel();
        probes.ask_list(at(0), &members, Vec::new(), reply);
        let sizes: Vec<_> = probes
            .take_unsent(at(0))
            .iter()
            .map(|(_, _, all)| all.len())
            .collect();
        assert_eq!(sizes, [PROBE_ITEMS_MAX, 1_500 - PROBE_ITEMS_MAX]);
    }

    #[test]
    fn a_worker_that_does_not_answer_is_waited_for_no_longer_than_said() {
        let mut probes = Probes::new(WAIT);
        let (asker, mut receiver) = asker();
        probes.ask(at(10_000), SESSION, fence(7), at(5_900), asker);
        probes.take_unsent(at(10_000));
        assert_eq!(probes.next_deadline(), Some(at(10_250)));
        probes.expire(at(10_249));
        assert!(receiver.try_recv().is_err());
        probes.expire(at(10_250));
        let LiveStatus::Unseen {
            why: "timeout",
            waited_ms: 250,
            last_heard_ms: 4_350,
        } = live(receiver)
        else {
            panic!()
        };
        let late = ProbeReply {
            ask: 1,
            lives: vec![found(fence(7), 1)],
        };
        assert_eq!(probes.reply(at(10_300), late), []);
        assert_eq!(probes.next_deadline(), None);
    }

    #[test]
    fn a_worker_that_does_not_hold_it_says_so() {
        let mut probes = Probes::new(WAIT);
        let (asker, receiver) = asker();
        probes.ask(at(0), SESSION, fence(7), at(0), asker);
        probes.take_unsent(at(0));
        let none = ProbeReply {
            ask: 1,
            lives: vec![],
        };
        assert_eq!(probes.reply(at(1), none), []);
        assert!(matches!(
            live(receiver),
            LiveStatus::Unseen {
                why: "not_held",
                ..
            }
        ));
    }

    #[test]
    fn the_engine_hears_how_long_an_attempt_was_silent_if_it_asked() {
        let mut probes = Probes::new(WAIT);
        probes.ask(at(0), SESSION, fence(7), at(0), Asker::Engine);
        probes.take_unsent(at(0));
        let reply = ProbeReply {
            ask: 1,
            lives: vec![found(fence(7), 1)],
        };
        let quiet = Span::from_millis(40);
        assert_eq!(probes.reply(at(1), reply), [(fence(7), quiet)]);
    }
}
