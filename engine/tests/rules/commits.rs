//! Nothing leaves before what it claims is durable, and no stale word changes anything (P1 to P4, semantics 1).

use hostler_engine::Event;
use hostler_engine::event::Report;
use hostler_engine::spec::Retry;
use hostler_wire::{JobState, Reason};

use crate::trial::{EXIT_1, GRACE_MS, NewJob, OK, Trial, slots};

fn retried(job: &mut NewJob) {
    job.spec.retry = Retry {
        max_attempts: 3,
        backoff: hostler_engine::Span::ZERO,
        ..Retry::default()
    };
}

fn slow() -> Trial {
    let mut t = Trial::new();
    t.slow_disk = true;
    t
}

#[test]
fn an_assignment_leaves_after_its_commit_only() {
    let mut t = slow();
    t.worker("w1", slots(1))
        .submit("a")
        .expect_nothing()
        .expect_state("a", JobState::Running);
    t.commit().expect("assign a.1 to w1");
}

#[test]
fn acks_and_ends_follow_their_commit_in_order() {
    let mut t = slow();
    t.worker("w1", slots(3))
        .submit("a b c")
        .commit()
        .expect("assign a.1 b.1 c.1 to w1");
    t.ends("b", OK)
        .ends("a", OK)
        .ends("c", EXIT_1)
        .expect_nothing();
    t.commit_some(1)
        .expect("finished b succeeded")
        .expect("ack 1 to w1");
    t.commit_some(2)
        .expect("finished a succeeded")
        .expect("finished c failed exit_code");
    t.expect("ack 3 to w1");
}

#[test]
fn a_freed_slot_is_used_before_the_end_is_committed() {
    let mut t = slow();
    t.worker("w1", slots(1))
        .submit("a b")
        .commit()
        .expect("assign a.1 to w1");
    t.ends("a", OK).expect_state("b", JobState::Running);
    t.commit()
        .expect("finished a succeeded")
        .expect("assign b.1 to w1")
        .expect("ack 1 to w1");
}

#[test]
fn a_job_is_remembered_until_its_end_is_committed() {
    let mut t = slow();
    t.worker("w1", slots(1))
        .submit("a")
        .commit()
        .expect("assign a.1 to w1");
    t.ends("a", OK).expect_state("a", JobState::Running);
    t.commit()
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    assert!(!t.is_live("a"));
    assert_eq!(t.engine.counts(), Default::default());
}

#[test]
fn a_repeated_report_waits_for_the_same_commit() {
    let mut t = slow();
    t.worker("w1", slots(1))
        .submit("a")
        .commit()
        .expect("assign a.1 to w1");
    let fence = t.fence("a");
    t.ends("a", OK)
        .reports_as("w1", 1, fence, |_| {})
        .expect_nothing();
    t.commit()
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    t.reports_as("w1", 1, fence, |_| {}).expect("ack 1 to w1");
    let ends = t
        .facts
        .iter()
        .filter(|fact| matches!(fact, hostler_engine::Fact::Ended(_)));
    assert_eq!(ends.count(), 1);
}

#[test]
fn a_report_with_an_old_fence_changes_nothing() {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit_with("a", retried)
        .expect("assign a.1 to w1");
    t.ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .expect("assign a.2 to w1");
    let old = t.fence_of("a", 1);
    t.reports_fence("w1", old, |_| {})
        .expect("ack 2 to w1")
        .expect_state("a", JobState::Running);
    assert_eq!(t.fence("a").attempt.raw(), 2);
}

#[test]
fn a_report_of_an_attempt_that_another_worker_holds_changes_nothing() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1")
        .worker("w2", slots(1));
    let fence = t.fence("a");
    t.reports_fence("w2", fence, |_| {})
        .expect("ack 1 to w2")
        .expect_state("a", JobState::Running);
}

#[test]
fn a_stale_report_is_acked_after_what_made_it_stale() {
    let mut t = slow();
    t.worker("w1", slots(2))
        .submit_with("a", retried)
        .commit()
        .expect("assign a.1 to w1");
    let first = t.fence("a");
    t.ends("a", EXIT_1);
    t.reports_fence("w1", first, |_| {}).expect_nothing();
    t.commit().expect("assign a.2 to w1").expect("ack 2 to w1");
}

#[test]
fn reports_in_a_batch_are_acked_together() {
    let mut t = Trial::new();
    t.worker("w1", slots(3))
        .submit("a b c")
        .expect("assign a.1 b.1 c.1 to w1");
    let reports = ["a", "b", "c"].map(|name| Report {
        fence: t.fence(name),
        outcome: OK,
        cancelled: false,
        started: true,
        ran: hostler_engine::Span::from_secs(1),
        detail: None,
    });
    let session = t.session("w1");
    t.event(Event::Reported {
        session,
        first: 1,
        reports: reports.into(),
    });
    t.expect("finished a succeeded")
        .expect("finished b succeeded")
        .expect("finished c succeeded");
    t.expect("ack 3 to w1");
}

#[test]
fn numbers_of_reports_may_begin_anywhere_after_a_restart() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    let fence = t.fence("a");
    t.reports_as("w1", 4_711, fence, |_| {});
    t.expect("finished a succeeded").expect("ack 4711 to w1");
}

#[test]
fn an_ack_goes_to_the_newest_session() {
    let mut t = slow();
    t.worker("w1", slots(1))
        .submit("a")
        .commit()
        .expect("assign a.1 to w1");
    let fence = t.fence("a");
    t.ends("a", OK).leaves("w1");
    let mut back = slots(1);
    back.held = vec![(fence, true)];
    t.joins("w1", back).expect("resume w1 acked 0");
    t.commit()
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn work_withdrawn_before_its_commit_does_not_leave() {
    let mut t = slow();
    t.worker("w1", slots(1))
        .submit("a")
        .leaves("w1")
        .expect_state("a", JobState::Queued);
    t.worker("w1", slots(1))
        .expect_state("a", JobState::Running);
    t.commit().expect("assign a.2 to w1");
    t.expect_fact("assigned a.1 to w1")
        .expect_fact("again a.1 returned, a return, at once");
}

#[test]
fn a_lost_workers_late_report_is_void() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1")
        .starts("a");
    let fence = t.fence("a");
    t.leaves("w1")
        .after_ms(GRACE_MS)
        .worker("w2", slots(1))
        .expect("assign a.2 to w2");
    let mut back = slots(1);
    back.held = vec![(fence, true)];
    t.joins("w1", back).expect("resume w1 acked 0 void a.1");
    t.reports_fence("w1", fence, |_| {})
        .expect("ack 1 to w1")
        .expect_state("a", JobState::Running);
    assert_eq!(t.view("a").reason, Reason::None);
}

#[test]
fn attempt_numbers_only_grow() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    for n in 2..50 {
        t.returns("a").expect(&format!("assign a.{n} to w1"));
    }
}
