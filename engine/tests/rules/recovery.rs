//! A restarted server goes on where the store says it was (semantics 19).

use hostler_engine::event::{Restore, RestoredAttempt, RestoredJob};
use hostler_engine::{Event, Time};
use hostler_wire::{Attempt, Epoch, Fence, JobState, Reason, WorkerId};

use crate::trial::{EXIT_1, GRACE_MS, NewWorker, OK, Trial, config, slots, spec};

const OLD: Epoch = Epoch::new(0);

fn fence(past: &RestoredJob) -> Fence {
    Fence {
        job: past.id,
        epoch: OLD,
        attempt: past.attempt,
    }
}

/// A server that starts with one job out on worker "w1" of the last epoch, in its second attempt.
fn restarted() -> (Trial, Fence) {
    restarted_with(|_| {})
}

fn restarted_with(change: impl FnOnce(&mut RestoredJob)) -> (Trial, Fence) {
    let mut t = Trial::restoring(config());
    let id = WorkerId::new(5);
    t.restore(Restore::Worker {
        id,
        name: "w1".into(),
        instance: 1,
    });
    t.restore(Restore::Workers {
        next: WorkerId::new(6),
    });
    let mut past = t.past("a", spec());
    past.attempt = Attempt::new(2).unwrap();
    past.ever_started = true;
    let fence = fence(&past);
    past.running = Some(RestoredAttempt {
        fence,
        worker: id,
        started: Some(Time::ZERO),
    });
    change(&mut past);
    t.restore(Restore::Job(Box::new(past)));
    (t, fence)
}

fn back(fence: Fence) -> NewWorker {
    NewWorker {
        held: vec![(fence, true)],
        ..slots(1)
    }
}

#[test]
fn nothing_is_given_out_before_ready() {
    let mut t = Trial::restoring(config());
    let run = t.run("a b", |job| job.resident = true);
    t.worker("w1", slots(1))
        .restore(Restore::Run(run))
        .expect_nothing();
    t.event(Event::Ready).expect("assign a.1 to w1");
}

#[test]
fn running_work_is_adopted_under_its_old_fence() {
    let (mut t, fence) = restarted();
    t.worker("w1", back(fence))
        .event(Event::Ready)
        .after_ms(2 * GRACE_MS);
    assert_eq!(t.fence("a"), fence);
    t.reports_fence("w1", fence, |_| {})
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    t.expect_fact("ended a.2 succeeded");
}

#[test]
fn a_report_kept_over_the_restart_counts() {
    let (mut t, fence) = restarted();
    t.worker("w1", back(fence))
        .reports_as("w1", 77, fence, |_| {});
    t.expect("finished a succeeded")
        .expect("ack 77 to w1")
        .event(Event::Ready);
}

/// Its end was committed, and the server died before it could say so: the worker says it again to the next one.
#[test]
fn a_report_committed_before_the_restart_is_acknowledged_and_changes_nothing() {
    let (mut t, fence) = restarted();
    let ended = Fence {
        attempt: Attempt::FIRST,
        ..fence
    };
    t.worker("w1", back(fence))
        .reports_as("w1", 77, ended, |_| {})
        .expect("ack 77 to w1")
        .expect_state("a", JobState::Running)
        .event(Event::Ready)
        .expect_state("a", JobState::Running);
    assert!(t.facts.is_empty(), "{:?}", t.facts);
    // And whatever it says of a job that has ended altogether.
    t.reports_as("w1", 78, fence, |_| {})
        .expect("finished a succeeded")
        .expect("ack 78 to w1");
    t.reports_as("w1", 79, fence, |_| {}).expect("ack 79 to w1");
}

#[test]
fn the_grace_of_absent_workers_counts_from_ready() {
    let (mut t, _) = restarted();
    t.after_ms(10 * GRACE_MS)
        .expect_state("a", JobState::Running);
    t.event(Event::Ready)
        .after_ms(GRACE_MS - 1)
        .expect_state("a", JobState::Running);
    t.after_ms(1).expect_state("a", JobState::Queued);
    t.expect_fact("again a.2 worker_lost, a loss, at once");
}

#[test]
fn what_a_worker_lists_of_ended_jobs_is_void() {
    let (mut t, fence) = restarted();
    let mut w = back(fence);
    let superseded = Fence {
        attempt: Attempt::FIRST,
        ..fence
    };
    w.held.push((superseded, true));
    t.joins("w1", w)
        .expect("resume w1 acked 0 void a.1")
        .event(Event::Ready);
}

