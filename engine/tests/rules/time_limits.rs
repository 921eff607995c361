//! Expiry, deadline, timeout's backstop, and clocks (semantics 8, 23).

use hostler_engine::spec::Retry;
use hostler_engine::{Event, Span, WallTime, When};
use hostler_wire::{JobState, Outcome};

use crate::trial::{BEAT_MS, EXIT_1, NewJob, OK, Trial, slots};

fn retried(job: &mut NewJob) {
    job.spec.retry = Retry {
        max_attempts: 3,
        ..Retry::default()
    };
}

#[test]
fn a_job_that_never_started_expires() {
    let mut t = Trial::new();
    let expires = t.in_ms(5_000);
    t.submit_with("a b", |job| job.expires = expires)
        .after_ms(4_999)
        .expect_nothing();
    t.after_ms(1)
        .expect("finished a expired not_started_in_time");
    t.expect("finished b expired not_started_in_time");
    t.worker("w1", slots(1));
}

#[test]
fn a_job_that_has_started_once_cannot_expire() {
    let mut t = Trial::new();
    let expires = t.in_ms(5_000);
    t.submit_with("a", |job| {
        retried(job);
        job.expires = expires;
    });
    t.worker("w1", slots(1)).expect("assign a.1 to w1");
    t.starts("a")
        .ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .expect_state("a", JobState::Scheduled);
    t.after_ms(5_000).expect("assign a.2 to w1");
}

#[test]
fn an_assigned_job_that_has_not_started_is_asked_back_and_then_expires() {
    let mut t = Trial::new();
    let expires = t.in_ms(5_000);
    t.submit_with("a", |job| job.expires = expires)
        .worker("w1", slots(1))
        .expect("assign a.1 to w1");
    t.after_ms(5_000).expect("recall a.1 from w1");
    t.returns("a")
        .expect("finished a expired not_started_in_time");
}

