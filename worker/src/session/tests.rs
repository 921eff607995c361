//! The session's rules, one sentence each, and a storm of random events against `check()`.

use bytes::Bytes;
use hostler_wire::frame::{Command, Handler, Logs, LogsMode, Overflow};
use hostler_wire::{Attempt, JobId};
use proptest::prelude::*;

use super::*;

/// A real session, virtual time. Effects are read as short sentences; one left unread fails the test.
struct Trial {
    session: Session,
    now: Time,
    effects: Effects,
    seq: u64,
}

impl Trial {
    fn new(slots: u32) -> Self {
        Self::with(slots, |_| {})
    }

    fn with(slots: u32, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            slots,
            kill_grace: Span::from_ms(10_000),
            drain_timeout: Span::from_ms(30_000),
            idle_exit: None,
            inline: HashSet::from(["noop".to_owned()]),
        };
        change(&mut config);
        let session = Session::new(config, Time::default());
        Self {
            session,
            now: Time::default(),
            effects: Vec::new(),
            seq: 0,
        }
    }

    fn up(slots: u32) -> Self {
        let mut t = Self::new(slots);
        t.connect();
        t.resumed(0, &[]);
        t
    }

    fn event(&mut self, event: Event) {
        self.session.handle(self.now, event, &mut self.effects);
        self.session.check();
    }

    fn frame(&mut self, frame: Frame) {
        self.event(Event::Received(frame));
        self.flush();
    }

    fn flush(&mut self) {
        self.session.flush(self.now, &mut self.effects);
        self.session.check();
    }

    fn connect(&mut self) {
        self.connect_to([7; 16]);
    }

    /// To a server whose start has the usual number, and this nonce.
    fn connect_to(&mut self, nonce: [u8; 16]) {
        self.seq = 0;
        let epoch = (Epoch::new(7), nonce);
        let (beat, lease) = (Span::from_ms(2_000), Span::from_ms(30_000));
        self.event(Event::Connected { beat, lease, epoch });
        self.flush();
    }

    fn disconnect(&mut self) {
        self.event(Event::Disconnected);
        self.flush();
    }

    fn resumed(&mut self, acked: u64, void: &[u64]) {
        let void = void.iter().map(|&job| fence(job)).collect();
        self.frame(Frame::Resumed(Resumed { acked, void }));
    }

    fn assign(&mut self, jobs: &[(u64, Work)]) {
        self.seq += 1;
        let assignment = |(job, work): &(u64, Work)| Assignment {
            fence: fence(*job),
            body: work.encode(),
        };
        let jobs = jobs.iter().map(assignment).collect();
        self.frame(Frame::Assign(Assign {
            seq: self.seq,
            jobs,
        }));
    }

    fn written(&mut self) {
        self.event(Event::Written);
        self.flush();
    }

    fn ended(&mut self, job: u64, outcome: Outcome, told: bool) {
        let ending = Ending::Done {
            outcome,
            detail: None,
            told,
        };
        self.event(Event::Ended {
            fence: fence(job),
            ending,
        });
        self.flush();
    }

    fn no_room(&mut self, job: u64) {
        let ending = Ending::NoRoom {
            message: "no more processes".to_owned(),
        };
        self.event(Event::Ended {
            fence: fence(job),
            ending,
        });
        self.flush();
    }

    /// Time passes; the server beats, unless it is silent.
    fn pass(&mut self, ms: u64, silent: bool) {
        let until = self.now + Span::from_ms(ms);
        while let Some(at) = self.session.next_deadline().filter(|&at| at <= until) {
            self.now = at.max(self.now);
            if !silent {
                self.event(Event::Heard);
            }
            self.event(Event::Tick);
            self.flush();
        }
        self.now = until;
        // Beats have a test of their own.
        self.effects
            .retain(|e| !matches!(e, Effect::Send(Frame::Beat(_))));
    }

    #[track_caller]
    fn expect(&mut self, wanted: &[&str]) {
        let said: Vec<String> = self.effects.drain(..).map(|e| say(&e)).collect();
        assert_eq!(said, wanted);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.effects, Vec::new(), "an effect was left unread");
        }
    }
}

