//! Failures, losses, returns: counted apart (semantics 3, 6, 7).

use hostler_engine::event::Report;
use hostler_engine::spec::{Retry, Rule};
use hostler_engine::{Span, When};
use hostler_wire::{JobState, Outcome, Reason};

use crate::trial::{EXIT_1, GRACE_MS, NewJob, OK, Trial, slots};

fn tries(max_attempts: u16) -> impl FnOnce(&mut NewJob) {
    move |job| {
        job.spec.retry = Retry {
            max_attempts,
            ..Retry::default()
        }
    }
}

#[test]
fn a_job_is_tried_once_unless_it_asks_for_more() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    t.ends("a", EXIT_1)
        .expect("finished a failed exit_code")
        .expect("ack 1 to w1");
    t.expect_fact("ended a.1 failed exit_code");
}

#[test]
fn a_failure_waits_its_back_off_and_the_last_one_ends_the_job() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit_with("a", tries(3))
        .expect("assign a.1 to w1");
    t.ends("a", EXIT_1).expect("ack 1 to w1");
    t.expect_fact("again a.1 exit_code, a failure, after a wait");
    assert_eq!(t.view("a").reason, Reason::BackOff);
    let Some(When::Engine(due)) = t.view("a").due else {
        panic!("it waits on the engine's clock")
    };
    assert!((2_500..=5_000).contains(&due.since(t.now).millis()));
    t.after_ms(2_499)
        .expect_nothing()
        .after_ms(2_501)
        .expect("assign a.2 to w1");
    t.ends("a", EXIT_1).expect("ack 2 to w1");
    t.after_ms(4_999)
        .expect_nothing()
        .after_ms(5_001)
        .expect("assign a.3 to w1");
    t.ends("a", EXIT_1)
        .expect("finished a failed exit_code")
        .expect("ack 3 to w1");
}

#[test]
fn returns_and_losses_do_not_make_the_back_off_longer() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit_with("a", tries(2))
        .expect("assign a.1 to w1");
    t.returns("a").expect("assign a.2 to w1");
    t.starts("a").silent.insert("w1".into());
    t.after_ms(GRACE_MS).expect("refuse w1: deaf");
    t.worker("w2", slots(1)).expect("assign a.3 to w2");
    assert_eq!((t.view("a").failures, t.view("a").losses), (0, 1));
    t.ends("a", EXIT_1)
        .expect("ack 1 to w2")
        .after_ms(5_000)
        .expect("assign a.4 to w2");
}

#[test]
fn only_named_failures_are_retried() {
    let mut t = Trial::new();
    let on = |job: &mut NewJob| {
        tries(5)(job);
        job.spec.retry.on = Box::new([Rule::Codes(70, 79)]);
    };
    t.worker("w1", slots(1))
        .submit_with("a", on)
        .expect("assign a.1 to w1");
    t.ends("a", Outcome::Exited { code: 75 })
        .expect("ack 1 to w1");
    t.after_ms(5_000).expect("assign a.2 to w1");
    t.ends("a", EXIT_1)
        .expect("finished a failed exit_code")
        .expect("ack 2 to w1");
}

#[test]
fn a_fatal_handler_error_is_final_and_a_named_delay_is_kept() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit_with("a", tries(9))
        .expect("assign a.1 to w1");
    let later = Outcome::HandlerFailed {
        fatal: false,
        retry_after_ms: Some(60_000),
    };
    t.ends("a", later).expect("ack 1 to w1");
    t.after_ms(59_999)
        .expect_nothing()
        .after_ms(1)
        .expect("assign a.2 to w1");
    let fatal = Outcome::HandlerFailed {
        fatal: true,
        retry_after_ms: None,
    };
    t.ends("a", fatal)
        .expect("finished a failed handler_error")
        .expect("ack 2 to w1");
}

