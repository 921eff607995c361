//! Cancel: first decided, then durable, then answered (semantics 9).

use hostler_engine::Event;
use hostler_engine::spec::Retry;
use hostler_wire::{JobState, Outcome};

use crate::trial::{EXIT_1, GRACE_MS, OK, Trial, slots};

const TERM: Outcome = Outcome::Signalled { signal: 15 };

fn with_one_running() -> Trial {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1")
        .starts("a");
    t.slow_disk = true;
    t
}

#[test]
fn a_waiting_job_is_withdrawn_at_once_and_answered_after_the_commit() {
    let mut t = Trial::new();
    t.slow_disk = true;
    t.submit("a b").cancel_with("a", false, Some("not needed"));
    t.worker("w1", slots(1)).expect_nothing();
    t.commit()
        .expect("finished a cancelled cancelled_by_user")
        .expect("answer 1: cancelled");
    t.expect("assign b.1 to w1");
    t.expect_fact("ended a cancelled cancelled_by_user \"not needed\"");
}

#[test]
fn a_delayed_job_is_withdrawn_too() {
    let mut t = Trial::new();
    let due = t.in_ms(1_000);
    t.submit_with("a", |job| job.due = due).cancel("a");
    t.expect("finished a cancelled cancelled_by_user")
        .expect("answer 1: cancelled");
    t.worker("w1", slots(1)).after_ms(5_000);
}

#[test]
fn a_running_job_is_told_to_end_after_the_commit() {
    let mut t = with_one_running();
    t.cancel("a")
        .expect_nothing()
        .expect_state("a", JobState::Cancelling);
    t.commit()
        .expect("answer 1: cancelling")
        .expect("cancel a.1 on w1");
    t.reports("a", |report| {
        report.outcome = TERM;
        report.cancelled = true;
    });
    t.commit()
        .expect("finished a cancelled cancelled_by_user")
        .expect("ack 1 to w1");
}

#[test]
fn a_slot_is_held_until_the_cancelled_attempt_has_ended() {
    let mut t = with_one_running();
    t.submit("b")
        .cancel("a")
        .commit()
        .expect("answer 1: cancelling")
        .expect("cancel a.1 on w1");
    t.after_ms(5_000)
        .expect_nothing()
        .expect_state("b", JobState::Queued);
    t.reports("a", |report| report.cancelled = true).commit();
    t.expect("finished a cancelled cancelled_by_user")
        .expect("ack 1 to w1");
    t.expect("assign b.1 to w1");
}

#[test]
fn exit_0_after_our_signal_is_cancelled_and_before_it_is_success() {
    for (cancelled, end) in [
        (true, "finished a cancelled cancelled_by_user"),
        (false, "finished a succeeded"),
    ] {
        let mut t = with_one_running();
        t.cancel("a")
            .commit()
            .expect("answer 1: cancelling")
            .expect("cancel a.1 on w1");
        t.reports("a", |report| report.cancelled = cancelled)
            .commit();
        t.expect(end).expect("ack 1 to w1");
    }
}

#[test]
fn a_cancelling_job_ends_by_its_own_last_failure_but_is_never_tried_again() {
    for (max_attempts, end) in [
        (1, "finished a failed exit_code"),
        (2, "finished a cancelled cancelled_by_user"),
    ] {
        let mut t = Trial::new();
        t.submit_with("a", |job| {
            job.spec.retry = Retry {
                max_attempts,
                ..Retry::default()
            }
        });
        t.worker("w1", slots(1)).expect("assign a.1 to w1");
        t.starts("a")
            .cancel("a")
            .expect("answer 1: cancelling")
            .expect("cancel a.1 on w1");
        t.ends("a", EXIT_1).expect(end).expect("ack 1 to w1");
    }
}