fn fence(job: u64) -> Fence {
    Fence {
        job: JobId::new(job).unwrap(),
        epoch: Epoch::new(7),
        attempt: Attempt::FIRST,
    }
}

fn logs() -> Logs {
    Logs {
        mode: LogsMode::Keep,
        limit_bytes: 1 << 20,
        overflow: Overflow::Drop,
    }
}

fn command() -> Work {
    let argv = vec!["true".to_owned()];
    let task = Task::Command(Command {
        argv,
        env: Vec::new(),
        cwd: None,
        stdin: None,
    });
    let on_partition = OnPartition::Keep;
    Work {
        timeout_ms: None,
        grace_ms: None,
        stall_ms: None,
        on_partition,
        logs: logs(),
        task,
    }
}

fn noop() -> Work {
    let task = Task::Handler(Handler {
        name: "noop".to_owned(),
        payload: Bytes::new(),
    });
    Work { task, ..command() }
}

fn fences(list: &[Fence]) -> String {
    list.iter().map(|f| format!(" {}", f.job)).collect()
}

fn say(effect: &Effect) -> String {
    match effect {
        Effect::Send(Frame::Started(s)) => format!("started{}", fences(&s.fences)),
        Effect::Send(Frame::Returned(r)) => {
            format!(
                "returned{}{}",
                fences(&r.fences),
                if r.draining { ", draining" } else { "" }
            )
        }
        Effect::Send(Frame::Reports(r)) => {
            let one = |r: &Report| {
                let flags = match (r.cancelled, r.started) {
                    (false, true) => "",
                    (false, false) => " unstarted",
                    (true, true) => " cancelled",
                    (true, false) => " cancelled unstarted",
                };
                format!(", {} {:?}{flags}", r.fence.job, r.outcome)
            };
            format!(
                "reports from {}{}",
                r.first,
                r.reports.iter().map(one).collect::<String>()
            )
        }
        Effect::Send(frame) => format!("send {frame:?}"),
        Effect::Start { fence, .. } => format!("start {}", fence.job),
        Effect::End { fence, force } => {
            format!("{} {}", if *force { "kill" } else { "term" }, fence.job)
        }
        Effect::Forget(fence) => format!("forget {}", fence.job),
        Effect::ForgetSince(epoch) => format!("forget since {epoch}"),
        Effect::Answer(probe) => format!("answer {}", probe.ask),
        Effect::Reconnect(why) => format!("reconnect: {why}"),
        Effect::Exit(exit) => format!("exit {exit:?}"),
    }
}

#[test]
fn a_command_starts_only_after_its_start_was_told_and_written() {
    let mut t = Trial::up(2);
    t.assign(&[(1, command()), (2, command()), (3, command())]);
    t.expect(&["started 1 2"]);
    t.written();
    t.expect(&["start 1", "start 2"]);
    t.ended(2, Outcome::Exited { code: 3 }, false);
    t.expect(&["reports from 1, 2 Exited { code: 3 }", "started 3"]);
    t.written();
    t.expect(&["start 3"]);
}

#[test]
fn an_inline_handler_starts_at_once_and_only_its_end_is_told() {
    let mut t = Trial::up(1);
    t.seq += 1;
    let jobs = [1, 2]
        .map(|job| Assignment {
            fence: fence(job),
            body: noop().encode(),
        })
        .to_vec();
    t.event(Event::Received(Frame::Assign(Assign { seq: 1, jobs })));
    t.expect(&["start 1"]);
    for job in [1, 2] {
        let ending = Ending::Done {
            outcome: Outcome::Succeeded,
            detail: None,
            told: false,
        };
        t.event(Event::Ended {
            fence: fence(job),
            ending,
        });
    }
    t.flush();
    t.expect(&["start 2", "reports from 1, 1 Succeeded, 2 Succeeded"]);
}

