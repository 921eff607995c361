//! A server that says anything at any time to a real worker session: the session holds together (`check`), starts nothing
//! that runs already, and says nothing that a server could not read.
//!
//! What the shell round it tells (what was started and has ended, what was written) is as the shell would.

#![no_main]

use std::collections::{BTreeSet, HashSet};

use bytes::{Bytes, BytesMut};
use hostler_wire::codec::raw_frame;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{
    Ack, Assign, Assignment, Cancel, Frame, Handler, Logs, LogsMode, OnPartition, Overflow, Probe,
    Recall, Resumed, Stop, Task, Work,
};
use hostler_wire::limits::FRAME_BYTES_MAX;
use hostler_wire::{Attempt, Epoch, Fence, JobId, Outcome};
use hostler_worker::session::{Config, Effect, Effects, Ending, Event, Session};
use hostler_worker::{Span, Time};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    slots: u8,
    idle_exit: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// A frame of any kind and body, if there is one with it.
    Raw { kind: u8, body: Vec<u8> },
    Resumed { acked: u8, void: Vec<Named> },
    Assign { seq: u8, jobs: Vec<Job> },
    Recall(Vec<Named>),
    Cancel(Named, bool),
    Stop(Vec<Named>),
    Ack(u8),
    Probe(Vec<Named>),
    Connect { epoch: u8, nonce: u8 },
    Disconnect,
    Heard,
    Written,
    Ended { which: u8, how: u8, told: bool },
    Active(u8),
    Drain,
    Pass(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Named {
    job: u8,
    epoch: u8,
    attempt: u8,
}

#[derive(Arbitrary, Debug)]
struct Job {
    named: Named,
    inline: bool,
    timeout: Option<u16>,
    stall: Option<u16>,
    stop: bool,
    /// No body of a job.
    garbage: bool,
}

struct Trial {
    session: Session,
    now: Time,
    effects: Effects,
    connected: bool,
    gone: bool,
    running: BTreeSet<Fence>,
}

fuzz_target!(|input: Input| {
    let config = Config {
        slots: u32::from(input.slots % 4) + 1,
        kill_grace: Span::from_ms(1_000),
        drain_timeout: Span::from_ms(5_000),
        idle_exit: input.idle_exit.then_some(Span::from_ms(10_000)),
        inline: HashSet::from(["noop".to_owned()]),
    };
    let mut trial = Trial {
        session: Session::new(config, Time::default()),
        now: Time::default(),
        effects: Effects::new(),
        connected: false,
        gone: false,
        running: BTreeSet::new(),
    };
    for op in input.ops {
        trial.apply(op);
        if trial.gone {
            return;
        }
    }
});

impl Trial {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Raw { kind, body } => {
                let mut decoder = Decoder::new();
                decoder.accept_up_to(FRAME_BYTES_MAX);
                decoder.buffer().extend_from_slice(&raw_frame(kind, 0, &body));
                if let Ok(Some(frame)) = decoder.next_frame() {
                    self.receive(frame);
                }
            }
            Op::Resumed { acked, void } => self.receive(Frame::Resumed(Resumed {
                acked: acked.into(),
                void: fences(void),
            })),
            Op::Assign { seq, jobs } => {
                let jobs = jobs.into_iter().map(assignment).collect();
                self.receive(Frame::Assign(Assign { seq: seq.into(), jobs }));
            }
            Op::Recall(named) => self.receive(Frame::Recall(Recall { fences: fences(named) })),
            Op::Cancel(named, force) => self.receive(Frame::Cancel(Cancel {
                fence: fence(named),
                force,
            })),
            Op::Stop(named) => self.receive(Frame::Stop(Stop { fences: fences(named) })),
            Op::Ack(through) => self.receive(Frame::Ack(Ack { through: through.into() })),
            Op::Probe(named) => self.receive(Frame::Probe(Probe {
                ask: 1,
                fences: fences(named),
            })),
            Op::Connect { epoch, nonce } => {
                if !self.connected {
                    self.connected = true;
                    // Encodes, however much is held: it becomes a login.
                    drop(self.session.resume());
                    self.event(Event::Connected {
                        beat: Span::from_ms(2_000),
                        lease: Span::from_ms(30_000),
                        epoch: (Epoch::new(u32::from(epoch % 4)), [nonce % 2; 16]),
                    });
                }
            }
            Op::Disconnect => self.disconnect(),
            Op::Heard if self.connected => self.event(Event::Heard),
            Op::Written if self.connected => self.event(Event::Written),
            Op::Heard | Op::Written => {}
            Op::Ended { which, how, told } => {
                let Some(fence) = self.pick(which) else { return };
                self.running.remove(&fence);
                let ending = match how % 6 {
                    0 => Ending::NoRoom {
                        message: "no more processes".to_owned(),
                    },
                    1 => done(Outcome::Exited { code: how.max(1) }, told),
                    2 => done(Outcome::Signalled { signal: how.max(1) }, told),
                    3 => done(Outcome::SpawnFailed { errno: 2 }, told),
                    4 => done(Outcome::OutOfMemory, told),
                    _ => done(Outcome::Succeeded, told),
                };
                self.event(Event::Ended { fence, ending });
            }
            Op::Active(which) => {
                if let Some(fence) = self.pick(which) {
                    self.event(Event::Active { fence, at: self.now });
                }
            }
            Op::Drain => self.event(Event::Drain),
            Op::Pass(ms) => {
                self.now = self.now + Span::from_ms(ms.into());
                self.event(Event::Tick);
            }
        }
    }

    fn pick(&self, which: u8) -> Option<Fence> {
        let at = usize::from(which) % self.running.len().max(1);
        self.running.iter().nth(at).copied()
    }

    fn receive(&mut self, frame: Frame) {
        if self.connected {
            self.event(Event::Received(frame));
        }
    }

    fn disconnect(&mut self) {
        if self.connected {
            self.connected = false;
            self.event(Event::Disconnected);
        }
    }

    /// One event and its turn's end, as the shell does it.
    fn event(&mut self, event: Event) {
        self.session.handle(self.now, event, &mut self.effects);
        self.session.check();
        self.session.flush(self.now, &mut self.effects);
        self.session.check();
        let mut leave = false;
        for effect in std::mem::take(&mut self.effects) {
            match effect {
                Effect::Send(frame) => {
                    assert!(self.connected, "{frame:?} to nobody");
                    is_readable(&frame);
                }
                Effect::Start { fence, .. } => {
                    assert!(self.running.insert(fence), "{fence:?} started while it runs");
                }
                Effect::End { fence, .. } => assert!(self.running.contains(&fence)),
                Effect::Reconnect(_) => leave = true,
                Effect::Exit(_) => self.gone = true,
                Effect::Forget(_) | Effect::ForgetSince(_) | Effect::Answer(_) => {}
            }
        }
        if leave && !self.gone {
            self.disconnect();
        }
    }
}