#[test]
fn what_has_not_left_for_its_worker_never_leaves() {
    let mut t = Trial::new();
    t.slow_disk = true;
    t.worker("w1", slots(2)).submit("a b").cancel("a");
    t.commit().expect("assign b.1 to w1");
    t.expect("finished a cancelled cancelled_by_user")
        .expect("answer 1: cancelled");
    t.expect_fact("ended a.1 cancelled cancelled_by_user");
}

#[test]
fn an_end_that_comes_first_is_the_answer_once_it_is_committed() {
    let mut t = with_one_running();
    t.ends("a", OK).cancel("a").expect_nothing();
    t.expect_state("a", JobState::Running);
    t.commit()
        .expect("finished a succeeded")
        .expect("answer 1: finished succeeded");
    t.expect("ack 1 to w1");
}

#[test]
fn an_end_that_overtakes_the_cancels_commit_is_the_answer() {
    let mut t = with_one_running();
    t.cancel("a").ends("a", OK).commit_some(1);
    t.expect_nothing().commit_some(1);
    t.expect("finished a succeeded")
        .expect("answer 1: finished succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn a_second_cancel_says_cancelling_and_passes_force_on() {
    let mut t = with_one_running();
    t.cancel("a").cancel("a").expect_nothing();
    t.commit()
        .expect("answer 1: cancelling")
        .expect("cancel a.1 on w1");
    t.expect("answer 2: cancelling").expect_nothing();
    t.cancel_with("a", true, None)
        .expect("answer 3: cancelling")
        .expect("cancel a.1 on w1 by force");
}

#[test]
fn a_cancel_of_a_pending_cancelled_end_is_answered_with_it() {
    let mut t = Trial::new();
    t.slow_disk = true;
    t.submit("a")
        .cancel("a")
        .cancel("a")
        .expect_nothing()
        .commit();
    t.expect("finished a cancelled cancelled_by_user")
        .expect("answer 2: finished cancelled");
    t.expect("answer 1: cancelled");
}

#[test]
fn an_unknown_job_is_the_stores_to_answer() {
    let mut t = Trial::new();
    t.cancel("nobody").expect("answer 1: unknown");
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    t.cancel("a").expect("answer 2: unknown");
}

#[test]
fn a_worker_that_is_away_is_told_when_it_resumes() {
    let mut t = with_one_running();
    let fence = t.fence("a");
    t.leaves("w1")
        .cancel("a")
        .commit()
        .expect("answer 1: cancelling");
    let mut back = slots(1);
    back.held = vec![(fence, true)];
    t.worker("w1", back).expect("cancel a.1 on w1");
}

#[test]
fn a_lease_that_runs_out_while_cancelling_ends_the_job_as_cancelled() {
    let mut t = with_one_running();
    t.slow_disk = false;
    t.cancel("a")
        .expect("answer 1: cancelling")
        .expect("cancel a.1 on w1");
    t.leaves("w1")
        .after_ms(GRACE_MS)
        .expect("finished a cancelled worker_lost");
}

#[test]
fn a_cancelling_job_that_is_given_back_is_cancelled() {
    let mut t = with_one_running();
    t.cancel("a")
        .commit()
        .expect("answer 1: cancelling")
        .expect("cancel a.1 on w1");
    t.returns("a")
        .commit()
        .expect("finished a cancelled cancelled_by_user");
}

#[test]
fn a_signal_nobody_asked_for_is_a_failure_like_any_other() {
    let mut t = with_one_running();
    t.reports("a", |report| {
        report.outcome = TERM;
        report.cancelled = true;
    });
    t.commit()
        .expect("finished a failed signal")
        .expect("ack 1 to w1");
}

#[test]
fn a_deposed_server_says_nothing_more() {
    let mut t = with_one_running();
    t.cancel("a")
        .event(Event::Deposed)
        .commit()
        .expect_nothing();
    t.submit("b").cancel("b").worker_is_ignored();
    assert_eq!(t.engine.next_deadline(), None);
}

impl Trial {
    fn worker_is_ignored(&mut self) {
        self.joins("w9", slots(1)).expect_nothing();
    }
}