#[test]
fn a_report_is_sent_again_after_a_reconnect_until_it_is_acknowledged() {
    let mut t = Trial::up(2);
    t.assign(&[(1, command()), (2, command())]);
    t.written();
    t.ended(1, Outcome::Succeeded, false);
    t.ended(2, Outcome::Succeeded, false);
    t.expect(&[
        "started 1 2",
        "start 1",
        "start 2",
        "reports from 1, 1 Succeeded",
        "reports from 2, 2 Succeeded",
    ]);
    t.frame(Frame::Ack(Ack { through: 1 }));
    t.disconnect();
    assert_eq!(
        t.session.resume().held,
        [Held {
            fence: fence(2),
            started: true
        }]
    );
    assert_eq!(t.session.resume().last_report, 2);
    assert_eq!(t.session.resume().epochs, [(Epoch::new(7), [7; 16])]);
    t.connect();
    t.expect(&[]);
    t.resumed(1, &[]);
    t.expect(&["reports from 2, 2 Succeeded"]);
    t.frame(Frame::Ack(Ack { through: 2 }));
    assert_eq!(
        t.session.resume(),
        Resume {
            last_report: 2,
            ..Resume::default()
        }
    );
}

#[test]
fn nothing_starts_and_nothing_is_reported_before_resumed() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command())]);
    t.written();
    t.expect(&["started 1", "start 1"]);
    t.disconnect();
    t.ended(1, Outcome::Succeeded, false);
    t.connect();
    t.written();
    t.expect(&[]);
    t.resumed(0, &[]);
    t.expect(&["reports from 1, 1 Succeeded", "started 2"]);
}

#[test]
fn a_start_whose_telling_was_cut_is_told_by_the_next_login() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.expect(&["started 1"]);
    t.disconnect();
    assert_eq!(
        t.session.resume().held,
        [Held {
            fence: fence(1),
            started: true
        }]
    );
    t.connect();
    t.written();
    t.expect(&[]);
    t.resumed(0, &[]);
    t.expect(&["start 1"]);
}

#[test]
fn void_work_is_ended_and_never_reported() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command()), (3, command())]);
    t.written();
    t.expect(&["started 1", "start 1"]);
    t.disconnect();
    t.connect();
    t.resumed(0, &[1, 2]);
    t.expect(&["term 1", "forget 1", "forget 2"]);
    assert_eq!(t.session.held(), 1);
    t.pass(10_000, false);
    t.expect(&["kill 1"]);
    // The slot is free only when it has really ended (semantics 27).
    t.ended(1, Outcome::Signalled { signal: 9 }, true);
    t.expect(&["started 3"]);
}

#[test]
fn a_duplicate_assignment_changes_nothing() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.written();
    t.expect(&["started 1", "start 1"]);
    t.assign(&[(1, command())]);
    t.expect(&[]);
    t.ended(1, Outcome::Succeeded, false);
    t.expect(&["reports from 1, 1 Succeeded"]);
    t.assign(&[(1, command())]);
    t.expect(&[]);
}

#[test]
fn an_assignment_of_no_start_is_none() {
    let mut t = Trial::up(1);
    let nobody = Fence {
        epoch: NO_EPOCH,
        ..fence(1)
    };
    t.frame(Frame::Assign(Assign {
        seq: 1,
        jobs: vec![Assignment {
            fence: nobody,
            body: command().encode(),
        }],
    }));
    let leaves = |effect: &Effect| matches!(effect, Effect::Reconnect(_));
    assert!(t.effects.iter().any(leaves), "{:?}", t.effects);
    assert_eq!(t.session.held(), 0);
    t.effects.clear();
}

/// Two backups, one after the other, each of which gives out the same name once more.
#[test]
fn reports_of_two_histories_for_one_name_are_kept_apart() {
    let mut t = Trial::up(1);
    for nonce in [8, 9] {
        t.assign(&[(1, command())]);
        t.written();
        t.ended(1, Outcome::Succeeded, false);
        t.disconnect();
        t.connect_to([nonce; 16]);
        t.resumed(0, &[1]);
    }
    t.effects.clear();
    t.frame(Frame::Ack(Ack { through: 1 }));
    assert_eq!(t.session.resume().held.len(), 1, "the other is still owed");
    t.frame(Frame::Ack(Ack { through: 2 }));
    t.expect(&[]);
}

