//! One probe, many askers, one deadline.
//!
//! A question about a running job goes down its worker's socket once, however many ask meanwhile; all get the same
//! answer, and none later than the fixed wait after the first asked (R33).

use std::collections::HashMap;

use hostler_engine::{Span, Time};
use hostler_wire::Fence;
use hostler_wire::frame::{Live, ProbeReply};
use tokio::sync::oneshot;

use crate::dispatch::{JobStatus, LiveStatus};

/// An asker: the record as it was, and where the answer goes.
type Asker = (Box<JobStatus>, oneshot::Sender<Option<Box<JobStatus>>>);

/// Probes under way.
#[derive(Debug)]
pub(super) struct Probes {
    wait: Span,
    next_ask: u64,
    by_fence: HashMap<Fence, Probe>,
    /// By ask, in the order sent; all wait equally long, so this is also the order of their deadlines.
    sent: std::collections::VecDeque<(u64, Fence)>,
}

#[derive(Debug)]
struct Probe {
    ask: u64,
    sent: Time,
    askers: Vec<Asker>,
    /// When the worker had last been heard as the first asked.
    heard: Time,
}

impl Probes {
    pub(super) fn new(wait: Span) -> Self {
        Self {
            wait,
            next_ask: 1,
            by_fence: HashMap::new(),
            sent: std::collections::VecDeque::new(),
        }
    }

    /// Adds an asker. Some(ask): a probe with this number must be sent.
    pub(super) fn add(
        &mut self,
        now: Time,
        fence: Fence,
        heard: Time,
        asker: Asker,
    ) -> Option<u64> {
        if let Some(probe) = self.by_fence.get_mut(&fence) {
            probe.askers.push(asker);
            return None;
        }
        let ask = self.next_ask;
        self.next_ask += 1;
        self.by_fence.insert(
            fence,
            Probe {
                ask,
                sent: now,
                askers: vec![asker],
                heard,
            },
        );
        self.sent.push_back((ask, fence));
        Some(ask)
    }

    /// A worker answered.
    pub(super) fn reply(&mut self, now: Time, reply: ProbeReply) {
        // One fence a probe: the reply names it, or is empty because the worker does not hold it.
        let Some(&(_, fence)) = self.sent.iter().find(|(ask, _)| *ask == reply.ask) else {
            return; // too late: its askers have been told so
        };
        let found = reply
            .lives
            .into_iter()
            .find(|live| live.fence == Some(fence));
        self.settle(now, fence, found.map(Box::new));
    }

    /// Answers whoever has waited long enough.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some(&(ask, fence)) = self.sent.front() {
            match self.by_fence.get(&fence) {
                Some(probe) if probe.ask == ask => {
                    if probe.sent + self.wait > now {
                        break;
                    }
                    self.time_out(now, fence);
                }
                _ => {} // settled meanwhile
            }
            self.sent.pop_front();
        }
    }

    /// When `expire` has something to do.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.sent.front().map(|(_, fence)| {
            self.by_fence
                .get(fence)
                .map_or(Time::ZERO, |probe| probe.sent + self.wait)
        })
    }

    fn settle(&mut self, now: Time, fence: Fence, live: Option<Box<Live>>) {
        let Some(probe) = self.by_fence.remove(&fence) else {
            return;
        };
        self.sent.retain(|(ask, _)| *ask != probe.ask);
        let waited = now.since(probe.sent);
        let status = match live {
            Some(live) => LiveStatus::Seen {
                probed_us: waited.micros(),
                live,
            },
            None => LiveStatus::Unseen {
                why: "not_held",
                waited_ms: waited.millis(),
                last_heard_ms: 0,
            },
        };
        answer(probe.askers, &status);
    }

    fn time_out(&mut self, now: Time, fence: Fence) {
        let Some(probe) = self.by_fence.remove(&fence) else {
            return;
        };
        let status = LiveStatus::Unseen {
            why: "timeout",
            waited_ms: now.since(probe.sent).millis(),
            last_heard_ms: now.since(probe.heard).millis(),
        };
        answer(probe.askers, &status);
    }
}

fn answer(askers: Vec<Asker>, live: &LiveStatus) {
    for (mut status, reply) in askers {
        status.live = Some(live.clone());
        // Nobody waits any more: the question was withdrawn.
        drop(reply.send(Some(status)));
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

    fn fence() -> Fence {
        Fence {
            job: JobId::new(7).unwrap(),
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        }
    }

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
        ((Box::new(status), reply), receiver)
    }

    fn live(mut receiver: oneshot::Receiver<Option<Box<JobStatus>>>) -> LiveStatus {
        receiver.try_recv().unwrap().unwrap().live.unwrap()
    }

    #[test]
    fn fifty_askers_share_one_probe_and_its_answer() {
        let mut probes = Probes::new(WAIT);
        let mut receivers = Vec::new();
        let mut sent = Vec::new();
        for _ in 0..50 {
            let (asker, receiver) = asker();
            sent.extend(probes.add(at(0), fence(), at(0), asker));
            receivers.push(receiver);
        }
        assert_eq!(sent.len(), 1);
        let found = Live {
            fence: Some(fence()),
            pid: 31_337,
            ..Live::default()
        };
        probes.reply(
            at(3),
            ProbeReply {
                ask: sent[0],
                lives: vec![found],
            },
        );
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
        assert_eq!(probes.next_deadline(), None);
    }

    #[test]
    fn a_worker_that_does_not_answer_is_waited_for_no_longer_than_said() {
        let mut probes = Probes::new(WAIT);
        let (asker, mut receiver) = asker();
        let ask = probes.add(at(10_000), fence(), at(5_900), asker).unwrap();
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
        probes.reply(at(10_300), ProbeReply { ask, lives: vec![] });
        assert_eq!(probes.next_deadline(), None);
    }

    #[test]
    fn a_worker_that_does_not_hold_it_says_so() {
        let mut probes = Probes::new(WAIT);
        let (asker, receiver) = asker();
        let ask = probes.add(at(0), fence(), at(0), asker).unwrap();
        probes.reply(at(1), ProbeReply { ask, lives: vec![] });
        assert!(matches!(
            live(receiver),
            LiveStatus::Unseen {
                why: "not_held",
                ..
            }
        ));
    }
}
