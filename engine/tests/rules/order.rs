//! Who goes first, and to whom (P5, semantics 5, 11).

use hostler_engine::spec::{Kind, Retry};
use hostler_engine::{Event, Span};
use hostler_wire::JobState;

use crate::trial::{EXIT_1, NewJob, OK, Trial, config, slots, spec};

fn urgent(job: &mut NewJob) {
    job.priority = 10;
}

fn retried(job: &mut NewJob) {
    job.spec.retry = Retry {
        max_attempts: 3,
        ..Retry::default()
    };
}

#[test]
fn higher_priority_goes_first_and_within_one_the_lowest_id() {
    let mut t = Trial::new();
    t.submit("a")
        .submit("b")
        .submit_with("c", urgent)
        .submit_with("d", |job| job.priority = -1);
    t.worker("w1", slots(3)).expect("assign c.1 a.1 b.1 to w1");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    t.expect("assign d.1 to w1");
}

#[test]
fn priority_is_strict_across_the_queues_a_worker_serves() {
    let mut t = Trial::new();
    t.submit("a").submit_with("b", |job| {
        urgent(job);
        job.spec.queue = "video".into();
    });
    let mut w = slots(2);
    w.queues.push("video".into());
    t.worker("w1", w).expect("assign b.1 a.1 to w1");
}

#[test]
fn one_turn_makes_one_batch_of_assignments_a_worker() {
    let mut t = Trial::new();
    t.worker("w1", slots(2)).worker("w2", slots(2));
    t.submit("a b c d")
        .expect("assign a.1 c.1 to w1")
        .expect("assign b.1 d.1 to w2");
    t.expect_fact("assigned a.1 c.1 to w1");
}

#[test]
fn the_worker_with_the_most_free_slots_is_the_best_and_of_equals_the_one_that_holds_least() {
    let mut t = Trial::new();
    t.worker("w1", slots(2)).worker("w2", slots(3));
    t.submit("a").expect("assign a.1 to w2");
    t.submit("b").expect("assign b.1 to w1");
    t.submit("c").expect("assign c.1 to w2");
    t.submit("d").expect("assign d.1 to w1");
}

#[test]
fn a_worker_gets_no_more_than_its_slots() {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit("a b c")
        .expect("assign a.1 b.1 to w1");
    t.starts("a").after_ms(10_000).expect_nothing();
    t.expect_state("c", JobState::Queued);
    t.ends("b", OK)
        .expect("finished b succeeded")
        .expect("ack 1 to w1")
        .expect("assign c.1 to w1");
}

#[test]
fn a_retried_job_stands_where_its_id_says_once_it_is_due() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit_with("a", retried)
        .expect("assign a.1 to w1");
    t.submit("b c");
    t.ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .expect("assign b.1 to w1");
    t.after_ms(6_000).expect_state("a", JobState::Queued);
    t.ends("b", OK)
        .expect("finished b succeeded")
        .expect("ack 2 to w1")
        .expect("assign a.2 to w1");
}

#[test]
fn a_job_in_back_off_is_overtaken() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit_with("a", retried)
        .submit("b")
        .expect("assign a.1 to w1");
    t.ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .expect("assign b.1 to w1");
    t.expect_state("a", JobState::Scheduled);
}

#[test]
fn a_returned_job_goes_first_again() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a b")
        .expect("assign a.1 to w1");
    t.returns("a").expect("assign a.2 to w1");
    t.expect_fact("again a.1 returned, a return, at once");
}

#[test]
fn a_retry_prefers_a_worker_where_it_has_not_failed() {
    let mut t = Trial::new();
    t.worker("w1", slots(8)).worker("w2", slots(2));
    t.submit_with("a", retried).expect("assign a.1 to w1");
    t.ends("a", EXIT_1).expect("ack 1 to w1");
    t.after_ms(5_000).expect("assign a.2 to w2");
    t.ends("a", EXIT_1).expect("ack 1 to w2");
    t.after_ms(10_000).expect("assign a.3 to w1");
}

#[test]
fn a_retry_goes_back_to_the_only_worker_there_is() {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit_with("a", retried)
        .expect("assign a.1 to w1");
    t.ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .after_ms(5_000)
        .expect("assign a.2 to w1");
}

#[test]
fn a_worker_gets_only_what_it_can_do() {
    let mut t = Trial::new();
    let mut embedded = slots(9);
    embedded.commands = false;
    t.worker("w1", embedded);
    t.submit("a")
        .submit_with("b", |job| job.spec.kind = Kind::Handler)
        .expect("assign b.1 to w1");
    t.submit_with("c", |job| job.spec.queue = "video".into())
        .expect_nothing();
    t.worker("w2", slots(1)).expect("assign a.1 to w2");
}