/// The server's database is a restored backup: it gives out the names of attempts a second time.
#[test]
fn an_attempt_of_another_history_does_not_stand_for_one_of_the_same_name() {
    let mut t = Trial::up(3);
    t.assign(&[(1, command()), (2, command())]);
    t.written();
    t.ended(1, Outcome::Succeeded, false);
    t.expect(&[
        "started 1 2",
        "start 1",
        "start 2",
        "reports from 1, 1 Succeeded",
    ]);
    t.disconnect();
    t.connect_to([9; 16]);
    t.disconnect();
    let old = [(Epoch::new(7), [7; 16])];
    assert_eq!(t.session.resume().epochs, old, "it is not void yet");
    t.connect_to([9; 16]);
    t.resumed(0, &[1, 2]);
    let reported = t.effects.iter().find_map(|effect| {
        let Effect::Send(Frame::Reports(batch)) = effect else {
            return None;
        };
        Some(batch.reports[0].fence)
    });
    assert_eq!(reported.unwrap().epoch, NO_EPOCH, "it can end nobody");
    t.expect(&[
        "forget since 7",
        "forget 1",
        "term 2",
        "forget 2",
        "reports from 1, 1 Succeeded",
    ]);
    // One name is free, the other in use by a process that is not yet reaped.
    t.assign(&[(1, command()), (2, command())]);
    t.expect(&["started 1", "returned 2"]);
    let new = [(Epoch::new(7), [9; 16])];
    assert_eq!(t.session.resume().epochs, new, "only that is held");
    t.frame(Frame::Ack(Ack { through: 1 }));
    t.ended(2, Outcome::Signalled { signal: 15 }, true);
    t.assign(&[(2, command())]);
    t.expect(&["started 2"]);
}

#[test]
fn a_recall_returns_what_has_not_started_and_is_silent_about_the_rest() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command()), (3, command())]);
    t.expect(&["started 1"]);
    t.frame(Frame::Recall(Recall {
        fences: vec![fence(1), fence(3), fence(9)],
    }));
    t.expect(&["returned 3"]);
    t.written();
    t.expect(&["start 1"]);
    assert_eq!(t.session.held(), 2);
}

#[test]
fn a_cancel_withdraws_what_has_not_started() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command())]);
    t.expect(&["started 1"]);
    t.frame(Frame::Cancel(Cancel {
        fence: fence(2),
        force: false,
    }));
    t.frame(Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    t.expect(&[
        "reports from 1, 2 Returned cancelled unstarted",
        "reports from 2, 1 Returned cancelled unstarted",
    ]);
    t.written();
    t.expect(&[]);
}

#[test]
fn a_cancelled_command_gets_term_then_kill_and_reports_its_real_end() {
    let mut t = Trial::up(1);
    let patient = Work {
        grace_ms: Some(500),
        ..command()
    };
    t.assign(&[(1, patient)]);
    t.written();
    t.frame(Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    t.expect(&["started 1", "start 1", "term 1"]);
    t.pass(499, false);
    t.expect(&[]);
    t.pass(1, false);
    t.expect(&["kill 1"]);
    t.frame(Frame::Cancel(Cancel {
        fence: fence(1),
        force: true,
    }));
    t.ended(1, Outcome::Signalled { signal: 9 }, true);
    t.expect(&["reports from 1, 1 Signalled { signal: 9 } cancelled"]);
}

#[test]
fn a_command_that_ended_before_the_signal_was_sent_stays_finished() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.written();
    t.frame(Frame::Cancel(Cancel {
        fence: fence(1),
        force: false,
    }));
    t.expect(&["started 1", "start 1", "term 1"]);
    t.ended(1, Outcome::Succeeded, false);
    t.expect(&["reports from 1, 1 Succeeded"]);
}

#[test]
fn a_forced_cancel_kills_at_once() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.written();
    t.frame(Frame::Cancel(Cancel {
        fence: fence(1),
        force: true,
    }));
    t.expect(&["started 1", "start 1", "kill 1"]);
}

#[test]
fn a_time_limit_counts_from_the_start_and_is_reported_as_such() {
    let mut t = Trial::up(1);
    let short = Work {
        timeout_ms: Some(1_000),
        grace_ms: Some(100),
        ..command()
    };
    t.assign(&[(1, short)]);
    t.pass(5_000, false);
    t.expect(&["started 1"]);
    t.written();
    t.pass(999, false);
    t.expect(&["start 1"]);
    t.pass(1, false);
    t.expect(&["term 1"]);
    t.pass(100, false);
    t.expect(&["kill 1"]);
    t.ended(1, Outcome::Signalled { signal: 9 }, true);
    t.expect(&["reports from 1, 1 TimedOut"]);
}