fn is_readable(frame: &Frame) {
    let mut decoder = Decoder::new();
    decoder.accept_up_to(FRAME_BYTES_MAX);
    frame.encode(decoder.buffer());
    assert_eq!(decoder.next_frame().as_ref(), Ok(&Some(frame.clone())));
    assert_eq!(*decoder.buffer(), BytesMut::new());
}

fn done(outcome: Outcome, told: bool) -> Ending {
    Ending::Done {
        outcome,
        detail: None,
        told,
    }
}

fn fence(named: Named) -> Fence {
    Fence {
        job: JobId::new(u64::from(named.job % 8) + 1).expect("above 0"),
        epoch: Epoch::new(u32::from(named.epoch % 4)),
        attempt: Attempt::new(u16::from(named.attempt % 3) + 1).expect("above 0"),
    }
}

fn fences(named: Vec<Named>) -> Vec<Fence> {
    named.into_iter().map(fence).collect()
}

fn assignment(job: Job) -> Assignment {
    let work = Work {
        timeout_ms: job.timeout.map(u64::from),
        grace_ms: None,
        stall_ms: job.stall.map(u64::from),
        on_partition: if job.stop { OnPartition::Stop } else { OnPartition::Keep },
        logs: Logs {
            mode: LogsMode::Keep,
            limit_bytes: 4_096,
            overflow: Overflow::Drop,
        },
        task: Task::Handler(Handler {
            name: if job.inline { "noop" } else { "other" }.to_owned(),
            payload: Bytes::new(),
        }),
    };
    Assignment {
        fence: fence(job.named),
        body: if job.garbage { Bytes::from_static(b"\xff") } else { work.encode() },
    }
}