#[test]
fn attempt_numbers_go_on_and_bodies_are_fetched() {
    let (mut t, _) = restarted();
    t.event(Event::Ready)
        .worker("w1", slots(1))
        .expect("fetch a");
    let jobs = vec![t.id("a")];
    t.event(Event::Fetched { jobs }).expect("assign a.3 to w1");
    assert_eq!(t.fence("a").epoch, Epoch::new(1));
}

#[test]
fn a_new_worker_gets_a_number_that_was_never_used() {
    let (mut t, _) = restarted();
    t.event(Event::Ready).worker("w2", slots(1));
    let ids: Vec<_> = t.engine.workers().map(|worker| worker.id.raw()).collect();
    assert_eq!(ids, [5, 6]);
}

#[test]
fn a_back_off_goes_on_where_it_was() {
    let mut t = Trial::restoring(config());
    let due = t.in_ms(3_000).unwrap();
    let mut past = t.past("a", spec());
    past.failures = 1;
    past.ever_started = true;
    past.due = Some((due, Reason::BackOff));
    t.restore(Restore::Job(Box::new(past)))
        .event(Event::Ready)
        .worker("w1", slots(1));
    assert_eq!(
        (t.view("a").due, t.view("a").reason),
        (Some(due), Reason::BackOff)
    );
    t.after_ms(2_999)
        .expect_nothing()
        .after_ms(1)
        .expect("fetch a");
}

#[test]
fn counters_go_on_where_they_were() {
    let mut t = Trial::restoring(config());
    let mut spec = spec();
    spec.retry.max_attempts = 3;
    let mut past = t.past("a", spec);
    past.failures = 2;
    past.losses = 3;
    t.restore(Restore::Job(Box::new(past)))
        .event(Event::Ready)
        .worker("w1", slots(1));
    t.expect("fetch a");
    let jobs = vec![t.id("a")];
    t.event(Event::Fetched { jobs }).expect("assign a.2 to w1");
    assert_eq!((t.view("a").failures, t.view("a").losses), (2, 3));
    t.ends("a", EXIT_1)
        .expect("finished a failed exit_code")
        .expect("ack 1 to w1");
}

#[test]
fn a_cancel_goes_on_when_the_worker_is_back() {
    let (mut t, fence) = restarted_with(|past| past.cancelling = Some(Reason::CancelledByUser));
    t.event(Event::Ready)
        .expect_state("a", JobState::Cancelling);
    t.worker("w1", back(fence)).expect("cancel a.2 on w1");
    t.reports_fence("w1", fence, |report| report.cancelled = true);
    t.expect("finished a cancelled cancelled_by_user")
        .expect("ack 1 to w1");
}

#[test]
fn expiry_and_deadline_are_kept() {
    let mut t = Trial::restoring(config());
    let (expires, deadline) = (t.in_ms(1_000), t.in_ms(2_000));
    let mut started = t.past("a", spec());
    (started.ever_started, started.expires, started.deadline) = (true, expires, deadline);
    let mut fresh = t.past("b", spec());
    (fresh.expires, fresh.deadline) = (expires, deadline);
    t.restore(Restore::Job(Box::new(started)))
        .restore(Restore::Job(Box::new(fresh)));
    t.event(Event::Ready)
        .after_ms(1_000)
        .expect("finished b expired not_started_in_time");
    t.after_ms(1_000).expect("finished a failed deadline");
}

#[test]
fn an_attempt_of_a_worker_nobody_remembers_is_lost_after_the_grace() {
    let (mut t, _) = restarted_with(|past| {
        if let Some(running) = &mut past.running {
            running.worker = WorkerId::new(4);
        }
    });
    t.event(Event::Ready)
        .after_ms(GRACE_MS)
        .expect_state("a", JobState::Queued);
    let reason = t.view("a").reason;
    assert_eq!((reason, t.view("a").losses), (Reason::None, 1));
}

#[test]
fn a_new_instance_of_a_restored_worker_takes_over_at_once() {
    let (mut t, _) = restarted();
    t.event(Event::Ready).worker(
        "w1",
        NewWorker {
            instance: 2,
            ..slots(1)
        },
    );
    t.expect("fetch a")
        .expect_fact("again a.2 worker_lost, a loss, at once");
}

#[test]
fn jobs_are_listed_in_id_order_both_ways() {
    let mut t = Trial::new();
    t.submit("a b c")
        .worker("w1", slots(1))
        .expect("assign a.1 to w1");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1")
        .expect("assign b.1 to w1");
    let ids = |descending, from: &str| -> Vec<u64> {
        t.engine
            .jobs_from(t.id(from), descending)
            .map(|job| job.id.raw())
            .collect()
    };
    assert_eq!(
        (ids(false, "a"), ids(true, "c"), ids(true, "b")),
        (vec![2, 3], vec![3, 2], vec![2])
    );
}