#[test]
fn silence_for_as_long_as_the_job_says_ends_it_and_any_sign_of_life_counts_anew() {
    let mut t = Trial::up(1);
    let quiet = Work {
        stall_ms: Some(1_000),
        grace_ms: Some(100),
        ..command()
    };
    t.assign(&[(1, quiet)]);
    t.written();
    t.expect(&["started 1", "start 1"]);
    t.pass(600, false);
    let sign = t.now;
    t.event(Event::Active {
        fence: fence(1),
        at: sign,
    });
    t.pass(999, false);
    t.expect(&[]);
    assert_eq!(t.session.suspects(t.now), []);
    t.now = sign + Span::from_ms(1_000);
    assert_eq!(t.session.suspects(t.now), [fence(1)]);
    t.pass(0, false);
    t.expect(&["term 1"]);
    assert_eq!(t.session.suspects(t.now), [], "it is told once");
    t.pass(100, false);
    t.expect(&["kill 1"]);
    t.ended(1, Outcome::Signalled { signal: 9 }, true);
    let Some(Effect::Send(Frame::Reports(told))) = t.effects.first() else {
        panic!("{:?}", t.effects);
    };
    let detail = told.reports[0].detail.as_deref().unwrap();
    assert_eq!(
        detail.message,
        "no output, progress or heartbeat for 1s (stall_ms)"
    );
    t.expect(&["reports from 1, 1 Stalled"]);
}

#[test]
fn of_two_limits_the_first_to_be_reached_is_told() {
    let mut t = Trial::up(2);
    let limited = |timeout_ms, stall_ms| Work {
        timeout_ms: Some(timeout_ms),
        stall_ms: Some(stall_ms),
        ..command()
    };
    t.assign(&[(1, limited(1_000, 900)), (2, limited(1_000, 1_500))]);
    t.written();
    t.expect(&["started 1 2", "start 1", "start 2"]);
    t.pass(900, false);
    t.expect(&["term 1"]);
    t.pass(100, false);
    t.expect(&["term 2"]);
    t.ended(1, Outcome::Signalled { signal: 15 }, true);
    t.ended(2, Outcome::Signalled { signal: 15 }, true);
    t.expect(&["reports from 1, 1 Stalled", "reports from 2, 2 TimedOut"]);
}

#[test]
fn a_stop_ends_the_attempt_without_a_report() {
    let mut t = Trial::up(2);
    t.assign(&[(1, command()), (2, command()), (3, command())]);
    t.written();
    t.frame(Frame::Stop(Stop {
        fences: vec![fence(1), fence(3)],
    }));
    t.expect(&[
        "started 1 2",
        "start 1",
        "start 2",
        "term 1",
        "forget 1",
        "forget 3",
    ]);
    t.ended(1, Outcome::Signalled { signal: 15 }, true);
    t.ended(2, Outcome::Succeeded, false);
    t.expect(&["reports from 1, 2 Succeeded"]);
}

#[test]
fn want_of_processes_is_nobodys_fault_and_pauses_starts_for_a_second() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command())]);
    t.written();
    t.no_room(1);
    t.expect(&[
        "started 1",
        "start 1",
        "reports from 1, 1 Returned unstarted",
    ]);
    t.pass(999, false);
    t.expect(&[]);
    t.pass(1, false);
    t.expect(&["started 2"]);
}

#[test]
fn a_drain_returns_the_unstarted_and_waits_for_the_rest() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command())]);
    t.written();
    t.event(Event::Drain);
    t.flush();
    t.expect(&["started 1", "start 1", "returned 2, draining"]);
    t.assign(&[(3, command())]);
    t.expect(&["returned 3, draining"]);
    t.ended(1, Outcome::Succeeded, false);
    t.expect(&["reports from 1, 1 Succeeded"]);
    t.frame(Frame::Ack(Ack { through: 1 }));
    t.expect(&["exit Drained"]);
}