#[test]
fn an_assigned_job_that_starts_at_the_last_moment_runs() {
    let mut t = Trial::new();
    let expires = t.in_ms(5_000);
    t.submit_with("a", |job| job.expires = expires)
        .worker("w1", slots(1))
        .expect("assign a.1 to w1");
    t.after_ms(5_000)
        .expect("recall a.1 from w1")
        .starts("a")
        .after_ms(60_000);
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn an_assignment_that_has_not_left_expires_at_once() {
    let mut t = Trial::new();
    t.slow_disk = true;
    let expires = t.in_ms(5_000);
    t.submit_with("a", |job| job.expires = expires)
        .worker("w1", slots(1))
        .after_ms(5_000);
    t.commit().expect("finished a expired not_started_in_time");
}

#[test]
fn a_waiting_job_past_its_deadline_expires_or_fails_by_whether_it_ever_started() {
    let mut t = Trial::new();
    let deadline = t.in_ms(8_000);
    t.worker("w1", slots(1));
    t.submit_with("a b", |job| {
        retried(job);
        job.spec.retry.backoff = Span::from_secs(60);
        job.deadline = deadline;
    });
    t.expect("assign a.1 to w1")
        .starts("a")
        .submit_with("c", |job| job.priority = 1);
    t.ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .expect("assign c.1 to w1");
    t.after_ms(8_000);
    t.expect("finished a failed deadline")
        .expect("finished b expired deadline");
}

#[test]
fn a_running_job_past_its_deadline_is_told_to_end_and_fails() {
    let mut t = Trial::new();
    let deadline = t.in_ms(8_000);
    t.submit_with("a", |job| {
        retried(job);
        job.deadline = deadline;
    });
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a");
    t.after_ms(8_000)
        .expect("cancel a.1 on w1")
        .expect_fact("cancelling a deadline");
    t.reports("a", |report| {
        report.cancelled = true;
        report.outcome = Outcome::Signalled { signal: 15 };
    });
    t.expect("finished a failed deadline").expect("ack 1 to w1");
}

#[test]
fn a_job_that_makes_its_deadline_after_all_succeeds() {
    let mut t = Trial::new();
    let deadline = t.in_ms(8_000);
    t.submit_with("a", |job| job.deadline = deadline)
        .worker("w1", slots(1));
    t.expect("assign a.1 to w1")
        .starts("a")
        .after_ms(8_000)
        .expect("cancel a.1 on w1");
    t.ends("a", OK)
        .expect("finished a succeeded")
        .expect("ack 1 to w1");
}

#[test]
fn a_cancel_of_a_job_past_its_deadline_joins_it() {
    let mut t = Trial::new();
    let deadline = t.in_ms(8_000);
    t.submit_with("a", |job| job.deadline = deadline)
        .worker("w1", slots(1));
    t.expect("assign a.1 to w1")
        .after_ms(8_000)
        .expect("cancel a.1 on w1");
    t.cancel("a").expect("answer 1: cancelling");
    t.reports("a", |report| {
        report.cancelled = true;
        report.started = false;
    });
    t.expect("finished a expired deadline")
        .expect("ack 1 to w1");
}

#[test]
fn the_servers_backstop_ends_an_attempt_whose_worker_did_not() {
    let mut t = Trial::new();
    t.submit_with("a", |job| {
        retried(job);
        job.spec.timeout = Some(Span::from_secs(60));
        job.spec.grace = Some(Span::from_secs(5));
    });
    t.worker("w1", slots(1)).expect("assign a.1 to w1");
    t.after_ms(7_000)
        .starts("a")
        .after_ms(65_000 + 2 * BEAT_MS - 1)
        .expect_nothing();
    t.after_ms(1).expect("stop a.1 on w1");
    t.expect_fact("again a.1 timeout, a failure, after a wait");
    t.after_ms(5_000).expect("assign a.2 to w1");
}

#[test]
fn the_backstop_leaves_a_worker_that_is_away_to_its_lease() {
    let mut t = Trial::new();
    t.submit_with("a", |job| job.spec.timeout = Some(Span::from_secs(10)));
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a")
        .after_ms(8_000);
    let fence = t.fence("a");
    t.leaves("w1")
        .after_ms(20_000)
        .expect_state("a", JobState::Running);
    let mut back = slots(1);
    back.held = vec![(fence, true)];
    t.worker("w1", back)
        .after_ms(2 * BEAT_MS - 1)
        .expect_nothing();
    t.after_ms(1)
        .expect("finished a failed timeout")
        .expect("stop a.1 on w1");
}

#[test]
fn the_backstop_asks_the_worker_before_it_ends_an_attempt_for_its_silence() {
    let mut t = Trial::new();
    t.submit_with("a", |job| {
        job.spec.stall = Some(Span::from_secs(60));
        job.spec.grace = Some(Span::from_secs(5));
    });
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a");
    let late_ms = 5_000 + 2 * BEAT_MS;
    let fence = t.fence("a");
    let mut look = |quiet_ms: u64| {
        t.after_ms(60_000 + late_ms - 1).expect_nothing();
        t.after_ms(1).expect("look at a.1 on w1");
        let quiet = Span::from_millis(quiet_ms);
        t.event(Event::Looked { fence, quiet });
    };
    look(10);
    look(60_000 + late_ms - 1);
    look(60_000 + late_ms);
    t.expect("finished a failed stalled")
        .expect("stop a.1 on w1");
}

#[test]
fn of_a_worker_that_never_tells_of_an_attempt_the_lease_decides_and_the_time_limit_holds() {
    let mut t = Trial::new();
    t.submit_with("a", |job| {
        job.spec.stall = Some(Span::from_secs(10));
        job.spec.timeout = Some(Span::from_secs(40));
        job.spec.grace = Some(Span::ZERO);
    });
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a");
    for _ in 0..3 {
        t.after_ms(10_000 + 2 * BEAT_MS).expect("look at a.1 on w1");
    }
    t.after_ms(10_000 - 4 * BEAT_MS);
    t.expect("finished a failed timeout")
        .expect("stop a.1 on w1");
}

#[test]
fn an_attempt_that_ends_in_time_is_not_touched_by_the_backstop() {
    let mut t = Trial::new();
    t.submit_with("a", |job| {
        retried(job);
        job.spec.retry.backoff = Span::ZERO;
        job.spec.timeout = Some(Span::from_secs(10));
    });
    t.worker("w1", slots(1))
        .expect("assign a.1 to w1")
        .starts("a")
        .after_ms(5_000);
    t.ends("a", EXIT_1)
        .expect("ack 1 to w1")
        .expect("assign a.2 to w1");
    t.after_ms(60_000).expect_nothing();
}

#[test]
fn instants_follow_the_wall_clock_and_spans_do_not() {
    let mut t = Trial::new();
    t.worker("w1", slots(9));
    let wall_now = t.now.micros() / 1_000 + 1_000_000;
    let instant = When::Wall(WallTime::from_millis(wall_now + 10_000));
    let span = t.in_ms(10_000);
    t.submit_with("a", |job| job.due = Some(instant));
    t.submit_with("b", |job| job.due = span);
    t.event(Event::Wall {
        offset_ms: 1_000_000 - 5_000,
    });
    t.after_ms(10_000).expect("assign b.1 to w1");
    t.after_ms(4_999)
        .expect_nothing()
        .after_ms(1)
        .expect("assign a.1 to w1");
}

#[test]
fn a_jump_forward_is_due_at_once_and_a_jump_back_sets_nothing_off_again() {
    let mut t = Trial::new();
    t.worker("w1", slots(9));
    let instant = When::Wall(WallTime::from_millis(10_000_000));
    t.submit_with("a", |job| job.due = Some(instant));
    t.event(Event::Wall {
        offset_ms: 10_000_000,
    })
    .expect("assign a.1 to w1");
    t.event(Event::Wall { offset_ms: 0 })
        .after_ms(5_000)
        .expect_nothing();
    t.returns("a").expect("assign a.2 to w1");
}

#[test]
fn thousands_of_cancelled_waits_leave_no_alarms_behind() {
    let mut t = Trial::new();
    t.slow_disk = true;
    for n in 0..300 {
        let due = t.in_ms(3_600_000);
        t.submit_with(&format!("j{n}"), |job| job.due = due)
            .cancel(&format!("j{n}"));
    }
    t.commit();
    for n in 0..300 {
        t.expect(&format!("finished j{n} cancelled cancelled_by_user"));
        t.expect(&format!("answer {}: cancelled", n + 1));
    }
    t.after_ms(3_600_000).expect_nothing();
}

#[test]
fn alarms_of_many_attempts_that_ended_in_time_are_thrown_out_while_one_is_ending() {
    let mut t = Trial::new();
    t.worker("w1", slots(1));
    for n in 0..100 {
        let job = format!("job{n}");
        t.submit_with(&job, |job| job.spec.timeout = Some(Span::from_secs(60)));
        t.expect(&format!("assign {job}.1 to w1"));
        t.starts(&job)
            .ends(&job, OK)
            .expect(&format!("finished {job} succeeded"))
            .expect(&format!("ack {} to w1", n + 1));
    }
}