#[test]
fn not_now_costs_nothing_and_has_a_counter_of_its_own() {
    let mut t = Trial::new();
    let not_now = |job: &mut NewJob| job.spec.retry.later = Box::new([75]);
    t.worker("w1", slots(1))
        .submit_with("a", not_now)
        .expect("assign a.1 to w1");
    for n in 1..=100 {
        t.ends("a", Outcome::Exited { code: 75 })
            .expect(&format!("ack {n} to w1"));
        assert_eq!(
            (t.view("a").failures, t.view("a").reason),
            (0, Reason::Later)
        );
        t.after_ms(300_000)
            .expect(&format!("assign a.{} to w1", n + 1));
    }
    t.expect_fact("again a.100 later, a later, after a wait");
    t.ends("a", Outcome::Exited { code: 75 });
    t.expect("finished a failed exit_code")
        .expect("ack 101 to w1");
}

#[test]
fn a_lost_worker_is_charged_only_to_what_had_started() {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit("a b")
        .expect("assign a.1 b.1 to w1");
    t.starts("a").leaves("w1").after_ms(GRACE_MS);
    t.expect_fact("again a.1 worker_lost, a loss, at once");
    t.expect_fact("again b.1 worker_lost, a return, at once");
    t.worker("w2", slots(2)).expect("assign a.2 b.2 to w2");
    assert_eq!((t.view("a").losses, t.view("b").losses), (1, 0));
}

#[test]
fn a_job_fails_once_its_losses_exceed_what_it_allows() {
    let mut t = Trial::new();
    t.submit_with("a", |job| job.spec.max_losses = 2);
    for n in 1..=3 {
        let w = format!("w{n}");
        t.worker(&w, slots(1))
            .expect(&format!("assign a.{n} to {w}"));
        t.starts("a").leaves(&w).after_ms(GRACE_MS);
    }
    t.expect("finished a failed worker_lost")
        .expect_fact("ended a.3 failed worker_lost");
}

#[test]
fn at_most_once_counts_as_started_when_it_was_sent() {
    let mut t = Trial::new();
    t.submit_with("a", |job| job.spec.max_losses = 0);
    t.worker("w1", slots(1)).expect("assign a.1 to w1");
    t.leaves("w1")
        .after_ms(GRACE_MS)
        .expect("finished a failed worker_lost");
}

#[test]
fn at_most_once_goes_on_if_it_never_left_or_never_arrived() {
    let mut t = Trial::new();
    t.slow_disk = true;
    t.submit_with("a", |job| job.spec.max_losses = 0)
        .worker("w1", slots(1));
    t.leaves("w1")
        .commit()
        .expect_nothing()
        .worker("w2", slots(1))
        .commit();
    t.expect("assign a.2 to w2");
    t.leaves("w2")
        .worker("w2", slots(1))
        .commit()
        .expect("assign a.3 to w2");
    t.starts("a").leaves("w2").worker("w2", slots(1)).commit();
    t.expect("finished a failed worker_lost");
}

#[test]
fn what_a_report_says_is_passed_on_with_the_end() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    t.reports("a", |report: &mut Report| {
        let words = hostler_wire::Detail {
            message: "as told".into(),
            ..Default::default()
        };
        report.detail = Some(Box::new(words));
        report.ran = Span::from_millis(40);
    });
    t.expect("finished a succeeded")
        .expect("ack 1 to w1")
        .expect_fact("ended a.1 succeeded \"as told\"");
    let Some(hostler_engine::Fact::Ended(ended)) = t.facts.last() else {
        panic!("an end")
    };
    assert_eq!(ended.started, Some(t.now.back(Span::from_millis(40))));
}

#[test]
fn every_kind_of_failure_has_its_reason() {
    let cases = [
        (Outcome::Signalled { signal: 11 }, Reason::Signal),
        (Outcome::OutOfMemory, Reason::OutOfMemory),
        (Outcome::TimedOut, Reason::Timeout),
        (Outcome::Stalled, Reason::Stalled),
        (Outcome::SpawnFailed { errno: 2 }, Reason::SpawnFailed),
        (Outcome::NoSuchHandler, Reason::NoSuchHandler),
    ];
    let mut t = Trial::new();
    t.worker("w1", slots(1));
    for (n, (outcome, reason)) in cases.into_iter().enumerate() {
        t.submit("a").expect("assign a.1 to w1").ends("a", outcome);
        t.expect(&format!("finished a {} {reason}", JobState::Failed));
        t.expect(&format!("ack {} to w1", n + 1));
    }
    t.submit("b").expect("assign b.1 to w1").ends("b", OK);
    t.expect("finished b succeeded").expect("ack 7 to w1");
}