#[test]
fn a_drain_that_lasts_too_long_ends_what_runs_and_returns_it_uncharged() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.written();
    t.event(Event::Drain);
    t.flush();
    t.pass(30_000, false);
    t.expect(&["started 1", "start 1", "returned, draining", "term 1"]);
    t.pass(10_000, false);
    t.expect(&["kill 1"]);
    t.ended(1, Outcome::Signalled { signal: 9 }, true);
    t.expect(&["reports from 1, 1 Returned"]);
    t.pass(2_000, false);
    t.expect(&["exit Unacknowledged(1)"]);
}

#[test]
fn a_second_request_to_stop_means_now() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.written();
    t.event(Event::Drain);
    t.event(Event::Drain);
    t.flush();
    t.expect(&["started 1", "start 1", "kill 1", "returned, draining"]);
    // A handler cannot be killed: it is given up.
    t.pass(2_000, false);
    t.expect(&["reports from 1, 1 Returned"]);
    t.frame(Frame::Ack(Ack { through: 1 }));
    t.expect(&["exit Drained"]);
}

#[test]
fn an_idle_worker_leaves_when_asked_to() {
    let mut t = Trial::with(1, |config| config.idle_exit = Some(Span::from_ms(5_000)));
    t.connect();
    t.resumed(0, &[]);
    t.pass(4_000, false);
    t.assign(&[(1, command())]);
    t.written();
    t.pass(60_000, false);
    t.ended(1, Outcome::Succeeded, false);
    t.frame(Frame::Ack(Ack { through: 1 }));
    t.expect(&["started 1", "start 1", "reports from 1, 1 Succeeded"]);
    t.pass(4_999, false);
    t.expect(&[]);
    t.pass(1, false);
    t.expect(&["returned, draining", "exit Idle"]);
}

#[test]
fn a_beat_echoes_the_last_assign_and_what_is_held() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command()), (2, command())]);
    t.expect(&["started 1"]);
    t.now = t.now + Span::from_ms(2_000);
    t.event(Event::Heard);
    t.event(Event::Tick);
    t.expect(&["send Beat(Beat { assign_seq: 1, held: 2 })"]);
}

#[test]
fn a_server_silent_for_three_beats_is_left() {
    let mut t = Trial::up(1);
    t.pass(5_999, true);
    t.expect(&[]);
    t.pass(1, true);
    t.expect(&["reconnect: the server is silent"]);
}

#[test]
fn work_that_must_not_run_unseen_is_ended_when_the_lease_is_over() {
    let mut t = Trial::up(2);
    let unseen = Work {
        on_partition: OnPartition::Stop,
        ..command()
    };
    t.assign(&[(1, unseen), (2, command())]);
    t.written();
    t.disconnect();
    t.expect(&["started 1 2", "start 1", "start 2"]);
    t.pass(29_999, true);
    t.expect(&[]);
    t.pass(1, true);
    t.expect(&["term 1"]);
    t.pass(10_000, true);
    t.expect(&["kill 1"]);
    t.ended(1, Outcome::Signalled { signal: 9 }, true);
    t.connect();
    t.resumed(0, &[]);
    t.expect(&["reports from 1, 1 Returned"]);
}

#[test]
fn a_login_that_is_not_taken_up_renews_no_lease() {
    let mut t = Trial::up(1);
    let unseen = Work {
        on_partition: OnPartition::Stop,
        ..command()
    };
    t.assign(&[(1, unseen)]);
    t.written();
    t.disconnect();
    t.expect(&["started 1", "start 1"]);
    // Its name is in use by now: welcomed, and then refused, again and again.
    for _ in 0..9 {
        t.pass(3_000, true);
        t.connect();
        t.event(Event::Heard);
        t.disconnect();
    }
    t.pass(2_999, true);
    t.expect(&[]);
    t.pass(1, true);
    t.expect(&["term 1"]);
}

#[test]
fn a_server_that_breaks_the_rules_is_left() {
    for (frame, why) in [
        (
            Frame::Ack(Ack { through: 1 }),
            "the server acknowledged a report that was never made",
        ),
        (
            Frame::Assign(Assign {
                seq: 2,
                jobs: vec![],
            }),
            "an assign frame is missing",
        ),
        (
            Frame::Started(Started { fences: vec![] }),
            "the server sent a frame that is not its to send",
        ),
        (
            Frame::Resumed(Resumed {
                acked: 0,
                void: vec![],
            }),
            "the server resumed a session that was not waiting for it",
        ),
    ] {
        let mut t = Trial::up(1);
        t.frame(frame);
        t.expect(&[&format!("reconnect: {why}")]);
    }
}