#[test]
fn a_delayed_job_waits_for_its_moment_and_is_then_first() {
    let mut t = Trial::new();
    t.worker("w1", slots(1));
    let due = t.in_ms(5_000);
    t.submit_with("a", |job| job.due = due).expect_nothing();
    assert_eq!(t.view("a").due, due);
    t.submit("b c").expect("assign b.1 to w1");
    t.after_ms(4_999).expect_state("a", JobState::Scheduled);
    t.after_ms(1).expect_state("a", JobState::Queued);
    t.ends("b", OK)
        .expect("finished b succeeded")
        .expect("ack 1 to w1")
        .expect("assign a.1 to w1");
}

#[test]
fn a_draining_worker_gets_nothing_more() {
    let mut t = Trial::new();
    t.worker("w1", slots(2))
        .submit("a")
        .expect("assign a.1 to w1");
    t.drains("w1").submit("b").expect_nothing();
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn a_worker_without_room_to_start_something_gets_nothing_for_a_second() {
    let mut t = Trial::new();
    t.worker("w1", slots(1))
        .submit("a")
        .expect("assign a.1 to w1");
    t.reports("a", |report| {
        report.outcome = hostler_wire::Outcome::Returned;
        report.started = false;
        report.ran = Span::ZERO;
    });
    t.expect("ack 1 to w1")
        .expect_fact("again a.1 returned, a return, at once");
    t.after_ms(999).expect_nothing();
    t.after_ms(1).expect("assign a.2 to w1");
}

#[test]
fn bodies_are_fetched_ahead_once_and_nothing_overtakes_one_that_is_waited_for() {
    let mut t = Trial::new();
    t.submit_with("a b c d e f", |job| job.resident = false)
        .submit("g")
        .expect_nothing();
    t.worker("w1", slots(2)).expect("fetch a b c d");
    t.submit_with("u", |job| {
        urgent(job);
        job.spec.queue = "video".into();
    });
    let fetched = |t: &Trial, names: &str| Event::Fetched {
        jobs: names.split(' ').map(|name| t.id(name)).collect(),
    };
    t.event(fetched(&t, "b")).expect_nothing();
    t.event(fetched(&t, "a c d"))
        .expect("fetch e f")
        .expect("assign a.1 b.1 to w1");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
    t.expect("assign c.1 to w1");
    t.event(fetched(&t, "e f")).expect_nothing();
}

#[test]
fn what_waits_for_a_body_is_not_overtaken_by_another_queue() {
    let mut t = Trial::new();
    let mut both = slots(1);
    both.queues.push("video".into());
    t.submit_with("a", |job| job.resident = false);
    t.submit_with("v", |job| job.spec.queue = "video".into());
    t.worker("w1", both).expect("fetch a").expect_nothing();
    let jobs = vec![t.id("a")];
    t.event(Event::Fetched { jobs }).expect("assign a.1 to w1");
}

#[test]
fn a_worker_that_could_not_run_it_does_not_wait_with_it() {
    let mut t = Trial::new();
    let mut other = slots(1);
    other.queues = vec!["video".into()];
    t.submit_with("a", |job| job.resident = false);
    t.submit_with("v", |job| job.spec.queue = "video".into());
    t.worker("w1", slots(1)).expect("fetch a");
    t.worker("w2", other).expect("assign v.1 to w2");
}

#[test]
fn many_workers_and_a_long_queue_match_completely() {
    let mut t = Trial::with(hostler_engine::Config {
        prefetch_max: 0,
        ..config()
    });
    let names: Vec<_> = (0..500).map(|n| format!("j{n}")).collect();
    t.submit(&names.join(" "));
    for n in 0..50 {
        t.joins(&format!("w{n}"), slots(10))
            .expect(&format!("resume w{n} acked 0"));
        let ids: Vec<_> = (n * 10..n * 10 + 10).map(|n| format!("j{n}.1")).collect();
        t.expect(&format!("assign {} to w{n}", ids.join(" ")));
    }
    assert_eq!(t.engine.counts().running, 500);
}

#[test]
fn a_job_that_used_up_its_attempt_numbers_fails() {
    use hostler_engine::event::Restore;
    let mut t = Trial::restoring(config());
    let mut past = t.past("a", spec());
    past.attempt = hostler_wire::Attempt::new(u16::MAX).unwrap();
    t.restore(Restore::Job(Box::new(past)))
        .event(Event::Ready)
        .expect_nothing();
    t.worker("w1", slots(1))
        .expect("finished a failed too_many_attempts");
}