#[test]
fn a_body_nobody_can_read_fails_without_disturbing_the_rest() {
    let mut t = Trial::up(1);
    let body = Bytes::from_static(b"\xff\xff\xff");
    let bad = Assignment {
        fence: fence(1),
        body,
    };
    let good = Assignment {
        fence: fence(2),
        body: command().encode(),
    };
    t.frame(Frame::Assign(Assign {
        seq: 1,
        jobs: vec![bad, good],
    }));
    t.expect(&[
        "reports from 1, 1 SpawnFailed { errno: 22 } unstarted",
        "started 2",
    ]);
}

#[test]
fn more_than_can_be_resumed_is_given_back() {
    let mut t = Trial::up(1);
    let body = command().encode();
    let jobs: Vec<_> = (1..=HELD_MAX as u64 + 1)
        .map(|job| Assignment {
            fence: fence(job),
            body: body.clone(),
        })
        .collect();
    t.frame(Frame::Assign(Assign { seq: 1, jobs }));
    t.expect(&["started 1", "returned 65537"]);
}

#[test]
fn a_message_that_is_too_long_is_cut_visibly() {
    let mut t = Trial::up(1);
    t.assign(&[(1, command())]);
    t.written();
    let message = "ü".repeat(MESSAGE_BYTES_MAX);
    let detail = Some(Box::new(Detail {
        message,
        ..Detail::default()
    }));
    let outcome = Outcome::HandlerFailed {
        fatal: false,
        retry_after_ms: None,
    };
    let ending = Ending::Done {
        outcome,
        detail,
        told: false,
    };
    t.event(Event::Ended {
        fence: fence(1),
        ending,
    });
    let message = &t.session.reports[0].detail.as_ref().unwrap().message;
    assert!(message.len() <= MESSAGE_BYTES_MAX && message.len() > MESSAGE_BYTES_MAX - 4);
    assert!(message.ends_with("ü…"));
    t.effects.clear();
}

/// What may happen next, as small numbers; what makes no sense at the moment is skipped.
#[derive(Clone, Debug)]
enum Step {
    Link(bool),
    Resumed { void: u64 },
    Assign { job: u64, kind: u8 },
    Recall(u64),
    Cancel(u64, bool),
    Stop(u64),
    Ack(u64),
    Written,
    End { job: u64, told: bool, room: bool },
    Pass { ms: u64, silent: bool },
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let job = 1..24u64;
    prop_oneof![
            2 => any::<bool>().prop_map(Step::Link),
            3 => job.clone().prop_map(|void| Step::Resumed { void }),
            8 => (job.clone(), 0..4u8).prop_map(|(job, kind)| Step::Assign { job, kind }),
            2 => job.clone().prop_map(Step::Recall),
            3 => (job.clone(), any::<bool>()).prop_map(|(job, force)| Step::Cancel(job, force)),
            1 => job.clone().prop_map(Step::Stop),
            2 => (0..4u64).prop_map(Step::Ack),
            6 => Just(Step::Written),
            8 => (job, any::<bool>(), 0..10u8)
                .prop_map(|(job, told, room)| Step::End { job, told, room: room > 0 }),
            3 => (0..9_000u64, any::<bool>()).prop_map(|(ms, silent)| Step::Pass { ms, silent }),
    1 => (0..20u8).prop_map(|n| if n == 0 { Step::Drain } else { Step::Written }),
        ]
}

/// What a server would have noticed.
#[derive(Default)]
struct Witness {
    started: HashSet<Fence>,
    running: HashSet<Fence>,
    told: HashSet<Fence>,
    reported: BTreeMap<u64, Fence>,
    void: HashSet<Fence>,
}

impl Witness {
    fn see(&mut self, effects: &mut Effects, session: &Session) {
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(Frame::Started(s)) => self.told.extend(s.fences),
                Effect::Send(Frame::Reports(r)) => {
                    for (n, report) in (r.first..).zip(r.reports) {
                        let before = self.reported.insert(n, report.fence);
                        assert!(
                            before.is_none_or(|f| f == report.fence),
                            "a number means one report"
                        );
                        assert!(
                            !self.void.contains(&report.fence),
                            "void work is not reported"
                        );
                    }
                }
                Effect::Start { fence, work } => {
                    let inline = matches!(work.task, Task::Handler(_));
                    assert!(
                        inline || self.told.contains(&fence),
                        "told before it starts"
                    );
                    assert!(self.started.insert(fence), "an attempt starts once");
                    self.running.insert(fence);
                }
                Effect::End { fence, .. } => {
                    assert!(self.running.contains(&fence), "only what runs")
                }
                // What has ended, or was given up, keeps its report.
                Effect::Forget(fence) => {
                    if session.started(fence) == Some(true) {
                        self.void.insert(fence);
                    }
                }
                Effect::Send(_)
                | Effect::Answer(_)
                | Effect::ForgetSince(_)
                | Effect::Reconnect(_)
                | Effect::Exit(_) => {}
            }
        }
    }
}

proptest! {
    #[test]
    fn no_order_of_events_breaks_an_invariant(steps in prop::collection::vec(step(), 1..200)) {
        let mut t = Trial::with(3, |config| config.idle_exit = Some(Span::from_ms(60_000)));
        let mut witness = Witness::default();
        // Fences are never used twice: each assignment of a job is another attempt.
        let mut newest: HashMap<u64, u16> = HashMap::new();
        let at = |newest: &HashMap<u64, u16>, job: u64| Fence {
            attempt: Attempt::new(newest.get(&job).copied().unwrap_or(0).max(1)).unwrap(),
            ..fence(job)
        };
        for step in steps {
            let frame = match step {
                Step::Link(true) if t.session.link == Link::Down => {
                    witness.told.extend(t.session.resume().held.iter().filter(|h| h.started).map(|h| h.fence));
                    t.connect();
                    None
                }
                Step::Link(_) => {
                    t.disconnect();
                    None
                }
                Step::Resumed { void } => (t.session.link == Link::Resuming).then(|| {
                    Frame::Resumed(Resumed { acked: t.session.acked, void: vec![at(&newest, void)] })
                }),
                Step::Assign { job, kind } if t.session.link == Link::Up => {
                    *newest.entry(job).or_default() += 1;
                    let work = match kind {
                        0 => noop(),
                        1 => Work { timeout_ms: Some(3_000), ..command() },
                        2 => Work { on_partition: OnPartition::Stop, stall_ms: Some(2_000), ..command() },
                        _ => command(),
                    };
                    t.seq += 1;
                    let jobs = vec![Assignment { fence: at(&newest, job), body: work.encode() }];
                    Some(Frame::Assign(Assign { seq: t.seq, jobs }))
                }
                Step::Assign { .. } => None,
                Step::Recall(job) => Some(Frame::Recall(Recall { fences: vec![at(&newest, job)] })),
                Step::Cancel(job, force) => Some(Frame::Cancel(Cancel { fence: at(&newest, job), force })),
                Step::Stop(job) => Some(Frame::Stop(Stop { fences: vec![at(&newest, job)] })),
                Step::Ack(n) => {
                    let through = (t.session.acked + n).min(t.session.sent);
                    Some(Frame::Ack(Ack { through }))
                }
                Step::Written => {
                    t.written();
                    None
                }
                Step::End { job, told, room } => {
                    let fence = at(&newest, job);
                    if witness.running.remove(&fence) {
                        let ending = if room {
                            Ending::Done { outcome: Outcome::Succeeded, detail: None, told }
                        } else {
                            Ending::NoRoom { message: String::new() }
                        };
                        t.event(Event::Ended { fence, ending });
                        t.flush();
                    }
                    None
                }
                Step::Pass { ms, silent } => {
                    t.pass(ms, silent);
                    None
                }
                Step::Drain => {
                    t.event(Event::Drain);
                    t.flush();
                    None
                }
            };
            if let Some(frame) = frame
                && t.session.link != Link::Down
            {
                t.frame(frame);
            }
            witness.see(&mut t.effects, &t.session);
        }
    }
}
